//! Delivery: one message to the sessions of this node that it is for, journaled once for all persistent ones. Who it is for is the
//! caller's choice; what came of it is a value ([`Delivered`]).
//!
//! Three steps: [`Broker::give`] for each target, [`Broker::write`] what the journal must have, [`Broker::hand_out`] what it has.
//! [`Broker::commit`] does the last two in one.

use super::Broker;
use super::handle::Handle;
use super::mailbox::{Displaced, Refusal, Sending, Wakes};
use super::router::{Matches, Subscriber, Target};
use crate::mqtt::{Message, QoS};
use crate::ports::{Change, Lsn, Recipient, Revision, Seq, SessionNo, SessionRecord};
use crate::session::{Delivery, Extra, Loss};
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Who publishes a message on this node, and what must be recorded together with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publishing<'a> {
    /// The publishing session; 0 = the broker itself.
    pub session: SessionNo,
    /// The QoS 2 packet identifier that the message came under (durable sessions).
    pub inbound: Option<u16>,
    /// The session's record without the will that this message is.
    pub record: Option<&'a SessionRecord>,
    /// The publishing session's handle: its loss it is if the publish is refused.
    pub handle: Option<&'a Handle>,
}

impl Publishing<'_> {
    /// Whether whoever publishes `message` can be told that it is refused.
    pub fn told(&self, message: &Message) -> bool {
        message.qos() > QoS::AtMostOnce && self.record.is_none()
    }
}

/// Where a message comes from that is given to sessions of this node: who publishes it, and as what it travels among the nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Provenance<'a> {
    /// Who publishes the message; nobody, if it came from another node.
    pub publishing: Publishing<'a>,
    /// Which process sends it under which name: that decides when a session takes it. `None` = no other node knows of it.
    pub sending: Option<Sending>,
}

impl Provenance<'_> {
    /// What decides when `target` takes the message. Those that share a subscription take messages in any order.
    fn sending(&self, target: &Target) -> Option<Sending> {
        let shared = target.extra.as_ref().is_some_and(|e| e.shared.is_some());
        self.sending.filter(|_| !shared)
    }
}

/// The sessions of this node that did not take a message because they leave.
#[derive(Debug, Default)]
pub struct Absent {
    /// The numbers of those that were not looked at yet.
    pub sessions: Vec<SessionNo>,
    /// Sessions that may be about to move to another node.
    pub moving: Vec<Arc<Handle>>,
    /// The last revision at which one moved.
    pub moved: Option<Revision>,
}

impl Absent {
    /// Whether any session did not take the message.
    pub fn any(&self) -> bool {
        !self.moving.is_empty() || self.moved.is_some()
    }

    /// Takes note that one of the sessions moved at revision `at`.
    pub fn moved_at(&mut self, at: Revision) {
        self.moved = self.moved.max(Some(at));
    }
}

/// What became of a message for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gave {
    /// The message is not for this session: it is the client's own, or only its publisher gets it.
    NotMeant,
    /// The session has it, or will once it is written, or has lost it for good.
    Yes,
    /// The session leaves: it does not have it.
    Absent,
}

/// What came of giving a message to sessions of this node.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Persistent sessions that get it once the journal has it, and how.
    recipients: Vec<Recipient>,
    targets: Vec<Target>,
    /// The message's number in the journal; 0 = the journal does not have it.
    pub seq: Seq,
    /// Sessions that took the message, if it has a name: it must not come to them again.
    pub took: Vec<SessionNo>,
    /// Sessions that did not take the message since they leave.
    pub absent: Absent,
    /// Messages that gave way to this one in queues: rows of the journal that these sessions are done with.
    pub displaced: Vec<(Seq, SessionNo)>,
    /// Sessions whose queue was found full.
    pub full: Vec<Arc<Handle>>,
}

impl Delivered {
    /// Whether persistent sessions wait for the journal to have it.
    pub fn to_write(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// The persistent sessions that the journal has it for, between [`Broker::write`] and [`Broker::hand_out`].
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// As new; its buffers stay.
    fn clear(&mut self) {
        let Delivered { recipients, targets, seq, took, absent, displaced, full } = self;
        recipients.clear();
        targets.clear();
        *seq = 0;
        took.clear();
        *absent = Absent::default();
        displaced.clear();
        full.clear();
    }
}

/// Buffers that one thread uses from publish to publish. No result is kept in them.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Tasks to wake once the batch is done.
    pub wakes: Wakes,
    spare: Delivered,
}

impl Scratch {
    /// Begins to give a message to sessions: what will have come of it, and whom to wake.
    pub fn begin(&mut self) -> (&mut Delivered, &mut Wakes) {
        self.spare.clear();
        (&mut self.spare, &mut self.wakes)
    }
}

impl Broker {
    /// Gives a message to all that match here, one member of each shared subscription. Whether any did.
    pub fn give_all(
        &self,
        message: &Message,
        matches: &Matches,
        provenance: &Provenance<'_>,
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) -> bool {
        let mut matched = false;
        for t in &matches.targets {
            matched |= self.give(message, t, provenance, d, wakes) != Gave::NotMeant;
        }
        for group in &matches.groups {
            match self.pick(group, 0, message.topic()) {
                Some(m) => {
                    matched |=
                        self.give(message, &Broker::target_of(&m), provenance, d, wakes) != Gave::NotMeant;
                }
                None => self.nobody_may(group),
            }
        }
        matched
    }

    /// Gives a message to one target: at once if that needs no journal, else with [`Broker::hand_out`].
    pub fn give(
        &self,
        message: &Message,
        t: &Target,
        provenance: &Provenance<'_>,
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Gave {
        if !t.is_for(provenance.publishing.session) {
            return Gave::NotMeant;
        }
        let qos = message.qos().min(t.qos);
        let retain = t.retain_as_published && message.retain();
        if qos > QoS::AtMostOnce && t.handle.durable {
            return match self.admits(&t.handle, message.size(), provenance.sending(t), d) {
                Ok(()) => {
                    d.add(t, qos, retain);
                    Gave::Yes
                }
                Err(refusal) => {
                    if let Refusal::Dropped(Loss::QueueMessages(_) | Loss::QueueBytes(_)) = refusal {
                        d.full.push(t.handle.clone());
                    }
                    self.refused(refusal, &t.handle, provenance, d)
                }
            };
        }
        let delivery = Delivery { message: message.clone(), seq: None, qos, retain, extra: t.extra.clone() };
        match t.handle.mailbox.push(delivery, &self.limits.mailbox(), wakes) {
            Ok(displaced) => {
                self.displaced_in_memory(&t.handle, displaced);
                if provenance.sending.is_some() {
                    d.took.push(t.handle.no);
                }
                Gave::Yes
            }
            Err(refusal) => self.refused(refusal, &t.handle, provenance, d),
        }
    }

    /// Whether the queue of a persistent session takes a message; what gives way to it is counted.
    fn admits(
        &self,
        handle: &Handle,
        size: usize,
        sending: Option<Sending>,
        d: &mut Delivered,
    ) -> Result<(), Refusal> {
        let mut displaced = Displaced::default();
        let admitted = handle.mailbox.admits(size, sending, &self.limits.mailbox(), &mut displaced);
        if let Some(loss) = displaced.loss {
            let limit = match loss {
                Loss::QueueMessages(n) => ("session.max_queued_messages", n),
                _ => ("session.max_queued_bytes", self.limits.mailbox().queued_bytes),
            };
            self.metrics.lost(handle.whose(), Loss::Displaced(limit.0, limit.1), displaced.count());
            d.displaced.extend(displaced.seqs.into_iter().map(|seq| (seq, handle.no)));
        }
        admitted
    }

    /// Counts messages that gave way in memory.
    fn displaced_in_memory(&self, handle: &Handle, displaced: usize) {
        if displaced > 0 {
            let limit = self.limits.mailbox().messages as u64;
            let loss = Loss::Displaced("session.mailbox_messages", limit);
            self.metrics.lost(handle.whose(), loss, displaced as u64);
        }
    }

    /// Writes what has to be recorded with a message and, if persistent sessions get it, the message itself, in one step of the
    /// journal. `duty`: one recipient more, and the number of the row, which stays until that one is done with it.
    pub fn write(
        &self,
        message: &Message,
        provenance: &Provenance<'_>,
        duty: Option<(Seq, Recipient)>,
        d: &mut Delivered,
    ) -> Option<Lsn> {
        let mut changes: SmallVec<[Change<'_>; 3]> = SmallVec::new();
        if let Some(packet_id) = provenance.publishing.inbound {
            changes.push(Change::InboundBegin { session: provenance.publishing.session, packet_id });
        }
        if let Some(record) = provenance.publishing.record {
            changes.push(Change::Session(record));
        }
        let delivered = d.recipients.len();
        let number = duty.as_ref().map(|(seq, _)| *seq);
        d.recipients.extend(duty.map(|(_, recipient)| recipient));
        if !d.recipients.is_empty() {
            d.seq = number.unwrap_or_else(|| self.journal.next_seq());
            let (seq, id) = (d.seq, provenance.sending.map(|sending| sending.id));
            changes.push(Change::Message { seq, id, message, recipients: &d.recipients });
        }
        let lsn = (!changes.is_empty()).then(|| self.journal.append(&changes));
        drop(changes);
        d.recipients.truncate(delivered);
        lsn
    }

    /// Hands out what [`Broker::write`] has given to the journal.
    pub fn hand_out(
        &self,
        message: &Message,
        provenance: &Provenance<'_>,
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) {
        let (mut targets, mut recipients) =
            (std::mem::take(&mut d.targets), std::mem::take(&mut d.recipients));
        for (t, r) in targets.drain(..).zip(&recipients) {
            let sending = provenance.sending(&t);
            let delivery = Delivery {
                message: message.clone(),
                seq: NonZeroU64::new(d.seq),
                qos: r.qos,
                retain: r.retain,
                extra: t.extra,
            };
            match t.handle.mailbox.push_admitted(delivery, sending, &self.limits.mailbox(), wakes) {
                Ok(_) if provenance.sending.is_some() => d.took.push(r.session),
                Ok(_) => {}
                Err(refusal) => {
                    self.refused(refusal, &t.handle, provenance, d);
                    self.journal.append(&[Change::Settle { seq: d.seq, session: r.session }]);
                }
            }
        }
        recipients.clear();
        (d.targets, d.recipients) = (targets, recipients);
    }

    /// Writes and hands out what [`Broker::give`] has left, if no other node has to do with it. Returns when it is safe.
    pub fn commit(
        &self,
        message: &Message,
        provenance: &Provenance<'_>,
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Option<Lsn> {
        let lsn = self.write(message, provenance, None, d);
        self.hand_out(message, provenance, d, wakes);
        lsn
    }

    /// Gives one message to one session as the subscription `extra` asks: a retained one, or one of a shared subscription
    /// that another member could not finish. `None` if it was dropped, else when it is safe.
    pub fn deliver_one(
        &self,
        message: &Message,
        t: &Target,
        retain: bool,
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Option<Option<Lsn>> {
        let qos = message.qos().min(t.qos);
        let provenance = Provenance::default();
        if qos == QoS::AtMostOnce || !t.handle.durable {
            let extra = t.extra.clone();
            let delivery = Delivery { message: message.clone(), seq: None, qos, retain, extra };
            let pushed = t.handle.mailbox.push(delivery, &self.limits.mailbox(), wakes);
            return match pushed {
                Ok(displaced) => {
                    self.displaced_in_memory(&t.handle, displaced);
                    Some(None)
                }
                Err(refusal) => {
                    self.refused(refusal, &t.handle, &provenance, d);
                    None
                }
            };
        }
        if let Err(refusal) = self.admits(&t.handle, message.size(), None, d) {
            self.refused(refusal, &t.handle, &provenance, d);
            return None;
        }
        d.add(t, qos, retain);
        Some(self.commit(message, &provenance, d, wakes))
    }

    /// Counts a message that a mailbox did not take, or notes that it has to look for its session elsewhere.
    fn refused(
        &self,
        refusal: Refusal,
        handle: &Arc<Handle>,
        provenance: &Provenance<'_>,
        d: &mut Delivered,
    ) -> Gave {
        let loss = match (refusal, provenance.sending) {
            (Refusal::Dropped(loss), Some(_)) => {
                d.took.push(handle.no); // and it does not get it later, out of order
                loss
            }
            (Refusal::Dropped(loss), None) => loss,
            (Refusal::Moving, Some(_)) => {
                d.absent.sessions.push(handle.no);
                d.absent.moving.push(handle.clone());
                return Gave::Absent;
            }
            (Refusal::Moved(at), Some(sending)) => {
                d.absent.sessions.push(handle.no);
                // Whoever matched on a newer index has found it where it is.
                if sending.matched_at < at {
                    d.absent.moved_at(at);
                }
                return Gave::Absent;
            }
            (Refusal::Moving | Refusal::Moved(_), None) => Loss::SessionEnded,
        };
        self.metrics.lost(handle.whose(), loss, 1);
        Gave::Yes
    }

    /// What a subscriber of a shared subscription is given messages as.
    pub fn target_of(s: &Subscriber) -> Target {
        Target {
            handle: Arc::clone(&s.handle),
            qos: s.options.qos,
            no_local: s.options.no_local,
            only_own: false,
            retain_as_published: s.options.retain_as_published,
            extra: s.extra.clone(),
        }
    }
}

impl Delivered {
    /// A persistent session gets the message once the journal has it.
    fn add(&mut self, t: &Target, qos: QoS, retain: bool) {
        let e: Option<&Extra> = t.extra.as_deref();
        let recipient = Recipient {
            session: t.handle.no,
            qos,
            retain,
            subscription_ids: e.map(|e| e.subscription_ids.clone()).unwrap_or_default(),
            shared: e.and_then(|e| e.shared.clone()),
            publisher: None,
            unserved: None,
        };
        // A session may be here directly and as a member: the journal has it once a message.
        if recipient.shared.is_some() && self.recipients.iter().any(|o| o.session == recipient.session) {
            return;
        }
        self.recipients.push(recipient);
        self.targets.push(t.clone());
    }
}
