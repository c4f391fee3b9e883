//! Publishes that wait until sessions here can take them: it is not known where a session goes, or older publishes of the same
//! sender are on their way. They are taken in the order of their names (G3). Nobody has been told that they are safe. They wait no
//! longer than at their origins, so that these bound them.

use super::Remote;
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::broker::mailbox::Turn;
use crate::broker::ports::{Answers, Frame, Incarnation, MessageId, Revision};
use crate::broker::publish::{Cache, Leaving, Scratch};
use hashbrown::HashSet;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The process that sends a publish, and its name.
type Key = (Incarnation, MessageId);

/// A publish that waits.
#[derive(Default)]
pub(super) struct Late {
    /// Frames that brought it; none if it is this node's own.
    pub frames: Vec<(Frame, Arc<dyn Answers>)>,
    /// The last revision at which a session it was for moved.
    pub moved: Option<Revision>,
    /// Sessions that could not take it.
    pub moving: Vec<Arc<Handle>>,
    /// The revision at which it was matched, the lowest if it came more than once.
    pub matched_at: Option<Revision>,
}

/// See the module. The publishes count among those that their senders bound.
#[derive(Default)]
pub(super) struct LatePublishes {
    waiting: Mutex<BTreeMap<Key, Late>>,
    len: AtomicUsize,
    taking: Mutex<()>,
    asked: AtomicBool,
}

impl LatePublishes {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    fn push(&self, key: Key, late: Late) {
        let mut waiting = self.waiting.lock();
        let held = waiting.entry(key).or_default();
        held.frames.retain(|(_, answers)| answers.stands());
        held.frames.extend(late.frames);
        held.moved = held.moved.max(late.moved);
        held.matched_at = held.matched_at.into_iter().chain(late.matched_at).min();
        for handle in late.moving {
            if !held.moving.iter().any(|h| Arc::ptr_eq(h, &handle)) {
                held.moving.push(handle);
            }
        }
        self.len.store(waiting.len(), Ordering::Release);
    }

    fn take(&self, key: Key) -> Option<Late> {
        let mut waiting = self.waiting.lock();
        let late = waiting.remove(&key)?;
        self.len.store(waiting.len(), Ordering::Release);
        Some(late)
    }

    /// Takes out what other nodes sent of `origin` below `low`, save those in `open`.
    fn take_below(&self, origin: Incarnation, low: u64, open: &[u64]) -> Vec<(Key, Late)> {
        let open: HashSet<u64> = open.iter().copied().collect();
        let of_origin = |sender, seq| (sender, MessageId { origin, seq });
        let over = |((_, id), late): &(&Key, &Late)| !late.frames.is_empty() && !open.contains(&id.seq);
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

    /// Takes out the first after `after` that need not wait any more.
    fn pop_ready(&self, after: Option<Key>) -> Option<(Key, Late)> {
        let mut waiting = self.waiting.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ready =
            |(key, late): &(&Key, &Late)| late.gone() || !late.must_wait(**key) || late.outdated(**key);
        let key = *waiting.range((from, Bound::Unbounded)).find(ready)?.0;
        let late = waiting.remove(&key)?;
        self.len.store(waiting.len(), Ordering::Release);
        Some((key, late))
    }

    /// One at a time takes them out.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.taking.lock()
    }
}

impl Late {
    fn turn(&self, (sender, id): Key) -> Turn {
        Turn { sender, id, matched_at: self.matched_at.unwrap_or(Revision::MAX) }
    }

    fn must_wait(&self, key: Key) -> bool {
        let turn = self.turn(key);
        self.moving.iter().any(|h| h.mailbox.keeps_waiting(&turn))
    }

    /// A session has come since this node's own publish was matched, and waits until no such publish is left: it is matched
    /// again even if another session cannot take it yet, for which that one may be waiting in turn.
    fn outdated(&self, key: Key) -> bool {
        let turn = self.turn(key);
        self.frames.is_empty() && self.moving.iter().any(|h| h.mailbox.came_after(&turn))
    }

    /// Whoever sent it is gone, or sends it again over another connection.
    fn gone(&self) -> bool {
        !self.frames.is_empty() && self.frames.iter().all(|(_, answers)| !answers.stands())
    }
}

impl Remote {
    /// Publishes that wait for sessions here.
    pub fn publishes_late(&self) -> usize {
        self.late.len.load(Ordering::Acquire)
    }
}

impl Broker {
    /// Keeps a publish until the sessions that could not take it can.
    pub(super) fn wait_late(
        &self,
        remote: &Arc<Remote>,
        key: Key,
        matched_at: Revision,
        frames: Vec<(Frame, Arc<dyn Answers>)>,
        leaving: Leaving,
    ) {
        let Leaving { moved, moving } = leaving;
        let late = Late { frames, moved, moving, matched_at: Some(matched_at) };
        let ready = !late.must_wait(key);
        self.push_late(remote, key, late);
        if ready {
            self.late_soon(remote);
        }
    }

    fn push_late(&self, remote: &Arc<Remote>, key: Key, late: Late) {
        let own = late.frames.is_empty();
        remote.late.push(key, late);
        if own && !remote.origins.is_open(key.1) {
            // Given up meanwhile.
            self.forget_late(remote, key.1);
        }
    }

    /// A publish of this node has come to its end: nothing waits for it any more.
    pub(super) fn forget_late(&self, remote: &Arc<Remote>, id: MessageId) {
        if remote.late.is_empty() {
            return;
        }
        let key = (remote.me.incarnation, id);
        if let Some(late) = remote.late.take(key) {
            self.unwait(remote, key, &late.moving);
            self.late_soon(remote);
        }
    }

    /// Publishes of `origin` below `low` are done with, save those in `open`: no session takes one any more, so none waits.
    pub(super) fn forget_late_below(
        &self,
        remote: &Arc<Remote>,
        origin: Incarnation,
        low: u64,
        open: &[u64],
    ) {
        if remote.late.is_empty() {
            return;
        }
        let over = remote.late.take_below(origin, low, open);
        for (key, late) in &over {
            self.unwait(remote, *key, &late.moving);
        }
        if !over.is_empty() {
            self.late_soon(remote);
        }
    }

    /// Something has changed that publishes may have waited for.
    pub(in crate::broker) fn late_soon(&self, remote: &Arc<Remote>) {
        if remote.late.is_empty() || remote.late.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (broker, remote) = (self.me.clone(), remote.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            if let Some(broker) = broker.upgrade() {
                broker.take_late(&remote);
            }
        }));
    }

    /// Takes what has waited long enough. Sessions that have it are known; the others say where they are.
    fn take_late(&self, remote: &Arc<Remote>) {
        let _turn = remote.late.turn();
        remote.late.asked.store(false, Ordering::Release);
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        let mut last = None;
        while let Some((key, late)) = remote.late.pop_ready(last) {
            last = Some(key);
            if late.frames.is_empty() {
                self.take_own(remote, key, late);
                continue;
            }
            let left = late.moving.iter().filter_map(|h| h.mailbox.departed()).max();
            for (frame, answers) in late.frames {
                if !answers.stands() {
                    continue;
                }
                // Whoever matched on a newer index has found it where it is.
                let moved = late.moved.max(left.filter(|at| frame.matched_at < *at));
                self.take_frame(remote, frame, key, moved, &answers, &mut cache, &mut scratch);
            }
            self.unwait(remote, key, &late.moving);
        }
    }

    /// A publish of this node: it is matched again, at once or when that is possible.
    fn take_own(&self, remote: &Arc<Remote>, key: Key, late: Late) {
        let id = key.1;
        if remote.origins.is_open(id) {
            let left = late.moving.iter().filter_map(|h| h.mailbox.departed()).max();
            let inside = remote.gate.enter();
            let at = late.moved.max(left).unwrap_or(0);
            let next = remote.origins.moved_here(id, at, remote.applied());
            self.carry_on(remote, next);
            drop(inside);
            if remote.late.has(key) {
                return; // it waits again, as matched now
            }
            // Still to be matched: what comes after it waits.
            if remote.origins.is_open(id) && late.moving.iter().any(|h| h.mailbox.expects(key)) {
                return self.push_late(remote, key, late);
            }
        }
        self.unwait(remote, key, &late.moving);
    }

    /// Sessions do not wait for a publish any more, unless it waits itself.
    fn unwait(&self, remote: &Arc<Remote>, key: Key, handles: &[Arc<Handle>]) {
        let waits = |handle: &Arc<Handle>| {
            let waiting = remote.late.waiting.lock();
            waiting.get(&key).is_some_and(|l| l.moving.iter().any(|h| Arc::ptr_eq(h, handle)))
        };
        for handle in handles.iter().filter(|h| !waits(h)) {
            handle.mailbox.unexpect(key);
        }
    }
}
