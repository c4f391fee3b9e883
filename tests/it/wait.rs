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
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_or(look, || what.to_owned())
}

/// The same; if it finds nothing, `what` says what was waited for, and what was there instead.
pub fn until_or<T>(mut look: impl FnMut() -> Option<T>, what: impl Fn() -> String) -> T {
    let deadline = deadline();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now() < deadline, "not within {PATIENCE:?}: {}", what());
        std::thread::park_timeout(LOOK);
    }
}

/// Looks until `look` says true.
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}

/// Waits until a process that was sent SIGSTOP has stopped: on a busy machine its other threads go on until one of them has
/// seen the signal.
pub fn until_stopped(pid: u32) {
    // The state follows the name, which is in parentheses.
    let stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    until_true("the process stops", || {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(stopped)
    });
}

/// The pace of a client that reads or writes slowly, as its test is about. Nothing is expected to have happened meanwhile.
pub fn pace(ms: u64) {
    let until = clock::now().plus_ms(ms);
    while clock::now() < until {
        std::thread::park_timeout(Duration::from_millis(until.since_ms(clock::now()).max(1)));
    }
}

/// As [`until`], for a look that has to wait for something itself.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = deadline();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(clock::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// As [`until_true`], for tasks that share a thread with what they wait for.
pub async fn becomes_true(what: &str, mut look: impl FnMut() -> bool) {
    eventually(what, || std::future::ready(look().then_some(()))).await;
}

/// How long a fault lasts, or what separates two, as the test's seed says. Nothing is expected to have happened when it ends.
pub async fn chaos(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
