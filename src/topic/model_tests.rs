//! Both indexes against the plain matcher, with few short names so that paths share, branch and collapse a lot.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::{Filter, RetainedTrie, Trie, matches, validate_name};

const EMPTY: (usize, usize, usize) = (1, 0, 0);

/// Filter, topic, whether they match: the examples of MQTT 5.0 sections 4.7 and 4.8.2, and their neighbours.
const EXAMPLES: &[(&str, &str, bool)] = &[
    ("sport/tennis/player1/#", "sport/tennis/player1", true),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
    ("sport/tennis/player1/#", "sport/tennis/player2", false),
    ("sport/#", "sport", true),
    ("sport/#", "sport/", true),
    ("sport/#", "sports", false),
    ("#", "sport/tennis", true),
    ("#", "/", true),
    ("sport/tennis/+", "sport/tennis/player1", true),
    ("sport/tennis/+", "sport/tennis/player2", true),
    ("sport/tennis/+", "sport/tennis/player1/ranking", false),
    ("sport/+", "sport", false),
    ("sport/+", "sport/", true),
    ("+/tennis/#", "sport/tennis", true),
    ("+/tennis/#", "sport/tennis/player1", true),
    ("+/tennis/#", "sport/golf/player1", false),
    ("sport/+/player1", "sport/tennis/player1", true),
    ("sport/+/player1", "sport/tennis/player2", false),
    ("sport/+/player1", "sport/player1", false),
    ("+/+", "/finance", true),
    ("/+", "/finance", true),
    ("+", "/finance", false),
    ("+", "finance", true),
    ("#", "$SYS/monitor", false),
    ("+/monitor/Clients", "$SYS/monitor/Clients", false),
    ("$SYS/#", "$SYS/monitor", true),
    ("$SYS/#", "$SYS", true),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
    ("$SYS/+/Clients", "$SYS/monitor/Clients", true),
    ("+/+", "$SYS/monitor", false),
    ("+/#", "$SYS", false),
    ("a/+", "a/$b", true),
    ("a/#", "a/$b/c", true),
    ("ACCOUNTS", "Accounts", false),
    ("Accounts payable", "Accounts payable", true),
    ("/finance", "finance", false),
    ("finance/", "finance", false),
    ("+/+/+", "//", true),
    ("//", "//", true),
    ("/", "//", false),
    ("é/漢", "é/漢", true),
    ("A\u{30a}", "\u{c5}", false), // no normalisation (section 4.7.3)
    // section 4.8.2, after the share name is taken off
    ("sport/tennis/+", "sport/tennis/player1", true),
    ("/finance", "/finance", true),
    ("sport/tennis/#", "sport/tennis", true),
];

fn subscribers<'t>(trie: &'t Trie<String>, topic: &str) -> Vec<&'t str> {
    let mut found = Vec::new();
    trie.for_each_match(topic, |value| found.push(value.as_str()));
    found.sort_unstable();
    found
}

fn retained<'t>(trie: &'t RetainedTrie<String>, filter: &str) -> Vec<&'t str> {
    let mut found = Vec::new();
    trie.for_each_match(filter, |value| {
        found.push(value.as_str());
        ControlFlow::Continue(())
    });
    found.sort_unstable();
    found
}

#[test]
fn examples_one_by_one() {
    for &(filter, topic, expected) in EXAMPLES {
        assert_eq!(Filter::parse(filter), Ok(Filter { share: None, filter }));
        assert_eq!(validate_name(topic), Ok(()));
        assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        let mut trie = Trie::new();
        trie.get_or_insert_with(filter, String::new);
        assert_eq!(subscribers(&trie, topic).len(), usize::from(expected), "{filter} {topic}");
        let mut store = RetainedTrie::new();
        store.insert(topic, String::new());
        assert_eq!(retained(&store, filter).len(), usize::from(expected), "{filter} {topic}");
    }
}

#[test]
fn examples_together() {
    let (mut trie, mut store) = (Trie::new(), RetainedTrie::new());
    let (mut filters, mut topics) = (BTreeMap::new(), BTreeMap::new());
    for &(filter, topic, _) in EXAMPLES {
        trie.get_or_insert_with(filter, || filter.to_owned());
        store.insert(topic, topic.to_owned());
        filters.insert(filter, ());
        topics.insert(topic, ());
    }
    for topic in topics.keys() {
        let expected: Vec<&str> = filters.keys().filter(|filter| matches(filter, topic)).copied().collect();
        assert_eq!(subscribers(&trie, topic), expected, "{topic}");
    }
    for filter in filters.keys() {
        let expected: Vec<&str> = topics.keys().filter(|topic| matches(filter, topic)).copied().collect();
        assert_eq!(retained(&store, filter), expected, "{filter}");
    }
}

#[test]
fn longest_paths() {
    let deep = "a/".repeat(super::MAX_LEVELS - 1) + "a";
    let wild = "+/".repeat(super::MAX_LEVELS - 1) + "+";
    let mut trie = Trie::new();
    for filter in [&deep, &wild, "#"] {
        trie.get_or_insert_with(filter, || filter.to_owned());
    }
    assert_eq!(subscribers(&trie, &deep), ["#", &wild, &deep]);
    // Texts nobody validated are no panic and no deep recursion either.
    let slashes = "/".repeat(65_535);
    trie.get_or_insert_with(&slashes, || slashes.clone());
    let pluses = "+/".repeat(32_767) + "#";
    trie.get_or_insert_with(&pluses, || pluses.clone());
    assert_eq!(subscribers(&trie, &slashes).len(), 3);
    let mut store = RetainedTrie::new();
    store.insert(&slashes, slashes.clone());
    assert_eq!(retained(&store, &pluses), [&slashes]);
    for filter in [&deep, &wild, "#", &slashes, &pluses] {
        assert_eq!(trie.remove(filter).as_deref(), Some(filter));
    }
    assert_eq!(trie.counts(), EMPTY);
    store.remove(&slashes);
    assert_eq!(store.counts(), EMPTY);
}

#[test]
fn a_match_can_stop_early() {
    let mut store = RetainedTrie::new();
    for number in 0..100 {
        store.insert(&format!("a/{number}/c"), number);
    }
    for filter in ["#", "a/+/c", "a/#"] {
        let mut calls = 0;
        store.for_each_match(filter, |_| {
            calls += 1;
            if calls == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(calls, 7, "{filter}");
    }
}

#[test]
fn memory_is_given_back() {
    let filter = |n: u32| format!("devices/device-with-a-long-name-{n}/{}/#", n % 3);
    let (mut trie, mut store) = (Trie::new(), RetainedTrie::new());
    for n in 0..20_000 {
        trie.get_or_insert_with(&filter(n), || n);
        store.insert(&filter(n), n);
    }
    let full = trie.memory_bytes() + store.memory_bytes();
    assert!(full > 20_000 * 200, "{full}");
    for n in 0..20_000 {
        assert_eq!(trie.remove(&filter(n)), Some(n));
        assert_eq!(store.remove(&filter(n)), Some(n));
    }
    assert_eq!((trie.counts(), store.counts()), (EMPTY, EMPTY));
    let left = trie.memory_bytes() + store.memory_bytes();
    assert!(left < full / 10, "{left} bytes left of {full}");
}

/// The edge table keeps 32 bits of a hash, so among half a million edges of two names some parents collide (all but
/// once in a million runs) and must still not get each other's children.
#[test]
fn parents_with_equal_hashes_stay_apart() {
    const PARENTS: usize = 250_000;
    let mut store = RetainedTrie::new();
    for n in 0..PARENTS {
        assert_eq!(store.insert(&format!("{n}/x"), n), None);
        assert_eq!(store.insert(&format!("{n}/y"), n), None);
    }
    // The later of two equal hashes is behind the earlier in the table, so ask for it while both are there.
    for n in (0..PARENTS).rev() {
        assert_eq!(store.get(&format!("{n}/y")), Some(&n));
        assert_eq!(store.remove(&format!("{n}/x")), Some(n));
    }
    assert_eq!(store.len(), PARENTS);
}

fn level(wild: bool) -> impl Strategy<Value = &'static str> {
    let names: &[&str] =
        &["a", "a", "b", "c", "", "$s", "a name for the table", "a level of more than twenty-four bytes"];
    let wilds: &[&str] = if wild { &["+", "+", "+"] } else { &[] };
    prop::sample::select([names, wilds].concat())
}

fn topic() -> impl Strategy<Value = String> {
    prop::collection::vec(level(false), 1..5)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("empty", |topic| !topic.is_empty())
}

fn filter() -> impl Strategy<Value = String> {
    (prop::collection::vec(level(true), 0..5), any::<bool>())
        .prop_map(|(mut levels, hash)| {
            if hash {
                levels.push("#");
            }
            levels.join("/")
        })
        .prop_filter("empty", |filter| !filter.is_empty())
}

fn steps(key: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<(String, bool)>> {
    prop::collection::vec((key, prop::bool::weighted(0.6)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn trie_is_a_map_and_finds_what_matches(
        steps in steps(filter()),
        topics in prop::collection::vec(topic(), 1..20),
    ) {
        let (mut trie, mut model) = (Trie::new(), BTreeMap::new());
        for (number, (filter, insert)) in steps.into_iter().enumerate() {
            prop_assert!(Filter::parse(&filter).is_ok());
            if insert {
                let value = format!("{filter} {number}");
                let stored = trie.get_or_insert_with(&filter, || value.clone());
                prop_assert_eq!(stored, model.entry(filter).or_insert(value));
            } else {
                prop_assert_eq!(trie.get(&filter), model.get(&filter));
                prop_assert_eq!(trie.get_mut(&filter), model.get_mut(&filter));
                prop_assert_eq!(trie.remove(&filter), model.remove(&filter));
            }
            prop_assert_eq!(trie.len(), model.len());
        }
        let mut all = BTreeMap::new();
        trie.for_each(|filter, value| assert_eq!(all.insert(filter.to_owned(), value.clone()), None));
        prop_assert_eq!(&all, &model);
        for topic in topics {
            let mut expected: Vec<&str> =
                model.iter().filter(|(filter, _)| matches(filter, &topic)).map(|(_, v)| v.as_str()).collect();
            expected.sort_unstable();
            prop_assert_eq!(subscribers(&trie, &topic), expected, "{}", topic);
        }
        for filter in model.keys() {
            prop_assert!(trie.remove(filter).is_some());
        }
        prop_assert_eq!(trie.counts(), EMPTY);
    }

    #[test]
    fn retained_trie_is_a_map_and_finds_what_matches(
        steps in steps(topic()),
        filters in prop::collection::vec(filter(), 1..20),
    ) {
        let (mut store, mut model) = (RetainedTrie::new(), BTreeMap::new());
        for (number, (topic, insert)) in steps.into_iter().enumerate() {
            if insert {
                let value = format!("{topic} {number}");
                prop_assert_eq!(store.insert(&topic, value.clone()), model.insert(topic, value));
            } else {
                prop_assert_eq!(store.get(&topic), model.get(&topic));
                prop_assert_eq!(store.remove(&topic), model.remove(&topic));
            }
            prop_assert_eq!(store.len(), model.len());
        }
        for filter in filters {
            let mut expected: Vec<&str> =
                model.iter().filter(|(topic, _)| matches(&filter, topic)).map(|(_, v)| v.as_str()).collect();
            expected.sort_unstable();
            prop_assert_eq!(retained(&store, &filter), expected, "{}", filter);
        }
        for topic in model.keys() {
            prop_assert!(store.remove(topic).is_some());
        }
        prop_assert_eq!(store.counts(), EMPTY);
    }
}
