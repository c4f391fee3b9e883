//! Waiting for conditions: the only place in the tests that lets time pass.

use berth::clock::{self, Time};
use std::time::Duration;

/// How long anything may take before a test gives up; far beyond what it takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition that cannot be waited for otherwise.
const LOOK: Duration = Duration::from_millis(2);

/// When patience ends that begins now.
pub fn deadline() -> Time {
    clock::now().plus_ms(PATIENCE.as_millis() as u64)
}

/// Looks until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = deadline();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(LOOK);
    }
}

/// Looks until `look` says true.
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}
