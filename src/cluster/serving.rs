//! Whether this node may serve clients: while its lease is certainly alive, or it is fresh ("Who may serve").

use super::{Cluster, Remote};
use crate::clock::Time;
use crate::ports::BoxFuture;
use crate::session::CloseCause;
use crate::sync::level::Bell;
use futures_util::future::select;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How often the lease is looked at while nothing else happens, milliseconds.
const LOOK_MS: u64 = 1_000;

impl Remote {
    /// Whether this node may serve clients now.
    ///
    /// # Errors
    /// Says why it may not, and what to do.
    pub fn may_serve(&self) -> Result<(), String> {
        if self.left() {
            return Err(format!("node {} has said goodbye to the other nodes: it is stopping", self.me.node));
        }
        if self.serves(self.now()) {
            return Ok(());
        }
        Err(format!(
            "node {} has not reached etcd for longer than its lease, and not every other node in time either: it \
             cannot know who owns its sessions now. It serves again by itself once it reaches etcd (etcd.endpoints) \
             or all nodes of the cluster",
            self.me.node
        ))
    }

    /// Whether this node may serve clients at `now`, just read from the clock; cheap.
    pub fn serves(&self, now: Time) -> bool {
        if now.0 < self.serve_until.load(Ordering::Acquire) {
            return true;
        }
        let until = self.may_serve_until();
        self.serve_until.store(until.0, Ordering::Release);
        now < until
    }

    /// Until when this node may serve clients if nothing more is heard.
    fn may_serve_until(&self) -> Time {
        if self.left() { Time(0) } else { self.ports.coordinator.lease_until().max(self.freshness.until()) }
    }

    /// Whether this node serves nobody any more, for good.
    pub(super) fn left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// From here on nothing is written to any client.
    fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.serve_until.store(0, Ordering::Release);
        self.serve_bell.ring();
    }

    /// Takes note that what is known of this node's freshness has changed.
    pub(super) fn serving_changed(&self) {
        let until = self.may_serve_until();
        let before = self.serve_until.swap(until.0, Ordering::AcqRel);
        if until.0 < before || before <= self.now().0 {
            self.serve_bell.ring();
        }
    }
}

/// Closes all clients when this node may no longer serve, and says when it may again.
pub(super) async fn watch(cluster: Weak<Cluster>, bell: Arc<Bell>) {
    let mut served = None;
    loop {
        let pause = {
            let Some(cluster) = cluster.upgrade() else { return };
            let remote = &cluster.remote;
            if remote.left() {
                return;
            }
            let serves = remote.may_serve();
            match (served, &serves) {
                (Some(true), Err(why)) => {
                    let closed = cluster.broker.close_those(CloseCause::NotServing, |_| true);
                    remote.metrics.serving_lost.inc();
                    tracing::warn!(
                        closed,
                        why,
                        "this node may not serve: its clients are closed, their sessions kept"
                    );
                }
                (Some(false), Ok(())) => tracing::info!("this node may serve again"),
                _ => {}
            }
            let serves = serves.is_ok();
            served = Some(serves);
            remote.metrics.serving.set(u64::from(serves));
            let now = remote.now();
            let until = Time(remote.serve_until.load(Ordering::Acquire));
            let left = u64::try_from(now.until(until).as_millis()).unwrap_or(u64::MAX);
            remote.ports.tasks.sleep(if serves { left.clamp(1, LOOK_MS) } else { LOOK_MS })
        };
        select(bell.heard(), pause).await;
    }
}

/// Between two looks whether the others have heard that this node leaves, milliseconds.
const TOLD_LOOK_MS: u64 = 10;

impl Cluster {
    /// Serves nobody any more, for good, and tells the other nodes so: those that have heard it, and know all that this node
    /// knew, do not need its word any more (`docs/decisions/0020-leaving-without-etcd.md`). Completes when all registered ones
    /// have, or after `wait_ms`.
    pub fn say_goodbye(&self, wait_ms: u64) -> BoxFuture<()> {
        let remote = self.remote.clone();
        Box::pin(async move {
            remote.leave();
            let (at, applied) = (remote.now().plus_ms(1), remote.applied());
            let deadline = at.plus_ms(wait_ms);
            loop {
                // Those made in the same millisecond as the last one before do not count.
                remote.report_soon();
                let missing = remote.members.not_told(at, applied);
                if missing.is_empty() {
                    return tracing::info!("all other nodes know that this one leaves");
                }
                if remote.now() >= deadline {
                    let nodes: Vec<_> = missing.iter().map(ToString::to_string).collect();
                    tracing::warn!(
                        ?nodes,
                        "not all nodes have heard that this one leaves: while etcd is away, those need its word and hold"
                    );
                    return;
                }
                remote.ports.tasks.sleep(TOLD_LOOK_MS).await;
            }
        })
    }
}
