//! That good histories pass, and that every breach is found.

use super::*;

fn got(msg: Msg) -> Event {
    Event::Received { by: "1".into(), conn: 1, dup: false, msg }
}

fn m(n: u64) -> Msg {
    Msg { from: "p".into(), topic: "t".into(), qos: 2, n, retain: false }
}

fn connecting(by: &str, clean: bool) -> Event {
    Event::Connecting { by: by.into(), conn: 1, clean, will: None }
}

fn connected(by: &str, clean: bool, present: bool) -> Event {
    Event::Connected { by: by.into(), conn: 1, clean, present }
}

fn start() -> Vec<Event> {
    vec![
        connecting("1", false),
        connected("1", false, false),
        Event::Subscribed { by: "1".into(), filter: "t".into() },
    ]
}

fn finds(more: &[Event], what: &str) {
    let history = [&start()[..], more].concat();
    let broken = check(&history);
    assert!(broken.iter().any(|b| b.contains(what)), "{what:?} not among {broken:?}");
}

#[test]
fn a_good_history_passes() {
    let more = [
        Event::Sent(m(1)),
        got(m(1)),
        Event::Sent(m(1)),
        Event::Acked(m(1)),
        connecting("1", false),
        connected("1", false, true),
        connecting("1", true),
        connected("1", true, false),
    ];
    assert_eq!(check(&[&start()[..], &more].concat()), Vec::<String>::new());
}

#[test]
fn every_broken_promise_is_found() {
    let came = got(m(1));
    finds(&[Event::Sent(m(1)), Event::Acked(m(1))], "never got");
    finds(&[Event::Sent(m(1)), came.clone(), came.clone()], "twice");
    finds(std::slice::from_ref(&came), "nobody has sent");
    let later = m(2);
    let order = [Event::Sent(m(1)), Event::Sent(later), got(later), came];
    finds(&order, "after number 2");
    let again = connecting("1", false);
    finds(&[again, connected("1", false, false)], "is gone");
    let new = connecting("2", true);
    finds(&[new, connected("2", true, true)], "has not");
}

/// Short histories: `+t/q/n` sent, `!` acked, `>` received by s, `D` received with DUP, `K` killed and connected again.
#[test]
fn the_checker_finds_breaches() {
    let cases = [
        ("+t/1/1 !t/1/1 >t/1/1", ""),
        ("+t/1/1 !t/1/1", "never got"),
        ("+t/1/1", ""),
        ("+t/1/1 >t/1/1", ""),
        (">t/1/1", "nobody has sent"),
        ("!t/1/1 +t/1/1 >t/1/1", "never sent"),
        ("+t/2/1 >t/2/1 K +t/2/1 >t/2/1", "twice"),
        ("+t/2/1 >t/2/1 Dt/2/1", "twice"),
        ("+t/1/1 >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 Dt/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 K Dt/1/1", ""),
        ("+t/1/1 >t/1/1 +t/1/1 >t/1/1 K Dt/1/1 Dt/1/1", ""),
        ("+t/1/1 >t/1/1 K >t/1/1", ""),
        ("+t/1/1 K >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 +t/1/1 >t/1/1", ""),
        ("+t/1/1 +t/1/1 >t/1/1 >t/1/1", ""),
        ("+t/1/1 +t/1/1 >t/1/1 >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 +t/1/2 >t/1/2 >t/1/1", "after number 2"),
        ("+t/1/1 +t/1/2 >t/1/1 >t/1/2 K Dt/1/1", ""),
        ("+t/1/1 +t/1/2 +t/1/3 >t/1/1 >t/1/3", ""),
        ("+t/1/1 +u/1/2 >u/1/2 >t/1/1", ""),
        ("+t/1/1 +t/2/2 >t/2/2 >t/1/1", ""),
        ("+x/1/1 !x/1/1", ""),
    ];
    for (text, expected) in cases {
        let mut events = vec![
            Event::Subscribed { by: "s".into(), filter: "t".into() },
            Event::Subscribed { by: "s".into(), filter: "u".into() },
        ];
        let mut conn = 1;
        for word in text.split(' ') {
            let msg = || {
                let fields: Vec<_> = word[1..].split('/').collect();
                Msg::parse(fields[0], format!("p {} {}", fields[1], fields[2]).as_bytes()).unwrap()
            };
            events.push(match &word[..1] {
                "+" => Event::Sent(msg()),
                "!" => Event::Acked(msg()),
                "K" => {
                    conn += 1;
                    Event::Killed
                }
                mark => Event::Received { by: "s".into(), conn, dup: mark == "D", msg: msg() },
            });
        }
        let breaches = check(&events);
        assert_eq!(breaches.len(), usize::from(!expected.is_empty()), "{text}: {breaches:?}");
        assert!(breaches.iter().all(|b| b.contains(expected)), "{text}: {breaches:?}");
    }
}

#[test]
fn filters_match() {
    let cases = [
        ("#", "a/b", true),
        ("a/#", "a", true),
        ("a/#", "a/b/c", true),
        ("a/+", "a/b", true),
        ("a/+", "a/b/c", false),
        ("+/b", "a/b", true),
        ("a", "a/b", false),
        ("a/b", "a", false),
    ];
    for (filter, topic, expected) in cases {
        assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
    }
}
