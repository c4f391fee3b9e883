//! Events that come again and again: the log says each kind once a while, and how many came since.

use crate::clock::{self, Time};
use crate::hashing::{HashMap, State};
use parking_lot::Mutex;
use std::hash::{BuildHasher, Hash};

/// Between two lines about events of one kind, milliseconds.
const TELL_MS: u64 = 60_000;

/// Kinds that are followed; events of others are logged one by one, at most one a second.
pub const REPEATS_MAX: usize = 1_000;

/// Between two lines about kinds that are not followed, milliseconds.
const OTHERS_MS: u64 = 1_000;

#[derive(Debug, Default)]
struct Table {
    /// By the hash of the kind: when it was told, and how many came since.
    followed: HashMap<u64, (Time, u64)>,
    others: (Time, u64),
}

/// Events that come again and again: the log says each kind once a while, and how many came since.
#[derive(Debug, Default)]
pub struct Repeats {
    table: Mutex<Table>,
    hasher: State,
}

impl Repeats {
    /// An event of this kind has come: `None` if the log is to say nothing, else how many came since it last said something.
    pub fn first(&self, kind: &impl Hash) -> Option<u64> {
        self.first_at(kind, clock::now())
    }

    fn first_at(&self, kind: &impl Hash, now: Time) -> Option<u64> {
        let key = self.hasher.hash_one(kind);
        let mut table = self.table.lock();
        if table.followed.len() >= REPEATS_MAX && !table.followed.contains_key(&key) {
            table.followed.retain(|_, (told, _)| now.since_ms(*told) < TELL_MS);
        }
        let Table { followed, others } = &mut *table;
        if followed.len() >= REPEATS_MAX && !followed.contains_key(&key) {
            return told(others, OTHERS_MS, now);
        }
        match followed.get_mut(&key) {
            Some(entry) => told(entry, TELL_MS, now),
            None => {
                followed.insert(key, (now, 0));
                Some(0)
            }
        }
    }
}

fn told(entry: &mut (Time, u64), pause_ms: u64, now: Time) -> Option<u64> {
    let (at, more) = entry;
    if now.since_ms(*at) < pause_ms {
        *more += 1;
        return None;
    }
    *at = now;
    Some(std::mem::take(more))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000);

    #[test]
    fn each_kind_is_told_once_a_minute() {
        let repeats = Repeats::default();
        assert_eq!(repeats.first_at(&"a", START), Some(0));
        assert_eq!(repeats.first_at(&"b", START), Some(0));
        for n in 1..60 {
            assert_eq!(repeats.first_at(&"a", START.plus_ms(n * 1000)), None);
        }
        assert_eq!(repeats.first_at(&"a", START.plus_ms(TELL_MS)), Some(59));
        assert_eq!(repeats.first_at(&"a", START.plus_ms(TELL_MS + 1)), None);
    }

    #[test]
    fn kinds_without_number_take_no_memory_and_few_lines() {
        let repeats = Repeats::default();
        let lines =
            (0..REPEATS_MAX as u64 * 3).filter_map(|n| repeats.first_at(&n, START.plus_ms(n))).count();
        assert!((REPEATS_MAX..REPEATS_MAX + 4).contains(&lines), "{lines}");
        assert!(repeats.table.lock().followed.len() <= REPEATS_MAX);
    }
}
