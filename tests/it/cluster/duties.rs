//! The leader's duties, one at a time.

use super::etcd::Etcd as Server;
use super::node::{Node, below, crash, custody_of};
use crate::wait;
use berth::broker::ports::{MemberId, Revision};
use berth::cluster::etcd::election::Election;
use berth::cluster::etcd::error::StoreError;
use berth::cluster::etcd::leader::{Leader, LeaderOptions};
use berth::cluster::etcd::records::{self, CustodyRecord};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

type Expired = Arc<Mutex<Vec<(Arc<str>, Revision)>>>;

struct World {
    server: Server,
    node: Node,
    election: Election,
    expired: Expired,
}

impl World {
    async fn new() -> World {
        let server = Server::start(1);
        let node = Node::start(&server, "leader", 1).await;
        let election = Election::start(&node.membership, Box::new(|_| ()));
        tokio::time::timeout(wait::PATIENCE, election.elected()).await.unwrap();
        World { server, node, election, expired: Expired::default() }
    }

    fn leader(&self, forget_after: Option<Duration>) -> Leader {
        let expired = self.expired.clone();
        let options = LeaderOptions {
            interval: Duration::from_millis(100),
            forget_after,
            collect_after: Duration::ZERO,
            expired: Arc::new(move |_, _| expired.lock().clone()),
        };
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
