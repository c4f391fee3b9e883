//! Users with passwords, in a file.

pub mod hash;
pub mod pool;
pub mod scram;
pub mod users;

use super::method::{Checked, Method, Refusal, Request};
use crate::broker::ports::{Account, AccountMark};
use crate::clock;
use crate::secret_file::{FileError, Privacy, WatchedFile};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::AuthDecision;
use foldhash::fast::RandomState;
use futures_util::future::BoxFuture;
use hash::Hash;
use parking_lot::RwLock;
use pool::{Busy, Pool, PoolLimits};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;
use users::Users;
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

/// Knows users from a file.
pub struct Passwords {
    file: WatchedFile,
    users: RwLock<Arc<Users>>,
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
        let passwords = Passwords { file, users: RwLock::default(), checker, hasher: RandomState::default() };
        passwords.read()?;
        Ok(passwords)
    }

    fn read(&self) -> Result<usize, FileError> {
        let users = Users::parse(&self.file.read()?, &self.file, &self.hasher)?;
        let n = users.by_name.len();
        *self.users.write() = Arc::new(users);
        Ok(n)
    }

    /// The users now.
    pub fn users(&self) -> Arc<Users> {
        self.users.read().clone()
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
            let users = self.users();
            let Some((name, user)) = users.by_name.get_key_value(name) else { return Checked::NotMine };
            let password = Zeroizing::new(password.to_vec());
            match self.checker.is_of(request.door.peer.ip(), user.hash.clone(), password).await {
                Ok(true) => Checked::Accept(account(name, user)),
                Ok(false) => {
                    let why = format!("wrong password of user {}", crate::names::shown(name));
                    Checked::Refuse(Refusal::new(AuthDecision::WrongPassword, why))
                }
                Err(refusal) => Checked::Refuse(refusal),
            }
        })
    }

    fn pretend<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let Some((_, password)) = request.pair() else { return Ok(()) };
            let decoy = self.users().decoy.clone().unwrap_or_else(Hash::new_decoy);
            let password = Zeroizing::new(password.to_vec());
            self.checker.is_of(request.door.peer.ip(), decoy, password).await.map(|_| ())
        })
    }

    fn reload(&self, force: bool) -> Option<Result<String, FileError>> {
        if !force && !self.file.has_changed() {
            return None;
        }
        Some(self.read().map(|n| format!("{n} users from {}", self.file.path().display())))
    }

    fn holds(&self, account: &Account, version: u64) -> bool {
        let users = self.users();
        account.user.as_ref().and_then(|name| users.by_name.get(name)).is_some_and(|u| u.version == version)
    }
}
