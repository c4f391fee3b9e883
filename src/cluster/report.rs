//! What this node tells all others of itself, and what theirs mean here.

use super::{Cluster, Remote};
use crate::ports::{BoxFuture, MemberId, Report, Request, Response, Revision};
use crate::sync::level::Bell;
use futures_util::future::{Either, select};
use std::sync::{Arc, Weak};

impl Remote {
    /// What there is to tell now. Whoever gets it has had every frame that was matched below `applied`.
    fn report(&self) -> Report {
        // First, so that nothing matched below it comes after.
        let applied = self.applied();
        let retained = self.retained_progress(applied);
        let members = self.members.to_keep();
        // This node too: what it had for a session that left it may be on its way.
        let others = members.iter().map(|m| &m.id.node);
        let nodes = others.chain([&self.me.node]);
        // Whoever has taken a number is inside until its publish is in the table, and whoever has matched one until its frames
        // are queued.
        let ((low_water, open), settled, past) = self.barrier.closed(|| {
            let settled = nodes.map(|n| (n.clone(), self.outbox.settled_watermark(n, applied))).collect();
            (self.outbox.low_water(), settled, self.outbox.past_watermarks(applied))
        });
        Report {
            applied,
            low_water,
            open,
            settled,
            past,
            past_others: applied,
            retired: self.outbox.retired(),
            sent_at: self.now(),
            heard: self.members.heard(),
            retained: Some(retained),
            leaving: self.left(),
        }
    }

    /// Asks for a report to be sent soon: something that reports tell has changed.
    pub fn report_soon(&self) {
        self.report_bell.ring();
        self.sessions.reported();
    }

    /// Takes in what another process reported. True if it says for the first time that it leaves: nobody waits for it any more.
    pub fn heard(self: &Arc<Remote>, from: &MemberId, report: Report) -> bool {
        let (applied, retained, says_so) = (report.applied, report.retained, report.leaving);
        let leaving = self.members.report(from, report, self.applied(), self.now());
        if leaving {
            tracing::info!(node = %from, "the node leaves: what its persistent sessions need is held for it");
            self.membership_changed();
        } else {
            self.evaluate_reports();
        }
        if let Some(r) = retained {
            self.take_progress(from, applied, r);
        }
        if says_so {
            // It waits for everybody to have heard it.
            self.report_soon();
        }
        if applied > self.applied() && self.may_miss() {
            self.lag_bell.ring();
        }
        leaving
    }

    /// Takes note that the link to a node leads to `process` now, or is down.
    pub fn link_changed(&self, node: &Arc<str>, process: Option<MemberId>) {
        let before = self.members.linked(node);
        if let Some(gone) = before.filter(|before| Some(before) != process.as_ref()) {
            // What it has not said by now this node may never hear.
            self.retained.forget_origin(gone.incarnation);
        }
        self.members.link(node, process);
        self.membership_changed();
        self.report_soon();
    }

    /// What this node answers to one that lags and asks for the events it has missed after revision `after`.
    pub fn events_after(&self, after: Revision) -> Response {
        Response::Events(self.ports.coordinator.events_after(after))
    }
}

/// Sends reports: soon after something changed, and a few times within `stale_after` anyhow.
pub(super) async fn send_reports(cluster: Weak<Cluster>, bell: Arc<Bell>) {
    let mut pause: Option<BoxFuture<()>> = None;
    loop {
        let heartbeat = {
            let Some(remote) = cluster.upgrade().map(|b| b.remote.clone()) else { return };
            let report = remote.report();
            remote.ports.peers.report(report);
            // Time passes for those that are being waited for as well.
            remote.evaluate_reports();
            pause.take().unwrap_or_else(|| remote.ports.tasks.sleep(remote.limits.stale_after_ms / 4))
        };
        if let Either::Left((_, rest)) = select(bell.heard(), heartbeat).await {
            pause = Some(rest);
        }
    }
}

/// Fetches what this node has missed from another that has it, while it may miss something.
pub(super) async fn catch_up(cluster: Weak<Cluster>, bell: Arc<Bell>) {
    loop {
        bell.heard().await;
        loop {
            let Some(remote) = cluster.upgrade().map(|b| b.remote.clone()) else { return };
            if !remote.may_miss() || !remote.fetch_missed().await {
                break;
            }
        }
    }
}

impl Remote {
    /// Whether the store may not bring what is missing here: it does not answer, or it answers and this node is not fresh any
    /// more all the same.
    fn may_miss(&self) -> bool {
        let fell_behind = self.freshness.was_fresh() && !self.is_fresh(self.now());
        !self.ports.coordinator.answering() || fell_behind
    }

    /// Fetches what this node has missed from the first that still has it; true if that brought it on.
    async fn fetch_missed(&self) -> bool {
        let before = self.applied();
        for (ahead, theirs) in self.members.ahead_of(before) {
            if let Err(why) = self.fetch(&ahead.node, before).await {
                tracing::warn!(from = %ahead, applied = before, theirs, why, "cannot catch up by another node");
            }
            let applied = self.applied();
            if applied > before {
                tracing::info!(from = %ahead, applied, "caught up by another node");
                return true;
            }
        }
        false
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::cluster::testing::{FakeStore, Manual};
    use crate::cluster::{ClusterPorts, RemoteLimits};
    use crate::ports::{ClusterTime, Frame, LinkStatus, Member, MessageId, NoDirectory, PeerError, Peers};
    use crate::telemetry::Metrics;
    use futures_util::FutureExt;
    use parking_lot::Mutex;

    /// Others that have the events that are missing here, or had them.
    struct Others {
        have: &'static [&'static str],
        asked: Mutex<Vec<Arc<str>>>,
    }

    impl Peers for Others {
        fn keep(&self, _: Vec<Member>) {}

        fn send(&self, _: &Arc<str>, _: Frame) {}

        fn cancel(&self, _: &Arc<str>, _: MessageId) {}

        fn report(&self, _: Report) {}

        fn request(&self, node: &Arc<str>, _: Request) -> BoxFuture<Result<Response, PeerError>> {
            self.asked.lock().push(node.clone());
            let events = self.have.contains(&&**node).then(|| (bytes::Bytes::new(), 9));
            Box::pin(std::future::ready(Ok(Response::Events(events))))
        }

        fn links(&self) -> Vec<LinkStatus> {
            Vec::new()
        }
    }

    #[test]
    fn whoever_is_ahead_is_asked_in_turn_for_what_is_missing() {
        let others = Arc::new(Others { have: &["b"], asked: Mutex::default() });
        let ports = ClusterPorts {
            coordinator: Arc::new(FakeStore::default()),
            peers: others.clone(),
            tasks: Arc::new(Manual::default()),
            directory: Arc::new(NoDirectory),
            time: Arc::new(ClusterTime::own_clock()),
        };
        let remote = Remote::new(ports, RemoteLimits::default(), Arc::new(Metrics::new()));
        for (node, incarnation, applied) in [("b", 2, 8), ("c", 3, 9), ("d", 4, 0)] {
            let process = MemberId { node: node.into(), incarnation };
            remote.members.link(&process.node, Some(process.clone()));
            remote.members.report(&process, Report { applied, ..Report::default() }, 0, Time(1));
        }
        remote.fetch_missed().now_or_never().unwrap();
        assert_eq!(*others.asked.lock(), ["c".into(), "b".into()]);
        assert_eq!(remote.metrics.catch_ups.get(), 1);
    }
}
