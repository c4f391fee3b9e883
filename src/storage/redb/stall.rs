//! A disk that hangs gives no error: a commit that does not come to an end is noticed by its age.

use super::shared::Shared;
use crate::clock;
use parking_lot::{Condvar, Mutex};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Between two looks at the age.
const LOOKS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(250);

/// While it lasts it is said again so often.
const REMIND_US: u64 = 60_000_000;

/// The age of the commit under way, by which a disk that hangs is noticed.
#[derive(Default)]
pub(super) struct Stall {
    /// When the commit under way was begun, monotonic microseconds; 0 = there is none.
    began: AtomicU64,
    stalled: AtomicBool,
    closed: Mutex<bool>,
    closing: Condvar,
}

impl Stall {
    /// Does the writer's work with the disk for a batch, whose changes are older than all others that wait.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.began.store(clock::monotonic_us().max(1), Ordering::Release);
        let done = work();
        self.began.store(0, Ordering::Release);
        done
    }

    /// For how long the commit under way has been so, microseconds; 0 if there is none.
    pub(super) fn age_us(&self) -> u64 {
        match self.began.load(Ordering::Acquire) {
            0 => 0,
            began => clock::monotonic_us().saturating_sub(began),
        }
    }

    /// Whether that is too long; as of the last look.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// Ends [`watch`].
    pub(super) fn close(&self) {
        *self.closed.lock() = true;
        self.closing.notify_all();
    }

    /// Waits for the next look; false when there is to be none.
    fn pause(&self, every: Duration) -> bool {
        let mut closed = self.closed.lock();
        if !*closed {
            self.closing.wait_for(&mut closed, every);
        }
        !*closed
    }
}

/// What an operator is told of a stall.
pub(super) fn said(shared: &Shared) -> String {
    format!(
        "journal {:?} hangs: its oldest commit has been under way for {:.1} s: check the disk, its controller or network, and the \
         kernel's log; what was accepted is kept, and the broker goes on by itself once the disk answers",
        shared.medium.path(),
        shared.stall.age_us() as f64 / 1e6
    )
}

/// Looks at the age of the oldest commit until the journal is closed.
pub(super) fn watch(shared: &Shared) {
    let timeout = shared.options.stall_timeout;
    let limit_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
    let every = (timeout / 8).clamp(*LOOKS.start(), *LOOKS.end());
    let (mut since_us, mut said_us) = (0, 0);
    while shared.stall.pause(every) {
        let (now_us, age_us) = (clock::monotonic_us(), shared.stall.age_us());
        let stalled = age_us >= limit_us;
        if stalled && now_us.saturating_sub(said_us) >= REMIND_US {
            said_us = now_us;
            tracing::warn!("{}", said(shared));
        }
        if shared.stall.stalled.swap(stalled, Ordering::AcqRel) == stalled {
            continue;
        }
        if stalled {
            since_us = now_us.saturating_sub(age_us);
            shared.counters.stalls.add(1);
        } else {
            let seconds = now_us.saturating_sub(since_us) / 1_000_000;
            tracing::info!(path = %shared.medium.path().display(), seconds, "the journal's disk answers again");
            said_us = 0;
        }
        // Whoever waits may want to know.
        shared.wakers.wake_all();
    }
}
