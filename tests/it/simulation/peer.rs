//! A client as the specification wants it: it repeats what was not acknowledged, in order, and acknowledges what comes.

use crate::history::{Event, Msg, Name, Will};
use crate::random::Random;
use crate::transcript::world::{START, Seen, World};
use berth::mqtt::client::{self, AckKind, ServerPacket};
use berth::mqtt::packet::{Publish, RetainHandling, SubscribeOptions};
use berth::mqtt::{Property, QoS, Reason, Version};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// What everybody is to have who is subscribed to it.
pub const ALL: &str = "t/+";

/// What one of a group is to have.
pub const SHARED: &str = "$share/group/s/+";

/// The wills of everybody.
pub const WILLS: &str = "w/+";

/// Publishes of one client that are not acknowledged to the end.
const WINDOW: usize = 8;

/// A publish under way.
struct Sending {
    id: u16,
    msg: Msg,
    /// PUBREC came.
    received: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Away,
    Connecting {
        clean: bool,
    },
    Connected,
    /// DISCONNECT was sent then. What comes is heard, and not answered.
    Leaving {
        since: u64,
    },
}

/// See the module.
pub struct Peer {
    name: Name,
    version: Version,
    /// Two network connections, so that one can take over from the other.
    lines: [usize; 2],
    line: usize,
    state: State,
    /// Only listens, and its session never ends.
    observer: bool,
    filters: &'static [&'static str],
    /// Connections made.
    connections: u64,
    /// When the connection was seen alive last; `None` once its loss is written down.
    alive: Option<u64>,
    unheard: VecDeque<Seen>,
    sending: Vec<Sending>,
    /// QoS 2 packet identifiers between PUBLISH and PUBREL.
    receiving: BTreeSet<u16>,
    subscribed: bool,
    next_id: u16,
    numbers: HashMap<(Name, u8), u64>,
}

impl Peer {
    /// A client that only listens.
    pub fn observer(no: usize, filters: &'static [&'static str], world: &mut World) -> Peer {
        Peer { observer: true, ..Peer::new(no, Version::V5, filters, world) }
    }

    pub fn new(no: usize, version: Version, filters: &'static [&'static str], world: &mut World) -> Peer {
        let lines = [world.client(&format!("{no}a")), world.client(&format!("{no}b"))];
        for at in lines {
            world.clients[at].version = version;
        }
        Peer {
            name: no.to_string().as_str().into(),
            version,
            lines,
            line: 0,
            state: State::Away,
            observer: false,
            filters,
            connections: 0,
            alive: None,
            unheard: VecDeque::new(),
            sending: Vec::new(),
            receiving: BTreeSet::new(),
            subscribed: false,
            next_id: 1,
            numbers: HashMap::new(),
        }
    }

    pub fn connected(&self) -> bool {
        self.state != State::Away
    }

    /// The connection is gone, and what came over it and was not heard.
    pub fn cut_off(&mut self) {
        self.state = State::Away;
        self.unheard.clear();
    }

    /// Writes down a loss of the connection that the broker brought about.
    pub fn look_after(&mut self, world: &World, history: &mut Vec<Event>) {
        let Some(since) = self.alive else { return };
        if world.connected(self.lines[self.line]) {
            self.alive = Some(elapsed(world));
        } else if !matches!(self.state, State::Leaving { .. }) {
            self.alive = None;
            history.push(Event::Lost { by: self.name, since });
        }
    }

    /// The broker died, and with it what it knew of connections that were lost before.
    pub fn bereave(&mut self, world: &World, history: &mut Vec<Event>) {
        self.cut_off();
        self.alive = None;
        history.push(Event::Lost { by: self.name, since: elapsed(world) });
    }

    pub fn lose(&mut self, world: &mut World, history: &mut Vec<Event>) -> String {
        world.lose(self.lines[self.line]);
        self.cut_off();
        if self.alive.take().is_some() {
            history.push(Event::Lost { by: self.name, since: elapsed(world) });
        }
        "lost".to_owned()
    }

    /// Says goodbye, with or without the will.
    pub fn leave(&mut self, with_will: bool, world: &mut World, history: &mut Vec<Event>) -> String {
        if self.state != State::Connected || self.observer {
            return "nobody to leave".to_owned();
        }
        if with_will && self.version.is_v5() {
            self.say(&[0xE0, 2, Reason::DisconnectWithWill as u8, 0], world);
            return format!("disconnect with will, {}", self.lose(world, history));
        }
        history.push(Event::Leaving { by: self.name });
        self.state = State::Leaving { since: elapsed(world) };
        let mut bytes = Vec::new();
        client::disconnect_plain(&mut bytes);
        self.say(&bytes, world);
        "disconnect".to_owned()
    }

    fn will(&mut self, rng: &mut Random) -> Option<Will> {
        if self.observer || rng.chance(30) {
            return None;
        }
        let delay_s = [0, 0, 1, 3][rng.below(4) as usize];
        let delay_ms = if self.version.is_v5() { delay_s * 1000 } else { 0 };
        Some(Will { of: self.name, n: self.connections, qos: 1 + rng.below(2) as u8, delay_ms })
    }

    /// Connects, over another network connection if there is one.
    pub fn connect(
        &mut self,
        clean: bool,
        rng: &mut Random,
        world: &mut World,
        history: &mut Vec<Event>,
    ) -> String {
        self.cut_off();
        self.line = 1 - self.line;
        world.lose(self.lines[self.line]);
        self.connections += 1;
        let will = self.will(rng);
        let (will_topic, will_payload) = (format!("w/{}", self.name), self.connections.to_string());
        let mut will_properties = Vec::new();
        if let Some(w) = will.filter(|w| w.delay_ms > 0) {
            let delay_s = (w.delay_ms / 1000) as u32;
            client::put_property(&mut will_properties, &Property::WillDelayInterval(delay_s));
        }
        let mut properties = Vec::new();
        if self.version.is_v5() {
            client::put_property(&mut properties, &Property::SessionExpiryInterval(100_000));
            let room = [1, 2, 5, u16::MAX][rng.below(4) as usize];
            client::put_property(&mut properties, &Property::ReceiveMaximum(room));
        }
        // MQTT 3 has no clean start of a session that is then kept.
        let clean = clean && self.version.is_v5() && !self.observer;
        let mut bytes = Vec::new();
        client::connect(
            &mut bytes,
            &client::Connect {
                version: self.version,
                bridge: false,
                clean_start: clean,
                keep_alive_s: 0,
                properties: &properties,
                client_id: &format!("peer-{}", self.name),
                will: will.map(|w| client::Will {
                    topic: &will_topic,
                    payload: will_payload.as_bytes(),
                    qos: QoS::from_bits(w.qos).unwrap(),
                    retain: false,
                    properties: &will_properties,
                }),
                username: None,
                password: None,
            },
        );
        if clean {
            self.forget();
        }
        history.push(Event::Connecting { by: self.name, conn: self.connections, clean, will });
        self.state = State::Connecting { clean };
        world.open(self.lines[self.line]);
        self.alive = Some(elapsed(world));
        self.say(&bytes, world);
        format!("connect clean={clean} will={will:?}")
    }

    fn forget(&mut self) {
        self.sending.clear();
        self.receiving.clear();
        self.subscribed = false;
    }

    pub fn publish(&mut self, rng: &mut Random, world: &mut World, history: &mut Vec<Event>) -> String {
        if self.observer || self.state != State::Connected || self.sending.len() >= WINDOW {
            return "nothing to publish".to_owned();
        }
        let retain = rng.chance(20);
        let which = rng.below(3);
        let qos = 1 + rng.below(2) as u8;
        let topic = match which {
            _ if retain => format!("r/{}/{qos}", self.name),
            2 => "s/2".to_owned(),
            _ => format!("t/{which}"),
        };
        let topic = Name::from(topic.as_str());
        let n = self.numbers.entry((topic, qos)).or_default();
        *n += 1;
        let msg = Msg { from: self.name, topic, qos, n: *n, retain };
        while self.sending.iter().any(|s| s.id == self.next_id) || self.next_id == 0 {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let sending = Sending { id: self.next_id, msg, received: false };
        self.next_id = self.next_id.wrapping_add(1);
        let bytes = self.publish_bytes(&sending, false);
        self.sending.push(sending);
        history.push(Event::Sent(msg));
        self.say(&bytes, world);
        format!("publish {msg:?}")
    }

    fn publish_bytes(&self, s: &Sending, dup: bool) -> Vec<u8> {
        let Msg { topic, qos, retain, .. } = s.msg;
        let mut payload = s.msg.payload();
        if retain && s.msg.clears() {
            payload.clear();
        }
        let mut bytes = Vec::new();
        let publish = client::Publish {
            topic: topic.as_str(),
            payload: payload.as_bytes(),
            qos: QoS::from_bits(qos).unwrap(),
            retain,
            dup,
            packet_id: s.id,
            properties: &[],
        };
        client::publish(&mut bytes, self.version, &publish);
        bytes
    }

    fn say(&mut self, bytes: &[u8], world: &mut World) {
        world.send(self.lines[self.line], bytes);
        world.settle();
    }

    /// Hears at most `n` packets that came, and answers them.
    pub fn listen(&mut self, n: usize, world: &mut World, history: &mut Vec<Event>) -> String {
        for _ in 0..n {
            self.unheard.extend(world.take_seen(self.lines[self.line]));
            let Some(seen) = self.unheard.pop_front() else { break };
            let answer = match seen {
                Seen::Closed => {
                    self.closed(world, history);
                    break;
                }
                Seen::Frame(frame) => self.hear(&frame, history),
            };
            if !matches!(self.state, State::Leaving { .. }) {
                self.say(&answer, world);
            }
        }
        format!("listen to {n}")
    }

    fn closed(&mut self, world: &World, history: &mut Vec<Event>) {
        // The loss is written down already if there is none here: a DISCONNECT was sent too late then.
        if let Some(alive) = self.alive.take() {
            history.push(match self.state {
                // Later the broker may have closed for want of durability, or of patience.
                State::Leaving { since } if since == elapsed(world) => Event::Left { by: self.name },
                _ => Event::Lost { by: self.name, since: alive },
            });
        }
        self.cut_off();
    }

    /// Hears everything; whether there was anything.
    pub fn hear_out(&mut self, world: &mut World, history: &mut Vec<Event>) -> bool {
        self.unheard.extend(world.take_seen(self.lines[self.line]));
        let any = !self.unheard.is_empty();
        while !self.unheard.is_empty() {
            self.listen(usize::MAX, world, history);
        }
        any
    }

    fn hear(&mut self, frame: &[u8], history: &mut Vec<Event>) -> Vec<u8> {
        let mut out = Vec::new();
        let version = self.version;
        match client::decode(version, frame).expect("a packet that a server may send") {
            ServerPacket::ConnAck(c) if c.reason == Reason::Success => {
                self.welcome(c.session_present, &mut out, history);
            }
            ServerPacket::SubAck(_) => {
                self.subscribed = true;
                if self.filters.contains(&ALL) {
                    history.push(Event::Subscribed { by: self.name, filter: ALL.into() });
                }
            }
            ServerPacket::Publish(p) => {
                let (kind, new) = match p.qos {
                    QoS::ExactlyOnce => (AckKind::PubRec, self.receiving.insert(p.packet_id)),
                    _ => (AckKind::PubAck, true),
                };
                if new {
                    history.push(received(self.name, self.connections, &p));
                }
                client::ack(&mut out, version, kind, p.packet_id, Reason::Success, None);
            }
            ServerPacket::PubRel(a) => {
                self.receiving.remove(&a.packet_id);
                client::ack(&mut out, version, AckKind::PubComp, a.packet_id, Reason::Success, None);
            }
            ServerPacket::PubAck(a) => self.done(a.packet_id, a.reason, history),
            ServerPacket::PubRec(a) if a.reason.is_error() => self.done(a.packet_id, a.reason, history),
            ServerPacket::PubRec(a) => {
                if let Some(s) = self.sending.iter_mut().find(|s| s.id == a.packet_id) {
                    s.received = true;
                    history.push(Event::Acked(s.msg));
                }
                client::ack(&mut out, version, AckKind::PubRel, a.packet_id, Reason::Success, None);
            }
            ServerPacket::PubComp(a) => self.sending.retain(|s| s.id != a.packet_id),
            // A refusal or a goodbye: the end of the connection follows.
            _ => {}
        }
        out
    }

    /// CONNACK came: what is under way is sent again, in order.
    fn welcome(&mut self, present: bool, out: &mut Vec<u8>, history: &mut Vec<Event>) {
        let clean = self.state == State::Connecting { clean: true };
        self.state = State::Connected;
        history.push(Event::Connected { by: self.name, conn: self.connections, clean, present });
        if !present {
            self.forget();
        }
        if !self.subscribed {
            let options = SubscribeOptions {
                qos: QoS::ExactlyOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::DoNotSend,
            };
            if self.filters.contains(&SHARED) {
                history.push(Event::Joining { by: self.name, filter: SHARED.into() });
            }
            let filters: Vec<_> = self.filters.iter().map(|f| (*f, options)).collect();
            client::subscribe(out, self.version, u16::MAX, &[], &filters);
        }
        for s in &self.sending {
            if s.received {
                client::ack(out, self.version, AckKind::PubRel, s.id, Reason::Success, None);
            } else {
                history.push(Event::Sent(s.msg));
                out.extend(self.publish_bytes(s, true));
            }
        }
    }

    fn done(&mut self, id: u16, reason: Reason, history: &mut Vec<Event>) {
        if let Some(at) = self.sending.iter().position(|s| s.id == id) {
            let s = self.sending.remove(at);
            if !reason.is_error() {
                history.push(Event::Acked(s.msg));
            }
        }
    }
}

/// Milliseconds since the beginning.
pub fn elapsed(world: &World) -> u64 {
    world.now.0 - START.0
}

/// Subscribes anew to what is retained, as a session that lasts no longer than that.
pub fn look(world: &mut World, history: &mut Vec<Event>) -> String {
    let (at, version) = (world.client("looker"), Version::V311);
    world.clients[at].version = version;
    let mut bytes = Vec::new();
    let connect = client::Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive_s: 0,
        properties: &[],
        client_id: "looker",
        will: None,
        username: None,
        password: None,
    };
    client::connect(&mut bytes, &connect);
    let options = SubscribeOptions {
        qos: QoS::ExactlyOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    };
    client::subscribe(&mut bytes, version, 1, &[], &[("r/#", options)]);
    world.open(at);
    world.send(at, &bytes);
    world.settle();
    let (mut found, mut subscribed) = (Vec::new(), false);
    for seen in world.take_seen(at) {
        let Seen::Frame(frame) = seen else { panic!("a looker is turned away") };
        match client::decode(version, &frame).expect("a packet that a server may send") {
            ServerPacket::Publish(p) => {
                assert!(p.retain, "a new subscription is sent what is not retained");
                found.push(parse(p.topic, p.payload));
            }
            ServerPacket::SubAck(_) => subscribed = true,
            _ => {}
        }
    }
    assert!(subscribed, "a looker got no SUBACK");
    world.lose(at);
    history.push(Event::Looked { by: "looker".into(), found });
    "look".to_owned()
}

fn received(by: Name, conn: u64, p: &Publish<'_>) -> Event {
    if let Some(of) = p.topic.strip_prefix("w/") {
        let n = std::str::from_utf8(p.payload).unwrap().parse().unwrap();
        return Event::WillSeen { of: of.into(), n, qos: p.qos as u8 };
    }
    let msg = parse(p.topic, p.payload);
    assert_eq!(msg.qos, p.qos as u8, "delivered at another QoS");
    Event::Received { by, conn, dup: p.dup, msg }
}

fn parse(topic: &str, payload: &[u8]) -> Msg {
    let msg = Msg::parse(topic, payload).unwrap();
    Msg { retain: topic.starts_with("r/"), ..msg }
}
