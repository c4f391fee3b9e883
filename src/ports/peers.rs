//! The other nodes: an ordered stream of publishes to each, and requests with one answer.

use super::index::{Epoch, Incarnation, Member, MemberId, MessageId, Revision};
use super::tasks::BoxFuture;
use crate::clock::Time;
use crate::mqtt::Message;
use std::sync::Arc;

/// A shared subscription that a frame's receiver is asked to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTry {
    /// `$share/<group>/<filter>`.
    pub name: Arc<str>,
    /// Whether nobody is online anywhere: then the message is queued with a persistent member.
    pub queue: bool,
    /// Nodes without a member online, each asked once. At QoS 0, where nobody answers, whoever has none either passes the message on.
    pub tried: Vec<Arc<str>>,
}

/// A publish on its way to one node.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The publish's name; `None` at QoS 0, which is not answered and never sent again.
    pub id: Option<MessageId>,
    /// The index revision at which it was matched.
    pub matched_at: Revision,
    /// Whether the receiver's own (not shared) subscriptions are meant.
    pub direct: bool,
    /// The shared subscriptions that the receiver is asked to serve.
    pub groups: Vec<GroupTry>,
    /// The message, RETAIN as published.
    pub message: Message,
    /// At QoS 0 with RETAIN: names the update. Else it has the publish's name.
    pub update: Option<MessageId>,
    /// Whether the frame comes of the first match of its publish, so that no later publish of the same publisher was sent before. False also if
    /// the sender's release does not say.
    pub first: bool,
}

/// How far a node is with its updates of retained messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetainedProgress {
    /// What became of every update whose publish was matched at this revision or before is in the sender's index, save those that
    /// wait for the store.
    pub settled: Revision,
    /// What became of every update whose publish was matched at this revision or before is in the sender's index, those that
    /// wait for the store included.
    pub written: Revision,
    /// Updates of the sender's incarnation with a lower number that are not decided wait for the store.
    pub waited: u64,
    /// Updates with a lower number are decided.
    pub decided: u64,
}

/// What a node says to a frame with an ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The publish is safe for all sessions that it matched there.
    Accepted {
        /// Whether any session matched.
        matched: bool,
        /// Shared subscriptions without a member online there: try another node.
        declined: Vec<Arc<str>>,
    },
    /// A session that the publish may have been for left: apply this revision, match again.
    Moved(Revision),
    /// The publish cannot be made safe there (queue full of QoS 2 state, journal failing); says why.
    Failed(Arc<str>),
}

/// What a node tells all others, in order with its frames: whoever has received it has received every frame that was
/// matched on an older index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How far the sender's index has come.
    pub applied: Revision,
    /// Publishes of the sender's incarnation with a lower number are done with, save those in `open`: nobody will send them
    /// again.
    pub low_water: u64,
    /// Publishes with a lower number that are not done with, ascending.
    pub open: Vec<u64>,
    /// For each node: every frame to it that was matched before this revision is answered, and sent on if it had moved.
    pub settled: Vec<(Arc<str>, Revision)>,
    /// For each node that publishes are on their way to: every publish that was matched for it before this revision is answered, or
    /// was matched again since, so that whoever had left that node by then was looked for elsewhere.
    pub past: Vec<(Arc<str>, Revision)>,
    /// The revision that counts as `past` of every node that is not listed there; 0 = the sender does not say so.
    pub past_others: Revision,
    /// Earlier incarnations of the sender's node whose publishes are done with, all of them.
    pub retired: Vec<Incarnation>,
    /// The sender's clock when it made the report.
    pub sent_at: Time,
    /// For each process: `sent_at` of the latest report that the sender had received from it. Tells that process, by its own
    /// clock, how old this report can be at most.
    pub heard: Vec<(MemberId, Time)>,
    /// The sender has closed its clients, acknowledges nothing any more, and ends. Later reports of it say so too.
    pub leaving: bool,
    /// How far the sender is with its updates of retained messages; `None` = it is of a release that does not say so.
    pub retained: Option<RetainedProgress>,
}

/// A question to another node.
#[derive(Clone, Debug)]
pub enum Request {
    /// Freeze this session and hand its state over to the asker.
    Freeze {
        /// Client identifier.
        client_id: Arc<str>,
        /// The epoch under which the asked node has it.
        epoch: Epoch,
        /// Found in both nodes' logs.
        correlation: Arc<str>,
        /// The newest version of a session's state that the asker reads; 0 = the one before that was said.
        reads: u32,
    },
    /// More of the state of a frozen session.
    Next {
        /// Client identifier.
        client_id: Arc<str>,
        /// Of the takeover.
        correlation: Arc<str>,
        /// Which part: 0, 1, ….
        part: u32,
    },
    /// The takeover came to its end: the asker owns the session since this revision, or (`None`) gave up.
    Taken {
        /// Client identifier.
        client_id: Arc<str>,
        /// Of the takeover.
        correlation: Arc<str>,
        /// The revision of the claim.
        claimed_at: Option<Revision>,
    },
    /// The session was replaced over your head under this epoch: close its connection, forget it.
    Evict {
        /// Client identifier.
        client_id: Arc<str>,
        /// The epoch that replaced it.
        epoch: Epoch,
    },
    /// Take this session over (I am leaving).
    Adopt {
        /// Client identifier.
        client_id: Arc<str>,
    },
    /// Index events after this revision, for a node that lags.
    Events {
        /// The last revision applied.
        after: Revision,
    },
    /// Something for the operator: a command of the HTTP API, carried out by the asked node (JSON).
    Operate(Arc<str>),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug)]
pub enum Response {
    /// What was asked is done.
    Done,
    /// A part of a session's state (see `cluster/parts.rs`), and whether it is the last.
    State {
        /// The part.
        bytes: bytes::Bytes,
        /// Whether the part is the last.
        last: bool,
    },
    /// Index events, encoded as the store has them, up to a revision; `None` = too old, the ring no longer has them.
    Events(Option<(bytes::Bytes, Revision)>),
    /// The asked node does not have the session under that epoch.
    NotHere,
    /// Refused or failed, with the reason in words.
    Refused(Arc<str>),
    /// The answer to [`Request::Operate`] (JSON).
    Operated(Arc<str>),
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No working link to the node.
    #[error("no working link to node {0}")]
    Unreachable(Arc<str>),
    /// The node did not answer in time.
    #[error("node {0} did not answer in time")]
    TimedOut(Arc<str>),
}

/// Whether a link works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Being opened.
    Connecting,
    /// Works.
    Up,
    /// Failed; the next attempt comes after a pause.
    Down,
    /// Refused by the other side (identity, certificate, superseded); tried rarely.
    Refused,
}

/// What a node says of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaidClock {
    /// What the node's clock shows.
    pub now: Time,
    /// By how much the cluster's time is ahead of it, milliseconds; `None` = the node does not know that yet.
    pub cluster_ahead_ms: Option<i64>,
    /// For how long the cluster's time is young ([`ClusterTime::young_ms`]), milliseconds.
    ///
    /// [`ClusterTime::young_ms`]: super::ClusterTime::young_ms
    pub cluster_young_ms: u64,
}

/// Another node's clock as measured on the link to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerClock {
    /// The incarnation of the process whose clock it is.
    pub incarnation: Incarnation,
    /// By how much the node's clock is ahead of this node's, milliseconds.
    pub ahead_ms: i64,
    /// By how much the measurement may be wrong at most, milliseconds.
    pub error_ms: u64,
    /// By how much the cluster's time is ahead of the node's clock, by that node's own word, milliseconds; `None` = it does not know that
    /// yet.
    pub cluster_ahead_ms: Option<i64>,
    /// For how long the cluster's time is young, by that node's own word, milliseconds.
    pub cluster_young_ms: u64,
}

/// What is known of another node's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkClock {
    /// Nothing is known of the clock yet.
    #[default]
    Unmeasured,
    /// The node is of a release that does not say what its clock shows.
    Untold,
    /// The node's clock was measured over the link.
    Measured(PeerClock),
}

/// A link as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other node.
    pub node: Arc<str>,
    /// Whether the link works.
    pub state: LinkState,
    /// Why the link is not up.
    pub error: Option<String>,
    /// Why the other node cannot reach this one, by its own word; `None` = it can, or has not said.
    pub back: Option<String>,
    /// Frames sent that are not answered.
    pub unanswered: u64,
    /// Frames not sent yet.
    pub queued: u64,
    /// The last round trip, microseconds.
    pub rtt_us: Option<u64>,
    /// The other node's clock. It stays known while the link is down, until another process answers.
    pub clock: LinkClock,
}

/// The links to other nodes. A frame with an ID stays with the link until it is answered or cancelled: when the link breaks
/// all of them are sent again in the order of their names, before a report and all later ones.
pub trait Peers: Send + Sync + 'static {
    /// Keeps a link to these nodes (this node left out) and closes all others. A node whose record is gone but whose link works is kept by
    /// the caller for as long as it wants to.
    fn keep(&self, members: Vec<Member>);

    /// Queues a frame. Never waits. A frame without ID is dropped when the link is down or its queue is full; one with an ID is
    /// always kept (the caller bounds them).
    fn send(&self, node: &Arc<str>, frame: Frame);

    /// Takes a frame back: it need not be answered any more, and not be sent if it was not yet.
    fn cancel(&self, node: &Arc<str>, id: MessageId);

    /// Tells all nodes, each behind the frames that were queued for it before. Of reports not sent yet the first and the last
    /// suffice.
    fn report(&self, report: Report);

    /// Asks a node.
    fn request(&self, node: &Arc<str>, request: Request) -> BoxFuture<Result<Response, PeerError>>;

    /// The links to all nodes.
    fn links(&self) -> Vec<LinkStatus>;
}

/// Where answers to received frames go.
pub trait Answers: Send + Sync + 'static {
    /// Answers frames of one link. The order is free; each frame with an ID is answered once.
    fn answer(&self, answers: Vec<(MessageId, Answer)>);

    /// Whether answers can still get back, or later frames of the same connection may still come. If not, the frames come again or their
    /// sender is gone.
    fn stands(&self) -> bool;
}

/// Receives what other nodes send. Implemented by the broker.
pub trait Inbox: Send + Sync + 'static {
    /// Takes frames of one node in, in order. They are answered through `answers`, now or later. Returns whether so much waits for the
    /// journal that reading should pause; [`Inbox::relieved`] completes when it may go on.
    fn frames(&self, from: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool;

    /// Completes when more frames may be read.
    fn relieved(&self) -> BoxFuture<()>;

    /// Takes a report of one node in, in order with its frames.
    fn report(&self, from: &MemberId, report: Report);

    /// Takes in what a node said to frames of this one.
    fn answered(&self, node: &Arc<str>, answers: Vec<(MessageId, Answer)>);

    /// Takes note that the link to a node came up with this process of it, or (`None`) went down.
    fn link(&self, node: &Arc<str>, process: Option<MemberId>);

    /// Answers a question of another node.
    fn request(&self, from: MemberId, request: Request) -> BoxFuture<Response>;

    /// Whether a process is known to be superseded: its frames and calls are refused.
    fn superseded(&self, process: &MemberId) -> bool;

    /// What this node's clock shows now, for one who measures the difference; `None` = it does not tell.
    fn clock(&self) -> Option<SaidClock> {
        None
    }
}
