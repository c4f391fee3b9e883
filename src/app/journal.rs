//! Opens the journal that the configuration asks for.

use super::RunError;
use crate::broker::ports::{Journal, Recovered};
use crate::config::{Config, StorageType};
use crate::storage::{MemoryJournal, MemoryOptions, Observer, RedbJournal, RedbOptions};
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
}

pub(super) fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<(JournalKind, Recovered), RunError> {
    let storage = &config.storage;
    match storage.kind {
        StorageType::Memory => {
            tracing::warn!("storage.type is memory: everything is lost when the process ends");
            let journal = MemoryJournal::new(MemoryOptions { max_bytes: storage.memory_max as u64 });
            let recovered = Recovered { journal: journal.name(), ..Recovered::default() };
            Ok((JournalKind::Memory(journal), recovered))
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
            let (journal, recovered) = RedbJournal::open(options)?;
            Ok((JournalKind::Redb(journal), recovered))
        }
    }
}
