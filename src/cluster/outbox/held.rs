//! How much waits for other nodes.

use super::entry::Entry;

/// How many publishes wait, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Publishes.
    pub publishes: usize,
    /// Bytes of their messages, and what the outbox needs for each.
    pub bytes: usize,
}

/// Publishes that wait. Each kind has the whole limit for itself: a node that is gone does not slow down publishers of what others
/// get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Publishes that wait for nodes that can be asked, or to be matched.
    pub here: Count,
    /// Publishes that wait for nodes that are away.
    pub away: Count,
}

impl Held {
    fn of(&mut self, entry: &Entry) -> &mut Count {
        if entry.counted_away { &mut self.away } else { &mut self.here }
    }

    /// Counts a publish in.
    pub fn add(&mut self, entry: &Entry) {
        let count = self.of(entry);
        count.publishes += 1;
        count.bytes += entry.size();
    }

    /// Counts a publish out.
    pub fn sub(&mut self, entry: &Entry) {
        let count = self.of(entry);
        count.publishes -= 1;
        count.bytes -= entry.size();
    }

    /// Counts a publish anew if it waits for a node that is away now, or does not any more. Whether that is so.
    pub fn recount(&mut self, entry: &mut Entry) -> bool {
        if entry.orphaned() == entry.counted_away {
            return false;
        }
        self.sub(entry);
        entry.counted_away = !entry.counted_away;
        self.add(entry);
        true
    }
}
