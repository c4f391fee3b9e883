//! Values as they may be shown: without what authenticates whoever uses them.

/// What is shown in place of a secret.
pub(super) const MASK: &str = "***";

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
