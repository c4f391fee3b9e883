//! The broker's limits. Most of them may be changed while it runs: what is limited is compared with what holds at that time, and a
//! connection keeps what was agreed with its client.

use super::mailbox::MailboxLimits;
use super::retained::RetainedLimits;
use crate::queue_policy::QueuePolicy;
use crate::session::{self};
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Every limit of one node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The limits of each connection.
    pub session: session::Limits,
    /// The limits of each mailbox and queue.
    pub mailbox: MailboxLimits,
    /// The limits of retained messages.
    pub retained: RetainedLimits,
    /// Connections at once.
    pub connections: usize,
    /// Sessions, dormant ones included.
    pub sessions: usize,
    /// Connections of one user at once; `usize::MAX` = any number.
    pub connections_per_user: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// How long an answer may wait for the journal, milliseconds.
    pub publish_timeout_ms: u64,
    /// How long a connection may take to send CONNECT, milliseconds.
    pub connect_timeout_ms: u64,
    /// How long one packet may take to arrive, milliseconds.
    pub packet_timeout_ms: u64,
    /// How long a client may take nothing of what is written for it, milliseconds.
    pub write_timeout_ms: u64,
    /// Bytes of large packets that arrive, all connections together.
    pub arriving_bytes: usize,
    /// Whether a client gets the session of its client identifier whosever that is.
    pub client_id_theft: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            session: session::Limits::default(),
            mailbox: MailboxLimits::default(),
            retained: RetainedLimits::default(),
            connections: 100_000,
            sessions: 1_000_000,
            connections_per_user: usize::MAX,
            subscriptions: 100_000,
            publish_timeout_ms: 10_000,
            connect_timeout_ms: 10_000,
            packet_timeout_ms: 600_000,
            write_timeout_ms: 60_000,
            arriving_bytes: 256 << 20,
            client_id_theft: false,
        }
    }
}

/// The limits that hold now. Reading one costs no lock, but for those that are agreed at CONNECT.
#[derive(Debug)]
pub struct Live {
    session: RwLock<session::Limits>,
    mailbox_messages: AtomicUsize,
    mailbox_bytes: AtomicUsize,
    queued_messages: AtomicUsize,
    queued_bytes: AtomicU64,
    drop_oldest: AtomicBool,
    retained_messages: AtomicUsize,
    retained_bytes: AtomicUsize,
    retained_payload: AtomicUsize,
    connections: AtomicUsize,
    sessions: AtomicUsize,
    connections_per_user: AtomicUsize,
    subscriptions: AtomicUsize,
    publish_timeout_ms: AtomicU64,
    connect_timeout_ms: AtomicU64,
    packet_timeout_ms: AtomicU64,
    write_timeout_ms: AtomicU64,
    client_id_theft: AtomicBool,
}

macro_rules! getters {
    ($($(#[$doc:meta])+ $name:ident: $kind:ty,)+) => {
        $($(#[$doc])+ pub fn $name(&self) -> $kind { self.$name.load(Relaxed) })+
    };
}

impl Live {
    pub(super) fn new(limits: &Limits) -> Live {
        Live {
            session: RwLock::new(limits.session),
            mailbox_messages: AtomicUsize::new(limits.mailbox.messages),
            mailbox_bytes: AtomicUsize::new(limits.mailbox.bytes),
            queued_messages: AtomicUsize::new(limits.mailbox.queued_messages),
            queued_bytes: AtomicU64::new(limits.mailbox.queued_bytes),
            drop_oldest: AtomicBool::new(limits.mailbox.policy == QueuePolicy::DropOldest),
            retained_messages: AtomicUsize::new(limits.retained.messages),
            retained_bytes: AtomicUsize::new(limits.retained.bytes),
            retained_payload: AtomicUsize::new(limits.retained.payload),
            connections: AtomicUsize::new(limits.connections),
            sessions: AtomicUsize::new(limits.sessions),
            connections_per_user: AtomicUsize::new(limits.connections_per_user),
            subscriptions: AtomicUsize::new(limits.subscriptions),
            publish_timeout_ms: AtomicU64::new(limits.publish_timeout_ms),
            connect_timeout_ms: AtomicU64::new(limits.connect_timeout_ms),
            packet_timeout_ms: AtomicU64::new(limits.packet_timeout_ms),
            write_timeout_ms: AtomicU64::new(limits.write_timeout_ms),
            client_id_theft: AtomicBool::new(limits.client_id_theft),
        }
    }

    /// Puts the limits `to` in force, but for the room of packets that arrive, which stays as it was at the start.
    pub fn change(&self, to: &Limits) {
        *self.session.write() = to.session;
        self.mailbox_messages.store(to.mailbox.messages, Relaxed);
        self.mailbox_bytes.store(to.mailbox.bytes, Relaxed);
        self.queued_messages.store(to.mailbox.queued_messages, Relaxed);
        self.queued_bytes.store(to.mailbox.queued_bytes, Relaxed);
        self.drop_oldest.store(to.mailbox.policy == QueuePolicy::DropOldest, Relaxed);
        self.retained_messages.store(to.retained.messages, Relaxed);
        self.retained_bytes.store(to.retained.bytes, Relaxed);
        self.retained_payload.store(to.retained.payload, Relaxed);
        self.connections.store(to.connections, Relaxed);
        self.sessions.store(to.sessions, Relaxed);
        self.connections_per_user.store(to.connections_per_user, Relaxed);
        self.subscriptions.store(to.subscriptions, Relaxed);
        self.publish_timeout_ms.store(to.publish_timeout_ms, Relaxed);
        self.connect_timeout_ms.store(to.connect_timeout_ms, Relaxed);
        self.packet_timeout_ms.store(to.packet_timeout_ms, Relaxed);
        self.write_timeout_ms.store(to.write_timeout_ms, Relaxed);
        self.client_id_theft.store(to.client_id_theft, Relaxed);
    }

    /// The limits of each connection that begins now.
    pub fn session(&self) -> session::Limits {
        *self.session.read()
    }

    /// The limits of each mailbox and queue.
    pub fn mailbox(&self) -> MailboxLimits {
        MailboxLimits {
            messages: self.mailbox_messages.load(Relaxed),
            bytes: self.mailbox_bytes.load(Relaxed),
            queued_messages: self.queued_messages.load(Relaxed),
            queued_bytes: self.queued_bytes.load(Relaxed),
            policy: match self.drop_oldest.load(Relaxed) {
                true => QueuePolicy::DropOldest,
                false => QueuePolicy::DropNew,
            },
        }
    }

    /// The limits of retained messages.
    pub fn retained(&self) -> RetainedLimits {
        RetainedLimits {
            messages: self.retained_messages.load(Relaxed),
            bytes: self.retained_bytes.load(Relaxed),
            payload: self.retained_payload.load(Relaxed),
        }
    }

    getters! {
        /// Connections at once.
        connections: usize,
        /// Sessions, dormant ones included.
        sessions: usize,
        /// Connections of one user at once.
        connections_per_user: usize,
        /// Subscriptions of one session.
        subscriptions: usize,
        /// How long an answer may wait for the journal, milliseconds.
        publish_timeout_ms: u64,
        /// How long a connection may take to send CONNECT, milliseconds.
        connect_timeout_ms: u64,
        /// How long one packet may take to arrive, milliseconds.
        packet_timeout_ms: u64,
        /// How long a client may take nothing of what is written for it, milliseconds.
        write_timeout_ms: u64,
        /// Whether a client gets the session of its client identifier whosever that is.
        client_id_theft: bool,
    }
}
