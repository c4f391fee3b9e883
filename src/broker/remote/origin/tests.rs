use super::*;
use crate::mqtt::Message;

fn message() -> Message {
    Message::new(crate::mqtt::message::Parts {
        topic: "t",
        payload: b"1",
        properties: &[],
        qos: QoS::AtLeastOnce,
        retain: false,
        expires_at: None,
    })
}

#[test]
fn the_others_hear_of_the_low_water_mark_before_they_remember_too_many_publishes() {
    let me = MemberId { node: "n0".into(), incarnation: 7 };
    let origins = Origins::new(me, 10, 1 << 20);
    for n in 1..=2 * REPORT_AFTER {
        let id = origins.next_id();
        origins.queue(id, Entry::new(message(), 1, Time(1)), true).unwrap();
        assert!(origins.remove(id));
        assert!(!origins.remove(id), "only once");
        assert_eq!(origins.low_water_is_news(), n % REPORT_AFTER == 0, "{n}");
        if origins.low_water_is_news() {
            assert_eq!(origins.low_water(), (n as u64 + 1, vec![]));
        }
    }
}

#[test]
fn what_is_open_is_listed_below_the_low_water_mark() {
    let origins = Origins::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let ids: Vec<_> = (0..2 * OPEN_MAX).map(|_| origins.next_id()).collect();
    let queue = |id: MessageId| origins.queue(id, Entry::new(message(), 1, Time(1)), true).unwrap();
    queue(ids[5]);
    assert_eq!(origins.low_water(), (2 * OPEN_MAX as u64 + 1, vec![6]));
    ids.iter().filter(|id| **id != ids[5]).for_each(|id| queue(*id));
    let (low, open) = origins.low_water();
    assert_eq!((low, open.len()), (OPEN_MAX as u64 + 1, OPEN_MAX), "no more than fit");
}

#[test]
fn a_node_that_was_lost_and_is_back_is_asked_anew_although_it_was_asked_before() {
    let origins = Origins::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let n1: Arc<str> = "n1".into();
    let plan = |matched_at| {
        let asked = entry::Asked { direct: true, ..entry::Asked::default() };
        Plan { matched_at, direct: true, ask: [(n1.clone(), asked)].into_iter().collect(), ..Plan::default() }
    };
    let frames = |next: &Next| next.sends.iter().map(|(_, _, s)| s.frames.len()).sum::<usize>();
    let id = origins.next_id();
    assert_eq!(frames(&origins.begin(id, Entry::new(message(), 1, Time(1)), plan(5))), 1);
    let lost = origins.asked_nodes();
    // Its link and the frame are gone; it comes back before the publish is matched.
    origins.queue_again(&[], &lost);
    assert_eq!(origins.lane_next(), Some(id));
    let view = origins.check_out(id, 6).unwrap();
    assert!(view.asked.is_empty());
    assert_eq!(frames(&origins.check_in(id, plan(6), 6)), 1);
    origins.lane_done(id);
    let answer = Answer::Accepted { matched: true, declined: Vec::new() };
    let (next, _) = origins.answered(&n1, vec![(id, answer)], 6);
    assert_eq!(next.done.len(), 1);
}

#[test]
fn what_was_matched_again_is_past_a_node_that_has_not_answered() {
    let origins = Origins::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let n1: Arc<str> = "n1".into();
    let plan = |matched_at| {
        let asked = entry::Asked { direct: true, ..entry::Asked::default() };
        Plan { matched_at, direct: true, ask: [(n1.clone(), asked)].into_iter().collect(), ..Plan::default() }
    };
    let floors = |applied| (origins.settled_floor("n1", applied), origins.past_floor("n1", applied));
    let id = origins.next_id();
    origins.begin(id, Entry::new(message(), 1, Time(1)), plan(5));
    assert_eq!((floors(9), origins.past_floors(9)), ((5, 5), vec![(n1.clone(), 5)]));
    assert!(!origins.queue_behind(std::slice::from_ref(&n1), 5), "it was matched then");
    assert!(!origins.queue_behind(&["n2".into()], 6), "it was not asked");
    assert!(origins.queue_behind(std::slice::from_ref(&n1), 6));
    assert_eq!(origins.lane_next(), Some(id));
    origins.check_out(id, 7).unwrap();
    origins.check_in(id, plan(7), 7);
    origins.lane_done(id);
    assert_eq!(floors(9), (5, 7), "what it was asked at 5 is on its way");
    assert!(!origins.queue_behind(std::slice::from_ref(&n1), 7));
    let accepted = Answer::Accepted { matched: true, declined: Vec::new() };
    let (next, _) = origins.answered(&n1, vec![(id, accepted.clone())], 7);
    assert_eq!((next.sends.len(), next.risen), (1, Some(5)));
    assert_eq!(floors(9), (7, 7));
    let (next, _) = origins.answered(&n1, vec![(id, accepted)], 7);
    assert_eq!((next.done.len(), next.risen, floors(9)), (1, Some(7), (9, 9)));
    assert!(origins.past_floors(9).is_empty());
}

#[test]
fn what_this_node_waits_for_itself_is_as_new_as_its_last_match() {
    let me: Arc<str> = "n0".into();
    let origins = Origins::new(MemberId { node: me.clone(), incarnation: 7 }, 10, 1 << 20);
    let plan = |matched_at, direct| Plan { matched_at, direct, moving: true, ..Plan::default() };
    let again = |at, direct| {
        origins.queue_again(std::slice::from_ref(&me), &[]);
        let id = origins.lane_next().unwrap();
        origins.check_out(id, at).unwrap();
        origins.check_in(id, plan(at, direct), at);
        origins.lane_done(id);
        origins.settled_floor("n0", 9)
    };
    let id = origins.next_id();
    origins.begin(id, Entry::new(message(), 1, Time(1)), plan(5, true));
    assert_eq!(origins.settled_floor("n0", 9), 5);
    assert_eq!(again(6, true), 6);
    assert_eq!(again(7, false), 6, "not all that it is for was looked for");
    assert_eq!(again(8, true), 8);
}
