//! Route pages in etcd: whatever is added, removed, merged and rewritten, all see the same plain set.

use super::etcd::{self, Etcd};
use super::store::{Node, dump, keys, runtime, setup};
use crate::random::Random;
use crate::wait::becomes_true;
use berth::etcd::snapshot;
use berth::ports::{Coordinator, RouteChange};
use etcd_client::WatchOptions;
use std::collections::BTreeMap;

type Plain = BTreeMap<String, (bool, u32)>;

fn random_changes(random: &mut Random, names: u64, count: u64, plain: &mut Plain) -> Vec<RouteChange> {
    (0..count)
        .map(|_| {
            let filter = format!("site/{}/+/temperature", random.below(names));
            let route = random.chance(60).then(|| (random.chance(50), 1 + random.below(3) as u32));
            match route {
                Some(route) => plain.insert(filter.clone(), route),
                None => plain.remove(&filter),
            };
            RouteChange { filter: filter.into(), route }
        })
        .collect()
}

async fn shows(node: &Node, of: &Node, plain: &Plain, revision: u64) {
    node.coordinator.applies(revision).await;
    let content = node.index.content();
    assert_eq!(content.routes.get(&of.me).cloned().unwrap_or_default(), *plain);
}

#[test]
fn random_churn_is_a_plain_set_for_those_who_follow_and_those_who_come_late() {
    let mut random = Random::seeded("BERTH_ROUTES_SEED");
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let mut plain = Plain::new();
        for round in 0..400 {
            let count = 1 + random.below(if round % 50 == 0 { 3000 } else { 5 });
            let changes = random_changes(&mut random, 2000, count, &mut plain);
            let revision = a.coordinator.routes(changes).await;
            shows(&b, &a, &plain, revision).await;
            if round % 80 == 79 {
                b.equals_snapshot().await;
            }
        }
        b.equals_snapshot().await;
        let pages = dump(&b.etcd, &keys().routes_of(&a.me)).await;
        assert!(pages.len() < 120, "{} pages", pages.len());
        let late = Node::start(etcd.endpoints(), "c").await;
        assert_eq!(late.index.content().routes[&a.me], plain);
    });
}

#[test]
fn endless_churn_of_few_filters_keeps_the_log_short() {
    let mut random = Random::seeded("BERTH_ROUTES_SEED");
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let mut plain = Plain::new();
        let mut revision = 0;
        for _ in 0..60 {
            let changes = random_changes(&mut random, 1500, 3000, &mut plain);
            revision = a.coordinator.routes(changes).await;
        }
        shows(&a, &a, &plain, revision).await;
        a.equals_snapshot().await;
        // What is left is at most twice what says something, and the slack.
        let bytes: usize = dump(&a.etcd, &keys().routes_of(&a.me)).await.values().map(String::len).sum();
        assert!(bytes < 2 * plain.len() * 60 + (512 << 10), "{bytes} bytes for {} filters", plain.len());
        // All gone.
        let gone = plain.keys().map(|f| RouteChange { filter: f.as_str().into(), route: None }).collect();
        let revision = a.coordinator.routes(gone).await;
        shows(&a, &a, &Plain::new(), revision).await;
        a.equals_snapshot().await;
    });
}

#[test]
fn many_filters_at_once_go_into_few_pages_and_callers_share_flushes() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let before = a.coordinator.read_revision().await.unwrap();
        let change = |i: usize| RouteChange { filter: format!("many/{i}").into(), route: Some((true, 1)) };
        let calls = (0..30_000).map(|i| a.coordinator.routes(vec![change(i)])).collect::<Vec<_>>();
        let last = futures_util::future::join_all(calls).await.into_iter().max().unwrap();
        assert!(last - before < 50, "{} revisions", last - before);
        a.coordinator.applies(last).await;
        assert_eq!(a.index.content().routes[&a.me].len(), 30_000);
        assert!(dump(&a.etcd, &keys().routes()).await.len() < 100);
        a.equals_snapshot().await;
    });
}

/// Bytes of all values put below a prefix since a revision, up to the key that is written last.
async fn bytes_put(node: &Node, prefix: &str, since: u64, last: u64) -> usize {
    let mut link = node.etcd.watcher().await.unwrap();
    let options = WatchOptions::new()
        .with_range(snapshot::end_of(prefix.as_bytes()))
        .with_start_revision(since as i64 + 1);
    let mut stream = link.client.watch(prefix, Some(options)).await.unwrap();
    let mut bytes = 0;
    loop {
        let response = stream.message().await.unwrap().expect("the watch goes on");
        for event in response.events() {
            let kv = event.kv().unwrap();
            bytes += kv.value().len();
            if kv.mod_revision() as u64 >= last {
                return bytes;
            }
        }
    }
}

#[test]
fn short_filters_that_come_in_small_flushes_are_written_a_few_times() {
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let before = a.coordinator.read_revision().await.unwrap();
        let (mut at, mut last) = (0, 0);
        for count in [50, 50, 50, 400, 1].iter().cycle().take(1000) {
            let change = |i| RouteChange { filter: format!("sensor/{i:07}").into(), route: Some((false, 1)) };
            last = a.coordinator.routes((at..at + count).map(change).collect()).await;
            at += count;
        }
        a.coordinator.applies(last).await;
        assert_eq!(a.index.content().routes[&a.me].len(), at);
        a.equals_snapshot().await;
        let live = at * "\"sensor/0000000\",".len();
        let bytes = bytes_put(&a, &keys().routes_of(&a.me), before, last).await;
        assert!(bytes < 3 * live, "{bytes} bytes for {live} that say something");
        let pages = dump(&a.etcd, &keys().routes_of(&a.me)).await.len();
        assert!(pages < 3 * at / 1000 + 64, "{pages} pages for {at} filters");
    });
}

#[test]
fn a_member_that_hangs_does_not_mean_that_etcd_is_away() {
    let (etcd, runtime) = setup(3);
    runtime.block_on(async {
        let leader = etcd.leader();
        let hung = (leader + 1) % 3;
        // The member that this process asks first.
        let mut endpoints = etcd.endpoints();
        endpoints.swap(std::process::id() as usize % 3, hung);
        let a = Node::start(endpoints, "a").await;
        etcd.stop(hung);
        let change = |i: i32| RouteChange { filter: format!("f/{i}").into(), route: Some((true, 1)) };
        let mut work: Vec<_> = (0..20)
            .map(|i| {
                let (read, written) = (a.coordinator.read_revision(), a.coordinator.routes(vec![change(i)]));
                tokio::spawn(async move { (read.await.is_ok(), written.await) })
            })
            .collect();
        becomes_true("the hung member is noticed, and the others do the work", || {
            assert!(a.coordinator.reachable(), "etcd counts as away");
            work.retain(|work| !work.is_finished());
            work.is_empty()
        })
        .await;
        assert!(a.coordinator.reachable() && a.coordinator.writable());
        etcd.cont(hung);
    });
}

#[test]
fn a_full_database_takes_no_writes_but_answers() {
    let etcd = Etcd::small();
    let runtime = runtime();
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let change = |i: i32| RouteChange { filter: format!("f/{i}").into(), route: Some((true, 1)) };
        let first = a.coordinator.routes(vec![change(0)]).await;
        a.coordinator.applies(first).await;
        assert!(a.coordinator.writable());
        etcd.fill();
        let waits = tokio::spawn(a.coordinator.routes(vec![change(1)]));
        becomes_true("the full database is noticed", || !a.coordinator.writable()).await;
        assert!(a.coordinator.reachable() && !waits.is_finished());
        let read = a.coordinator.read_revision().await;
        assert!(read.is_ok() || etcd::refuses_all_when_full(), "{read:?}");
        etcd.make_room();
        let written = waits.await.unwrap();
        assert!(a.coordinator.writable());
        a.coordinator.applies(written).await;
        a.equals_snapshot().await;
    });
}

#[test]
fn routes_of_an_earlier_start_go_for_those_who_follow_too() {
    let mut random = Random::seeded("BERTH_ROUTES_SEED");
    let (etcd, runtime) = setup(1);
    runtime.block_on(async {
        let b = Node::start(etcd.endpoints(), "b").await;
        let old = Node::start(etcd.endpoints(), "a").await;
        let mut plain = Plain::new();
        for _ in 0..20 {
            old.coordinator.routes(random_changes(&mut random, 5000, 500, &mut plain)).await;
        }
        old.lose_lease().await;
        let old_id = old.me.clone();
        drop(old);
        let new = Node::start(etcd.endpoints(), "a").await;
        let again = plain.iter().map(|(f, r)| RouteChange { filter: f.as_str().into(), route: Some(*r) });
        let written = new.coordinator.routes(again.collect());
        let dropped = new.coordinator.drop_incarnation_routes(old_id.clone());
        let revision = written.await;
        dropped.await;
        shows(&b, &new, &plain, revision).await;
        b.equals_snapshot().await;
        assert!(!b.index.content().routes.contains_key(&old_id));
        assert!(dump(&b.etcd, &keys().routes_of(&old_id)).await.is_empty());
    });
}

#[test]
fn routes_go_on_through_lost_members_and_a_lost_lease() {
    let mut random = Random::seeded("BERTH_ROUTES_SEED");
    let (mut etcd, runtime) = setup(3);
    runtime.block_on(async {
        let a = Node::start(etcd.endpoints(), "a").await;
        let b = Node::start(etcd.endpoints(), "b").await;
        let mut plain = Plain::new();
        for round in 0..3 {
            let mut revision = 0;
            for i in 0..60 {
                let written = a.coordinator.routes(random_changes(&mut random, 300, 3, &mut plain));
                if i == 20 {
                    etcd.kill(round);
                }
                if i == 30 {
                    a.lose_lease().await;
                }
                let written = tokio::spawn(written);
                if i == 30 {
                    a.register_again().await;
                }
                revision = written.await.unwrap();
            }
            shows(&b, &a, &plain, revision).await;
            etcd.restart(round);
            etcd.wait_healthy(round);
            b.equals_snapshot().await;
        }
    });
}
