//! How far another node's clock is ahead, from what it shows when it answers pings.

use super::proto::Pong;
use crate::clock::Time;
use crate::ports::{Incarnation, LinkClock, PeerClock};
use std::collections::VecDeque;

/// Answers that are kept: the one that was fastest is the most exact.
const SAMPLES_MAX: usize = 16;

/// Answers that come one right after the other when a process answers first.
const SAMPLES_SOON: usize = 4;

/// One answer.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ahead_ms: i64,
    rtt_us: u64,
}

/// What the answers of one process tell.
#[derive(Debug, Default)]
pub(super) struct ClockSamples {
    of: Incarnation,
    samples: VecDeque<Sample>,
    cluster_ahead_ms: Option<i64>,
    cluster_young_ms: u64,
    untold: bool,
}

impl ClockSamples {
    /// The process `of` answers from now on; what another one said is void.
    pub(super) fn begin(&mut self, of: Incarnation) {
        if self.of != of {
            *self = ClockSamples { of, ..ClockSamples::default() };
        }
    }

    /// A ping was answered after so long, `now`. True if another one is to follow at once.
    pub(super) fn answered(&mut self, pong: &Pong, rtt_us: u64, now: Time) -> bool {
        let Some(shown) = pong.clock_ms else {
            self.untold = self.samples.is_empty();
            return false;
        };
        self.cluster_ahead_ms = pong.cluster_ahead_ms;
        self.cluster_young_ms = pong.cluster_young_ms.unwrap_or(0);
        let then = shown.saturating_add(rtt_us / 2_000);
        let by = i64::try_from(then.abs_diff(now.0)).unwrap_or(i64::MAX);
        let ahead_ms = if then < now.0 { by.saturating_neg() } else { by };
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { ahead_ms, rtt_us });
        self.samples.len() < SAMPLES_SOON
    }

    /// Whether the process answers with its clock and does not know the cluster's time yet.
    pub(super) fn lacks_time(&self) -> bool {
        !self.samples.is_empty() && self.cluster_ahead_ms.is_none()
    }

    /// What is known by now.
    pub(super) fn clock(&self) -> LinkClock {
        let Some(best) = self.samples.iter().min_by_key(|s| s.rtt_us) else {
            return if self.untold { LinkClock::Untold } else { LinkClock::Unmeasured };
        };
        LinkClock::Measured(PeerClock {
            incarnation: self.of,
            ahead_ms: best.ahead_ms,
            // Both clocks are read to the millisecond.
            error_ms: best.rtt_us.div_ceil(2_000) + 1,
            cluster_ahead_ms: self.cluster_ahead_ms,
            cluster_young_ms: self.cluster_young_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pong(clock_ms: Option<u64>, cluster_ahead_ms: Option<i64>) -> Pong {
        Pong { unreachable: None, clock_ms, cluster_ahead_ms, cluster_young_ms: cluster_ahead_ms.map(|_| 9) }
    }

    #[test]
    fn the_fastest_of_the_last_answers_counts() {
        let mut samples = ClockSamples::default();
        samples.begin(7);
        assert_eq!(samples.clock(), LinkClock::Unmeasured);
        // What it shows, after how many microseconds that came, this clock then; and by how much it is ahead and the error.
        let answers = [
            (1_000_000, 400_000, 970_200, (30_000, 201)),
            (1_001_000, 2_000, 971_003, (29_998, 2)),
            (1_002_000, 100_000, 972_100, (29_998, 2)),
            (1_003_000, 1_000, 973_000, (30_000, 2)),
        ];
        for (i, (shown, rtt_us, now, expected)) in answers.into_iter().enumerate() {
            assert!(!samples.lacks_time());
            let again = samples.answered(&pong(Some(shown), Some(-5)), rtt_us, Time(now));
            assert_eq!(again, i + 1 < SAMPLES_SOON);
            let (ahead_ms, error_ms) = expected;
            let cluster_ahead_ms = Some(-5);
            let clock =
                PeerClock { incarnation: 7, ahead_ms, error_ms, cluster_ahead_ms, cluster_young_ms: 9 };
            assert_eq!(samples.clock(), LinkClock::Measured(clock));
        }
        // Its clock was moved on by something; the old answers go in time.
        for _ in 0..SAMPLES_MAX {
            samples.answered(&pong(Some(1_000), None), 5_000, Time(61_002));
        }
        assert!(samples.lacks_time());
        let (ahead_ms, error_ms) = (-60_000, 4);
        let clock =
            PeerClock { incarnation: 7, ahead_ms, error_ms, cluster_ahead_ms: None, cluster_young_ms: 0 };
        assert_eq!(samples.clock(), LinkClock::Measured(clock));
        samples.begin(7);
        assert_eq!(samples.clock(), LinkClock::Measured(clock), "the same process is linked again");
        samples.begin(8);
        assert_eq!(samples.clock(), LinkClock::Unmeasured);
        assert!(!samples.answered(&pong(None, None), 1_000, Time(5)));
        assert_eq!(samples.clock(), LinkClock::Untold);
    }

    #[test]
    fn no_answer_is_too_strange() {
        for (shown, now) in [(u64::MAX, 0), (0, u64::MAX), (0, 0)] {
            let mut samples = ClockSamples::default();
            samples.answered(&pong(Some(shown), Some(i64::MIN)), u64::MAX, Time(now));
            assert!(matches!(samples.clock(), LinkClock::Measured(_)));
        }
    }
}
