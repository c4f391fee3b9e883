//! Banned clients: by client identifier, user or address, for a time or until they are allowed again; kept in a file of the node, or in
//! the cluster's directory. Clients that connect too often ban themselves, on the node where they do.

use super::acl::replace;
use crate::clock::Time;
use crate::config::Network;
use crate::hashing::HashMap;
use crate::names::shown;
pub use crate::ports::BanKind as Kind;
use crate::ports::{self, ClusterTime, Identity};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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

    /// The ban as it is kept.
    ///
    /// # Errors
    /// If it names nobody, says too much, or is about no network.
    pub fn checked(mut self) -> Result<Ban, BanError> {
        if self.name.is_empty()
            || self.name.len() > BAN_TEXT_BYTES_MAX
            || self.reason.len() > BAN_TEXT_BYTES_MAX
        {
            let why =
                format!("a ban names somebody, and name and reason have {BAN_TEXT_BYTES_MAX} bytes at most");
            return Err(BanError::Invalid(why));
        }
        self.name = kept_name(self.kind, &self.name)?;
        Ok(self)
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

/// Bans by what they are about.
#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Box<str>, Held>,
    users: HashMap<Box<str>, Held>,
    networks: Vec<(Network, Held)>,
}

/// A client identifier, and the user that uses it.
type Flapper = (Arc<str>, Option<Arc<str>>);

impl Table {
    fn len(&self) -> usize {
        self.clients.len() + self.users.len() + self.networks.len()
    }

    fn list(&self) -> impl Iterator<Item = &Ban> {
        let networks = self.networks.iter().map(|(_, held)| held);
        self.clients.values().chain(self.users.values()).chain(networks).map(|held| &held.ban)
    }

    /// The ban of a client that holds `now`; `None` = none has passed.
    fn find(&self, who: &Identity, now: Option<Time>) -> Option<&Held> {
        let holds = |held: &&Held| now.is_none_or(|now| held.ban.holds(now));
        let user = who.username.as_deref().and_then(|user| self.users.get(user));
        let client = self.clients.get(&*who.client_id).filter(|held| held.ban.concerns(who));
        let found = [client, user].into_iter().flatten().find(holds);
        let peer = who.door.peer.ip();
        let network = || {
            let networks = self.networks.iter().filter(|(network, _)| network.contains(peer));
            networks.map(|(_, held)| held).find(holds)
        };
        found.or_else(network)
    }

    fn drop_passed(&mut self, now: Time) {
        self.clients.retain(|_, held| held.ban.holds(now));
        self.users.retain(|_, held| held.ban.holds(now));
        self.networks.retain(|(_, held)| held.ban.holds(now));
    }

    fn put(&mut self, ban: Ban) -> Result<Ban, BanError> {
        let ban = ban.checked()?;
        if self.len() >= BANS_MAX && !self.has(ban.kind, &ban.name) {
            return Err(BanError::Full);
        }
        let name: Box<str> = ban.name.as_str().into();
        let held = Held { ban: ban.clone(), told: AtomicBool::new(false) };
        match ban.kind {
            Kind::Client => drop(self.clients.insert(name, held)),
            Kind::User => drop(self.users.insert(name, held)),
            Kind::Address => {
                let network = network(&name)?;
                self.networks.retain(|(n, _)| *n != network);
                self.networks.push((network, held));
            }
        }
        Ok(ban)
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Client => self.clients.contains_key(name),
            Kind::User => self.users.contains_key(name),
            Kind::Address => self.networks.iter().any(|(_, held)| held.ban.name == name),
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Client => self.clients.remove(name).is_some(),
            Kind::User => self.users.remove(name).is_some(),
            Kind::Address => {
                let before = self.networks.len();
                self.networks.retain(|(_, held)| held.ban.name != name);
                self.networks.len() < before
            }
        }
    }
}

fn network(name: &str) -> Result<Network, BanError> {
    name.parse().map_err(|e| BanError::Invalid(format!("{name:?}: {e}")))
}

/// The name of a ban as it is kept: that of a network has one form only.
///
/// # Errors
/// If it is no network.
pub fn kept_name(kind: Kind, name: &str) -> Result<String, BanError> {
    Ok(if kind == Kind::Address { network(name)?.to_string() } else { name.to_owned() })
}

/// Bans of this node and of the cluster.
#[derive(Debug)]
pub struct Bans {
    path: Option<PathBuf>,
    flapping: RwLock<Option<Flapping>>,
    own: RwLock<Table>,
    /// Of the cluster's directory, in the cluster's time.
    shared: RwLock<Table>,
    time: OnceLock<Arc<ClusterTime>>,
    /// How many there are, those included whose time has passed: while there is none nobody is asked.
    count: [AtomicUsize; 2],
    /// Connects by client ID and user since the begin of a window. One user's are not held against another.
    connects: Mutex<HashMap<Flapper, (Time, u32)>>,
    /// Held while the file is read or written.
    writing: Mutex<()>,
    /// How often operators have changed the bans of this node.
    changes: AtomicU64,
}

/// Bans of this node that were read and do not count yet.
#[derive(Debug)]
pub struct PreparedBans {
    flapping: Option<Flapping>,
    /// `None` = they are in no file.
    own: Option<Table>,
    /// See [`Bans::changes`].
    changes: u64,
}

/// The bans in a file that hold; none if there is no file.
fn read(path: &Path, now: Time) -> Result<Table, BanError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
        Err(source) => return Err(BanError::File { path: path.to_owned(), source }),
    };
    let broken = |why: String| BanError::Broken { path: path.to_owned(), why };
    let list: Vec<Ban> = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
    let mut table = Table::default();
    for ban in list.into_iter().filter(|ban| ban.holds(now)) {
        table.put(ban).map_err(|e| broken(e.to_string()))?;
    }
    Ok(table)
}

impl Bans {
    /// Reads the bans in a directory (`None` = they last as long as the process).
    ///
    /// # Errors
    /// If there is a file that cannot be read.
    pub fn open(dir: Option<&Path>, flapping: Option<Flapping>, now: Time) -> Result<Bans, BanError> {
        let path = dir.map(|dir| dir.join(FILE));
        let own = path.as_deref().map(|path| read(path, now)).transpose()?.unwrap_or_default();
        let bans = Bans {
            path,
            flapping: RwLock::new(flapping),
            own: RwLock::default(),
            shared: RwLock::default(),
            time: OnceLock::new(),
            count: Default::default(),
            connects: Mutex::default(),
            writing: Mutex::default(),
            changes: AtomicU64::new(0),
        };
        bans.recount(0, &own);
        *bans.own.write() = own;
        Ok(bans)
    }

    /// Reads the file again, and changes nothing: what it holds counts once it is given to [`Bans::put_all`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn prepare(&self, flapping: Option<Flapping>, now: Time) -> Result<PreparedBans, BanError> {
        let _writing = self.writing.lock();
        let changes = self.changes.load(Ordering::Acquire);
        let own = self.path.as_deref().map(|path| read(path, now)).transpose()?;
        Ok(PreparedBans { flapping, own, changes })
    }

    /// What was read counts from now on, for this node; how many bans of its own there are. Bans of clients that connect too often are in
    /// no file, and stay.
    pub fn put_all(&self, prepared: PreparedBans, now: Time) -> usize {
        let _writing = self.writing.lock();
        *self.flapping.write() = prepared.flapping;
        let mut own = self.own.write();
        // What an operator has changed since the file was read is in it by now.
        let newest = prepared.changes == self.changes.load(Ordering::Acquire);
        if let Some(mut read) = prepared.own.filter(|_| newest) {
            for ban in own.list().filter(|ban| ban.only_user.is_some() && ban.holds(now)) {
                if !read.has(ban.kind, &ban.name) {
                    // Where there is no room for it, operators have banned many.
                    let _ = read.put(ban.clone());
                }
            }
            *own = read;
        }
        self.recount(0, &own);
        own.len()
    }

    /// Forgets the bans of this node whose time has passed; how many there are that hold, those of the cluster included.
    pub fn sweep(&self, now: Time) -> usize {
        if self.count.iter().all(|count| count.load(Ordering::Acquire) == 0) {
            return 0;
        }
        let mut own = self.own.write();
        own.drop_passed(now);
        self.recount(0, &own);
        drop(own);
        self.list(now).len()
    }

    /// Bans of the cluster pass by this time from now on; before, none passes.
    pub fn pass_by(&self, time: Arc<ClusterTime>) {
        self.time.get_or_init(|| time);
    }

    /// The moment of the cluster's time by which its bans are judged; `None` = none has passed.
    fn cluster_now(&self, now: Time) -> Option<Time> {
        self.time.get()?.judged_at(now)
    }

    /// The bans that hold, in order; times are of this node's clock.
    pub fn list(&self, now: Time) -> Vec<Ban> {
        let mut list: Vec<Ban> = self.own_list(now);
        let (at, time) = (self.cluster_now(now), self.time.get());
        let own = |moment: u64| time.map_or(moment, |time| time.own(Time(moment)).as_millis());
        let shared = self.shared.read();
        for ban in shared.list().filter(|ban| at.is_none_or(|at| ban.holds(at))) {
            list.retain(|of_node| (of_node.kind, &of_node.name) != (ban.kind, &ban.name));
            list.push(Ban { since: own(ban.since), until: ban.until.map(own), ..ban.clone() });
        }
        list.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        list
    }

    fn own_list(&self, now: Time) -> Vec<Ban> {
        let mut list: Vec<Ban> = self.own.read().list().filter(|ban| ban.holds(now)).cloned().collect();
        list.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        list
    }

    /// Bans somebody on this node, or changes the ban that there is; returns it as it is kept.
    ///
    /// # Errors
    /// If it is no ban, there are too many, or it cannot be kept.
    pub fn add(&self, ban: Ban, now: Time) -> Result<Ban, BanError> {
        let _writing = self.writing.lock();
        let kept = self.put(ban, now)?;
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.write(now)?;
        Ok(kept)
    }

    /// Ends a ban of this node.
    ///
    /// # Errors
    /// If there is none, or that cannot be kept.
    pub fn remove(&self, kind: Kind, name: &str, now: Time) -> Result<(), BanError> {
        let _writing = self.writing.lock();
        let name = kept_name(kind, name)?;
        let mut own = self.own.write();
        own.drop_passed(now);
        let known = own.remove(kind, &name);
        self.recount(0, &own);
        self.changes.fetch_add(1, Ordering::AcqRel);
        drop(own);
        if known { self.write(now) } else { Err(BanError::Unknown) }
    }

    fn recount(&self, layer: usize, table: &Table) {
        if let Some(count) = self.count.get(layer) {
            count.store(table.len(), Ordering::Release);
        }
    }

    fn put(&self, ban: Ban, now: Time) -> Result<Ban, BanError> {
        let mut own = self.own.write();
        own.drop_passed(now);
        let kept = own.put(ban);
        self.recount(0, &own);
        kept
    }

    fn write(&self, now: Time) -> Result<(), BanError> {
        let Some(path) = &self.path else { return Ok(()) };
        let error = |source| BanError::File { path: path.clone(), source };
        // Those of clients that connect too often end with the process.
        let kept: Vec<Ban> = self.own_list(now).into_iter().filter(|ban| ban.only_user.is_none()).collect();
        let text = serde_json::to_string_pretty(&kept).map_err(|e| error(e.into()))? + "\n";
        if !path.exists() {
            std::fs::write(path, "[]\n").map_err(error)?;
        }
        replace(path, &text).map_err(error)
    }

    /// A ban of the cluster, in the cluster's time, was set.
    ///
    /// # Errors
    /// If it is no ban, or there are too many.
    pub(super) fn share(&self, ban: Ban) -> Result<(), BanError> {
        let mut shared = self.shared.write();
        let put = shared.put(ban).map(|_| ());
        self.recount(1, &shared);
        put
    }

    /// A ban of the cluster is gone; whether there was one.
    pub(super) fn unshare(&self, kind: Kind, name: &str) -> bool {
        let mut shared = self.shared.write();
        let known = shared.remove(kind, name);
        self.recount(1, &shared);
        known
    }

    /// Whether the cluster may get a ban of this: it has room for one more, those counted whose time has passed, or one already, which the
    /// new one replaces.
    pub fn shared_takes(&self, kind: Kind, name: &str) -> bool {
        let shared = self.shared.read();
        shared.len() < BANS_MAX || shared.has(kind, name)
    }

    /// Some bans of the cluster whose time has passed.
    pub fn passed(&self, now: Time, max: usize) -> Vec<(Kind, String)> {
        let Some(at) = self.cluster_now(now) else { return Vec::new() };
        let shared = self.shared.read();
        shared.list().filter(|ban| !ban.holds(at)).take(max).map(|b| (b.kind, b.name.clone())).collect()
    }
}

impl ports::Bans for Bans {
    fn banned(&self, who: &Identity, now: Time) -> Option<String> {
        let any = |layer: &AtomicUsize| layer.load(Ordering::Acquire) > 0;
        let [own, shared] = [self.count.first(), self.count.last()].map(|layer| layer.is_some_and(any));
        let own = if own { told(&self.own.read(), who, Some(now)) } else { None };
        match own {
            None if shared => told(&self.shared.read(), who, self.cluster_now(now)),
            found => found,
        }
    }

    fn connects(&self, who: &Identity, now: Time) -> Option<String> {
        let limit = (*self.flapping.read())?;
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
        if self.own.read().len() >= FLAPPING_BANS_MAX {
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
        // Neither in the file nor in the cluster's directory: a short ban is not worth a write for each such client.
        self.put(ban, now).ok().map(|_| words)
    }
}

/// Why a client is banned by a table, in words; the log has it once a ban.
fn told(table: &Table, who: &Identity, now: Option<Time>) -> Option<String> {
    let found = table.find(who, now)?;
    if !found.told.swap(true, Ordering::Relaxed) {
        tracing::info!(kind = ?found.ban.kind, name = %shown(&found.ban.name), client = %shown(&who.client_id), peer = %who.door.peer,
            reason = %shown(&found.ban.reason), "a banned client is refused; later ones of this ban are counted only");
    }
    Some(found.ban.words())
}
