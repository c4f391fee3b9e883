//! The cluster's directory: users, rules and bans that all nodes share. The broker brings its records, in the order of the store, to
//! whoever gives them a meaning, and keeps those that could be read in the journal.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What a ban is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanKind {
    /// A client identifier.
    Client,
    /// A user name.
    User,
    /// An address or a network.
    Address,
}

impl BanKind {
    /// All kinds.
    pub const ALL: [BanKind; 3] = [BanKind::Client, BanKind::User, BanKind::Address];

    /// The kind's name in keys, answers and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BanKind::Client => "client",
            BanKind::User => "user",
            BanKind::Address => "address",
        }
    }

    /// The kind with this name.
    pub fn of(name: &str) -> Option<BanKind> {
        BanKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Names a record of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DirectoryKey {
    /// A user.
    User(Arc<str>),
    /// The rules of what clients may do, all in one record.
    Rules,
    /// A ban.
    Ban {
        /// What the ban is about.
        kind: BanKind,
        /// The name, or the network.
        name: Arc<str>,
    },
}

impl DirectoryKey {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<DirectoryKey> {
        if text == "acl/rules" {
            return Some(DirectoryKey::Rules);
        }
        let (family, name) = text.split_once('/')?;
        match family {
            "users" if !name.is_empty() => Some(DirectoryKey::User(name.into())),
            "bans" => {
                let (kind, name) = name.split_once('/')?;
                let kind = BanKind::of(kind)?;
                (!name.is_empty()).then(|| DirectoryKey::Ban { kind, name: name.into() })
            }
            _ => None,
        }
    }
}

impl fmt::Display for DirectoryKey {
    /// As in the store, but for names, which are not encoded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DirectoryKey::User(name) => write!(f, "users/{name}"),
            DirectoryKey::Rules => f.write_str("acl/rules"),
            DirectoryKey::Ban { kind, name } => write!(f, "bans/{}/{name}", kind.name()),
        }
    }
}

/// A record of the directory as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryRecord {
    /// The record's name.
    pub key: DirectoryKey,
    /// The record's value, as the store has it.
    pub value: Arc<[u8]>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryOutcome {
    /// The record is as it was.
    Same,
    /// The record holds from now on, or is gone: the journal is to keep that.
    Changed,
    /// The record cannot be read: the journal is to keep the last one that could.
    Kept,
}

/// Gives the records of the directory a meaning. Called by one thread at a time, in the order of the store.
pub trait Directory: Send + Sync + 'static {
    /// A snapshot begins (again): what it does not mention is gone when it ends.
    fn begin_snapshot(&self);

    /// A record was set or (`None`) removed.
    fn apply(&self, key: &DirectoryKey, value: Option<&[u8]>) -> DirectoryOutcome;

    /// The snapshot is complete: the directory is known. Returns what was known before and is gone.
    fn end_snapshot(&self) -> Vec<DirectoryKey>;
}

/// Heeds nothing of the directory.
#[derive(Clone, Copy, Debug)]
pub struct NoDirectory;

impl Directory for NoDirectory {
    fn begin_snapshot(&self) {}

    fn apply(&self, _: &DirectoryKey, _: Option<&[u8]>) -> DirectoryOutcome {
        DirectoryOutcome::Same
    }

    fn end_snapshot(&self) -> Vec<DirectoryKey> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let ban = |kind, name: &str| DirectoryKey::Ban { kind, name: name.into() };
        for (key, text) in [
            (DirectoryKey::User("a/b ü".into()), "users/a/b ü"),
            (DirectoryKey::Rules, "acl/rules"),
            (ban(BanKind::Client, "x/y"), "bans/client/x/y"),
            (ban(BanKind::User, "alice"), "bans/user/alice"),
            (ban(BanKind::Address, "10.0.0.0/8"), "bans/address/10.0.0.0/8"),
        ] {
            assert_eq!((key.to_string().as_str(), DirectoryKey::parse(text)), (text, Some(key)));
        }
        for text in ["", "users/", "users", "acl/", "acl/rule", "bans/x", "bans/x/y", "bans/user/", "x/y"] {
            assert_eq!(DirectoryKey::parse(text), None, "{text}");
        }
    }
}
