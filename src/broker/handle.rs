//! What the whole broker knows of one session: its names, its subscriptions and its mailbox.

use super::mailbox::Mailbox;
use super::ports::{Epoch, SessionNo};
use crate::clock::Time;
use crate::mqtt::packet::SubscribeOptions;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One subscription, as its session's owner keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its options.
    pub options: SubscribeOptions,
    /// Its identifier.
    pub id: Option<u32>,
}

/// The subscriptions of a session by filter, `$share/…` included.
pub type Subscriptions = HashMap<Arc<str>, Subscription, foldhash::fast::RandomState>;

/// See the module.
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
    /// Its mailbox.
    pub mailbox: Mailbox,
    /// Its subscriptions.
    pub subscriptions: Mutex<Subscriptions>,
    epoch: AtomicU64,
    recorded: AtomicBool,
}

impl Handle {
    /// A handle with no subscriptions.
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
            epoch: AtomicU64::new(0),
            recorded: AtomicBool::new(false),
        }
    }

    /// Whether the journal has, or had, a record of the session.
    pub fn recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }

    /// The journal has a record of the session from now on.
    pub fn set_recorded(&self) {
        self.recorded.store(true, Ordering::Release);
    }

    /// The epoch under which this node owns the session.
    pub fn epoch(&self) -> Epoch {
        self.epoch.load(Ordering::Acquire)
    }

    /// Sets the epoch that a claim gave.
    pub fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch, Ordering::Release);
    }
}
