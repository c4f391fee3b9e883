//! The only reader of time. Everything else is handed a [`Time`].
//!
//! A [`Time`] is comparable across restarts (it starts from the wall clock) and never goes backwards within a
//! process (it advances by the boot-time clock, which counts suspended time).

use std::sync::OnceLock;
use std::time::Duration;

/// A moment: milliseconds since the UNIX epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds since the UNIX epoch.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// This moment plus `ms` milliseconds, saturating.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }

    /// This moment less `ms` milliseconds, saturating.
    #[must_use]
    pub fn minus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_sub(ms))
    }

    /// This moment plus `s` seconds, saturating.
    #[must_use]
    pub fn plus_secs(self, s: u64) -> Time {
        self.plus_ms(s.saturating_mul(1000))
    }

    /// Milliseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub fn since_ms(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How long from this moment until `later`; zero if it has passed.
    pub fn until(self, later: Time) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

struct Anchor {
    wall_ms: u64,
    boot_ms: u64,
}

fn boot_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// The moment `t` on the runtime's clock, for arming timers.
#[allow(clippy::disallowed_methods)] // see `now`
pub fn instant(t: Time) -> std::time::Instant {
    std::time::Instant::now() + now().until(t).min(Duration::from_secs(86_400))
}

/// The current time.
#[allow(clippy::disallowed_methods)] // this is the one place that reads a clock
pub fn now() -> Time {
    static ANCHOR: OnceLock<Anchor> = OnceLock::new();
    let anchor = ANCHOR.get_or_init(|| Anchor {
        wall_ms: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        boot_ms: boot_ms(),
    });
    Time(anchor.wall_ms.saturating_add(boot_ms().saturating_sub(anchor.boot_ms)))
}

/// Microseconds of the monotonic clock, from an unspecified start: to measure how long something takes.
pub fn monotonic_us() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000).saturating_add(nanos / 1000)
}
