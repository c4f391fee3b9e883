//! Publishes of other nodes: given to the sessions here that must have them, each once, and answered when that is safe.

use super::Remote;
use super::groups::{self, Fit};
use crate::broker::Broker;
use crate::broker::publish::{Cache, Leaving, Scratch, Way};
use crate::broker::remote::durable::durable;
use crate::broker::router::Matches;
use crate::mqtt::QoS;
use crate::ports::{
    Answer, Answers, BoxFuture, Frame, GroupTry, Inbox, Incarnation, Lsn, MemberId, MessageId, Report,
    Request, Response, Revision, SaidClock,
};
use crate::session::Loss;
use std::sync::Arc;

/// An answer that waits for the journal.
pub(super) struct Due {
    to: Arc<dyn Answers>,
    id: MessageId,
    answer: Answer,
}

/// What became of one frame.
struct Received {
    /// When it is safe here.
    lsn: Lsn,
    matched: bool,
    declined: Vec<Arc<str>>,
    leaving: Leaving,
}

impl Broker {
    /// Takes one frame; `false` in the result's `leaving` means it can be answered.
    fn receive(
        &self,
        remote: &Remote,
        frame: &Frame,
        sender: Incarnation,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Received {
        // No session freezes between the look at it and its mailbox.
        let _inside = remote.gate.enter();
        let message = &frame.message;
        // At QoS 0 an update's name keeps those from having it twice who were sent it as the retained message.
        let id = frame.id.or(frame.update);
        let way = Way {
            id,
            sender,
            matched_at: frame.matched_at,
            repeated: id.is_some(),
            tracked: id.is_some(),
            ..Way::default()
        };
        // What comes of an earlier process was decided before, or waits in its journal. A process of a release that does not say what
        // became of its updates cannot be waited for.
        let says_so = |id: &MessageId| id.origin == sender && remote.members.says_what_is_retained(sender);
        if let Some(id) = id.filter(|id| message.retain() && says_so(id)) {
            self.retained.begin(message, id, message.payload().is_empty(), false);
        }
        scratch.given.clear();
        scratch.leaving = Leaving::default();
        let matches = self.router.lookup(message.topic(), &mut cache.local);
        let mut received =
            Received { lsn: 0, matched: false, declined: Vec::new(), leaving: Leaving::default() };
        if frame.direct {
            for t in &matches.targets {
                received.matched |= self.to_target(message, t, &way, scratch);
            }
        }
        for ask in &frame.groups {
            if self.serve_asked(remote, frame, ask, matches, &way, scratch) {
                received.matched = true;
            } else {
                received.declined.push(ask.name.clone());
            }
        }
        let lsn = self.journal_message(message, &way, None, scratch).unwrap_or(0);
        // Sessions that have had it before: their rows may not be durable yet.
        let before = frame.id.map_or(0, |id| remote.seen.lsn(id));
        received.lsn = lsn.max(before);
        received.leaving = std::mem::take(&mut scratch.leaving);
        received
    }

    /// Serves a shared subscription that another node asks for; false if nobody here can have the message.
    fn serve_asked(
        &self,
        remote: &Remote,
        frame: &Frame,
        ask: &GroupTry,
        matches: &Matches,
        way: &Way<'_>,
        scratch: &mut Scratch,
    ) -> bool {
        let group = matches.groups.iter().find(|g| g.name == ask.name);
        // Whoever has had it may have left this node since, the last of its members here.
        if way.repeated && self.has_served(way, &ask.name, group) {
            self.metrics.duplicates_dropped.inc();
            return true;
        }
        let Some(group) = group else { return false };
        let Some(member) = self.pick(group, 0, frame.message.topic()) else {
            self.nobody_may(group);
            return false;
        };
        let handle = &member.handle;
        match groups::fit(handle.mailbox.rank(), handle.durable, ask.queue, frame.matched_at) {
            Fit::Yes => {
                self.to_target(&frame.message, &Broker::target_of(&member), way, scratch);
                if let Some(id) = frame.id {
                    remote.seen.serve(id, &ask.name);
                }
                true
            }
            Fit::Moving => {
                scratch.leaving.moving.push(member.handle);
                true
            }
            Fit::Moved(at) => {
                scratch.leaving.moved = scratch.leaving.moved.max(Some(at));
                true
            }
            Fit::No => false,
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
        let place = remote.late.take_place(key);
        let mut received = self.receive(remote, &frame, key.0, cache, scratch);
        received.leaving.moved = received.leaving.moved.max(moved);
        let moving = std::mem::take(&mut received.leaving.moving);
        let newest = remote.late.newest_move();
        if !moving.is_empty() && frame.matched_at < newest {
            // A session that moved then may wait for just this one: it comes again.
            self.keep_place(remote, key, newest, moving);
            received.leaving.moved = received.leaving.moved.max(Some(newest));
        } else if !moving.is_empty() {
            // Later frames for others do not wait.
            let leaving = Leaving { moving, moved: received.leaving.moved };
            let (at, frames) = (frame.matched_at, vec![(frame, answers.clone())]);
            self.wait_late(remote, key, at, frames, leaving);
            return self.give_place(remote, key, place);
        }
        self.give_place(remote, key, place);
        // A frame that is older than the newest move this node has forgotten may have been for that session.
        let forgotten = Some(remote.forgotten_move()).filter(|m| frame.matched_at < *m);
        let answer = match received.leaving.moved.max(forgotten) {
            Some(at) => Answer::Moved(at),
            None => Answer::Accepted { matched: received.matched, declined: received.declined },
        };
        self.answer(remote, answers, key.1, answer, received.lsn);
    }

    /// Answers once the journal is durable up to `lsn`.
    fn answer(&self, remote: &Arc<Remote>, to: &Arc<dyn Answers>, id: MessageId, answer: Answer, lsn: Lsn) {
        let due = Due { to: to.clone(), id, answer };
        self.after_durable(remote, |r| &r.answers, lsn, due, Broker::answer_due);
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

impl Inbox for Broker {
    fn frames(&self, from: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool {
        let Some(remote) = &self.remote else { return false };
        self.metrics.frames_received.add(frames.len() as u64);
        let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
        for frame in frames {
            match frame.id.filter(|_| frame.message.qos() > QoS::AtMostOnce) {
                Some(id) => {
                    let (key, message) = ((from.incarnation, id), frame.message.clone());
                    self.take_frame(remote, frame, key, None, answers, &mut cache, &mut scratch);
                    remote.young.came(id, &message);
                }
                None => {
                    let received = self.receive(remote, &frame, from.incarnation, &mut cache, &mut scratch);
                    for handle in &received.leaving.moving {
                        self.metrics.lost(handle.whose(), Loss::SessionEnded, 1);
                    }
                    if !received.declined.is_empty() {
                        self.pass_on(remote, &frame, &received.declined, &mut cache, &mut scratch);
                    }
                }
            }
        }
        if !scratch.full.is_empty() {
            self.purge_full(&mut scratch, remote.now());
        }
        tracing::trace!(%from, "frames taken");
        self.journal.congested()
    }

    fn relieved(&self) -> BoxFuture<()> {
        let journal = self.journal.clone();
        // What is appended now is behind all that is queued.
        let lsn = journal.append(&[]);
        Box::pin(durable(journal, lsn))
    }

    fn report(&self, from: &MemberId, report: Report) {
        let Some(remote) = &self.remote else { return };
        let highest = report.open.last().copied().max(report.low_water.checked_sub(1));
        remote.young.reported(from.incarnation, report.applied, highest.unwrap_or(0));
        self.unsee_below(remote, from.incarnation, report.low_water, &report.open);
        for origin in &report.retired {
            self.unsee_below(remote, *origin, u64::MAX, &[]);
        }
        if remote.heard(from, report) {
            remote.sessions.poke();
            self.nodes_changed();
        }
        remote.sessions.reported();
        self.places_may_go(remote);
    }

    fn answered(&self, node: &Arc<str>, answers: Vec<(MessageId, Answer)>) {
        if let Some(remote) = &self.remote {
            self.take_answers(remote, node, answers);
        }
    }

    fn link(&self, node: &Arc<str>, process: Option<MemberId>) {
        let Some(remote) = &self.remote else { return };
        let down = process.is_none();
        remote.link_changed(node, process);
        if down {
            self.match_behind(remote);
        }
        remote.sessions.poke();
        self.nodes_changed();
    }

    fn request(&self, from: MemberId, request: Request) -> BoxFuture<Response> {
        self.peer_request(from, request)
    }

    fn superseded(&self, process: &MemberId) -> bool {
        self.remote.as_ref().is_some_and(|r| r.members.superseded(process))
    }

    fn clock(&self) -> Option<SaidClock> {
        let remote = self.remote.as_ref()?;
        let time = &remote.ports.time;
        let now = remote.now();
        let cluster_ahead_ms = time.known().then(|| time.ahead_ms());
        Some(SaidClock { now, cluster_ahead_ms, cluster_young_ms: time.young_ms(now) })
    }
}
