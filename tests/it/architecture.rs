//! What ARCHITECTURE.md promises about the shape of the code.

use crate::tree::{Source, read, root, sources};

/// Which of the crate's modules each module may use. What is not listed may be used by nobody.
const MAY_USE: &[(&str, &str)] = &[
    ("backoff", ""),
    ("clock", ""),
    ("config", "yaml"),
    ("hashing", ""),
    ("host", ""),
    ("names", ""),
    ("queue_policy", ""),
    ("readings", ""),
    ("secret_file", ""),
    ("user", "names"),
    ("yaml", ""),
    ("telemetry", "clock config hashing names"),
    ("mqtt", "clock"),
    ("topic", "hashing mqtt"),
    ("session", "clock hashing queue_policy user telemetry mqtt topic"),
    ("ports", "clock queue_policy user mqtt topic"),
    ("sync", "hashing ports"),
    ("broker", "clock hashing names queue_policy sync user telemetry mqtt topic session ports"),
    ("cluster", "clock hashing names queue_policy sync user telemetry mqtt topic session ports broker"),
    ("node", "clock hashing host names user telemetry mqtt topic session ports broker cluster"),
    ("tls", "clock config telemetry ports"),
    ("storage", "clock hashing names queue_policy user telemetry mqtt topic ports"),
    ("etcd", "backoff clock hashing names user telemetry mqtt topic ports tls"),
    ("peers", "backoff clock hashing names telemetry mqtt topic ports tls"),
    ("auth", "clock config hashing host names readings secret_file user yaml telemetry mqtt topic ports"),
    ("server", "clock config host names readings secret_file telemetry mqtt topic ports node tls"),
    (
        "app",
        "backoff clock config names queue_policy secret_file telemetry mqtt topic session ports broker cluster node storage etcd peers auth tls server",
    ),
    (
        "simulation",
        "clock hashing user telemetry mqtt topic session ports broker cluster node storage peers auth",
    ),
    ("ctl", "clock names secret_file"),
    ("cli", "config auth ctl"),
    ("lib", ""),
    ("main", ""),
];

/// The central types of rooms, each with the room that alone may give it methods: what others need of it is a call of that room.
const CENTRAL: &[(&str, &str)] =
    &[("Broker", "broker"), ("Cluster", "cluster"), ("Remote", "cluster"), ("Node", "node")];

/// Modules that do no I/O.
const PURE: &[&str] = &["mqtt", "topic", "session"];

/// What pure modules have no use for.
const IMPURE: &[&str] =
    &["tokio::", "std::net", "std::fs", "std::io", "std::thread", "std::process", "std::env"];

/// The readers of time.
const CLOCKS: &[&str] = &["SystemTime::now", "Instant::now", "clock_gettime", ".elapsed()"];

/// Marks of unfinished work. Split so that this file does not find itself.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("unimple", "mented!"),
    concat!("to", "do!("),
    concat!("#[ig", "nore"),
];

/// Written by a program: nobody reads it from top to bottom.
const GENERATED: &[&str] = &["src/peers/proto/berth.v1.rs"];

/// A file longer than this does not fit into a head.
const LINES_MAX: usize = 600;

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Every `(line, module)` for which the code says `crate::module`, alone or in braces.
fn uses(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_braces = false;
    for (number, line) in source.code() {
        let mut rest = line;
        if in_braces {
            found.extend(modules_in_braces(rest).map(|m| (number, m)));
            in_braces = !rest.contains("};");
            continue;
        }
        while let Some(at) = rest.find("crate::") {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + "crate::".len()..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            if let Some(list) = rest.strip_prefix('{') {
                found.extend(modules_in_braces(list).map(|m| (number, m)));
                in_braces = !list.contains("};");
            } else {
                found.push((number, first_word(rest)));
            }
        }
    }
    found
}

/// The first words of the top level of `a::b, c::{d, e}, f`.
fn modules_in_braces(list: &str) -> impl Iterator<Item = String> {
    let mut depth = 0;
    let mut words = vec![String::new()];
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => words.push(String::new()),
            _ => {}
        }
        if depth == 0
            && !matches!(c, ',' | '{' | '}' | ';')
            && let Some(word) = words.last_mut()
        {
            word.push(c);
        }
        if depth < 0 {
            break;
        }
    }
    words.into_iter().map(|w| first_word(w.trim())).filter(|w| !w.is_empty())
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The type that a line gives methods to, if it begins with `impl` of a type of the crate itself.
fn implemented(line: &str) -> Option<String> {
    let rest = line.strip_prefix("impl ")?;
    let of = rest.split_once(" for ").map_or(rest, |(_, of)| of);
    Some(first_word(of))
}

#[test]
fn methods_of_a_central_type_are_in_its_room() {
    let mut found = Vec::new();
    // The simulated cluster has nodes of its own.
    for source in sources("src").iter().filter(|s| s.module() != "simulation") {
        for (number, line) in source.code() {
            let of = implemented(line);
            let central = CENTRAL.iter().find(|(name, _)| of.as_deref() == Some(*name));
            if central.is_some_and(|(_, room)| *room != source.module()) {
                found.push(format!("{}:{number}: {line}", source.path));
            }
        }
    }
    none("methods of another room's central type", &found);
    assert_eq!(implemented("impl Inbox for Node {").as_deref(), Some("Node"));
    assert_eq!(implemented("impl Broker {").as_deref(), Some("Broker"));
}

#[test]
fn the_scanner_sees_all_forms_of_use() {
    let text = "use crate::mqtt::{Packet, QoS};\nuse crate::{topic::Trie, session::{A, B}, clock};\n\
                let x = crate::broker::new(); // crate::server\n$crate::hidden!();\nuse crate::{\n    auth::X,\n    config,\n};\n";
    let source = Source { path: "src/x.rs".to_owned(), text: text.to_owned() };
    let found: Vec<_> = uses(&source).into_iter().map(|(_, m)| m).collect();
    assert_eq!(found, ["mqtt", "topic", "session", "clock", "broker", "auth", "config"]);
}

#[test]
fn imports_point_down_only() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let module = source.module();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module {module} has no place among the layers", source.path));
            continue;
        };
        let tests_from = source.built_code().map(|(line, _)| line).max().unwrap_or(0) + 1;
        for (line, used) in uses(&source) {
            // Tests run what they test in a whole cluster.
            if used == "simulation" && line >= tests_from {
                continue;
            }
            let known = MAY_USE.iter().any(|(name, _)| *name == used);
            if known && used != module && !allowed.split(' ').any(|name| name == used) {
                wrong.push(format!("{}:{line}: {module} must not use {used}", source.path));
            }
        }
    }
    none("forbidden imports", &wrong);
}

/// What only tests need is compiled with a feature that is off unless the package's own tests, benchmarks and fuzzing turn it on.
#[test]
fn doubles_are_not_in_the_shipped_program() {
    for (file, module) in [("src/lib.rs", "simulation"), ("src/mqtt/mod.rs", "client")] {
        let gated = format!("#[cfg(any(test, feature = \"testing\"))]\npub mod {module};\n");
        assert!(read(file).contains(&gated), "{module} in {file} is compiled without the feature `testing`");
    }
    let manifest = read("Cargo.toml");
    assert!(
        manifest.contains("\ntesting = []\n") && !manifest.contains("\ndefault ="),
        "no feature is on by default"
    );
}

#[test]
fn pure_modules_do_no_io() {
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| PURE.contains(&s.module())) {
        for (line, code) in source.code() {
            for what in IMPURE.iter().filter(|what| code.contains(**what)) {
                wrong.push(format!("{}:{line}: {what}", source.path));
            }
        }
    }
    none("I/O in pure modules", &wrong);
}

#[test]
fn only_the_clock_reads_time() {
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| s.module() != "clock") {
        for (line, code) in source.code() {
            for what in CLOCKS.iter().filter(|what| code.contains(**what)) {
                wrong.push(format!("{}:{line}: {what}", source.path));
            }
        }
    }
    none("clock reads outside src/clock.rs", &wrong);
}

/// What is lost is counted where the log hears of it too.
#[test]
fn nothing_is_counted_as_lost_that_is_not_logged() {
    let counters = ["messages_dropped.of(", "publishes_refused.of(", "peer_frames_dropped."];
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| s.module() != "telemetry") {
        for (line, code) in source.built_code() {
            for what in counters.iter().filter(|what| code.contains(**what)) {
                wrong.push(format!("{}:{line}: {what} instead of Metrics::lost", source.path));
            }
        }
    }
    none("losses that are not logged", &wrong);
}

/// A name may have 65,535 bytes and end lines: log lines have it through `names::shown`.
#[test]
fn names_of_clients_are_shortened_in_logs() {
    let bare =
        ["client = %", "topic = %", "filter = %", "key = %", "client = client_id", "%client", "%topic"];
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| s.module() != "simulation") {
        for (line, code) in source.built_code() {
            let hit = bare
                .iter()
                .any(|b| code.match_indices(b).any(|(at, _)| !code[at + b.len()..].starts_with("shown(")));
            if hit {
                wrong.push(format!("{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    none("names that are logged as they are", &wrong);
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX && !GENERATED.contains(&&*source.path) {
            wrong.push(format!("{}: {lines} lines, at most {LINES_MAX}", source.path));
        }
        let tests_beside = source.path.ends_with("/tests.rs");
        if source.path.starts_with("src/") && !tests_beside && !source.text.starts_with("//!") {
            wrong.push(format!("{}: the first line does not say what it is for", source.path));
        }
    }
    none("files", &wrong);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut wrong = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for (number, line) in source.text.lines().enumerate() {
            if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
                wrong.push(format!("{}:{}: {mark}", source.path, number + 1));
            }
        }
    }
    none("unfinished work", &wrong);
}

#[test]
fn the_map_has_every_module() {
    let map = read("ARCHITECTURE.md");
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = if name.ends_with(".rs") { name } else { format!("{name}/") };
        if name != "lib.rs" && !map.contains(&format!("`{name}`")) {
            missing.push(name);
        }
    }
    none("not in ARCHITECTURE.md", &missing);
}

/// The files that a file names as its modules.
fn named_by(source: &Source) -> Vec<String> {
    let (dir, file) = source.path.rsplit_once('/').unwrap();
    let inner = match file {
        "mod.rs" | "lib.rs" | "main.rs" => dir.to_owned(),
        _ => source.path.trim_end_matches(".rs").to_owned(),
    };
    let mut found = Vec::new();
    let mut elsewhere = None;
    for (_, line) in source.code() {
        let line = line.trim();
        if let Some(path) = line.strip_prefix("#[path = \"") {
            elsewhere = path.strip_suffix("\"]");
        }
        let Some(name) = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod ")) else { continue };
        if name.0.is_empty() || name.0.starts_with("pub") {
            match elsewhere.take() {
                Some(path) => found.push(format!("{dir}/{path}")),
                None => {
                    found.extend([format!("{inner}/{}.rs", name.1), format!("{inner}/{}/mod.rs", name.1)])
                }
            }
        }
    }
    found
}

#[test]
fn every_file_is_part_of_the_program() {
    let mut orphans = Vec::new();
    for dir in ["src", "tests/it"] {
        let all = sources(dir);
        let named: Vec<String> = all.iter().flat_map(named_by).collect();
        let root = |path: &str| path == "src/lib.rs" || path.ends_with("main.rs");
        orphans.extend(all.into_iter().map(|s| s.path).filter(|path| !root(path) && !named.contains(path)));
    }
    none("files that no module names", &orphans);
}
