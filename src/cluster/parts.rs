//! The state of a session on its way to another node: a stream of pieces, one with its record, then one for each message. It is
//! cut into parts anywhere. Version 3 adds to subscriptions what they are younger than. From version 4 on no moment is handed over, the
//! nodes' clocks being different: a message has the time that it has left, a session its age. Version 5 adds whose the session is,
//! version 6 who has left its will. Who reads nothing newer gets an older version.

use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, QoS};
use crate::ports::{
    MessageId, OutboundState, Recipient, Seq, SessionRecord, Stored, SubscriptionRecord, WillRecord,
};
use crate::queue_policy::QueuePolicy;
use crate::user::{Author, SessionUser};
use bytes::{Buf, BufMut, BytesMut};
use smallvec::SmallVec;
use std::sync::Arc;

/// The newest version that this program reads and writes.
pub(super) const VERSION: u8 = 6;
/// The oldest.
const OLDEST: u8 = 2;
/// The first that says what subscriptions are younger than.
const WITH_YOUNG: u8 = 3;
/// The first without moments.
const WITHOUT_MOMENTS: u8 = 4;
/// The first that says whose the session is.
const WITH_USER: u8 = 5;
/// The first that says who has left the will, and which messages are dropped when the queue is full.
const WITH_AUTHOR: u8 = 6;
const HEAD: u8 = 1;
const MESSAGE: u8 = 2;

/// Bytes of a piece's length.
const LENGTH: usize = 4;

/// Everything of a session but its messages.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    /// The session's record as the old owner has it, but for when its client went.
    pub record: SessionRecord,
    /// For how long the session's client had been gone, milliseconds: the clocks of two nodes differ.
    pub gone_ms: u64,
    /// The session's subscriptions.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Inbound QoS 2 packet identifiers in use.
    pub inbound: Vec<u16>,
    /// Outbound steps, with the old owner's numbers of the messages, in order. Their messages come first.
    pub outbound: Vec<(u16, Seq, OutboundState)>,
    /// Publishes that the session has had.
    pub seen: Vec<MessageId>,
}

/// A piece of the stream.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// The first.
    Head(Box<Head>),
    /// All others.
    Message(Box<Stored>),
}

/// What a piece is written in, or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format(u8);

impl Format {
    /// For one who reads versions up to `reads`.
    pub(super) fn for_reader(reads: u32) -> Format {
        Format(u8::try_from(reads).unwrap_or(VERSION).clamp(OLDEST, VERSION))
    }

    fn has_moments(self) -> bool {
        self.0 < WITHOUT_MOMENTS
    }
}

/// The first piece, to be sent now.
pub(super) fn encode_head(head: &Head, format: Format, now: Time) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(1024);
    encode_piece(&mut bytes, format, HEAD, now, |o| write_head(o, head));
    bytes
}

/// A further piece, to be sent now.
pub(super) fn encode_message(bytes: &mut BytesMut, message: &Stored, format: Format, now: Time) {
    encode_piece(bytes, format, MESSAGE, now, |o| write_message(o, message));
}

/// A piece begins with its length.
fn encode_piece(
    bytes: &mut BytesMut,
    format: Format,
    kind: u8,
    now: Time,
    write: impl FnOnce(&mut Writer<'_>),
) {
    let start = bytes.len();
    bytes.put_u32(0);
    bytes.put_u8(format.0);
    bytes.put_u8(kind);
    write(&mut Writer { out: bytes, format, now });
    let len = u32::try_from(bytes.len() - start - LENGTH).unwrap_or(u32::MAX);
    bytes[start..start + LENGTH].copy_from_slice(&len.to_be_bytes());
}

fn write_head(w: &mut Writer<'_>, head: &Head) {
    let r = &head.record;
    w.text(&r.client_id);
    w.out.put_u32(r.expiry_s);
    w.out.put_u64(head.gone_ms);
    w.option(r.will.as_ref(), |w, will| {
        w.message(&will.message);
        w.out.put_u32(will.delay_s);
        w.option(will.message_expiry_s, |w, s| w.out.put_u32(s));
    });
    w.out.put_u64(if w.format.has_moments() { r.created_at.0 } else { w.now.since_ms(r.created_at) });
    w.out.put_u64(r.epoch);
    w.list(&head.subscriptions, |w, s| {
        w.text(&s.filter);
        w.out.put_u8(s.options.to_bits());
        w.option(s.subscription_id, |w, id| w.out.put_u32(id));
        if w.format.0 >= WITH_YOUNG {
            w.list(&s.older, |w, (origin, seq)| {
                w.out.put_u64(*origin);
                w.out.put_u64(*seq);
            });
        }
    });
    w.list(&head.inbound, |w, id| w.out.put_u16(*id));
    w.list(&head.outbound, |w, (id, seq, state)| {
        w.out.put_u16(*id);
        w.out.put_u64(*seq);
        w.out.put_u8(u8::from(*state == OutboundState::Released));
    });
    w.list(&head.seen, |w, id| w.id(*id));
    if w.format.0 >= WITH_USER {
        w.option(r.user.written(), |w, user| w.text(user));
    }
    if w.format.0 >= WITH_AUTHOR {
        w.option(r.will.as_ref().and_then(|will| will.author.as_deref()), |w, author| {
            w.text(&author.listener);
            w.text(&author.address);
            w.list(&author.groups, |w, group| w.text(group));
            w.option(author.publish.as_ref(), |w, filters| w.list(filters, |w, filter| w.text(filter)));
        });
        w.option(r.queue_policy, |w, policy| w.text(policy.name()));
    }
}

fn write_message(w: &mut Writer<'_>, s: &Stored) {
    w.out.put_u64(s.seq);
    w.option(s.id, |w, id| w.id(id));
    w.message(&s.message);
    w.out.put_u8(s.recipient.qos as u8);
    w.out.put_u8(u8::from(s.recipient.retain));
    w.list(&s.recipient.subscription_ids, |w, id| w.out.put_u32(*id));
    w.option(s.recipient.shared.as_ref(), |w, name| w.text(name));
}

/// Puts parts together again. Sessions in the pieces have the number 0.
#[derive(Debug, Default)]
pub(super) struct Arriving(BytesMut);

impl Arriving {
    /// The next part.
    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.extend_from_slice(part);
    }

    /// The next piece, which came `now`; `None` if it has not come, or not all of it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn next(&mut self, now: Time) -> Result<Option<Piece>, String> {
        let Some((len, rest)) = self.0.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let Some(bytes) = rest.get(..len) else { return Ok(None) };
        let piece = decode(bytes, now)?;
        self.0.advance(LENGTH + len);
        Ok(Some(piece))
    }

    /// Whether nothing is left of what came.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn decode(bytes: &[u8], now: Time) -> Result<Piece, String> {
    let mut reader = Reader { left: bytes, format: Format(OLDEST), now };
    let piece = reader.piece().ok_or_else(|| "cut off, or not of this version".to_owned())?;
    if reader.left.is_empty() { Ok(piece) } else { Err(format!("{} bytes too many", reader.left.len())) }
}

struct Writer<'a> {
    out: &'a mut BytesMut,
    format: Format,
    now: Time,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.out.put_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.out.put_u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        items.iter().for_each(|item| write(self, item));
    }

    fn id(&mut self, id: MessageId) {
        self.out.put_u64(id.origin);
        self.out.put_u64(id.seq);
    }

    fn message(&mut self, message: &Message) {
        let p = message.parts();
        self.text(p.topic);
        self.bytes(p.payload);
        self.bytes(p.properties);
        self.out.put_u8(p.qos as u8);
        self.out.put_u8(u8::from(p.retain));
        self.option(p.expires_at, |w, at| {
            w.out.put_u64(if w.format.has_moments() { at.0 } else { at.since_ms(w.now) });
        });
    }
}

struct Reader<'a> {
    left: &'a [u8],
    format: Format,
    now: Time,
}

impl<'a> Reader<'a> {
    fn piece(&mut self) -> Option<Piece> {
        let version = self.u8()?;
        if !(OLDEST..=VERSION).contains(&version) {
            return None;
        }
        self.format = Format(version);
        match self.u8()? {
            HEAD => Some(Piece::Head(Box::new(self.head()?))),
            MESSAGE => Some(Piece::Message(Box::new(self.stored()?))),
            _ => None,
        }
    }

    fn u8(&mut self) -> Option<u8> {
        self.left.try_get_u8().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.left.try_get_u16().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.left.try_get_u32().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.left.try_get_u64().ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.left.split_at_checked(n)?;
        self.left = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Some(None) }
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
        // Not reserved: the number may be anything.
        (0..self.u32()?).map(|_| read(self)).collect()
    }

    fn id(&mut self) -> Option<MessageId> {
        Some(MessageId { origin: self.u64()?, seq: self.u64()? })
    }

    fn message(&mut self) -> Option<Message> {
        let (topic, payload, properties) = (self.text()?, self.bytes()?, self.bytes()?);
        let (qos, retain) = (QoS::from_bits(self.u8()?)?, self.flag()?);
        let expires_at = self.option(|r| {
            let n = r.u64()?;
            // A moment of 0 would mean "never".
            Some(if r.format.has_moments() { Time(n) } else { Time(r.now.plus_ms(n).0.max(1)) })
        })?;
        Some(Message::new(Parts { topic, payload, properties, qos, retain, expires_at }))
    }

    fn will(&mut self) -> Option<WillRecord> {
        let (message, delay_s) = (self.message()?, self.u32()?);
        Some(WillRecord { message, delay_s, message_expiry_s: self.option(Reader::u32)?, author: None })
    }

    fn author(&mut self) -> Option<Arc<Author>> {
        let (listener, address) = (self.text()?.into(), self.text()?.into());
        let texts = |r: &mut Reader<'a>| r.list(|r| r.text().map(Arc::from)).map(Vec::into_boxed_slice);
        let groups = texts(self)?;
        Some(Arc::new(Author { listener, address, groups, publish: self.option(texts)? }))
    }

    fn head(&mut self) -> Option<Head> {
        let (client_id, expiry_s, gone_ms) = (self.text()?.into(), self.u32()?, self.u64()?);
        let mut record = SessionRecord {
            no: 0,
            client_id,
            expiry_s,
            disconnected_at: None,
            will: self.option(Reader::will)?,
            created_at: {
                let n = self.u64()?;
                if self.format.has_moments() { Time(n) } else { self.now.minus_ms(n) }
            },
            epoch: self.u64()?,
            pending: false,
            user: SessionUser::Unknown,
            queue_policy: None,
        };
        let subscriptions = self.list(|r| {
            Some(SubscriptionRecord {
                filter: r.text()?.into(),
                options: SubscribeOptions::from_bits(r.u8()?)?,
                subscription_id: r.option(Reader::u32)?,
                older: match r.format.0 {
                    ..WITH_YOUNG => Vec::new(),
                    _ => r.list(|r| Some((r.u64()?, r.u64()?)))?,
                },
            })
        })?;
        let inbound = self.list(Reader::u16)?;
        let outbound = self.list(|r| {
            let (id, seq) = (r.u16()?, r.u64()?);
            let state = if r.flag()? { OutboundState::Released } else { OutboundState::Sent };
            Some((id, seq, state))
        })?;
        let seen = self.list(Reader::id)?;
        if self.format.0 >= WITH_USER {
            record.user = SessionUser::read(self.option(Reader::text)?);
        }
        if self.format.0 >= WITH_AUTHOR {
            let author = self.option(Reader::author)?;
            if let Some(will) = &mut record.will {
                will.author = author;
            }
            record.queue_policy = self.option(|r| QueuePolicy::of(r.text()?))?;
        }
        Some(Head { record, gone_ms, subscriptions, inbound, outbound, seen })
    }

    fn stored(&mut self) -> Option<Stored> {
        let (seq, id, message) = (self.u64()?, self.option(Reader::id)?, self.message()?);
        let (qos, retain) = (QoS::from_bits(self.u8()?)?, self.flag()?);
        let subscription_ids: SmallVec<[u32; 2]> = self.list(Reader::u32)?.into();
        let shared = self.option(|r| r.text().map(Arc::from))?;
        let recipient =
            Recipient { session: 0, qos, retain, subscription_ids, shared, publisher: None, unserved: None };
        Some(Stored { seq, id, message, recipient })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str) -> Message {
        Message::new(Parts {
            topic,
            payload: b"body",
            properties: &[],
            qos: QoS::ExactlyOnce,
            retain: true,
            expires_at: Some(Time(77)),
        })
    }

    fn head() -> Head {
        Head {
            record: SessionRecord {
                no: 0,
                client_id: "client".into(),
                expiry_s: 60,
                disconnected_at: None,
                will: Some(WillRecord {
                    message: message("will"),
                    delay_s: 3,
                    message_expiry_s: Some(9),
                    author: Some(Arc::new(Author {
                        listener: "tls".into(),
                        address: "192.0.2.1".into(),
                        groups: ["ops".into(), "x".into()].into(),
                        publish: Some(["a/#".into()].into()),
                    })),
                }),
                created_at: Time(1),
                epoch: 4,
                pending: false,
                user: SessionUser::Named("alice".into()),
                queue_policy: Some(QueuePolicy::DropOldest),
            },
            gone_ms: 5,
            subscriptions: vec![SubscriptionRecord {
                filter: "$share/g/a/+".into(),
                options: SubscribeOptions::from_bits(1).unwrap(),
                subscription_id: Some(7),
                older: vec![(2, 9)],
            }],
            inbound: vec![1, 9],
            outbound: vec![(3, 30, OutboundState::Sent), (4, 31, OutboundState::Released)],
            seen: vec![MessageId { origin: 2, seq: 8 }],
        }
    }

    fn stored() -> Stored {
        Stored {
            seq: 30,
            id: Some(MessageId { origin: 2, seq: 8 }),
            message: message("a/b"),
            recipient: Recipient {
                session: 0,
                qos: QoS::AtLeastOnce,
                retain: false,
                subscription_ids: [7, 8, 9].into_iter().collect(),
                shared: Some("$share/g/a/+".into()),
                publisher: None,
                unserved: None,
            },
        }
    }

    /// When pieces are sent here.
    const SENT: Time = Time(50);

    fn format(version: u8) -> Format {
        Format::for_reader(version.into())
    }

    #[test]
    fn pieces_come_back_as_they_were_wherever_the_parts_are_cut() {
        let mut bytes = encode_head(&head(), format(VERSION), SENT);
        (0..2).for_each(|_| encode_message(&mut bytes, &stored(), format(VERSION), SENT));
        for size in 1..=bytes.len() {
            let (mut arriving, mut pieces) = (Arriving::default(), Vec::new());
            for part in bytes.chunks(size) {
                arriving.add(part);
                while let Some(piece) = arriving.next(SENT).unwrap() {
                    pieces.push(piece);
                }
            }
            assert!(arriving.is_empty());
            let message = || Piece::Message(Box::new(stored()));
            assert_eq!(pieces, [Piece::Head(Box::new(head())), message(), message()], "parts of {size}");
        }
    }

    #[test]
    fn an_older_program_gets_what_it_reads() {
        for (reads, gets) in [(0, 2), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (9, 6), (1 << 20, 6)] {
            let format = Format::for_reader(reads);
            let mut bytes = encode_head(&head(), format, SENT);
            encode_message(&mut bytes, &stored(), format, SENT);
            assert_eq!(bytes[LENGTH], gets, "who reads {reads}");
            let mut arriving = Arriving::default();
            arriving.add(&bytes);
            let mut expected = head();
            if gets < WITH_AUTHOR {
                expected.record.will.as_mut().unwrap().author = None;
                expected.record.queue_policy = None;
            }
            if gets < WITH_USER {
                expected.record.user = SessionUser::Unknown;
            }
            if gets < WITH_YOUNG {
                expected.subscriptions.iter_mut().for_each(|s| s.older.clear());
            }
            assert_eq!(arriving.next(SENT).unwrap(), Some(Piece::Head(Box::new(expected))));
            assert_eq!(arriving.next(SENT).unwrap(), Some(Piece::Message(Box::new(stored()))));
        }
    }

    #[test]
    fn what_is_handed_over_is_what_is_left_whatever_the_clocks_show() {
        // When a piece comes by the receiver's clock; when its message expires then, and its session was made.
        for (version, came, expires, created) in [
            (VERSION, 50, 77, 1),
            (VERSION, 30_050, 30_077, 30_001),
            (VERSION, 10, 37, 0),
            (VERSION, 0, 27, 0),
            // Without a version that has no moments they are as the sender's clock has them.
            (WITH_YOUNG, 30_050, 77, 1),
        ] {
            let mut bytes = encode_head(&head(), format(version), SENT);
            encode_message(&mut bytes, &stored(), format(version), SENT);
            let mut arriving = Arriving::default();
            arriving.add(&bytes);
            let (first, second) = (arriving.next(Time(came)).unwrap(), arriving.next(Time(came)).unwrap());
            let (Some(Piece::Head(head)), Some(Piece::Message(stored))) = (first, second) else {
                panic!("other pieces")
            };
            let will = head.record.will.unwrap().message.expires_at();
            assert_eq!([will, stored.message.expires_at()], [Some(Time(expires)); 2]);
            assert_eq!(head.record.created_at, Time(created));
        }
        // What has expired on the way has no time left, and is not for ever.
        let mut bytes = BytesMut::new();
        encode_message(&mut bytes, &stored(), format(VERSION), Time(100));
        let mut arriving = Arriving::default();
        arriving.add(&bytes);
        let Some(Piece::Message(stored)) = arriving.next(Time(0)).unwrap() else { panic!("another piece") };
        assert_eq!(stored.message.expires_at(), Some(Time(1)));
    }

    #[test]
    fn no_cut_is_taken_for_a_piece() {
        let mut message = BytesMut::new();
        encode_message(&mut message, &stored(), format(VERSION), SENT);
        for bytes in [encode_head(&head(), format(VERSION), SENT), message] {
            let piece = &bytes[LENGTH..];
            for cut in 0..piece.len() {
                assert!(decode(&piece[..cut], SENT).is_err(), "cut at {cut}");
            }
            assert!(decode(&[piece, &[0]].concat(), SENT).is_err());
        }
    }
}
