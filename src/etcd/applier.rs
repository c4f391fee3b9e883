//! Hands events to the index in the order of their revisions, whoever they came from: the watch, a snapshot, a peer.

use super::decode::{Decoder, RawEvent};
use super::ring::{self, Ring};
use crate::etcd::older::mark_of;
use crate::ports::{Index, MemberId, Revision, Timeline};
use crate::telemetry::Metrics;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;

/// Hands events to the index in the order of their revisions, whoever they came from: the watch, a snapshot, a peer.
pub struct Applier {
    index: Arc<dyn Index>,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    applied: watch::Sender<Revision>,
    /// The last revision that is being applied, and what tells its change from others.
    last: Mutex<(Revision, u64)>,
    /// The newest of all that set a key.
    newest: Mutex<Option<Change>>,
    /// What this process wrote last, by revision: its events may be later than what comes of it.
    wrote: Mutex<[Option<Change>; WROTE_KEPT]>,
}

/// Changes of this process's own that are remembered until their events have come.
const WROTE_KEPT: usize = 256;

/// A change of the store that set a key, told from others at the same revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision.
    pub revision: Revision,
    /// See [`mark_of`].
    mark: u64,
}

impl Change {
    /// `key` was set to `value` at `revision`.
    pub fn set(revision: Revision, key: &[u8], value: &[u8]) -> Change {
        Change { revision, mark: mark_of(key, Some(value)) }
    }

    /// The same at another revision.
    pub fn at(self, revision: Revision) -> Change {
        Change { revision, ..self }
    }

    /// What `event` changed; `None` if it deleted its key, of which etcd keeps nothing once it compacts that revision.
    fn of(event: &RawEvent) -> Option<Change> {
        event.value.as_deref().map(|value| Change::set(event.revision, &event.key, value))
    }

    /// Whether the change is one of `events`.
    pub fn is_among(self, events: &[RawEvent]) -> bool {
        events.iter().take_while(|e| e.revision <= self.revision).any(|e| Change::of(e) == Some(self))
    }
}

struct Inner {
    decoder: Decoder,
    ring: Ring,
    /// Everything up to this revision has been applied; 0 = nothing yet.
    applied: Revision,
    snapshot: bool,
}

impl Applier {
    /// Applies to `index`.
    pub fn new(index: Arc<dyn Index>, decoder: Decoder, metrics: Arc<Metrics>) -> Applier {
        let inner = Inner { decoder, ring: Ring::default(), applied: 0, snapshot: false };
        let (inner, applied) = (Mutex::new(inner), watch::Sender::new(0));
        let (last, newest, wrote) = (Mutex::default(), Mutex::default(), Mutex::new([None; WROTE_KEPT]));
        Applier { index, metrics, inner, applied, last, newest, wrote }
    }

    /// Up to which revision everything has been applied; 0 = nothing yet.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Follows [`Applier::applied`].
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Where the index is told that it is fresh.
    pub fn index(&self) -> &Arc<dyn Index> {
        &self.index
    }

    /// A snapshot begins (again).
    pub fn begin_snapshot(&self) {
        let mut inner = self.inner.lock();
        inner.snapshot = true;
        inner.decoder.begin_snapshot();
        self.index.begin_snapshot();
        *self.newest.lock() = None;
    }

    /// A page of the snapshot.
    pub fn page(&self, page: &[RawEvent]) {
        let mut inner = self.inner.lock();
        let mut events = Vec::with_capacity(page.len());
        for raw in page {
            inner.decoder.event(raw, &mut events);
        }
        self.index.apply(events, None);
        self.learn(page);
    }

    /// Keeps the newest change of `raw` that set a key, if it is newer than the one that is known.
    fn learn(&self, raw: &[RawEvent]) {
        let last = raw.iter().filter(|event| event.value.is_some()).max_by_key(|event| event.revision);
        let mut newest = self.newest.lock();
        if let Some(last) = last
            && newest.is_none_or(|known| known.revision <= last.revision)
        {
            *newest = Change::of(last);
        }
    }

    /// The snapshot of `revision` is complete.
    pub fn end_snapshot(&self, revision: Revision) {
        let mut inner = self.inner.lock();
        let mut events = Vec::new();
        inner.decoder.end_snapshot(revision, &mut events);
        self.index.apply(events, None);
        self.index.end_snapshot(revision);
        inner.ring.restart(revision);
        inner.snapshot = false;
        self.set(&mut inner, revision);
    }

    /// Events in order. They are all there is between what has been applied and `revision`; those already applied do nothing.
    pub fn events(&self, mut raw: Vec<RawEvent>, revision: Revision) {
        let mut inner = self.inner.lock();
        if inner.snapshot || revision <= inner.applied {
            return;
        }
        raw.retain(|event| event.revision > inner.applied && event.revision <= revision);
        let mut events = Vec::with_capacity(raw.len());
        for event in &raw {
            inner.decoder.event(event, &mut events);
        }
        inner.decoder.applied(revision);
        let last = raw.last().filter(|event| event.revision == revision);
        *self.last.lock() = (revision, last.map_or(0, |event| mark_of(&event.key, event.value.as_deref())));
        self.index.apply(events, Some(revision));
        self.learn(&raw);
        inner.ring.push(raw, revision);
        self.set(&mut inner, revision);
    }

    fn set(&self, inner: &mut Inner, revision: Revision) {
        inner.applied = revision;
        self.metrics.applied_revision.set(revision);
        self.applied.send_replace(revision);
    }

    /// What a node that has applied `after` lacks; `None` if the ring no longer has it.
    pub fn events_after(&self, after: Revision) -> Option<(Bytes, Revision)> {
        let inner = self.inner.lock();
        (inner.applied > 0 && !inner.snapshot).then(|| inner.ring.after(after)).flatten()
    }

    /// Applies what a peer had.
    ///
    /// # Errors
    /// If it cannot be read, or if events between what has been applied here and what it begins with are missing.
    pub fn from_peer(&self, bytes: Bytes) -> Result<(), String> {
        let lacking = ring::decode(bytes).ok_or("events that cannot be read (of another release?)")?;
        let applied = self.applied();
        if lacking.after > applied {
            return Err(format!("events after {} are of no use at {applied}", lacking.after));
        }
        self.events(lacking.events, lacking.up_to);
        Ok(())
    }

    /// This process has made a change, whose event may not have come yet.
    pub fn wrote(&self, change: Change) {
        self.wrote.lock()[slot(change.revision)] = Some(change);
    }

    /// What tells the store's change at this revision from others, if that is the last one applied, the newest one of a snapshot, or one
    /// that this process has just made; else 0.
    pub fn mark(&self, revision: Revision) -> u64 {
        let (last, mark) = *self.last.lock();
        if last == revision && mark != 0 {
            return mark;
        }
        let known = [self.newest(), self.wrote.lock()[slot(revision)]];
        known.into_iter().flatten().find(|change| change.revision == revision).map_or(0, |change| change.mark)
    }

    /// The newest change that is known and set a key.
    pub fn newest(&self) -> Option<Change> {
        *self.newest.lock()
    }

    /// The life of the store, as far as has been applied.
    pub fn timeline(&self) -> Timeline {
        self.inner.lock().decoder.timeline()
    }

    /// Who leads, as far as has been applied.
    pub fn leader(&self) -> Option<MemberId> {
        self.inner.lock().decoder.leader()
    }
}

/// Where a change of this process's own is remembered.
fn slot(revision: Revision) -> usize {
    usize::try_from(revision % WROTE_KEPT as Revision).unwrap_or(0)
}
