//! Tables with aligned columns.

use crate::names::{self, steers};
use serde_json::Value;

/// Spaces between two columns.
const GAP: usize = 2;

/// A table under a header; only long names are shortened ([`Names`]).
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column names.
    pub(super) fn new(columns: &[&str]) -> Table {
        Table { rows: vec![columns.iter().map(|c| (*c).to_owned()).collect()] }
    }

    /// Adds a row; what is empty becomes `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.into_iter().map(|c| if c.is_empty() { "-".to_owned() } else { clean(&c) }).collect());
    }

    /// Whether it has a header only.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, each line indented by `indent` spaces.
    pub(super) fn text(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            self.rows.iter().filter_map(|r| r.get(at)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                line += cell;
                line += &" ".repeat(width - cell.chars().count() + GAP);
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Text that cannot change the terminal: client IDs and payloads are of strangers.
pub(super) fn clean(text: &str) -> String {
    names::escaped(text).to_string()
}

/// A text as one word for a shell, whoever chose it: `$'…'`, which bash, zsh and ksh know, only where a terminal would not show
/// what is in it.
pub(super) fn shell_word(text: &str) -> String {
    if !text.contains(steers) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut word = "$'".to_owned();
    for c in text.chars() {
        match c {
            '\'' | '\\' => word.extend(['\\', c]),
            c if steers(c) => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|b| word += &format!("\\x{b:02x}"));
            }
            c => word.push(c),
        }
    }
    word + "'"
}

/// A JSON value as people write it; nothing for null.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}

/// Names in an answer, shortened where they are long.
#[derive(Default)]
pub(super) struct Names {
    shortened: bool,
}

impl Names {
    /// A JSON value as people read it; nothing for null.
    pub(super) fn show(&mut self, value: &Value) -> String {
        let name = word(value);
        let shown = names::shown(&name);
        self.shortened |= shown.shortened();
        shown.to_string()
    }

    /// How to get what was left out, if anything was.
    pub(super) fn note(&self) -> &'static str {
        if self.shortened { "names with … are shortened: --json has all of them\n" } else { "" }
    }
}

/// The elements of a JSON list; none if it is no list.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Seconds as people say them: two units.
pub(super) fn duration(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, ..) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_any_text_for_one_word() {
        let texts = [
            "plain",
            "",
            "-o",
            "it's",
            "'; touch x; '",
            "$(id) `id` \\ \" * ~ !",
            "a\nb",
            "\u{1b}[2J'\\x41",
            "\u{85}f",
            "\u{202e}\u{2028}",
            "é\t'",
        ];
        for text in texts {
            let word = shell_word(text);
            assert!(!word.contains(steers), "{word:?}");
            let script = format!("printf %s --after={word}");
            let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("--after={text}"), "{word}");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["client", "n", "state"]);
        assert!(table.is_empty());
        table.row(["é-long".to_owned(), "1".to_owned(), String::new()]);
        table.row(["a\u{1b}[2J".to_owned(), "22".to_owned(), "ok".to_owned()]);
        assert_eq!(table.text(1), " client      n   state\n é-long      1   -\n a\\u{1b}[2J  22  ok\n");
    }

    #[test]
    fn durations() {
        for (seconds, text) in [(0, "0s"), (61, "1m 1s"), (3_700, "1h 1m"), (90_000, "1d 1h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
