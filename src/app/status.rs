//! What the node says of itself: `/ready`, `/cluster/status` and the metrics that are read rather than counted.

use super::{JournalKind, Node, VERSION};
use crate::broker::ports::JournalHealth;
use crate::clock;
use crate::server::http::{JournalStatus, NodeStatus, Status, StatusSource};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::SessionState;
use std::sync::atomic::Ordering;

impl StatusSource for Node {
    fn ready(&self) -> Result<(), String> {
        if self.broker.draining() {
            return Err("draining: the broker is stopping".to_owned());
        }
        if !self.ready.load(Ordering::Acquire) {
            return Err("starting".to_owned());
        }
        self.broker.may_serve()
    }

    fn status(&self) -> Status {
        let journal = self.journal.port();
        let error = match journal.health() {
            JournalHealth::Ok => None,
            JournalHealth::Failing(why) => Some(why),
        };
        let m = &self.metrics;
        Status {
            mode: "standalone",
            node: NodeStatus {
                id: self.config.node.id.clone(),
                version: VERSION,
                ready: self.ready().is_ok(),
                uptime_seconds: clock::now().since_ms(self.started) / 1000,
                connections: m.connections_active.get(),
                sessions: self.broker.sessions(),
                sessions_dormant: m.sessions.of(SessionState::Dormant).get(),
                subscriptions: m.subscriptions_active.get(),
                retained_messages: self.broker.retained().0 as u64,
                queued_messages: self.broker.queued_messages(),
                journal: JournalStatus {
                    kind: match self.journal {
                        JournalKind::Redb(_) => "redb",
                        JournalKind::Memory(_) => "memory",
                    },
                    healthy: error.is_none(),
                    error,
                    size_bytes: journal.size_bytes(),
                },
            },
        }
    }

    fn collect(&self, metrics: &Metrics) {
        let (retained, retained_bytes) = self.broker.retained();
        let journal = self.journal.port();
        metrics.retained_messages.set(retained as u64);
        metrics.retained_bytes.set(retained_bytes as u64);
        metrics.queued_messages.set(self.broker.queued_messages());
        metrics.journal_size_bytes.set(journal.size_bytes());
        metrics.journal_healthy.set(u64::from(journal.health() == JournalHealth::Ok));
        metrics.uptime_seconds.set(clock::now().since_ms(self.started) / 1000);
        if let JournalKind::Redb(journal) = &self.journal {
            metrics.journal_pending_bytes.set(journal.stats().pending_bytes);
        }
    }
}
