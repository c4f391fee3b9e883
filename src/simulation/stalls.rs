//! How long publishers wait while sessions change places, nodes crash and leave, and the store goes away: no longer than that
//! takes. Nobody waits for what waits for him, so no wait for the sake of order (G3) ends by its limit.
//! `BERTH_SIMULATION_SEEDS=0..200` runs other seeds than the usual.

use super::choices::Choices;
use super::publish_tests::start_routes;
use super::*;
use crate::mqtt::{QoS, Reason};
use std::collections::{BTreeMap, BTreeSet};

const EXPIRY_S: u32 = 3_600;

/// Between two looks at the clients, milliseconds.
const PACE_MS: u64 = 5;

/// Publishes of a publisher that are not acknowledged, at most.
const UNACKNOWLEDGED: usize = 400;

/// What an acknowledgement may take beyond a fault, milliseconds.
const SOON_MS: u64 = 2_000;

struct Publisher {
    client: SimClient,
    qos: QoS,
    next: usize,
    open: BTreeMap<u16, Time>,
    slowest_ms: u64,
}

impl Publisher {
    fn publish(&mut self, now: Time) {
        let payload = format!("{}:{:04}", self.client.client_id, self.next);
        self.next += 1;
        let id = self.client.publish("t/x", &payload, self.qos, false);
        self.open.insert(id, now);
    }

    fn hear(&mut self, now: Time) {
        for got in self.client.take() {
            if let Got::Acked(id, reason) = got {
                assert!(!reason.is_error(), "{}: {reason:?}", self.client.client_id);
                if let Some(sent) = self.open.remove(&id) {
                    self.slowest_ms = self.slowest_ms.max(now.since_ms(sent));
                }
            }
        }
    }
}

struct Mover {
    client: SimClient,
    at: usize,
    got: Vec<String>,
}

impl Mover {
    fn hear(&mut self) {
        for got in self.client.take() {
            if let Got::Message { payload, .. } = got {
                self.got.push(payload);
            }
        }
    }

    fn go(&mut self, cluster: &Cluster, node: usize) {
        self.hear();
        self.at = node;
        self.client.resume(cluster.open(node), EXPIRY_S);
    }

    /// The first deliveries of each publisher's messages come in order.
    fn check(&self, what: &str) {
        let mut newest: BTreeMap<&str, &str> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for payload in self.got.iter().filter(|p| known.insert(p.as_str())) {
            let (publisher, n) = payload.split_once(':').unwrap();
            let before = newest.insert(publisher, n);
            assert!(before < Some(n), "{what}: {} got {payload} late", self.client.client_id);
        }
    }
}

struct Load {
    cluster: Cluster,
    what: String,
    publishers: Vec<Publisher>,
    movers: Vec<Mover>,
    restarts: BTreeMap<usize, Time>,
}

impl Load {
    /// `movers` sessions at each of the first two nodes, and publishers at these nodes.
    fn new(seed: u64, qos: QoS, movers: usize, publishers: &[usize]) -> Load {
        let what = format!("seed {seed}, QoS {}", qos as u8);
        let limits = Limits::waiting(60_000);
        let cluster = Cluster::with(3, seed, limits);
        start_routes(&cluster, 0..3);
        cluster.net.latency(10);
        cluster.store.latency(3);
        let connect = |name: &str, at: usize| {
            let mut client = SimClient::connect(cluster.open(at), name, false, EXPIRY_S);
            let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
            assert!(cluster.until(|| client.seen().iter().any(connected)), "{what}: {name}");
            client
        };
        let publishers = publishers.iter().map(|at| Publisher {
            client: connect(&format!("p{at}"), *at),
            qos,
            next: 0,
            open: BTreeMap::new(),
            slowest_ms: 0,
        });
        let movers = (0..2 * movers).map(|n| {
            let mut client = connect(&format!("s{n}"), n % 2);
            let id = client.subscribe("t/#", qos);
            let subscribed = |g: &Got| matches!(g, Got::Subscribed(i, _) if *i == id);
            assert!(cluster.until(|| client.seen().iter().any(subscribed)), "{what}");
            Mover { client, at: n % 2, got: Vec::new() }
        });
        let (publishers, movers) = (publishers.collect(), movers.collect());
        Load { cluster, what, publishers, movers, restarts: BTreeMap::new() }
    }

    fn tend(&mut self) {
        let now = self.cluster.sim.now();
        let due: Vec<usize> = self.restarts.iter().filter(|(_, at)| **at <= now).map(|(no, _)| *no).collect();
        for no in due {
            self.restarts.remove(&no);
            self.cluster.restart(no);
        }
        self.publishers.iter_mut().for_each(|p| p.hear(now));
        let cluster = &self.cluster;
        for mover in &mut self.movers {
            mover.hear();
            if mover.client.wire.closed() {
                let up = (0..3).map(|n| (mover.at + n) % 3).find(|n| cluster.node(*n).is_some());
                mover.go(cluster, up.unwrap_or(mover.at));
            }
        }
    }

    /// Lets time pass while everybody publishes.
    fn publish_for(&mut self, ms: u64) {
        for _ in 0..ms / PACE_MS {
            let now = self.cluster.sim.now();
            let free = self.publishers.iter_mut().filter(|p| p.open.len() < UNACKNOWLEDGED);
            free.for_each(|p| p.publish(now));
            self.cluster.advance(PACE_MS);
            self.tend();
        }
    }

    fn swap(&mut self) {
        for mover in &mut self.movers {
            mover.go(&self.cluster, 1 - mover.at.min(1));
        }
    }

    fn crash(&mut self, no: usize, down_ms: u64) {
        self.movers.iter_mut().for_each(Mover::hear);
        self.cluster.crash(no);
        self.restarts.insert(no, self.cluster.sim.now().plus_ms(down_ms));
    }

    fn until(&mut self, holds: impl Fn(&Load) -> bool) -> bool {
        for _ in 0..PATIENCE_MS / PACE_MS {
            if holds(self) {
                return true;
            }
            self.cluster.advance(PACE_MS);
            self.tend();
        }
        false
    }

    /// Everything was acknowledged within `limit_ms` and came to everybody, and no wait ended by its limit.
    fn finish(&mut self, limit_ms: u64) {
        let acknowledged = |l: &Load| l.publishers.iter().all(|p| p.open.is_empty());
        assert!(self.until(acknowledged), "{}: not all is acknowledged", self.what);
        let all: usize = self.publishers.iter().map(|p| p.next).sum();
        let distinct = |m: &Mover| m.got.iter().collect::<BTreeSet<_>>().len();
        assert!(self.until(|l| l.movers.iter().all(|m| distinct(m) == all)), "{}: lost", self.what);
        let timeouts = (0..3).filter_map(|no| self.cluster.node(no));
        let timeouts: Vec<u64> = timeouts.map(|b| b.broker.metrics.order_timeouts.get()).collect();
        let slowest = self.publishers.iter().map(|p| p.slowest_ms).max();
        eprintln!("{}: slowest {slowest:?} ms, order time-outs {timeouts:?}", self.what);
        self.movers.iter().for_each(|m| m.check(&self.what));
        assert_eq!(timeouts.iter().sum::<u64>(), 0, "{}: waits ended by their limit", self.what);
        assert!(slowest <= Some(limit_ms), "{}: {slowest:?} ms", self.what);
    }
}

#[test]
fn sessions_of_two_nodes_that_change_places_hold_nobody_up() {
    for seed in seeds(0..8) {
        let qos = if seed % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let mut load = Load::new(seed, qos, 6, &[0, 1, 2]);
        let mut choices = Choices(seed);
        for _ in 0..4 {
            load.publish_for(100 + choices.below(200));
            load.swap();
        }
        load.publish_for(300);
        load.finish(SOON_MS);
    }
}

#[test]
fn a_node_that_dies_just_after_its_sessions_went_holds_nobody_up_for_longer() {
    for seed in seeds(0..8) {
        let mut load = Load::new(seed, QoS::AtLeastOnce, 4, &[0, 2]);
        let mut choices = Choices(seed);
        load.publish_for(200);
        load.swap();
        load.publish_for(choices.below(120));
        load.crash(1, 3_000);
        load.publish_for(4_000);
        load.finish(3_000 + SOON_MS);
    }
}

#[test]
fn a_node_that_has_handed_its_sessions_over_and_left_holds_nobody_up() {
    for seed in seeds(0..8) {
        let mut load = Load::new(seed, QoS::AtLeastOnce, 4, &[0, 2]);
        load.publish_for(200);
        let node = load.cluster.node(1).unwrap().clone();
        node.drain();
        let handed = node.hand_over();
        let process = load.cluster.running(1).unwrap().process.clone();
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = over.clone();
        process.spawn(Box::pin(async move {
            handed.await;
            done.store(true, std::sync::atomic::Ordering::Release);
        }));
        for _ in 0..400 {
            if over.load(std::sync::atomic::Ordering::Acquire) {
                break;
            }
            load.publish_for(PACE_MS);
        }
        assert!(over.load(std::sync::atomic::Ordering::Acquire), "{}", load.what);
        load.movers.iter_mut().for_each(Mover::hear);
        let name = load.cluster.name(1);
        load.cluster.crash(1);
        load.cluster.store.leave(&name);
        load.publish_for(1_000);
        load.finish(SOON_MS);
    }
}

#[test]
fn a_store_that_comes_back_holds_nobody_up() {
    for seed in seeds(0..8) {
        let mut load = Load::new(seed, QoS::AtLeastOnce, 4, &[0, 1, 2]);
        load.publish_for(200);
        load.cluster.store.outage(true);
        load.publish_for(500);
        load.swap();
        load.publish_for(500);
        load.cluster.store.outage(false);
        load.publish_for(1_500);
        load.finish(SOON_MS);
    }
}

#[test]
fn two_nodes_that_were_gone_hold_publishers_for_no_longer_than_they_were() {
    for seed in seeds(0..4) {
        let qos = if seed % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let mut load = Load::new(seed, qos, 3, &[2]);
        let mut choices = Choices(seed);
        load.publish_for(200);
        load.crash(0, 7_000);
        load.crash(1, 7_000 - choices.below(1_000));
        load.publish_for(9_000);
        load.finish(7_000 + SOON_MS);
    }
}
