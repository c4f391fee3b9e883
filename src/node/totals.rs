//! `$SYS/cluster`: figures of the whole cluster. Its leader asks every node and adds up, the other nodes ask the leader, and each
//! publishes the answer to its own clients, as it does with `$SYS/broker`. None of it goes to the store.

use super::operate::{Command, Reply, command};
use super::{Node, sys};
use crate::broker::delivery::Scratch;
use crate::broker::router::Cache;
use crate::cluster::Remote;
use crate::telemetry::metrics::SessionState;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What one node counts of its own, or the sum over several. Fields that an older node does not know are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Clients connected.
    pub connected: u64,
    /// Sessions, dormant ones included.
    pub sessions: u64,
    /// Subscriptions of its sessions, shared ones included.
    pub subscriptions: u64,
    /// PUBLISH packets received since its start.
    pub received: u64,
    /// PUBLISH packets sent since its start.
    pub sent: u64,
    /// Messages dropped since its start.
    pub dropped: u64,
    /// Messages queued for its sessions.
    pub queued: u64,
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        let Figures { connected, sessions, subscriptions, received, sent, dropped, queued } = other;
        for (sum, figure) in [
            (&mut self.connected, connected),
            (&mut self.sessions, sessions),
            (&mut self.subscriptions, subscriptions),
            (&mut self.received, received),
            (&mut self.sent, sent),
            (&mut self.dropped, dropped),
            (&mut self.queued, queued),
        ] {
            *sum = sum.saturating_add(*figure);
        }
    }
}

/// What all nodes count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The node that leads, and added them up.
    pub leader: String,
    /// Registered nodes.
    pub nodes: u64,
    /// Those of them that did not answer and are not in the sums.
    pub missing: u64,
    /// Topics with a retained message: all nodes have the same.
    pub retained: u64,
    /// The sums.
    pub sums: Figures,
}

impl Totals {
    /// Values by topic below `$SYS/cluster/`; what `$SYS/broker` has too is called the same.
    fn topics(&self) -> Vec<(&'static str, String)> {
        let Figures { connected, sessions, subscriptions, received, sent, dropped, queued } = self.sums;
        vec![
            ("leader", self.leader.clone()),
            ("nodes", self.nodes.to_string()),
            ("nodes/missing", self.missing.to_string()),
            ("clients/connected", connected.to_string()),
            ("clients/total", sessions.to_string()),
            ("subscriptions/count", subscriptions.to_string()),
            ("retained messages/count", self.retained.to_string()),
            ("publish/messages/received", received.to_string()),
            ("publish/messages/sent", sent.to_string()),
            ("publish/messages/dropped", dropped.to_string()),
            ("messages/queued", queued.to_string()),
        ]
    }
}

/// What a leader added up last; other nodes are told it.
#[derive(Debug, Default)]
pub struct LastTotals(Mutex<Option<Totals>>);

impl LastTotals {
    /// The totals, if the node whose `remote` this is leads.
    pub(super) fn of(&self, remote: &Remote) -> Option<Totals> {
        self.0.lock().clone().filter(|_| leads(remote))
    }
}

impl Node {
    /// The figures that this node counts.
    pub(super) fn figures(&self) -> Figures {
        let m = &self.broker.metrics;
        Figures {
            connected: m.sessions.of(SessionState::Active).get(),
            sessions: self.broker.sessions(),
            subscriptions: m.subscriptions_active.get(),
            received: m.messages_received.total(),
            sent: m.messages_sent.total(),
            dropped: m.messages_dropped.total(),
            queued: self.broker.queued_messages(),
        }
    }

    /// Asks all nodes and adds up.
    async fn add_up(&self, remote: &Remote) -> Totals {
        let others = remote.others();
        let asked = others.iter().map(|node| command(remote, node, &Command::Figures));
        let answers = join_all(asked).await;
        let mut totals = Totals {
            leader: remote.me.node.to_string(),
            nodes: others.len() as u64 + 1,
            missing: 0,
            retained: self.broker.retained_size().0 as u64,
            sums: self.figures(),
        };
        for answer in answers {
            match answer {
                Ok(Reply::Figures(theirs)) => totals.sums.add(&theirs),
                Ok(_) | Err(_) => totals.missing += 1,
            }
        }
        totals
    }

    /// What all nodes count, by the leader; `None` if none is known or it does not tell.
    async fn cluster_totals(&self, remote: &Remote) -> Option<Totals> {
        if leads(remote) {
            let totals = self.add_up(remote).await;
            *self.totals.0.lock() = Some(totals);
            return self.totals.of(remote);
        }
        // It may lead again one day.
        *self.totals.0.lock() = None;
        let leader = remote.members.leader()?;
        match command(remote, &leader.node, &Command::Totals).await {
            Ok(Reply::Totals { totals }) => totals,
            Ok(_) | Err(_) => None,
        }
    }
}

fn leads(remote: &Remote) -> bool {
    remote.members.leader().is_some_and(|l| l == remote.me)
}

/// Publishes `$SYS/cluster` at intervals. A node that is alone has none.
pub async fn publish_cluster(node: Arc<Node>, interval_ms: u64) {
    let Some(remote) = node.remote().cloned() else { return };
    let mut cache = Cache::default();
    loop {
        if let Some(totals) = node.cluster_totals(&remote).await {
            let topics = totals.topics();
            sys::publish_below("$SYS/cluster/", &topics, &node.broker, &mut cache, &mut Scratch::default());
        }
        remote.ports.tasks.sleep(interval_ms).await;
    }
}
