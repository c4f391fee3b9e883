//! Sessions that come to this node and leave it: what is under way, and what has to be remembered of those that left.

use super::durable::AfterDurable;
use super::ending::Over;
use super::evict::{Evicting, Learned};
use super::outgoing::TakeoverRequests;
use super::{Cluster, Remote};
use crate::broker::handle::{Handle, Subscriptions};
use crate::broker::mailbox::OrderHold;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::Reason;
use crate::names::shown;
use crate::ports::{
    BoxFuture, Claim, ClaimOutcome, Epoch, IndexEvent, MemberId, Owner, Revision, SessionNo, SessionOwner,
};
use crate::sync::Once;
use crate::sync::lanes::Lanes;
use crate::sync::level::Waiters;
use crate::user::SessionUser;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Ended sessions that are remembered, so that a record of theirs that is still there is known to be void.
const ENDED_MAX: usize = 100_000;

/// Granted claims whose events have not come, at most.
const GRANTED_MAX: usize = 100_000;

/// The first pause before a request to the store is tried again, milliseconds.
const RETRY_MS: u64 = 50;

/// The longest such pause, milliseconds.
const RETRY_LONGEST_MS: u64 = 1_000;

/// What a CONNECT waits for. The outcome is also how it is told to stop: by a later CONNECT, or by its own connection's end.
#[derive(Debug, Default)]
pub struct Run {
    /// `Ok` = the session is on this node: look again.
    pub outcome: Arc<Once<Result<(), Reason>>>,
    /// Whether the log has said why it was refused.
    said: AtomicBool,
    /// Whose CONNECT it is.
    user: SessionUser,
}

impl Run {
    /// Takes note that the log says why the CONNECT is refused.
    pub(super) fn say(&self) {
        self.said.store(true, Ordering::Release);
    }

    /// Whether the log has said why the CONNECT was refused.
    pub fn said(&self) -> bool {
        self.said.load(Ordering::Acquire)
    }

    /// Whether nobody waits for the session any more.
    pub fn over(&self) -> bool {
        self.outcome.get().is_some()
    }
}

#[derive(Debug, Default)]
struct Ended {
    epochs: HashMap<Arc<str>, Epoch>,
    order: VecDeque<Arc<str>>,
}

/// Claims of this node whose events are still to come. Epochs begin anew when a record was gone, so that an older event may have
/// a higher one.
#[derive(Debug, Default)]
struct Granted {
    at: HashMap<Arc<str>, Revision>,
    order: BTreeSet<(Revision, Arc<str>)>,
}

impl Granted {
    fn insert(&mut self, client_id: &Arc<str>, at: Revision) {
        if let Some(before) = self.at.insert(client_id.clone(), at) {
            self.order.remove(&(before, client_id.clone()));
        }
        self.order.insert((at, client_id.clone()));
        if self.order.len() > GRANTED_MAX {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, client_id)) = self.order.pop_first() {
            self.at.remove(&client_id);
        }
    }

    /// The index has come to `applied`.
    fn applied(&mut self, applied: Revision) {
        while self.order.first().is_some_and(|(at, _)| *at <= applied) {
            self.forget_first();
        }
    }
}

/// A session that is with another node, still in the router.
#[derive(Debug)]
pub(super) struct Departed {
    pub handle: Arc<Handle>,
    pub subscriptions: Subscriptions,
}

/// Sessions that come to this node and leave it: what is under way, and what has to be remembered of those that left.
#[derive(Default)]
pub struct Sessions {
    pub(super) lanes: Arc<Lanes>,
    runs: Mutex<HashMap<Arc<str>, Arc<Run>>>,
    news: Mutex<Waiters>,
    reports: Mutex<Waiters>,
    ended: Mutex<Ended>,
    granted: Mutex<Granted>,
    /// Sessions that are over, until the journal says so.
    pub over: AfterDurable<Over>,
    /// Until this node's sessions have been compared with the store: what it says of those in the journal.
    pub(super) named: Mutex<HashMap<Arc<str>, SessionOwner>>,
    /// Until this node's sessions have been compared with the store: records that earlier processes of this node left behind without state.
    pub(super) leftovers: Mutex<HashMap<Arc<str>, SessionOwner>>,
    /// Until this node's sessions have been compared with the store: sessions that it names as this node's and that the journal does not
    /// have.
    pub(super) strangers: Mutex<HashMap<Arc<str>, SessionOwner>>,
    /// Until this node's sessions have been compared with the store: the epochs by which they were replaced over this node's head, or
    /// (`true`) that they expired.
    pub(super) evictions: Mutex<HashMap<Arc<str>, (Epoch, bool)>>,
    /// Evictions under way.
    pub(super) evicting: Mutex<HashMap<Arc<str>, Evicting>>,
    pub(super) reconciled: Arc<Once<()>>,
    /// When sessions of the journal take what others send.
    pub hold: Arc<OrderHold>,
    /// Sessions of the journal of which it is not known whether they are still this node's.
    pub(super) recovered: Mutex<Vec<super::reconcile::Candidate>>,
    /// Takeovers that this node is asked for.
    pub(super) asked: Arc<TakeoverRequests>,
    /// Sessions that are being handed over.
    pub(super) outgoing: Mutex<HashMap<Arc<str>, Arc<super::outgoing::Outgoing>>>,
    pub(super) departed: Mutex<BTreeMap<(Revision, SessionNo), Departed>>,
    /// The newest move of a session, or start of a process, that the index has.
    newest_move: AtomicU64,
    correlations: AtomicU64,
    procedures: Arc<AtomicUsize>,
}

/// A procedure of a CONNECT, counted while it is under way.
#[derive(Debug)]
pub(super) struct Procedure(Arc<AtomicUsize>);

impl Drop for Procedure {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sessions {
    /// Completes once this node's sessions have been compared with the store.
    pub fn when_reconciled(&self) -> BoxFuture<()> {
        self.reconciled.wait()
    }

    /// Membership, custody, a link or a session's record has changed.
    pub(super) fn poke(&self) {
        let news = std::mem::take(&mut *self.news.lock());
        news.wake();
    }

    /// Completes at the next [`Sessions::poke`]. Taken before looking, nothing is missed.
    pub(super) fn news(&self) -> BoxFuture<()> {
        self.news.lock().join()
    }

    /// A node has said how far it is with its publishes, or this one is further.
    pub(super) fn reported(&self) {
        let reports = std::mem::take(&mut *self.reports.lock());
        reports.wake();
    }

    /// Completes at the next [`Sessions::reported`]. Taken before looking, nothing is missed.
    pub(super) fn reports(&self) -> BoxFuture<()> {
        self.reports.lock().join()
    }

    /// A session has moved, or a process has started, at `at`.
    pub(super) fn note_move(&self, at: Revision) {
        self.newest_move.fetch_max(at, Ordering::AcqRel);
    }

    /// The newest revision at which a session has moved, or a process has started, that the index has.
    pub(super) fn newest_move(&self) -> Revision {
        self.newest_move.load(Ordering::Acquire)
    }

    /// Names a takeover in the logs of both nodes.
    pub(super) fn correlation(&self, me: &MemberId) -> Arc<str> {
        format!("{me}/{}", self.correlations.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// A CONNECT has come: an earlier one with this client identifier is superseded, if it may be.
    pub(super) fn begin(
        &self,
        client_id: &Arc<str>,
        user: &SessionUser,
        supersedes: impl FnOnce(&SessionUser) -> bool,
    ) -> Arc<Run> {
        let run = Arc::new(Run { user: user.clone(), ..Run::default() });
        let before = self.runs.lock().insert(client_id.clone(), run.clone());
        if let Some(before) = before
            && supersedes(&before.user)
        {
            before.outcome.set(Err(Reason::SessionTakenOver));
        }
        run
    }

    /// Counts a procedure in; `None` if `max` are under way.
    pub(super) fn procedure(&self, max: usize) -> Option<Procedure> {
        let procedure = Procedure(self.procedures.clone());
        (self.procedures.fetch_add(1, Ordering::Relaxed) < max).then_some(procedure)
    }

    /// The procedure of a CONNECT has come to its end. True if no later one is under way.
    pub(super) fn finish(&self, client_id: &str, run: &Arc<Run>) -> bool {
        let mut runs = self.runs.lock();
        let last = runs.get(client_id).is_none_or(|r| Arc::ptr_eq(r, run));
        if last {
            runs.remove(client_id);
        }
        last
    }

    /// How many wait for [`Sessions::poke`] and for [`Sessions::reported`], those that have left and are still listed included.
    pub fn waiting(&self) -> (usize, usize) {
        (self.news.lock().listed(), self.reports.lock().listed())
    }

    /// How many CONNECTs have not been decided.
    pub fn claiming(&self) -> usize {
        self.runs.lock().len()
    }

    /// A session of this node ended: its record, if one is still there, stands for nothing.
    pub fn note_ended(&self, client_id: &Arc<str>, epoch: Epoch) {
        let mut ended = self.ended.lock();
        match ended.epochs.get_mut(client_id) {
            Some(known) => *known = epoch.max(*known),
            None => {
                ended.epochs.insert(client_id.clone(), epoch);
                ended.order.push_back(client_id.clone());
            }
        }
        if ended.order.len() > ENDED_MAX
            && let Some(oldest) = ended.order.pop_front()
        {
            ended.epochs.remove(&oldest);
        }
    }

    /// The index has come to `applied`: no older event will come.
    pub(super) fn events_came(&self, applied: Revision) {
        self.granted.lock().applied(applied);
    }

    /// Whether an event is older than this node's own claim of the session.
    fn outdated(&self, client_id: &str, revision: Revision) -> bool {
        self.granted.lock().at.get(client_id).is_some_and(|at| revision < *at)
    }

    /// Keeps an eviction until this node's sessions have been compared with the store; false if they have been.
    fn keep_eviction(&self, client_id: &Arc<str>, epoch: Epoch, expired: bool) -> bool {
        // Under the lock: those that are kept are looked at after the flag is raised.
        let mut evictions = self.evictions.lock();
        let keep = self.reconciled.get().is_none();
        if keep {
            evictions.insert(client_id.clone(), (epoch, expired));
        }
        keep
    }

    /// The last epoch of a session that ended here or was replaced over this node's head, if it remembers one.
    pub(super) fn ended_at(&self, client_id: &str) -> Option<Epoch> {
        self.ended.lock().epochs.get(client_id).copied()
    }
}

impl Remote {
    /// Before these revisions count as applied: a link that breaks just then finds that somebody has moved.
    pub(super) fn note_moves(&self, events: &[IndexEvent]) {
        let moved = |event: &IndexEvent| match event {
            IndexEvent::Session { session: Some(session), revision, .. } if session.epoch > 1 => {
                Some(*revision)
            }
            _ => None,
        };
        if let Some(newest) = events.iter().filter_map(moved).max() {
            self.sessions.note_move(newest);
        }
    }

    /// Notes which sessions were replaced over this node's head.
    pub(super) fn note_evictions(&self, events: &[IndexEvent]) {
        for event in events {
            if let IndexEvent::Eviction { node, client_id, epoch: Some(epoch), expired, revision } = event
                && *node == self.me.node
                && !self.sessions.outdated(client_id, *revision)
                && !self.sessions.keep_eviction(client_id, *epoch, *expired)
            {
                self.note_eviction(client_id, *epoch, &learned(events, client_id, *expired, *revision));
            }
        }
    }

    /// `f`, unless `deadline` comes first.
    pub(super) async fn until<T>(&self, deadline: Time, f: BoxFuture<T>) -> Option<T> {
        let left = deadline.since_ms(self.now());
        match select(f, self.ports.tasks.sleep(left)).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// What becomes of a claim: tried until the store has answered, since an attempt without an answer may have been carried
    /// out and only another one tells.
    pub(super) async fn claim_certainly(&self, claim: Claim) -> ClaimOutcome {
        let outcome = self.claim_until_answered(&claim).await;
        if let ClaimOutcome::Granted(at) = outcome {
            self.sessions.granted.lock().insert(&claim.client_id, at);
            // Its event may have come before the answer.
            self.sessions.events_came(self.applied());
        }
        outcome
    }

    async fn claim_until_answered(&self, claim: &Claim) -> ClaimOutcome {
        let mut pause = RETRY_MS;
        let mut again = false;
        loop {
            match self.ports.coordinator.claim(claim.clone()).await {
                Ok(ClaimOutcome::Found(Some(o)))
                    if again && o.session.owner == self.me && o.session.epoch == claim.epoch =>
                {
                    return ClaimOutcome::Granted(o.revision);
                }
                Ok(outcome) => return outcome,
                Err(why) => {
                    tracing::debug!(client = %shown(&claim.client_id), %why, "claim has no answer; trying again");
                    again = true;
                    self.ports.tasks.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST_MS);
                }
            }
        }
    }

    /// The record of a session: read until the store has answered.
    pub(super) async fn owner_certainly(&self, client_id: &str) -> Option<Owner> {
        let mut pause = RETRY_MS;
        loop {
            match self.ports.coordinator.owner(client_id).await {
                Ok(owner) => return owner,
                Err(why) => {
                    tracing::debug!(client = %shown(client_id), %why, "session's record cannot be read; trying again");
                    self.ports.tasks.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST_MS);
                }
            }
        }
    }

    /// Whether the working link to a process's node leads to that very process.
    pub(super) fn linked_to(&self, process: &MemberId) -> bool {
        self.members.linked(&process.node).as_ref() == Some(process)
    }
}

impl Cluster {
    /// Looks at what has happened to sessions. Evictions first: they say that a will stays behind.
    pub(super) fn on_session_events(&self, events: &[IndexEvent]) {
        let remote = &self.remote;
        for event in events {
            if let IndexEvent::Eviction { node, client_id, epoch: Some(epoch), expired, revision } = event
                && *node == remote.me.node
            {
                if remote.sessions.outdated(client_id, *revision) {
                    remote.ports.coordinator.evicted(client_id, *epoch);
                    continue;
                }
                if !remote.sessions.keep_eviction(client_id, *epoch, *expired) {
                    self.on_eviction(
                        remote,
                        client_id,
                        *epoch,
                        learned(events, client_id, *expired, *revision),
                    );
                }
            }
        }
        for event in events {
            if let IndexEvent::Session { client_id, session, revision } = event
                && !remote.sessions.outdated(client_id, *revision)
            {
                self.on_session(remote, client_id, session.as_ref());
            }
        }
    }

    fn on_eviction(&self, remote: &Arc<Remote>, client_id: &Arc<str>, epoch: Epoch, learned: Learned) {
        let Some(cluster) = self.me.upgrade() else { return };
        let (client_id, coordinator) = (client_id.clone(), remote.ports.coordinator.clone());
        // Begun at once: the session's record may come in the next events.
        let evicted = cluster.evict(&client_id, epoch, learned);
        remote.ports.tasks.spawn(Box::pin(async move {
            evicted.await;
            coordinator.evicted(&client_id, epoch);
        }));
    }

    pub(super) fn on_session(
        &self,
        remote: &Arc<Remote>,
        client_id: &Arc<str>,
        session: Option<&SessionOwner>,
    ) {
        let sessions = &remote.sessions;
        if sessions.reconciled.get().is_none() {
            let mut leftovers = sessions.leftovers.lock();
            match session {
                Some(s) if s.expiry_s == 0 && s.owner.node == remote.me.node => {
                    leftovers.insert(client_id.clone(), s.clone());
                }
                _ => drop(leftovers.remove(client_id)),
            }
            drop(leftovers);
            if self.broker.session(client_id).is_some() {
                let mut named = sessions.named.lock();
                match session {
                    Some(s) => named.insert(client_id.clone(), s.clone()),
                    None => named.remove(client_id),
                };
            } else {
                let mut strangers = sessions.strangers.lock();
                match session {
                    // Not of a journal that this node has lost.
                    Some(s) if s.expiry_s > 0 && remote.members.holder_of(&s.owner) == remote.me => {
                        strangers.insert(client_id.clone(), s.clone());
                    }
                    _ => drop(strangers.remove(client_id)),
                }
            }
            // Whoever compares looks at what is there once more after that.
            if sessions.reconciled.get().is_none() {
                return;
            }
        }
        if sessions.runs.lock().contains_key(client_id) {
            sessions.poke();
        }
        let Some(session) = session else { return };
        let Some(handle) = self.broker.session(client_id).filter(|h| h.epoch() < session.epoch) else {
            return;
        };
        let theirs = remote.members.holder_of(&session.owner) != remote.me;
        // An eviction says more.
        let evicted = sessions.being_evicted(client_id, handle.epoch());
        if !theirs || evicted || handle.disowned() || sessions.outgoing.lock().contains_key(client_id) {
            return;
        }
        let Some(cluster) = self.me.upgrade() else { return };
        tracing::warn!(
            client = %shown(client_id), owner = %session.owner, epoch = session.epoch, ours = handle.epoch(),
            "session is another node's now; its state here is void"
        );
        let (client_id, epoch) = (client_id.clone(), session.epoch);
        remote
            .ports
            .tasks
            .spawn(Box::pin(async move { cluster.evict(&client_id, epoch, Learned::Moved).await }));
    }
}

/// What an eviction of this revision says; who wrote it, if the session's record is among the events.
fn learned(events: &[IndexEvent], client_id: &str, expired: bool, revision: Revision) -> Learned {
    if expired {
        return Learned::Expired;
    }
    let by = events.iter().find_map(|event| match event {
        IndexEvent::Session { client_id: of, session: Some(s), revision: at }
            if **of == *client_id && *at == revision =>
        {
            Some(s.owner.clone())
        }
        _ => None,
    });
    Learned::Read(by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn who_does_not_wait_any_more_is_not_kept() {
        let sessions = Sessions::default();
        for _ in 0..10_000 {
            drop((sessions.news(), sessions.reports()));
        }
        let (news, reports) = sessions.waiting();
        assert!(news < 100 && reports < 100, "{news}, {reports}");
        let (news, reports) = (sessions.news(), sessions.reports());
        sessions.poke();
        assert!(news.now_or_never().is_some());
        sessions.reported();
        assert!(reports.now_or_never().is_some());
        assert_eq!(sessions.waiting(), (0, 0));
    }
}
