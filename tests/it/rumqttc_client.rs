//! rumqttc, an independent client in Rust, in both of its versions.

use crate::broker::Broker;
use crate::wait::PATIENCE;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

/// What a client reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Connected(bool),
    Granted,
    /// PUBACK or PUBCOMP.
    Done,
    Message {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        retain: bool,
    },
}

/// A client in either version.
pub trait Node: Sized {
    const NAME: &str;
    fn open(to: SocketAddr, id: &str, persistent: bool, will: Option<&str>) -> Self;
    fn events(&self) -> &Receiver<Seen>;
    fn send_subscribe(&self, filter: &str, qos: u8);
    fn send_publish(&self, topic: &str, payload: &[u8], qos: u8, retain: bool);
    /// Says goodbye.
    fn close(self);
    /// Drops the connection without a word.
    fn vanish(self);

    fn wait<T>(&self, what: &str, wanted: impl Fn(Seen) -> Option<T>) -> T {
        loop {
            let seen = self.events().recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no {what}: {e}"));
            if let Some(found) = wanted(seen) {
                return found;
            }
        }
    }

    /// Connects; whether there was a session.
    fn connect(to: SocketAddr, id: &str, persistent: bool, will: Option<&str>) -> (Self, bool) {
        let node = Self::open(to, &format!("{}-{id}", Self::NAME), persistent, will);
        let present = node.wait("CONNACK", |s| if let Seen::Connected(p) = s { Some(p) } else { None });
        (node, present)
    }

    fn subscribe(&self, filter: &str, qos: u8) {
        self.send_subscribe(filter, qos);
        self.wait("SUBACK", |s| (s == Seen::Granted).then_some(()));
    }

    fn publish(&self, topic: &str, payload: &[u8], qos: u8, retain: bool) {
        self.send_publish(topic, payload, qos, retain);
        if qos > 0 {
            self.wait("acknowledgement", |s| (s == Seen::Done).then_some(()));
        }
    }

    /// Topic, payload, QoS and RETAIN of the next message.
    fn next(&self) -> (String, Vec<u8>, u8, bool) {
        self.wait("message", |s| match s {
            Seen::Message { topic, payload, qos, retain } => Some((topic, payload, qos, retain)),
            _ => None,
        })
    }
}

/// The two versions have the same shape and different types.
macro_rules! node {
    ($name:literal) => {
        pub struct Client {
            client: Sender,
            seen: Receiver<Seen>,
            stop: Arc<AtomicBool>,
            thread: JoinHandle<()>,
        }

        fn qos_of(qos: u8) -> QoS {
            [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos)]
        }

        fn seen(packet: Packet) -> Option<Seen> {
            Some(match packet {
                Packet::ConnAck(c) => Seen::Connected(c.session_present),
                Packet::SubAck(_) => Seen::Granted,
                Packet::PubAck(_) | Packet::PubComp(_) => Seen::Done,
                Packet::Publish(p) => Seen::Message {
                    topic: String::from_utf8(p.topic.to_owned().into()).unwrap(),
                    payload: p.payload.to_vec(),
                    qos: p.qos as u8,
                    retain: p.retain,
                },
                _ => return None,
            })
        }

        impl Node for Client {
            const NAME: &str = $name;

            fn open(to: SocketAddr, id: &str, persistent: bool, will: Option<&str>) -> Client {
                let mut options = MqttOptions::new(id, to.ip().to_string(), to.port());
                configure(&mut options, persistent);
                if let Some(topic) = will {
                    options.set_last_will(last_will(topic));
                }
                let (client, mut connection) = Sender::new(options, 10);
                let (report, events) = channel();
                let stop = Arc::new(AtomicBool::new(false));
                let stopped = stop.clone();
                let thread = std::thread::spawn(move || {
                    for event in connection.iter() {
                        let Ok(event) = event else { return };
                        if stopped.load(Ordering::Acquire) {
                            return;
                        }
                        if let Event::Incoming(packet) = event
                            && let Some(seen) = seen(packet)
                            && report.send(seen).is_err()
                        {
                            return;
                        }
                    }
                });
                Client { client, seen: events, stop, thread }
            }

            fn events(&self) -> &Receiver<Seen> {
                &self.seen
            }

            fn send_subscribe(&self, filter: &str, qos: u8) {
                self.client.subscribe(filter, qos_of(qos)).unwrap();
            }

            fn send_publish(&self, topic: &str, payload: &[u8], qos: u8, retain: bool) {
                self.client.publish(topic, qos_of(qos), retain, payload.to_vec()).unwrap();
            }

            fn close(self) {
                self.client.disconnect().unwrap();
                self.thread.join().unwrap();
            }

            fn vanish(self) {
                self.stop.store(true, Ordering::Release);
                self.send_publish("vanishing", b"", 0, false); // so that the thread looks
                self.thread.join().unwrap();
            }
        }
    };
}

mod v4 {
    use super::*;
    use rumqttc::{Client as Sender, Event, LastWill, MqttOptions, Packet, QoS};

    fn configure(options: &mut MqttOptions, persistent: bool) {
        options.set_clean_session(!persistent);
        options.set_max_packet_size(2 << 20, 2 << 20);
    }

    fn last_will(topic: &str) -> LastWill {
        LastWill::new(topic, "gone", QoS::AtLeastOnce, false)
    }

    node!("rumqttc-4");
}

mod v5 {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWill, Packet};
    use rumqttc::v5::{Client as Sender, Event, MqttOptions};

    fn configure(options: &mut MqttOptions, persistent: bool) {
        options.set_clean_start(!persistent);
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = persistent.then_some(3600);
        properties.max_packet_size = Some(2 << 20);
        options.set_connect_properties(properties);
    }

    fn last_will(topic: &str) -> LastWill {
        LastWill::new(topic, "gone", QoS::AtLeastOnce, false, None)
    }

    node!("rumqttc-5");
}

fn all_qos<N: Node>(to: SocketAddr) {
    let (receiver, _) = N::connect(to, "in", false, None);
    let (sender, _) = N::connect(to, "out", false, None);
    receiver.subscribe("q/#", 2);
    for n in 0..60u8 {
        sender.publish(&format!("q/{}", n % 3), &[n], n % 3, false);
    }
    let mut seen: [Vec<u8>; 3] = Default::default();
    for _ in 0..60 {
        let (topic, payload, qos, retain) = receiver.next();
        assert_eq!((topic, retain), (format!("q/{qos}"), false));
        seen[usize::from(qos)].push(payload[0]);
    }
    for (qos, seen) in (0u8..).zip(&seen) {
        assert_eq!(*seen, (0..60).filter(|n| n % 3 == qos).collect::<Vec<_>>());
    }
    // As large as it may be, less what surrounds the payload.
    let payload = vec![7; (1 << 20) - 64];
    sender.publish("q/1", &payload, 1, false);
    assert!(receiver.next().1 == payload);
    sender.close();
    receiver.close();
}

fn retained<N: Node>(to: SocketAddr) {
    let (sender, _) = N::connect(to, "out", false, None);
    for (topic, payload, qos) in [("r/a", "old", 1), ("r/a", "new", 2), ("r/b", "x", 1), ("r/b", "", 1)] {
        sender.publish(topic, payload.as_bytes(), qos, true);
    }
    let (receiver, _) = N::connect(to, "in", false, None);
    receiver.subscribe("r/+", 1);
    assert_eq!(receiver.next(), ("r/a".to_owned(), b"new".to_vec(), 1, true));
    sender.publish("r/c", b"live", 1, true);
    assert_eq!(receiver.next(), ("r/c".to_owned(), b"live".to_vec(), 1, false));
    sender.close();
    receiver.close();
}

fn offline<N: Node>(to: SocketAddr) {
    let (receiver, present) = N::connect(to, "sleeper", true, None);
    assert!(!present);
    receiver.subscribe("o/#", 2);
    receiver.close();
    let (sender, _) = N::connect(to, "out", false, None);
    for n in 0..100u8 {
        sender.publish("o/t", &[n], 1 + n % 2, false);
    }
    sender.close();
    let (receiver, present) = N::connect(to, "sleeper", true, None);
    assert!(present);
    for n in 0..100u8 {
        assert_eq!(receiver.next(), ("o/t".to_owned(), vec![n], 1 + n % 2, false));
    }
    receiver.close();
}

fn wills<N: Node>(to: SocketAddr) {
    let (watch, _) = N::connect(to, "watch", false, None);
    watch.subscribe("w/#", 1);
    N::connect(to, "clean", false, Some("w/clean")).0.close();
    N::connect(to, "lost", false, Some("w/lost")).0.vanish();
    assert_eq!(watch.next(), ("w/lost".to_owned(), b"gone".to_vec(), 1, false));
    watch.close();
}

fn shared<N: Node>(to: SocketAddr) {
    let members: Vec<N> = (0..2).map(|n| N::connect(to, &format!("member-{n}"), false, None).0).collect();
    for (n, member) in members.iter().enumerate() {
        member.subscribe("$share/g/s/t", 1);
        member.subscribe(&format!("s/end/{n}"), 1);
    }
    let (sender, _) = N::connect(to, "out", false, None);
    for n in 0..40u8 {
        sender.publish("s/t", &[n], 1, false);
    }
    // A message for each member behind all others says that no more comes.
    let mut seen = Vec::new();
    for (n, member) in members.iter().enumerate() {
        let end = format!("s/end/{n}");
        sender.publish(&end, b"", 1, false);
        let before = seen.len();
        loop {
            let (topic, payload, ..) = member.next();
            if topic == end {
                break;
            }
            seen.extend(payload);
        }
        assert!(seen.len() > before, "member {n} got nothing");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<u8>>());
}

fn everything<N: Node>() {
    let broker = Broker::start();
    all_qos::<N>(broker.mqtt);
    retained::<N>(broker.mqtt);
    offline::<N>(broker.mqtt);
    wills::<N>(broker.mqtt);
    shared::<N>(broker.mqtt);
}

#[test]
fn rumqttc_3() {
    everything::<v4::Client>();
}

#[test]
fn rumqttc_5() {
    everything::<v5::Client>();
}
