//! `docs/glossary.md` has one meaning for each word: what it names is in the code, and what these words have replaced is gone.

use crate::tree::{Source, read, root, sources};

/// Written by a program, from `proto/`.
const GENERATED: &str = "src/peers/proto/";

/// Words that were replaced, in code and comments, with the paths below which they are not used any more.
const REPLACED: &[(&str, &[&str])] = &[
    ("currency", &["src/"]),
    ("Currency", &["src/"]),
    ("is_current", &["src/"]),
    ("was_current", &["src/"]),
    ("when_current", &["src/"]),
    ("current_at", &["src/"]),
    ("gate", &["src/"]),
    ("Gate", &["src/"]),
    ("Origin", &["src/broker/", "src/cluster/", "src/node/"]),
    ("Origins", &["src/broker/", "src/cluster/", "src/node/", "src/simulation/"]),
    ("LatePublishes", &["src/"]),
    ("late_soon", &["src/"]),
    ("publishes_late", &["src/"]),
    ("floor", &["src/cluster/"]),
    ("floors", &["src/cluster/"]),
    ("Floors", &["src/"]),
    ("lane", &["src/cluster/outbox/", "src/cluster/cycle.rs", "src/etcd/", "src/simulation/"]),
    ("Lane", &["src/cluster/outbox/", "src/etcd/"]),
    ("lane_open", &["src/"]),
    ("run_lane", &["src/"]),
    (
        "parked",
        &["src/broker/retained/", "src/broker/retained.rs", "src/etcd/", "src/ports/", "src/storage/"],
    ),
    ("ParkedRetain", &["src/"]),
    ("none_parked", &["src/"]),
    ("ticket", &["src/"]),
    ("Ticket", &["src/"]),
    ("link", &["src/node/channel/", "src/server/connection.rs"]),
    ("Link", &["src/broker/", "src/etcd/", "src/node/", "src/server/"]),
    ("Way", &["src/broker/", "src/cluster/", "src/node/"]),
    ("Turn", &["src/broker/mailbox/", "src/broker/delivery.rs", "src/cluster/"]),
    ("standing", &["src/app/", "src/cluster/", "src/etcd/"]),
    ("Standing", &["src/"]),
    ("weigh", &["src/"]),
    ("weighing", &["src/"]),
    ("judge", &["src/broker/", "src/cluster/", "src/etcd/"]),
    ("make_fresh", &["src/"]),
    ("take_fresh", &["src/"]),
    ("drop_fresh", &["src/"]),
    ("FreshSettings", &["src/"]),
];

/// Whether `text` has `word` with no letter, digit or underscore beside it.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(part_of_word) && !after.starts_with(part_of_word)
    })
}

/// Lines in which a replaced word is used again.
fn used_again(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !s.path.starts_with(GENERATED)) {
        let here = |paths: &[&str]| paths.iter().any(|path| source.path.starts_with(path));
        for (word, _) in REPLACED.iter().filter(|(word, paths)| here(paths) && has_word(&source.text, word)) {
            for (no, line) in source.text.lines().enumerate().filter(|(_, line)| has_word(line, word)) {
                found.push(format!("{}:{}: {word}: {}", source.path, no + 1, line.trim()));
            }
        }
    }
    found
}

/// The words of the glossary, each with the names in the code that its line gives.
fn words() -> Vec<(String, Vec<String>)> {
    let page = read("docs/glossary.md");
    let entries = page.lines().filter_map(|line| line.strip_prefix("- **"));
    let parted = entries.map(|line| {
        let (word, rest) = line.split_once("**").unwrap_or_else(|| panic!("no word: {line}"));
        // What comes after the last sentence: what is said in it may have names of other things.
        let names =
            rest.rsplit_once(". ").unwrap_or_else(|| panic!("{word}: one sentence, then where it is")).1;
        let names = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (word.to_owned(), names)
    });
    parted.collect()
}

#[test]
fn each_word_of_the_glossary_is_used_in_the_code() {
    let all = sources("src");
    let used: Vec<&Source> = all.iter().filter(|s| !s.path.starts_with(GENERATED)).collect();
    let is_there = |name: &str| match name.contains('/') {
        true => root().join("src").join(name).exists(),
        false => used.iter().any(|s| s.built_code().any(|(_, line)| has_word(line, name))),
    };
    let words = words();
    assert!(words.len() >= 80, "{} words", words.len());
    let mut wrong = Vec::new();
    for (at, (word, names)) in words.iter().enumerate() {
        if names.is_empty() {
            wrong.push(format!("{word}: no name in the code"));
        }
        if words[..at].iter().any(|(before, _)| before == word) {
            wrong.push(format!("{word}: twice"));
        }
        wrong.extend(names.iter().filter(|name| !is_there(name)).map(|name| format!("{word}: no {name}")));
    }
    assert!(wrong.is_empty(), "docs/glossary.md:\n  {}", wrong.join("\n  "));
}

#[test]
fn what_the_words_of_the_glossary_have_replaced_is_gone() {
    let found = used_again(&sources("src"));
    assert!(found.is_empty(), "replaced words, see docs/glossary.md:\n  {}", found.join("\n  "));
}

#[test]
fn a_replaced_word_is_found_wherever_it_comes_back() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("src/cluster/x.rs", "/// Inside the gate.\nfn f(gates: Gate) {}\n"),
        source("src/etcd/x.rs", "let current_at = 1;\nlet standings = at;\n"),
        source("src/server/http/x.rs", "let origin = Origin(1);\n"),
        source("src/peers/proto/x.rs", "gate\n"),
    ];
    let found = used_again(&sources);
    let expected = [
        "src/cluster/x.rs:1: gate: /// Inside the gate.",
        "src/cluster/x.rs:2: Gate: fn f(gates: Gate) {}",
        "src/etcd/x.rs:1: current_at: let current_at = 1;",
    ];
    assert_eq!(found, expected);
}
