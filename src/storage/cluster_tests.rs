//! What journals keep for a node of a cluster, run against both.

use super::conformance::{Subject, append, both, read, sessions, wait};
use super::model::{Op, message, recipient, record};
use crate::ports::{
    Journal, MessageId, NodeRecord, ORIGIN_DUTY, OutboundState, Recovered, Seq, SessionNo, SessionRecord,
    SpooledRetain, StoreKnown, Timeline,
};

both! {
    ids_come_back_and_put_each_origin_in_order
    a_duty_keeps_its_message
    a_duty_without_an_id_is_forgotten
    what_sessions_have_seen_stays_until_told
    the_end_of_a_session_takes_what_it_has_seen
    a_message_somebody_holds_was_seen_by_all_its_sessions
    the_last_word_on_node_and_spooled_updates_counts
    a_session_that_is_pending_goes_like_any_other
    the_name_of_a_journal_stays
    what_is_known_of_the_store_goes_with_what_is_written_and_stays
}

fn id(origin: u64, seq: u64) -> MessageId {
    MessageId { origin, seq }
}

fn store(journal: &dyn Journal, id: Option<MessageId>, to: &[SessionNo]) -> Seq {
    let seq = journal.next_seq();
    let recipients = to.iter().map(|no| recipient(*no, 1)).collect();
    append(journal, &[Op::Message { seq, id, message: message("t", 9), recipients }]);
    seq
}

fn ids_come_back_and_put_each_origin_in_order<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=2);
    let ids = [Some(id(9, 3)), None, Some(id(8, 2)), Some(id(9, 1)), Some(id(8, 1)), Some(id(9, 2))];
    let seqs = ids.map(|id| store(subject.journal(), id, &[1, 2]));
    // One is on its way to the client: the others keep to the places of the others.
    let step = Op::Outbound { session: 2, packet_id: 1, seq: seqs[3], state: OutboundState::Sent };
    append(subject.journal(), &[step]);
    let ids_of = |journal: &dyn Journal| {
        read(journal, 1, seqs.to_vec()).iter().map(|stored| stored.id).collect::<Vec<_>>()
    };
    assert_eq!(ids_of(subject.journal()), ids);
    let (subject, recovered) = subject.restart();
    assert_eq!(ids_of(subject.journal()), ids);
    let at = |places: &[usize]| places.iter().map(|at| seqs[*at]).collect::<Vec<_>>();
    assert_eq!(recovered.sessions[0].pending, at(&[3, 1, 4, 5, 2, 0]));
    assert_eq!(recovered.sessions[1].pending, at(&[5, 1, 4, 2, 0]));
}

fn a_duty_keeps_its_message<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=1);
    let later = store(subject.journal(), Some(id(9, 2)), &[ORIGIN_DUTY, 1]);
    let earlier = store(subject.journal(), Some(id(9, 1)), &[ORIGIN_DUTY]);
    append(subject.journal(), &[Op::Settle { seq: later, session: 1 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.duties, [(earlier, id(9, 1)), (later, id(9, 2))]);
    assert!(recovered.sessions[0].pending.is_empty());
    assert_eq!((recovered.sessions.len(), recovered.next_session), (1, 2), "a duty is no session's");
    let kept = read(subject.journal(), ORIGIN_DUTY, vec![later, earlier]);
    assert_eq!(kept.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [later, earlier]);
    append(subject.journal(), &[Op::Settle { seq: later, session: ORIGIN_DUTY }]);
    assert_eq!(read(subject.journal(), ORIGIN_DUTY, vec![later]), []);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.duties, [(earlier, id(9, 1))]);
    append(subject.journal(), &[Op::Settle { seq: earlier, session: ORIGIN_DUTY }]);
    assert_eq!(subject.restart().1.duties, []);
}

fn a_duty_without_an_id_is_forgotten<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=1);
    let alone = store(subject.journal(), None, &[ORIGIN_DUTY]);
    let shared = store(subject.journal(), None, &[1, ORIGIN_DUTY]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.duties, []);
    assert_eq!(read(subject.journal(), ORIGIN_DUTY, vec![alone]), []);
    append(subject.journal(), &[Op::Settle { seq: shared, session: 1 }]);
    assert_eq!(read(subject.journal(), 1, vec![shared]), []);
}

fn seen(seq: u64, sessions: &[SessionNo]) -> Op {
    Op::Seen { id: id(7, seq), sessions: sessions.to_vec() }
}

fn what_sessions_have_seen_stays_until_told<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=3);
    append(subject.journal(), &[seen(2, &[3, 1]), seen(1, &[2])]);
    append(subject.journal(), &[seen(2, &[2, 3]), seen(3, &[])]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.seen, [(id(7, 1), vec![2]), (id(7, 2), vec![1, 2, 3])]);
    append(subject.journal(), &[seen(1, &[1]), Op::Unseen { id: id(7, 2) }, Op::Unseen { id: id(6, 9) }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.seen, [(id(7, 1), vec![1, 2])]);
    append(subject.journal(), &[Op::Unseen { id: id(7, 1) }]);
    let last = append(subject.journal(), &[seen(1, &[3])]);
    wait(subject.journal(), last);
    assert_eq!(subject.restart().1.seen, [(id(7, 1), vec![3])]);
}

fn the_end_of_a_session_takes_what_it_has_seen<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=3);
    append(subject.journal(), &[seen(1, &[1, 2]), seen(2, &[1]), seen(1, &[3]), seen(3, &[99])]);
    append(subject.journal(), &[Op::SessionEnd { session: 1 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.seen, [(id(7, 1), vec![2, 3])], "nor is anything kept of a session nobody knows");
    append(subject.journal(), &[Op::SessionEnd { session: 3 }, Op::SessionEnd { session: 2 }]);
    assert_eq!(subject.restart().1.seen, []);
}

fn a_message_somebody_holds_was_seen_by_all_its_sessions<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=4);
    let held = store(subject.journal(), Some(id(9, 1)), &[1, 2, 4]);
    let gone = store(subject.journal(), Some(id(9, 2)), &[1]);
    store(subject.journal(), None, &[1]);
    let again = store(subject.journal(), Some(id(9, 1)), &[3]);
    append(subject.journal(), &[Op::Settle { seq: held, session: 1 }, Op::Settle { seq: gone, session: 1 }]);
    append(subject.journal(), &[Op::SessionEnd { session: 4 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.seen, [(id(9, 1), vec![1, 2, 3])]);
    append(subject.journal(), &[Op::Settle { seq: held, session: 2 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.seen, [(id(9, 1), vec![3])]);
    append(subject.journal(), &[Op::Settle { seq: again, session: 3 }]);
    assert_eq!(subject.restart().1.seen, []);
}

fn the_last_word_on_node_and_spooled_updates_counts<S: Subject>() {
    let subject = S::fresh();
    let node = |incarnations: &[u64]| NodeRecord { node: "a".into(), incarnations: incarnations.to_vec() };
    let spooled = |topic: &str, seq, message| SpooledRetain {
        topic: topic.into(),
        message,
        id: id(1, seq),
        known: 5,
        since: seq,
    };
    let first = spooled("x", 1, Some(message("x", 1)));
    append(subject.journal(), &[Op::Node(node(&[1])), Op::Spool(first), Op::Spool(spooled("y", 2, None))]);
    let (subject, recovered) = subject.restart();
    assert_eq!((recovered.node, recovered.spooled.len()), (Some(node(&[1])), 2));
    let last = spooled("x", 3, None);
    append(
        subject.journal(),
        &[Op::Node(node(&[1, 20])), Op::Spool(last.clone()), Op::Unspool { topic: "y".to_owned() }],
    );
    let (subject, recovered) = subject.restart();
    assert_eq!((recovered.node, recovered.spooled), (Some(node(&[1, 20])), vec![last]));
    append(
        subject.journal(),
        &[Op::Unspool { topic: "x".to_owned() }, Op::Unspool { topic: "z".to_owned() }],
    );
    let (_, recovered) = subject.restart();
    assert_eq!((recovered.node, recovered.spooled), (Some(node(&[1, 20])), vec![]));
}

fn a_session_that_is_pending_goes_like_any_other<S: Subject>() {
    let subject = S::fresh();
    let pending = SessionRecord { epoch: 3, pending: true, ..record(1, 1) };
    append(subject.journal(), &[Op::Session(pending.clone()), Op::Session(record(2, 1))]);
    let only = store(subject.journal(), Some(id(9, 1)), &[1]);
    let both = store(subject.journal(), Some(id(9, 2)), &[1, 2]);
    append(subject.journal(), &[seen(1, &[1]), Op::InboundBegin { session: 1, packet_id: 8 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.sessions[0].record, pending);
    assert_eq!(recovered.sessions[0].pending, [only, both]);
    append(subject.journal(), &[Op::SessionEnd { session: 1 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.sessions.iter().map(|session| session.record.no).collect::<Vec<_>>(), [2]);
    assert_eq!(recovered.seen, [(id(9, 2), vec![2])]);
    // The claim went well: the record is written again.
    let kept = SessionRecord { epoch: 4, pending: true, ..record(3, 1) };
    let claimed = SessionRecord { pending: false, ..kept.clone() };
    append(subject.journal(), &[Op::Session(kept), Op::Session(claimed.clone())]);
    assert_eq!(subject.restart().1.sessions[1].record, claimed);
}

fn the_name_of_a_journal_stays<S: Subject>() {
    let name = |recovered: Recovered| recovered.journal;
    let (subject, recovered) = S::fresh().restart();
    let first = name(recovered);
    assert_ne!(first, 0);
    assert_eq!(name(subject.restart().1), first);
    assert_ne!(name(S::fresh().restart().1), first, "another journal has another name");
}

fn what_is_known_of_the_store_goes_with_what_is_written_and_stays<S: Subject>() {
    let subject = S::fresh();
    let later = |generation| Timeline { generation, name: generation * 7 };
    let known = |generation, revision| StoreKnown { timeline: later(generation), revision, mark: revision };
    subject.journal().know(StoreKnown { mark: 0, ..known(0, 30) });
    subject.journal().know(known(0, 30));
    subject.journal().know(known(0, 20));
    subject.journal().know(StoreKnown { mark: 0, ..known(0, 30) });
    append(subject.journal(), &[Op::Session(record(1, 1))]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.store, known(0, 30));
    // Another life of the store has revisions of its own. The end of the journal is enough.
    subject.journal().know(known(1, 12));
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.store, known(1, 12));
    let (_subject, recovered) = subject.restart();
    assert_eq!(recovered.store, known(1, 12));
}
