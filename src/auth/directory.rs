//! The cluster's directory: users, rules and bans that all nodes share, as the watch brings them and as the journal last saw them.
//!
//! What cannot be read never opens anything: a user whose record is unreadable cannot log in, and the rules and bans that hold stay as
//! they are. The log names the key, once for each value.

use super::acl::Access;
use super::bans::{Ban, Bans};
use super::password::Passwords;
use super::password::hash::Hash;
use super::password::scram::ScramKeys;
use super::password::users::{self, User};
use crate::hashing::{HashMap, HashSet};
use crate::names::shown;
use crate::ports::{self, DirectoryKey, DirectoryOutcome, DirectoryRecord};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ReloadResult;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Unreadable records that are named to operators; more are counted.
pub const UNREADABLE_NAMED_MAX: usize = 100;

/// The version of every record, and the only one that this release reads.
const VERSION: u32 = 1;

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// The record of `users/<user>`. Fields that are not known are refused: they may mean that the user is locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRecord {
    v: u32,
    /// The hash of the password, as the password file has it.
    hash: String,
    /// Keys for SCRAM-SHA-256, as the password file has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scram: Option<String>,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
}

/// The record of `bans/<kind>/<name>`; times are milliseconds since the epoch, in the cluster's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BanRecord {
    v: u32,
    /// Why, in an operator's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Since when.
    since: u64,
    /// Until when; missing = until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

fn read<'de, T: Deserialize<'de>>(value: &'de [u8]) -> Result<T, String> {
    // Never with what is there: it may be a secret in the wrong place.
    let wrong = |e: serde_json::Error| {
        format!("it is not the JSON of such a record (line {}, column {})", e.line(), e.column())
    };
    let Versioned { v } = serde_json::from_slice(value).map_err(wrong)?;
    if v != VERSION {
        return Err(format!("it has version {v}, and this release of Berth reads only version {VERSION}"));
    }
    serde_json::from_slice(value).map_err(wrong)
}

/// Reads the record of a user.
///
/// # Errors
/// Why it is none, without a secret.
pub fn read_user(name: &str, value: &[u8]) -> Result<User, String> {
    let record: UserRecord = read(value)?;
    if !users::is_name(name) {
        return Err("the user's name is too long or has characters that it may not have".to_owned());
    }
    user_of(&record.hash, record.scram.as_deref(), &record.groups)
}

/// A user of a hash, keys and groups as an operator gives them.
///
/// # Errors
/// What is wrong, without a secret.
pub fn user_of(hash: &str, scram: Option<&str>, groups: &[String]) -> Result<User, String> {
    let hash = Hash::parse(hash).map_err(|e| e.to_string())?;
    let scram = match scram {
        Some(keys) => Some(ScramKeys::parse(keys).ok_or("its keys for SCRAM-SHA-256 cannot be read")?),
        None => None,
    };
    if let Some(odd) = groups.iter().find(|group| !users::is_name(group)) {
        return Err(format!("\"{}\" cannot be a group's name", shown(odd)));
    }
    let groups = groups.iter().map(|group| Arc::from(&**group)).collect();
    Ok(User { hash, scram, groups, version: 0 })
}

/// The record of a user.
pub fn write_user(user: &User) -> Vec<u8> {
    let record = UserRecord {
        v: VERSION,
        hash: user.hash.to_string(),
        scram: user.scram.as_ref().map(ToString::to_string),
        groups: user.groups.iter().map(|group| group.to_string()).collect(),
    };
    // Strings and numbers always have a JSON form.
    serde_json::to_vec(&record).unwrap_or_default()
}

/// Reads the record of a ban; its times are of the cluster.
///
/// # Errors
/// Why it is none.
pub fn read_ban(kind: ports::BanKind, name: &str, value: &[u8]) -> Result<Ban, String> {
    let BanRecord { reason, since, until, .. } = read(value)?;
    let ban = Ban { kind, name: name.to_owned(), reason, since, until, only_user: None };
    let kept = ban.clone().checked().map_err(|e| e.to_string())?;
    // Or the ban could not be found by its name.
    if kept == ban { Ok(ban) } else { Err(format!("its key must name the network as {}", kept.name)) }
}

/// The record of a ban, whose times are of the cluster.
pub fn write_ban(ban: &Ban) -> Vec<u8> {
    let record = BanRecord { v: VERSION, reason: ban.reason.clone(), since: ban.since, until: ban.until };
    serde_json::to_vec(&record).unwrap_or_default()
}

/// What has changed since somebody last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Users.
    pub users: bool,
    /// Bans.
    pub bans: bool,
}

#[derive(Default)]
struct State {
    /// What tells the values of rules and bans from others. Users have versions.
    marks: HashMap<DirectoryKey, u64>,
    /// The record of the rules that hold.
    rules: Option<Arc<[u8]>>,
    /// Why records cannot be read, and what tells their values from others.
    unreadable: HashMap<DirectoryKey, (u64, String)>,
    /// What the snapshot has mentioned so far; `None` = there is none under way.
    snapshot: Option<HashSet<DirectoryKey>>,
}

/// The cluster's directory: users, rules and bans that all nodes share, as the watch brings them and as the journal last saw them.
pub struct Directory {
    /// `None` = the users are not in the directory.
    users: Option<Arc<Passwords>>,
    /// `None` = the rules are not in the directory.
    access: Option<Arc<Access>>,
    bans: Arc<Bans>,
    state: Mutex<State>,
    hasher: RandomState,
    metrics: Arc<Metrics>,
    changed: (AtomicBool, AtomicBool),
    news: Notify,
}

impl Directory {
    /// Fills these. What is not in the directory is `None`.
    pub fn new(
        users: Option<Arc<Passwords>>,
        access: Option<Arc<Access>>,
        bans: Arc<Bans>,
        metrics: Arc<Metrics>,
    ) -> Directory {
        Directory {
            users,
            access,
            bans,
            state: Mutex::default(),
            hasher: RandomState::default(),
            metrics,
            changed: Default::default(),
            news: Notify::new(),
        }
    }

    /// Takes what the journal has: the directory as it was last seen, until the store is read.
    pub fn recover(&self, records: &[DirectoryRecord]) {
        for DirectoryRecord { key, value } in records {
            ports::Directory::apply(self, key, Some(value));
        }
        let is_user = |record: &DirectoryRecord| matches!(record.key, DirectoryKey::User(_));
        if let Some(users) = self.users.as_ref().filter(|_| records.iter().any(is_user)) {
            users.known();
        }
    }

    /// Completes when something has changed, and says what.
    pub async fn news(&self) -> News {
        self.news.notified().await;
        News {
            users: self.changed.0.swap(false, Ordering::AcqRel),
            bans: self.changed.1.swap(false, Ordering::AcqRel),
        }
    }

    /// The record of the rules that hold, as it was last read; `None` = there was none.
    pub fn rules(&self) -> Option<Arc<[u8]>> {
        self.state.lock().rules.clone()
    }

    /// Records that cannot be read, some of them, in order, each with the reason; and how many there are.
    pub fn unreadable(&self) -> (Vec<String>, usize) {
        let state = self.state.lock();
        let mut all: Vec<String> = state
            .unreadable
            .iter()
            .map(|(key, (_, why))| format!("{}: {why}", shown(&key.to_string())))
            .collect();
        let total = all.len();
        all.sort();
        all.truncate(UNREADABLE_NAMED_MAX);
        (all, total)
    }

    fn tell(&self, key: &DirectoryKey) {
        match key {
            DirectoryKey::User(_) => self.changed.0.store(true, Ordering::Release),
            DirectoryKey::Ban { .. } => self.changed.1.store(true, Ordering::Release),
            DirectoryKey::Rules => {}
        }
        self.news.notify_one();
    }

    /// Makes a record hold; true if that changes anything.
    fn put(&self, state: &mut State, key: &DirectoryKey, value: &[u8], mark: u64) -> Result<bool, String> {
        match key {
            DirectoryKey::User(name) => match &self.users {
                Some(users) if !users.has_room(name) => {
                    return Err(format!("there are more than {} users", users::USERS_MAX));
                }
                Some(users) => {
                    let changed = users.set(name, Some(read_user(name, value)?), value);
                    return Ok(state.marks.insert(key.clone(), mark) != Some(mark) || changed);
                }
                None => drop(read_user(name, value)?),
            },
            _ if state.marks.get(key) == Some(&mark) => return Ok(false),
            DirectoryKey::Rules => {
                if let Some(access) = &self.access {
                    let changes = access.put_stored(Some(access.stored(value)?));
                    state.rules = Some(value.into());
                    self.metrics.acl_rules.set(changes.rules as u64);
                    let otherwise = if access.rules().allows_otherwise() { "allowed" } else { "denied" };
                    tracing::info!(
                        rules = changes.rules,
                        added = changes.added,
                        removed = changes.removed,
                        otherwise,
                        "access rules of the cluster changed"
                    );
                }
            }
            DirectoryKey::Ban { kind, name } => {
                self.bans.share(read_ban(*kind, name, value)?).map_err(|e| e.to_string())?;
            }
        }
        Ok(state.marks.insert(key.clone(), mark) != Some(mark))
    }

    /// A record is gone.
    fn remove(&self, state: &mut State, key: &DirectoryKey) -> DirectoryOutcome {
        let unreadable = state.unreadable.remove(key).is_some();
        let known = state.marks.contains_key(key) || unreadable;
        if *key == DirectoryKey::Rules && known && self.access.is_some() {
            // Commands leave an empty list. Without the key it is not known what was meant, and without rules everything may be allowed.
            let why = "the key was removed, and not by berth ctl acl".to_owned();
            self.cannot_read(state, key, 0, why);
            return DirectoryOutcome::Kept;
        }
        if let (DirectoryKey::User(name), Some(users)) = (key, &self.users) {
            users.set(name, None, &[]);
        }
        if let DirectoryKey::Ban { kind, name } = key {
            self.bans.unshare(*kind, name);
        }
        if state.marks.remove(key).is_some() || unreadable {
            self.tell(key);
            return DirectoryOutcome::Changed;
        }
        DirectoryOutcome::Same
    }

    /// Says once for each value that a record cannot be read.
    fn cannot_read(&self, state: &mut State, key: &DirectoryKey, mark: u64, why: String) {
        if let DirectoryKey::User(name) = key {
            if let Some(users) = &self.users
                && users.set(name, None, &[])
            {
                self.tell(key);
            }
            state.marks.remove(key);
        }
        if state.unreadable.get(key).is_some_and(|(known, _)| *known == mark) {
            return;
        }
        let until_then = match key {
            DirectoryKey::User(_) => {
                self.metrics.account_reloads.of(ReloadResult::Failed).inc();
                "the user cannot log in"
            }
            DirectoryKey::Rules if state.marks.contains_key(key) => {
                self.metrics.acl_reload_failures.inc();
                "the rules stay as they were"
            }
            DirectoryKey::Rules => {
                self.metrics.acl_reload_failures.inc();
                "this node has never seen rules that it could read: everything is denied"
            }
            DirectoryKey::Ban { .. } if state.marks.contains_key(key) => "the ban stays as it was",
            DirectoryKey::Ban { .. } => "it bans nobody",
        };
        tracing::error!(key = %shown(&key.to_string()), why, until_then, "a record of the cluster's directory in etcd cannot be read");
        state.unreadable.insert(key.clone(), (mark, why));
    }
}

impl ports::Directory for Directory {
    fn begin_snapshot(&self) {
        self.state.lock().snapshot = Some(HashSet::default());
    }

    fn apply(&self, key: &DirectoryKey, value: Option<&[u8]>) -> DirectoryOutcome {
        let mut state = self.state.lock();
        let Some(value) = value else { return self.remove(&mut state, key) };
        if let Some(mentioned) = &mut state.snapshot {
            mentioned.insert(key.clone());
        }
        let mark = self.hasher.hash_one(value).max(1);
        match self.put(&mut state, key, value, mark) {
            Ok(changed) => {
                let mended = state.unreadable.remove(key).is_some();
                if mended {
                    tracing::info!(key = %shown(&key.to_string()), "a record of the cluster's directory in etcd can be read again");
                }
                if changed {
                    self.tell(key);
                }
                // After a record that could not be read the journal may have neither.
                if changed || mended { DirectoryOutcome::Changed } else { DirectoryOutcome::Same }
            }
            Err(why) => {
                self.cannot_read(&mut state, key, mark, why);
                DirectoryOutcome::Kept
            }
        }
    }

    fn end_snapshot(&self) -> Vec<DirectoryKey> {
        let mut state = self.state.lock();
        let Some(mentioned) = state.snapshot.take() else { return Vec::new() };
        let known = state.marks.keys().chain(state.unreadable.keys());
        let gone: HashSet<DirectoryKey> = known.filter(|key| !mentioned.contains(*key)).cloned().collect();
        let gone: Vec<DirectoryKey> = gone
            .into_iter()
            .filter(|key| self.remove(&mut state, key) == DirectoryOutcome::Changed)
            .collect();
        if let Some(users) = &self.users {
            users.known();
        }
        let rules = &DirectoryKey::Rules;
        let any = state.marks.contains_key(rules) || state.unreadable.contains_key(rules);
        if let Some(access) = self.access.as_ref().filter(|_| !any) {
            access.put_stored(None);
        }
        gone
    }
}

#[cfg(test)]
mod tests;
