//! Trouble with etcd that lasts: said when it begins and when it is of another kind, not at every attempt, and when it is over.

use super::error::EtcdError;
use crate::clock::Time;
use std::mem::{Discriminant, discriminant};

/// Trouble with etcd that lasts: said when it begins and when it is of another kind, not at every attempt, and when it is over.
#[derive(Debug, Default)]
pub struct Trouble {
    since: Option<Time>,
    /// The kinds of errors that have been said.
    said: Vec<Discriminant<EtcdError>>,
}

impl Trouble {
    /// An attempt failed; whether that is news.
    pub fn is_news(&mut self, error: &EtcdError, now: Time) -> bool {
        self.since.get_or_insert(now);
        let kind = discriminant(error);
        let news = !self.said.contains(&kind);
        if news {
            self.said.push(kind);
        }
        news
    }

    /// An attempt succeeded; if that ends trouble, how long it lasted, milliseconds.
    pub fn over(&mut self, now: Time) -> Option<u64> {
        self.said.clear();
        self.since.take().map(|since| now.since_ms(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_until_it_is_over() {
        let (full, gone) = (EtcdError::NoSpace, EtcdError::Endpoint("e".to_owned()));
        let mut trouble = Trouble::default();
        assert_eq!(trouble.over(Time(1)), None);
        let said = [&full, &full, &gone, &full, &gone].map(|error| trouble.is_news(error, Time(1_000)));
        assert_eq!(said, [true, false, true, false, false]);
        assert_eq!(trouble.over(Time(4_000)), Some(Time(4_000).since_ms(Time(1_000))));
        assert_eq!(trouble.over(Time(5_000)), None);
        assert!(trouble.is_news(&full, Time(6_000)));
    }
}
