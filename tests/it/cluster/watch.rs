//! The index follows etcd through everything that can happen to it.

use super::etcd::Etcd;
use super::proxy::Proxy;
use super::store::{Node, dump, keys, setup};
use super::trap::{Trap, Way};
use crate::random::Random;
use crate::wait::{self, becomes_true};
use berth::clock;
use berth::etcd::client::kv;
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, QoS};
use berth::ports::{Claim, ClusterTime, Coordinator, Expected, MessageId, Retain, RouteChange};
use berth::user::SessionUser;
use futures_util::future::join_all;
use std::time::Duration;

/// Clients, filters and topics that the churn draws from.
const NAMES: u64 = 40;

fn message(topic: &str, payload: &[u8]) -> Message {
    Message::new(Parts {
        topic,
        payload,
        properties: &[],
        qos: QoS::AtLeastOnce,
        retain: true,
        expires_at: None,
    })
}

/// Random changes of everything, all of them completed.
async fn churn(node: &Node, random: &mut Random, steps: usize, seq: &mut u64) {
    let mut waits = Vec::new();
    for _ in 0..steps {
        let name = format!("x/{}", random.below(NAMES));
        match random.below(4) {
            0 => {
                let claim = Claim {
                    client_id: name.as_str().into(),
                    expected: Expected::Absent,
                    epoch: 1,
                    expiry_s: 60,
                    user: SessionUser::Unknown,
                    evict: random.chance(20).then(|| "elsewhere".into()),
                };
                let claimed = node.coordinator.claim(claim);
                waits.push(tokio::spawn(async move { drop(claimed.await) }));
            }
            1 => drop(node.coordinator.release(&name, 1)),
            2 => {
                let changes = (0..random.below(20) + 1).map(|_| RouteChange {
                    filter: format!("f/{}", random.below(NAMES)).into(),
                    route: random.chance(60).then(|| (random.chance(50), 1 + random.below(3) as u32)),
                });
                let written = node.coordinator.routes(changes.collect());
                waits.push(tokio::spawn(async move {
                    let _ = written.await;
                }));
            }
            _ => {
                *seq += 1;
                let update = Retain {
                    topic: name.as_str().into(),
                    message: random.chance(70).then(|| message(&name, &random.next().to_be_bytes())),
                    id: MessageId { origin: node.me.incarnation, seq: *seq },
                    known: 0,
                    since: 0,
                    kept: false,
                };
                let written = node.coordinator.retain(update);
                waits.push(tokio::spawn(async move {
                    let _ = written.await;
                }));
            }
        }
    }
    for outcome in join_all(waits).await {
        outcome.unwrap();
    }
}

/// A proof of being fresh that began after now.
async fn becomes_current(node: &Node) {
    let now = clock::now();
    becomes_true("the index is fresh", || node.index.fresh_at() >= now).await;
}

#[test]
fn the_index_equals_a_snapshot_through_all_faults_of_three_members() {
    let mut random = Random::seeded("BERTH_WATCH_SEED");
    let (mut etcd, runtime) = setup(3);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let mut seq = 0;
        churn(&a, &mut random, 300, &mut seq).await;
        churn(&b, &mut random, 300, &mut seq).await;
        a.equals_snapshot().await;
        b.equals_snapshot().await;
        becomes_current(&a).await;
        for fault in ["kill", "hang", "no quorum", "restart"] {
            println!("{fault}");
            let one = random.index(3);
            let two = (one + 1) % 3;
            match fault {
                "kill" => etcd.kill(one),
                "hang" => etcd.stop(one),
                "no quorum" => {
                    etcd.kill(one);
                    etcd.stop(two);
                }
                _ => (0..3).for_each(|i| etcd.kill(i)),
            }
            if matches!(fault, "kill" | "hang") {
                churn(&a, &mut random, 100, &mut seq).await;
                churn(&b, &mut random, 100, &mut seq).await;
                // While one member is away and not only after.
                a.equals_snapshot().await;
                b.equals_snapshot().await;
                becomes_current(&a).await;
                becomes_current(&b).await;
            } else {
                becomes_true("etcd is missed", || !a.coordinator.reachable() && !b.coordinator.reachable())
                    .await;
                let change = RouteChange { filter: fault.into(), route: Some((true, 1)) };
                let waiting = tokio::spawn(a.coordinator.routes(vec![change]));
                let restarts = a.coordinator.status().watch.restarts;
                becomes_true("the watch breaks", || a.coordinator.status().watch.restarts > restarts).await;
                assert!(!waiting.is_finished());
                match fault {
                    "no quorum" => {
                        etcd.cont(two);
                        etcd.restart(one);
                    }
                    _ => (0..3).for_each(|i| etcd.restart(i)),
                }
                waiting.await.unwrap();
                assert!(a.index.content().routes.values().all(|r| r.len() as u64 <= NAMES + 2));
            }
            match fault {
                "kill" => etcd.restart(one),
                "hang" => etcd.cont(one),
                _ => {}
            }
            (0..3).for_each(|i| etcd.wait_healthy(i));
            churn(&a, &mut random, 100, &mut seq).await;
            churn(&b, &mut random, 100, &mut seq).await;
            a.equals_snapshot().await;
            b.equals_snapshot().await;
            becomes_current(&a).await;
        }
        // None of this cost a second snapshot.
        assert_eq!((a.index.snapshots(), b.index.snapshots()), (1, 1));
        assert_eq!(a.index.content(), b.index.content());
    });
}

#[test]
fn after_a_compaction_during_an_outage_there_is_another_snapshot() {
    let mut random = Random::seeded("BERTH_WATCH_SEED");
    let (mut etcd, runtime) = setup(3);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let mut seq = 0;
        churn(&a, &mut random, 200, &mut seq).await;
        a.equals_snapshot().await;
        (0..3).for_each(|i| etcd.kill(i));
        becomes_true("the watch breaks", || a.coordinator.status().watch.endpoint.is_none()).await;
        // Others write and compact before the node can look again: it only knows these addresses while they answer.
        (0..3).for_each(|i| etcd.restart(i));
        (0..3).for_each(|i| etcd.wait_healthy(i));
        a.equals_snapshot().await;
        // The same while it follows: its member hangs, and what it lacks is compacted.
        let hung = wait::eventually("a member is watched", || async {
            let watched = a.coordinator.status().watch.endpoint;
            etcd.endpoints().iter().position(|e| Some(e) == watched.as_ref())
        });
        let hung = hung.await;
        let live = etcd.endpoint((hung + 1) % 3);
        etcd.stop(hung);
        let store = berth::etcd::client::Etcd::new(super::store::options(vec![live])).unwrap();
        let mut last = 0;
        for i in 0..50 {
            let key = &keys().retained(&format!("compacted/{i}"));
            let value = &berth::etcd::retained_value::encode(
                &message("t", b"x"),
                MessageId { origin: 1, seq: i },
                &ClusterTime::own_clock(),
            );
            // The first one may meet an election.
            let put = wait::eventually("etcd takes a message", || async {
                let (key, value) = (key.clone(), value.clone());
                store.once(|c| async move { kv(&c).put(key, value, None).await }).await.ok()
            });
            last = put.await.header().unwrap().revision();
        }
        store.once(move |c| async move { kv(&c).compact(last, None).await }).await.unwrap();
        a.equals_snapshot().await;
        assert_eq!(a.index.snapshots(), 2, "{:?}", a.coordinator.status());
        etcd.cont(hung);
        etcd.wait_healthy(hung);
        churn(&a, &mut random, 100, &mut seq).await;
        a.equals_snapshot().await;
    });
}

#[test]
fn what_is_unreadable_is_left_out_and_foreign_writes_do_not_make_stale() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        for key in ["sessions/x", "retained/t", "routes/a/1/1", "nonsense", "custody/a/x", "leader/7"] {
            let key = format!("{}{key}", keys().root());
            a.etcd.once(|c| async move { kv(&c).put(key, "{", None).await }).await.unwrap();
        }
        a.equals_snapshot().await;
        assert!(a.index.content().sessions.is_empty());
        // Another tenant of this etcd.
        for i in 0..20 {
            let put = move |c: etcd_client::Client| async move {
                kv(&c).put(format!("/other/{i}"), "", None).await
            };
            let revision = a.etcd.once(put).await.unwrap().header().unwrap().revision() as u64;
            if i == 0 {
                becomes_current(&a).await;
                assert!(a.index.applied() >= revision);
            }
        }
        becomes_current(&a).await;
    });
}

#[test]
fn large_messages_reach_those_who_follow_and_those_who_come_late() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        // 15 of them make a transaction, and many transactions one response.
        let big = "x".repeat(90_000);
        let name = |i: usize| format!("big/{i:03}");
        let waits = (0..60).map(|i| {
            a.coordinator.retain(Retain {
                topic: name(i).into(),
                message: Some(message(&name(i), big.as_bytes())),
                id: MessageId { origin: a.me.incarnation, seq: i as u64 },
                known: 0,
                since: 0,
                kept: false,
            })
        });
        join_all(waits.collect::<Vec<_>>()).await;
        a.equals_snapshot().await;
        let late = Node::start(etcd.endpoints(), "b").await;
        assert_eq!(late.index.content().retained.len(), 60);
        late.equals_snapshot().await;
    });
}

#[test]
fn a_node_that_lags_catches_up_from_a_peer() {
    let mut random = Random::seeded("BERTH_WATCH_SEED");
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        a.equals_snapshot().await;
        let start = a.index.applied();
        churn(&a, &mut random, 200, &mut 0).await;
        a.equals_snapshot().await;
        let (events, up_to) = a.coordinator.events_after(start).unwrap();
        assert_eq!(up_to, a.index.applied());
        // What is known already changes nothing, what leaves a gap is refused.
        b.equals_snapshot().await;
        let before = b.index.content();
        b.coordinator.apply_from_peer(events).await.unwrap();
        assert_eq!(b.index.content(), before);
        let (gap, _) = a.coordinator.events_after(up_to).unwrap();
        assert!(b.coordinator.apply_from_peer(gap).await.is_ok());
        assert!(a.coordinator.events_after(1).is_none());
        assert!(b.coordinator.apply_from_peer("?".into()).await.is_err());

        // Without etcd, from the peer alone: what the peer applied before the end.
        let index = std::sync::Arc::new(super::store::PlainIndex::default());
        let follows = super::store::applier(index.clone());
        follows.begin_snapshot();
        follows.end_snapshot(start);
        let (events, _) = a.coordinator.events_after(start).unwrap();
        follows.from_peer(events).unwrap();
        assert_eq!(index.applied(), up_to);
        assert_eq!(index.content().sessions, a.index.content().sessions);
        assert_eq!(index.content().retained, a.index.content().retained);
        let (events, _) = a.coordinator.events_after(up_to).unwrap();
        let behind = super::store::applier(index);
        assert!(behind.from_peer(events).is_err());
    });
}

#[test]
fn a_snapshot_of_many_pages() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let claim = |i: usize| Claim {
            client_id: format!("c{i}").into(),
            expected: Expected::Absent,
            epoch: 1,
            expiry_s: 1,
            user: SessionUser::Unknown,
            evict: None,
        };
        join_all((0..25_000).map(|i| a.coordinator.claim(claim(i)))).await;
        let b =
            tokio::time::timeout(Duration::from_secs(20), Node::start(etcd.endpoints(), "b")).await.unwrap();
        assert_eq!(b.index.content().sessions.len(), 25_000);
        assert_eq!(dump(&b.etcd, &keys().sessions()).await.len(), 25_000);
    });
}

#[test]
fn a_member_that_answers_but_does_not_follow_is_left() {
    let (etcd, runtime) = setup(1);
    // Like a member that has applied nothing for a while: another store, whose revision is far below. It opens a watch from any
    // revision on, and answers whoever asks for a sign of life.
    let mut behind = Etcd::start(1);
    behind.kill(0);
    runtime.block_on(async {
        let proxy = Proxy::start(etcd.endpoint(0).strip_prefix("http://").unwrap().parse().unwrap()).await;
        let endpoints = vec![format!("http://{}", proxy.address()), behind.endpoint(0)];
        let a = Node::start(endpoints, "a").await;
        let direct = Node::start(etcd.endpoints(), "b").await;
        a.equals_snapshot().await;
        behind.restart(0);
        behind.wait_healthy(0);
        proxy.trap(Trap::at(Way::Back, "sprung-by-this"));
        let route = |filter: &str| RouteChange { filter: filter.into(), route: Some((true, 1)) };
        direct.coordinator.routes(vec![route("sprung-by-this")]).await;
        becomes_true("the other store is watched", || {
            a.coordinator.status().watch.endpoint == Some(behind.endpoint(0))
        })
        .await;
        proxy.release();
        let written = direct.coordinator.routes(vec![route("missed")]).await;
        becomes_true("the watch goes on where there is something", || a.index.applied() >= written).await;
        becomes_current(&a).await;
        assert_eq!(a.index.snapshots(), 1);
    });
}
