//! Publishes that wait until sessions here can take them: it is not known where a session goes, or older publishes of the same
//! sender are on their way. They are taken in the order of their names (G3). Nobody has been told that they are safe. They wait no
//! longer than in the outboxes of their origins, so that these bound them.
//!
//! What was matched before the newest move that this node knows of does not wait here, since a session that moved may wait for
//! just that: its origin is told to match it again. Its *place* is kept meanwhile: later publishes do not overtake it.

use super::{Cache, Cluster, Remote};
use crate::broker::delivery::{Absent, Scratch};
use crate::broker::handle::Handle;
use crate::broker::mailbox::Sending;
use crate::hashing::HashSet;
use crate::ports::{Answers, Frame, Incarnation, MessageId, Revision};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The process that sends a publish, and its name.
type Key = (Incarnation, MessageId);

/// A publish that waits until sessions here can take it.
#[derive(Default)]
pub(super) struct Deferred {
    /// Frames that brought it; none if it is this node's own.
    pub frames: Vec<(Frame, Arc<dyn Answers>)>,
    /// The last revision at which a session it was for moved.
    pub moved: Option<Revision>,
    /// Sessions that could not take it.
    pub moving: Vec<Arc<Handle>>,
    /// The revision at which it was matched the last time.
    pub matched_at: Option<Revision>,
    /// Only its place is kept: its sender was told to match it again at this revision.
    pub called: Option<Revision>,
}

/// The publishes that wait until sessions here can take them, by sender and name. They count among those that their senders bound.
#[derive(Default)]
pub(super) struct DeferredPublishes {
    waiting: Mutex<BTreeMap<Key, Deferred>>,
    len: AtomicUsize,
    /// The newest move that this node knows of: a session came or left, or a process started.
    newest_move: AtomicU64,
    taking: Mutex<()>,
    asked: AtomicBool,
}

impl DeferredPublishes {
    /// Whether no publish waits.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    fn push(&self, key: Key, deferred: Deferred) {
        let mut waiting = self.waiting.lock();
        let held = waiting.entry(key).or_default();
        held.frames.retain(|(_, answers)| answers.stands());
        held.frames.extend(deferred.frames);
        held.moved = held.moved.max(deferred.moved);
        held.matched_at = held.matched_at.max(deferred.matched_at);
        held.called = deferred.called;
        if held.called.is_some() {
            held.frames.clear(); // answered
        }
        for handle in deferred.moving {
            if !held.moving.iter().any(|h| Arc::ptr_eq(h, &handle)) {
                held.moving.push(handle);
            }
        }
        self.len.store(waiting.len(), Ordering::Release);
    }

    fn take(&self, key: Key) -> Option<Deferred> {
        let mut waiting = self.waiting.lock();
        let deferred = waiting.remove(&key)?;
        self.len.store(waiting.len(), Ordering::Release);
        Some(deferred)
    }

    /// Takes out what other nodes sent of `origin` below `low`, save those in `open`.
    fn take_below(&self, origin: Incarnation, low: u64, open: &[u64]) -> Vec<(Key, Deferred)> {
        let open: HashSet<u64> = open.iter().copied().collect();
        let of_origin = |sender, seq| (sender, MessageId { origin, seq });
        let over = |((_, id), deferred): &(&Key, &Deferred)| !deferred.own() && !open.contains(&id.seq);
        let mut waiting = self.waiting.lock();
        let (mut keys, mut from) = (Vec::new(), Bound::Unbounded);
        while let Some(sender) =
            waiting.range((from, Bound::Unbounded)).next().map(|((sender, _), _)| *sender)
        {
            let range = of_origin(sender, 0)..of_origin(sender, low);
            keys.extend(waiting.range(range).filter(over).map(|(key, _)| *key));
            from = Bound::Excluded((sender, MessageId { origin: u64::MAX, seq: u64::MAX }));
        }
        let taken = keys.into_iter().filter_map(|key| Some((key, waiting.remove(&key)?))).collect();
        self.len.store(waiting.len(), Ordering::Release);
        taken
    }

    fn has(&self, key: Key) -> bool {
        self.waiting.lock().contains_key(&key)
    }

    /// Takes out the place of a publish that comes again.
    pub fn take_place(&self, key: Key) -> Option<Deferred> {
        let mut waiting = self.waiting.lock();
        waiting.get(&key).filter(|deferred| deferred.called.is_some())?;
        let place = waiting.remove(&key)?;
        self.len.store(waiting.len(), Ordering::Release);
        Some(place)
    }

    /// Takes out the first after `after` that need not wait any more, or may not.
    fn pop_ready(&self, after: Option<Key>, remote: &Remote) -> Option<(Key, Deferred)> {
        let newest = self.newest_move();
        let mut waiting = self.waiting.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ready = |(key, deferred): &(&Key, &Deferred)| match deferred.called {
            Some(at) => !remote.comes_again(key.0, at),
            None => deferred.gone() || !deferred.must_wait(**key) || deferred.matched_at < Some(newest),
        };
        let key = *waiting.range((from, Bound::Unbounded)).find(ready)?.0;
        let deferred = waiting.remove(&key)?;
        self.len.store(waiting.len(), Ordering::Release);
        Some((key, deferred))
    }

    /// Whether places are kept.
    fn keeps_places(&self) -> bool {
        !self.is_empty() && self.waiting.lock().values().any(|deferred| deferred.called.is_some())
    }

    /// The newest move that this node knows of: nothing waits here that was matched before it.
    pub fn newest_move(&self) -> Revision {
        self.newest_move.load(Ordering::SeqCst)
    }

    /// Lets one thread at a time take publishes out.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.taking.lock()
    }
}

impl Deferred {
    fn sending(&self, (sender, id): Key) -> Sending {
        Sending { sender, id, matched_at: self.matched_at.unwrap_or(Revision::MAX) }
    }

    fn must_wait(&self, key: Key) -> bool {
        let sending = self.sending(key);
        self.moving.iter().any(|h| h.mailbox.keeps_waiting(&sending))
    }

    /// Whether the publish that waits was accepted by this node, and did not come in a frame.
    fn own(&self) -> bool {
        self.frames.is_empty() && self.called.is_none()
    }

    /// Whether whoever sent the publish is gone, or sends it again over another connection.
    fn gone(&self) -> bool {
        !self.frames.is_empty() && self.frames.iter().all(|(_, answers)| !answers.stands())
    }
}

impl Remote {
    /// How many publishes wait for sessions here.
    pub fn publishes_deferred(&self) -> usize {
        self.deferred.len.load(Ordering::Acquire)
    }

    /// Whether a publish whose sender was told to match it again at `at` may still come again. Its next frame comes before the
    /// report that says otherwise. Who is away may come back.
    fn comes_again(&self, sender: Incarnation, at: Revision) -> bool {
        match self.members.present(sender) {
            Some(process) => self.members.settled(&process, &self.me.node) < at,
            None => self.members.away().iter().any(|process| process.incarnation == sender),
        }
    }
}

impl Cluster {
    /// Keeps a publish until the sessions that could not take it can.
    pub(super) fn defer(
        &self,
        remote: &Arc<Remote>,
        key: Key,
        matched_at: Revision,
        frames: Vec<(Frame, Arc<dyn Answers>)>,
        absent: Absent,
    ) {
        let Absent { moved, moving, .. } = absent;
        let deferred = Deferred { frames, moved, moving, matched_at: Some(matched_at), called: None };
        let ready = !deferred.must_wait(key);
        self.push_deferred(remote, key, deferred);
        if ready || matched_at < remote.deferred.newest_move() {
            self.take_deferred_soon(remote);
        }
    }

    /// Keeps the place of a publish whose sender is told to match it again at `at`.
    pub(super) fn keep_place(&self, remote: &Arc<Remote>, key: Key, at: Revision, moving: Vec<Arc<Handle>>) {
        remote.deferred.push(key, Deferred { moving, called: Some(at), ..Deferred::default() });
    }

    /// A publish whose place was kept is here again: what it does not wait for now does not wait for it.
    pub(super) fn give_place(&self, remote: &Arc<Remote>, key: Key, place: Option<Deferred>) {
        if let Some(place) = place {
            self.unwait(remote, key, &place.moving);
            self.take_deferred_soon(remote);
        }
    }

    /// Looks whether places need not be kept any more: a node has reported how far it is, or has come or gone.
    pub(super) fn places_may_go(&self, remote: &Arc<Remote>) {
        if remote.deferred.keeps_places() {
            self.take_deferred_soon(remote);
        }
    }

    /// Takes note that a session has come to this node or left it at revision `at`, or that a process has started: what was matched before
    /// and waits here is matched again, since that session may be waiting for it.
    pub fn moved_at(&self, remote: &Arc<Remote>, at: Revision) {
        if remote.deferred.newest_move.fetch_max(at, Ordering::SeqCst) < at {
            self.take_deferred_soon(remote);
        }
    }

    fn push_deferred(&self, remote: &Arc<Remote>, key: Key, deferred: Deferred) {
        let own = deferred.own();
        remote.deferred.push(key, deferred);
        if own && !remote.outbox.is_open(key.1) {
            // Given up meanwhile.
            self.forget_deferred(remote, key.1);
        }
    }

    /// A publish of this node has come to its end: nothing waits for it any more.
    pub(super) fn forget_deferred(&self, remote: &Arc<Remote>, id: MessageId) {
        if remote.deferred.is_empty() {
            return;
        }
        let key = (remote.me.incarnation, id);
        if let Some(deferred) = remote.deferred.take(key) {
            self.unwait(remote, key, &deferred.moving);
            self.take_deferred_soon(remote);
        }
    }

    /// Publishes of `origin` below `low` are done with, save those in `open`: no session takes one any more, so none waits.
    pub(super) fn forget_deferred_below(
        &self,
        remote: &Arc<Remote>,
        origin: Incarnation,
        low: u64,
        open: &[u64],
    ) {
        if remote.deferred.is_empty() {
            return;
        }
        let over = remote.deferred.take_below(origin, low, open);
        for (key, deferred) in &over {
            self.unwait(remote, *key, &deferred.moving);
        }
        if !over.is_empty() {
            self.take_deferred_soon(remote);
        }
    }

    /// Starts a task that takes the publishes that need not wait any more: something has changed that they may have waited for.
    pub fn take_deferred_soon(&self, remote: &Arc<Remote>) {
        if remote.deferred.is_empty() || remote.deferred.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (cluster, remote) = (self.me.clone(), remote.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            if let Some(cluster) = cluster.upgrade() {
                cluster.take_deferred(&remote);
            }
        }));
    }

    /// Takes the publishes that have waited long enough. Sessions that have one already are known; the others say where they are.
    fn take_deferred(&self, remote: &Arc<Remote>) {
        let _turn = remote.deferred.turn();
        remote.deferred.asked.store(false, Ordering::Release);
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        let mut last = None;
        while let Some((key, deferred)) = remote.deferred.pop_ready(last, remote) {
            last = Some(key);
            if deferred.own() {
                self.take_own(remote, key, deferred);
                continue;
            }
            let left = deferred.moving.iter().filter_map(|h| h.mailbox.departed()).max();
            for (frame, answers) in deferred.frames {
                if !answers.stands() {
                    continue;
                }
                // Whoever matched on a newer index has found it where it is.
                let moved = deferred.moved.max(left.filter(|at| frame.matched_at < *at));
                self.take_frame(remote, frame, key, moved, &answers, &mut cache, &mut scratch);
            }
            // Unless it is just coming again.
            let _inside = remote.barrier.enter();
            let _one = remote.receiving.one(key.1);
            self.unwait(remote, key, &deferred.moving);
        }
    }

    /// A publish of this node: it is matched again, at once or when that is possible.
    fn take_own(&self, remote: &Arc<Remote>, key: Key, deferred: Deferred) {
        let id = key.1;
        if remote.outbox.is_open(id) {
            let left = deferred.moving.iter().filter_map(|h| h.mailbox.departed()).max();
            let inside = remote.barrier.enter();
            let came = Some(remote.deferred.newest_move()).filter(|at| deferred.matched_at < Some(*at));
            let at = deferred.moved.max(left).max(came).unwrap_or(0);
            let next = remote.outbox.moved_here(id, at, remote.applied());
            self.carry_on(remote, next);
            drop(inside);
            if remote.deferred.has(key) {
                // It waits again, as matched now.
                return self.unwait(remote, key, &deferred.moving);
            }
            // Still to be matched: what comes after it waits.
            if remote.outbox.is_open(id) && deferred.moving.iter().any(|h| h.mailbox.expects(key)) {
                return self.push_deferred(remote, key, deferred);
            }
        }
        self.unwait(remote, key, &deferred.moving);
    }

    /// Sessions do not wait for a publish any more, unless it waits itself.
    fn unwait(&self, remote: &Arc<Remote>, key: Key, handles: &[Arc<Handle>]) {
        let waits = |handle: &Arc<Handle>| {
            let waiting = remote.deferred.waiting.lock();
            waiting.get(&key).is_some_and(|l| l.moving.iter().any(|h| Arc::ptr_eq(h, handle)))
        };
        for handle in handles.iter().filter(|h| !waits(h)) {
            handle.mailbox.unexpect(key);
        }
    }
}
