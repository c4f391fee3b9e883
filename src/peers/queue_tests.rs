//! The queue alone, against what it promises.

use super::*;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::peers::proto::{Exception, Range};
use crate::ports::{MemberId, MessageId, RetainedProgress};

fn frame(seq: u64) -> Frame {
    let qos = if seq == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let message = Message::new(Parts {
        topic: "t",
        payload: &seq.to_be_bytes(),
        properties: &[],
        qos,
        retain: false,
        expires_at: None,
    });
    Frame {
        id: (seq > 0).then_some(id(seq)),
        matched_at: 1,
        direct: true,
        groups: Vec::new(),
        message,
        update: None,
        first: false,
    }
}

fn id(seq: u64) -> MessageId {
    MessageId { origin: 7, seq }
}

fn queue() -> Queue {
    Queue::new(&PeerOptions::default(), None)
}

fn report(applied: u64) -> Report {
    Report { applied, ..Report::default() }
}

/// What is sent: sequence numbers with positions, QoS 0 as 0, reports as their revision.
#[derive(Debug, PartialEq)]
enum Sent {
    Frame(u64, u64),
    Loose,
    Report(u64),
}

fn take(queue: &mut Queue) -> Vec<Sent> {
    let mut sent = Vec::new();
    while let Some(batch) = queue.take(Time(1000)) {
        let mut position = batch.message.first_position;
        for frame in batch.message.frames {
            let Some(id) = frame.id else {
                sent.push(Sent::Loose);
                continue;
            };
            position += u64::from(frame.skipped);
            sent.push(Sent::Frame(id.seq, position));
            position += 1;
        }
        sent.extend(batch.message.report.map(|r| Sent::Report(r.applied)));
    }
    sent
}

fn accept(queue: &mut Queue, first: u64, count: u64) -> Vec<u64> {
    let batch = proto::AnswerBatch { accepted: vec![Range { first, count }], ..Default::default() };
    queue.answered(batch).into_iter().map(|(id, _)| id.seq).collect()
}

#[test]
fn what_is_not_answered_comes_again_first_by_name_and_the_latest_report_after_it() {
    let mut queue = queue();
    queue.open();
    queue.push(frame(2)).unwrap();
    queue.report(&report(10));
    queue.push(frame(3)).unwrap();
    // It has been matched again: the receiver knows that what came before waits for it.
    queue.push(frame(1)).unwrap();
    assert_eq!(take(&mut queue), [Sent::Frame(2, 1), Sent::Report(10), Sent::Frame(3, 2), Sent::Frame(1, 3)]);
    assert_eq!(accept(&mut queue, 2, 1), [3]);
    queue.close();
    queue.push(frame(4)).unwrap();
    queue.report(&report(11));
    queue.report(&report(12));
    assert_eq!((queue.unanswered(), queue.queued()), (0, 3));
    assert_eq!(queue.open(), 2);
    queue.push(frame(5)).unwrap();
    assert_eq!(
        take(&mut queue),
        [Sent::Frame(1, 5), Sent::Frame(2, 6), Sent::Frame(4, 7), Sent::Report(12), Sent::Frame(5, 8)]
    );
    assert_eq!((queue.unanswered(), queue.queued()), (4, 0));
    assert_eq!(accept(&mut queue, 1, 4), [0; 0], "of the stream before");
    assert_eq!(accept(&mut queue, 5, 4), [1, 2, 4, 5]);
    assert_eq!(accept(&mut queue, 5, 4), [0; 0], "answered once");
}

#[test]
fn reports_give_way_to_later_ones_only_side_by_side() {
    let mut queue = queue();
    queue.open();
    queue.report(&report(1));
    queue.report(&report(2));
    queue.push(frame(0)).unwrap();
    queue.report(&report(3));
    queue.report(&report(4));
    assert_eq!(take(&mut queue), [Sent::Report(2), Sent::Loose, Sent::Report(4)]);
}

#[test]
fn what_waits_for_a_node_that_does_not_read_stays_small() {
    let mut queue = queue();
    queue.open();
    queue.push(frame(1)).unwrap();
    queue.report(&report(1));
    for seq in 2..100_000 {
        queue.push(frame(seq)).unwrap();
        queue.report(&report(seq));
        queue.cancel(id(seq));
        assert!(queue.unsent.len() < 200, "{} after {seq}", queue.unsent.len());
    }
    queue.push(frame(100_000)).unwrap();
    assert_eq!((queue.unanswered(), queue.queued()), (0, 2));
    let sent = [Sent::Frame(1, 1), Sent::Report(1), Sent::Report(99_999), Sent::Frame(100_000, 100_000)];
    assert_eq!(take(&mut queue), sent);
    assert_eq!(accept(&mut queue, 1, 100_000), [1, 100_000]);
}

#[test]
fn of_reports_between_frames_the_first_keeps_its_place_and_the_last_comes_after_all() {
    let mut queue = queue();
    queue.open();
    for seq in 1..=4 {
        queue.push(frame(seq)).unwrap();
        queue.report(&report(seq * 10));
    }
    assert_eq!(queue.take(Time(1)).unwrap().message.report.unwrap().applied, 10);
    // The one that is left is the first now.
    queue.push(frame(5)).unwrap();
    queue.report(&report(50));
    queue.report(&report(60));
    queue.push(frame(6)).unwrap();
    assert_eq!(
        take(&mut queue),
        [
            Sent::Frame(2, 2),
            Sent::Frame(3, 3),
            Sent::Frame(4, 4),
            Sent::Report(40),
            Sent::Frame(5, 5),
            Sent::Report(60),
            Sent::Frame(6, 6)
        ]
    );
}

#[test]
fn a_cancelled_frame_is_not_sent_and_its_answer_is_void() {
    let mut queue = queue();
    queue.open();
    for seq in 1..=4 {
        queue.push(frame(seq)).unwrap();
    }
    queue.cancel(id(2));
    queue.cancel(id(9));
    assert_eq!(take(&mut queue), [Sent::Frame(1, 1), Sent::Frame(3, 3), Sent::Frame(4, 4)]);
    queue.cancel(id(3));
    assert_eq!((queue.unanswered(), queue.queued()), (2, 0));
    assert_eq!(accept(&mut queue, 1, 4), [1, 4]);
}

#[test]
fn frames_without_id_are_dropped_while_closed_and_beyond_their_limits() {
    let options = PeerOptions { queued_frames_max: 2, ..PeerOptions::default() };
    let mut queue = Queue::new(&options, None);
    assert_eq!(queue.push(frame(0)), Err(Loss::LinkDown));
    queue.open();
    let pushed = [0; 3].map(|seq| queue.push(frame(seq)));
    assert_eq!(pushed, [Ok(()), Ok(()), Err(Loss::LinkMessages(2))]);
    assert_eq!(queue.push(frame(1)), Ok(()), "one with an ID is always kept");
    assert_eq!(queue.close(), 2);
    queue.open();
    assert_eq!(take(&mut queue), [Sent::Frame(1, 2)]);
    let small = PeerOptions { queued_bytes_max: 10, ..PeerOptions::default() };
    let mut queue = Queue::new(&small, None);
    queue.open();
    assert_eq!(queue.push(frame(0)), Err(Loss::LinkBytes(10)));
}

#[test]
fn batches_have_limits() {
    let mut queue = queue();
    queue.open();
    for seq in 1..=(BATCH_FRAMES_MAX as u64 + 1) {
        queue.push(frame(seq)).unwrap();
    }
    assert_eq!(queue.take(Time(1)).unwrap().message.frames.len(), BATCH_FRAMES_MAX);
    assert_eq!(queue.take(Time(1)).unwrap().message.frames.len(), 1);
    assert!(queue.take(Time(1)).is_none());
}

#[test]
fn exceptions_and_what_was_never_sent() {
    let mut queue = queue();
    queue.open();
    queue.push(frame(1)).unwrap();
    take(&mut queue);
    queue.push(frame(2)).unwrap();
    assert_eq!(accept(&mut queue, 1, u64::MAX), [1], "only what was sent can be answered");
    take(&mut queue);
    let answer = Some(exception::Answer::Moved(77));
    let batch = proto::AnswerBatch {
        exceptions: vec![Exception { position: 2, answer }],
        ..proto::AnswerBatch::default()
    };
    assert_eq!(queue.answered(batch), [(id(2), Answer::Moved(77))]);
}

#[test]
fn a_message_travels_unharmed_and_its_expiry_does_not_depend_on_clocks() {
    let message = Message::new(Parts {
        topic: "a/ü",
        payload: b"payload",
        properties: &[1, 0],
        qos: QoS::ExactlyOnce,
        retain: true,
        expires_at: Some(Time(5_000)),
    });
    let groups =
        vec![crate::ports::GroupTry { name: "$share/g/f".into(), queue: true, tried: vec!["b".into()] }];
    let frame = Frame {
        id: Some(id(3)),
        matched_at: 8,
        direct: false,
        groups,
        message: message.clone(),
        update: None,
        first: false,
    };
    let sent = wire::frame(&frame, 0, Time(2_000));
    let read = wire::read_frame(sent.clone(), Time(100_000)).unwrap();
    assert_eq!(read.message.expires_at(), Some(Time(103_000)));
    let same = wire::read_frame(sent.clone(), Time(2_000)).unwrap();
    assert_eq!((same.message, same.id, same.matched_at, same.direct), (message, frame.id, 8, false));
    assert_eq!(same.groups, frame.groups);
    for wrong in [
        proto::Frame { body: bytes::Bytes::from_static(&[0]), ..sent.clone() },
        proto::Frame { body: bytes::Bytes::from_static(&[0, 9, b'a']), ..sent.clone() },
        proto::Frame { body: bytes::Bytes::from_static(&[0, 1, 0xFF]), payload_len: 0, ..sent.clone() },
        proto::Frame { payload_len: u32::MAX, ..sent.clone() },
        proto::Frame { qos: 3, ..sent.clone() },
    ] {
        assert!(wire::read_frame(wrong.clone(), Time(1)).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_report_travels_whole() {
    let report = Report {
        applied: 9,
        low_water: 4,
        open: vec![1, 3],
        settled: vec![("b".into(), 7)],
        past: vec![("b".into(), 8), ("c".into(), 6)],
        past_others: 9,
        retired: vec![3],
        sent_at: Time(77),
        heard: vec![(MemberId { node: "b".into(), incarnation: 5 }, Time(66))],
        leaving: true,
        retained: Some(RetainedProgress { settled: 8, written: 6, waited: 3, decided: 2 }),
    };
    assert_eq!(wire::read_report(wire::report(report.clone())), report);
}
