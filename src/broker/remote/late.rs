//! Frames that wait until it is known where a session goes. They are taken in the order in which they came, and before what
//! comes after that is known (G3).

use crate::broker::handle::Handle;
use crate::broker::ports::{Answers, Frame, MessageId, Revision};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A frame that waits.
pub(super) struct LateFrame {
    pub frame: Frame,
    pub id: MessageId,
    pub answers: Arc<dyn Answers>,
    /// The last revision at which a session it was for moved.
    pub moved: Option<Revision>,
    /// Sessions that may be about to move.
    pub moving: Vec<Arc<Handle>>,
}

/// See the module. The frames count among those that their senders bound.
#[derive(Default)]
pub(super) struct LateFrames {
    waiting: Mutex<VecDeque<LateFrame>>,
    len: AtomicUsize,
    taking: Mutex<()>,
}

impl LateFrames {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Puts one behind the others.
    pub fn push(&self, late: LateFrame) {
        let mut waiting = self.waiting.lock();
        waiting.push_back(late);
        self.len.store(waiting.len(), Ordering::Release);
    }

    /// One at a time takes frames out.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.taking.lock()
    }

    /// All frames whose sessions have moved or stay, in order.
    pub fn ready(&self) -> Vec<LateFrame> {
        let mut waiting = self.waiting.lock();
        let ready = |late: &LateFrame| late.moving.iter().all(|h| h.mailbox.moving().is_none());
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.drain(..).partition(ready);
        waiting.extend(rest);
        self.len.store(waiting.len(), Ordering::Release);
        ready
    }
}
