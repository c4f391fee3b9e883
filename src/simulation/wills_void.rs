//! Wills of sessions whose client has connected elsewhere while their node was away: an eviction voids them (G8).

use super::publish_tests::{acked, cluster, connect, subscribe};
use super::*;
use crate::mqtt::client::{self, Will};
use crate::mqtt::{Property, QoS, Reason};

/// A device at node 1 that leaves "offline" behind.
fn device(cluster: &Cluster, expiry_s: u32, delay_s: u32) -> SimClient {
    let mut delay = Vec::new();
    client::put_property(&mut delay, &Property::WillDelayInterval(delay_s));
    let will =
        Will { topic: "r/t", payload: b"offline", qos: QoS::AtLeastOnce, retain: true, properties: &delay };
    let mut device = SimClient::connect_with_will(cluster.open(1), "d", true, expiry_s, Some(will));
    let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
    assert!(cluster.until(|| device.seen().iter().any(connected)));
    device
}

/// It connects at node 0 and says that it is there.
fn says_online(cluster: &Cluster, clean_start: bool, expiry_s: u32) -> SimClient {
    let mut device = SimClient::connect(cluster.open(0), "d", clean_start, expiry_s);
    let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
    assert!(cluster.until(|| device.seen().iter().any(connected)), "{:?}", device.seen());
    let id = device.publish("r/t", "online", QoS::AtLeastOnce, true);
    assert!(cluster.until(|| acked(&mut device, id)));
    device
}

fn stays_online(cluster: &Cluster, watcher: &mut SimClient, what: &str) {
    cluster.advance(120_000);
    assert_eq!(watcher.payloads(), ["online"], "{what}");
    assert_eq!(cluster.store.retained("r/t").unwrap().message.payload(), b"online", "{what}");
    assert!(cluster.until(|| cluster.store.evictions().is_empty()), "{what}");
}

#[test]
fn the_will_of_a_dead_node_does_not_follow_what_its_client_has_said_since() {
    for (no, (expiry_s, delay_s, clean_start)) in
        [(0, 0, true), (0, 0, false), (0, 30, true), (600, 0, true), (600, 30, true)].into_iter().enumerate()
    {
        for leaves in [false, true] {
            let what = format!("expiry {expiry_s}, delay {delay_s}, clean {clean_start}, leaves {leaves}");
            let mut cluster = cluster(3, 100 + no as u64);
            let mut watcher = connect(&cluster, 2, "w", 0);
            subscribe(&cluster, &mut watcher, "r/#", QoS::AtLeastOnce);
            let _device = device(&cluster, expiry_s, delay_s);
            cluster.crash(1);
            cluster.advance(15_000);
            let mut back = says_online(&cluster, clean_start, 0);
            if leaves {
                back.leave();
                cluster.advance(1_000);
            }
            cluster.restart(1);
            stays_online(&cluster, &mut watcher, &what);
        }
    }
}

#[test]
fn the_will_of_a_node_that_was_cut_off_does_not_follow_what_its_client_has_said_since() {
    // So long that it goes on serving its clients, and so long that it does not.
    let cases = [(0, 0), (600, 0), (600, 60)].into_iter().flat_map(|(e, d)| [(e, d, 2_000), (e, d, 30_000)]);
    for (expiry_s, delay_s, ms) in cases {
        let what = format!("expiry {expiry_s}, delay {delay_s}, for {ms}");
        let cluster = cluster(3, 120);
        let mut watcher = connect(&cluster, 2, "w", 0);
        subscribe(&cluster, &mut watcher, "r/#", QoS::AtLeastOnce);
        let old = device(&cluster, expiry_s, delay_s);
        cluster.cut_from_store(1, true);
        cluster.partition(0, 1, true);
        cluster.partition(2, 1, true);
        cluster.advance(1_000);
        let back = says_online(&cluster, true, 0);
        cluster.advance(ms);
        cluster.cut_from_store(1, false);
        cluster.partition(0, 1, false);
        cluster.partition(2, 1, false);
        stays_online(&cluster, &mut watcher, &what);
        assert!(old.wire.closed() && !back.wire.closed(), "{what}");
    }
}

#[test]
fn a_node_that_is_there_publishes_the_will_before_its_client_is_let_in_elsewhere() {
    for seed in 0..20 {
        let cluster = cluster(3, 130 + seed);
        cluster.net.latency(3);
        cluster.store.latency(3);
        let mut watcher = connect(&cluster, 2, "w", 0);
        subscribe(&cluster, &mut watcher, "r/#", QoS::AtLeastOnce);
        let _device = device(&cluster, 600, 30);
        let _back = says_online(&cluster, true, 0);
        cluster.advance(20_000);
        assert_eq!(watcher.payloads(), ["offline", "online"], "seed {seed}");
        assert_eq!(cluster.store.retained("r/t").unwrap().message.payload(), b"online", "seed {seed}");
    }
}

#[test]
fn a_node_that_was_cut_off_publishes_the_wills_of_clients_that_stayed_away() {
    for (expiry_s, delay_s) in [(0, 0), (600, 0), (600, 10)] {
        let what = format!("expiry {expiry_s}, delay {delay_s}");
        let cluster = cluster(3, 140);
        let mut watcher = connect(&cluster, 2, "w", 0);
        subscribe(&cluster, &mut watcher, "r/#", QoS::AtLeastOnce);
        let device = device(&cluster, expiry_s, delay_s);
        cluster.cut_from_store(1, true);
        cluster.partition(0, 1, true);
        cluster.partition(2, 1, true);
        cluster.advance(30_000);
        assert!(device.wire.closed() && watcher.payloads().is_empty(), "{what}");
        cluster.cut_from_store(1, false);
        cluster.partition(0, 1, false);
        cluster.partition(2, 1, false);
        assert!(cluster.until(|| !watcher.payloads().is_empty()), "{what}");
        cluster.advance(20_000);
        assert_eq!(watcher.payloads(), ["offline"], "{what}");
    }
}
