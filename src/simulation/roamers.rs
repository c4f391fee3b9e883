//! Clients that stay with a node and keep their sessions, through the deaths of that node.

use super::*;
use crate::mqtt::{QoS, Reason};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const EXPIRY_S: u32 = 3_600;

/// How long a client waits for CONNACK before it tries again, milliseconds.
const CONNECT_MS: u64 = 12_000;

/// A client of one node: it connects there again whenever it can.
pub(super) struct Resident {
    pub client: SimClient,
    pub at: usize,
    pub connected: bool,
    /// Does not connect by itself.
    pub absent: bool,
    /// Goes to the next node that is there if it is not served.
    pub hunts: bool,
    since: Time,
    /// It has been told that it has a session.
    known: bool,
}

impl Resident {
    /// On its way to a node; it may not be served.
    pub fn begin(cluster: &Cluster, name: &str, at: usize) -> Resident {
        let client = SimClient::connect(cluster.open(at), name, false, EXPIRY_S);
        let since = cluster.sim.now();
        Resident { client, at, connected: false, absent: false, hunts: false, since, known: false }
    }

    /// Connected, with a session.
    pub fn new(cluster: &Cluster, name: &str, at: usize) -> Resident {
        let mut resident = Resident::begin(cluster, name, at);
        assert!(
            cluster.until(|| {
                resident.hear();
                resident.connected
            }),
            "{name}"
        );
        resident
    }

    /// Connects to another node, and stays there.
    pub fn go(&mut self, cluster: &Cluster, node: usize) {
        self.at = node;
        self.connected = false;
        self.absent = false;
        self.since = cluster.sim.now();
        self.client.resume(cluster.open(node), EXPIRY_S);
    }

    /// What came since the last time. True if the client has just been connected.
    pub fn hear(&mut self) -> (Vec<Got>, bool) {
        let got = self.client.take();
        let mut back = false;
        for g in &got {
            if let Got::Connected { present, reason } = g {
                self.connected = *reason == Reason::Success;
                let lost = self.connected && self.known && !present;
                assert!(!lost, "{}: the session is gone", self.client.client_id);
                self.known |= self.connected;
                back |= self.connected;
            }
        }
        (got, back)
    }

    /// Connects again if the connection is lost, or does not come about, and the node is there.
    pub fn stay(&mut self, cluster: &Cluster) {
        let late = !self.connected && cluster.sim.now().since_ms(self.since) > CONNECT_MS;
        if self.absent || !(self.client.wire.closed() || late) {
            return;
        }
        let next = usize::from(self.hunts);
        let mut nodes = (0..cluster.len()).map(|n| (self.at + next + n) % cluster.len());
        let node = if self.hunts { nodes.find(|n| cluster.node(*n).is_some()) } else { nodes.next() };
        if let Some(node) = node.filter(|n| cluster.node(*n).is_some()) {
            self.go(cluster, node);
        }
    }
}

/// Publishes numbers, and again what is not over when it comes back.
pub(super) struct Sender {
    pub resident: Resident,
    pub no: usize,
    pub qos: QoS,
    pub next: usize,
    /// Not over: packet identifier, payload, and whether PUBREC came.
    pub open: Vec<(u16, String, bool)>,
    /// What it has published more than once.
    pub repeated: BTreeSet<String>,
}

impl Sender {
    pub fn new(cluster: &Cluster, no: usize, at: usize, qos: QoS) -> Sender {
        let resident = Resident::new(cluster, &format!("p{no}"), at);
        Sender { resident, no, qos, next: 0, open: Vec::new(), repeated: BTreeSet::new() }
    }

    pub fn publish(&mut self, topic: &str) {
        let payload = format!("{}:{:04}", self.no, self.next);
        self.next += 1;
        let id = match self.resident.connected {
            true => self.resident.client.publish(topic, &payload, self.qos, false),
            false => self.resident.client.packet_id(),
        };
        self.open.push((id, payload, false));
    }

    pub fn tend(&mut self, cluster: &Cluster, topic: &str) {
        let (got, back) = self.resident.hear();
        for g in got {
            match g {
                Got::Acked(id, reason) if reason.is_error() => panic!("{id}: {reason:?}"),
                Got::Acked(id, _) if self.qos == QoS::ExactlyOnce => {
                    self.open.iter_mut().filter(|(i, ..)| *i == id).for_each(|o| o.2 = true);
                }
                Got::Acked(id, _) | Got::Completed(id) => self.open.retain(|(i, ..)| *i != id),
                _ => {}
            }
        }
        if back {
            for (id, payload, received) in &self.open {
                match received {
                    true => self.resident.client.release(*id),
                    false => {
                        self.repeated.insert(payload.clone());
                        self.resident.client.publish_again(topic, payload, self.qos, *id);
                    }
                }
            }
        }
        self.resident.stay(cluster);
    }
}

/// Writes down what comes.
pub(super) struct Listener {
    pub resident: Resident,
    pub got: Vec<String>,
    /// What it subscribes to whenever it is connected, until SUBACK has come.
    wants: Option<(String, QoS)>,
}

impl Listener {
    /// Connected and subscribed.
    pub fn new(cluster: &Cluster, name: &str, at: usize, filter: &str, qos: QoS) -> Listener {
        let mut listener = Listener::begin(cluster, name, at, filter, qos);
        let mut subscribed = false;
        assert!(
            cluster.until(|| {
                subscribed |= listener.hear();
                subscribed
            }),
            "{name}"
        );
        listener
    }

    /// Connected; SUBACK has not come.
    pub fn begin(cluster: &Cluster, name: &str, at: usize, filter: &str, qos: QoS) -> Listener {
        let mut resident = Resident::new(cluster, name, at);
        resident.client.subscribe(filter, qos);
        Listener { resident, got: Vec::new(), wants: Some((filter.to_owned(), qos)) }
    }

    /// On its way to a node, where it subscribes once it is served.
    pub fn late(cluster: &Cluster, name: &str, at: usize, filter: &str, qos: QoS) -> Listener {
        let resident = Resident::begin(cluster, name, at);
        Listener { resident, got: Vec::new(), wants: Some((filter.to_owned(), qos)) }
    }

    /// True if SUBACK came.
    pub fn hear(&mut self) -> bool {
        let mut subscribed = false;
        let (got, back) = self.resident.hear();
        for g in got {
            match g {
                Got::Message { payload, .. } => self.got.push(payload),
                Got::Subscribed(..) => subscribed = true,
                _ => {}
            }
        }
        if subscribed {
            self.wants = None;
        }
        if let Some((filter, qos)) = self.wants.as_ref().filter(|_| back) {
            self.resident.client.subscribe(filter, *qos);
        }
        subscribed
    }

    pub fn tend(&mut self, cluster: &Cluster) {
        self.hear();
        self.resident.stay(cluster);
    }

    /// What is wrong with the order: what comes for the first time goes never back for any publisher. What was published again, as
    /// `repeated` says, may come as new to whoever has not had it.
    pub fn went_back(&self, repeated: impl Fn(&str) -> bool) -> Option<String> {
        let mut newest: BTreeMap<&str, &str> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for payload in &self.got {
            if known.insert(payload) && !repeated(payload) {
                let (publisher, n) = payload.split_once(':')?;
                let before = newest.insert(publisher, n);
                if before >= Some(n) {
                    let who = &self.resident.client.client_id;
                    return Some(format!("{who}: {payload} is late: {:?}", self.got));
                }
            }
        }
        None
    }

    pub fn distinct(&self) -> BTreeSet<&str> {
        self.got.iter().map(String::as_str).collect()
    }
}
