//! The value of `retained/<topic>`: the message as JSON that a person can read.

use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::{ClusterTime, MessageId, RetainedRecord};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The version of the format written here.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Value<'a> {
    v: u32,
    /// The incarnation and number of the update that wrote it.
    id: (u64, u64),
    qos: u8,
    /// The payload, if it is UTF-8 and little of it must be escaped …
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    /// … else in base64.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    base64: Option<Cow<'a, str>>,
    /// Properties as on the wire, base64.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    properties: Option<Cow<'a, str>>,
    /// Milliseconds since the epoch, by the cluster's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

/// Bytes of text that stay text although base64 would be shorter: for those who read.
const READABLE: usize = 4 << 10;

/// Bytes of JSON around payload and properties, at most.
const AROUND: usize = 160;

/// The payload as text, unless it is none, or so much of it must be escaped that base64 is shorter.
fn text(payload: &[u8]) -> Option<&str> {
    let escaped = |b: &u8| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let text = std::str::from_utf8(payload).ok()?;
    let escaped: usize = payload.iter().map(escaped).sum();
    (escaped <= base64_size(payload).max(READABLE)).then_some(text)
}

fn base64_size(bytes: &[u8]) -> usize {
    bytes.len().div_ceil(3) * 4
}

/// Bytes of the value for an update of a topic, at most.
pub fn size_of(message: &Message) -> usize {
    base64_size(message.payload()).max(READABLE) + base64_size(message.properties()) + AROUND
}

/// The value for an update of a topic, whose expiry is by this process's clock.
pub fn encode(message: &Message, id: MessageId, time: &ClusterTime) -> Vec<u8> {
    let text = text(message.payload());
    let bytes = |bytes: &[u8]| Cow::<str>::Owned(STANDARD.encode(bytes));
    let value = Value {
        v: VERSION,
        id: (id.origin, id.seq),
        qos: message.qos() as u8,
        text: text.map(Cow::Borrowed),
        base64: text.is_none().then(|| bytes(message.payload())),
        properties: (!message.properties().is_empty()).then(|| bytes(message.properties())),
        expires: message.expires_at().map(|at| time.cluster(at).as_millis()),
    };
    // Fails for maps with keys that are no strings only.
    serde_json::to_vec(&value).unwrap_or_default()
}

/// Reads the value of `topic`; the message's expiry stays in the cluster's time.
///
/// # Errors
/// What is wrong with it, in words.
pub fn decode(topic: &str, value: &[u8]) -> Result<RetainedRecord, String> {
    let value: Value<'_> = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    if value.v != VERSION {
        return Err(format!("version {} of a retained message; this release reads {VERSION}", value.v));
    }
    let bytes = |text: Option<Cow<'_, str>>| match text {
        Some(text) => STANDARD.decode(text.as_bytes()).map_err(|e| e.to_string()),
        None => Ok(Vec::new()),
    };
    let payload = match value.text {
        Some(text) => text.into_owned().into_bytes(),
        None => bytes(value.base64)?,
    };
    let properties = bytes(value.properties)?;
    let qos = QoS::from_bits(value.qos).ok_or_else(|| format!("QoS {}", value.qos))?;
    let message = Message::new(Parts {
        topic,
        payload: &payload,
        properties: &properties,
        qos,
        retain: true,
        expires_at: value.expires.map(Time),
    });
    Ok(RetainedRecord { message, id: MessageId { origin: value.id.0, seq: value.id.1 } })
}

/// The update that wrote a value, without reading the message; `None` if that cannot be told.
pub fn id_of(value: &[u8]) -> Option<MessageId> {
    #[derive(Deserialize)]
    struct Id {
        id: (u64, u64),
    }
    let Id { id } = serde_json::from_slice(value).ok()?;
    Some(MessageId { origin: id.0, seq: id.1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8], properties: &[u8], expires_at: Option<Time>) -> Message {
        Message::new(Parts {
            topic: "a/b",
            payload,
            properties,
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at,
        })
    }

    #[test]
    fn a_value_reads_as_written() {
        let id = MessageId { origin: 9, seq: u64::MAX };
        for (payload, expires) in
            [(&b"21.5 \xC2\xB0C"[..], None), (&[0xFF, 0, 7][..], Some(Time(99))), (b"", None)]
        {
            let message = message(payload, &[1, 1], expires);
            let value = encode(&message, id, &ClusterTime::own_clock());
            assert_eq!(id_of(&value), Some(id));
            assert_eq!(decode("a/b", &value).unwrap(), RetainedRecord { message, id });
        }
        let readable = encode(&message(b"on", &[], None), id, &ClusterTime::own_clock());
        assert_eq!(
            std::str::from_utf8(&readable).unwrap(),
            r#"{"v":1,"id":[9,18446744073709551615],"qos":1,"text":"on"}"#
        );
    }

    #[test]
    fn an_expiry_is_written_in_the_clusters_time() {
        let (time, id) = (ClusterTime::unknown(), MessageId { origin: 1, seq: 1 });
        time.set(-30_000, true);
        let value = encode(&message(b"on", &[], Some(Time(100_000))), id, &time);
        assert!(std::str::from_utf8(&value).unwrap().ends_with(r#""expires":70000}"#));
        assert_eq!(decode("a/b", &value).unwrap().message.expires_at(), Some(Time(70_000)));
    }

    #[test]
    fn a_value_is_never_much_larger_than_its_message() {
        let id = MessageId { origin: u64::MAX, seq: u64::MAX };
        for unit in ["\x01", "a", "\"", "\n\t\"", "{\"a\":1}", "\u{7f}", "\u{b0}C"] {
            for count in [0, 1, 7, 1000, 100_000] {
                let message = message(unit.repeat(count).as_bytes(), &[1, 1], Some(Time(u64::MAX)));
                let value = encode(&message, id, &ClusterTime::own_clock());
                assert!(value.len() <= size_of(&message), "{} bytes for {count} of {unit:?}", value.len());
                assert_eq!(decode("a/b", &value).unwrap(), RetainedRecord { message, id });
            }
        }
        let json = encode(
            &message("{\"on\":true}".repeat(50_000).as_bytes(), &[], None),
            id,
            &ClusterTime::own_clock(),
        );
        assert!(
            std::str::from_utf8(&json).unwrap().contains("text"),
            "what a person can read stays readable"
        );
    }

    #[test]
    fn what_is_no_value_is_refused_in_words() {
        for bad in [
            "",
            "{}",
            r#"{"v":2,"id":[1,2],"qos":0}"#,
            r#"{"v":1,"id":[1,2],"qos":3}"#,
            r#"{"v":1,"id":[1,2],"qos":0,"base64":"?"}"#,
        ] {
            assert!(!decode("t", bad.as_bytes()).unwrap_err().is_empty());
        }
    }
}
