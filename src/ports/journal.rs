//! Where sessions, queues and retained messages are kept.

use super::directory::{DirectoryKey, DirectoryRecord};
use super::index::{Epoch, Incarnation, MemberId, MessageId, Revision, Timeline};
use crate::clock::Time;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, QoS};
use crate::queue_policy::QueuePolicy;
use crate::user::{Author, SessionUser};
use smallvec::SmallVec;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Number of a session in this journal; never used twice.
pub type SessionNo = u64;

/// Number of a message in this journal, ascending in the order of acceptance; never used twice.
pub type Seq = u64;

/// Position in the stream of changes: a change is durable once [`Journal::durable`] reaches the value that its
/// [`Journal::append`] returned. Never decreases.
pub type Lsn = u64;

/// A session that must receive a journaled message, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The session that must receive the message.
    pub session: SessionNo,
    /// QoS of the delivery: 1 or 2.
    pub qos: QoS,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// Subscription identifiers to send along.
    pub subscription_ids: SmallVec<[u32; 2]>,
    /// The shared subscription (`$share/<group>/<filter>`) that the message came through, if any.
    pub shared: Option<Arc<str>>,
    /// Of an [`ORIGIN_DUTY`]: whose publish it is, if a session of this journal has to wait for it.
    pub publisher: Option<Box<Publisher>>,
    /// Of an [`ORIGIN_DUTY`]: the shared subscriptions that are not known to be served; `None` if they were not looked for.
    pub unserved: Option<Box<[Unserved]>>,
}

/// A shared subscription that may not have had a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// `$share/<group>/<filter>`.
    pub name: Arc<str>,
    /// The process that was asked to serve it: it may have done so.
    pub asked: Option<MemberId>,
}

/// The session whose publish a duty is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// The session.
    pub session: SessionNo,
    /// The QoS 2 packet identifier that the publish came under; `None` for a will.
    pub packet_id: Option<u16>,
}

/// A session's record: what is kept besides subscriptions, queue and in-flight state.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// The session's number.
    pub no: SessionNo,
    /// Client identifier.
    pub client_id: Arc<str>,
    /// Session expiry interval, seconds; `u32::MAX` = never; 0 = ends with the connection (kept for its will only).
    pub expiry_s: u32,
    /// When the connection ended; `None` while connected.
    pub disconnected_at: Option<Time>,
    /// The will still to be published, if any.
    pub will: Option<WillRecord>,
    /// When the session was made.
    pub created_at: Time,
    /// The epoch under which this node owns the session (0 without a cluster).
    pub epoch: Epoch,
    /// Whether the claim is under way: the record is void unless the cluster names this node as the owner under `epoch`.
    pub pending: bool,
    /// The user that the session belongs to.
    pub user: SessionUser,
    /// Which messages are dropped when its queue is full, if its client has chosen.
    pub queue_policy: Option<QueuePolicy>,
}

/// A will waiting for its connection to be lost.
#[derive(Clone, Debug, PartialEq)]
pub struct WillRecord {
    /// The message; `expires_at` is not set.
    pub message: Message,
    /// Will delay interval, seconds.
    pub delay_s: u32,
    /// Message expiry interval, seconds, counted from the publication of the will.
    pub message_expiry_s: Option<u32>,
    /// Who has left it; `None` = not known.
    pub author: Option<Arc<Author>>,
}

/// A subscription of a persistent session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRecord {
    /// The filter as subscribed, `$share/…` included.
    pub filter: Arc<str>,
    /// The options of the subscription.
    pub options: SubscribeOptions,
    /// The subscription identifier.
    pub subscription_id: Option<u32>,
    /// Publishes under way that the subscription is younger than: of these origins, those up to these numbers.
    pub older: Vec<(Incarnation, u64)>,
}

/// A session number that is no session: the recipient that stands for the origin's own duty to bring a QoS 2 publish to the
/// other nodes. While it is not settled, the message stays and is sent again after a restart, under the same ID; of a message
/// without an ID it is forgotten then.
pub const ORIGIN_DUTY: SessionNo = 0;

/// The node that a journal belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node.
    pub node: Arc<str>,
    /// The incarnations whose state is here, oldest first; the last one is the process that wrote this.
    pub incarnations: Vec<Incarnation>,
}

/// What a journal knows of the coordination store: everything in it was made while the store had not come further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreKnown {
    /// The life of the store that it was last compared with.
    pub timeline: Timeline,
    /// How far the store had come.
    pub revision: Revision,
    /// Tells the store's change at that revision from others (`mark_of` in `etcd/older.rs`); 0 = that is not known.
    pub mark: u64,
}

impl StoreKnown {
    /// Takes in what is known later: in the same life of the store a revision never becomes less.
    pub fn learn(&mut self, known: StoreKnown) {
        let newer = self.timeline != known.timeline || self.revision < known.revision;
        let says_more = self.revision == known.revision && self.mark == 0;
        if newer || says_more {
            *self = known;
        }
    }
}

/// An update of a retained message that the journal keeps until the cluster's store has taken it.
#[derive(Clone, Debug, PartialEq)]
pub struct SpooledRetain {
    /// The topic.
    pub topic: Arc<str>,
    /// The message; `None` clears.
    pub message: Option<Message>,
    /// Names the update.
    pub id: MessageId,
    /// The topic's revision known when the update was accepted.
    pub known: Revision,
    /// How far the index had come when the update was accepted; 0 = the row is of a release that did not say so.
    pub since: Revision,
}

/// How far an outbound message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundState {
    /// PUBLISH may have been sent: it waits for PUBACK or PUBREC.
    Sent,
    /// PUBREC came: PUBREL may have been sent, PUBCOMP is awaited.
    Released,
}

/// A change to the journal.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// Store a message once for all `recipients` (at least one, each session once).
    Message {
        /// From [`Journal::next_seq`].
        seq: Seq,
        /// Names the publish in the cluster, if it has to be recognized when it comes again.
        id: Option<MessageId>,
        /// The message.
        message: &'a Message,
        /// Who must receive it.
        recipients: &'a [Recipient],
    },
    /// Record that `session` is done with message `seq`; its outbound step, if any, goes too. The row goes with the last recipient.
    Settle {
        /// The message.
        seq: Seq,
        /// The recipient that is done.
        session: SessionNo,
    },
    /// Outbound message `seq` of `session` goes under `packet_id` and is now in `state`. Replaces the step recorded
    /// before under the same session and packet identifier.
    Outbound {
        /// The session.
        session: SessionNo,
        /// The packet identifier.
        packet_id: u16,
        /// The message.
        seq: Seq,
        /// How far the message has come.
        state: OutboundState,
    },
    /// An inbound QoS 2 packet identifier is in use (until `InboundEnd`).
    InboundBegin {
        /// The session.
        session: SessionNo,
        /// The packet identifier.
        packet_id: u16,
    },
    /// PUBREL came for an inbound QoS 2 packet identifier.
    InboundEnd {
        /// The session.
        session: SessionNo,
        /// The packet identifier.
        packet_id: u16,
    },
    /// Record that these sessions have had publish `id`, whatever became of its row. Adds to what was recorded before under the same ID.
    Seen {
        /// The publish.
        id: MessageId,
        /// The sessions.
        sessions: &'a [SessionNo],
    },
    /// Forget what [`Change::Seen`] recorded of publish `id`: it will not come again.
    Unseen {
        /// The publish.
        id: MessageId,
    },
    /// Record which node this journal belongs to.
    Node(&'a NodeRecord),
    /// Keep an update of a retained message until the cluster has taken it; replaces the one before of the same topic.
    Spool(&'a SpooledRetain),
    /// Keep the update of this topic no longer: the cluster has taken it, or it is void.
    Unspool {
        /// The topic.
        topic: &'a str,
    },
    /// Keep a record of the cluster's directory as it was last seen, or (`None`) no longer.
    Directory {
        /// The record's name.
        key: &'a DirectoryKey,
        /// The record's value.
        value: Option<&'a [u8]>,
    },
    /// Insert or replace a session's record.
    Session(&'a SessionRecord),
    /// Remove a session that is gone: record, subscriptions, inbound and outbound steps, and what it has seen. Its messages are to be
    /// settled before: those that are not are nobody's, but may stay where they are until the journal is opened again.
    SessionEnd {
        /// The session.
        session: SessionNo,
    },
    /// Insert or replace a subscription.
    Subscribe {
        /// The session.
        session: SessionNo,
        /// The subscription.
        subscription: &'a SubscriptionRecord,
    },
    /// Remove a subscription.
    Unsubscribe {
        /// The session.
        session: SessionNo,
        /// The filter.
        filter: &'a str,
    },
    /// Set the retained message of its topic.
    Retain(&'a Message),
    /// Clear the retained message of a topic.
    ClearRetained {
        /// The topic.
        topic: &'a str,
    },
}

/// A journaled message read back for one session.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The message's number.
    pub seq: Seq,
    /// Names the publish in the cluster.
    pub id: Option<MessageId>,
    /// The message.
    pub message: Message,
    /// How the session is to receive it.
    pub recipient: Recipient,
}

/// A session as found in the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredSession {
    /// The session's record.
    pub record: SessionRecord,
    /// The session's subscriptions.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Inbound QoS 2 packet identifiers in use.
    pub inbound: Vec<u16>,
    /// Outbound steps `(packet_id, seq, state)`, in the order in which they were first sent.
    pub outbound: Vec<(u16, Seq, OutboundState)>,
    /// Unsettled messages in order, those with an outbound step left out. Those of one origin (with IDs) are in the order of
    /// their IDs.
    pub pending: Vec<Seq>,
    /// Bytes of the messages in `pending` ([`Message::size`]).
    pub pending_bytes: u64,
}

/// Everything a journal held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// The sessions.
    pub sessions: Vec<RecoveredSession>,
    /// The retained messages.
    pub retained: Vec<Message>,
    /// Which sessions have had which publishes: what [`Change::Seen`] recorded, and the recipients (settled ones too) of
    /// messages with an ID that somebody has not settled. Ascending, each publish and each session of it once.
    pub seen: Vec<(MessageId, Vec<SessionNo>)>,
    /// Messages with an ID that somebody has not settled, ascending.
    pub ids: Vec<(Seq, MessageId)>,
    /// Messages with an unsettled [`ORIGIN_DUTY`], in the order of their IDs.
    pub duties: Vec<(Seq, MessageId)>,
    /// Updates of retained messages that the cluster has not taken.
    pub spooled: Vec<SpooledRetain>,
    /// The cluster's directory as it was last seen, in the order of its keys.
    pub directory: Vec<DirectoryRecord>,
    /// The node that the journal belongs to, if it was ever said.
    pub node: Option<NodeRecord>,
    /// What the journal knows of the coordination store.
    pub store: StoreKnown,
    /// Names this journal: a random number, chosen when it was made (or first opened by a version that knows clusters).
    /// Durable before the journal is opened; 0 only in [`Recovered::default`].
    pub journal: u64,
    /// The smallest session number never used.
    pub next_session: SessionNo,
}

/// Whether the journal can make changes durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalHealth {
    /// Changes become durable.
    Ok,
    /// Changes cannot be made durable now (disk full, I/O error); the journal keeps what was appended and retries. Says what and what to
    /// do.
    Failing(String),
}

/// Why the journal has no room for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The journal may hold `max` bytes, and has `used` besides.
    Full {
        /// `storage.memory_max`.
        max: u64,
        /// Bytes of other messages.
        used: u64,
    },
    /// The journal cannot be written now, and as many changes wait as may.
    Failing,
}

/// Receives what [`Journal::read`] found.
pub type ReadDone = Box<dyn FnOnce(Vec<Stored>) + Send>;

/// Where sessions, queues and retained messages are kept.
///
/// Changes become durable in the order of their `append`, a batch at a time; all or nothing of a batch survives a crash,
/// and the changes of one `append` are always in one batch.
pub trait Journal: Send + Sync + 'static {
    /// A number for the next message.
    fn next_seq(&self) -> Seq;

    /// Queues changes that belong together (a crash keeps all or none of them) and never waits; they are durable once
    /// [`Journal::durable`] reaches the returned value.
    fn append(&self, changes: &[Change<'_>]) -> Lsn;

    /// The value up to which everything is durable.
    fn durable(&self) -> Lsn;

    /// Wakes `waker` once `durable() >= lsn`, at once if that already holds. May wake spuriously.
    fn wake_at(&self, lsn: Lsn, waker: &Waker);

    /// Whether so much is queued that writers should pause; [`Journal::wake_at`] with the last value tells when to go on.
    fn congested(&self) -> bool;

    /// Takes note that what is appended from here on was made while the coordination store had come as far as this: durable with the next
    /// change, and when the journal is closed. Never waits.
    fn know(&self, _known: StoreKnown) {}

    /// Reads messages `seqs` as `session` is to receive them, and calls `done` on a thread of the journal. Sequence
    /// numbers that `session` has settled or that never existed are left out; the order is that of `seqs`.
    fn read(&self, session: SessionNo, seqs: Vec<Seq>, done: ReadDone);

    /// Whether changes become durable.
    fn health(&self) -> JournalHealth;

    /// Whether nothing has become durable for so long that what is not begun yet should be refused at once. What was appended
    /// may still become durable. Cheap.
    fn stalled(&self) -> bool {
        false
    }

    /// Whether there is room for a message as the retained one of its topic.
    ///
    /// # Errors
    /// Says why there is none.
    fn takes(&self, _message: &Message) -> Result<(), NoRoom> {
        let failing = self.congested() && self.health() != JournalHealth::Ok;
        if failing { Err(NoRoom::Failing) } else { Ok(()) }
    }

    /// Bytes on disk (0 in memory).
    fn size_bytes(&self) -> u64;

    /// Makes everything appended durable, then stops. Later appends are ignored; `durable` never reaches them.
    fn close(&self);
}

/// Completes once `journal` is durable up to `lsn`.
pub async fn durable(journal: Arc<dyn Journal>, lsn: Lsn) {
    poll_fn(|cx| {
        if journal.durable() >= lsn {
            return Poll::Ready(());
        }
        journal.wake_at(lsn, cx.waker());
        if journal.durable() >= lsn { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
