//! A topic filter of a rule, in which `%c` stands for the client identifier and `%u` for the user name.

use crate::ports::Identity;
use crate::topic::{self, Filter, TopicError};
use std::borrow::Cow;

/// A topic filter of a rule, in which `%c` stands for the client identifier and `%u` for the user name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    text: Box<str>,
    client: bool,
    user: bool,
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    /// The text is no topic filter, whatever is put in for `%c` and `%u`.
    #[error("{0}")]
    Topic(#[from] TopicError),
    /// Rules are about what is shared, not about who shares it.
    #[error("a rule holds for shared subscriptions too: leave $share/<name>/ out")]
    Shared,
}

impl Pattern {
    /// A filter that may contain `%c` and `%u`.
    ///
    /// # Errors
    /// If it cannot become a topic filter.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let (client, user) = (text.contains("%c"), text.contains("%u"));
        let sample = text.replace("%c", "x").replace("%u", "x");
        if Filter::parse(&sample)?.share.is_some() {
            return Err(PatternError::Shared);
        }
        Ok(Pattern { text: text.into(), client, user })
    }

    /// A filter in which `%` means nothing.
    ///
    /// # Errors
    /// If it is no topic filter.
    pub fn plain(text: &str) -> Result<Pattern, PatternError> {
        if Filter::parse(text)?.share.is_some() {
            return Err(PatternError::Shared);
        }
        Ok(Pattern { text: text.into(), client: false, user: false })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether something has to be put in.
    pub fn has_placeholder(&self) -> bool {
        self.client || self.user
    }

    /// Whether the client needs a user name for it.
    pub fn needs_user(&self) -> bool {
        self.user
    }

    /// The filter for `who`; `None` if what is put in could make it match more than one name's share of it.
    fn filter(&self, who: &Identity) -> Option<Cow<'_, str>> {
        if !self.has_placeholder() {
            return Some(Cow::Borrowed(&self.text));
        }
        let mut filter = String::with_capacity(self.text.len() + 32);
        let mut rest = &*self.text;
        while let Some(at) = rest.find('%') {
            let (before, after) = rest.split_at(at);
            filter.push_str(before);
            let value = match after.as_bytes().get(1) {
                Some(b'c') => &*who.client_id,
                Some(b'u') => who.username.as_deref()?,
                _ => {
                    filter.push('%');
                    rest = &after[1..];
                    continue;
                }
            };
            // At the front `$` leads to another tree (section 4.7.2), and an empty name to another level.
            let leads_away = filter.is_empty() && value.starts_with('$');
            if value.is_empty() || value.contains(['/', '+', '#']) || leads_away {
                return None;
            }
            filter.push_str(value);
            rest = &after[2..];
        }
        filter.push_str(rest);
        Some(Cow::Owned(filter))
    }

    /// Whether a topic name matches.
    pub fn matches(&self, who: &Identity, topic: &str) -> bool {
        self.filter(who).is_some_and(|filter| topic::matches(&filter, topic))
    }

    /// Whether every topic that matches `filter` matches this, too.
    pub fn covers(&self, who: &Identity, filter: &str) -> bool {
        self.filter(who).is_some_and(|own| covers(&own, filter))
    }
}

/// Whether `wide` matches every topic that `narrow` matches. Both are valid filters without `$share`.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    // A leading wildcard does not see topics that begin with `$` (MQTT-4.7.2-1).
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    if narrow == "#" && wide == "+/#" {
        return true; // both match every name: `#` sees the parent level
    }
    let mut levels = narrow.split('/');
    for level in wide.split('/') {
        if level == "#" {
            return true;
        }
        match levels.next() {
            Some("#") | None => return false,
            Some(name) if level == "+" || level == name => {}
            Some(_) => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Door;
    use std::sync::Arc;

    fn identity(client_id: &str, username: Option<&str>) -> Identity {
        let door = Door::tcp("127.0.0.1:1".parse().unwrap());
        Identity {
            client_id: Arc::from(client_id),
            username: username.map(Into::into),
            account: Arc::default(),
            door,
        }
    }

    #[test]
    fn what_is_put_in_never_widens_a_pattern() {
        // Pattern, client identifier, user, topic, whether it matches.
        let table = [
            ("a/%c/b", "c1", None, "a/c1/b", true),
            ("a/%c/b", "c1", None, "a/c2/b", false),
            ("a/x-%c-%u/b", "c1", Some("u1"), "a/x-c1-u1/b", true),
            ("%c/#", "c1", None, "c1/x/y", true),
            ("%u/#", "c1", None, "c1/x", false),
            ("%u/#", "c1", Some("u"), "u", true),
            ("100%/%c", "c", None, "100%/c", true),
            ("a/%c/b", "+", None, "a/x/b", false),
            ("a/%c/b", "+", None, "a/+/b", false),
            ("a/%c", "#", None, "a/x", false),
            ("a/%c", "x/y", None, "a/x/y", false),
            ("a/%c", "x/#", None, "a/x/y", false),
            ("a/%u", "c", Some("x/y"), "a/x/y", false),
            ("a/%u", "c", Some("+"), "a/x", false),
            ("%u/#", "c", Some(""), "/x", false),
            ("%c/#", "$SYS", None, "$SYS/broker/uptime", false),
            ("a/%c", "$SYS", None, "a/$SYS", true),
            // What is put in is not looked through again.
            ("a/%c", "%u", Some("u"), "a/u", false),
            ("a/%c", "%u", Some("u"), "a/%u", true),
        ];
        for (pattern, client_id, user, topic, expected) in table {
            let who = identity(client_id, user);
            let found = Pattern::parse(pattern).unwrap().matches(&who, topic);
            assert_eq!(found, expected, "{pattern} for {client_id} {user:?}: {topic}");
        }
    }

    #[test]
    fn patterns_are_topic_filters() {
        for (text, fine) in [
            ("#", true),
            ("%c", true),
            ("a/%c-%u/+/#", true),
            ("+%c", false),
            ("a/#/%c", false),
            ("$share/g/a", false),
            ("", false),
        ] {
            assert_eq!(Pattern::parse(text).is_ok(), fine, "{text}");
        }
        let who = identity("c", None);
        assert!(Pattern::plain("a/%c").unwrap().matches(&who, "a/%c"));
    }

    #[test]
    fn a_filter_is_covered_if_all_its_topics_match() {
        let filters = [
            "a", "a/b", "a/b/c", "a/#", "a/+", "a/+/c", "+", "+/b", "+/+", "+/#", "#", "/", "/#", "/+", "a/",
            "$SYS", "$SYS/#", "$SYS/+", "$SYS/a", "b", "a/b/#", "a/+/#",
        ];
        // Enough names to tell any two of these filters apart.
        let names = ["a", "b", "x", "", "$SYS"];
        let mut topics: Vec<String> = Vec::new();
        for one in names {
            topics.push(one.to_owned());
            for two in ["a", "b", "c", "x", ""] {
                topics.push(format!("{one}/{two}"));
                topics.extend(["a", "b", "c", "x", ""].map(|three| format!("{one}/{two}/{three}")));
            }
        }
        topics.retain(|t| !t.is_empty());
        for wide in filters {
            for narrow in filters {
                let all =
                    topics.iter().filter(|t| topic::matches(narrow, t)).all(|t| topic::matches(wide, t));
                assert_eq!(covers(wide, narrow), all, "{wide} covers {narrow}");
            }
        }
    }
}
