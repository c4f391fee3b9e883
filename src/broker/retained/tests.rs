use super::*;
use crate::mqtt::QoS;
use crate::mqtt::message::Parts;

const NOW: Time = Time(1_000);

fn message(payload: &str) -> Message {
    let (topic, payload, properties) = ("r/t", payload.as_bytes(), &[][..]);
    let (qos, expires_at) = (QoS::AtLeastOnce, None);
    Message::new(Parts { topic, payload, properties, qos, retain: true, expires_at })
}

fn id(origin: Incarnation, seq: u64) -> MessageId {
    MessageId { origin, seq }
}

/// What a subscription of this age is sent, and whether it has to be noted that it was.
fn sent(retained: &Retained, born: u64) -> Vec<(String, bool)> {
    let found = retained.found("r/#", NOW);
    let text = |m: &Message| String::from_utf8(m.payload().to_vec()).unwrap();
    found.iter().filter_map(|f| retained.send(f, born, |m, id| (text(m), id.is_some()))).collect()
}

fn applied(retained: &Retained, payload: &str, id: MessageId, revision: Revision) {
    retained.apply("r/t", Some((&message(payload), id)), revision);
}

#[test]
fn what_a_subscription_is_given_by_itself_is_not_sent_and_what_that_replaces_neither() {
    let retained = Retained::default();
    applied(&retained, "1", id(7, 1), 10);
    let early = retained.updates();
    assert_eq!(sent(&retained, early), [("1".to_owned(), true)], "its publish may still come");
    retained.begin(&message("2"), id(7, 2), false, false);
    let late = retained.updates();
    assert_eq!(sent(&retained, early), [], "it is given the second one");
    assert_eq!(retained.under_way("r/+"), [("r/t".into(), id(7, 2))]);
    applied(&retained, "2", id(7, 2), 11);
    assert_eq!(retained.under_way("r/+"), []);
    assert_eq!(sent(&retained, early), []);
    assert_eq!(sent(&retained, late), [("2".to_owned(), false)]);
}

#[test]
fn an_event_may_be_faster_than_its_publish() {
    let retained = Retained::default();
    let before = retained.updates();
    applied(&retained, "1", id(7, 1), 10);
    retained.begin(&message("1"), id(7, 1), false, false);
    assert_eq!(sent(&retained, before), [], "it is given to whoever was there");
    assert_eq!(retained.under_way("#"), []);
    // One that came before is nobody's business any more.
    retained.begin(&message("0"), id(7, 0), false, false);
    assert_eq!(retained.under_way("#"), []);
}

#[test]
fn what_was_found_and_has_changed_since_is_not_sent() {
    let retained = Retained::default();
    retained.set(&message("1"), || ());
    let (born, found) = (retained.updates(), retained.found("#", NOW));
    retained.set(&message("2"), || ());
    assert_eq!(retained.send(&found[0], born, |_, _| ()), None);
    retained.clear("r/t", || ()).unwrap();
    assert_eq!(retained.send(&found[0], retained.updates(), |_, _| ()), None);
}

#[test]
fn what_waits_for_the_store_counts_as_retained() {
    let retained = Retained::default();
    retained.begin(&message("spooled"), id(7, 1), false, true);
    assert_eq!(retained.under_way("#"), [], "nobody waits for it");
    assert_eq!(sent(&retained, retained.updates()), [("spooled".to_owned(), false)]);
    assert_eq!(sent(&retained, 0), []);
    applied(&retained, "old", id(8, 1), 10);
    assert_eq!(sent(&retained, retained.updates()), [("spooled".to_owned(), false)]);
    retained.begin(&message(""), id(7, 2), true, true);
    assert_eq!(sent(&retained, retained.updates()), []);
    retained.decided_below(7, 3, 3);
    assert_eq!(sent(&retained, retained.updates()), [("old".to_owned(), true)]);
}

#[test]
fn what_an_origin_says_of_its_updates_is_believed_until_it_is_gone() {
    let retained = Retained::default();
    for seq in 1..=3 {
        retained.begin(&message("x"), id(7, seq), false, false);
    }
    retained.decided_below(7, 2, 3);
    assert_eq!(retained.under_way("#"), [("r/t".into(), id(7, 3))], "one is decided, one is spooled");
    retained.begin(&message("x"), id(7, 1), false, false);
    assert_eq!(retained.under_way("#").len(), 1, "it was decided");
    retained.forget_origin(7);
    assert_eq!(retained.under_way("#"), []);
    assert_eq!(sent(&retained, retained.updates()), []);
}

#[test]
fn when_topics_were_cleared_is_known() {
    let retained = Retained::default();
    applied(&retained, "1", id(7, 1), 10);
    retained.apply("r/t", None, 12);
    assert!(retained.cleared_since("r/t", 11) && !retained.cleared_since("r/t", 12));
    assert_eq!(retained.cleared_after("r/#", 11, 0, NOW), ["r/t".into()]);
    assert!(retained.cleared_after("r/#", 12, 0, NOW).is_empty());
    assert!(retained.cleared_after("other", 0, 0, NOW).is_empty());
    applied(&retained, "2", id(7, 2), 13);
    assert!(retained.cleared_after("r/#", 11, 0, NOW).is_empty(), "it is set again");
    // Only the last ones.
    for n in 0..=CLEARED_MAX as u64 {
        retained.apply(&format!("t/{n}"), None, 100 + n);
    }
    assert!(!retained.cleared_since("r/t", 11) && !retained.cleared_since("t/0", 0));
    assert!(retained.cleared_since("t/1", 0));
}

#[test]
fn what_is_retained_expires_by_the_clusters_time_once_that_is_known() {
    // By how much the cluster's time is ahead of the own clock, if that is known; whether a message is found that expires 20 after the
    // present moment of the own clock, and when it does by the own clock.
    let cases = [
        (Some(0), Some(1_020)),
        (Some(500), None),
        (Some(-500), Some(1_520)),
        (Some(19), Some(1_020)),
        (Some(20), None),
        // It has expired, as far as this process can tell, which it cannot.
        (None, Some(2_000)),
    ];
    for (ahead, expected) in cases {
        let time = Arc::new(ClusterTime::unknown());
        let retained = Retained::timed(time.clone());
        let stored = Message::new(Parts { expires_at: Some(Time(1_020)), ..message("1").parts() });
        retained.apply("r/t", Some((&stored, id(7, 1))), 10);
        match ahead {
            Some(ahead) => time.set(ahead, true),
            None => time.set(500, false),
        }
        let found = retained.found("r/#", NOW);
        let sent: Vec<_> =
            found.iter().filter_map(|f| retained.send(f, 9, |m, _| m.expires_at().map(|t| t.0))).collect();
        assert_eq!(sent.into_iter().flatten().next(), expected, "{ahead:?}");
        let is_over = expected.is_none();
        assert_eq!(retained.matching("r/t", NOW).is_empty(), is_over);
        assert_eq!(retained.found_after("r/t", 9, NOW).is_empty(), is_over);
        let due: &[(Arc<str>, Revision)] = if is_over { &[("r/t".into(), 10)] } else { &[] };
        assert_eq!(retained.expired(NOW, 9), due, "{ahead:?}");
        // Who missed that it was cleared is told, unless it had expired.
        retained.apply("r/t", None, 11);
        assert_eq!(retained.cleared_after("r/#", 10, 9, NOW).is_empty(), is_over);
    }
}
