//! From a path to a database that is known to be a journal: lock, open, schema, scan, compaction, clean-up. Changes
//! nothing in a file that it refuses.

use super::RedbOptions;
use super::apply;
use super::medium::{Backend, Medium};
use super::recover::{Garbage, Scan, ScanError, scan};
use super::schema::{
    KEYS_RESERVE, LOG, META, META_CREATED, META_JOURNAL, META_KEYS_RESERVED, META_NEXT_SESSION, META_SCHEMA,
    SCHEMA, SESSIONS, SETTLED, SUBSCRIPTIONS,
};
use super::starts;
use crate::clock;
use crate::ports::Stamped;
use crate::storage::error::OpenError;
use crate::storage::random_name;
use redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase, StorageBackend};
use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// What every redb file starts with.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";

/// Rows deleted in one transaction when cleaning up.
const GARBAGE_CHUNK: usize = 100_000;

/// Keys and session numbers beyond this are not of our making.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// The name of the lock file in the data directory.
const LOCK_FILE: &str = "journal.lock";

/// A journal that was read, and in which nothing was changed.
pub(super) struct Found {
    db: Database,
    pub(super) scan: Scan,
    created: u64,
}

/// An opened journal.
pub(super) struct Opened {
    pub(super) db: Database,
    pub(super) scan: Scan,
    /// When the journal was made: tells it from another.
    pub(super) created: u64,
    /// The stamp and number of this start, if it is to be told from others.
    pub(super) stamped: Option<Stamped>,
    /// Keys below this are reserved on disk.
    pub(super) keys_reserved: u64,
}

/// The lock by which a data directory belongs to this process. Dropping the lock frees the directory at once, also while a child that was
/// forked still has a copy of the lock file, as every child has until it runs its own program.
pub(super) struct DirectoryLock(File);

#[cfg(test)]
impl DirectoryLock {
    /// What a child has between fork and exec.
    pub(super) fn copy_of_file(&self) -> File {
        self.0.try_clone().unwrap()
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // What fails here is done by the kernel when the last file is closed.
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

/// Takes the data directory for this process.
///
/// # Errors
///
/// [`OpenError::InUse`] with the process that has it; else that there is no such directory, or that the lock file cannot be made there.
pub(super) fn lock_directory(dir: &Path) -> Result<DirectoryLock, OpenError> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(OpenError::NotADirectory { path: dir.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::MissingDirectory { path: dir.to_owned() });
        }
        Err(error) => return Err(OpenError::io(dir.to_owned(), error)),
    }
    let path = dir.join(LOCK_FILE);
    let failed = |error: io::Error| OpenError::io(path.clone(), error);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let told = Read::by_ref(&mut file).take(20).read_to_string(&mut pid).is_ok();
            let told = told && pid.trim().parse::<u32>().is_ok();
            let holder = if told { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(OpenError::InUse { path: dir.to_owned(), holder });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    // Only for the message above: on a full disk the lock counts all the same.
    let told =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = told {
        tracing::warn!(path = %path.display(), %error, "cannot write the process number to the lock file");
    }
    Ok(DirectoryLock(file))
}

/// Opens and reads the journal, making it if there is none. Rows that are there are not changed.
pub(super) fn find(medium: &dyn Medium, options: &RedbOptions) -> Result<Found, OpenError> {
    guarded(medium.path(), || find_unguarded(medium, options))
}

/// Makes a journal ready for use. With `stamp` this start is told from all others of the journal.
pub(super) fn begin(
    found: Found,
    medium: &dyn Medium,
    options: &RedbOptions,
    stamp: bool,
) -> Result<Opened, OpenError> {
    guarded(medium.path(), || begin_unguarded(found, medium, options, stamp))
}

/// Opens the journal made at `created` again after a failure.
pub(super) fn reopen(medium: &dyn Medium, cache_bytes: usize, created: u64) -> Result<Database, OpenError> {
    guarded(medium.path(), || {
        let db = open_database(medium, cache_bytes, false)?;
        if read_meta(medium.path(), &db)? == created {
            return Ok(db);
        }
        let what = "the file was replaced while the broker ran".to_owned();
        Err(OpenError::Foreign { path: medium.path().to_owned(), what })
    })
}

/// redb trusts the pages it reads and panics on some damage. A panic here says that the file is bad and leaves nothing
/// half-changed behind (the database is dropped with its transaction), so it is an answer like any other.
fn guarded<T>(path: &Path, open: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|panic| Err(OpenError::Corrupt { path: path.to_owned(), what: panic_text(&*panic) }))
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied();
    said.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic").to_owned()
}

fn find_unguarded(medium: &dyn Medium, options: &RedbOptions) -> Result<Found, OpenError> {
    let cache_bytes = options.cache_bytes;
    let path = medium.path();
    if !medium.exists().map_err(|error| OpenError::io(path.to_owned(), error))? {
        create(medium, cache_bytes)?;
    }
    // redb trusts the pages it reads, and some damage makes it abort the process: so none is let in.
    let db = open_database(medium, cache_bytes, true)?;
    let created = read_meta(path, &db)?;
    let mut scan = scan(&db).map_err(|error| scan_error(path, error))?;
    if scan.next_key > NUMBER_MAX || scan.recovered.next_session > NUMBER_MAX {
        let what = "a row has a number out of range".to_owned();
        return Err(OpenError::Corrupt { path: path.to_owned(), what });
    }
    if scan.recovered.journal == 0 {
        scan.recovered.journal = random_name();
    }
    Ok(Found { db, scan, created })
}

fn begin_unguarded(
    found: Found,
    medium: &dyn Medium,
    options: &RedbOptions,
    stamp: bool,
) -> Result<Opened, OpenError> {
    let path = medium.path();
    let Found { db, scan, created } = found;
    clean(&db, &scan.garbage).map_err(|error| database_error(path, error))?;
    let db = compact(db, medium, options, scan.live_bytes)?;
    let keys_reserved = scan.next_key.saturating_add(KEYS_RESERVE);
    let stamped =
        stamp.then(|| Stamped { stamp: random_name(), number: scan.history.count.saturating_add(1) });
    claim(&db, keys_reserved, &scan, stamped).map_err(|error| database_error(path, error))?;
    Ok(Opened { db, scan, created, stamped, keys_reserved })
}

/// Makes a new journal.
fn create(medium: &dyn Medium, cache_bytes: usize) -> Result<(), OpenError> {
    let path = medium.path();
    let io = |error| OpenError::io(path.to_owned(), error);
    let db = build(path, medium.create().map_err(io)?, cache_bytes, false)?;
    initialize(&db).map_err(|error| database_error(path, error))?;
    db.close().map_err(|error| database_error(path, error.into()))?;
    medium.publish().map_err(io)
}

/// Opens the file; with `verify`, after checking the checksums of all its pages.
fn open_database(medium: &dyn Medium, cache_bytes: usize, verify: bool) -> Result<Database, OpenError> {
    let path = medium.path();
    let io = |error| OpenError::io(path.to_owned(), error);
    let backend = medium.open().map_err(io)?;
    let len = backend.len().map_err(io)?;
    if len == 0 {
        return Err(OpenError::Corrupt { path: path.to_owned(), what: "the file is empty".to_owned() });
    }
    let mut start = [0; MAGIC.len()];
    let looked_at = start.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    if let Some(start) = start.get_mut(..looked_at) {
        backend.read(0, start).map_err(io)?;
    }
    if start != MAGIC {
        return Err(OpenError::Foreign { path: path.to_owned(), what: "it is some other file".to_owned() });
    }
    build(path, backend, cache_bytes, verify)
}

fn build(path: &Path, backend: Backend, cache_bytes: usize, verify: bool) -> Result<Database, OpenError> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(verify);
    builder.create_with_backend(backend).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse {
            path: path.parent().unwrap_or(path).to_owned(),
            holder: "another process".to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => OpenError::Foreign {
            path: path.to_owned(),
            what: format!("it has format {version} of the database library"),
        },
        error => database_error(path, error.into()),
    })
}

/// Checks whose file this is; returns when it was made.
fn read_meta(path: &Path, db: &Database) -> Result<u64, OpenError> {
    let foreign = |what: &str| OpenError::Foreign { path: path.to_owned(), what: what.to_owned() };
    let failed = |error: redb::Error| database_error(path, error);
    let txn = db.begin_read().map_err(|error| failed(error.into()))?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(
            redb::TableError::TableDoesNotExist(_)
            | redb::TableError::TableTypeMismatch { .. }
            | redb::TableError::TableIsMultimap(_),
        ) => return Err(foreign("it is another program's database")),
        Err(error) => return Err(failed(error.into())),
    };
    let get = |name: &str| match meta.get(name) {
        Ok(value) => Ok(value.map(|value| value.value())),
        Err(error) => Err(failed(error.into())),
    };
    let schema = get(META_SCHEMA)?.ok_or_else(|| foreign("it is another program's database"))?;
    if schema > SCHEMA {
        return Err(OpenError::NewerSchema { path: path.to_owned(), found: schema, known: SCHEMA });
    }
    get(META_CREATED)?.ok_or_else(|| foreign("it does not say when it was made"))
}

/// Makes the tables of a new journal.
fn initialize(db: &Database) -> Result<(), redb::Error> {
    let txn = transaction(db)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(META_SCHEMA, SCHEMA)?;
        meta.insert(META_CREATED, clock::now().as_millis())?;
        meta.insert(META_JOURNAL, random_name())?;
        txn.open_table(LOG)?;
        txn.open_table(SETTLED)?;
        txn.open_table(SESSIONS)?;
        txn.open_table(SUBSCRIPTIONS)?;
    }
    txn.commit()?;
    Ok(())
}

/// Records that keys and session numbers below these may have been used, that the journal is of this schema and of
/// this name, which it may not have been so far, and which start this is.
fn claim(db: &Database, keys: u64, scan: &Scan, stamped: Option<Stamped>) -> Result<(), redb::Error> {
    let txn = transaction(db)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(META_SCHEMA, SCHEMA)?;
        meta.insert(META_JOURNAL, scan.recovered.journal)?;
        meta.insert(META_KEYS_RESERVED, keys)?;
        meta.insert(META_NEXT_SESSION, scan.recovered.next_session)?;
    }
    if let Some(stamped) = stamped {
        starts::note(&txn, stamped, scan.history.position)?;
    }
    txn.commit()?;
    Ok(())
}

/// Deletes rows that nobody needs, some at a time.
fn clean(db: &Database, garbage: &Garbage) -> Result<(), redb::Error> {
    let rows = garbage.log.len() + garbage.settled.len() + garbage.subscriptions.len();
    if rows == 0 {
        return Ok(());
    }
    tracing::info!(rows, "deleting rows of the journal that belong to nobody");
    for chunk in garbage.log.chunks(GARBAGE_CHUNK) {
        let txn = transaction(db)?;
        apply::delete_sorted(&mut txn.open_table(LOG)?, chunk)?;
        txn.commit()?;
    }
    for chunk in garbage.settled.chunks(GARBAGE_CHUNK) {
        let txn = transaction(db)?;
        {
            let mut table = txn.open_table(SETTLED)?;
            for pair in chunk {
                table.remove(pair)?;
            }
        }
        txn.commit()?;
    }
    for chunk in garbage.subscriptions.chunks(GARBAGE_CHUNK) {
        let txn = transaction(db)?;
        {
            let mut table = txn.open_table(SUBSCRIPTIONS)?;
            for (session, filter) in chunk {
                table.remove((*session, filter.as_str()))?;
            }
        }
        txn.commit()?;
    }
    Ok(())
}

/// Begins a transaction as all of the journal's are: durable when committed, and cheap to open after a crash.
pub(super) fn transaction(db: &Database) -> Result<redb::WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_quick_repair(true);
    Ok(txn)
}

/// Gives free space back to the file system if more than half of a large file is free. What can go wrong costs only
/// the space, so the journal is opened all the same.
fn compact(
    mut db: Database,
    medium: &dyn Medium,
    options: &RedbOptions,
    live_bytes: u64,
) -> Result<Database, OpenError> {
    let before = medium.size();
    if before < options.compact_min_bytes || live_bytes.saturating_mul(2) > before {
        return Ok(db);
    }
    let started = clock::now();
    match db.compact() {
        Ok(_) => {
            let ms = clock::now().since_ms(started);
            tracing::info!(before, after = medium.size(), ms, "compacted the journal");
            Ok(db)
        }
        Err(error) => {
            tracing::warn!(path = %medium.path().display(), %error, "cannot compact the journal");
            drop(db);
            open_database(medium, options.cache_bytes, false)
        }
    }
}

fn scan_error(path: &Path, error: ScanError) -> OpenError {
    match error {
        ScanError::Database(error) => database_error(path, error),
        ScanError::Record { table, key, source } => {
            OpenError::Record { path: path.to_owned(), table, key, source }
        }
    }
}

fn database_error(path: &Path, error: redb::Error) -> OpenError {
    let path: PathBuf = path.to_owned();
    match error {
        redb::Error::Io(error) => OpenError::io(path, error),
        redb::Error::PreviousIo => OpenError::Io { path, source: io::Error::other("an earlier I/O error") },
        error => OpenError::Corrupt { path, what: error.to_string() },
    }
}
