//! A node that is gone has persistent sessions: QoS 1 publishes for them wait for it, in bounded memory.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::QoS;

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
    // Clients of other nodes are served meanwhile, and what is for nobody there goes on.
    cluster.connect(2, &Dial::v5("aside")).publish("aside", "x", QoS::AtLeastOnce);
    let now = held(&cluster);
    assert!(now < 2 * HELD_MAX, "{now} publishes are held");
    cluster.restart(1);
    for id in ids {
        let answer = publisher.recv();
        let In::PubAck(of, reason) = answer else { panic!("{answer:?}") };
        assert_eq!((of, reason.is_error()), (id, false));
    }
    let mut sub = cluster.connect(1, &dial);
    assert!(sub.present);
    let sent: Vec<String> = (0..SENT).map(|n| n.to_string()).collect();
    assert_eq!(sub.receive_texts(SENT), sent);
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
