//! The reference of all options, as a YAML file and as a page.

use super::options::{OptionInfo, SECTIONS};
use std::fmt::Write;

/// A configuration file that says nothing new: every option with its documentation and default, as comments.
pub fn yaml() -> String {
    let mut out = String::from(
        "# Berth's options with their defaults. Remove the `#` before a section and an option to change it.\n\
         # Above this file: BERTH__SECTION__KEY in the environment, then flags (--set section.key=value).\n",
    );
    let mut before = "";
    for section in SECTIONS {
        out.push('\n');
        let mut indent = String::new();
        // A section beside or inside the one before goes on where that is: YAML allows each key once.
        let both = section.path.split('.').zip(before.split('.'));
        let open = both.take_while(|(part, same)| part == same).count();
        for (depth, part) in section.path.split('.').enumerate() {
            if depth == open {
                comment(&mut out, &indent, section.doc);
            }
            if depth >= open {
                let _ = writeln!(out, "#{indent}{part}:");
            }
            indent.push_str("  ");
        }
        before = section.path;
        for option in section.options {
            comment(&mut out, &indent, option.doc);
            comment(&mut out, &indent, &[&format!("Expects {}.", (option.expects)())]);
            let _ = writeln!(out, "#{indent}{}: {}", option.name, scalar(option.default));
        }
    }
    out
}

fn comment(out: &mut String, indent: &str, lines: &[&str]) {
    for line in lines {
        let _ = writeln!(out, "#{indent}# {}", line.trim());
    }
}

/// `text` as a YAML scalar.
fn scalar(text: &str) -> String {
    // `a: b` would be a map; a plain `:` inside a word is not.
    if text.is_empty() || text.contains(": ") || text.starts_with('[') {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}

/// The same as a Markdown page: `docs/configuration.md`.
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    for section in SECTIONS {
        let _ = write!(out, "\n## `{}`\n\n{}\n", section.path, joined(section.doc));
        out.push_str("\n| option | default | what it does |\n|---|---|---|\n");
        for OptionInfo { name, default, doc, expects, .. } in section.options {
            let key = format!("{}.{name}", section.path);
            let _ = writeln!(out, "| `{key}` | `{default}` | {} Expects {}. |", joined(doc), expects());
        }
    }
    out
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|l| l.trim()).collect::<Vec<_>>().join(" ")
}

const INTRO: &str = "\
# Configuration

<!-- Written by `UPDATE_DOCS=1 cargo test docs`; the table in src/config/options.rs is the source. -->

Each layer overrides the ones before it:

1. the defaults below;
2. a YAML file: `--config FILE`, else `$BERTH_CONFIG`, else `./berth.yaml` or `/etc/berth/berth.yaml` if there is one;
3. the environment: `BERTH__SECTION__KEY`, such as `BERTH__LIMITS__MAX_CONNECTIONS=5000`;
4. flags: `--set section.key=value`, `--listen ADDRESS`, `--data-dir DIR`, `--log-level LEVEL`.

Unknown keys and wrong values stop the start, all reported at once with key, value, reason and source.
`berth config check` does only that; `berth config defaults` prints all options as a commented YAML file.

Durations are `500ms`, `30s`, `5m`, `1h30m`, `2d`, `1w` or plain seconds. Sizes are `64KiB`, `1MiB`, `2GiB` (1024),
`64kB`, `1MB`, `2GB` (1000) or plain bytes. `off` also understands `never` and `0`. Lists are YAML lists, or separated
by commas in the environment and in flags.
";
