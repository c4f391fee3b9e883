//! One publish that this node owns: which nodes were asked to take it, what they said, and what is still to do. Pure.

pub use super::asked::{Asked, OpenGroup};
use super::duty::duty;
use super::part::{Part, Question};
use super::view::View;
use super::watermarks::{Matched, Watermarks};
use crate::broker::promise::Promise;
use crate::clock::Time;
use crate::mqtt::{Message, QoS};
use crate::ports::{Answer, GroupTry, Publisher, Recipient, Revision, Seq, SessionNo};
use smallvec::SmallVec;
use std::sync::Arc;

/// How far a publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The record of the publish is not durable: nothing leaves.
    Recording,
    /// The publish has not been matched; those before it come first.
    Unmatched,
    /// The publish has been matched, and is with not all nodes yet.
    Open,
    /// Every node has the publish; that is not durable here.
    Settling,
}

/// One publish that this node owns: which nodes were asked to take it, what they said, and what is still to do.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    /// The session that published it; 0 = nobody of this node any more.
    pub session: SessionNo,
    /// Whether the publish is for sessions that subscribed for themselves, or only for the shared subscriptions in `groups`.
    pub direct: bool,
    /// The QoS 2 packet identifier that the publish came under (durable sessions).
    pub inbound: Option<u16>,
    /// The session whose open QoS 2 publishes this one counts among.
    pub counts_for: Option<SessionNo>,
    /// What the publisher waits for.
    pub promise: Option<Arc<Promise>>,
    /// The row that stands for this duty in the journal.
    pub duty: Option<Seq>,
    /// When the publish was taken into the outbox.
    pub since: Time,
    /// Whether the log has said that the publish takes long.
    pub told: bool,
    /// Whether any session matched on another node, or here when it was matched later.
    pub matched: bool,
    /// How far the publish is.
    pub stage: Stage,
    /// Whether the publish is being matched.
    pub busy: bool,
    /// Whether the publish is to be matched as soon as possible: `Some(true)` also for sessions that subscribed for themselves,
    /// `Some(false)` for shared subscriptions only.
    soon: Option<bool>,
    /// Whether the publish is matched again after a while: a node could not take it.
    retry: bool,
    /// Shared subscriptions not served yet.
    pub groups: SmallVec<[OpenGroup; 1]>,
    /// Whether shared subscriptions have been looked for: later only those that are open matter.
    pub groups_known: bool,
    /// The revision at which the publish was first matched; 0 = never in this process.
    pub first_matched: Revision,
    /// Whether nothing of the publish has been sent, by this process or an earlier one.
    unsent: bool,
    /// Frames that leave once the record of the publish is durable.
    pub prepared: Option<Box<Sends>>,
    /// Whether the publish is counted among those that wait for nodes that are away.
    pub counted_away: bool,
    parts: SmallVec<[Part; 2]>,
    /// Nodes that cannot be asked, whose persistent sessions are waited for.
    away: SmallVec<[(Arc<str>, Matched); 1]>,
}

/// What matching a publish came to.
#[derive(Debug, Default)]
pub struct Plan {
    /// The revision of the index that was used.
    pub matched_at: Revision,
    /// Whether sessions that subscribed for themselves were looked for, not only shared subscriptions.
    pub direct: bool,
    /// Nodes and what to ask them.
    pub ask: SmallVec<[(Arc<str>, Asked); 2]>,
    /// Shared subscriptions that are not served yet.
    pub groups: SmallVec<[OpenGroup; 1]>,
    /// Shared subscriptions that are served: nothing more is to be done for them.
    pub served: SmallVec<[Arc<str>; 1]>,
    /// Nodes that cannot be asked, with persistent sessions that subscribed for themselves: the publish waits for them.
    pub away: SmallVec<[Arc<str>; 1]>,
    /// Nodes that will not answer any more: frames to them are cancelled.
    pub gone: SmallVec<[Arc<str>; 1]>,
    /// A session here may be about to move: this node itself has not answered.
    pub moving: bool,
    /// Sessions here moved, the last at this revision.
    pub moved: Option<Revision>,
    /// Whether any session here matched.
    pub matched: bool,
}

/// What is to be sent to other nodes, and cancelled there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sends {
    /// Frames to send, with the revision at which each was matched.
    pub frames: SmallVec<[(Arc<str>, Revision, Asked); 2]>,
    /// Nodes whose frame is cancelled.
    pub cancels: SmallVec<[Arc<str>; 1]>,
    /// Whether these are the first frames that are sent of the publish.
    pub first: bool,
}

impl Entry {
    /// A publish that nobody was asked to take yet.
    pub fn new(message: Message, session: SessionNo, since: Time) -> Entry {
        Entry {
            message,
            session,
            direct: true,
            inbound: None,
            counts_for: None,
            promise: None,
            duty: None,
            since,
            told: false,
            matched: false,
            stage: Stage::Open,
            busy: false,
            soon: None,
            retry: false,
            groups: SmallVec::new(),
            groups_known: false,
            first_matched: 0,
            unsent: true,
            prepared: None,
            counted_away: false,
            parts: SmallVec::new(),
            away: SmallVec::new(),
        }
    }

    /// A publish that an earlier process with this journal had begun. Its publisher waits for it again: whoever repeats it is
    /// not answered before all have it.
    pub fn of_duty(message: Message, duty: Seq, publisher: Option<Box<Publisher>>, since: Time) -> Entry {
        let mut entry = Entry::new(message, publisher.as_ref().map_or(0, |p| p.session), since);
        entry.inbound = publisher.and_then(|p| p.packet_id);
        entry.promise = entry.inbound.map(|_| Promise::new());
        (entry.duty, entry.stage, entry.unsent) = (Some(duty), Stage::Unmatched, false);
        entry
    }

    /// Whether the journal has to have who is asked to serve a shared subscription: the publish is sent again after a restart, and nobody
    /// else may have it then.
    pub fn noted(&self) -> bool {
        self.duty.is_some() && self.message.qos() == QoS::ExactlyOnce
    }

    /// What the journal has to know of the publish's duty; `None` if the publish is at its end.
    pub fn duty_recipient(&self) -> Option<Recipient> {
        if self.stage == Stage::Settling {
            return None;
        }
        let publisher = Publisher { session: self.session, packet_id: self.inbound };
        let publisher = (self.session != 0).then(|| Box::new(publisher));
        let shared = if self.direct { None } else { Some(self.groups.first()?.name.clone()) };
        let unserved = Some(self.groups.iter().map(OpenGroup::unserved).collect());
        Some(Recipient { unserved, ..duty(shared, publisher) })
    }

    /// Takes note that the journal has who is to serve shared subscriptions: now they are asked.
    pub fn asks_noted(&mut self) {
        for g in self.groups.iter_mut().filter(|g| g.unnoted) {
            (g.at, g.unnoted, g.unasked) = (None, false, true);
        }
        self.match_soon(false);
    }

    /// Bytes that the publish counts with.
    pub fn size(&self) -> usize {
        self.message.size() + size_of::<Entry>()
    }

    /// Whether every node has the publish.
    pub fn done(&self) -> bool {
        self.stage == Stage::Open
            && !self.busy
            && self.soon.is_none()
            && self.parts.is_empty()
            && self.away.is_empty()
            && self.groups.is_empty()
    }

    /// A shared subscription that has not been served, and that nobody will say anything about: neither is a node asked or waited for,
    /// nor this one itself (`me`), nor the journal. There must be none while the publish is not to be matched again.
    pub fn unattended(&self, me: &str) -> Option<&OpenGroup> {
        let again = self.retry || self.due_at().is_some();
        if self.stage != Stage::Open || self.busy || again || self.waits_for(me) {
            return None;
        }
        self.groups.iter().find(|g| !g.away && !g.unnoted && !self.is_asked(g))
    }

    /// Whether the node that is to serve a shared subscription has been asked for that, or is once it has answered what it was asked
    /// before.
    fn is_asked(&self, group: &OpenGroup) -> bool {
        let asks = |p: &Part| group.at.as_ref() == Some(&p.node) && p.is_asked_to_serve(&group.name);
        self.parts.iter().any(asks)
    }

    /// The nodes that have not answered.
    pub fn asked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts.iter().filter(|p| p.is_asked()).map(|p| &p.node)
    }

    /// What the publish waits for, in words.
    pub fn waits_in_words(&self) -> String {
        let mut said = match self.stage {
            Stage::Recording => vec!["for its record in the journal".to_owned()],
            Stage::Unmatched => vec!["for its turn to be matched".to_owned()],
            Stage::Open | Stage::Settling => Vec::new(),
        };
        said.extend(self.soon.map(|_| "to be matched again".to_owned()));
        said.extend(self.busy.then(|| "for its match".to_owned()));
        said.extend(self.parts.iter().map(|p| p.in_words()));
        said.extend(self.away.iter().map(|(node, _)| format!("for node {node}, which is away")));
        said.extend(self.groups.iter().map(OpenGroup::in_words));
        said.join("; ")
    }

    /// Whether the publish waits for a node that is away.
    pub fn orphaned(&self) -> bool {
        !self.away.is_empty() || self.groups.iter().any(|g| g.away)
    }

    /// Whether the publish waits for one of these nodes, there or away.
    pub fn waits_for_any(&self, nodes: &[Arc<str>]) -> bool {
        self.parts.iter().any(|p| nodes.contains(&p.node))
            || self.away.iter().any(|(n, _)| nodes.contains(n))
            || self.groups.iter().any(|g| g.at.as_ref().is_some_and(|n| nodes.contains(n)))
    }

    /// Whether one of these nodes was asked and has not answered, and the publish was not matched at `at` or later.
    pub fn is_behind(&self, nodes: &[Arc<str>], at: Revision) -> bool {
        self.parts.iter().any(|p| p.is_asked() && p.past < at && nodes.contains(&p.node))
    }

    /// Whether `node` was asked and has not answered.
    pub fn waits_for(&self, node: &str) -> bool {
        self.asked().any(|n| **n == *node)
    }

    /// Loses these nodes: nobody will answer frames to them, and whoever is wanted there is to be asked anew. Returns those of them that
    /// were asked.
    pub fn lose(&mut self, nodes: &[Arc<str>]) -> SmallVec<[Arc<str>; 1]> {
        let lost = self.parts.iter_mut().filter(|p| p.is_asked() && nodes.contains(&p.node));
        lost.map(|part| {
            part.lose();
            part.node.clone()
        })
        .collect()
    }

    /// Lets the publish be matched again as soon as possible; `direct`: also for sessions that subscribed for themselves.
    pub fn match_soon(&mut self, direct: bool) {
        let direct = direct && self.direct;
        self.soon = Some(self.soon.is_some_and(|before| before) || direct);
    }

    /// Lets the publish be matched again: a while has passed since a node could not take it.
    pub fn try_again(&mut self) {
        self.retry = false;
        self.match_soon(true);
    }

    /// From which revision on the publish has to be matched again; 0 = from now on, `None` = not at all. While a session is to be looked
    /// for that moved at a revision still to be applied, nobody is asked about shared subscriptions alone: a node whose own sessions wait
    /// for this publish takes the next frame for theirs.
    pub fn due_at(&self) -> Option<Revision> {
        match self.soon {
            Some(true) => Some(0),
            soon => self.parts.iter().filter_map(Part::due_at).min().or(soon.map(|_| 0)),
        }
    }

    /// Whether the record of the publish is durable, or it needs none: then it can be matched in its turn.
    pub fn is_recorded(&self) -> bool {
        self.stage != Stage::Recording
    }

    /// Takes the publish to match it; `None` if there is nothing to match, or somebody is at it.
    pub fn check_out(&mut self, applied: Revision) -> Option<View> {
        if self.busy || self.stage != Stage::Open || self.due_at().is_none_or(|at| at > applied) {
            return None;
        }
        let moved = self.parts.iter().filter_map(Part::due_at).any(|at| at <= applied);
        let direct = self.soon.take() == Some(true) || moved;
        self.busy = true;
        Some(View {
            message: self.message.clone(),
            session: self.session,
            direct: direct && self.direct,
            first_matched: self.first_matched,
            all_groups: self.direct && !self.groups_known,
            shared_only: !self.direct,
            groups: self.groups.clone(),
            asked: self.asked().cloned().collect(),
            asked_groups: self.groups.iter().filter(|g| self.is_asked(g)).map(|g| g.name.clone()).collect(),
            promise: self.promise.clone(),
            noted: self.noted(),
        })
    }

    /// Carries out what matching came to; `me` is this node.
    pub fn apply(&mut self, plan: Plan, me: &Arc<str>, watermarks: &mut Watermarks) -> Sends {
        let mut sends = Sends { first: std::mem::take(&mut self.unsent), ..Sends::default() };
        self.matched |= plan.matched;
        self.groups_known = true;
        if self.first_matched == 0 {
            self.first_matched = plan.matched_at;
        }
        // Whatever of it is on its way since then, or waits, goes where it is asked for now.
        let on_its_way =
            self.parts.iter().map(|p| p.since).chain(self.away.iter().map(|(_, (since, _))| *since));
        let owed = on_its_way.min().unwrap_or(plan.matched_at);
        if plan.direct {
            self.wait_for_away(&plan, watermarks);
        }
        // A match for shared subscriptions alone has not looked for anybody else.
        let whole = plan.direct || !self.direct;
        if whole {
            self.parts.iter_mut().for_each(|p| p.look_past(plan.matched_at, watermarks));
        }
        for node in plan.gone {
            if self.waits_for(&node) {
                self.parts.iter_mut().filter(|p| p.node == node).for_each(Part::drop_questions);
                sends.cancels.push(node);
            }
        }
        self.groups.retain(|g| !plan.served.contains(&g.name));
        for g in plan.groups {
            match self.groups.iter_mut().find(|old| old.name == g.name) {
                Some(old) => *old = g,
                None => self.groups.push(g),
            }
        }
        // What is settled must not be claimed before those that were found have been asked.
        for (node, asked) in plan.ask {
            let question = Question { at: plan.matched_at, asked };
            if let Some(asked) = self.ask(&node, question, whole, watermarks) {
                sends.frames.push((node, plan.matched_at, asked));
            } else {
                self.hold_watermark(&node, owed, watermarks);
            }
        }
        if plan.moving || plan.moved.is_some() {
            if whole {
                // What this node waits for itself is not on its way: a new match takes its place at once.
                for p in self.parts.iter_mut().filter(|p| p.node == *me) {
                    p.lose();
                    p.look_past(plan.matched_at, watermarks);
                }
            }
            let asked = Asked { direct: true, ..Asked::default() };
            self.ask(me, Question { at: plan.matched_at, asked }, whole, watermarks);
        }
        if whole {
            self.parts.iter_mut().for_each(|p| p.looked_for(plan.matched_at));
            self.remove_those_over(watermarks);
        }
        if let (false, Some(at)) = (plan.moving, plan.moved) {
            self.answer(me, Answer::Moved(at), plan.matched_at, watermarks);
        }
        sends
    }

    /// Lets the publish count as on its way to a node since `owed`: the node is asked for its own subscribers once it has answered about
    /// shared subscriptions. An answer about shared subscriptions does not wait for what is settled.
    fn hold_watermark(&mut self, node: &Arc<str>, owed: Revision, watermarks: &mut Watermarks) {
        let direct = |q: &Option<Question>| q.as_ref().is_some_and(|q| q.asked.direct);
        let waits = |p: &&mut Part| p.node == *node && !direct(&p.question) && direct(&p.next);
        if let Some(p) = self.parts.iter_mut().find(waits) {
            p.count((p.since.min(owed), p.past), watermarks);
        }
    }

    /// Takes note of the nodes that cannot be asked. For the sake of order it counts as on its way to each since the match that
    /// found the node first, also if it was asked then.
    fn wait_for_away(&mut self, plan: &Plan, watermarks: &mut Watermarks) {
        let old = std::mem::take(&mut self.away);
        for node in &plan.away {
            if self.away.iter().any(|(n, _)| n == node) {
                continue;
            }
            let asked = self.parts.iter().filter(|p| p.node == *node).map(|p| p.since);
            let waited = old.iter().filter(|(n, _)| n == node).map(|(_, (since, _))| *since);
            let since = asked.chain(waited).min().unwrap_or(plan.matched_at);
            let at = (since, plan.matched_at);
            watermarks.add(node, at);
            self.away.push((node.clone(), at));
        }
        for (node, at) in old {
            watermarks.remove(&node, at);
        }
    }

    /// Asks a node; what is to be sent now, if anything.
    fn ask(
        &mut self,
        node: &Arc<str>,
        question: Question,
        whole: bool,
        watermarks: &mut Watermarks,
    ) -> Option<Asked> {
        if question.asked.is_empty() {
            return None;
        }
        if let Some(part) = self.parts.iter_mut().find(|p| p.node == *node) {
            return part.ask(question, whole);
        }
        let asked = question.asked.clone();
        let part = Part::new(node.clone(), question);
        watermarks.add(node, part.matched());
        self.parts.push(part);
        Some(asked)
    }

    /// Forgets the nodes that nothing is open at.
    fn remove_those_over(&mut self, watermarks: &mut Watermarks) {
        self.parts.retain(|p| {
            if p.is_over() {
                watermarks.remove(&p.node, p.matched());
            }
            !p.is_over()
        });
    }

    /// A node has answered. What it is to be asked next, if anything, and when that was matched. If this node has applied more than
    /// that since, the publish is matched anew in place of being sent: all nodes may have been told that nothing matched so long ago
    /// is on its way. Until then it counts as on its way since it was held.
    pub fn answer(
        &mut self,
        node: &Arc<str>,
        answer: Answer,
        applied: Revision,
        watermarks: &mut Watermarks,
    ) -> Option<(Revision, Asked)> {
        let part = self.parts.iter_mut().find(|p| p.node == *node)?;
        let Question { at: asked_at, asked } = part.question.take()?;
        match answer {
            Answer::Accepted { matched, declined } => {
                self.matched |= matched;
                let mut next = part.next.take();
                let outdated = next.take_if(|q| q.at < applied).is_some();
                if outdated {
                    part.look_from(applied);
                } else if let Some(next) = &next {
                    if !part.is_to_be_looked_for() {
                        part.count((next.at, part.past.max(next.at)), watermarks);
                    }
                    part.question = Some(next.clone());
                }
                self.remove_those_over(watermarks);
                for g in asked.groups {
                    if declined.contains(&g.name) {
                        self.declined(&g, node, asked_at);
                    } else {
                        self.groups.retain(|old| old.name != g.name);
                    }
                }
                if outdated {
                    self.groups.iter_mut().for_each(OpenGroup::begin_anew);
                    self.match_soon(true);
                } else if self.groups.iter().any(|g| g.at.is_none()) {
                    self.match_soon(false);
                }
                next.map(|q| (q.at, q.asked))
            }
            Answer::Moved(at) => {
                part.drop_questions(); // matching again finds out
                part.look_from(at);
                self.groups.iter_mut().for_each(OpenGroup::begin_anew);
                if at <= applied {
                    self.match_soon(true);
                }
                None
            }
            // Whoever calls tries again.
            Answer::Failed(_) => {
                part.lose();
                self.retry = true;
                None
            }
        }
    }

    /// Takes note that a node which was asked at this revision has no member online for a shared subscription; nobody even to queue for, if
    /// that was asked.
    fn declined(&mut self, asked: &GroupTry, node: &Arc<str>, at: Revision) {
        for g in self.groups.iter_mut().filter(|g| g.name == asked.name) {
            g.declined_by(node, asked.queue, at);
        }
    }

    /// Drops the frames that wait for the publish's record: it is matched anew, in its turn. Nobody was asked.
    pub fn postpone(&mut self) {
        (self.prepared, self.unsent) = (None, true);
        self.groups.iter_mut().for_each(OpenGroup::open_again);
        self.parts.iter_mut().for_each(Part::lose);
    }

    /// The publish's record is durable: the frames that waited for that, or `None` if the publish has to be matched anew since the index has
    /// moved on from what it was matched on.
    pub fn recorded(&mut self, applied: Revision) -> Option<Sends> {
        let mut sends = *self.prepared.take()?;
        if self.first_matched == applied {
            // Not to nodes that have been lost meanwhile.
            sends.frames.retain(|(node, _, _)| self.waits_for(node));
            return Some(sends);
        }
        for (node, _, _) in &sends.frames {
            self.parts.iter_mut().filter(|p| p.node == *node).for_each(Part::lose);
        }
        self.unsent = true;
        self.match_soon(true);
        None
    }

    /// Waits for no node that is away any more: nobody is left who wants the publish.
    pub fn expire(&mut self, watermarks: &mut Watermarks) {
        for (node, at) in self.away.drain(..) {
            watermarks.remove(&node, at);
        }
        self.groups.retain(|g| !g.away);
    }

    /// Gives the publish up: no node is asked any more. Returns those that were.
    pub fn give_up(&mut self, watermarks: &mut Watermarks) -> SmallVec<[Arc<str>; 2]> {
        let asked = self.asked().cloned().collect();
        for p in self.parts.drain(..) {
            watermarks.remove(&p.node, p.matched());
        }
        self.expire(watermarks);
        self.groups.clear();
        (self.soon, self.retry) = (None, false);
        asked
    }
}
