//! The repository's files, for the tests that read them.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of the file at `path` from the root.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A Rust file.
pub struct Source {
    /// Its path from the root, such as `src/mqtt/decode.rs`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

impl Source {
    /// Lines with their numbers from 1, line comments left out.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = |line| match str::find(line, "//") {
            Some(at) => &line[..at],
            None => line,
        };
        self.text.lines().enumerate().map(move |(i, line)| (i + 1, code(line)))
    }

    /// As [`Source::code`], without tests: whole files of them, and those at the end of others.
    pub fn built_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let all_tests = self.path.ends_with("tests.rs") || self.path.contains("/tests/");
        let end = match self.text.find("#[cfg(test)]\nmod tests {") {
            _ if all_tests => 0,
            Some(at) => self.text[..at].lines().count(),
            None => usize::MAX,
        };
        self.code().take(end)
    }

    /// [`Source::built_code`] without white space, so that line breaks do not matter.
    pub fn squeezed(&self) -> String {
        self.built_code().flat_map(|(_, line)| line.chars()).filter(|c| !c.is_whitespace()).collect()
    }

    /// The module right below the crate that it belongs to: `mqtt` for `src/mqtt/decode.rs`.
    pub fn module(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap();
        inner.split('/').next().unwrap().trim_end_matches(".rs")
    }
}

/// All Rust files below `dir`.
pub fn sources(dir: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path: name, text: std::fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no Rust file below {dir}");
    found
}
