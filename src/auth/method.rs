//! What a method of authentication is: it says yes, no, or that a client is not its own.

use crate::mqtt::{Reason, Version};
use crate::ports::{Account, Credentials, Door};
use crate::secret_file::{FileError, WatchedFile};
use crate::telemetry::metrics::AuthDecision;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Who a client says it is, for a decision that may outlive its CONNECT packet. Never shown.
pub struct Request {
    /// Version of its protocol.
    pub version: Version,
    /// Client identifier; empty if one is still to be assigned.
    pub client_id: Box<str>,
    /// User name.
    pub username: Option<Zeroizing<String>>,
    /// Password.
    pub password: Option<Zeroizing<Vec<u8>>>,
    /// How it came.
    pub door: Arc<Door>,
}

impl Request {
    /// What a CONNECT says.
    pub fn of(who: &Credentials<'_>) -> Request {
        Request {
            version: who.version,
            client_id: who.client_id.into(),
            username: who.username.map(|name| Zeroizing::new(name.to_owned())),
            password: who.password.map(|password| Zeroizing::new(password.to_vec())),
            door: who.door.clone(),
        }
    }

    /// User name and password, if it gave both.
    pub fn pair(&self) -> Option<(&str, &[u8])> {
        Some((self.username.as_deref()?, self.password.as_ref()?))
    }
}

/// Why a client is refused, for log and metrics. The client learns only [`Refusal::reason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As it is counted.
    pub kind: AuthDecision,
    /// In words, without a secret.
    pub why: String,
}

impl Refusal {
    /// For this reason.
    pub fn new(kind: AuthDecision, why: impl Into<String>) -> Refusal {
        Refusal { kind, why: why.into() }
    }

    /// What the client is told: the same for a user that nobody knows and a password that is wrong.
    pub fn reason(&self) -> Reason {
        match self.kind {
            AuthDecision::UnknownUser | AuthDecision::WrongPassword | AuthDecision::InvalidProof => {
                Reason::BadUserNameOrPassword
            }
            AuthDecision::Busy => Reason::ServerBusy,
            AuthDecision::Unavailable => Reason::ServerUnavailable,
            AuthDecision::NoCredentials
            | AuthDecision::Hook
            | AuthDecision::Accepted
            | AuthDecision::Anonymous => Reason::NotAuthorized,
        }
    }
}

/// What a method says of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The client is who it says.
    Accept(Account),
    /// It is not.
    Refuse(Refusal),
    /// Others may know it.
    NotMine,
}

/// Puts in force what was read, and says in words what there is now.
pub type Prepared = Box<dyn FnOnce() -> String + Send>;

/// A method of authentication.
pub trait Method: Send + Sync {
    /// Its name, as in `auth.chain`.
    fn name(&self) -> &'static str;

    /// Whether the client is who it says.
    fn check<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Checked>;

    /// Nobody has known the client, which gave a user name and a password: takes as long as if its user had been known.
    fn pretend<'a>(&'a self, _request: &'a Request) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The files of the method that may change while the broker runs.
    fn files(&self) -> Vec<&WatchedFile> {
        Vec::new()
    }

    /// Reads the files, and changes nothing: what they hold counts once that is called which this returns, unless a later reading counts
    /// already; `None` = there is no file. `note`: what was read is no change any more for [`WatchedFile::has_changed`].
    fn prepare(self: Arc<Self>, _note: bool) -> Option<Result<Prepared, Vec<FileError>>> {
        None
    }

    /// Whether an account that this method accepted is still what it was. `version` is of [`crate::ports::AccountMark`].
    fn holds(&self, _account: &Account, _version: u64) -> bool {
        true
    }
}
