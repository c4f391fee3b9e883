//! Which file of a room imports which, and where they import each other in a circle: whoever reads one file of a circle has to
//! read all of them.

use crate::tree::{Source, sources};
use std::collections::{BTreeMap, BTreeSet};

/// Files of a room that import each other in circles, with how many they are. A circle that goes, or shrinks, is struck from this
/// list; none may be added.
const CIRCLES: &[(&str, &[usize])] = &[
    ("app", &[12]),
    ("auth", &[9]),
    ("broker", &[4, 8]),
    ("cluster", &[14]),
    ("config", &[2, 3]),
    ("ctl", &[2]),
    ("etcd", &[2, 3, 5]),
    ("mqtt", &[10]),
    ("node", &[16]),
    ("peers", &[2, 5]),
    ("ports", &[3]),
    ("server", &[3, 9]),
    ("session", &[5]),
    ("storage", &[2, 2, 5, 10]),
    ("telemetry", &[5]),
    ("tls", &[3]),
];

/// The path of a module below the crate: `["node", "channel"]`.
type Module = Vec<String>;

/// The module of a file such as `src/node/channel/mod.rs`.
fn module_of(path: &str) -> Module {
    let path = path.strip_prefix("src/").unwrap_or(path).strip_suffix(".rs").unwrap_or(path);
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The parts of `a::b, c::{d, e}` at its top level.
fn parts(list: &str) -> Vec<String> {
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in list.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match parts.last_mut() {
            Some(part) if c != ',' || depth > 0 => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// Every path of `prefix::tree`, braces taken apart.
fn leaves(prefix: &[String], tree: &str, into: &mut Vec<Vec<String>>) {
    let segments = |path: &str| {
        path.split("::").map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect::<Vec<_>>()
    };
    for part in parts(tree) {
        match part.split_once('{') {
            Some((path, inner)) => {
                let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
                leaves(&[prefix, &segments(path)].concat(), inner, into);
            }
            None => {
                let path = part.split(" as ").next().unwrap_or_default();
                into.push([prefix, &segments(path)].concat());
            }
        }
    }
}

/// Every path that the code of a file names: those of `use`, and those that begin with `crate`, `super` or `self`.
fn paths(source: &Source) -> Vec<Vec<String>> {
    let code: Vec<&str> = source.built_code().map(|(_, line)| line).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for statement in code.split("use ").skip(1) {
        if let Some((tree, _)) = statement.split_once(';') {
            leaves(&[], tree, &mut found);
        }
    }
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let path: String =
                code[at..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
            found.push(path.split("::").map(str::to_owned).collect());
        }
    }
    found
}

/// Which modules each module of the crate names.
fn graph(sources: &[Source]) -> BTreeMap<Module, BTreeSet<Module>> {
    let modules: BTreeSet<Module> = sources.iter().map(|s| module_of(&s.path)).collect();
    let resolve = |from: &Module, path: &[String]| {
        let (mut base, mut rest) = (from.clone(), path);
        match path.first().map(String::as_str) {
            Some("crate") => (base, rest) = (Module::new(), &path[1..]),
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|s| s == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            Some(first) if !modules.contains(&[from.clone(), vec![first.to_owned()]].concat()) => {
                return None;
            }
            _ => {}
        }
        base.extend(rest.iter().cloned());
        (1..=base.len()).rev().map(|len| base[..len].to_vec()).find(|module| modules.contains(module))
    };
    let mut graph = BTreeMap::new();
    for source in sources {
        let from = module_of(&source.path);
        let named =
            paths(source).iter().filter_map(|path| resolve(&from, path)).filter(|to| *to != from).collect();
        graph.insert(from, named);
    }
    graph
}

/// The modules that `from` leads to, within its room.
fn reached<'g>(graph: &'g BTreeMap<Module, BTreeSet<Module>>, from: &'g Module) -> BTreeSet<&'g Module> {
    let (mut reached, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(module) = todo.pop() {
        for next in graph.get(module).into_iter().flatten().filter(|next| next.first() == from.first()) {
            if reached.insert(next) {
                todo.push(next);
            }
        }
    }
    reached
}

/// The circles of each room: sets of modules each of which leads to all others.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeMap<String, Vec<BTreeSet<&Module>>> {
    let leads: BTreeMap<&Module, BTreeSet<&Module>> = graph.keys().map(|m| (m, reached(graph, m))).collect();
    let mut found: BTreeMap<String, Vec<BTreeSet<&Module>>> = BTreeMap::new();
    let mut placed = BTreeSet::new();
    for (module, to) in &leads {
        if to.contains(module) && !placed.contains(module) {
            let circle: BTreeSet<&Module> =
                to.iter().copied().filter(|other| leads[*other].contains(module)).collect();
            placed.extend(circle.iter().copied());
            found.entry(module[0].clone()).or_default().push(circle);
        }
    }
    found
}

#[test]
fn no_file_joins_a_circle() {
    let all = sources("src");
    let sources: Vec<Source> = all.into_iter().filter(|s| !s.path.ends_with("tests.rs")).collect();
    let graph = graph(&sources);
    let mut wrong = Vec::new();
    for (room, circles) in circles(&graph).iter().filter(|(room, _)| *room != "simulation") {
        let mut sizes: Vec<usize> = circles.iter().map(BTreeSet::len).collect();
        sizes.sort_unstable();
        let known = CIRCLES.iter().find(|(of, _)| of == room).map_or(&[][..], |(_, sizes)| sizes);
        if sizes != known {
            let names =
                |circle: &BTreeSet<&Module>| circle.iter().map(|m| m.join("/")).collect::<Vec<_>>().join(" ");
            let circles: Vec<String> = circles.iter().map(names).collect();
            wrong.push(format!("{room}: {sizes:?} in place of {known:?}: {circles:#?}"));
        }
    }
    for (room, known) in CIRCLES.iter().filter(|(room, _)| !circles(&graph).contains_key(*room)) {
        wrong.push(format!("{room}: none in place of {known:?}"));
    }
    assert!(wrong.is_empty(), "circles of files:\n{}", wrong.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("src/a/mod.rs", "mod x;\nmod y;\nuse x::X;\n"),
        source("src/a/x.rs", "use super::y::{\n    self, Y,\n};\n"),
        source("src/a/y.rs", "fn f() { crate::a::z::g() } // super::x\n"),
        source(
            "src/a/z.rs",
            "use crate::{a::x::{X as Z}, b};\n#[cfg(test)]\nmod tests {\n    use super::super::w;\n}\n",
        ),
        source("src/a/w.rs", "use super::z::Z;\nuse crate::b::B;\n"),
        source("src/b.rs", "use crate::a::w;\n"),
    ];
    let graph = graph(&sources);
    let found = circles(&graph);
    let names: Vec<String> = found["a"][0].iter().map(|m| m.join("/")).collect();
    assert_eq!(
        (names, found["a"].len(), found.len()),
        (["a/x", "a/y", "a/z"].map(str::to_owned).to_vec(), 1, 1)
    );
}
