//! Files that hold secrets: read whole, and only if not everybody on the machine may read them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a file that holds secrets; a larger one is refused.
pub const SECRET_FILE_BYTES_MAX: u64 = 16 << 20;

/// A file of secrets cannot be used. Names the file and says what to do; never shows what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Everybody on the machine may read the file.
    #[error("{path:?} may be read by everybody (mode {mode:04o}): chmod 640 it, or 600")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is too large to be what is meant.
    #[error("{path:?} is larger than {} MiB", SECRET_FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Tells one version of a file from another, also where a symbolic link was swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
    mode: u32,
}

impl FileVersion {
    /// The version that `path` leads to now; `None` if there is nothing.
    pub fn of(path: &Path) -> Option<FileVersion> {
        std::fs::metadata(path).ok().map(|found| FileVersion::from(&found))
    }
}

impl From<&std::fs::Metadata> for FileVersion {
    fn from(found: &std::fs::Metadata) -> FileVersion {
        FileVersion {
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            size: found.size(),
            mode: found.mode(),
        }
    }
}

/// What a file of secrets holds, and which version of it that is.
///
/// # Errors
/// If it cannot be read, is no text, is too large, or may be read by everybody.
pub fn read(path: &Path) -> Result<(String, FileVersion), SecretFileError> {
    let unreadable = |source| SecretFileError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if found.mode() & 0o004 != 0 {
        return Err(SecretFileError::Exposed { path: path.to_owned(), mode: found.mode() & 0o7777 });
    }
    let mut text = String::new();
    file.take(SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > SECRET_FILE_BYTES_MAX {
        return Err(SecretFileError::TooLarge { path: path.to_owned() });
    }
    Ok((text, FileVersion::from(&found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn who_may_read_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "secret\n").unwrap();
        for (mode, accepted) in [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o604, false)]
        {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let outcome = read(&path);
            assert_eq!(outcome.is_ok(), accepted, "{mode:o}: {outcome:?}");
            if let Err(error) = outcome {
                let said = error.to_string();
                assert!(
                    said.contains("token") && said.contains("chmod 640") && !said.contains("secret"),
                    "{said}"
                );
            }
        }
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_swapped_link_is_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            std::fs::write(path(name), "same").unwrap();
        }
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        let before = FileVersion::of(&path("link"));
        assert_eq!(before, FileVersion::of(&path("link")));
        std::os::unix::fs::symlink(path("b"), path("next")).unwrap();
        std::fs::rename(path("next"), path("link")).unwrap();
        assert_ne!(before, FileVersion::of(&path("link")));
        assert_eq!(FileVersion::of(&path("none")), None);
    }
}
