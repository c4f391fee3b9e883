//! Banned clients: by client identifier, user or address, for a time or until they are allowed again; kept in a file. Clients that
//! connect too often ban themselves.

use super::acl::replace;
use crate::broker::ports::{self, Identity};
use crate::clock::Time;
use crate::config::Network;
use crate::names::shown;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bans at a time.
pub const BANS_MAX: usize = 10_000;

/// Bans at a time beyond which nobody is banned for connecting too often: there is room for those that operators order.
pub const FLAPPING_BANS_MAX: usize = BANS_MAX / 2;

/// Bytes of the name and of the reason of a ban.
pub const BAN_TEXT_BYTES_MAX: usize = 1024;

/// Clients whose connects are counted at a time to find those that connect too often.
pub const COUNTED_CLIENTS_MAX: usize = 100_000;

/// The file in the data directory.
const FILE: &str = "bans.json";

/// What a ban is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A client identifier.
    Client,
    /// A user name.
    User,
    /// An address or a network.
    Address,
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// What it is about.
    pub kind: Kind,
    /// The name, or the network.
    pub name: String,
    /// Why, in an operator's words.
    #[serde(default)]
    pub reason: String,
    /// Since when, milliseconds since the epoch.
    pub since: u64,
    /// Until when; missing = until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Of a client identifier: only clients of this user are banned, or anonymous ones (empty); missing = whoever uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_user: Option<String>,
}

impl Ban {
    fn holds(&self, now: Time) -> bool {
        self.until.is_none_or(|until| now < Time(until))
    }

    fn concerns(&self, who: &Identity) -> bool {
        self.only_user.as_ref().is_none_or(|user| who.username.as_deref().unwrap_or_default() == user)
    }

    fn words(&self) -> String {
        let kind = match self.kind {
            Kind::Client => "client ID",
            Kind::User => "user",
            Kind::Address => "address",
        };
        let reason =
            if self.reason.is_empty() { String::new() } else { format!(": {}", shown(&self.reason)) };
        format!("the {kind} is banned{reason}")
    }
}

/// How often is too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flapping {
    /// So many connects of one client ID
    pub connects: u32,
    /// within so many milliseconds
    pub within_ms: u64,
    /// ban it for so many milliseconds.
    pub ban_ms: u64,
}

/// Bans that cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum BanError {
    /// The file cannot be read or written.
    #[error("bans cannot be kept in {path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no list of bans.
    #[error("{path:?} is no list of bans: {why}; mend it, or move it away to begin without bans")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name or reason is too long, empty, or no network.
    #[error("{0}")]
    Invalid(String),
    /// There are too many.
    #[error("there are {BANS_MAX} bans already: remove some")]
    Full,
    /// There is no such ban.
    #[error("there is no such ban: berth ctl bans list shows those that hold")]
    Unknown,
}

#[derive(Debug)]
struct Held {
    ban: Ban,
    /// The log has a line of the first connection that it refused.
    told: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    clients: HashMap<Box<str>, Held>,
    users: HashMap<Box<str>, Held>,
    networks: Vec<(Network, Held)>,
}

/// A client identifier, and the user that uses it.
type Flapper = (Arc<str>, Option<Arc<str>>);

/// See the module.
#[derive(Debug)]
pub struct Bans {
    path: Option<PathBuf>,
    flapping: Option<Flapping>,
    held: RwLock<Kept>,
    /// How many there are, those included whose time has passed: while there is none nobody is asked.
    count: AtomicUsize,
    /// Connects by client ID and user since the begin of a window. One user's are not held against another.
    connects: Mutex<HashMap<Flapper, (Time, u32)>>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

impl Bans {
    /// Reads the bans in a directory (`None` = they last as long as the process).
    ///
    /// # Errors
    /// If there is a file that cannot be read.
    pub fn open(dir: Option<&Path>, flapping: Option<Flapping>, now: Time) -> Result<Bans, BanError> {
        let path = dir.map(|dir| dir.join(FILE));
        let bans = Bans {
            flapping,
            held: RwLock::default(),
            count: AtomicUsize::new(0),
            connects: Mutex::default(),
            writing: Mutex::default(),
            path: path.clone(),
        };
        let Some(path) = path else { return Ok(bans) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(bans),
            Err(source) => return Err(BanError::File { path, source }),
        };
        let broken = |why: String| BanError::Broken { path: path.clone(), why };
        let list: Vec<Ban> = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        for ban in list.into_iter().filter(|ban| ban.holds(now)) {
            bans.put(ban).map_err(|e| broken(e.to_string()))?;
        }
        Ok(bans)
    }

    /// Forgets the bans whose time has passed; how many there are.
    pub fn sweep(&self, now: Time) -> usize {
        if self.count.load(Ordering::Acquire) > 0 {
            self.drop_passed(now);
        }
        self.count.load(Ordering::Acquire)
    }

    /// The bans that hold, in order.
    pub fn list(&self, now: Time) -> Vec<Ban> {
        let held = self.held.read();
        let all =
            held.clients.values().chain(held.users.values()).chain(held.networks.iter().map(|(_, h)| h));
        let mut list: Vec<Ban> = all.map(|h| h.ban.clone()).filter(|ban| ban.holds(now)).collect();
        list.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        list
    }

    /// Bans somebody, or changes the ban that there is; returns it as it is kept.
    ///
    /// # Errors
    /// If it is no ban, there are too many, or it cannot be kept.
    pub fn add(&self, ban: Ban, now: Time) -> Result<Ban, BanError> {
        let _writing = self.writing.lock();
        self.drop_passed(now);
        let kept = self.put(ban)?;
        self.write(now)?;
        Ok(kept)
    }

    /// Ends a ban.
    ///
    /// # Errors
    /// If there is none, or that cannot be kept.
    pub fn remove(&self, kind: Kind, name: &str, now: Time) -> Result<(), BanError> {
        let _writing = self.writing.lock();
        self.drop_passed(now);
        let mut held = self.held.write();
        let known = match kind {
            Kind::Client => held.clients.remove(name).is_some(),
            Kind::User => held.users.remove(name).is_some(),
            Kind::Address => {
                let network: Network =
                    name.parse().map_err(|e| BanError::Invalid(format!("{name:?}: {e}")))?;
                let before = held.networks.len();
                held.networks.retain(|(n, _)| *n != network);
                held.networks.len() < before
            }
        };
        self.recount(&held);
        drop(held);
        if known { self.write(now) } else { Err(BanError::Unknown) }
    }

    fn recount(&self, held: &Kept) {
        let count = held.clients.len() + held.users.len() + held.networks.len();
        self.count.store(count, Ordering::Release);
    }

    fn drop_passed(&self, now: Time) {
        let mut held = self.held.write();
        held.clients.retain(|_, h| h.ban.holds(now));
        held.users.retain(|_, h| h.ban.holds(now));
        held.networks.retain(|(_, h)| h.ban.holds(now));
        self.recount(&held);
    }

    fn put(&self, mut ban: Ban) -> Result<Ban, BanError> {
        if ban.name.is_empty() || ban.name.len() > BAN_TEXT_BYTES_MAX || ban.reason.len() > BAN_TEXT_BYTES_MAX
        {
            let why =
                format!("a ban names somebody, and name and reason have {BAN_TEXT_BYTES_MAX} bytes at most");
            return Err(BanError::Invalid(why));
        }
        let mut held = self.held.write();
        if self.count.load(Ordering::Acquire) >= BANS_MAX {
            return Err(BanError::Full);
        }
        let name: Box<str> = ban.name.as_str().into();
        match ban.kind {
            Kind::Client => {
                drop(held.clients.insert(name, Held { ban: ban.clone(), told: AtomicBool::new(false) }))
            }
            Kind::User => {
                drop(held.users.insert(name, Held { ban: ban.clone(), told: AtomicBool::new(false) }))
            }
            Kind::Address => {
                let network: Network =
                    name.parse().map_err(|e| BanError::Invalid(format!("{name:?}: {e}")))?;
                ban.name = network.to_string();
                held.networks.retain(|(n, _)| *n != network);
                held.networks.push((network, Held { ban: ban.clone(), told: AtomicBool::new(false) }));
            }
        }
        self.recount(&held);
        Ok(ban)
    }

    fn write(&self, now: Time) -> Result<(), BanError> {
        let Some(path) = &self.path else { return Ok(()) };
        let error = |source| BanError::File { path: path.clone(), source };
        // Those of clients that connect too often end with the process.
        let kept: Vec<Ban> = self.list(now).into_iter().filter(|ban| ban.only_user.is_none()).collect();
        let text = serde_json::to_string_pretty(&kept).map_err(|e| error(e.into()))? + "\n";
        if !path.exists() {
            std::fs::write(path, "[]\n").map_err(error)?;
        }
        replace(path, &text).map_err(error)
    }
}

impl ports::Bans for Bans {
    fn banned(&self, who: &Identity, now: Time) -> Option<String> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let held = self.held.read();
        let user = who.username.as_deref().and_then(|user| held.users.get(user));
        let peer = who.door.peer.ip();
        let network =
            || held.networks.iter().find(|(n, h)| n.contains(peer) && h.ban.holds(now)).map(|(_, h)| h);
        let client = held.clients.get(&*who.client_id).filter(|h| h.ban.concerns(who));
        let found = [client, user].into_iter().flatten().find(|h| h.ban.holds(now));
        let found = found.or_else(network)?;
        if !found.told.swap(true, Ordering::Relaxed) {
            tracing::info!(kind = ?found.ban.kind, name = %shown(&found.ban.name), client = %shown(&who.client_id), peer = %who.door.peer,
                reason = %shown(&found.ban.reason), "a banned client is refused; later ones of this ban are counted only");
        }
        Some(found.ban.words())
    }

    fn connects(&self, who: &Identity, now: Time) -> Option<String> {
        let limit = self.flapping?;
        let flapper = (who.client_id.clone(), who.username.clone());
        let mut connects = self.connects.lock();
        if connects.len() >= COUNTED_CLIENTS_MAX && !connects.contains_key(&flapper) {
            connects.retain(|_, (since, _)| now.since_ms(*since) < limit.within_ms);
            if connects.len() >= COUNTED_CLIENTS_MAX {
                return None; // more clients than are followed: none of them is taken for one that flaps
            }
        }
        let (since, count) = connects.entry(flapper.clone()).or_insert((now, 0));
        if now.since_ms(*since) >= limit.within_ms {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count <= limit.connects {
            return None;
        }
        connects.remove(&flapper);
        drop(connects);
        if self.count.load(Ordering::Acquire) >= FLAPPING_BANS_MAX {
            return None;
        }
        let ban = Ban {
            kind: Kind::Client,
            name: who.client_id.to_string(),
            reason: format!(
                "more than {} connects within {} s",
                limit.connects,
                limit.within_ms.div_ceil(1000)
            ),
            since: now.as_millis(),
            until: Some(now.plus_ms(limit.ban_ms).as_millis()),
            only_user: Some(who.username.as_deref().unwrap_or_default().to_owned()),
        };
        let words = ban.words();
        tracing::warn!(client = %shown(&who.client_id), peer = %who.door.peer, reason = %ban.reason, ban_ms = limit.ban_ms, "a client that connects too often is banned");
        // Not in the file: a short ban is not worth a write for each such client.
        self.drop_passed(now);
        self.put(ban).ok().map(|_| words)
    }
}
