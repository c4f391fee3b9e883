//! Whether this node serves clients.

use super::Node;
use crate::clock::Time;
use crate::ports::{BoxFuture, Owner, Unavailable};

impl Node {
    /// Whether this node may serve clients.
    ///
    /// # Errors
    /// Says why it may not, and what to do.
    pub fn may_serve(&self) -> Result<(), String> {
        self.broker.journal_serves()?;
        self.remote().map_or(Ok(()), |r| r.may_serve())
    }

    /// Whether bytes may go to clients; looked at before every write.
    pub fn serves(&self, now: Time) -> bool {
        self.remote().is_none_or(|r| r.serves(now))
    }

    /// Hands all sessions to other nodes and closes their clients; call [`Broker::drain`](crate::broker::Broker::drain) before. Completes
    /// with the number of sessions that stay, because no other node lives or takes them; those keep their connections.
    pub fn hand_over(&self) -> BoxFuture<usize> {
        match &self.cluster {
            Some(cluster) => cluster.hand_over(),
            None => {
                Box::pin(std::future::ready(usize::try_from(self.broker.sessions()).unwrap_or(usize::MAX)))
            }
        }
    }

    /// Serves nobody any more, for good, and tells the other nodes so. Completes when all registered ones have heard it, or after
    /// `wait_ms`.
    pub fn say_goodbye(&self, wait_ms: u64) -> BoxFuture<()> {
        match &self.cluster {
            Some(cluster) => cluster.say_goodbye(wait_ms),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// Compares the sessions of the journal with the store ([`Cluster::reconcile`](crate::cluster::Cluster::reconcile)).
    pub fn reconcile(&self, anew: bool) -> BoxFuture<()> {
        match &self.cluster {
            Some(cluster) => cluster.reconcile(anew),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// Where a session lives, by the cluster's record; `None` if there is none, or this node is alone.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        match &self.cluster {
            Some(cluster) => cluster.owner(client_id),
            None => Box::pin(std::future::ready(Ok(None))),
        }
    }

    /// Completes when the cluster knows the routes of all sessions there are now, and this node's index has them and its own
    /// registration: before that it should not be called ready.
    pub fn when_routes_known(&self) -> BoxFuture<()> {
        match &self.cluster {
            Some(cluster) => cluster.when_routes_known(),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// Completes when this node knows the cluster's time, or can only wait for others to tell it; after `at_most_ms` at the latest.
    pub fn when_clocks_measured(&self, at_most_ms: u64) -> BoxFuture<()> {
        match &self.cluster {
            Some(cluster) => cluster.when_clocks_measured(at_most_ms),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// Refuses new connections from now on.
    pub fn drain(&self) {
        self.broker.drain();
    }

    /// Whether new connections are refused because the node shuts down.
    pub fn draining(&self) -> bool {
        self.broker.draining()
    }
}
