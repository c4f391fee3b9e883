//! Records of the cluster's directory on their way from the store to whoever gives them a meaning, and into the journal, where the next
//! process of this node finds them as they were last seen.

use super::{Cluster, Remote};
use crate::ports::{Change, DirectoryOutcome, IndexEvent};

impl Cluster {
    /// Hands the records among `events` on.
    pub(super) fn take_directory(&self, remote: &Remote, events: &[IndexEvent]) {
        let changes: Vec<Change<'_>> = events
            .iter()
            .filter_map(|event| match event {
                IndexEvent::Directory { key, value } => Some((key, value.as_deref())),
                _ => None,
            })
            .filter(|(key, value)| remote.ports.directory.apply(key, *value) == DirectoryOutcome::Changed)
            .map(|(key, value)| Change::Directory { key, value })
            .collect();
        if !changes.is_empty() {
            self.broker.journal.append(&changes);
        }
    }

    /// A snapshot is complete.
    pub(super) fn end_directory(&self, remote: &Remote) {
        let gone = remote.ports.directory.end_snapshot();
        let changes: Vec<Change<'_>> =
            gone.iter().map(|key| Change::Directory { key, value: None }).collect();
        if !changes.is_empty() {
            self.broker.journal.append(&changes);
        }
    }
}
