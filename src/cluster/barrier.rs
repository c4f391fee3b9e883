//! Between publishers and the index: who has received a report that says "applied r" has received every frame matched below r.
//!
//! A publisher is inside from the moment it reads the applied revision until its frames are queued. The revision advances
//! only while nobody is inside. Publishers do not wait for each other: every thread enters by a stripe of its own, and whoever
//! closes the barrier closes all stripes in turn.

use parking_lot::{RwLock, RwLockReadGuard};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many stripes there are; more threads than that share them.
const STRIPES: usize = 64;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(RwLock<()>);

/// Keeps the applied revision from advancing while a publish is matched: whoever publishes is inside, and the revision advances only while
/// nobody is.
#[derive(Debug)]
pub struct Barrier {
    stripes: Vec<Stripe>,
}

/// A publisher that is inside the barrier; leaves it when dropped.
#[must_use]
#[derive(Debug)]
pub struct Inside<'a>(#[allow(dead_code)] RwLockReadGuard<'a, ()>);

impl Default for Barrier {
    fn default() -> Barrier {
        Barrier { stripes: (0..STRIPES).map(|_| Stripe::default()).collect() }
    }
}

impl Barrier {
    /// Enters the barrier; waits while it is closed. A thread that is inside may enter once more.
    pub fn enter(&self) -> Inside<'_> {
        Inside(self.stripes[stripe()].0.read_recursive())
    }

    /// Runs `f` while nobody is inside the barrier. The caller must not be inside: it would wait for itself.
    pub fn closed<R>(&self, f: impl FnOnce() -> R) -> R {
        let locked: Vec<_> = self.stripes.iter().map(|d| d.0.write()).collect();
        let r = f();
        drop(locked);
        r
    }
}

/// The stripe of this thread.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) });
    STRIPE.with(|d| {
        if d.get() == usize::MAX {
            d.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        d.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn the_revision_advances_only_when_all_frames_matched_below_it_are_queued() {
        let barrier = Arc::new(Barrier::default());
        let applied = Arc::new(AtomicU64::new(0));
        // What a publisher has matched but not queued: the revision, or 0.
        let matched: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..4)
            .map(|n| {
                let (barrier, applied, matched, stop) =
                    (barrier.clone(), applied.clone(), matched.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let inside = barrier.enter();
                        let again = barrier.enter();
                        matched[n].store(applied.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
                        drop(again);
                        std::thread::yield_now();
                        matched[n].store(0, Ordering::SeqCst);
                        drop(inside);
                    }
                })
            })
            .collect();
        for revision in 1..=2_000 {
            barrier.closed(|| {
                applied.store(revision, Ordering::SeqCst);
                assert!(matched.iter().all(|m| m.load(Ordering::SeqCst) == 0));
            });
            assert!(matched.iter().all(|m| matches!(m.load(Ordering::SeqCst), 0 | 1..) && {
                let r = m.load(Ordering::SeqCst);
                r == 0 || r > revision
            }));
        }
        stop.store(true, Ordering::Relaxed);
        publishers.into_iter().for_each(|p| p.join().unwrap());
    }
}
