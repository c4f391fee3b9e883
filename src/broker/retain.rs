//! How a publish with RETAIN becomes the retained message of its topic (MQTT 5.0 section 3.3.1.3), and what happens if a limit
//! forbids that.
//!
//! What is refused with a reason changes nothing. What is accepted all the same, since nobody could be told (QoS 0, a will), clears
//! its topic: who subscribes later gets what was published last or nothing, never what that has replaced.

use super::promise::Promise;
use super::retained::{Forbidden, Underway};
use super::{Broker, bridges};
use crate::clock::Time;
use crate::mqtt::Message;
use crate::ports::{Change, Lsn, MessageId, NoRoom};
use crate::session::Loss;
use std::sync::Arc;

/// When an update of a retained message may be acknowledged.
#[derive(Debug, Default)]
pub struct Updated {
    /// Up to where the journal must be durable for the update to be acknowledged; `None` = it need not be.
    pub lsn: Option<Lsn>,
    /// What must be kept for the update to be acknowledged; `None` = nothing.
    pub promise: Option<Arc<Promise>>,
    /// The limit because of which the topic was cleared instead.
    pub forbidden: Option<Forbidden>,
    /// The update's name, which is its publish's as well.
    pub id: Option<MessageId>,
}

/// Whether a topic or filter is about the broker's own messages; no wildcard reaches them from outside.
pub fn is_own(path: &str) -> bool {
    path.starts_with("$SYS/")
}

impl Broker {
    /// Sets or clears the retained message of the topic on this node. `told`: whoever publishes it can be told that it is refused.
    ///
    /// # Errors
    /// The limit that forbids it, if that can be told.
    pub fn retain(&self, message: &Message, told: bool) -> Result<Updated, Forbidden> {
        if is_own(message.topic()) {
            return self.keep_bridge_state(message, told);
        }
        let clears = message.payload().is_empty();
        let admitted = || {
            self.admits_retained(message, Underway::default())?;
            self.journal_takes(message)
        };
        let forbidden = if clears { None } else { admitted().err() };
        if let Some(why) = forbidden.filter(|_| told) {
            return Err(why);
        }
        let topic = message.topic();
        let lsn = if clears || forbidden.is_some() {
            self.retained.clear(topic, || self.journal.append(&[Change::ClearRetained { topic }]))
        } else {
            Some(self.retained.set(message, || self.journal.append(&[Change::Retain(message)])))
        };
        Ok(Updated { lsn, forbidden, ..Updated::default() })
    }

    /// Whether a message may become the retained one of its topic now, beside those on their way.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn admits_retained(&self, message: &Message, underway: Underway) -> Result<(), Forbidden> {
        self.retained.admits(message, &self.limits.retained(), underway)
    }

    /// Whether the journal can keep a message that is to be retained.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn journal_takes(&self, message: &Message) -> Result<(), Forbidden> {
        let size = message.size();
        self.journal.takes(message).map_err(|why| match why {
            NoRoom::Full { max, used } => Forbidden::Memory { max, used, size },
            NoRoom::Failing => Forbidden::Journal { size },
        })
    }

    /// Whether a message could ever become the retained one of its topic on this node: what a client is told that leaves a will.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn could_retain(&self, message: &Message) -> Result<(), Forbidden> {
        if message.payload().is_empty() {
            return Ok(()); // it clears
        }
        if is_own(message.topic()) {
            return bridges::admits(message);
        }
        self.limits.retained().allow(message)
    }

    /// Clears retained messages that have expired, if this node is alone. In a cluster the leader does it for all.
    pub fn expire_retained(&self, now: Time) {
        self.retained.expire(now, |topic| {
            self.journal.append(&[Change::ClearRetained { topic }]);
            self.metrics.lost(self.metrics.losses.retained(), Loss::Expired, 1);
        });
    }
}
