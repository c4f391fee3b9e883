//! The SIGKILL test again, with a client that others wrote: rumqttc publishes and receives, its own logic resumes.
//!
//! rumqttc forgets at a reconnect which QoS 2 messages it has begun to receive, so that it receives with QoS 1 here; and
//! it sends again in the order of its identifiers, which is not that of the messages once they have wrapped (seen: 1644 to
//! 1658 before 1640), so that each publisher has one message on the way at a time.

use crate::broker::Broker;
use crate::client::Dial;
use crate::history::{self, Event as Saw, Msg};
use crate::kill::{finish, kill};
use crate::load::{END, Stage, Subscriber};
use crate::random::Random;
use rumqttc::{Client, Connection, Event, MqttOptions, Outgoing, Packet, QoS};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

const KILLS: u64 = 12;

fn options(id: &str, stage: &Stage, inflight: u16) -> MqttOptions {
    let mut options = MqttOptions::new(id, stage.addresses[0].ip().to_string(), stage.addresses[0].port());
    options.set_clean_session(false).set_inflight(inflight);
    options
}

/// The next event; `None` if the connection was lost.
fn next(connection: &mut Connection) -> Option<Event> {
    match connection.recv().unwrap() {
        Ok(event) => Some(event),
        Err(_) => {
            std::thread::park_timeout(Duration::from_millis(2)); // it tries again at once otherwise
            None
        }
    }
}

/// Waits for CONNACK; there must be a session if `present`.
fn connected(connection: &mut Connection, present: bool) {
    loop {
        if let Some(Event::Incoming(Packet::ConnAck(c))) = next(connection) {
            return assert_eq!(c.session_present, present);
        }
    }
}

struct Publisher {
    name: &'static str,
    qos: QoS,
    stage: Stage,
    client: Client,
    connection: Connection,
}

impl Publisher {
    fn new(name: &'static str, qos: QoS, window: u16, stage: &Stage) -> Publisher {
        let (client, mut connection) = Client::new(options(name, stage, window), 2 * usize::from(window));
        connected(&mut connection, false);
        Publisher { name, qos, stage: stage.clone(), client, connection }
    }

    fn run(mut self, window: usize) {
        let saw = |event| self.stage.history.add(event);
        let (mut asked, mut sent): (VecDeque<Msg>, HashMap<u16, Msg>) = Default::default();
        let mut n = 0;
        loop {
            let stopping = self.stage.stop.load(Ordering::Acquire);
            while !stopping && asked.len() + sent.len() < window {
                n += 1;
                let topic = format!("load/{}", self.name);
                let msg = Msg {
                    from: self.name.into(),
                    topic: topic.as_str().into(),
                    qos: self.qos as u8,
                    n,
                    retain: false,
                };
                saw(Saw::Sent(msg));
                self.client.try_publish(msg.topic.as_str(), self.qos, false, msg.payload()).unwrap();
                asked.push_back(msg);
            }
            if self.stage.has_failed() || (stopping && asked.is_empty() && sent.is_empty()) {
                return;
            }
            match next(&mut self.connection) {
                Some(Event::Outgoing(Outgoing::Publish(id))) if !sent.contains_key(&id) => {
                    sent.insert(id, asked.pop_front().unwrap());
                }
                Some(Event::Incoming(Packet::PubAck(ack))) => {
                    saw(Saw::Acked(sent.remove(&ack.pkid).unwrap()))
                }
                Some(Event::Incoming(Packet::PubRec(ack))) => saw(Saw::Acked(sent[&ack.pkid])),
                Some(Event::Incoming(Packet::PubComp(ack))) => drop(sent.remove(&ack.pkid)),
                Some(Event::Incoming(Packet::ConnAck(c))) => assert!(c.session_present, "{}", self.name),
                Some(_) => {}
                // Whatever was not acknowledged may now be sent again.
                None => sent.values().chain(&asked).for_each(|m| saw(Saw::Sent(*m))),
            }
        }
    }
}

/// Receives with QoS 1 until the end is published.
fn receive(stage: &Stage, mut connection: Connection) {
    let mut conn = 1;
    while !stage.has_failed() {
        let event = next(&mut connection);
        // What rumqttc read before the connection was lost it would hand out after the CONNACK of the next one.
        let late: Vec<Event> = match event {
            None => connection.eventloop.state.events.drain(..).collect(),
            Some(_) => Vec::new(),
        };
        for event in event.into_iter().chain(late) {
            match event {
                Event::Incoming(Packet::Publish(p)) if p.topic == END => return,
                Event::Incoming(Packet::Publish(p)) => {
                    let msg = Msg::parse(&p.topic, &p.payload).unwrap();
                    stage.history.add(Saw::Received { by: "receiver".into(), conn, dup: p.dup, msg });
                }
                Event::Incoming(Packet::ConnAck(c)) => {
                    assert!(c.session_present, "the receiver's session is gone");
                    conn += 1;
                }
                _ => {}
            }
        }
    }
}

#[test]
fn rumqttc_clients_survive_sigkill() {
    let mut random = Random::seeded("BERTH_KILL_SEED");
    let mut broker = Broker::start();
    let stage = Stage::new(broker.mqtt);
    let everything = Subscriber::new(Dial::v5("everything").persistent(), "load/#", &stage);
    let (client, mut connection) = Client::new(options("receiver", &stage, 10), 10);
    connected(&mut connection, false);
    for filter in ["load/at-least-once", END] {
        client.subscribe(filter, QoS::AtLeastOnce).unwrap();
        while !matches!(next(&mut connection), Some(Event::Incoming(Packet::SubAck(_)))) {}
    }
    stage.history.add(Saw::Subscribed { by: "receiver".into(), filter: "load/at-least-once".into() });
    let least = Publisher::new("at-least-once", QoS::AtLeastOnce, 1, &stage);
    let exactly = Publisher::new("exactly-once", QoS::ExactlyOnce, 1, &stage);
    let mut events = std::thread::scope(|scope| {
        let stops = stage.stops();
        scope.spawn(|| everything.run());
        scope.spawn(|| receive(&stage, connection));
        let publishing = [scope.spawn(|| least.run(1)), scope.spawn(|| exactly.run(1))];
        kill(&mut broker, &stage, KILLS, &mut random);
        drop(stops);
        for p in publishing {
            p.join().unwrap();
        }
        finish(&stage)
    });
    events.extend(stage.history.take());
    let report = history::must_hold("rumqttc", &events);
    assert!(report.acked > 20 * report.kills, "too little load");
}
