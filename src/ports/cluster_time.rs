//! The cluster's time as one process knows it: what a moment in the store is counted in. It runs as fast as the process's own clock and is
//! ahead of it by so much, or behind.

use crate::clock::Time;
use crate::mqtt::Message;
use crate::mqtt::message::Parts;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Moments that are no further apart count as the same, milliseconds: the measurement is not better, and a message is not copied for that.
const SAME_MS: i64 = 20;

/// How long a message lasts at least whose expiry cannot be judged yet, milliseconds.
const UNJUDGED_MS: u64 = 1_000;

/// The cluster's time as one process knows it. Shared by all that read moments from the store or write them.
#[derive(Debug, Default)]
pub struct ClusterTime {
    ahead_ms: AtomicI64,
    known: AtomicBool,
    /// By the own clock.
    young_until_ms: AtomicU64,
}

impl ClusterTime {
    /// A time that is not known yet: the own clock is the best guess.
    pub fn unknown() -> ClusterTime {
        ClusterTime::default()
    }

    /// The time of a process without others: its own clock.
    pub fn own_clock() -> ClusterTime {
        ClusterTime { known: AtomicBool::new(true), ..ClusterTime::default() }
    }

    /// Sets by how much the cluster's time is ahead of the own clock, milliseconds; `known`: that was measured, and is no guess.
    pub fn set(&self, ahead_ms: i64, known: bool) {
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
        // Once known it stays so.
        if known {
            self.known.store(true, Ordering::Release);
        }
    }

    /// By how much the cluster's time is ahead of the own clock, milliseconds.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Makes the time young ([`ClusterTime::young_ms`]) until then, by the own clock.
    pub fn be_young(&self, until: Time) {
        self.young_until_ms.store(until.0, Ordering::Relaxed);
    }

    /// For how long, `now` by the own clock, the time is young: made of fewer than three clocks, it gives way at once to the median of three
    /// or more, milliseconds.
    pub fn young_ms(&self, now: Time) -> u64 {
        self.young_until_ms.load(Ordering::Relaxed).saturating_sub(now.0)
    }

    /// Whether the cluster's time is known; until then nothing in etcd expires.
    pub fn known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    /// The moment of the cluster by which what is in the store is judged; `None` = nothing of it may expire yet.
    pub fn judged_at(&self, own: Time) -> Option<Time> {
        self.known().then(|| self.cluster(own))
    }

    /// A moment of the own clock in the cluster's time.
    pub fn cluster(&self, own: Time) -> Time {
        Time(own.0.saturating_add_signed(self.ahead_ms()).max(1))
    }

    /// A moment of the cluster's time by the own clock.
    pub fn own(&self, cluster: Time) -> Time {
        Time(cluster.0.saturating_add_signed(self.ahead_ms().saturating_neg()).max(1))
    }

    /// A message of the store, whose expiry is in the cluster's time, as this process handles it `now`.
    pub fn message(&self, stored: &Message, now: Time) -> Message {
        let Some(expires_at) = stored.expires_at() else { return stored.clone() };
        let known = self.known();
        if known && self.ahead_ms().abs() <= SAME_MS {
            return stored.clone();
        }
        let mut own = self.own(expires_at);
        if !known {
            own = own.max(now.plus_ms(UNJUDGED_MS));
        }
        Message::new(Parts { expires_at: Some(own), ..stored.parts() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::QoS;

    fn message(expires_at: Option<Time>) -> Message {
        let (topic, payload, properties) = ("a/b", &b"body"[..], &[1, 1][..]);
        Message::new(Parts { topic, payload, properties, qos: QoS::AtLeastOnce, retain: true, expires_at })
    }

    #[test]
    fn moments_go_there_and_back() {
        // By how much the cluster is ahead, a moment of the own clock, and the same in the cluster's time.
        for (ahead, own, cluster) in [(0, 50, 50), (30, 50, 80), (-30, 50, 20), (i64::MAX, 5, 1 << 63)] {
            let time = ClusterTime::unknown();
            assert_eq!((time.known(), time.judged_at(Time(own))), (false, None));
            time.set(ahead, true);
            assert_eq!(time.cluster(Time(own)).0, if ahead == i64::MAX { cluster + 4 } else { cluster });
            assert_eq!(time.own(time.cluster(Time(own))), Time(own));
            assert_eq!(time.judged_at(Time(own)), Some(time.cluster(Time(own))));
        }
        let behind = ClusterTime::unknown();
        behind.set(-500, true);
        assert_eq!(behind.cluster(Time(100)), Time(1), "a moment of 0 would mean never");
        behind.set(7, false);
        assert!(behind.known(), "it stays known");
    }

    #[test]
    fn a_message_of_the_store_expires_by_the_own_clock() {
        let (now, at) = (Time(1_000_000), Time(1_060_000));
        // Ahead, known, and when the message expires by the own clock.
        let cases = [
            (0, true, 1_060_000),
            (SAME_MS, true, 1_060_000),
            (30_000, true, 1_030_000),
            (-30_000, true, 1_090_000),
            (90_000, true, 970_000),
            // Nothing expires before the clocks were measured.
            (90_000, false, 1_001_000),
            (-30_000, false, 1_090_000),
        ];
        for (ahead, known, expires) in cases {
            let time = ClusterTime::unknown();
            time.set(ahead, known);
            let came = time.message(&message(Some(at)), now);
            assert_eq!(came.expires_at(), Some(Time(expires)), "{ahead} ms ahead, known: {known}");
            assert_eq!(came, message(Some(Time(expires))), "all else stays");
            assert_eq!(time.message(&message(None), now), message(None));
        }
    }
}
