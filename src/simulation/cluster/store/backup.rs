//! Backups of the store, and what it is after one was put back.

use super::{Space, Store};
use crate::ports::Timeline;

/// What the store had at one time.
pub struct Backup(Space);

impl Store {
    /// What there is, to be put back later.
    pub fn backup(&self) -> Backup {
        Backup(self.look(Space::clone))
    }

    /// Puts the store back to a backup. No process may run. The first one that starts would notice and count it: it counts here.
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.0.state.lock();
        let generation = state.space.timeline.generation + 1;
        state.space = backup.0.restored(Timeline { generation, name: generation });
        state.seats.clear();
    }
}
