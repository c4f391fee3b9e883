//! The outbox as a machine: it is told what has happened, and says what is to be done. No locks, no I/O, no clock; dialogues with it are in
//! `tests/transcripts/outbox/`.

use super::entry::{Entry, Plan, Sends, Stage};
use super::held::Held;
use super::view::View;
use super::watermarks::Watermarks;
use crate::broker::promise::{Kept, Promise};
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Answer, Incarnation, MessageId, Revision, Seq, SessionNo};
use crate::sync::Once;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// What the outbox is told.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // each is taken in at once
pub enum Input {
    /// A publish was matched for the first time: the outbox takes it.
    Begin {
        /// Its name.
        id: MessageId,
        /// The publish.
        entry: Entry,
        /// What matching came to.
        plan: Plan,
    },
    /// A publish is to be matched later, behind those that wait already: the outbox takes it.
    Queue {
        /// Its name.
        id: MessageId,
        /// The publish.
        entry: Entry,
    },
    /// A publish that was handed out ([`Machine::check_out`], [`Machine::next_unmatched`]) has been matched.
    Matched {
        /// Its name.
        id: MessageId,
        /// What matching came to.
        plan: Plan,
    },
    /// The first publish of those that wait to be matched has been matched, and its frames are queued.
    UnmatchedDone(MessageId),
    /// A node has answered publishes.
    Answered {
        /// The node.
        node: Arc<str>,
        /// What it said to each of them.
        answers: Vec<(MessageId, Answer)>,
    },
    /// The record of a publish is durable.
    Recorded(MessageId),
    /// The record that says who is asked to serve a publish's shared subscriptions is durable.
    Noted {
        /// The publish.
        id: MessageId,
        /// The record's number.
        seq: Seq,
    },
    /// The index has come to a newer revision.
    Advanced,
    /// Nodes have come, gone or come back, those in `nodes`; nobody waits for answers of those in `lost` any more.
    NodesChanged {
        /// What waits for them is matched again, before all that comes after it.
        nodes: Vec<Arc<str>>,
        /// Frames to them are not answered.
        lost: Vec<Arc<str>>,
    },
    /// These nodes may not answer for long, and sessions may have moved at the revision `at`: what they have not answered and was not
    /// matched since is matched again, before all that comes after it.
    Behind {
        /// The nodes.
        nodes: Vec<Arc<str>>,
        /// The revision.
        at: Revision,
    },
    /// A while has passed since nodes could not make publishes safe: they are matched again.
    Retry,
    /// Publishers have waited for `patience_ms`, or publishes at QoS 1 have failed: these are given up, unless the journal has them.
    GiveUp {
        /// How long a publish may be open, milliseconds.
        patience_ms: u64,
        /// Publishes that a node could not make safe.
        failed: Vec<MessageId>,
        /// What their publishers are told.
        reason: Reason,
    },
    /// Time has passed: publishes that have expired wait for nodes that are away no longer.
    Expire,
    /// A publish is over, and so is the promise not to send it again.
    Remove(MessageId),
}

/// What is to be done after the outbox was told something.
#[derive(Debug, Default)]
pub struct Actions {
    /// Frames to send and to cancel, for each publish.
    pub sends: Vec<(MessageId, Message, Sends)>,
    /// Frames to cancel besides, by node.
    pub cancels: Vec<(Arc<str>, MessageId)>,
    /// Publishes to match again at once, in order.
    pub again: Vec<MessageId>,
    /// What was matched at this revision is settled at a node now, and nothing older is left: news, if the index has moved on.
    pub risen: Option<Revision>,
    /// Publishes that every node has, with their rows in the journal.
    pub done: Vec<(MessageId, Option<Seq>)>,
    /// Publishes that a node could not make safe.
    pub failed: Vec<MessageId>,
    /// Publishes that were given up and removed, each with the nodes whose frames are to be cancelled.
    pub given_up: Vec<(MessageId, SmallVec<[Arc<str>; 2]>)>,
    /// Whether a publish was taken out ([`Input::Remove`]), or put back among those that wait to be matched ([`Input::Behind`]).
    pub changed: bool,
    /// Promises to keep.
    pub(super) kept: SmallVec<[(Arc<Promise>, Kept); 1]>,
    /// What waited for the QoS 2 publishes of a session.
    pub(super) settled: SmallVec<[Arc<Once<()>>; 1]>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Machine {
    /// This node.
    pub(super) me: Arc<str>,
    /// The publishes by name. Those of earlier incarnations come first: their numbers are lower.
    pub(super) entries: BTreeMap<MessageId, Entry>,
    pub(super) watermarks: Watermarks,
    /// Publishes that are not matched yet, in order.
    pub(super) unmatched: VecDeque<MessageId>,
    /// A task matches what is unmatched.
    pub(super) attended: bool,
    /// Publishes that wait for a revision to be applied.
    again: BTreeSet<(Revision, MessageId)>,
    /// How many QoS 2 publishes of a session have an open outcome, and who waits for that.
    pub(super) exactly_once: HashMap<SessionNo, (usize, Arc<Once<()>>)>,
    /// Publishes to be tried again after a while: a node could not make them safe.
    retry: Vec<MessageId>,
    /// Earlier incarnations of this node.
    pub(super) earlier: Vec<Incarnation>,
    /// How much waits.
    pub(super) held: Held,
    /// Publishes up to this name were open for too long when they were last looked at; later ones are younger, save those in `look_at`.
    pub(super) aged_to: Option<MessageId>,
    /// Publishes up to that name that have to be looked at once more.
    pub(super) look_at: BTreeSet<MessageId>,
    /// Publishes that are open for too long, though no node is away, and of which nobody was told.
    pub(super) overdue: BTreeSet<MessageId>,
    /// When publishes expire that wait for nodes that are away.
    expiring: BTreeSet<(Time, MessageId)>,
}

impl Machine {
    /// An empty outbox of node `me`.
    pub fn new(me: Arc<str>) -> Machine {
        Machine { me, ..Machine::default() }
    }

    /// Takes in what has happened; `applied` is the revision of this node's index.
    pub fn handle(&mut self, input: Input, applied: Revision, now: Time) -> Actions {
        let mut actions = Actions::default();
        match input {
            Input::Begin { id, entry, plan } => self.begin(id, entry, plan, &mut actions),
            Input::Queue { id, entry } => {
                self.take_in(id, entry);
                self.unmatched.push_back(id);
            }
            Input::Matched { id, plan } => self.matched(id, plan, applied, &mut actions),
            Input::UnmatchedDone(id) => {
                if self.unmatched.front() == Some(&id) {
                    self.unmatched.pop_front();
                }
            }
            Input::Answered { node, answers } => self.answered(&node, answers, applied, &mut actions),
            Input::Recorded(id) => self.recorded(id, applied, &mut actions),
            Input::Noted { id, seq } => self.noted(id, seq, applied, &mut actions),
            Input::Advanced => actions.again = self.due(applied),
            Input::NodesChanged { nodes, lost } => self.nodes_changed(&nodes, &lost, &mut actions),
            Input::Behind { nodes, at } => self.behind(&nodes, at, &mut actions),
            Input::Retry => {
                let mut retry = std::mem::take(&mut self.retry);
                retry.retain(|id| self.entries.get_mut(id).map(Entry::try_again).is_some());
                actions.again = retry;
            }
            Input::GiveUp { patience_ms, failed, reason } => {
                let before = Time(now.0.saturating_sub(patience_ms));
                self.give_up(before, failed, reason, &mut actions);
            }
            Input::Expire => self.expire(now, applied, &mut actions),
            Input::Remove(id) => actions.changed = self.remove(id, &mut actions),
        }
        actions
    }

    /// Takes a publish out to match it; `None` if there is nothing to match, or somebody is at it. [`Input::Matched`] gives it back.
    pub fn check_out(&mut self, id: MessageId, applied: Revision) -> Option<View> {
        self.entries.get_mut(&id)?.check_out(applied)
    }

    /// The next publish to be matched; `None` if there is none, or its record is not durable. Nobody else matches it before it is given
    /// back.
    pub fn next_unmatched(&mut self, applied: Revision) -> Option<(MessageId, View)> {
        loop {
            let id = *self.unmatched.front()?;
            match self.entries.get_mut(&id) {
                Some(e) if !e.is_recorded() => return None,
                Some(e) => {
                    e.stage = Stage::Open;
                    e.match_soon(true);
                    return Some((id, e.check_out(applied)?));
                }
                None => self.unmatched.pop_front(), // given up
            };
        }
    }

    fn take_in(&mut self, id: MessageId, mut entry: Entry) {
        self.held.add(&entry);
        if entry.message.qos() == QoS::ExactlyOnce && entry.session != 0 {
            entry.counts_for = Some(entry.session);
            self.exactly_once.entry(entry.session).or_insert_with(|| (0, Once::new())).0 += 1;
        }
        if self.aged_to.is_some_and(|aged| id <= aged) {
            self.look_at.insert(id);
        }
        self.entries.insert(id, entry);
    }

    fn begin(&mut self, id: MessageId, mut entry: Entry, plan: Plan, actions: &mut Actions) {
        let sends = entry.apply(plan, &self.me, &mut self.watermarks);
        if entry.stage == Stage::Recording {
            // That they are on their way counts already.
            entry.prepared = Some(Box::new(sends));
        } else {
            actions.sends.push((id, entry.message.clone(), sends));
        }
        self.take_in(id, entry);
        // Whatever it waits for is newer than what this node has applied.
        self.look(id, 0, actions);
    }

    fn matched(&mut self, id: MessageId, plan: Plan, applied: Revision, actions: &mut Actions) {
        let Some(e) = self.entries.get_mut(&id) else { return };
        e.busy = false;
        let sends = e.apply(plan, &self.me, &mut self.watermarks);
        actions.sends.push((id, e.message.clone(), sends));
        self.look(id, applied, actions);
        actions.risen = self.watermarks.take_risen();
    }

    /// A publish at QoS 1 that a node cannot take fails; others are matched again later.
    fn answered(
        &mut self,
        node: &Arc<str>,
        answers: Vec<(MessageId, Answer)>,
        applied: Revision,
        actions: &mut Actions,
    ) {
        for (id, answer) in answers {
            let Some(e) = self.entries.get_mut(&id) else { continue };
            let unsafe_there = matches!(answer, Answer::Failed(_));
            if let Some((at, asked)) = e.answer(node, answer, applied, &mut self.watermarks) {
                let mut sends = Sends::default();
                sends.frames.push((node.clone(), at, asked));
                actions.sends.push((id, e.message.clone(), sends));
            }
            if unsafe_there {
                actions.failed.push(id);
                self.retry.push(id);
            }
            self.look(id, applied, actions);
        }
        actions.risen = self.watermarks.take_risen();
    }

    fn recorded(&mut self, id: MessageId, applied: Revision, actions: &mut Actions) {
        let Some(e) = self.entries.get_mut(&id).filter(|e| e.stage == Stage::Recording) else { return };
        if e.prepared.is_none() {
            e.stage = Stage::Unmatched;
            return;
        }
        e.stage = Stage::Open;
        if let Some(sends) = e.recorded(applied) {
            actions.sends.push((id, e.message.clone(), sends));
        }
        self.look(id, applied, actions);
    }

    fn noted(&mut self, id: MessageId, seq: Seq, applied: Revision, actions: &mut Actions) {
        // If it has been replaced, the newer one is waited for.
        let Some(e) = self.entries.get_mut(&id).filter(|e| e.duty == Some(seq)) else { return };
        e.asks_noted();
        self.look(id, applied, actions);
    }

    /// Publishes that waited for a revision up to `applied`, in order.
    fn due(&mut self, applied: Revision) -> Vec<MessageId> {
        let mut due = Vec::new();
        while let Some((at, id)) = self.again.first().copied().filter(|(at, _)| *at <= applied) {
            self.again.remove(&(at, id));
            due.push(id);
        }
        due.sort_unstable();
        due
    }

    fn give_up(&mut self, before: Time, mut over: Vec<MessageId>, reason: Reason, actions: &mut Actions) {
        let may_fail = |e: &Entry| e.message.qos() == QoS::AtLeastOnce && e.duty.is_none();
        over.retain(|id| self.entries.get(id).is_some_and(may_fail));
        for id in self.aged(before) {
            match self.entries.get(&id) {
                Some(e) if e.duty.is_none() => over.push(id),
                // If its nodes are back it is looked at once more.
                Some(e) if !e.told && !e.orphaned() => {
                    self.overdue.insert(id);
                }
                Some(_) | None => {}
            }
        }
        for id in over {
            let Some(e) = self.entries.get_mut(&id) else { continue };
            actions.kept.extend(e.promise.clone().map(|promise| (promise, Kept::Failed(reason))));
            let asked = e.give_up(&mut self.watermarks);
            self.remove(id, actions);
            actions.given_up.push((id, asked));
        }
    }

    /// Publishes that are open since `before` or longer, those that were looked at before left out.
    fn aged(&mut self, before: Time) -> Vec<MessageId> {
        let is_aged = |e: &Entry| e.since <= before;
        let again = self.look_at.iter().filter(|id| self.entries.get(id).is_none_or(is_aged));
        let mut aged: Vec<MessageId> = again.copied().collect();
        aged.iter().for_each(|id| {
            self.look_at.remove(id);
        });
        let from = self.aged_to.map_or(Bound::Unbounded, Bound::Excluded);
        // Whoever is named later has come later.
        let more = self.entries.range((from, Bound::Unbounded)).take_while(|(_, e)| is_aged(e));
        aged.extend(more.map(|(id, _)| *id));
        self.aged_to = self.aged_to.max(aged.last().copied());
        aged
    }

    fn expire(&mut self, now: Time, applied: Revision, actions: &mut Actions) {
        while let Some((at, id)) = self.expiring.first().copied().filter(|(at, _)| *at <= now) {
            self.expiring.remove(&(at, id));
            if let Some(e) = self.entries.get_mut(&id) {
                e.expire(&mut self.watermarks);
                self.look(id, applied, actions);
            }
        }
    }

    /// Whether the publish was there.
    fn remove(&mut self, id: MessageId, actions: &mut Actions) -> bool {
        let Some(mut e) = self.entries.remove(&id) else { return false };
        e.give_up(&mut self.watermarks);
        self.uncount(e.counts_for, actions);
        self.held.sub(&e);
        self.look_at.remove(&id);
        self.overdue.remove(&id);
        if let Some(at) = e.message.expires_at() {
            self.expiring.remove(&(at, id));
        }
        true
    }

    /// Whether a publish has come to its end, or has to be matched again.
    pub(super) fn look(&mut self, id: MessageId, applied: Revision, actions: &mut Actions) {
        let Some(e) = self.entries.get_mut(&id) else { return };
        if self.held.recount(e) {
            let expires = e.message.expires_at().map(|at| (at, id));
            if e.counted_away {
                self.expiring.extend(expires);
            } else {
                expires.iter().for_each(|expires| {
                    self.expiring.remove(expires);
                });
                if self.aged_to.is_some_and(|aged| id <= aged) {
                    self.look_at.insert(id);
                }
            }
        }
        if e.done() {
            e.stage = Stage::Settling;
            let kept = Kept::Done { matched: e.matched };
            actions.kept.extend(e.promise.clone().map(|promise| (promise, kept)));
            actions.done.push((id, e.duty));
            let session = e.counts_for.take();
            self.uncount(session, actions);
            return;
        }
        if let Some(at) = e.due_at().filter(|_| !e.busy && e.stage == Stage::Open) {
            if at <= applied {
                actions.again.push(id);
            } else {
                self.again.insert((at, id));
            }
        }
        if let Some(group) = e.unattended(&self.me) {
            debug_assert!(false, "nobody attends to {} of {id:?}: {e:?}", group.name);
            tracing::error!(
                origin = id.origin,
                seq = id.seq,
                group = &*group.name,
                asked = group.at.as_deref(),
                "a publish for a shared subscription waits for nobody: it is matched again"
            );
            self.retry.push(id);
        }
    }

    /// The outcome of a QoS 2 publish of a session is known.
    fn uncount(&mut self, session: Option<SessionNo>, actions: &mut Actions) {
        let Some(session) = session else { return };
        if let Some((n, settled)) = self.exactly_once.get_mut(&session) {
            *n -= 1;
            if *n == 0 {
                actions.settled.push(settled.clone());
                self.exactly_once.remove(&session);
            }
        }
    }
}
