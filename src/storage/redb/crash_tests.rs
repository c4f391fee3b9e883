//! Power cuts at any moment: what was called durable is there, and nothing half.

use super::testdisk::{Dice, Replay, TestDisk};
use super::{RedbJournal, RedbOptions};
use crate::ports::{Journal, Recovered, Seq};
use crate::storage::OpenError;
use crate::storage::conformance::{append, normal, wait};
use crate::storage::model::{Do, Op, Raw, World, message, raws, recipient, record};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) fn open(disk: &TestDisk) -> (Arc<RedbJournal>, Recovered) {
    try_open(disk).unwrap()
}

pub(super) fn try_open(disk: &TestDisk) -> Result<(Arc<RedbJournal>, Recovered), OpenError> {
    try_open_with(disk, RedbOptions::default().max_batch_bytes)
}

fn try_open_with(
    disk: &TestDisk,
    max_batch_bytes: usize,
) -> Result<(Arc<RedbJournal>, Recovered), OpenError> {
    let options = RedbOptions { cache_bytes: 1 << 20, readers: 1, max_batch_bytes, ..RedbOptions::default() };
    RedbJournal::open_on(Box::new(disk.clone()), options, None)
}

/// What must be found after a cut: `states[durable]` or a later one.
struct Moment {
    /// Events of the disk by then.
    events: usize,
    /// The last state known to be durable.
    durable: usize,
}

/// Runs `raws` on a disk; returns it with the states it went through and the moments at which they became durable.
fn run(raws: &[Raw], max_batch_bytes: usize) -> (TestDisk, Vec<Recovered>, Vec<Moment>) {
    let disk = TestDisk::default();
    disk.record();
    let mut states = vec![Recovered { next_session: 1, ..Recovered::default() }];
    let mut moments = vec![Moment { events: 0, durable: 0 }];
    let mut world = World::default();
    let (mut journal, _) = try_open_with(&disk, max_batch_bytes).unwrap();
    let mut last = 0;
    for raw in raws {
        match world.next(raw, || journal.next_seq()) {
            Do::Append(ops) => {
                last = append(&*journal, &ops);
                states.push(world.model.recovered());
            }
            Do::Restart => {
                drop(journal);
                world.model.restart();
                journal = try_open_with(&disk, max_batch_bytes).unwrap().0;
                last = 0;
            }
            Do::Sync => {}
        }
        // Not after each, so that batches hold several appends.
        if matches!(raw.kind() % 3, 0) {
            wait(&*journal, last);
            moments.push(Moment { events: disk.events_len(), durable: states.len() - 1 });
        }
    }
    drop(journal);
    moments.push(Moment { events: disk.events_len(), durable: states.len() - 1 });
    (disk, states, moments)
}

fn cut_anywhere(raws: &[Raw], seed: u64, cuts: u64) {
    let (disk, states, moments) = run(raws, if seed & 1 == 0 { 1 } else { 1 << 20 });
    let events = disk.events();
    let mut dice = Dice(seed);
    let mut at: Vec<usize> = (0..cuts).map(|_| dice.roll(events.len() as u64 + 1) as usize).collect();
    at.push(events.len());
    at.sort_unstable();
    let mut replay = Replay::new();
    let mut played = 0;
    for cut in at {
        for event in &events[played..cut] {
            replay.push(event.clone());
        }
        played = cut;
        let durable = moments.iter().rfind(|moment| moment.events <= cut).unwrap().durable;
        let next = moments.iter().find(|moment| moment.events >= cut).map_or(states.len() - 1, |m| m.durable);
        // Batches that cancel out become durable without a write: several moments may fall on one event.
        let limit = next.max(durable);
        let after = replay.cut(&mut dice);
        let recovered = normal(open(&after).1);
        assert!(
            states[durable..=limit].contains(&recovered),
            "cut at event {cut} of {}: found {recovered:?}, wanted one of {:?}",
            events.len(),
            &states[durable..=limit]
        );
        // A second start finds the same: the first one's repairs have taken nothing away.
        assert_eq!(normal(open(&after).1), recovered);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_power_cut_takes_nothing_durable_and_leaves_nothing_half(raws in raws(1..60), seed: u64) {
        cut_anywhere(&raws, seed, 24);
    }
}

/// All rows in the log are ones that the state needs.
#[test]
fn no_row_is_left_behind() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..12 {
        let raws = raws(60..150).new_tree(&mut runner).unwrap().current();
        let disk = TestDisk::default();
        let (mut journal, _) = open(&disk);
        let mut world = World::default();
        for raw in &raws {
            match world.next(raw, || journal.next_seq()) {
                Do::Append(ops) => {
                    append(&*journal, &ops);
                }
                Do::Restart => {
                    drop(journal);
                    world.model.restart();
                    journal = open(&disk).0;
                }
                Do::Sync => {}
            }
        }
        drop(journal);
        drop(open(&disk));
        world.model.restart();
        assert_eq!(rows(&disk, super::schema::LOG), world.model.log_rows() as u64);
    }
}

/// Rows in a table.
fn rows<K: redb::Key, V: redb::Value>(disk: &TestDisk, table: redb::TableDefinition<'_, K, V>) -> u64 {
    use redb::{ReadableDatabase, ReadableTableMetadata};
    let db = redb::Builder::new().create_with_backend(disk.clone()).unwrap();
    db.begin_read().unwrap().open_table(table).unwrap().len().unwrap()
}

/// Stores `n` messages, settles all but each `stays`th some time later; returns the sizes of the file at each tenth.
fn come_and_go(disk: &TestDisk, n: usize, stays: usize) -> Vec<u64> {
    let (journal, _) = open(disk);
    append(&*journal, &[Op::Session(record(1, 1))]);
    let mut queue = VecDeque::new();
    let mut sizes = Vec::new();
    for at in 1..=n {
        let seq = journal.next_seq();
        let recipients = vec![recipient(1, 1)];
        let lsn = append(&*journal, &[Op::Message { seq, id: None, message: message("t", 399), recipients }]);
        if at % stays != 0 {
            queue.push_back((seq, lsn));
        }
        while queue.len() > 500 {
            let (seq, lsn) = queue.pop_front().unwrap();
            wait(&*journal, lsn);
            append(&*journal, &[Op::Settle { seq, session: 1 }]);
        }
        if at % (n / 10) == 0 {
            sizes.push(journal.size_bytes());
        }
    }
    sizes
}

#[test]
fn rows_that_stay_do_not_make_the_file_grow() {
    // 18 MB go through; 40 messages of half a kilobyte stay, each alone among a thousand that went.
    let sizes = come_and_go(&TestDisk::default(), 40_000, 1000);
    assert!(sizes[9] < 3 << 20, "{sizes:?}");
    assert!(sizes[9] <= sizes[4] * 2, "{sizes:?}");
}

#[test]
fn a_file_that_is_mostly_free_is_compacted_at_start() {
    let disk = TestDisk::default();
    let (journal, _) = open(&disk);
    append(&*journal, &[Op::Session(record(1, 1))]);
    let mut store = |_| {
        let seq = journal.next_seq();
        let recipients = vec![recipient(1, 1)];
        (seq, append(&*journal, &[Op::Message { seq, id: None, message: message("t", 399), recipients }]))
    };
    let stored: Vec<(Seq, u64)> = (0..5000).map(&mut store).collect();
    wait(&*journal, stored[4999].1);
    // Those at the end of the file stay, so that it cannot just be cut.
    for (seq, _) in &stored[..4900] {
        append(&*journal, &[Op::Settle { seq: *seq, session: 1 }]);
    }
    drop(journal);
    drop(open(&disk));
    let before = disk.data().len();
    let options = RedbOptions { compact_min_bytes: 1 << 17, ..RedbOptions::default() };
    let (_, recovered) = RedbJournal::open_on(Box::new(disk.clone()), options, None).unwrap();
    assert_eq!(recovered.sessions[0].pending.len(), 100);
    let after = disk.data().len();
    assert!(after < before && after < 500_000, "{before} {after}");
    assert_eq!(open(&disk).1, recovered);
}

/// Settlements go with the message that they are of.
#[test]
fn no_settlement_is_left_behind() {
    let disk = TestDisk::default();
    let (journal, _) = open(&disk);
    let sessions: Vec<Op> = (1..=3).map(|no| Op::Session(record(no, 1))).collect();
    append(&*journal, &sessions);
    let seqs: Vec<Seq> = (0..3).map(|_| journal.next_seq()).collect();
    for seq in &seqs {
        let recipients = (1..=3).map(|no| recipient(no, 1)).collect();
        append(&*journal, &[Op::Message { seq: *seq, id: None, message: message("t", 5), recipients }]);
    }
    let settle = |session| seqs.iter().map(|seq| Op::Settle { seq: *seq, session }).collect::<Vec<_>>();
    wait(&*journal, append(&*journal, &settle(1)));
    wait(&*journal, append(&*journal, &settle(2)));
    append(&*journal, &settle(3)[..2]);
    drop(journal);
    assert_eq!((rows(&disk, super::schema::LOG), rows(&disk, super::schema::SETTLED)), (1, 2));
}
