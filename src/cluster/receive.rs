//! Publishes of other nodes: given to the sessions here that must have them, each once, and answered when that is safe.

use super::durable::durable;
use super::round::{Member, Round};
use super::{Cache, Cluster, Remote};
use crate::broker::delivery::{Absent, Publishing, Scratch};
use crate::broker::router::Matches;
use crate::mqtt::QoS;
use crate::ports::{
    Answer, Answers, BoxFuture, Frame, GroupTry, Incarnation, Lsn, MemberId, MessageId, Report, Revision,
    SaidClock,
};
use crate::session::Loss;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

/// An answer that waits for the journal.
pub(super) struct Due {
    to: Arc<dyn Answers>,
    id: MessageId,
    answer: Answer,
}

/// Places for frames that are taken in; frames of one publish share one.
const RECEIVING: usize = 64;

/// Takes frames of one publish in one after another. One that waited here for sessions may be taken again just when it comes a second
/// time, over another connection: between the note that a session has it and what comes of that the other would be told that it has, and
/// the one that goes would take along that later ones wait for it. The caller is inside the barrier.
pub(super) struct Receiving([Mutex<()>; RECEIVING]);

impl Default for Receiving {
    fn default() -> Receiving {
        Receiving(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Receiving {
    /// Completes when no other frame of the publish is being taken in, and keeps others from it.
    pub(super) fn one(&self, id: MessageId) -> MutexGuard<'_, ()> {
        #[allow(clippy::cast_possible_truncation)] // as good as any
        let place = (id.seq ^ id.origin) as usize;
        self.0[place % RECEIVING].lock()
    }
}

/// What became of one frame.
struct Received {
    /// When it is safe here.
    lsn: Lsn,
    matched: bool,
    declined: Vec<Arc<str>>,
    absent: Absent,
}

impl Cluster {
    /// Gives one frame of process `sender` to the sessions here that it is for.
    fn receive(
        &self,
        frame: &Frame,
        sender: Incarnation,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Received {
        let remote = &self.remote;
        // No session freezes between the look at it and its mailbox.
        let _inside = remote.barrier.enter();
        let message = &frame.message;
        // At QoS 0 an update's name keeps those from having it twice who were sent it as the retained message.
        let id = frame.id.or(frame.update);
        let (delivered, wakes) = scratch.begin();
        let mut round = Round::unnamed(message, Publishing::default(), frame.matched_at, delivered, wakes);
        if let Some(id) = id {
            round = round.named(sender, id);
            (round.repeated, round.tracked, round.first) = (true, true, frame.first);
        }
        // What comes of an earlier process was decided before, or waits in its journal. A process of a release that does not say what
        // became of its updates cannot be waited for.
        let says_so = |id: &MessageId| id.origin == sender && remote.members.says_what_is_retained(sender);
        if let Some(id) = id.filter(|id| message.retain() && says_so(id)) {
            self.broker.retained.begin(message, id, message.payload().is_empty(), false);
        }
        let matches = self.broker.router.lookup(message.topic(), &mut cache.local);
        let mut received =
            Received { lsn: 0, matched: false, declined: Vec::new(), absent: Absent::default() };
        if frame.direct {
            for t in &matches.targets {
                received.matched |= self.give(t, &mut round);
            }
        }
        for ask in &frame.groups {
            if self.serve_asked(frame, ask, matches, &mut round) {
                received.matched = true;
            } else {
                received.declined.push(ask.name.clone());
            }
        }
        let lsn = self.commit(&mut round, None).unwrap_or(0);
        // Sessions that have had it before: their rows may not be durable yet.
        let before = frame.id.map_or(0, |id| remote.deduplication.lsn(id));
        received.lsn = lsn.max(before);
        received.absent = std::mem::take(&mut round.delivered.absent);
        self.purge_full(round.delivered);
        received
    }

    /// Serves a shared subscription that another node asks for; false if nobody here can have the message.
    fn serve_asked(&self, frame: &Frame, ask: &GroupTry, matches: &Matches, round: &mut Round<'_>) -> bool {
        let group = matches.groups.iter().find(|g| g.name == ask.name);
        // Whoever has had it may have left this node since, the last of its members here.
        if round.repeated && self.has_served(round, &ask.name, group) {
            self.broker.metrics.duplicates_dropped.inc();
            return true;
        }
        let Some(group) = group else { return false };
        match self.give_member(group, ask.queue, round) {
            Member::Took => {
                if let Some(id) = frame.id {
                    self.remote.deduplication.serve(id, &ask.name);
                }
                true
            }
            Member::Absent(_) => true,
            Member::Nobody => false,
        }
    }

    /// Takes a frame that has an ID and answers it, now or later. `key`: its sender and its ID. `moved`: a session it was for is known to have moved at this
    /// revision, and may have left the router since.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn take_frame(
        &self,
        remote: &Arc<Remote>,
        frame: Frame,
        key: (Incarnation, MessageId),
        moved: Option<Revision>,
        answers: &Arc<dyn Answers>,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) {
        let _inside = remote.barrier.enter();
        let _one = remote.receiving.one(key.1);
        if !answers.stands() {
            // It has come again since, or will, and must not take away what waits for that.
            return;
        }
        // Its own subscribers wait for a frame that is for them.
        let place = if frame.direct { remote.deferred.take_place(key) } else { None };
        let mut received = self.receive(&frame, key.0, cache, scratch);
        received.absent.moved = received.absent.moved.max(moved);
        let moving = std::mem::take(&mut received.absent.moving);
        let newest = remote.deferred.newest_move();
        if !moving.is_empty() && frame.matched_at < newest {
            // A session that moved then may wait for just this one: it comes again.
            self.keep_place(remote, key, newest, moving);
            received.absent.moved_at(newest);
        } else if !moving.is_empty() {
            // Later frames for others do not wait.
            let absent = Absent { moving, ..received.absent };
            let (at, frames) = (frame.matched_at, vec![(frame, answers.clone())]);
            self.defer(remote, key, at, frames, absent);
            return self.give_place(remote, key, place);
        }
        self.give_place(remote, key, place);
        // A frame that is older than the newest move this node has forgotten may have been for that session.
        let forgotten = Some(remote.forgotten_move()).filter(|m| frame.matched_at < *m);
        let answer = match received.absent.moved.max(forgotten) {
            Some(at) => Answer::Moved(at),
            None => Answer::Accepted { matched: received.matched, declined: received.declined },
        };
        self.answer(remote, answers, key.1, answer, received.lsn);
    }

    /// Answers once the journal is durable up to `lsn`.
    fn answer(&self, remote: &Arc<Remote>, to: &Arc<dyn Answers>, id: MessageId, answer: Answer, lsn: Lsn) {
        let due = Due { to: to.clone(), id, answer };
        self.after_durable(remote, |r| &r.answers, lsn, due, Cluster::answer_due);
    }

    fn answer_due(&self, _: &Arc<Remote>, due: Vec<Due>) {
        let mut due = due.into_iter().peekable();
        while let Some(Due { to, id, answer }) = due.next() {
            let mut answers = vec![(id, answer)];
            while let Some(next) = due.next_if(|d| Arc::ptr_eq(&d.to, &to)) {
                answers.push((next.id, next.answer));
            }
            to.answer(answers);
        }
    }
}

/// What comes over the links ([`crate::ports::Inbox`]).
impl Cluster {
    /// Takes the frames of a node in, in order: [`crate::ports::Inbox::frames`].
    pub fn frames(&self, from: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool {
        let remote = &self.remote;
        self.broker.metrics.frames_received.add(frames.len() as u64);
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        for frame in frames {
            match frame.id.filter(|_| frame.message.qos() > QoS::AtMostOnce) {
                Some(id) => {
                    let key = (from.incarnation, id);
                    self.take_frame(remote, frame, key, None, answers, &mut cache, &mut scratch);
                    remote.young.hear(id.origin, id.seq);
                }
                None => {
                    let received = self.receive(&frame, from.incarnation, &mut cache, &mut scratch);
                    for handle in &received.absent.moving {
                        self.broker.metrics.lost(handle.whose(), Loss::SessionEnded, 1);
                    }
                    if !received.declined.is_empty() {
                        self.pass_on(remote, &frame, &received.declined, &mut cache, &mut scratch);
                    }
                }
            }
        }
        tracing::trace!(%from, "frames taken");
        self.broker.journal.congested()
    }

    /// Completes when more frames may be read: [`crate::ports::Inbox::relieved`].
    pub fn relieved(&self) -> BoxFuture<()> {
        let journal = self.broker.journal.clone();
        // What is appended now is behind all that is queued.
        let lsn = journal.append(&[]);
        Box::pin(durable(journal, lsn))
    }

    /// Takes the report of a node in: [`crate::ports::Inbox::report`].
    pub fn report(&self, from: &MemberId, report: Report) {
        let remote = &self.remote;
        let highest = report.open.last().copied().max(report.low_water.checked_sub(1));
        remote.young.reported(from.incarnation, report.applied, highest.unwrap_or(0));
        self.forget_below(remote, from.incarnation, report.low_water, &report.open);
        for origin in &report.retired {
            self.forget_below(remote, *origin, u64::MAX, &[]);
        }
        if remote.heard(from, report) {
            remote.sessions.poke();
            self.nodes_changed();
        }
        remote.sessions.reported();
        self.places_may_go(remote);
    }

    /// Takes in what a node said to frames of this one: [`crate::ports::Inbox::answered`].
    pub fn answered(&self, node: &Arc<str>, answers: Vec<(MessageId, Answer)>) {
        self.take_answers(&self.remote, node, answers);
    }

    /// Takes note that the link to a node came up or went down: [`crate::ports::Inbox::link`].
    pub fn link(&self, node: &Arc<str>, process: Option<MemberId>) {
        let remote = &self.remote;
        let down = process.is_none();
        remote.link_changed(node, process);
        if down {
            self.match_behind(remote);
        }
        remote.sessions.poke();
        self.nodes_changed();
    }

    /// Whether a process must not be heard any more: [`crate::ports::Inbox::superseded`].
    pub fn superseded(&self, process: &MemberId) -> bool {
        self.remote.members.superseded(process)
    }

    /// What this node's clock shows: [`crate::ports::Inbox::clock`].
    pub fn clock(&self) -> Option<SaidClock> {
        let remote = &self.remote;
        let time = &remote.ports.time;
        let now = remote.now();
        let cluster_ahead_ms = time.known().then(|| time.ahead_ms());
        Some(SaidClock { now, cluster_ahead_ms, cluster_young_ms: time.young_ms(now) })
    }
}
