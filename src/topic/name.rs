//! The rules for topic names and topic filters (MQTT 5.0 section 4.7 and 4.8.2), and the plain matcher that
//! the indexes are tested against. Checks and matches without allocating.

use std::sync::Arc;
use thiserror::Error;

/// Most levels a topic name or filter may have; bounds the depth of the indexes and the work of one match.
pub const MAX_LEVELS: usize = 200;

/// Longest topic name or filter in bytes (it is a UTF-8 string with a 16-bit length, MQTT 5.0 section 1.5.4).
const MAX_BYTES: usize = 65_535;

/// Marks a shared subscription (MQTT 5.0 section 4.8.2).
const SHARE: &str = "$share";

/// Why a topic name or filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TopicError {
    /// It has no character (MQTT-4.7.3-1).
    #[error("topic is empty")]
    Empty,
    /// It is longer than 65,535 bytes (MQTT-4.7.3-3).
    #[error("topic is longer than 65535 bytes")]
    TooLong,
    /// It has more than [`MAX_LEVELS`] levels.
    #[error("topic has more than {MAX_LEVELS} levels")]
    TooManyLevels,
    /// It contains U+0000 (MQTT-4.7.3-2).
    #[error("topic contains a null character")]
    Nul,
    /// A topic name contains `+` or `#` (MQTT-3.3.2-2).
    #[error("topic name contains a wildcard")]
    WildcardInName,
    /// `#` is not the last level or not alone in it (MQTT-4.7.1-1).
    #[error("# is not alone in the last level")]
    MultiLevelWildcard,
    /// `+` is not alone in its level (MQTT-4.7.1-2).
    #[error("+ is not alone in its level")]
    SingleLevelWildcard,
    /// `$share` without a share name, with a wildcard in it, or without a filter (MQTT-4.8.2-1, MQTT-4.8.2-2).
    #[error("shared subscription is not of the form $share/<name>/<filter>")]
    Share,
}

impl TopicError {
    /// Whether the specification allows the text, and only this broker does not.
    #[must_use]
    pub fn is_well_formed(self) -> bool {
        self == TopicError::TooManyLevels
    }
}

/// Checks a topic name as a PUBLISH carries it: not empty, no wildcards, no null character, at most 65,535 bytes
/// and [`MAX_LEVELS`] levels.
///
/// # Errors
/// The first rule that is broken.
pub fn validate_name(topic: &str) -> Result<(), TopicError> {
    let bytes = measure(topic)?;
    let mut levels = 1;
    for &byte in bytes {
        match byte {
            b'/' => levels += 1,
            b'+' | b'#' => return Err(TopicError::WildcardInName),
            0 => return Err(TopicError::Nul),
            _ => {}
        }
    }
    if levels > MAX_LEVELS { Err(TopicError::TooManyLevels) } else { Ok(()) }
}

/// A valid topic filter as a SUBSCRIBE carries it, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// The share name of a shared subscription.
    pub share: Option<&'a str>,
    /// The filter without the `$share/<name>/` before it.
    pub filter: &'a str,
}

impl<'a> Filter<'a> {
    /// Takes a topic filter apart and checks all of it.
    ///
    /// # Errors
    /// The first rule that is broken; `$share` with anything but a share name and a filter after it is refused.
    pub fn parse(text: &'a str) -> Result<Self, TopicError> {
        measure(text)?;
        let (share, filter) = match text.strip_prefix(SHARE) {
            Some("") => return Err(TopicError::Share),
            Some(rest) => match rest.strip_prefix('/') {
                Some(rest) => {
                    let (name, filter) = rest.split_once('/').ok_or(TopicError::Share)?;
                    if name.contains('\0') {
                        return Err(TopicError::Nul);
                    }
                    if name.is_empty() || name.contains(['+', '#']) || filter.is_empty() {
                        return Err(TopicError::Share);
                    }
                    (Some(name), filter)
                }
                None => (None, text),
            },
            None => (None, text),
        };
        validate_filter(filter)?;
        Ok(Self { share, filter })
    }
}

/// A valid topic filter that owns its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedFilter {
    text: Arc<str>,
    /// Where the filter begins, behind `$share/<name>/`.
    begins: usize,
}

impl OwnedFilter {
    /// Checks all of a topic filter, as [`Filter::parse`] does.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let begins = text.len() - Filter::parse(text)?.filter.len();
        Ok(Self { text: Arc::from(text), begins })
    }

    /// The text as sent, `$share/…` included.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The filter, taken apart.
    #[must_use]
    pub fn filter(&self) -> Filter<'_> {
        let (before, filter) = self.text.split_at_checked(self.begins).unwrap_or(("", &self.text));
        let share = before.strip_prefix(SHARE).and_then(|s| s.strip_prefix('/')?.strip_suffix('/'));
        Filter { share, filter }
    }
}

fn measure(text: &str) -> Result<&[u8], TopicError> {
    match text.len() {
        0 => Err(TopicError::Empty),
        1..=MAX_BYTES => Ok(text.as_bytes()),
        _ => Err(TopicError::TooLong),
    }
}

fn validate_filter(filter: &str) -> Result<(), TopicError> {
    let mut levels = 0;
    let mut ended = false;
    for level in filter.as_bytes().split(|&byte| byte == b'/') {
        levels += 1;
        if ended {
            return Err(TopicError::MultiLevelWildcard);
        }
        for &byte in level {
            match byte {
                b'#' if level.len() > 1 => return Err(TopicError::MultiLevelWildcard),
                b'#' => ended = true,
                b'+' if level.len() > 1 => return Err(TopicError::SingleLevelWildcard),
                0 => return Err(TopicError::Nul),
                _ => {}
            }
        }
    }
    if levels > MAX_LEVELS { Err(TopicError::TooManyLevels) } else { Ok(()) }
}

/// Whether a topic name matches a filter (without `$share`). Both must be valid. This is the plain rule, level by
/// level; an index answers the same question for all filters at once.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    // A leading wildcard does not see topics that begin with `$` (MQTT-4.7.2-1).
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true; // also the parent level: `a/#` matches `a` (section 4.7.1.2)
        }
        match names.next() {
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names() {
        let long = "x".repeat(65_535);
        let longer = "x".repeat(65_536);
        let deep = "a/".repeat(MAX_LEVELS - 1) + "a";
        let deeper = "/".repeat(MAX_LEVELS);
        let table: &[(&str, Result<(), TopicError>)] = &[
            ("", Err(TopicError::Empty)),
            ("/", Ok(())),
            ("//", Ok(())),
            ("/finance", Ok(())),
            ("Accounts payable", Ok(())),
            ("$SYS/monitor/Clients", Ok(())),
            ("$share/g/t", Ok(())),
            ("\u{fffd}é/漢", Ok(())),
            ("sport/tennis/#", Err(TopicError::WildcardInName)),
            ("sport+", Err(TopicError::WildcardInName)),
            ("+", Err(TopicError::WildcardInName)),
            ("a/\0", Err(TopicError::Nul)),
            (&long, Ok(())),
            (&longer, Err(TopicError::TooLong)),
            (&deep, Ok(())),
            (&deeper, Err(TopicError::TooManyLevels)),
        ];
        for (topic, expected) in table {
            assert_eq!(validate_name(topic), *expected, "{:?}", topic.get(..20).unwrap_or(topic));
        }
    }

    #[test]
    fn plain_filters() {
        use TopicError::{Empty, MultiLevelWildcard, Nul, SingleLevelWildcard, TooLong, TooManyLevels};
        let deep = "+/".repeat(MAX_LEVELS - 1) + "#";
        let deeper = "+/".repeat(MAX_LEVELS) + "#";
        let longer = "x".repeat(65_536);
        let table: &[(&str, Option<TopicError>)] = &[
            ("", Some(Empty)),
            ("#", None),
            ("+", None),
            ("/", None),
            ("/+", None),
            ("+/+", None),
            ("sport/tennis/player1/#", None),
            ("sport/#", None),
            ("sport/tennis/#", None),
            ("sport/tennis#", Some(MultiLevelWildcard)),
            ("sport/tennis/#/ranking", Some(MultiLevelWildcard)),
            ("#/", Some(MultiLevelWildcard)),
            ("##", Some(MultiLevelWildcard)),
            ("#a", Some(MultiLevelWildcard)),
            ("+/tennis/#", None),
            ("sport+", Some(SingleLevelWildcard)),
            ("sport/+/player1", None),
            ("++", Some(SingleLevelWildcard)),
            ("a/+b/c", Some(SingleLevelWildcard)),
            ("$SYS/#", None),
            ("$SYS/monitor/+", None),
            ("$shared/a", None),
            ("$sharex", None),
            ("a\0b", Some(Nul)),
            (&deep, None),
            (&deeper, Some(TooManyLevels)),
            (&longer, Some(TooLong)),
        ];
        for (text, error) in table {
            let expected = error.map_or(Ok(Filter { share: None, filter: text }), Err);
            assert_eq!(Filter::parse(text), expected, "{:?}", text.get(..20).unwrap_or(text));
            same_owned(text);
        }
    }

    /// The owned form says the same of every text.
    fn same_owned(text: &str) {
        match OwnedFilter::parse(text) {
            Ok(owned) => {
                assert_eq!(**owned.text(), *text);
                assert_eq!(Ok(owned.filter()), Filter::parse(text), "{text:?}");
            }
            Err(error) => {
                assert_eq!(Err(error), Filter::parse(text), "{text:?}");
                assert_eq!(error.is_well_formed(), error == TopicError::TooManyLevels);
            }
        }
    }

    #[test]
    fn shared_filters() {
        use TopicError::{MultiLevelWildcard, Nul, Share, SingleLevelWildcard, TooManyLevels};
        let table: &[(&str, Result<_, TopicError>)] = &[
            ("$share/consumer1/sport/tennis/+", Ok(("consumer1", "sport/tennis/+"))),
            ("$share/consumer2/sport/tennis/+", Ok(("consumer2", "sport/tennis/+"))),
            ("$share/consumer1//finance", Ok(("consumer1", "/finance"))),
            ("$share/consumer1/sport/tennis/#", Ok(("consumer1", "sport/tennis/#"))),
            ("$share/g/#", Ok(("g", "#"))),
            ("$share/g//", Ok(("g", "/"))),
            ("$share/g/$SYS/#", Ok(("g", "$SYS/#"))),
            ("$share", Err(Share)),
            ("$share/", Err(Share)),
            ("$share/g", Err(Share)),
            ("$share/g/", Err(Share)),
            ("$share//a", Err(Share)),
            ("$share/#/a", Err(Share)),
            ("$share/+/a", Err(Share)),
            ("$share/g+/a", Err(Share)),
            ("$share/g\0/a", Err(Nul)),
            ("$share/g/a#", Err(MultiLevelWildcard)),
            ("$share/g/a+/b", Err(SingleLevelWildcard)),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(share, filter)| Filter { share: Some(share), filter });
            assert_eq!(Filter::parse(text), expected, "{text:?}");
            same_owned(text);
        }
        let deep = format!("$share/g/{}", "+/".repeat(MAX_LEVELS - 1) + "#");
        assert!(Filter::parse(&deep).is_ok(), "the prefix does not count as levels");
        assert_eq!(Filter::parse(&format!("{deep}/a").replace('#', "b")), Err(TooManyLevels));
    }
}
