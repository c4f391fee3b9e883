//! What the threads of a journal share, and how it fails and recovers: a database that has failed refuses all work, so
//! it is closed, opened again and the batch at hand applied again. Never drops a batch.

use super::RedbOptions;
use super::gather::Gather;
use super::medium::Medium;
use super::open;
use super::reader::ReadQueue;
use super::stall::Stall;
use super::stats::Counters;
use crate::ports::{JournalHealth, Lsn, StoreKnown};
use crate::storage::wakers::Wakers;
use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The inside of a journal.
pub(super) struct Shared {
    pub(super) options: RedbOptions,
    pub(super) medium: Box<dyn Medium>,
    pub(super) created: u64,
    /// `None` between a failure and its repair, and after closing.
    pub(super) db: RwLock<Option<Database>>,
    pub(super) gather: Mutex<Gather>,
    /// Wakes the writer: something to do, closing, or a reader found the database broken.
    pub(super) work: Condvar,
    /// A reader found the database broken.
    pub(super) broken: AtomicBool,
    /// The next key of the log, which is also the next message's number.
    pub(super) keys: AtomicU64,
    pub(super) durable: AtomicU64,
    /// What the broker knows of the coordination store: written with what is written next.
    pub(super) known: Mutex<StoreKnown>,
    /// How many batches have become durable in the journal's life.
    pub(super) position: AtomicU64,
    pub(super) wakers: Wakers,
    pub(super) health: Mutex<JournalHealth>,
    pub(super) reads: ReadQueue,
    pub(super) counters: Counters,
    pub(super) stall: Stall,
    /// Holds the lock on the data directory.
    pub(super) _lock: Option<open::DirectoryLock>,
}

impl Shared {
    pub(super) fn durable(&self) -> Lsn {
        self.durable.load(Ordering::Acquire)
    }

    /// Everything up to `lsn` is durable.
    pub(super) fn publish(&self, lsn: Lsn) {
        self.durable.store(lsn, Ordering::Release);
        self.wakers.wake_up_to(lsn);
    }

    /// The journal works (again).
    pub(super) fn set_ok(&self) {
        {
            let mut health = self.health.lock();
            if *health == JournalHealth::Ok {
                return;
            }
            *health = JournalHealth::Ok;
        }
        tracing::info!(path = %self.medium.path().display(), "the journal works again");
        self.wakers.wake_all();
    }

    /// The journal does not work for now.
    pub(super) fn set_failing(&self, what: String) {
        let first = {
            let mut health = self.health.lock();
            let first = *health == JournalHealth::Ok;
            if !first && *health == JournalHealth::Failing(what.clone()) {
                return;
            }
            *health = JournalHealth::Failing(what.clone());
            first
        };
        tracing::error!("{what}");
        if first {
            self.wakers.wake_all();
        }
    }

    /// Says what an error of the database means.
    pub(super) fn describe(&self, error: &redb::Error) -> String {
        let advice = match error {
            redb::Error::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free or add space on its volume; nothing accepted is lost and the broker goes on by itself"
                }
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    "make its volume writable; nothing accepted is lost and the broker goes on by itself"
                }
                _ => {
                    "check the disk and the kernel's log; the broker keeps what it accepted and goes on trying"
                }
            },
            redb::Error::Corrupted(_) => {
                "the file is damaged: check the disk, stop the broker and restore a backup"
            }
            _ => "the broker keeps what it accepted and goes on trying",
        };
        format!("journal {:?} failed: {error}: {advice}", self.medium.path())
    }

    /// A reader's attempt failed: has the writer open the database again.
    pub(super) fn report_broken(&self, error: &redb::Error) {
        self.set_failing(self.describe(error));
        self.broken.store(true, Ordering::Release);
        // The lock makes sure that the writer either sees the flag or is already waiting.
        drop(self.gather.lock());
        self.work.notify_one();
    }

    /// Closes the database. What redb makes of closing a broken one, a panic included, changes nothing.
    pub(super) fn close_database(&self) {
        let db = self.db.write().take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(db))) {
            tracing::warn!("closing the journal's file: {}", open::panic_text(&*panic));
        }
    }

    /// Opens the database again; says whether that went well.
    pub(super) fn reopen_database(&self) -> bool {
        self.close_database();
        match open::reopen(&*self.medium, self.options.cache_bytes, self.created) {
            Ok(db) => {
                self.broken.store(false, Ordering::Release);
                *self.db.write() = Some(db);
                true
            }
            Err(error) => {
                self.set_failing(error.to_string());
                false
            }
        }
    }

    /// Whether no more changes are taken.
    pub(super) fn closing(&self) -> bool {
        self.gather.lock().closing
    }
}
