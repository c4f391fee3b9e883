//! A publish of this node in a cluster: matched here and elsewhere, sent to whoever needs it, and matched again when a
//! session has moved meanwhile ("Publish: the origin owns it until every owner has it").

use super::groups::{self, Choice, Fit};
use super::members::Speaker;
use super::origin::entry::{Asked, Entry, OpenGroup, Plan, Sends, Stage};
use super::origin::{self, Next, View};
use super::{Kept, Remote, RemoteNode, RemoteShare, Ticket};
use crate::broker::Broker;
use crate::broker::publish::{Cache, Leaving, Origin, Routed, Scratch, Way, duty};
use crate::broker::router::Group;
use crate::mqtt::{Message, QoS};
use crate::ports::{Change, Frame, GroupTry, MessageId, ORIGIN_DUTY, Revision};
use crate::session::Loss;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

impl Broker {
    /// Routes a message to the sessions of this node and to other nodes. `ticket` is what its publisher waits for already; `id` the
    /// name that it has already as an update of a retained message.
    pub(in crate::broker) fn publish_in_cluster(
        &self,
        remote: &Arc<Remote>,
        message: &Message,
        origin: &Origin<'_>,
        (ticket, id): (Option<Arc<Ticket>>, Option<MessageId>),
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Routed {
        let inside = remote.gate.enter();
        if message.qos() == QoS::AtMostOnce {
            return self.publish_unanswered(remote, message, origin, (ticket, id), cache, scratch);
        }
        let id = id.unwrap_or_else(|| remote.origins.next_id());
        let duty = message.qos() == QoS::ExactlyOnce && origin.inbound.is_some() || origin.record.is_some();
        let current = remote.is_current(remote.now());
        let mut entry = self.entry(remote, message, origin);
        if !current || remote.origins.lane_open() {
            entry.duty = duty.then(|| self.journal.next_seq());
            match self.hold(remote, id, entry, origin, ticket.clone(), !current) {
                Ok(routed) => {
                    drop(inside);
                    self.run_lane(remote);
                    return routed;
                }
                Err(given_back) => entry = *given_back,
            }
        }
        let (sender, matched_at) = (remote.me.incarnation, remote.applied());
        let mut way = Way { origin: *origin, id: Some(id), sender, matched_at, ..Way::default() };
        scratch.given.clear();
        scratch.leaving = Leaving::default();
        let mut plan = Plan { matched_at: way.matched_at, ..Plan::default() };
        let here = self.match_all(remote, message, &way, &mut plan, cache, scratch);
        let elsewhere = !plan.ask.is_empty() || !plan.away.is_empty() || !plan.groups.is_empty();
        let alone = !elsewhere && !scratch.leaving.any();
        if alone {
            let lsn = self.journal_message(message, &way, None, scratch);
            debug_assert!(!scratch.leaving.any(), "no session freezes while a publisher is inside");
            return Routed { lsn, ticket, matched: here };
        }
        way.tracked = true;
        // Others have to do with it: from here on it has an owner, this node.
        entry.duty = duty.then(|| self.journal.next_seq());
        scratch.unserved = entry.noted().then(|| plan.groups.iter().map(OpenGroup::unserved).collect());
        let lsn = self.journal_message(message, &way, entry.duty, scratch);
        let ticket = joined(ticket);
        entry.ticket = Some(ticket.clone());
        self.take_note(remote, id, scratch);
        self.begin(remote, id, entry, plan, lsn, scratch);
        Routed { lsn, ticket: Some(ticket), matched: here }
    }

    /// At QoS 0 nobody answers, and nothing is sent twice.
    fn publish_unanswered(
        &self,
        remote: &Remote,
        message: &Message,
        origin: &Origin<'_>,
        (ticket, update): (Option<Arc<Ticket>>, Option<MessageId>),
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Routed {
        let way = Way { origin: *origin, matched_at: remote.applied(), ..Way::default() };
        let mut plan = Plan { matched_at: way.matched_at, ..Plan::default() };
        let matched = self.match_all(remote, message, &way, &mut plan, cache, scratch);
        let elsewhere = !plan.ask.is_empty();
        for (node, asked) in plan.ask {
            let frame = Frame { update, ..frame(None, plan.matched_at, asked, message) };
            self.send_frame(remote, &node, frame);
        }
        for node in &plan.away {
            self.metrics.lost(self.metrics.losses.node(node).whose(), Loss::LinkDown, 1);
        }
        let lsn = self.journal_message(message, &way, None, scratch);
        Routed { lsn, ticket, matched: matched || elsewhere }
    }

    fn entry(&self, remote: &Remote, message: &Message, origin: &Origin<'_>) -> Entry {
        let mut entry = Entry::new(message.clone(), origin.session, remote.now());
        entry.inbound = origin.inbound;
        entry
    }

    /// Keeps a publish that cannot be matched now: what this node knows is not recent enough, or others wait for that.
    fn hold(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        mut entry: Entry,
        origin: &Origin<'_>,
        ticket: Option<Arc<Ticket>>,
        always: bool,
    ) -> Result<Routed, Box<Entry>> {
        let duty = entry.duty;
        entry.stage = if duty.is_some() { Stage::Recording } else { Stage::Lane };
        let message = entry.message.clone();
        let ticket = joined(ticket);
        entry.ticket = Some(ticket.clone());
        if let Err(mut given_back) = remote.origins.queue(id, entry, always) {
            ticket.keep(Kept::Done { matched: false }); // this part of the promise is void
            given_back.ticket = None;
            return Err(given_back);
        }
        let recipients = [origin.duty()];
        let mut changes: SmallVec<[Change<'_>; 3]> = SmallVec::new();
        if let Some(packet_id) = origin.inbound {
            changes.push(Change::InboundBegin { session: origin.session, packet_id });
        }
        if let Some(record) = origin.record {
            changes.push(Change::Session(record));
        }
        if let Some(seq) = duty {
            changes.push(Change::Message { seq, id: Some(id), message: &message, recipients: &recipients });
        }
        let lsn = (!changes.is_empty()).then(|| self.journal.append(&changes));
        if let (Some(lsn), Some(_)) = (lsn, duty) {
            self.when_recorded(remote, lsn, id);
        }
        Ok(Routed { lsn, ticket: Some(ticket), matched: false })
    }

    /// Matches a message here and elsewhere: gives it to sessions here, and puts into `plan` what others are to be asked.
    /// Whether any subscription here matched.
    fn match_all(
        &self,
        remote: &Remote,
        message: &Message,
        way: &Way<'_>,
        plan: &mut Plan,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> bool {
        let here = self.router.lookup(message.topic(), &mut cache.local);
        let there = remote.lookup(message.topic(), &mut cache.remote);
        let mut matched = false;
        for t in &here.targets {
            matched |= self.to_target(message, t, way, scratch);
        }
        plan.direct = true;
        there.nodes.iter().for_each(|node| ask_node(plan, node));
        for group in &here.groups {
            let others = there.groups.iter().find(|g| g.name == group.name);
            let nodes = others.map_or(&[][..], |g| &g.nodes);
            let mut open = OpenGroup::new(group.name.clone());
            matched |= self.serve_group(remote, message, &mut open, Some(group), nodes, way, plan, scratch);
        }
        for group in &there.groups {
            if !here.groups.iter().any(|g| g.name == group.name) {
                let mut open = OpenGroup::new(group.name.clone());
                self.serve_group(remote, message, &mut open, None, &group.nodes, way, plan, scratch);
            }
        }
        matched
    }

    /// Has a shared subscription served: by a member here, or by another node, which is put into `plan`. True if it was here.
    #[allow(clippy::too_many_arguments)]
    fn serve_group(
        &self,
        remote: &Remote,
        message: &Message,
        open: &mut OpenGroup,
        here: Option<&Arc<Group>>,
        there: &[RemoteShare],
        way: &Way<'_>,
        plan: &mut Plan,
        scratch: &mut Scratch,
    ) -> bool {
        if there.is_empty()
            && let Some(group) = here
        {
            // All members are here: whoever is best has it.
            let served = self.serve_here(message, open, group, true, way, plan, scratch) == Fit::Yes;
            if !served {
                self.not_served(way);
            }
            return served;
        }
        if way.repeated && self.has_served(way, &open.name, here) {
            plan.served.push(open.name.clone());
            return true;
        }
        let candidates = groups::candidates(&remote.me.node, here, there);
        loop {
            // By the publish's name: whoever sends it again after a crash asks the same node.
            let turn = way.id.map_or_else(|| remote.origins.turn(), origin::turn_of);
            let choice = groups::choose(&candidates, open, turn, way.matched_at);
            let Some(Choice { node, queue, away }) = choice.filter(|c| !(c.queue && way.id.is_none())) else {
                self.not_served(way);
                plan.served.push(open.name.clone());
                return false;
            };
            if *node != remote.me.node {
                (open.at, open.queue, open.away) = (Some(node.clone()), queue, away);
                if !away {
                    let exactly_once = message.qos() == QoS::ExactlyOnce;
                    open.process = remote.members.process_of(node).filter(|_| exactly_once);
                    open.unnoted = way.noted && open.process.is_some();
                }
                if !away && !open.unnoted {
                    ask_group(plan, node, open.ask());
                }
                plan.groups.push(open.clone());
                return false;
            }
            let Some(group) = here else {
                plan.served.push(open.name.clone());
                return false;
            };
            match self.serve_here(message, open, group, queue, way, plan, scratch) {
                Fit::Yes => return true,
                Fit::Moving | Fit::Moved(_) => {
                    self.not_served(way);
                    return false;
                }
                Fit::No => {
                    self.metrics.groups_declined.inc();
                    open.declined_by(node, queue, way.matched_at);
                }
            }
        }
    }

    /// Nobody is online for a shared subscription: at QoS 0 its message is not kept.
    fn not_served(&self, way: &Way<'_>) {
        if way.id.is_none() {
            self.metrics.lost(self.metrics.losses.shared(), Loss::Offline, 1);
        }
    }

    /// Gives a message to a member here; with `queue` also to one without a client.
    #[allow(clippy::too_many_arguments)]
    fn serve_here(
        &self,
        message: &Message,
        open: &OpenGroup,
        group: &Arc<Group>,
        queue: bool,
        way: &Way<'_>,
        plan: &mut Plan,
        scratch: &mut Scratch,
    ) -> Fit {
        if way.repeated && self.has_served(way, &open.name, Some(group)) {
            plan.served.push(open.name.clone());
            return Fit::Yes;
        }
        let Some(member) = self.pick(group, 0, message.topic()) else {
            self.nobody_may(group);
            return Fit::No;
        };
        let fit = groups::fit(member.handle.mailbox.rank(), member.handle.durable, queue, way.matched_at);
        match fit {
            Fit::Yes => {
                self.to_target(message, &Broker::target_of(&member), way, scratch);
                plan.served.push(open.name.clone());
            }
            Fit::Moving if way.id.is_some() => {
                scratch.leaving.moving.push(member.handle);
                plan.groups.push(open.clone());
            }
            Fit::Moved(at) if way.id.is_some() => {
                scratch.leaving.moved = scratch.leaving.moved.max(Some(at));
                plan.groups.push(open.clone());
            }
            Fit::Moving | Fit::Moved(_) | Fit::No => {}
        }
        fit
    }

    /// Sessions here have had the publish: if it comes again they do not get it.
    fn take_note(&self, remote: &Remote, id: MessageId, scratch: &mut Scratch) {
        for no in scratch.given.drain(..) {
            remote.seen.insert(id, no);
        }
    }

    /// Takes a matched publish into the table and sends its frames, at once or when its record is durable.
    fn begin(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        mut entry: Entry,
        mut plan: Plan,
        lsn: Option<u64>,
        scratch: &mut Scratch,
    ) {
        let record = entry.duty.and(lsn);
        entry.stage = if record.is_some() { Stage::Recording } else { Stage::Open };
        let leaving = self.leave_out(&mut plan, scratch);
        let at = plan.matched_at;
        let next = remote.origins.begin(id, entry, plan);
        self.wait_for_leaving(remote, id, at, leaving);
        self.carry_on(remote, next);
        if let Some(lsn) = record {
            self.when_recorded(remote, lsn, id);
        }
    }

    /// Puts into `plan` what sessions that leave have to do with it.
    fn leave_out(&self, plan: &mut Plan, scratch: &mut Scratch) -> Leaving {
        let leaving = std::mem::take(&mut scratch.leaving);
        plan.moving = !leaving.moving.is_empty();
        plan.moved = leaving.moved;
        leaving
    }

    /// Matches a publish again once the sessions that are about to leave have done so, or stay.
    fn wait_for_leaving(&self, remote: &Arc<Remote>, id: MessageId, at: Revision, leaving: Leaving) {
        if leaving.moving.is_empty() {
            return;
        }
        self.wait_late(remote, (remote.me.incarnation, id), at, Vec::new(), leaving);
    }

    /// Does what is to be done after an answer or a match, and what follows from that.
    pub(super) fn carry_on(&self, remote: &Arc<Remote>, next: Next) {
        let mut todo = VecDeque::from([next]);
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
            self.send_frame(remote, &node, frame(Some(id), matched_at, asked, message));
        }
    }

    fn send_frame(&self, remote: &Remote, node: &Arc<str>, frame: Frame) {
        self.metrics.frames_sent.inc();
        remote.ports.peers.send(node, frame);
    }

    /// Matches a publish with what is known now; what follows.
    pub(super) fn match_again(&self, remote: &Arc<Remote>, id: MessageId) -> Option<Next> {
        let _inside = remote.gate.enter();
        let applied = remote.applied();
        let view = remote.origins.check_out(id, applied)?;
        Some(self.match_checked_out(remote, id, &view, applied))
    }

    /// Matches a publish that nobody else is at. Inside the gate.
    pub(super) fn match_checked_out(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        view: &View,
        applied: Revision,
    ) -> Next {
        self.metrics.publishes_rematched.inc();
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        let origin = Origin { session: view.session, ..Origin::default() };
        let sender = remote.me.incarnation;
        let (repeated, tracked, noted) = (true, true, view.noted);
        let way = Way { origin, id: Some(id), sender, matched_at: applied, repeated, tracked, noted };
        let mut plan = Plan { matched_at: applied, ..Plan::default() };
        self.match_view(remote, view, &way, &mut plan, &mut cache, &mut scratch);
        if let Some(lsn) = self.journal_message(&view.message, &way, None, &mut scratch) {
            view.needs(lsn);
        }
        // Shared subscriptions alone do not tell who else would have to wait.
        if plan.direct || view.shared_only {
            let wanted = |node: &Arc<str>| plan.ask.iter().any(|(n, _)| n == node);
            plan.gone = view.asked.iter().filter(|n| self.lost(remote, n) && !wanted(n)).cloned().collect();
        }
        let leaving = self.leave_out(&mut plan, &mut scratch);
        // Only a match of all that it is for makes it newer.
        let at = if plan.direct || view.shared_only { applied } else { 0 };
        let news = view.noted && (!plan.served.is_empty() || plan.groups.iter().any(|g| g.unnoted));
        let next = remote.origins.check_in(id, plan, applied);
        if news {
            self.note_unserved(remote, id);
        }
        self.wait_for_leaving(remote, id, at, leaving);
        // Others may have waited for this one.
        self.late_soon(remote);
        next
    }

    /// Whether nobody will answer a frame to a node.
    fn lost(&self, remote: &Remote, node: &Arc<str>) -> bool {
        *node != remote.me.node && !remote.members.reachable(node)
    }

    fn match_view(
        &self,
        remote: &Remote,
        view: &View,
        way: &Way<'_>,
        plan: &mut Plan,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) {
        let message = &view.message;
        if view.all_groups {
            plan.matched = self.match_all(remote, message, way, plan, cache, scratch);
            return;
        }
        let here = self.router.lookup(message.topic(), &mut cache.local);
        let there = remote.lookup(message.topic(), &mut cache.remote);
        if view.direct {
            plan.direct = true;
            for t in &here.targets {
                plan.matched |= self.to_target(message, t, way, scratch);
            }
            there.nodes.iter().for_each(|node| ask_node(plan, node));
        }
        for open in &view.groups {
            let mut open = open.clone();
            if open.process.is_some() && !self.ask_process(remote, view, &mut open, plan) {
                continue;
            }
            match open.at.clone() {
                Some(node) if self.lost(remote, &node) => open.declined_by(&node, false, way.matched_at),
                Some(_) if open.away => open.open_again(),
                Some(node) if view.asked.contains(&node) => continue,
                // It answered that somebody has moved, or could not take the publish.
                Some(node) => {
                    ask_group(plan, &node, open.ask());
                    continue;
                }
                None => {}
            }
            let group = here.groups.iter().find(|g| g.name == open.name);
            let others = there.groups.iter().find(|g| g.name == open.name);
            let nodes = others.map_or(&[][..], |g| &g.nodes);
            plan.matched |= self.serve_group(remote, message, &mut open, group, nodes, way, plan, scratch);
        }
    }

    /// A process may have served a shared subscription: it is asked again, or whoever speaks for it, or waited for. True if nobody
    /// will ever say whether it has, or if it was not asked after all: then another one is looked for.
    fn ask_process(&self, remote: &Remote, view: &View, open: &mut OpenGroup, plan: &mut Plan) -> bool {
        let Some(process) = &open.process else { return true };
        match remote.members.speaker(process) {
            Speaker::Reached(_) if open.unnoted => return false,
            Speaker::Reached(node) => {
                let waits = !open.away && open.at.as_ref() == Some(&node) && view.asked.contains(&node);
                if !waits {
                    (open.at, open.away, open.unasked) = (Some(node.clone()), false, false);
                    ask_group(plan, &node, open.ask());
                    plan.groups.push(open.clone());
                }
                return false;
            }
            Speaker::Away(node) if !open.unnoted && !open.unasked => {
                (open.at, open.away) = (Some(node), true);
                plan.groups.push(open.clone());
                return false;
            }
            Speaker::Away(_) | Speaker::Nobody => open.open_again(),
        }
        true
    }

    /// The journal gets to know who is asked to serve shared subscriptions, before they are.
    fn note_unserved(&self, remote: &Arc<Remote>, id: MessageId) {
        let seq = self.journal.next_seq();
        let noted = remote.origins.renote(id, seq, |message, old, recipient| {
            let record = Change::Message { seq, id: Some(id), message, recipients: &[recipient] };
            self.journal.append(&[record, Change::Settle { seq: old, session: ORIGIN_DUTY }])
        });
        if let Some(lsn) = noted {
            self.when_noted(remote, lsn, id, seq);
        }
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
        let _inside = remote.gate.enter();
        let message = &frame.message;
        let way = Way { matched_at: remote.applied(), ..Way::default() };
        let mut plan = Plan { matched_at: way.matched_at, ..Plan::default() };
        let there = remote.lookup(message.topic(), &mut cache.remote);
        for ask in frame.groups.iter().filter(|g| declined.contains(&g.name)) {
            self.metrics.groups_declined.inc();
            let mut open = OpenGroup::new(ask.name.clone());
            open.tried.extend(ask.tried.iter().cloned().chain([remote.me.node.clone()]));
            if let Some(others) = there.groups.iter().find(|g| g.name == ask.name) {
                self.serve_group(remote, message, &mut open, None, &others.nodes, &way, &mut plan, scratch);
            }
        }
        for (node, asked) in plan.ask {
            let frame = Frame { update: frame.update, ..self::frame(None, plan.matched_at, asked, message) };
            self.send_frame(remote, &node, frame);
        }
    }

    /// Has a member looked for, here and on other nodes, for a message of a shared subscription whose member's session ended;
    /// false if there is none on other nodes, and none has just left this one. It is in the journal when this returns.
    pub(in crate::broker) fn hand_to_others(
        &self,
        message: &Message,
        name: &Arc<str>,
        leaving: bool,
    ) -> bool {
        let Some(remote) = &self.remote else { return false };
        let inside = remote.gate.enter();
        let mut cache = Cache::default();
        let there = remote.lookup(message.topic(), &mut cache.remote);
        if !leaving && !there.groups.iter().any(|g| g.name == *name) {
            return false;
        }
        let id = remote.origins.next_id();
        let seq = self.journal.next_seq();
        let mut entry = Entry::new(message.clone(), 0, remote.now());
        (entry.direct, entry.duty, entry.stage) = (false, Some(seq), Stage::Recording);
        entry.groups.push(OpenGroup::new(name.clone()));
        entry.groups_known = true;
        // Behind all that waits already; there is no hurry.
        let taken = remote.origins.queue(id, entry, true).is_ok();
        let recipients = [duty(Some(name.clone()), None)];
        let change = Change::Message { seq, id: Some(id), message, recipients: &recipients };
        let lsn = self.journal.append(&[change]);
        drop(inside);
        self.when_recorded(remote, lsn, id);
        taken
    }
}

/// The promise that the publisher waits for, made to cover this as well.
fn joined(ticket: Option<Arc<Ticket>>) -> Arc<Ticket> {
    match ticket {
        Some(ticket) => {
            ticket.add_part();
            ticket
        }
        None => Ticket::new(),
    }
}

fn ask_node(plan: &mut Plan, node: &RemoteNode) {
    if node.orphaned {
        return plan.away.push(node.node.clone());
    }
    plan.ask.push((node.node.clone(), Asked { direct: true, ..Asked::default() }));
}

fn ask_group(plan: &mut Plan, node: &Arc<str>, ask: GroupTry) {
    match plan.ask.iter_mut().find(|(n, _)| n == node) {
        Some((_, asked)) => asked.groups.push(ask),
        None => {
            let mut asked = Asked::default();
            asked.groups.push(ask);
            plan.ask.push((node.clone(), asked));
        }
    }
}

fn frame(id: Option<MessageId>, matched_at: u64, asked: Asked, message: &Message) -> Frame {
    let (direct, groups, message) = (asked.direct, asked.groups.into_vec(), message.clone());
    Frame { id, matched_at, direct, groups, message, update: None }
}
