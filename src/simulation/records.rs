//! What a node makes of the records of sessions, custody and evictions, in virtual time.

use super::takeovers::{EXPIRY_S, cluster, connected, resume};
use super::*;
use crate::mqtt::{QoS, client};
use crate::node::operate::OperateError;
use crate::ports::{Claim, ClaimOutcome, Expected, Index, IndexEvent, SessionOwner};
use crate::user::SessionUser;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake};

#[test]
fn the_routes_of_a_forgotten_node_leave_the_index() {
    let mut cluster = cluster(2, 31);
    let (mut client, _) = resume(&cluster, 1, "s");
    client.subscribe("t/#", QoS::AtLeastOnce);
    client.subscribe("$share/g/u", QoS::AtLeastOnce);
    let routes = |cluster: &Cluster| cluster.node(0).unwrap().remote().unwrap().routes.len();
    assert!(cluster.until(|| routes(&cluster) == 2));
    cluster.crash(1);
    assert!(cluster.until(|| cluster.members().len() == 1));
    assert_eq!(routes(&cluster), 2, "it may come back");
    cluster.store.forget("n1");
    assert!(cluster.until(|| routes(&cluster) == 0));
}

#[test]
fn an_eviction_counts_before_the_record_that_comes_after_it() {
    for seed in seeds(0..8) {
        let cluster = cluster(2, seed);
        let mut watcher = SimClient::connect(cluster.open(0), "w", true, 0);
        assert!(connected(&cluster, &mut watcher).is_some());
        watcher.subscribe("will", QoS::AtLeastOnce);
        let will = client::Will {
            topic: "will",
            payload: b"gone",
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: &[],
        };
        let mut old = SimClient::connect_with_will(cluster.open(0), "s", true, EXPIRY_S, Some(will));
        assert!(connected(&cluster, &mut old).is_some());
        let (node, client_id) = (cluster.name(0), Arc::from("s"));
        let index = cluster.node(0).unwrap().cluster.as_ref().unwrap();
        let session = SessionOwner {
            owner: cluster.id(1).unwrap(),
            epoch: 2,
            expiry_s: EXPIRY_S,
            user: SessionUser::Unknown,
        };
        // The pages of a snapshot.
        index.begin_snapshot();
        index.apply(
            vec![IndexEvent::Eviction {
                node,
                client_id: Arc::clone(&client_id),
                epoch: Some(2),
                expired: false,
                revision: 1,
            }],
            None,
        );
        index.apply(vec![IndexEvent::Session { client_id, session: Some(session), revision: 1_000 }], None);
        assert!(cluster.until(|| old.wire.closed()), "seed {seed}");
        // Its client is connected elsewhere.
        cluster.advance(5_000);
        assert!(watcher.payloads().is_empty(), "seed {seed}: {:?}", watcher.payloads());
    }
}

#[test]
fn a_session_that_is_at_neither_end_of_a_move_is_not_unknown() {
    let cluster = cluster(2, 32);
    // n1 has claimed it, and is still putting it together.
    let claim = Claim {
        client_id: "s".into(),
        expected: Expected::Absent,
        epoch: 1,
        expiry_s: EXPIRY_S,
        user: SessionUser::Unknown,
        evict: None,
    };
    let claimed =
        cluster.sim.wait(cluster.running(1).unwrap().coordinator.claim(claim), PATIENCE_MS).unwrap();
    assert!(matches!(claimed, Ok(ClaimOutcome::Granted(_))));
    let kick = |client_id: &str| {
        let kicked = cluster.node(0).unwrap().kick_anywhere(client_id);
        cluster.sim.wait(kicked, PATIENCE_MS).unwrap()
    };
    let why = "client \"s\": node n1 is just taking or leaving it".to_owned();
    assert_eq!(kick("s"), Err(OperateError::Unavailable(why)));
    assert_eq!(kick("nobody"), Err(OperateError::NoSession("nobody".to_owned())));
}

/// Looks at node 0 when it is woken.
struct Looks(Arc<node::Node>, AtomicU64);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let replaced = self.0.remote().unwrap().sessions.replaced_by("s", 7);
        self.1.store(1 + u64::from(replaced), Ordering::Relaxed);
    }
}

#[test]
fn whoever_waits_for_a_revision_finds_the_evictions_that_came_with_it() {
    let cluster = cluster(2, 32);
    let first = cluster.node(0).unwrap().clone();
    let index = first.cluster.as_ref().unwrap();
    let remote = first.remote().unwrap();
    let revision = remote.applied() + 1;
    let looks = Arc::new(Looks(first.clone(), AtomicU64::new(0)));
    let mut applied = remote.when_applied(revision);
    assert!(applied.as_mut().poll(&mut Context::from_waker(&looks.clone().into())).is_pending());
    let (node, client_id) = (cluster.name(0), Arc::from("s"));
    let eviction = IndexEvent::Eviction { node, client_id, epoch: Some(7), expired: false, revision };
    index.apply(vec![eviction], Some(revision));
    assert_eq!(looks.1.load(Ordering::Relaxed), 2);
}
