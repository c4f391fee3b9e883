//! A node: one broker and, if it has others beside it, its part of the cluster, joined. Here are a client's channel, the start, the drain,
//! `$SYS`, and what operators see and order.

pub mod administer;
pub mod channel;
pub mod inspect;
pub mod memory;
pub mod operate;

mod accounts;
mod admission;
mod claim;
mod deliver;
mod end;
mod inbox;
mod quotas;
mod receiving;
mod serve;
mod start;
mod sys;
mod totals;

pub use admission::{Admission, REFUSING_MAX};
pub use channel::{Channel, Context, Terms};
pub use claim::{Claim, Claimant};
pub use sys::Sys;
pub use totals::publish_cluster;

use crate::broker::{self, Broker};
use crate::cluster::{self, Cluster, ClusterPorts, RemoteLimits};
use crate::ports::{Authorizer, Bans, Journal, Permissions};
use crate::telemetry::Repeats;
use admission::Connections;
use receiving::Receiving;
use std::sync::{Arc, Weak};
use totals::LastTotals;

/// Every limit of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Of the node itself.
    pub broker: broker::Limits,
    /// Of what it does with the others.
    pub remote: RemoteLimits,
}

#[cfg(any(test, feature = "testing"))]
impl Limits {
    /// The defaults, but for how long an answer may wait for the journal.
    pub fn waiting(publish_timeout_ms: u64) -> Limits {
        let broker = broker::Limits { publish_timeout_ms, ..broker::Limits::default() };
        Limits { broker, ..Limits::default() }
    }
}

/// What a node needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where state is kept.
    pub journal: Arc<dyn Journal>,
    /// Who may connect.
    pub authorizer: Arc<dyn Authorizer>,
    /// What whoever is let in may do.
    pub permissions: Arc<dyn Permissions>,
    /// Who may not connect.
    pub bans: Arc<dyn Bans>,
    /// The other nodes; `None` = this node is alone.
    pub cluster: Option<ClusterPorts>,
}

/// A node: a broker and, if it has others beside it, its part of the cluster. Shared by all connections.
pub struct Node {
    /// The sessions and messages of this node.
    pub broker: Arc<Broker>,
    /// The other nodes; `None` = this node is alone.
    pub cluster: Option<Arc<Cluster>>,
    /// How far the memory is used up.
    pub pressure: memory::Pressure,
    connections: Connections,
    authorizer: Arc<dyn Authorizer>,
    bans: Arc<dyn Bans>,
    /// Room for packets that arrive.
    receiving: Receiving,
    /// Connections by user.
    users: Arc<quotas::Users>,
    /// Connections that came to nothing, as the log has told them, by reason and address.
    refusals: Repeats,
    /// What all nodes count, while this one leads.
    totals: LastTotals,
    me: Weak<Node>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Node {
    /// What this node knows of the others and has under way with them; `None` = it is alone.
    pub fn remote(&self) -> Option<&Arc<cluster::Remote>> {
        self.cluster.as_ref().map(|cluster| &cluster.remote)
    }
}
