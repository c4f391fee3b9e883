//! The way of a CONNECT in a cluster: the session is brought to this node, as a procedure that comes to its end whatever
//! becomes of the connection (docs/decisions/0007-moving-sessions.md).

use super::freeze::Out;
use super::sessions::{Procedure, Run};
use super::takeover::Moved;
use super::{Cluster, Remote, durable};
use crate::broker::delivery::Scratch;
use crate::broker::ending::Endings;
use crate::broker::handle::Handle;
use crate::broker::mailbox::Wakes;
use crate::broker::making::UnusedSession;
use crate::clock::Time;
use crate::mqtt::Reason;
use crate::names::shown;
use crate::ports::{
    BoxFuture, Change, Claim, ClaimOutcome, Epoch, Expected, MemberId, Owner, Request, Response,
};
use crate::session::Settings;
use crate::sync::lanes::Lane;
use crate::telemetry::metrics::ClaimResult;
use crate::user::SessionUser;
use futures_util::future::{Either, select};
use std::sync::Arc;

/// How long a CONNECT waits before it asks again for a session that its owner says it does not have, or cannot give away now,
/// milliseconds. Custody and membership wake it earlier.
const ASK_AGAIN_MS: u64 = 200;

/// How long a CONNECT waits before it looks again whether the store answers, milliseconds.
const REACH_AGAIN_MS: u64 = 50;

/// How long to wait before an eviction without an answer is repeated, milliseconds.
const EVICT_AGAIN_MS: u64 = 20;

/// CONNECTs that may be on their way to their sessions at once; more are refused (0x88).
pub(super) const CLAIMING_MAX: usize = 65_536;

/// A CONNECT on its way to its session.
struct Claiming {
    cluster: Arc<Cluster>,
    remote: Arc<Remote>,
    run: Arc<Run>,
    #[allow(dead_code)] // held until the end
    procedure: Procedure,
    client_id: Arc<str>,
    clean_start: bool,
    expiry_s: u32,
    user: SessionUser,
    deadline: Time,
}

/// How one attempt came out.
enum Step {
    /// The session is here.
    Here,
    /// Look at this record.
    Found(Option<Owner>),
    /// Wait for the owner, or for whatever else happens.
    Wait(Owner),
    /// The client is refused.
    Refused(Reason),
}

impl Cluster {
    /// Brings the session of a CONNECT to this node, or makes one. `None` if this node comes to its end.
    pub fn bring_here(&self, settings: &Settings) -> Option<Arc<Run>> {
        let (remote, cluster) = (self.remote.clone(), self.me.upgrade()?);
        let Some(procedure) = remote.sessions.procedure(remote.limits.claiming) else {
            tracing::warn!(client = %shown(&settings.client_id), "refused with 0x88: too many clients wait for their sessions");
            let run = Arc::new(Run::default());
            run.say();
            run.outcome.set(Err(Reason::ServerUnavailable));
            return Some(run);
        };
        // Whoever may not have what is brought for another must not be able to stop that either.
        let may = |before: &SessionUser| self.broker.limits.client_id_theft() || before.lets(&settings.user);
        let run = remote.sessions.begin(&settings.client_id, &settings.user, may);
        let claiming = Claiming {
            run: run.clone(),
            procedure,
            client_id: settings.client_id.clone(),
            clean_start: settings.clean_start,
            expiry_s: settings.expiry_s,
            user: settings.user.clone(),
            deadline: remote.now().plus_ms(remote.limits.takeover_timeout_ms),
            cluster,
            remote: remote.clone(),
        };
        remote.ports.tasks.spawn(Box::pin(claiming.run()));
        Some(run)
    }

    /// Ends a session that was made for a client that did not come to it; false if there is none.
    pub fn drop_unused(&self, client_id: &str, now: Time) -> bool {
        let Some(handle) = self.broker.session(client_id).filter(|h| h.is_unused()) else { return false };
        let Some(mut session) = handle.mailbox.check_out() else { return false };
        self.broker.count_woken();
        self.end_session(&handle, &mut session, now, &mut Scratch::default());
        true
    }
}

impl Claiming {
    async fn run(self) {
        let Claiming { remote, .. } = &self;
        remote.metrics.claims_waiting.add(1);
        let lane = self.turn().await;
        let result = match &lane {
            Ok(_) => self.bring().await,
            Err(reason) => Err(*reason),
        };
        if result.is_ok()
            && let Some(handle) = self.cluster.broker.session(&self.client_id)
        {
            self.cluster.tell_expiry(&handle, self.expiry_s, self.user.clone());
            remote.expiry_told(&handle, self.deadline).await;
        }
        remote.metrics.claims_waiting.sub(1);
        let last = remote.sessions.finish(&self.client_id, &self.run);
        let wanted = self.run.outcome.set(result) && result.is_ok();
        // Without a turn there is nothing of its own; whoever has it sees to what it has made.
        if last && !wanted && lane.is_ok() {
            self.cluster.drop_unused(&self.client_id, remote.now());
        }
    }

    /// Waits until this node knows its sessions and it is this CONNECT's turn, for as long as anybody waits for it.
    async fn turn(&self) -> Result<Lane, Reason> {
        self.while_wanted(self.remote.sessions.when_reconciled()).await?;
        let lane = self.remote.sessions.lanes.join(&self.client_id);
        self.while_wanted(lane.turn()).await?;
        Ok(lane)
    }

    async fn while_wanted(&self, f: BoxFuture<()>) -> Result<(), Reason> {
        let outcome = self.run.outcome.clone();
        let wanted = async move { matches!(select(f, outcome.wait()).await, Either::Left(_)) };
        match self.remote.until(self.deadline, Box::pin(wanted)).await {
            Some(true) => Ok(()),
            Some(false) => Err(Reason::SessionTakenOver),
            None => Err(self.too_late(None)),
        }
    }

    async fn bring(&self) -> Result<(), Reason> {
        let mut record: Option<Owner> = None;
        loop {
            if self.run.over() {
                return Err(Reason::SessionTakenOver);
            }
            if self.cluster.broker.draining() {
                return Err(Reason::ServerUnavailable);
            }
            if self.deadline <= self.remote.now() {
                return Err(self.too_late(record.as_ref()));
            }
            if let Some(handle) = self.cluster.broker.session(&self.client_id) {
                self.check_user(&handle.user())?;
                // Made for an earlier CONNECT that asked for less: no journal keeps it.
                let too_little = handle.is_unused() && !handle.durable && self.expiry_s > 0;
                if too_little && self.cluster.drop_unused(&self.client_id, self.remote.now()) {
                    continue;
                }
                if handle.mailbox.present() {
                    if self.free(&handle).await? {
                        return Ok(());
                    }
                    continue;
                }
                self.cluster.broker.registry_remove(&handle);
            }
            if !self.remote.ports.coordinator.writable() {
                // Nothing is under way here, and what is begun now could not be given up.
                self.pause(REACH_AGAIN_MS).await;
                continue;
            }
            let step = match record.take() {
                None => self.make(Expected::Absent, self.first_epoch(), None).await,
                Some(owner) => self.replace(owner).await,
            };
            match step {
                Step::Here => return Ok(()),
                Step::Found(found) => record = found,
                Step::Wait(owner) => {
                    self.wait_for(&owner).await;
                    record = match self
                        .remote
                        .until(self.deadline, self.remote.ports.coordinator.owner(&self.client_id))
                        .await
                    {
                        Some(Ok(found)) => found,
                        Some(Err(_)) | None => Some(owner),
                    };
                }
                Step::Refused(reason) => return Err(reason),
            }
        }
    }

    /// Refuses the session of another user.
    fn check_user(&self, of: &SessionUser) -> Result<(), Reason> {
        if self.cluster.broker.may_have_session(&self.client_id, of, &self.user) {
            return Ok(());
        }
        self.run.say();
        Err(Reason::NotAuthorized)
    }

    /// The epoch of a session that nobody has: above that of the last one that ended here, since the removal of its record may
    /// still be under way.
    fn first_epoch(&self) -> Epoch {
        self.remote.sessions.ended_at(&self.client_id).map_or(1, |e| e + 1)
    }

    /// The session is here: closes its connection, waits until the outcome of its open QoS 2 publishes is known (G4) and this
    /// node is fresh. False if it went away meanwhile.
    async fn free(&self, handle: &Arc<Handle>) -> Result<bool, Reason> {
        if handle.mailbox.online() {
            self.cluster.broker.metrics.takeovers.inc();
            match self.remote.until(self.deadline, self.cluster.take_out_boxed(handle)).await {
                Some(Out::Session(session)) => {
                    self.cluster.broker.park(handle, session, &mut Wakes::default());
                }
                Some(Out::Gone) => return Ok(false),
                None => return Err(Reason::ServerUnavailable),
            }
        }
        // Its deadlines do not pass while its client waits here.
        let since = self.remote.now();
        // It ended with its connection, which this node could not tell for sure then.
        let over = handle.mailbox.parked(|s| s.expiry_s() == 0).unwrap_or(false) && !handle.is_unused();
        self.cluster.broker.dormant.unwatch(handle);
        let fresh = self.remote.until(self.deadline, self.remote.when_fresh()).await;
        if over && fresh.is_some() {
            self.cluster.wake_dormant(handle, self.remote.now(), &mut Scratch::default());
            return Ok(handle.mailbox.present());
        }
        if fresh.is_some() {
            handle.mailbox.put_off(self.remote.now().since_ms(since));
        }
        self.cluster.broker.watch_parked(handle);
        if fresh.is_none() {
            tracing::warn!(client = %shown(&self.client_id), "refused with 0x88: this node does not know whether what it knows is recent");
            self.run.say();
            return Err(Reason::ServerUnavailable);
        }
        Ok(handle.mailbox.present())
    }

    /// Makes a new session and claims its record, if that is as expected.
    async fn make(&self, expected: Expected, epoch: Epoch, over: Option<&MemberId>) -> Step {
        let broker = &self.cluster.broker;
        if broker.sessions() >= broker.limits.sessions() as u64 {
            return Step::Refused(Reason::QuotaExceeded);
        }
        let (now, durable) = (self.remote.now(), self.expiry_s > 0);
        let (client_id, expiry_s) = (&self.client_id, self.expiry_s);
        let handle = broker.make_unused(&UnusedSession { client_id, durable, expiry_s, epoch }, now);
        handle.set_user(self.user.clone());
        if durable && let Some(lsn) = broker.save_pending(&handle) {
            // Void unless the cluster names this node: what it names must not be missing after a crash.
            durable::durable(broker.journal.clone(), lsn).await;
        }
        let claim = Claim {
            client_id: self.client_id.clone(),
            expected,
            epoch,
            expiry_s: self.expiry_s,
            user: self.user.clone(),
            evict: over.map(|o| o.node.clone()),
        };
        match self.remote.claim_certainly(claim).await {
            ClaimOutcome::Granted(at) => {
                self.cluster.knows(at);
                handle.expiry.is_told(self.expiry_s, &self.user);
                broker.registry_insert(&handle);
                tracing::debug!(client = %shown(&self.client_id), epoch, at, "session claimed");
                if let Some(holder) = over {
                    self.evict_at(holder, epoch).await;
                }
                Step::Here
            }
            ClaimOutcome::Found(found) => {
                if durable {
                    broker.journal.append(&[Change::SessionEnd { session: handle.no }]);
                }
                Step::Found(found)
            }
        }
    }

    /// The connection of the session that was replaced must be closed before CONNACK (G1), if its node can be asked.
    async fn evict_at(&self, holder: &MemberId, epoch: Epoch) {
        if !self.remote.linked_to(holder) {
            tracing::info!(client = %shown(&self.client_id), node = %holder, "replaced over the head of a node that does not answer");
            return;
        }
        let request = Request::Evict { client_id: self.client_id.clone(), epoch };
        let deadline = self.remote.now().plus_ms(self.remote.limits.takeover_timeout_ms);
        while self.remote.linked_to(holder) {
            let answer = self.remote.ports.peers.request(&holder.node, request.clone());
            match self.remote.until(deadline, answer).await {
                Some(Ok(Response::Done)) => return,
                // Lost, or the node has too much to do.
                Some(_) if self.remote.now() < deadline => {
                    self.remote.ports.tasks.sleep(EVICT_AGAIN_MS).await;
                }
                Some(_) | None => break,
            }
        }
        tracing::info!(client = %shown(&self.client_id), node = %holder, "eviction has no answer; the node learns of it by itself");
    }

    /// There is a record.
    async fn replace(&self, owner: Owner) -> Step {
        if let Err(reason) = self.check_user(&owner.session.user) {
            return Step::Refused(reason);
        }
        let epoch = owner.session.epoch + 1;
        let stateless = self.clean_start || owner.session.expiry_s == 0;
        if owner.holder == self.remote.me {
            let ended = self.remote.sessions.ended_at(&self.client_id);
            if stateless || ended.is_some_and(|e| e >= owner.session.epoch) {
                return self.make(Expected::Read(owner), epoch, None).await;
            }
            tracing::error!(
                client = %shown(&self.client_id), epoch = owner.session.epoch,
                "the cluster names this node as the session's owner, but its journal does not have it: refused; \
                 a clean start of the client gives the session up"
            );
            self.run.say();
            return Step::Refused(Reason::ServerUnavailable);
        }
        if stateless {
            let holder = owner.holder.clone();
            return self.make(Expected::Read(owner), epoch, Some(&holder)).await;
        }
        if !self.remote.linked_to(&owner.holder) {
            return Step::Wait(owner);
        }
        match self.cluster.take_over(&self.client_id, &owner, self.deadline).await {
            Moved::Here => Step::Here,
            Moved::Lost(found) => Step::Found(found),
            Moved::NotNow => Step::Wait(owner),
        }
    }

    /// Waits for something that may change the answer: the owner is back, its sessions are somebody else's, the record is
    /// another.
    async fn wait_for(&self, owner: &Owner) {
        let news = self.remote.sessions.news();
        let linked = self.remote.linked_to(&self.remote.members.holder_of(&owner.session.owner));
        let pause = if linked { ASK_AGAIN_MS } else { u64::MAX };
        let _ = select(news, Box::pin(self.pause(pause))).await;
    }

    /// Waits so long, unless nobody waits for this any more or it takes too long.
    async fn pause(&self, ms: u64) {
        let left = self.deadline.since_ms(self.remote.now());
        select(self.run.outcome.wait(), self.remote.ports.tasks.sleep(left.min(ms))).await;
    }

    fn too_late(&self, record: Option<&Owner>) -> Reason {
        let client = &self.client_id;
        self.run.say();
        if record.is_none() {
            // Nothing was asked of the store that it might have counted.
            self.remote.metrics.claims.of(ClaimResult::Unavailable).inc();
        }
        match record {
            Some(o) => tracing::warn!(
                client = %shown(client), owner = %o.holder, node = %o.holder.node,
                "refused with 0x88: the node that owns the session does not answer. Start it again with its data; if it is gone for \
                 good, `berth ctl cluster forget {}` gives its sessions up", o.holder.node
            ),
            None if self.remote.ports.coordinator.reachable()
                && !self.remote.ports.coordinator.writable() =>
            {
                tracing::warn!(client = %shown(client), "refused with 0x88: etcd takes no writes (its database is full, or this node may not write to it)");
            }
            None => {
                tracing::warn!(client = %shown(client), "refused with 0x88: etcd did not answer in time")
            }
        }
        Reason::ServerUnavailable
    }
}
