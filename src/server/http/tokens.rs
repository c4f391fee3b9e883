//! Bearer tokens (RFC 6750): who may read at admin HTTP, and who may change something. They come from files, which are read again when
//! they have changed.

use crate::readings::{Reading, Readings};
use crate::secret_file::{FileError, Privacy, WatchedFile};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Between two looks whether a file has changed.
const LOOK: Duration = Duration::from_millis(250);

/// Bytes that a token has at least.
const TOKEN_BYTES_MIN: usize = 16;

/// What somebody may do at admin HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask.
    Read,
    /// Ask, and change something.
    Admin,
}

impl Role {
    /// The role as logs and the audit log name it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Read => "read-only",
            Role::Admin => "admin",
        }
    }
}

#[derive(PartialEq, Eq)]
struct Token {
    name: Arc<str>,
    role: Role,
    secret: Zeroizing<String>,
}

struct Source {
    file: WatchedFile,
    role: Role,
    readings: Readings,
    tokens: Vec<Token>,
}

impl Source {
    /// Puts tokens in force that were read, unless later ones are.
    fn put(&mut self, read: Reading<Vec<Token>>) {
        self.readings.put(read, |tokens| self.tokens = tokens);
    }
}

/// The tokens that count now.
pub struct Tokens(Mutex<Vec<Source>>);

/// Tokens that were read and do not count yet.
pub struct PreparedTokens(Vec<Option<Reading<Vec<Token>>>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Reads the tokens of administrators and of those who may only read. `None` if neither has a file.
    ///
    /// # Errors
    /// If a file cannot be read, or holds no token, or a line that is none.
    pub fn read(admin: Option<&Path>, read: Option<&Path>) -> Result<Option<Tokens>, FileError> {
        let files =
            [("http.admin_token_file", admin, Role::Admin), ("http.read_token_file", read, Role::Read)];
        let mut sources = Vec::new();
        for (option, path, role) in files {
            if let Some(path) = path {
                let file = WatchedFile::new(option, path, Privacy::Secret);
                let tokens = load(&file, role)?;
                sources.push(Source { file, role, readings: Readings::default(), tokens });
            }
        }
        Ok((!sources.is_empty()).then(|| Tokens(Mutex::new(sources))))
    }

    /// Reads the files and changes nothing: what they hold counts once it is given to [`Tokens::put`]. Files whose option `left_out`
    /// names are left out.
    ///
    /// # Errors
    /// Which cannot be used, and why.
    pub fn prepare(&self, left_out: impl Fn(&str) -> bool) -> Result<PreparedTokens, Vec<FileError>> {
        let (mut prepared, mut wrong) = (Vec::new(), Vec::new());
        for source in self.0.lock().iter() {
            let read = || parse(&source.file, source.role, &source.file.peek()?);
            match (!left_out(source.file.option())).then(|| source.readings.read(read)).transpose() {
                Ok(read) => prepared.push(read),
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { Ok(PreparedTokens(prepared)) } else { Err(wrong) }
    }

    /// Puts prepared tokens in force, but for files that were read again meanwhile; returns how many tokens there are.
    pub fn put(&self, prepared: PreparedTokens) -> usize {
        let mut sources = self.0.lock();
        sources.iter_mut().zip(prepared.0).for_each(|(source, read)| {
            if let Some(read) = read {
                source.put(read);
            }
        });
        sources.iter().map(|source| source.tokens.len()).sum()
    }

    /// Whose token this is, and what its holder may do.
    pub fn check(&self, presented: &str) -> Option<(Arc<str>, Role)> {
        let mut found = None;
        // All are compared, so that the time tells nothing of where one begins to differ, or which it is.
        for token in self.0.lock().iter().flat_map(|s| &s.tokens) {
            if same(token.secret.as_bytes(), presented.as_bytes()) {
                found = Some((token.name.clone(), token.role));
            }
        }
        found
    }

    /// Reads files again when they have changed, for ever.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    /// Reads what has changed; a file that cannot be used leaves what was read before in force.
    fn look(&self) {
        for source in self.0.lock().iter_mut().filter(|source| source.file.has_changed()) {
            match source.readings.read(|| load(&source.file, source.role)) {
                Ok(read) => {
                    source.put(read);
                    let (file, count) = (source.file.path(), source.tokens.len());
                    tracing::info!(?file, count, "tokens of admin HTTP read again");
                }
                Err(error) => {
                    tracing::error!(%error, "tokens of admin HTTP cannot be read again; those of before stay")
                }
            }
        }
    }
}

fn load(file: &WatchedFile, role: Role) -> Result<Vec<Token>, FileError> {
    parse(file, role, &file.read()?)
}

fn parse(file: &WatchedFile, role: Role, bytes: &[u8]) -> Result<Vec<Token>, FileError> {
    let text = std::str::from_utf8(bytes).map_err(|_| file.content("what is in it is no text"))?;
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, secret) = line.split_once(char::is_whitespace).unwrap_or((role.name(), line));
        let secret = secret.trim_start();
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            let why = "expected TOKEN or NAME TOKEN, the token of ASCII characters without spaces";
            return Err(file.line(at + 1, why));
        }
        if secret.len() < TOKEN_BYTES_MIN {
            let why = "the token is shorter than 16 characters: make one with openssl rand -hex 32";
            return Err(file.line(at + 1, why));
        }
        tokens.push(Token { name: name.into(), role, secret: Zeroizing::new(secret.to_owned()) });
    }
    match tokens.is_empty() {
        true => Err(file.content("there is no token in it: make one with openssl rand -hex 32")),
        false => Ok(tokens),
    }
}

/// Whether both are the same, found out in a time that depends on their lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(differing) == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
        use std::io::Write;
        let path = dir.join(name);
        let _ = std::fs::remove_file(&path);
        let mut file =
            std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    #[test]
    fn whose_token_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let admin = file(dir.path(), "admin", "# two\nalice aaaaaaaaaaaaaaaaaaaa\n\nbbbbbbbbbbbbbbbbbbbb\n");
        let read = file(dir.path(), "read", "prometheus cccccccccccccccccccc");
        let tokens = Tokens::read(Some(&admin), Some(&read)).unwrap().unwrap();
        for (token, who) in [
            ("aaaaaaaaaaaaaaaaaaaa", Some(("alice", Role::Admin))),
            ("bbbbbbbbbbbbbbbbbbbb", Some(("admin", Role::Admin))),
            ("cccccccccccccccccccc", Some(("prometheus", Role::Read))),
            ("aaaaaaaaaaaaaaaaaaab", None),
            ("aaaaaaaaaaaaaaaaaaa", None),
            ("aaaaaaaaaaaaaaaaaaaaa", None),
            ("", None),
        ] {
            let found = tokens.check(token);
            assert_eq!(found.as_ref().map(|(name, role)| (&**name, *role)), who, "{token}");
        }
        assert!(Tokens::read(None, None).unwrap().is_none());
    }

    #[test]
    fn files_that_hold_no_tokens() {
        let dir = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("", "there is no token"),
            ("# only\n", "there is no token"),
            ("short\n", "line 1: the token is shorter"),
            ("alice short\n", "shorter than 16"),
            ("alice aaaaaaaaaaaaaaaaaaaa more\n", "line 1: expected TOKEN or NAME TOKEN"),
            ("aaaaaaaaaaaaaaaaaaaa\nalice ääääääääääääääääääää\n", "line 2: expected"),
        ] {
            let path = file(dir.path(), "t", text);
            let error = Tokens::read(Some(&path), None).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("http.admin_token_file"), "{text:?}: {error}");
            assert!(!error.contains("aaaa"), "{error}");
        }
    }

    #[test]
    fn a_file_that_changes_counts_and_a_bad_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "t", "aaaaaaaaaaaaaaaaaaaa");
        let tokens = Tokens::read(Some(&path), None).unwrap().unwrap();
        // A change counts once it has settled: at the second look.
        let look = || (0..2).for_each(|_| tokens.look());
        file(dir.path(), "t", "short");
        look();
        assert!(tokens.check("aaaaaaaaaaaaaaaaaaaa").is_some(), "the tokens of before stay");
        file(dir.path(), "t", "bbbbbbbbbbbbbbbbbbbb");
        look();
        assert!(tokens.check("aaaaaaaaaaaaaaaaaaaa").is_none());
        assert!(tokens.check("bbbbbbbbbbbbbbbbbbbb").is_some());
    }

    #[test]
    fn a_reload_does_not_undo_tokens_that_were_read_after_it_had_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "t", "aaaaaaaaaaaaaaaaaaaa");
        let tokens = Tokens::read(Some(&path), None).unwrap().unwrap();
        let prepared = tokens.prepare(|_| false).unwrap();
        file(dir.path(), "t", "bbbbbbbbbbbbbbbbbbbb\ncccccccccccccccccccc");
        (0..2).for_each(|_| tokens.look());
        assert_eq!(tokens.put(prepared), 2);
        assert!(tokens.check("aaaaaaaaaaaaaaaaaaaa").is_none());
        assert!(tokens.check("bbbbbbbbbbbbbbbbbbbb").is_some());
    }
}
