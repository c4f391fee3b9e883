//! The [`Coordinator`] on etcd, put together from its parts.

use super::applier::Applier;
use super::batch::{FenceNow, Proposer};
use super::claims::Claims;
use super::client::Etcd;
use super::decode::Decoder;
use super::freshness::FreshnessProof;
use super::holders::Holders;
use super::keys::Keys;
use super::pagelog::PageLog;
use super::reads::Reads;
use super::retained::{ClearedSince, RetainedWriter, Writer};
use super::routes::RouteWriter;
use super::snapshot::SnapshotError;
use super::watch::{Follower, WatchStatus};
use crate::clock::Time;
use crate::mqtt::Message;
use crate::ports::{
    BoxFuture, Claim, ClaimOutcome, ClusterTime, Coordinator, Epoch, Index, IndexEvent, MemberId, Owner,
    Retain, RetainOutcome, Revision, RouteChange, StoreKnown, Timeline, TooLarge, Unavailable,
};
use crate::telemetry::Metrics;
use crate::user::SessionUser;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Before etcd is asked for its revision again.
const READ_AGAIN: Duration = Duration::from_millis(200);

/// This process as it is registered.
#[derive(Clone)]
pub struct Registered {
    /// Who it is.
    pub me: MemberId,
    /// Compares its member key as it is now.
    pub fence: FenceNow,
    /// Until when its lease is certainly alive.
    pub lease_until: Arc<dyn Fn() -> Time + Send + Sync>,
    /// When that lease was asked for.
    pub lease_since: Arc<dyn Fn() -> Time + Send + Sync>,
    /// The life of the store in which it registered, and the revision at which that began.
    pub timeline: (Timeline, Revision),
    /// The cluster's time, which moments in etcd are in.
    pub time: Arc<ClusterTime>,
}

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For how long a proof of being fresh holds.
    pub stale_after: Duration,
    /// How long a claim is tried.
    pub claim_timeout: Duration,
}

/// How the coordinator is, for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdStatus {
    /// The endpoints configured.
    pub endpoints: Vec<String>,
    /// Whether etcd answers.
    pub reachable: bool,
    /// Whether it takes writes as well.
    pub writable: bool,
    /// Who leads.
    pub leader: Option<MemberId>,
    /// Up to which revision everything is known here.
    pub applied: Revision,
    /// How long ago everything that was in etcd then was known here, seconds.
    pub lag_s: u64,
    /// The watch.
    pub watch: WatchStatus,
    /// Claims, releases and retained messages that wait for etcd.
    pub waiting: usize,
    /// Routes that wait for etcd.
    pub routes_waiting: usize,
}

/// The index, once there is one: the broker is built with this coordinator and follows it afterwards.
#[derive(Default)]
struct Relay(OnceLock<Weak<dyn Index>>);

impl Relay {
    fn index(&self) -> Option<Arc<dyn Index>> {
        self.0.get()?.upgrade()
    }
}

impl Index for Relay {
    fn begin_snapshot(&self) {
        if let Some(index) = self.index() {
            index.begin_snapshot();
        }
    }

    fn apply(&self, events: Vec<IndexEvent>, revision: Option<Revision>) {
        if let Some(index) = self.index() {
            index.apply(events, revision);
        }
    }

    fn end_snapshot(&self, revision: Revision) {
        if let Some(index) = self.index() {
            index.end_snapshot(revision);
        }
    }

    fn cleared_since(&self, topic: &str, since: Revision) -> bool {
        self.index().is_some_and(|index| index.cleared_since(topic, since))
    }

    fn fresh_at(&self, at: Time) {
        if let Some(index) = self.index() {
            index.fresh_at(at);
        }
    }
}

/// The [`Coordinator`] on etcd, put together from its parts. Dropping it ends all that goes on.
pub struct EtcdCoordinator {
    etcd: Etcd,
    registered: Registered,
    claims: Arc<Claims>,
    proposer: Arc<Proposer>,
    reads: Arc<Reads>,
    routes: RouteWriter,
    retained: Arc<RetainedWriter>,
    applier: Arc<Applier>,
    follower: Arc<Follower>,
    freshness: Arc<FreshnessProof>,
    relay: Arc<Relay>,
    metrics: Arc<Metrics>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl EtcdCoordinator {
    /// For a process that is registered. Knows nothing of the others before [`EtcdCoordinator::follow`].
    pub fn new(etcd: Etcd, registered: Registered, limits: Limits, metrics: Arc<Metrics>) -> EtcdCoordinator {
        let options = etcd.options();
        let keys = Keys::new(&options.prefix, &options.cluster);
        let member_key = keys.member(&registered.me.node);
        let patience = 2 * options.request_timeout;
        let holders = Arc::new(Holders::default());
        let decoder = Decoder::new(keys.clone(), holders.clone());
        let relay = Arc::new(Relay::default());
        let applier = Arc::new(Applier::new(relay.clone(), decoder, metrics.clone()));
        let follower = Follower::new(etcd.clone(), keys.root().to_owned(), applier.clone(), metrics.clone());
        let follower = Arc::new(follower);
        let fence = registered.fence.clone();
        let proposer = Arc::new(Proposer::new(etcd.clone(), fence, keys.nothing(), metrics.clone()));
        let reads = Arc::new(Reads::new(etcd.clone(), member_key.clone(), metrics.clone()));
        let claims = Arc::new(Claims {
            keys: keys.clone(),
            me: registered.me.clone(),
            holders,
            proposer: proposer.clone(),
            reads: reads.clone(),
            applier: applier.clone(),
            timeout: limits.claim_timeout,
            metrics: metrics.clone(),
        });
        let log = PageLog::new(etcd.clone(), keys.clone(), registered.me.clone(), registered.fence.clone());
        let asked = etcd.clone();
        let writable = move || asked.writable();
        let writer = Writer { origin: registered.me.incarnation, life_began: registered.timeline.1 };
        let restored_key = keys.restored();
        let cleared = cleared_since(reads.clone(), applier.clone(), relay.clone());
        let time = registered.time.clone();
        let retained = RetainedWriter::new(keys, proposer.clone(), writer, patience, writable, cleared, time);
        let freshness = FreshnessProof {
            reads: reads.clone(),
            proposer: proposer.clone(),
            applier: applier.clone(),
            follower: follower.clone(),
            restored_key,
            member_key,
            stale_after: limits.stale_after,
            metrics: metrics.clone(),
        };
        let (routes, retained) = (RouteWriter::new(log), Arc::new(retained));
        EtcdCoordinator {
            etcd,
            registered,
            claims,
            proposer,
            reads,
            routes,
            retained,
            applier,
            follower,
            freshness: Arc::new(freshness),
            relay,
            metrics,
            tasks: Mutex::default(),
        }
    }

    /// Reads everything there is in etcd into `index`, and follows from then on. Listeners should open only when the index
    /// knows this process's own record. To be called once, within a runtime.
    ///
    /// # Errors
    /// If etcd cannot be read; may be tried again.
    pub async fn follow(&self, index: Weak<dyn Index>) -> Result<(), SnapshotError> {
        self.relay.0.get_or_init(|| index);
        self.follower.snapshot().await?;
        let (follower, freshness) = (self.follower.clone(), self.freshness.clone());
        self.tasks.lock().extend([
            tokio::spawn(async move { follower.run().await }),
            tokio::spawn(async move { freshness.run().await }),
        ]);
        Ok(())
    }

    /// How it is.
    pub fn status(&self) -> EtcdStatus {
        EtcdStatus {
            endpoints: self.etcd.options().endpoints.clone(),
            reachable: self.etcd.reachable(),
            writable: self.etcd.writable(),
            leader: self.applier.leader(),
            applied: self.applier.applied(),
            lag_s: self.metrics.watch_lag_seconds.get(),
            watch: self.follower.status(),
            waiting: self.proposer.waiting(),
            routes_waiting: self.routes.waiting(),
        }
    }

    /// Why this process cannot go on: the store is not the one that it followed.
    pub fn went_back(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.follower.went_back()
    }

    /// Up to which revision everything has been applied to the index.
    pub fn applied(&self) -> Revision {
        self.applier.applied()
    }

    /// Completes when everything up to `revision` has been applied to the index.
    pub fn applies(&self, revision: Revision) -> impl Future<Output = ()> + Send + 'static {
        let mut applied = self.applier.subscribe();
        async move {
            // Ends with the coordinator only.
            let _ = applied.wait_for(|applied| *applied >= revision).await;
        }
    }

    /// Removes the routes of an incarnation that this process has adopted, once all routes handed over before are written.
    pub fn drop_incarnation_routes(&self, of: MemberId) -> impl Future<Output = ()> + Send + 'static {
        self.routes.drop_incarnation(of)
    }
}

/// Asks the index when a topic was cleared, once it has all that etcd had when it was asked.
fn cleared_since(reads: Arc<Reads>, applier: Arc<Applier>, relay: Arc<Relay>) -> ClearedSince {
    Box::new(move |topic, since| {
        let (reads, applier, relay, topic) = (reads.clone(), applier.clone(), relay.clone(), topic.clone());
        Box::pin(async move {
            let revision = loop {
                match reads.revision().await {
                    Ok(revision) => break revision,
                    Err(_) => tokio::time::sleep(READ_AGAIN).await,
                }
            };
            // Ends with the coordinator only.
            let _ = applier.subscribe().wait_for(|applied| *applied >= revision).await;
            relay.cleared_since(&topic, since)
        })
    })
}

impl Drop for EtcdCoordinator {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Coordinator for EtcdCoordinator {
    fn me(&self) -> MemberId {
        self.registered.me.clone()
    }

    fn known(&self, revision: Revision) -> Option<StoreKnown> {
        let went_back = self.follower.went_back().borrow().is_some();
        let (timeline, mark) = (self.registered.timeline.0, self.applier.mark(revision));
        (!went_back).then_some(StoreKnown { timeline, revision, mark })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<Result<ClaimOutcome, Unavailable>> {
        let claims = self.claims.clone();
        Box::pin(async move { claims.claim(claim).await })
    }

    fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        let (claims, client_id) = (self.claims.clone(), client_id.to_owned());
        Box::pin(async move { claims.owner(&client_id).await })
    }

    fn release(&self, client_id: &str, epoch: Epoch) -> BoxFuture<()> {
        let (claims, client_id) = (self.claims.clone(), client_id.to_owned());
        let released = tokio::spawn(async move { claims.release(&client_id, epoch).await });
        Box::pin(async move {
            if released.await.is_err() {
                std::future::pending().await // the process is stopping
            }
        })
    }

    fn expiry(&self, client_id: &str, epoch: Epoch, expiry_s: u32, user: SessionUser) -> BoxFuture<()> {
        let (claims, client_id) = (self.claims.clone(), client_id.to_owned());
        let told = tokio::spawn(async move { claims.expiry(&client_id, epoch, expiry_s, user).await });
        Box::pin(async move {
            if told.await.is_err() {
                std::future::pending().await // the process is stopping
            }
        })
    }

    fn routes(&self, changes: Vec<RouteChange>) -> BoxFuture<Revision> {
        Box::pin(self.routes.change(changes))
    }

    fn retain(&self, update: Retain) -> BoxFuture<RetainOutcome> {
        Box::pin(self.retained.retain(update))
    }

    fn evicted(&self, client_id: &str, epoch: Epoch) {
        let (claims, client_id) = (self.claims.clone(), client_id.to_owned());
        tokio::spawn(async move { claims.evicted(&client_id, epoch).await });
    }

    fn read_revision(&self) -> BoxFuture<Result<Revision, Unavailable>> {
        let asked = self.reads.revision();
        Box::pin(async move { asked.await.map_err(Unavailable) })
    }

    fn lease_until(&self) -> Time {
        (self.registered.lease_until)()
    }

    fn lease_since(&self) -> Time {
        (self.registered.lease_since)()
    }

    fn reachable(&self) -> bool {
        self.etcd.reachable()
    }

    fn answering(&self) -> bool {
        self.etcd.answering()
    }

    fn writable(&self) -> bool {
        self.etcd.writable()
    }

    fn takes(&self, message: &Message) -> Result<(), TooLarge> {
        self.retained.takes(message)
    }

    fn events_after(&self, after: Revision) -> Option<(Bytes, Revision)> {
        self.applier.events_after(after)
    }

    fn apply_from_peer(&self, events: Bytes) -> BoxFuture<Result<(), String>> {
        let applier = self.applier.clone();
        Box::pin(async move { applier.from_peer(events) })
    }
}
