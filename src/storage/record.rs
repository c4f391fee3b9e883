//! Rows of the log as bytes and back. Every row starts with its version; see [`migrate`](super::migrate). Decoding never
//! panics, whatever the bytes; it knows nothing of tables and files.

use super::cluster_rows::{self, Spooled};
use super::migrate::Chain;
use super::session_rows;
use super::wire::{Input, put_text, put_varint};
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::{MessageId, NodeRecord, OutboundState, Publisher, Recipient, Seq, SessionNo};
use bytes::BufMut;
use smallvec::SmallVec;
use std::sync::Arc;

/// Versions of rows in the log.
///
/// Version 2 adds kinds; rows of the kinds that version 1 had are as they were. Version 3 adds to a duty which shared
/// subscriptions may not be served.
pub(super) const LOG_ROWS: Chain = Chain::new(1, &[to_version_2, to_version_3]);

const KIND_MESSAGE: u8 = 1;
const KIND_OUTBOUND: u8 = 2;
const KIND_INBOUND: u8 = 3;
const KIND_RETAINED: u8 = 4;
/// A message that has an ID. A kind of its own, so that messages without one pay nothing for it.
const KIND_NAMED: u8 = 5;
const KIND_SEEN: u8 = 6;
const KIND_NODE: u8 = 7;
const KIND_SPOOLED: u8 = 8;

// Flags of a recipient, beside its QoS in the lowest two bits.
const RETAIN: u8 = 1 << 2;
const SHARED: u8 = 1 << 3;
const PUBLISHER: u8 = 1 << 4;
const UNSERVED: u8 = 1 << 5;

/// Why a row cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The row ends early.
    #[error("it ends early")]
    Truncated,
    /// The row goes on after its end.
    #[error("it has bytes after its end")]
    Trailing,
    /// The row is of a version that this program does not know.
    #[error("it is of version {found}, and only {oldest} to {current} are known")]
    Version {
        /// Version of the row.
        found: u8,
        /// Oldest version known.
        oldest: u8,
        /// Newest version known.
        current: u8,
    },
    /// The row is of no known kind.
    #[error("its kind, {0}, is unknown")]
    Kind(u8),
    /// Text is not UTF-8.
    #[error("its text is not UTF-8")]
    Text,
    /// A field has a value that it cannot have.
    #[error("its {0} is out of range")]
    Value(&'static str),
}

/// A row of the log.
#[derive(Debug)]
pub(super) enum LogRow<'a> {
    /// A message and who must receive it.
    Message(MessageRow<'a>),
    /// An outbound step.
    Outbound(StepRow),
    /// An inbound QoS 2 packet identifier in use.
    Inbound { session: SessionNo, packet_id: u16 },
    /// The retained message of its topic.
    Retained(Body<'a>),
    /// Sessions that have had a publish.
    Seen { id: MessageId, sessions: Vec<SessionNo> },
    /// Whose journal this is.
    Node(NodeRecord),
    /// An update of a retained message that the cluster has not taken.
    Spooled(Spooled<'a>),
}

/// How far an outbound message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepRow {
    pub(super) session: SessionNo,
    pub(super) packet_id: u16,
    pub(super) seq: Seq,
    pub(super) state: OutboundState,
    /// Key of the row that the step had when it was first sent: steps are in the order of these.
    pub(super) order: u64,
}

/// A message as stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(Parts<'a>);

/// A message as stored and its recipients, of which there is at least one.
#[derive(Debug)]
pub(super) struct MessageRow<'a> {
    /// Names the publish in the cluster.
    pub(super) id: Option<MessageId>,
    pub(super) body: Body<'a>,
    count: usize,
    /// Read to the end by [`decode_log`], so that it is well-formed.
    recipients: &'a [u8],
}

impl Body<'_> {
    /// The message.
    pub(super) fn message(&self) -> Message {
        Message::new(self.0)
    }

    /// Bytes of topic, payload and properties.
    pub(super) fn len(&self) -> usize {
        self.0.topic.len() + self.0.payload.len() + self.0.properties.len()
    }

    /// The topic.
    pub(super) fn topic(&self) -> &str {
        self.0.topic
    }
}

impl<'a> MessageRow<'a> {
    /// How many recipients the message was stored for.
    pub(super) fn recipients_len(&self) -> usize {
        self.count
    }

    /// The sessions that the message was stored for.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionNo> + Clone + 'a {
        let mut input = Input::new(self.recipients);
        std::iter::from_fn(move || skip_recipient(&mut input).ok())
    }

    /// How `session` is to receive the message, if it is.
    pub(super) fn recipient(&self, session: SessionNo) -> Option<Recipient> {
        let mut input = Input::new(self.recipients);
        loop {
            let mut ahead = input.clone();
            if skip_recipient(&mut ahead).ok()? == session {
                return get_recipient(&mut input).ok();
            }
            input = ahead;
        }
    }
}

/// Appends the row of a message.
pub(super) fn put_message(
    out: &mut Vec<u8>,
    id: Option<MessageId>,
    message: &Message,
    recipients: &[Recipient],
) {
    match id {
        None => out.extend_from_slice(&[LOG_ROWS.current(), KIND_MESSAGE]),
        Some(id) => {
            out.extend_from_slice(&[LOG_ROWS.current(), KIND_NAMED]);
            put_id(out, id);
        }
    }
    put_varint(out, recipients.len() as u64);
    for recipient in recipients {
        put_recipient(out, recipient);
    }
    put_body(out, message);
}

/// Appends the row of an outbound step.
pub(super) fn put_outbound(out: &mut Vec<u8>, step: &StepRow) {
    let state = match step.state {
        OutboundState::Sent => 0,
        OutboundState::Released => 1,
    };
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_OUTBOUND, state]);
    out.extend_from_slice(&step.packet_id.to_le_bytes());
    out.put_u64_le(step.session);
    out.put_u64_le(step.seq);
    out.put_u64_le(step.order);
}

/// Appends the row of an inbound packet identifier.
pub(super) fn put_inbound(out: &mut Vec<u8>, session: SessionNo, packet_id: u16) {
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_INBOUND]);
    out.extend_from_slice(&packet_id.to_le_bytes());
    out.put_u64_le(session);
}

/// Appends the row of a retained message.
pub(super) fn put_retained(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_RETAINED]);
    put_body(out, message);
}

/// Begins the row of a publish that sessions have had.
pub(super) fn begin_seen(out: &mut Vec<u8>) {
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_SEEN]);
}

/// Begins the row that says whose journal this is.
pub(super) fn begin_node(out: &mut Vec<u8>) {
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_NODE]);
}

/// Begins the row of an update that the cluster has not taken.
pub(super) fn begin_spooled(out: &mut Vec<u8>) {
    out.extend_from_slice(&[LOG_ROWS.current(), KIND_SPOOLED]);
}

/// From version 1: only the version changes, and it had fewer kinds.
fn to_version_2(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    match row {
        [_, kind @ KIND_MESSAGE..=KIND_RETAINED, rest @ ..] => Ok([&[2, *kind], rest].concat()),
        [_, kind, ..] => Err(RecordError::Kind(*kind)),
        _ => Err(RecordError::Truncated),
    }
}

/// From version 2: only the version changes, and recipients had fewer fields.
fn to_version_3(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    match row {
        [_, rest @ ..] => Ok([&[3], rest].concat()),
        [] => Err(RecordError::Truncated),
    }
}

/// Decodes a row of the log, which is in the current version ([`LOG_ROWS`]`.lift`).
pub(super) fn decode_log(row: &[u8]) -> Result<LogRow<'_>, RecordError> {
    let mut input = Input::new(row);
    input.u8()?;
    match input.u8()? {
        KIND_MESSAGE => get_message(None, input),
        KIND_NAMED => get_message(Some(get_id(&mut input)?), input),
        KIND_OUTBOUND => {
            let state = match input.u8()? {
                0 => OutboundState::Sent,
                1 => OutboundState::Released,
                _ => return Err(RecordError::Value("state")),
            };
            let packet_id = input.u16()?;
            let step =
                StepRow { session: input.u64()?, packet_id, seq: input.u64()?, state, order: input.u64()? };
            input.end()?;
            Ok(LogRow::Outbound(step))
        }
        KIND_INBOUND => {
            let packet_id = input.u16()?;
            let session = input.u64()?;
            input.end()?;
            Ok(LogRow::Inbound { session, packet_id })
        }
        KIND_RETAINED => Ok(LogRow::Retained(get_body(&mut input)?)),
        KIND_SEEN => cluster_rows::get_seen(input),
        KIND_NODE => cluster_rows::get_node(input),
        KIND_SPOOLED => cluster_rows::get_spooled(input),
        kind => Err(RecordError::Kind(kind)),
    }
}

fn get_message<'a>(id: Option<MessageId>, mut input: Input<'a>) -> Result<LogRow<'a>, RecordError> {
    let count = input.len()?;
    if count == 0 {
        return Err(RecordError::Value("number of recipients"));
    }
    let start = input.clone();
    for _ in 0..count {
        skip_recipient(&mut input)?;
    }
    let recipients = start.until(&input);
    Ok(LogRow::Message(MessageRow { id, body: get_body(&mut input)?, count, recipients }))
}

pub(super) fn put_id(out: &mut Vec<u8>, id: MessageId) {
    put_varint(out, id.origin);
    put_varint(out, id.seq);
}

pub(super) fn get_id(input: &mut Input<'_>) -> Result<MessageId, RecordError> {
    Ok(MessageId { origin: input.varint()?, seq: input.varint()? })
}

fn put_recipient(out: &mut Vec<u8>, recipient: &Recipient) {
    put_varint(out, recipient.session);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(
        recipient.qos as u8
            | flag(recipient.retain, RETAIN)
            | flag(recipient.shared.is_some(), SHARED)
            | flag(recipient.publisher.is_some(), PUBLISHER)
            | flag(recipient.unserved.is_some(), UNSERVED),
    );
    put_varint(out, recipient.subscription_ids.len() as u64);
    for id in &recipient.subscription_ids {
        put_varint(out, u64::from(*id));
    }
    if let Some(shared) = &recipient.shared {
        put_text(out, shared);
    }
    if let Some(publisher) = &recipient.publisher {
        put_varint(out, publisher.session);
        put_varint(out, u64::from(publisher.packet_id.unwrap_or(0)));
    }
    if let Some(unserved) = &recipient.unserved {
        cluster_rows::put_unserved(out, unserved);
    }
}

fn get_publisher(input: &mut Input<'_>) -> Result<Publisher, RecordError> {
    let session = input.varint()?;
    let packet_id = u16::try_from(input.varint()?).map_err(|_| RecordError::Value("packet identifier"))?;
    Ok(Publisher { session, packet_id: (packet_id != 0).then_some(packet_id) })
}

/// Checks and passes over a recipient.
fn skip_recipient(input: &mut Input<'_>) -> Result<SessionNo, RecordError> {
    let session = input.varint()?;
    let flags = input.u8()?;
    if flags > (3 | RETAIN | SHARED | PUBLISHER | UNSERVED) || flags & 3 == 3 {
        return Err(RecordError::Value("delivery"));
    }
    for _ in 0..input.len()? {
        u32::try_from(input.varint()?).map_err(|_| RecordError::Value("subscription identifier"))?;
    }
    if flags & SHARED != 0 {
        input.text()?;
    }
    if flags & PUBLISHER != 0 {
        get_publisher(input)?;
    }
    if flags & UNSERVED != 0 {
        cluster_rows::get_unserved(input)?;
    }
    Ok(session)
}

fn get_recipient(input: &mut Input<'_>) -> Result<Recipient, RecordError> {
    let session = input.varint()?;
    let flags = input.u8()?;
    let mut subscription_ids = SmallVec::new();
    for _ in 0..input.len()? {
        let id = u32::try_from(input.varint()?).map_err(|_| RecordError::Value("subscription identifier"))?;
        subscription_ids.push(id);
    }
    Ok(Recipient {
        session,
        qos: QoS::from_bits(flags & 3).ok_or(RecordError::Value("QoS"))?,
        retain: flags & RETAIN != 0,
        subscription_ids,
        shared: if flags & SHARED != 0 { Some(Arc::from(input.text()?)) } else { None },
        publisher: if flags & PUBLISHER != 0 { Some(Box::new(get_publisher(input)?)) } else { None },
        unserved: if flags & UNSERVED != 0 { Some(cluster_rows::get_unserved(input)?) } else { None },
    })
}

pub(super) fn put_body(out: &mut Vec<u8>, message: &Message) {
    let parts = message.parts();
    out.push(parts.qos as u8 | u8::from(parts.retain) << 2 | u8::from(parts.expires_at.is_some()) << 3);
    if let Some(at) = parts.expires_at {
        out.put_u64_le(at.0);
    }
    put_text(out, parts.topic);
    put_varint(out, parts.payload.len() as u64);
    out.extend_from_slice(parts.payload);
    out.extend_from_slice(parts.properties);
}

/// Reads a message to the end of the row.
pub(super) fn get_body<'a>(input: &mut Input<'a>) -> Result<Body<'a>, RecordError> {
    let flags = input.u8()?;
    if flags > 0xF {
        return Err(RecordError::Value("flags"));
    }
    let qos = QoS::from_bits(flags & 3).ok_or(RecordError::Value("QoS"))?;
    let expires_at = if flags & 8 != 0 { Some(Time(input.u64()?)) } else { None };
    let topic = input.text()?;
    if topic.len() > usize::from(u16::MAX) {
        return Err(RecordError::Value("topic"));
    }
    let len = input.len()?;
    let payload = input.bytes(len)?;
    let properties = input.rest();
    Ok(Body(Parts { topic, payload, properties, qos, retain: flags & 4 != 0, expires_at }))
}

/// Decodes arbitrary bytes as every kind of row there is: for fuzzing, nothing else.
#[doc(hidden)]
pub fn fuzz_decode(row: &[u8]) {
    if let Ok(row) = LOG_ROWS.lift(row) {
        match decode_log(&row) {
            Ok(LogRow::Message(row)) => {
                for session in row.sessions() {
                    assert!(row.recipient(session).is_some(), "a session without its delivery");
                }
                assert_eq!(row.sessions().count(), row.recipients_len());
                let _ = row.body.message().size();
            }
            Ok(LogRow::Spooled(spooled)) => cluster_rows::fuzz_spooled(spooled),
            _ => {}
        }
    }
    let _ = session_rows::decode_session(1, row);
    let _ = session_rows::decode_subscription("a/#", row);
}
