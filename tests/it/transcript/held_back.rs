//! A journal in memory whose durability can be held back, and that forgets at a crash what was not durable.

use berth::mqtt::Message;
use berth::ports::{
    Change, DirectoryKey, Journal, JournalHealth, Lsn, MessageId, NodeRecord, OutboundState, ReadDone,
    Recipient, Recovered, Seq, SessionNo, SessionRecord, SpooledRetain, SubscriptionRecord,
};
use berth::storage::{MemoryJournal, MemoryOptions};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

/// See the module.
pub struct HeldBackJournal {
    /// Has everything that was appended, durable or not: what reads see.
    live: Arc<MemoryJournal>,
    inner: Mutex<HeldBack>,
}

#[derive(Default)]
struct HeldBack {
    /// What a crash leaves, in order.
    durable: Vec<Vec<Owned>>,
    /// What a crash takes, in order.
    waiting: VecDeque<Vec<Owned>>,
    held: bool,
    failing: bool,
    wakers: Vec<(Lsn, Waker)>,
}

impl HeldBack {
    fn durable(&self) -> Lsn {
        self.durable.len() as Lsn
    }
}

impl HeldBackJournal {
    /// An empty journal that makes everything durable at once.
    pub fn new() -> Arc<HeldBackJournal> {
        HeldBackJournal::with(MemoryJournal::new(MemoryOptions::default()), Vec::new())
    }

    fn with(live: Arc<MemoryJournal>, durable: Vec<Vec<Owned>>) -> Arc<HeldBackJournal> {
        Arc::new(HeldBackJournal { live, inner: Mutex::new(HeldBack { durable, ..HeldBack::default() }) })
    }

    /// From now on nothing becomes durable until it is released.
    pub fn hold(&self) {
        self.inner.lock().held = true;
    }

    /// As [`HeldBackJournal::hold`], and the journal says that it is failing and congested.
    pub fn fail(&self) {
        let mut inner = self.inner.lock();
        inner.held = true;
        inner.failing = true;
    }

    /// Makes the next `n` appends durable that wait; all of them, and all that come, if `None`.
    pub fn release(&self, n: Option<usize>) {
        let mut inner = self.inner.lock();
        let ready = n.unwrap_or(inner.waiting.len()).min(inner.waiting.len());
        let ready: Vec<_> = inner.waiting.drain(..ready).collect();
        inner.durable.extend(ready);
        if n.is_none() {
            inner.held = false;
            inner.failing = false;
        }
        let durable = inner.durable();
        let (due, rest) = std::mem::take(&mut inner.wakers).into_iter().partition(|(lsn, _)| *lsn <= durable);
        inner.wakers = rest;
        drop(inner);
        let due: Vec<(Lsn, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Appends that are not durable yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// What a process finds that starts after this one has died: all that was durable, and nothing else.
    pub fn crash(&self) -> (Arc<HeldBackJournal>, Recovered) {
        let durable = std::mem::take(&mut self.inner.lock().durable);
        let copy = MemoryJournal::named(MemoryOptions::default(), self.live.name());
        let seq = self.live.next_seq();
        while copy.next_seq() < seq {}
        for batch in &durable {
            let changes: Vec<Change<'_>> = batch.iter().map(Owned::borrow).collect();
            copy.append(&changes);
        }
        let (live, recovered) = copy.reopen();
        (HeldBackJournal::with(live, durable), recovered)
    }
}

impl Journal for HeldBackJournal {
    fn next_seq(&self) -> Seq {
        self.live.next_seq()
    }

    fn append(&self, changes: &[Change<'_>]) -> Lsn {
        let mut inner = self.inner.lock();
        self.live.append(changes);
        let batch = changes.iter().map(Owned::from).collect();
        if inner.held {
            inner.waiting.push_back(batch);
        } else {
            inner.durable.push(batch);
        }
        inner.durable() + inner.waiting.len() as Lsn
    }

    fn durable(&self) -> Lsn {
        self.inner.lock().durable()
    }

    fn wake_at(&self, lsn: Lsn, waker: &Waker) {
        let mut inner = self.inner.lock();
        if lsn > inner.durable() {
            inner.wakers.push((lsn, waker.clone()));
        } else {
            drop(inner);
            waker.wake_by_ref();
        }
    }

    fn congested(&self) -> bool {
        self.inner.lock().failing
    }

    fn read(&self, session: SessionNo, seqs: Vec<Seq>, done: ReadDone) {
        self.live.read(session, seqs, done);
    }

    fn health(&self) -> JournalHealth {
        match self.inner.lock().failing {
            true => JournalHealth::Failing("the test says so".to_owned()),
            false => JournalHealth::Ok,
        }
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn close(&self) {
        self.live.close();
    }
}

/// A [`Change`] that owns what it says.
enum Owned {
    Message(Seq, Option<MessageId>, Message, Vec<Recipient>),
    Seen(MessageId, Vec<SessionNo>),
    Unseen(MessageId),
    Node(NodeRecord),
    Spool(SpooledRetain),
    Unspool(String),
    Settle(Seq, SessionNo),
    Outbound(SessionNo, u16, Seq, OutboundState),
    InboundBegin(SessionNo, u16),
    InboundEnd(SessionNo, u16),
    Session(SessionRecord),
    SessionEnd(SessionNo),
    Subscribe(SessionNo, SubscriptionRecord),
    Unsubscribe(SessionNo, String),
    Retain(Message),
    ClearRetained(String),
    Directory(DirectoryKey, Option<Vec<u8>>),
}

impl From<&Change<'_>> for Owned {
    fn from(change: &Change<'_>) -> Owned {
        match *change {
            Change::Message { seq, id, message, recipients } => {
                Owned::Message(seq, id, message.clone(), recipients.to_vec())
            }
            Change::Settle { seq, session } => Owned::Settle(seq, session),
            Change::Outbound { session, packet_id, seq, state } => {
                Owned::Outbound(session, packet_id, seq, state)
            }
            Change::InboundBegin { session, packet_id } => Owned::InboundBegin(session, packet_id),
            Change::InboundEnd { session, packet_id } => Owned::InboundEnd(session, packet_id),
            Change::Session(record) => Owned::Session(record.clone()),
            Change::SessionEnd { session } => Owned::SessionEnd(session),
            Change::Subscribe { session, subscription } => Owned::Subscribe(session, subscription.clone()),
            Change::Unsubscribe { session, filter } => Owned::Unsubscribe(session, filter.to_owned()),
            Change::Retain(message) => Owned::Retain(message.clone()),
            Change::ClearRetained { topic } => Owned::ClearRetained(topic.to_owned()),
            Change::Seen { id, sessions } => Owned::Seen(id, sessions.to_vec()),
            Change::Unseen { id } => Owned::Unseen(id),
            Change::Node(node) => Owned::Node(node.clone()),
            Change::Spool(spooled) => Owned::Spool(spooled.clone()),
            Change::Directory { key, value } => Owned::Directory(key.clone(), value.map(<[u8]>::to_vec)),
            Change::Unspool { topic } => Owned::Unspool(topic.to_owned()),
        }
    }
}

impl Owned {
    fn borrow(&self) -> Change<'_> {
        match self {
            Owned::Message(seq, id, message, recipients) => {
                Change::Message { seq: *seq, id: *id, message, recipients }
            }
            Owned::Seen(id, sessions) => Change::Seen { id: *id, sessions },
            Owned::Unseen(id) => Change::Unseen { id: *id },
            Owned::Node(node) => Change::Node(node),
            Owned::Spool(spooled) => Change::Spool(spooled),
            Owned::Directory(key, value) => Change::Directory { key, value: value.as_deref() },
            Owned::Unspool(topic) => Change::Unspool { topic },
            Owned::Settle(seq, session) => Change::Settle { seq: *seq, session: *session },
            Owned::Outbound(session, packet_id, seq, state) => {
                Change::Outbound { session: *session, packet_id: *packet_id, seq: *seq, state: *state }
            }
            Owned::InboundBegin(session, packet_id) => {
                Change::InboundBegin { session: *session, packet_id: *packet_id }
            }
            Owned::InboundEnd(session, packet_id) => {
                Change::InboundEnd { session: *session, packet_id: *packet_id }
            }
            Owned::Session(record) => Change::Session(record),
            Owned::SessionEnd(session) => Change::SessionEnd { session: *session },
            Owned::Subscribe(session, subscription) => Change::Subscribe { session: *session, subscription },
            Owned::Unsubscribe(session, filter) => Change::Unsubscribe { session: *session, filter },
            Owned::Retain(message) => Change::Retain(message),
            Owned::ClearRetained(topic) => Change::ClearRetained { topic },
        }
    }
}
