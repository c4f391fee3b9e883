//! Finds and opens the journal that the configuration asks for.

use super::RunError;
use crate::config::{Config, StorageType};
use crate::ports::{Journal, Recovered, Stamped};
use crate::storage::{FoundJournal, MemoryJournal, MemoryOptions, Observer, RedbJournal, RedbOptions};
use crate::telemetry::Metrics;
use std::sync::Arc;

/// The journal by kind: the port does not show what only one of them has.
#[derive(Clone)]
pub(super) enum JournalKind {
    Redb(Arc<RedbJournal>),
    Memory(Arc<MemoryJournal>),
}

impl JournalKind {
    pub(super) fn port(&self) -> Arc<dyn Journal> {
        match self {
            JournalKind::Redb(j) => j.clone(),
            JournalKind::Memory(j) => j.clone(),
        }
    }

    /// How far it has come in its whole life, durably; 0 if that ends with the process.
    pub(super) fn position(&self) -> u64 {
        match self {
            JournalKind::Redb(j) => j.position(),
            JournalKind::Memory(_) => 0,
        }
    }
}

/// A journal that was read and that this process has not changed yet.
pub(super) enum FoundKind {
    Redb(Box<FoundJournal>),
    Memory(Arc<MemoryJournal>, Box<Recovered>),
}

impl FoundKind {
    /// What the journal holds.
    pub(super) fn recovered(&self) -> &Recovered {
        match self {
            FoundKind::Redb(found) => found.recovered(),
            FoundKind::Memory(_, recovered) => recovered,
        }
    }

    /// Goes on with it; with `stamp` this start is told from others of the journal, if there can be others.
    pub(super) fn begin(self, stamp: bool) -> Result<(JournalKind, Recovered, Option<Stamped>), RunError> {
        match self {
            FoundKind::Redb(found) => {
                let (journal, recovered, stamped) = found.begin(stamp)?;
                Ok((JournalKind::Redb(journal), recovered, stamped))
            }
            FoundKind::Memory(journal, recovered) => Ok((JournalKind::Memory(journal), *recovered, None)),
        }
    }
}

/// Reads the journal, making it if there is none.
pub(super) fn find(config: &Config, metrics: &Arc<Metrics>) -> Result<FoundKind, RunError> {
    let storage = &config.storage;
    match storage.kind {
        StorageType::Memory => {
            tracing::warn!("storage.type is memory: everything is lost when the process ends");
            let journal = MemoryJournal::new(MemoryOptions { max_bytes: storage.memory_max as u64 });
            let recovered = Recovered { journal: journal.name(), ..Recovered::default() };
            Ok(FoundKind::Memory(journal, Box::new(recovered)))
        }
        StorageType::Redb => {
            let dir = storage.dir.clone();
            std::fs::create_dir_all(&dir)
                .map_err(|source| RunError::DataDir { path: dir.clone(), source })?;
            let metrics = metrics.clone();
            let observer = Observer(Arc::new(move |commit| {
                metrics.journal_commits.inc();
                metrics.journal_commit_changes.record(commit.changes as f64);
                metrics.journal_commit_seconds.record(commit.took_us as f64 / 1e6);
            }));
            let options = RedbOptions {
                dir,
                observer: Some(observer),
                cache_bytes: storage.cache,
                max_pending_bytes: storage.max_pending,
                stall_timeout: storage.stall_timeout,
                ..RedbOptions::default()
            };
            Ok(FoundKind::Redb(Box::new(FoundJournal::find(options)?)))
        }
    }
}
