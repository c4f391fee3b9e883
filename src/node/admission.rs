//! How many connections a node has, and whether a new one may stay.

use super::Node;
use std::sync::atomic::{AtomicU64, Ordering};

/// Connections beyond the limit that are kept for as long as it takes to tell them why they are refused.
pub const REFUSING_MAX: u64 = 64;

/// Whether a new connection may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Serve it.
    Serve,
    /// Hear its CONNECT and refuse it with 0x97.
    Refuse,
    /// There are too many even to refuse: the connection is to be closed.
    Close,
}

/// The connections of a node, those included that are refused and have not gone yet. Metrics show the number; this is where it is counted.
#[derive(Debug, Default)]
pub(super) struct Connections(AtomicU64);

impl Node {
    /// How many connections there are, those included that are refused and have not gone yet.
    pub fn connections(&self) -> u64 {
        self.connections.0.load(Ordering::Relaxed)
    }

    /// Whether `limits.max_connections` leaves no room for another connection.
    pub fn connections_full(&self) -> bool {
        self.connections() >= self.broker.limits.connections() as u64
    }

    /// Counts a new connection in, unless it is to be closed at once.
    pub fn admit_connection(&self) -> Admission {
        let metrics = &self.broker.metrics;
        let max = self.broker.limits.connections() as u64;
        let n = self.connections.0.fetch_add(1, Ordering::Relaxed) + 1;
        if n > max + REFUSING_MAX {
            self.connections.0.fetch_sub(1, Ordering::Relaxed);
            return Admission::Close;
        }
        metrics.connections_active.add(1);
        if n > max {
            return Admission::Refuse;
        }
        metrics.connections_max.raise(n);
        Admission::Serve
    }

    /// Counts out a connection that was counted in.
    pub fn dismiss_connection(&self) {
        self.connections.0.fetch_sub(1, Ordering::Relaxed);
        self.broker.metrics.connections_active.sub(1);
    }
}
