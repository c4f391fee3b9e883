//! Sessions that come to this node and leave it: what is under way, and what has to be remembered of those that left.

use super::durable::AfterDurable;
use super::lanes::Lanes;
use super::{Once, Remote};
use crate::broker::Broker;
use crate::broker::handle::{Handle, Subscriptions};
use crate::broker::mailbox::OrderHold;
use crate::broker::ports::{
    BoxFuture, Claim, ClaimOutcome, Epoch, IndexEvent, MemberId, Owner, Revision, SessionNo, SessionOwner,
};
use crate::clock::Time;
use crate::mqtt::Reason;
use futures_util::future::{Either, select};
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ended sessions that are remembered, so that a record of theirs that is still there is known to be void.
const ENDED_MAX: usize = 100_000;

/// The first pause before a request to the store is tried again, milliseconds.
const RETRY_MS: u64 = 50;

/// The longest such pause, milliseconds.
const RETRY_LONGEST_MS: u64 = 1_000;

/// What a CONNECT waits for. The outcome is also how it is told to stop: by a later CONNECT, or by its own connection's end.
#[derive(Debug, Default)]
pub struct Run {
    /// `Ok` = the session is on this node: look again.
    pub outcome: Arc<Once<Result<(), Reason>>>,
}

impl Run {
    /// Whether nobody waits for it any more.
    pub fn over(&self) -> bool {
        self.outcome.get().is_some()
    }
}

#[derive(Debug, Default)]
struct Ended {
    epochs: HashMap<Arc<str>, Epoch>,
    order: VecDeque<Arc<str>>,
}

/// A session that is with another node, still in the router.
#[derive(Debug)]
pub(super) struct Departed {
    pub handle: Arc<Handle>,
    pub subscriptions: Subscriptions,
}

/// See the module.
#[derive(Default)]
pub struct Sessions {
    pub(super) lanes: Arc<Lanes>,
    runs: Mutex<HashMap<Arc<str>, Arc<Run>>>,
    news: Mutex<Option<Arc<Once<()>>>>,
    reports: Mutex<Option<Arc<Once<()>>>>,
    ended: Mutex<Ended>,
    /// Sessions that are over, until the journal says so.
    pub(in crate::broker) over: AfterDurable<(Arc<str>, Epoch)>,
    /// Until this node's sessions have been compared with the store: what it says of those in the journal.
    pub(super) named: Mutex<HashMap<Arc<str>, SessionOwner>>,
    /// Until then: by which epochs they were replaced over this node's head.
    pub(super) evictions: Mutex<HashMap<Arc<str>, Epoch>>,
    /// Evictions under way.
    pub(super) evicting: Mutex<HashMap<Arc<str>, Epoch>>,
    pub(super) reconciled: Arc<Once<()>>,
    /// When sessions of the journal take what others send.
    pub(in crate::broker) hold: Arc<OrderHold>,
    /// Sessions of the journal of which it is not known whether they are still this node's.
    pub(super) recovered: Mutex<Vec<super::reconcile::Candidate>>,
    /// Sessions that are being handed over.
    pub(super) outgoing: Mutex<HashMap<Arc<str>, Arc<super::outgoing::Outgoing>>>,
    pub(super) departed: Mutex<BTreeMap<(Revision, SessionNo), Departed>>,
    /// Sessions with a lower number were in the journal at the start.
    pub(in crate::broker) first_new: AtomicU64,
    correlations: AtomicU64,
}

impl Sessions {
    /// Completes once this node's sessions have been compared with the store.
    pub fn when_reconciled(&self) -> BoxFuture<()> {
        self.reconciled.wait()
    }

    /// Membership, custody, a link or a session's record has changed.
    pub(super) fn poke(&self) {
        let news = self.news.lock().take();
        if let Some(news) = news {
            news.set(());
        }
    }

    /// Completes at the next [`Sessions::poke`]. Taken before looking, nothing is missed.
    pub(super) fn news(&self) -> BoxFuture<()> {
        self.news.lock().get_or_insert_with(Once::new).wait()
    }

    /// A node has said how far it is with its publishes, or this one is further.
    pub(super) fn reported(&self) {
        let reports = self.reports.lock().take();
        if let Some(reports) = reports {
            reports.set(());
        }
    }

    /// Completes at the next [`Sessions::reported`]. Taken before looking, nothing is missed.
    pub(super) fn reports(&self) -> BoxFuture<()> {
        self.reports.lock().get_or_insert_with(Once::new).wait()
    }

    /// Names a takeover in the logs of both nodes.
    pub(super) fn correlation(&self, me: &MemberId) -> Arc<str> {
        format!("{me}/{}", self.correlations.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// A CONNECT has come: all earlier ones with this client identifier are superseded.
    pub(super) fn begin(&self, client_id: &Arc<str>) -> Arc<Run> {
        let run = Arc::new(Run::default());
        let before = self.runs.lock().insert(client_id.clone(), run.clone());
        if let Some(before) = before {
            before.outcome.set(Err(Reason::SessionTakenOver));
        }
        run
    }

    /// The procedure of a CONNECT has come to its end. True if no later one has come.
    pub(super) fn finish(&self, client_id: &str, run: &Arc<Run>) -> bool {
        let mut runs = self.runs.lock();
        let latest = runs.get(client_id).is_some_and(|r| Arc::ptr_eq(r, run));
        if latest {
            runs.remove(client_id);
        }
        latest
    }

    /// CONNECTs that have not been decided.
    pub fn claiming(&self) -> usize {
        self.runs.lock().len()
    }

    /// A session of this node ended: its record, if one is still there, stands for nothing.
    pub(in crate::broker) fn ended(&self, handle: &Handle) {
        let mut ended = self.ended.lock();
        let before = ended.epochs.insert(handle.client_id.clone(), handle.epoch());
        if before.is_none() {
            ended.order.push_back(handle.client_id.clone());
        }
        if ended.order.len() > ENDED_MAX
            && let Some(oldest) = ended.order.pop_front()
        {
            ended.epochs.remove(&oldest);
        }
    }

    /// The last epoch under which this node had a session that ended, if it remembers one.
    pub(super) fn ended_at(&self, client_id: &str) -> Option<Epoch> {
        self.ended.lock().epochs.get(client_id).copied()
    }
}

impl Remote {
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
                    tracing::debug!(client = %claim.client_id, %why, "claim has no answer; trying again");
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
                    tracing::debug!(client = client_id, %why, "session's record cannot be read; trying again");
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

impl Broker {
    /// Looks at what has happened to sessions. Evictions first: they say that a will stays behind.
    pub(super) fn on_session_events(&self, events: &[IndexEvent]) {
        let Some(remote) = &self.remote else { return };
        let mut evicted: HashSet<(&Arc<str>, Epoch)> = HashSet::new();
        for event in events {
            if let IndexEvent::Eviction { node, client_id, epoch: Some(epoch) } = event
                && *node == remote.me.node
            {
                self.on_eviction(remote, client_id, *epoch);
                evicted.insert((client_id, *epoch));
            }
        }
        for event in events {
            if let IndexEvent::Session { client_id, session } = event {
                let evicted = session.as_ref().is_some_and(|s| evicted.contains(&(client_id, s.epoch)));
                self.on_session(remote, client_id, session.as_ref(), evicted);
            }
        }
    }

    fn on_eviction(&self, remote: &Arc<Remote>, client_id: &Arc<str>, epoch: Epoch) {
        if remote.sessions.reconciled.get().is_none() {
            remote.sessions.evictions.lock().insert(client_id.clone(), epoch);
            return;
        }
        let Some(broker) = self.me.upgrade() else { return };
        let (client_id, coordinator) = (client_id.clone(), remote.ports.coordinator.clone());
        remote.ports.tasks.spawn(Box::pin(async move {
            broker.evict(&client_id, epoch, true).await;
            coordinator.evicted(&client_id, epoch);
        }));
    }

    /// `evicted`: its eviction says more, and is under way.
    fn on_session(
        &self,
        remote: &Arc<Remote>,
        client_id: &Arc<str>,
        session: Option<&SessionOwner>,
        evicted: bool,
    ) {
        let sessions = &remote.sessions;
        if sessions.reconciled.get().is_none() {
            if self.session(client_id).is_some() {
                let mut named = sessions.named.lock();
                match session {
                    Some(s) => named.insert(client_id.clone(), s.clone()),
                    None => named.remove(client_id),
                };
            }
            return;
        }
        if sessions.runs.lock().contains_key(client_id) {
            sessions.poke();
        }
        let Some(session) = session else { return };
        let Some(handle) = self.session(client_id).filter(|h| h.epoch() < session.epoch) else { return };
        let theirs = remote.members.holder_of(&session.owner) != remote.me;
        if !theirs || evicted || handle.disowned() || sessions.outgoing.lock().contains_key(client_id) {
            return;
        }
        let Some(broker) = self.me.upgrade() else { return };
        tracing::warn!(
            client = %client_id, owner = %session.owner, epoch = session.epoch, ours = handle.epoch(),
            "session is another node's now; its state here is void"
        );
        let (client_id, epoch) = (client_id.clone(), session.epoch);
        remote.ports.tasks.spawn(Box::pin(async move { broker.evict(&client_id, epoch, false).await }));
    }
}
