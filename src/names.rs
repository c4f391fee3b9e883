//! Names that clients choose, as people see them in logs and tables: a client identifier or a topic may have 65,535 bytes, and
//! nearly any character. A leaf.

use std::fmt::{self, Write};

/// Characters of a name that are shown in full.
pub const NAME_SHOWN_MAX: usize = 120;

/// Characters at the beginning of a longer name that are shown.
const BEGINNING: usize = 80;

/// Characters at its end.
const END: usize = 20;

/// A name for a line: a long one is shortened to its beginning, its end and how many bytes it has; characters that could end
/// the line or steer a terminal are escaped.
pub fn shown(name: &str) -> Shown<'_> {
    Shown(name)
}

/// See [`shown`].
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(&'a str);

impl Shown<'_> {
    /// Whether a part of the name is left out.
    pub fn shortened(&self) -> bool {
        self.0.len() > NAME_SHOWN_MAX && self.0.chars().nth(NAME_SHOWN_MAX).is_some()
    }
}

/// A text of any length, with the same characters escaped.
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// See [`escaped`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0;
        if !self.shortened() {
            return write(f, name);
        }
        let at = |n: Option<(usize, char)>| n.map_or(0, |(at, _)| at);
        write(f, &name[..at(name.char_indices().nth(BEGINNING))])?;
        f.write_char('…')?;
        write(f, &name[at(name.char_indices().rev().nth(END - 1))..])?;
        write!(f, " ({} bytes)", name.len())
    }
}

fn write(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| steers(*c)) {
        f.write_str(&rest[..at])?;
        write!(f, "{}", c.escape_default())?;
        rest = &rest[at + c.len_utf8()..];
    }
    f.write_str(rest)
}

/// Whether a character does something to a terminal or a line instead of being shown: controls, line and paragraph separators,
/// and those that turn the direction of writing.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_shortened_and_none_breaks_a_line() {
        assert_eq!(shown("robot/7 ü").to_string(), "robot/7 ü");
        assert_eq!(shown("").to_string(), "");
        let forged = "a\n2026-01-01 ERROR all is lost\u{1b}[2J\u{85}\u{2028}\u{202e}";
        let expected = "a\\n2026-01-01 ERROR all is lost\\u{1b}[2J\\u{85}\\u{2028}\\u{202e}";
        assert_eq!(shown(forged).to_string(), expected);
        let just = "é".repeat(NAME_SHOWN_MAX);
        assert_eq!(shown(&just).to_string(), just);
        let long = format!("{}{}{}", "é".repeat(80), "\n".repeat(65_335), "z".repeat(20));
        assert_eq!(shown(&long).to_string(), format!("{}…{} (65515 bytes)", "é".repeat(80), "z".repeat(20)));
        let controls = "\u{1}".repeat(65_535);
        assert!(shown(&controls).to_string().len() < 1000, "{}", shown(&controls));
    }
}
