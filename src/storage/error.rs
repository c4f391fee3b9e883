//! Why a journal cannot be opened, in words for whoever runs the broker: which path, what happened, what to do.

use super::record::RecordError;
use std::io;
use std::path::PathBuf;

/// A journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory is missing.
    #[error("data directory {path:?} does not exist: create it, or configure another one")]
    MissingDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory is something else.
    #[error("data directory {path:?} is not a directory: configure another one")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory or a file in it may not be written.
    #[error(
        "{path:?} is not writable ({source}): give the broker's user write permission, or mount the volume writable"
    )]
    NotWritable {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process has the journal open.
    #[error(
        "data directory {path:?} is in use by {holder}: stop that process, or give each broker a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Whoever holds it.
        holder: String,
    },
    /// The file is not a journal.
    #[error("{path:?} is not a journal of this broker ({what}): move it away, or configure another one")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// The file was written by a newer version of the broker.
    #[error(
        "journal {path:?} has schema {found}, and this version of the broker knows only up to {known}: run the newer \
         version again, or restore a backup made before the upgrade"
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest schema known.
        known: u64,
    },
    /// The file is damaged.
    #[error(
        "journal {path:?} is damaged ({what}): check the disk and restore a backup, or move the file away to start \
         with an empty journal"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A row of the file cannot be decoded.
    #[error(
        "journal {path:?}: row {key} of table {table} cannot be decoded: {source}. Check the disk and restore a backup, \
         or move the file away to start with an empty journal"
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The disk is full.
    #[error("no space left for journal {path:?} ({source}): free or add space on its volume")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Something else failed.
    #[error("cannot open journal {path:?}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl OpenError {
    /// Tells apart what an [`io::Error`] on `path` is about.
    pub(super) fn io(path: PathBuf, source: io::Error) -> OpenError {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::NotWritable { path, source }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::NoSpace { path, source },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                OpenError::Corrupt { path, what: source.to_string() }
            }
            _ => OpenError::Io { path, source },
        }
    }
}
