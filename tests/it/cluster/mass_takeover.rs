//! Many sessions move at once, under load.

use super::nodes::BerthCluster;
use super::witness::{Conn, Owed, Witness};
use crate::client::Dial;
use crate::history::{self, History};
use crate::load::{Publisher, Stage};
use crate::wait::PATIENCE;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SESSIONS: usize = 500;

/// Topics of each publisher; there is one on each node.
const TOPICS: usize = 25;

/// How many threads read what the sessions get.
const READERS: usize = 4;

/// More things that are seen before something else happens.
const MORE: usize = 1_000;

/// A session and its connections: the one it has, and the next.
struct Moving {
    witness: Witness,
    old: Conn,
    new: Option<Conn>,
}

#[test]
fn all_sessions_of_a_node_are_taken_over_at_once_under_load() {
    let cluster = BerthCluster::start(3);
    let (history, stop) = (Arc::<History>::default(), Arc::<AtomicBool>::default());
    let mut sessions: Vec<Moving> = (0..SESSIONS)
        .map(|k| {
            let dial = Dial::v5(&format!("s{k}")).persistent().receive_maximum(20);
            let topic = format!("load/p{}/{}", k % 3, k / 3 % TOPICS);
            let (witness, old) = Witness::start(dial, &topic, cluster.mqtt(0), &history);
            Moving { witness, old, new: None }
        })
        .collect();
    let publisher = |i: usize| {
        let stage = Stage { addresses: vec![cluster.mqtt(i)], history: history.clone(), stop: stop.clone() };
        let dial = Dial::v5(&format!("p{i}")).persistent();
        let mut publisher = Publisher::new(dial, 5, &stage);
        publisher.topics = TOPICS as u64;
        publisher
    };
    let more = || assert!(history.wait_len(history.len() + MORE, PATIENCE), "nothing happens any more");
    std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..3).map(publisher).map(|p| scope.spawn(move || p.run())).collect();
        for s in &mut sessions {
            s.witness.read(&mut s.old, 2);
        }
        sessions.iter_mut().for_each(|s| s.witness.ask(&mut s.old));
        for (k, s) in sessions.iter_mut().enumerate() {
            s.new = Some(s.witness.begin(cluster.mqtt(1 + k % 2)));
        }
        for s in &mut sessions {
            s.witness.accepted(s.new.as_mut().unwrap(), true);
        }
        // Answers to this would come from a node that does not know that it has lost the session.
        sessions.iter_mut().for_each(|s| s.witness.ask(&mut s.old));
        more();
        stop.store(true, Ordering::Release);
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
    events.extend(history.take());
    let report = history::must_hold("mass takeover", &events);
    assert!(report.acked > MORE / 4 && report.received > 2 * SESSIONS, "too little load");
}
