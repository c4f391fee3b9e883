//! A full queue in which the oldest messages give way to new ones.

use super::{Inner, Mailbox, MailboxLimits, Seq};
use crate::queue_policy::QueuePolicy;
use crate::session::{Delivery, Loss};
use std::sync::atomic::Ordering::Relaxed;

/// Messages in memory that are looked at for one that the journal does not have.
const LOOKED_AT_MAX: usize = 64;

/// Messages that gave way to a new one.
#[derive(Debug, Default)]
pub struct Displaced {
    /// Numbers of those that the journal has: they are to be settled.
    pub seqs: Vec<Seq>,
    /// How many others there were.
    pub others: usize,
    /// The limit that was reached.
    pub loss: Option<Loss>,
}

impl Displaced {
    /// How many messages gave way.
    pub fn count(&self) -> u64 {
        (self.seqs.len() + self.others) as u64
    }
}

impl Mailbox {
    /// Sets what the client chooses to be dropped when the queue is full; `None` = as the broker does by default.
    pub fn set_policy(&self, policy: Option<QueuePolicy>) {
        let place = policy.and_then(|policy| QueuePolicy::ALL.iter().position(|p| *p == policy));
        self.policy.store(place.map_or(0, |place| place as u8 + 1), Relaxed);
    }

    /// The policy that the client has chosen, if it has.
    pub fn policy(&self) -> Option<QueuePolicy> {
        QueuePolicy::ALL.get(usize::from(self.policy.load(Relaxed)).checked_sub(1)?).copied()
    }

    pub(super) fn policy_in(&self, limits: &MailboxLimits) -> QueuePolicy {
        self.policy().unwrap_or(limits.policy)
    }
}

impl Inner {
    /// The limit that one message more of `size` bytes would exceed.
    pub(super) fn full_for(&self, size: usize, limits: &MailboxLimits) -> Option<Loss> {
        let bytes = self.backlog.bytes() + (self.queue_bytes + size) as u64;
        if self.waiting() >= limits.queued_messages {
            Some(Loss::QueueMessages(limits.queued_messages as u64))
        } else if bytes > limits.queued_bytes {
            Some(Loss::QueueBytes(limits.queued_bytes))
        } else {
            None
        }
    }

    /// Takes the oldest message out that is not on its way to the client; false if there is none. `full`: why.
    pub(super) fn displace(&mut self, full: Loss, displaced: &mut Displaced) -> bool {
        // Those in memory are older than those on disk, of which the first may be being read.
        if let Some(oldest) = self.queue.pop_front() {
            self.queue_bytes -= oldest.size();
            match oldest.seq {
                Some(seq) => displaced.seqs.push(seq.get()),
                None => displaced.others += 1,
            }
        } else if let Some(seq) = self.backlog.remove(self.reading) {
            displaced.seqs.push(seq);
        } else {
            return false;
        }
        displaced.loss = Some(full);
        true
    }

    /// Makes room in memory for a message of `size` bytes that the journal does not have, if others of that kind can give way; how many
    /// did.
    pub(super) fn displace_in_memory(&mut self, size: usize, limits: &MailboxLimits) -> usize {
        let full =
            |inner: &Inner| inner.queue.len() >= limits.messages || inner.queue_bytes + size > limits.bytes;
        let mut displaced = 0;
        while size <= limits.bytes
            && full(self)
            && let Some(at) = self.queue.iter().take(LOOKED_AT_MAX).position(|d| d.seq.is_none())
            && let Some(oldest) = self.queue.remove(at)
        {
            self.queue_bytes -= Delivery::size(&oldest);
            displaced += 1;
        }
        displaced
    }
}
