//! Many threads at once: whoever appends can read it back at any moment, whether it is gathered, being committed or durable.

use super::crash_tests::open;
use super::testdisk::{Dice, TestDisk};
use crate::ports::{Journal, Seq, SessionNo};
use crate::storage::conformance::{append, read, wait};
use crate::storage::model::{Op, message, recipient, record};
use std::collections::BTreeSet;

const THREADS: u64 = 4;
const ROUNDS: u64 = 400;
/// A session that receives everything and settles nothing.
const ALL: SessionNo = THREADS + 1;

/// Stores, reads and settles messages of `session`; returns those left and all.
fn work(journal: &dyn Journal, session: SessionNo) -> (Vec<Seq>, Vec<Seq>) {
    let mut dice = Dice(session);
    let mut left: Vec<Seq> = Vec::new();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let seq = journal.next_seq();
        let to_all = dice.roll(2) == 0;
        let mut recipients = vec![recipient(session, 1)];
        if to_all {
            recipients.push(recipient(ALL, 1));
            all.push(seq);
        }
        let lsn = append(
            journal,
            &[Op::Message { seq, id: None, message: message("t", round as u16), recipients }],
        );
        left.push(seq);
        if dice.roll(8) == 0 {
            wait(journal, lsn);
        }
        let mut gone = Vec::new();
        while left.len() as u64 > dice.roll(20) {
            gone.push(left.swap_remove(dice.roll(left.len() as u64) as usize));
        }
        let settle: Vec<Op> = gone.iter().map(|seq| Op::Settle { seq: *seq, session }).collect();
        append(journal, &settle);
        if dice.roll(3) == 0 {
            let asked: Vec<Seq> = left.iter().chain(&gone).copied().collect();
            let found: Vec<Seq> =
                read(journal, session, asked).into_iter().map(|stored| stored.seq).collect();
            assert_eq!(found, left, "session {session}, round {round}");
        }
    }
    left.sort_unstable();
    (left, all)
}

#[test]
fn what_was_appended_can_be_read_at_any_moment() {
    let disk = TestDisk::default();
    let (journal, _) = open(&disk);
    append(&*journal, &(1..=ALL).map(|no| Op::Session(record(no, 1))).collect::<Vec<_>>());
    let results: Vec<_> = std::thread::scope(|scope| {
        let work = |session| {
            scope.spawn({
                let journal = &*journal;
                move || work(journal, session)
            })
        };
        let threads: Vec<_> = (1..=THREADS).map(work).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    drop(journal);
    let (_, recovered) = open(&disk);
    let pending: Vec<&Vec<Seq>> = recovered.sessions.iter().map(|session| &session.pending).collect();
    for (session, (left, _)) in results.iter().enumerate() {
        assert_eq!(pending[session], left);
    }
    let all: BTreeSet<Seq> = results.iter().flat_map(|(_, all)| all).copied().collect();
    assert!(pending[THREADS as usize].iter().eq(&all));
}
