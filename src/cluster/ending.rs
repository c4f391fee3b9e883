//! The end of a session in a cluster: its will goes to all nodes, its routes are taken back, what came through shared subscriptions goes
//! to members on any node, and the store forgets who owned it. The steps on this node are [`crate::broker::ending`]'s.

use super::durable::AfterDurable;
use super::{Cache, Cluster, Remote};
use crate::broker::Broker;
use crate::broker::delivery::{Delivered, Publishing, Scratch};
use crate::broker::ending::{CarriedOut, Endings, HandOn, Handed, Left};
use crate::broker::handle::{Handle, Subscriptions};
use crate::broker::router::Target;
use crate::clock::Time;
use crate::mqtt::Message;
use crate::ports::{Change, Epoch, Lsn, Seq, SessionNo, SessionRecord};
use crate::session::{Delivery, Loss, Session};
use crate::telemetry::metrics::SessionState;
use std::sync::{Arc, Weak};

/// A session that ended here, and whose record in the store is to be removed.
#[derive(Debug)]
pub struct Over {
    /// Client identifier of the session.
    pub client_id: Arc<str>,
    /// The epoch under which this node owned the session.
    pub epoch: Epoch,
    /// The number under which the journal keeps the session until the store has answered; `None` = it keeps nothing.
    pub tombstone: Option<SessionNo>,
}

impl Endings for Cluster {
    fn broker(&self) -> &Broker {
        &self.broker
    }

    fn weak(&self) -> Weak<Cluster> {
        self.me.clone()
    }

    fn may_wake(&self, handle: &Handle) -> bool {
        // The eviction says what becomes of its will.
        !self.remote.sessions.being_evicted(&handle.client_id, handle.epoch())
    }

    fn publish_will(
        &self,
        handle: &Handle,
        session: &Session,
        message: &Message,
        _: Time,
        done: &mut CarriedOut,
        scratch: &mut Scratch,
    ) {
        let Some(record) = self.broker.will_record_due(handle, session, message) else { return };
        let publishing =
            Publishing { session: handle.no, inbound: None, record: Some(&record), handle: Some(handle) };
        match self.publish(message, &publishing, &mut Cache::default(), scratch) {
            Ok(routed) => done.will = routed.promise,
            Err(failure) => self.broker.will_refused(handle, &record, message, &failure),
        }
    }

    fn end_session(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let broker = &self.broker;
        let remains = broker.take_apart(handle, session, &mut scratch.wakes);
        self.member_left(handle, &remains.subscriptions);
        broker.unsubscribe_all(handle, &remains.subscriptions);
        self.routes_removed(remains.subscriptions.keys(), handle.durable);
        let shared = remains.shared();
        let ended = Loss::SessionEnded;
        for left in remains.left {
            match left {
                Left::Message(d, begun) => self.hand_on(handle, &d, begun, ended, now, scratch),
                Left::Released(seq) => self.settle_lost(handle, seq, ended),
            }
        }
        broker.metrics.shared_subscriptions.sub(shared as u64);
        let tombstone = self.tombstone(handle, now);
        if shared > 0 && !remains.on_disk.is_empty() {
            // Takes a while.
            let record = broker.ended_record(handle, session, now);
            let lsn = record.map(|record| self.append_end(Change::Session(&record), tombstone.as_ref()));
            self.release(handle, lsn, tombstone);
            let (from, seqs, begun) = (handle.clone(), remains.on_disk, remains.begun);
            self.hand_on_from_journal(HandOn { from, seqs, begun, now });
            return lsn;
        }
        remains.on_disk.into_iter().for_each(|seq| self.settle_lost(handle, seq, ended));
        let end = Change::SessionEnd { session: handle.no };
        let lsn = Broker::is_known(handle).then(|| self.append_end(end, tombstone.as_ref()));
        self.release(handle, lsn, tombstone);
        lsn
    }

    fn hand_on(&self, from: &Handle, d: &Delivery, begun: bool, why: Loss, now: Time, scratch: &mut Scratch) {
        // No session freezes between the look at it and its mailbox.
        let inside = self.remote.barrier.enter();
        // Other nodes first, as in `match_all`: a member that comes here from one of them is here before its route there goes.
        let elsewhere = d.shared().is_some_and(|name| self.has_members_elsewhere(&d.message, name));
        let (delivered, wakes) = scratch.begin();
        let handed = self.broker.hand_to_member(from, d, begun, now, delivered, wakes);
        self.settle_displaced(delivered);
        let given = match (handed, d.shared()) {
            (Handed::Member(given), _) => Some(given),
            (Handed::Nobody { leaving }, Some(name)) if leaving || elsewhere => {
                self.hand_to_others(&d.message, name);
                Some(true)
            }
            (Handed::Nobody { .. } | Handed::Nowhere, _) => None,
        };
        drop(inside);
        match (given, d.seq) {
            (Some(given), seq) => {
                if given {
                    self.broker.metrics.shared_redeliveries.inc();
                }
                if let Some(seq) = seq {
                    self.settle_row(seq.get(), from.no);
                }
            }
            (None, Some(seq)) => self.settle_lost(from, seq.get(), why),
            (None, None) => self.broker.metrics.lost(from.whose(), why, 1),
        }
    }
}

impl Cluster {
    /// Settles message `seq` of the journal for a session. Who has had it is remembered as long as it may come again.
    pub fn settle_row(&self, seq: Seq, session: SessionNo) {
        let settle = Change::Settle { seq, session };
        match self.remote.deduplication.settled(seq) {
            Some(id) => self.broker.journal.append(&[settle, Change::Seen { id, sessions: &[session] }]),
            None => self.broker.journal.append(&[settle]),
        };
    }

    /// Sessions are done with what gave way to a message in their queues.
    pub(super) fn settle_displaced(&self, d: &mut Delivered) {
        for (seq, session) in d.displaced.drain(..) {
            self.settle_row(seq, session);
        }
    }

    /// Makes room in the queues that a message has found full.
    pub(super) fn purge_full(&self, d: &mut Delivered) {
        for handle in d.full.drain(..) {
            let cluster = self.me.clone();
            self.broker.purge(&handle, self.remote.now(), move |handle, gone| {
                if let Some(cluster) = cluster.upgrade() {
                    gone.into_iter().for_each(|seq| cluster.settle_row(seq, handle.no));
                }
            });
        }
    }

    fn settle_lost(&self, handle: &Handle, seq: Seq, why: Loss) {
        self.broker.metrics.lost(handle.whose(), why, 1);
        self.settle_row(seq, handle.no);
    }

    /// A session leaves or ends with its subscriptions. Before they are taken out of the router.
    pub(super) fn member_left(&self, handle: &Handle, subscriptions: &Subscriptions) {
        self.remote.young.forget(handle.no, None);
        let groups: Vec<Arc<str>> =
            subscriptions.keys().filter(|name| name.starts_with("$share/")).cloned().collect();
        self.remote.deduplication.left(handle.no, &groups);
    }

    /// What the journal keeps of an ended session until the cluster has forgotten it as well: whatever the cluster says is this
    /// node's must be in its journal after a crash, or nobody could tell that it is over.
    fn tombstone(&self, handle: &Handle, now: Time) -> Option<SessionRecord> {
        let owned = handle.durable && !handle.disowned();
        owned.then(|| SessionRecord {
            no: self.broker.new_session_no(),
            client_id: handle.client_id.clone(),
            expiry_s: 0,
            disconnected_at: Some(now),
            will: None,
            created_at: handle.created_at,
            epoch: handle.epoch(),
            pending: false,
            user: handle.user(),
            queue_policy: None,
        })
    }

    fn append_end(&self, end: Change<'_>, tombstone: Option<&SessionRecord>) -> Lsn {
        match tombstone {
            Some(record) => self.broker.journal.append(&[end, Change::Session(record)]),
            None => self.broker.journal.append(&[end]),
        }
    }

    /// The cluster forgets that this node owns the session, once the journal has its end and its will; then the tombstone goes.
    fn release(&self, handle: &Handle, ended: Option<Lsn>, tombstone: Option<SessionRecord>) {
        if handle.disowned() {
            return;
        }
        self.remote.sessions.note_ended(&handle.client_id, handle.epoch());
        let over = Over {
            client_id: handle.client_id.clone(),
            epoch: handle.epoch(),
            tombstone: tombstone.map(|t| t.no),
        };
        let queue: fn(&Remote) -> &AfterDurable<Over> = |remote| &remote.sessions.over;
        self.after_durable(&self.remote, queue, ended.unwrap_or(0), over, |cluster, remote, over| {
            over.into_iter().for_each(|o| cluster.release_now(remote, o));
        });
    }

    fn release_now(&self, remote: &Remote, over: Over) {
        let released = remote.ports.coordinator.release(&over.client_id, over.epoch);
        let Some(session) = over.tombstone else { return };
        let journal = self.broker.journal.clone();
        remote.ports.tasks.spawn(Box::pin(async move {
            released.await;
            journal.append(&[Change::SessionEnd { session }]);
        }));
    }

    /// Gives one message to one session as its subscription asks. `None` if it was dropped, else up to where the journal must be durable
    /// for it to be safe.
    pub fn deliver_one(
        &self,
        message: &Message,
        t: &Target,
        retain: bool,
        scratch: &mut Scratch,
    ) -> Option<Option<Lsn>> {
        let (delivered, wakes) = scratch.begin();
        let given = self.broker.deliver_one(message, t, retain, delivered, wakes);
        self.settle_displaced(delivered);
        given
    }

    /// A session of the registry has left this node: it is not counted any more.
    pub(super) fn count_out(&self, handle: &Arc<Handle>) {
        if self.broker.registry_remove(handle) {
            self.broker.metrics.sessions.of(SessionState::Active).sub(1);
        }
    }
}
