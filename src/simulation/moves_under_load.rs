//! A session that moves between nodes while it is published to: nothing acknowledged is lost (G2), the order of its publisher
//! holds (G3), and at QoS 2 nothing comes twice (G4). `BERTH_SIMULATION_SEEDS=0..200` runs other seeds than the usual.

use super::choices::Choices;
use super::*;
use crate::mqtt::{QoS, Reason};
use std::collections::BTreeSet;

const EXPIRY_S: u32 = 3_600;

/// Publishes of a run.
const PUBLISHES: usize = 60;

/// Moves of a run.
const MOVES: usize = 3;

/// The moving client. It keeps what it has received across its connections, and its side of QoS 2, as the specification wants.
struct Mover {
    at: usize,
    client: SimClient,
    /// Payloads and whether they were marked as sent before, in the order of their coming.
    got: Vec<(String, bool)>,
}

impl Mover {
    fn hear(&mut self) {
        for seen in self.client.take() {
            if let Got::Message { payload, dup, .. } = seen {
                self.got.push((payload, dup));
            }
        }
    }

    fn go(&mut self, cluster: &Cluster, node: usize) {
        self.hear();
        self.at = node;
        self.client.resume(cluster.open(node), EXPIRY_S);
    }

    /// Connects again if another of its connections came to the cluster later than this one.
    fn stay_connected(&mut self, cluster: &Cluster) {
        self.hear();
        if self.client.wire.closed() {
            self.go(cluster, self.at);
        }
    }

    fn distinct(&self) -> usize {
        self.got.iter().map(|(p, _)| p).collect::<BTreeSet<_>>().len()
    }

    /// What came without DUP comes in order; at QoS 2 nothing comes twice.
    fn check(&self, seed: u64, qos: QoS) {
        let mut newest = None;
        let mut known = BTreeSet::new();
        for (payload, dup) in &self.got {
            let again = !known.insert(payload.clone());
            assert!(!(again && qos == QoS::ExactlyOnce), "seed {seed}: {payload} twice: {:?}", self.got);
            assert!(!again || *dup, "seed {seed}: {payload} twice without DUP: {:?}", self.got);
            if !again {
                assert!(newest < Some(payload), "seed {seed}: {payload} is late: {:?}", self.got);
                newest = Some(payload);
            }
        }
    }
}

fn begin(seed: u64, qos: QoS) -> (Cluster, Mover, SimClient) {
    let cluster = Cluster::new(3, seed);
    for no in 0..3 {
        let told = cluster.node(no).unwrap().when_routes_known();
        assert!(cluster.sim.wait(told, PATIENCE_MS).is_some(), "seed {seed}: routes of n{no}");
    }
    cluster.advance(3_000);
    cluster.net.latency(15);
    let mut client = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
    let id = client.subscribe("t", qos);
    let subscribed = |g: &Got| matches!(g, Got::Subscribed(i, _) if *i == id);
    assert!(cluster.until(|| client.seen().iter().any(subscribed)), "seed {seed}");
    let mut publisher = SimClient::connect(cluster.open(0), "p", false, EXPIRY_S);
    let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
    assert!(cluster.until(|| publisher.seen().iter().any(connected)), "seed {seed}");
    (cluster, Mover { at: 1, client, got: Vec::new() }, publisher)
}

fn acknowledged(publisher: &mut SimClient, ids: &[u16]) -> bool {
    let seen = publisher.seen();
    ids.iter().all(|id| seen.iter().any(|g| matches!(g, Got::Acked(i, r) if i == id && !r.is_error())))
}

fn moves_under_load(seed: u64, qos: QoS) {
    let (cluster, mut mover, mut publisher) = begin(seed, qos);
    let mut choices = Choices(seed);
    let mut moves: Vec<usize> =
        (0..MOVES).map(|_| usize::try_from(choices.below(PUBLISHES as u64)).unwrap()).collect();
    moves.sort_unstable();
    let mut ids = Vec::new();
    for n in 0..PUBLISHES {
        ids.push(publisher.publish("t", &format!("{n:02}"), qos, false));
        cluster.advance(choices.below(11));
        for _ in moves.iter().filter(|at| **at == n) {
            let to = (mover.at + 1 + usize::try_from(choices.below(2)).unwrap()) % 3;
            mover.go(&cluster, to);
        }
    }
    assert!(cluster.until(|| acknowledged(&mut publisher, &ids)), "seed {seed}: not all are acknowledged");
    let all = |mover: &mut Mover| {
        mover.stay_connected(&cluster);
        mover.distinct() == PUBLISHES
    };
    assert!(cluster.until(|| all(&mut mover)), "seed {seed}: lost: {:?}", mover.got);
    cluster.advance(5_000);
    mover.hear();
    mover.check(seed, qos);
}

#[test]
fn a_session_that_moves_under_load_gets_everything_once_and_in_order() {
    for seed in seeds(0..40) {
        moves_under_load(seed, QoS::ExactlyOnce);
    }
}

#[test]
fn a_session_that_moves_under_load_gets_everything_in_order_at_qos_1() {
    for seed in seeds(0..40) {
        moves_under_load(seed, QoS::AtLeastOnce);
    }
}

#[test]
fn publishes_that_wait_for_the_order_of_a_move_do_not_wait_for_the_next_heartbeat() {
    for seed in seeds(0..40) {
        let (cluster, mut mover, mut publisher) = begin(seed, QoS::AtLeastOnce);
        let mut ids = Vec::new();
        for n in 0..60 {
            if n == 20 {
                mover.go(&cluster, 2);
            }
            ids.push(publisher.publish("t", &format!("{n:02}"), QoS::AtLeastOnce, false));
            cluster.advance(3);
        }
        let began = cluster.sim.now();
        assert!(cluster.until(|| acknowledged(&mut publisher, &ids)), "seed {seed}");
        let waited_ms = cluster.sim.now().since_ms(began);
        assert!(waited_ms < 500, "seed {seed}: {waited_ms} ms");
    }
}
