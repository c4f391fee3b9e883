//! Matching: which sessions here get a publish, and what other nodes are asked to do with it; the first time, and again whenever
//! somebody has moved, declined or come back.

use super::groups::{self, Choice, Fit};
use super::members::Speaker;
use super::outbox::View;
use super::outbox::entry::{Asked, OpenGroup, Plan};
use super::outbox::machine::Actions;
use super::round::{Member, Round};
use super::{Cache, Cluster, Remote, RemoteNode, RemoteShare};
use crate::broker::delivery::{Absent, Publishing, Scratch};
use crate::broker::router::Group;
use crate::mqtt::QoS;
use crate::ports::{Change, GroupTry, MessageId, ORIGIN_DUTY, Revision};
use crate::session::Loss;
use std::sync::Arc;

impl Cluster {
    /// Matches a message here and elsewhere: gives it to sessions here, and puts into `plan` what others are to be asked.
    /// Whether any subscription here matched.
    pub(super) fn match_all(&self, round: &mut Round<'_>, plan: &mut Plan, cache: &mut Cache) -> bool {
        // Other nodes first: a session that has come here from one of them is here before its route there goes.
        let there = self.remote.lookup(round.message.topic(), &mut cache.remote);
        let here = self.broker.router.lookup(round.message.topic(), &mut cache.local);
        let mut matched = false;
        for t in &here.targets {
            matched |= self.give(t, round);
        }
        plan.direct = true;
        there.nodes.iter().for_each(|node| ask_node(plan, node));
        for group in &here.groups {
            let others = there.groups.iter().find(|g| g.name == group.name);
            let nodes = others.map_or(&[][..], |g| &g.nodes);
            let mut open = OpenGroup::new(group.name.clone());
            matched |= self.serve_group(&mut open, Some(group), nodes, round, plan);
        }
        for group in &there.groups {
            if !here.groups.iter().any(|g| g.name == group.name) {
                let mut open = OpenGroup::new(group.name.clone());
                self.serve_group(&mut open, None, &group.nodes, round, plan);
            }
        }
        matched
    }

    /// Has a shared subscription served: by a member here, or by another node, which is put into `plan`. True if it was here.
    pub(super) fn serve_group(
        &self,
        open: &mut OpenGroup,
        here: Option<&Arc<Group>>,
        there: &[RemoteShare],
        round: &mut Round<'_>,
        plan: &mut Plan,
    ) -> bool {
        let remote = &self.remote;
        if there.is_empty()
            && let Some(group) = here
        {
            // All members are here: whoever is best has it.
            let served = self.serve_here(open, group, true, round, plan) == Fit::Yes;
            if !served {
                self.not_served(round);
            }
            return served;
        }
        if round.repeated && self.has_served(round, &open.name, here) {
            plan.served.push(open.name.clone());
            return true;
        }
        let candidates = groups::candidates(&remote.me.node, here, there);
        loop {
            let draw = round.draw(|| remote.outbox.draw());
            let choice = groups::choose(&candidates, open, draw, round.matched_at);
            let Some(Choice { node, queue, away }) = choice.filter(|c| !(c.queue && round.id().is_none()))
            else {
                self.not_served(round);
                plan.served.push(open.name.clone());
                return false;
            };
            if *node != remote.me.node {
                (open.at, open.queue, open.away) = (Some(node.clone()), queue, away);
                if !away {
                    let exactly_once = round.message.qos() == QoS::ExactlyOnce;
                    open.process = remote.members.process_of(node).filter(|_| exactly_once);
                    open.unnoted = round.noted && open.process.is_some();
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
            match self.serve_here(open, group, queue, round, plan) {
                Fit::Yes => return true,
                Fit::Moving | Fit::Moved(_) => {
                    self.not_served(round);
                    return false;
                }
                Fit::No => {
                    self.broker.metrics.groups_declined.inc();
                    open.declined_by(node, queue, round.matched_at);
                }
            }
        }
    }

    /// Nobody is online for a shared subscription: at QoS 0 its message is not kept.
    fn not_served(&self, round: &Round<'_>) {
        if round.id().is_none() {
            let metrics = &self.broker.metrics;
            metrics.lost(metrics.losses.shared(), Loss::Offline, 1);
        }
    }

    /// Gives a message to a member here; with `queue` also to one without a client.
    fn serve_here(
        &self,
        open: &OpenGroup,
        group: &Arc<Group>,
        queue: bool,
        round: &mut Round<'_>,
        plan: &mut Plan,
    ) -> Fit {
        if round.repeated && self.has_served(round, &open.name, Some(group)) {
            plan.served.push(open.name.clone());
            return Fit::Yes;
        }
        match self.give_member(group, queue, round) {
            Member::Took => {
                plan.served.push(open.name.clone());
                Fit::Yes
            }
            Member::Absent(fit) => {
                if round.id().is_some() {
                    plan.groups.push(open.clone());
                }
                fit
            }
            Member::Nobody => Fit::No,
        }
    }

    /// Matches a publish with what is known now; what is to be done next.
    pub(super) fn match_again(&self, remote: &Arc<Remote>, id: MessageId) -> Option<Actions> {
        let _inside = remote.barrier.enter();
        let applied = remote.applied();
        let view = remote.outbox.check_out(id, applied)?;
        Some(self.match_checked_out(remote, id, &view, applied))
    }

    /// Matches a publish that nobody else is at. The caller is inside the barrier.
    pub(super) fn match_checked_out(
        &self,
        remote: &Arc<Remote>,
        id: MessageId,
        view: &View,
        applied: Revision,
    ) -> Actions {
        self.broker.metrics.publishes_rematched.inc();
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        let publishing = Publishing { session: view.session, ..Publishing::default() };
        let (delivered, wakes) = scratch.begin();
        let round = Round::unnamed(&view.message, publishing, applied, delivered, wakes);
        let mut round = round.named(remote.me.incarnation, id);
        (round.repeated, round.tracked, round.noted) = (true, true, view.noted);
        let mut plan = Plan { matched_at: applied, ..Plan::default() };
        self.match_view(remote, view, &mut round, &mut plan, &mut cache);
        if let Some(lsn) = self.commit(&mut round, None) {
            view.needs(lsn);
        }
        let absent = std::mem::take(&mut round.delivered.absent);
        // Shared subscriptions alone do not tell who else would have to wait.
        if plan.direct || view.shared_only {
            let wanted = |node: &Arc<str>| plan.ask.iter().any(|(n, _)| n == node);
            plan.gone = view.asked.iter().filter(|n| self.lost(remote, n) && !wanted(n)).cloned().collect();
        }
        leave_out(&mut plan, &absent);
        // Only a match of all that it is for makes it newer.
        let at = if plan.direct || view.shared_only { applied } else { 0 };
        let news = view.noted && (!plan.served.is_empty() || plan.groups.iter().any(|g| g.unnoted));
        let next = remote.outbox.check_in(id, plan, applied);
        if news {
            self.note_unserved(remote, id);
        }
        self.wait_for_absent(remote, id, at, absent);
        // Others may have waited for this one.
        self.take_deferred_soon(remote);
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
        round: &mut Round<'_>,
        plan: &mut Plan,
        cache: &mut Cache,
    ) {
        let message = &view.message;
        if view.all_groups {
            plan.matched = self.match_all(round, plan, cache);
            return;
        }
        // In this order, as in `match_all`.
        let there = remote.lookup(message.topic(), &mut cache.remote);
        let here = self.broker.router.lookup(message.topic(), &mut cache.local);
        if view.direct {
            plan.direct = true;
            for t in &here.targets {
                plan.matched |= self.give(t, round);
            }
            there.nodes.iter().for_each(|node| ask_node(plan, node));
        }
        for open in &view.groups {
            let mut open = open.clone();
            if open.process.is_some() && !self.ask_process(remote, view, &mut open, plan) {
                continue;
            }
            match open.at.clone() {
                Some(node) if self.lost(remote, &node) => open.declined_by(&node, false, round.matched_at),
                Some(_) if open.away => open.open_again(),
                Some(_) if view.asked_groups.contains(&open.name) => continue,
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
            plan.matched |= self.serve_group(&mut open, group, nodes, round, plan);
        }
    }

    /// A process may have served a shared subscription: it is asked again, or whoever speaks for it, or waited for. True if nobody
    /// will ever say whether it has, or if it was not asked after all: then another one is looked for.
    fn ask_process(&self, remote: &Remote, view: &View, open: &mut OpenGroup, plan: &mut Plan) -> bool {
        let Some(process) = &open.process else { return true };
        match remote.members.speaker(process) {
            Speaker::Reached(_) if open.unnoted => return false,
            Speaker::Reached(node) => {
                let asked = view.asked_groups.contains(&open.name);
                let waits = !open.away && open.at.as_ref() == Some(&node) && asked;
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
        let seq = self.broker.journal.next_seq();
        let noted = remote.outbox.renote(id, seq, |message, old, recipient| {
            let record = Change::Message { seq, id: Some(id), message, recipients: &[recipient] };
            self.broker.journal.append(&[record, Change::Settle { seq: old, session: ORIGIN_DUTY }])
        });
        if let Some(lsn) = noted {
            self.when_noted(remote, lsn, id, seq);
        }
    }
}

/// Puts into `plan` what sessions that leave have to do with it.
pub(super) fn leave_out(plan: &mut Plan, absent: &Absent) {
    plan.moving = !absent.moving.is_empty();
    plan.moved = absent.moved;
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
