//! Many nodes as one: what this node knows of the others, and how messages, sessions and retained messages come from one to another.
//! It stands on [`broker`](crate::broker), which is one node. A node that is alone runs none of it.

pub mod barrier;
pub mod deduplication;
pub mod freshness;
pub mod local_routes;
pub mod members;
mod order;
pub mod outbox;
pub mod routes_index;
pub mod young;

mod claim;
mod clocks;
mod cycle;
mod deferred;
mod directory;
mod drain;
mod durable;
mod ending;
mod evict;
mod expiry;
mod freeze;
mod groups;
mod index;
#[cfg(test)]
mod keep_tests;
mod matching;
mod outgoing;
mod parts;
mod reached;
mod receive;
mod reconcile;
mod recover;
mod report;
mod requests;
mod reread;
mod restored;
mod retained;
mod round;
mod send;
mod serving;
pub mod sessions;
mod subscribed;
mod takeover;
#[cfg(test)]
mod testing;

pub use clocks::{Clocks, NodeClock};
pub use local_routes::RouteWait;
pub use reached::Unreached;
pub use routes_index::{RemoteCache, RemoteGroup, RemoteMatches, RemoteNode, RemoteShare};

use crate::broker::retained::Retained;
use crate::broker::{Broker, router};
use crate::clock::Time;
use crate::ports::{BoxFuture, ClusterTime, Coordinator, Directory, MemberId, Peers, Revision, Tasks};
use crate::sync::level::{Bell, Level};
use crate::telemetry::Metrics;
use barrier::Barrier;
use cycle::Recorded;
use deduplication::Deduplication;
use durable::AfterDurable;
use freshness::{Evidence, Freshness};
use futures_util::future::{Either, select};
use local_routes::LocalRoutes;
use members::{Members, Speaker};
use outbox::Outbox;
use parking_lot::Mutex;
use receive::{Due, Receiving};
use routes_index::RoutesIndex;
use sessions::Sessions;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use young::Young;

/// The part of `stale_after` by which the clocks of two nodes may differ in speed over that time.
const CLOCKS_APART: u64 = 10;

/// What a node of a cluster needs from outside, beside what each node needs.
#[derive(Clone)]
pub struct ClusterPorts {
    /// Who owns which session, and what every node must know.
    pub coordinator: Arc<dyn Coordinator>,
    /// The links to other nodes.
    pub peers: Arc<dyn Peers>,
    /// Work that goes on by itself.
    pub tasks: Arc<dyn Tasks>,
    /// Who gives the cluster's directory a meaning.
    pub directory: Arc<dyn Directory>,
    /// The cluster's time; this node keeps it, others read it.
    pub time: Arc<ClusterTime>,
}

/// The last lookups of one publisher, here and on other nodes.
#[derive(Debug, Default)]
pub struct Cache {
    /// Of sessions here.
    pub local: router::Cache,
    /// Of other nodes.
    pub remote: RemoteCache,
}

/// Limits of what a node does with the others.
#[derive(Clone, Copy, Debug)]
pub struct RemoteLimits {
    /// How old what a node knows may be for it to count as fresh, milliseconds.
    pub stale_after_ms: u64,
    /// How long a CONNECT may wait for a session that another node owns, milliseconds.
    pub takeover_timeout_ms: u64,
    /// How long a SUBACK may wait for the other nodes, milliseconds; above `stale_after_ms`.
    pub suback_wait_ms: u64,
    /// How long a new owner keeps deliveries back for those that are still on their way by the old one, milliseconds.
    pub order_wait_ms: u64,
    /// The most publishes of this node that wait for other nodes.
    pub held_publishes: usize,
    /// The most bytes of such publishes.
    pub held_bytes: usize,
    /// The most publishes of other nodes that are remembered so that no session has one twice.
    pub seen: usize,
    /// The most sessions that left and are remembered for publishes that still look for them here.
    pub departed: usize,
    /// The most CONNECTs on their way to their sessions.
    pub claiming: usize,
    /// By how much a node's clock may differ from the median of all before that is warned about, milliseconds.
    pub clock_difference_ms: u64,
}

impl Default for RemoteLimits {
    fn default() -> RemoteLimits {
        RemoteLimits {
            stale_after_ms: 5_000,
            takeover_timeout_ms: 10_000,
            suback_wait_ms: 8_000,
            order_wait_ms: 5_000,
            held_publishes: 100_000,
            held_bytes: 256 << 20,
            seen: 1_000_000,
            departed: 100_000,
            claiming: claim::CLAIMING_MAX,
            clock_difference_ms: 2_000,
        }
    }
}

/// What a node does together with the other nodes of its cluster. What the node knows of them is in [`Remote`].
pub struct Cluster {
    /// The node itself.
    pub broker: Arc<Broker>,
    /// What this node knows of the others and has under way with them.
    pub remote: Arc<Remote>,
    me: Weak<Cluster>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("me", &self.remote.me).finish_non_exhaustive()
    }
}

/// What a node knows of the others and has under way with them.
pub struct Remote {
    /// What the node needs from outside.
    pub ports: ClusterPorts,
    /// This process.
    pub me: MemberId,
    /// The limits of what this node does with the others.
    pub limits: RemoteLimits,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// Keeps the applied revision from advancing while a publish is matched.
    pub barrier: Barrier,
    /// The processes of the cluster.
    pub members: Members,
    /// Where publishes go besides here.
    pub routes: RoutesIndex,
    /// What this node tells the others that its sessions have subscribed to.
    pub local: Arc<LocalRoutes>,
    /// Whether what this node knows of the others is recent.
    pub freshness: Freshness,
    applied: Arc<Level>,
    /// The least that this and all other processes have applied.
    all_applied: Arc<Level>,
    /// The least up to which all other processes, and this one's index, know what became of updates of retained messages.
    all_retained: Arc<Level>,
    stream: index::Stream,
    evaluating: Mutex<()>,
    keeping: Mutex<()>,
    report_bell: Arc<Bell>,
    lag_bell: Arc<Bell>,
    serve_bell: Arc<Bell>,
    /// Until when the node may serve for sure, milliseconds of [`Time`]; looked at before every write to a client.
    serve_until: AtomicU64,
    /// The node serves nobody any more, and has said so to the others or is about to.
    left: AtomicBool,
    retains: retained::Retains,
    rereads: reread::Rereads,
    clocks: Mutex<Clocks>,
    /// The retained messages as the store has them.
    pub retained: Arc<Retained>,
    /// The publishes that this node owns until every node that must has them.
    pub outbox: Outbox,
    /// Which sessions of this node have had which publishes.
    pub deduplication: Deduplication,
    /// Subscriptions that are younger than publishes under way.
    pub young: Young,
    /// The newest move that this node has forgotten.
    forgotten: AtomicU64,
    /// Sessions that come and go.
    pub sessions: Sessions,
    recorded: AfterDurable<Recorded>,
    /// Publishes for sessions that cannot take them yet.
    deferred: deferred::DeferredPublishes,
    /// Sessions that came here while processes were away.
    away_at_moves: order::AwayAtMoves,
    answers: AfterDurable<Due>,
    receiving: Receiving,
}

impl Remote {
    /// A node that knows of no other yet.
    pub fn new(ports: ClusterPorts, limits: RemoteLimits, metrics: Arc<Metrics>) -> Remote {
        let me = ports.coordinator.me();
        Remote {
            members: Members::new(me.clone()),
            routes: RoutesIndex::default(),
            local: Arc::new(LocalRoutes::new(ports.coordinator.clone(), ports.tasks.clone())),
            freshness: Freshness::new(limits.stale_after_ms, ports.coordinator.clone()),
            applied: Arc::default(),
            all_applied: Arc::default(),
            all_retained: Arc::default(),
            stream: index::Stream::default(),
            evaluating: Mutex::default(),
            keeping: Mutex::default(),
            report_bell: Arc::default(),
            lag_bell: Arc::default(),
            serve_bell: Arc::default(),
            serve_until: AtomicU64::new(0),
            left: AtomicBool::new(false),
            retains: retained::Retains::default(),
            rereads: reread::Rereads::default(),
            clocks: Mutex::default(),
            retained: Arc::new(Retained::timed(ports.time.clone())),
            barrier: Barrier::default(),
            outbox: Outbox::new(me.clone(), limits.held_publishes, limits.held_bytes),
            deduplication: Deduplication::new(limits.seen),
            young: Young::default(),
            // Nor does it know of those before its start.
            forgotten: AtomicU64::new(me.registered_at()),
            sessions: Sessions::default(),
            recorded: AfterDurable::default(),
            deferred: deferred::DeferredPublishes::default(),
            away_at_moves: order::AwayAtMoves::default(),
            answers: AfterDurable::default(),
            receiving: Receiving::default(),
            ports,
            me,
            limits,
            metrics,
        }
    }

    /// The other nodes that are registered.
    pub fn others(&self) -> Vec<Arc<str>> {
        let nodes = self.members.live().into_iter().map(|m| m.id.node);
        nodes.filter(|n| *n != self.me.node).collect()
    }

    /// The revision of the newest move that this node has forgotten; 0 = none.
    pub fn forgotten_move(&self) -> Revision {
        self.forgotten.load(Ordering::Acquire)
    }

    /// A session that moved at `at` is remembered no more: older frames may still look for it here.
    pub fn forget_move(&self, at: Revision) {
        self.forgotten.fetch_max(at, Ordering::AcqRel);
    }

    /// The time by the node's own clock.
    pub fn now(&self) -> Time {
        self.ports.tasks.now()
    }

    /// How far this node's index has followed the store. Read it inside the barrier to match a publish.
    pub fn applied(&self) -> Revision {
        self.applied.get()
    }

    /// Completes once the index has come to `revision`.
    pub fn when_applied(&self, revision: Revision) -> BoxFuture<()> {
        self.applied.when(revision)
    }

    /// Completes with true once this node and every other has reported to have applied `revision`; with false `wait_ms`
    /// milliseconds after this node has: whoever had not by then is no longer fresh, if that is more than `stale_after`.
    pub fn when_all_applied(&self, revision: Revision, wait_ms: u64) -> BoxFuture<bool> {
        self.when_all(self.all_applied.clone(), revision, wait_ms)
    }

    /// As [`Remote::when_all_applied`], and what became of the updates of retained messages that others matched before is known.
    fn when_all_retained(&self, revision: Revision, wait_ms: u64) -> BoxFuture<bool> {
        self.when_all(self.all_retained.clone(), revision, wait_ms)
    }

    fn when_all(&self, all: Arc<Level>, revision: Revision, wait_ms: u64) -> BoxFuture<bool> {
        let (applied, tasks) = (self.applied.clone(), self.ports.tasks.clone());
        Box::pin(async move {
            applied.when(revision).await;
            let all = all.when(revision);
            matches!(select(all, tasks.sleep(wait_ms)).await, Either::Left(_))
        })
    }

    /// The revision that every process that must has reported to have applied.
    pub fn all_applied(&self) -> Revision {
        self.all_applied.get()
    }

    /// Whether this node is fresh at `now` (docs/decisions/0006-freshness.md).
    pub fn is_fresh(&self, now: Time) -> bool {
        self.freshness.is_fresh(now)
    }

    /// Completes when this node is fresh.
    pub fn when_fresh(&self) -> BoxFuture<()> {
        self.freshness.when_fresh(self.now())
    }

    /// The other nodes that `topic` goes to. Call it inside the barrier.
    pub fn lookup<'c>(&self, topic: &str, cache: &'c mut RemoteCache) -> &'c RemoteMatches {
        self.routes.lookup(topic, cache)
    }

    /// The index has come to `revision`.
    fn advance(&self, revision: Revision) {
        // Only when every frame matched below it is queued may anybody hear of it.
        self.barrier.closed(|| self.applied.put(revision));
        self.applied.wake();
        self.members.advanced(revision);
        self.evaluate_reports();
        self.report_soon();
    }

    /// Lets publishes be matched again that wait for nodes whose registration, custody or link has changed, and says which links are kept.
    fn membership_changed(&self) {
        // One at a time, or an older list of nodes might replace a newer one.
        let keeping = self.keeping.lock();
        // Publishes that waited for a node that is back go to it before newer ones. Nothing is sent while links are given up, and what they
        // had is matched again.
        self.barrier.closed(|| {
            let mut nodes = self.routes.update_reachability(|of| self.members.reachability(of));
            let answers = |of: &MemberId| !matches!(self.members.speaker(of), Speaker::Away(_));
            nodes.extend(
                self.outbox.awaited().into_iter().filter(|(of, _)| answers(of)).map(|(_, node)| node),
            );
            let keep = self.members.to_keep();
            let kept = |node: &Arc<str>| keep.iter().any(|m| m.id.node == *node);
            let mut lost = self.outbox.asked_nodes();
            lost.retain(|n| *n != self.me.node && !(self.members.reachable(n) && kept(n)));
            // The link to a node that has said that it leaves is kept until its record goes.
            for (node, id) in self.outbox.queue_again(&nodes, &lost) {
                self.ports.peers.cancel(&node, id);
            }
            self.ports.peers.keep(keep);
        });
        drop(keeping);
        self.evaluate_reports();
    }

    /// Draws conclusions from what everybody has reported: how far all are, and whether this node is fresh.
    fn evaluate_reports(&self) {
        // One at a time, or an older conclusion might replace a newer one.
        let _weighing = self.evaluating.lock();
        let now = self.now();
        // What its last report of so long ago can vouch for is over.
        let silent_ms = self.limits.stale_after_ms + self.limits.stale_after_ms / CLOCKS_APART;
        let since = Time(now.0.saturating_sub(silent_ms));
        let applied = self.applied();
        let all = self.members.applied_by_all(since, applied).min(applied);
        if all != self.all_applied.get() {
            self.all_applied.set(all);
        }
        let all = self.members.retained_by_all(since).min(applied);
        if all != self.all_retained.get() {
            self.all_retained.set(all);
        }
        match self.members.evidence(applied) {
            // Before its own registration it does not know who else there is.
            Some(None) if applied >= self.me.registered_at() && applied > 0 => {
                self.freshness.shown(Evidence::Alone, now);
            }
            Some(Some(at)) => self.freshness.shown(Evidence::At(at), now),
            Some(None) | None => self.freshness.shown(Evidence::At(Time(0)), now),
        }
        self.serving_changed();
    }
}

impl Cluster {
    /// The cluster as this node's part of it sees it. Nothing goes on by itself before [`Cluster::start`].
    pub fn new(broker: Arc<Broker>, remote: Arc<Remote>) -> Arc<Cluster> {
        Arc::new_cyclic(|me| Cluster { broker, remote, me: me.clone() })
    }

    /// Starts what goes on by itself.
    pub fn start(&self) {
        let remote = &self.remote;
        remote.local.start();
        let tasks = &remote.ports.tasks;
        tasks.spawn(Box::pin(report::send_reports(self.me.clone(), remote.report_bell.clone())));
        tasks.spawn(Box::pin(report::catch_up(self.me.clone(), remote.lag_bell.clone())));
        tasks.spawn(Box::pin(reached::watch(self.me.clone())));
        tasks.spawn(Box::pin(clocks::watch(self.me.clone())));
        tasks.spawn(Box::pin(serving::watch(self.me.clone(), remote.serve_bell.clone())));
        self.start_publishing();
    }
}
