//! The mailbox alone: order, limits, and who gets it.

use super::*;
use crate::mqtt::Message;
use crate::mqtt::message::Parts;
use std::cmp::Reverse;

fn delivery(n: u64, qos: QoS) -> Delivery {
    let message = Message::new(Parts {
        topic: "t",
        payload: n.to_string().as_bytes(),
        properties: &[],
        qos,
        retain: false,
        expires_at: None,
    });
    let seq = (qos > QoS::AtMostOnce).then(|| NonZeroU64::new(n)).flatten();
    Delivery { message, seq, qos, retain: false, extra: None }
}

fn small() -> MailboxLimits {
    MailboxLimits {
        messages: 3,
        bytes: 1 << 20,
        queued_messages: 8,
        queued_bytes: 1 << 20,
        policy: QueuePolicy::DropNew,
    }
}

/// What a connection gets, reading from a journal that has everything.
fn drain(m: &Mailbox) -> Vec<u64> {
    let (mut local, mut got) = (VecDeque::new(), Vec::new());
    loop {
        m.take(Waker::noop(), true, &mut local);
        if local.is_empty() {
            let Some((seqs, attachment)) = m.start_reading(2) else { return got };
            m.finish_reading(attachment, seqs.iter().map(|n| delivery(*n, QoS::AtLeastOnce)).collect());
            continue;
        }
        got.extend(local.drain(..).map(|d| d.seq.map_or(0, NonZeroU64::get)));
    }
}

fn session() -> Box<Session> {
    Box::new(Session::new(true))
}

#[test]
fn order_holds_when_messages_spill_to_disk() {
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let mut wakes = Wakes::default();
    for n in 1..=7 {
        m.push(delivery(n, QoS::AtLeastOnce), &small(), &mut wakes).unwrap();
    }
    assert_eq!(drain(&m), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(m.waiting(), 0);
}

#[test]
fn what_was_not_sent_comes_first_after_the_client_is_back() {
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let mut wakes = Wakes::default();
    for n in 1..=6 {
        m.push(delivery(n, QoS::AtLeastOnce), &small(), &mut wakes).unwrap();
    }
    let mut local = VecDeque::new();
    m.take(Waker::noop(), true, &mut local); // 1, 2 and 3; the client gets 1
    let late = m.start_reading(2).unwrap();
    let unsent: Vec<_> = local.iter().skip(1).filter_map(|d| Some((d.seq?, d.size()))).collect();
    m.put_back(&unsent);
    m.park(session(), &mut wakes);
    m.finish_reading(late.1, vec![delivery(4, QoS::AtLeastOnce)]); // too late, and void
    m.push(delivery(7, QoS::AtLeastOnce), &small(), &mut wakes).unwrap();
    assert!(matches!(m.claim(&mut 0, Waker::noop(), &mut wakes), Found::Session(_)));
    assert_eq!(drain(&m), [2, 3, 4, 5, 6, 7]);
}

#[test]
fn limits_and_places_decide_what_is_dropped() {
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let mut wakes = Wakes::default();
    let push = |qos, wakes: &mut Wakes| m.push(delivery(1, qos), &small(), wakes);
    for _ in 0..3 {
        push(QoS::AtMostOnce, &mut wakes).unwrap();
    }
    assert_eq!(push(QoS::AtMostOnce, &mut wakes), Err(Refusal::Dropped(Loss::MailboxMessages(3))));
    assert_eq!(push(QoS::AtLeastOnce, &mut wakes), Ok(0)); // on disk
    assert_eq!(m.park(session(), &mut wakes), 3);
    assert_eq!(push(QoS::AtMostOnce, &mut wakes), Err(Refusal::Dropped(Loss::Offline)));
    for _ in 0..7 {
        assert_eq!(m.admits(100, None, &small(), &mut Displaced::default()), Ok(()));
        push(QoS::AtLeastOnce, &mut wakes).unwrap();
    }
    assert_eq!(
        m.admits(100, None, &small(), &mut Displaced::default()),
        Err(Refusal::Dropped(Loss::QueueMessages(8)))
    );
    assert_eq!(m.end(&mut wakes).0.len(), 8);
    assert_eq!(push(QoS::AtLeastOnce, &mut wakes), Err(Refusal::Dropped(Loss::SessionEnded)));
    assert_eq!(
        m.admits(100, None, &small(), &mut Displaced::default()),
        Err(Refusal::Dropped(Loss::SessionEnded))
    );
}

#[test]
fn of_several_claims_the_latest_wins() {
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let (mut wakes, mut first, mut second) = (Wakes::default(), 0, 0);
    assert!(matches!(m.claim(&mut first, Waker::noop(), &mut wakes), Found::Busy));
    let taken = m.take(Waker::noop(), true, &mut VecDeque::new());
    assert_eq!(taken.close, Some(CloseCause::TakenOver));
    assert!(matches!(m.claim(&mut second, Waker::noop(), &mut wakes), Found::Busy));
    m.park(session(), &mut wakes);
    assert!(matches!(m.claim(&mut first, Waker::noop(), &mut wakes), Found::Superseded));
    assert!(matches!(m.claim(&mut second, Waker::noop(), &mut wakes), Found::Session(_)));
}

#[test]
fn a_frozen_session_takes_nothing_until_it_is_known_where_it_is() {
    let m = Mailbox::new(Place::Parked(session()), VecDeque::from([1, 2]), 20);
    let mut wakes = Wakes::default();
    let frozen = m.check_out().unwrap();
    m.push(delivery(3, QoS::AtLeastOnce), &small(), &mut wakes).unwrap(); // taken out, not yet frozen
    assert_eq!(m.freeze(frozen, &mut wakes), (vec![1, 2, 3], 0));
    assert_eq!(m.admits(1, None, &small(), &mut Displaced::default()), Err(Refusal::Moving));
    assert_eq!(m.push(delivery(4, QoS::AtLeastOnce), &small(), &mut wakes), Err(Refusal::Moving));
    let mut place_in_line = 0;
    assert!(matches!(m.claim(&mut place_in_line, Waker::noop(), &mut wakes), Found::Busy));
    let outcome = m.moving().unwrap();
    let frozen = m.thaw().unwrap();
    assert_eq!(outcome.get(), Some(None));
    assert_eq!(m.push(delivery(4, QoS::AtLeastOnce), &small(), &mut wakes), Ok(0));
    m.park(frozen, &mut wakes);
    assert!(matches!(m.claim(&mut place_in_line, Waker::noop(), &mut wakes), Found::Session(_)));
    assert_eq!(drain(&m), [1, 2, 3, 4]);
}

#[test]
fn a_departed_session_says_since_when() {
    let m = Mailbox::new(Place::Parked(session()), VecDeque::from([1]), 10);
    let mut wakes = Wakes::default();
    let taken = m.check_out().unwrap();
    m.freeze(taken, &mut wakes);
    let outcome = m.moving().unwrap();
    assert!(m.present() && m.departed().is_none());
    assert!(m.depart(7, &mut wakes).is_some());
    assert_eq!(outcome.get(), Some(Some(7)));
    assert_eq!(m.admits(1, None, &small(), &mut Displaced::default()), Err(Refusal::Moved(7)));
    assert_eq!(m.push(delivery(2, QoS::AtLeastOnce), &small(), &mut wakes), Err(Refusal::Moved(7)));
    assert_eq!(m.rank(), Rank::Left(Reverse(7)));
    assert!(matches!(m.claim(&mut 0, Waker::noop(), &mut wakes), Found::Gone));
}

fn sending(sender: u64, seq: u64, matched_at: u64) -> Sending {
    Sending { sender, id: MessageId { origin: sender, seq }, matched_at }
}

#[test]
fn what_comes_early_to_a_new_owner_waits_and_each_sender_is_taken_in_order() {
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let admits =
        |sender, seq, at| m.admits(1, Some(sending(sender, seq, at)), &small(), &mut Displaced::default());
    let hold = Arc::new(OrderHold::default());
    m.hold_order(hold.clone());
    assert_eq!(admits(5, 2, 30), Err(Refusal::Moving), "it is not known whether the session comes");
    hold.begin(20);
    assert_eq!(admits(5, 3, 30), Err(Refusal::Moving));
    assert_eq!(admits(5, 1, 19), Err(Refusal::Moved(20)), "the old owner was asked as well");
    assert_eq!(admits(21, 1, 30), Ok(()), "it started later than the session came");
    assert!(m.keeps_waiting(&sending(5, 2, 30)) && m.keeps_back(&[]));
    hold.release(5);
    assert_eq!(admits(5, 3, 30), Err(Refusal::Moving), "2 comes first");
    assert_eq!(admits(6, 1, 30), Err(Refusal::Moving), "not released");
    assert!(!m.keeps_waiting(&sending(5, 2, 30)) && m.keeps_waiting(&sending(5, 3, 30)));
    let mut wakes = Wakes::default();
    let mut push = |seq| {
        m.push_admitted(delivery(seq, QoS::AtLeastOnce), Some(sending(5, seq, 30)), &small(), &mut wakes)
    };
    assert_eq!(admits(5, 2, 30), Ok(()));
    assert_eq!(
        admits(5, 3, 30),
        Err(Refusal::Moving),
        "2 has been admitted, by another thread, but is not there yet"
    );
    assert_eq!(push(2), Ok(0));
    assert_eq!((admits(5, 3, 30), push(3), admits(5, 4, 30), push(4)), (Ok(()), Ok(0), Ok(()), Ok(0)));
    hold.end([7]);
    assert!(m.keeps_back(&[]) && m.expects(sending(6, 1, 30).key()));
    assert!(!m.keeps_back(&[6]), "nobody waits for a process that is away");
    m.unexpect(sending(6, 1, 30).key());
    assert!(!m.keeps_back(&[]));
    assert_eq!(admits(6, 2, 30), Ok(()));
    assert_eq!(admits(7, 1, 19), Err(Refusal::Moved(20)), "its process was away, and is back");
    assert_eq!(admits(7, 1, 30), Err(Refusal::Moving));
    hold.release(7);
    assert_eq!(admits(7, 1, 30), Ok(()));
}

/// Of a connected session and of a dormant one, with numbers 1 to 8 queued: what is displaced for one more, and what the client gets.
#[test]
fn the_oldest_give_way_but_not_those_on_their_way() {
    let limits = MailboxLimits { policy: QueuePolicy::DropOldest, ..small() };
    let full = |m: &Mailbox, wakes: &mut Wakes| {
        (1..=8).for_each(|n| {
            m.push(delivery(n, QoS::AtLeastOnce), &limits, wakes).unwrap();
        });
    };
    for taken in [0, 1] {
        let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
        let (mut wakes, mut displaced) = (Wakes::default(), Displaced::default());
        full(&m, &mut wakes);
        let mut local = VecDeque::new();
        let mut reading = None;
        if taken > 0 {
            m.take(Waker::noop(), true, &mut local); // 1, 2 and 3
            reading = m.start_reading(2); // 4 and 5
            (9..=11).for_each(|n| {
                m.push(delivery(n, QoS::AtLeastOnce), &limits, &mut wakes).unwrap();
            });
        }
        m.admits(10, None, &limits, &mut displaced).unwrap();
        m.push(delivery(20, QoS::AtLeastOnce), &limits, &mut wakes).unwrap();
        let gone = if taken > 0 { 6 } else { 1 };
        assert_eq!((displaced.seqs, displaced.others), (vec![gone], 0));
        assert_eq!(displaced.loss, Some(Loss::QueueMessages(8)));
        let mut got: Vec<_> = local.drain(..).filter_map(|d| d.seq).map(NonZeroU64::get).collect();
        if let Some((seqs, attachment)) = reading {
            m.finish_reading(attachment, seqs.iter().map(|n| delivery(*n, QoS::AtLeastOnce)).collect());
        }
        got.extend(drain(&m));
        let expected: Vec<_> =
            (1..=if taken > 0 { 11 } else { 8 }).chain([20]).filter(|n| *n != gone).collect();
        assert_eq!(got, expected);
    }
    let m = Mailbox::new(Place::Parked(session()), VecDeque::from([1, 2, 3, 4, 5, 6, 7, 8]), 800);
    let mut displaced = Displaced::default();
    let tight = MailboxLimits { queued_messages: 100, queued_bytes: 850, ..limits };
    m.admits(250, None, &tight, &mut displaced).unwrap();
    assert_eq!((displaced.seqs, displaced.loss), (vec![1, 2], Some(Loss::QueueBytes(850))));
    // One that would not fit into an empty queue displaces nobody, and a client may choose otherwise.
    let mut displaced = Displaced::default();
    let too_large = m.admits(851, None, &tight, &mut displaced);
    assert_eq!((too_large, displaced.count()), (Err(Refusal::Dropped(Loss::QueueBytes(850))), 0));
    m.set_policy(Some(QueuePolicy::DropNew));
    assert_eq!(m.policy(), Some(QueuePolicy::DropNew));
    assert!(m.admits(251, None, &tight, &mut displaced).is_err());
    assert_eq!(displaced.count(), 0);
}

/// While it is looked for expired messages in the journal, the oldest may give way to a new one: what has expired of the rest goes.
#[test]
fn whoever_gives_way_during_a_purge_takes_nobody_along() {
    let limits = MailboxLimits { policy: QueuePolicy::DropOldest, queued_messages: 4, ..small() };
    let all = [1, 2, 3, 4];
    type Case<'a> = (usize, &'a [Seq], &'a [Seq], &'a [Seq]);
    let cases: &[Case<'_>] = &[
        // How many come meanwhile, which have expired; which are taken out by the purge, and what is left.
        (0, &[], &[], &[1, 2, 3, 4]),
        (0, &[1, 3], &[1, 3], &[2, 4]),
        (1, &[], &[], &[2, 3, 4, 11]),
        (1, &[1], &[], &[2, 3, 4, 11]),
        (1, &[1, 2, 4], &[2, 4], &[3, 11]),
        (4, &[1, 2, 3, 4], &[], &[11, 12, 13, 14]),
    ];
    for (come, expired, taken, left) in cases {
        let m = Mailbox::new(Place::Parked(session()), all.into(), 400);
        let (looked_at, attachment) = m.start_purging(256, Time(5)).unwrap();
        assert_eq!(looked_at, all);
        let (mut wakes, mut displaced) = (Wakes::default(), Displaced::default());
        for n in 0..*come as u64 {
            m.admits(10, None, &limits, &mut displaced).unwrap();
            m.push(delivery(11 + n, QoS::AtLeastOnce), &limits, &mut wakes).unwrap();
        }
        assert_eq!(displaced.seqs, all[..*come]);
        let expired = expired.iter().copied().collect();
        assert_eq!(m.finish_purging(attachment, looked_at.len(), &expired, Time(9)), *taken);
        assert_eq!(m.waiting(), left.len());
        m.claim(&mut 0, Waker::noop(), &mut wakes);
        assert_eq!(drain(&m), *left);
    }
}

#[test]
fn in_memory_too_the_oldest_give_way() {
    let limits = MailboxLimits { policy: QueuePolicy::DropOldest, ..small() };
    let m = Mailbox::new(Place::Attached, VecDeque::new(), 0);
    let mut wakes = Wakes::default();
    let text = |n: u64| Delivery { seq: None, ..delivery(n, QoS::AtLeastOnce) };
    m.push(delivery(1, QoS::AtLeastOnce), &limits, &mut wakes).unwrap();
    let displaced: Vec<_> = (2..=5).map(|n| m.push(text(n), &limits, &mut wakes).unwrap()).collect();
    assert_eq!(displaced, [0, 0, 1, 1]);
    let mut local = VecDeque::new();
    m.take(Waker::noop(), true, &mut local);
    let got: Vec<_> = local.iter().map(|d| d.message.payload().to_vec()).collect();
    assert_eq!(got, [b"1", b"4", b"5"]);
}
