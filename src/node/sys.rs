//! `$SYS`: the broker's figures as topics under mosquitto's names, published as retained messages kept in memory only.

use super::Node;
use crate::broker::Broker;
use crate::broker::delivery::Scratch;
use crate::broker::router::Cache;
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::telemetry::metrics::SessionState;
use std::collections::VecDeque;

/// Publishes `$SYS` at intervals; keeps what its averages need.
#[derive(Debug)]
pub struct Sys {
    started: Time,
    version: String,
    /// Figures of the last 15 minutes, oldest first.
    history: VecDeque<(Time, [u64; LOADS.len()])>,
    cache: Cache,
}

/// Figures with averages over 1, 5 and 15 minutes, per minute.
const LOADS: [&str; 8] = [
    "messages/received",
    "messages/sent",
    "publish/received",
    "publish/sent",
    "publish/dropped",
    "bytes/received",
    "bytes/sent",
    "connections",
];

const MINUTE_MS: u64 = 60_000;

impl Sys {
    /// Starts counting at `now`; `version` is what `$SYS/broker/version` says.
    pub fn new(version: &str, now: Time) -> Sys {
        let history = VecDeque::from([(now, [0; LOADS.len()])]);
        Sys { started: now, version: version.to_owned(), history, cache: Cache::default() }
    }

    /// Publishes everything once.
    pub fn publish(&mut self, node: &Node, now: Time, scratch: &mut Scratch) {
        let broker = &*node.broker;
        let mut topics: Vec<(String, String)> =
            figures(broker).into_iter().map(|(topic, v)| (topic.to_owned(), v.to_string())).collect();
        topics.push(("version".into(), self.version.clone()));
        topics.push(("uptime".into(), format!("{} seconds", now.since_ms(self.started) / 1000)));
        self.loads(broker, now, &mut topics);
        publish_below("$SYS/broker/", &topics, broker, &mut self.cache, scratch);
    }

    fn loads(&mut self, broker: &Broker, now: Time, topics: &mut Vec<(String, String)>) {
        let m = &broker.metrics;
        let current = [
            m.packets_received.get(),
            m.packets_sent.get(),
            m.messages_received.total(),
            m.messages_sent.total(),
            m.messages_dropped.total(),
            m.bytes_received.get(),
            m.bytes_sent.get(),
            m.connections_total.get(),
        ];
        while self.history.len() > 1 && now.since_ms(self.history[1].0) >= 15 * MINUTE_MS {
            self.history.pop_front();
        }
        for minutes in [1, 5, 15] {
            // The newest figure that is at least that old, else the oldest there is.
            let old = self.history.iter().rev().find(|(t, _)| now.since_ms(*t) >= minutes * MINUTE_MS);
            let Some((since, then)) = old.or(self.history.front()) else { continue };
            let passed_ms = now.since_ms(*since).max(1);
            for (i, name) in LOADS.iter().enumerate() {
                let rate = (current[i] - then[i]) as f64 * MINUTE_MS as f64 / passed_ms as f64;
                topics.push((format!("load/{name}/{minutes}min"), format!("{rate:.2}")));
            }
        }
        self.history.push_back((now, current));
    }
}

/// Publishes values by their topics below `root` to the clients of this node.
pub(super) fn publish_below(
    root: &str,
    topics: &[(impl AsRef<str>, String)],
    broker: &Broker,
    cache: &mut Cache,
    scratch: &mut Scratch,
) {
    for (topic, value) in topics {
        let message = Message::new(Parts {
            topic: &format!("{root}{}", topic.as_ref()),
            payload: value.as_bytes(),
            properties: &[],
            qos: QoS::AtMostOnce,
            retain: true,
            expires_at: None,
        });
        broker.publish_own(&message, cache, scratch);
    }
}

/// Plain figures by topic below `$SYS/broker/`.
fn figures(broker: &Broker) -> Vec<(&'static str, u64)> {
    let m = &broker.metrics;
    let connected = m.sessions.of(SessionState::Active).get();
    let dormant = m.sessions.of(SessionState::Dormant).get();
    let (retained, retained_bytes) = broker.retained_size();
    let queued = broker.queued_messages();
    vec![
        ("clients/total", connected + dormant),
        ("clients/maximum", m.connections_max.get()),
        ("clients/connected", connected),
        ("clients/active", connected),
        ("clients/disconnected", dormant),
        ("clients/inactive", dormant),
        ("clients/expired", m.sessions_expired.get()),
        ("messages/received", m.packets_received.get()),
        ("messages/sent", m.packets_sent.get()),
        ("messages/stored", queued + retained as u64),
        ("store/messages/count", queued + retained as u64),
        ("store/messages/bytes", retained_bytes as u64),
        ("publish/messages/received", m.messages_received.total()),
        ("publish/messages/sent", m.messages_sent.total()),
        ("publish/messages/dropped", m.messages_dropped.total()),
        ("publish/bytes/received", m.publish_bytes_received.get()),
        ("publish/bytes/sent", m.publish_bytes_sent.get()),
        ("bytes/received", m.bytes_received.get()),
        ("bytes/sent", m.bytes_sent.get()),
        ("subscriptions/count", m.subscriptions_active.get()),
        ("shared_subscriptions/count", m.shared_subscriptions.get()),
        ("retained messages/count", retained as u64),
    ]
}
