//! A round: one message, matched once, on its way to sessions of this node, each of which has it at most once (G4).

use super::groups::{self, Fit};
use super::outbox::duty::duty;
use super::young::OrderKey;
use super::{Cluster, outbox};
use crate::broker::Broker;
use crate::broker::delivery::{Delivered, Gave, Provenance, Publishing};
use crate::broker::mailbox::{Sending, Wakes};
use crate::broker::router::{Group, Target};
use crate::mqtt::{Message, QoS};
use crate::ports::{Incarnation, Lsn, MessageId, Publisher, Recipient, Revision, Seq, Unserved};
use crate::topic;
use std::sync::Arc;

/// One message, matched once, on its way to the sessions of this node. Whoever has one is inside the barrier.
pub(super) struct Round<'a> {
    /// The message.
    pub message: &'a Message,
    /// Who publishes the message, and which process sends it under which name, if it has one.
    pub provenance: Provenance<'a>,
    /// The revision of the index at which it was matched.
    pub matched_at: Revision,
    /// Whether the message may have been here before: then duplicates are looked for.
    pub repeated: bool,
    /// Whether the message comes of its first match: its publisher's later messages are not before it.
    pub first: bool,
    /// Whether the message may come again: then who has had it is remembered.
    pub tracked: bool,
    /// Who is asked to serve a shared subscription is asked only when that is recorded.
    pub noted: bool,
    /// What came of it.
    pub delivered: &'a mut Delivered,
    /// Tasks to wake once the batch is done.
    pub wakes: &'a mut Wakes,
}

/// How a member of a shared subscription here took a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// The member has it.
    Took,
    /// The member is about to leave, or has left: the round knows.
    Absent(Fit),
    /// Nobody here can have it.
    Nobody,
}

impl<'a> Round<'a> {
    /// A message without a name, published here or on another node.
    pub fn unnamed(
        message: &'a Message,
        publishing: Publishing<'a>,
        matched_at: Revision,
        delivered: &'a mut Delivered,
        wakes: &'a mut Wakes,
    ) -> Round<'a> {
        let provenance = Provenance { publishing, sending: None };
        let (repeated, first, tracked, noted) = (false, false, false, false);
        Round { message, provenance, matched_at, repeated, first, tracked, noted, delivered, wakes }
    }

    /// Names the message: process `sender` sends it as `id`.
    pub fn named(mut self, sender: Incarnation, id: MessageId) -> Round<'a> {
        self.provenance.sending = Some(Sending { sender, id, matched_at: self.matched_at });
        self
    }

    /// The message's name, if it has one.
    pub fn id(&self) -> Option<MessageId> {
        self.provenance.sending.map(|sending| sending.id)
    }

    /// A number by which a node is chosen for a shared subscription: made of the message's name, so that whoever sends it again after a
    /// crash asks the same node; `unnamed` makes that of a message without a name.
    pub fn draw(&self, unnamed: impl FnOnce() -> u64) -> u64 {
        self.id().map_or_else(unnamed, outbox::draw_of)
    }
}

impl Cluster {
    /// Gives the message to one session here, unless that has had it. False if it is not for it.
    pub(super) fn give(&self, t: &Target, round: &mut Round<'_>) -> bool {
        let message = round.message;
        if !t.is_for(round.provenance.publishing.session) {
            return false;
        }
        if round.repeated && self.came_later(round, t) {
            if let Some(id) = round.id().filter(|_| message.retain()) {
                self.broker.retained.not_given(message.topic(), id);
            }
            return true;
        }
        let has_it = round.repeated && !self.is_first(round, t);
        let gave = match has_it {
            true => Gave::Yes,
            false => self.broker.give(message, t, &round.provenance, round.delivered, round.wakes),
        };
        match (gave, round.id()) {
            (Gave::Absent, _) => self.forget_absent(round),
            (Gave::Yes, Some(id)) if id.origin != self.remote.me.incarnation && !is_shared(t) => {
                self.remote.young.given(t.handle.no, id, message);
            }
            (Gave::Yes | Gave::NotMeant, _) => {}
        }
        true
    }

    /// Gives the message to a member of a shared subscription here; with `queue` also to one without a client.
    pub(super) fn give_member(&self, group: &Group, queue: bool, round: &mut Round<'_>) -> Member {
        let Some(member) = self.broker.pick(group, 0, round.message.topic()) else {
            self.broker.nobody_may(group);
            return Member::Nobody;
        };
        let handle = &member.handle;
        let fit = groups::fit(handle.mailbox.rank(), handle.durable, queue, round.matched_at);
        match fit {
            Fit::Yes => {
                self.give(&Broker::target_of(&member), round);
                Member::Took
            }
            Fit::No => Member::Nobody,
            Fit::Moving => {
                round.delivered.absent.moving.push(member.handle);
                Member::Absent(fit)
            }
            Fit::Moved(at) => {
                round.delivered.absent.moved_at(at);
                Member::Absent(fit)
            }
        }
    }

    /// Writes what the journal must have of a round, in one step, and hands it out. `duty`: the number of a row that stays until all
    /// other nodes have the message, and what is recorded with that. Returns when it is safe here.
    pub(super) fn commit(
        &self,
        round: &mut Round<'_>,
        duty: Option<(Seq, Option<Box<[Unserved]>>)>,
    ) -> Option<Lsn> {
        let (message, provenance) = (round.message, round.provenance);
        self.settle_displaced(round.delivered);
        let duty =
            duty.map(|(seq, unserved)| (seq, Recipient { unserved, ..duty_of(&provenance.publishing) }));
        let lsn = self.broker.write(message, &provenance, duty, round.delivered);
        if let (Some(lsn), true) = (lsn, round.tracked && round.delivered.to_write()) {
            // Before any of them can settle it.
            self.remember_recipients(round, lsn);
        }
        self.broker.hand_out(message, &provenance, round.delivered, round.wakes);
        self.forget_absent(round);
        lsn
    }

    /// Whether all subscriptions of a session that match a publish are younger than it. It has had what it is owed, if not less.
    fn came_later(&self, round: &Round<'_>, t: &Target) -> bool {
        let remote = &self.remote;
        let Some(id) = round.id() else { return false };
        if remote.young.is_empty() || is_shared(t) {
            return false;
        }
        let topic_name = round.message.topic();
        let key = || OrderKey::of(topic_name, round.message.qos());
        let again = (!round.first).then_some(key);
        let younger = remote.young.younger(t.handle.no, id, again, || remote.highest(id.origin));
        let old = |name: &Arc<str>| {
            !younger.contains(name) && !name.starts_with("$share/") && topic::matches(name, topic_name)
        };
        !younger.is_empty() && !t.handle.subscriptions.lock().keys().any(old)
    }

    /// Whether a session gets a publish that may have been here before for the first time.
    fn is_first(&self, round: &Round<'_>, t: &Target) -> bool {
        let Some(id) = round.id() else { return true };
        let first = self.remote.deduplication.insert(id, t.handle.no);
        if !first {
            self.broker.metrics.duplicates_dropped.inc();
        }
        first
    }

    /// Forgets that sessions that leave have had the message: they have not after all.
    fn forget_absent(&self, round: &mut Round<'_>) {
        let id = round.id().filter(|_| round.repeated || round.tracked);
        for session in round.delivered.absent.sessions.drain(..) {
            if let Some(id) = id {
                self.remote.deduplication.remove(id, session);
            }
        }
    }

    /// Remembers who has the publish from the journal: who settles it must be known.
    fn remember_recipients(&self, round: &Round<'_>, lsn: Lsn) {
        let Some(id) = round.id() else { return };
        for r in round.delivered.recipients() {
            self.remote.deduplication.insert(id, r.session);
        }
        let exactly_once = round.message.qos() == QoS::ExactlyOnce;
        self.remote.deduplication.journaled(id, round.delivered.seq, lsn, exactly_once);
    }

    /// Whether shared subscription `name` was served here with a publish that may have been here before; `group` = its members here, if
    /// there are any still.
    pub(super) fn has_served(&self, round: &Round<'_>, name: &str, group: Option<&Arc<Group>>) -> bool {
        let Some(id) = round.id() else { return false };
        self.remote.deduplication.served(id, name, |no| group.is_some_and(|group| group.has(no)))
    }
}

/// Whether a session gets the message as a member of a shared subscription.
fn is_shared(t: &Target) -> bool {
    t.extra.as_ref().is_some_and(|e| e.shared.is_some())
}

/// The duty to bring the publish of `origin` to the other nodes.
pub(super) fn duty_of(publishing: &Publishing<'_>) -> Recipient {
    let publisher = Publisher { session: publishing.session, packet_id: publishing.inbound };
    duty(None, (publishing.session != 0).then(|| Box::new(publisher)))
}
