//! A seeded mix of faults under a load of every kind: plain subscriptions, some of which come late, groups that share the same topics at
//! QoS 1 and 2, and sessions that move while others publish. Nodes are killed, one or two at once, stopped, drained, parted from each
//! other and from etcd, and etcd's own members die and hang.
//!
//! `BERTH_MIX_SECONDS=1800 BERTH_MIX_SEED=7` runs half an hour of it, the same faults each time.

use super::nodes::BerthCluster;
use super::rolling::goes_on;
use crate::client::Dial;
use crate::history::{self, Event};
use crate::kill::finish;
use crate::load::{Publisher, Stage, Subscriber};
use crate::random::Random;
use std::thread::Scope;
use std::time::Duration;

const NODES: usize = 3;

/// How long the faults go on, seconds, unless `BERTH_MIX_SECONDS` says otherwise.
const USUAL_S: u64 = 40;

/// Between two messages of a publisher.
const PACE: Duration = Duration::from_millis(15);

/// Messages after which a client that does not stay goes to another node.
const RESTLESS: usize = 300;

/// Clients that subscribe late, at most.
const LATE: usize = 60;

/// Of these come beside one fault, each within so many milliseconds of its beginning.
const LATE_AT_ONCE: usize = 2;
const LATE_BY_MS: u64 = 2_500;

const OPTIONS: &[(&str, &str)] = &[
    ("cluster.lease", "4s"),
    ("cluster.stale_after", "2s"),
    ("cluster.suback_wait", "3s"),
    ("cluster.peer_timeout", "1s"),
    // Longer than any fault: whoever waits for older messages of a link that stands still gives order up after that.
    ("cluster.order_wait", "30s"),
    ("etcd.timeout", "500ms"),
];

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    KillTwo,
    Stop,
    Drain,
    CutLinks,
    StallLinks,
    CutFromStore,
    StallStore,
    StoreMemberDies,
    StoreMemberHangs,
    NoQuorum,
}

const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::KillTwo,
    Fault::Stop,
    Fault::Drain,
    Fault::CutLinks,
    Fault::StallLinks,
    Fault::CutFromStore,
    Fault::StallStore,
    Fault::StoreMemberDies,
    Fault::StoreMemberHangs,
    Fault::NoQuorum,
];

/// Lets the load go on beside a fault for a time that the seed has chosen.
fn lasts(stage: &Stage, ms: u64) {
    let end = berth::clock::now().plus_ms(ms);
    while berth::clock::now() < end && !stage.has_failed() {
        stage.history.wait_len(usize::MAX, Duration::from_millis(50));
    }
}

/// Brings nodes back that were killed together.
fn bring_back(cluster: &mut BerthCluster, nodes: &[usize]) {
    nodes.iter().for_each(|i| cluster.broker(*i).respawn());
    nodes.iter().for_each(|i| cluster.broker(*i).wait_ready());
}

fn strike(cluster: &mut BerthCluster, stage: &Stage, fault: Fault, random: &mut Random) {
    let (one, ms) = (random.index(NODES), 500 + random.below(6_000));
    let two = (one + 1 + random.index(NODES - 1)) % NODES;
    println!("{fault:?} of {one} ({two}) for {ms} ms");
    let kill = |cluster: &mut BerthCluster, i: usize| {
        cluster.kill(i);
        stage.history.add(Event::Killed);
    };
    match fault {
        Fault::Kill => {
            kill(cluster, one);
            lasts(stage, ms);
            bring_back(cluster, &[one]);
        }
        Fault::KillTwo => {
            kill(cluster, one);
            kill(cluster, two);
            lasts(stage, ms);
            bring_back(cluster, &[one, two]);
        }
        Fault::Stop => {
            cluster.stop(one);
            lasts(stage, ms);
            cluster.cont(one);
        }
        Fault::Drain => {
            cluster.term(one);
            lasts(stage, ms / 4);
            cluster.restart(one);
        }
        Fault::CutLinks => {
            cluster.cut_links_to(one, true);
            lasts(stage, ms);
            cluster.cut_links_to(one, false);
        }
        Fault::StallLinks => {
            cluster.stall_links_to(one, true);
            lasts(stage, ms);
            cluster.stall_links_to(one, false);
        }
        Fault::CutFromStore => {
            cluster.cut_from_etcd(one, true);
            lasts(stage, ms);
            cluster.cut_from_etcd(one, false);
        }
        Fault::StallStore => {
            cluster.stall_etcd(one, true);
            lasts(stage, ms);
            cluster.stall_etcd(one, false);
        }
        Fault::StoreMemberDies => {
            cluster.etcd.kill(one);
            lasts(stage, ms);
            cluster.etcd.restart(one);
        }
        Fault::StoreMemberHangs => {
            cluster.etcd.stop(one);
            lasts(stage, ms);
            cluster.etcd.cont(one);
        }
        Fault::NoQuorum => {
            cluster.etcd.stop(one);
            cluster.etcd.stop(two);
            lasts(stage, ms);
            cluster.etcd.cont(one);
            cluster.etcd.cont(two);
        }
    }
    (0..NODES).for_each(|m| cluster.etcd.wait_healthy(m));
    // Nothing is struck before the last fault is over for the clients too.
    goes_on(stage);
}

fn persistent(id: &str) -> Dial {
    Dial::v5(id).persistent()
}

/// A client that subscribes `ms` from now, while the others are at it.
fn one_more<'s>(scope: &'s Scope<'s, '_>, stage: &Stage, n: usize, ms: u64) {
    let filter = if n.is_multiple_of(3) { "load/+/0" } else { "load/#" };
    let stage = stage.clone();
    scope.spawn(move || {
        lasts(&stage, ms);
        Subscriber::late(persistent(&format!("late{n}")), filter, &stage).run();
    });
}

#[test]
fn a_mix_of_faults_breaks_no_promise_of_any_kind() {
    let mut random = Random::seeded("BERTH_MIX_SEED");
    let seconds =
        std::env::var("BERTH_MIX_SECONDS").map_or(USUAL_S, |s| s.parse().expect("a number of seconds"));
    let mut cluster = BerthCluster::with(NODES, NODES, OPTIONS);
    let admin = (0..NODES).map(|i| cluster.http(i)).collect();
    let stage = Stage { admin, ..Stage::cluster(cluster.addresses()) };
    let mut subscribers = vec![
        Subscriber::new(persistent("everything"), "load/#", &stage),
        Subscriber::new(persistent("restless"), "load/#", &stage),
        Subscriber::new(persistent("slowly").receive_maximum(5), "load/+/0", &stage),
    ];
    subscribers[1].restless = Some(RESTLESS);
    for n in 0..4 {
        let mut member = Subscriber::member(persistent(&format!("member{n}")), "$share/g/load/#", &stage);
        member.restless = (n < 2).then_some(RESTLESS / (1 + 2 * n));
        subscribers.push(member);
    }
    let publisher = |n: usize| {
        let mut publisher = Publisher::new(persistent(&format!("p{n}")), 40, &stage);
        publisher.pace = PACE;
        publisher
    };
    let publishers: Vec<Publisher> = (0..NODES).map(publisher).collect();
    let mut events = std::thread::scope(|scope| {
        let stops = stage.stops();
        subscribers.into_iter().for_each(|s| drop(scope.spawn(move || s.run())));
        let publishing: Vec<_> = publishers.into_iter().map(|p| scope.spawn(move || p.run())).collect();
        let end = berth::clock::now().plus_ms(seconds * 1_000);
        let mut late = 0;
        while berth::clock::now() < end {
            let next = LATE.min(late + LATE_AT_ONCE);
            for n in late..next {
                one_more(scope, &stage, n, random.below(LATE_BY_MS));
            }
            late = next;
            let fault = FAULTS[random.index(FAULTS.len())];
            strike(&mut cluster, &stage, fault, &mut random);
        }
        drop(stops);
        publishing.into_iter().for_each(|p| p.join().unwrap());
        finish(&stage)
    });
    events.extend(stage.history.take());
    let report = history::must_hold("mix of faults", &events);
    assert!(report.acked > 500 && report.received > report.acked, "too little load: {report:?}");
}
