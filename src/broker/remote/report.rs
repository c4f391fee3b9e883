//! What this node tells all others of itself, and what theirs mean here.

use super::Remote;
use super::level::Bell;
use crate::broker::Broker;
use crate::broker::ports::{BoxFuture, MemberId, Report, Request, Response, Revision};
use futures_util::future::{Either, select};
use std::sync::{Arc, Weak};

impl Remote {
    /// What there is to tell now. Whoever gets it has had every frame that was matched below `applied`.
    fn report(&self) -> Report {
        // First, so that nothing matched below it comes after.
        let applied = self.applied();
        let members = self.members.live();
        // This node too: what it had for a session that left it may be on its way.
        let others = members.iter().map(|m| &m.id.node).filter(|n| **n != self.me.node);
        let nodes = others.chain([&self.me.node]);
        Report {
            applied,
            // Whoever has taken a number is inside until its publish is in the table.
            low_water: self.gate.closed(|| self.origins.low_water()),
            settled: nodes.map(|n| (n.clone(), self.origins.settled_floor(n, applied))).collect(),
            retired: self.origins.retired(),
            sent_at: self.now(),
            heard: self.members.heard(),
        }
    }

    /// Something that reports tell has changed: one will be sent soon.
    pub fn report_soon(&self) {
        self.report_bell.ring();
        self.sessions.reported();
    }

    /// Takes in what another process reported.
    pub fn heard(&self, from: &MemberId, report: Report) {
        let applied = report.applied;
        self.members.report(from, report, self.applied());
        self.weigh();
        if applied > self.applied() && !self.ports.coordinator.answering() {
            self.lag_bell.ring();
        }
    }

    /// The link to a node leads to this process now, or is down.
    pub fn link_changed(&self, node: &Arc<str>, process: Option<MemberId>) {
        self.members.link(node, process);
        self.membership_changed();
        self.report_soon();
    }

    /// The answer to a node that lags and asks for what it has missed.
    pub fn events_after(&self, after: Revision) -> Response {
        Response::Events(self.ports.coordinator.events_after(after))
    }
}

/// Sends reports: soon after something changed, and a few times within `stale_after` anyhow.
pub(super) async fn send_reports(broker: Weak<Broker>, bell: Arc<Bell>) {
    let mut pause: Option<BoxFuture<()>> = None;
    loop {
        let heartbeat = {
            let Some(remote) = broker.upgrade().and_then(|b| b.remote.clone()) else { return };
            let report = remote.report();
            remote.ports.peers.report(report);
            // Time passes for those that are being waited for as well.
            remote.weigh();
            pause.take().unwrap_or_else(|| remote.ports.tasks.sleep(remote.limits.stale_after_ms / 4))
        };
        if let Either::Left((_, rest)) = select(bell.heard(), heartbeat).await {
            pause = Some(rest);
        }
    }
}

/// Fetches what this node has missed from another that has it, while the store does not answer.
pub(super) async fn catch_up(broker: Weak<Broker>, bell: Arc<Bell>) {
    loop {
        bell.heard().await;
        loop {
            let Some(remote) = broker.upgrade().and_then(|b| b.remote.clone()) else { return };
            let applied = remote.applied();
            let Some((ahead, theirs)) = remote.members.ahead_of(applied) else { break };
            if remote.ports.coordinator.answering() {
                break;
            }
            if let Err(why) = remote.fetch(&ahead.node, applied).await {
                tracing::warn!(from = %ahead, applied, theirs, why, "cannot catch up by another node");
                break;
            }
            if remote.applied() <= applied {
                break;
            }
            tracing::info!(from = %ahead, applied = remote.applied(), "caught up by another node while etcd is away");
        }
    }
}

impl Remote {
    async fn fetch(&self, node: &Arc<str>, after: Revision) -> Result<(), String> {
        let answer = self.ports.peers.request(node, Request::Events { after }).await;
        match answer.map_err(|e| e.to_string())? {
            Response::Events(Some((events, _))) => {
                self.metrics.catch_ups.inc();
                self.ports.coordinator.apply_from_peer(events).await
            }
            Response::Events(None) => Err("it no longer has the events that are missing here".to_owned()),
            other => Err(format!("it answered {other:?}")),
        }
    }
}
