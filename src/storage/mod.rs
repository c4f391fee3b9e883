//! Where sessions, queues and retained messages are kept: two journals behind [`crate::broker::ports::Journal`].
//!
//! [`MemoryJournal`] forgets everything with the process. Nothing here knows MQTT's rules, reads a clock or decides what
//! to store: it keeps what it is told, in order, and gives it back.

mod memory;
mod wakers;

pub use memory::{MemoryJournal, MemoryOptions};
