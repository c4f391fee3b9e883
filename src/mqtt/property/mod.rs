//! MQTT 5 properties (section 2.2.2): one validated raw slice per packet, read again only where somebody asks.
//!
//! Never copies a block, except where a forwarded one has holes.

mod put;
mod rules;

pub(super) use rules::{Place, id};

use super::wire::Reader;
use rules::{FORWARDED, property};
use std::borrow::Cow;

/// A validated property block, without its length prefix.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    raw: &'a [u8],
}

/// One property (MQTT 5.0 table 2-4). Intervals and keep alive are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the specification's
pub enum Property<'a> {
    PayloadFormatIndicator(bool),
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(bool),
    UserProperty(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifierAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

impl<'a> Properties<'a> {
    /// The block, without its length prefix.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether there is no property.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The properties, in the order sent.
    pub fn iter(&self) -> Iter<'a> {
        Iter { block: Reader::new(self.raw, 0) }
    }

    /// The user properties, in the order sent.
    pub fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.iter().filter_map(|p| match p {
            Property::UserProperty(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// Of the properties of a PUBLISH or a will: those passed on to receivers, unaltered and in order (payload format
    /// indicator, content type, response topic, correlation data, user properties). Borrowed unless something in the
    /// middle must go.
    #[inline]
    pub fn forwardable(&self) -> Cow<'a, [u8]> {
        if self.raw.is_empty() {
            return Cow::Borrowed(&[]);
        }
        self.forwardable_of_some()
    }

    fn forwardable_of_some(&self) -> Cow<'a, [u8]> {
        let mut kept = Cow::Borrowed(&[][..]);
        let (mut start, mut end) = (0, 0); // the run of kept properties that is not yet in `kept`
        let mut block = Reader::new(self.raw, 0);
        while let Some(id) = self.raw.get(block.at()) {
            let at = block.at();
            if next(&mut block).is_none() {
                break;
            }
            if FORWARDED & (1u64 << (id & 63)) != 0 {
                if end != at {
                    append(&mut kept, self.raw.get(start..end).unwrap_or_default());
                    start = at;
                }
                end = block.at();
            }
        }
        append(&mut kept, self.raw.get(start..end).unwrap_or_default());
        kept
    }
}

fn append<'a>(kept: &mut Cow<'a, [u8]>, run: &'a [u8]) {
    if kept.is_empty() {
        *kept = Cow::Borrowed(run);
    } else if !run.is_empty() {
        kept.to_mut().extend_from_slice(run);
    }
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The properties of a block, in the order sent.
#[derive(Clone)]
pub struct Iter<'a> {
    block: Reader<'a>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        next(&mut self.block)
    }
}

/// The next property of a block that was validated when it was read.
fn next<'a>(block: &mut Reader<'a>) -> Option<Property<'a>> {
    let id = block.u8("").ok()?;
    property(id, block).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwardable(raw: &[u8]) -> Cow<'_, [u8]> {
        Properties { raw }.forwardable()
    }

    #[test]
    fn forwards_in_order_and_borrows_where_it_can() {
        let expiry = [0x02, 0, 0, 0, 9];
        let alias = [0x23, 0, 5];
        let delay = [0x18, 0, 0, 0, 1];
        let id = [0x0B, 0x80, 0x01];
        let text = [0x01, 1];
        let user = [0x26, 0, 1, b'k', 0, 1, b'v'];
        type Case<'a> = (&'a [&'a [u8]], &'a [&'a [u8]], bool);
        let cases: [Case<'_>; 9] = [
            (&[], &[], true),
            (&[&text], &[&text], true),
            (&[&user, &text, &user], &[&user, &text, &user], true),
            (&[&alias, &expiry, &text, &user], &[&text, &user], true),
            (&[&user, &text, &alias, &id], &[&user, &text], true),
            (&[&delay, &user, &expiry], &[&user], true),
            (&[&alias], &[], true),
            (&[&user, &alias, &text], &[&user, &text], false),
            (&[&user, &alias, &text, &expiry, &delay, &user, &id], &[&user, &text, &user], false),
        ];
        for (block, expected, borrowed) in cases {
            let raw = block.concat();
            let kept = forwardable(&raw);
            assert_eq!(*kept, expected.concat(), "{block:?}");
            assert_eq!(matches!(kept, Cow::Borrowed(_)), borrowed, "{block:?}");
        }
    }

    #[test]
    fn every_property_is_read_as_written() {
        use Property::*;
        let all = [
            PayloadFormatIndicator(true),
            MessageExpiryInterval(u32::MAX),
            ContentType("text/plain"),
            ResponseTopic("a/b"),
            CorrelationData(&[0, 255]),
            SubscriptionIdentifier(268_435_455),
            SessionExpiryInterval(1),
            AssignedClientIdentifier("id"),
            ServerKeepAlive(60),
            AuthenticationMethod("m"),
            AuthenticationData(&[1]),
            RequestProblemInformation(false),
            WillDelayInterval(7),
            RequestResponseInformation(true),
            ResponseInformation("r"),
            ServerReference("s"),
            ReasonString("é"),
            ReceiveMaximum(1),
            TopicAliasMaximum(0),
            TopicAlias(u16::MAX),
            MaximumQoS(1),
            RetainAvailable(false),
            UserProperty("", "v"),
            MaximumPacketSize(1),
            WildcardSubscriptionAvailable(true),
            SubscriptionIdentifierAvailable(false),
            SharedSubscriptionAvailable(true),
        ];
        let mut raw = Vec::new();
        all.iter().for_each(|p| p.put(&mut raw));
        let properties = Properties { raw: &raw };
        assert_eq!(properties.iter().collect::<Vec<_>>(), all);
        assert_eq!(properties.user_properties().collect::<Vec<_>>(), [("", "v")]);
    }

    /// Table 2-4: who may have what, for every identifier and place.
    #[test]
    fn places() {
        use Place::*;
        let table: [(u8, &[Place]); 27] = [
            (0x01, &[Publish, PublishOut, Will]),
            (0x02, &[Publish, PublishOut, Will]),
            (0x03, &[Publish, PublishOut, Will]),
            (0x08, &[Publish, PublishOut, Will]),
            (0x09, &[Publish, PublishOut, Will]),
            (0x0B, &[PublishOut, Subscribe]),
            (0x11, &[Connect, ConnAck, Disconnect]),
            (0x12, &[ConnAck]),
            (0x13, &[ConnAck]),
            (0x15, &[Connect, ConnAck, Auth]),
            (0x16, &[]), // wants a method beside it
            (0x17, &[Connect]),
            (0x18, &[Will]),
            (0x19, &[Connect]),
            (0x1A, &[ConnAck]),
            (0x1C, &[ConnAck, Disconnect]),
            (0x1F, &[ConnAck, Ack, Disconnect, Auth]),
            (0x21, &[Connect, ConnAck]),
            (0x22, &[Connect, ConnAck]),
            (0x23, &[Publish, PublishOut]),
            (0x24, &[ConnAck]),
            (0x25, &[ConnAck]),
            (
                0x26,
                &[Connect, ConnAck, Publish, PublishOut, Will, Ack, Subscribe, Unsubscribe, Disconnect, Auth],
            ),
            (0x27, &[Connect, ConnAck]),
            (0x28, &[ConnAck]),
            (0x29, &[ConnAck]),
            (0x2A, &[ConnAck]),
        ];
        for place in
            [Connect, ConnAck, Publish, PublishOut, Will, Ack, Subscribe, Unsubscribe, Disconnect, Auth]
        {
            for id in 0..=255u8 {
                let allowed = table.iter().any(|(i, places)| *i == id && places.contains(&place));
                let value: &[u8] = match id {
                    0x01 | 0x0B | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => &[1],
                    0x13 | 0x21..=0x23 => &[0, 1],
                    0x02 | 0x11 | 0x18 | 0x27 => &[0, 0, 0, 1],
                    0x26 => &[0, 0, 0, 0],
                    _ => &[0, 1, b'a'],
                };
                let block = [&[value.len() as u8 + 1, id][..], value].concat();
                let result = Properties::read(&mut Reader::new(&block, 0), place, |_| ());
                assert_eq!(result.is_ok(), allowed, "{id:#04x} in {place:?}");
            }
        }
    }
}
