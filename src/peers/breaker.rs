//! The circuit breaker in front of requests to one node: after some failures in a row they fail at once, so that nobody
//! waits a full time-out for a node that does not answer anyway.

use crate::clock::Time;

/// The circuit breaker in front of requests to one node: after some failures in a row they fail at once, so that nobody waits a full
/// time-out for a node that does not answer anyway.
pub(super) struct Breaker {
    after: u32,
    pause_ms: u64,
    failures: u32,
    open_until: Time,
    probing: bool,
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// As always.
    Go,
    /// It is the one that finds out whether the node answers again; the others wait for its outcome.
    Probe,
    /// It fails at once.
    Stop,
}

impl Breaker {
    pub(super) fn new(after: u32, pause_ms: u64) -> Breaker {
        Breaker { after: after.max(1), pause_ms, failures: 0, open_until: Time(0), probing: false }
    }

    pub(super) fn pass(&mut self, now: Time) -> Pass {
        if self.failures < self.after {
            return Pass::Go;
        }
        if self.probing || now < self.open_until {
            return Pass::Stop;
        }
        self.probing = true;
        Pass::Probe
    }

    /// A request was answered.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
        self.probing = false;
    }

    /// A request was not answered in time.
    pub(super) fn failed(&mut self, now: Time) {
        self.failures = self.failures.saturating_add(1);
        self.probing = false;
        self.open_until = now.plus_ms(self.pause_ms);
    }

    /// The probe was given up without an outcome.
    pub(super) fn abandoned(&mut self) {
        self.probing = false;
    }

    /// Requests not answered in a row, if requests fail at once because of them.
    pub(super) fn open(&self) -> Option<u32> {
        (self.failures >= self.after).then_some(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_through_after_the_pause() {
        let mut breaker = Breaker::new(2, 1000);
        breaker.failed(Time(10));
        breaker.answered();
        breaker.failed(Time(20));
        assert_eq!(breaker.pass(Time(21)), Pass::Go, "one failure in a row");
        breaker.failed(Time(30));
        assert_eq!(breaker.open(), Some(2));
        assert_eq!(breaker.pass(Time(1029)), Pass::Stop);
        assert_eq!(breaker.pass(Time(1030)), Pass::Probe);
        assert_eq!(breaker.pass(Time(1030)), Pass::Stop, "one at a time");
        breaker.failed(Time(1040));
        assert_eq!(breaker.pass(Time(2039)), Pass::Stop, "a failed probe opens it again");
        assert_eq!(breaker.pass(Time(2040)), Pass::Probe);
        breaker.abandoned();
        assert_eq!(breaker.pass(Time(2041)), Pass::Probe, "a probe without outcome makes room for another");
        breaker.answered();
        assert_eq!(breaker.pass(Time(2042)), Pass::Go);
        assert_eq!(breaker.open(), None);
    }
}
