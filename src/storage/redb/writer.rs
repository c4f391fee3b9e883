//! The one thread that writes: takes the batch that gathered while the last commit ran, commits it, tells who waits. No
//! artificial delay. Never gives up a batch while the journal is open.

use super::apply::{Scratch, apply};
use super::batch::Batch;
use super::open::{panic_text, transaction};
use super::schema::{
    KEYS_RESERVE, META, META_KEYS_RESERVED, META_NEXT_SESSION, META_POSITION, META_STORE_GENERATION,
    META_STORE_MARK, META_STORE_NAME, META_STORE_REVISION,
};
use super::shared::Shared;
use super::stats::Commit;
use crate::clock;
use crate::ports::StoreKnown;
use redb::{Database, Table};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    scratch: Scratch,
    /// As in the file.
    keys_reserved: u64,
    /// As in the file.
    next_session: u64,
    /// As in the file.
    known: StoreKnown,
    /// As in the file.
    position: u64,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        keys_reserved: u64,
        next_session: u64,
        known: StoreKnown,
    ) -> Writer {
        let position = shared.position.load(Ordering::Relaxed);
        Writer { shared, scratch: Scratch::default(), keys_reserved, next_session, known, position }
    }

    /// Commits until the journal is closed and everything appended before is durable, or cannot be made so.
    pub(super) fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            if !self.commit_at_last(&batch) {
                let changes = batch.changes();
                tracing::error!(
                    changes,
                    "closing while the journal fails: changes that nobody was told are durable are lost"
                );
                break;
            }
            let lsn = batch.lsn;
            {
                let mut gather = self.shared.gather.lock();
                gather.done(batch);
                self.shared.counters.pending_bytes.set(gather.bytes() as u64);
            }
            self.shared.publish(lsn);
        }
        self.write_known();
        self.shared.close_database();
    }

    /// Leaves in the file how far the coordination store has come. If that fails the file says less, and with the next start it
    /// has to do with that.
    fn write_known(&mut self) {
        let known = *self.shared.known.lock();
        if known == self.known {
            return;
        }
        let db = self.shared.db.read();
        let Some(db) = db.as_ref() else { return };
        let write = || -> Result<(), redb::Error> {
            let txn = transaction(db)?;
            put_known(&mut txn.open_table(META)?, known)?;
            Ok(txn.commit()?)
        };
        match catch_unwind(AssertUnwindSafe(write)) {
            Ok(Ok(())) => self.known = known,
            Ok(Err(error)) => tracing::debug!(%error, "the journal closes without the last revision of etcd"),
            Err(panic) => tracing::debug!(
                error = panic_text(&*panic),
                "the journal closes without the last revision of etcd"
            ),
        }
    }

    /// Waits for the next batch; `None` if the journal is closed and there is none.
    fn next_batch(&self) -> Option<Arc<Batch>> {
        loop {
            {
                let mut gather = self.shared.gather.lock();
                loop {
                    if let Some(batch) = gather.next_batch() {
                        return Some(batch);
                    }
                    if gather.closing {
                        return None;
                    }
                    if self.shared.broken.load(Ordering::Acquire) {
                        break;
                    }
                    gather.writer_idle = true;
                    self.shared.work.wait(&mut gather);
                    gather.writer_idle = false;
                }
            }
            self.repair();
        }
    }

    /// Opens the database again after a reader found it broken; trying again and again unless the journal is closed.
    fn repair(&self) {
        let mut pause = self.shared.options.retry_min;
        while !self.shared.stall.during(|| self.shared.reopen_database()) {
            if self.pause(&mut pause) {
                return;
            }
        }
        self.shared.set_ok();
    }

    /// Waits before another attempt, longer each time; cut short and answered with `true` if the journal is closed.
    fn pause(&self, pause: &mut Duration) -> bool {
        let mut gather = self.shared.gather.lock();
        self.shared.work.wait_while_for(&mut gather, |gather| !gather.closing, *pause);
        *pause = pause.saturating_mul(2).min(self.shared.options.retry_max);
        gather.closing
    }

    /// Commits `batch`, trying until it is durable; `false` if the journal was closed before that.
    fn commit_at_last(&mut self, batch: &Batch) -> bool {
        let mut pause = self.shared.options.retry_min;
        loop {
            let closing = self.shared.closing();
            let shared = self.shared.clone();
            if shared.stall.during(|| self.attempt(batch)) {
                return true;
            }
            // One attempt is made after closing.
            if closing {
                return false;
            }
            self.pause(&mut pause);
        }
    }

    /// Tries once to commit `batch`, and opens the database again before or after that if it is broken; whether `batch` is durable.
    fn attempt(&mut self, batch: &Batch) -> bool {
        let broken = self.shared.broken.load(Ordering::Acquire) || self.shared.db.read().is_none();
        if broken && !self.shared.reopen_database() {
            return false;
        }
        match self.commit(batch) {
            Ok(()) => {
                self.shared.set_ok();
                true
            }
            Err(what) => {
                self.shared.counters.commits_failed.add(1);
                self.shared.set_failing(what);
                // At once and not at the next attempt: meanwhile there are messages to read.
                self.shared.reopen_database();
                false
            }
        }
    }

    /// Tries once to commit `batch`; says what went wrong.
    fn commit(&mut self, batch: &Batch) -> Result<(), String> {
        let started_us = clock::monotonic_us();
        let keys_reserved = self.keys_to_reserve();
        let void =
            batch.is_void() && keys_reserved == self.keys_reserved && batch.next_session == self.next_session;
        if !void {
            let shared = self.shared.clone();
            let db = shared.db.read();
            let db = db.as_ref().ok_or("the journal is closed")?;
            // redb panics on some damage to its pages. The transaction is gone with it and the database is opened anew, so
            // that nothing half-done stays; a writer that died of it would leave the broker without a journal.
            let known = *shared.known.lock();
            let attempt = AssertUnwindSafe(|| self.try_commit(db, batch, keys_reserved, known));
            match catch_unwind(attempt) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(shared.describe(&error)),
                Err(panic) => return Err(shared.describe(&redb::Error::Corrupted(panic_text(&*panic)))),
            }
            self.keys_reserved = keys_reserved;
            self.next_session = batch.next_session;
            self.known = known;
            self.position += 1;
            self.shared.position.store(self.position, Ordering::Release);
        }
        let took_us = clock::monotonic_us().saturating_sub(started_us);
        let counters = &self.shared.counters;
        if void {
            counters.commits_void.add(1)
        } else {
            counters.commits.add(1)
        }
        counters.changes.add(batch.changes());
        counters.rows_elided.add(batch.elided());
        counters.bytes.add(batch.size() as u64);
        counters.batch_changes_last.set(batch.changes());
        counters.commit_us_last.set(took_us);
        counters.commit_us_total.add(took_us);
        if let (false, Some(observer)) = (void, &self.shared.options.observer) {
            (observer.0)(&Commit { changes: batch.changes(), took_us });
        }
        Ok(())
    }

    fn keys_to_reserve(&self) -> u64 {
        let wanted = self.shared.keys.load(Ordering::Relaxed).saturating_add(KEYS_RESERVE / 2);
        if wanted > self.keys_reserved { wanted.saturating_add(KEYS_RESERVE / 2) } else { self.keys_reserved }
    }

    fn try_commit(
        &mut self,
        db: &Database,
        batch: &Batch,
        keys_reserved: u64,
        known: StoreKnown,
    ) -> Result<(), redb::Error> {
        let txn = transaction(db)?;
        apply(&txn, batch, &mut self.scratch)?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert(META_POSITION, self.position.saturating_add(1))?;
            if keys_reserved != self.keys_reserved || batch.next_session != self.next_session {
                meta.insert(META_KEYS_RESERVED, keys_reserved)?;
                meta.insert(META_NEXT_SESSION, batch.next_session)?;
            }
            if known != self.known {
                put_known(&mut meta, known)?;
            }
        }
        txn.commit()?;
        Ok(())
    }
}

/// Writes what is known of the coordination store.
fn put_known(meta: &mut Table<'_, &'static str, u64>, known: StoreKnown) -> Result<(), redb::Error> {
    meta.insert(META_STORE_REVISION, known.revision)?;
    meta.insert(META_STORE_MARK, known.mark)?;
    if known.timeline.generation > 0 {
        meta.insert(META_STORE_GENERATION, known.timeline.generation)?;
        meta.insert(META_STORE_NAME, known.timeline.name)?;
    }
    Ok(())
}
