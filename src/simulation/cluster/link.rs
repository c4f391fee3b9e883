//! One link: frames and reports to one node in order, and its answers. What is not answered is sent again after a break.

use super::network::Network;
use super::{before, give_way};
use crate::peers::REPORTS_MAX;
use crate::ports::{
    Answer, Answers, Frame, Inbox, LinkClock, LinkState, LinkStatus, MemberId, MessageId, PeerClock, Report,
    Tasks,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Frames without an ID that wait for a link; more are dropped.
const QUEUE_MAX: usize = 10_000;

/// How long a refused link waits before it is tried again, milliseconds.
const REFUSED_MS: u64 = 1_000;

/// How long a receiver that asked for a pause is believed to be busy before the link is looked at again, milliseconds.
const RELIEF_MS: u64 = 100;

/// A process that can be reached.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) id: MemberId,
    pub(super) inbox: Arc<dyn Inbox>,
}

enum Item {
    Frame(Frame),
    Report(Report),
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    /// Sent, in order.
    unanswered: VecDeque<Frame>,
    answers: VecDeque<Vec<(MessageId, Answer)>>,
    /// The process at the other end while the link is up.
    to: Option<MemberId>,
    /// Counts the connections.
    connection: u64,
    /// The last report that was sent.
    reported: Option<Report>,
    refused: bool,
    closed: bool,
}

/// The link to one node: frames and reports to it in order, and its answers.
pub(super) struct Link {
    pub(super) me: MemberId,
    node: Arc<str>,
    state: Mutex<State>,
    changed: Notify,
}

/// Where the receiver of a connection's frames answers them.
struct Returns {
    link: Weak<Link>,
    connection: u64,
}

impl Answers for Returns {
    fn answer(&self, answers: Vec<(MessageId, Answer)>) {
        let Some(link) = self.link.upgrade() else { return };
        let mut state = link.state.lock();
        if state.to.is_some() && state.connection == self.connection {
            state.answers.push_back(answers);
            drop(state);
            link.kick();
        }
    }

    fn stands(&self) -> bool {
        let Some(link) = self.link.upgrade() else { return false };
        let state = link.state.lock();
        // Until there is another connection some of this one may still come.
        !state.closed && state.connection == self.connection
    }
}

/// What a link has to do next.
enum Step {
    Close,
    Up(Receiver),
    Down,
    Answered(Vec<(MessageId, Answer)>),
    Frames(Receiver, Vec<Frame>),
    Report(Receiver, Report),
    Wait,
}

impl Link {
    pub(super) fn new(me: MemberId, node: Arc<str>) -> Link {
        Link { me, node, state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn kick(&self) {
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.kick();
    }

    pub(super) fn send(&self, frame: Frame) {
        let mut state = self.state.lock();
        if frame.id.is_none() && (state.to.is_none() || state.queue.len() >= QUEUE_MAX) {
            return;
        }
        state.queue.push_back(Item::Frame(frame));
        drop(state);
        self.kick();
    }

    pub(super) fn cancel(&self, id: MessageId) {
        let mut state = self.state.lock();
        state.unanswered.retain(|f| f.id != Some(id));
        state.queue.retain(|i| !matches!(i, Item::Frame(f) if f.id == Some(id)));
    }

    pub(super) fn report(&self, report: Report) {
        let mut state = self.state.lock();
        if let Some(Item::Report(last)) = state.queue.back_mut() {
            *last = report;
        } else {
            let is_report = |i: &Item| matches!(i, Item::Report(_));
            if state.queue.iter().filter(|i| is_report(i)).count() >= REPORTS_MAX
                && let Some(last) = state.queue.iter().rposition(is_report)
            {
                state.queue.remove(last);
            }
            state.queue.push_back(Item::Report(report));
        }
        drop(state);
        self.kick();
    }

    pub(super) fn status(&self) -> LinkStatus {
        let state = self.state.lock();
        LinkStatus {
            node: self.node.clone(),
            state: match (&state.to, state.refused) {
                (Some(_), _) => LinkState::Up,
                (None, true) => LinkState::Refused,
                (None, false) => LinkState::Down,
            },
            error: state.to.is_none().then(|| "no connection".to_owned()),
            back: None,
            unanswered: state.unanswered.len() as u64,
            queued: state.queue.iter().filter(|i| matches!(i, Item::Frame(_))).count() as u64,
            rtt_us: None,
            clock: match &state.to {
                // All processes read one clock.
                Some(to) => LinkClock::Measured(PeerClock {
                    incarnation: to.incarnation,
                    ahead_ms: 0,
                    error_ms: 0,
                    cluster_ahead_ms: Some(0),
                    cluster_young_ms: 0,
                }),
                None => LinkClock::Unmeasured,
            },
        }
    }

    /// Works until it is closed.
    pub(super) async fn run(self: Arc<Link>, net: &Network, tasks: &dyn Tasks, inbox: &dyn Inbox) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.next(net) {
                Step::Close => return,
                Step::Wait => changed.await,
                Step::Down => inbox.link(&self.node, None),
                Step::Up(to) if to.inbox.superseded(&self.me) => {
                    self.state.lock().refused = true;
                    tasks.sleep(REFUSED_MS).await;
                }
                Step::Up(to) => {
                    tasks.sleep(net.delay()).await;
                    if self.open(net, &to) {
                        inbox.link(&self.node, Some(to.id));
                    }
                }
                Step::Answered(answers) => self.hand_back(answers, net, tasks, inbox).await,
                Step::Frames(to, frames) => self.hand_over(&to, frames, net, tasks).await,
                Step::Report(to, report) => {
                    let connection = self.state.lock().connection;
                    if self.transit(net, tasks, &to, connection).await {
                        to.inbox.report(&self.me, report);
                    }
                }
            }
            give_way().await;
        }
    }

    fn next(&self, net: &Network) -> Step {
        let reached = net.reach(&self.me, &self.node);
        let mut state = self.state.lock();
        if state.closed {
            return Step::Close;
        }
        let Some(to) = reached.filter(|r| state.to.as_ref().is_none_or(|id| *id == r.id)) else {
            return if state.to.take().is_some() {
                state.answers.clear();
                Step::Down
            } else {
                Step::Wait
            };
        };
        if state.to.is_none() {
            return Step::Up(to);
        }
        if net.stalls(&self.me.node, &self.node) {
            return Step::Wait;
        }
        if let Some(answers) = state.answers.pop_front() {
            return Step::Answered(answers);
        }
        match state.queue.front() {
            None => Step::Wait,
            Some(Item::Report(_)) => {
                let Some(Item::Report(report)) = state.queue.pop_front() else { return Step::Wait };
                state.reported = Some(report.clone());
                Step::Report(to, report)
            }
            Some(Item::Frame(_)) => {
                let run = state.queue.iter().take_while(|i| matches!(i, Item::Frame(_))).count();
                let n = net.some_of(run);
                let frames: Vec<Frame> = state
                    .queue
                    .drain(..n)
                    .filter_map(|i| if let Item::Frame(f) = i { Some(f) } else { None })
                    .collect();
                state.unanswered.extend(frames.iter().filter(|f| f.id.is_some()).cloned());
                Step::Frames(to, frames)
            }
        }
    }

    /// A connection stands: what is not answered is sent again in the order of the names, then the last report, before all that comes.
    fn open(&self, net: &Network, to: &Receiver) -> bool {
        if net.reach(&self.me, &self.node).is_none_or(|r| r.id != to.id) {
            return false;
        }
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.refused = false;
        state.to = Some(to.id.clone());
        state.connection += 1;
        let (mut frames, mut report) =
            (Vec::from(std::mem::take(&mut state.unanswered)), state.reported.take());
        for item in std::mem::take(&mut state.queue) {
            match item {
                Item::Frame(frame) => frames.push(frame),
                Item::Report(later) => report = Some(later),
            }
        }
        frames.sort_by_key(|frame| frame.id);
        state.queue.extend(frames.into_iter().map(Item::Frame).chain(report.map(Item::Report)));
        true
    }

    /// Whether the connection is still the one that it was.
    fn holds(&self, net: &Network, to: &Receiver, connection: u64) -> bool {
        let reached = net.reach(&self.me, &self.node).is_some_and(|r| r.id == to.id);
        let state = self.state.lock();
        reached && !state.closed && state.connection == connection
    }

    /// Whether the receiver of a connection that has broken hands over what it has read of that all the same.
    fn lingers(&self, net: &Network, to: &Receiver, connection: u64) -> bool {
        let lingers = net.lingers(to);
        let state = self.state.lock();
        lingers && !state.closed && state.connection == connection
    }

    /// Lets time pass as long as nothing gets through; whether the connection lived on.
    async fn transit(&self, net: &Network, tasks: &dyn Tasks, to: &Receiver, connection: u64) -> bool {
        tasks.sleep(net.delay()).await;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.holds(net, to, connection) {
                // The permit may have been for the main loop.
                self.kick();
                return false;
            }
            if !net.stalls(&self.me.node, &self.node) {
                self.kick();
                return true;
            }
            changed.await;
        }
    }

    async fn hand_over(
        self: &Arc<Link>,
        to: &Receiver,
        mut frames: Vec<Frame>,
        net: &Network,
        tasks: &dyn Tasks,
    ) {
        let connection = self.state.lock().connection;
        if !self.transit(net, tasks, to, connection).await && !self.lingers(net, to, connection) {
            return;
        }
        {
            // What was cancelled on the way is not delivered if that can be helped.
            let state = self.state.lock();
            frames.retain(|f| f.id.is_none() || state.unanswered.iter().any(|u| u.id == f.id));
        }
        let answers: Arc<dyn Answers> = Arc::new(Returns { link: Arc::downgrade(self), connection });
        if to.inbox.frames(&self.me, frames, &answers) {
            let mut relief = to.inbox.relieved();
            // A receiver that died is never relieved.
            while before(&mut relief, tasks.sleep(RELIEF_MS)).await.is_none() {
                if !self.holds(net, to, connection) {
                    break;
                }
            }
            self.kick();
        }
    }

    async fn hand_back(
        &self,
        answers: Vec<(MessageId, Answer)>,
        net: &Network,
        tasks: &dyn Tasks,
        inbox: &dyn Inbox,
    ) {
        let connection = self.state.lock().connection;
        let Some(to) = net.reach(&self.me, &self.node) else { return self.kick() };
        if !self.transit(net, tasks, &to, connection).await {
            return;
        }
        {
            let mut state = self.state.lock();
            let answered = |f: &Frame| answers.iter().any(|(id, _)| f.id == Some(*id));
            state.unanswered.retain(|f| !answered(f));
        }
        inbox.answered(&self.node, answers);
    }
}
