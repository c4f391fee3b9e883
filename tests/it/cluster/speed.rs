//! How fast a cluster moves sessions and replaces its leader. Checks that nothing is missing, prints how long it took:
//!
//! `BERTH_ROUNDS=300 cargo test --release --test it cluster::speed -- --nocapture --test-threads 1` measures what counts.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock::monotonic_us;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason};

/// What waits for the session, besides what is in flight.
const QUEUED: usize = 100;
const IN_FLIGHT: usize = 20;

fn rounds(default: usize) -> usize {
    std::env::var("BERTH_ROUNDS").map_or(default, |n| n.parse().unwrap())
}

/// Prints the median, the 99th percentile and the largest.
fn print(what: &str, mut times_us: Vec<u64>) {
    times_us.sort_unstable();
    let ms = |part: usize| times_us[(times_us.len() * part / 100).min(times_us.len() - 1)] as f64 / 1000.0;
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!(
        "{what}, {} times ({build} build): p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        times_us.len(),
        ms(50),
        ms(99),
        ms(100)
    );
}

#[test]
fn a_live_session_with_a_hundred_queued_messages_moves() {
    let cluster = BerthCluster::start(3);
    let dial = Dial::v5("mover").persistent().receive_maximum(IN_FLIGHT as u16);
    let mut publisher = cluster.connect(2, &Dial::v5("publisher"));
    let mut client = cluster.connect(0, &dial);
    client.subscribe(&[("q", QoS::AtLeastOnce)]);
    let mut times = Vec::new();
    for round in 1..=rounds(5) {
        let sent: Vec<String> = (0..QUEUED + IN_FLIGHT).map(|n| format!("{round} {n}")).collect();
        sent.iter().for_each(|text| publisher.publish("q", text, QoS::AtLeastOnce));
        (0..IN_FLIGHT).for_each(|_| drop(client.receive_only()));
        let mut new = Client::raw(cluster.mqtt(round % 3), berth::mqtt::Version::V5).unwrap();
        let began = monotonic_us();
        new.send(&dial.bytes()).unwrap();
        let answer = new.recv();
        times.push(monotonic_us() - began);
        assert!(matches!(answer, In::ConnAck { present: true, reason: Reason::Success, .. }), "{answer:?}");
        assert_eq!(client.expect_closed(), Some(Reason::SessionTakenOver));
        client = new;
        for text in &sent {
            let p = client.receive_only();
            assert_eq!(p.text(), text);
            client.ack(AckKind::PubAck, p.packet_id).unwrap();
        }
        client.ping();
    }
    print("CONNECT to CONNACK of a live session on another node, 100 queued and 20 in flight", times);
}

#[test]
fn another_leader_follows_one_that_ends_or_dies() {
    let mut cluster = BerthCluster::start(3);
    let mut ended = Vec::new();
    let mut died = Vec::new();
    for round in 0..2 * rounds(1) {
        let first = wait::until("there is a leader", || cluster.leader());
        let began = monotonic_us();
        // By SIGTERM the leader hands its place over; by SIGKILL its lease has to run out.
        if round % 2 == 0 {
            cluster.broker(first).signal("TERM")
        } else {
            cluster.kill(first)
        }
        wait::until_true("another leads", || cluster.leader().is_some_and(|l| l != first));
        let times = if round % 2 == 0 { &mut ended } else { &mut died };
        times.push(monotonic_us() - began);
        if round % 2 == 0 {
            assert!(cluster.broker(first).wait().success());
        }
        cluster.restart(first);
    }
    print("another leader after SIGTERM", ended);
    print("another leader after SIGKILL, with a lease of 10 s", died);
}
