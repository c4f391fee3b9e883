//! The file of users: lines `user:hash`, with further fields behind.

use super::hash::Hash;
use super::scram::{ScramKeys, sha256};
use crate::hashing::HashMap;
use crate::secret_file::{FileError, WatchedFile};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Users in the password file, at most.
pub const USERS_MAX: usize = 1_000_000;

/// Bytes of a user's or a group's name.
pub const USER_NAME_MAX: usize = 1_024;

/// The field with SCRAM-SHA-256's keys.
const SCRAM: &str = "scram-sha-256";
/// The field with the groups, commas between.
const GROUPS: &str = "groups";

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The hash of the password.
    pub hash: Hash,
    /// Keys for SCRAM-SHA-256, if there are any.
    pub scram: Option<ScramKeys>,
    /// Groups that the user is in.
    pub groups: Box<[Arc<str>]>,
    /// Tells this state of the user from others.
    pub version: u64,
}

/// Users by name.
#[derive(Debug, Default)]
pub struct Users {
    /// The users.
    pub by_name: HashMap<Arc<str>, User>,
    /// A hash that costs as much as those of the users, and that is of no password.
    pub decoy: Option<Hash>,
    /// Makes what users that nobody knows are told: the same on every node with these users, and after a restart. It is made of the
    /// hash of the user whose name comes first.
    pub secret: Option<(Arc<str>, [u8; 32])>,
}

/// Whether a user or a group can be called so: a file must be able to hold the name, and a log line.
pub fn is_name(name: &str) -> bool {
    let odd = |c: char| matches!(c, ':' | ',') || c.is_control();
    !name.is_empty() && name.len() <= USER_NAME_MAX && !name.contains(odd) && name.trim() == name
}

/// Whether a user of another source than a file can be called so: a log line must be able to hold the name.
pub fn is_foreign_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= USER_NAME_MAX && !name.chars().any(char::is_control)
}

/// One line without its user's name.
///
/// # Errors
/// Says what is wrong, without a secret.
pub fn parse_fields(fields: &str) -> Result<User, String> {
    let mut fields = fields.split(':');
    let hash = Hash::parse(fields.next().unwrap_or_default()).map_err(|e| e.to_string())?;
    let mut user = User { hash, scram: None, groups: Box::default(), version: 0 };
    for field in fields {
        match field.split_once('=') {
            Some((SCRAM, keys)) => {
                user.scram = Some(ScramKeys::parse(keys).ok_or("its scram-sha-256 field cannot be read")?);
            }
            Some((GROUPS, names)) => {
                let names: Vec<&str> = names.split(',').collect();
                if !names.iter().all(|n| is_name(n)) {
                    return Err("its groups field has a name that is none".to_owned());
                }
                user.groups = names.into_iter().map(Arc::from).collect();
            }
            // Said without the text: it may be the rest of a password with a colon in it.
            _ => return Err(format!("a field behind the hash is neither {SCRAM}= nor {GROUPS}=")),
        }
    }
    Ok(user)
}

/// A line of the file.
pub fn line(name: &str, user: &User) -> String {
    let mut line = format!("{name}:{}", user.hash);
    if let Some(keys) = &user.scram {
        line.push_str(&format!(":{SCRAM}={keys}"));
    }
    if !user.groups.is_empty() {
        line.push_str(&format!(":{GROUPS}={}", user.groups.join(",")));
    }
    line
}

/// The user that a line is about; `None` if it is blank or a comment.
pub fn name_in(line: &str) -> Option<&str> {
    let line = line.trim_end_matches('\r');
    if line.trim().is_empty() || line.starts_with('#') {
        return None;
    }
    Some(line.split_once(':').map_or(line, |(name, _)| name))
}

impl Users {
    /// A user is set.
    fn note_secret(&mut self, name: &Arc<str>, user: &User) {
        if self.secret.as_ref().is_none_or(|(first, _)| name <= first) {
            self.secret = Some((name.clone(), sha256(format!("decoys {}", user.hash).as_bytes())));
        }
    }

    /// Sets a user; the one that it takes the place of.
    pub fn insert(&mut self, name: &Arc<str>, user: User) -> Option<User> {
        self.decoy.get_or_insert_with(|| user.hash.decoy());
        self.note_secret(name, &user);
        self.by_name.insert(name.clone(), user)
    }

    /// Removes a user; whether there was one.
    pub fn remove(&mut self, name: &Arc<str>) -> bool {
        let known = self.by_name.remove(name).is_some();
        if self.secret.take_if(|(first, _)| first == name).is_some()
            && let Some((next, user)) = self.by_name.iter().min_by_key(|(name, _)| (*name).clone())
        {
            let (next, user) = (next.clone(), user.clone());
            self.note_secret(&next, &user);
        }
        known
    }

    /// Reads a file's content. `hasher` makes the versions of users.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &[u8], file: &WatchedFile, hasher: &impl BuildHasher) -> Result<Users, FileError> {
        let mut users = Users::default();
        let mut lines: HashMap<Arc<str>, usize> = HashMap::default();
        for (at, bytes) in text.split(|b| *b == b'\n').enumerate() {
            let number = at + 1;
            let wrong = |why: String| file.line(number, why);
            let line = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
            let Some(name) = name_in(line) else { continue };
            let line = line.trim_end_matches('\r');
            let fields = line.get(name.len()..).and_then(|rest| rest.strip_prefix(':'));
            let fields = fields.ok_or_else(|| wrong("expected user:hash".to_owned()))?;
            if !is_name(name) {
                return Err(wrong(
                    "the user's name is empty, too long or has characters that it may not have".into(),
                ));
            }
            let mut user = parse_fields(fields)
                .map_err(|why| wrong(format!("user {:?}: {why}", crate::names::shown(name).to_string())))?;
            user.version = hasher.hash_one(line).max(1);
            users.decoy.get_or_insert_with(|| user.hash.decoy());
            let name: Arc<str> = name.into();
            users.note_secret(&name, &user);
            if let Some(before) = lines.insert(name.clone(), number) {
                return Err(wrong(format!("the user is in line {before} as well")));
            }
            users.by_name.insert(name, user);
            if users.by_name.len() > USERS_MAX {
                return Err(wrong(format!("there are more than {USERS_MAX} users")));
            }
        }
        Ok(users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret_file::Privacy;
    use foldhash::fast::RandomState;
    use std::path::Path;

    const HASH: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    fn parse(text: &str) -> Result<Users, String> {
        let file = WatchedFile::new("auth.password.file", Path::new("/etc/berth/users"), Privacy::Secret);
        Users::parse(text.as_bytes(), &file, &RandomState::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_of_all_forms_are_read_and_written_again() {
        let keys = ScramKeys::of(b"password", b"0123456789abcdef", 4096);
        let full = format!("bob:{HASH}:scram-sha-256={keys}:groups=ops,home staff");
        let text = format!("# users\n\nalice:{HASH}\r\n{full}\nçelik:{HASH}:groups=x");
        let users = parse(&text).unwrap().by_name;
        let mut names: Vec<_> = users.keys().map(|n| n.to_string()).collect();
        names.sort();
        assert_eq!(names, ["alice", "bob", "çelik"]);
        let bob = &users["bob"];
        assert_eq!(
            (bob.scram.as_ref(), &*bob.groups),
            (Some(&keys), &["ops".into(), "home staff".into()][..])
        );
        assert_eq!(line("bob", bob), full);
        assert_ne!(users["alice"].version, bob.version);
    }

    #[test]
    fn a_wrong_line_is_named_and_its_secret_is_not() {
        for (text, at, what) in [
            (format!("a:{HASH}\nb:hunter2"), 2, "plain text"),
            (format!("a:{HASH}\n\n#\nb"), 4, "expected user:hash"),
            (format!("a:{HASH}:hunter2"), 1, "neither"),
            (format!("a:{HASH}:groups=hunter2,,"), 1, "groups"),
            (format!("a:{HASH}:scram-sha-256=hunter2"), 1, "scram"),
            (format!(":{HASH}"), 1, "name"),
            (format!(" a:{HASH}"), 1, "name"),
            (format!("a:{HASH}\nb:{HASH}\na:{HASH}"), 3, "line 1"),
            (format!("a:{}", &HASH[..40]), 1, "argon2id"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.contains(&format!("\"/etc/berth/users\" (auth.password.file), line {at}: ")),
                "{error}"
            );
            assert!(error.contains(what) && !error.contains("hunter2"), "{error}");
        }
    }

    proptest::proptest! {
        /// Whatever stands in a file of users, it is read or refused.
        #[test]
        fn no_file_of_users_makes_its_reader_panic(
            noise in "[\\x00-\\x7fé]{0,20}",
            at in 0_usize..300,
            instead in 0_usize..30,
        ) {
            let keys = ScramKeys::of(b"password", b"0123456789abcdef", 4096);
            let good = format!("a:{HASH}\nb:{HASH}:scram-sha-256={keys}:groups=x,y\nc:$7$101$AAAA$BBBB\nd:$6$AA$BB\n");
            let start = at.min(good.len());
            let text = format!("{}{noise}{}", &good[..start], good.get(start + instead..).unwrap_or_default());
            if let Ok(users) = parse(&text) {
                users.by_name.iter().for_each(|(name, user)| assert!(!line(name, user).is_empty()));
            }
        }
    }
}
