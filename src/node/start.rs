//! Starting: the node as its journal had it.

use super::admission::Connections;
use super::receiving::Receiving;
use super::totals::LastTotals;
use super::{Limits, Node, Ports};
use crate::broker::retained::Retained;
use crate::broker::{self, Broker};
use crate::clock::Time;
use crate::cluster::{Cluster, Remote};
use crate::ports::Recovered;
use crate::telemetry::{Metrics, Repeats};
use std::sync::Arc;

impl Node {
    /// A node with what the journal had. Sessions that were connected at the crash count as disconnected `now`: their
    /// expiry and will delay begin here.
    pub fn new(
        limits: Limits,
        ports: Ports,
        metrics: Arc<Metrics>,
        recovered: Recovered,
        now: Time,
    ) -> Arc<Node> {
        let remote = ports.cluster.map(|c| Arc::new(Remote::new(c, limits.remote, metrics.clone())));
        let retained = remote.as_ref().map_or_else(Arc::<Retained>::default, |r| r.retained.clone());
        let inner = broker::Ports { journal: ports.journal, permissions: ports.permissions };
        let broker = Broker::new(&limits.broker, inner, metrics, recovered.next_session, retained);
        let cluster = remote.map(|remote| Cluster::new(broker.clone(), remote));
        match &cluster {
            Some(cluster) => {
                cluster.recover(recovered, now);
                cluster.start();
            }
            None => broker.recover_alone(recovered, now),
        }
        Arc::new_cyclic(|me| Node {
            broker,
            cluster,
            pressure: Default::default(),
            connections: Connections::default(),
            authorizer: ports.authorizer,
            bans: ports.bans,
            receiving: Receiving::new(limits.broker.arriving_bytes),
            users: Arc::default(),
            refusals: Repeats::default(),
            totals: LastTotals::default(),
            me: me.clone(),
        })
    }
}
