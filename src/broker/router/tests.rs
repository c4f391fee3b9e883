//! The router alone: who gets a topic.

use super::*;
use crate::broker::mailbox::{Mailbox, Place};
use crate::clock::Time;
use crate::mqtt::packet::RetainHandling;

fn handle(no: u64, place: Place) -> Arc<Handle> {
    let mailbox = Mailbox::new(place, Default::default(), 0);
    Arc::new(Handle::new(no, Arc::from(format!("c{no}")), false, Time(0), mailbox))
}

fn subscriber(handle: &Arc<Handle>, qos: QoS, id: Option<u32>) -> Subscriber {
    let options = SubscribeOptions {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    };
    let extra = id.map(|id| Arc::new(Extra { subscription_ids: [id].into_iter().collect(), shared: None }));
    Subscriber { handle: handle.clone(), options, extra }
}

fn subscribe(r: &Router, name: &str, s: Subscriber) -> bool {
    r.subscribe(&Filter::parse(name).unwrap(), &Arc::from(name), s)
}

fn found(r: &Router, topic: &str, cache: &mut Cache) -> Vec<u64> {
    let mut nos: Vec<_> = r.lookup(topic, cache).targets.iter().map(|t| t.handle.no).collect();
    nos.sort_unstable();
    nos
}

#[test]
fn filters_find_their_topics_in_whatever_shard_they_are() {
    let filters =
        ["a", "a/b", "a/b/c", "a/b/#", "a/#", "a/+", "+/b", "a/+/c", "#", "+", "/", "/b", "x/y/+", "$SYS/#"];
    let topics = ["a", "a/b", "a/b/c", "b", "/", "/b", "x/y/z", "x/y", "$SYS/a", "a/b/c/d"];
    let r = Router::default();
    for (no, filter) in filters.iter().enumerate() {
        assert!(subscribe(
            &r,
            filter,
            subscriber(&handle(no as u64, Place::Attached), QoS::AtMostOnce, None)
        ));
    }
    let mut cache = Cache::default();
    for topic in topics {
        let expected: Vec<u64> =
            (0..).zip(filters).filter(|(_, f)| crate::topic::matches(f, topic)).map(|(no, _)| no).collect();
        assert_eq!(found(&r, topic, &mut cache), expected, "{topic}");
        assert_eq!(found(&r, topic, &mut cache), expected, "{topic} again, from the cache");
    }
    for (no, filter) in filters.iter().enumerate() {
        assert!(r.unsubscribe(&Filter::parse(filter).unwrap(), filter, no as u64));
    }
    assert_eq!(r.filters(), 0);
    assert!(topics.iter().all(|t| found(&r, t, &mut cache).is_empty()));
}

#[test]
fn overlapping_subscriptions_of_a_session_become_one() {
    let r = Router::default();
    let h = handle(1, Place::Attached);
    for (filter, qos, id) in [
        ("a/#", QoS::AtMostOnce, Some(1)),
        ("a/b", QoS::ExactlyOnce, None),
        ("+/b", QoS::AtLeastOnce, Some(3)),
    ] {
        subscribe(&r, filter, subscriber(&h, qos, id));
    }
    let mut cache = Cache::default();
    let m = r.lookup("a/b", &mut cache);
    assert_eq!(m.targets.len(), 1);
    assert_eq!(m.targets[0].qos, QoS::ExactlyOnce);
    let mut ids = m.targets[0].extra.as_ref().unwrap().subscription_ids.to_vec();
    ids.sort_unstable();
    assert_eq!(ids, [1, 3]);
}

#[test]
fn a_filter_with_very_many_subscribers_stays_cheap_to_leave() {
    let r = Router::default();
    let handles: Vec<_> = (0..5000).map(|no| handle(no, Place::Attached)).collect();
    for h in &handles {
        assert!(subscribe(&r, "t", subscriber(h, QoS::AtMostOnce, None)));
        assert!(!subscribe(&r, "t", subscriber(h, QoS::AtLeastOnce, None)));
    }
    let mut cache = Cache::default();
    assert_eq!(r.lookup("t", &mut cache).targets.len(), 5000);
    for h in &handles {
        assert!(r.unsubscribe(&Filter::parse("t").unwrap(), "t", h.no));
    }
    assert_eq!(r.filters(), 0);
}

#[test]
fn a_shared_subscription_picks_online_members_first_and_the_least_loaded_of_them() {
    let r = Router::default();
    let name = "$share/g/t";
    let dormant = handle(1, Place::Parked(Box::new(crate::session::Session::new(true))));
    let busy = handle(2, Place::Attached);
    let idle = handle(3, Place::Attached);
    busy.mailbox.set_load(5);
    for h in [&dormant, &busy, &idle] {
        subscribe(&r, name, subscriber(h, QoS::AtLeastOnce, None));
    }
    let mut cache = Cache::default();
    let group = r.lookup("t", &mut cache).groups[0].clone();
    let picked = |except| group.pick(except).map(|m| m.handle.no);
    assert_eq!(picked(0), Some(3));
    assert_eq!(picked(3), Some(2));
    let leave = |no| r.unsubscribe(&Filter::parse(name).unwrap(), name, no);
    assert!(leave(2) && leave(3));
    assert_eq!(picked(0), Some(1));
    assert!(leave(1) && !leave(1));
    assert_eq!(r.filters(), 0);
    // Equals take turns.
    for h in [&idle, &handle(4, Place::Attached)] {
        subscribe(&r, name, subscriber(h, QoS::AtLeastOnce, None));
    }
    let group = r.lookup("t", &mut cache).groups[0].clone();
    let turns: std::collections::HashSet<_> =
        (0..4).filter_map(|_| group.pick(0)).map(|m| m.handle.no).collect();
    assert_eq!(turns.len(), 2);
}
