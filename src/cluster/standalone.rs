//! The coordinator of a node that is alone: it owns every session. Does no I/O and always answers at once.

use crate::broker::ports::{ClaimDone, Coordinator, Epoch};
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub struct Standalone {
    epochs: AtomicU64,
}

impl Coordinator for Standalone {
    fn claim(&self, _client_id: &str, done: ClaimDone) {
        done(Ok(self.epochs.fetch_add(1, Ordering::Relaxed) + 1));
    }

    // Nobody else could have it, so nobody need be told.
    fn release(&self, _client_id: &str, _epoch: Epoch) {}

    fn may_serve(&self) -> Result<(), String> {
        Ok(())
    }
}
