//! Members: registering, coming back, losing the lease, leading, being forgotten.

use super::etcd::Etcd as Server;
use super::node::{Node, below, connect, crash, custody_of, member};
use crate::wait;
use berth::clock;
use berth::etcd::custody::{self, ForgetError};
use berth::etcd::election::Election;
use berth::etcd::error::StoreError;
use berth::etcd::member::Registration;
use berth::etcd::register::RegisterError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_and_leaves() {
    let server = Server::start(1);
    let a = Node::start(&server, "a", 1).await;
    let (record, lease) = member(&a.etcd, "a").await.unwrap();
    assert_eq!(record.incarnation, Some(a.me().incarnation));
    assert!(lease != 0);
    let created = a.etcd.get(a.keys.member("a"), None).await.unwrap().kvs()[0].create_revision();
    assert_eq!(created as u64, a.me().incarnation, "the incarnation is the revision of the registration");
    let own = custody_of(&a.etcd, &a.me()).await.unwrap();
    assert_eq!((own.record.holder, own.record.journal, own.record.copies), (a.me(), 1, 1));
    assert_eq!(a.membership.adopted(), []);
    let left = clock::now().until(a.membership.lease_until());
    assert!(left > Duration::from_secs(3) && left <= Duration::from_secs(5), "{left:?}");

    a.membership.set_draining(true).await.unwrap();
    assert!(member(&a.etcd, "a").await.unwrap().0.draining);
    let revision = a.membership.rewrite().await.unwrap();
    let kv = a.etcd.get(a.keys.member("a"), None).await.unwrap().take_kvs().remove(0);
    assert_eq!((kv.mod_revision() as u64, kv.lease()), (revision, lease));
    assert_eq!(kv.create_revision(), created, "rewriting the record does not change the fence");

    a.membership.leave().await;
    assert!(member(&a.etcd, "a").await.is_none());
    assert!(custody_of(&a.etcd, &a.me()).await.is_some(), "what it has stays its own");
    assert_eq!(*a.membership.registration().borrow(), Registration::Left);
    assert_eq!(a.membership.fence().created(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_live_node_of_the_same_name_is_refused() {
    let server = Server::start(1);
    let a = Node::start(&server, "a", 1).await;
    let error = Node::try_start(&server, "a", 2).await.err().unwrap();
    assert!(matches!(error, RegisterError::Clash { .. }), "{error}");
    let expected = format!(
        "node.id \"a\" is in use: a process with another journal is registered as a in etcd (incarnation {}, peers reach \
         it at a:7948, clients at a:1883, HTTP at a:8081) and keeps its lease alive. Give each broker a node.id of its own; \
         if that process is a left-over, stop it and start this one again",
        a.me().incarnation
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(*a.membership.registration().borrow(), Registration::Registered);
    assert_eq!(member(&a.etcd, "a").await.unwrap().0.journal, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_whose_lease_is_once_extended_is_no_clash() {
    let server = Server::start(1);
    let dead = Node::start(&server, "a", 1).await;
    let (_, lease) = member(&dead.etcd, "a").await.unwrap();
    let lease = format!("{lease:x}");
    drop(dead);
    let extend = async {
        let left = || {
            let told = server.ctl(&["lease", "timetolive", &lease, "-w", "json"]);
            serde_json::from_str::<serde_json::Value>(&told).unwrap()["ttl"].as_i64().unwrap()
        };
        // The new process has seen it shrink, and then it has its whole time again, as after a change of etcd's leader.
        wait::eventually("the lease has run for a while", || async { (left() <= 2).then_some(()) }).await;
        server.ctl(&["lease", "keep-alive", "--once", &lease]);
    };
    let (started, ()) = tokio::join!(Node::try_start(&server, "a", 2), extend);
    assert_eq!(started.map(|a| a.membership.journal()).map_err(|e| e.to_string()), Ok(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_does_not_wait_and_adopts_its_own() {
    let server = Server::start(1);
    let first = Node::start(&server, "a", 1).await;
    let (old, fence) = (first.me(), first.membership.fence());
    let b = Node::start(&server, "b", 2).await;
    drop(first);
    assert!(member(&b.etcd, "a").await.is_some(), "the dead process is still listed");
    let begun = clock::now();
    let second = Node::start(&server, "a", 1).await;
    assert!(clock::now().since_ms(begun) < 3_000, "it waited for the lease of the old process");
    assert!(second.me().incarnation > old.incarnation);
    assert_eq!(second.membership.adopted(), std::slice::from_ref(&old));
    let record = custody_of(&b.etcd, &old).await.unwrap().record;
    assert_eq!(record.holder, second.me());
    assert!(!second.write(&fence, "/berth/x", b"late").await, "the old process may write nothing");
    assert_eq!(custody_of(&b.etcd, &b.me()).await.unwrap().record.holder, b.me(), "others are left alone");

    // No chains on one node: the third process holds both.
    drop(second);
    let third = Node::start(&server, "a", 1).await;
    assert_eq!(third.membership.adopted().len(), 2);
    assert_eq!(custody_of(&b.etcd, &old).await.unwrap().record.holder, third.me());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_new_journal_waits_for_the_lease_and_adopts_nothing() {
    let server = Server::start(1);
    let first = Node::start(&server, "a", 1).await;
    let old = first.me();
    drop(first);
    let second = Node::start(&server, "a", 7).await;
    assert_eq!(second.membership.adopted(), []);
    assert_eq!(custody_of(&second.etcd, &old).await.unwrap().record.holder, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_incarnations_are_adopted() {
    let server = Server::start(1);
    let mut last = Node::start(&server, "a", 1).await;
    let keys = last.keys.clone();
    let own = custody_of(&last.etcd, &last.me()).await.unwrap().record;
    for incarnation in 1_000_000..1_000_250 {
        let of = berth::ports::MemberId { node: "a".into(), incarnation };
        let value = berth::etcd::records::write(&own);
        assert!(last.write(&last.membership.fence(), &keys.custody(&of), &value).await);
    }
    drop(last);
    last = Node::start(&server, "a", 1).await;
    assert_eq!(last.membership.adopted().len(), 251);
    let all = custody::read_all(&last.etcd, &keys).await.unwrap();
    assert!(all.iter().all(|s| s.record.holder == last.me()) && all.len() == 252);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_node_whose_lease_is_revoked_registers_again() {
    let server = Server::start(1);
    let a = Node::start(&server, "a", 1).await;
    a.membership.set_draining(true).await.unwrap();
    let before = a.membership.fence().created();
    let custody = custody_of(&a.etcd, &a.me()).await.unwrap();
    let (_, lease) = member(&a.etcd, "a").await.unwrap();
    let mut fence = a.membership.fence();
    let stale = fence.compare().unwrap();
    server.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    wait::eventually("the fence changes", || {
        let fence = a.membership.fence();
        async move { fence.created().filter(|created| Some(*created) != before) }
    })
    .await;
    fence.changed().await;
    a.stands(|s| *s == Registration::Registered).await;
    let (record, new_lease) = member(&a.etcd, "a").await.unwrap();
    assert_eq!(record.incarnation, Some(a.me().incarnation), "same process, same incarnation");
    assert!(record.draining, "it says what it said before");
    assert_ne!(lease, new_lease);
    let txn = etcd_client::Txn::new().when([stale]).and_then([etcd_client::TxnOp::put("/berth/x", "", None)]);
    assert!(!a.etcd.txn(txn).await.unwrap().succeeded(), "the old fence writes nothing");
    assert!(a.write(&a.membership.fence(), "/berth/x", b"new").await);
    let now = custody_of(&a.etcd, &a.me()).await.unwrap();
    assert!(now.revision > custody.revision, "who judged it gone finds the record changed");
    assert!(a.membership.lease_until() > clock::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_place_was_taken_or_given_up_does_not_come_back() {
    let server = Server::start(1);
    let a = Node::start(&server, "a", 1).await;
    let b = Node::start(&server, "b", 2).await;
    let lease = member(&a.etcd, "a").await.unwrap().1;
    // In one step, so that it cannot register again in between.
    let mut record = custody_of(&b.etcd, &a.me()).await.unwrap().record;
    record.given_up = true;
    let value = berth::etcd::records::write(&record);
    assert!(b.write(&b.membership.fence(), &b.keys.custody(&a.me()), &value).await);
    server.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    let registration = a.stands(|s| matches!(s, Registration::Replaced(_))).await;
    let Registration::Replaced(reason) = registration else { unreachable!() };
    assert!(reason.contains("is given up: somebody forgot this node"), "{reason}");
    assert!(a.membership.fence().compare().is_none());
    assert!(matches!(a.membership.rewrite().await, Err(StoreError::Fenced)));
    assert!(member(&b.etcd, "a").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_live_through_the_loss_and_the_hanging_of_a_member() {
    let mut server = Server::start(3);
    let a = Node::start(&server, "a", 1).await;
    let created = a.membership.fence().created();
    for fault in ["kill", "stop"] {
        let victim = server.leader();
        if fault == "kill" {
            server.kill(victim)
        } else {
            server.stop(victim)
        }
        let renewed = a.membership.lease_until().plus_ms(4_000);
        wait::eventually("the lease is renewed", || async {
            assert_eq!(a.membership.fence().created(), created, "registered again after {fault}");
            (a.membership.lease_until() > renewed).then_some(())
        })
        .await;
        if fault == "kill" {
            server.restart(victim)
        } else {
            server.cont(victim)
        }
        server.wait_healthy(victim);
    }
    assert!(a.membership.rewrite().await.is_ok());
}

fn stand(node: &Node) -> (Election, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let on_change = move |leader: Option<&berth::ports::MemberId>| {
        log.lock().push(leader.map_or("nobody".to_owned(), |l| l.node.to_string()));
    };
    (Election::start(&node.membership, Box::new(on_change)), seen)
}

async fn sees(election: &Election, node: &str) {
    wait::eventually(&format!("{node} leads"), || async {
        election.leader().filter(|l| *l.node == *node).map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_passes_on() {
    let server = Server::start(1);
    let (a, b, c) = (
        Node::start(&server, "a", 1).await,
        Node::start(&server, "b", 2).await,
        Node::start(&server, "c", 3).await,
    );
    let (ea, seen) = stand(&a);
    sees(&ea, "a").await;
    let (eb, _) = stand(&b);
    sees(&eb, "a").await;
    wait::eventually("b is a candidate", || async {
        (below(&b.etcd, b.keys.leaders()).await.len() == 2).then_some(())
    })
    .await;
    let (ec, _) = stand(&c);
    wait::eventually("c is a candidate", || async {
        (below(&b.etcd, b.keys.leaders()).await.len() == 3).then_some(())
    })
    .await;
    assert!(ea.is_leader() && !eb.is_leader() && !ec.is_leader());
    let stale = ea.guard()().unwrap();

    // The leader's lease goes: the next in line leads, the old leader stands in line again.
    let lease = member(&a.etcd, "a").await.unwrap().1;
    server.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    for election in [&ea, &eb, &ec] {
        sees(election, "b").await;
    }
    wait::eventually("a is no leader", || async { (!ea.is_leader() && eb.is_leader()).then_some(()) }).await;
    let txn = etcd_client::Txn::new().when(stale).and_then([etcd_client::TxnOp::put("/berth/x", "", None)]);
    assert!(!a.etcd.txn(txn).await.unwrap().succeeded(), "a leader of yesterday writes nothing");

    // The leader resigns, the next one dies.
    eb.resign().await;
    sees(&ec, "c").await;
    wait::eventually("a is a candidate again", || async {
        (below(&b.etcd, b.keys.leaders()).await.len() == 2).then_some(())
    })
    .await;
    drop(ec);
    crash(c).await;
    sees(&ea, "a").await;
    assert_eq!(*seen.lock(), ["a", "b", "c", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_elected_while_an_etcd_member_is_down() {
    let mut server = Server::start(3);
    let (a, b) = (Node::start(&server, "a", 1).await, Node::start(&server, "b", 2).await);
    let (ea, _) = stand(&a);
    sees(&ea, "a").await;
    let (eb, _) = stand(&b);
    sees(&eb, "a").await;
    let victim = server.leader();
    server.kill(victim);
    ea.resign().await;
    a.membership.leave().await;
    sees(&eb, "b").await;
    wait::eventually("b has a certain lease", || async { eb.is_leader().then_some(()) }).await;
}

/// No node has links here.
fn unlinked() -> custody::Linked {
    Arc::new(|_| false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_node_is_not_forgotten_and_a_dead_one_is() {
    let server = Server::start(1);
    let (a, b) = (Node::start(&server, "a", 1).await, Node::start(&server, "b", 2).await);
    a.own(&["x", "y", "z/1"], 60).await;
    b.own(&["w"], 60).await;
    let page = a.keys.route_page(&a.me(), 1);
    assert!(a.write(&a.membership.fence(), &page, b"{}").await);
    assert!(b.write(&b.membership.fence(), &b.keys.eviction("a", "q"), b"{}").await);

    let forget = |node: &'static str| {
        let (etcd, keys, fence) = (b.etcd.clone(), b.keys.clone(), b.membership.fence());
        async move { custody::forget(&etcd, &keys, &fence, node, &unlinked()).await }
    };
    let refused = forget("a").await.unwrap_err();
    assert!(matches!(refused, ForgetError::Alive { .. }), "{refused}");
    assert_eq!(
        refused.to_string(),
        format!(
            "node a is a live member (incarnation {}, a:7948) and its sessions are with it: to give up what it has, stop \
             it first, wait until its lease has run out, then forget it",
            a.me().incarnation
        )
    );
    let unknown = forget("q").await.unwrap_err().to_string();
    assert_eq!(unknown, "nothing of a node q is known; there is something of: a, b");

    let dead = crash(a).await;
    let forgotten = forget("a").await.unwrap();
    assert_eq!((forgotten.incarnations, forgotten.sessions), (vec![dead.clone()], 3));
    let sessions = below(&b.etcd, b.keys.sessions()).await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].key(), b.keys.session("w").as_bytes());
    assert!(custody_of(&b.etcd, &dead).await.is_none());
    assert!(below(&b.etcd, b.keys.routes()).await.is_empty());
    assert!(below(&b.etcd, b.keys.evictions()).await.is_empty());

    // It comes back with its journal: nothing of it is left to adopt.
    let back = Node::start(&server, "a", 1).await;
    assert_eq!(back.membership.adopted(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_a_lost_disk_can_be_forgotten_while_the_node_runs() {
    let server = Server::start(1);
    let old = Node::start(&server, "a", 1).await;
    old.own(&["x"], 60).await;
    let dead = crash(old).await;
    let new = Node::start(&server, "a", 2).await;
    new.own(&["y"], 60).await;
    let etcd = connect(&server).await;
    let forgotten =
        custody::forget(&etcd, &new.keys, &new.membership.fence(), "a", &unlinked()).await.unwrap();
    assert_eq!((forgotten.incarnations, forgotten.sessions), (vec![dead], 1));
    assert_eq!(below(&etcd, new.keys.sessions()).await.len(), 1);
    assert_eq!(custody_of(&etcd, &new.me()).await.unwrap().record.holder, new.me());
}
