//! The broker: sessions by client identifier, the way of a publish to them, retained messages, shared subscriptions,
//! dormant sessions and `$SYS`. Knows no sockets, no files and no clock; the outside is behind [`ports`].

pub mod administer;
pub mod handle;
pub mod inspect;
pub mod limits;
pub mod link;
pub mod mailbox;
pub mod memory;
pub mod operate;
pub mod publish;
pub mod remote;
pub mod retained;
pub mod router;

mod bridges;
mod dormant;
mod ending;
mod owning;
mod purge;
mod quotas;
pub mod receiving;
mod recover;
mod refusals;
pub mod registry;
mod retain;
pub mod rights;
pub mod rivals;
mod subscribe;
mod sys;
mod totals;

pub use link::{Context, Link, Terms};
pub use registry::{Admission, Claim, Claimant};
pub use sys::Sys;
pub use totals::publish_cluster;

use crate::ports::{
    Authorizer, ClusterTime, Coordinator, Directory, Journal, Peers, Permissions, SessionNo, Tasks,
};
use crate::session;
use crate::telemetry::metrics::SessionState;
use crate::telemetry::{Metrics, Repeats};
use bridges::Bridges;
use dormant::Dormant;
use mailbox::MailboxLimits;
use receiving::Receiving;
use registry::Registry;
use remote::{Remote, RemoteLimits};
use retained::{Retained, RetainedLimits};
use rivals::Rivals;
use router::Router;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Every limit of the broker.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of each connection.
    pub session: session::Limits,
    /// Of each mailbox and queue.
    pub mailbox: MailboxLimits,
    /// Of retained messages.
    pub retained: RetainedLimits,
    /// Of what a node of a cluster does with the others.
    pub remote: RemoteLimits,
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
            remote: RemoteLimits::default(),
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

/// What the broker needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where state is kept.
    pub journal: Arc<dyn Journal>,
    /// Who may connect.
    pub authorizer: Arc<dyn Authorizer>,
    /// What whoever is let in may do.
    pub permissions: Arc<dyn Permissions>,
    /// Who may not connect.
    pub bans: Arc<dyn crate::ports::Bans>,
    /// The other nodes; `None` = this node is alone.
    pub cluster: Option<ClusterPorts>,
}

/// What a node of a cluster needs besides.
#[derive(Clone)]
pub struct ClusterPorts {
    /// Who owns which session, and what every node must know.
    pub coordinator: Arc<dyn Coordinator>,
    /// The links to other nodes.
    pub peers: Arc<dyn Peers>,
    /// Work that goes on by itself.
    pub tasks: Arc<dyn Tasks>,
    /// Who gives the cluster's directory a meaning.
    pub directory: Arc<dyn Directory>,
    /// The cluster's time; the broker keeps it, others read it.
    pub time: Arc<ClusterTime>,
}

/// The broker. Shared by all connections.
pub struct Broker {
    /// Its limits.
    pub limits: limits::Live,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// How far the memory is used up.
    pub pressure: memory::Pressure,
    pub(crate) journal: Arc<dyn Journal>,
    authorizer: Arc<dyn Authorizer>,
    permissions: Arc<dyn Permissions>,
    bans: Arc<dyn crate::ports::Bans>,
    /// What this node knows of and does with the others; `None` = it is alone.
    pub(crate) remote: Option<Arc<Remote>>,
    registry: Registry,
    router: Router,
    retained: Arc<Retained>,
    /// The last messages of `$SYS`.
    own: Retained,
    /// Which of them bridges have told.
    bridges: Bridges,
    dormant: Dormant,
    /// Room for packets that arrive.
    receiving: Receiving,
    /// Sessions that connections take from each other.
    rivals: Rivals,
    /// Connections by user.
    users: Arc<quotas::Users>,
    /// Refusals of sessions of other users, as the log has told them.
    thefts: Repeats,
    /// Connections that came to nothing, as the log has told them, by reason and address.
    refusals: Repeats,
    next_session: AtomicU64,
    draining: AtomicBool,
    me: Weak<Broker>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Broker {
    fn new_session_no(&self) -> SessionNo {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Sessions, dormant ones included.
    pub fn sessions(&self) -> u64 {
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Active).get() + sessions.of(SessionState::Dormant).get()
    }

    /// Refuses new connections from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether new connections are refused because the broker shuts down.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What this node knows of and does with the others; `None` = it is alone.
    pub fn remote(&self) -> Option<&Arc<Remote>> {
        self.remote.as_ref()
    }

    /// The revision of the cluster that set a topic's retained message; 0 = there is none.
    pub fn retained_revision(&self, topic: &str) -> crate::ports::Revision {
        self.retained.revision_of(topic)
    }

    /// Topics with a retained message, and their bytes.
    pub fn retained(&self) -> (usize, usize) {
        (self.retained.len(), self.retained.bytes())
    }

    /// Whether this node may serve clients.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn may_serve(&self) -> Result<(), String> {
        if let crate::ports::JournalHealth::Failing(why) = self.journal.health() {
            return Err(why);
        }
        self.remote.as_ref().map_or(Ok(()), |r| r.may_serve())
    }
}
