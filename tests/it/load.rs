//! Clients that outlive their broker: persistent sessions that come back, send again what was not acknowledged and write
//! down what they see. They do what the specification asks of a client; [`crate::history`] judges the broker. In a cluster
//! they go to the next node when they are sent away or lose their connection.

use crate::broker::{Broker, http_get};
use crate::client::{Client, Dial, In, Out, publish_bytes, subscribe_bytes};
use crate::history::{Event, History, Msg, Name, Will};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What all clients of a run share.
#[derive(Clone)]
pub struct Stage {
    /// Of the broker, or of every node.
    pub addresses: Vec<SocketAddr>,
    /// Their admin HTTP, in the same order, if etcd may go away while clients subscribe: then SUBACK does not wait for other nodes, and does
    /// not mean that they know (G6).
    pub admin: Vec<SocketAddr>,
    pub history: Arc<History>,
    /// Publishers begin nothing new.
    pub stop: Arc<AtomicBool>,
    /// [`END`] is about to be published, or has been: who subscribes from now on may not be told.
    pub ended: Arc<AtomicBool>,
    /// The test has failed: nobody waits for anything.
    pub failed: Arc<AtomicBool>,
    /// The history is being judged, which takes its time if it is long: meanwhile nothing need come.
    pub judging: Arc<AtomicBool>,
    /// Wills are written down. Whether that of a client is due which the broker has sent away nobody can say.
    pub wills: bool,
}

/// Ends the load when it is dropped, in a failing test too: a scope waits for its threads.
pub struct Stops(Stage);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.failed.fetch_or(std::thread::panicking(), Ordering::Release);
        self.0.stop.store(true, Ordering::Release);
    }
}

impl Stage {
    pub fn new(address: SocketAddr) -> Stage {
        Stage::cluster(vec![address])
    }

    pub fn cluster(addresses: Vec<SocketAddr>) -> Stage {
        let (admin, history, stop, ended, failed, judging) = Default::default();
        Stage { addresses, admin, history, stop, ended, failed, judging, wills: false }
    }

    /// The same for clients of one broker.
    pub fn at(&self, address: SocketAddr) -> Stage {
        Stage { addresses: vec![address], admin: Vec::new(), ..self.clone() }
    }

    /// How many SUBACKs have not waited for other nodes, at the node that a client is connected to; `None` if it does not say.
    fn unwaited(&self, client: &Client) -> Option<u64> {
        if self.admin.is_empty() {
            return Some(0);
        }
        let node = client.peer().ok()?;
        let node = self.addresses.iter().position(|address| *address == node)?;
        let (_, page) = http_get(self.admin[node], "/metrics").ok()?;
        let name = "berth_cluster_suback_waits_total{outcome=\"skipped\"} ";
        page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok())
    }

    /// Ends the load when it is dropped.
    pub fn stops(&self) -> Stops {
        Stops(self.clone())
    }

    /// Whether the test has failed meanwhile.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// Says to subscribers that no more comes.
pub const END: &str = "end";

/// What is said on connection number `conn`, written down. If `wills` are too, they tell of which connection they are.
pub fn connecting(dial: &Dial, history: &History, conn: u64, wills: bool) -> Dial {
    let (mut dial, by) = (dial.clone(), Name::from(dial.client_id.as_str()));
    let mut sent = None;
    if let Some(will) = dial.will.as_mut().filter(|_| wills) {
        let (qos, delay_ms) = (will.qos as u8, u64::from(will.delay_s) * 1000);
        let known = Will { of: by, n: conn, qos, delay_ms };
        will.payload = known.payload();
        sent = Some(known);
    }
    history.add(Event::Connecting { by, conn, clean: dial.clean, will: sent });
    dial
}

/// Says goodbye, so that no will is published.
pub fn leave(client: Client, by: Name, history: &History) {
    history.add(Event::Leaving { by });
    client.disconnect();
    history.add(Event::Left { by });
}

/// Connects as soon as there is a broker, at the next address each time.
fn reconnect(dial: &Dial, stage: &Stage, conn: u64) -> Client {
    let by = Name::from(dial.client_id.as_str());
    let dial = connecting(dial, &stage.history, conn, stage.wills);
    let first: usize = dial.client_id.bytes().map(usize::from).sum::<usize>() + conn as usize;
    let mut addresses = stage.addresses.iter().cycle().skip(first % stage.addresses.len());
    let client = wait::until("the broker is back", || match dial.try_connect(*addresses.next()?) {
        _ if stage.has_failed() => panic!("{}: the test has failed", dial.client_id),
        Ok((client, In::ConnAck { reason: Reason::Success, .. })) => Some(client),
        Ok((_, In::ConnAck { reason: Reason::ServerUnavailable, .. })) if stage.addresses.len() > 1 => None,
        Ok((_, In::Closed)) | Err(_) => None,
        Ok((_, other)) => panic!("{}: {other:?}", dial.client_id),
    });
    stage.history.add(Event::Connected { by, conn, clean: false, present: client.present });
    client
}

/// The next packet; an error if the connection is lost. That nothing comes for long is no loss, but a failure, unless the history is
/// being judged.
fn receive(client: &mut Client, dial: &Dial, stage: &Stage) -> io::Result<In> {
    loop {
        match client.try_recv() {
            Ok(
                In::Closed
                | In::Disconnect(Reason::ServerMoved | Reason::ServerBusy | Reason::ServerShuttingDown),
            ) => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && stage.judging.load(Ordering::Acquire) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let at = client.peer().map_or_else(|e| e.to_string(), |at| at.to_string());
                panic!("nothing comes any more to {} at {at}", dial.client_id)
            }
            other => return other,
        }
    }
}

/// A message that is not finished.
struct Unfinished {
    id: u16,
    msg: Msg,
    /// PUBREC came: PUBREL has been or is to be sent.
    released: bool,
}

/// Publishes on several topics with QoS 1 and 2 by turns, a window of messages at a time.
pub struct Publisher {
    pub dial: Dial,
    pub window: usize,
    /// `load/<client>/<number below this>`.
    pub topics: u64,
    /// How long it waits after each message.
    pub pace: Duration,
    stage: Stage,
    unfinished: VecDeque<Unfinished>,
    /// Messages begun so far.
    begun: u64,
    last_id: u16,
    numbers: BTreeMap<(String, u8), u64>,
}

impl Publisher {
    pub fn new(dial: Dial, window: usize, stage: &Stage) -> Publisher {
        let (unfinished, numbers) = (VecDeque::new(), BTreeMap::new());
        let (stage, pace) = (stage.clone(), Duration::ZERO);
        Publisher { dial, window, topics: 2, pace, stage, unfinished, begun: 0, last_id: 0, numbers }
    }

    /// Runs until it is told to stop and everything is acknowledged.
    pub fn run(mut self) {
        for conn in 1.. {
            let mut client = reconnect(&self.dial, &self.stage, conn);
            if self.session(&mut client).is_ok() {
                leave(client, self.dial.client_id.as_str().into(), &self.stage.history);
                return;
            }
        }
    }

    /// One connection; an error if it is lost.
    fn session(&mut self, client: &mut Client) -> io::Result<()> {
        for u in &self.unfinished {
            if u.released {
                client.ack(AckKind::PubRel, u.id)?;
            } else {
                self.send(client, &u.msg, u.id, true)?;
            }
        }
        loop {
            let stopping = self.stage.stop.load(Ordering::Acquire);
            if stopping && self.unfinished.is_empty() {
                return Ok(());
            }
            while !stopping && self.unfinished.len() < self.window {
                let (msg, id) = self.next();
                let sent = self.send(client, &msg, id, false);
                self.unfinished.push_back(Unfinished { id, msg, released: false });
                sent?;
                if self.pace > Duration::ZERO {
                    std::thread::park_timeout(self.pace);
                }
            }
            match receive(client, &self.dial, &self.stage)? {
                In::PubAck(id, reason) => self.acked(id, reason, true),
                In::PubRec(id, reason) => {
                    self.acked(id, reason, false);
                    client.ack(AckKind::PubRel, id)?;
                }
                In::PubComp(id, _) => self.unfinished.retain(|u| u.id != id),
                other => panic!("{}: {other:?}", self.dial.client_id),
            }
        }
    }

    fn next(&mut self) -> (Msg, u16) {
        self.begun += 1;
        let qos = 1 + (self.begun % 2) as u8;
        let topic = format!("load/{}/{}", self.dial.client_id, self.begun / 2 % self.topics);
        let n = self.numbers.entry((topic.clone(), qos)).or_default();
        *n += 1;
        let from = self.dial.client_id.as_str().into();
        let msg = Msg { from, topic: topic.as_str().into(), qos, n: *n, retain: false };
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.unfinished.iter().all(|u| u.id != self.last_id) {
                return (msg, self.last_id);
            }
        }
    }

    fn send(&self, client: &mut Client, msg: &Msg, packet_id: u16, dup: bool) -> io::Result<()> {
        self.stage.history.add(Event::Sent(*msg));
        let (payload, qos) = (msg.payload(), QoS::from_bits(msg.qos).unwrap());
        let out = Out {
            topic: msg.topic.as_str(),
            payload: payload.as_bytes(),
            qos,
            retain: false,
            dup,
            packet_id,
        };
        client.send(&publish_bytes(self.dial.version, &out))
    }

    fn acked(&mut self, id: u16, reason: Reason, finished: bool) {
        assert!(!reason.is_error(), "{}: {reason:?}", self.dial.client_id);
        let at = self.unfinished.iter().position(|u| u.id == id);
        let at = at.unwrap_or_else(|| panic!("{}: {id} was acknowledged twice", self.dial.client_id));
        let u = &mut self.unfinished[at];
        assert_eq!(u.msg.qos == 1, finished, "wrong kind of acknowledgement for {:?}", u.msg);
        if !u.released {
            self.stage.history.add(Event::Acked(u.msg));
        }
        u.released = true;
        if finished {
            self.unfinished.remove(at);
        }
    }
}

/// Before a client subscribes again whose SUBACK has not waited for other nodes.
const AGAIN: Duration = Duration::from_millis(50);

/// Receives until the message on [`END`] comes.
pub struct Subscriber {
    pub dial: Dial,
    stage: Stage,
    /// After so many messages it goes to another node.
    pub restless: Option<usize>,
    /// What it subscribes to before anything else; once SUBACK has come, nothing.
    wants: Option<String>,
    /// QoS 2 packet identifiers between PUBLISH and PUBREL: kept across connections.
    begun: HashSet<u16>,
    conn: u64,
}

impl Subscriber {
    /// Makes the session and subscribes, so that everything published from now on is its.
    pub fn new(dial: Dial, filter: &str, stage: &Stage) -> Subscriber {
        let mut client = reconnect(&dial, stage, 1);
        let codes = client.subscribe(&[(filter, QoS::ExactlyOnce), (END, QoS::AtLeastOnce)]);
        assert_eq!(codes, [2, 1]);
        let by = dial.client_id.as_str().into();
        stage.history.add(Event::Subscribed { by, filter: filter.into() });
        leave(client, by, &stage.history);
        Subscriber { conn: 1, wants: None, ..Subscriber::late(dial, filter, stage) }
    }

    /// Makes the session and becomes a member of a group.
    pub fn member(dial: Dial, filter: &str, stage: &Stage) -> Subscriber {
        let by = dial.client_id.as_str().into();
        stage.history.add(Event::Joining { by, filter: filter.into() });
        let mut client = reconnect(&dial, stage, 1);
        assert_eq!(client.subscribe(&[(filter, QoS::ExactlyOnce), (END, QoS::AtLeastOnce)]), [2, 1]);
        leave(client, by, &stage.history);
        Subscriber { conn: 1, wants: None, ..Subscriber::late(dial, filter, stage) }
    }

    /// Subscribes when it runs, while others publish. A member of a group if the filter is a shared one.
    pub fn late(dial: Dial, filter: &str, stage: &Stage) -> Subscriber {
        let (begun, wants) = (HashSet::new(), Some(filter.to_owned()));
        Subscriber { dial, stage: stage.clone(), restless: None, wants, begun, conn: 0 }
    }

    fn subscribe(&self, client: &mut Client, filter: &str) -> io::Result<()> {
        let by = self.dial.client_id.as_str().into();
        if filter.starts_with("$share/") {
            self.stage.history.add(Event::Joining { by, filter: filter.into() });
        }
        let id = client.packet_id();
        let filters = [(filter, QoS::ExactlyOnce), (END, QoS::AtLeastOnce)];
        client.send(&subscribe_bytes(self.dial.version, id, &filters))
    }

    fn subscribed(&mut self, codes: &[u8]) {
        assert_eq!(codes, [2, 1]);
        let filter = self.wants.take().filter(|filter| !filter.starts_with("$share/"));
        if let Some(filter) = filter {
            let by = self.dial.client_id.as_str().into();
            self.stage.history.add(Event::Subscribed { by, filter: filter.as_str().into() });
        }
    }

    pub fn run(mut self) {
        loop {
            self.conn += 1;
            let mut client = reconnect(&self.dial, &self.stage, self.conn);
            if self.session(&mut client).is_ok() {
                leave(client, self.dial.client_id.as_str().into(), &self.stage.history);
                return;
            }
        }
    }

    fn session(&mut self, client: &mut Client) -> io::Result<()> {
        let mut unwaited = self.stage.unwaited(client);
        if let Some(filter) = self.wants.clone() {
            self.subscribe(client, &filter)?;
        }
        let mut messages = 0;
        loop {
            if self.restless.is_some_and(|most| messages > most) && !self.stage.stop.load(Ordering::Acquire) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match receive(client, &self.dial, &self.stage)? {
                In::SubAck(_, codes) => {
                    let before = std::mem::replace(&mut unwaited, self.stage.unwaited(client));
                    if before.is_some() && before == unwaited {
                        self.subscribed(&codes);
                    } else if let Some(filter) = self.wants.clone() {
                        self.stage.history.wait_len(usize::MAX, AGAIN);
                        unwaited = self.stage.unwaited(client);
                        self.subscribe(client, &filter)?;
                    }
                    if self.stage.ended.load(Ordering::Acquire) {
                        client.send(&[0xC0, 0])?; // it is owed nothing
                    }
                }
                In::Publish(p) => {
                    messages += 1;
                    let repeated = p.qos == QoS::ExactlyOnce && !self.begun.insert(p.packet_id);
                    if p.topic == END {
                        client.ack(AckKind::PubAck, p.packet_id)?;
                        client.send(&[0xC0, 0])?; // whatever the broker still sends comes before the answer
                        continue;
                    }
                    let msg = Msg::parse(&p.topic, &p.payload).unwrap_or_else(|| panic!("{p:?}"));
                    if !repeated {
                        let by = self.dial.client_id.as_str().into();
                        self.stage.history.add(Event::Received { by, conn: self.conn, dup: p.dup, msg });
                    }
                    let kind = if p.qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
                    client.ack(kind, p.packet_id)?;
                }
                In::PubRel(id) => {
                    self.begun.remove(&id);
                    client.ack(AckKind::PubComp, id)?;
                }
                In::PingResp => return Ok(()),
                other => panic!("{}: {other:?}", self.dial.client_id),
            }
        }
    }
}

/// That a test which fails under load ends, and does not wait for it.
#[test]
fn a_load_ends_when_its_test_fails() {
    let broker = Broker::start();
    let stage = Stage::new(broker.mqtt);
    let publisher = Publisher::new(Dial::v5("p").persistent(), 5, &stage);
    let failing = AssertUnwindSafe(|| {
        std::thread::scope(|scope| {
            let _stops = stage.stops();
            scope.spawn(move || publisher.run());
            assert!(stage.history.wait_len(100, wait::PATIENCE), "nothing is published");
            panic!("the test fails");
        });
    });
    assert!(catch_unwind(failing).is_err());
    assert!(stage.has_failed());
}
