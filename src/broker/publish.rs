//! The publish path: a message to every session of this node that must have it, journaled once for all persistent ones.
//! What other nodes must have is in [`super::remote`].

use super::Broker;
use super::handle::Handle;
use super::mailbox::{Displaced, Refusal, Turn, Wakes};
use super::remote::{RemoteCache, Ticket};
use super::router::{self, Target};
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{
    Change, Incarnation, Lsn, MessageId, ORIGIN_DUTY, Publisher, Recipient, Revision, Seq, SessionNo,
    SessionRecord, Unserved,
};
use crate::session::{Delivery, Extra, Failure, Loss};
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::sync::Arc;

/// What is told whose publish would have to wait for other nodes, beside too many others.
const HELD_FULL: &str =
    "as many publishes wait for other nodes as cluster.max_held_messages or cluster.max_held_bytes allows";

/// What is told whose publish or session would have to wait for a disk that hangs.
pub(super) const STALLED: &str =
    "the disk of this node's journal has not answered for longer than storage.stall_timeout";

/// Who publishes, and what must be recorded together with the message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The publishing session; 0 = the broker itself.
    pub session: SessionNo,
    /// The QoS 2 packet identifier the message came under (durable sessions).
    pub inbound: Option<u16>,
    /// The session's record without the will that this message is.
    pub record: Option<&'a SessionRecord>,
    /// The publishing session's handle: its loss it is if the publish is refused.
    pub handle: Option<&'a Handle>,
}

impl Origin<'_> {
    /// How sure the journal must be of a retained message of it.
    fn keeping(&self) -> Keeping {
        match (self.record, self.inbound) {
            (Some(_), _) => Keeping::Enough,
            // A repetition is acknowledged as the first one, and changes nothing.
            (None, Some(_)) => Keeping::AsWell,
            (None, None) => Keeping::IfAway,
        }
    }

    /// Whether whoever publishes `message` can be told that it is refused.
    fn told(&self, message: &Message) -> bool {
        message.qos() > QoS::AtMostOnce && self.record.is_none()
    }

    /// The duty to bring its publish to the other nodes.
    pub(super) fn duty(&self) -> Recipient {
        let publisher = Publisher { session: self.session, packet_id: self.inbound };
        duty(None, (self.session != 0).then(|| Box::new(publisher)))
    }
}

/// What the journal does for an update of a retained message that the cluster's store is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    /// Keeps it only while the store is away.
    IfAway,
    /// Keeps it as well: it is not published again if it is lost here.
    AsWell,
    /// Keeps it, and that is enough: there is nobody to wait for the store.
    Enough,
}

/// What became of a publish.
#[derive(Clone, Debug)]
pub struct Routed {
    /// When it is safe here: once the journal is durable up to here; `None` = now.
    pub lsn: Option<Lsn>,
    /// When it is safe on other nodes; `None` = none has to do with it.
    pub ticket: Option<Arc<Ticket>>,
    /// Whether any subscription of this node matched.
    pub matched: bool,
}

/// How one message is given to the sessions of this node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way<'a> {
    /// Who publishes it; nobody, if it came from another node.
    pub origin: Origin<'a>,
    /// Names it in the cluster.
    pub id: Option<MessageId>,
    /// The process that sends it; this one, if it does not come from elsewhere.
    pub sender: Incarnation,
    /// The revision of the index at which it was matched.
    pub matched_at: Revision,
    /// Whether it may have been here before: then duplicates are looked for.
    pub repeated: bool,
    /// Whether it may come again: then who has had it is remembered.
    pub tracked: bool,
    /// Who is asked to serve a shared subscription is asked only when that is recorded.
    pub noted: bool,
}

impl Way<'_> {
    /// What decides when a session takes it. Those that share a subscription take messages in any order.
    fn turn(&self, t: &Target) -> Option<Turn> {
        let shared = t.extra.as_ref().is_some_and(|e| e.shared.is_some());
        let Way { sender, matched_at, .. } = *self;
        self.id.filter(|_| !shared).map(|id| Turn { sender, id, matched_at })
    }
}

/// Sessions of this node that did not take a message because they leave.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// They may be about to move.
    pub moving: Vec<Arc<Handle>>,
    /// The last revision at which one moved.
    pub moved: Option<Revision>,
}

impl Leaving {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        !self.moving.is_empty() || self.moved.is_some()
    }
}

/// The last lookups of one publisher.
#[derive(Debug, Default)]
pub struct Cache {
    pub(super) local: router::Cache,
    pub(super) remote: RemoteCache,
}

/// Buffers that one thread uses from publish to publish.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Tasks to wake once the batch is done.
    pub wakes: Wakes,
    recipients: Vec<Recipient>,
    journaled: Vec<Target>,
    /// When the will that was published last is safe on other nodes.
    pub(super) will: Option<Arc<Ticket>>,
    /// Sessions whose queue was found full.
    pub(super) full: Vec<Arc<Handle>>,
    /// Sessions that got the message, in a cluster.
    pub(super) given: Vec<SessionNo>,
    /// Sessions that did not take the message, in a cluster.
    pub(super) leaving: Leaving,
    /// What the record of a duty says of shared subscriptions.
    pub(super) unserved: Option<Box<[Unserved]>>,
}

impl Broker {
    /// Routes `message`.
    ///
    /// # Errors
    /// 0x83 if it needs the journal, and the journal hangs; 0x97 if it is to be retained and a limit forbids it, or if it would have to wait for other nodes and too many do: then
    /// nothing happened. At QoS 0 and for a will, where nobody could be told, it is routed all the same; it is not retained,
    /// what was retained on its topic is cleared, and `scratch` says why.
    pub fn publish(
        &self,
        message: &Message,
        origin: &Origin<'_>,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Result<Routed, Failure> {
        if self.journal.stalled()
            && origin.told(message)
            && self.needs_journal(message, origin, &mut cache.local)
        {
            self.publish_refused(origin, Loss::JournalStalled);
            return Err(Failure::new(Reason::ImplementationSpecificError, STALLED));
        }
        if let Some(loss) = self.refuses_to_hold(message, origin, &mut cache.remote) {
            self.publish_refused(origin, loss);
            return Err(Failure::new(Reason::QuotaExceeded, HELD_FULL));
        }
        let (mut lsn, mut ticket, mut id) = (None, None, None);
        // An update has the name of its publish: nobody may hear of a later one before it is in the table.
        let _inside = self.remote.as_ref().filter(|_| message.retain()).map(|r| r.gate.enter());
        if message.retain() {
            let updated = self.retain(message, origin.keeping(), origin.told(message)).map_err(|why| {
                self.not_retained(origin, message, &why);
                Failure::new(Reason::QuotaExceeded, why.to_string())
            })?;
            if let Some(why) = &updated.forbidden {
                self.not_retained(origin, message, why);
            }
            (lsn, ticket, id) = (updated.lsn, updated.ticket, updated.id);
        }
        if let Some(remote) = &self.remote {
            let mut routed = self.publish_in_cluster(remote, message, origin, (ticket, id), cache, scratch);
            routed.lsn = routed.lsn.max(lsn);
            return Ok(routed);
        }
        let way = Way { origin: *origin, ..Way::default() };
        let matches = self.router.lookup(message.topic(), &mut cache.local);
        let matched = self.to_local(message, matches, &way, scratch);
        lsn = self.journal_message(message, &way, None, scratch).or(lsn);
        Ok(Routed { lsn, ticket: None, matched })
    }

    /// Whether a publish cannot be acknowledged before something of it is in the journal.
    fn needs_journal(&self, message: &Message, origin: &Origin<'_>, cache: &mut router::Cache) -> bool {
        let begun = message.qos() == QoS::ExactlyOnce && (origin.inbound.is_some() || self.remote.is_some());
        if begun || message.retain() {
            return true;
        }
        let matches = self.router.lookup(message.topic(), cache);
        matches.targets.iter().any(|t| t.qos > QoS::AtMostOnce && t.handle.durable)
            || matches.groups.iter().any(|g| g.pick(0).is_some_and(|m| m.handle.durable))
    }

    /// Gives a message to all that match here, as [`Broker::to_target`] does.
    pub(super) fn to_local(
        &self,
        message: &Message,
        matches: &router::Matches,
        way: &Way<'_>,
        scratch: &mut Scratch,
    ) -> bool {
        let mut matched = false;
        for t in &matches.targets {
            matched |= self.to_target(message, t, way, scratch);
        }
        for group in &matches.groups {
            match self.pick(group, 0, message.topic()) {
                Some(m) => matched |= self.to_target(message, &Broker::target_of(&m), way, scratch),
                None => self.nobody_may(group),
            }
        }
        matched
    }

    /// Delivers at once what needs no journal; the rest is left in `scratch`. False if the target is left out.
    pub(super) fn to_target(
        &self,
        message: &Message,
        t: &Target,
        way: &Way<'_>,
        scratch: &mut Scratch,
    ) -> bool {
        let left_out = if t.handle.no == way.origin.session { t.no_local } else { t.only_own };
        if left_out {
            return false;
        }
        let qos = message.qos().min(t.qos);
        let retain = t.retain_as_published && message.retain();
        if way.repeated && self.came_later(way, t, message) {
            if let Some(id) = way.id.filter(|_| message.retain()) {
                self.retained.not_given(message.topic(), id);
            }
            return true;
        }
        if way.repeated && !self.is_first(way, t.handle.no) {
            return true;
        }
        if qos > QoS::AtMostOnce && t.handle.durable {
            match self.admits(&t.handle, message.size(), way.turn(t)) {
                Ok(()) => {
                    let (subscription_ids, shared) = match &t.extra {
                        Some(e) => (e.subscription_ids.clone(), e.shared.clone()),
                        None => (SmallVec::new(), None),
                    };
                    let r = Recipient {
                        session: t.handle.no,
                        qos,
                        retain,
                        subscription_ids,
                        shared,
                        publisher: None,
                        unserved: None,
                    };
                    // A session may be here directly and as a member: the journal has it once a message.
                    if r.shared.is_some() && scratch.recipients.iter().any(|o| o.session == r.session) {
                        return true;
                    }
                    scratch.recipients.push(r);
                    scratch.journaled.push(t.clone());
                }
                Err(refusal) => {
                    self.refused(refusal, &t.handle, way, scratch);
                    if let Refusal::Dropped(Loss::QueueMessages(_) | Loss::QueueBytes(_)) = refusal {
                        scratch.full.push(t.handle.clone());
                    }
                }
            }
            return true;
        }
        let d = Delivery { message: message.clone(), seq: None, qos, retain, extra: t.extra.clone() };
        match t.handle.mailbox.push(d, &self.limits.mailbox(), &mut scratch.wakes) {
            Ok(displaced) => {
                self.displaced_in_memory(&t.handle, displaced);
                if way.id.is_some() {
                    scratch.given.push(t.handle.no);
                }
            }
            Err(refusal) => self.refused(refusal, &t.handle, way, scratch),
        }
        true
    }

    /// Whether the queue of a persistent session takes a message; what gives way to it is settled and counted.
    fn admits(&self, handle: &Handle, size: usize, turn: Option<Turn>) -> Result<(), Refusal> {
        let mut displaced = Displaced::default();
        let admitted = handle.mailbox.admits(size, turn, &self.limits.mailbox(), &mut displaced);
        if let Some(loss) = displaced.loss {
            let limit = match loss {
                Loss::QueueMessages(n) => ("session.max_queued_messages", n),
                _ => ("session.max_queued_bytes", self.limits.mailbox().queued_bytes),
            };
            self.metrics.lost(handle.whose(), Loss::Displaced(limit.0, limit.1), displaced.count());
            for seq in displaced.seqs {
                self.settle_row(seq, handle.no);
            }
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

    /// Writes what `to_target` left, and what has to be recorded with it, in one step of the journal, then delivers it.
    /// `duty` is the number of a row that stays until all other nodes have the message.
    pub(super) fn journal_message(
        &self,
        message: &Message,
        way: &Way<'_>,
        duty: Option<Seq>,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let mut recipients = std::mem::take(&mut scratch.recipients);
        let mut changes: SmallVec<[Change<'_>; 3]> = SmallVec::new();
        if let Some(packet_id) = way.origin.inbound {
            changes.push(Change::InboundBegin { session: way.origin.session, packet_id });
        }
        if let Some(record) = way.origin.record {
            changes.push(Change::Session(record));
        }
        let delivered = recipients.len();
        if duty.is_some() {
            recipients.push(Recipient { unserved: scratch.unserved.take(), ..way.origin.duty() });
        }
        let mut seq = 0;
        if !recipients.is_empty() {
            seq = duty.unwrap_or_else(|| self.journal.next_seq());
            changes.push(Change::Message { seq, id: way.id, message, recipients: &recipients });
        }
        let lsn = (!changes.is_empty()).then(|| self.journal.append(&changes));
        drop(changes);
        if let (Some(lsn), true) = (lsn, way.tracked && delivered > 0) {
            // Before any of them can settle it.
            self.keep_seen(way, message.qos(), seq, lsn, &recipients[..delivered]);
        }
        let mut journaled = std::mem::take(&mut scratch.journaled);
        for (t, r) in journaled.drain(..).zip(&recipients) {
            let turn = way.turn(&t);
            let d = Delivery {
                message: message.clone(),
                seq: NonZeroU64::new(seq),
                qos: r.qos,
                retain: r.retain,
                extra: t.extra,
            };
            match t.handle.mailbox.push_admitted(d, turn, &self.limits.mailbox(), &mut scratch.wakes) {
                Ok(_) if way.id.is_some() => scratch.given.push(r.session),
                Ok(_) => {}
                Err(refusal) => {
                    self.refused(refusal, &t.handle, way, scratch);
                    self.journal.append(&[Change::Settle { seq, session: r.session }]);
                }
            }
        }
        scratch.journaled = journaled;
        recipients.clear();
        scratch.recipients = recipients;
        lsn
    }

    /// Gives one message to one session as the subscription `extra` asks: a retained one, or one of a shared subscription
    /// that another member could not finish. `None` if it was dropped, else when it is safe.
    pub(super) fn deliver_one(
        &self,
        message: &Message,
        t: &Target,
        retain: bool,
        scratch: &mut Scratch,
    ) -> Option<Option<Lsn>> {
        let qos = message.qos().min(t.qos);
        let way = Way::default();
        if qos == QoS::AtMostOnce || !t.handle.durable {
            let d = Delivery { message: message.clone(), seq: None, qos, retain, extra: t.extra.clone() };
            let pushed = t.handle.mailbox.push(d, &self.limits.mailbox(), &mut scratch.wakes);
            return match pushed {
                Ok(displaced) => {
                    self.displaced_in_memory(&t.handle, displaced);
                    Some(None)
                }
                Err(refusal) => {
                    self.refused(refusal, &t.handle, &way, scratch);
                    None
                }
            };
        }
        if let Err(refusal) = self.admits(&t.handle, message.size(), None) {
            self.refused(refusal, &t.handle, &way, scratch);
            return None;
        }
        let e: Option<&Extra> = t.extra.as_deref();
        scratch.recipients.push(Recipient {
            session: t.handle.no,
            qos,
            retain,
            subscription_ids: e.map(|e| e.subscription_ids.clone()).unwrap_or_default(),
            shared: e.and_then(|e| e.shared.clone()),
            publisher: None,
            unserved: None,
        });
        scratch.journaled.push(t.clone());
        Some(self.journal_message(message, &way, None, scratch))
    }

    /// Counts a message that a mailbox did not take, or remembers that it has to look for its session elsewhere.
    fn refused(&self, refusal: Refusal, handle: &Arc<Handle>, way: &Way<'_>, scratch: &mut Scratch) {
        let loss = match (refusal, way.id) {
            (Refusal::Dropped(loss), Some(_)) => {
                scratch.given.push(handle.no); // and it does not get it later, out of order
                loss
            }
            (Refusal::Dropped(loss), None) => loss,
            (Refusal::Moving, Some(_)) => {
                self.unsee(way, handle.no);
                return scratch.leaving.moving.push(handle.clone());
            }
            (Refusal::Moved(at), Some(_)) => {
                self.unsee(way, handle.no);
                // Whoever matched on a newer index has found it where it is.
                if way.matched_at < at {
                    scratch.leaving.moved = scratch.leaving.moved.max(Some(at));
                }
                return;
            }
            (Refusal::Moving | Refusal::Moved(_), None) => Loss::SessionEnded,
        };
        self.metrics.lost(handle.whose(), loss, 1);
    }

    /// A message the broker itself publishes and keeps in memory only ($SYS).
    pub(super) fn publish_own(&self, message: &Message, cache: &mut Cache, scratch: &mut Scratch) {
        self.own.set(message, || ());
        let matches = self.router.lookup(message.topic(), &mut cache.local);
        for t in &matches.targets {
            self.to_target(message, t, &Way::default(), scratch);
        }
    }

    pub(super) fn target_of(s: &super::router::Subscriber) -> Target {
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

/// The recipient that stands for a duty of this node: to bring a message to all other nodes that need it, or to a member of
/// one shared subscription.
pub(super) fn duty(shared: Option<Arc<str>>, publisher: Option<Box<Publisher>>) -> Recipient {
    let (qos, subscription_ids) = (QoS::ExactlyOnce, SmallVec::new());
    let session = ORIGIN_DUTY;
    Recipient { session, qos, retain: false, subscription_ids, shared, publisher, unserved: None }
}
