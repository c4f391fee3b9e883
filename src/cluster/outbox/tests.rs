use super::entry::Stage;
use super::*;
use crate::mqtt::Message;
use crate::mqtt::QoS;

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
    let outbox = Outbox::new(me, 10, 1 << 20);
    for n in 1..=2 * REPORT_AFTER {
        let id = outbox.next_id();
        assert!(outbox.queue(id, Entry::new(message(), 1, Time(1)), true));
        assert!(outbox.remove(id));
        assert!(!outbox.remove(id), "only once");
        assert_eq!(outbox.low_water_is_news(), n % REPORT_AFTER == 0, "{n}");
        if outbox.low_water_is_news() {
            assert_eq!(outbox.low_water(), (n as u64 + 1, vec![]));
        }
    }
}

#[test]
fn what_is_open_is_listed_below_the_low_water_mark() {
    let outbox = Outbox::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let ids: Vec<_> = (0..2 * OPEN_MAX).map(|_| outbox.next_id()).collect();
    let queue = |id: MessageId| assert!(outbox.queue(id, Entry::new(message(), 1, Time(1)), true));
    queue(ids[5]);
    assert_eq!(outbox.low_water(), (2 * OPEN_MAX as u64 + 1, vec![6]));
    ids.iter().filter(|id| **id != ids[5]).for_each(|id| queue(*id));
    let (low, open) = outbox.low_water();
    assert_eq!((low, open.len()), (OPEN_MAX as u64 + 1, OPEN_MAX), "no more than fit");
}

#[test]
fn a_node_that_was_lost_and_is_back_is_asked_anew_although_it_was_asked_before() {
    let outbox = Outbox::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let n1: Arc<str> = "n1".into();
    let plan = |matched_at| {
        let asked = entry::Asked { direct: true, ..entry::Asked::default() };
        Plan { matched_at, direct: true, ask: [(n1.clone(), asked)].into_iter().collect(), ..Plan::default() }
    };
    let frames = |next: &Actions| next.sends.iter().map(|(_, _, s)| s.frames.len()).sum::<usize>();
    let id = outbox.next_id();
    assert_eq!(frames(&outbox.begin(id, Entry::new(message(), 1, Time(1)), plan(5))), 1);
    let lost = outbox.asked_nodes();
    // Its link and the frame are gone; it comes back before the publish is matched.
    assert_eq!(outbox.queue_again(&[], &lost), [(n1.clone(), id)]);
    let (first, view) = outbox.next_unmatched(6).unwrap();
    assert_eq!(first, id);
    assert!(view.asked.is_empty());
    assert_eq!(frames(&outbox.check_in(id, plan(6), 6)), 1);
    outbox.unmatched_done(id);
    let answer = accepted();
    let next = outbox.answered(&n1, vec![(id, answer)], 6);
    assert_eq!(next.done.len(), 1);
}

#[test]
fn what_was_matched_again_is_past_a_node_that_has_not_answered() {
    let outbox = Outbox::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20);
    let n1: Arc<str> = "n1".into();
    let plan = |matched_at| {
        let asked = entry::Asked { direct: true, ..entry::Asked::default() };
        Plan { matched_at, direct: true, ask: [(n1.clone(), asked)].into_iter().collect(), ..Plan::default() }
    };
    let watermarks =
        |applied| (outbox.settled_watermark("n1", applied), outbox.past_watermark("n1", applied));
    let id = outbox.next_id();
    outbox.begin(id, Entry::new(message(), 1, Time(1)), plan(5));
    assert_eq!((watermarks(9), outbox.past_watermarks(9)), ((5, 5), vec![(n1.clone(), 5)]));
    assert!(!outbox.queue_behind(std::slice::from_ref(&n1), 5), "it was matched then");
    assert!(!outbox.queue_behind(&["n2".into()], 6), "it was not asked");
    assert!(outbox.queue_behind(std::slice::from_ref(&n1), 6));
    assert_eq!(outbox.next_unmatched(7).unwrap().0, id);
    outbox.check_in(id, plan(7), 7);
    outbox.unmatched_done(id);
    assert_eq!(watermarks(9), (5, 7), "what it was asked at 5 is on its way");
    assert!(!outbox.queue_behind(std::slice::from_ref(&n1), 7));
    let next = outbox.answered(&n1, vec![(id, accepted())], 7);
    assert_eq!((next.sends.len(), next.risen), (1, Some(5)));
    assert_eq!(watermarks(9), (7, 7));
    let next = outbox.answered(&n1, vec![(id, accepted())], 7);
    assert_eq!((next.done.len(), next.risen, watermarks(9)), (1, Some(7), (9, 9)));
    assert!(outbox.past_watermarks(9).is_empty());
}

#[test]
fn what_this_node_waits_for_itself_is_as_new_as_its_last_match() {
    let me: Arc<str> = "n0".into();
    let outbox = Outbox::new(MemberId { node: me.clone(), incarnation: 7 }, 10, 1 << 20);
    let plan = |matched_at, direct| Plan { matched_at, direct, moving: true, ..Plan::default() };
    let again = |at, direct| {
        assert!(outbox.queue_again(std::slice::from_ref(&me), &[]).is_empty());
        let (id, _) = outbox.next_unmatched(at).unwrap();
        outbox.check_in(id, plan(at, direct), at);
        outbox.unmatched_done(id);
        outbox.settled_watermark("n0", 9)
    };
    let id = outbox.next_id();
    outbox.begin(id, Entry::new(message(), 1, Time(1)), plan(5, true));
    assert_eq!(outbox.settled_watermark("n0", 9), 5);
    assert_eq!(again(6, true), 6);
    assert_eq!(again(7, false), 6, "not all that it is for was looked for");
    assert_eq!(again(8, true), 8);
}

fn outbox() -> Outbox {
    Outbox::new(MemberId { node: "n0".into(), incarnation: 7 }, 10, 1 << 20)
}

fn at_stage(stage: Stage) -> Entry {
    let mut entry = Entry::new(message(), 1, Time(1));
    entry.stage = stage;
    entry
}

fn accepted() -> Answer {
    Answer::Accepted { matched: true, declined: Vec::new() }
}

fn direct() -> entry::Asked {
    entry::Asked { direct: true, ..entry::Asked::default() }
}

/// A publish that was held for `n1` since 5, about which `n1` is asked for a group since 9, and is to be asked for its own subscribers
/// since 12.
fn behind_a_group() -> (Outbox, Arc<str>, MessageId) {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    let held =
        Plan { matched_at: 5, direct: true, away: [n1.clone()].into_iter().collect(), ..Plan::default() };
    outbox.begin(id, Entry::new(message(), 1, Time(1)), held);
    assert_eq!(outbox.settled_watermark(&n1, 20), 5);
    let group = entry::OpenGroup { at: Some(n1.clone()), ..entry::OpenGroup::new("$share/g/t".into()) };
    let ask = entry::Asked { groups: [group.ask()].into_iter().collect(), ..entry::Asked::default() };
    assert!(outbox.queue_again(std::slice::from_ref(&n1), &[]).is_empty());
    outbox.next_unmatched(9).unwrap();
    let (groups, ask) = ([group].into_iter().collect(), [(n1.clone(), ask)].into_iter().collect());
    outbox.check_in(id, Plan { matched_at: 9, ask, groups, ..Plan::default() }, 9);
    outbox.unmatched_done(id);
    assert!(outbox.queue_again(std::slice::from_ref(&n1), &[]).is_empty());
    outbox.next_unmatched(12).unwrap();
    let ask = [(n1.clone(), direct())].into_iter().collect();
    let next = outbox.check_in(id, Plan { matched_at: 12, direct: true, ask, ..Plan::default() }, 12);
    outbox.unmatched_done(id);
    assert!(next.sends.iter().all(|(_, _, sends)| sends.frames.is_empty()), "the node has not answered");
    assert_eq!(outbox.settled_watermark(&n1, 20), 5);
    (outbox, n1, id)
}

/// What a node is to be asked for its own subscribers waits for its answer about a group: meanwhile newer publishes to it must not be
/// taken for older ones' successors.
#[test]
fn what_waits_behind_a_question_about_a_group_is_on_its_way_since_it_was_held() {
    let (outbox, n1, id) = behind_a_group();
    let answer = accepted();
    let next = outbox.answered(&n1, vec![(id, answer)], 12);
    assert_eq!(next.sends.len(), 1);
    assert_eq!(outbox.settled_watermark(&n1, 20), 12);
}

#[test]
fn what_is_matched_anew_after_an_answer_about_a_group_is_on_its_way_since_it_was_held() {
    let (outbox, n1, id) = behind_a_group();
    let answer = accepted();
    let next = outbox.answered(&n1, vec![(id, answer)], 15);
    assert_eq!((next.sends.len(), outbox.settled_watermark(&n1, 20)), (0, 5));
    let view = outbox.check_out(id, 15).unwrap();
    assert!(view.direct);
    let ask = [(n1.clone(), direct())].into_iter().collect();
    let next = outbox.check_in(id, Plan { matched_at: 15, direct: true, ask, ..Plan::default() }, 15);
    assert_eq!(next.sends.iter().map(|(_, _, sends)| sends.frames.len()).sum::<usize>(), 1);
    assert_eq!(outbox.settled_watermark(&n1, 20), 15);
}

#[test]
fn nobody_takes_a_publish_out_of_the_hands_of_the_lane() {
    let outbox = outbox();
    let id = outbox.next_id();
    assert!(outbox.queue(id, at_stage(Stage::Unmatched), true));
    assert_eq!(outbox.next_unmatched(6).unwrap().0, id);
    // An answer has come at this very moment.
    outbox.moved_here(id, 0, 6);
    assert!(outbox.check_out(id, 6).is_none());
    outbox.check_in(id, Plan { matched_at: 6, direct: true, ..Plan::default() }, 6);
}

#[test]
fn a_publish_that_waits_for_its_record_takes_its_turn_when_nodes_change() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let plan = |matched_at| {
        let ask = [(n1.clone(), direct())].into_iter().collect();
        Plan { matched_at, direct: true, ask, ..Plan::default() }
    };
    let (first, second) = (outbox.next_id(), outbox.next_id());
    outbox.begin(first, Entry::new(message(), 1, Time(1)), plan(5));
    let mut recording = at_stage(Stage::Recording);
    recording.duty = Some(3);
    outbox.begin(second, recording, plan(5));
    let unanswered = outbox.queue_again(&[], std::slice::from_ref(&n1));
    assert_eq!(unanswered, [(n1.clone(), first), (n1.clone(), second)]);
    let next = outbox.recorded(second, 5);
    assert!(next.sends.is_empty() && next.again.is_empty(), "the first one is matched before");
    assert_eq!(outbox.next_unmatched(5).unwrap().0, first);
    outbox.check_in(first, plan(5), 5);
    outbox.unmatched_done(first);
    assert_eq!(outbox.next_unmatched(5).unwrap().0, second);
}

#[test]
fn a_match_for_groups_alone_settles_nothing_else() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    // A node that is away has a member.
    let away = Some("n2".into());
    let group = entry::OpenGroup { at: away, away: true, ..entry::OpenGroup::new("$share/g/t".into()) };
    let (ask, groups) =
        ([(n1.clone(), direct())].into_iter().collect(), [group.clone()].into_iter().collect());
    outbox.begin(
        id,
        Entry::new(message(), 1, Time(1)),
        Plan { matched_at: 5, direct: true, ask, groups, ..Plan::default() },
    );
    // It could not make the publish safe; then somebody here serves the group.
    outbox.answered(&n1, vec![(id, Answer::Failed("full".into()))], 6);
    let next = outbox.check_in(
        id,
        Plan { matched_at: 6, served: [group.name].into_iter().collect(), ..Plan::default() },
        6,
    );
    assert!(next.done.is_empty());
    assert_eq!(outbox.settled_watermark(&n1, 6), 5);
}

/// A node answers while the publish is being matched: what it was to be asked next, to serve a shared subscription, is void, and the match asks
/// it for its own subscribers only. The next match must not take it for asked.
#[test]
fn a_node_that_is_asked_for_its_own_subscribers_is_not_asked_to_serve_a_group() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    let at = Some(n1.clone());
    let group = entry::OpenGroup { at, ..entry::OpenGroup::new("$share/g/t".into()) };
    let to_serve = entry::Asked { direct: false, groups: [group.ask()].into_iter().collect() };
    let direct_plan = |matched_at, moving| Plan {
        matched_at,
        direct: true,
        ask: [(n1.clone(), direct())].into_iter().collect(),
        groups: if moving { [group.clone()].into_iter().collect() } else { Default::default() },
        moving,
        ..Plan::default()
    };
    // Asked for its own subscribers; a session here may be about to move as well.
    outbox.begin(id, Entry::new(message(), 1, Time(1)), direct_plan(5, true));
    // It is to serve a group once it has answered.
    let ask = [(n1.clone(), to_serve)].into_iter().collect();
    outbox.check_in(id, Plan { matched_at: 5, ask, ..Plan::default() }, 5);
    assert_eq!(outbox.moved_here(id, 6, 6).again, [id]);
    let first = outbox.check_out(id, 6).unwrap();
    assert_eq!(&*first.asked_groups, ["$share/g/t".into()]);
    let next = outbox.answered(&n1, vec![(id, accepted())], 6);
    assert!(next.sends.is_empty(), "what was to be asked was matched on an older index");
    let next = outbox.check_in(id, direct_plan(6, false), 6);
    assert_eq!((next.sends.len(), next.again), (1, vec![id]));
    let second = outbox.check_out(id, 6).unwrap();
    assert_eq!(&*second.asked, [n1]);
    assert!(second.asked_groups.is_empty() && second.groups.len() == 1, "nobody is asked to serve it");
}

/// A session here moved at a revision that this node's index has not reached when the record of a publish becomes durable. Other nodes must
/// not wait for that: what is published next reaches them at once, and would overtake.
#[test]
fn frames_that_wait_for_a_record_do_not_wait_for_a_session_that_moved_as_well() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let plan = |matched_at, moving| Plan {
        matched_at,
        direct: true,
        ask: [(n1.clone(), direct())].into_iter().collect(),
        moving,
        ..Plan::default()
    };
    let frames = |next: &Actions| next.sends.iter().map(|(_, _, s)| s.frames.len()).sum::<usize>();
    for durable_at in [62, 64] {
        let id = outbox.next_id();
        let first = outbox.begin(id, at_stage(Stage::Recording), plan(62, true));
        assert_eq!(frames(&first), 0, "its record is not durable");
        assert_eq!(outbox.moved_here(id, 66, 62).again, []);
        let next = outbox.recorded(id, durable_at);
        if durable_at == 62 {
            assert_eq!((frames(&next), next.again.len()), (1, 0), "matched on what is known still");
        } else {
            assert_eq!((frames(&next), &next.again), (0, &vec![id]), "matched at once");
            outbox.check_out(id, 64).unwrap();
            assert_eq!(frames(&outbox.check_in(id, plan(64, false), 64)), 1);
        }
        assert!(outbox.settled_watermark("n0", 66) < 66, "where the session went nobody knows yet");
        let next = outbox.answered(&n1, vec![(id, accepted())], 64);
        assert!(next.done.is_empty() && outbox.check_out(id, 65).is_none());
        // The index has come to the move.
        assert_eq!(outbox.due(66), [id]);
        outbox.check_out(id, 66).unwrap();
        let next = outbox.check_in(id, Plan { matched_at: 66, direct: true, ..Plan::default() }, 66);
        assert_eq!(next.done.len(), 1);
        assert!(outbox.remove(id));
        assert_eq!(outbox.settled_watermark("n0", 66), 66);
    }
}

/// Who finds the publish at its end settles the record by its number: before the record is there that would settle nothing.
#[test]
fn a_new_number_of_a_record_is_seen_once_the_record_is_appended() {
    let outbox = outbox();
    let id = outbox.next_id();
    let mut entry = Entry::new(message(), 1, Time(1));
    entry.duty = Some(3);
    let ask = [("n1".into(), direct())].into_iter().collect();
    outbox.begin(id, entry, Plan { matched_at: 5, direct: true, ask, ..Plan::default() });
    let appended = outbox.renote(id, 4, |_, old, _| {
        assert!(outbox.locked.try_lock().is_none(), "it can be seen that the number is another one");
        old + 100
    });
    assert_eq!(appended, Some(103));
    assert_eq!(outbox.locked.lock().machine.entries[&id].duty, Some(4));
}

fn direct_plan(matched_at: Revision, nodes: &[&str]) -> Plan {
    let ask = nodes.iter().map(|node| (Arc::from(*node), direct())).collect();
    Plan { matched_at, direct: true, ask, ..Plan::default() }
}

fn frames(next: &Actions) -> Vec<(String, Revision)> {
    let frames = next.sends.iter().flat_map(|(_, _, sends)| &sends.frames);
    frames.map(|(node, at, _)| (node.to_string(), *at)).collect()
}

fn watermarks(outbox: &Outbox, node: &str) -> (Revision, Revision) {
    (outbox.settled_watermark(node, 1_000), outbox.past_watermark(node, 1_000))
}

/// Sessions of two nodes moved, one at a revision that this node has applied, the other at one that it has not. Who can be found is found
/// at once, since later publishes to them do not wait either; where the other one is nobody claims to know.
#[test]
fn a_publish_does_not_wait_for_the_last_of_its_sessions_that_moved() {
    let (n1, n2): (Arc<str>, Arc<str>) = ("n1".into(), "n2".into());
    for first_known in [true, false] {
        let (outbox, applied) = (outbox(), 145);
        let id = outbox.next_id();
        outbox.begin(id, Entry::new(message(), 1, Time(1)), direct_plan(140, &["n1", "n2"]));
        let (known, unknown) = (Answer::Moved(145), Answer::Moved(146));
        let answers =
            if first_known { [(&n1, known), (&n2, unknown)] } else { [(&n2, unknown), (&n1, known)] };
        let mut again = Vec::new();
        for (node, answer) in answers {
            again.extend(outbox.answered(node, vec![(id, answer)], applied).again);
        }
        assert_eq!(again[0], id, "the one is known to have moved");
        assert_eq!((watermarks(&outbox, "n1"), watermarks(&outbox, "n2")), ((140, 140), (140, 140)));
        assert!(outbox.check_out(id, applied).unwrap().direct);
        let next = outbox.check_in(id, direct_plan(145, &["n3"]), applied);
        assert_eq!(frames(&next), [("n3".to_owned(), 145)]);
        assert!(next.again.is_empty() && next.done.is_empty());
        assert_eq!(watermarks(&outbox, "n1"), (1_000, 1_000));
        assert_eq!(watermarks(&outbox, "n2"), (145, 145), "who moved at 146 was not found");
        outbox.answered(&"n3".into(), vec![(id, accepted())], applied);
        assert!(outbox.check_out(id, applied).is_none(), "nothing new is known");
        assert_eq!(outbox.due(146), [id]);
        outbox.check_out(id, 146).unwrap();
        let next = outbox.check_in(id, direct_plan(146, &[]), 146);
        assert_eq!(next.done.len(), 1);
        assert_eq!(watermarks(&outbox, "n2"), (1_000, 1_000));
    }
}

/// While a publish is matched, a node says that a session moved at a revision which that match does not know.
#[test]
fn a_match_settles_no_move_that_its_index_does_not_know() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    outbox.begin(id, Entry::new(message(), 1, Time(1)), direct_plan(140, &["n1", "n2"]));
    assert_eq!(outbox.answered(&"n2".into(), vec![(id, Answer::Moved(145))], 145).again, [id]);
    outbox.check_out(id, 145).unwrap();
    assert!(outbox.answered(&n1, vec![(id, Answer::Moved(146))], 145).again.is_empty());
    outbox.check_in(id, direct_plan(145, &[]), 145);
    assert_eq!(watermarks(&outbox, "n1"), (145, 145));
    assert_eq!(outbox.due(146), [id]);
    outbox.check_out(id, 146).unwrap();
    assert_eq!(outbox.check_in(id, direct_plan(146, &[]), 146).done.len(), 1);
}

fn group_at(node: &str) -> entry::OpenGroup {
    entry::OpenGroup { at: Some(node.into()), ..entry::OpenGroup::new("$share/g/t".into()) }
}

fn group_plan(matched_at: Revision, node: &str) -> Plan {
    let group = group_at(node);
    let ask = entry::Asked { groups: [group.ask()].into_iter().collect(), ..entry::Asked::default() };
    let (groups, ask) = ([group].into_iter().collect(), [(node.into(), ask)].into_iter().collect());
    Plan { matched_at, ask, groups, ..Plan::default() }
}

/// A node keeps the place of a publish for its own subscribers, one of which moved, and takes the next frame of that publish for theirs.
#[test]
fn nobody_is_asked_about_a_group_alone_while_a_session_is_to_be_looked_for() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    let declining = group_plan(140, "n2");
    let mut first = direct_plan(140, &["n1"]);
    first.ask.extend(declining.ask);
    first.groups = declining.groups;
    outbox.begin(id, Entry::new(message(), 1, Time(1)), first);
    outbox.answered(&n1, vec![(id, Answer::Moved(146))], 143);
    let declined = Answer::Accepted { matched: false, declined: vec!["$share/g/t".into()] };
    assert!(outbox.answered(&"n2".into(), vec![(id, declined)], 143).again.is_empty());
    assert!(outbox.check_out(id, 143).is_none());
    assert_eq!(outbox.due(146), [id]);
    let view = outbox.check_out(id, 146).unwrap();
    assert!(view.direct && view.groups[0].at.is_none());
    let served = [view.groups[0].name.clone()].into_iter().collect();
    let next = outbox.check_in(id, Plan { served, ..direct_plan(146, &[]) }, 146);
    assert_eq!(next.done.len(), 1);
}

/// The same, and the node says so while its group is being chosen.
#[test]
fn a_node_whose_session_has_just_moved_is_not_asked_about_a_group_alone() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    let mut first = direct_plan(140, &["n1"]);
    first.groups = [entry::OpenGroup { at: None, ..group_at("n1") }].into_iter().collect();
    first.moving = true;
    outbox.begin(id, Entry::new(message(), 1, Time(1)), first);
    outbox.locked.lock().machine.entries.get_mut(&id).unwrap().match_soon(false);
    assert!(!outbox.check_out(id, 143).unwrap().direct);
    outbox.answered(&n1, vec![(id, Answer::Moved(146))], 143);
    assert!(frames(&outbox.check_in(id, group_plan(143, "n1"), 143)).is_empty());
    assert_eq!(outbox.due(146), [id]);
    let view = outbox.check_out(id, 146).unwrap();
    assert!(view.direct && view.asked_groups.is_empty(), "it is asked now");
}

/// What a node is to be asked for its own subscribers was matched at 12; that it is to serve a group as well, at 14. A session that left it
/// in between was not looked for.
#[test]
fn a_question_that_waits_is_as_old_as_its_oldest_part() {
    let (outbox, n1, id) = behind_a_group();
    assert!(outbox.queue_again(std::slice::from_ref(&n1), &[]).is_empty());
    outbox.next_unmatched(14).unwrap();
    outbox.check_in(id, group_plan(14, "n1"), 14);
    outbox.unmatched_done(id);
    let next = outbox.answered(&n1, vec![(id, accepted())], 14);
    assert_eq!((frames(&next), next.again), (vec![], vec![id]), "it is matched anew");
    assert!(outbox.check_out(id, 14).unwrap().direct);
}

#[test]
fn a_node_that_could_not_take_a_publish_of_a_group_is_asked_after_a_while() {
    let (outbox, n1): (_, Arc<str>) = (outbox(), "n1".into());
    let id = outbox.next_id();
    outbox.begin(id, Entry::new(message(), 1, Time(1)), group_plan(5, "n1"));
    let next = outbox.answered(&n1, vec![(id, Answer::Failed("full".into()))], 6);
    assert_eq!((next.again, next.failed), (vec![], vec![id]));
    assert!(outbox.check_out(id, 6).is_none());
    assert_eq!(outbox.retry(), [id]);
    assert!(outbox.check_out(id, 6).is_some());
}
