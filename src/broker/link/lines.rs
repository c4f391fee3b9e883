//! How many lines of the log one client may cause: whoever breaks a limit does so again and again.

use crate::clock::Time;

/// Lines about refused publishes and messages not retained of one connection, within [`SPAN_MS`]. More are counted, and the next
/// line that is written says how many.
const LINES_MAX: u32 = 10;

/// See [`LINES_MAX`]; milliseconds.
const SPAN_MS: u64 = 60_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Time,
    written: u32,
    unsaid: u64,
}

impl Lines {
    /// Whether a line may be written at `now`: then how many were not since the last one.
    pub fn next(&mut self, now: Time) -> Option<u64> {
        if now.since_ms(self.since) >= SPAN_MS {
            (self.since, self.written) = (now, 0);
        }
        if self.written == LINES_MAX {
            self.unsaid += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_minute_and_the_next_says_how_many_were_left_out() {
        let (mut lines, start) = (Lines::default(), Time(1_000_000));
        for ms in 0..u64::from(LINES_MAX) {
            assert_eq!(lines.next(start.plus_ms(ms)), Some(0));
        }
        assert_eq!([100, SPAN_MS - 1].map(|ms| lines.next(start.plus_ms(ms))), [None, None]);
        assert_eq!(lines.next(start.plus_ms(SPAN_MS)), Some(2));
        assert_eq!(lines.next(start.plus_ms(SPAN_MS)), Some(0));
    }
}
