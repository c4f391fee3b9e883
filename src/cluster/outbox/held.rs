//! How much waits for other nodes.

use super::entry::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many publishes wait, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Count {
    publishes: AtomicUsize,
    bytes: AtomicUsize,
}

impl Count {
    pub fn add(&self, bytes: usize) {
        self.publishes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn sub(&self, bytes: usize) {
        self.publishes.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn get(&self) -> (usize, usize) {
        (self.publishes.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Publishes that wait. Each kind has the whole limit for itself: a node that is gone does not slow down publishers of what others
/// get.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Publishes that wait for nodes that can be asked, or to be matched.
    pub here: Count,
    /// Publishes that wait for nodes that are away.
    pub away: Count,
}

impl Held {
    /// The count that a publish belongs to.
    pub fn of(&self, entry: &Entry) -> &Count {
        if entry.counted_away { &self.away } else { &self.here }
    }

    /// Counts a publish anew: it waits for a node that is away now, or does not any more.
    pub fn recount(&self, entry: &mut Entry) {
        if entry.orphaned() != entry.counted_away {
            self.of(entry).sub(entry.size());
            entry.counted_away = !entry.counted_away;
            self.of(entry).add(entry.size());
        }
    }
}
