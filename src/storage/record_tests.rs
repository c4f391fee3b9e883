//! Rows round-trip, their bytes are pinned, and no bytes make decoding panic.

use super::cluster_rows::{put_node, put_seen, put_spooled};
use super::record::*;
use super::session_rows::*;
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, QoS};
use crate::ports::{
    MemberId, MessageId, NodeRecord, OutboundState, Publisher, Recipient, SessionRecord, SpooledRetain,
    SubscriptionRecord, Unserved, WillRecord,
};
use crate::queue_policy::QueuePolicy;
use crate::storage::model::{message, recipient, record};
use crate::user::{Author, SessionUser};
use proptest::prelude::*;
use std::sync::Arc;

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut row = Vec::new();
    encode(&mut row);
    row
}

fn id() -> impl Strategy<Value = Option<MessageId>> {
    proptest::option::of((any::<u64>(), any::<u64>()).prop_map(|(origin, seq)| MessageId { origin, seq }))
}

proptest! {
    #[test]
    fn messages_round_trip(by: u16, id in id(), sessions in proptest::collection::btree_set(any::<u64>(), 1..5)) {
        let message = message("some/topic", by);
        let recipients: Vec<Recipient> = sessions.iter().map(|no| recipient(*no, by)).collect();
        let row = encoded(|out| put_message(out, id, &message, &recipients));
        let Ok(LogRow::Message(found)) = decode_log(&row) else { panic!("not a message") };
        prop_assert_eq!((found.id, found.body.message()), (id, message));
        prop_assert_eq!(found.recipients_len(), recipients.len());
        prop_assert!(found.sessions().eq(sessions.iter().copied()));
        for recipient in &recipients {
            let as_stored = found.recipient(recipient.session);
            prop_assert_eq!(as_stored.as_ref(), Some(recipient));
        }
        let other = sessions.iter().fold(1_u64, |other, no| other.max(no.saturating_add(1)));
        prop_assert_eq!(found.recipient(other).is_some(), sessions.contains(&other));
    }

    #[test]
    fn sessions_round_trip(no: u64, by: u16) {
        let record = record(no, by);
        prop_assert_eq!(decode_session(no, &encoded(|out| put_session(out, &record))), Ok(record));
    }

    #[test]
    fn rows_of_a_cluster_round_trip(
        id in id().prop_filter_map("an ID", |id| id),
        numbers: Vec<u64>,
        text in "[a-z/é]{0,40}",
        by: u16,
    ) {
        let row = encoded(|out| put_seen(out, id, &numbers));
        let Ok(LogRow::Seen { id: of, sessions }) = decode_log(&row) else { panic!("not seen") };
        prop_assert_eq!((of, &sessions), (id, &numbers));
        let node = NodeRecord { node: text.as_str().into(), incarnations: numbers };
        let row = encoded(|out| put_node(out, &node));
        let Ok(LogRow::Node(found)) = decode_log(&row) else { panic!("not a node") };
        prop_assert_eq!(found, node);
        let message = (by & 1 == 0).then(|| message(&text, by));
        let spooled = SpooledRetain { topic: text.as_str().into(), message, id, known: u64::from(by) << 30, since: u64::from(by) << 20 };
        let row = encoded(|out| put_spooled(out, &spooled));
        let Ok(LogRow::Spooled(found)) = decode_log(&row) else { panic!("not an update") };
        prop_assert_eq!(found.update(), spooled);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut row in proptest::collection::vec(any::<u8>(), 0..200),
        version in 1..4_u8,
        kind in 0..10_u8,
    ) {
        fuzz_decode(&row);
        // Most random bytes fail at the first two: these get further.
        row.splice(0..0, [version, kind]);
        fuzz_decode(&row);
    }

    #[test]
    fn cut_rows_are_errors(by: u16, cut in 0..60_usize) {
        let row = encoded(|out| put_session(out, &record(7, by | 4)));
        let cut = cut.min(row.len() - 1);
        prop_assert!(decode_session(7, &row[..cut]).is_err());
    }
}

#[test]
fn steps_round_trip() {
    for state in [OutboundState::Sent, OutboundState::Released] {
        let step = StepRow { session: 1 << 40, packet_id: 65_535, seq: 77, state, order: 76 };
        let row = encoded(|out| put_outbound(out, &step));
        assert!(matches!(decode_log(&row), Ok(LogRow::Outbound(found)) if found == step));
    }
    let row = encoded(|out| put_inbound(out, 9, 300));
    assert!(matches!(decode_log(&row), Ok(LogRow::Inbound { session: 9, packet_id: 300 })));
    let longer = [row, vec![0]].concat();
    assert!(matches!(decode_log(&longer), Err(RecordError::Trailing)));
}

/// The bytes on disk of version 3. A change here is a change of the format: it needs a new version and a migration.
#[test]
fn the_format_is_pinned() {
    let message = Message::new(Parts {
        topic: "a/b",
        payload: b"hi",
        properties: &[1, 1],
        qos: QoS::AtLeastOnce,
        retain: true,
        expires_at: Some(Time(5)),
    });
    let id = MessageId { origin: 300, seq: 9 };
    let to = [&[0xAC, 2, 9, 2, 1, 0xA1, 0x8D, 6, 16][..], b"$share/group/a/+"].concat();
    let body = [&[13, 5, 0, 0, 0, 0, 0, 0, 0, 3][..], b"a/b", &[2], b"hi", &[1, 1]].concat();
    let row = encoded(|out| put_message(out, None, &message, &[recipient(300, 2)]));
    assert_eq!(row, [&[3, 1, 1][..], &to, &body].concat());
    let row = encoded(|out| put_message(out, Some(id), &message, &[recipient(300, 2)]));
    assert_eq!(row, [&[3, 5, 0xAC, 2, 9, 1][..], &to, &body].concat());
    let duty = Recipient {
        session: 0,
        publisher: Some(Box::new(Publisher { session: 300, packet_id: Some(9) })),
        ..recipient(0, 2)
    };
    let row = encoded(|out| put_message(out, Some(id), &message, &[duty]));
    let to = [&[0, 25][..], &to[3..], &[0xAC, 2, 9]].concat();
    assert_eq!(row, [&[3, 5, 0xAC, 2, 9, 1][..], &to, &body].concat());
    let asked = Some(MemberId { node: "n2".into(), incarnation: 300 });
    let unserved =
        [Unserved { name: "$share/g/a".into(), asked }, Unserved { name: "$share/h/a".into(), asked: None }];
    let duty = Recipient { session: 0, shared: None, unserved: Some(Box::new(unserved)), ..recipient(0, 2) };
    let row = encoded(|out| put_message(out, Some(id), &message, std::slice::from_ref(&duty)));
    let names = (&b"$share/g/a"[..], &b"$share/h/a"[..]);
    let to =
        [&[0, 33, 2, 1, 0xA1, 0x8D, 6, 2, 10][..], names.0, &[1, 2, b'n', b'2', 0xAC, 2, 10], names.1, &[0]]
            .concat();
    assert_eq!(row, [&[3, 5, 0xAC, 2, 9, 1][..], &to, &body].concat());
    let Ok(LogRow::Message(found)) = decode_log(&row) else { panic!("not a message") };
    assert_eq!(found.recipient(0), Some(duty));
    assert_eq!(encoded(|out| put_seen(out, id, &[1, 300])), [3, 6, 0xAC, 2, 9, 2, 1, 0xAC, 2]);
    let node = NodeRecord { node: "n1".into(), incarnations: vec![7, 8] };
    assert_eq!(encoded(|out| put_node(out, &node)), [3, 7, 2, b'n', b'1', 2, 7, 8]);
    let mut spooled = SpooledRetain { topic: "a/b".into(), message: Some(message), id, known: 4, since: 0 };
    let head = [&[3, 8, 0xAC, 2, 9, 4, 3][..], b"a/b"].concat();
    assert_eq!(encoded(|out| put_spooled(out, &spooled)), [&head[..], &[1], &body].concat());
    spooled.since = 5;
    assert_eq!(encoded(|out| put_spooled(out, &spooled)), [&head[..], &[3, 5], &body].concat());
    (spooled.message, spooled.since) = (None, 0);
    assert_eq!(encoded(|out| put_spooled(out, &spooled)), [&head[..], &[0]].concat());
    let subscription = SubscriptionRecord {
        filter: "a/#".into(),
        options: SubscribeOptions::from_bits(0x2E).unwrap(),
        subscription_id: Some(258),
        older: vec![(300, 9)],
    };
    let row = encoded(|out| put_subscription(out, &subscription));
    assert_eq!(row, [2, 0x2E, 1, 2, 1, 0, 0, 1, 0xAC, 2, 9]);
    let of_version_1 = decode_subscription("a/#", &[1, 0x2E, 1, 2, 1, 0, 0]).unwrap();
    assert_eq!(of_version_1, SubscriptionRecord { older: Vec::new(), ..subscription.clone() });
    assert_eq!(decode_subscription("a/#", &row), Ok(subscription));
}

/// A session's record as version 1 wrote it, and what it says.
pub(super) fn session_of_version_1(no: u64) -> (Vec<u8>, SessionRecord) {
    let times = [&60_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    let will = [&[4, 0, 0, 0, 1, 77, 0, 0, 0, 2, 1][..], b"w", &[2], b"hi"].concat();
    let row = [&[1, 3][..], &times, &[2], b"c1", &will].concat();
    let message = Message::new(Parts {
        topic: "w",
        payload: b"hi",
        properties: &[],
        qos: QoS::ExactlyOnce,
        retain: false,
        expires_at: None,
    });
    let record = SessionRecord {
        no,
        client_id: "c1".into(),
        expiry_s: 60,
        disconnected_at: Some(Time(2)),
        will: Some(WillRecord { message, delay_s: 4, message_expiry_s: Some(77), author: None }),
        created_at: Time(1),
        epoch: 0,
        pending: false,
        user: SessionUser::Unknown,
        queue_policy: None,
    };
    (row, record)
}

#[test]
fn sessions_of_version_1_are_lifted() {
    let (row, record) = session_of_version_1(9);
    assert_eq!(decode_session(9, &row), Ok(record.clone()));
    for cut in 0..row.len() {
        assert!(decode_session(9, &row[..cut]).is_err(), "{cut}");
    }
    let mut unknown = row.clone();
    unknown[1] |= 4;
    assert_eq!(decode_session(9, &unknown), Err(RecordError::Value("flags")), "version 1 had no such flag");
    let row = encoded(|out| put_session(out, &SessionRecord { epoch: 300, pending: true, ..record.clone() }));
    assert_eq!((&row[..2], &row[14..16]), (&[4, 7][..], &[0xAC, 2][..]));
}

#[test]
fn sessions_of_version_2_are_nobodys_in_particular() {
    let (_, record) = session_of_version_1(9);
    let record = SessionRecord { epoch: 300, pending: true, ..record };
    let mut row = encoded(|out| put_session(out, &record));
    row[0] = 2;
    assert_eq!(decode_session(9, &row), Ok(record.clone()));
    row[1] |= 8;
    assert_eq!(decode_session(9, &row), Err(RecordError::Value("flags")), "version 2 had no such flag");
    for user in [SessionUser::Unknown, SessionUser::Anonymous, SessionUser::Named("alice".into())] {
        let record = SessionRecord { user, ..record.clone() };
        let row = encoded(|out| put_session(out, &record));
        assert_eq!(decode_session(9, &row), Ok(record));
        for cut in 0..row.len() {
            assert!(decode_session(9, &row[..cut]).is_err(), "{cut}");
        }
    }
}

#[test]
fn sessions_of_version_3_have_neither_authors_of_wills_nor_queue_policies() {
    let (_, record) = session_of_version_1(9);
    let record = SessionRecord { user: SessionUser::Named("alice".into()), ..record };
    let mut row = encoded(|out| put_session(out, &record));
    row[0] = 3;
    assert_eq!(decode_session(9, &row), Ok(record.clone()));
    row[1] |= 16;
    assert_eq!(decode_session(9, &row), Err(RecordError::Value("flags")), "version 3 had no such flag");
    for flag in [32, 64] {
        row[1] = row[1] & !16 | flag;
        assert_eq!(decode_session(9, &row), Err(RecordError::Value("flags")), "nor such flags");
        row[1] &= !flag;
    }
    for (address, groups, publish) in [
        ("192.0.2.1", vec![], None),
        ("2001:db8::1", vec!["ops", "x"], Some(vec![])),
        ("::ffff:192.0.2.1", vec!["ops"], Some(vec!["a/#", "b"])),
    ] {
        let texts = |texts: Vec<&str>| texts.into_iter().map(Arc::from).collect();
        let author = Author {
            listener: "tls".into(),
            address: address.into(),
            groups: texts(groups),
            publish: publish.map(texts),
        };
        let will = record.will.clone().map(|will| WillRecord { author: Some(Arc::new(author)), ..will });
        let record = SessionRecord { will, ..record.clone() };
        let row = encoded(|out| put_session(out, &record));
        assert_eq!(decode_session(9, &row), Ok(record));
        for cut in 0..row.len() {
            assert!(decode_session(9, &row[..cut]).is_err(), "{cut}");
        }
        let mut no_will = row.clone();
        no_will[1] &= !2;
        assert!(decode_session(9, &no_will).is_err());
    }
    for policy in QueuePolicy::ALL {
        let record = SessionRecord { queue_policy: Some(policy), ..record.clone() };
        let mut row = encoded(|out| put_session(out, &record));
        assert_eq!(decode_session(9, &row), Ok(record));
        row[1] |= 32 | 64;
        assert_eq!(decode_session(9, &row), Err(RecordError::Value("queue policy")));
    }
}
