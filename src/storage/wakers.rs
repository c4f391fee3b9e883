//! Tasks waiting for a position of the journal. Never calls a waker while holding its lock.

use crate::ports::Lsn;
use hashbrown::HashSet;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::task::Waker;

/// Who waits for what. A task is listed once for each position it waits for, however often it asks.
#[derive(Default)]
pub(super) struct Wakers(Mutex<BTreeMap<Lsn, Waiting>>);

/// Who waits for one position, in the order in which they came.
#[derive(Default)]
struct Waiting {
    listed: HashSet<Key, foldhash::fast::FixedState>,
    wakers: Vec<Waker>,
}

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
                let waiting = waiting.entry(lsn).or_default();
                if waiting.listed.insert(key(waker)) {
                    waiting.wakers.push(waker.clone());
                }
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
        for waker in due.into_values().flat_map(|waiting| waiting.wakers) {
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

    struct Named(usize, Arc<Mutex<Vec<usize>>>);
    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().push(self.0);
        }
    }

    /// Where a task is in memory says nothing: a simulation is replayed step by step.
    #[test]
    fn who_came_first_is_woken_first() {
        let (wakers, woken) = (Wakers::default(), Arc::default());
        let all: Vec<Waker> =
            (0..100).map(|no| Waker::from(Arc::new(Named(no, Arc::clone(&woken))))).collect();
        all.iter().for_each(|waker| wakers.register(1, waker, || 0));
        wakers.wake_up_to(1);
        assert_eq!(*woken.lock(), (0..100).collect::<Vec<_>>());
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
