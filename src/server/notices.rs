//! What the log says of clients that are turned away: once for each kind, then at most once a minute, with how many there were.

use crate::clock::Time;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Turned;
use parking_lot::Mutex;
use std::fmt::Display;
use std::net::SocketAddr;

/// Between two lines about the same kind, milliseconds.
const BETWEEN_MS: u64 = 60_000;

/// Kinds of [`Turned`].
const KINDS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    said_at: Option<Time>,
    since: u64,
}

/// Of one listener.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<[Kind; KINDS]>);

impl Notices {
    /// Whether a line is due for one more of this kind `now`, and how many there were without one.
    fn due(&self, kind: Turned, now: Time) -> Option<u64> {
        let mut kinds = self.0.lock();
        let kind = kinds.get_mut(kind as usize)?;
        if kind.said_at.is_some_and(|at| now.since_ms(at) < BETWEEN_MS) {
            kind.since += 1;
            return None;
        }
        kind.said_at = Some(now);
        Some(std::mem::take(&mut kind.since))
    }

    /// Counts one and has the log say it, if it is time.
    pub(super) fn turned(
        &self,
        metrics: &Metrics,
        listener: &str,
        peer: SocketAddr,
        kind: Turned,
        why: &dyn Display,
        now: Time,
    ) {
        metrics.turned_away.of(kind).inc();
        match self.due(kind, now) {
            Some(unsaid) => {
                tracing::info!(listener, %peer, ?kind, %why, unsaid, "client turned away or slowed down")
            }
            None => tracing::debug!(listener, %peer, ?kind, %why, "client turned away or slowed down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Label;

    #[test]
    fn one_line_a_minute_for_each_kind() {
        let notices = Notices::default();
        let at = |s: u64| Time(1_600_000_000_000).plus_secs(s);
        assert_eq!(notices.due(Turned::Tls, at(0)), Some(0));
        assert_eq!(notices.due(Turned::Tls, at(1)), None);
        assert_eq!(notices.due(Turned::Proxy, at(2)), Some(0));
        assert_eq!(notices.due(Turned::Tls, at(59)), None);
        assert_eq!(notices.due(Turned::Tls, at(60)), Some(2));
        assert_eq!(notices.due(Turned::Tls, at(61)), None);
        assert_eq!(Turned::VALUES.len(), KINDS);
    }
}
