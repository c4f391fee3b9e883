//! The leader's duties, one at a time.

use super::etcd::Etcd as Server;
use super::node::{Node, below, crash, custody_of};
use crate::wait;
use berth::clock;
use berth::etcd::custody;
use berth::etcd::election::Election;
use berth::etcd::error::StoreError;
use berth::etcd::leader::{Leader, LeaderOptions};
use berth::etcd::records::{self, CustodyRecord};
use berth::ports::{ClusterTime, MemberId, Revision};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

type Expired = Arc<Mutex<Vec<(Arc<str>, Revision)>>>;

struct World {
    server: Arc<Server>,
    node: Node,
    election: Election,
    expired: Expired,
    linked: Arc<Mutex<Option<MemberId>>>,
}

impl World {
    async fn new() -> World {
        let server = Arc::new(Server::start(1));
        let node = Node::start(&server, "leader", 1).await;
        let election = Election::start(&node.membership, Box::new(|_| ()));
        tokio::time::timeout(wait::PATIENCE, election.elected()).await.unwrap();
        World { server, node, election, expired: Expired::default(), linked: Arc::default() }
    }

    fn options(&self, forget_after: Option<Duration>) -> LeaderOptions {
        let (expired, linked) = (self.expired.clone(), self.linked.clone());
        LeaderOptions {
            interval: Duration::from_millis(100),
            forget_after,
            collect_after: Duration::ZERO,
            expired: Arc::new(move |_, _| expired.lock().clone()),
            linked: Arc::new(move |process| linked.lock().as_ref() == Some(process)),
            time: Arc::new(ClusterTime::own_clock()),
        }
    }

    fn leader(&self, forget_after: Option<Duration>) -> Leader {
        self.leader_with(self.options(forget_after))
    }

    fn leader_with(&self, options: LeaderOptions) -> Leader {
        Leader::new(&self.node.etcd, &self.node.keys, &self.election, options)
    }

    async fn put(&self, key: &str, value: &[u8]) {
        assert!(self.node.write(&self.node.membership.fence(), key, value).await);
    }

    async fn put_custody(&self, of: &MemberId, record: &CustodyRecord) {
        self.put(&self.node.keys.custody(of), &records::write(record)).await;
    }

    async fn record(&self, of: &MemberId) -> Option<CustodyRecord> {
        custody_of(&self.node.etcd, of).await.map(|s| s.record)
    }
}

fn id(node: &str, incarnation: u64) -> MemberId {
    MemberId { node: node.into(), incarnation }
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_of_custody_are_folded() {
    let world = World::new().await;
    let (first, second, third) = (id("x", 1), id("x", 2), id("x", 3));
    let held = |of: &MemberId, by: &MemberId| {
        let mut record = CustodyRecord::own(of, 5);
        record.holder = by.clone();
        record
    };
    world.put_custody(&first, &held(&first, &second)).await;
    world.put_custody(&second, &held(&second, &third)).await;
    world.put_custody(&third, &held(&third, &third)).await;
    // The copy that y has of x is not merged: what y@1 holds stays with it.
    let (kept, partly) = (id("y", 1), id("y", 2));
    world.put_custody(&kept, &held(&kept, &partly)).await;
    let mut unmerged = held(&partly, &third);
    unmerged.merged = false;
    world.put_custody(&partly, &unmerged).await;
    world.leader(None).round().await.unwrap();
    assert_eq!(world.record(&first).await.unwrap().holder, third);
    assert_eq!(world.record(&second).await.unwrap().holder, third);
    assert_eq!(world.record(&kept).await.unwrap().holder, partly);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_is_noted_in_the_clusters_time_once_that_is_known() {
    const AHEAD_MS: i64 = -3_600_000;
    let world = World::new().await;
    let time = Arc::new(ClusterTime::unknown());
    let dead = crash(Node::start(&world.server, "x", 5).await).await;
    let options = LeaderOptions { time: time.clone(), ..world.options(Some(Duration::from_secs(3600))) };
    let mut leader = world.leader_with(options);
    leader.round().await.unwrap();
    assert_eq!(world.record(&dead).await.unwrap().gone, None, "it does not know when that is");
    time.set(AHEAD_MS, true);
    let before = time.cluster(clock::now());
    leader.round().await.unwrap();
    let gone = world.record(&dead).await.unwrap().gone.unwrap();
    assert!((before.as_millis()..=time.cluster(clock::now()).as_millis()).contains(&gone));
    // It has just gone, whatever the leader's own clock makes of that moment.
    leader.round().await.unwrap();
    let record = world.record(&dead).await.unwrap();
    assert_eq!((record.gone, record.given_up), (Some(gone), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_is_noted_until_it_is_back_and_given_up_after_a_time() {
    let world = World::new().await;
    let node = Node::start(&world.server, "x", 5).await;
    node.own(&["c1", "c2"], 60).await;
    let mut leader = world.leader(Some(Duration::from_secs(3600)));
    leader.round().await.unwrap();
    assert_eq!(world.record(&node.me()).await.unwrap().gone, None);
    let dead = crash(node).await;
    leader.round().await.unwrap();
    let since = world.record(&dead).await.unwrap().gone.unwrap();
    leader.round().await.unwrap();
    assert_eq!(world.record(&dead).await.unwrap().gone, Some(since), "it is noted once");
    assert_eq!(below(&world.node.etcd, world.node.keys.sessions()).await.len(), 2, "not yet");

    let back = Node::start(&world.server, "x", 5).await;
    assert_eq!(world.record(&dead).await.unwrap().gone, None);
    let again = crash(back).await;
    let mut hasty = world.leader(Some(Duration::ZERO));
    // It is noted as gone, marked, its sessions go, it goes: a few rounds.
    for _ in 0..10 {
        hasty.round().await.unwrap();
    }
    assert!(below(&world.node.etcd, world.node.keys.sessions()).await.is_empty());
    assert_eq!((world.record(&dead).await, world.record(&again).await), (None, None));
    assert!(world.record(&world.node.me()).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_expire_unless_they_were_replaced() {
    let world = World::new().await;
    let keys = &world.node.keys;
    let mut expired = Vec::new();
    for topic in ["a/b", "c"] {
        world.put(&keys.retained(topic), b"{}").await;
        let revision = world.node.etcd.get(keys.retained(topic), None).await.unwrap().kvs()[0].mod_revision();
        expired.push((Arc::from(topic), revision as u64));
    }
    world.put(&keys.retained("c"), b"newer").await;
    *world.expired.lock() = expired;
    world.leader(None).round().await.unwrap();
    let left = below(&world.node.etcd, keys.all_retained()).await;
    assert_eq!(left.iter().map(|kv| kv.value()).collect::<Vec<_>>(), [b"newer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_keys_fill_several_requests() {
    let world = World::new().await;
    let (etcd, keys) = (&world.node.etcd, &world.node.keys);
    let long = |i: usize| format!("{i:03}/{}", "x".repeat(16 << 10));
    let mut expired = Vec::new();
    for i in 0..100 {
        world.put(&keys.retained(&long(i)), b"{}").await;
        let revision = etcd.get(keys.retained(&long(i)), None).await.unwrap().kvs()[0].mod_revision();
        expired.push((Arc::from(long(i)), revision as u64));
    }
    *world.expired.lock() = expired;
    let node = Node::start(&world.server, "x", 5).await;
    let clients: Vec<_> = (0..100).map(long).collect();
    node.own(&clients.iter().map(String::as_str).collect::<Vec<_>>(), 60).await;
    let dead = crash(node).await;
    let mut record = world.record(&dead).await.unwrap();
    record.given_up = true;
    world.put_custody(&dead, &record).await;
    world.leader(None).round().await.unwrap();
    assert!(below(etcd, keys.all_retained()).await.is_empty());
    assert!(below(etcd, keys.sessions()).await.is_empty());
    assert!(world.record(&dead).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duty_that_fails_leaves_the_others_to_be_done() {
    let world = World::new().await;
    // Of a topic that no request can carry.
    *world.expired.lock() = vec![("x".repeat(800 << 10).into(), 1)];
    let dead = crash(Node::start(&world.server, "x", 5).await).await;
    let mut record = world.record(&dead).await.unwrap();
    record.given_up = true;
    world.put_custody(&dead, &record).await;
    let error = world.leader(None).round().await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert!(world.record(&dead).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_the_leader_is_not_given_up() {
    let world = World::new().await;
    let dead = crash(Node::start(&world.server, "x", 5).await).await;
    *world.linked.lock() = Some(dead.clone());
    let mut leader = world.leader(Some(Duration::ZERO));
    let forget = || async {
        let linked = world.linked.lock().clone();
        let linked: custody::Linked = Arc::new(move |process| linked.as_ref() == Some(process));
        custody::forget(&world.node.etcd, &world.node.keys, &world.node.membership.fence(), "x", &linked)
            .await
    };
    for _ in 0..3 {
        leader.round().await.unwrap();
    }
    let record = world.record(&dead).await.unwrap();
    assert_eq!((record.gone, record.given_up), (None, false));
    assert_eq!(
        forget().await.unwrap_err().to_string(),
        format!(
            "node x is not registered in etcd, but it answers this node (incarnation {}) and serves its sessions: let it reach \
             etcd again; or, to give up what it has, stop it first, then forget it",
            dead.incarnation
        )
    );
    // The link is down: it is gone from now on. Up again, it is not.
    *world.linked.lock() = None;
    let mut patient = world.leader(None);
    patient.round().await.unwrap();
    assert!(world.record(&dead).await.unwrap().gone.is_some());
    *world.linked.lock() = Some(dead.clone());
    patient.round().await.unwrap();
    assert_eq!(world.record(&dead).await.unwrap().gone, None);
    *world.linked.lock() = None;
    assert_eq!(forget().await.unwrap().incarnations, [dead]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_leaders_clock_gives_nobody_up() {
    let world = World::new().await;
    let dead = crash(Node::start(&world.server, "x", 5).await).await;
    let now = clock::now().as_millis();
    let day = 86_400_000;
    // What is noted, and whether it is noted anew: no clock that is right says so.
    for (gone, anew) in [(1, true), (now + day, true), (now - day, false)] {
        let mut record = world.record(&dead).await.unwrap();
        record.gone = Some(gone);
        world.put_custody(&dead, &record).await;
        world.leader(Some(Duration::from_secs(3600))).round().await.unwrap();
        let record = world.record(&dead).await.unwrap();
        assert!(!record.given_up, "{gone}: this leader has only just seen it");
        let noted = record.gone.unwrap();
        assert!(if anew { (now..now + day).contains(&noted) } else { noted == gone }, "{gone}: {noted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_failed_is_begun_again() {
    let world = World::new().await;
    let node = Node::start(&world.server, "x", 5).await;
    node.own(&["c"], 60).await;
    let dead = crash(node).await;
    let mut record = world.record(&dead).await.unwrap();
    record.given_up = true;
    world.put_custody(&dead, &record).await;
    // etcd hangs once the records have been read.
    let (server, hangs) = (world.server.clone(), AtomicBool::new(true));
    let linked: custody::Linked = Arc::new(move |_| {
        if hangs.swap(false, Ordering::Relaxed) {
            server.stop(0);
        }
        false
    });
    let mut leader = world.leader_with(LeaderOptions { linked, ..world.options(None) });
    assert!(matches!(leader.round().await, Err(StoreError::Etcd(_))));
    world.server.cont(0);
    let deadline = wait::deadline();
    while leader.round().await.is_err() {
        assert!(clock::now() < deadline);
    }
    assert!(world.record(&dead).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn incarnations_that_nothing_refers_to_are_collected() {
    let world = World::new().await;
    let keys = world.node.keys.clone();
    // One that its node has adopted and still has a session of, one without.
    let first = Node::start(&world.server, "x", 5).await;
    first.own(&["kept"], 60).await;
    let used = first.me();
    drop(first);
    let second = Node::start(&world.server, "x", 5).await;
    let unused = second.me();
    world.put(&keys.route_page(&unused, 1), b"{}").await;
    world.put(&keys.route_page(&used, 1), b"{}").await;
    drop(second);
    let third = Node::start(&world.server, "x", 5).await;
    // A lost disk: the session without state behind the connection is over.
    let lost = Node::start(&world.server, "y", 6).await;
    lost.own(&["over"], 0).await;
    let lost = crash(lost).await;
    let fresh = Node::start(&world.server, "y", 7).await;
    // A node that is gone keeps what it has, used or not.
    let gone = crash(Node::start(&world.server, "z", 8).await).await;
    // Routes and evictions of nobody.
    let nobody = id("nobody", 9);
    world.put(&keys.route_page(&nobody, 1), b"{}").await;
    world.put(&keys.eviction("nobody", "c"), b"{}").await;
    world.put(&keys.eviction("z", "c"), b"{}").await;

    let mut leader = world.leader(None);
    leader.round().await.unwrap();
    assert!(world.record(&unused).await.is_none());
    assert!(world.record(&lost).await.is_none());
    for of in [&used, &third.me(), &fresh.me(), &gone, &world.node.me()] {
        assert!(world.record(of).await.is_some(), "{of}");
    }
    let routes = below(&world.node.etcd, keys.routes()).await;
    assert_eq!(routes.iter().map(|kv| kv.key()).collect::<Vec<_>>(), [keys.route_page(&used, 1).as_bytes()]);
    let sessions = below(&world.node.etcd, keys.sessions()).await;
    assert_eq!(sessions.iter().map(|kv| kv.key()).collect::<Vec<_>>(), [keys.session("kept").as_bytes()]);
    let evictions = below(&world.node.etcd, keys.evictions()).await;
    assert_eq!(evictions.iter().map(|kv| kv.key()).collect::<Vec<_>>(), [keys.eviction("z", "c").as_bytes()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crashed_forget_has_left_is_removed() {
    let world = World::new().await;
    let node = Node::start(&world.server, "x", 5).await;
    node.own(&["a", "b"], 60).await;
    let dead = crash(node).await;
    let mut record = world.record(&dead).await.unwrap();
    record.given_up = true;
    world.put_custody(&dead, &record).await;
    world.node.own(&["mine"], 60).await;
    world.leader(None).round().await.unwrap();
    assert!(world.record(&dead).await.is_none());
    let sessions = below(&world.node.etcd, world.node.keys.sessions()).await;
    assert_eq!(
        sessions.iter().map(|kv| kv.key()).collect::<Vec<_>>(),
        [world.node.keys.session("mine").as_bytes()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leads_no_more_does_nothing() {
    let world = World::new().await;
    let mut leader = world.leader(Some(Duration::ZERO));
    let dead = crash(Node::start(&world.server, "x", 5).await).await;
    let before = world.record(&dead).await.unwrap();
    world.election.resign().await;
    assert!(matches!(leader.round().await, Err(StoreError::Fenced)));
    assert_eq!(world.record(&dead).await.unwrap(), before);
}
