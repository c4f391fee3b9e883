//! The session alone: what may leave before what. Whole dialogues are in `tests/transcripts`.

use super::*;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::{Ack, Packet, Publish};
use crate::mqtt::{Message, QoS};
use crate::user::SessionUser;
use std::num::NonZeroU64;
use std::sync::Arc;

const NOW: Time = Time(1_000_000);

fn settings(version: Version, quota: u16) -> Settings {
    Settings {
        version,
        bridge: false,
        client_id: Arc::from("c"),
        assigned: false,
        clean_start: false,
        keep_alive_s: 10,
        keep_alive_imposed: false,
        expiry_s: 60,
        expiry_capped: false,
        send_quota: quota,
        maximum_packet_size: u32::MAX,
        topic_alias_maximum: 0,
        problem_information: true,
        user: SessionUser::Unknown,
        queue_policy: None,
        will: None,
        limits: Limits { receive_maximum: 2, ..Limits::default() },
    }
}

fn attached(durable: bool, version: Version, quota: u16) -> (Session, Actions) {
    let mut s = Session::new(durable);
    let mut out = Actions::default();
    s.attach(&settings(version, quota), NOW, &mut out);
    assert!(out.wire.is_empty() && out.effects.is_empty());
    (s, out)
}

fn publish(id: u16, qos: QoS) -> Packet<'static> {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t",
        packet_id: id,
        topic_alias: None,
        message_expiry_s: None,
        properties: Default::default(),
        payload: b"x",
    })
}

fn delivery(seq: u64, qos: QoS) -> Input<'static> {
    let message = Message::new(Parts {
        topic: "t",
        payload: b"x",
        properties: &[],
        qos,
        retain: false,
        expires_at: None,
    });
    Input::Deliver(Delivery { message, seq: NonZeroU64::new(seq), qos, retain: false, extra: None })
}

fn ack(id: u16) -> Ack {
    Ack { packet_id: id, reason: Reason::Success }
}

/// The first bytes of the packets written, and the wire is empty afterwards.
fn sent(out: &mut Actions) -> Vec<(u8, u16)> {
    let (mut at, mut found) = (0, Vec::new());
    while at < out.wire.len() {
        let len = usize::from(out.wire[at + 1]) + 2;
        let id_at = if out.wire[at] >> 4 == 3 { at + 5 } else { at + 2 };
        found.push((out.wire[at], u16::from_be_bytes([out.wire[id_at], out.wire[id_at + 1]])));
        at += len;
    }
    out.wire.clear();
    found
}

fn tokens(out: &mut Actions) -> Vec<Token> {
    out.effects
        .drain(..)
        .filter_map(|e| match e {
            Effect::Publish { token, .. }
            | Effect::Outbound { token, .. }
            | Effect::InboundEnd { token, .. } => token,
            _ => None,
        })
        .collect()
}

#[test]
fn acknowledgements_wait_for_their_outcome_and_keep_the_order_of_the_publishes() {
    let (mut s, mut out) = attached(true, Version::V311, 10);
    s.handle(Input::Packet(publish(7, QoS::AtLeastOnce)), NOW, &mut out);
    s.handle(Input::Packet(publish(8, QoS::ExactlyOnce)), NOW, &mut out);
    s.handle(Input::Packet(publish(9, QoS::AtLeastOnce)), NOW, &mut out);
    assert!(out.wire.is_empty());
    let t = tokens(&mut out);
    for (token, expected) in [
        (t[2], vec![]),
        (t[1], vec![]),
        (t[0], vec![(0x40, 7), (0x50, 8), (0x40, 9)]),
        (t[0], vec![]), // said twice: nothing more
    ] {
        let outcome = Outcome::Safe { matched: true };
        s.handle(Input::Published { token, outcome }, NOW, &mut out);
        assert_eq!(sent(&mut out), expected, "after token {token}");
    }
}

#[test]
fn a_repeated_exactly_once_publish_is_routed_once() {
    let (mut s, mut out) = attached(true, Version::V5, 10);
    s.handle(Input::Packet(publish(1, QoS::ExactlyOnce)), NOW, &mut out);
    s.handle(Input::Packet(publish(1, QoS::ExactlyOnce)), NOW, &mut out);
    let t = tokens(&mut out);
    assert_eq!(t.len(), 1);
    s.handle(Input::Published { token: t[0], outcome: Outcome::Safe { matched: true } }, NOW, &mut out);
    s.handle(Input::Packet(publish(1, QoS::ExactlyOnce)), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x50, 1), (0x50, 1)]);
    assert!(tokens(&mut out).is_empty());
    // PUBCOMP only once the end is recorded.
    s.handle(Input::Packet(Packet::PubRel(ack(1))), NOW, &mut out);
    assert!(out.wire.is_empty());
    let t = tokens(&mut out);
    s.handle(Input::Durable { token: t[0] }, NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x70, 1)]);
}

#[test]
fn exactly_once_deliveries_of_a_durable_session_wait_for_the_journal_at_each_step() {
    let (mut s, mut out) = attached(true, Version::V311, 10);
    s.handle(delivery(5, QoS::ExactlyOnce), NOW, &mut out);
    assert!(out.wire.is_empty());
    let t = tokens(&mut out);
    s.handle(Input::Durable { token: t[0] }, NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x34, 1)]);
    s.handle(Input::Packet(Packet::PubRec(ack(1))), NOW, &mut out);
    assert!(out.wire.is_empty());
    let t = tokens(&mut out);
    s.handle(Input::Durable { token: t[0] }, NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x62, 1)]);
    s.handle(Input::Packet(Packet::PubComp(ack(1))), NOW, &mut out);
    assert!(matches!(out.effects[..], [Effect::Settle { seq }] if seq.get() == 5));
}

#[test]
fn the_clients_receive_maximum_bounds_what_is_in_flight() {
    let (mut s, mut out) = attached(false, Version::V5, 2);
    for _ in 0..5 {
        s.handle(delivery(0, QoS::AtLeastOnce), NOW, &mut out);
    }
    assert_eq!(sent(&mut out).len(), 2);
    s.handle(Input::Packet(Packet::PubAck(ack(1))), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x32, 3)]);
    // QoS 0 needs no place in flight.
    s.handle(delivery(0, QoS::AtMostOnce), NOW, &mut out);
    assert_eq!(out.wire[0], 0x30);
}

#[test]
fn a_publish_beyond_our_receive_maximum_ends_an_mqtt_5_connection() {
    let (mut s, mut out) = attached(false, Version::V5, 2);
    for id in 1..=2 {
        s.handle(Input::Packet(publish(id, QoS::AtLeastOnce)), NOW, &mut out);
    }
    assert!(out.wire.is_empty());
    s.handle(Input::Packet(publish(3, QoS::AtLeastOnce)), NOW, &mut out);
    assert_eq!(out.wire[0], 0xE0);
    assert_eq!(out.wire[2], Reason::ReceiveMaximumExceeded as u8);
    assert!(matches!(out.effects.last(), Some(Effect::Close { .. })));
}

#[test]
fn in_flight_messages_are_sent_again_in_order_under_the_same_identifiers() {
    let (mut s, mut out) = attached(true, Version::V311, 10);
    for seq in 1..=3 {
        s.handle(delivery(seq, QoS::AtLeastOnce), NOW, &mut out);
    }
    s.handle(Input::Packet(Packet::PubAck(ack(2))), NOW, &mut out);
    out = Actions::default();
    s.detach(CloseCause::Lost, NOW, &mut out);
    assert!(matches!(out.effects[..], [Effect::Save]));
    out = Actions::default();
    s.attach(&settings(Version::V311, 10), NOW, &mut out);
    // The bodies are read back from the journal first.
    let Some(Effect::Load(seqs)) = out.effects.pop() else { panic!("no load") };
    assert_eq!(seqs, [1, 3]);
    assert!(!s.wants_deliveries());
    let found = seqs
        .into_iter()
        .map(|seq| match delivery(seq, QoS::AtLeastOnce) {
            Input::Deliver(d) => d,
            _ => unreachable!(),
        })
        .collect();
    s.handle(Input::Loaded(found), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x3A, 1), (0x3A, 3)]);
    s.handle(delivery(4, QoS::AtLeastOnce), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x32, 4)]);
}

#[test]
fn the_keep_alive_runs_out_after_one_and_a_half_times_its_length() {
    let (mut s, mut out) = attached(false, Version::V5, 2);
    assert_eq!(s.next_timeout(), Some(NOW.plus_secs(15)));
    s.handle(Input::Packet(Packet::PingReq), NOW.plus_secs(9), &mut out);
    s.handle(Input::Timeout, NOW.plus_secs(15), &mut out);
    assert!(out.effects.is_empty());
    s.handle(Input::Timeout, NOW.plus_secs(24), &mut out);
    assert!(matches!(out.effects[..], [Effect::Close { cause: CloseCause::KeepAlive, .. }]));
}

#[test]
fn a_session_handed_to_another_node_gives_its_client_time_before_the_will() {
    let wakes = |s: &mut Session, at: Time| {
        let mut out = Actions::default();
        s.wake(at, &mut out);
        out.effects.iter().any(|e| matches!(e, Effect::Will(_)))
    };
    let Input::Deliver(d) = delivery(1, QoS::AtLeastOnce) else { unreachable!() };
    for (expiry_s, delay_s, due_s) in [(60, 0, 30), (60, 10, 30), (60, 40, 40), (20, 0, 20)] {
        let mut s = Session::new(true);
        let mut out = Actions::default();
        let will = Will { message: d.message.clone(), delay_s, message_expiry_s: None, author: None };
        let settings = Settings { expiry_s, will: Some(will), ..settings(Version::V5, 10) };
        s.attach(&settings, NOW, &mut out);
        s.detach(CloseCause::HandedOver, NOW, &mut out);
        assert!(matches!(out.effects[..], [Effect::Save]), "{out:?}");
        assert!(!wakes(&mut s, NOW.plus_ms(due_s * 1000 - 1)), "{expiry_s} {delay_s}");
        assert!(wakes(&mut s, NOW.plus_secs(due_s)), "{expiry_s} {delay_s}");
    }
    // Nobody has a session after this node that ends with its connection.
    let mut s = Session::new(false);
    let mut out = Actions::default();
    let will = Will { message: d.message.clone(), delay_s: 0, message_expiry_s: None, author: None };
    s.attach(&Settings { expiry_s: 0, will: Some(will), ..settings(Version::V5, 10) }, NOW, &mut out);
    s.detach(CloseCause::HandedOver, NOW, &mut out);
    assert!(matches!(out.effects[..], [Effect::End]), "{out:?}");
}

#[test]
fn a_publish_of_an_earlier_connection_is_answered_when_it_is_repeated_and_its_outcome_is_known() {
    let mut s = Session::recovered(60, NOW, None, &[1, 2, 4], std::iter::empty());
    let mut out = Actions::default();
    let limits = Limits { receive_maximum: 10, ..Limits::default() };
    s.attach(&Settings { limits, ..settings(Version::V5, 10) }, NOW, &mut out);
    [1, 2, 3].into_iter().for_each(|id| s.still_under_way(id));
    let safe = |token| Input::Published { token, outcome: Outcome::Safe { matched: true } };
    // A client that does not repeat them has nothing to wait for.
    s.handle(Input::Packet(publish(9, QoS::AtLeastOnce)), NOW, &mut out);
    let [other] = tokens(&mut out)[..] else { panic!("one publish") };
    s.handle(safe(other), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x40, 9)]);
    s.handle(Input::Packet(publish(4, QoS::ExactlyOnce)), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x50, 4)], "its outcome is known");
    for _ in 0..2 {
        s.handle(Input::Packet(publish(1, QoS::ExactlyOnce)), NOW, &mut out);
    }
    assert!(out.wire.is_empty());
    let [Effect::Repeated { token, packet_id: 1 }] = out.effects[..] else { panic!("{:?}", out.effects) };
    out.effects.clear();
    s.handle(safe(token), NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x50, 1)]);
    // The client knows better: PUBREC went out right before a restart that did not know.
    s.handle(Input::Packet(Packet::PubRel(ack(2))), NOW, &mut out);
    let [ended] = tokens(&mut out)[..] else { panic!("one packet identifier is free") };
    s.handle(Input::Durable { token: ended }, NOW, &mut out);
    assert_eq!(sent(&mut out), [(0x70, 2)]);
}

/// What was refused has not happened: its repetition is another attempt, also if nobody could be told.
#[test]
fn a_refused_exactly_once_publish_is_not_acknowledged_when_it_comes_again() {
    for version in [Version::V311, Version::V5] {
        let (mut s, mut out) = attached(true, version, 10);
        s.handle(Input::Packet(publish(1, QoS::AtLeastOnce)), NOW, &mut out);
        s.handle(Input::Packet(publish(2, QoS::ExactlyOnce)), NOW, &mut out);
        let [first, second] = tokens(&mut out)[..] else { panic!("two publishes") };
        let outcome = Outcome::Failed(Box::new(Reason::QuotaExceeded.into()));
        // Behind one whose outcome is open, and never told.
        s.handle(Input::Published { token: second, outcome: outcome.clone() }, NOW, &mut out);
        assert_eq!(sent(&mut out), []);
        s.detach(CloseCause::Lost, NOW, &mut out);
        out.effects.clear();
        s.attach(&settings(version, 10), NOW, &mut out);
        s.handle(Input::Published { token: first, outcome: outcome.clone() }, NOW, &mut out);
        s.handle(Input::Packet(publish(2, QoS::ExactlyOnce)), NOW, &mut out);
        assert_eq!(sent(&mut out), [], "{version:?}: it is tried again");
        let [again] = tokens(&mut out)[..] else { panic!("another attempt") };
        s.handle(Input::Published { token: again, outcome: outcome.clone() }, NOW, &mut out);
        s.detach(CloseCause::Lost, NOW, &mut out);
        (out.effects, out.wire) = Default::default();
        s.attach(&settings(version, 10), NOW, &mut out);
        s.handle(Input::Packet(publish(2, QoS::ExactlyOnce)), NOW, &mut out);
        assert_eq!(tokens(&mut out).len(), 1, "{version:?}: told or not, it has not happened");
    }
}
