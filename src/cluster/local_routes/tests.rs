//! What the cluster is told of a node's filters: at once what somebody waits for, the rest a little later.

use super::*;
use crate::cluster::testing::{FakeStore, Manual};
use proptest::prelude::*;
use std::collections::BTreeMap;

struct Case {
    store: Arc<FakeStore>,
    tasks: Arc<Manual>,
    routes: Arc<LocalRoutes>,
}

fn new() -> Case {
    let (store, tasks) = (Arc::new(FakeStore::default()), Arc::new(Manual::default()));
    let routes = Arc::new(LocalRoutes::new(store.clone(), tasks.clone()));
    Case { store, tasks, routes }
}

fn started() -> Case {
    let case = new();
    case.routes.start();
    case.tasks.run();
    case
}

fn add(filter: &str, persistent: bool, weight: u32) -> RouteChange {
    RouteChange { filter: filter.into(), route: Some((persistent, weight)) }
}

fn new_to_it(filter: &str) -> Vec<(Arc<str>, bool)> {
    vec![(filter.into(), true)]
}

#[test]
fn what_is_told_now_includes_what_was_told_before_and_is_not_written_yet() {
    let c = started();
    c.routes.add(&new_to_it("t"), false);
    c.routes.remove(&[Arc::from("t")], false);
    // The lazy change has been told, and waits.
    c.tasks.advance(LAZY_MS);
    assert_eq!(c.store.take().len(), 2);
    let mut told = c.routes.tell_now();
    assert_eq!((&mut told).now_or_never(), None);
    c.store.written.set(2);
    c.tasks.run();
    assert_eq!(told.now_or_never(), Some(2));
}

#[test]
fn the_first_subscriber_adds_a_route_and_others_wait_for_the_same_write() {
    let c = started();
    let first = c.routes.add(&new_to_it("t"), false);
    let second = c.routes.add(&new_to_it("t"), false);
    assert_eq!(c.store.take(), [[add("t", false, 1)]]);
    assert!(first.wrote() && !second.wrote());
    assert_eq!((first.known(), second.known()), (None, None));
    assert_eq!(first.written().now_or_never(), None);
    c.store.written.set(1);
    c.tasks.run();
    assert_eq!(second.written().now_or_never(), Some(1));
    // Once written it costs nothing to know.
    let third = c.routes.add(&new_to_it("t"), false);
    assert_eq!((third.known(), third.wrote()), (Some(1), false));
    // A subscription that is not new counts once, but waits all the same.
    assert_eq!(c.routes.add(&[("t".into(), false)], false).known(), Some(1));
    let three = [Arc::from("t"), Arc::from("t"), Arc::from("t")];
    c.routes.remove(&three, false);
    c.tasks.advance(LAZY_MS);
    assert_eq!(c.store.take(), [[RouteChange { filter: "t".into(), route: None }]]);
    assert!(c.routes.is_empty());
}

#[test]
fn the_first_persistent_subscriber_is_told_at_once_and_the_last_ones_going_later() {
    let c = started();
    let _ = c.routes.add(&new_to_it("t"), false);
    assert!(c.routes.add(&new_to_it("t"), true).wrote());
    assert_eq!(c.store.take(), [[add("t", false, 1)], [add("t", true, 1)]]);
    c.routes.remove(&[Arc::from("t")], true);
    c.tasks.run();
    assert_eq!(c.store.take(), [[]; 0], "not at once");
    c.tasks.advance(LAZY_MS);
    assert_eq!(c.store.take(), [[add("t", false, 1)]]);
}

#[test]
fn that_no_persistent_subscriber_is_left_is_told_soon() {
    for persistent_ones in 1..3 {
        let c = started();
        let _ = c.routes.add(&new_to_it("t"), false);
        (0..persistent_ones).for_each(|_| drop(c.routes.add(&new_to_it("t"), true)));
        c.tasks.run();
        c.store.take();
        // Another lazy change is waiting already.
        let _ = c.routes.add(&new_to_it("$share/g/t"), false);
        let _ = c.routes.add(&new_to_it("$share/g/t"), false);
        c.tasks.advance(LAZY_MS / 2);
        c.store.take();
        for left in (0..persistent_ones).rev() {
            c.routes.remove(&[Arc::from("t")], true);
            c.tasks.advance(SOON_MS);
            let told = c.store.take().into_iter().flatten().any(|change| change == add("t", false, 1));
            assert_eq!(told, left == 0, "{left} of {persistent_ones} left");
        }
    }
}

#[test]
fn who_comes_back_soon_costs_nothing() {
    let c = started();
    let _ = c.routes.add(&new_to_it("t"), true);
    c.store.written.set(1);
    c.tasks.run();
    c.store.take();
    c.routes.remove(&[Arc::from("t")], true);
    assert_eq!(c.routes.add(&new_to_it("t"), true).known(), Some(1));
    c.tasks.advance(LAZY_MS);
    assert_eq!(c.store.take(), [[]; 0]);
}

#[test]
fn a_shared_subscription_is_told_with_its_members() {
    let c = started();
    let name = "$share/g/t";
    let _ = c.routes.add(&new_to_it(name), true);
    assert_eq!(c.store.take(), [[add(name, true, 1)]]);
    let _ = c.routes.add(&new_to_it(name), true);
    let _ = c.routes.add(&new_to_it(name), false);
    assert_eq!(c.store.take(), [[]; 0], "nobody waits for a weight");
    c.tasks.advance(LAZY_MS);
    assert_eq!(c.store.take(), [[add(name, true, 3)]]);
}

#[test]
fn what_was_recovered_is_told_in_one_call_at_the_start() {
    let c = new();
    let _ = c.routes.add(&[("a".into(), true), ("b".into(), true)], true);
    let _ = c.routes.add(&[("b".into(), true), ("c".into(), true)], true);
    c.routes.remove(&[Arc::from("c")], true);
    assert_eq!(c.store.take(), [[]; 0]);
    c.routes.start();
    let mut told = c.store.take();
    assert_eq!(told.len(), 1);
    told[0].sort_by(|a, b| a.filter.cmp(&b.filter));
    assert_eq!(told[0], [add("a", true, 1), add("b", true, 1)]);
    let wait = c.routes.all_written();
    assert_eq!(wait.known(), None);
    c.store.written.set(1);
    c.tasks.run();
    assert_eq!(wait.written().now_or_never(), Some(1));
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, bool),
    Remove(usize),
    Advance(u64),
    Written,
}

const FILTERS: [&str; 3] = ["a", "b/#", "$share/g/a"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, any::<bool>()).prop_map(|(f, p)| Step::Add(f, p)),
        4 => any::<usize>().prop_map(Step::Remove),
        2 => (1..2 * LAZY_MS).prop_map(Step::Advance),
        1 => Just(Step::Written),
    ]
}

proptest! {
    /// The fold of what was told covers every subscriber at every time, and after a while it is exactly what there is.
    #[test]
    fn the_cluster_knows_at_least_what_there_is(steps in prop::collection::vec(step(), 1..60)) {
        let c = started();
        let mut there: Vec<(usize, bool)> = Vec::new();
        let mut known: BTreeMap<Arc<str>, (bool, u32)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(f, persistent) => {
                    there.push((f, persistent));
                    let _ = c.routes.add(&new_to_it(FILTERS[f]), persistent);
                }
                Step::Remove(n) if !there.is_empty() => {
                    let (f, persistent) = there.swap_remove(n % there.len());
                    c.routes.remove(&[Arc::from(FILTERS[f])], persistent);
                }
                Step::Remove(_) => {}
                Step::Advance(ms) => c.tasks.advance(ms),
                Step::Written => c.store.written.set(c.store.written.get() + 1),
            }
            for change in c.store.take().into_iter().flatten() {
                match change.route {
                    Some(route) => known.insert(change.filter, route),
                    None => known.remove(&change.filter),
                };
            }
            for (f, persistent) in &there {
                let told = known.get(FILTERS[*f]);
                prop_assert!(told.is_some_and(|(p, _)| *p >= *persistent), "{} {:?}", FILTERS[*f], told);
            }
        }
        c.tasks.advance(2 * LAZY_MS);
        c.tasks.advance(2 * LAZY_MS);
        for change in c.store.take().into_iter().flatten() {
            match change.route {
                Some(route) => known.insert(change.filter, route),
                None => known.remove(&change.filter),
            };
        }
        let mut exact: BTreeMap<Arc<str>, (bool, u32)> = BTreeMap::new();
        for (f, persistent) in &there {
            let (any, weight) = exact.entry(FILTERS[*f].into()).or_default();
            *any |= persistent;
            *weight = if FILTERS[*f].starts_with('$') { *weight + 1 } else { 1 };
        }
        prop_assert_eq!(known, exact);
    }
}
