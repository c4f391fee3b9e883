//! Documents that say what the code does: they are compared with it.
//!
//! `UPDATE_DOCS=1 cargo test docs` rewrites the pages that are made from tables in the code.

use crate::tree::{Source, read, root, sources};
use berth::config::options::SECTIONS;
use berth::config::reference;
use berth::telemetry::metrics;

fn same(path: &str, made: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(root().join(path), made).unwrap();
    }
    let written = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    assert!(written == made, "{path} is not what the code says; UPDATE_DOCS=1 cargo test docs rewrites it");
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn configuration_page() {
    same("docs/configuration.md", &reference::markdown());
}

#[test]
fn metrics_page() {
    same("docs/metrics.md", &metrics::markdown());
}

/// The code of the modules that `wanted` names, without tests, comments and white space.
fn code_of(wanted: impl Fn(&str) -> bool) -> String {
    sources("src").iter().filter(|s| wanted(s.module())).map(Source::squeezed).collect()
}

/// An option is read as `section.field`: of `config.limits`, or of a variable that is named after the section.
#[test]
fn every_option_is_honoured() {
    // Those that may know the configuration; the session's own `limits` are no proof.
    let readers = ["app", "server", "broker", "storage", "cluster", "auth", "telemetry", "tls"];
    let code = code_of(|module| readers.contains(&module));
    let checked = code_of(|module| module == "config");
    let mut unused = Vec::new();
    for section in SECTIONS {
        // The options of all listeners are listed with the first one.
        let name = match section.path {
            "listeners.tcp" => "listener",
            path => path.rsplit('.').next().unwrap(),
        };
        for option in section.options {
            let read_as = match (name, option.field) {
                ("listener", "kind") => "listener.speaks()".to_owned(),
                ("listener", "enabled") => "listeners.opened()".to_owned(),
                (_, field) => format!("{name}.{field}"),
            };
            // It says what the configuration itself takes for a mistake.
            if read_as == "http.plain_tokens" && checked.contains("!self.plain_tokens") {
                continue;
            }
            if !code.contains(&read_as) {
                unused.push(format!("{}.{}: nobody says {read_as}", section.path, option.name));
            }
        }
    }
    none("options that nothing reads", &unused);
}

#[test]
fn every_metric_is_kept() {
    let code = code_of(|_| true);
    let kept = |field: &str| {
        code.match_indices(&format!(".{field}")).any(|(at, hit)| {
            let next = code[at + hit.len()..].chars().next();
            next.is_some_and(|c| !c.is_alphanumeric() && c != '_')
        })
    };
    // Set by render() itself.
    let own = ["resident_memory_bytes"];
    let unkept: Vec<_> = metrics::ALL
        .iter()
        .filter(|m| !own.contains(&m.field) && !kept(m.field))
        .map(|m| m.name.to_owned())
        .collect();
    none("metrics that nothing sets", &unkept);
}

/// Constants of the program, and whether they have to be documented as limits: those in a file `limits.rs`, or with the word
/// MAX in their name.
fn constants() -> Vec<(String, String, bool)> {
    let mut found = Vec::new();
    for source in sources("src") {
        for (_, line) in source.built_code() {
            let Some((_, rest)) = line.split_once("const ") else { continue };
            let Some((name, _)) = rest.split_once(':') else { continue };
            let name = name.trim();
            let generic = line.contains('<') && line.find('<') < line.find("const ");
            if generic || !name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
                continue;
            }
            let limit = source.path.ends_with("/limits.rs") || name.split('_').any(|word| word == "MAX");
            found.push((source.path.clone(), name.to_owned(), limit));
        }
    }
    found
}

#[test]
fn every_limit_is_documented() {
    let page = read("docs/limits.md");
    let constants = constants();
    let mut wrong = Vec::new();
    for (path, name, _) in constants.iter().filter(|(_, _, limit)| *limit) {
        if !page.lines().any(|l| l.contains(&format!("`{name}`")) && l.contains(&format!("`{path}`"))) {
            wrong.push(format!("{name} in {path} is not in docs/limits.md"));
        }
    }
    for section in SECTIONS {
        for option in section.options {
            let key = format!("{}.{}", section.path, option.name);
            let limits =
                matches!(section.path, "limits" | "session" | "retained") || option.name.contains("max");
            if limits && !page.contains(&format!("`{key}`")) {
                wrong.push(format!("option {key} is not in docs/limits.md"));
            }
        }
    }
    for line in page.lines().filter(|l| l.starts_with("| `")) {
        let mut ticked = line.split('`').skip(1).step_by(2);
        let name = ticked.next().unwrap_or_default();
        if name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            let path = ticked.next().unwrap_or_default();
            if !constants.iter().any(|(p, n, _)| p == path && n == name) {
                wrong.push(format!("docs/limits.md names {name} in {path:?}, which is not there"));
            }
        }
    }
    none("limits", &wrong);
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    let readme = read("README.md");
    let rows: Vec<&str> = readme.lines().filter(|l| l.starts_with("| G")).collect();
    assert_eq!(rows.len(), 10, "G1 to G10");
    let mut wrong = Vec::new();
    for row in rows {
        let shown = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        let built = !row.contains("not built yet");
        if built && tests.is_empty() {
            wrong.push(format!("no test: {row}"));
        }
        for test in tests {
            let (path, name) = test.split_once("::").unwrap_or((test, ""));
            let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
            if text.is_empty() || (!name.is_empty() && !text.contains(&format!("fn {name}("))) {
                wrong.push(format!("{test} does not exist"));
            }
        }
    }
    none("guarantees in README.md", &wrong);
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut pages = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned(), "CHANGELOG.md".to_owned()];
    for dir in ["docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                pages.push(format!("{dir}/{name}"));
            }
        }
    }
    for page in pages {
        let text = read(&page);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            let from = root().join(&page);
            if !path.is_empty() && !path.contains("://") && !from.parent().unwrap().join(path).exists() {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    none("broken links", &broken);
}
