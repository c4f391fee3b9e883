//! Files with secrets: read only if nobody else on the machine can, and looked at now and then for changes.

use parking_lot::Mutex;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of a file of accounts or keys, at most.
pub const SECRET_FILE_MAX: u64 = 256 << 20;

/// Who may read a file.
#[derive(Clone, Copy, Debug)]
pub enum Privacy {
    /// Nobody but its owner and group.
    Secret,
    /// Anybody: it holds public keys.
    Public,
    /// As [`Privacy::Secret`] if what is in it is one, which this says.
    If(fn(&[u8]) -> bool),
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path:?} ({option}): {source}")]
    Io {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it.
    #[error(
        "{path:?} ({option}) holds secrets, and every user of this machine can read it (mode {mode:03o}): `chmod o= {}`", path.display()
    )]
    Readable {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than any such file.
    #[error("{path:?} ({option}) has more than {SECRET_FILE_MAX} bytes")]
    TooLarge {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// What is in it is wrong.
    #[error("{path:?} ({option}), line {line}: {why}")]
    Line {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, without a secret.
        why: String,
    },
    /// What is in it is wrong as a whole.
    #[error("{path:?} ({option}): {why}")]
    Content {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, without a secret.
        why: String,
    },
}

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Changes with permissions too.
    changed: (i64, i64),
}

impl Stamp {
    /// What tells the file with this metadata.
    pub fn of(m: &Metadata) -> Stamp {
        Stamp {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// The stamp of what was read last, whether or not it could be used.
    read: Option<Stamp>,
    /// The stamp at the last look; `None` = it could not be looked at.
    looked: Option<Stamp>,
}

/// A file that may change while the broker runs.
#[derive(Debug)]
pub struct WatchedFile {
    option: &'static str,
    path: PathBuf,
    privacy: Privacy,
    seen: Mutex<Seen>,
}

impl WatchedFile {
    /// The file that `option` names.
    pub fn new(option: &'static str, path: &Path, privacy: Privacy) -> WatchedFile {
        WatchedFile { option, path: path.to_owned(), privacy, seen: Mutex::default() }
    }

    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, or others can read it as well.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        self.read_and(true)
    }

    /// Reads it, and does not take note of what was read: a change still is one for [`WatchedFile::has_changed`].
    ///
    /// # Errors
    /// As [`WatchedFile::read`].
    pub fn peek(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        self.read_and(false)
    }

    fn read_and(&self, note: bool) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let (option, path) = (self.option, self.path.clone());
        let io = |source| FileError::Io { option, path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(io)?;
        // Of the file that is open: another may take its name meanwhile.
        let metadata = file.metadata().map_err(io)?;
        if note {
            self.seen.lock().read = Some(Stamp::of(&metadata));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        Read::by_ref(&mut file).take(SECRET_FILE_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > SECRET_FILE_MAX {
            return Err(FileError::TooLarge { option, path });
        }
        let secret = match self.privacy {
            Privacy::Secret => true,
            Privacy::Public => false,
            Privacy::If(is_secret) => is_secret(&bytes),
        };
        if secret && metadata.mode() & 0o007 != 0 {
            return Err(FileError::Readable { option, path, mode: metadata.mode() & 0o777 });
        }
        Ok(bytes)
    }

    /// Looks whether it is another than was read last, and has been for one look already: whoever writes it may not be done. A file
    /// that is gone is no other one.
    pub fn has_changed(&self) -> bool {
        // Through symbolic links, as Kubernetes exchanges them.
        let now = std::fs::metadata(&self.path).ok().map(|m| Stamp::of(&m));
        let mut seen = self.seen.lock();
        let settled = now == seen.looked;
        seen.looked = now;
        settled && now.is_some() && now != seen.read
    }

    /// What is wrong with its content as a whole.
    pub fn content(&self, why: impl Into<String>) -> FileError {
        FileError::Content { option: self.option, path: self.path.clone(), why: why.into() }
    }

    /// What is wrong with one of its lines.
    pub fn line(&self, line: usize, why: impl Into<String>) -> FileError {
        FileError::Line { option: self.option, path: self.path.clone(), line, why: why.into() }
    }

    /// The option that names it.
    pub fn option(&self) -> &'static str {
        self.option
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_that_others_can_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        for (mode, privacy, readable) in [
            (0o600, Privacy::Secret, true),
            (0o640, Privacy::Secret, true),
            (0o644, Privacy::Secret, false),
            (0o604, Privacy::Secret, false),
            (0o644, Privacy::Public, true),
        ] {
            std::fs::write(&path, "content").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match WatchedFile::new("auth.password.file", &path, privacy).read() {
                Ok(bytes) => assert!(readable && **bytes == *b"content", "{mode:o}"),
                Err(e) => {
                    assert!(!readable, "{mode:o}: {e}");
                    let text = e.to_string();
                    assert!(text.contains("chmod o= ") && text.contains("users"), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_change_counts_once_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        std::fs::write(&path, "a").unwrap();
        let file = WatchedFile::new("auth.password.file", &path, Privacy::Public);
        file.read().unwrap();
        assert!(!file.has_changed() && !file.has_changed());
        std::fs::write(&path, "ab").unwrap();
        assert!(!file.has_changed(), "it may still be written");
        std::fs::write(&path, "abc").unwrap();
        assert!(!file.has_changed(), "it was");
        assert!(file.has_changed());
        file.read().unwrap();
        assert!(!file.has_changed());
        std::fs::remove_file(&path).unwrap();
        assert!(!file.has_changed() && !file.has_changed(), "nothing takes its place yet");
    }
}
