//! Many sessions move at once, under load, and many clients come at once: it costs etcd much fewer proposals.

use super::nodes::BerthCluster;
use super::will_watch::WillWatch;
use super::witness::{Conn, Owed, Witness};
use crate::client::{Client, Dial, In};
use crate::history;
use crate::load::{Publisher, Stage};
use crate::wait::PATIENCE;
use berth::mqtt::{QoS, Reason};

const SESSIONS: usize = 500;

/// Topics of each publisher; there is one on each node.
const TOPICS: usize = 25;

/// How many threads read what the sessions get.
const READERS: usize = 4;

/// More things that are seen before something else happens.
const MORE: usize = 1_000;

/// Clients that nobody knows, and come at once.
const NEW: usize = 2_000;

const PROPOSALS: &str = "berth_etcd_proposals_total";

/// A will delay that does not pass, seconds.
const LONG: u32 = 600;

/// A session and its connections: the one it has, and the next.
struct Moving {
    witness: Witness,
    old: Conn,
    new: Option<Conn>,
}

/// The sum of a metric of all nodes.
fn sum(cluster: &BerthCluster, metric: &str) -> f64 {
    (0..cluster.len()).map(|i| cluster.metric(i, metric)).sum()
}

/// Every other one has a will that is due when its connection is taken over.
fn dial(k: usize) -> Dial {
    let id = format!("s{k}");
    let delay_s = if k.is_multiple_of(2) { 0 } else { LONG };
    let mut dial = Dial::v5(&id).persistent().receive_maximum(20).will(&format!("wills/{id}"), "", delay_s);
    dial.will.as_mut().unwrap().qos = QoS::ExactlyOnce;
    dial
}

#[test]
fn all_sessions_of_a_node_are_taken_over_at_once_under_load() {
    let cluster = BerthCluster::with(3, 1, &[("cluster.takeover_timeout", "30s")]);
    let stage = Stage::new(cluster.mqtt(0));
    let history = &stage.history;
    let watch = WillWatch::start(cluster.mqtt(0), history);
    let mut sessions: Vec<Moving> = (0..SESSIONS)
        .map(|k| {
            let topic = format!("load/p{}/{}", k % 3, k / 3 % TOPICS);
            let (witness, old) = Witness::start(dial(k), &topic, cluster.mqtt(0), history);
            Moving { witness, old, new: None }
        })
        .collect();
    let publisher = |i: usize| {
        let dial = Dial::v5(&format!("p{i}")).persistent();
        let mut publisher = Publisher::new(dial, 5, &stage.at(cluster.mqtt(i)));
        publisher.topics = TOPICS as u64;
        publisher
    };
    let more = || assert!(history.wait_len(history.len() + MORE, PATIENCE), "nothing happens any more");
    std::thread::scope(|scope| {
        let stops = stage.stops();
        let publishers: Vec<_> = (0..3).map(publisher).map(|p| scope.spawn(move || p.run())).collect();
        for s in &mut sessions {
            s.witness.read(&mut s.old, 2);
        }
        sessions.iter_mut().for_each(|s| s.witness.ask(&mut s.old));
        let before = sum(&cluster, PROPOSALS);
        for (k, s) in sessions.iter_mut().enumerate() {
            s.new = Some(s.witness.begin(cluster.mqtt(1 + k % 2)));
        }
        for s in &mut sessions {
            s.witness.accepted(s.new.as_mut().unwrap(), true);
        }
        let proposals = sum(&cluster, PROPOSALS) - before;
        println!("{SESSIONS} takeovers cost {proposals} proposals");
        assert!(proposals < SESSIONS as f64 / 2.0, "{proposals} proposals");
        // Answers to this would come from a node that does not know that it has lost the session.
        sessions.iter_mut().for_each(|s| s.witness.ask(&mut s.old));
        more();
        drop(stops);
        publishers.into_iter().for_each(|p| p.join().unwrap());
    });
    let mut events = history.take();
    let owed = Owed::new(&events);
    let mut sessions = sessions.into_iter();
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let part: Vec<_> = sessions.by_ref().take(SESSIONS / READERS).collect();
            let owed = &owed;
            scope.spawn(move || {
                for Moving { mut witness, old, new } in part {
                    witness.taken_over(old);
                    witness.finish(new.unwrap(), owed);
                }
            });
        }
    });
    let arrived = sum(&cluster, "berth_session_moves_total{result=\"came\"}");
    assert_eq!(arrived, SESSIONS as f64, "moves");
    watch.finish(SESSIONS / 2, &cluster.addresses());
    events.extend(history.take());
    let report = history::must_hold("mass takeover", &events);
    assert!(report.acked > MORE / 4 && report.received > 2 * SESSIONS, "too little load");
}

#[test]
fn clients_that_come_all_at_once_share_proposals() {
    let cluster = BerthCluster::with(3, 1, &[("cluster.takeover_timeout", "30s")]);
    let before = sum(&cluster, PROPOSALS);
    let connect = |k: usize| {
        let dial = Dial::v5(&format!("new{k}")).persistent();
        let mut client = Client::raw(cluster.mqtt(k % 3), dial.version).unwrap();
        client.send(&dial.bytes()).unwrap();
        client
    };
    let mut clients: Vec<Client> = (0..NEW).map(connect).collect();
    for client in &mut clients {
        let answer = client.recv();
        assert!(matches!(answer, In::ConnAck { present: false, reason: Reason::Success, .. }), "{answer:?}");
    }
    let proposals = sum(&cluster, PROPOSALS) - before;
    println!("{NEW} claims cost {proposals} proposals");
    assert!(proposals < NEW as f64 / 2.0, "{proposals} proposals");
}
