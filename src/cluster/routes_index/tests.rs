//! The index against a plain map, with few short filters so that they overlap, and with snapshots that are begun, broken off
//! and completed.

use super::*;
use crate::topic;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NAMES: [&str; 3] = ["a", "b", "me"];

fn process(node: u8, incarnation: u64) -> MemberId {
    MemberId { node: NAMES[usize::from(node)].into(), incarnation }
}

/// `a`: live; `b@1`: dead, its node's other start is live; `me`: this node.
fn reachability(of: &MemberId) -> Reachability {
    match (&*of.node, of.incarnation) {
        ("me", _) => Reachability::Own,
        ("b", 1) => Reachability::Orphan("b".into()),
        ("a", 2) => Reachability::Gone,
        (node, _) => Reachability::Live(node.into()),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(MemberId, String, bool, u32),
    Del(MemberId, String),
    Begin,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let level = || prop::sample::select(vec!["a", "b", "+", "longer-than-the-inline-name"]);
    let filter = (prop::collection::vec(level(), 1..4), prop::bool::weighted(0.2), prop::option::of(0..2u8));
    let filter = filter.prop_map(|(mut levels, hash, group)| {
        if hash {
            levels.push("#");
        }
        let filter = levels.join("/");
        group.map_or(filter.clone(), |g| format!("$share/g{g}/{filter}"))
    });
    let process = || (0..3u8, 1..3u64).prop_map(|(n, i)| process(n, i));
    prop_oneof![
        6 => (process(), filter.clone(), any::<bool>(), 1..5u32).prop_map(|(p, f, d, w)| Step::Add(p, f, d, w)),
        3 => (process(), filter).prop_map(|(p, f)| Step::Del(p, f)),
        1 => Just(Step::Begin),
        1 => Just(Step::End),
    ]
}

type Key = (MemberId, String);

#[derive(Default)]
struct Model {
    routes: BTreeMap<Key, (bool, u32)>,
    mentioned: Option<BTreeSet<Key>>,
}

impl Model {
    fn take(&mut self, step: &Step, index: &RoutesIndex) {
        match step {
            Step::Add(of, filter, persistent, weight) => {
                let key = (of.clone(), filter.clone());
                let weight = if filter.starts_with('$') { *weight } else { 1 };
                self.routes.insert(key.clone(), (*persistent, weight));
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.insert(key);
                }
                let route = Route { filter: (&**filter).into(), persistent: *persistent, weight };
                index.apply(of, &[route], &[], || reachability(of));
            }
            Step::Del(of, filter) => {
                self.routes.remove(&(of.clone(), filter.clone()));
                index.apply(of, &[], &[(&**filter).into()], || reachability(of));
            }
            Step::Begin => {
                self.mentioned = Some(BTreeSet::new());
                index.begin_snapshot();
            }
            Step::End => {
                let Some(mentioned) = self.mentioned.take() else { return };
                self.routes.retain(|key, _| mentioned.contains(key));
                index.end_snapshot();
            }
        }
    }

    fn matches(&self, topic: &str) -> RemoteMatches {
        let mut nodes: BTreeMap<(Arc<str>, bool), RemoteNode> = BTreeMap::new();
        let mut groups: BTreeMap<Arc<str>, BTreeMap<_, RemoteShare>> = BTreeMap::new();
        for ((of, name), (persistent, weight)) in &self.routes {
            let (persistent, weight) = (*persistent, *weight);
            let filter = Filter::parse(name).unwrap();
            let (node, orphaned) = match reachability(of) {
                Reachability::Live(node) => (node, false),
                Reachability::Orphan(node) if persistent => (node, true),
                _ => continue,
            };
            if !topic::matches(filter.filter, topic) {
                continue;
            }
            if filter.share.is_some() {
                let share = RemoteShare { node: node.clone(), weight, persistent, orphaned };
                let nodes = groups.entry(name.as_str().into()).or_default();
                let s = nodes.entry((node, orphaned)).or_insert(share);
                s.weight = s.weight.max(weight);
                s.persistent |= persistent;
            } else {
                let found = RemoteNode { node: node.clone(), persistent, orphaned };
                nodes.entry((node, orphaned)).or_insert(found).persistent |= persistent;
            }
        }
        let group = |(name, nodes): (Arc<str>, BTreeMap<_, RemoteShare>)| RemoteGroup {
            name,
            nodes: nodes.into_values().collect(),
        };
        RemoteMatches {
            nodes: nodes.into_values().collect(),
            groups: groups.into_iter().map(group).collect(),
        }
    }
}

fn sorted(found: &RemoteMatches) -> RemoteMatches {
    let mut m = found.clone();
    m.nodes.sort_by_key(|n| (n.node.clone(), n.orphaned));
    m.groups.sort_by(|a, b| a.name.cmp(&b.name));
    m.groups.iter_mut().for_each(|g| g.nodes.sort_by_key(|n| (n.node.clone(), n.orphaned)));
    m
}

proptest! {
    #[test]
    fn as_a_plain_map_through_changes_and_snapshots(steps in prop::collection::vec(step(), 1..80)) {
        let (index, mut model) = (RoutesIndex::default(), Model::default());
        // One cache a topic, used throughout: what it remembers must never be older than the index.
        let topics = ["a", "b", "a/b", "a/a/b", "b/longer-than-the-inline-name", "a/b/a/b", "x"];
        let mut caches: Vec<RemoteCache> = topics.iter().map(|_| RemoteCache::default()).collect();
        for step in &steps {
            model.take(step, &index);
            for (topic, cache) in topics.iter().zip(&mut caches) {
                prop_assert_eq!(sorted(index.lookup(topic, cache)), model.matches(topic), "{} after {:?}", topic, step);
            }
            let all: BTreeMap<Key, (bool, u32)> = index
                .all()
                .into_iter()
                .map(|(of, r)| ((of, r.filter.to_string()), (r.persistent, r.weight)))
                .collect();
            prop_assert_eq!(&all, &model.routes);
            prop_assert_eq!(index.len(), model.routes.len());
        }
        // Nothing is left behind: neither nodes of the trie nor numbers of incarnations.
        for (of, filter) in model.routes.keys() {
            index.apply(of, &[], &[filter.as_str().into()], || reachability(of));
        }
        prop_assert!(index.is_empty());
        prop_assert!(index.owners.read().numbers.is_empty());
        prop_assert_eq!(index.shards.iter().map(|s| s.trie.read().len()).sum::<usize>(), 0);
    }
}

#[test]
fn a_change_of_standing_reaches_what_a_cache_remembers() {
    let index = RoutesIndex::default();
    let of = process(0, 1);
    let route = |persistent| Route { filter: "t/+".into(), persistent, weight: 1 };
    index.apply(&of, &[route(false)], &[], || Reachability::Live("a".into()));
    let mut cache = RemoteCache::default();
    let node = |persistent, orphaned| vec![RemoteNode { node: "a".into(), persistent, orphaned }];
    assert_eq!(index.lookup("t/1", &mut cache).nodes, node(false, false));
    index.update_reachability(|_| Reachability::Orphan("a".into()));
    assert_eq!(index.lookup("t/1", &mut cache).nodes, []);
    index.apply(&of, &[route(true)], &[], || Reachability::Own);
    assert_eq!(index.lookup("t/1", &mut cache).nodes, node(true, true));
    assert_eq!(index.update_reachability(|_| Reachability::Live("a".into())), ["a".into(), "a".into()]);
    assert_eq!(index.update_reachability(|_| Reachability::Live("a".into())), [], "nothing has changed");
    assert_eq!(index.lookup("t/1", &mut cache).nodes, node(true, false));
    index.update_reachability(|_| Reachability::Gone);
    assert!(index.lookup("t/1", &mut cache).is_empty());
}

#[test]
fn who_is_waited_for_is_not_hidden_by_another_process_of_the_node() {
    let index = RoutesIndex::default();
    let (lost, new) = (process(0, 1), process(0, 2));
    let route = |filter: &str| Route { filter: filter.into(), persistent: true, weight: 1 };
    let routes = [route("t"), route("$share/g/t")];
    index.apply(&lost, &routes, &[], || Reachability::Orphan("a".into()));
    index.apply(&new, &routes, &[], || Reachability::Live("a".into()));
    let mut cache = RemoteCache::default();
    let found = sorted(index.lookup("t", &mut cache));
    assert_eq!(found.nodes.iter().map(|n| n.orphaned).collect::<Vec<_>>(), [false, true]);
    assert_eq!(found.groups[0].nodes.iter().map(|n| n.orphaned).collect::<Vec<_>>(), [false, true]);
    assert!(found.waits());
}

#[test]
fn a_route_takes_little_memory() {
    const ROUTES: usize = 200_000;
    let index = RoutesIndex::default();
    let of = process(0, 1);
    let route =
        |n: usize| Route { filter: format!("devices/{n:07}/commands").into(), persistent: true, weight: 1 };
    let routes: Vec<Route> = (0..ROUTES).map(route).collect();
    for page in routes.chunks(1_000) {
        index.apply(&of, page, &[], || Reachability::Live("a".into()));
    }
    let bytes = index.memory_bytes() / ROUTES;
    println!("{bytes} bytes a route");
    assert!(bytes < 150, "{bytes} bytes a route");
}
