//! What is wrong with a configuration, for people.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, or empty if it is not about one.
    pub key: String,
    /// The value as given, if there is one.
    pub value: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
    /// Where it came from: `file berth.yaml, line 3`, `env BERTH__LIMITS__MAX_QOS`, `flag --set`, `default`.
    pub source: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.key, &self.value) {
            ("", _) => write!(f, "{}", self.reason)?,
            (key, Some(value)) => write!(f, "{key} = {value:?}: {}", self.reason)?,
            (key, None) => write!(f, "{key}: {}", self.reason)?,
        }
        write!(f, " (from {})", self.source)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "problem" } else { "problems" };
        write!(f, "{} {plural} in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// The known key that `key` was most likely meant to be.
pub(super) fn nearest(key: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |k: &String| {
        // A right name in a wrong section is as near as one wrong letter.
        let elsewhere = if last(k) == last(key) { 1 } else { usize::MAX };
        edit_distance(key, k).min(elsewhere)
    };
    let (distance, best) = known.map(|k| (score(&k), k)).min()?;
    (distance <= (key.len() / 3).max(2)).then_some(best)
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            left = (diagonal + usize::from(ca != *cb)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance() {
        for (a, b, d) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "ab", 1), ("kitten", "sitting", 3), ("", "ab", 2)]
        {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
            assert_eq!(edit_distance(b, a), d, "{b} {a}");
        }
    }

    #[test]
    fn nearest_key() {
        let known = || ["limits.max_qos", "log.level", "storage.dir"].into_iter().map(str::to_owned);
        assert_eq!(nearest("limit.max_qos", known()).as_deref(), Some("limits.max_qos"));
        assert_eq!(nearest("session.max_qos", known()).as_deref(), Some("limits.max_qos"));
        assert_eq!(nearest("log.levle", known()).as_deref(), Some("log.level"));
        assert_eq!(nearest("tls.certificate", known()), None);
    }
}
