//! A publish of this node in a cluster: taken in, matched ([`super::matching`]), and sent to whoever needs it. This node owns it
//! until every owner of a session that it is for has it.

use super::matching::leave_out;
use super::outbox::duty::duty;
use super::outbox::entry::{Asked, Entry, OpenGroup, Plan, Sends, Stage};
use super::outbox::machine::Actions;
use super::retained::Keeping;
use super::round::{Round, duty_of};
use super::{Cache, Cluster, Remote};
use crate::broker::delivery::{Absent, Delivered, Publishing, Scratch};
use crate::broker::mailbox::Wakes;
use crate::broker::promise::{Kept, Promise};
use crate::broker::publish::Routed;
use crate::broker::retain::is_own;
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Change, Frame, MessageId, Revision};
use crate::session::{Failure, Loss};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a client is told whose publish would have to wait for other nodes, beside too many others.
const HELD_FULL: &str =
    "as many publishes wait for other nodes as cluster.max_held_messages or cluster.max_held_bytes allows";

/// What is known of a publish that was retained before: the promise that tells when it is safe, and its name.
type Update = (Option<Arc<Promise>>, Option<MessageId>);

impl Cluster {
    /// Routes `message` to the sessions of this node and to other nodes.
    ///
    /// # Errors
    /// 0x83 if it needs the journal, and the journal hangs; 0x97 if it is to be retained and a limit forbids it, or if it would have to
    /// wait for other nodes and too many do: then nothing happened. At QoS 0 and for a will, where nobody could be told, it is routed
    /// all the same; it is not retained, what was retained on its topic is cleared, and the log says why.
    pub fn publish(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Result<Routed, Failure> {
        let (broker, remote) = (&self.broker, &self.remote);
        let begun = message.qos() == QoS::ExactlyOnce;
        broker.refuse_stalled(message, publishing, begun, &mut cache.local)?;
        if let Some(loss) = self.refuses_to_hold(message, publishing, &mut cache.remote) {
            broker.publish_refused(publishing, loss);
            return Err(Failure::new(Reason::QuotaExceeded, HELD_FULL));
        }
        // An update has the name of its publish: nobody may hear of a later one before it is in the table.
        let _inside = message.retain().then(|| remote.barrier.enter());
        let (mut lsn, mut update) = (None, (None, None));
        if message.retain() {
            let told = publishing.told(message);
            let updated = match is_own(message.topic()) {
                true => broker.retain(message, told),
                false => self.retain(message, Keeping::of(publishing), told),
            };
            let updated = updated.map_err(|why| broker.not_retained(publishing, message, why))?;
            if let Some(why) = updated.forbidden {
                broker.not_retained(publishing, message, why);
            }
            (lsn, update) = (updated.lsn, (updated.promise, updated.id));
        }
        let (delivered, wakes) = scratch.begin();
        let mut routed = self.route(message, publishing, update, cache, delivered, wakes);
        self.purge_full(delivered);
        routed.lsn = routed.lsn.max(lsn);
        Ok(routed)
    }

    fn route(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        (promise, id): Update,
        cache: &mut Cache,
        delivered: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Routed {
        let remote = &self.remote;
        let inside = remote.barrier.enter();
        if message.qos() == QoS::AtMostOnce {
            let round = Round::unnamed(message, *publishing, remote.applied(), delivered, wakes);
            return self.route_unanswered(round, (promise, id), cache);
        }
        let id = id.unwrap_or_else(|| remote.outbox.next_id());
        let duty =
            message.qos() == QoS::ExactlyOnce && publishing.inbound.is_some() || publishing.record.is_some();
        let fresh = remote.is_fresh(remote.now());
        if !fresh || remote.outbox.has_unmatched() {
            let mut entry = self.entry(remote, message, publishing);
            entry.duty = duty.then(|| self.broker.journal.next_seq());
            if let Some(routed) = self.hold(remote, id, entry, publishing, promise.clone(), !fresh) {
                drop(inside);
                self.match_unmatched(remote);
                return routed;
            }
        }
        let round = Round::unnamed(message, *publishing, remote.applied(), delivered, wakes);
        let mut round = round.named(remote.me.incarnation, id);
        let mut plan = Plan { matched_at: round.matched_at, ..Plan::default() };
        let here = self.match_all(&mut round, &mut plan, cache);
        let elsewhere = !plan.ask.is_empty() || !plan.away.is_empty() || !plan.groups.is_empty();
        let alone = !elsewhere && !round.delivered.absent.any();
        if alone {
            let lsn = self.commit(&mut round, None);
            debug_assert!(!round.delivered.absent.any(), "no session freezes while a publisher is inside");
            return Routed { lsn, promise, matched: here };
        }
        round.tracked = true;
        // Others have to do with it: from here on it has an owner, this node.
        let mut entry = self.entry(remote, message, publishing);
        entry.duty = duty.then(|| self.broker.journal.next_seq());
        let unserved = || plan.groups.iter().map(OpenGroup::unserved).collect();
        let unserved = entry.noted().then(unserved);
        let lsn = self.commit(&mut round, entry.duty.map(|seq| (seq, unserved)));
        let promise = joined(promise);
        entry.promise = Some(promise.clone());
        // If it comes again they do not get it.
        for no in round.delivered.took.drain(..) {
            remote.deduplication.insert(id, no);
        }
        let absent = std::mem::take(&mut round.delivered.absent);
        self.begin(remote, id, entry, plan, lsn, absent);
        Routed { lsn, promise: Some(promise), matched: here }
    }

    /// At QoS 0 nobody answers, and nothing is sent twice.
    fn route_unanswered(&self, mut round: Round<'_>, (promise, update): Update, cache: &mut Cache) -> Routed {
        let mut plan = Plan { matched_at: round.matched_at, ..Plan::default() };
        let matched = self.match_all(&mut round, &mut plan, cache);
        let elsewhere = !plan.ask.is_empty();
        for (node, asked) in plan.ask {
            let frame = Frame { update, ..frame(None, plan.matched_at, asked, round.message) };
            self.send_frame(&self.remote, &node, frame);
        }
        let metrics = &self.broker.metrics;
        for node in &plan.away {
            metrics.lost(metrics.losses.node(node).whose(), Loss::LinkDown, 1);
        }
        let lsn = self.commit(&mut round, None);
        Routed { lsn, promise, matched: matched || elsewhere }
    }

    fn entry(&self, remote: &Remote, message: &Message, publishing: &Publishing<'_>) -> Entry {
        let mut entry = Entry::new(message.clone(), publishing.session, remote.now());
        entry.inbound = publishing.inbound;
        entry
    }

    /// Keeps a publish that cannot be matched now: what this node knows is not recent enough, or others wait for that. `None` if it can be
    /// by now: it is not kept, unless that is to be done `always`.
    fn hold(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        mut entry: Entry,
        publishing: &Publishing<'_>,
        promise: Option<Arc<Promise>>,
        always: bool,
    ) -> Option<Routed> {
        let duty = entry.duty;
        entry.stage = if duty.is_some() { Stage::Recording } else { Stage::Unmatched };
        let message = entry.message.clone();
        let promise = joined(promise);
        entry.promise = Some(promise.clone());
        if !remote.outbox.queue(id, entry, always) {
            promise.keep(Kept::Done { matched: false }); // this part of the promise is void
            return None;
        }
        let recipients = [duty_of(publishing)];
        let mut changes: SmallVec<[Change<'_>; 3]> = SmallVec::new();
        if let Some(packet_id) = publishing.inbound {
            changes.push(Change::InboundBegin { session: publishing.session, packet_id });
        }
        if let Some(record) = publishing.record {
            changes.push(Change::Session(record));
        }
        if let Some(seq) = duty {
            changes.push(Change::Message { seq, id: Some(id), message: &message, recipients: &recipients });
        }
        let lsn = (!changes.is_empty()).then(|| self.broker.journal.append(&changes));
        if let (Some(lsn), Some(_)) = (lsn, duty) {
            self.when_recorded(remote, lsn, id);
        }
        Some(Routed { lsn, promise: Some(promise), matched: false })
    }

    /// Takes a matched publish into the outbox and sends its frames, at once or when its record is durable.
    fn begin(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        mut entry: Entry,
        mut plan: Plan,
        lsn: Option<u64>,
        absent: Absent,
    ) {
        let record = entry.duty.and(lsn);
        entry.stage = if record.is_some() { Stage::Recording } else { Stage::Open };
        leave_out(&mut plan, &absent);
        let at = plan.matched_at;
        let next = remote.outbox.begin(id, entry, plan);
        self.wait_for_absent(remote, id, at, absent);
        self.carry_on(remote, next);
        if let Some(lsn) = record {
            self.when_recorded(remote, lsn, id);
        }
    }

    /// Matches a publish again once the sessions that are about to leave have done so, or stay.
    pub(super) fn wait_for_absent(&self, remote: &Arc<Remote>, id: MessageId, at: Revision, absent: Absent) {
        if absent.moving.is_empty() {
            return;
        }
        self.defer(remote, (remote.me.incarnation, id), at, Vec::new(), absent);
    }

    /// Does what is to be done after an answer or a match, and what follows from that.
    pub(super) fn carry_on(&self, remote: &Arc<Remote>, actions: Actions) {
        let mut todo = VecDeque::from([actions]);
        while let Some(next) = todo.pop_front() {
            // New owners of sessions may wait for it.
            if next.risen.is_some_and(|at| at < remote.applied()) {
                remote.report_soon();
            }
            for (id, message, sends) in next.sends {
                self.send_all(remote, id, &message, sends);
            }
            for (id, duty) in next.done {
                self.finish(remote, id, duty);
            }
            for id in next.again {
                todo.extend(self.match_again(remote, id));
            }
        }
    }

    fn send_all(&self, remote: &Remote, id: MessageId, message: &Message, sends: Sends) {
        for node in &sends.cancels {
            remote.ports.peers.cancel(node, id);
        }
        for (node, matched_at, asked) in sends.frames {
            let frame = Frame { first: sends.first, ..frame(Some(id), matched_at, asked, message) };
            self.send_frame(remote, &node, frame);
        }
    }

    fn send_frame(&self, remote: &Remote, node: &Arc<str>, frame: Frame) {
        self.broker.metrics.frames_sent.inc();
        remote.ports.peers.send(node, frame);
    }

    /// Another node sent a QoS 0 message for shared subscriptions without a member online here: it goes to a node that was not
    /// asked yet.
    pub(super) fn pass_on(
        &self,
        remote: &Remote,
        frame: &Frame,
        declined: &[Arc<str>],
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) {
        let _inside = remote.barrier.enter();
        let message = &frame.message;
        let (applied, (delivered, wakes)) = (remote.applied(), scratch.begin());
        let mut round = Round::unnamed(message, Publishing::default(), applied, delivered, wakes);
        let mut plan = Plan { matched_at: applied, ..Plan::default() };
        let there = remote.lookup(message.topic(), &mut cache.remote);
        for ask in frame.groups.iter().filter(|g| declined.contains(&g.name)) {
            self.broker.metrics.groups_declined.inc();
            let mut open = OpenGroup::new(ask.name.clone());
            open.tried.extend(ask.tried.iter().cloned().chain([remote.me.node.clone()]));
            if let Some(others) = there.groups.iter().find(|g| g.name == ask.name) {
                self.serve_group(&mut open, None, &others.nodes, &mut round, &mut plan);
            }
        }
        for (node, asked) in plan.ask {
            let frame = Frame { update: frame.update, ..self::frame(None, plan.matched_at, asked, message) };
            self.send_frame(remote, &node, frame);
        }
    }

    /// Whether shared subscription `name` has members on other nodes. Inside the barrier.
    pub(super) fn has_members_elsewhere(&self, message: &Message, name: &str) -> bool {
        let mut cache = Cache::default();
        let there = self.remote.lookup(message.topic(), &mut cache.remote);
        there.groups.iter().any(|g| *g.name == *name)
    }

    /// Has a member looked for, here and on other nodes, for a message of a shared subscription whose member's session ended. It is in
    /// the journal when this returns.
    pub(super) fn hand_to_others(&self, message: &Message, name: &Arc<str>) {
        let remote = &self.remote;
        let inside = remote.barrier.enter();
        let id = remote.outbox.next_id();
        let seq = self.broker.journal.next_seq();
        let mut entry = Entry::new(message.clone(), 0, remote.now());
        (entry.direct, entry.duty, entry.stage) = (false, Some(seq), Stage::Recording);
        entry.groups.push(OpenGroup::new(name.clone()));
        entry.groups_known = true;
        // Behind all that waits already; there is no hurry.
        remote.outbox.queue(id, entry, true);
        let recipients = [duty(Some(name.clone()), None)];
        let change = Change::Message { seq, id: Some(id), message, recipients: &recipients };
        let lsn = self.broker.journal.append(&[change]);
        drop(inside);
        self.when_recorded(remote, lsn, id);
    }
}

/// The promise that the publisher waits for, made to cover this as well.
fn joined(promise: Option<Arc<Promise>>) -> Arc<Promise> {
    match promise {
        Some(promise) => {
            promise.add_part();
            promise
        }
        None => Promise::new(),
    }
}

fn frame(id: Option<MessageId>, matched_at: u64, asked: Asked, message: &Message) -> Frame {
    let (direct, groups, message) = (asked.direct, asked.groups.into_vec(), message.clone());
    Frame { id, matched_at, direct, groups, message, update: None, first: false }
}
