//! Where sessions, queues and retained messages are kept: two journals behind [`crate::ports::Journal`].
//!
//! [`RedbJournal`] keeps them in a file and survives crashes; [`MemoryJournal`] forgets everything with the process. Nothing
//! here knows MQTT's rules or decides what to store: it keeps what it is told, in order, and gives it back.

mod cluster_rows;
#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod conformance;
mod error;
mod memory;
mod migrate;
#[cfg(test)]
mod model;
mod order;
mod record;
#[cfg(test)]
mod record_tests;
mod redb;
mod session_rows;
mod wakers;
mod wire;

pub use error::OpenError;
pub use memory::{MemoryJournal, MemoryOptions};
pub use record::{RecordError, fuzz_decode};
pub use redb::{Commit, FoundJournal, JOURNAL_FILE, JournalStats, Observer, RedbJournal, RedbOptions};

/// A random number that names a journal: never 0, and never the same twice but for one chance in 2^64.
fn random_name() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The keys of the standard library's hashers are what the operating system has of randomness, and then ascending.
    RandomState::new().hash_one(crate::clock::monotonic_us()).max(1)
}
