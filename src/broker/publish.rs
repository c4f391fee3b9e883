//! The publish path: a message to every session that must have it, journaled once for all persistent ones.

use super::Broker;
use super::handle::Handle;
use super::mailbox::Wakes;
use super::ports::{Change, Lsn, Recipient, SessionNo, SessionRecord};
use super::router::{Cache, Target};
use crate::clock::Time;
use crate::mqtt::{Message, QoS, Reason};
use crate::session::{Delivery, DropReason, Extra};
use crate::telemetry::metrics::PublishRefusal;
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Who publishes, and what must be recorded together with the message.
#[derive(Debug, Default)]
pub struct Origin<'a> {
    /// The publishing session; 0 = the broker itself.
    pub session: SessionNo,
    /// The QoS 2 packet identifier the message came under (durable sessions).
    pub inbound: Option<u16>,
    /// The session's record without the will that this message is.
    pub record: Option<&'a SessionRecord>,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// When it is safe: once the journal is durable up to here; `None` = now.
    pub lsn: Option<Lsn>,
    /// Whether any subscription matched.
    pub matched: bool,
}

/// Buffers that one thread uses from publish to publish.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Tasks to wake once the batch is done.
    pub wakes: Wakes,
    recipients: Vec<Recipient>,
    journaled: Vec<Target>,
    /// Sessions whose queue was found full.
    pub(super) full: Vec<Arc<Handle>>,
}

impl Broker {
    /// Routes `message`.
    ///
    /// # Errors
    /// 0x97 if it is to be retained and the limits of retained messages forbid it: then nothing happened. At QoS 0 and
    /// for a will, where nobody could be told, it is routed all the same, but not retained.
    pub fn publish(
        &self,
        message: &Message,
        origin: &Origin<'_>,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Result<Routed, Reason> {
        let mut lsn = None;
        if message.retain() {
            match self.retain(message) {
                Ok(when) => lsn = when,
                Err(reason) => {
                    self.metrics.publishes_refused.of(PublishRefusal::Quota).inc();
                    if message.qos() > QoS::AtMostOnce && origin.record.is_none() {
                        return Err(reason);
                    }
                }
            }
        }
        let matches = self.router.lookup(message.topic(), cache);
        let mut matched = false;
        for t in &matches.targets {
            matched |= self.to_target(message, t, origin, scratch);
        }
        for group in &matches.groups {
            if let Some(m) = group.pick(0) {
                matched |= self.to_target(message, &Broker::target_of(&m), origin, scratch);
            }
        }
        lsn = self.journal_message(message, origin, scratch).or(lsn);
        Ok(Routed { lsn, matched })
    }

    /// Delivers at once what needs no journal; the rest is left in `scratch`. False if the target is left out.
    fn to_target(&self, message: &Message, t: &Target, origin: &Origin<'_>, scratch: &mut Scratch) -> bool {
        let left_out = if t.handle.no == origin.session { t.no_local } else { t.only_own };
        if left_out {
            return false;
        }
        let qos = message.qos().min(t.qos);
        let retain = t.retain_as_published && message.retain();
        if qos > QoS::AtMostOnce && t.handle.durable {
            match t.handle.mailbox.admits(message.size(), &self.limits.mailbox) {
                Ok(()) => {
                    let (subscription_ids, shared) = match &t.extra {
                        Some(e) => (e.subscription_ids.clone(), e.shared.clone()),
                        None => (SmallVec::new(), None),
                    };
                    let r = Recipient { session: t.handle.no, qos, retain, subscription_ids, shared };
                    // A session may be here directly and as a member: the journal has it once a message.
                    if r.shared.is_some() && scratch.recipients.iter().any(|o| o.session == r.session) {
                        return true;
                    }
                    scratch.recipients.push(r);
                    scratch.journaled.push(t.clone());
                }
                Err(reason) => {
                    self.metrics.messages_dropped.of(reason).add(1);
                    if reason == DropReason::QueueFull {
                        scratch.full.push(t.handle.clone());
                    }
                }
            }
            return true;
        }
        let d = Delivery { message: message.clone(), seq: None, qos, retain, extra: t.extra.clone() };
        if let Err(reason) = t.handle.mailbox.push(d, &self.limits.mailbox, &mut scratch.wakes) {
            self.metrics.messages_dropped.of(reason).add(1);
        }
        true
    }

    fn journal_message(&self, message: &Message, origin: &Origin<'_>, scratch: &mut Scratch) -> Option<Lsn> {
        let mut changes: SmallVec<[Change<'_>; 3]> = SmallVec::new();
        if let Some(packet_id) = origin.inbound {
            changes.push(Change::InboundBegin { session: origin.session, packet_id });
        }
        if let Some(record) = origin.record {
            changes.push(Change::Session(record));
        }
        let mut seq = 0;
        if !scratch.recipients.is_empty() {
            seq = self.journal.next_seq();
            changes.push(Change::Message { seq, message, recipients: &scratch.recipients });
        }
        if changes.is_empty() {
            return None;
        }
        let lsn = self.journal.append(&changes);
        drop(changes);
        let recipients = std::mem::take(&mut scratch.recipients);
        let mut journaled = std::mem::take(&mut scratch.journaled);
        for (t, r) in journaled.drain(..).zip(&recipients) {
            let d = Delivery {
                message: message.clone(),
                seq: NonZeroU64::new(seq),
                qos: r.qos,
                retain: r.retain,
                extra: t.extra,
            };
            if let Err(reason) = t.handle.mailbox.push(d, &self.limits.mailbox, &mut scratch.wakes) {
                self.metrics.messages_dropped.of(reason).add(1);
                self.journal.append(&[Change::Settle { seq, session: r.session }]);
            }
        }
        scratch.journaled = journaled;
        scratch.recipients = recipients;
        scratch.recipients.clear();
        Some(lsn)
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
        if qos == QoS::AtMostOnce || !t.handle.durable {
            let d = Delivery { message: message.clone(), seq: None, qos, retain, extra: t.extra.clone() };
            let pushed = t.handle.mailbox.push(d, &self.limits.mailbox, &mut scratch.wakes);
            return pushed
                .map_err(|reason| self.metrics.messages_dropped.of(reason).add(1))
                .ok()
                .map(|()| None);
        }
        if let Err(reason) = t.handle.mailbox.admits(message.size(), &self.limits.mailbox) {
            self.metrics.messages_dropped.of(reason).add(1);
            return None;
        }
        let e: Option<&Extra> = t.extra.as_deref();
        scratch.recipients.push(Recipient {
            session: t.handle.no,
            qos,
            retain,
            subscription_ids: e.map(|e| e.subscription_ids.clone()).unwrap_or_default(),
            shared: e.and_then(|e| e.shared.clone()),
        });
        scratch.journaled.push(t.clone());
        Some(self.journal_message(message, &Origin::default(), scratch))
    }

    fn retain(&self, message: &Message) -> Result<Option<Lsn>, Reason> {
        if message.payload().is_empty() {
            let topic = message.topic();
            return Ok(self
                .retained
                .clear(topic, || self.journal.append(&[Change::ClearRetained { topic }])));
        }
        if !self.retained.admits(message, &self.limits.retained) {
            return Err(Reason::QuotaExceeded);
        }
        Ok(Some(self.retained.set(message, || self.journal.append(&[Change::Retain(message)]))))
    }

    /// Clears retained messages that have expired.
    pub fn expire_retained(&self, now: Time) {
        self.retained.expire(now, |topic| {
            self.journal.append(&[Change::ClearRetained { topic }]);
            self.metrics.messages_dropped.of(DropReason::Expired).add(1);
        });
    }

    /// A message the broker itself publishes and keeps in memory only ($SYS).
    pub(super) fn publish_own(&self, message: &Message, cache: &mut Cache, scratch: &mut Scratch) {
        self.own.set(message, || ());
        let matches = self.router.lookup(message.topic(), cache);
        for t in &matches.targets {
            self.to_target(message, t, &Origin::default(), scratch);
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
