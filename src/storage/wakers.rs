//! Tasks waiting for a position of the journal. Never calls a waker while holding its lock.

use crate::ports::Lsn;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::task::Waker;

/// Who waits for what. A task is listed once for each position it waits for, however often it asks.
#[derive(Default)]
pub(super) struct Wakers(Mutex<BTreeMap<Lsn, HashMap<Key, Waker, foldhash::fast::FixedState>>>);

/// A waker's identity: its data and its table of functions. Listed wakers are alive, so neither is reused meanwhile.
type Key = (usize, usize);

fn key(waker: &Waker) -> Key {
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

impl Wakers {
    /// Wakes `waker` when [`Wakers::wake_up_to`] reaches `lsn`; at once if `durable` says that it has.
    pub(super) fn register(&self, lsn: Lsn, waker: &Waker, durable: impl Fn() -> Lsn) {
        {
            let mut waiting = self.0.lock();
            // Asked under the lock: whoever raises it takes the lock afterwards and finds the entry.
            if durable() < lsn {
                waiting.entry(lsn).or_default().entry(key(waker)).or_insert_with(|| waker.clone());
                return;
            }
        }
        waker.wake_by_ref();
    }

    /// Wakes all who wait for `lsn` or less.
    pub(super) fn wake_up_to(&self, lsn: Lsn) {
        let due = {
            let mut waiting = self.0.lock();
            if waiting.first_key_value().is_none_or(|(first, _)| *first > lsn) {
                return;
            }
            match lsn.checked_add(1) {
                Some(next) => {
                    let later = waiting.split_off(&next);
                    std::mem::replace(&mut *waiting, later)
                }
                None => std::mem::take(&mut *waiting),
            }
        };
        for waker in due.into_values().flat_map(HashMap::into_values) {
            waker.wake();
        }
    }

    /// Wakes everybody, due or not: something else than the position changed.
    pub(super) fn wake_all(&self) {
        self.wake_up_to(Lsn::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (count.clone(), Waker::from(count))
    }

    #[test]
    fn wakes_once_per_position_and_only_what_is_due() {
        let wakers = Wakers::default();
        let (a, waker_a) = counter();
        let (b, waker_b) = counter();
        for _ in 0..10 {
            wakers.register(1, &waker_a, || 0);
        }
        wakers.register(2, &waker_a, || 0);
        wakers.register(2, &waker_b, || 0);
        wakers.wake_up_to(1);
        assert_eq!((a.0.load(Ordering::SeqCst), b.0.load(Ordering::SeqCst)), (1, 0));
        wakers.wake_up_to(5);
        assert_eq!((a.0.load(Ordering::SeqCst), b.0.load(Ordering::SeqCst)), (2, 1));
        wakers.register(3, &waker_b, || 3);
        assert_eq!(b.0.load(Ordering::SeqCst), 2, "due at once");
        wakers.register(9, &waker_b, || 3);
        wakers.wake_all();
        assert_eq!(b.0.load(Ordering::SeqCst), 3);
    }
}
