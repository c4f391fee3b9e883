//! Disks that fill up, fail and recover: nothing appended is lost, nothing is called durable that is not, and the journal
//! says what is wrong and goes on by itself.

use super::crash_tests::open;
use super::testdisk::{Faults, TestDisk};
use super::{JournalStats, RedbJournal, RedbOptions};
use crate::ports::{Journal, JournalHealth, Lsn, Recovered, Seq};
use crate::storage::conformance::{append, normal, read, wait};
use crate::storage::model::{Do, Op, World, message, raws, recipient, record};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::sync::{Arc, mpsc};
use std::task::{Wake, Waker};
use std::time::Duration;

/// Opens with hardly any pause between attempts and hardly any cache.
fn open_eager(disk: &TestDisk) -> (Arc<RedbJournal>, Recovered) {
    let options = RedbOptions {
        cache_bytes: 0,
        readers: 1,
        max_pending_bytes: 100_000,
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..RedbOptions::default()
    };
    RedbJournal::open_on(Box::new(disk.clone()), options, None).unwrap()
}

struct Told(mpsc::Sender<()>);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        // The test may have heard enough.
        let _ = self.0.send(());
    }
}

/// Waits as a task would until the health is as `wanted`.
fn wait_health(journal: &RedbJournal, wanted: impl Fn(&JournalHealth) -> bool) -> JournalHealth {
    loop {
        let (sender, told) = mpsc::channel();
        journal.wake_at(Lsn::MAX, &Waker::from(Arc::new(Told(sender))));
        let health = journal.health();
        if wanted(&health) {
            return health;
        }
        told.recv_timeout(Duration::from_secs(20)).expect("nobody was woken by a change of health");
    }
}

fn is_failing(health: &JournalHealth) -> bool {
    matches!(health, JournalHealth::Failing(_))
}

fn store(journal: &dyn Journal, bytes: u16) -> (Seq, Lsn) {
    let seq = journal.next_seq();
    let recipients = vec![recipient(1, 1)];
    (seq, append(journal, &[Op::Message { seq, id: None, message: message("t", bytes), recipients }]))
}

#[test]
fn a_full_disk_loses_nothing_and_recovers_when_there_is_room() {
    let disk = TestDisk::default();
    let (journal, _) = open_eager(&disk);
    wait(&*journal, append(&*journal, &[Op::Session(record(1, 1))]));
    disk.set_faults(Faults { space: Some(disk.data().len() as u64), ..Faults::default() });
    let mut seqs = Vec::new();
    let mut last = 0;
    while !journal.congested() {
        for _ in 0..100 {
            let (seq, lsn) = store(&*journal, 399);
            seqs.push(seq);
            last = lsn;
        }
    }
    let JournalHealth::Failing(said) = wait_health(&journal, is_failing) else { unreachable!() };
    assert!(
        said.contains("/test/journal.redb") && said.contains("No space left") && said.contains("free"),
        "{said}"
    );
    assert!(journal.durable() < last);
    assert!(journal.stats().commits_failed > 0);
    // What waits to be written can be read all the same.
    assert_eq!(read(&*journal, 1, vec![seqs[0]]).len(), 1);
    disk.set_faults(Faults::default());
    wait(&*journal, last);
    wait_health(&journal, |health| *health == JournalHealth::Ok);
    assert!(!journal.congested());
    drop(journal);
    assert_eq!(open(&disk).1.sessions[0].pending, seqs);
}

#[test]
fn a_disk_that_hangs_is_noticed_and_what_waits_becomes_durable() {
    let disk = TestDisk::default();
    let options = RedbOptions { stall_timeout: Duration::from_millis(200), ..RedbOptions::default() };
    let (journal, _) = RedbJournal::open_on(Box::new(disk.clone()), options, None).unwrap();
    wait(&*journal, append(&*journal, &[Op::Session(record(1, 1))]));
    for round in 1..=2 {
        assert!(!journal.stalled());
        disk.set_faults(Faults { hangs: true, ..Faults::default() });
        let (_, lsn) = store(&*journal, 399);
        let JournalHealth::Failing(said) = wait_health(&journal, is_failing) else { unreachable!() };
        assert!(
            said.contains("/test/journal.redb")
                && said.contains("hangs")
                && said.contains("under way for 0."),
            "{said}"
        );
        assert!(journal.stalled() && journal.durable() < lsn);
        let (_, later) = store(&*journal, 399);
        disk.set_faults(Faults::default());
        wait(&*journal, later);
        wait_health(&journal, |health| *health == JournalHealth::Ok);
        assert_eq!(
            (journal.stalled(), journal.stats().stalls, journal.stats().commits_failed),
            (false, round, 0)
        );
    }
    drop(journal);
    assert_eq!(open(&disk).1.sessions[0].pending.len(), 4);
}

#[test]
fn a_full_disk_can_be_read() {
    let disk = TestDisk::default();
    let never = Duration::from_secs(3600);
    let options =
        RedbOptions { cache_bytes: 0, retry_min: never, retry_max: never, ..RedbOptions::default() };
    let (journal, _) = RedbJournal::open_on(Box::new(disk.clone()), options, None).unwrap();
    let (seq, lsn) = store(&*journal, 399);
    wait(&*journal, lsn);
    disk.set_faults(Faults { space: Some(disk.data().len() as u64), ..Faults::default() });
    let tried = |stats: JournalStats| stats.commits + stats.commits_failed;
    while journal.health() == JournalHealth::Ok {
        let before = tried(journal.stats());
        for _ in 0..1000 {
            store(&*journal, 399);
        }
        while tried(journal.stats()) == before {
            std::thread::yield_now();
        }
    }
    assert_eq!(read(&*journal, 1, vec![seq]).len(), 1);
    // Neither does the long pause keep it from closing.
    journal.close();
}

#[test]
fn an_io_error_at_any_moment_loses_nothing() {
    let mut runner = TestRunner::deterministic();
    let raws = raws(40..41).new_tree(&mut runner).unwrap().current();
    let mut at = 0;
    let mut failures = 0;
    loop {
        let disk = TestDisk::default();
        let (journal, _) = open_eager(&disk);
        disk.set_faults(Faults { changes_left: Some(at), ..Faults::default() });
        let mut world = World::default();
        let mut last = 0;
        for raw in &raws {
            if let Do::Append(ops) = world.next(raw, || journal.next_seq()) {
                last = append(&*journal, &ops);
            }
            // Several batches, each complete before the next, or stuck.
            while journal.durable() < last && disk.failed() == 0 {
                std::thread::yield_now();
            }
        }
        let failed = disk.failed() > 0;
        if failed {
            wait_health(&journal, is_failing);
            disk.set_faults(Faults::default());
            failures += 1;
        }
        wait(&*journal, last);
        assert_eq!(journal.health(), JournalHealth::Ok);
        disk.set_faults(Faults::default());
        drop(journal);
        assert_eq!(normal(open(&disk).1), world.model.restart(), "failed at change {at}");
        if !failed {
            break;
        }
        at += 1 + at / 8;
    }
    assert!(failures > 10);
}

#[test]
fn a_read_waits_out_an_io_error() {
    let disk = TestDisk::default();
    let (journal, _) = open_eager(&disk);
    append(&*journal, &[Op::Session(record(1, 1))]);
    let stored: Vec<(Seq, Lsn)> = (0..2000).map(|_| store(&*journal, 399)).collect();
    wait(&*journal, stored[1999].1);
    disk.set_faults(Faults { reads_left: Some(0), ..Faults::default() });
    let (sender, receiver) = mpsc::channel();
    let wanted: Vec<Seq> = stored.iter().map(|(seq, _)| *seq).step_by(40).collect();
    journal.read(1, wanted.clone(), Box::new(move |found| sender.send(found).unwrap()));
    wait_health(&journal, is_failing);
    assert!(receiver.try_recv().is_err(), "an answer that is not there");
    disk.set_faults(Faults::default());
    let found: Vec<Seq> = receiver.recv().unwrap().into_iter().map(|stored| stored.seq).collect();
    assert_eq!(found, wanted);
    wait_health(&journal, |health| *health == JournalHealth::Ok);
}

#[test]
fn closing_a_failing_journal_comes_to_an_end() {
    let disk = TestDisk::default();
    let (journal, _) = open_eager(&disk);
    let (_, before) = store(&*journal, 1);
    wait(&*journal, before);
    disk.set_faults(Faults { changes_left: Some(0), ..Faults::default() });
    let (_, lost) = store(&*journal, 1);
    wait_health(&journal, is_failing);
    journal.read(1, vec![1], Box::new(|_| ()));
    journal.close();
    assert!(journal.durable() < lost);
    disk.set_faults(Faults::default());
    drop(journal);
    open(&disk);
}

/// The real thing: a small file system that fills up. Needs the right to mount one; elsewhere the test above, on the disk
/// in memory, must do.
#[test]
fn a_full_file_system_loses_nothing_and_recovers_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        command.output().is_ok_and(|output| output.status.success())
    };
    if !mount("size=1m") {
        eprintln!("not allowed to mount a file system: skipped");
        return;
    }
    let options = RedbOptions {
        dir: dir.path().to_owned(),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..RedbOptions::default()
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (journal, _) = RedbJournal::open(options.clone()).unwrap();
        append(&*journal, &[Op::Session(record(1, 1))]);
        let stored: Vec<(Seq, Lsn)> = (0..10_000).map(|_| store(&*journal, 399)).collect();
        let JournalHealth::Failing(said) = wait_health(&journal, is_failing) else { unreachable!() };
        assert!(said.contains("journal.redb") && said.contains("No space left"), "{said}");
        assert!(mount("remount,size=64m"));
        wait(&*journal, stored[9999].1);
        wait_health(&journal, |health| *health == JournalHealth::Ok);
        drop(journal);
        let (_, recovered) = RedbJournal::open(options.clone()).unwrap();
        assert_eq!(recovered.sessions[0].pending.len(), stored.len());
    }));
    let unmounted = std::process::Command::new("umount").arg(dir.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
