//! The kinds of values that options about memory have.

use super::kinds::Kind;
use super::units::{parse_size, show_size};

/// How much memory the broker may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// As much as there is.
    Auto,
    /// Any amount.
    Off,
    /// So many bytes.
    Bytes(u64),
}

/// An amount of memory, `auto` or `off`.
pub struct MemoryLimit;

/// The least memory that can be set, bytes.
const MEMORY_MIN: u64 = 16 << 20;

impl Kind for MemoryLimit {
    type Value = Memory;

    fn expects() -> String {
        format!("auto, off, or a size from {}, such as 512MiB or 4GiB", show_size(MEMORY_MIN))
    }

    fn parse(text: &str) -> Option<Memory> {
        match text {
            "auto" => Some(Memory::Auto),
            "off" | "false" => Some(Memory::Off),
            size => parse_size(size).filter(|n| *n >= MEMORY_MIN).map(Memory::Bytes),
        }
    }
}

/// A part of a whole, in percent: `75%` or `75`.
pub struct Percent;

impl Kind for Percent {
    type Value = u8;

    fn expects() -> String {
        "a percentage from 1% to 100%".to_owned()
    }

    fn parse(text: &str) -> Option<u8> {
        let percent = text.strip_suffix('%').unwrap_or(text).trim_end().parse().ok()?;
        (1..=100).contains(&percent).then_some(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_parts() {
        for (text, expected) in [
            ("auto", Some(Memory::Auto)),
            ("off", Some(Memory::Off)),
            ("512MiB", Some(Memory::Bytes(512 << 20))),
            ("1MiB", None),
            ("much", None),
        ] {
            assert_eq!(MemoryLimit::parse(text), expected, "{text}");
        }
        for (text, expected) in
            [("75%", Some(75)), ("75", Some(75)), ("0%", None), ("101%", None), ("x", None)]
        {
            assert_eq!(Percent::parse(text), expected, "{text}");
        }
    }
}
