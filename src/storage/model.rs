//! What a journal is, said as plainly as possible, and random changes to hold one against it.

use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::{RetainHandling, SubscribeOptions};
use crate::mqtt::{Message, QoS};
use crate::ports::{
    BanKind, Change, DirectoryKey, DirectoryRecord, MemberId, MessageId, NodeRecord, ORIGIN_DUTY,
    OutboundState, Publisher, Recipient, Recovered, RecoveredSession, Seq, SessionNo, SessionRecord,
    SpooledRetain, StoreKnown, Stored, SubscriptionRecord, Unserved, WillRecord,
};
use crate::queue_policy::QueuePolicy;
use crate::user::{Author, SessionUser};
use proptest::prelude::*;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

/// A [`Change`] that owns what it speaks of.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Message { seq: Seq, id: Option<MessageId>, message: Message, recipients: Vec<Recipient> },
    Settle { seq: Seq, session: SessionNo },
    Outbound { session: SessionNo, packet_id: u16, seq: Seq, state: OutboundState },
    InboundBegin { session: SessionNo, packet_id: u16 },
    InboundEnd { session: SessionNo, packet_id: u16 },
    Seen { id: MessageId, sessions: Vec<SessionNo> },
    Unseen { id: MessageId },
    Node(NodeRecord),
    Spool(SpooledRetain),
    Directory { key: DirectoryKey, value: Option<Vec<u8>> },
    Unspool { topic: String },
    Session(SessionRecord),
    SessionEnd { session: SessionNo },
    Subscribe { session: SessionNo, subscription: SubscriptionRecord },
    Unsubscribe { session: SessionNo, filter: String },
    Retain(Message),
    ClearRetained { topic: String },
}

impl Op {
    pub(super) fn change(&self) -> Change<'_> {
        match self {
            Op::Message { seq, id, message, recipients } => {
                Change::Message { seq: *seq, id: *id, message, recipients }
            }
            Op::Settle { seq, session } => Change::Settle { seq: *seq, session: *session },
            Op::Outbound { session, packet_id, seq, state } => {
                Change::Outbound { session: *session, packet_id: *packet_id, seq: *seq, state: *state }
            }
            Op::InboundBegin { session, packet_id } => {
                Change::InboundBegin { session: *session, packet_id: *packet_id }
            }
            Op::InboundEnd { session, packet_id } => {
                Change::InboundEnd { session: *session, packet_id: *packet_id }
            }
            Op::Seen { id, sessions } => Change::Seen { id: *id, sessions },
            Op::Unseen { id } => Change::Unseen { id: *id },
            Op::Node(node) => Change::Node(node),
            Op::Spool(spooled) => Change::Spool(spooled),
            Op::Directory { key, value } => Change::Directory { key, value: value.as_deref() },
            Op::Unspool { topic } => Change::Unspool { topic },
            Op::Session(record) => Change::Session(record),
            Op::SessionEnd { session } => Change::SessionEnd { session: *session },
            Op::Subscribe { session, subscription } => Change::Subscribe { session: *session, subscription },
            Op::Unsubscribe { session, filter } => Change::Unsubscribe { session: *session, filter },
            Op::Retain(message) => Change::Retain(message),
            Op::ClearRetained { topic } => Change::ClearRetained { topic },
        }
    }
}

#[derive(Clone, Debug)]
struct Kept {
    id: Option<MessageId>,
    message: Message,
    recipients: Vec<Recipient>,
}

/// The state of a journal.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    messages: BTreeMap<Seq, Kept>,
    unsettled: BTreeSet<(SessionNo, Seq)>,
    /// In the order of first sending.
    steps: Vec<(SessionNo, u16, Seq, OutboundState)>,
    inbound: BTreeSet<(SessionNo, u16)>,
    pub(super) sessions: BTreeMap<SessionNo, SessionRecord>,
    subscriptions: BTreeMap<(SessionNo, String), SubscriptionRecord>,
    retained: BTreeMap<String, Message>,
    /// As told, without what was known before.
    seen: Vec<(MessageId, BTreeSet<SessionNo>)>,
    node: Option<NodeRecord>,
    spooled: BTreeMap<String, SpooledRetain>,
    directory: BTreeMap<DirectoryKey, Vec<u8>>,
    next_session: SessionNo,
}

impl Model {
    pub(super) fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::Message { seq, id, message, recipients } => {
                for recipient in &recipients {
                    self.unsettled.insert((recipient.session, seq));
                    self.next_session = self.next_session.max(recipient.session + 1);
                }
                self.messages.insert(seq, Kept { id, message, recipients });
            }
            Op::Settle { seq, session } => {
                self.unsettled.remove(&(session, seq));
                self.steps.retain(|step| (step.0, step.2) != (session, seq));
            }
            Op::Outbound { session, packet_id, seq, state } => {
                match self.steps.iter_mut().find(|s| (s.0, s.1, s.2) == (session, packet_id, seq)) {
                    Some(step) => step.3 = state,
                    None => {
                        self.steps.retain(|s| s.0 != session || (s.1 != packet_id && s.2 != seq));
                        if self.unsettled.contains(&(session, seq)) {
                            self.steps.push((session, packet_id, seq, state));
                        }
                    }
                }
            }
            Op::InboundBegin { session, packet_id } => {
                self.inbound.insert((session, packet_id));
            }
            Op::InboundEnd { session, packet_id } => {
                self.inbound.remove(&(session, packet_id));
            }
            Op::Seen { id, sessions } => {
                let known = |no: &SessionNo| self.seen.iter().any(|(of, by)| *of == id && by.contains(no));
                let new: BTreeSet<SessionNo> = sessions.into_iter().filter(|no| !known(no)).collect();
                self.next_session = new.last().map_or(0, |no| no + 1).max(self.next_session);
                self.seen.push((id, new));
                self.seen.retain(|(_, sessions)| !sessions.is_empty());
            }
            Op::Unseen { id } => self.seen.retain(|(of, _)| *of != id),
            Op::Node(node) => self.node = Some(node),
            Op::Spool(spooled) => {
                self.spooled.insert(spooled.topic.to_string(), spooled);
            }
            Op::Directory { key, value: Some(value) } => {
                self.directory.insert(key, value);
            }
            Op::Directory { key, value: None } => {
                self.directory.remove(&key);
            }
            Op::Unspool { topic } => {
                self.spooled.remove(&topic);
            }
            Op::Session(record) => {
                self.next_session = self.next_session.max(record.no + 1);
                self.sessions.insert(record.no, record);
            }
            Op::SessionEnd { session } => self.end(session),
            Op::Subscribe { session, subscription } => {
                self.subscriptions.insert((session, subscription.filter.to_string()), subscription);
            }
            Op::Unsubscribe { session, filter } => {
                self.subscriptions.remove(&(session, filter));
            }
            Op::Retain(message) => {
                self.retained.insert(message.topic().to_owned(), message);
            }
            Op::ClearRetained { topic } => {
                self.retained.remove(&topic);
            }
        }
    }

    fn end(&mut self, session: SessionNo) {
        self.sessions.remove(&session);
        self.unsettled.retain(|(of, _)| *of != session);
        self.steps.retain(|step| step.0 != session);
        self.inbound.retain(|(of, _)| *of != session);
        self.subscriptions.retain(|(of, _), _| *of != session);
        self.seen.iter_mut().for_each(|(_, sessions)| {
            sessions.remove(&session);
        });
        self.seen.retain(|(_, sessions)| !sessions.is_empty());
    }

    /// Whether a start keeps what `of` has not settled of `seq`.
    fn counts(&self, of: SessionNo, seq: Seq) -> bool {
        self.sessions.contains_key(&of) || (of == ORIGIN_DUTY && self.messages[&seq].id.is_some())
    }

    /// What the next start finds; what belongs to nobody is gone from then on.
    pub(super) fn restart(&mut self) -> Recovered {
        let kept = self.unsettled.iter().filter(|(of, seq)| self.counts(*of, *seq));
        self.unsettled = kept.copied().collect();
        for (_, sessions) in &mut self.seen {
            sessions.retain(|no| self.sessions.contains_key(no));
        }
        self.seen.retain(|(_, sessions)| !sessions.is_empty());
        self.recovered()
    }

    /// What a start would find.
    pub(super) fn recovered(&self) -> Recovered {
        Recovered {
            sessions: self.sessions.values().map(|record| self.recovered_session(record)).collect(),
            retained: self.retained.values().cloned().collect(),
            seen: self.recovered_seen(),
            ids: self.recovered_ids(),
            duties: self.duties(),
            spooled: self.spooled.values().cloned().collect(),
            directory: self
                .directory
                .iter()
                .map(|(key, value)| DirectoryRecord { key: key.clone(), value: value.as_slice().into() })
                .collect(),
            node: self.node.clone(),
            next_session: self.next_session.max(1),
            store: StoreKnown::default(),
            journal: 0,
        }
    }

    fn recovered_seen(&self) -> Vec<(MessageId, Vec<SessionNo>)> {
        let mut seen: BTreeMap<MessageId, BTreeSet<SessionNo>> = BTreeMap::new();
        for (id, sessions) in &self.seen {
            seen.entry(*id).or_default().extend(sessions);
        }
        for (of, seq) in &self.unsettled {
            if let Some(id) = self.messages[seq].id
                && self.counts(*of, *seq)
            {
                let had = self.messages[seq].recipients.iter().map(|recipient| recipient.session);
                seen.entry(id).or_default().extend(had);
            }
        }
        for sessions in seen.values_mut() {
            sessions.retain(|no| self.sessions.contains_key(no));
        }
        let seen = seen.into_iter().filter(|(_, sessions)| !sessions.is_empty());
        seen.map(|(id, sessions)| (id, sessions.into_iter().collect())).collect()
    }

    fn recovered_ids(&self) -> Vec<(Seq, MessageId)> {
        let held = self.unsettled.iter().filter(|(of, seq)| self.counts(*of, *seq)).map(|(_, seq)| *seq);
        let held: BTreeSet<Seq> = held.collect();
        held.into_iter().filter_map(|seq| Some((seq, self.messages[&seq].id?))).collect()
    }

    fn duties(&self) -> Vec<(Seq, MessageId)> {
        let duties = self.unsettled.iter().filter(|(of, _)| *of == ORIGIN_DUTY);
        let mut duties: Vec<_> = duties.filter_map(|(_, seq)| Some((*seq, self.messages[seq].id?))).collect();
        duties.sort_by_key(|(seq, id)| (*id, *seq));
        duties
    }

    fn recovered_session(&self, record: &SessionRecord) -> RecoveredSession {
        let no = record.no;
        let steps = self.steps.iter().filter(|step| step.0 == no);
        let outbound: Vec<_> = steps.map(|(_, packet_id, seq, state)| (*packet_id, *seq, *state)).collect();
        let held = self.unsettled.iter().filter(|(of, _)| *of == no).map(|(_, seq)| *seq);
        let mut pending: Vec<Seq> = held.filter(|seq| !outbound.iter().any(|step| step.1 == *seq)).collect();
        self.sort_each_origin(&mut pending);
        RecoveredSession {
            record: record.clone(),
            subscriptions: self
                .subscriptions
                .iter()
                .filter(|(k, _)| k.0 == no)
                .map(|(_, s)| s.clone())
                .collect(),
            inbound: self.inbound.iter().filter(|(of, _)| *of == no).map(|(_, id)| *id).collect(),
            outbound,
            pending_bytes: pending.iter().map(|seq| self.messages[seq].message.size() as u64).sum(),
            pending,
        }
    }

    fn sort_each_origin(&self, pending: &mut [Seq]) {
        let id = |seq: Seq| self.messages[&seq].id.map(|id| (id, seq));
        for at in 0..pending.len() {
            for later in at + 1..pending.len() {
                if let (Some(a), Some(b)) = (id(pending[at]), id(pending[later]))
                    && a.0.origin == b.0.origin
                    && b < a
                {
                    pending.swap(at, later);
                }
            }
        }
    }

    /// What a read finds.
    pub(super) fn read(&self, session: SessionNo, seqs: &[Seq]) -> Vec<Stored> {
        let held = seqs.iter().filter(|seq| self.unsettled.contains(&(session, **seq)));
        held.map(|seq| {
            let Kept { id, message, recipients } = &self.messages[seq];
            let recipient = recipients.iter().find(|recipient| recipient.session == session).unwrap();
            Stored { seq: *seq, id: *id, message: message.clone(), recipient: recipient.clone() }
        })
        .collect()
    }

    /// Rows of the log that this state needs.
    pub(super) fn log_rows(&self) -> usize {
        let messages: BTreeSet<Seq> = self.unsettled.iter().map(|(_, seq)| *seq).collect();
        let of_sessions = messages.len() + self.steps.len() + self.inbound.len() + self.seen.len();
        of_sessions + self.retained.len() + self.spooled.len() + usize::from(self.node.is_some())
    }

    pub(super) fn seqs(&self) -> Vec<Seq> {
        self.messages.keys().copied().collect()
    }
}

/// Something to do, before it is known what is there to do it to.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    kind: u8,
    a: u16,
    b: u16,
    c: u16,
}

impl Raw {
    pub(super) fn kind(&self) -> u8 {
        self.kind
    }
}

/// Random things to do.
pub(super) fn raws(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Raw>> {
    let raw = (0..25_u8, any::<u16>(), any::<u16>(), any::<u16>());
    proptest::collection::vec(raw.prop_map(|(kind, a, b, c)| Raw { kind, a, b, c }), len)
}

/// Makes changes out of [`Raw`] that fit the state, and applies them to the model.
#[derive(Default)]
pub(super) struct World {
    pub(super) model: Model,
}

/// A step of a test.
pub(super) enum Do {
    /// Append these together.
    Append(Vec<Op>),
    /// Wait until everything is durable.
    Sync,
    /// Close and open again.
    Restart,
}

fn pick<T: Copy>(from: &[T], by: u16) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(by) % from.len()])
}

pub(super) fn message(topic: &str, by: u16) -> Message {
    let payload = vec![by as u8; usize::from(by % 400)];
    Message::new(Parts {
        topic,
        payload: &payload,
        properties: if by & 1 == 0 { &[] } else { &[1, 1] },
        qos: QoS::from_bits((by % 3) as u8).unwrap(),
        retain: by & 2 == 0,
        expires_at: (by & 4 == 0).then(|| Time(u64::from(by) + 1)),
    })
}

pub(super) fn record(no: SessionNo, by: u16) -> SessionRecord {
    SessionRecord {
        no,
        client_id: format!("client-{no}").into(),
        expiry_s: if by & 1 == 0 { 0 } else { u32::from(by) },
        disconnected_at: (by & 2 == 0).then(|| Time(u64::from(by))),
        will: (by & 4 == 0).then(|| WillRecord {
            message: message("will/topic", by | 4),
            delay_s: u32::from(by),
            message_expiry_s: (by & 8 == 0).then_some(77),
            author: (by & 16 == 0).then(|| {
                Arc::new(Author {
                    listener: "tls".into(),
                    address: if by & 32 == 0 { "192.0.2.1" } else { "2001:db8::1" }.into(),
                    groups: (0..by % 3).map(|n| Arc::from(format!("group-{n}"))).collect(),
                    publish: (by & 1 == 0)
                        .then(|| (0..by % 2).map(|n| Arc::from(format!("a/{n}/#"))).collect()),
                })
            }),
        }),
        created_at: Time(no),
        epoch: if by & 32 == 0 { 0 } else { u64::from(by) << 20 },
        pending: by & 64 != 0,
        user: match by >> 7 & 3 {
            0 => SessionUser::Unknown,
            1 => SessionUser::Anonymous,
            _ => SessionUser::Named(format!("user-{by}").into()),
        },
        queue_policy: match by >> 9 & 3 {
            0 => None,
            1 => Some(QueuePolicy::DropNew),
            _ => Some(QueuePolicy::DropOldest),
        },
    }
}

pub(super) fn recipient(session: SessionNo, by: u16) -> Recipient {
    Recipient {
        session,
        qos: if by & 1 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
        retain: by & 2 == 0,
        subscription_ids: (0..u32::from(by % 4)).map(|id| id * 100_000 + 1).collect::<SmallVec<_>>(),
        shared: (by & 16 == 0).then(|| "$share/group/a/+".into()),
        publisher: (by & 96 == 32).then(|| {
            Box::new(Publisher { session: u64::from(by), packet_id: NonZeroU16::new(by >> 7).map(u16::from) })
        }),
        unserved: (by & 384 == 128).then(|| {
            let asked = (by & 1 == 0).then(|| MemberId { node: "n1".into(), incarnation: u64::from(by) });
            Box::from([Unserved { name: "$share/group/a/+".into(), asked }])
        }),
    }
}

impl World {
    /// What `raw` means now; `next_seq` yields message numbers.
    pub(super) fn next(&mut self, raw: &Raw, next_seq: impl Fn() -> Seq) -> Do {
        let ops = match raw.kind {
            16 => return Do::Sync,
            17 => return Do::Restart,
            _ => self.ops(raw, next_seq),
        };
        ops.iter().for_each(|op| self.model.apply(op));
        Do::Append(ops)
    }

    fn ops(&self, raw: &Raw, next_seq: impl Fn() -> Seq) -> Vec<Op> {
        let Raw { kind, a, b, c } = *raw;
        let live: Vec<SessionNo> = self.model.sessions.keys().copied().collect();
        let fresh = || Op::Session(record(self.model.next_session.max(1), b));
        let Some(session) = pick(&live, a) else { return vec![fresh()] };
        let held: Vec<Seq> = self.model.recovered_session(&self.model.sessions[&session]).pending;
        let packet_id = c % 4 + 1;
        let id = MessageId { origin: 500 + u64::from(b % 2), seq: u64::from(c % 8) };
        let topic = format!("retained/{}", b % 4);
        match kind {
            0 if live.len() < 8 => vec![fresh()],
            0 | 1 => vec![Op::Session(record(session, b))],
            2 if b % 3 == 0 => vec![Op::SessionEnd { session }],
            2 if b % 3 == 1 => {
                let all = self.model.unsettled.iter().filter(|(of, _)| *of == session);
                let settle = all.map(|(_, seq)| Op::Settle { seq: *seq, session });
                settle.chain([Op::SessionEnd { session }]).collect()
            }
            2..=5 => {
                let mut to: Vec<SessionNo> = match c % 3 {
                    0 => vec![session],
                    _ => {
                        live.iter().enumerate().filter(|(i, _)| b >> i & 1 == 1).map(|(_, no)| *no).collect()
                    }
                };
                // Sometimes somebody who is not there, or no longer.
                if c % 11 == 0 || to.is_empty() {
                    let ended = (1..self.model.next_session).find(|no| !live.contains(no));
                    to.push(ended.unwrap_or(self.model.next_session + 2));
                }
                if c % 7 == 0 {
                    to.push(ORIGIN_DUTY);
                }
                let recipients = to.into_iter().map(|no| recipient(no, b)).collect();
                let id = (a % 4 != 0).then_some(id);
                vec![Op::Message { seq: next_seq(), id, message: message("some/topic", c), recipients }]
            }
            6..=8 => {
                let duties: Vec<Seq> = self.model.duties().iter().map(|(seq, _)| *seq).collect();
                if let Some(seq) = pick(&duties, c).filter(|_| b % 4 == 1) {
                    return vec![Op::Settle { seq, session: ORIGIN_DUTY }];
                }
                let mine = |kept: &&Kept| kept.recipients.iter().any(|r| r.session == session);
                let addressed: Vec<Seq> =
                    self.model.messages.iter().filter(|(_, m)| mine(m)).map(|(seq, _)| *seq).collect();
                let from = if b % 8 == 0 { &addressed } else { &held };
                pick(from, c).map(|seq| Op::Settle { seq, session }).into_iter().collect()
            }
            9 | 10 => {
                let state = if b & 1 == 0 { OutboundState::Sent } else { OutboundState::Released };
                let stepped: Vec<Seq> =
                    self.model.steps.iter().filter(|s| s.0 == session).map(|s| s.2).collect();
                let all = self.model.seqs();
                let from = match b % 16 {
                    0 => &all,
                    1..=7 => &stepped,
                    _ => &held,
                };
                let own = |seq: &Seq| self.model.steps.iter().find(|s| (s.0, s.2) == (session, *seq));
                let step = pick(from, c).map(|seq| {
                    let packet_id = own(&seq).filter(|_| b % 5 != 0).map_or(packet_id, |step| step.1);
                    Op::Outbound { session, packet_id, seq, state }
                });
                step.into_iter().collect()
            }
            11 if b & 1 == 0 => vec![Op::InboundEnd { session, packet_id }],
            11 => vec![Op::InboundBegin { session, packet_id }],
            12 => {
                let options = SubscribeOptions {
                    qos: QoS::from_bits((c % 3) as u8).unwrap(),
                    no_local: c & 4 == 0,
                    retain_as_published: c & 8 == 0,
                    retain_handling: RetainHandling::SendIfNew,
                };
                let filter = format!("filter/{}/#", b % 5).into();
                let subscription_id = (c & 16 == 0).then(|| u32::from(c) + 1);
                vec![Op::Subscribe {
                    session,
                    subscription: SubscriptionRecord {
                        filter,
                        options,
                        subscription_id,
                        older: if a & 1 == 0 { Vec::new() } else { vec![(u64::from(a), u64::from(b) << 20)] },
                    },
                }]
            }
            13 => vec![Op::Unsubscribe { session, filter: format!("filter/{}/#", b % 5) }],
            14 => vec![Op::Retain(message(&topic, c))],
            18 | 19 => {
                let mut sessions: Vec<SessionNo> =
                    live.iter().enumerate().filter(|(at, _)| c >> at & 1 == 1).map(|(_, no)| *no).collect();
                // Sometimes one that is gone, or one twice, or none at all.
                sessions.extend((c % 7 == 0).then_some(session));
                sessions.extend((c % 5 == 0).then_some(self.model.next_session));
                vec![Op::Seen { id, sessions }]
            }
            20 => vec![Op::Unseen { id }],
            21 => {
                let incarnations = (0..u64::from(b % 4)).map(|at| at * 1000 + u64::from(c)).collect();
                vec![Op::Node(NodeRecord { node: format!("node-{b}").into(), incarnations })]
            }
            22 => {
                let message = (c & 1 == 0).then(|| message(&topic, c));
                vec![Op::Spool(SpooledRetain {
                    topic: topic.into(),
                    message,
                    id,
                    known: u64::from(c),
                    since: u64::from(c / 3),
                })]
            }
            23 => vec![Op::Unspool { topic }],
            24 => {
                let key = match b % 3 {
                    0 => DirectoryKey::User(format!("user/{}", c % 4).into()),
                    1 => DirectoryKey::Rules,
                    _ => DirectoryKey::Ban { kind: BanKind::ALL[usize::from(c % 3)], name: topic.into() },
                };
                let value = (a & 3 != 0).then(|| c.to_le_bytes().repeat(usize::from(b)));
                vec![Op::Directory { key, value }]
            }
            _ => vec![Op::ClearRetained { topic }],
        }
    }
}
