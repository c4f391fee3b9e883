//! Which rows of the log say which sessions have had which publishes. A publish has a row for each time that was told, a
//! row goes with the publish or with the last of its sessions.

use super::Map;
use crate::ports::{MessageId, SessionNo};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Rows by publish, and publishes by session.
#[derive(Default)]
pub(super) struct Seen {
    /// Rows of a publish, ascending by key.
    rows: Map<MessageId, SmallVec<[Row; 1]>>,
    /// Keys of rows. Flat, so that a million sessions that have seen something cost no map each.
    by_session: BTreeMap<(SessionNo, MessageId), u64>,
}

struct Row {
    key: u64,
    /// As in the row, those included that have ended.
    sessions: SmallVec<[SessionNo; 2]>,
    /// How many have not ended.
    left: usize,
}

const FIRST: MessageId = MessageId { origin: 0, seq: 0 };
const LAST: MessageId = MessageId { origin: u64::MAX, seq: u64::MAX };

impl Seen {
    pub(super) fn unseen(&self, id: MessageId, sessions: &[SessionNo]) -> Vec<SessionNo> {
        let mut unseen: Vec<SessionNo> =
            sessions.iter().copied().filter(|no| !self.by_session.contains_key(&(*no, id))).collect();
        unseen.sort_unstable();
        unseen.dedup();
        unseen
    }

    pub(super) fn put(&mut self, id: MessageId, key: u64, sessions: &[SessionNo]) {
        for session in sessions {
            self.by_session.insert((*session, id), key);
        }
        let row = Row { key, sessions: SmallVec::from_slice(sessions), left: sessions.len() };
        self.rows.entry(id).or_default().push(row);
    }

    pub(super) fn end(&mut self, id: MessageId, mut ended: impl FnMut(u64)) {
        for row in self.rows.remove(&id).into_iter().flatten() {
            for session in row.sessions {
                self.by_session.remove(&(session, id));
            }
            ended(row.key);
        }
    }

    pub(super) fn end_session(&mut self, session: SessionNo, mut ended: impl FnMut(u64)) {
        while let Some((of, key)) = self.by_session.range((session, FIRST)..=(session, LAST)).next() {
            let (of, key) = (*of, *key);
            self.by_session.remove(&of);
            let Some(rows) = self.rows.get_mut(&of.1) else { continue };
            let Ok(at) = rows.binary_search_by_key(&key, |row| row.key) else { continue };
            let Some(row) = rows.get_mut(at) else { continue };
            row.left = row.left.saturating_sub(1);
            if row.left == 0 {
                rows.remove(at);
                ended(key);
            }
            if rows.is_empty() {
                self.rows.remove(&of.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> MessageId {
        MessageId { origin: 7, seq }
    }

    fn gone(act: impl FnOnce(&mut dyn FnMut(u64))) -> Vec<u64> {
        let mut gone = Vec::new();
        act(&mut |key| gone.push(key));
        gone
    }

    #[test]
    fn a_row_goes_with_its_publish_or_its_last_session() {
        let mut seen = Seen::default();
        assert_eq!(seen.unseen(id(1), &[3, 2, 3]), [2, 3]);
        seen.put(id(1), 10, &[2, 3]);
        assert_eq!(seen.unseen(id(1), &[2, 4]), [4]);
        seen.put(id(1), 11, &[4]);
        seen.put(id(2), 12, &[2]);
        assert_eq!(gone(|ended| seen.end_session(2, ended)), [12]);
        assert_eq!(gone(|ended| seen.end_session(2, ended)), [0; 0]);
        assert_eq!(gone(|ended| seen.end_session(3, ended)), [10]);
        assert_eq!(gone(|ended| seen.end(id(1), ended)), [11]);
        assert_eq!(gone(|ended| seen.end(id(1), ended)), [0; 0]);
        assert!(seen.rows.is_empty() && seen.by_session.is_empty());
    }
}
