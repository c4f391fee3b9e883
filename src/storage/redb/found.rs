//! A journal between being read and being used: what is found here decides whether this process may use it at all.

use super::medium::{FileMedium, Medium};
use super::{JOURNAL_FILE, RedbJournal, RedbOptions, open};
use crate::ports::{History, Recovered, Stamped};
use crate::storage::OpenError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A journal that was found in its directory (or made there) and read. The directory is taken for this process, and no row was
/// changed: dropping this leaves the journal as it was.
pub struct FoundJournal {
    pub(super) found: open::Found,
    pub(super) medium: Box<dyn Medium>,
    pub(super) options: RedbOptions,
    /// Holds the lock on the data directory.
    pub(super) lock: Option<open::DirectoryLock>,
}

impl FoundJournal {
    /// Opens the journal in the data directory, making it if there is none, and reads it.
    ///
    /// # Errors
    /// As of [`RedbJournal::open`].
    pub fn find(options: RedbOptions) -> Result<FoundJournal, OpenError> {
        let lock = open::lock_directory(&options.dir)?;
        let medium = Box::new(FileMedium::new(options.dir.join(JOURNAL_FILE)));
        FoundJournal::find_on(medium, options, Some(lock))
    }

    pub(super) fn find_on(
        medium: Box<dyn Medium>,
        options: RedbOptions,
        lock: Option<open::DirectoryLock>,
    ) -> Result<FoundJournal, OpenError> {
        let found = open::find(&*medium, &options)?;
        Ok(FoundJournal { found, medium, options, lock })
    }

    /// What the journal holds.
    pub fn recovered(&self) -> &Recovered {
        &self.found.scan.recovered
    }

    /// What the journal knows of its own starts.
    pub fn history(&self) -> &History {
        &self.found.scan.history
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.medium.path()
    }

    /// Goes on with it. With `stamp` this start gets a random stamp, which is durable in the journal when this returns.
    ///
    /// # Errors
    /// As of [`RedbJournal::open`].
    pub fn begin(self, stamp: bool) -> Result<(Arc<RedbJournal>, Recovered, Option<Stamped>), OpenError> {
        RedbJournal::begin(self, stamp)
    }

    /// Renames the file, which gets `suffix` behind its name, and makes an empty journal in its place. Returns the file's new
    /// name.
    ///
    /// # Errors
    /// The file cannot be renamed, or the new journal cannot be made.
    pub fn set_aside(self, suffix: &str) -> Result<(PathBuf, FoundJournal), OpenError> {
        let FoundJournal { found, medium, options, lock } = self;
        drop(found);
        let path = medium.path().to_owned();
        let mut aside = path.clone().into_os_string();
        aside.push(".");
        aside.push(suffix);
        let aside = PathBuf::from(aside);
        let io = |error| OpenError::io(aside.clone(), error);
        if aside.try_exists().map_err(io)? {
            return Err(io(std::io::ErrorKind::AlreadyExists.into()));
        }
        std::fs::rename(&path, &aside).map_err(io)?;
        // Making the new journal makes the directory durable, and with it the old one's new name.
        FoundJournal::find_on(medium, options, lock).map(|empty| (aside, empty))
    }
}
