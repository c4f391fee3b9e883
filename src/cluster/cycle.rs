//! The life of a publish that this node owns, after it was matched: its record becomes durable, nodes answer, the index moves
//! on, time passes, the node restarts.

use super::outbox::entry::{Entry, OpenGroup};
use super::{Cluster, Remote, RemoteCache};
use crate::broker::delivery::Publishing;
use crate::broker::promise::Promise;
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{
    Answer, Change, Incarnation, Lsn, MessageId, ORIGIN_DUTY, Recovered, Revision, Seq, SessionNo,
};
use crate::session::Loss;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

/// What waits for the journal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recorded {
    /// A publish whose frames may leave.
    Begun(MessageId),
    /// A publish that every node has.
    Finished(MessageId),
    /// A publish whose record says by now who is to serve its shared subscriptions.
    Noted(MessageId, Seq),
}

/// How often the table of publishes is looked through, milliseconds: at most, and as a part of `publish_timeout`.
const SWEEP_MS: u64 = 1_000;
const SWEEPS: u64 = 10;

/// Publishes that take long and are logged in one look over them, at most.
const OVERDUE_TOLD_MAX: usize = 3;

/// Publishes matched in a row before others get a turn.
const UNMATCHED_BATCH: usize = 256;

/// Duties that are read from the journal at a time after a restart.
const DUTIES_BATCH_MAX: usize = 128;

impl Cluster {
    /// Lets the frames of a publish leave once the journal is durable up to `lsn`.
    pub(super) fn when_recorded(&self, remote: &Arc<Remote>, lsn: Lsn, id: MessageId) {
        self.after_durable(remote, |r| &r.recorded, lsn, Recorded::Begun(id), Cluster::recorded);
    }

    /// Lets those be asked who are to serve a publish's shared subscriptions once the journal is durable up to `lsn`.
    pub(super) fn when_noted(&self, remote: &Arc<Remote>, lsn: Lsn, id: MessageId, seq: Seq) {
        self.after_durable(remote, |r| &r.recorded, lsn, Recorded::Noted(id, seq), Cluster::recorded);
    }

    fn recorded(&self, remote: &Arc<Remote>, what: Vec<Recorded>) {
        let inside = remote.barrier.enter();
        let applied = remote.applied();
        for what in what {
            match what {
                Recorded::Begun(id) => {
                    let next = remote.outbox.recorded(id, applied);
                    self.carry_on(remote, next);
                }
                Recorded::Finished(id) => self.forget_publish(remote, id),
                Recorded::Noted(id, seq) => {
                    let next = remote.outbox.noted(id, seq, applied);
                    self.carry_on(remote, next);
                }
            }
        }
        drop(inside);
        self.match_unmatched(remote);
    }

    /// Ends a publish that every node has. Nobody is promised that it will not come again before that is durable here.
    pub(super) fn finish(&self, remote: &Arc<Remote>, id: MessageId, duty: Option<Seq>) {
        match duty {
            Some(seq) => {
                let lsn = self.broker.journal.append(&[Change::Settle { seq, session: ORIGIN_DUTY }]);
                self.after_durable(remote, |r| &r.recorded, lsn, Recorded::Finished(id), Cluster::recorded);
            }
            None => self.forget_publish(remote, id),
        }
    }

    fn forget_publish(&self, remote: &Arc<Remote>, id: MessageId) {
        remote.outbox.remove(id);
        self.forget_deferred(remote, id);
        if remote.outbox.low_water_is_news() {
            remote.report_soon();
        }
        if remote.deduplication.done(id) {
            self.broker.journal.append(&[Change::Unseen { id }]);
        }
        self.broker.metrics.publishes_held.set(remote.outbox.held() as u64);
    }

    /// Starts a task that matches what is unmatched in the outbox, in order, as soon as this node is fresh.
    pub(super) fn match_unmatched(&self, remote: &Arc<Remote>) {
        if !remote.outbox.has_unmatched() || !remote.outbox.attend_unmatched() {
            return;
        }
        let (cluster, remote) = (self.me.clone(), remote.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            loop {
                remote.when_fresh().await;
                let Some(cluster) = cluster.upgrade() else { return };
                if cluster.match_next_unmatched(&remote) {
                    remote.outbox.leave_unmatched();
                    if !remote.outbox.attend_unmatched() {
                        return;
                    }
                }
                drop(cluster);
                yield_now().await;
            }
        }));
    }

    /// Matches some publishes that wait to be matched; true if there is nothing (more) that can be matched.
    fn match_next_unmatched(&self, remote: &Arc<Remote>) -> bool {
        for _ in 0..UNMATCHED_BATCH {
            if !remote.is_fresh(remote.now()) {
                return false;
            }
            // Until its frames are queued nobody may hear how far this node has come, nor may the queue change.
            let _inside = remote.barrier.enter();
            let applied = remote.applied();
            let Some((id, view)) = remote.outbox.next_unmatched(applied) else { return true };
            let next = self.match_checked_out(remote, id, &view, applied);
            self.carry_on(remote, next);
            remote.outbox.unmatched_done(id);
        }
        false
    }

    /// Matches again, the index having come to `applied`, the publishes that waited for that.
    pub(super) fn match_due(&self, applied: Revision) {
        let remote = &self.remote;
        self.match_each(remote, remote.outbox.due(applied));
        self.match_unmatched(remote);
    }

    fn match_each(&self, remote: &Arc<Remote>, ids: Vec<MessageId>) {
        for id in ids {
            // Until its frames are queued nobody may hear how far this node has come.
            let _inside = remote.barrier.enter();
            if let Some(next) = self.match_again(remote, id) {
                self.carry_on(remote, next);
            }
        }
    }

    /// Lets publishes for nodes that went, or came back, be matched again: registrations, custody or links have changed.
    pub(super) fn nodes_changed(&self) {
        let remote = &self.remote;
        self.match_unmatched(remote);
        self.prune_given_up(remote);
        self.go_on_with_order(remote);
        self.places_may_go(remote);
    }

    /// Matches again what nodes without a link have not answered if anybody has moved since: whoever has come from a node waits for what
    /// this one has sent there before, and a node without a link may not answer for long.
    pub(super) fn match_behind(&self, remote: &Arc<Remote>) {
        let unlinked = remote.members.unlinked();
        if unlinked.is_empty() {
            return;
        }
        let newest = remote.sessions.newest_move().min(remote.applied());
        if remote.barrier.closed(|| remote.outbox.queue_behind(&unlinked, newest)) {
            self.match_unmatched(remote);
        }
    }

    /// Takes in what a node said to publishes of this one.
    pub(super) fn take_answers(
        &self,
        remote: &Arc<Remote>,
        node: &Arc<str>,
        answers: Vec<(MessageId, Answer)>,
    ) {
        for (id, answer) in &answers {
            match answer {
                Answer::Accepted { declined, .. } => {
                    self.broker.metrics.groups_declined.add(declined.len() as u64)
                }
                Answer::Moved(_) => {}
                Answer::Failed(why) => {
                    tracing::warn!(node = &**node, origin = id.origin, seq = id.seq, %why, "another node cannot store a publish");
                }
            }
        }
        let inside = remote.barrier.enter();
        let mut next = remote.outbox.answered(node, answers, remote.applied());
        let failed = std::mem::take(&mut next.failed);
        self.carry_on(remote, next);
        drop(inside);
        if !failed.is_empty() {
            self.give_up(remote, failed);
        }
    }

    /// Gives publishes up that are open for `publish.timeout` or have failed: their publishers are told so.
    fn give_up(&self, remote: &Arc<Remote>, failed: Vec<MessageId>) {
        let (patience_ms, now) = (self.broker.limits.publish_timeout_ms(), remote.now());
        let reason = Reason::ImplementationSpecificError;
        for (id, nodes) in remote.outbox.give_up(patience_ms, failed, reason, now) {
            self.broker.metrics.publishes_given_up.inc();
            for node in &nodes {
                remote.ports.peers.cancel(node, id);
            }
            self.forget_publish(remote, id);
        }
    }

    /// Logs publishes that have to reach all nodes and have not within `publish.timeout`, though no node is away.
    fn tell_overdue(&self, remote: &Remote) {
        for (id, waits) in remote.outbox.overdue(OVERDUE_TOLD_MAX) {
            tracing::warn!(
                origin = id.origin,
                seq = id.seq,
                waits,
                "a publish is not with all nodes within publish.timeout, though none of them is away: it goes on"
            );
        }
    }

    /// What has to be done from time to time.
    fn sweep(&self, remote: &Arc<Remote>) {
        let now = remote.now();
        self.give_up(remote, Vec::new());
        self.tell_overdue(remote);
        self.match_each(remote, remote.outbox.retry());
        self.match_behind(remote);
        // Given up, or their sender gone, without a word.
        self.take_deferred_soon(remote);
        let inside = remote.barrier.enter();
        let next = remote.outbox.expire(now, remote.applied());
        self.carry_on(remote, next);
        drop(inside);
        let (low, open) = remote.barrier.closed(|| remote.outbox.low_water());
        self.forget_below(remote, remote.me.incarnation, low, &open);
        for origin in remote.outbox.retired() {
            self.forget_below(remote, origin, u64::MAX, &[]);
        }
        let (known, fresh) = (remote.members.known(), remote.is_fresh(now));
        let gone = |origin| remote.members.is_over(origin) || (fresh && !known.contains(&origin));
        let others: Vec<_> =
            known.iter().copied().filter(|origin| *origin != remote.me.incarnation).collect();
        remote.young.prune(&others, |origin, seq| gone(origin) || remote.deduplication.all_past(origin, seq));
        let (forgotten, recorded) = remote.deduplication.overflow();
        if forgotten > 0 {
            self.broker.metrics.seen_forgotten.add(forgotten as u64);
            tracing::warn!(
                forgotten,
                "too many publishes are not done with elsewhere: the oldest may come twice"
            );
        }
        self.forget_records(&recorded);
        self.broker.metrics.publishes_held.set(remote.outbox.held() as u64);
    }

    fn forget_records(&self, ids: &[MessageId]) {
        for id in ids {
            self.broker.journal.append(&[Change::Unseen { id: *id }]);
        }
    }

    /// Forgets the publishes of `origin` below `low`, which will not come again, save those in `open`.
    pub(super) fn forget_below(&self, remote: &Arc<Remote>, origin: Incarnation, low: u64, open: &[u64]) {
        self.forget_records(&remote.deduplication.prune(origin, low, open));
        self.forget_deferred_below(remote, origin, low, open);
    }

    /// Incarnations that were given up send nothing again.
    fn prune_given_up(&self, remote: &Arc<Remote>) {
        let known = remote.members.known();
        remote.young.forget_origins(|origin| known.contains(&origin));
        for origin in remote.deduplication.origins().into_iter().filter(|o| remote.members.is_over(*o)) {
            self.forget_below(remote, origin, u64::MAX, &[]);
        }
    }

    /// Takes up what earlier processes with this journal have begun. To be called before anybody publishes.
    pub fn recover_publishes(&self, recovered: &mut Recovered) {
        let remote = &self.remote;
        let node = recovered.node.take().unwrap_or_default();
        let earlier: Vec<Incarnation> =
            node.incarnations.iter().copied().filter(|i| *i != remote.me.incarnation).collect();
        recovered.node = Some(node);
        let duties = std::mem::take(&mut recovered.duties);
        let own = |origin: Incarnation| earlier.contains(&origin) || origin == remote.me.incarnation;
        let open = |id: &MessageId| {
            duties.binary_search_by_key(id, |(_, d)| *d).is_ok() || duties.iter().any(|(_, d)| d == id)
        };
        let seen = std::mem::take(&mut recovered.seen);
        let (alive, over): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|(id, _)| !own(id.origin) || open(id));
        remote.deduplication.recover(alive, std::mem::take(&mut recovered.ids));
        for (id, _) in over {
            self.broker.journal.append(&[Change::Unseen { id }]);
        }
        remote.outbox.recovering(earlier);
        if duties.is_empty() {
            remote.outbox.recovered();
        } else {
            tracing::info!(publishes = duties.len(), "publishes begun before the restart are sent again");
            self.read_duties(duties.into_iter().map(|(seq, _)| seq).collect());
        }
    }

    /// Reads duties a batch at a time and queues them.
    fn read_duties(&self, mut seqs: std::collections::VecDeque<Seq>) {
        let n = seqs.len().min(DUTIES_BATCH_MAX);
        let batch: Vec<Seq> = seqs.drain(..n).collect();
        let cluster = self.me.clone();
        self.broker.journal.read(
            ORIGIN_DUTY,
            batch,
            Box::new(move |found| {
                let Some(cluster) = cluster.upgrade() else { return };
                let remote = &cluster.remote;
                for s in found {
                    let Some(id) = s.id else { continue };
                    let mut entry = Entry::of_duty(s.message, s.seq, s.recipient.publisher, remote.now());
                    if let Some(unserved) = s.recipient.unserved {
                        entry.groups = unserved.into_iter().map(OpenGroup::of_duty).collect();
                        entry.groups_known = true;
                    }
                    if let Some(name) = s.recipient.shared {
                        if !entry.groups_known {
                            entry.groups.push(OpenGroup::new(name));
                        }
                        (entry.direct, entry.groups_known) = (false, true);
                    }
                    cluster.broker.metrics.publishes_resent.inc();
                    remote.outbox.queue(id, entry, true);
                }
                if seqs.is_empty() {
                    remote.outbox.recovered();
                    remote.report_soon();
                } else {
                    cluster.read_duties(seqs);
                }
                cluster.match_unmatched(remote);
            }),
        );
    }

    /// Starts the tasks that look after the publishes of this node.
    pub fn start_publishing(&self) {
        let remote = &self.remote;
        let pause = (self.broker.limits.publish_timeout_ms() / SWEEPS).clamp(1, SWEEP_MS);
        remote.ports.tasks.spawn(Box::pin(sweeps(self.me.clone(), pause)));
    }

    /// How many publishes of this node's clients not every other node has yet.
    pub fn remote_held(&self) -> usize {
        self.remote.outbox.held()
    }

    /// The packet identifiers of a session's QoS 2 publishes that wait for other nodes.
    pub fn publishes_under_way(&self, session: SessionNo) -> Vec<u16> {
        self.remote.outbox.under_way(session)
    }

    /// The promise that tells the outcome of such a publish; `None` if all nodes have it.
    pub fn publish_under_way(&self, session: SessionNo, packet_id: u16) -> Option<Arc<Promise>> {
        self.remote.outbox.promise(session, packet_id)
    }

    /// The limit because of which a publish is refused that would wait for others although no more may; `None` = it is not. Wills are taken
    /// always: there is one for a session.
    pub fn refuses_to_hold(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        cache: &mut RemoteCache,
    ) -> Option<Loss> {
        let remote = &self.remote;
        if message.qos() == QoS::AtMostOnce || publishing.record.is_some() {
            return None;
        }
        let outbox = &remote.outbox;
        let full = outbox.overfull() || outbox.away_full() && remote.lookup(message.topic(), cache).waits();
        full.then(|| outbox.limit_reached())
    }

    /// Whether publishers should pause since too many publishes wait for other nodes.
    pub fn publishers_pause(&self) -> bool {
        self.remote.outbox.full()
    }

    /// Wakes a publisher that pauses when there is room again.
    pub fn wake_publisher(&self, waker: &Waker) {
        if self.remote.outbox.full() {
            self.remote.outbox.wake_when_room(waker);
        }
    }
}

async fn sweeps(cluster: Weak<Cluster>, pause_ms: u64) {
    loop {
        let sleep = {
            let Some(cluster) = cluster.upgrade() else { return };
            let remote = &cluster.remote;
            cluster.sweep(remote);
            remote.ports.tasks.sleep(pause_ms)
        };
        sleep.await;
    }
}

/// Lets other tasks of the thread have a turn.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
