//! Connections that take one session from each other again and again: the log says so with a rate, not at every turn.

use crate::clock::Time;
use crate::hashing::HashMap;
use crate::names::shown;
use parking_lot::Mutex;
use std::sync::Arc;

/// Turns in a row that are logged one by one.
const FEW: u64 = 5;

/// After so long without a turn the next one is a first again, milliseconds.
const QUIET_MS: u64 = 10_000;

/// Between two lines about one session, milliseconds.
const TELL_MS: u64 = 60_000;

/// Sessions that are followed; the turns of others are logged one by one.
pub const RIVALS_MAX: usize = 1_000;

/// Between two looks which of the followed ones are quiet again, milliseconds.
const PRUNE_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Rivalry {
    last: Time,
    /// In a row.
    turns: u64,
    /// Those that are in no line yet, and since when.
    untold: u64,
    since: Time,
}

#[derive(Debug, Default)]
struct Table {
    followed: HashMap<Arc<str>, Rivalry>,
    pruned_at: Time,
}

/// What the log is to say of a turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said {
    /// The turn itself.
    Turn,
    /// Nothing: a line about all turns was written, or will be.
    Nothing,
    /// The log says that two clients still take one session from each other: so many turns in so many milliseconds.
    Rate(u64, u64),
}

/// The sessions that connections take from each other again and again, and what the log has said of each.
#[derive(Debug, Default)]
pub struct Rivals(Mutex<Table>);

impl Rivals {
    /// A connection has taken a session from another one; writes the line about all turns if that is due. Returns whether the
    /// caller is to log this one.
    pub fn turn(&self, client_id: &Arc<str>, peer: &str, now: Time) -> bool {
        match self.note(client_id, now) {
            Said::Turn => true,
            Said::Nothing => false,
            Said::Rate(turns, ms) => {
                let seconds = ms as f64 / 1000.0;
                let per_second = format!("{:.1}", turns as f64 / seconds.max(0.001));
                tracing::warn!(
                    client = %shown(client_id), turns, seconds, per_second, peer,
                    "connections take one session from each other: do several clients use this client identifier? While it goes \
                     on, a line a minute says how often"
                );
                false
            }
        }
    }

    /// Whether turns of this session are not logged one by one now.
    pub fn is_quiet(&self, client_id: &str, now: Time) -> bool {
        let table = self.0.lock();
        table.followed.get(client_id).is_some_and(|c| c.turns > FEW && now.since_ms(c.last) < QUIET_MS)
    }

    fn note(&self, client_id: &Arc<str>, now: Time) -> Said {
        let mut table = self.0.lock();
        let first = Rivalry { last: now, turns: 0, untold: 0, since: now };
        let known = table.followed.contains_key(client_id);
        if !known && table.followed.len() >= RIVALS_MAX {
            if now.since_ms(table.pruned_at) < PRUNE_MS {
                return Said::Turn;
            }
            table.pruned_at = now;
            table.followed.retain(|_, c| now.since_ms(c.last) < QUIET_MS);
            if table.followed.len() >= RIVALS_MAX {
                return Said::Turn;
            }
        }
        let rivalry = table.followed.entry(client_id.clone()).or_insert(first);
        if now.since_ms(rivalry.last) >= QUIET_MS {
            *rivalry = first;
        }
        rivalry.last = now;
        rivalry.turns += 1;
        rivalry.untold += 1;
        let ms = now.since_ms(rivalry.since);
        match rivalry.turns {
            ..=FEW => return Said::Turn,
            turns if turns == FEW + 1 || ms >= TELL_MS => {}
            _ => return Said::Nothing,
        }
        let told = Said::Rate(rivalry.untold, ms);
        (rivalry.untold, rivalry.since) = (0, now);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contest_is_said_once_and_then_once_a_minute() {
        let rivals = Rivals::default();
        let client: Arc<str> = "twice".into();
        let mut lines = Vec::new();
        // 190 turns a second for two minutes and a half.
        for n in 0..150 * 190_u64 {
            let said = rivals.note(&client, Time(1_000 + n * 1000 / 190));
            if said != Said::Nothing {
                lines.push(said);
            }
        }
        let (turns, rates) = lines.split_at(FEW as usize);
        assert!(turns.iter().all(|s| *s == Said::Turn), "{turns:?}");
        assert_eq!(rates.len(), 3, "{rates:?}");
        assert_eq!(rates[0], Said::Rate(FEW + 1, 26));
        let Said::Rate(turns, ms) = rates[1] else { panic!("{rates:?}") };
        assert!((189..=191).contains(&(turns * 1000 / ms)), "{turns} in {ms} ms");
        assert!(rivals.is_quiet("twice", Time(152_000)) && !rivals.is_quiet("other", Time(152_000)));
        // After some quiet it is a first again.
        assert!(!rivals.is_quiet("twice", Time(170_000)));
        assert_eq!(rivals.note(&client, Time(170_000)), Said::Turn);
    }

    #[test]
    fn sessions_that_move_now_and_then_are_logged_each_and_memory_is_bounded() {
        let rivals = Rivals::default();
        for n in 0..3 * RIVALS_MAX as u64 {
            assert_eq!(rivals.note(&format!("c{n}").into(), Time(1_000 + n)), Said::Turn);
        }
        assert_eq!(rivals.0.lock().followed.len(), RIVALS_MAX);
        for n in 0..50 {
            assert_eq!(rivals.note(&"roams".into(), Time(100_000 + n * QUIET_MS)), Said::Turn);
        }
    }
}
