//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// Pauses between the tries of one task, each up to twice as long as the one before it. Each pause is drawn at random from its
/// upper half, so that those who were stopped by the same outage do not all come back at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses that begin with at most `first` and grow to at most `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, next: first }
    }

    /// Pauses of at most `longest`, from the first one on.
    pub const fn steady(longest: Duration) -> Backoff {
        Backoff::new(longest, longest)
    }

    /// The pause before the next try.
    pub fn pause(&mut self) -> Duration {
        let half = self.next / 2;
        self.next = (self.next * 2).min(self.longest);
        half + half.mul_f64(fastrand::f64())
    }

    /// A try has succeeded: the next pause is as short as the first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_none_is_shorter_than_its_half() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(50), ms(300));
        for round in 0..2 {
            for full in [50, 100, 200, 300, 300] {
                let pause = backoff.pause();
                assert!(ms(full / 2) <= pause && pause <= ms(full), "round {round}: {pause:?} of {full}");
            }
            backoff.reset();
        }
        let mut steady = Backoff::steady(ms(20));
        let pauses: Vec<_> = (0..100).map(|_| steady.pause()).collect();
        assert!(pauses.iter().all(|p| (ms(10)..=ms(20)).contains(p)));
        assert!(pauses.iter().any(|p| *p != pauses[0]), "two nodes do not keep step");
    }
}
