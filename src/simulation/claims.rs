//! CONNECTs on their way to their sessions while the coordination store is slow, behind or away.

use super::takeovers::{EXPIRY_S, cluster, connected, resume};
use super::*;
use crate::mqtt::Reason;

fn connect(cluster: &Cluster, node: usize, client_id: &str, expiry_s: u32) -> SimClient {
    let mut client = SimClient::connect(cluster.open(node), client_id, false, expiry_s);
    assert_eq!(connected(cluster, &mut client), Some((false, Reason::Success)), "{client_id} at {node}");
    client
}

fn leave(cluster: &Cluster, mut client: SimClient) {
    client.leave();
    assert!(cluster.until(|| cluster.store.owner(&client.client_id).is_none()));
}

fn stays(cluster: &Cluster, client: &SimClient) {
    cluster.store.lag("n0", false);
    cluster.advance(2_000);
    assert!(!client.wire.closed(), "an old event has ended the session");
    client.wire.lose();
    let (_, present) = resume(cluster, 0, &client.client_id);
    assert!(present);
}

#[test]
fn events_from_before_a_claim_do_not_end_its_session() {
    let cluster = cluster(2, 720);
    cluster.store.lag("n0", true);
    for _ in 0..2 {
        leave(&cluster, connect(&cluster, 1, "s", 0));
    }
    let client = connect(&cluster, 0, "s", EXPIRY_S);
    stays(&cluster, &client);
}

#[test]
fn an_eviction_from_before_a_claim_does_not_end_its_session() {
    let cluster = cluster(2, 721);
    let first = connect(&cluster, 0, "s", 0);
    cluster.store.lag("n0", true);
    let second = connect(&cluster, 1, "s", 0);
    assert!(first.wire.closed());
    leave(&cluster, second);
    let client = connect(&cluster, 0, "s", EXPIRY_S);
    stays(&cluster, &client);
    assert!(cluster.store.evictions().is_empty());
}
