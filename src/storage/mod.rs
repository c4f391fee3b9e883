//! Where sessions, queues and retained messages are kept: two journals behind [`crate::broker::ports::Journal`].
//!
//! [`RedbJournal`] keeps them in a file and survives crashes; [`MemoryJournal`] forgets everything with the process. Nothing
//! here knows MQTT's rules or decides what to store: it keeps what it is told, in order, and gives it back.

#[cfg(test)]
mod conformance;
mod error;
mod memory;
mod migrate;
#[cfg(test)]
mod model;
mod record;
#[cfg(test)]
mod record_tests;
mod redb;
mod wakers;
mod wire;

pub use error::OpenError;
pub use memory::{MemoryJournal, MemoryOptions};
pub use record::{RecordError, fuzz_decode};
pub use redb::{Commit, JOURNAL_FILE, JournalStats, Observer, RedbJournal, RedbOptions};
