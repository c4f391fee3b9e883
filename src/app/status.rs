//! What the node says of itself and of its cluster, and the metrics that are read rather than counted.

use super::Process;
use super::cluster::Member;
use super::journal::JournalKind;
use crate::clock::{self, Time};
use crate::cluster::Remote;
use crate::ports::{self, Custody, JournalHealth, LinkState, LinkStatus, MemberId};
use crate::server::http::{
    ClockStatus, ClusterStatus, CustodyStatus, EtcdStatus, HeldStatus, JournalStatus, LinkInfo, MemberStatus,
    NodeStatus, UnreachedBy,
};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::SessionState;

impl Process {
    /// Adds to what is known of every process what a node knows of itself.
    pub(super) fn status(&self, base: NodeStatus) -> NodeStatus {
        let journal = self.journal.port();
        let error = match journal.health() {
            JournalHealth::Ok => None,
            JournalHealth::Failing(why) => Some(why),
        };
        let m = &self.metrics;
        NodeStatus {
            connections: m.connections_active.get(),
            sessions: self.node.broker.sessions(),
            sessions_dormant: m.sessions.of(SessionState::Dormant).get(),
            subscriptions: m.subscriptions_active.get(),
            retained_messages: self.node.broker.retained_size().0 as u64,
            queued_messages: self.node.broker.queued_messages(),
            memory: self.node.pressure.level().name(),
            journal: Some(JournalStatus {
                kind: match self.journal {
                    JournalKind::Redb(_) => "redb",
                    JournalKind::Memory(_) => "memory",
                },
                healthy: error.is_none(),
                error,
                size_bytes: journal.size_bytes(),
            }),
            ..base
        }
    }

    /// The cluster as this node sees it; `None` if it is alone.
    pub(super) fn cluster_status(&self) -> Option<ClusterStatus> {
        let (member, remote) = (self.member.as_ref()?, self.node.remote()?);
        let now = clock::now();
        let left = |until: Time| until.since_ms(now);
        let fresh_until = remote.freshness.until();
        let unreached = remote.unreached();
        let (unmatched, again, asked) = remote.outbox.counts();
        Some(ClusterStatus {
            name: self.config.cluster.node.name.clone(),
            me: remote.me.to_string(),
            leader: member.leader().map(|l| l.to_string()),
            applied_revision: remote.applied(),
            current: remote.is_fresh(now),
            current_for_ms: (fresh_until < Time(u64::MAX)).then(|| left(fresh_until)),
            lease_for_ms: left(remote.ports.coordinator.lease_until()),
            may_serve: self.node.may_serve().is_ok(),
            routes: remote.routes.len() as u64,
            members: members(remote, now),
            unreached_by: unreached
                .by
                .iter()
                .map(|(node, error)| UnreachedBy {
                    node: node.to_string(),
                    address: unreached.address.clone(),
                    error: error.clone(),
                })
                .collect(),
            reached_by_none: unreached.by_all(),
            waiting: waiting(remote),
            held: HeldStatus {
                publishes: remote.outbox.held() as u64,
                unmatched: unmatched as u64,
                again: again as u64,
                asked: asked as u64,
                full: remote.outbox.full(),
            },
            clock: clock_status(remote),
            etcd: etcd(member),
            directory_unreadable: self.directory.as_ref().map(|d| d.unreadable().0).unwrap_or_default(),
        })
    }

    /// Sets what is read rather than counted.
    pub(super) fn collect(&self, metrics: &Metrics) {
        let (retained, retained_bytes) = self.node.broker.retained_size();
        let journal = self.journal.port();
        metrics.retained_messages.set(retained as u64);
        metrics.retained_bytes.set(retained_bytes as u64);
        metrics.queued_messages.set(self.node.broker.queued_messages());
        metrics.arriving_bytes.set(self.node.arriving_bytes() as u64);
        metrics.journal_size_bytes.set(journal.size_bytes());
        metrics.journal_healthy.set(u64::from(journal.health() == JournalHealth::Ok));
        if let JournalKind::Redb(journal) = &self.journal {
            metrics.journal_pending_bytes.set(journal.stats().pending_bytes);
            metrics.journal_commit_age_seconds.set(journal.commit_age_s());
        }
    }
}

/// Those registered, and those whose registration is gone while their link is kept.
fn members(remote: &Remote, now: Time) -> Vec<MemberStatus> {
    let links = remote.ports.peers.links();
    let live = remote.members.live();
    let kept = remote.members.to_keep().into_iter().filter(|k| !live.iter().any(|m| m.id == k.id));
    let gone: Vec<ports::Member> = kept.collect();
    let mut all: Vec<_> = live.iter().map(|m| (m, true)).chain(gone.iter().map(|m| (m, false))).collect();
    all.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    let clocks = remote.clocks();
    all.into_iter()
        .map(|(m, registered)| {
            let me = m.id == remote.me;
            let applied = if me { remote.applied() } else { remote.members.applied_of(&m.id.node) };
            let link = links.iter().find(|l| l.node == m.id.node && !me);
            let clock = clocks.of(&m.id.node);
            // The record has it by that node's clock.
            let its_now = Time(now.0.saturating_add_signed(clock.map_or(0, |c| c.ahead_ms)));
            MemberStatus {
                node: m.id.node.to_string(),
                incarnation: m.id.incarnation,
                registered,
                peer: m.peer_address.clone(),
                mqtt: m.mqtt_address.clone(),
                http: m.http_address.clone(),
                zone: m.zone.clone(),
                version: m.version.clone(),
                uptime_seconds: its_now.since_ms(Time(m.started_ms)) / 1000,
                draining: m.draining,
                applied_revision: applied,
                clock_difference_ms: clock.map(|c| c.difference_ms),
                clock_apart: clock.is_some_and(|c| c.apart),
                link: link.map(link_info),
            }
        })
        .collect()
}

fn clock_status(remote: &Remote) -> ClockStatus {
    let time = &remote.ports.time;
    let difference = remote.clocks().of(&remote.me.node).map(|c| c.difference_ms);
    ClockStatus {
        difference_ms: difference,
        cluster_time_known: time.known(),
        cluster_time_ahead_ms: time.ahead_ms(),
        limit_ms: remote.limits.clock_difference_ms,
    }
}

fn link_info(link: &LinkStatus) -> LinkInfo {
    LinkInfo {
        state: match link.state {
            LinkState::Up => "up",
            LinkState::Connecting => "connecting",
            LinkState::Down => "down",
            LinkState::Refused => "refused",
        },
        error: link.error.clone(),
        rtt_us: link.rtt_us,
        unanswered: link.unanswered,
        queued: link.queued,
    }
}

/// Nodes that speak for some incarnation and are neither registered nor linked.
fn waiting(remote: &Remote) -> Vec<CustodyStatus> {
    let away = |holder: &MemberId| {
        !remote.members.is_live(holder) && remote.members.linked(&holder.node).as_ref() != Some(holder)
    };
    by_node(remote.members.custodies().into_iter().filter(|(_, custody)| away(&custody.holder)).collect())
}

/// One row for each node, however many processes of it have left something.
fn by_node(mut found: Vec<(MemberId, Custody)>) -> Vec<CustodyStatus> {
    found.sort_by(|a, b| (&a.1.holder.node, a.0.incarnation).cmp(&(&b.1.holder.node, b.0.incarnation)));
    found
        .chunk_by(|a, b| a.1.holder.node == b.1.holder.node)
        .filter_map(|rows| {
            let (latest, custody) = rows.last()?;
            let node = &custody.holder.node;
            let mut journals: Vec<_> = rows.iter().map(|(_, c)| format!("{:016x}", c.journal)).collect();
            journals.dedup();
            Some(CustodyStatus {
                node: node.to_string(),
                incarnation: latest.to_string(),
                incarnations: rows.iter().map(|(of, _)| of.to_string()).collect(),
                holder: custody.holder.to_string(),
                copies: rows.iter().map(|(_, c)| c.copies).min().unwrap_or_default(),
                journal: journals.join(", "),
                hint: format!(
                    "start node {node} with its journal; if that is lost: berth ctl cluster forget {node}"
                ),
            })
        })
        .collect()
}

fn etcd(member: &Member) -> EtcdStatus {
    let status = member.etcd_status();
    EtcdStatus {
        endpoints: status.endpoints,
        reachable: status.reachable,
        writable: status.writable,
        watching: status.watch.endpoint,
        last_error: status.watch.last_error,
        lag_seconds: status.lag_s,
        watch_restarts: status.watch.restarts,
        snapshots: status.watch.snapshots,
        waiting: status.waiting as u64,
        routes_waiting: status.routes_waiting as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_missed_has_one_row_whatever_its_processes_have_left() {
        let id = |node: &str, incarnation| MemberId { node: node.into(), incarnation };
        let held =
            |holder: &MemberId, journal| Custody { holder: holder.clone(), merged: true, copies: 1, journal };
        let (b, c) = (id("b", 9), id("c", 4));
        let found = vec![
            (id("b", 2), held(&b, 7)),
            (c.clone(), held(&c, 3)),
            (b.clone(), held(&b, 7)),
            (id("b", 5), held(&b, 7)),
        ];
        let rows = by_node(found);
        let shown: Vec<_> =
            rows.iter().map(|r| (&*r.node, &*r.incarnation, r.incarnations.len(), &*r.journal)).collect();
        assert_eq!(shown, [("b", "b@9", 3, "0000000000000007"), ("c", "c@4", 1, "0000000000000003")]);
    }
}
