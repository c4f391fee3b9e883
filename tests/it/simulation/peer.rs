//! A client as the specification wants it: it repeats what was not acknowledged, in order, and acknowledges what comes.

use super::Rng;
use crate::checker::{ClientNo, Event, Msg};
use crate::transcript::world::{Seen, World};
use berth::mqtt::client::{self, AckKind, ServerPacket};
use berth::mqtt::packet::{RetainHandling, SubscribeOptions};
use berth::mqtt::{Property, QoS, Reason, Version};
use std::collections::{BTreeSet, HashMap, VecDeque};

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
    Connecting { clean: bool },
    Connected,
}

/// See the module.
pub struct Peer {
    no: ClientNo,
    version: Version,
    /// Two network connections, so that one can take over from the other.
    lines: [usize; 2],
    line: usize,
    state: State,
    unheard: VecDeque<Seen>,
    sending: Vec<Sending>,
    /// QoS 2 packet identifiers between PUBLISH and PUBREL.
    receiving: BTreeSet<u16>,
    subscribed: bool,
    next_id: u16,
    numbers: HashMap<(u8, u8), u32>,
}

impl Peer {
    pub fn new(no: ClientNo, version: Version, world: &mut World) -> Peer {
        let lines = [world.client(&format!("{no}a")), world.client(&format!("{no}b"))];
        for at in lines {
            world.clients[at].version = version;
        }
        Peer {
            no,
            version,
            lines,
            line: 0,
            state: State::Away,
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

    pub fn lose(&mut self, world: &mut World) -> String {
        world.lose(self.lines[self.line]);
        self.cut_off();
        "lost".to_owned()
    }

    /// Connects, over another network connection if there is one.
    pub fn connect(
        &mut self,
        clean: bool,
        rng: &mut Rng,
        world: &mut World,
        history: &mut Vec<Event>,
    ) -> String {
        self.cut_off();
        self.line = 1 - self.line;
        world.lose(self.lines[self.line]);
        let mut properties = Vec::new();
        if self.version.is_v5() {
            client::put_property(&mut properties, &Property::SessionExpiryInterval(100_000));
            let room = [1, 2, 5, u16::MAX][rng.below(4) as usize];
            client::put_property(&mut properties, &Property::ReceiveMaximum(room));
        }
        // MQTT 3 has no clean start of a session that is then kept.
        let clean = clean && self.version.is_v5();
        let mut bytes = Vec::new();
        client::connect(
            &mut bytes,
            &client::Connect {
                version: self.version,
                clean_start: clean,
                keep_alive_s: 0,
                properties: &properties,
                client_id: &format!("peer-{}", self.no),
                will: None,
                username: None,
                password: None,
            },
        );
        if clean {
            self.forget();
        }
        history.push(Event::Connecting { by: self.no, clean });
        self.state = State::Connecting { clean };
        world.open(self.lines[self.line]);
        self.say(&bytes, world);
        format!("connect clean={clean}")
    }

    fn forget(&mut self) {
        self.sending.clear();
        self.receiving.clear();
        self.subscribed = false;
    }

    pub fn publish(&mut self, rng: &mut Rng, world: &mut World, history: &mut Vec<Event>) -> String {
        if self.state != State::Connected || self.sending.len() >= WINDOW {
            return "nothing to publish".to_owned();
        }
        let (topic, qos) = (rng.below(2) as u8, 1 + rng.below(2) as u8);
        let n = self.numbers.entry((topic, qos)).or_default();
        *n += 1;
        let msg = Msg { from: self.no, topic, qos, n: *n };
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
        let Msg { from, topic, qos, n } = s.msg;
        let (mut bytes, payload) = (Vec::new(), format!("{from} {qos} {n}"));
        let publish = client::Publish {
            topic: &format!("t/{topic}"),
            payload: payload.as_bytes(),
            qos: QoS::from_bits(qos).unwrap(),
            retain: false,
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
                    self.cut_off();
                    break;
                }
                Seen::Frame(frame) => self.hear(&frame, history),
            };
            self.say(&answer, world);
        }
        format!("listen to {n}")
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
                history.push(Event::Subscribed { by: self.no });
            }
            ServerPacket::Publish(p) => {
                let msg = parse(p.topic, p.payload);
                assert_eq!(msg.qos, p.qos as u8, "delivered at another QoS");
                let (kind, new) = match p.qos {
                    QoS::ExactlyOnce => (AckKind::PubRec, self.receiving.insert(p.packet_id)),
                    _ => (AckKind::PubAck, true),
                };
                if new {
                    history.push(Event::Received { by: self.no, msg });
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
        history.push(Event::Connected { by: self.no, clean, present });
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
            client::subscribe(out, self.version, u16::MAX, &[], &[("t/+", options)]);
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

fn parse(topic: &str, payload: &[u8]) -> Msg {
    let numbers: Vec<u32> =
        std::str::from_utf8(payload).unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    Msg {
        from: numbers[0] as usize,
        topic: topic.strip_prefix("t/").unwrap().parse().unwrap(),
        qos: numbers[1] as u8,
        n: numbers[2],
    }
}
