//! Which rows of the log stand for what: found by session and packet identifier, topic or message, so that a change
//! finds the row that it replaces or ends. Holds no message and no more than what is live.

use crate::hashing::HashMap;
use crate::ports::{MessageId, Seq, SessionNo};

mod seen;

use seen::Seen;

type Map<K, V> = HashMap<K, V>;

/// Keys of live rows.
#[derive(Default)]
pub(super) struct Index {
    /// Messages with several recipients: the sum of [`mark`]s of those that have not settled.
    shared: Map<Seq, u64>,
    sessions: Map<SessionNo, Box<Steps>>,
    retained: Map<Box<str>, u64>,
    spooled: Map<Box<str>, u64>,
    node: Option<u64>,
    seen: Seen,
}

/// The steps of one session.
#[derive(Default)]
struct Steps {
    outbound: Map<u16, Step>,
    packet_ids: Map<Seq, u16>,
    inbound: Map<u16, u64>,
}

/// An outbound step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Key of its row.
    pub(super) key: u64,
    /// Its message.
    pub(super) seq: Seq,
    /// Key of its first row.
    pub(super) order: u64,
}

/// What becomes of a message with the settlement of one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// It had one recipient.
    Only,
    /// It had several and this was the last.
    Last,
    /// Others have not settled.
    Open,
}

/// A number for a session, such that sums of different sets of sessions differ (but for one case in 2^64): a settlement
/// told twice must not make the journal believe that somebody else has settled.
fn mark(session: SessionNo) -> u64 {
    let mut x = session.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Index {
    /// Notes a message for several recipients.
    pub(super) fn share(&mut self, seq: Seq, unsettled: impl Iterator<Item = SessionNo>) {
        self.shared.insert(seq, unsettled.fold(0, |sum, session| sum.wrapping_add(mark(session))));
    }

    /// Notes that `session` is done with `seq`.
    pub(super) fn settle(&mut self, seq: Seq, session: SessionNo) -> Settlement {
        let Some(sum) = self.shared.get_mut(&seq) else { return Settlement::Only };
        *sum = sum.wrapping_sub(mark(session));
        if *sum != 0 {
            return Settlement::Open;
        }
        self.shared.remove(&seq);
        Settlement::Last
    }

    /// Notes that an outbound step is now in row `key`; gives the rows it replaces to `replaced`. Returns the step's order:
    /// what it had before, else `order`.
    pub(super) fn put_outbound(
        &mut self,
        session: SessionNo,
        packet_id: u16,
        seq: Seq,
        key: u64,
        mut order: u64,
        mut replaced: impl FnMut(u64),
    ) -> u64 {
        let steps = self.sessions.entry(session).or_default();
        if let Some(old) = steps.outbound.remove(&packet_id) {
            replaced(old.key);
            if old.seq == seq {
                order = old.order;
            } else {
                steps.packet_ids.remove(&old.seq);
            }
        }
        if let Some(other) = steps.packet_ids.insert(seq, packet_id)
            && other != packet_id
            && let Some(old) = steps.outbound.remove(&other)
        {
            replaced(old.key);
        }
        steps.outbound.insert(packet_id, Step { key, seq, order });
        order
    }

    /// Forgets the outbound step of a message; returns the key of its row.
    pub(super) fn end_outbound(&mut self, session: SessionNo, seq: Seq) -> Option<u64> {
        let steps = self.sessions.get_mut(&session)?;
        let packet_id = steps.packet_ids.remove(&seq)?;
        steps.outbound.remove(&packet_id).map(|step| step.key)
    }

    /// The key of the row of an outbound step.
    pub(super) fn outbound_key(&self, session: SessionNo, packet_id: u16) -> Option<u64> {
        Some(self.sessions.get(&session)?.outbound.get(&packet_id)?.key)
    }

    /// Whether an inbound packet identifier is in use.
    pub(super) fn has_inbound(&self, session: SessionNo, packet_id: u16) -> bool {
        self.sessions.get(&session).is_some_and(|steps| steps.inbound.contains_key(&packet_id))
    }

    /// Notes that an inbound packet identifier is in row `key`; returns the key of the row it replaces.
    pub(super) fn put_inbound(&mut self, session: SessionNo, packet_id: u16, key: u64) -> Option<u64> {
        self.sessions.entry(session).or_default().inbound.insert(packet_id, key)
    }

    /// Forgets an inbound packet identifier; returns the key of its row.
    pub(super) fn end_inbound(&mut self, session: SessionNo, packet_id: u16) -> Option<u64> {
        self.sessions.get_mut(&session)?.inbound.remove(&packet_id)
    }

    /// Forgets the steps of a session and what it has seen; gives the keys of rows that nobody needs any more to `ended`.
    pub(super) fn end_session(&mut self, session: SessionNo, mut ended: impl FnMut(u64)) {
        self.seen.end_session(session, &mut ended);
        let Some(steps) = self.sessions.remove(&session) else { return };
        steps.outbound.values().map(|step| step.key).chain(steps.inbound.into_values()).for_each(&mut ended);
    }

    /// Gives back the memory of a session that has no steps: called when it goes offline.
    pub(super) fn rest(&mut self, session: SessionNo) {
        if self.sessions.get(&session).is_some_and(|s| s.outbound.is_empty() && s.inbound.is_empty()) {
            self.sessions.remove(&session);
        }
    }

    /// Notes that the retained message of `topic` is in row `key`; returns the key of the row it replaces.
    pub(super) fn put_retained(&mut self, topic: &str, key: u64) -> Option<u64> {
        put_topic(&mut self.retained, topic, key)
    }

    /// Forgets the retained message of `topic`; returns the key of its row.
    pub(super) fn end_retained(&mut self, topic: &str) -> Option<u64> {
        self.retained.remove(topic)
    }

    /// Notes that the spooled update of `topic` is in row `key`; returns the key of the row it replaces.
    pub(super) fn spool(&mut self, topic: &str, key: u64) -> Option<u64> {
        put_topic(&mut self.spooled, topic, key)
    }

    /// Forgets the spooled update of `topic`; returns the key of its row.
    pub(super) fn unspool(&mut self, topic: &str) -> Option<u64> {
        self.spooled.remove(topic)
    }

    /// Notes that row `key` says whose journal this is; returns the key of the row it replaces.
    pub(super) fn put_node(&mut self, key: u64) -> Option<u64> {
        self.node.replace(key)
    }

    /// Those of `sessions` (each once) of which it is not known yet that they have had `id`.
    pub(super) fn unseen(&self, id: MessageId, sessions: &[SessionNo]) -> Vec<SessionNo> {
        self.seen.unseen(id, sessions)
    }

    /// Notes that row `key`, greater than those before, says that `sessions`, which are new to it, have had `id`.
    pub(super) fn put_seen(&mut self, id: MessageId, key: u64, sessions: &[SessionNo]) {
        self.seen.put(id, key, sessions);
    }

    /// Forgets who has had `id`; gives the keys of the rows to `ended`.
    pub(super) fn end_seen(&mut self, id: MessageId, ended: impl FnMut(u64)) {
        self.seen.end(id, ended);
    }
}

fn put_topic(topics: &mut Map<Box<str>, u64>, topic: &str, key: u64) -> Option<u64> {
    if let Some(held) = topics.get_mut(topic) {
        return Some(std::mem::replace(held, key));
    }
    topics.insert(Box::from(topic), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settlement_told_twice_does_not_count_for_another() {
        let mut index = Index::default();
        index.share(1, [10, 11, 12].into_iter());
        assert_eq!(index.settle(1, 10), Settlement::Open);
        assert_eq!(index.settle(1, 10), Settlement::Open);
        assert_eq!(index.settle(1, 11), Settlement::Open);
        index.share(2, [10, 11].into_iter());
        assert_eq!(index.settle(2, 11), Settlement::Open);
        assert_eq!(index.settle(2, 10), Settlement::Last);
        assert_eq!(index.settle(3, 10), Settlement::Only);
    }

    #[test]
    fn a_step_keeps_its_place_and_replaces_what_was_there() {
        let mut index = Index::default();
        let mut put = |packet_id, seq, key| {
            let mut gone = Vec::new();
            let order = index.put_outbound(1, packet_id, seq, key, key, |key| gone.push(key));
            (order, gone)
        };
        assert_eq!(put(1, 100, 5), (5, vec![]));
        assert_eq!(put(1, 100, 6), (5, vec![5]), "the same step goes on");
        assert_eq!(put(1, 101, 7), (7, vec![6]), "another message under the same identifier");
        assert_eq!(put(2, 101, 8), (8, vec![7]), "the same message under another identifier");
        assert_eq!(index.end_outbound(1, 100), None);
        assert_eq!(index.end_outbound(1, 101), Some(8));
        assert_eq!(index.end_outbound(1, 101), None);
    }

    #[test]
    fn a_session_ends_with_all_its_rows() {
        let mut index = Index::default();
        index.put_inbound(1, 9, 3);
        index.put_outbound(1, 1, 100, 4, 4, |_| {});
        index.rest(1);
        let mut gone = Vec::new();
        index.end_session(1, |key| gone.push(key));
        gone.sort_unstable();
        assert_eq!(gone, [3, 4]);
        assert!(!index.has_inbound(1, 9));
    }
}
