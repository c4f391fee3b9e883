//! Rows of the log while the journal is open: what of a session's messages is on disk before and after its end.

use super::crash_tests::open;
use super::schema::{LOG, SETTLED};
use super::testdisk::TestDisk;
use super::*;
use crate::ports::OutboundState;
use crate::storage::conformance::{append, wait};
use crate::storage::model::{Op, message, recipient, record};
use redb::{ReadableDatabase, ReadableTableMetadata};

/// Rows of the log, and settlements of rows with several recipients.
fn rows(journal: &RedbJournal) -> (u64, u64) {
    let db = journal.shared.db.read();
    let txn = db.as_ref().unwrap().begin_read().unwrap();
    (txn.open_table(LOG).unwrap().len().unwrap(), txn.open_table(SETTLED).unwrap().len().unwrap())
}

/// A journal of sessions 1 and 2, which share a message; each has one of its own, and 1 has both in flight.
fn shared() -> (Arc<RedbJournal>, TestDisk, [Seq; 3]) {
    let disk = TestDisk::default();
    let (journal, _) = open(&disk);
    append(&*journal, &[Op::Session(record(1, 1)), Op::Session(record(2, 1))]);
    let store = |sessions: &[SessionNo]| {
        let seq = journal.next_seq();
        let recipients = sessions.iter().map(|no| recipient(*no, 1)).collect();
        append(&*journal, &[Op::Message { seq, id: None, message: message("t", 10), recipients }]);
        seq
    };
    let seqs = [store(&[1, 2]), store(&[1]), store(&[2])];
    let sent = |packet_id, seq| Op::Outbound { session: 1, packet_id, seq, state: OutboundState::Sent };
    wait(&*journal, append(&*journal, &[sent(1, seqs[0]), sent(2, seqs[1])]));
    assert_eq!(rows(&journal), (5, 0));
    (journal, disk, seqs)
}

#[test]
fn the_rows_of_a_session_that_settles_and_ends_go_at_once() {
    let (journal, _, [both, first, second]) = shared();
    let settle = |seq, session| Op::Settle { seq, session };
    append(&*journal, &[settle(both, 1), settle(first, 1)]);
    wait(&*journal, append(&*journal, &[Op::SessionEnd { session: 1 }]));
    assert_eq!(rows(&journal), (2, 1), "the other's are left");
    wait(&*journal, append(&*journal, &[settle(both, 2)]));
    assert_eq!(rows(&journal), (1, 0), "the shared row went with the last of its sessions");
    wait(&*journal, append(&*journal, &[settle(second, 2)]));
    assert_eq!(rows(&journal), (0, 0));
}

#[test]
fn what_a_session_that_ended_had_not_settled_goes_with_the_next_start() {
    let (journal, disk, [both, ..]) = shared();
    wait(&*journal, append(&*journal, &[Op::SessionEnd { session: 1 }]));
    assert_eq!(rows(&journal), (3, 0), "its steps went, its messages did not");
    drop(journal);
    let (journal, _) = open(&disk);
    wait(&*journal, append(&*journal, &[Op::Settle { seq: both, session: 2 }]));
    assert_eq!(rows(&journal), (1, 0));
}
