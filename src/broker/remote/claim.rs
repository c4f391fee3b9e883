//! The way of a CONNECT in a cluster: the session is brought to this node, as a procedure that comes to its end whatever
//! becomes of the connection (section 7 of the design, "Connect").

use super::freeze::Out;
use super::sessions::Run;
use super::takeover::Moved;
use super::{Remote, durable};
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::broker::mailbox::{Mailbox, Place};
use crate::broker::ports::{Change, Claim, ClaimOutcome, Epoch, Expected, MemberId, Owner, Request};
use crate::broker::publish::Scratch;
use crate::clock::Time;
use crate::mqtt::Reason;
use crate::session::{Session, Settings};
use crate::telemetry::metrics::SessionState;
use futures_util::future::select;
use std::collections::VecDeque;
use std::sync::Arc;

/// How long a CONNECT waits before it asks again for a session that its owner says it does not have, or cannot give away now,
/// milliseconds. Custody and membership wake it earlier.
const ASK_AGAIN_MS: u64 = 200;

/// One CONNECT on its way.
struct Claiming {
    broker: Arc<Broker>,
    remote: Arc<Remote>,
    run: Arc<Run>,
    client_id: Arc<str>,
    clean_start: bool,
    expiry_s: u32,
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

impl Broker {
    /// Brings the session of a CONNECT to this node, or makes one. `None` if this node is alone: all sessions are here.
    pub(in crate::broker) fn bring_here(&self, settings: &Settings) -> Option<Arc<Run>> {
        let (remote, broker) = (self.remote.clone()?, self.me.upgrade()?);
        let run = remote.sessions.begin(&settings.client_id);
        let claiming = Claiming {
            run: run.clone(),
            client_id: settings.client_id.clone(),
            clean_start: settings.clean_start,
            expiry_s: settings.expiry_s,
            deadline: remote.now().plus_ms(remote.limits.takeover_timeout_ms),
            broker,
            remote: remote.clone(),
        };
        remote.ports.tasks.spawn(Box::pin(claiming.run()));
        Some(run)
    }

    /// Ends a session that was made for a client that did not come to it.
    pub(in crate::broker) fn drop_fresh(&self, client_id: &str, now: Time) {
        let Some(handle) = self.session(client_id).filter(|h| h.is_fresh()) else { return };
        let Some(mut session) = handle.mailbox.check_out() else { return };
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Dormant).sub(1);
        sessions.of(SessionState::Active).add(1);
        self.end_session(&handle, &mut session, now, &mut Scratch::default());
    }
}

impl Claiming {
    async fn run(self) {
        let Claiming { remote, .. } = &self;
        remote.sessions.when_reconciled().await;
        remote.metrics.claims_waiting.add(1);
        let lane = remote.sessions.lanes.join(&self.client_id);
        lane.first().await;
        let result = self.bring().await;
        remote.metrics.claims_waiting.sub(1);
        let latest = remote.sessions.finish(&self.client_id, &self.run);
        let heard = self.run.outcome.set(result);
        if latest && !heard {
            self.broker.drop_fresh(&self.client_id, remote.now());
        }
        drop(lane);
    }

    async fn bring(&self) -> Result<(), Reason> {
        let mut record: Option<Owner> = None;
        loop {
            if self.run.over() {
                return Err(Reason::SessionTakenOver);
            }
            if self.broker.draining() {
                return Err(Reason::ServerUnavailable);
            }
            if self.deadline <= self.remote.now() {
                return Err(self.too_late(record.as_ref()));
            }
            if let Some(handle) = self.broker.session(&self.client_id) {
                if handle.mailbox.present() {
                    if self.free(&handle).await? {
                        return Ok(());
                    }
                    continue;
                }
                self.broker.registry_remove(&handle);
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

    /// The epoch of a session that nobody has: above that of the last one that ended here, since the removal of its record may
    /// still be under way.
    fn first_epoch(&self) -> Epoch {
        self.remote.sessions.ended_at(&self.client_id).map_or(1, |e| e + 1)
    }

    /// The session is here: closes its connection, waits until the outcome of its open QoS 2 publishes is known (G4) and this
    /// node is current. False if it went away meanwhile.
    async fn free(&self, handle: &Arc<Handle>) -> Result<bool, Reason> {
        if handle.mailbox.online() {
            self.broker.metrics.takeovers.inc();
            match self.remote.until(self.deadline, self.broker.take_out_boxed(handle)).await {
                Some(Out::Session(session)) => {
                    self.broker.park(handle, session, &mut Scratch::default());
                }
                Some(Out::Gone) => return Ok(false),
                None => return Err(Reason::ServerUnavailable),
            }
        }
        if self.remote.until(self.deadline, self.remote.when_current()).await.is_none() {
            tracing::warn!(client = %self.client_id, "refused: this node does not know whether what it knows is recent");
            return Err(Reason::ServerUnavailable);
        }
        Ok(handle.mailbox.present())
    }

    /// Makes a new session and claims its record, if that is as expected.
    async fn make(&self, expected: Expected, epoch: Epoch, over: Option<&MemberId>) -> Step {
        let broker = &self.broker;
        if broker.sessions() >= broker.limits.sessions as u64 {
            return Step::Refused(Reason::QuotaExceeded);
        }
        let (now, durable) = (self.remote.now(), self.expiry_s > 0);
        let session = Box::new(Session::fresh(durable, self.expiry_s, now));
        let mailbox = Mailbox::new(Place::Parked(session), VecDeque::new(), 0);
        let no = broker.new_session_no();
        let handle = Arc::new(Handle::new(no, self.client_id.clone(), durable, now, mailbox));
        handle.set_epoch(epoch);
        handle.set_fresh();
        if durable && let Some(lsn) = broker.save_pending(&handle) {
            // Void unless the cluster names this node: what it names must not be missing after a crash.
            durable::durable(broker.journal.clone(), lsn).await;
        }
        let claim = Claim {
            client_id: self.client_id.clone(),
            expected,
            epoch,
            expiry_s: self.expiry_s,
            evict: over.map(|o| o.node.clone()),
        };
        match self.remote.claim_certainly(claim).await {
            ClaimOutcome::Granted(at) => {
                broker.registry_insert(&handle);
                tracing::debug!(client = %self.client_id, epoch, at, "session claimed");
                if let Some(holder) = over {
                    self.evict_at(holder, epoch).await;
                }
                Step::Here
            }
            ClaimOutcome::Found(found) => {
                if durable {
                    broker.journal.append(&[Change::SessionEnd { session: no }]);
                }
                Step::Found(found)
            }
        }
    }

    /// The connection of the session that was replaced must be closed before CONNACK (G1), if its node can be asked.
    async fn evict_at(&self, holder: &MemberId, epoch: Epoch) {
        if !self.remote.linked_to(holder) {
            tracing::info!(client = %self.client_id, node = %holder, "replaced over the head of a node that does not answer");
            return;
        }
        let request = Request::Evict { client_id: self.client_id.clone(), epoch };
        let deadline = self.remote.now().plus_ms(self.remote.limits.takeover_timeout_ms);
        let answer =
            self.remote.until(deadline, self.remote.ports.peers.request(&holder.node, request)).await;
        if !matches!(answer, Some(Ok(_))) {
            tracing::info!(client = %self.client_id, node = %holder, "eviction has no answer; the node learns of it by itself");
        }
    }

    /// There is a record.
    async fn replace(&self, owner: Owner) -> Step {
        let epoch = owner.session.epoch + 1;
        let stateless = self.clean_start || owner.session.expiry_s == 0;
        if owner.holder == self.remote.me {
            let ended = self.remote.sessions.ended_at(&self.client_id);
            if stateless || ended.is_some_and(|e| e >= owner.session.epoch) {
                return self.make(Expected::Read(owner), epoch, None).await;
            }
            tracing::error!(
                client = %self.client_id, epoch = owner.session.epoch,
                "the cluster names this node as the session's owner, but its journal does not have it: refused; \
                 a clean start of the client gives the session up"
            );
            return Step::Refused(Reason::ServerUnavailable);
        }
        if stateless {
            let holder = owner.holder.clone();
            return self.make(Expected::Read(owner), epoch, Some(&holder)).await;
        }
        if !self.remote.linked_to(&owner.holder) {
            return Step::Wait(owner);
        }
        match self.broker.take_over(&self.client_id, &owner, self.deadline).await {
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
        let left = self.deadline.since_ms(self.remote.now());
        let pause = if linked { left.min(ASK_AGAIN_MS) } else { left };
        let end = select(self.run.outcome.wait(), self.remote.ports.tasks.sleep(pause));
        let _ = select(news, end).await;
    }

    fn too_late(&self, record: Option<&Owner>) -> Reason {
        let client = &self.client_id;
        match record {
            Some(o) => tracing::warn!(
                %client, owner = %o.holder, node = %o.holder.node,
                "refused with 0x88: the node that owns the session does not answer. Start it again with its data; if it is gone for \
                 good, `berth ctl cluster forget {}` gives its sessions up", o.holder.node
            ),
            None => tracing::warn!(%client, "refused with 0x88: etcd did not answer in time"),
        }
        Reason::ServerUnavailable
    }
}
