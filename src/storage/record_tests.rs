//! Rows round-trip, their bytes are pinned, and no bytes make decoding panic.

use super::record::*;
use crate::broker::ports::{OutboundState, Recipient, SubscriptionRecord};
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, QoS};
use crate::storage::model::{message, recipient, record};
use proptest::prelude::*;

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut row = Vec::new();
    encode(&mut row);
    row
}

proptest! {
    #[test]
    fn messages_round_trip(by: u16, sessions in proptest::collection::btree_set(any::<u64>(), 1..5)) {
        let message = message("some/topic", by);
        let recipients: Vec<Recipient> = sessions.iter().map(|no| recipient(*no, by)).collect();
        let row = encoded(|out| put_message(out, &message, &recipients));
        let Ok(LogRow::Message(found)) = decode_log(&row) else { panic!("not a message") };
        prop_assert_eq!(found.body.message(), message);
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
    fn arbitrary_bytes_never_panic(mut row in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6_u8) {
        fuzz_decode(&row);
        // Most random bytes fail at the first two: these get further.
        row.splice(0..0, [1, kind]);
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

/// The bytes on disk of version 1. A change here is a change of the format: it needs a new version and a migration.
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
    let row = encoded(|out| put_message(out, &message, &[recipient(300, 2)]));
    let recipient = [&[0xAC, 2, 9, 2, 1, 0xA1, 0x8D, 6, 16][..], b"$share/group/a/+"].concat();
    let body = [&[13, 5, 0, 0, 0, 0, 0, 0, 0, 3][..], b"a/b", &[2], b"hi", &[1, 1]].concat();
    assert_eq!(row, [&[1, 1, 1][..], &recipient, &body].concat());
    let subscription = SubscriptionRecord {
        filter: "a/#".into(),
        options: SubscribeOptions::from_bits(0x2E).unwrap(),
        subscription_id: Some(258),
    };
    let row = encoded(|out| put_subscription(out, &subscription));
    assert_eq!(row, [1, 0x2E, 1, 2, 1, 0, 0]);
    assert_eq!(decode_subscription("a/#", &row), Ok(subscription));
}
