//! What every node knows of the cluster: the coordination store's content as events, in the order of its revisions.

use super::directory::DirectoryKey;
use crate::mqtt::Message;
use crate::user::SessionUser;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// A revision of the coordination store (etcd's): totally ordered.
pub type Revision = u64;

/// A start of a node, never the same twice: the revision of the process's first registration, and above [`GENERATION_AT`] the generation of
/// the store that this was a revision of.
pub type Incarnation = u64;

/// The bit of an incarnation at which its generation begins. The store has fewer revisions than this allows.
pub const GENERATION_AT: u32 = 48;

/// A life of the coordination store: it ends when the store is put back to an older state (restored from a backup), since revisions are
/// used again from there on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timeline {
    /// How many such ends are known. 0 = none.
    pub generation: u64,
    /// A random number, since two stores may count the same generation. 0 in generation 0.
    pub name: u64,
}

impl Timeline {
    /// The incarnation of a process that registered at this revision.
    pub fn incarnation(&self, revision: Revision) -> Incarnation {
        self.generation << GENERATION_AT | revision
    }
}

/// The revision at which an incarnation registered, of its own generation.
pub fn registered_at(incarnation: Incarnation) -> Revision {
    incarnation & ((1 << GENERATION_AT) - 1)
}

/// The generation of the store in which an incarnation registered.
pub fn generation_of(incarnation: Incarnation) -> u64 {
    incarnation >> GENERATION_AT
}

/// How often the owner of a session has changed; a higher epoch fences a lower one.
pub type Epoch = u64;

/// A process of the cluster. Written `node@incarnation`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// The node's stable name.
    pub node: Arc<str>,
    /// Which start of it.
    pub incarnation: Incarnation,
}

impl MemberId {
    /// The revision at which it registered, of its own generation.
    pub fn registered_at(&self) -> Revision {
        registered_at(self.incarnation)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.incarnation)
    }
}

/// Names a QoS 1 or 2 publish in the whole cluster, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// The origin: the incarnation whose client published. Unique in the cluster.
    pub origin: Incarnation,
    /// Ascending in the order in which the origin accepted its publishes.
    pub seq: u64,
}

/// A live node as it registered itself (`members/<node>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which process.
    pub id: MemberId,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it, `host:port`: the server reference of MQTT 5.0 section 4.13.
    pub mqtt_address: String,
    /// Where the node's admin HTTP listens, if anywhere, `host:port`.
    pub http_address: Option<String>,
    /// The zone that the node stands in.
    pub zone: String,
    /// The version of the node's program.
    pub version: String,
    /// When the process started, milliseconds since the epoch.
    pub started_ms: u64,
    /// Whether the node hands its sessions over and takes no new ones.
    pub draining: bool,
}

/// Who may speak for everything an incarnation owns (`custody/<node>/<incarnation>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custody {
    /// The holder; at first the incarnation itself.
    pub holder: MemberId,
    /// Whether the holder's own journal has everything of it.
    pub merged: bool,
    /// Copies of the journal: 1 or 2.
    pub copies: u8,
    /// The journal that holds the state: only a process that opened it may adopt the incarnation.
    pub journal: u64,
}

/// Who owns a session (`sessions/<client>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOwner {
    /// The incarnation that claimed it; whoever has custody of that is the owner now.
    pub owner: MemberId,
    /// How often the owner has changed.
    pub epoch: Epoch,
    /// Session expiry interval, seconds; 0 = there is no state behind the connection.
    pub expiry_s: u32,
    /// The user that the session belongs to.
    pub user: SessionUser,
}

/// A session's record as read, with what is needed to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The record.
    pub session: SessionOwner,
    /// The revision at which it was written.
    pub revision: Revision,
    /// The live or dead process that speaks for it now: `session.owner` followed through the custody records known here.
    pub holder: MemberId,
}

/// An entry of a node's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The filter; `$share/<group>/<filter>` for a shared subscription.
    pub filter: Arc<str>,
    /// Whether a persistent session needs it.
    pub persistent: bool,
    /// Members of a shared subscription on that node; 1 for plain filters.
    pub weight: u32,
}

/// A retained message as the cluster knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RetainedRecord {
    /// The message, RETAIN set.
    pub message: Message,
    /// The update that wrote it.
    pub id: MessageId,
}

/// A change of what the cluster knows. Applying an event twice changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum IndexEvent {
    /// A node registered, changed its record, or (`None`) lost its lease or left.
    Member {
        /// The node.
        node: Arc<str>,
        /// The node's record.
        member: Option<Member>,
    },
    /// Custody of an incarnation changed, or (`None`) the incarnation was given up and all it owned with it.
    Custody {
        /// The incarnation.
        of: MemberId,
        /// The incarnation's record.
        custody: Option<Custody>,
    },
    /// A session got a new owner, or (`None`) is over.
    Session {
        /// Client identifier.
        client_id: Arc<str>,
        /// The session's record.
        session: Option<SessionOwner>,
        /// The revision of the change.
        revision: Revision,
    },
    /// Routes of an incarnation were added and removed.
    Routes {
        /// The incarnation.
        of: MemberId,
        /// Added or changed.
        add: Vec<Route>,
        /// Removed.
        del: Vec<Arc<str>>,
    },
    /// A topic's retained message was set or (`None`) cleared.
    Retained {
        /// The topic.
        topic: Arc<str>,
        /// The message.
        retained: Option<RetainedRecord>,
        /// The revision of the change: what a later update of the topic must know.
        revision: Revision,
    },
    /// A session of a node was replaced over its head, or (`None`) the node has taken note.
    Eviction {
        /// The node that had it.
        node: Arc<str>,
        /// Client identifier.
        client_id: Arc<str>,
        /// The epoch that replaced it.
        epoch: Option<Epoch>,
        /// Whether nobody replaced the session: it expired while its node was gone.
        expired: bool,
        /// The revision of the change.
        revision: Revision,
    },
    /// A record of the directory was set or (`None`) removed.
    Directory {
        /// The record's name.
        key: DirectoryKey,
        /// The record's value.
        value: Option<Bytes>,
    },
    /// Another node leads, or (`None`) none does.
    Leader(Option<MemberId>),
}

/// Receives what the cluster knows. Implemented by the broker; called by one thread at a time, in order.
pub trait Index: Send + Sync + 'static {
    /// A new snapshot begins: what [`Index::apply`] does not mention again until [`Index::end_snapshot`] is gone. Until then
    /// old and new hold together, so that nothing is missing meanwhile.
    fn begin_snapshot(&self);

    /// Applies `events`. With `revision` everything up to it has been applied; `None` inside a snapshot and between the
    /// parts of a large transaction.
    fn apply(&self, events: Vec<IndexEvent>, revision: Option<Revision>);

    /// The snapshot of `revision` is complete.
    fn end_snapshot(&self, revision: Revision);

    /// Whether a topic's retained message was cleared after this revision, as far as is known.
    fn cleared_since(&self, _topic: &str, _since: Revision) -> bool {
        false
    }

    /// Says that everything that a linearizable read showed at `at` (milliseconds of [`crate::clock::Time`]) has been applied: the index
    /// was fresh then.
    fn fresh_at(&self, at: crate::clock::Time);
}
