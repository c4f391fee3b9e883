//! One node: sessions by client identifier, the way of a message to them, retained messages, shared subscriptions, dormant
//! sessions and their ends. It knows no other node, no sockets, no files and no clock; the outside is behind [`ports`](crate::ports).
//!
//! What other nodes have to do with is for whoever calls: each call answers with what came of it.

pub mod delivery;
pub mod ending;
pub mod handle;
pub mod limits;
pub mod mailbox;
pub mod making;
pub mod promise;
pub mod publish;
pub mod registry;
pub mod retain;
pub mod retained;
pub mod rights;
pub mod rivals;
pub mod router;
pub mod subscribe;
pub mod told_expiry;

mod bridges;
mod dormant;
mod owning;
mod purge;
mod refusals;

pub use limits::Limits;

use crate::ports::{Journal, JournalHealth, Permissions, Revision, SessionNo};
use crate::telemetry::metrics::SessionState;
use crate::telemetry::{Metrics, Repeats};
use bridges::Bridges;
use dormant::Dormant;
use registry::Registry;
use retained::Retained;
use rivals::Rivals;
use router::Router;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What a broker needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where state is kept.
    pub journal: Arc<dyn Journal>,
    /// What clients may do.
    pub permissions: Arc<dyn Permissions>,
}

/// One node: its sessions, its router, its retained messages and its journal. Shared by all connections.
pub struct Broker {
    /// The node's limits.
    pub limits: limits::Live,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// Where the node's state is kept.
    pub journal: Arc<dyn Journal>,
    /// What clients may do.
    pub permissions: Arc<dyn Permissions>,
    /// Sessions that connections take from each other.
    pub rivals: Rivals,
    /// Sessions by client identifier.
    pub registry: Registry,
    /// Which sessions a topic goes to.
    pub router: Router,
    /// The last message of each topic.
    pub retained: Arc<Retained>,
    /// Deadlines of sessions without a connection.
    pub dormant: Dormant,
    /// The last messages of `$SYS`.
    own: Retained,
    /// Which of these messages bridges have told.
    bridges: Bridges,
    /// Refusals of sessions of other users, as the log has told them.
    thefts: Repeats,
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
    /// A broker without sessions, whose first session gets the number `next_session`, and whose retained messages are `retained`.
    pub fn new(
        limits: &Limits,
        ports: Ports,
        metrics: Arc<Metrics>,
        next_session: SessionNo,
        retained: Arc<Retained>,
    ) -> Arc<Broker> {
        Arc::new_cyclic(|me| Broker {
            limits: limits::Live::new(limits),
            metrics,
            journal: ports.journal,
            permissions: ports.permissions,
            rivals: Rivals::default(),
            registry: Registry::default(),
            router: Router::default(),
            retained,
            dormant: Dormant::default(),
            own: Retained::default(),
            bridges: Bridges::default(),
            thefts: Repeats::default(),
            next_session: AtomicU64::new(next_session.max(1)),
            draining: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    /// A number for the next session.
    pub fn new_session_no(&self) -> SessionNo {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// How many sessions there are, dormant ones included.
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

    /// Topics with a retained message, and their bytes.
    pub fn retained_size(&self) -> (usize, usize) {
        (self.retained.len(), self.retained.bytes())
    }

    /// The revision of the cluster that set a topic's retained message; 0 = there is none.
    pub fn retained_revision(&self, topic: &str) -> Revision {
        self.retained.revision_of(topic)
    }

    /// Whether the journal lets this node serve clients.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn journal_serves(&self) -> Result<(), String> {
        match self.journal.health() {
            JournalHealth::Failing(why) => Err(why),
            _ => Ok(()),
        }
    }
}
