//! Whether this node knows recent enough of the others for its acknowledgements to count (`docs/decisions/0006-freshness.md`).
//!
//! The node is *fresh* at a time if, at some instant no longer than `stale_after` before, it had applied all that the store
//! showed, or all that every other node had applied. What the store showed counts under the lease of that instant only. A node
//! that is alone in its index always is fresh.

use crate::clock::Time;
use crate::ports::{BoxFuture, Coordinator};
use crate::sync::level::Waiters;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What shows that a node was fresh at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// There is no other node.
    Alone,
    /// There are others, and as far as is known the node was fresh at this instant.
    At(Time),
}

/// Until when what this node knows of the others counts as recent, for its acknowledgements and for serving clients.
pub struct Freshness {
    stale_after_ms: u64,
    coordinator: Arc<dyn Coordinator>,
    alone: AtomicBool,
    /// The latest instant, in milliseconds of [`Time`], at which the node was fresh by what the others had applied; 0 = never.
    by_peers: AtomicU64,
    /// The latest instant, in milliseconds of [`Time`], at which the node was fresh by what the store showed; 0 = never.
    by_store: AtomicU64,
    waiting: Mutex<Waiters>,
}

impl Freshness {
    /// The freshness of a node that knows nothing yet: evidence counts for `stale_after_ms` milliseconds.
    pub fn new(stale_after_ms: u64, coordinator: Arc<dyn Coordinator>) -> Freshness {
        Freshness {
            stale_after_ms,
            coordinator,
            alone: AtomicBool::new(false),
            by_peers: AtomicU64::new(0),
            by_store: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Until when this node is fresh, if nothing more is heard.
    pub fn until(&self) -> Time {
        self.until_by_peers().max(self.until_by_store())
    }

    fn until_by_peers(&self) -> Time {
        if self.alone.load(Ordering::Acquire) {
            return Time(u64::MAX);
        }
        self.holds(self.by_peers.load(Ordering::Acquire))
    }

    /// Whoever sees that a node's registration is gone relies on it: what the store showed is worth nothing without the lease
    /// under which it did.
    fn until_by_store(&self) -> Time {
        // In this order: a lease is known by its beginning before it is by its end.
        let until = self.coordinator.lease_until();
        let at = self.by_store.load(Ordering::Acquire);
        if at < self.coordinator.lease_since().0 { Time(0) } else { self.holds(at).min(until) }
    }

    fn holds(&self, at: u64) -> Time {
        if at == 0 { Time(0) } else { Time(at).plus_ms(self.stale_after_ms) }
    }

    /// Whether this node ever was fresh while there were others.
    pub fn was_fresh(&self) -> bool {
        self.by_peers.load(Ordering::Acquire) > 0 || self.by_store.load(Ordering::Acquire) > 0
    }

    /// Whether this node is fresh at `now`.
    pub fn is_fresh(&self, now: Time) -> bool {
        now < self.until_by_peers() || now < self.until_by_store()
    }

    /// Completes when this node is fresh; at once if it is at `now`.
    pub fn when_fresh(&self, now: Time) -> BoxFuture<()> {
        let mut waiting = self.waiting.lock();
        // Under the lock: whoever makes it fresh afterwards finds this one waiting.
        if self.is_fresh(now) {
            return Box::pin(std::future::ready(()));
        }
        waiting.join()
    }

    /// Takes note of evidence by the other nodes. What was shown before stays shown.
    pub fn shown(&self, evidence: Evidence, now: Time) {
        match evidence {
            Evidence::Alone => self.alone.store(true, Ordering::Release),
            Evidence::At(at) => {
                // First the instant, so that nobody sees neither.
                self.by_peers.fetch_max(at.0, Ordering::AcqRel);
                self.alone.store(false, Ordering::Release);
            }
        }
        self.wake(now);
    }

    /// Takes note that all that the store showed at instant `at` is applied.
    pub fn store_showed(&self, at: Time, now: Time) {
        self.by_store.fetch_max(at.0, Ordering::AcqRel);
        self.wake(now);
    }

    fn wake(&self, now: Time) {
        if self.is_fresh(now) {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::FakeStore;
    use futures_util::FutureExt;

    /// Under a lease of this time.
    fn leased(since: u64, until: u64) -> (Freshness, Arc<FakeStore>) {
        let store = Arc::new(FakeStore::default());
        *store.lease.lock() = (Time(since), Time(until));
        (Freshness::new(5_000, store.clone()), store)
    }

    #[test]
    fn evidence_counts_for_as_long_as_it_is_recent() {
        // Evidence in order, and then whether it is fresh at a time. Evidence stays good for 5,000 ms.
        let rules: &[(&[Evidence], u64, bool)] = &[
            (&[], 0, false),
            (&[Evidence::At(Time(0))], 0, false), // none
            (&[Evidence::At(Time(1_000))], 5_999, true),
            (&[Evidence::At(Time(1_000))], 6_000, false),
            (&[Evidence::At(Time(1_000)), Evidence::At(Time(3_000))], 7_999, true),
            (&[Evidence::At(Time(3_000)), Evidence::At(Time(1_000))], 7_999, true), // what was shown stays shown
            (&[Evidence::Alone], 1 << 50, true),
            (&[Evidence::Alone, Evidence::At(Time(0))], 1, false), // others came, and have shown nothing
            (&[Evidence::At(Time(1_000)), Evidence::Alone, Evidence::At(Time(0))], 5_999, true),
            (&[Evidence::At(Time(1_000)), Evidence::Alone, Evidence::At(Time(0))], 6_000, false),
        ];
        for (evidence, now, fresh) in rules {
            let (freshness, _) = leased(0, u64::MAX);
            evidence.iter().for_each(|e| freshness.shown(*e, Time(*now)));
            assert_eq!(freshness.is_fresh(Time(*now)), *fresh, "{evidence:?} at {now}");
            // The store's word is worth the same.
            let (freshness, _) = leased(0, u64::MAX);
            for e in *evidence {
                match e {
                    Evidence::At(at) if at.0 > 0 => freshness.store_showed(*at, Time(*now)),
                    e => freshness.shown(*e, Time(*now)),
                }
            }
            let alone = evidence.last() == Some(&Evidence::Alone);
            let lost_alone = evidence.contains(&Evidence::Alone) && !alone;
            if !lost_alone {
                assert_eq!(freshness.is_fresh(Time(*now)), *fresh, "{evidence:?} of the store at {now}");
            }
        }
    }

    #[test]
    fn those_who_wait_are_woken_by_evidence_that_is_recent() {
        let (freshness, _) = leased(0, u64::MAX);
        let mut wait = freshness.when_fresh(Time(10_000));
        freshness.store_showed(Time(1_000), Time(10_000)); // too old
        assert!((&mut wait).now_or_never().is_none());
        freshness.shown(Evidence::At(Time(9_000)), Time(10_000));
        assert!(wait.now_or_never().is_some());
        assert!(freshness.when_fresh(Time(10_000)).now_or_never().is_some());
        assert!(freshness.when_fresh(Time(14_000)).now_or_never().is_none());
    }

    #[test]
    fn what_the_store_showed_counts_under_the_lease_of_that_time_only() {
        let (freshness, store) = leased(500, 3_000);
        freshness.store_showed(Time(1_000), Time(1_000));
        assert_eq!((freshness.until(), freshness.is_fresh(Time(2_999))), (Time(3_000), true));
        assert!(!freshness.is_fresh(Time(3_000)), "the lease may be gone");
        // The same lease lives on.
        *store.lease.lock() = (Time(500), Time(10_000));
        assert!(freshness.is_fresh(Time(5_999)) && !freshness.is_fresh(Time(6_000)));
        // Another one: between them its registration may have been gone.
        *store.lease.lock() = (Time(4_000), Time(14_000));
        assert!(!freshness.is_fresh(Time(4_500)));
        freshness.store_showed(Time(4_600), Time(4_600));
        assert!(freshness.is_fresh(Time(9_599)));
        // The others' word needs no lease.
        *store.lease.lock() = (Time(4_000), Time(0));
        assert!(!freshness.is_fresh(Time(4_700)));
        freshness.shown(Evidence::At(Time(4_600)), Time(4_700));
        assert!(freshness.is_fresh(Time(9_599)));
    }
}
