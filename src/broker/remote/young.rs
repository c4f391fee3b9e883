//! Subscriptions that are younger than publishes still under way. Such a publish, matched again, would find the subscription and come
//! behind newer ones (G3). What was accepted before SUBACK is owed to nobody, so a subscription takes none of it that it has not had.
//!
//! Names of one origin ascend, so two numbers tell what came first: the highest that was heard of when SUBACK left, and the
//! publish's own. What is remembered goes as soon as all of it is done with everywhere.

use crate::broker::ports::{Incarnation, MessageId, SessionNo};
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The highest number of each origin that a subscription is younger than.
pub type Older = Arc<[(Incarnation, u64)]>;

#[derive(Debug)]
struct Subscription {
    filter: Arc<str>,
    /// `None` until SUBACK: all that has been heard of is older.
    older: Option<Older>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Young {
    sessions: Mutex<HashMap<SessionNo, SmallVec<[Subscription; 1]>>>,
    len: AtomicUsize,
    /// The highest number that came from other nodes, by origin.
    heard: RwLock<HashMap<Incarnation, AtomicU64>>,
}

impl Young {
    /// Publishes of `origin` up to `seq` have been heard of.
    pub fn heard(&self, origin: Incarnation, seq: u64) {
        if let Some(highest) = self.heard.read().get(&origin) {
            highest.fetch_max(seq, Ordering::Relaxed);
            return;
        }
        self.heard.write().entry(origin).or_default().fetch_max(seq, Ordering::Relaxed);
    }

    /// The highest number heard of an origin; 0 = none.
    pub fn highest(&self, origin: Incarnation) -> u64 {
        self.heard.read().get(&origin).map_or(0, |highest| highest.load(Ordering::Relaxed))
    }

    /// Forgets what was heard of origins that are not among `known`.
    pub fn forget_origins(&self, known: impl Fn(Incarnation) -> bool) {
        self.heard.write().retain(|origin, _| known(*origin));
    }

    /// Whether no subscription is young.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// A session has subscribed; SUBACK has not left.
    pub fn begin(&self, session: SessionNo, filter: &Arc<str>) {
        let mut sessions = self.sessions.lock();
        let of_session = sessions.entry(session).or_default();
        of_session.retain(|s| s.filter != *filter);
        of_session.push(Subscription { filter: filter.clone(), older: None });
        self.len.store(sessions.len(), Ordering::Release);
    }

    /// SUBACK leaves: the subscriptions take all that is newer than `older`.
    pub fn acknowledged(&self, session: SessionNo, filters: &[Arc<str>], older: &Older) {
        let mut sessions = self.sessions.lock();
        let Some(of_session) = sessions.get_mut(&session) else { return };
        let meant = |s: &Subscription| s.older.is_none() && filters.contains(&s.filter);
        if older.is_empty() {
            of_session.retain(|s| !meant(s));
        } else {
            of_session.iter_mut().filter(|s| meant(s)).for_each(|s| s.older = Some(older.clone()));
        }
        if of_session.is_empty() {
            sessions.remove(&session);
        }
        self.len.store(sessions.len(), Ordering::Release);
    }

    /// The filters of a session that are younger than a publish; `highest` is the highest number known of its origin.
    pub fn younger(
        &self,
        session: SessionNo,
        id: MessageId,
        highest: impl Fn() -> u64,
    ) -> SmallVec<[Arc<str>; 1]> {
        let sessions = self.sessions.lock();
        let Some(of_session) = sessions.get(&session) else { return SmallVec::new() };
        let is_younger = |s: &&Subscription| match &s.older {
            Some(older) => older.iter().any(|(origin, seq)| *origin == id.origin && id.seq <= *seq),
            None => id.seq <= highest(),
        };
        of_session.iter().filter(is_younger).map(|s| s.filter.clone()).collect()
    }

    /// What a subscription of a session is younger than; `Some(None)` = its SUBACK has not left.
    pub fn of(&self, session: SessionNo, filter: &str) -> Option<Option<Older>> {
        let sessions = self.sessions.lock();
        Some(sessions.get(&session)?.iter().find(|s| *s.filter == *filter)?.older.clone())
    }

    /// A session has come with a subscription that is younger than publishes.
    pub fn add(&self, session: SessionNo, filter: &Arc<str>, older: Older) {
        let mut sessions = self.sessions.lock();
        sessions
            .entry(session)
            .or_default()
            .push(Subscription { filter: filter.clone(), older: Some(older) });
        self.len.store(sessions.len(), Ordering::Release);
    }

    /// A session is not here any more, or (with `filter`) has ended one subscription.
    pub fn forget(&self, session: SessionNo, filter: Option<&str>) {
        if self.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        if let Some(of_session) = sessions.get_mut(&session) {
            of_session.retain(|s| filter.is_some_and(|f| *s.filter != *f));
            if of_session.is_empty() {
                sessions.remove(&session);
            }
        }
        self.len.store(sessions.len(), Ordering::Release);
    }

    /// Forgets subscriptions that are younger than nothing that may still come: `done` says whether all publishes of an origin
    /// up to a number are done with.
    pub fn prune(&self, done: impl Fn(Incarnation, u64) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        let over = |s: &Subscription| {
            s.older.as_ref().is_some_and(|older| older.iter().all(|(origin, seq)| done(*origin, *seq)))
        };
        sessions.retain(|_, of_session| {
            of_session.retain(|s| !over(s));
            !of_session.is_empty()
        });
        self.len.store(sessions.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> MessageId {
        MessageId { origin: 7, seq }
    }

    #[test]
    fn a_subscription_is_younger_than_what_was_heard_of_before_its_suback() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.heard(7, 5);
        young.heard(7, 3);
        assert_eq!((young.highest(7), young.highest(8)), (5, 0));
        young.begin(1, &filter);
        assert_eq!(young.younger(1, id(5), || 5).as_slice(), std::slice::from_ref(&filter));
        assert!(young.younger(1, id(6), || 5).is_empty() && young.younger(2, id(5), || 5).is_empty());
        young.acknowledged(1, std::slice::from_ref(&filter), &Arc::from([(7, 6)]));
        assert_eq!(young.younger(1, id(6), || 9).as_slice(), std::slice::from_ref(&filter));
        assert!(young.younger(1, id(7), || 9).is_empty(), "accepted after SUBACK");
        young.prune(|_, seq| seq < 6);
        assert!(!young.is_empty());
        young.prune(|_, seq| seq <= 6);
        assert!(young.is_empty());
    }

    #[test]
    fn nothing_is_remembered_when_nothing_is_under_way() {
        let young = Young::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        young.begin(1, &a);
        young.begin(1, &b);
        young.acknowledged(1, std::slice::from_ref(&a), &Arc::from([]));
        assert!(!young.is_empty(), "b waits");
        young.forget(1, Some("b"));
        assert!(young.is_empty());
        young.begin(1, &a);
        young.forget(1, None);
        assert!(young.is_empty());
    }
}
