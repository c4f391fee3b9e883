//! The journal on disk: a log inside one redb file. State is the set of live rows; a row goes when nobody needs it.
//!
//! `gather` takes changes, `writer` commits them a batch at a time, `reader` reads messages back, `recover` scans the
//! file at start. See `docs/decisions/0002-journal-layout.md`. Never blocks who appends, never drops what was appended.

mod apply;
mod batch;
#[cfg(test)]
mod crash_tests;
mod directory;
#[cfg(test)]
mod fault_tests;
mod found;
mod gather;
mod index;
mod medium;
mod open;
#[cfg(test)]
mod open_tests;
mod reader;
mod recover;
#[cfg(test)]
mod rows_tests;
mod schema;
mod shared;
mod stall;
mod starts;
mod stats;
#[cfg(test)]
mod stress_tests;
#[cfg(test)]
mod testdisk;
mod writer;

pub use found::FoundJournal;
pub use stats::{Commit, JournalStats, Observer};

use super::error::OpenError;
use super::wakers::Wakers;
use crate::ports::{
    Change, Journal, JournalHealth, Lsn, ReadDone, Recovered, Seq, SessionNo, Stamped, StoreKnown,
};
use gather::Gather;
use parking_lot::{Condvar, Mutex, RwLock};
use shared::Shared;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;
use writer::Writer;

/// The name of the journal in the data directory.
pub const JOURNAL_FILE: &str = "journal.redb";

/// How a [`RedbJournal`] behaves.
#[derive(Clone, Debug)]
pub struct RedbOptions {
    /// The data directory; it must exist. One process at a time may use it.
    pub dir: PathBuf,
    /// Memory for pages of the file, bytes.
    pub cache_bytes: usize,
    /// Bytes of changes waiting to be committed beyond which the journal is congested.
    pub max_pending_bytes: usize,
    /// A batch of this many bytes is committed by itself and another begun: bounds what one commit takes in time and memory.
    pub max_batch_bytes: usize,
    /// A file of at least so many bytes is compacted at start if more than half of it is free.
    pub compact_min_bytes: u64,
    /// Threads that read messages back, at least 1.
    pub readers: usize,
    /// How long to wait before trying again a commit that failed the first time.
    pub retry_min: Duration,
    /// How long to wait at most; the wait doubles from attempt to attempt.
    pub retry_max: Duration,
    /// A commit that takes longer than this shows that the disk hangs.
    pub stall_timeout: Duration,
    /// Is told of every commit.
    pub observer: Option<Observer>,
}

impl Default for RedbOptions {
    fn default() -> RedbOptions {
        RedbOptions {
            dir: PathBuf::from("data"),
            cache_bytes: 64 << 20,
            max_pending_bytes: 64 << 20,
            max_batch_bytes: 8 << 20,
            compact_min_bytes: 64 << 20,
            readers: 2,
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(5),
            observer: None,
        }
    }
}

/// A journal in a redb file. Dropping it closes it.
pub struct RedbJournal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RedbJournal {
    /// Opens the journal in the data directory, making it if there is none; returns what it holds.
    ///
    /// # Errors
    /// If the directory is missing, in use or not writable, or if the file is another program's, newer than this program or
    /// damaged. Nothing is changed in a file that is refused.
    pub fn open(options: RedbOptions) -> Result<(Arc<RedbJournal>, Recovered), OpenError> {
        RedbJournal::begin(FoundJournal::find(options)?, false)
            .map(|(journal, recovered, _)| (journal, recovered))
    }

    #[cfg(test)]
    fn open_on(
        medium: Box<dyn medium::Medium>,
        options: RedbOptions,
        lock: Option<open::DirectoryLock>,
    ) -> Result<(Arc<RedbJournal>, Recovered), OpenError> {
        let found = FoundJournal::find_on(medium, options, lock)?;
        RedbJournal::begin(found, false).map(|(journal, recovered, _)| (journal, recovered))
    }

    fn begin(
        found: FoundJournal,
        stamp: bool,
    ) -> Result<(Arc<RedbJournal>, Recovered, Option<Stamped>), OpenError> {
        let FoundJournal { found, medium, options, lock } = found;
        let opened = open::begin(found, &*medium, &options, stamp)?;
        let scan = opened.scan;
        let next_session = scan.recovered.next_session;
        let gather = Gather::new(scan.index, next_session, options.max_batch_bytes);
        let shared = Arc::new(Shared {
            options,
            medium,
            created: opened.created,
            db: RwLock::new(Some(opened.db)),
            gather: Mutex::new(gather),
            work: Condvar::new(),
            broken: AtomicBool::new(false),
            keys: AtomicU64::new(scan.next_key),
            durable: AtomicU64::new(0),
            known: Mutex::new(scan.recovered.store),
            position: AtomicU64::new(scan.history.position),
            wakers: Wakers::default(),
            health: Mutex::new(JournalHealth::Ok),
            reads: reader::ReadQueue::default(),
            counters: stats::Counters::default(),
            stall: stall::Stall::default(),
            _lock: lock,
        });
        // Made before its threads: if one cannot be started, dropping it stops the others.
        let journal = Arc::new(RedbJournal { shared: shared.clone(), threads: Mutex::new(Vec::new()) });
        let writer = Writer::new(shared.clone(), opened.keys_reserved, next_session, scan.recovered.store);
        journal.spawn("journal-write", move || writer.run())?;
        let watched = shared.clone();
        journal.spawn("journal-watch", move || stall::watch(&watched))?;
        for _ in 0..shared.options.readers.max(1) {
            let shared = shared.clone();
            journal.spawn("journal-read", move || reader::run(&shared))?;
        }
        Ok((journal, scan.recovered, opened.stamped))
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|source: io::Error| OpenError::Io {
            path: self.shared.medium.path().to_owned(),
            source,
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// For how long the oldest commit has been under way, seconds; 0 if there is none.
    pub fn commit_age_s(&self) -> u64 {
        self.shared.stall.age_us() / 1_000_000
    }

    /// How many batches have become durable in the journal's whole life: [`crate::ports::History::position`].
    pub fn position(&self) -> u64 {
        self.shared.position.load(Ordering::Acquire)
    }

    /// What the journal has done since it was opened.
    pub fn stats(&self) -> JournalStats {
        self.shared.counters.snapshot()
    }
}

impl Journal for RedbJournal {
    fn next_seq(&self) -> Seq {
        self.shared.keys.fetch_add(1, Ordering::Relaxed)
    }

    fn append(&self, changes: &[Change<'_>]) -> Lsn {
        let mut gather = self.shared.gather.lock();
        let lsn = gather.append(changes, &self.shared.keys);
        self.shared.counters.pending_bytes.set(gather.bytes() as u64);
        let wake = std::mem::take(&mut gather.writer_idle);
        drop(gather);
        if wake {
            self.shared.work.notify_one();
        }
        lsn
    }

    fn durable(&self) -> Lsn {
        self.shared.durable()
    }

    fn wake_at(&self, lsn: Lsn, waker: &Waker) {
        self.shared.wakers.register(lsn, waker, || self.shared.durable());
    }

    fn congested(&self) -> bool {
        self.shared.counters.pending_bytes.get() > self.shared.options.max_pending_bytes as u64
    }

    /// As the port says; if the journal is closed first, `done` is dropped uncalled.
    fn read(&self, session: SessionNo, seqs: Vec<Seq>, done: ReadDone) {
        self.shared.reads.push(session, seqs, done);
    }

    fn health(&self) -> JournalHealth {
        let health = self.shared.health.lock().clone();
        if health == JournalHealth::Ok && self.shared.stall.is_stalled() {
            return JournalHealth::Failing(stall::said(&self.shared));
        }
        health
    }

    fn stalled(&self) -> bool {
        self.shared.stall.is_stalled()
    }

    fn know(&self, known: StoreKnown) {
        self.shared.known.lock().learn(known);
    }

    fn size_bytes(&self) -> u64 {
        self.shared.medium.size()
    }

    fn close(&self) {
        self.shared.gather.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.stall.close();
        self.shared.reads.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The last owner may be a callback on one of these threads, which cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
        self.shared.wakers.wake_all();
    }
}

impl Drop for RedbJournal {
    fn drop(&mut self) {
        self.close();
    }
}
