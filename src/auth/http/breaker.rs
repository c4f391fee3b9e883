//! Leaves a hook alone that fails: clients are refused at once, and now and then one asks whether it is back.

use crate::clock::Time;
use parking_lot::Mutex;

/// Failures in a row after which it is left alone.
const FAILURES: u32 = 5;

/// For how long at first, milliseconds; each time twice as long.
const PAUSE_MS: u64 = 1_000;

/// The longest such pause, milliseconds.
const PAUSE_LONGEST_MS: u64 = 30_000;

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// While it is left alone: until when, and for how long this time.
    open: Option<(Time, u64)>,
}

/// Leaves a hook alone that fails: clients are refused at once, and now and then one asks whether it is back.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Whether the hook may be asked now.
    pub fn lets_through(&self, now: Time) -> bool {
        let mut state = self.0.lock();
        match &mut state.open {
            None => true,
            Some((until, _)) if now < *until => false,
            Some((until, pause)) => {
                // This one asks; others wait for what it hears.
                *until = now.plus_ms(*pause);
                true
            }
        }
    }

    /// How it went.
    pub fn outcome(&self, ok: bool, now: Time) {
        let mut state = self.0.lock();
        if ok {
            state.failures = 0;
            if state.open.take().is_some() {
                tracing::info!("the HTTP hook answers again (auth.http.url)");
            }
            return;
        }
        state.failures = state.failures.saturating_add(1);
        let failures = state.failures;
        match &mut state.open {
            Some((until, pause)) => {
                *pause = (*pause * 2).min(PAUSE_LONGEST_MS);
                *until = now.plus_ms(*pause);
            }
            None if failures >= FAILURES => {
                state.open = Some((now.plus_ms(PAUSE_MS), PAUSE_MS));
                tracing::error!(
                    failures,
                    "the HTTP hook fails and is left alone for a moment: clients that it has to decide about are refused (auth.http.url)"
                );
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_fails_is_left_alone_and_asked_again() {
        let (breaker, at) = (Breaker::default(), |ms: u64| Time(1_000_000 + ms));
        for _ in 0..FAILURES - 1 {
            breaker.outcome(false, at(0));
        }
        breaker.outcome(true, at(0));
        for n in 0..FAILURES {
            assert!(breaker.lets_through(at(0)), "{n}");
            breaker.outcome(false, at(0));
        }
        assert!(!breaker.lets_through(at(999)));
        assert!(breaker.lets_through(at(1_000)) && !breaker.lets_through(at(1_000)), "one asks");
        breaker.outcome(false, at(1_100));
        assert!(!breaker.lets_through(at(3_099)) && breaker.lets_through(at(3_100)));
        for n in 0..20 {
            breaker.outcome(false, at(n));
        }
        assert!(breaker.lets_through(at(20 + PAUSE_LONGEST_MS)));
        breaker.outcome(true, at(40_000));
        assert!(breaker.lets_through(at(40_000)) && breaker.lets_through(at(40_000)));
    }
}
