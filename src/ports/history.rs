//! What a journal knows of its own past: by that a copy of it is told from the journal itself.

/// How many starts a journal remembers.
pub const STARTS_KEPT: usize = 1024;

/// A start of a node of a cluster on a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalStart {
    /// A random number, never 0, in the journal before it is in the cluster's store.
    pub stamp: u64,
    /// How far the journal had come before this start.
    pub from: u64,
}

/// The last starts on a journal, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The starts that are remembered, oldest first: at most [`STARTS_KEPT`].
    pub starts: Vec<JournalStart>,
    /// How many starts there were, forgotten ones included.
    pub count: u64,
    /// Batches that became durable in the journal's whole life (since it counts them).
    pub position: u64,
}

/// The start that goes on with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// The stamp of this start, durable in the journal.
    pub stamp: u64,
    /// Which start of the journal it is, from 1.
    pub number: u64,
}
