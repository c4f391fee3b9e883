//! Proves again and again that the index is fresh: a linearizable read names the store's revision, and when an event at
//! that revision or later has been applied, everything was known here that was there when the read was sent.

use super::applier::Applier;
use super::batch::{Op, Proposer};
use super::claims::outcome;
use super::reads::Reads;
use super::restored;
use super::watch::Follower;
use crate::clock::{self, Time};
use crate::ports::{Revision, Timeline};
use crate::telemetry::Metrics;
use etcd_client::{PutOptions, Txn, TxnOp};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long an event may take before this node makes one.
const EVENT_WAIT: Duration = Duration::from_millis(200);

/// So often in a row an event of this node's own may come late while others come; then another member is watched.
const LATE_IN_A_ROW: u32 = 3;

/// Proves again and again that the index is fresh.
pub struct FreshnessProof {
    /// Reads the store's revision.
    pub reads: Arc<Reads>,
    /// Writes the nudge.
    pub proposer: Arc<Proposer>,
    /// Knows what has been applied.
    pub applier: Arc<Applier>,
    /// Starts over when the store is another one.
    pub follower: Arc<Follower>,
    /// `restored`: which life of the store this is.
    pub restored_key: String,
    /// This node's member key.
    pub member_key: String,
    /// For how long a proof of being fresh holds.
    pub stale_after: Duration,
    /// Where the lag is shown.
    pub metrics: Arc<Metrics>,
}

impl FreshnessProof {
    /// Goes on for ever.
    pub async fn run(&self) {
        let mut ticks = interval(self.stale_after / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut fresh_at, mut missed) = (clock::now(), 0);
        loop {
            ticks.tick().await;
            if self.proposer.is_room_unknown() {
                // Shows when there is none, and when there is some again, also if nothing else is to be written.
                tokio::spawn(self.rewrite(true));
            }
            if let Some(at) = self.prove(&mut missed).await {
                fresh_at = at;
                self.applier.index().fresh_at(at);
            }
            self.metrics.watch_lag_seconds.set(clock::now().since_ms(fresh_at) / 1000);
        }
    }

    /// Since when everything is known here, if that can be shown now. `missed` counts how often an event of this node's own did
    /// not come in time.
    async fn prove(&self, missed: &mut u32) -> Option<Time> {
        let at = clock::now();
        // Before the read: what is applied while it is under way may be newer than what it shows.
        let applied = self.applier.applied();
        let found = self.reads.get(self.restored_key.clone()).await.ok()?;
        let revision = found.revision;
        if revision < applied {
            self.follower
                .is_another(&format!("its revision is {revision}, and this process has seen {applied}"));
            self.follower.start_over();
            return None;
        }
        if self.reaches(revision, EVENT_WAIT).await {
            self.same_life(found.value.as_ref());
            *missed = 0;
            return Some(at);
        }
        // Something else in this etcd was written, or the watch lags. An event of our own tells which.
        let half = self.stale_after / 2;
        tokio::select! {
            came = self.reaches(revision, half) => return came.then_some(at),
            written = self.rewrite(false) => if !written {
                return self.reaches(revision, half).await.then_some(at);
            },
        }
        let before = self.applier.applied();
        if self.reaches(revision, half).await {
            *missed = 0;
            return Some(at);
        }
        *missed += 1;
        if self.applier.applied() == before || *missed >= LATE_IN_A_ROW {
            *missed = 0;
            self.follower.lags();
        }
        None
    }

    /// Compares which life of the store was read with what came by the watch up to then.
    fn same_life(&self, read: Option<&(Vec<u8>, Revision)>) {
        let read = match read {
            Some((value, _)) => restored::timeline(self.restored_key.as_bytes(), value).ok(),
            None => Some(Timeline::default()),
        };
        let (Some(read), seen) = (read, self.applier.timeline()) else { return };
        // A restoration that was noticed while this process runs comes by the watch, in order.
        if read != seen && read.generation >= seen.generation {
            self.follower.is_another(&format!(
                "it counts {} restorations, and this process has seen {}",
                read.generation, seen.generation
            ));
        }
    }

    async fn reaches(&self, revision: Revision, limit: Duration) -> bool {
        let mut applied = self.applier.subscribe();
        let reached = applied.wait_for(|applied| *applied >= revision);
        matches!(timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Writes this node's member record again, as it is; if there is room (`grows`), or in any case. True once that is done.
    fn rewrite(&self, grows: bool) -> impl Future<Output = bool> + Send + 'static {
        let options = PutOptions::new().with_ignore_value().with_ignore_lease();
        let put = TxnOp::put(&*self.member_key, "", Some(options));
        let until = clock::now().plus_ms(u64::try_from(self.stale_after.as_millis()).unwrap_or(u64::MAX) / 2);
        let (keys, bytes) = (vec![self.member_key.clone()], self.member_key.len());
        let txn = Txn::new().and_then([put]);
        let op = move |done| Op { keys, txn, bytes, until: Some(until), bulk: false, grows, done };
        let proposer = self.proposer.clone();
        async move { outcome(&proposer, op).await.is_ok_and(|nested| nested.succeeded) }
    }
}
