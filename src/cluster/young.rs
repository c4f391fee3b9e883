//! Subscriptions that are younger than publishes still under way. Such a publish, matched again, would find the subscription and come
//! behind newer ones (G3). What was accepted before SUBACK is owed to nobody, so a subscription takes none of it that it has not had.
//!
//! Names of one origin ascend, so two numbers tell what came first: the highest that was heard of when SUBACK left, and the
//! publish's own. What is remembered goes as soon as all of it is done with everywhere.
//!
//! A SUBACK may leave before all nodes know of the subscription (G6). Such a node accepts publishes without it for a while, and may find it
//! when it matches them again. From that node the subscription takes what comes for the first time, and of what comes again nothing behind a
//! newer one of the same topic and QoS that its session was given, until the node has reported that it knows the route, and is done with all
//! that it had accepted by then. Order is promised for each publisher, topic and QoS (G3): a publish at QoS 2 leaves its node once it is
//! durable there, behind newer ones at QoS 1, and names of two publishers come in any order.

use crate::hashing::HashMap;
use crate::mqtt::{Message, QoS};
use crate::ports::{Incarnation, MessageId, Revision, SessionNo, SubscriptionRecord};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The highest number of each origin that a subscription is younger than.
pub type Older = Arc<[(Incarnation, u64)]>;

/// Topics whose highest number is remembered, those of all young sessions together; beyond that the highest number of an origin counts for
/// all its topics.
pub const ORDER_KEYS_MAX: usize = 65_536;

/// What publishes that keep an order among themselves have in common, besides their origin: topic and QoS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderKey(u64);

impl OrderKey {
    /// The key of publishes to `topic` at `qos`. It is a hash: two topics may share a key, and then a message of one may be
    /// refused as older than a message of the other.
    pub fn of(topic: &str, qos: QoS) -> OrderKey {
        let mut hasher = DefaultHasher::new();
        (topic, qos as u8).hash(&mut hasher);
        OrderKey(hasher.finish())
    }
}

/// A subscription whose SUBACK has left before all nodes knew of it.
#[derive(Debug, Default)]
struct Unknown {
    /// The highest number that had been heard of each origin at SUBACK: older ones are owed to nobody.
    before: SmallVec<[(Incarnation, u64); 2]>,
    /// The revision at which its route was written, once that is known.
    route: Option<Revision>,
    /// The highest number of each origin that knows the route: what it has accepted later was matched with the route.
    bounds: SmallVec<[(Incarnation, u64); 2]>,
}

#[derive(Debug)]
struct Subscription {
    filter: Arc<str>,
    /// `None` until SUBACK: all that has been heard of is older.
    older: Option<Older>,
    /// Some nodes may not know of it. Those that `older` names do.
    unknown: Option<Unknown>,
}

fn find(numbers: &[(Incarnation, u64)], origin: Incarnation) -> Option<u64> {
    numbers.iter().find(|(of, _)| *of == origin).map(|(_, seq)| *seq)
}

/// What a session has been given since one of its subscriptions is young.
#[derive(Debug, Default)]
struct Given {
    /// The highest number of each origin, topic and QoS.
    highest: HashMap<(Incarnation, OrderKey), u64>,
    /// For each origin, the highest number that was given before its topics were too many to be remembered one by one.
    overall: SmallVec<[(Incarnation, u64); 2]>,
}

impl Given {
    fn note(&mut self, id: MessageId, key: OrderKey) {
        let highest = self.highest.entry((id.origin, key)).or_default();
        *highest = id.seq.max(*highest);
    }

    fn note_overall(&mut self, origin: Incarnation, seq: u64) {
        match self.overall.iter_mut().find(|(of, _)| *of == origin) {
            Some((_, highest)) => *highest = seq.max(*highest),
            None => self.overall.push((origin, seq)),
        }
    }

    /// Remembers one number for each origin in place of one for each topic.
    fn forget_topics(&mut self) {
        for ((origin, _), seq) in std::mem::take(&mut self.highest) {
            self.note_overall(origin, seq);
        }
    }

    /// The highest number that was given of an origin, topic and QoS; 0 = none.
    fn highest(&self, origin: Incarnation, key: OrderKey) -> u64 {
        let of_key = self.highest.get(&(origin, key)).copied();
        of_key.max(find(&self.overall, origin)).unwrap_or(0)
    }

    fn forget(&mut self, done: impl Fn(Incarnation, u64) -> bool) {
        self.highest.retain(|(origin, _), seq| !done(*origin, *seq));
        self.overall.retain(|(origin, seq)| !done(*origin, *seq));
    }
}

/// A session with young subscriptions.
#[derive(Debug, Default)]
struct YoungSession {
    subscriptions: SmallVec<[Subscription; 1]>,
    given: Given,
}

impl YoungSession {
    /// Whether what the session is given has to be remembered.
    fn remembers(&self) -> bool {
        self.subscriptions.iter().any(|s| s.older.is_none() || s.unknown.is_some())
    }
}

#[derive(Debug, Default)]
struct Sessions {
    all: HashMap<SessionNo, YoungSession>,
    /// Topics remembered of all of them.
    keys: usize,
}

impl Sessions {
    /// Notes that a session was given a publish.
    fn given(&mut self, session: SessionNo, id: MessageId, key: impl FnOnce() -> OrderKey) {
        let Some(young) = self.all.get_mut(&session).filter(|young| young.remembers()) else { return };
        let (given, key) = (&mut young.given, key());
        let before = given.highest.len();
        if self.keys >= ORDER_KEYS_MAX && !given.highest.contains_key(&(id.origin, key)) {
            given.forget_topics();
            given.note_overall(id.origin, id.seq);
        } else {
            given.note(id, key);
        }
        self.keys = self.keys + given.highest.len() - before;
    }

    /// Changes a session's entry, which goes when nothing of it is young any more.
    fn change(&mut self, session: SessionNo, f: impl FnOnce(&mut YoungSession)) {
        let Some(young) = self.all.get_mut(&session) else { return };
        let before = young.given.highest.len();
        f(young);
        if !young.remembers() {
            young.given = Given::default();
        }
        self.keys = self.keys + young.given.highest.len() - before;
        if young.subscriptions.is_empty() {
            self.all.remove(&session);
        }
    }
}

/// The subscriptions of this node that are younger than publishes still under way, and what they must not take.
#[derive(Debug, Default)]
pub struct Young {
    sessions: Mutex<Sessions>,
    len: AtomicUsize,
    /// What other nodes have sent and said, by origin.
    heard: RwLock<HashMap<Incarnation, AtomicU64>>,
}

impl Young {
    /// Takes note that `origin` has given the numbers up to `seq`.
    pub fn hear(&self, origin: Incarnation, seq: u64) {
        if let Some(heard) = self.heard.read().get(&origin) {
            heard.fetch_max(seq, Ordering::Relaxed);
            return;
        }
        self.heard.write().entry(origin).or_default().fetch_max(seq, Ordering::Relaxed);
    }

    /// Takes note that a session has been given a publish of another node, or has it already.
    pub fn given(&self, session: SessionNo, id: MessageId, message: &Message) {
        if !self.is_empty() {
            self.sessions.lock().given(session, id, || OrderKey::of(message.topic(), message.qos()));
        }
    }

    /// Takes note that process `origin` has reported that its index has come to `applied`, and that it has given the numbers up to
    /// `highest`. What it has sent before has come.
    pub fn reported(&self, origin: Incarnation, applied: Revision, highest: u64) {
        self.hear(origin, highest);
        if self.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        for s in sessions.all.values_mut().flat_map(|young| &mut young.subscriptions) {
            let (Some(older), Some(unknown)) = (&s.older, &mut s.unknown) else { continue };
            let knows = unknown.route.is_some_and(|route| route <= applied);
            if knows && find(older, origin).is_none() && find(&unknown.bounds, origin).is_none() {
                unknown.bounds.push((origin, highest));
            }
        }
    }

    /// The highest number heard of an origin; 0 = none.
    pub fn highest(&self, origin: Incarnation) -> u64 {
        self.heard.read().get(&origin).map_or(0, |heard| heard.load(Ordering::Relaxed))
    }

    /// Forgets what was heard of origins that are not among `known`.
    pub fn forget_origins(&self, known: impl Fn(Incarnation) -> bool) {
        self.heard.write().retain(|origin, _| known(*origin));
    }

    /// Whether no subscription is young.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Takes note that a session has subscribed to `filter`, and that its SUBACK has not left.
    pub fn begin(&self, session: SessionNo, filter: &Arc<str>) {
        let mut sessions = self.sessions.lock();
        let of_session = &mut sessions.all.entry(session).or_default().subscriptions;
        of_session.retain(|s| s.filter != *filter);
        of_session.push(Subscription { filter: filter.clone(), older: None, unknown: None });
        self.len.store(sessions.all.len(), Ordering::Release);
    }

    /// Takes note that SUBACK leaves: the subscriptions take all that is newer than `older`. `known` = all nodes know of them; else only
    /// those that `older` names do, and those that report it once [`Young::routed`] has said when the routes were written.
    pub fn acknowledged(
        &self,
        session: SessionNo,
        filters: &[Arc<str>],
        older: impl FnOnce() -> Older,
        known: bool,
    ) {
        // What has been refused by now as older was heard of by now.
        let mut sessions = self.sessions.lock();
        let older = older();
        let meant = |s: &Subscription| s.older.is_none() && filters.contains(&s.filter);
        let before = || {
            let heard = self.heard.read();
            let others = heard.iter().filter(|(origin, _)| find(&older, **origin).is_none());
            others.map(|(origin, seq)| (*origin, seq.load(Ordering::Relaxed))).collect()
        };
        sessions.change(session, |young| {
            if older.is_empty() && known {
                return young.subscriptions.retain(|s| !meant(s));
            }
            for s in young.subscriptions.iter_mut().filter(|s| meant(s)) {
                s.older = Some(older.clone());
                s.unknown = (!known).then(|| Unknown { before: before(), ..Unknown::default() });
            }
        });
        self.len.store(sessions.all.len(), Ordering::Release);
    }

    /// Takes note that the routes of subscriptions that not all nodes knew of at their SUBACK are written at `revision`.
    pub fn routed(&self, session: SessionNo, filters: &[Arc<str>], revision: Revision) {
        let mut sessions = self.sessions.lock();
        let of_session =
            sessions.all.get_mut(&session).into_iter().flat_map(|young| &mut young.subscriptions);
        for unknown in of_session.filter(|s| filters.contains(&s.filter)).filter_map(|s| s.unknown.as_mut()) {
            unknown.route = Some(revision);
        }
    }

    /// The filters of a session that are younger than a publish; `highest` is the highest number known of its origin. `key` says what it
    /// has in common with those that it keeps an order with; `None` = it comes for the first time, and so not behind later ones of its
    /// publisher.
    pub fn younger(
        &self,
        session: SessionNo,
        id: MessageId,
        key: Option<impl Fn() -> OrderKey>,
        highest: impl Fn() -> u64,
    ) -> SmallVec<[Arc<str>; 1]> {
        let sessions = self.sessions.lock();
        let Some(YoungSession { subscriptions, given }) = sessions.all.get(&session) else {
            return SmallVec::new();
        };
        let is_younger = |s: &&Subscription| {
            let Some(older) = &s.older else { return id.seq <= highest() };
            match (find(older, id.origin), &s.unknown) {
                (Some(seq), _) => id.seq <= seq,
                (None, None) => false,
                (None, Some(unknown)) => {
                    let bound = find(&unknown.bounds, id.origin).unwrap_or(u64::MAX);
                    let behind = |key: OrderKey| id.seq <= bound && id.seq < given.highest(id.origin, key);
                    find(&unknown.before, id.origin).is_some_and(|before| id.seq <= before)
                        || key.as_ref().is_some_and(|key| behind(key()))
                }
            }
        };
        subscriptions.iter().filter(is_younger).map(|s| s.filter.clone()).collect()
    }

    /// What a subscription of a session is younger than; `Some(None)` = its SUBACK has not left.
    pub fn of(&self, session: SessionNo, filter: &str) -> Option<Option<Older>> {
        let sessions = self.sessions.lock();
        let s = sessions.all.get(&session)?.subscriptions.iter().find(|s| *s.filter == *filter)?;
        let (Some(older), Some(unknown)) = (&s.older, &s.unknown) else { return Some(s.older.clone()) };
        Some(Some(older.iter().chain(&unknown.before).copied().collect()))
    }

    /// Takes note that a session has come with a subscription that is younger than publishes.
    pub fn add(&self, session: SessionNo, filter: &Arc<str>, older: Older) {
        let mut sessions = self.sessions.lock();
        let s = Subscription { filter: filter.clone(), older: Some(older), unknown: None };
        sessions.all.entry(session).or_default().subscriptions.push(s);
        self.len.store(sessions.all.len(), Ordering::Release);
    }

    /// Takes note that a session has come with these subscriptions.
    pub fn add_all(&self, session: SessionNo, subscriptions: &[SubscriptionRecord]) {
        for s in subscriptions.iter().filter(|s| !s.older.is_empty()) {
            self.add(session, &s.filter, s.older.clone().into());
        }
    }

    /// Forgets a session that is not here any more, or (with `filter`) one of its subscriptions that has ended.
    pub fn forget(&self, session: SessionNo, filter: Option<&str>) {
        if self.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        sessions.change(session, |young| {
            young.subscriptions.retain(|s| filter.is_some_and(|f| *s.filter != *f));
        });
        self.len.store(sessions.all.len(), Ordering::Release);
    }

    /// Forgets subscriptions that are younger than nothing that may still come: `done` says whether all publishes of an origin
    /// up to a number are done with; `origins` = all that there are but this process.
    pub fn prune(&self, origins: &[Incarnation], done: impl Fn(Incarnation, u64) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        let over = |s: &Subscription| {
            let Some(older) = &s.older else { return false };
            let done_with = |origin: &Incarnation, unknown: &Unknown| {
                find(older, *origin).is_some()
                    || done(*origin, find(&unknown.bounds, *origin).unwrap_or(u64::MAX))
            };
            let before = s.unknown.iter().flat_map(|u| &u.before);
            older.iter().chain(before).all(|(origin, seq)| done(*origin, *seq))
                && s.unknown.as_ref().is_none_or(|u| origins.iter().all(|origin| done_with(origin, u)))
        };
        let numbers: Vec<SessionNo> = sessions.all.keys().copied().collect();
        for session in numbers {
            sessions.change(session, |young| {
                young.given.forget(&done);
                young.subscriptions.retain(|s| !over(s));
            });
        }
        self.len.store(sessions.all.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::message::Parts;

    fn id(seq: u64) -> MessageId {
        MessageId { origin: 7, seq }
    }

    /// What most messages here have in common.
    fn usual() -> OrderKey {
        OrderKey::of("t/1", QoS::AtLeastOnce)
    }

    fn message(topic: &str) -> Message {
        let (payload, properties) = (&[][..], &[][..]);
        let (qos, retain, expires_at) = (QoS::AtLeastOnce, false, None);
        Message::new(Parts { topic, payload, properties, qos, retain, expires_at })
    }

    /// The filters of a session that are younger than a usual publish which comes again.
    fn younger(young: &Young, session: SessionNo, seq: u64, highest: u64) -> SmallVec<[Arc<str>; 1]> {
        young.younger(session, id(seq), Some(usual), || highest)
    }

    fn usual_message() -> Message {
        message("t/1")
    }

    #[test]
    fn a_subscription_is_younger_than_what_was_heard_of_before_its_suback() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.hear(7, 5);
        young.hear(7, 3);
        assert_eq!((young.highest(7), young.highest(8)), (5, 0));
        young.begin(1, &filter);
        assert_eq!(younger(&young, 1, 5, 5).as_slice(), std::slice::from_ref(&filter));
        assert!(younger(&young, 1, 6, 5).is_empty() && younger(&young, 2, 5, 5).is_empty());
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([(7, 6)]), true);
        assert_eq!(younger(&young, 1, 6, 9).as_slice(), std::slice::from_ref(&filter));
        assert!(younger(&young, 1, 7, 9).is_empty(), "accepted after SUBACK");
        young.prune(&[7], |_, seq| seq < 6);
        assert!(!young.is_empty());
        young.prune(&[7], |_, seq| seq <= 6);
        assert!(young.is_empty());
    }

    #[test]
    fn nothing_is_remembered_when_nothing_is_under_way() {
        let young = Young::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        young.begin(1, &a);
        young.begin(1, &b);
        young.acknowledged(1, std::slice::from_ref(&a), || Arc::from([]), true);
        assert!(!young.is_empty(), "b waits");
        young.forget(1, Some("b"));
        assert!(young.is_empty());
        young.begin(1, &a);
        young.forget(1, None);
        assert!(young.is_empty());
    }

    /// The node knew nothing of the subscription when it accepted 1 to 4, sent 2 to 4 all the same, and 1 when it matched it again.
    #[test]
    fn of_a_node_that_does_not_know_a_subscription_nothing_comes_behind_newer_ones() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        let takes = |seq: u64| younger(&young, 1, seq, u64::MAX).is_empty();
        young.begin(1, &filter);
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([(8, 3)]), false);
        for seq in 2..5 {
            assert!(takes(seq), "{seq} comes in its turn");
            young.given(1, id(seq), &usual_message());
        }
        assert!(!takes(1) && takes(5));
        young.routed(1, std::slice::from_ref(&filter), 100);
        young.reported(7, 99, 6);
        young.given(1, id(9), &usual_message());
        assert!(!takes(7), "it does not know the route yet");
        young.reported(7, 100, 8);
        young.reported(7, 101, 20);
        assert!(!takes(7) && !takes(8));
        assert!(takes(9), "accepted with the route, and matched again");
        assert_eq!(young.of(1, "t/#").flatten().as_deref(), Some(&[(8, 3)][..]));
        young.prune(&[7, 8], |origin, seq| origin == 8 || seq < 8);
        assert!(!young.is_empty());
        young.prune(&[7, 8, 9], |origin, seq| origin == 8 || (origin == 7 && seq <= 8));
        assert!(!young.is_empty(), "nothing is known of 9");
        young.prune(&[7, 8], |origin, seq| origin == 8 || seq <= 8);
        assert!(young.is_empty());
    }

    /// The node had known the route all the time: what had been accepted before SUBACK may come again all the same.
    #[test]
    fn what_was_heard_of_before_a_suback_is_waited_for_though_the_node_knows_the_route() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.begin(1, &filter);
        young.hear(7, 13);
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([]), false);
        young.routed(1, std::slice::from_ref(&filter), 30);
        young.reported(7, 40, 12);
        young.prune(&[7], |_, seq| seq <= 12);
        let takes = |seq: u64| younger(&young, 1, seq, u64::MAX).is_empty();
        assert!(!takes(13) && takes(14));
        young.prune(&[7], |_, seq| seq <= 13);
        assert!(young.is_empty());
    }

    /// Publishes at QoS 2 leave their node when they are durable there, behind newer ones at QoS 1; two publishers keep no order.
    #[test]
    fn what_keeps_no_order_does_not_come_too_late() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.begin(1, &filter);
        young.given(1, id(5), &usual_message());
        young.hear(7, 5);
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([]), false);
        let refuses = |seq: u64, topic: &str, qos| {
            !young.younger(1, id(seq), Some(|| OrderKey::of(topic, qos)), || u64::MAX).is_empty()
        };
        assert!(refuses(4, "t/2", QoS::ExactlyOnce), "it was given its number before SUBACK");
        young.given(1, id(9), &usual_message());
        for (seq, topic, qos, refused) in [
            (6, "t/1", QoS::AtLeastOnce, true),
            (6, "t/1", QoS::ExactlyOnce, false),
            (6, "t/2", QoS::AtLeastOnce, false),
            (10, "t/1", QoS::AtLeastOnce, false),
        ] {
            assert_eq!(refuses(seq, topic, qos), refused, "{seq} {topic} {qos:?}");
        }
        assert_eq!(
            young.of(1, "t/#").flatten().as_deref(),
            Some(&[(7, 5)][..]),
            "a move loses nothing that is owed"
        );
        for n in 0..ORDER_KEYS_MAX {
            young.given(1, id(20), &message(&n.to_string()));
        }
        assert!(refuses(15, "t/2", QoS::ExactlyOnce), "too many topics to know which");
        young.prune(&[7], |_, seq| seq <= 20);
        young.routed(1, std::slice::from_ref(&filter), 100);
        assert!(!refuses(15, "t/2", QoS::ExactlyOnce), "forgotten once all are done with");
    }

    /// A session that is about to move, or waits for older publishes, takes in their turn those that came and waited; others have had them.
    #[test]
    fn what_came_and_waits_is_not_behind_what_waits_as_well() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        for session in [1, 2] {
            young.begin(session, &filter);
            young.acknowledged(session, std::slice::from_ref(&filter), || Arc::from([]), false);
        }
        let takes = |session, seq: u64| younger(&young, session, seq, u64::MAX).is_empty();
        for seq in [1, 2] {
            young.given(2, id(seq), &usual_message());
            young.hear(7, seq);
        }
        assert!(takes(1, 1) && takes(1, 2), "it was given neither");
        assert!(
            !takes(2, 1) && takes(2, 2),
            "what it was given behind a newer one, and that itself once more"
        );
        young.given(1, id(1), &usual_message());
        young.given(1, id(2), &usual_message());
        assert!(!takes(1, 1) && takes(1, 3));
        young.forget(1, None);
        young.begin(1, &filter);
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([]), true);
        young.given(3, id(9), &usual_message());
        assert!(takes(1, 1), "all nodes know of it");
        assert_eq!(young.sessions.lock().keys, 1, "of session 2");
    }

    /// Names of two publishers of one topic may come in any order.
    #[test]
    fn what_comes_for_the_first_time_is_behind_nothing_of_its_publisher() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.begin(1, &filter);
        young.acknowledged(1, std::slice::from_ref(&filter), || Arc::from([]), false);
        young.given(1, id(7), &usual_message());
        let first: Option<fn() -> OrderKey> = None;
        assert!(young.younger(1, id(6), first, || u64::MAX).is_empty());
        assert!(!younger(&young, 1, 6, u64::MAX).is_empty(), "it comes again");
    }

    #[test]
    fn what_was_refused_before_suback_stays_refused() {
        let young = Young::default();
        let filter: Arc<str> = "t/#".into();
        young.begin(1, &filter);
        let older = || {
            assert!(young.sessions.is_locked(), "nothing is judged meanwhile");
            Arc::from([(7, 6)])
        };
        young.acknowledged(1, std::slice::from_ref(&filter), older, true);
        assert!(!younger(&young, 1, 6, 0).is_empty());
    }
}
