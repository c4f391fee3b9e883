//! Follows everything below the cluster's prefix: a snapshot, then one watch from there on. Whatever happens to etcd, it goes on
//! where it was, or, when etcd no longer has what came since, with another snapshot. Each watch begins with a change that is known
//! already: if etcd has another one at its revision, the store was restored from a backup, and nothing that is known holds.

use super::applier::{Applier, Change};
use super::client::{Etcd, WatchConnection};
use super::decode::RawEvent;
use super::snapshot::{self, raw_event};
use crate::backoff::Backoff;
use crate::ports::Revision;
use crate::telemetry::Metrics;
use etcd_client::{EventType, WatchOptions, WatchResponse};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Between two requests for a sign of life.
const PROGRESS: Duration = Duration::from_secs(1);

/// Without a sign of life for so long a watch is given up.
const SILENCE: Duration = Duration::from_secs(4);

/// The first pause after a failure; doubled until [`PAUSE_LONGEST`].
const PAUSE: Duration = Duration::from_millis(50);

/// The longest pause after a failure.
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// How the watch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchStatus {
    /// The member that is watched; `None` while there is no watch.
    pub endpoint: Option<String>,
    /// Why the last watch or snapshot failed.
    pub last_error: Option<String>,
    /// Watches opened after one failed.
    pub restarts: u64,
    /// Snapshots taken.
    pub snapshots: u64,
}

/// Follows everything below the cluster's prefix: a snapshot, then one watch from there on.
pub struct Follower {
    etcd: Etcd,
    prefix: String,
    applier: Arc<Applier>,
    metrics: Arc<Metrics>,
    status: Mutex<WatchStatus>,
    /// Asks for a snapshot: the store is not the one that was followed.
    resnapshot: Notify,
    /// The member that is watched does not follow the others.
    lagging: watch::Sender<()>,
    /// What etcd is known to have compacted.
    compacted: AtomicU64,
    /// Why the store is not the one that was followed; `None` = it is.
    went_back: watch::Sender<Option<Arc<str>>>,
}

/// Why a watch ended.
enum End {
    /// It can go on at another member.
    Broken(String),
    /// What came since is not to be had.
    Snapshot(String),
    /// What the watch began with is not to be had, but all that came since is.
    Behind,
}

impl Follower {
    /// Follows `prefix`.
    pub fn new(etcd: Etcd, prefix: String, applier: Arc<Applier>, metrics: Arc<Metrics>) -> Follower {
        let (status, resnapshot) = (Mutex::default(), Notify::new());
        let (lagging, went_back) = (watch::Sender::default(), watch::Sender::default());
        let compacted = AtomicU64::new(0);
        Follower { etcd, prefix, applier, metrics, status, resnapshot, lagging, compacted, went_back }
    }

    /// How it goes.
    pub fn status(&self) -> WatchStatus {
        self.status.lock().clone()
    }

    /// Why this process cannot go on: the store is not the one that was followed.
    pub fn went_back(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.went_back.subscribe()
    }

    /// The store is not the one that was followed, since `why`.
    pub fn is_another(&self, why: &str) {
        let why = format!(
            "etcd was restored from a backup while this process ran: {why}. What it knows of the cluster does not hold: it stops, and \
             is to be started again. Its sessions are claimed anew from its journal then"
        );
        self.went_back.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                tracing::error!("{why}");
                *known = Some(why.into());
            }
            first
        });
    }

    /// The store is another one (restored from a backup): starts over with a snapshot.
    pub fn start_over(&self) {
        self.resnapshot.notify_one();
    }

    /// An event of something that is certainly written has not come for long: the member that is watched answers, but does not
    /// follow the others. The watch goes on at another one.
    pub fn lags(&self) {
        self.lagging.send_replace(());
    }

    /// Takes one snapshot.
    ///
    /// # Errors
    /// Why there is none; the index then waits for another.
    pub async fn snapshot(&self) -> Result<Revision, snapshot::SnapshotError> {
        self.applier.begin_snapshot();
        let revision = snapshot::read(&self.etcd, &self.prefix, |page| self.applier.page(&page)).await?;
        self.applier.end_snapshot(revision);
        self.metrics.etcd_snapshots.inc();
        self.status.lock().snapshots += 1;
        tracing::info!(revision, "all of the cluster's keys in etcd read");
        Ok(revision)
    }

    /// Follows for ever. The first snapshot must have been taken.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(PAUSE, PAUSE_LONGEST);
        loop {
            let before = self.applier.applied();
            let end = self.watch().await;
            self.status.lock().endpoint = None;
            if self.applier.applied() > before {
                backoff.reset();
            }
            match end {
                End::Behind => continue,
                End::Broken(why) => {
                    self.failed(&why, "the watch of etcd broke; it goes on where it was");
                    sleep(backoff.pause()).await;
                }
                End::Snapshot(why) => {
                    self.failed(&why, "the watch of etcd cannot go on; all keys are read again");
                    self.snapshot_at_last().await;
                }
            }
            self.metrics.etcd_watch_restarts.inc();
            self.status.lock().restarts += 1;
        }
    }

    fn failed(&self, why: &str, what: &str) {
        self.metrics.etcd_errors.inc();
        let mut status = self.status.lock();
        if status.last_error.as_deref() == Some(why) {
            tracing::debug!(why, "{what}");
        } else {
            tracing::warn!(why, applied = self.applier.applied(), "{what}");
        }
        status.last_error = Some(why.to_owned());
    }

    async fn snapshot_at_last(&self) {
        let mut backoff = Backoff::new(PAUSE, PAUSE_LONGEST);
        while let Err(error) = self.snapshot().await {
            self.failed(&error.to_string(), "the cluster's keys in etcd cannot be read; tried again");
            sleep(backoff.pause()).await;
        }
    }

    /// One watch, until it ends.
    async fn watch(&self) -> End {
        let mut connection = match self.etcd.watcher().await {
            Ok(connection) => connection,
            Err(error) => return End::Broken(error.to_string()),
        };
        let end = self.watch_on(&mut connection).await;
        if let End::Broken(_) = end {
            self.etcd.watch_failed(&connection).await;
        }
        end
    }

    async fn watch_on(&self, connection: &mut WatchConnection) -> End {
        // With the newest change that is known, if etcd still has it.
        let mut known = self.newest_known();
        let from = known.map_or_else(|| self.applier.applied() + 1, |known| known.revision);
        let options = WatchOptions::new()
            .with_range(snapshot::end_of(self.prefix.as_bytes()))
            .with_start_revision(i64::try_from(from).unwrap_or(i64::MAX))
            .with_fragment();
        let opened = timeout(SILENCE, connection.client.watch(&*self.prefix, Some(options))).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return End::Broken(self.etcd.watch_error(connection, &error).to_string()),
            Err(_) => return End::Broken(format!("etcd at {} does not open a watch", connection.endpoint)),
        };
        let mut progress = interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = sleep(SILENCE);
        tokio::pin!(silence);
        let mut parts = Parts::default();
        // What was missed before was not missed by this watch.
        let mut lagging = self.lagging.subscribe();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return End::Broken(format!("etcd at {} ended the watch", connection.endpoint)),
                        Err(error) => return End::Broken(self.etcd.watch_error(connection, &error).to_string()),
                    };
                    silence.set(sleep(SILENCE));
                    if let Some(end) = self.response(response, connection, &mut parts, &mut known) {
                        return end;
                    }
                }
                _ = progress.tick() => {
                    // A full buffer of requests is no reason to wait: the silence will be noticed.
                    if let Ok(Err(error)) = timeout(PROGRESS, stream.request_progress()).await {
                        return End::Broken(self.etcd.watch_error(connection, &error).to_string());
                    }
                }
                Ok(()) = lagging.changed() => {
                    return End::Broken(format!("etcd at {} lags behind", connection.endpoint));
                }
                () = &mut silence => {
                    return End::Broken(format!("etcd at {} is silent", connection.endpoint));
                }
                () = self.resnapshot.notified() => {
                    return End::Snapshot("the store is older than what was seen of it".to_owned());
                }
            }
        }
    }

    /// The newest change that is known, if a watch can begin with it.
    fn newest_known(&self) -> Option<Change> {
        let forgotten = self.compacted.load(Ordering::Relaxed);
        self.applier.newest().filter(|newest| newest.revision > forgotten)
    }

    /// `known` is the change that the watch begins with; taken once it has come.
    fn response(
        &self,
        response: WatchResponse,
        connection: &WatchConnection,
        parts: &mut Parts,
        known: &mut Option<Change>,
    ) -> Option<End> {
        if response.compact_revision() > 0 {
            let compacted = response.compact_revision();
            let revision = Revision::try_from(compacted).unwrap_or(0);
            if known.is_some() && revision <= self.applier.applied() {
                // Only what is known already is gone: the next watch begins behind it.
                self.compacted.store(revision, Ordering::Relaxed);
                return Some(End::Behind);
            }
            return Some(End::Snapshot(format!("etcd compacted revision {compacted}")));
        }
        if response.canceled() {
            let why = response.cancel_reason();
            return Some(End::Broken(format!("etcd at {} cancelled the watch ({why})", connection.endpoint)));
        }
        if response.created() {
            let mut status = self.status.lock();
            status.endpoint = Some(connection.endpoint.to_string());
            if status.restarts > 0 {
                tracing::info!(endpoint = %connection.endpoint, "etcd is watched again");
            }
            status.last_error = None;
            return None;
        }
        let response = response.0;
        let more = response.fragment;
        let raw = response.events.into_iter().filter_map(|event| {
            let deleted = event.r#type == EventType::Delete as i32;
            event.kv.map(|kv| raw_event!(kv, deleted))
        });
        if let Some((events, revision)) = parts.add(raw, more) {
            if let Some(known) = known.take()
                && !known.is_among(&events)
            {
                let at = known.revision;
                self.is_another(&format!(
                    "its change at revision {at} is another one than this process has seen"
                ));
                return Some(End::Snapshot("the store is not the one that was followed".to_owned()));
            }
            self.applier.events(events, revision);
        }
        None
    }
}

/// The events of the last revision of a response that goes on in the next one.
#[derive(Default)]
struct Parts(Vec<RawEvent>);

impl Parts {
    /// Adds a response; `more` = its last revision goes on. Returns the events of all complete revisions, and the last of
    /// these.
    fn add(&mut self, raw: impl Iterator<Item = RawEvent>, more: bool) -> Option<(Vec<RawEvent>, Revision)> {
        self.0.extend(raw);
        let last = self.0.last()?.revision;
        let complete =
            if more { self.0.partition_point(|event| event.revision < last) } else { self.0.len() };
        let rest = self.0.split_off(complete);
        let events = std::mem::replace(&mut self.0, rest);
        let revision = events.last()?.revision;
        Some((events, revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: Revision) -> RawEvent {
        RawEvent { key: "k".into(), value: None, revision, created: 0 }
    }

    #[test]
    fn a_revision_is_applied_when_it_is_complete() {
        let mut parts = Parts::default();
        assert_eq!(parts.add([].into_iter(), false), None);
        assert_eq!(parts.add([event(3)].into_iter(), true), None);
        let (events, revision) = parts.add([event(3), event(5)].into_iter(), true).unwrap();
        assert_eq!((events.len(), revision), (2, 3));
        let (events, revision) = parts.add([event(5)].into_iter(), false).unwrap();
        assert_eq!((events.len(), revision), (2, 5));
        assert!(parts.0.is_empty());
    }
}
