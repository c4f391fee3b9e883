//! The publish path of a node that is alone: a message to every session that must have it.

use super::delivery::{Provenance, Publishing, Scratch};
use super::promise::Promise;
use super::{Broker, router};
use crate::clock::Time;
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Change, Lsn, Seq, SessionNo};
use crate::session::{Failure, Loss};
use std::sync::Arc;

/// What is told whose publish or session would have to wait for a disk that hangs.
pub const STALLED: &str =
    "the disk of this node's journal has not answered for longer than storage.stall_timeout";

/// What became of a publish.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Up to where the journal must be durable for the publish to be safe here; `None` = it is safe now.
    pub lsn: Option<Lsn>,
    /// What tells when the publish is safe on other nodes; `None` = none has to do with it.
    pub promise: Option<Arc<Promise>>,
    /// Whether any subscription of this node matched.
    pub matched: bool,
}

impl Broker {
    /// Routes `message` to the sessions of this node, as if there were no other.
    ///
    /// # Errors
    /// 0x83 if it needs the journal, and the journal hangs; 0x97 if it is to be retained and a limit forbids it: then nothing
    /// happened. At QoS 0 and for a will, where nobody could be told, it is routed all the same; it is not retained, what was retained
    /// on its topic is cleared, and the log says why.
    pub fn publish(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        now: Time,
        cache: &mut router::Cache,
        scratch: &mut Scratch,
    ) -> Result<Routed, Failure> {
        let begun = message.qos() == QoS::ExactlyOnce && publishing.inbound.is_some();
        self.refuse_stalled(message, publishing, begun, cache)?;
        let mut lsn = None;
        if message.retain() {
            let updated = self
                .retain(message, publishing.told(message))
                .map_err(|why| self.not_retained(publishing, message, why))?;
            if let Some(why) = updated.forbidden {
                self.not_retained(publishing, message, why);
            }
            lsn = updated.lsn;
        }
        let provenance = Provenance { publishing: *publishing, sending: None };
        let (d, wakes) = scratch.begin();
        let matches = self.router.lookup(message.topic(), cache);
        let matched = self.give_all(message, matches, &provenance, d, wakes);
        for (seq, session) in d.displaced.drain(..) {
            self.settle(seq, session);
        }
        lsn = self.commit(message, &provenance, d, wakes).or(lsn);
        for handle in d.full.drain(..) {
            self.purge_alone(&handle, now);
        }
        Ok(Routed { lsn, promise: None, matched })
    }

    /// Refuses a publish that cannot be acknowledged before something of it is in the journal, while the journal hangs. `begun`: it is
    /// in the journal whomever it is for.
    ///
    /// # Errors
    /// 0x83.
    pub fn refuse_stalled(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        begun: bool,
        cache: &mut router::Cache,
    ) -> Result<(), Failure> {
        if !self.journal.stalled() || !publishing.told(message) {
            return Ok(());
        }
        if !begun && !message.retain() && !self.has_persistent(message.topic(), cache) {
            return Ok(());
        }
        self.publish_refused(publishing, Loss::JournalStalled);
        Err(Failure::new(Reason::ImplementationSpecificError, STALLED))
    }

    /// Whether a persistent session would get a message on `topic` at QoS 1 or 2.
    fn has_persistent(&self, topic: &str, cache: &mut router::Cache) -> bool {
        let matches = self.router.lookup(topic, cache);
        matches.targets.iter().any(|t| t.qos > QoS::AtMostOnce && t.handle.durable)
            || matches.groups.iter().any(|g| g.pick(0).is_some_and(|m| m.handle.durable))
    }

    /// A session is done with a row of the journal, if no other node knows of its message.
    pub fn settle(&self, seq: Seq, session: SessionNo) {
        self.journal.append(&[Change::Settle { seq, session }]);
    }

    /// Publishes a message of the broker itself ($SYS), which is kept in memory only.
    pub fn publish_own(&self, message: &Message, cache: &mut router::Cache, scratch: &mut Scratch) {
        self.own.set(message, || ());
        let (d, wakes) = scratch.begin();
        let matches = self.router.lookup(message.topic(), cache);
        for t in &matches.targets {
            self.give(message, t, &Provenance::default(), d, wakes);
        }
    }
}
