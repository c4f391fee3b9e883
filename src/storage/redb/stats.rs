//! Counters of a journal; read by whoever reports them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a [`RedbJournal`](super::RedbJournal) has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Batches made durable.
    pub commits: u64,
    /// Batches in which everything cancelled out, so that nothing had to be written.
    pub commits_void: u64,
    /// Changes made durable.
    pub changes: u64,
    /// Rows that came and went within a batch and were never written.
    pub rows_elided: u64,
    /// Bytes of changes made durable.
    pub bytes: u64,
    /// Changes in the last batch.
    pub batch_changes_last: u64,
    /// How long the last commit took, microseconds.
    pub commit_us_last: u64,
    /// How long all commits took, microseconds.
    pub commit_us_total: u64,
    /// Commits that failed and were tried again.
    pub commits_failed: u64,
    /// Commits that took so long that the disk was taken to hang.
    pub stalls: u64,
    /// Bytes of changes waiting to be committed.
    pub pending_bytes: u64,
    /// Messages read back.
    pub messages_read: u64,
    /// Messages that could not be decoded when read back.
    pub messages_unreadable: u64,
}

/// One commit that was made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Changes in it.
    pub changes: u64,
    /// How long it took, the write to disk included, microseconds.
    pub took_us: u64,
}

/// Is told of every commit, on the writer's thread: it must be quick and must not call the journal.
#[derive(Clone)]
pub struct Observer(pub Arc<dyn Fn(&Commit) + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// The counters behind [`JournalStats`].
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: Counter,
    pub(super) commits_void: Counter,
    pub(super) changes: Counter,
    pub(super) rows_elided: Counter,
    pub(super) bytes: Counter,
    pub(super) batch_changes_last: Counter,
    pub(super) commit_us_last: Counter,
    pub(super) commit_us_total: Counter,
    pub(super) commits_failed: Counter,
    pub(super) stalls: Counter,
    pub(super) pending_bytes: Counter,
    pub(super) messages_read: Counter,
    pub(super) messages_unreadable: Counter,
}

/// A number that many threads read.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn snapshot(&self) -> JournalStats {
        JournalStats {
            commits: self.commits.get(),
            commits_void: self.commits_void.get(),
            changes: self.changes.get(),
            rows_elided: self.rows_elided.get(),
            bytes: self.bytes.get(),
            batch_changes_last: self.batch_changes_last.get(),
            commit_us_last: self.commit_us_last.get(),
            commit_us_total: self.commit_us_total.get(),
            commits_failed: self.commits_failed.get(),
            stalls: self.stalls.get(),
            pending_bytes: self.pending_bytes.get(),
            messages_read: self.messages_read.get(),
            messages_unreadable: self.messages_unreadable.get(),
        }
    }
}
