//! A node that is gone has persistent sessions: QoS 1 publishes for them wait for it, in bounded memory; others go on.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::{QoS, Reason};

/// Publishes of a node that may wait for others.
const HELD_MAX: usize = 20;

/// Publishes for the node that is gone: many more.
const SENT: usize = 200;

/// A cluster whose node 1, with a persistent session, is gone.
fn without_n1(timeout: &str) -> (BerthCluster, Dial) {
    let options = [
        ("cluster.lease", "2s"),
        ("cluster.stale_after", "1s"),
        ("cluster.max_held_messages", &HELD_MAX.to_string()),
        ("publish.timeout", timeout),
    ];
    let mut cluster = BerthCluster::with(3, 1, &options);
    let dial = Dial::v5("s").persistent();
    assert_eq!(cluster.connect(1, &dial).subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    cluster.kill(1);
    wait::until_true("its lease has run out", || cluster.members() == ["n0", "n2"]);
    (cluster, dial)
}

fn send(publisher: &mut Client, n: usize) -> u16 {
    publisher.send_publish("t", n.to_string().as_bytes(), QoS::AtLeastOnce, false).unwrap()
}

#[test]
fn publishes_for_a_dead_node_wait_in_bounded_memory_and_arrive_in_order() {
    let (mut cluster, dial) = without_n1("5m");
    let mut publisher = cluster.connect(0, &Dial::v5("pub"));
    let ids: Vec<u16> = (0..SENT).map(|n| send(&mut publisher, n)).collect();
    let held = |c: &BerthCluster| c.metric(0, "berth_publishes_held") as usize;
    wait::until_true("publishes wait", || held(&cluster) >= HELD_MAX);
    // What is for somebody on another node goes on meanwhile, with any number on the way.
    let mut aside = cluster.connect(2, &Dial::v5("aside"));
    aside.subscribe(&[("aside", QoS::AtLeastOnce)]);
    let mut other = cluster.connect(0, &Dial::v5("other"));
    let on_the_way = 2 * HELD_MAX;
    for n in 0..on_the_way {
        other.send_publish("aside", n.to_string().as_bytes(), QoS::AtLeastOnce, false).unwrap();
    }
    aside.receive_texts(on_the_way);
    let now = held(&cluster);
    assert!(now < 2 * HELD_MAX, "{now} publishes are held");
    cluster.restart(1);
    let mut accepted = Vec::new();
    for (n, id) in ids.into_iter().enumerate() {
        match publisher.recv() {
            In::PubAck(of, reason) if of == id && !reason.is_error() => accepted.push(n.to_string()),
            In::PubAck(of, Reason::QuotaExceeded) if of == id => {}
            other => panic!("{n}: {other:?}"),
        }
    }
    assert!(accepted.len() >= HELD_MAX, "{accepted:?}");
    let mut sub = cluster.connect(1, &dial);
    assert!(sub.present);
    assert_eq!(sub.receive_texts(accepted.len()), accepted);
    sub.expect_silence();
    wait::until_true("nothing waits", || held(&cluster) == 0);
}

#[test]
fn publishers_are_told_what_a_dead_node_does_not_take_in_time() {
    let (mut cluster, dial) = without_n1("1s");
    let mut newer = cluster.connect(0, &Dial::v5("newer"));
    let id = send(&mut newer, 0);
    let answer = newer.recv();
    let In::PubAck(of, reason) = answer else { panic!("{answer:?}") };
    assert!(of == id && reason.is_error(), "{reason:?}");
    newer.ping();
    let mut older = cluster.connect(0, &Dial::v4("older"));
    send(&mut older, 1);
    assert_eq!(older.recv(), In::Closed);
    // What was not acknowledged may come or not; what is published now does.
    cluster.restart(1);
    let mut sub = cluster.connect(1, &dial);
    assert!(sub.present);
    wait::until_true("publishes are accepted again", || {
        !newer.publish_with("t", b"accepted", QoS::AtLeastOnce, false).is_error()
    });
    while sub.receive().text() != "accepted" {}
}
