//! Loads `tests/corpus/malformed.txt`.

use berth::mqtt::{Reason, Version};

/// When the bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As the first bytes of a connection.
    Pre,
    /// After CONNACK.
    Connected,
    /// After CONNACK; only a session can see what is wrong.
    Session,
}

/// What the server must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Say this, then close.
    Reason(Reason),
    /// Close without a word.
    Close,
}

/// One line of the corpus.
#[derive(Clone, Debug)]
pub struct Case {
    /// Line number, from 1.
    pub line: usize,
    /// `None` if the packet is refused before the version is known.
    pub version: Option<Version>,
    pub state: State,
    pub bytes: Vec<u8>,
    pub expected: Expected,
    /// The rule and its section.
    pub rule: &'static str,
}

/// Every case of the corpus.
pub fn malformed() -> Vec<Case> {
    let text = include_str!("../corpus/malformed.txt");
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(i, line)| case(i + 1, line).unwrap_or_else(|| panic!("line {}: {line}", i + 1)))
        .collect()
}

fn case(line: usize, text: &'static str) -> Option<Case> {
    let (fields, rule) = text.split_once('#')?;
    let mut fields = fields.split_whitespace();
    let version = match fields.next()? {
        "3.1" => Some(Version::V31),
        "3.1.1" => Some(Version::V311),
        "5" => Some(Version::V5),
        "pre" => None,
        _ => return None,
    };
    let state = match fields.next()? {
        "pre" => State::Pre,
        "connected" => State::Connected,
        "session" => State::Session,
        _ => return None,
    };
    let bytes = hex(fields.next()?)?;
    let expected = match fields.next()? {
        "close" => Expected::Close,
        code => Expected::Reason(Reason::from_code(u8::from_str_radix(code, 16).ok()?)?),
    };
    if fields.next().is_some() || (version.is_none() && state != State::Pre) {
        return None;
    }
    Some(Case { line, version, state, bytes, expected, rule: rule.trim() })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}
