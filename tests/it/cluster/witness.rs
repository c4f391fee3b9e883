//! Clients of a cluster that go from node to node and write down what they see.

use crate::client::{Client, Dial, In};
use crate::history::{Event, History, Msg, Name};
use crate::load::{connecting, leave};
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// A connection with its number.
pub struct Conn {
    pub client: Client,
    no: u64,
}

/// A client with a persistent session that subscribes to one topic.
pub struct Witness {
    pub dial: Dial,
    pub topic: String,
    history: Arc<History>,
    conns: u64,
    /// QoS 2 packet identifiers between PUBLISH and PUBREL: kept across connections.
    begun: HashSet<u16>,
    got: HashSet<Msg>,
}

impl Witness {
    /// Makes the session and subscribes.
    pub fn start(dial: Dial, topic: &str, to: SocketAddr, history: &Arc<History>) -> (Witness, Conn) {
        let (begun, got) = (HashSet::new(), HashSet::new());
        let topic = topic.to_owned();
        let mut w = Witness { dial, topic, history: history.clone(), conns: 0, begun, got };
        let mut conn = w.begin(to);
        w.accepted(&mut conn, false);
        assert_eq!(conn.client.subscribe(&[(&w.topic, QoS::ExactlyOnce)]), [2]);
        history.add(Event::Subscribed { by: w.name(), filter: w.topic.as_str().into() });
        (w, conn)
    }

    fn name(&self) -> Name {
        self.dial.client_id.as_str().into()
    }

    /// Sends CONNECT.
    pub fn begin(&mut self, to: SocketAddr) -> Conn {
        self.conns += 1;
        let dial = connecting(&self.dial, &self.history, self.conns, true);
        let mut client = Client::raw(to, dial.version).unwrap();
        client.send(&dial.bytes()).unwrap();
        Conn { client, no: self.conns }
    }

    /// Waits for CONNACK.
    pub fn accepted(&self, conn: &mut Conn, present: bool) {
        let answer = conn.client.recv();
        let In::ConnAck { present: said, reason: Reason::Success, .. } = answer else {
            panic!("{}: {answer:?}", self.dial.client_id)
        };
        assert_eq!(said, present, "{}", self.dial.client_id);
        self.history.add(Event::Connected { by: self.name(), conn: conn.no, clean: false, present });
    }

    /// Goes to another node; the old connection is told, and nothing is asked of it any more.
    pub fn go(&mut self, to: SocketAddr, mut old: Conn) -> Conn {
        let mut new = self.begin(to);
        self.accepted(&mut new, true);
        self.ask(&mut old);
        self.taken_over(old);
        new
    }

    /// Sends PINGREQ, which must be answered as long as the connection is the client's.
    pub fn ask(&self, conn: &mut Conn) {
        self.history.add(Event::Asked { by: self.name(), conn: conn.no });
        // It may be closed already.
        let _ = conn.client.send(&[0xC0, 0]);
    }

    /// Reads what was still sent on a connection that was taken over.
    pub fn taken_over(&mut self, mut conn: Conn) {
        loop {
            match conn.client.recv() {
                In::Disconnect(reason) => {
                    assert_eq!(reason, Reason::SessionTakenOver, "{}", self.dial.client_id);
                    assert_eq!(conn.client.recv(), In::Closed);
                    return;
                }
                other => self.take(&mut conn, other),
            }
        }
    }

    /// Reads until `n` more messages have come.
    pub fn read(&mut self, conn: &mut Conn, n: usize) {
        let wanted = self.got.len() + n;
        while self.got.len() < wanted {
            let packet = conn.client.recv();
            self.take(conn, packet);
        }
    }

    /// Reads until all that is owed has come, and then what comes besides; says goodbye.
    pub fn finish(&mut self, mut conn: Conn, owed: &Owed) {
        let owed = owed.to(self.name(), self.topic.as_str().into());
        let mut missing: HashSet<Msg> = owed.into_iter().filter(|m| !self.got.contains(m)).collect();
        while !missing.is_empty() {
            let packet = conn.client.try_recv().unwrap_or_else(|e| {
                panic!("{} has not got {} messages: {e}: {missing:?}", self.dial.client_id, missing.len())
            });
            self.take(&mut conn, packet);
            missing.retain(|m| !self.got.contains(m));
        }
        self.ask(&mut conn);
        loop {
            match conn.client.recv() {
                In::PingResp => break,
                other => self.take(&mut conn, other),
            }
        }
        leave(conn.client, self.name(), &self.history);
    }

    /// Writes down and acknowledges a packet.
    fn take(&mut self, conn: &mut Conn, packet: In) {
        let (by, no) = (self.name(), conn.no);
        // What cannot be acknowledged on a lost connection comes again.
        let _ = match packet {
            In::Publish(p) => {
                let exactly = p.qos == QoS::ExactlyOnce;
                let msg = Msg::parse(&p.topic, &p.payload).unwrap_or_else(|| panic!("{p:?}"));
                if !exactly || self.begun.insert(p.packet_id) {
                    self.got.insert(msg);
                    self.history.add(Event::Received { by, conn: no, dup: p.dup, msg });
                }
                conn.client.ack(if exactly { AckKind::PubRec } else { AckKind::PubAck }, p.packet_id)
            }
            In::PubRel(id) => {
                self.begun.remove(&id);
                conn.client.ack(AckKind::PubComp, id)
            }
            In::PingResp => {
                self.history.add(Event::Answered { by, conn: no });
                Ok(())
            }
            other => panic!("{}: {other:?}", self.dial.client_id),
        };
    }
}

/// What is owed to whom, by a history of publishers that have all come to their end.
pub struct Owed {
    /// By topic, with the place in the history where it was first sent.
    sent: HashMap<Name, Vec<(usize, Msg)>>,
    since: HashMap<Name, usize>,
}

impl Owed {
    pub fn new(events: &[Event]) -> Owed {
        let (mut sent, mut since) = (HashMap::<Name, Vec<_>>::new(), HashMap::new());
        let mut known = HashSet::new();
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Sent(msg) if known.insert(*msg) => sent.entry(msg.topic).or_default().push((at, *msg)),
                Event::Subscribed { by, .. } => drop(since.insert(*by, at)),
                _ => {}
            }
        }
        Owed { sent, since }
    }

    fn to(&self, by: Name, topic: Name) -> Vec<Msg> {
        let since = self.since[&by];
        let sent = self.sent.get(&topic).map_or(&[][..], Vec::as_slice);
        sent.iter().filter(|(at, _)| *at > since).map(|(_, msg)| *msg).collect()
    }
}
