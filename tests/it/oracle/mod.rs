//! Differential tests against two independent codecs: `mqtt-protocol` for MQTT 3.1.1, `mqtt-protocol-core` for 5.0.
//!
//! Valid packets must be accepted by both and mean the same. Of mutated packets, what both accept must mean the same;
//! where they disagree, the disagreement must be in a list (`v3`, `v5`) that says which section makes us right.

mod v3;
mod v5;

use crate::arbitrary::{FromClient, ServerExtras, from_client, server_extras, varint};
use crate::corpus::{State, malformed};
use berth::mqtt::packet::SubscribeFilter;
use berth::mqtt::{Packet, Version, decode, frame_len};
use proptest::collection::vec;
use proptest::prelude::*;

/// What a packet says, in words that two decoders can agree on.
type Meaning = String;

/// A will in these words: topic, payload, QoS, retain.
type WillWords<'a> = Option<(&'a str, &'a [u8], u8, bool)>;

#[allow(clippy::too_many_arguments)] // one per field of CONNECT
fn connect_means(
    clean: bool,
    keep_alive: u16,
    id: &str,
    will: WillWords<'_>,
    username: Option<&str>,
    password: Option<&[u8]>,
    properties: &[u8],
    will_properties: &[u8],
) -> Meaning {
    format!(
        "CONNECT {clean} {keep_alive} {id:?} {will:?} {username:?} {password:?} {properties:?} {will_properties:?}"
    )
}

fn publish_means(
    flags: (bool, u8, bool),
    topic: &str,
    packet_id: u16,
    properties: &[u8],
    payload: &[u8],
) -> Meaning {
    format!("PUBLISH {flags:?} {topic:?} {packet_id} {properties:?} {payload:?}")
}

fn ack_means(name: &str, packet_id: u16, reason: u8) -> Meaning {
    format!("{name} {packet_id} {reason}")
}

fn filters_mean(name: &str, packet_id: u16, properties: &[u8], filters: &[(String, u8)]) -> Meaning {
    format!("{name} {packet_id} {properties:?} {filters:?}")
}

fn reason_means(name: &str, reason: u8, properties: &[u8]) -> Meaning {
    format!("{name} {reason} {properties:?}")
}

/// What we make of the frame; the error is the rule it breaks.
fn ours(version: Version, frame: &[u8]) -> Result<Meaning, String> {
    let len = frame_len(frame, u32::MAX).map_err(|e| rule(&e))?.ok_or("incomplete")?;
    if len != frame.len() {
        return Err("not one frame".to_owned());
    }
    let state = if frame[0] >> 4 == 1 { None } else { Some(version) };
    Ok(match decode(state, frame).map_err(|e| rule(&e))? {
        Packet::Connect(c) if c.version != version => return Err("another version".to_owned()),
        Packet::Connect(c) => connect_means(
            c.clean_start,
            c.keep_alive_s,
            c.client_id,
            c.will.as_ref().map(|w| (w.topic, w.payload, w.qos as u8, w.retain)),
            c.username,
            c.password,
            c.properties.raw(),
            c.will.as_ref().map(|w| w.properties.raw()).unwrap_or_default(),
        ),
        Packet::Publish(p) => {
            publish_means((p.dup, p.qos as u8, p.retain), p.topic, p.packet_id, p.properties.raw(), p.payload)
        }
        Packet::PubAck(a) => ack_means("PUBACK", a.packet_id, a.reason as u8),
        Packet::PubRec(a) => ack_means("PUBREC", a.packet_id, a.reason as u8),
        Packet::PubRel(a) => ack_means("PUBREL", a.packet_id, a.reason as u8),
        Packet::PubComp(a) => ack_means("PUBCOMP", a.packet_id, a.reason as u8),
        Packet::Subscribe(s) => {
            let words = |f: SubscribeFilter<'_>| (f.filter.to_owned(), f.options.to_bits());
            let filters: Vec<_> = s.filters().map(words).collect();
            filters_mean("SUBSCRIBE", s.packet_id, s.properties.raw(), &filters)
        }
        Packet::Unsubscribe(u) => {
            let filters: Vec<_> = u.filters().map(|f| (f.to_owned(), 0)).collect();
            filters_mean("UNSUBSCRIBE", u.packet_id, u.properties.raw(), &filters)
        }
        Packet::PingReq => "PINGREQ".to_owned(),
        Packet::Disconnect(d) => reason_means("DISCONNECT", d.reason as u8, d.properties.raw()),
        Packet::Auth(a) => reason_means("AUTH", a.reason as u8, a.properties.raw()),
    })
}

/// The rule in an error, without the position.
fn rule(error: &berth::mqtt::DecodeError) -> String {
    let text = error.to_string();
    text.split(" (byte").next().unwrap_or(&text).to_owned()
}

/// One change to a frame. Insertions and deletions keep the remaining length true, or nothing behind the fixed header
/// would ever be reached.
#[derive(Clone, Debug)]
enum Mutation {
    Overwrite(usize, u8),
    Flip(usize, u8),
    Insert(usize, u8),
    Delete(usize),
    Truncate(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let small = prop_oneof![0..=4u8, any::<u8>(), Just(0xFF), Just(b'#')];
    prop_oneof![
        (any::<usize>(), small.clone()).prop_map(|(at, byte)| Mutation::Overwrite(at, byte)),
        (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<usize>(), small).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        any::<usize>().prop_map(Mutation::Delete),
        any::<usize>().prop_map(Mutation::Truncate),
    ]
}

fn mutate(frame: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let (mut first, body) = split(frame);
    let mut body = body.to_vec();
    for mutation in mutations {
        // Position 0 is the first byte, the others are the body's.
        let len = body.len() + 1;
        match *mutation {
            Mutation::Overwrite(at, byte) if at % len == 0 => first = byte,
            Mutation::Overwrite(at, byte) => body[at % len - 1] = byte,
            Mutation::Flip(at, bit) if at % len == 0 => first ^= 1 << bit,
            Mutation::Flip(at, bit) => body[at % len - 1] ^= 1 << bit,
            Mutation::Insert(at, byte) => body.insert(at % len, byte),
            Mutation::Delete(_) if body.is_empty() => (),
            Mutation::Delete(at) => drop(body.remove(at % body.len())),
            Mutation::Truncate(at) => body.truncate(at % len),
        }
    }
    let mut out = vec![first];
    varint(&mut out, body.len());
    out.extend_from_slice(&body);
    out
}

/// A rule that the other codec does not enforce, and why we do.
struct Lenient {
    /// The rule, as our error says it.
    rule: &'static str,
    /// What makes us right.
    section: &'static str,
    /// A frame that shows it, in hex.
    example: &'static str,
}

/// The other codec.
struct Oracle {
    version: Version,
    /// What it makes of a frame.
    meaning: fn(&[u8]) -> Result<Meaning, String>,
    /// What it accepts wrongly.
    lenient: &'static [Lenient],
    /// Whether it is wrong to refuse this packet, which we accept.
    refuses_wrongly: fn(&Packet<'_>) -> bool,
}

impl Oracle {
    fn theirs(&self, frame: &[u8]) -> Result<Meaning, String> {
        // Theirs may panic on malformed bytes: that is a refusal too.
        let result = std::panic::catch_unwind(|| (self.meaning)(frame));
        result.unwrap_or_else(|_| Err("panic".to_owned()))
    }

    /// Compares both on one frame; `Err` if they disagree in a way that is not listed.
    fn compare(&self, frame: &[u8]) -> Result<(), String> {
        match (ours(self.version, frame), self.theirs(frame)) {
            (Ok(a), Ok(b)) if a == b => Ok(()),
            (Ok(a), Ok(b)) => Err(format!("two meanings of {frame:02x?}\nours   {a}\ntheirs {b}")),
            (Err(_), Err(_)) => Ok(()),
            (Err(rule), Ok(_)) if self.lenient.iter().any(|l| l.rule == rule) => Ok(()),
            (Err(rule), Ok(theirs)) => {
                Err(format!("we alone refuse {frame:02x?}\nrule   {rule}\ntheirs {theirs}"))
            }
            (Ok(_), Err(_)) if self.is_wrong_to_refuse(frame) => Ok(()),
            (Ok(ours), Err(why)) => {
                Err(format!("they alone refuse {frame:02x?}\nours   {ours}\ntheirs {why}"))
            }
        }
    }

    fn is_wrong_to_refuse(&self, frame: &[u8]) -> bool {
        let state = if frame[0] >> 4 == 1 { None } else { Some(self.version) };
        decode(state, frame).is_ok_and(|packet| (self.refuses_wrongly)(&packet))
    }

    /// A valid packet: both accept it, and agree, unless they are wrong to refuse it.
    fn check_valid(&self, frame: &[u8]) -> Result<(), String> {
        ours(self.version, frame).map_err(|rule| format!("refused {frame:02x?}: {rule}"))?;
        self.compare(frame)
    }

    /// The corpus of malformed packets: what they accept of it must be in the list.
    fn check_corpus(&self) {
        let cases = malformed();
        let unlisted: Vec<String> = cases
            .iter()
            .filter(|case| case.version == Some(self.version) && case.state != State::Session)
            // Without a readable length there is nothing to show them.
            .filter(|case| !case.bytes[1..].iter().take(4).all(|byte| byte & 0x80 != 0))
            .filter_map(|case| self.compare(&case.bytes).err().map(|e| format!("line {}: {e}", case.line)))
            .collect();
        assert!(unlisted.is_empty(), "{}", unlisted.join("\n"));
    }

    /// Every entry of the list is needed: its example is refused by us, for that rule, and accepted by them.
    fn check_list(&self) {
        for Lenient { rule, section, example } in self.lenient {
            assert!(!section.is_empty());
            let frame = hex(example);
            assert_eq!(ours(self.version, &frame).unwrap_err(), *rule, "{example}");
            assert!(self.theirs(&frame).is_ok(), "{rule}: they refuse {example}: {:?}", self.theirs(&frame));
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Without the fixed header: first byte and body of a frame.
fn split(frame: &[u8]) -> (u8, &[u8]) {
    let header = 1 + frame[1..].iter().take_while(|&&b| b & 0x80 != 0).count() + 1;
    (frame[0], frame.get(header..).unwrap_or_default())
}

fn no_local_share(packet: &FromClient) -> bool {
    let FromClient::Subscribe { filters, .. } = packet else { return false };
    filters.iter().any(|(f, o)| o.no_local && f.starts_with("$share/"))
}

/// More cases than usual: they are cheap.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.saturating_mul(8), ..config }
}

fn packets(version: Version) -> impl Strategy<Value = FromClient> {
    from_client(version).prop_filter("no local on a shared subscription", |p| !no_local_share(p))
}

fn mutated(version: Version) -> impl Strategy<Value = Vec<u8>> {
    (packets(version), vec(mutation(), 1..4)).prop_map(move |(packet, m)| mutate(&packet.encode(version), &m))
}
