//! What the shipped program is built from: licences, and versions of one package side by side.

use crate::tree::root;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Licences under which we ship others' code: all of them allow it in a program under Apache-2.0, with a notice at most.
const LICENCES: &[&str] =
    &["Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Unicode-3.0", "Unlicense", "Zlib"];

/// Packages of which several versions are linked, and why. One version less is a line less here.
const SIDE_BY_SIDE: &[(&str, &str)] = &[
    ("foldhash", "comes with each hashbrown"),
    (
        "getrandom",
        "ring, the metrics and what makes temporary files each ask for randomness by another version",
    ),
    (
        "hashbrown",
        "the YAML reader, the metrics and what builds the code for gRPC have not moved to the newest",
    ),
    (
        "prettyplease",
        "writes the code for gRPC and for options while they are built; nothing of it is in the program",
    ),
    ("rand_core", "the metrics have not moved to the newest"),
    ("syn", "macros are built with the version that each was written for; nothing of it is in the program"),
];

/// A package of the shipped program, its build scripts and macros included.
struct Package {
    name: String,
    version: String,
    licence: String,
}

/// What cargo says of the packages on this platform.
fn metadata() -> Value {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc tells its version");
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc tells its host")
        .to_owned();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let told = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

/// The packages that the program needs, and those that build these; not what only tests need.
fn packages() -> Vec<Package> {
    let metadata = metadata();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: BTreeMap<String, &Value> = nodes.iter().map(|node| (text(&node["id"]), node)).collect();
    let (mut needed, mut todo) = (BTreeSet::new(), vec![text(&metadata["resolve"]["root"])]);
    while let Some(id) = todo.pop() {
        let shipped = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
        };
        let dependencies = nodes[&id]["deps"].as_array().unwrap();
        let more: Vec<String> = dependencies.iter().filter(shipped).map(|d| text(&d["pkg"])).collect();
        if needed.insert(id) {
            todo.extend(more);
        }
    }
    let all = metadata["packages"].as_array().unwrap();
    let of = |p: &Value| Package {
        name: text(&p["name"]),
        version: text(&p["version"]),
        licence: text(&p["license"]),
    };
    all.iter().filter(|p| needed.contains(&text(&p["id"]))).map(of).collect()
}

/// Whether a licence expression (SPDX) can be met with licences that `allowed` names. `/` is how OR was written before.
fn can_be_met(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let all =
        |part: &str| part.split(" AND ").all(|one| one.split(" OR ").any(|l| allowed.contains(&l.trim())));
    // A choice between several that hold together is written with parentheses only where it is one of them.
    !expression.trim().is_empty() && all(&expression)
}

#[test]
fn licences_are_read() {
    for (expression, met) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("MIT AND BSD-3-Clause", true),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(can_be_met(expression, LICENCES), met, "{expression}");
    }
}

#[test]
fn every_licence_lets_us_ship() {
    let packages = packages();
    assert!(packages.len() > 100, "cargo named {} packages only", packages.len());
    let refused = packages.iter().filter(|p| !can_be_met(&p.licence, LICENCES));
    let refused: Vec<_> = refused.map(|p| format!("{} {}: {:?}", p.name, p.version, p.licence)).collect();
    assert!(refused.is_empty(), "licences that nobody has agreed to: {refused:#?}");
}

#[test]
fn no_package_is_linked_twice_without_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for p in packages() {
        versions.entry(p.name).or_default().insert(p.version);
    }
    versions.retain(|_, of| of.len() > 1);
    let known = |name: &str| SIDE_BY_SIDE.iter().any(|(known, _)| *known == name);
    let new: Vec<_> = versions.iter().filter(|(name, _)| !known(name)).collect();
    assert!(new.is_empty(), "linked in several versions: {new:#?}");
    let gone: Vec<_> = SIDE_BY_SIDE.iter().filter(|(name, _)| !versions.contains_key(*name)).collect();
    assert!(gone.is_empty(), "in one version by now: {gone:#?}");
}
