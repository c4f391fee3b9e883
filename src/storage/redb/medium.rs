//! What the database lives on: a file, or in tests something that fails on demand.

use redb::StorageBackend;
use redb::backends::FileBackend;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the database is opened, and opened again after a failure.
pub(super) trait Medium: Send + Sync + 'static {
    /// Its name in messages.
    fn path(&self) -> &Path;

    /// Whether there is anything.
    fn exists(&self) -> io::Result<bool>;

    /// Starts a new one aside, which [`Medium::publish`] puts in place when it is complete: a crash while a file is
    /// being made must not leave half a file behind.
    fn create(&self) -> io::Result<Backend>;

    /// Puts in place, durably, what was begun by [`Medium::create`].
    fn publish(&self) -> io::Result<()>;

    /// Opens what is there.
    fn open(&self) -> io::Result<Backend>;

    /// Bytes it takes.
    fn size(&self) -> u64;
}

/// An opened [`Medium`].
#[derive(Debug)]
pub(super) struct Backend(pub(super) Box<dyn StorageBackend>);

/// A file.
pub(super) struct FileMedium {
    path: PathBuf,
}

impl FileMedium {
    pub(super) fn new(path: PathBuf) -> FileMedium {
        FileMedium { path }
    }

    fn aside(&self) -> PathBuf {
        self.path.with_extension("new")
    }
}

fn file_backend(file: File) -> io::Result<Backend> {
    Ok(Backend(Box::new(FileBackend::new(file).map_err(io::Error::other)?)))
}

impl Medium for FileMedium {
    fn path(&self) -> &Path {
        &self.path
    }

    fn exists(&self) -> io::Result<bool> {
        self.path.try_exists()
    }

    fn create(&self) -> io::Result<Backend> {
        // Other users have no business with people's messages.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        file_backend(options.open(self.aside())?)
    }

    fn publish(&self) -> io::Result<()> {
        std::fs::rename(self.aside(), &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn open(&self) -> io::Result<Backend> {
        file_backend(File::options().read(true).write(true).open(&self.path)?)
    }

    fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

type Locked<T> = Result<T, redb::BackendError>;

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.query_lock_range(start, end)
    }
}
