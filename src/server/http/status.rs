//! `/cluster/status`: what an operator sees of the node and of its cluster.

use serde::Serialize;

/// The cluster as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// `standalone` (this node is alone) or `cluster`.
    pub mode: &'static str,
    /// The node that answers.
    pub node: NodeStatus,
    /// Its cluster; missing if it is alone, or does not know its cluster yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
}

/// One node's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeStatus {
    /// `node.id`.
    pub id: String,
    /// Version of the broker.
    pub version: &'static str,
    /// Whether `/ready` says 200.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Network connections.
    pub connections: u64,
    /// Sessions, dormant ones included.
    pub sessions: u64,
    /// Sessions nobody is connected to.
    pub sessions_dormant: u64,
    /// Subscriptions of all sessions.
    pub subscriptions: u64,
    /// Retained messages.
    pub retained_messages: u64,
    /// QoS 1 and 2 messages that wait for a receiver.
    pub queued_messages: u64,
    /// How far the memory is used up: `ok`, `publishers paused` or `connections refused`.
    pub memory: &'static str,
    /// The journal; missing until it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalStatus>,
}

/// The journal's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JournalStatus {
    /// `storage.type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it makes changes durable.
    pub healthy: bool,
    /// What is wrong, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes on disk; 0 in memory.
    pub size_bytes: u64,
}

/// A cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// `cluster.name`.
    pub name: String,
    /// This process, `node@incarnation`.
    pub me: String,
    /// Who leads, `node@incarnation`; missing = nobody that this node knows of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// How far this node's index has followed etcd.
    pub applied_revision: u64,
    /// Whether what it knows is recent enough for its acknowledgements to count.
    pub current: bool,
    /// For how long that holds if nothing more is heard, milliseconds; missing = it is alone, and always current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_for_ms: Option<u64>,
    /// For how long its lease is certainly alive, milliseconds.
    pub lease_for_ms: u64,
    /// Whether it may serve clients.
    pub may_serve: bool,
    /// Routes of other nodes in its index.
    pub routes: u64,
    /// The registered nodes by name, and those whose registration is gone while their link works.
    pub members: Vec<MemberStatus>,
    /// Nodes that say that they cannot reach this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreached_by: Vec<UnreachedBy>,
    /// Whether all other nodes say so.
    pub reached_by_none: bool,
    /// Nodes that are gone: their sessions wait for them.
    pub waiting: Vec<CustodyStatus>,
    /// Publishes of this node's clients that wait for other nodes.
    pub held: HeldStatus,
    /// This node's clock, and the cluster's time.
    pub clock: ClockStatus,
    /// etcd as this node reaches it.
    pub etcd: EtcdStatus,
    /// Users, rules and bans in etcd that cannot be read, some of them, each with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub directory_unreadable: Vec<String>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberStatus {
    /// Its name.
    pub node: String,
    /// Which start of it.
    pub incarnation: u64,
    /// Whether it is registered in etcd.
    pub registered: bool,
    /// Where other nodes reach it.
    pub peer: String,
    /// Where clients reach it.
    pub mqtt: String,
    /// Where its admin HTTP listens, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where it stands.
    pub zone: String,
    /// Its version.
    pub version: String,
    /// Seconds since it started; wrong by the difference of the clocks while that is not measured.
    pub uptime_seconds: u64,
    /// It hands its sessions over and takes no new ones.
    pub draining: bool,
    /// How far its index has followed etcd by its last report.
    pub applied_revision: u64,
    /// By how much its clock is ahead of the median of the cluster's, milliseconds; missing = it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_difference_ms: Option<i64>,
    /// Whether that is more than `cluster.max_clock_difference`.
    pub clock_apart: bool,
    /// This node's link to it; missing for the node that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkInfo>,
}

/// A node's clock as it read it when it started, and the time of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClockStatus {
    /// By how much this node's clock is ahead of the median of the cluster's, milliseconds; missing = nothing was measured yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference_ms: Option<i64>,
    /// Whether the cluster's time is known here; until then this node lets nothing expire that is in etcd.
    pub cluster_time_known: bool,
    /// By how much the cluster's time is ahead of this node's clock, milliseconds.
    pub cluster_time_ahead_ms: i64,
    /// `cluster.max_clock_difference`, milliseconds.
    pub limit_ms: u64,
}

/// A node that cannot reach the one that answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnreachedBy {
    /// Its name.
    pub node: String,
    /// The address that it tries, which the one that answers has registered.
    pub address: String,
    /// What it says.
    pub error: String,
}

/// A link to another node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkInfo {
    /// `up`, `connecting`, `down` or `refused`.
    pub state: &'static str,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last round trip, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Publishes sent there that are not answered.
    pub unanswered: u64,
    /// Publishes not sent yet.
    pub queued: u64,
}

/// A node that is gone and whose state waits for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CustodyStatus {
    /// Its name.
    pub node: String,
    /// The latest of its incarnations that are waited for, `node@incarnation`.
    pub incarnation: String,
    /// All of them.
    pub incarnations: Vec<String>,
    /// Who speaks for the latest, `node@incarnation`.
    pub holder: String,
    /// Copies of the journal that has least.
    pub copies: u8,
    /// The journals that have the state; only a process that opens one may have it back.
    pub journal: String,
    /// What to do.
    pub hint: String,
}

/// Publishes that wait for other nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeldStatus {
    /// All of them.
    pub publishes: u64,
    /// Those that have not been matched yet: this node is not current, or others wait before them.
    pub unmatched: u64,
    /// Those to be matched again.
    pub again: u64,
    /// Those that wait for answers.
    pub asked: u64,
    /// Whether publishers are slowed down because there are too many.
    pub full: bool,
}

/// etcd as a node reaches it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EtcdStatus {
    /// `etcd.endpoints`.
    pub endpoints: Vec<String>,
    /// Whether it answers.
    pub reachable: bool,
    /// Whether it takes writes as well: not while its database is full, or this node may not write to it.
    pub writable: bool,
    /// The member that is watched; missing while there is no watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watching: Option<String>,
    /// Why the last watch or snapshot failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How long ago everything that was in etcd then was known here, seconds.
    pub lag_seconds: u64,
    /// Watches opened after one failed.
    pub watch_restarts: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Claims, releases and retained messages that wait for etcd.
    pub waiting: u64,
    /// Routes that wait for etcd.
    pub routes_waiting: u64,
}
