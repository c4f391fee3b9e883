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

#[test]
fn clients_that_come_while_the_store_is_away_are_refused_and_leave_nothing_behind() {
    for same in [false, true] {
        let mut cluster = cluster(1, 722);
        let waiting = cluster.node(0).unwrap().broker.metrics.clone();
        cluster.store.outage(true);
        let mut clients = Vec::new();
        for n in 0..200 {
            let client_id = if same { "s".to_owned() } else { format!("s{n}") };
            clients.push(SimClient::connect(cluster.open(0), &client_id, false, EXPIRY_S));
            cluster.advance(10);
        }
        assert!(waiting.claims_waiting.get() <= if same { 1 } else { 200 });
        cluster.advance(20_000);
        assert_eq!(waiting.claims_waiting.get(), 0);
        for client in &mut clients {
            let refused = Got::Connected { present: false, reason: Reason::ServerUnavailable };
            assert_eq!(client.seen(), [refused]);
        }
        cluster.crash(0);
        let (_, recovered) = cluster.nodes[0].journal.reopen();
        assert_eq!(recovered.sessions, []);
    }
}

#[test]
fn a_client_that_waits_when_the_store_comes_back_is_served() {
    let cluster = cluster(1, 723);
    cluster.store.outage(true);
    let mut client = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
    cluster.advance(3_000);
    cluster.store.outage(false);
    assert_eq!(connected(&cluster, &mut client), Some((false, Reason::Success)));
}

#[test]
fn only_so_many_clients_wait_for_their_sessions() {
    let mut limits = Limits::default();
    limits.remote.claiming = 10;
    let cluster = Cluster::with(1, 724, limits);
    assert!(cluster.until(|| cluster.node(0).unwrap().may_serve().is_ok()));
    cluster.store.latency(1_000);
    let mut clients: Vec<SimClient> =
        (0..50).map(|n| SimClient::connect(cluster.open(0), &format!("s{n}"), true, 0)).collect();
    let outcomes: Vec<_> = clients.iter_mut().map(|c| connected(&cluster, c)).collect();
    let refused = outcomes.iter().filter(|o| **o == Some((false, Reason::ServerUnavailable))).count();
    assert_eq!(refused, 40);
    let mut late = SimClient::connect(cluster.open(0), "late", true, 0);
    assert_eq!(connected(&cluster, &mut late), Some((false, Reason::Success)));
}

#[test]
fn a_session_made_for_an_earlier_connect_is_not_given_to_one_that_wants_more() {
    for seed in seeds(730..750) {
        let cluster = cluster(1, seed);
        cluster.store.latency(500);
        let first = SimClient::connect(cluster.open(0), "s", false, 0);
        cluster.advance(seed % 20);
        let client = connect(&cluster, 0, "s", EXPIRY_S);
        assert!(cluster.until(|| first.wire.closed()), "seed {seed}");
        assert!(cluster.node(0).unwrap().broker.session("s").unwrap().durable, "seed {seed}");
        client.wire.lose();
        let (_, present) = resume(&cluster, 0, "s");
        assert!(present, "seed {seed}");
    }
}

#[test]
fn nobody_hears_of_a_session_that_no_client_was_told_of() {
    for seed in seeds(0..120) {
        let cluster = cluster(2, 8_000 + seed);
        cluster.net.latency(1);
        cluster.store.latency(3);
        let mut first = SimClient::connect(cluster.open(0), "s", false, EXPIRY_S);
        cluster.advance(seed % 12);
        let mut second = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        let present = connected(&cluster, &mut second).is_some_and(|(present, _)| present);
        let told = first.seen().iter().any(|g| matches!(g, Got::Connected { reason: Reason::Success, .. }));
        assert!(told || !present, "seed {seed}");
    }
}

#[test]
fn clients_that_were_refused_are_not_kept_in_any_list() {
    let mut cluster = cluster(3, 9_000);
    let (client, _) = resume(&cluster, 0, "s");
    client.wire.lose();
    cluster.advance(100);
    cluster.crash(0);
    for _ in 0..1_000 {
        let came = SimClient::connect(cluster.open(1), "s", false, EXPIRY_S);
        cluster.advance(1);
        came.wire.lose();
    }
    let (news, reports) = cluster.node(1).unwrap().remote().unwrap().sessions.waiting();
    assert!(news < 100 && reports < 100, "{news}, {reports}");
}
