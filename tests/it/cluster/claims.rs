//! Claims, releases, evictions, and the fence before all of them.

use super::store::{Node, dump, keys, setup};
use crate::wait::becomes_true;
use berth::etcd::client::kv;
use berth::etcd::older::mark_of;
use berth::etcd::records::{self, CustodyRecord};
use berth::ports::{Claim, ClaimOutcome, Coordinator, Expected, Owner, RouteChange};
use berth::user::SessionUser;
use futures_util::future::join_all;

fn claim(client: &str, expected: Expected, epoch: u64) -> Claim {
    Claim { client_id: client.into(), expected, epoch, expiry_s: 60, user: SessionUser::Unknown, evict: None }
}

fn found(outcome: ClaimOutcome) -> Owner {
    match outcome {
        ClaimOutcome::Found(Some(owner)) => owner,
        other => panic!("{other:?}"),
    }
}

#[test]
fn twenty_thousand_claims_cost_few_proposals() {
    let (etcd, runtime) = setup(3);
    runtime.block_on(async {
        let node = Node::start(etcd.endpoints(), "a").await;
        let before = node.coordinator.read_revision().await.unwrap();
        let proposals = node.metrics.etcd_proposals.get();
        let outcomes = join_all(
            (0..20_000).map(|i| node.coordinator.claim(claim(&format!("c{i}"), Expected::Absent, 1))),
        );
        let mut revisions = std::collections::BTreeSet::new();
        for outcome in outcomes.await {
            let ClaimOutcome::Granted(revision) = outcome.unwrap() else { panic!("not granted") };
            revisions.insert(revision);
        }
        // Each proposal that wrote something is one revision.
        assert!(revisions.len() < 1000, "{} proposals", revisions.len());
        assert!(node.metrics.etcd_proposals.get() - proposals < 1000);
        let after = node.coordinator.read_revision().await.unwrap();
        assert!(after - before < 1000, "{} revisions", after - before);
        node.equals_snapshot().await;
        assert_eq!(node.index.content().sessions.len(), 20_000);
    });
}

#[test]
fn of_two_that_compete_exactly_one_wins_each_epoch() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let clients: Vec<String> = (0..200).map(|i| format!("client {i}/ä")).collect();
        let mut expected: Vec<Expected> = vec![Expected::Absent; clients.len()];
        for epoch in 1..=5 {
            let ask = |node: &Node| {
                let claims = clients.iter().zip(&expected);
                join_all(
                    claims
                        .map(|(c, e)| node.coordinator.claim(claim(c, e.clone(), epoch)))
                        .collect::<Vec<_>>(),
                )
            };
            let (by_a, by_b) = futures_util::future::join(ask(&a), ask(&b)).await;
            for (i, (x, y)) in by_a.into_iter().zip(by_b).enumerate() {
                let (winner, revision, lost) = match (x.unwrap(), y.unwrap()) {
                    (ClaimOutcome::Granted(revision), lost) => (&a.me, revision, lost),
                    (lost, ClaimOutcome::Granted(revision)) => (&b.me, revision, lost),
                    both => panic!("{both:?}"),
                };
                let owner = found(lost);
                assert_eq!(
                    (&owner.session.owner, &owner.holder, owner.session.epoch, owner.revision),
                    (winner, winner, epoch, revision)
                );
                expected[i] = Expected::Read(owner);
            }
        }
        a.equals_snapshot().await;
        b.equals_snapshot().await;
    });
}

#[test]
fn two_claims_of_one_node_on_one_client_do_not_both_win() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let claims = (0..10).map(|_| a.coordinator.claim(claim("c", Expected::Absent, 1)));
        let outcomes: Vec<_> = join_all(claims).await.into_iter().map(Result::unwrap).collect();
        let granted = outcomes.iter().filter(|o| matches!(o, ClaimOutcome::Granted(_))).count();
        assert_eq!(granted, 1, "{outcomes:?}");
    });
}

#[test]
fn a_claim_compares_the_custody_it_was_read_through() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let c = Node::start(etcd.endpoints(), "c").await;
        a.coordinator.claim(claim("x", Expected::Absent, 1)).await.unwrap();
        let owner = b.coordinator.owner("x").await.unwrap().unwrap();
        assert_eq!(owner.holder, a.me);
        // Custody moves; the claimer may or may not have seen it.
        let mut moved = CustodyRecord::own(&a.me, 7);
        moved.holder = c.me.clone();
        let (key, value) = (keys().custody(&a.me), records::write(&moved));
        b.etcd.once(|client| async move { kv(&client).put(key, value, None).await }).await.unwrap();
        let outcome = b.coordinator.claim(claim("x", Expected::Read(owner), 2)).await.unwrap();
        let owner = found(outcome);
        assert_eq!((&owner.session.owner, &owner.holder), (&a.me, &c.me));
        let granted = b.coordinator.claim(claim("x", Expected::Read(owner), 2)).await.unwrap();
        assert!(matches!(granted, ClaimOutcome::Granted(_)));
        assert_eq!(c.coordinator.owner("x").await.unwrap().unwrap().holder, b.me);
        assert_eq!(c.coordinator.owner("nobody").await.unwrap(), None);
    });
}

#[test]
fn a_claim_carried_out_unheard_is_found_when_custody_has_moved_since() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let [a, b] = [Node::start(etcd.endpoints(), "a").await, Node::start(etcd.endpoints(), "b").await];
        let restarted = Node::start(etcd.endpoints(), "c").await;
        a.coordinator.claim(claim("x", Expected::Absent, 1)).await.unwrap();
        let owner = b.coordinator.owner("x").await.unwrap().unwrap();
        let granted = b.coordinator.claim(claim("x", Expected::Read(owner.clone()), 2)).await.unwrap();
        let ClaimOutcome::Granted(at) = granted else { panic!("{granted:?}") };
        let mut moved = CustodyRecord::own(&a.me, 7);
        moved.holder = restarted.me.clone();
        let (key, value) = (keys().custody(&a.me), records::write(&moved));
        let put = b.etcd.once(|client| async move { kv(&client).put(key, value, None).await }).await.unwrap();
        b.coordinator.applies(put.header().unwrap().revision() as u64).await;
        let owner = found(b.coordinator.claim(claim("x", Expected::Read(owner), 2)).await.unwrap());
        assert_eq!((&owner.session.owner, &owner.holder, owner.session.epoch), (&b.me, &b.me, 2));
        assert_eq!(owner.revision, at);
    });
}

#[test]
fn releases_and_evictions() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        for client in ["x", "y"] {
            a.coordinator.claim(claim(client, Expected::Absent, 1)).await.unwrap();
        }
        let owner = b.coordinator.owner("x").await.unwrap().unwrap();
        let over = Claim { evict: Some("a".into()), ..claim("x", Expected::Read(owner), 2) };
        let ClaimOutcome::Granted(revision) = b.coordinator.claim(over).await.unwrap() else { panic!() };
        a.coordinator.applies(revision).await;
        let content = a.index.content();
        assert_eq!(content.evictions[&("a".to_owned(), "x".to_owned())], 2);
        assert_eq!(content.sessions["x"], (b.me.clone(), 2));
        // Not its any more, another epoch, and its own.
        drop(a.coordinator.release("x", 1));
        drop(a.coordinator.release("y", 7));
        a.coordinator.evicted("x", 2);
        becomes_true("the note is gone", || a.index.content().evictions.is_empty()).await;
        drop(a.coordinator.release("y", 1));
        becomes_true("the session is over", || !a.index.content().sessions.contains_key("y")).await;
        drop(b.coordinator.release("x", 2));
        becomes_true("no sessions", || a.index.content().sessions.is_empty()).await;
        a.equals_snapshot().await;
    });
}

#[test]
fn a_session_of_an_adopted_incarnation_is_released_by_its_holder() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let [old, other] =
            [Node::start(etcd.endpoints(), "a").await, Node::start(etcd.endpoints(), "b").await];
        old.coordinator.claim(claim("x", Expected::Absent, 3)).await.unwrap();
        other.coordinator.claim(claim("y", Expected::Absent, 3)).await.unwrap();
        old.lose_lease().await;
        let new = Node::start(etcd.endpoints(), "a").await;
        let mut adopted = CustodyRecord::own(&old.me, 7);
        adopted.holder = new.me.clone();
        let (key, value) = (keys().custody(&old.me), records::write(&adopted));
        let put =
            new.etcd.once(|client| async move { kv(&client).put(key, value, None).await }).await.unwrap();
        new.coordinator.applies(put.header().unwrap().revision() as u64).await;
        // Nobody adopted what is the other node's.
        drop(new.coordinator.release("y", 3));
        drop(new.coordinator.release("x", 3));
        becomes_true("the session is over", || !new.index.content().sessions.contains_key("x")).await;
        assert!(new.coordinator.owner("y").await.unwrap().is_some());
    });
}

#[test]
fn without_the_lease_nothing_is_written_and_with_a_new_one_it_goes_on() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        a.coordinator.claim(claim("old", Expected::Absent, 1)).await.unwrap();
        a.lose_lease().await;
        let claims = tokio::spawn(join_all(
            (0..300)
                .map(|i| a.coordinator.claim(claim(&format!("c{i}"), Expected::Absent, 1)))
                .collect::<Vec<_>>(),
        ));
        let change = RouteChange { filter: "a/#".into(), route: Some((true, 1)) };
        let routes = tokio::spawn(a.coordinator.routes(vec![change]));
        drop(a.coordinator.release("old", 1));
        // Several attempts were made in vain.
        let tried = a.metrics.etcd_proposals.get() + 3;
        becomes_true("attempts", || a.metrics.etcd_proposals.get() >= tried).await;
        assert!(dump(&b.etcd, &keys().routes()).await.is_empty());
        assert_eq!(dump(&b.etcd, &keys().sessions()).await.len(), 1);
        assert!(!claims.is_finished() && !routes.is_finished());

        a.register_again().await;
        routes.await.unwrap();
        for outcome in claims.await.unwrap() {
            assert!(matches!(outcome, Ok(ClaimOutcome::Granted(_))), "{outcome:?}");
        }
        becomes_true("the old session is over", || !b.index.content().sessions.contains_key("old")).await;
        a.equals_snapshot().await;
        b.equals_snapshot().await;
        assert_eq!(b.index.content().sessions.len(), 300);
    });
}

#[test]
fn claims_survive_the_death_of_a_member() {
    let (mut etcd, runtime) = setup(3);
    let leader = etcd.leader();
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let claims = (0..5000).map(|i| a.coordinator.claim(claim(&format!("c{i}"), Expected::Absent, 1)));
        let claims = tokio::spawn(join_all(claims.collect::<Vec<_>>()));
        becomes_true("claims are on their way", || a.metrics.etcd_proposals.get() > 1).await;
        etcd.kill(leader);
        let granted = claims.await.unwrap().into_iter().filter(|o| matches!(o, Ok(ClaimOutcome::Granted(_))));
        assert_eq!(granted.count(), 5000);
        a.equals_snapshot().await;
    });
}

#[test]
fn a_claim_without_etcd_is_unavailable_in_time() {
    let (mut etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        etcd.kill(0);
        let outcome = a.coordinator.claim(claim("x", Expected::Absent, 1)).await;
        assert!(outcome.is_err(), "{outcome:?}");
        assert!(a.coordinator.owner("x").await.is_err());
        assert!(a.coordinator.read_revision().await.is_err());
        assert!(!a.coordinator.reachable());
        etcd.restart(0);
        etcd.wait_healthy(0);
        let outcome = a.coordinator.claim(claim("y", Expected::Absent, 1)).await.unwrap();
        assert!(matches!(outcome, ClaimOutcome::Granted(_)));
    });
}

#[test]
fn a_journal_can_note_what_was_granted_before_its_event_has_come() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let node = Node::start(etcd.endpoints(), "a").await;
        for i in 0..50 {
            let client = format!("c{i}");
            let outcome = node.coordinator.claim(claim(&client, Expected::Absent, 1)).await.unwrap();
            let ClaimOutcome::Granted(at) = outcome else { panic!("{outcome:?}") };
            let known = node.coordinator.known(at).unwrap();
            let key = keys().session(&client);
            let value = etcd.ctl(&["get", &key, "--print-value-only"]);
            let mark = mark_of(key.as_bytes(), Some(value.trim_end_matches('\n').as_bytes()));
            assert_eq!((known.revision, known.mark), (at, mark), "{client}");
        }
    });
}
