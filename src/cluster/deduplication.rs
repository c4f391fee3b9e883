//! Which sessions of this node have had which publishes, so that a publish that comes again goes to nobody twice.
//!
//! An ID is remembered until its origin says that nobody will send it again. What a session has settled before that is in the
//! journal too, with QoS 2 publishes only: others may come twice after a crash.

use crate::hashing::HashMap;
use crate::ports::{Incarnation, Lsn, MessageId, Seq, SessionNo};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
struct Entry {
    sessions: SmallVec<[SessionNo; 2]>,
    /// Shared subscriptions that were served.
    groups: SmallVec<[Arc<str>; 1]>,
    /// Rows of the journal, if they have to be remembered beyond their settlement.
    rows: SmallVec<[Seq; 1]>,
    /// When the last row is durable.
    lsn: Lsn,
    /// Known from before the last start: shared subscriptions are then known by their members.
    recovered: bool,
    /// The journal has a record of it besides its rows.
    recorded: bool,
}

/// Publishes with a number below `low` are done with, save those in `open` (ascending).
#[derive(Debug, Default)]
struct Mark {
    low: u64,
    open: Box<[u64]>,
}

impl Mark {
    fn passes(&self, seq: u64) -> bool {
        seq < self.low && self.open.binary_search(&seq).is_err()
    }
}

#[derive(Debug, Default)]
struct Inner {
    ids: BTreeMap<MessageId, Entry>,
    /// Publishes of an incarnation that are done with.
    low: HashMap<Incarnation, Mark>,
    rows: HashMap<Seq, MessageId>,
}

/// Which sessions of this node have had which publishes, so that a publish that comes again goes to nobody twice.
#[derive(Debug)]
pub struct Deduplication {
    inner: Mutex<Inner>,
    max: usize,
    rows: AtomicUsize,
}

impl Deduplication {
    /// Remembers nothing yet, and up to `max` publishes from here on.
    pub fn new(max: usize) -> Deduplication {
        Deduplication { inner: Mutex::default(), max, rows: AtomicUsize::new(0) }
    }

    /// Takes in what the journal knew at the start, and the rows of publishes that are still in it.
    pub fn recover(
        &self,
        seen: impl IntoIterator<Item = (MessageId, Vec<SessionNo>)>,
        rows: impl IntoIterator<Item = (Seq, MessageId)>,
    ) {
        let mut inner = self.inner.lock();
        for (id, sessions) in seen {
            let e = inner.ids.entry(id).or_default();
            (e.recovered, e.recorded) = (true, true);
            for no in sessions {
                e.add(no);
            }
        }
        drop(inner);
        rows.into_iter().for_each(|(seq, id)| self.journaled(id, seq, 0, true));
    }

    /// Notes that `session` has the publish; false if it has had it before, or the publish is done with.
    pub fn insert(&self, id: MessageId, session: SessionNo) -> bool {
        let mut inner = self.inner.lock();
        if inner.past(id) {
            return false;
        }
        inner.ids.entry(id).or_default().add(session)
    }

    /// Takes back that `session` has the publish: it has not had it after all.
    pub fn remove(&self, id: MessageId, session: SessionNo) {
        if let Some(e) = self.inner.lock().ids.get_mut(&id) {
            e.sessions.retain(|no| *no != session);
        }
    }

    /// Whether `session` has had the publish.
    pub fn has(&self, id: MessageId, session: SessionNo) -> bool {
        let inner = self.inner.lock();
        inner.past(id) || inner.ids.get(&id).is_some_and(|e| e.sessions.contains(&session))
    }

    /// Notes that shared subscription `group` is served.
    pub fn serve(&self, id: MessageId, group: &Arc<str>) {
        let mut inner = self.inner.lock();
        if !inner.past(id) {
            let e = inner.ids.entry(id).or_default();
            if !e.groups.contains(group) {
                e.groups.push(group.clone());
            }
        }
    }

    /// Whether shared subscription `group` was served, or one of the members that `is_member` names has had the publish before
    /// the last start.
    pub fn served(&self, id: MessageId, group: &str, is_member: impl Fn(SessionNo) -> bool) -> bool {
        let inner = self.inner.lock();
        let known = |e: &Entry| {
            e.groups.iter().any(|g| **g == *group)
                || (e.recovered && e.sessions.iter().any(|no| is_member(*no)))
        };
        inner.past(id) || inner.ids.get(&id).is_some_and(known)
    }

    /// The publish is in row `seq`, durable at `lsn`; `keep` = who has settled it must be remembered (QoS 2).
    pub fn journaled(&self, id: MessageId, seq: Seq, lsn: Lsn, keep: bool) {
        let mut inner = self.inner.lock();
        let Some(e) = inner.ids.get_mut(&id) else { return };
        e.lsn = e.lsn.max(lsn);
        if keep {
            e.rows.push(seq);
            inner.rows.insert(seq, id);
            self.rows.store(inner.rows.len(), Ordering::Release);
        }
    }

    /// Up to where the journal must be durable for what is known of the publish to be safe; 0 = nothing of it is in the journal.
    pub fn lsn(&self, id: MessageId) -> Lsn {
        self.inner.lock().ids.get(&id).map_or(0, |e| e.lsn)
    }

    /// A session is done with row `seq`: the publish that has to be recorded as seen in the same step, if any.
    pub fn settled(&self, seq: Seq) -> Option<MessageId> {
        if self.rows.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut inner = self.inner.lock();
        let id = *inner.rows.get(&seq)?;
        inner.ids.get_mut(&id)?.recorded = true;
        Some(id)
    }

    /// The publishes that a session has had, for its next owner. They stay until [`Deduplication::forget_session`].
    pub fn take_for(&self, session: SessionNo) -> Vec<MessageId> {
        let inner = self.inner.lock();
        inner.ids.iter().filter(|(_, e)| e.sessions.contains(&session)).map(|(id, _)| *id).collect()
    }

    /// The session leaves or ends, a member of `groups`: what it has had from before the last start these were served with.
    pub fn left(&self, session: SessionNo, groups: &[Arc<str>]) {
        if groups.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for e in inner.ids.values_mut().filter(|e| e.recovered && e.sessions.contains(&session)) {
            for group in groups.iter().filter(|g| !e.groups.contains(*g)).cloned().collect::<Vec<_>>() {
                e.groups.push(group);
            }
        }
    }

    /// Forgets what a session has had: it is with another node.
    pub fn forget_session(&self, session: SessionNo) {
        for e in self.inner.lock().ids.values_mut() {
            e.sessions.retain(|no| *no != session);
        }
    }

    /// Publishes that `session` has had with its last owner. Returns those that are not done with: the journal must have
    /// them ([`crate::ports::Change::Seen`]) before the session is served.
    pub fn add_for(&self, session: SessionNo, ids: &[MessageId]) -> Vec<MessageId> {
        let mut inner = self.inner.lock();
        let mut added = Vec::new();
        for id in ids.iter().copied().filter(|id| !inner.past(*id)).collect::<Vec<_>>() {
            let e = inner.ids.entry(id).or_default();
            e.add(session);
            e.recorded = true;
            added.push(id);
        }
        added
    }

    /// Forgets a publish that will not come again. Whether the journal has a record of it.
    #[must_use]
    pub fn done(&self, id: MessageId) -> bool {
        let mut inner = self.inner.lock();
        let recorded = inner.drop_id(id);
        self.rows.store(inner.rows.len(), Ordering::Release);
        recorded
    }

    /// The origins of the publishes that are remembered.
    pub fn origins(&self) -> Vec<Incarnation> {
        let inner = self.inner.lock();
        let mut origins = Vec::new();
        let mut from = Bound::Unbounded;
        while let Some((id, _)) = inner.ids.range((from, Bound::Unbounded)).next() {
            origins.push(id.origin);
            from = Bound::Excluded(MessageId { origin: id.origin, seq: u64::MAX });
        }
        origins
    }

    /// Publishes of `origin` numbered below `low` are done with, save those in `open`. Returns those that the journal has a
    /// record of.
    #[must_use]
    pub fn prune(&self, origin: Incarnation, low: u64, open: &[u64]) -> Vec<MessageId> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mark = inner.low.entry(origin).or_default();
        if mark.low > low || (mark.low == low && *mark.open == *open) {
            return Vec::new();
        }
        let mut open: Box<[u64]> = open.into();
        open.sort_unstable();
        *mark = Mark { low, open };
        let range =
            (Bound::Included(MessageId { origin, seq: 0 }), Bound::Excluded(MessageId { origin, seq: low }));
        let over = inner.ids.range(range).map(|(id, _)| *id).filter(|id| mark.passes(id.seq));
        let over: Vec<MessageId> = over.collect();
        let recorded = over.into_iter().filter(|id| inner.drop_id(*id)).collect();
        self.rows.store(inner.rows.len(), Ordering::Release);
        recorded
    }

    /// The oldest publishes beyond the limit: they are forgotten. Returns how many, and those that the journal has a record of.
    #[must_use]
    pub fn overflow(&self) -> (usize, Vec<MessageId>) {
        let mut inner = self.inner.lock();
        let (mut n, mut recorded) = (0, Vec::new());
        while inner.ids.len() > self.max {
            let Some((id, _)) = inner.ids.first_key_value() else { break };
            let id = *id;
            n += 1;
            if inner.drop_id(id) {
                recorded.push(id);
            }
        }
        self.rows.store(inner.rows.len(), Ordering::Release);
        (n, recorded)
    }

    /// Whether all publishes of `origin` up to `seq` are done with.
    pub fn all_past(&self, origin: Incarnation, seq: u64) -> bool {
        let inner = self.inner.lock();
        let past = |mark: &Mark| {
            mark.low > seq.min(u64::MAX - 1) && mark.open.first().is_none_or(|open| *open > seq)
        };
        inner.low.get(&origin).is_some_and(past)
    }

    /// How many publishes are remembered.
    pub fn len(&self) -> usize {
        self.inner.lock().ids.len()
    }

    /// Whether no publish is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn past(&self, id: MessageId) -> bool {
        self.low.get(&id.origin).is_some_and(|mark| mark.passes(id.seq))
    }

    /// Forgets a publish; true if the journal has a record of it.
    fn drop_id(&mut self, id: MessageId) -> bool {
        let Some(e) = self.ids.remove(&id) else { return false };
        for seq in &e.rows {
            self.rows.remove(seq);
        }
        e.recorded
    }
}

impl Entry {
    fn add(&mut self, session: SessionNo) -> bool {
        let is_new = !self.sessions.contains(&session);
        if is_new {
            self.sessions.push(session);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> MessageId {
        MessageId { origin: 7, seq }
    }

    #[test]
    fn a_session_has_a_publish_once() {
        let s = Deduplication::new(100);
        assert!(s.insert(id(1), 10) && s.insert(id(1), 11) && s.insert(id(2), 10));
        assert!(!s.insert(id(1), 10));
        s.remove(id(1), 10);
        assert!(s.insert(id(1), 10));
    }

    #[test]
    fn what_the_origin_is_done_with_is_forgotten_and_never_taken_again() {
        let s = Deduplication::new(100);
        for n in 1..=3 {
            assert!(s.insert(id(n), 10));
            s.journaled(id(n), 100 + n, 5, true);
        }
        assert_eq!(s.settled(101), Some(id(1)));
        assert_eq!(s.settled(999), None);
        assert_eq!(s.prune(7, 3, &[]), [id(1)], "2 was not settled, so the journal has only its row");
        assert_eq!(s.len(), 1);
        assert!(!s.insert(id(2), 10), "late");
        assert_eq!(s.settled(102), None);
        assert!(s.prune(7, 2, &[]).is_empty(), "a low-water mark does not fall");
        assert!(!s.insert(id(2), 12));
        assert_eq!(s.prune(7, u64::MAX, &[]), []);
        assert!(s.is_empty());
    }

    #[test]
    fn what_is_open_below_the_mark_is_remembered() {
        let s = Deduplication::new(100);
        (1..=5).for_each(|n| assert!(s.insert(id(n), 10)));
        assert_eq!(s.prune(7, 5, &[2, 4]), []);
        assert_eq!(s.take_for(10), [id(2), id(4), id(5)]);
        assert!(!s.insert(id(3), 11), "done with");
        assert!(s.insert(id(4), 11), "another session");
        assert!(!s.insert(id(4), 10), "twice");
        assert_eq!(s.prune(7, 5, &[4]), [], "2 is over");
        assert_eq!(s.take_for(10), [id(4), id(5)]);
    }

    #[test]
    fn a_session_takes_what_it_has_seen_along() {
        let (a, b) = (Deduplication::new(100), Deduplication::new(100));
        assert!(a.insert(id(1), 10) && a.insert(id(2), 10) && a.insert(id(2), 11));
        let taken = a.take_for(10);
        assert_eq!(taken, [id(1), id(2)]);
        a.forget_session(10);
        assert!(a.take_for(10).is_empty() && !a.insert(id(2), 11));
        assert!(b.prune(7, 2, &[]).is_empty());
        assert_eq!(b.add_for(3, &taken), [id(2)]);
        assert!(!b.insert(id(2), 3) && b.insert(id(2), 4));
    }

    #[test]
    fn a_shared_subscription_is_served_once_also_after_a_restart() {
        let s = Deduplication::new(100);
        let group: Arc<str> = "$share/g/t".into();
        assert!(!s.served(id(1), &group, |_| true));
        s.serve(id(1), &group);
        assert!(s.served(id(1), &group, |_| false));
        s.recover([(id(2), vec![10])], []);
        assert!(s.served(id(2), &group, |no| no == 10));
        assert!(!s.served(id(2), &group, |no| no == 11));
    }

    #[test]
    fn what_is_settled_after_a_start_is_remembered_beyond_the_next() {
        let s = Deduplication::new(100);
        s.recover([(id(1), vec![10])], [(101, id(1)), (102, id(2))]);
        assert_eq!(s.settled(101), Some(id(1)));
        assert_eq!(s.settled(102), None, "nobody sends it again");
    }

    #[test]
    fn beyond_the_limit_the_oldest_are_forgotten() {
        let s = Deduplication::new(2);
        s.recover([(id(1), vec![10])], []);
        assert!(s.insert(id(2), 10) && s.insert(id(3), 10));
        assert_eq!(s.overflow(), (1, vec![id(1)]));
        assert_eq!(s.overflow(), (0, vec![]));
    }
}
