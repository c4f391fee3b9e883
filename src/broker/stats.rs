//! What the broker counts. The hot path adds once per batch of packets, not once per packet.

use crate::session::DropReason;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter or gauge.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Subtracts `n`.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Raises the value to `v` if it is lower.
    pub fn raise(&self, v: u64) {
        self.0.fetch_max(v, Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, v: u64) {
        self.0.store(v, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Everything the broker counts since it started.
#[derive(Debug, Default)]
#[allow(missing_docs)] // each is exported, and described, in telemetry/metrics.rs
pub struct Stats {
    pub connections_total: Count,
    pub connections: Count,
    pub connections_max: Count,
    pub connects_refused: Count,
    pub protocol_errors: Count,
    pub keep_alive_timeouts: Count,
    pub takeovers: Count,
    pub sessions: Count,
    pub sessions_expired: Count,
    pub subscriptions: Count,
    pub packets_received: Count,
    pub packets_sent: Count,
    pub publishes_received: [Count; 3],
    pub publishes_sent: [Count; 3],
    pub publish_bytes_received: Count,
    pub publish_bytes_sent: Count,
    pub bytes_received: Count,
    pub bytes_sent: Count,
    pub publishes_denied: Count,
    pub publishes_failed: Count,
    pub wills_published: Count,
    pub shared_redelivered: Count,
    pub dropped: [Count; DROP_REASONS.len()],
}

/// Reasons for dropping a message, with their labels.
pub const DROP_REASONS: [(DropReason, &str); 7] = [
    (DropReason::Expired, "expired"),
    (DropReason::TooLarge, "too_large"),
    (DropReason::Offline, "offline"),
    (DropReason::MailboxFull, "mailbox_full"),
    (DropReason::QueueFull, "queue_full"),
    (DropReason::Refused, "refused"),
    (DropReason::SessionEnded, "session_ended"),
];

impl Stats {
    /// Counts `n` dropped messages.
    pub fn drop_messages(&self, reason: DropReason, n: u64) {
        if let Some(at) = DROP_REASONS.iter().position(|(r, _)| *r == reason) {
            self.dropped[at].add(n);
        }
    }

    /// Sum of an array of counters.
    pub fn sum(counts: &[Count]) -> u64 {
        counts.iter().map(Count::get).sum()
    }
}
