//! Who is who: custody, orphans, reports, and whose word counts.

use super::*;

fn id(node: &str, incarnation: u64) -> MemberId {
    MemberId { node: node.into(), incarnation }
}

fn member(node: &str, incarnation: u64) -> Member {
    Member {
        id: id(node, incarnation),
        peer_address: format!("{node}:7948"),
        mqtt_address: format!("{node}:1883"),
        http_address: None,
        zone: String::new(),
        version: "1".to_owned(),
        started_ms: 0,
        draining: false,
    }
}

fn held_by(holder: MemberId, merged: bool) -> Option<Custody> {
    Some(Custody { holder, merged, copies: 1, journal: 7 })
}

/// This node is `a@1`; `a@1`, `b@2` and `c@3` are registered.
fn three() -> Members {
    let members = Members::new(id("a", 1));
    for (node, incarnation) in [("a", 1), ("b", 2), ("c", 3)] {
        members.set_member(&node.into(), Some(member(node, incarnation)), Time(1));
        members.set_custody(id(node, incarnation), held_by(id(node, incarnation), true));
    }
    members
}

fn report(applied: Revision, heard_at: u64) -> Report {
    Report { applied, heard: vec![(id("a", 1), Time(heard_at))], ..Report::default() }
}

#[test]
fn a_vanished_node_is_an_orphan_until_it_is_adopted_or_given_up() {
    let m = three();
    let b = id("b", 2);
    assert_eq!(m.reachability(&id("a", 1)), Reachability::Own);
    assert_eq!(m.reachability(&b), Reachability::Live("b".into()));
    m.link(&"b".into(), Some(b.clone()));
    m.set_member(&"b".into(), None, Time(2));
    assert_eq!(m.reachability(&b), Reachability::Live("b".into()), "its link works");
    assert_eq!((m.to_keep().len(), m.away()), (2, vec![]), "and is kept");
    m.link(&"b".into(), None);
    assert_eq!(m.away(), std::slice::from_ref(&b), "it may come back");
    assert_eq!(m.reachability(&b), Reachability::Orphan("b".into()));
    assert_eq!(m.to_keep().len(), 1);
    m.set_member(&"b".into(), Some(member("b", 9)), Time(3));
    m.set_custody(id("b", 9), held_by(id("b", 9), true));
    assert_eq!(m.reachability(&b), Reachability::Orphan("b".into()), "back, but with what journal?");
    assert!(!m.is_away(&b), "the process will not");
    m.set_custody(b.clone(), held_by(id("b", 9), true));
    assert_eq!((m.reachability(&b), m.holder_of(&b)), (Reachability::Live("b".into()), id("b", 9)));
    assert!(m.superseded(&b) && !m.superseded(&id("b", 9)));
    m.set_custody(b.clone(), None);
    assert_eq!((m.reachability(&b), m.given_up(&b)), (Reachability::Gone, true));
    m.set_member(&"c".into(), None, Time(4));
    assert_eq!(m.away(), [id("c", 3)]);
    m.set_custody(id("c", 3), None);
    assert!(m.away().is_empty(), "forgotten");
}

/// Nobody keeps its link, so that what it has not answered would wait for an answer that never comes.
#[test]
fn the_link_of_a_process_that_said_goodbye_goes_with_its_record() {
    for says_so in [true, false] {
        let m = three();
        let b = id("b", 2);
        m.link(&"b".into(), Some(b.clone()));
        if says_so {
            m.report(&b, Report { leaving: true, ..report(1, 1) }, 1, Time(2));
        } else {
            m.set_member(&"b".into(), Some(Member { draining: true, ..member("b", 2) }), Time(2));
        }
        assert!(m.reachable("b"), "it still answers");
        m.set_member(&"b".into(), None, Time(3));
        assert!(!m.reachable("b") && m.to_keep().len() == 1);
        assert_eq!(m.reachability(&b), Reachability::Orphan("b".into()));
        // Another process of the node has nothing of what the first one was sent.
        m.set_member(&"b".into(), Some(member("b", 9)), Time(4));
        assert_eq!(m.linked("b"), None);
    }
}

#[test]
fn custody_goes_on_through_merged_records_only() {
    let m = three();
    let (old, b, c) = (id("b", 1), id("b", 2), id("c", 3));
    m.set_custody(b.clone(), held_by(c.clone(), true));
    for (merged, holder) in [(true, &c), (false, &b)] {
        m.set_custody(old.clone(), held_by(b.clone(), merged));
        assert_eq!(m.holder_of(&old), *holder);
    }
    // A circle is nobody's intention, and no reason to hang.
    m.set_custody(c.clone(), held_by(b, true));
    m.holder_of(&c);
    m.set_custody(old.clone(), held_by(id("a", 1), true));
    assert_eq!(m.reachability(&old), Reachability::Own);
}

#[test]
fn all_have_applied_what_every_process_that_may_serve_has() {
    let m = three();
    let (b, c) = (id("b", 2), id("c", 3));
    assert_eq!(m.applied_by_all(Time(0), 10), 0, "nobody has said anything");
    m.report(&b, report(10, 1), 10, Time(50));
    m.report(&c, report(8, 1), 10, Time(50));
    assert_eq!((m.applied_by_all(Time(0), 10), m.applied_of("b"), m.applied_of("c")), (8, 10, 8));
    // A lost lease does not end a process: it counts for a while after it was last heard, and as long as its link works.
    m.set_member(&"c".into(), None, Time(100));
    assert_eq!(m.applied_by_all(Time(49), 10), 8);
    assert_eq!(m.applied_by_all(Time(50), 10), 10);
    m.link(&"c".into(), Some(c.clone()));
    assert_eq!(m.applied_by_all(Time(100), 10), 8);
    m.link(&"c".into(), None);
    // Another start of its node does: the old process is gone.
    m.set_member(&"c".into(), Some(member("c", 20)), Time(101));
    assert_eq!(m.applied_by_all(Time(0), 10), 0, "the new one has not reported");
    m.report(&c, report(30, 1), 10, Time(50));
    assert_eq!(m.applied_by_all(Time(0), 10), 0, "the old one is not heard");
    m.report(&id("c", 20), report(21, 1), 10, Time(50));
    assert_eq!(m.applied_by_all(Time(0), 10), 10);
    // Who was draining had closed its clients.
    m.set_member(&"c".into(), Some(Member { draining: true, ..member("c", 20) }), Time(102));
    m.set_member(&"c".into(), None, Time(103));
    m.set_member(&"b".into(), Some(Member { draining: true, ..member("b", 2) }), Time(104));
    m.set_member(&"b".into(), None, Time(104));
    assert_eq!(m.applied_by_all(Time(0), 10), u64::MAX);
}

#[test]
fn evidence_is_as_old_as_the_question_that_the_slowest_answer_answers() {
    let m = three();
    let (b, c) = (id("b", 2), id("c", 3));
    assert_eq!(m.evidence(10), None);
    m.report(&b, report(10, 500), 10, Time(50));
    assert_eq!(m.evidence(10), None, "nothing of c");
    m.report(&c, report(10, 400), 10, Time(50));
    assert_eq!(m.evidence(10), Some(Some(Time(400))));
    // b is ahead: it shows nothing until this node has come as far, and then as of when it said so.
    m.report(&b, report(12, 900), 10, Time(50));
    m.report(&c, report(10, 800), 10, Time(50));
    assert_eq!(m.evidence(10), Some(Some(Time(500))));
    m.advanced(11);
    assert_eq!(m.evidence(10), Some(Some(Time(500))));
    m.advanced(12);
    assert_eq!(m.evidence(10), Some(Some(Time(800))));
    // Who has not heard of this process, or only of another start of it, shows nothing.
    m.report(&b, Report { applied: 12, ..Report::default() }, 12, Time(50));
    m.report(&c, Report { heard: vec![(id("a", 0), Time(5_000))], ..report(12, 0) }, 12, Time(50));
    assert_eq!(m.evidence(10), Some(Some(Time(800))));
    // A process that is linked but not known to be registered counts as well.
    m.link(&"d".into(), Some(id("d", 4)));
    assert_eq!(m.evidence(10), None);
    m.link(&"d".into(), None);
    m.set_member(&"b".into(), None, Time(1));
    m.set_member(&"c".into(), None, Time(1));
    assert_eq!(m.evidence(10), Some(None), "alone");
}

#[test]
fn who_has_left_counts_until_this_node_knows_what_it_knew() {
    let m = three();
    let (b, c) = (id("b", 2), id("c", 3));
    for p in [&b, &c] {
        m.link(&p.node, Some(p.clone()));
    }
    assert!(!m.report(&b, report(10, 500), 10, Time(600)));
    assert_eq!(
        m.not_told(Time(500), 10),
        std::slice::from_ref(&c),
        "b has had the report of 500, and has applied as much"
    );
    assert_eq!(
        (m.not_told(Time(501), 10), m.not_told(Time(500), 11)),
        (vec![b.clone(), c.clone()], vec![b.clone(), c.clone()])
    );
    let leaving = || Report { leaving: true, ..report(12, 400) };
    assert!(m.report(&c, leaving(), 10, Time(600)), "that is news");
    assert!(!m.report(&c, leaving(), 10, Time(601)), "once");
    // It may have told its sessions of what this node does not know.
    assert_eq!((m.evidence(11), m.applied_by_all(Time(0), 11)), (None, 10));
    assert_eq!(m.evidence(12), Some(Some(Time(500))));
    assert_eq!((m.applied_by_all(Time(0), 12), m.not_told(Time(501), 10)), (10, vec![b.clone()]));
    // Frames still go to it while its link stands; after that they are held for its persistent sessions.
    assert_eq!((m.reachability(&c), m.reachable("c")), (Reachability::Live("c".into()), true));
    m.link(&"c".into(), None);
    assert_eq!(
        (m.reachability(&c), m.reachable("c"), m.is_live(&c)),
        (Reachability::Orphan("c".into()), false, false)
    );
    // Whatever answers at its address next is another process.
    m.link(&"c".into(), Some(id("c", 30)));
    assert_eq!(m.evidence(12), None);
    m.link(&"c".into(), None);
    m.set_member(&"c".into(), None, Time(700));
    assert_eq!(m.applied_by_all(Time(0), 12), 10, "it said goodbye");
}

#[test]
fn reports_say_what_is_settled_and_what_will_not_come_again() {
    let m = three();
    let b = id("b", 2);
    let settled = vec![("a".into(), 7), ("c".into(), 9)];
    m.report(&b, Report { low_water: 41, settled, retired: vec![1], ..report(9, 1) }, 9, Time(50));
    assert_eq!(
        (m.settled(&b, "a"), m.settled(&b, "c"), m.settled(&b, "x"), m.settled(&id("b", 1), "a")),
        (7, 9, 0, 0)
    );
    assert_eq!((m.settled_everywhere(&b), m.settled_everywhere(&id("c", 3))), (7, 0));
    assert_eq!([2, 1, 3].map(|i| m.is_over(i)), [false, true, false]);
}

#[test]
fn who_does_not_say_what_was_matched_again_counts_by_what_is_settled() {
    let m = three();
    let b = id("b", 2);
    let settled = vec![("a".into(), 7), ("c".into(), 3)];
    m.report(&b, Report { settled: settled.clone(), ..report(9, 1) }, 9, Time(1));
    assert_eq!(["a", "c", "x"].map(|of| m.past(&b, of)), [7, 3, 0]);
    assert_eq!(m.settled_everywhere(&b), 3);
    let past = vec![("c".into(), 8), ("x".into(), 4)];
    m.report(&b, Report { settled, past, past_others: 9, ..report(9, 1) }, 9, Time(1));
    assert_eq!(["a", "c", "x", "y"].map(|of| m.past(&b, of)), [9, 8, 4, 9]);
    // This node must have answered; of others it is enough. Nobody waits for what is held for one that is away.
    assert_eq!(m.settled_everywhere(&b), 7);
}

#[test]
fn what_a_later_process_has_adopted_may_come_again_until_it_says_otherwise() {
    let m = three();
    let (first, second) = (id("b", 1), id("b", 2));
    m.set_custody(first.clone(), held_by(second.clone(), true));
    m.set_custody(first.clone(), None);
    assert!(!m.is_over(1), "no session is left of it, but its publishes may be sent again");
    m.report(&second, Report { retired: vec![1], ..report(9, 1) }, 9, Time(50));
    assert!(m.is_over(1));
    // The same of a process that has only its links left, and of one that is gone.
    for linked in [true, false] {
        let m = three();
        m.set_custody(first.clone(), held_by(second.clone(), true));
        m.link(&"b".into(), linked.then(|| second.clone()));
        m.set_member(&"b".into(), None, Time(2));
        m.set_custody(first.clone(), None);
        assert_eq!(m.is_over(1), !linked);
    }
}

#[test]
fn a_snapshot_forgets_what_it_does_not_mention() {
    let m = three();
    m.set_leader(Some(id("b", 2)));
    m.begin_snapshot();
    m.set_member(&"a".into(), Some(member("a", 1)), Time(5));
    m.set_custody(id("a", 1), held_by(id("a", 1), true));
    m.set_member(&"c".into(), Some(member("c", 3)), Time(5));
    m.set_custody(id("b", 2), held_by(id("b", 2), true));
    assert_eq!(m.live().len(), 3, "old and new hold together");
    // Broken off, and begun again: what only the first one mentioned does not count.
    m.begin_snapshot();
    m.set_member(&"a".into(), Some(member("a", 1)), Time(6));
    m.set_custody(id("a", 1), held_by(id("a", 1), true));
    m.set_custody(id("b", 2), held_by(id("b", 2), true));
    assert!(m.end_snapshot(Time(7)));
    let live: Vec<_> = m.live().into_iter().map(|m| m.id).collect();
    assert_eq!(live, [id("a", 1)]);
    assert_eq!(m.reachability(&id("b", 2)), Reachability::Orphan("b".into()));
    assert_eq!((m.reachability(&id("c", 3)), m.leader()), (Reachability::Gone, None));
}
