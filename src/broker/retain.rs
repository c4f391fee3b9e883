//! How a publish with RETAIN becomes the retained message of its topic (MQTT 5.0 section 3.3.1.3), and what happens if a limit
//! forbids that.
//!
//! What is refused with a reason changes nothing. What is accepted all the same, since nobody could be told (QoS 0, a will), clears
//! its topic: who subscribes later gets what was published last or nothing, never what that has replaced.

use super::publish::Keeping;
use super::remote::Updated;
use super::retained::{Forbidden, Underway};
use super::sys;
use super::{Broker, bridges};
use crate::clock::Time;
use crate::mqtt::Message;
use crate::ports::{Change, NoRoom};
use crate::session::Loss;

impl Broker {
    /// Sets or clears the retained message of the topic. `told`: whoever publishes it can be told that it is refused.
    ///
    /// # Errors
    /// The limit that forbids it, if that can be told.
    pub(super) fn retain(
        &self,
        message: &Message,
        keeping: Keeping,
        told: bool,
    ) -> Result<Updated, Forbidden> {
        if sys::is_own(message.topic()) {
            return self.keep_bridge_state(message, told);
        }
        if let Some(remote) = &self.remote {
            return self.retain_in_cluster(remote, message, keeping, told);
        }
        let clears = message.payload().is_empty();
        let forbidden =
            (!clears).then(|| self.may_retain(message, Underway::default(), true).err()).flatten();
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

    /// Whether a message may become the retained one of its topic now, beside those on their way; `journaled` says that the
    /// journal has to keep it.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub(super) fn may_retain(
        &self,
        message: &Message,
        underway: Underway,
        journaled: bool,
    ) -> Result<(), Forbidden> {
        self.retained.admits(message, &self.limits.retained(), underway)?;
        self.remote.as_ref().map_or(Ok(()), |r| r.takes(message))?;
        if !journaled {
            return Ok(());
        }
        let size = message.size();
        self.journal.takes(message).map_err(|why| match why {
            NoRoom::Full { max, used } => Forbidden::Memory { max, used, size },
            NoRoom::Failing => Forbidden::Journal { size },
        })
    }

    /// Whether a message could ever become the retained one of its topic: what a client is told that leaves a will.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub(super) fn could_retain(&self, message: &Message) -> Result<(), Forbidden> {
        if message.payload().is_empty() {
            return Ok(()); // it clears
        }
        if sys::is_own(message.topic()) {
            return bridges::admits(message);
        }
        self.limits.retained().allow(message)?;
        self.remote.as_ref().map_or(Ok(()), |r| r.takes(message))
    }

    /// Clears retained messages that have expired. In a cluster the leader does it for all.
    pub fn expire_retained(&self, now: Time) {
        if self.remote.is_some() {
            return;
        }
        self.retained.expire(now, |topic| {
            self.journal.append(&[Change::ClearRetained { topic }]);
            self.metrics.lost(self.metrics.losses.retained(), Loss::Expired, 1);
        });
    }
}
