//! What the whole broker knows of one session: its names, its subscriptions and its mailbox.

use super::mailbox::Mailbox;
use super::rights::Rights;
use super::told_expiry::ToldExpiry;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::Version;
use crate::mqtt::packet::SubscribeOptions;
use crate::ports::{self, BoxFuture, Epoch, Revision, SessionNo};
use crate::session::Will;
use crate::telemetry::Whose;
use crate::telemetry::losses::Account;
use crate::user::SessionUser;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A subscription, as the owner of its session keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The options of the subscription.
    pub options: SubscribeOptions,
    /// The subscription identifier.
    pub id: Option<u32>,
}

/// The subscriptions of a session by filter, `$share/…` included.
pub type Subscriptions = HashMap<Arc<str>, Subscription>;

/// What is known of a session while a connection has it; the rest is the connection's own.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The client's address.
    pub peer: SocketAddr,
    /// The protocol that the client speaks.
    pub version: Version,
    /// When the client came.
    pub since: Time,
    /// Session expiry interval, seconds.
    pub expiry_s: u32,
    /// The session's will.
    pub will: Option<Will>,
    /// The account that let the client in.
    pub account: Arc<ports::Account>,
}

/// What the whole broker knows of one session: its names, its subscriptions and its mailbox.
#[derive(Debug)]
pub struct Handle {
    /// The session's number.
    pub no: SessionNo,
    /// Client identifier.
    pub client_id: Arc<str>,
    /// Whether the journal keeps the session's state.
    pub durable: bool,
    /// When the session was made.
    pub created_at: Time,
    /// The session's mailbox.
    pub mailbox: Mailbox,
    /// The session's subscriptions.
    pub subscriptions: Mutex<Subscriptions>,
    /// Who the session's client is, and what that may do.
    pub rights: Rights,
    /// How long the session lasts, as the cluster's store has it.
    pub expiry: ToldExpiry,
    epoch: AtomicU64,
    recorded: AtomicBool,
    unused: AtomicBool,
    disowned: AtomicBool,
    /// Under which deadline it is watched ([`super::dormant::Dormant`]), milliseconds; 0 = none.
    watched: AtomicU64,
    attached: Mutex<Option<Box<Attached>>>,
    user: Mutex<SessionUser>,
    account: Account,
}

impl Handle {
    /// The handle of a session without subscriptions.
    pub fn new(
        no: SessionNo,
        client_id: Arc<str>,
        durable: bool,
        created_at: Time,
        mailbox: Mailbox,
    ) -> Handle {
        let subscriptions = Mutex::new(HashMap::default());
        Handle {
            no,
            client_id,
            durable,
            created_at,
            mailbox,
            subscriptions,
            rights: Rights::default(),
            expiry: ToldExpiry::default(),
            epoch: AtomicU64::new(0),
            recorded: AtomicBool::new(false),
            unused: AtomicBool::new(false),
            disowned: AtomicBool::new(false),
            watched: AtomicU64::new(0),
            attached: Mutex::new(None),
            user: Mutex::default(),
            account: Account::default(),
        }
    }

    /// Who has lost something if a message for the session, or of it, is lost.
    pub fn whose(&self) -> Whose<'_> {
        Whose::client(&self.client_id, &self.account)
    }

    /// What is known of the session while a connection has it.
    pub fn attached(&self) -> Option<Attached> {
        self.attached.lock().as_deref().cloned()
    }

    /// Takes note that a connection has the session now, or (`None`) has left it.
    pub fn set_attached(&self, attached: Option<Attached>) {
        *self.attached.lock() = attached.map(Box::new);
    }

    /// The user that the session belongs to.
    pub fn user(&self) -> SessionUser {
        self.user.lock().clone()
    }

    /// Gives the session to `user`; the user that it belonged to.
    pub fn set_user(&self, user: SessionUser) -> SessionUser {
        std::mem::replace(&mut *self.user.lock(), user)
    }

    /// Whether the journal has, or had, a record of the session.
    pub fn recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }

    /// Takes note that the journal has a record of the session from now on.
    pub fn set_recorded(&self) {
        self.recorded.store(true, Ordering::Release);
    }

    /// Takes note that the session was made for a client that has not come to it yet.
    pub fn set_unused(&self) {
        self.unused.store(true, Ordering::Release);
    }

    /// Whether the session was made for a client that has not come to it yet.
    pub fn is_unused(&self) -> bool {
        self.unused.load(Ordering::Acquire)
    }

    /// Whether the session was made for a client that had not come to it yet; from now on it has.
    pub fn take_unused(&self) -> bool {
        self.unused.swap(false, Ordering::AcqRel)
    }

    /// Makes the end of the session leave the cluster's record of it alone: that is another's from now on (another node's, or that of the
    /// session that replaces this one here).
    pub fn disown(&self) {
        self.disowned.store(true, Ordering::Release);
    }

    /// Whether the cluster's record of the session is another's.
    pub fn disowned(&self) -> bool {
        self.disowned.load(Ordering::Acquire)
    }

    /// Notes the deadline under which the session is watched from now on; the one before.
    pub(super) fn set_watched(&self, at: Option<Time>) -> Option<Time> {
        let before = self.watched.swap(at.map_or(0, |at| at.0), Ordering::AcqRel);
        (before > 0).then_some(Time(before))
    }

    /// The epoch under which this node owns the session.
    pub fn epoch(&self) -> Epoch {
        self.epoch.load(Ordering::Acquire)
    }

    /// Completes, while the session is frozen ([`Refusal::Moving`](super::mailbox::Refusal::Moving)), with the revision at which it moved
    /// to another node, however long ago, or `None` = it stays: look again.
    pub fn moving(self: &Arc<Handle>) -> BoxFuture<Option<Revision>> {
        let this = self.clone();
        Box::pin(async move {
            if let Some(outcome) = this.mailbox.moving() {
                outcome.wait().await;
            }
            this.mailbox.departed()
        })
    }

    /// Sets the epoch that a claim gave.
    pub fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch, Ordering::Release);
    }
}
