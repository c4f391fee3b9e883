//! What the parts of a node wait with: flags, bells, and numbers that grow.

use crate::ports::BoxFuture;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

/// Raised once; one waiter.
#[derive(Debug, Default)]
pub struct Flag {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Flag {
    /// Raises it for good.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Completes once it is raised.
    pub fn wait(self: Arc<Flag>) -> impl Future<Output = ()> + Send + 'static {
        poll_fn(move |cx| {
            if self.raised.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            self.waker.register(cx.waker());
            if self.raised.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

/// Rung any number of times; the one listener hears that it was, not how often.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Rings it.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Completes once it has been rung since the last time this completed.
    pub fn heard(self: &Arc<Bell>) -> impl Future<Output = ()> + Send + Unpin + 'static {
        let bell = self.clone();
        poll_fn(move |cx| {
            bell.waker.register(cx.waker());
            if bell.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

/// Those who wait for one thing.
#[derive(Debug, Default)]
pub struct Waiters(Vec<Arc<Flag>>);

impl Waiters {
    /// One more, who waits until [`Waiters::wake`].
    pub fn join(&mut self) -> BoxFuture<()> {
        let flags = &mut self.0;
        if flags.len() == flags.capacity() {
            // Nobody waits any more for those that only this list holds. Room for as many again, or this would be done for each.
            flags.retain(|f| Arc::strong_count(f) > 1);
            flags.reserve(flags.len() + 1);
        }
        let flag = Arc::new(Flag::default());
        flags.push(flag.clone());
        Box::pin(flag.wait())
    }

    /// How many are listed.
    pub fn listed(&self) -> usize {
        self.0.len()
    }

    /// What they have waited for is there.
    pub fn wake(self) {
        self.0.iter().for_each(|flag| flag.raise());
    }
}

/// A number, and those who wait until it has reached a value.
#[derive(Debug, Default)]
pub struct Level {
    reached: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiters>>,
}

impl Level {
    /// How far it has come.
    pub fn get(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }

    /// It is at `value` now. Wakes whoever waited for no more.
    pub fn set(&self, value: u64) {
        self.put(value);
        self.wake();
    }

    /// It is at `value` now; [`Level::wake`] must follow.
    pub fn put(&self, value: u64) {
        self.reached.store(value, Ordering::Release);
    }

    /// Wakes whoever waited for no more than it is at.
    pub fn wake(&self) {
        let value = self.get();
        let mut waiting = self.waiting.lock();
        let later = match value.checked_add(1) {
            Some(next) => waiting.split_off(&next),
            None => BTreeMap::new(),
        };
        let reached = std::mem::replace(&mut *waiting, later);
        drop(waiting);
        reached.into_values().for_each(Waiters::wake);
    }

    /// Completes once it has reached `value`.
    pub fn when(&self, value: u64) -> BoxFuture<()> {
        if self.get() >= value {
            return Box::pin(std::future::ready(()));
        }
        let mut waiting = self.waiting.lock();
        // Again under the lock: the number is stored before those who wait are looked at.
        if self.get() >= value {
            return Box::pin(std::future::ready(()));
        }
        waiting.entry(value).or_default().join()
    }

    /// How many wait.
    pub fn waiters(&self) -> usize {
        self.waiting.lock().values().map(Waiters::listed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_level_wakes_those_it_has_reached() {
        let level = Level::default();
        let mut five = level.when(5);
        let mut nine = level.when(9);
        assert!(level.when(0).now_or_never().is_some());
        assert!((&mut five).now_or_never().is_none());
        level.set(7);
        assert_eq!((level.get(), level.waiters()), (7, 1));
        assert!((&mut five).now_or_never().is_some());
        assert!((&mut nine).now_or_never().is_none());
        level.set(u64::MAX);
        assert!(nine.now_or_never().is_some());
        assert_eq!(level.waiters(), 0);
    }

    #[test]
    fn who_has_left_does_not_stay_in_the_list() {
        let level = Level::default();
        for _ in 0..10_000 {
            drop(level.when(1));
        }
        assert!(level.waiters() < 100, "{}", level.waiters());
    }

    #[test]
    fn a_bell_is_heard_once_however_often_it_was_rung() {
        let bell = Arc::new(Bell::default());
        assert!(bell.heard().now_or_never().is_none());
        bell.ring();
        bell.ring();
        assert!(bell.heard().now_or_never().is_some());
        assert!(bell.heard().now_or_never().is_none());
    }
}
