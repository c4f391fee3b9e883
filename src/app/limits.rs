//! From options to limits.

use crate::broker;
use crate::broker::mailbox::MailboxLimits;
use crate::broker::retained::RetainedLimits;
use crate::cluster::RemoteLimits;
use crate::config::{self, ClientIdTheft, Config, Listener};
use crate::mqtt::QoS;
use crate::node::{Limits, Terms};
use crate::queue_policy::QueuePolicy;
use crate::session::{self};
use std::time::Duration;

pub(super) fn of(config: &Config) -> Limits {
    let Config { limits, session, retained, .. } = config;
    let cluster = &config.cluster.node;
    let remote = RemoteLimits {
        stale_after_ms: millis(cluster.stale_after),
        takeover_timeout_ms: millis(cluster.takeover_timeout),
        suback_wait_ms: millis(cluster.suback_wait),
        order_wait_ms: millis(cluster.order_wait),
        held_publishes: cluster.max_held_messages,
        held_bytes: cluster.max_held_bytes,
        seen: RemoteLimits::default().seen,
        departed: cluster.max_departed,
        claiming: RemoteLimits::default().claiming,
        clock_difference_ms: millis(cluster.max_clock_difference),
    };
    let broker = broker::Limits {
        session: session::Limits {
            receive_maximum: limits.receive_maximum,
            maximum_packet_size: limits.max_packet_size,
            topic_alias_maximum: limits.topic_alias_maximum,
            maximum_qos: QoS::from_bits(limits.max_qos).unwrap_or(QoS::ExactlyOnce),
            max_keep_alive_s: seconds(limits.max_keep_alive).unwrap_or(0),
            min_keep_alive_s: 0,
            max_session_expiry_s: seconds(session.max_expiry).unwrap_or(u32::MAX),
            max_inflight: session.max_inflight,
        },
        mailbox: MailboxLimits {
            messages: session.mailbox_messages,
            bytes: session.mailbox_bytes,
            queued_messages: session.max_queued_messages,
            queued_bytes: session.max_queued_bytes as u64,
            policy: match session.queue_policy {
                config::QueuePolicy::DropNew => QueuePolicy::DropNew,
                config::QueuePolicy::DropOldest => QueuePolicy::DropOldest,
            },
        },
        retained: RetainedLimits {
            messages: retained.max_messages,
            bytes: retained.max_bytes,
            payload: retained.max_payload,
        },
        connections: limits.max_connections,
        sessions: session.max_sessions,
        connections_per_user: any_or(limits.max_connections_per_user),
        subscriptions: limits.max_subscriptions_per_session,
        publish_timeout_ms: millis(config.publish.timeout),
        connect_timeout_ms: millis(limits.connect_timeout),
        packet_timeout_ms: millis(limits.packet_timeout),
        write_timeout_ms: millis(limits.write_timeout),
        arriving_bytes: limits.max_arriving_bytes,
        client_id_theft: config.auth.client_id_theft == ClientIdTheft::Allow,
    };
    Limits { broker, remote }
}

/// The terms of a listener: what it does not say is said for all.
pub(super) fn terms(config: &Config, listener: &Listener) -> Terms {
    let general = of(config).broker.session;
    let versions = listener.versions;
    Terms {
        session: session::Limits {
            maximum_packet_size: listener.max_packet_size.unwrap_or(general.maximum_packet_size),
            min_keep_alive_s: seconds(listener.min_keep_alive).unwrap_or(0),
            max_keep_alive_s: seconds(listener.max_keep_alive).unwrap_or(general.max_keep_alive_s),
            ..general
        },
        v31: versions.v31,
        v311: versions.v311,
        v5: versions.v5,
    }
}

fn any_or(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn seconds<T: TryFrom<u64>>(d: Option<Duration>) -> Option<T> {
    d.and_then(|d| T::try_from(d.as_secs()).ok())
}
