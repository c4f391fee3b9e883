//! Subscriptions that overlap updates of retained messages: whoever has a SUBACK has what was retained before, or is sent it, and
//! nothing older comes after it (G7).

use super::choices::Choices;
use super::publish_tests::{acked, cluster, connect, subscribe};
use super::*;
use crate::mqtt::QoS;
use crate::mqtt::client::Will;
use crate::mqtt::packet::RetainHandling;

const SEEDS: std::ops::Range<u64> = 0..400;

const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// What a client was sent of `r/t`, in order, RETAIN or not.
fn got(client: &mut SimClient) -> Vec<String> {
    let of = |g: &Got| match g {
        Got::Message { topic, payload, .. } if topic == "r/t" => Some(payload.clone()),
        _ => None,
    };
    client.seen().iter().filter_map(of).collect()
}

/// Publishes and waits for the acknowledgement, if there is one.
fn retain(cluster: &Cluster, client: &mut SimClient, payload: &str, qos: QoS) {
    let id = client.publish("r/t", payload, qos, true);
    assert!(qos == QoS::AtMostOnce || cluster.until(|| acked(client, id)));
}

/// The client ends with `new` (or nothing, if that clears and it never had the old one), and never goes back.
fn converges(seed: u64, got: &[String], new: &str) {
    let last = got.last().map(String::as_str);
    assert!(
        last == Some(new) || (new.is_empty() && last.is_none()),
        "seed {seed}: kept the old value: {got:?}"
    );
    let first_new = got.iter().position(|p| p == new).unwrap_or(got.len());
    assert!(!got[first_new..].iter().any(|p| p == "offline"), "seed {seed}: went back: {got:?}");
    assert!(got.iter().filter(|p| *p == new).count() <= 1, "seed {seed}: twice: {got:?}");
}

#[test]
fn a_subscription_that_overlaps_an_update_ends_with_the_update() {
    for seed in seeds(SEEDS) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 0);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let at = usize::try_from(choices.below(2)).unwrap();
        let expiry_s = if choices.below(2) == 0 { 0 } else { 600 };
        let mut subscriber = connect(&cluster, at, "s", expiry_s);
        // Another client may have the very filter already, so that no route is new.
        let mut other = connect(&cluster, at, "o", 0);
        let filter = ["r/t", "r/#", "#", "+/t"][usize::try_from(choices.below(4)).unwrap()];
        if choices.below(2) == 0 {
            subscribe(&cluster, &mut other, filter, QoS::AtMostOnce);
            cluster.advance(1_000);
        }
        cluster.store.latency(5);
        cluster.net.latency(1 + choices.below(8));
        let qos = ALL_QOS[usize::try_from(choices.below(3)).unwrap()];
        let sub_qos = ALL_QOS[usize::try_from(choices.below(3)).unwrap()];
        let new = if choices.below(4) == 0 { "" } else { "online" };
        let (publish_at, subscribe_at) = (choices.below(9), choices.below(9));
        for ms in 0..9 {
            if ms == publish_at {
                publisher.publish("r/t", new, qos, true);
            }
            if ms == subscribe_at {
                subscriber.subscribe(filter, sub_qos);
            }
            cluster.advance(1);
        }
        cluster.advance(20_000);
        converges(seed, &got(&mut subscriber), new);
    }
}

/// The frames of a publish whose record is not durable yet have not left, but its number is known already: a subscription that comes
/// meanwhile is younger than the publish, refuses it, and is sent it as the retained message.
#[test]
fn an_update_whose_record_is_late_reaches_a_subscription_that_overlaps_it() {
    for seed in seeds(SEEDS) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 600);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let mut subscriber = connect(&cluster, 1, "s", 0);
        cluster.store.latency(5);
        cluster.net.latency(1 + choices.below(3));
        let qos = ALL_QOS[1 + usize::try_from(choices.below(2)).unwrap()];
        let (publish_at, subscribe_at) = (choices.below(20), choices.below(20));
        let durable_at = publish_at + choices.below(40);
        for ms in 0..80 {
            if ms == publish_at {
                cluster.journal(0).stall(true);
                publisher.publish("r/t", "online", qos, true);
            }
            if ms == subscribe_at {
                subscriber.subscribe("r/t", QoS::AtLeastOnce);
            }
            if ms == durable_at {
                cluster.journal(0).stall(false);
            }
            cluster.advance(1);
        }
        cluster.advance(20_000);
        converges(seed, &got(&mut subscriber), "online");
    }
}

#[test]
fn a_second_subscription_is_not_sent_what_its_client_knows_to_be_old() {
    for seed in seeds(SEEDS) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 0);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let at = usize::try_from(choices.below(2)).unwrap();
        let mut subscriber = connect(&cluster, at, "s", if choices.below(2) == 0 { 0 } else { 600 });
        let qos = ALL_QOS[usize::try_from(choices.below(3)).unwrap()];
        let sub_qos = ALL_QOS[usize::try_from(choices.below(3)).unwrap()];
        subscribe(&cluster, &mut subscriber, "r/#", sub_qos);
        cluster.advance(1_000);
        subscriber.take();
        cluster.store.latency(5);
        cluster.net.latency(1 + choices.below(4));
        let new = if choices.below(4) == 0 { "" } else { "online" };
        // The same filter again, or another that overlaps.
        let filter = if choices.below(2) == 0 { "r/#" } else { "r/t" };
        let (publish_at, subscribe_at) = (choices.below(9), choices.below(9));
        for ms in 0..9 {
            if ms == publish_at {
                publisher.publish("r/t", new, qos, true);
            }
            if ms == subscribe_at {
                subscriber.subscribe(filter, sub_qos);
            }
            cluster.advance(1);
        }
        cluster.advance(20_000);
        let got = got(&mut subscriber);
        let first_new = got.iter().position(|p| p == new).unwrap_or_else(|| panic!("seed {seed}: {got:?}"));
        assert!(!got[first_new..].iter().any(|p| p == "offline"), "seed {seed}: went back: {got:?}");
    }
}

#[test]
fn a_will_that_is_retained_reaches_a_subscription_that_overlaps_it() {
    for seed in seeds(0..200) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 0);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let will =
            Will { topic: "r/t", payload: b"online", qos: QoS::AtLeastOnce, retain: true, properties: &[] };
        let mut dying = SimClient::connect_with_will(cluster.open(0), "d", true, 0, Some(will));
        assert!(cluster.until(|| dying.seen().iter().any(|g| matches!(g, Got::Connected { .. }))));
        let mut subscriber = connect(&cluster, 1, "s", 0);
        cluster.store.latency(5);
        cluster.net.latency(1 + choices.below(8));
        let (dies_at, subscribe_at) = (choices.below(9), choices.below(9));
        for ms in 0..9 {
            if ms == dies_at {
                dying.wire.lose();
            }
            if ms == subscribe_at {
                subscriber.subscribe("r/t", QoS::AtLeastOnce);
            }
            cluster.advance(1);
        }
        cluster.advance(20_000);
        converges(seed, &got(&mut subscriber), "online");
    }
}

#[test]
fn a_subscription_made_while_the_store_is_away_ends_with_what_was_retained_meanwhile() {
    for seed in seeds(0..100) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 0);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let at = usize::try_from(choices.below(2)).unwrap();
        let mut subscriber = connect(&cluster, at, "s", if choices.below(2) == 0 { 0 } else { 600 });
        cluster.store.outage(true);
        cluster.advance(5_000 + choices.below(1_000));
        let new = if choices.below(4) == 0 { "" } else { "online" };
        let first = choices.below(2) == 0;
        if first {
            retain(&cluster, &mut publisher, new, QoS::AtLeastOnce);
        }
        subscribe(&cluster, &mut subscriber, "r/#", QoS::AtLeastOnce);
        if !first {
            retain(&cluster, &mut publisher, new, QoS::AtLeastOnce);
        }
        cluster.advance(5_000);
        cluster.store.latency(5);
        cluster.store.outage(false);
        cluster.advance(30_000);
        let got = got(&mut subscriber);
        let last = got.last().map(String::as_str);
        // What clears is not sent because of a subscription; a client that has the old value has to hear of it.
        assert!(last == Some(new) || (new.is_empty() && last.is_none()), "seed {seed}: {got:?}");
        let first_new = got.iter().position(|p| p == new).unwrap_or(got.len());
        assert!(!got[first_new..].iter().any(|p| p == "offline"), "seed {seed}: went back: {got:?}");
    }
}

#[test]
fn retain_handling_decides_what_is_sent_and_not_what_is_missed() {
    for seed in seeds(0..200) {
        let mut choices = Choices(seed);
        let cluster = cluster(2, seed);
        let mut publisher = connect(&cluster, 0, "p", 0);
        retain(&cluster, &mut publisher, "offline", QoS::AtLeastOnce);
        let mut subscriber = connect(&cluster, 1, "s", 0);
        cluster.store.latency(5);
        cluster.net.latency(1 + choices.below(8));
        let (publish_at, subscribe_at) = (choices.below(9), choices.below(9));
        for ms in 0..9 {
            if ms == publish_at {
                publisher.publish("r/t", "online", QoS::AtLeastOnce, true);
            }
            if ms == subscribe_at {
                subscriber.subscribe_handling("r/t", QoS::AtLeastOnce, RetainHandling::SendIfNew);
            }
            cluster.advance(1);
        }
        cluster.advance(20_000);
        converges(seed, &got(&mut subscriber), "online");
        subscriber.take();
        subscriber.subscribe_handling("r/t", QoS::AtLeastOnce, RetainHandling::SendIfNew);
        subscriber.subscribe_handling("r/+", QoS::AtLeastOnce, RetainHandling::DoNotSend);
        cluster.advance(1_000);
        assert!(got(&mut subscriber).is_empty(), "seed {seed}");
    }
}

#[test]
fn what_was_cleared_after_an_update_was_parked_stays_cleared() {
    for (seed, restarts) in [(1, false), (2, false), (3, true)] {
        let mut cluster = cluster(3, seed);
        let mut late = connect(&cluster, 0, "late", 600);
        let mut other = connect(&cluster, 2, "other", 0);
        cluster.cut_from_store(0, true);
        cluster.advance(500);
        retain(&cluster, &mut late, "parked", QoS::AtLeastOnce);
        retain(&cluster, &mut other, "set", QoS::AtLeastOnce);
        retain(&cluster, &mut other, "", QoS::AtLeastOnce);
        cluster.cut_from_store(0, false);
        if restarts {
            cluster.restart(0);
        }
        cluster.advance(20_000);
        assert_eq!(cluster.store.retained("r/t"), None, "seed {seed}");
        assert_eq!(cluster.node(0).unwrap().spooled_retained(), 0, "seed {seed}");
    }
}

#[test]
fn what_was_parked_is_written_if_nobody_has_cleared_it_since() {
    let cluster = cluster(3, 4);
    let mut late = connect(&cluster, 0, "late", 600);
    retain(&cluster, &mut late, "first", QoS::AtLeastOnce);
    retain(&cluster, &mut late, "", QoS::AtLeastOnce);
    cluster.cut_from_store(0, true);
    cluster.advance(500);
    retain(&cluster, &mut late, "", QoS::AtLeastOnce);
    retain(&cluster, &mut late, "parked", QoS::AtLeastOnce);
    cluster.cut_from_store(0, false);
    cluster.advance(20_000);
    assert_eq!(cluster.store.retained("r/t").unwrap().message.payload(), b"parked");
}
