//! Users with passwords, in a file or in the cluster's directory.

pub mod hash;
pub mod pool;
pub mod scram;
pub mod users;

use super::method::{Checked, Method, Prepared, Refusal, Request};
use crate::clock;
use crate::ports::{Account, AccountMark};
use crate::readings::Readings;
use crate::secret_file::{FileError, Privacy, WatchedFile};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::AuthDecision;
use foldhash::fast::RandomState;
use futures_util::future::BoxFuture;
use hash::Hash;
use parking_lot::RwLock;
use pool::{Busy, Pool, PoolLimits};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;
use users::{User, Users};
use zeroize::Zeroizing;

/// Marks accounts of this method.
pub(super) const SOURCE: u32 = 1;

/// Checks passwords on threads of its own.
pub struct Checker {
    pool: Pool,
    metrics: Arc<Metrics>,
}

impl Checker {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(limits: PoolLimits, metrics: Arc<Metrics>) -> std::io::Result<Checker> {
        Ok(Checker { pool: Pool::start(limits)?, metrics })
    }

    /// Whether a hash is of a password.
    ///
    /// # Errors
    /// If too many wait for an answer.
    pub async fn is_of(
        &self,
        from: IpAddr,
        hash: Hash,
        password: Zeroizing<Vec<u8>>,
    ) -> Result<bool, Refusal> {
        let (done, outcome) = oneshot::channel();
        let metrics = self.metrics.clone();
        metrics.password_checks_waiting.add(1);
        let waits = Waits(metrics.clone());
        let job = move || {
            drop(waits);
            // Nobody waits for it any more: the client is gone.
            if done.is_closed() {
                return;
            }
            let begun = clock::monotonic_us();
            let is_of = hash.is_of(&password);
            metrics.password_check_seconds.record((clock::monotonic_us() - begun) as f64 / 1e6);
            let _ = done.send(is_of);
        };
        self.pool.submit(from, Box::new(job)).map_err(|busy| {
            Refusal::new(
                AuthDecision::Busy,
                match busy {
                    Busy::All => "too many passwords wait to be checked (auth.password.queue)",
                    Busy::Address => {
                        "too many passwords of this address wait to be checked (auth.password.queue_per_address)"
                    }
                },
            )
        })?;
        outcome.await.map_err(|_| Refusal::new(AuthDecision::Unavailable, "the password was not checked"))
    }
}

/// Counted as waiting until it is dropped.
struct Waits(Arc<Metrics>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.password_checks_waiting.sub(1);
    }
}

/// Where users come from.
enum Source {
    /// From a file.
    File(WatchedFile),
    /// From the cluster's directory.
    Directory {
        /// What is there was seen, now or by an earlier process of this node.
        known: AtomicBool,
    },
}

/// The users in a file. `note`: what was read is no change any more.
fn read(file: &WatchedFile, note: bool, hasher: &RandomState) -> Result<Users, FileError> {
    let bytes = if note { file.read()? } else { file.peek()? };
    Users::parse(&bytes, file, hasher)
}

/// Knows users from a file, or from the cluster's directory.
pub struct Passwords {
    source: Source,
    readings: Readings,
    users: RwLock<Users>,
    checker: Arc<Checker>,
    hasher: RandomState,
}

impl Passwords {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, is wrong, or others can read it.
    pub fn open(path: &Path, checker: Arc<Checker>) -> Result<Passwords, FileError> {
        let file = WatchedFile::new("auth.password.file", path, Privacy::Secret);
        let hasher = RandomState::default();
        let users = read(&file, true, &hasher)?;
        Ok(Passwords::of(Source::File(file), users, checker, hasher))
    }

    /// Users of the cluster's directory, which is not known yet.
    pub fn of_directory(checker: Arc<Checker>) -> Passwords {
        let source = Source::Directory { known: AtomicBool::new(false) };
        Passwords::of(source, Users::default(), checker, RandomState::default())
    }

    fn of(source: Source, users: Users, checker: Arc<Checker>, hasher: RandomState) -> Passwords {
        Passwords { source, readings: Readings::default(), users: RwLock::new(users), checker, hasher }
    }

    /// A user as it is now, and its name.
    ///
    /// # Errors
    /// If it is not known who the users are.
    pub fn find(&self, name: &str) -> Result<Option<(Arc<str>, User)>, Refusal> {
        if let Source::Directory { known } = &self.source
            && !known.load(Ordering::Acquire)
        {
            let why = "the users in etcd have not been read yet, and this node's journal has none";
            return Err(Refusal::new(AuthDecision::Unavailable, why));
        }
        let users = self.users.read();
        Ok(users.by_name.get_key_value(name).map(|(name, user)| (name.clone(), user.clone())))
    }

    /// Makes what users that nobody knows are told; `None` if there are no users.
    pub fn secret(&self) -> Option<[u8; 32]> {
        self.users.read().secret.as_ref().map(|(_, secret)| *secret)
    }

    /// Users by name, those after `after`, at most `limit`; and how many there are.
    pub fn page(&self, after: &str, limit: usize) -> (Vec<(Arc<str>, User)>, usize) {
        let users = self.users.read();
        let mut names: Vec<&Arc<str>> = users.by_name.keys().filter(|name| &***name > after).collect();
        names.sort_unstable();
        let found = names.into_iter().take(limit);
        let found = found.filter_map(|name| Some((name.clone(), users.by_name.get(name)?.clone()))).collect();
        (found, users.by_name.len())
    }

    /// The file, if the users are in one.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(file) => Some(file.path()),
            Source::Directory { .. } => None,
        }
    }

    /// The directory is known: who is not among the users is none.
    pub(super) fn known(&self) {
        if let Source::Directory { known } = &self.source {
            known.store(true, Ordering::Release);
        }
    }

    /// Sets a user or (`None`) removes it; true if that changes anything. The version of `user` is made of `value`.
    pub(super) fn set(&self, name: &Arc<str>, user: Option<User>, value: &[u8]) -> bool {
        let mut users = self.users.write();
        let Some(mut user) = user else { return users.remove(name) };
        user.version = self.hasher.hash_one(value).max(1);
        let version = user.version;
        users.insert(name, user).is_none_or(|before| before.version != version)
    }

    /// Whether there is room for a user of this name.
    pub(super) fn has_room(&self, name: &str) -> bool {
        let users = self.users.read();
        users.by_name.len() < users::USERS_MAX || users.by_name.contains_key(name)
    }
}

/// The account of a user of the file.
pub(super) fn account(name: &Arc<str>, user: &users::User) -> Account {
    Account {
        user: Some(name.clone()),
        groups: user.groups.clone(),
        mark: AccountMark { source: SOURCE, version: user.version },
        ..Account::default()
    }
}

impl Method for Passwords {
    fn name(&self) -> &'static str {
        "password"
    }

    fn check<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Checked> {
        Box::pin(async move {
            let Some((name, password)) = request.pair() else { return Checked::NotMine };
            let (name, user) = match self.find(name) {
                Ok(Some(found)) => found,
                Ok(None) => return Checked::NotMine,
                Err(refusal) => return Checked::Refuse(refusal),
            };
            let password = Zeroizing::new(password.to_vec());
            match self.checker.is_of(request.door.peer.ip(), user.hash.clone(), password).await {
                Ok(true) => Checked::Accept(account(&name, &user)),
                Ok(false) => {
                    let why = format!("wrong password of user {}", crate::names::shown(&name));
                    Checked::Refuse(Refusal::new(AuthDecision::WrongPassword, why))
                }
                Err(refusal) => Checked::Refuse(refusal),
            }
        })
    }

    fn pretend<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let Some((_, password)) = request.pair() else { return Ok(()) };
            let decoy = self.users.read().decoy.clone().unwrap_or_else(Hash::new_decoy);
            let password = Zeroizing::new(password.to_vec());
            self.checker.is_of(request.door.peer.ip(), decoy, password).await.map(|_| ())
        })
    }

    fn files(&self) -> Vec<&WatchedFile> {
        match &self.source {
            Source::File(file) => vec![file],
            Source::Directory { .. } => Vec::new(),
        }
    }

    fn prepare(self: Arc<Self>, note: bool) -> Option<Result<Prepared, Vec<FileError>>> {
        let Source::File(file) = &self.source else { return None };
        let read = || read(file, note, &self.hasher).map_err(|error| vec![error]);
        let users = self.readings.read(read);
        let file = file.path().display().to_string();
        Some(users.map(|users| -> Prepared {
            Box::new(move || {
                self.readings.put(users, |users| *self.users.write() = users);
                format!("{} users from {file}", self.users.read().by_name.len())
            })
        }))
    }

    fn holds(&self, account: &Account, version: u64) -> bool {
        let users = self.users.read();
        account.user.as_ref().and_then(|name| users.by_name.get(name)).is_some_and(|u| u.version == version)
    }
}
