//! Changes on their way to the writer: encoded as they come, gathered into batches, taken a batch at a time. Behind one
//! short lock; never touches the database.

use super::batch::Batch;
use super::directory;
use super::index::{Index, Settlement};
use crate::ports::{Change, Lsn, Seq, SessionNo};
use crate::storage::record::{self, StepRow};
use crate::storage::{cluster_rows, session_rows};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Empty batches kept for reuse.
const SPARE_BATCHES_MAX: usize = 2;

/// What is appended and not yet durable, and the index of rows that goes with it.
pub(super) struct Gather {
    index: Index,
    current: Batch,
    /// Closed batches, oldest first; the writer may be at work on the first.
    closed: VecDeque<Arc<Batch>>,
    closed_bytes: usize,
    spare: Vec<Batch>,
    /// A batch of this many bytes is closed and another begun.
    batch_bytes_max: usize,
    /// The smallest session number never seen.
    next_session: SessionNo,
    /// No more changes are taken.
    pub(super) closing: bool,
    /// The writer waits for something to do.
    pub(super) writer_idle: bool,
}

impl Gather {
    /// Starts with the rows that are there; the first batch is number 1.
    pub(super) fn new(index: Index, next_session: SessionNo, batch_bytes_max: usize) -> Gather {
        let mut current = Batch::default();
        current.reset(1);
        Gather {
            index,
            current,
            closed: VecDeque::new(),
            closed_bytes: 0,
            spare: Vec::new(),
            batch_bytes_max,
            next_session,
            closing: false,
            writer_idle: false,
        }
    }

    /// Bytes waiting to be committed or being so.
    pub(super) fn bytes(&self) -> usize {
        self.closed_bytes + self.current.size()
    }

    /// Encodes `changes` into the current batch, all into the same; returns its number. `keys` yields keys of rows.
    pub(super) fn append(&mut self, changes: &[Change<'_>], keys: &AtomicU64) -> Lsn {
        if self.closing {
            return self.current.lsn.saturating_add(1);
        }
        let lsn = self.current.lsn;
        if changes.is_empty() && self.current.changes() == 0 {
            // Nothing would commit the empty batch; the one before is as good an answer.
            return lsn.saturating_sub(1);
        }
        for change in changes {
            self.current.count_change();
            self.encode(change, keys);
        }
        if self.current.size() >= self.batch_bytes_max {
            self.close_batch();
        }
        lsn
    }

    fn close_batch(&mut self) {
        let lsn = self.current.lsn;
        let mut next = self.spare.pop().unwrap_or_default();
        next.reset(lsn + 1);
        let mut closed = std::mem::replace(&mut self.current, next);
        closed.next_session = self.next_session;
        self.closed_bytes += closed.size();
        self.closed.push_back(Arc::new(closed));
    }

    /// The batch to commit next; the same until [`Gather::done`].
    pub(super) fn next_batch(&mut self) -> Option<Arc<Batch>> {
        if self.closed.is_empty() && self.current.changes() > 0 {
            self.close_batch();
        }
        self.closed.front().cloned()
    }

    /// `batch`, the one to commit next, is in the database.
    pub(super) fn done(&mut self, batch: Arc<Batch>) {
        self.closed.pop_front();
        self.closed_bytes = self.closed_bytes.saturating_sub(batch.size());
        if let Ok(batch) = Arc::try_unwrap(batch)
            && self.spare.len() < SPARE_BATCHES_MAX
        {
            self.spare.push(batch);
        }
    }

    fn encode(&mut self, change: &Change<'_>, keys: &AtomicU64) {
        let next_key = || keys.fetch_add(1, Ordering::Relaxed);
        let Gather { index, current: batch, .. } = self;
        match *change {
            Change::Seen { .. }
            | Change::Unseen { .. }
            | Change::Node(_)
            | Change::Spool(_)
            | Change::Directory { .. }
            | Change::Unspool { .. } => self.encode_of_cluster(change, next_key),
            Change::Message { recipients: [], .. } => {}
            Change::Message { seq, id, message, recipients } => {
                batch.put_row(seq, |out| record::put_message(out, id, message, recipients));
                if recipients.len() > 1 {
                    index.share(seq, recipients.iter().map(|recipient| recipient.session));
                }
                for recipient in recipients {
                    self.saw(recipient.session);
                }
            }
            Change::Settle { seq, session } => {
                if let Some(key) = index.end_outbound(session, seq) {
                    batch.delete_row(key);
                }
                match index.settle(seq, session) {
                    Settlement::Only => batch.delete_row(seq),
                    Settlement::Open => batch.settle(seq, session),
                    Settlement::Last => {
                        batch.delete_row(seq);
                        batch.settle_last(seq);
                    }
                }
            }
            Change::Outbound { session, packet_id, seq, state } => {
                let key = next_key();
                let replaced = |replaced| batch.delete_row(replaced);
                let order = index.put_outbound(session, packet_id, seq, key, key, replaced);
                let step = StepRow { session, packet_id, seq, state, order };
                batch.put_row(key, |out| record::put_outbound(out, &step));
            }
            Change::InboundBegin { session, packet_id } => {
                if !index.has_inbound(session, packet_id) {
                    let key = next_key();
                    index.put_inbound(session, packet_id, key);
                    batch.put_row(key, |out| record::put_inbound(out, session, packet_id));
                }
            }
            Change::InboundEnd { session, packet_id } => {
                if let Some(key) = index.end_inbound(session, packet_id) {
                    batch.delete_row(key);
                }
            }
            Change::Session(session) => {
                batch.put_session(session.no, |out| session_rows::put_session(out, session));
                if session.disconnected_at.is_some() {
                    index.rest(session.no);
                }
                self.saw(session.no);
            }
            Change::SessionEnd { session } => {
                index.end_session(session, |key| batch.delete_row(key));
                batch.end_session(session);
            }
            Change::Subscribe { session, subscription } => {
                batch.put_subscription(session, &subscription.filter, |out| {
                    session_rows::put_subscription(out, subscription);
                });
            }
            Change::Unsubscribe { session, filter } => batch.end_subscription(session, filter),
            Change::Retain(message) => {
                let key = next_key();
                if let Some(replaced) = index.put_retained(message.topic(), key) {
                    batch.delete_row(replaced);
                }
                batch.put_row(key, |out| record::put_retained(out, message));
            }
            Change::ClearRetained { topic } => {
                if let Some(key) = index.end_retained(topic) {
                    batch.delete_row(key);
                }
            }
        }
    }

    /// What only a node of a cluster has.
    fn encode_of_cluster(&mut self, change: &Change<'_>, next_key: impl Fn() -> u64) {
        let Gather { index, current: batch, .. } = self;
        let replaced = match *change {
            Change::Seen { id, sessions } => {
                let sessions = index.unseen(id, sessions);
                if !sessions.is_empty() {
                    let key = next_key();
                    index.put_seen(id, key, &sessions);
                    batch.put_row(key, |out| cluster_rows::put_seen(out, id, &sessions));
                    sessions.into_iter().for_each(|session| self.saw(session));
                }
                return;
            }
            Change::Unseen { id } => return index.end_seen(id, |key| batch.delete_row(key)),
            Change::Node(node) => {
                let key = next_key();
                batch.put_row(key, |out| cluster_rows::put_node(out, node));
                index.put_node(key)
            }
            Change::Spool(spooled) => {
                let key = next_key();
                batch.put_row(key, |out| cluster_rows::put_spooled(out, spooled));
                index.spool(&spooled.topic, key)
            }
            Change::Unspool { topic } => index.unspool(topic),
            Change::Directory { key, value: Some(value) } => {
                batch.put_directory(&key.to_string(), |out| directory::put(out, value));
                return;
            }
            Change::Directory { key, value: None } => return batch.end_directory(&key.to_string()),
            _ => None,
        };
        if let Some(replaced) = replaced {
            batch.delete_row(replaced);
        }
    }

    fn saw(&mut self, session: SessionNo) {
        self.next_session = self.next_session.max(session.saturating_add(1));
    }

    /// Looks for what is not durable yet of the messages `seqs` (ascending): gives rows to `found` and messages that
    /// `session` has settled to `settled`, each as its position in `seqs`.
    pub(super) fn overlay(
        &self,
        session: SessionNo,
        seqs: &[Seq],
        mut found: impl FnMut(usize, &[u8]),
        mut settled: impl FnMut(usize),
    ) {
        let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return };
        for batch in self.closed.iter().map(Arc::as_ref).chain([&self.current]) {
            if !batch.is_void() {
                for (at, seq) in seqs.iter().enumerate() {
                    if let Some(row) = batch.row(*seq) {
                        found(at, row);
                    }
                }
            }
            let of_session = batch.settled().iter().filter(|(_, by)| *by == session).map(|(seq, _)| seq);
            for seq in batch.deletes().iter().chain(of_session) {
                if (first..=last).contains(&seq)
                    && let Ok(at) = seqs.binary_search(seq)
                {
                    settled(at);
                }
            }
        }
    }
}
