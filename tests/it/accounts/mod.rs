//! Who clients are: accounts, and whose sessions are.

mod chains;
mod commands;
mod flood;
mod hook;
mod ownership;
mod passwords;
mod scram;
mod secrets;
mod tokens;

use crate::broker::{Setup, command};
use crate::client::{Dial, In};
use berth::mqtt::{Reason, Version};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tempfile::TempDir;

/// The versions of MQTT.
pub const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A directory with files of accounts.
pub struct Files(TempDir);

impl Files {
    /// An empty one.
    pub fn new() -> Files {
        Files(TempDir::new().unwrap())
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The file of users.
    pub fn users(&self) -> PathBuf {
        self.path("users")
    }

    /// Writes a file that only its owner can read, at once whole.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let (path, aside) = (self.path(name), self.path("aside"));
        std::fs::write(&aside, content).unwrap();
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        path
    }

    /// Runs `berth passwd` on the file of users.
    pub fn passwd(&self, args: &[&str], password: &str) -> Output {
        passwd(&self.users(), args, password)
    }

    /// A user with a password.
    pub fn user(&self, name: &str, password: &str) {
        let done = self.passwd(&[name], password);
        assert!(done.status.success(), "{done:?}");
    }

    /// A setup whose clients are in the file of users.
    pub fn setup(&self) -> Setup {
        Setup::new().set("auth.password.file", self.users().to_str().unwrap())
    }
}

/// Runs `berth passwd FILE …` with the password on standard input.
pub fn passwd(file: &Path, args: &[&str], password: &str) -> Output {
    let mut child = command()
        .arg("passwd")
        .arg(file)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses its arguments does not read it.
    let _ = writeln!(child.stdin.take().unwrap(), "{password}");
    child.wait_with_output().unwrap()
}

/// What the broker says to a CONNECT.
pub fn answer(dial: &Dial, to: SocketAddr) -> Reason {
    match dial.try_connect(to).unwrap().1 {
        In::ConnAck { reason, .. } => reason,
        other => panic!("{other:?} to {dial:?}"),
    }
}
