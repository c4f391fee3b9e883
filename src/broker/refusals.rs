//! Publishes that are refused, or not retained as they should be: the log says which limit it was.

use super::Broker;
use super::delivery::Publishing;
use super::retained::Forbidden;
use crate::mqtt::{Message, Reason};
use crate::session::{Failure, Loss};
use crate::telemetry::About;

impl Broker {
    /// Counts a publish that is refused.
    pub fn publish_refused(&self, publishing: &Publishing<'_>, loss: Loss) {
        self.count_refused(publishing, loss, None);
    }

    /// Counts a publish that is refused because it may not be retained, or that is not retained although it was accepted. What its
    /// publisher is told if it can be.
    pub fn not_retained(&self, publishing: &Publishing<'_>, message: &Message, why: Forbidden) -> Failure {
        let about = About { topic: message.topic(), why: &why };
        self.count_refused(publishing, why.loss(), Some(about));
        Failure::new(Reason::QuotaExceeded, why.to_string())
    }

    fn count_refused(&self, publishing: &Publishing<'_>, loss: Loss, about: Option<About<'_>>) {
        let whose = publishing.handle.map_or(self.metrics.losses.retained(), |h| h.whose());
        self.metrics.lost_about(whose, loss, 1, about);
    }
}

impl Forbidden {
    /// As it is counted and logged.
    fn loss(&self) -> Loss {
        match *self {
            Forbidden::Payload { max, .. } => Loss::RetainedPayload(max as u64),
            Forbidden::Messages { max, .. } => Loss::RetainedMessages(max as u64),
            Forbidden::Bytes { max, .. } => Loss::RetainedBytes(max as u64),
            Forbidden::Request { max, .. } => Loss::RetainedRequest(max as u64),
            Forbidden::Clears { max } => Loss::RetainedClears(max as u64),
            Forbidden::BridgeState { max, .. } => Loss::BridgeState(max as u64),
            Forbidden::Memory { max, .. } => Loss::JournalMemory(max),
            Forbidden::Journal { .. } => Loss::JournalFailing,
        }
    }
}
