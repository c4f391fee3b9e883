//! Which publishes a mailbox takes, and when: those that may not overtake others of the same sender wait until these have come.

use super::{Displaced, Inner, Mailbox, MailboxLimits, OrderHold, Place, Refusal, Sending, Wakes};
use crate::ports::{Incarnation, MessageId};
use crate::queue_policy::QueuePolicy;
use crate::session::{Delivery, Loss};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl Mailbox {
    /// Whether a message of `size` bytes may be queued for a persistent session; `sending`, if its order matters. Those that make room for
    /// it are out of the queue from here on, and in `displaced`.
    ///
    /// # Errors
    /// Says why it is not taken.
    pub fn admits(
        &self,
        size: usize,
        sending: Option<Sending>,
        limits: &MailboxLimits,
        displaced: &mut Displaced,
    ) -> Result<(), Refusal> {
        let mut inner = self.inner.lock();
        match &inner.place {
            Place::Gone => return Err(Refusal::Dropped(Loss::SessionEnded)),
            Place::Departed(at) => return Err(Refusal::Moved(*at)),
            Place::Frozen(_) | Place::Attached | Place::Parked(_) => {}
        }
        inner.admit_in_order(sending)?;
        while let Some(full) = inner.full_for(size, limits) {
            let makes_room = self.policy_in(limits) == QueuePolicy::DropOldest
                && size as u64 <= limits.queued_bytes
                && inner.displace(full, displaced);
            if !makes_room {
                inner.has_come(sending);
                return Err(Refusal::Dropped(full));
            }
        }
        Ok(())
    }

    /// Puts a publish in as [`Mailbox::push`] does that was admitted with `sending`: those that wait for it may come after it.
    ///
    /// # Errors
    /// Says why it was not taken.
    pub fn push_admitted(
        &self,
        d: Delivery,
        sending: Option<Sending>,
        limits: &MailboxLimits,
        wakes: &mut Wakes,
    ) -> Result<usize, Refusal> {
        let mut inner = self.inner.lock();
        let pushed = inner.push(d, limits, self.policy_in(limits), wakes);
        if pushed.is_ok() {
            self.load.fetch_add(1, Relaxed);
        }
        inner.has_come(sending);
        pushed
    }

    /// Lets publishes of other nodes wait for older ones that may be on their way by the last owner of the session.
    pub fn hold_order(&self, hold: Arc<OrderHold>) {
        self.inner.lock().order = Some(hold);
    }

    /// Whether publishes wait for others, or would, save those of processes that are `away`.
    pub fn keeps_back(&self, away: &[Incarnation]) -> bool {
        let inner = self.inner.lock();
        inner.expected.iter().any(|(sender, _)| !away.contains(sender))
            || inner.order.as_ref().is_some_and(|o| !o.over())
    }

    /// Whether a publish that was refused for now would be so again.
    pub fn keeps_waiting(&self, sending: &Sending) -> bool {
        let inner = self.inner.lock();
        match &inner.place {
            Place::Departed(_) | Place::Gone => false,
            Place::Frozen(_) => true,
            Place::Attached | Place::Parked(_) => {
                let held = inner.order.as_ref().map_or(Ok(()), |o| o.admits(sending));
                held == Err(Refusal::Moving) || (held.is_ok() && inner.expects_before(sending.key()))
            }
        }
    }

    /// Whether a publish that was refused for now is still expected.
    pub fn expects(&self, key: (Incarnation, MessageId)) -> bool {
        let inner = self.inner.lock();
        let here = !matches!(inner.place, Place::Departed(_) | Place::Gone);
        here && inner.expected.contains(&key)
    }

    /// How many publishes are expected.
    pub fn expected_len(&self) -> usize {
        self.inner.lock().expected.len()
    }

    /// Expects a publish no longer: it will not come, or has come.
    pub fn unexpect(&self, key: (Incarnation, MessageId)) {
        self.inner.lock().expected.remove(&key);
    }
}

impl Inner {
    /// Lets later publishes of the same sender pass: this one has come.
    fn has_come(&mut self, sending: Option<Sending>) {
        if let Some(sending) = sending.filter(|_| !self.expected.is_empty()) {
            self.expected.remove(&sending.key());
        }
    }

    /// Whether a publish may be taken now; if it has to wait, it is expected from now on. What is taken stays expected until it has been
    /// pushed: others may publish meanwhile.
    fn admit_in_order(&mut self, sending: Option<Sending>) -> Result<(), Refusal> {
        let frozen = matches!(self.place, Place::Frozen(_));
        let Some(sending) = sending else {
            // Those that keep no order wait only while what they bring might be void.
            return if frozen || self.unsure() { Err(Refusal::Moving) } else { Ok(()) };
        };
        let held = match (&self.order, frozen) {
            (_, true) => Err(Refusal::Moving),
            (Some(order), false) => order.admits(&sending),
            (None, false) => Ok(()),
        };
        let held = held.and_then(|()| match self.expects_before(sending.key()) {
            true => Err(Refusal::Moving),
            false => Ok(()),
        });
        match held {
            Err(Refusal::Moving) => drop(self.expected.insert(sending.key())),
            Err(_) => self.has_come(Some(sending)),
            Ok(()) => {}
        }
        held
    }

    /// Whether it is not known yet that the session is this node's.
    pub(super) fn unsure(&self) -> bool {
        self.order.as_ref().is_some_and(|o| o.unsure())
    }

    /// Whether an older publish of the same sender is expected.
    fn expects_before(&self, (sender, id): (Incarnation, MessageId)) -> bool {
        let first = (sender, MessageId { origin: 0, seq: 0 });
        !self.expected.is_empty() && self.expected.range(first..(sender, id)).next().is_some()
    }
}
