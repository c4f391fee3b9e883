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
