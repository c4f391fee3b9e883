//! How long publishers wait for sessions that move and for nodes that are gone: no longer than that takes.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use berth::clock;
use berth::mqtt::{QoS, Reason};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What an acknowledgement may take beyond what it waits for, milliseconds.
const SOON_MS: u64 = 2_000;

/// Publishes of a publisher that are not acknowledged.
const WINDOW: usize = 100;

/// Between two of them: queues stay short, and moves with them.
const PACE: Duration = Duration::from_millis(2);

/// Between two publishes while nodes are gone: a rate, nothing is waited for.
const GONE_PACE: Duration = Duration::from_millis(20);

/// Sessions of each of two nodes.
const SESSIONS: usize = 6;

fn acknowledged(publisher: &mut Client, qos: QoS, id: u16) {
    let reason = publisher.wait_for("an acknowledgement", |p| match p {
        In::PubAck(i, reason) if *i == id && qos == QoS::AtLeastOnce => Some(*reason),
        In::PubRec(i, reason) if *i == id && qos == QoS::ExactlyOnce => Some(*reason),
        _ => None,
    });
    assert_eq!(reason, Reason::Success);
}

#[test]
fn sessions_that_change_places_hold_no_publisher_up() {
    let cluster = BerthCluster::start(3);
    let dials: Vec<Dial> = (0..2 * SESSIONS).map(|n| Dial::v5(&format!("s{n}")).persistent()).collect();
    let mut clients: Vec<Client> = dials.iter().enumerate().map(|(n, d)| cluster.connect(n % 2, d)).collect();
    for client in &mut clients {
        client.subscribe(&[("t/#", QoS::AtLeastOnce)]);
    }
    let over = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|no| {
                let (cluster, over) = (&cluster, &over);
                scope.spawn(move || -> u64 {
                    let mut publisher = cluster.connect(no, &Dial::v5(&format!("p{no}")));
                    let (mut slowest, mut open) = (0, VecDeque::new());
                    loop {
                        let over = over.load(Ordering::Acquire);
                        if !over && open.len() < WINDOW {
                            let id = publisher.send_publish("t/x", b"1", QoS::AtLeastOnce, false).unwrap();
                            open.push_back((id, clock::now()));
                            thread::sleep(PACE);
                            continue;
                        }
                        let Some((id, sent)) = open.pop_front() else { return slowest };
                        assert_eq!(publisher.recv(), In::PubAck(id, Reason::Success));
                        slowest = slowest.max(clock::now().since_ms(sent));
                    }
                })
            })
            .collect();
        for round in 1..=8 {
            let movers = dials.iter().enumerate().map(|(n, dial)| {
                let (cluster, at) = (&cluster, (n + round) % 2);
                scope.spawn(move || {
                    let mut client = cluster.connect(at, dial);
                    assert!(client.present, "{dial:?}");
                    // New subscriptions come meanwhile.
                    client.subscribe(&[(&format!("other/{round}"), QoS::AtLeastOnce)]);
                    client
                })
            });
            let movers: Vec<_> = movers.collect();
            let moved: Vec<Client> = movers.into_iter().map(|m| m.join().unwrap()).collect();
            clients = moved;
        }
        over.store(true, Ordering::Release);
        publishers.into_iter().map(|p| p.join().unwrap()).max()
    });
    let timeouts = [0, 1, 2].map(|i| cluster.metric(i, "berth_session_order_timeouts_total"));
    assert_eq!(timeouts, [0.0; 3], "slowest {slowest:?} ms");
    assert!(slowest < Some(SOON_MS), "{slowest:?} ms");
    drop(clients);
}

#[test]
fn nodes_that_were_gone_hold_publishers_for_no_longer_than_they_were() {
    let mut cluster = BerthCluster::start(3);
    for no in 1..3 {
        let mut sub = cluster.connect(no, &Dial::v5(&format!("s{no}")).persistent());
        sub.subscribe(&[("t", QoS::ExactlyOnce)]);
    }
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut publisher = cluster.connect(0, &Dial::v5("p"));
        cluster.kill(1);
        cluster.kill(2);
        let killed = clock::now();
        let mut ids = Vec::new();
        while clock::now().since_ms(killed) < 7_000 {
            ids.push(publisher.send_publish("t", b"1", qos, false).unwrap());
            thread::sleep(GONE_PACE);
        }
        cluster.restart(1);
        cluster.restart(2);
        let back = clock::now();
        ids.into_iter().for_each(|id| acknowledged(&mut publisher, qos, id));
        let took = clock::now().since_ms(back);
        assert!(took < SOON_MS, "{took} ms after they were back, QoS {}", qos as u8);
        let timeouts = [0, 1, 2].map(|i| cluster.metric(i, "berth_session_order_timeouts_total"));
        assert_eq!(timeouts, [0.0; 3]);
    }
}
