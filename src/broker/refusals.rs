//! Publishes that are refused: their clients are told, and the log.

use super::Broker;
use super::publish::Origin;
use crate::mqtt::Message;
use crate::session::Loss;

impl Broker {
    /// Counts a publish that is refused, or not retained as it should be.
    pub(super) fn publish_refused(&self, origin: &Origin<'_>, loss: Loss) {
        let whose = origin.handle.map_or(self.metrics.losses.retained(), |h| h.whose());
        self.metrics.lost(whose, loss, 1);
    }

    /// Which limit keeps a message that was refused from being retained.
    pub(super) fn not_retained(&self, message: &Message) -> Loss {
        let limits = &self.limits.retained;
        let taken = self.remote.as_ref().is_none_or(|r| r.ports.coordinator.takes(message));
        if message.payload().len() > limits.payload {
            Loss::RetainedPayload(limits.payload as u64)
        } else if !taken {
            Loss::RetainedRequest
        } else if self.retained.bytes() + message.size() > limits.bytes {
            Loss::RetainedBytes(limits.bytes as u64)
        } else {
            Loss::RetainedMessages(limits.messages as u64)
        }
    }
}
