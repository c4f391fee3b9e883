//! Publishes across nodes: each scenario under several seeds, which decide who works when.

use super::*;
use crate::cluster::RemoteLimits;
use crate::mqtt::{QoS, Reason};

/// Seeds that every scenario is run with; a failure names the one.
const SEEDS: std::ops::Range<u64> = 0..60;

pub(super) fn cluster(n: usize, seed: u64) -> Cluster {
    cluster_with(n, seed, Limits::default())
}

fn cluster_with(n: usize, seed: u64, limits: Limits) -> Cluster {
    let cluster = Cluster::with(n, seed, limits);
    start_routes(&cluster, 0..n);
    cluster
}

/// Tells the cluster the nodes' routes, as a starting node does.
pub(super) fn start_routes(cluster: &Cluster, nodes: impl IntoIterator<Item = usize>) {
    for no in nodes {
        let told = cluster.node(no).unwrap().when_routes_known();
        assert!(cluster.sim.wait(told, PATIENCE_MS).is_some(), "routes of n{no}");
    }
    cluster.advance(3_000);
}

pub(super) fn connect(cluster: &Cluster, no: usize, id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(no), id, false, expiry_s);
    let connected = |g: &Got| matches!(g, Got::Connected { reason: Reason::Success, .. });
    assert!(cluster.until(|| client.seen().iter().any(connected)), "{id}: {:?}", client.seen());
    client
}

pub(super) fn subscribe(cluster: &Cluster, client: &mut SimClient, filter: &str, qos: QoS) {
    let id = client.subscribe(filter, qos);
    assert!(cluster.until(|| client.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == id))));
}

pub(super) fn acked(client: &mut SimClient, id: u16) -> bool {
    client.seen().iter().any(|g| matches!(g, Got::Acked(i, r) if *i == id && !r.is_error()))
}

#[test]
fn publishes_reach_sessions_of_other_nodes_once_and_in_order() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(3, seed);
        cluster.net.latency(20);
        let mut subs: Vec<_> = (0..3).map(|no| connect(&cluster, no, &format!("s{no}"), 60)).collect();
        for sub in &mut subs {
            // Overlapping filters: still once.
            subscribe(&cluster, sub, "t/#", QoS::ExactlyOnce);
            subscribe(&cluster, sub, "t/+", QoS::AtLeastOnce);
        }
        let mut publisher = connect(&cluster, 0, "p", 60);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let sent: Vec<String> = (0..20).map(|n| format!("{}-{n}", qos as u8)).collect();
            let ids: Vec<_> = sent.iter().map(|m| publisher.publish("t/a", m, qos, false)).collect();
            for sub in &mut subs {
                let prefix = format!("{}-", qos as u8);
                let got = |s: &mut SimClient| {
                    s.payloads().into_iter().filter(|m| m.starts_with(&prefix)).collect::<Vec<_>>()
                };
                assert!(cluster.until(|| got(sub).len() >= sent.len()), "seed {seed}: {:?}", got(sub));
                cluster.advance(1_000);
                assert_eq!(got(sub), sent, "seed {seed}");
            }
            if qos > QoS::AtMostOnce {
                assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
            }
        }
        assert!(cluster.until(|| cluster.node(0).unwrap().broker.metrics.publishes_held.get() == 0));
    }
}

#[test]
fn nothing_is_acknowledged_before_the_other_node_has_it() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(2, seed);
        let mut sub = connect(&cluster, 1, "s", 60);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 60);
        cluster.net.stall("n0", "n1", true);
        let one = publisher.publish("t", "1", QoS::AtLeastOnce, false);
        let two = publisher.publish("t", "2", QoS::ExactlyOnce, false);
        cluster.advance(2_000);
        assert!(!acked(&mut publisher, one) && !acked(&mut publisher, two), "seed {seed}");
        cluster.net.stall("n0", "n1", false);
        assert!(cluster.until(|| acked(&mut publisher, one) && acked(&mut publisher, two)), "seed {seed}");
        assert!(cluster.until(|| sub.payloads().len() == 2), "seed {seed}: {:?}", sub.payloads());
    }
}

#[test]
fn a_broken_link_repeats_frames_and_nobody_gets_one_twice() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(2, seed);
        cluster.net.latency(30);
        let mut sub = connect(&cluster, 1, "s", 60);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 60);
        let mut ids = Vec::new();
        for n in 0..30 {
            ids.push(publisher.publish("t", &format!("{n:02}"), QoS::ExactlyOnce, false));
            cluster.advance(7);
            if n % 6 == 5 {
                cluster.partition(0, 1, true);
                cluster.advance(25);
                cluster.partition(0, 1, false);
            }
        }
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
        assert!(cluster.until(|| sub.payloads().len() >= 30), "seed {seed}");
        cluster.advance(5_000);
        let expected: Vec<String> = (0..30).map(|n| format!("{n:02}")).collect();
        assert_eq!(sub.payloads(), expected, "seed {seed}");
    }
}

#[test]
fn a_message_of_a_shared_subscription_goes_to_one_member_in_the_whole_cluster() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(3, seed);
        let mut members: Vec<_> = (0..3).map(|no| connect(&cluster, no, &format!("m{no}"), 0)).collect();
        for m in &mut members {
            subscribe(&cluster, m, "$share/g/t", QoS::AtLeastOnce);
        }
        cluster.advance(3_000);
        let mut publisher = connect(&cluster, 0, "p", 0);
        let mut ids: Vec<_> =
            (0..30).map(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
        let all = |members: &mut [SimClient]| members.iter_mut().map(|m| m.payloads().len()).sum::<usize>();
        assert!(cluster.until(|| all(&mut members) >= 30), "seed {seed}: {}", all(&mut members));
        assert!(members.iter_mut().all(|m| !m.payloads().is_empty()), "seed {seed}: one had nothing");
        // A member leaves: the others have the rest.
        members[2].leave();
        ids.extend((30..60).map(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false)));
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
        let each = |members: &mut [SimClient]| {
            let mut got: Vec<usize> =
                members.iter_mut().flat_map(|m| m.payloads()).map(|p| p.parse().unwrap()).collect();
            got.sort_unstable();
            got
        };
        let everything = |members: &mut [SimClient]| {
            let mut got = each(members);
            got.dedup();
            got.len() == 60
        };
        assert!(cluster.until(|| everything(&mut members)), "seed {seed}: {:?}", each(&mut members));
        cluster.advance(2_000);
        // What the member did not acknowledge before it left went to another one as well; nothing else came twice.
        let mut stayed = each(&mut members[..2]);
        let all = stayed.len();
        stayed.dedup();
        assert_eq!(stayed.len(), all, "seed {seed}: {stayed:?}");
        let first = each(&mut members).into_iter().filter(|n| *n < 30).count();
        assert_eq!(first, 30, "seed {seed}: what was acknowledged came again");
    }
}

#[test]
fn a_shared_subscription_queues_with_a_persistent_member_when_nobody_is_online() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(2, seed);
        let mut member = connect(&cluster, 1, "m", 600);
        subscribe(&cluster, &mut member, "$share/g/t", QoS::AtLeastOnce);
        cluster.advance(3_000);
        member.wire.lose();
        cluster.advance(1_000);
        let mut publisher = connect(&cluster, 0, "p", 0);
        let id = publisher.publish("t", "kept", QoS::AtLeastOnce, false);
        assert!(cluster.until(|| acked(&mut publisher, id)), "seed {seed}");
        let mut member = connect(&cluster, 1, "m", 600);
        assert!(cluster.until(|| member.payloads() == ["kept"]), "seed {seed}: {:?}", member.seen());
    }
}

#[test]
fn the_receiver_crashes_before_it_answers_and_gets_the_publish_again() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(2, seed);
        cluster.net.latency(10);
        let mut sub = connect(&cluster, 1, "s", 600);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 600);
        let id = publisher.publish("t", "1", QoS::ExactlyOnce, false);
        cluster.advance(seed % 60 * 4); // somewhere between frame and answer
        cluster.crash(1);
        cluster.advance(1_000);
        cluster.restart(1);
        start_routes(&cluster, [1]);
        assert!(cluster.until(|| acked(&mut publisher, id)), "seed {seed}");
        let mut again = connect(&cluster, 1, "s", 600);
        assert!(cluster.until(|| sub.payloads().len() + again.payloads().len() >= 1), "seed {seed}");
        cluster.advance(5_000);
        // MQTT's own repetition (DUP) may show what the lost connection has shown before.
        let first = again.seen().iter().filter(|g| matches!(g, Got::Message { dup: false, .. })).count();
        assert!(first <= 1 && sub.payloads().len() <= 1, "seed {seed}: {:?} {:?}", sub.seen(), again.seen());
    }
}

#[test]
fn a_dead_node_holds_publishes_for_its_persistent_sessions_until_it_is_back() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(3, seed);
        let mut sub = connect(&cluster, 1, "s", 600);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut passing = connect(&cluster, 2, "x", 0);
        subscribe(&cluster, &mut passing, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 600);
        cluster.crash(1);
        cluster.crash(2); // its session is transient: nobody waits for it
        cluster.advance(30_000);
        let id = publisher.publish("t", "1", QoS::ExactlyOnce, false);
        cluster.advance(3_000);
        assert!(!acked(&mut publisher, id), "seed {seed}");
        assert_eq!(cluster.node(0).unwrap().broker.metrics.publishes_held.get(), 1, "seed {seed}");
        cluster.restart(1);
        start_routes(&cluster, [1]);
        let held = &cluster.node(0).unwrap().broker.metrics.publishes_held;
        assert!(cluster.until(|| held.get() == 0), "seed {seed}");
        let mut sub = connect(&cluster, 1, "s", 600);
        assert!(cluster.until(|| sub.payloads() == ["1"]), "seed {seed}: {:?}", sub.seen());
    }
}

#[test]
fn a_crashed_origin_sends_its_qos_2_publishes_again_under_the_same_name() {
    let mut most = 0;
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(2, seed);
        cluster.net.latency(10);
        let mut sub = connect(&cluster, 1, "s", 600);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 600);
        let ids: Vec<_> =
            (0..10).map(|n| publisher.publish("t", &n.to_string(), QoS::ExactlyOnce, false)).collect();
        cluster.advance(seed % 60 * 5); // some have been taken, some answered, some not
        let safe = ids.iter().filter(|id| acked(&mut publisher, **id)).count();
        cluster.crash(0);
        cluster.advance(500);
        cluster.restart(0);
        start_routes(&cluster, [0]);
        let node = cluster.node(0).unwrap();
        assert!(cluster.until(|| node.remote_held() == 0), "seed {seed}");
        let resent = usize::try_from(node.broker.metrics.publishes_resent.get()).unwrap();
        most = most.max(resent);
        assert!(
            cluster.until(|| sub.payloads().len() >= safe.max(resent)),
            "seed {seed}: {:?}",
            sub.payloads()
        );
        cluster.advance(5_000);
        let got = sub.payloads();
        let expected: Vec<String> = (0..got.len()).map(|n| n.to_string()).collect();
        assert_eq!(got, expected, "seed {seed}: each once, in order");
    }
    assert!(most > 0, "no seed left anything to be sent again");
}

#[test]
fn a_node_that_is_not_current_holds_publishes_and_matches_them_when_it_has_caught_up() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 600);
        cluster.cut_from_store(0, true);
        cluster.partition(0, 1, true);
        cluster.advance(RemoteLimits::default().stale_after_ms + 1_000);
        let mut sub = connect(&cluster, 1, "s", 600);
        let suback = sub.subscribe("t", QoS::AtLeastOnce);
        let early: Vec<_> =
            (0..5).map(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        cluster.advance(1_500);
        assert!(early.iter().all(|id| !acked(&mut publisher, *id)), "seed {seed}: not fresh");
        cluster.cut_from_store(0, false);
        cluster.partition(0, 1, false);
        assert!(
            cluster.until(|| sub.seen().iter().any(|g| matches!(g, Got::Subscribed(i, _) if *i == suback)))
        );
        let held = &cluster.node(0).unwrap().broker.metrics.publishes_held;
        assert!(cluster.until(|| held.get() == 0), "seed {seed}");
        let all = || early.iter().all(|id| acked(&mut publisher, *id));
        assert!(cluster.until(all), "seed {seed}: what it held is acknowledged");
        publisher.publish("t", "5", QoS::AtLeastOnce, false);
        assert!(cluster.until(|| sub.payloads().last().is_some_and(|p| p == "5")), "seed {seed}");
        let got = sub.payloads();
        assert!(got.is_sorted(), "seed {seed}: {got:?}");
    }
}

#[test]
fn too_many_held_publishes_slow_their_publishers_down() {
    for seed in seeds(SEEDS) {
        eprintln!("seed {seed}");
        let mut limits = Limits::default();
        limits.remote.held_publishes = 20;
        limits.broker.session.receive_maximum = 1_000;
        let cluster = Cluster::with(2, seed, limits);
        start_routes(&cluster, 0..2);
        let mut sub = connect(&cluster, 1, "s", 600);
        subscribe(&cluster, &mut sub, "t", QoS::AtLeastOnce);
        let mut publisher = connect(&cluster, 0, "p", 600);
        cluster.net.stall("n0", "n1", true);
        let ids: Vec<_> =
            (0..200).map(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        cluster.advance(500);
        let held = cluster.node(0).unwrap().remote_held();
        assert!((20..=21).contains(&held), "seed {seed}: {held} held");
        cluster.net.stall("n0", "n1", false);
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
        assert!(cluster.until(|| sub.payloads().len() >= 200), "seed {seed}");
        let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        assert_eq!(sub.payloads(), expected, "seed {seed}");
    }
}

#[test]
fn what_is_matched_late_is_acknowledged_only_when_it_is_durable_here() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(2, seed);
        let mut sub = connect(&cluster, 0, "s", 60);
        subscribe(&cluster, &mut sub, "t", QoS::ExactlyOnce);
        let mut publisher = connect(&cluster, 0, "p", 60);
        // Neither the store nor the other node tells it that what it knows is recent.
        cluster.cut_from_store(0, true);
        cluster.partition(0, 1, true);
        let remote = cluster.node(0).unwrap().remote().unwrap().clone();
        let fresh = || remote.is_fresh(cluster.sim.now());
        assert!(cluster.until(|| !fresh()), "seed {seed}");
        let ids = [QoS::AtLeastOnce, QoS::ExactlyOnce].map(|qos| publisher.publish("t", "m", qos, false));
        cluster.settle();
        cluster.journal(0).stall(true);
        cluster.cut_from_store(0, false);
        cluster.partition(0, 1, false);
        assert!(cluster.until(fresh), "seed {seed}");
        cluster.advance(1_000);
        assert!(ids.iter().all(|id| !acked(&mut publisher, *id)), "seed {seed}");
        cluster.journal(0).stall(false);
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
    }
}

#[test]
fn a_node_that_comes_back_without_its_disk_does_not_answer_for_the_sessions_on_it() {
    for seed in seeds(SEEDS) {
        let mut cluster = cluster(2, seed);
        let mut lost = connect(&cluster, 1, "lost", 3_600);
        subscribe(&cluster, &mut lost, "t", QoS::AtLeastOnce);
        cluster.wipe(1);
        start_routes(&cluster, [1]);
        let mut new = connect(&cluster, 1, "new", 3_600);
        subscribe(&cluster, &mut new, "t", QoS::AtLeastOnce);
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        let id = publisher.publish("t", "m", QoS::AtLeastOnce, false);
        assert!(cluster.until(|| new.payloads() == ["m"]), "seed {seed}");
        cluster.advance(5_000);
        assert!(!acked(&mut publisher, id), "seed {seed}: the session on the lost disk has not had it");
    }
}

#[test]
fn a_message_at_qos_0_finds_the_node_whose_member_is_online() {
    for seed in seeds(SEEDS) {
        let cluster = cluster(3, seed);
        let mut away = connect(&cluster, 1, "away", 3_600);
        subscribe(&cluster, &mut away, "$share/g/t", QoS::AtLeastOnce);
        away.wire.lose();
        let mut online = connect(&cluster, 2, "online", 0);
        subscribe(&cluster, &mut online, "$share/g/t", QoS::AtLeastOnce);
        let mut publisher = connect(&cluster, 0, "p", 0);
        let sent: Vec<String> = (10..60).map(|n| n.to_string()).collect();
        for m in &sent {
            publisher.publish("t", m, QoS::AtMostOnce, false);
        }
        assert!(cluster.until(|| online.payloads().len() == sent.len()), "seed {seed}");
        let mut got = online.payloads();
        got.sort();
        assert_eq!(got, sent, "seed {seed}");
    }
}

#[test]
fn a_publish_that_waits_for_long_comes_to_nobody_twice() {
    for seed in seeds(SEEDS) {
        let mut limits = Limits::waiting(600_000);
        limits.remote.seen = 100;
        let mut cluster = cluster_with(3, seed, limits);
        let mut sub = connect(&cluster, 1, "s", 3_600);
        subscribe(&cluster, &mut sub, "#", QoS::ExactlyOnce);
        let mut gone = connect(&cluster, 2, "gone", 3_600);
        subscribe(&cluster, &mut gone, "waits", QoS::ExactlyOnce);
        cluster.crash(2);
        assert!(cluster.until(|| cluster.members().len() == 2), "seed {seed}");
        let mut publisher = connect(&cluster, 0, "p", 3_600);
        publisher.publish("waits", "held", QoS::ExactlyOnce, false);
        let mut publisher = connect(&cluster, 0, "q", 3_600);
        for n in 0..200 {
            let id = publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false);
            assert!(cluster.until(|| acked(&mut publisher, id)), "seed {seed}");
        }
        cluster.advance(5_000);
        cluster.restart(2);
        start_routes(&cluster, [2]);
        let mut gone = connect(&cluster, 2, "gone", 3_600);
        assert!(cluster.until(|| gone.payloads() == ["held"]), "seed {seed}: {:?}", gone.seen());
        cluster.advance(5_000);
        let held = sub.payloads().iter().filter(|m| *m == "held").count();
        assert_eq!((held, sub.payloads().len()), (1, 201), "seed {seed}");
    }
}

#[test]
fn publishes_for_a_node_that_is_gone_do_not_slow_down_those_for_others() {
    for seed in seeds(SEEDS) {
        let mut limits = Limits::waiting(600_000);
        limits.remote.held_publishes = 20;
        let mut cluster = cluster_with(3, seed, limits);
        let mut gone = connect(&cluster, 2, "gone", 3_600);
        subscribe(&cluster, &mut gone, "waits", QoS::AtLeastOnce);
        let mut sub = connect(&cluster, 1, "s", 3_600);
        subscribe(&cluster, &mut sub, "t", QoS::AtLeastOnce);
        cluster.crash(2);
        assert!(cluster.until(|| cluster.members().len() == 2), "seed {seed}");
        let mut waiting = connect(&cluster, 0, "waiting", 3_600);
        let ids: Vec<u16> =
            (0..20).map(|n| waiting.publish("waits", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        cluster.settle();
        let mut late = connect(&cluster, 0, "late", 3_600);
        for _ in 0..10 {
            late.publish("waits", "too many", QoS::AtLeastOnce, false);
        }
        let refused = |client: &mut SimClient| {
            let quota = |g: &&Got| matches!(g, Got::Acked(_, Reason::QuotaExceeded));
            client.seen().iter().filter(quota).count()
        };
        assert!(cluster.until(|| refused(&mut late) == 10), "seed {seed}: {:?}", late.seen());
        let node = cluster.node(0).unwrap().clone();
        assert_eq!(node.remote_held(), 20, "seed {seed}");
        let remote = node.remote().unwrap().clone();
        assert!(!remote.outbox.full() && remote.outbox.away_full(), "seed {seed}");
        let mut publisher = connect(&cluster, 0, "p", 0);
        let sent: Vec<u16> =
            (0..50).map(|n| publisher.publish("t", &n.to_string(), QoS::AtLeastOnce, false)).collect();
        assert!(cluster.until(|| sent.iter().all(|id| acked(&mut publisher, *id))), "seed {seed}");
        assert_eq!(sub.payloads().len(), 50, "seed {seed}");
        cluster.restart(2);
        start_routes(&cluster, [2]);
        assert!(cluster.until(|| ids.iter().all(|id| acked(&mut waiting, *id))), "seed {seed}");
        let mut gone = connect(&cluster, 2, "gone", 3_600);
        let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert!(cluster.until(|| gone.payloads().len() == 20), "seed {seed}: {:?}", gone.seen());
        assert_eq!(gone.payloads(), expected, "seed {seed}");
    }
}
