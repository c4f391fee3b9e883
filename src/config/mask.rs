//! Values as they may be shown, without what authenticates whoever uses them; and the kinds of values that have such things in them.

use super::kinds::Kind;

/// What is shown in place of a secret.
const MASK: &str = "***";

/// A URL, or a list of them, as it may be shown: nothing behind the first `?` or `#`, and nothing at all if there may be a password in it.
/// A faulty one is shown as well, so it is not taken apart further than that.
pub(super) fn shown_urls(text: &str) -> String {
    if text.contains('@') {
        return MASK.to_owned();
    }
    match text.find(['?', '#']) {
        Some(at) => format!("{}{MASK}", &text[..=at]),
        None => text.to_owned(),
    }
}

/// What must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A secret; empty: `None`.
pub struct SecretOrNone;

impl Kind for SecretOrNone {
    type Value = Option<Secret>;

    fn expects() -> String {
        "text".to_owned()
    }

    fn shown(text: &str) -> String {
        if text.is_empty() { String::new() } else { MASK.to_owned() }
    }

    fn parse(text: &str) -> Option<Option<Secret>> {
        Some((!text.is_empty()).then(|| Secret(text.to_owned())))
    }
}

/// A URL of scheme http or https; empty: `None`.
pub struct UrlOrNone;

impl Kind for UrlOrNone {
    type Value = Option<String>;

    fn expects() -> String {
        "a URL of scheme http or https, such as https://accounts.example.org/mqtt".to_owned()
    }

    fn shown(text: &str) -> String {
        shown_urls(text)
    }

    fn parse(text: &str) -> Option<Option<String>> {
        if text.is_empty() {
            return Some(None);
        }
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        // A name and a password in it would be in every log line that has the URL.
        let valid = !host.is_empty() && !host.contains('@') && text.chars().all(|c| c.is_ascii_graphic());
        valid.then(|| Some(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        for (url, shown) in [
            ("", ""),
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("http://a:1,https://b:2", "http://a:1,https://b:2"),
            ("https://user:secret@host:1/path", "***"),
            ("https://user:sec/r,et@host", "***"),
            ("https://host/path?key=sec,ret", "https://host/path?***"),
            ("https://host/path?key=sec@ret", "***"),
            ("no url", "no url"),
        ] {
            assert_eq!(shown_urls(url), shown, "{url}");
        }
    }
}
