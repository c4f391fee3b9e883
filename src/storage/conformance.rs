//! What every journal must do, run against both.

use super::model::{Do, Model, Op, Raw, World, message, raws, recipient, record};
use super::{MemoryJournal, MemoryOptions, RedbJournal, RedbOptions};
use crate::ports::{Change, Journal, JournalHealth, Lsn, OutboundState, Recovered, Seq, SessionNo, Stored};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Wake, Waker};
use std::thread::Thread;

/// A journal that can be closed and opened again.
pub(super) trait Subject: Sized {
    /// An empty one.
    fn fresh() -> Self;
    fn journal(&self) -> &dyn Journal;
    fn restart(self) -> (Self, Recovered);
}

struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// Waits as a task would until `lsn` is durable.
pub(super) fn wait(journal: &dyn Journal, lsn: Lsn) {
    while journal.durable() < lsn {
        let woken = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
        journal.wake_at(lsn, &Waker::from(woken.clone()));
        while !woken.1.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

/// Appends `ops` together.
pub(super) fn append(journal: &dyn Journal, ops: &[Op]) -> Lsn {
    let changes: Vec<Change<'_>> = ops.iter().map(Op::change).collect();
    journal.append(&changes)
}

/// Reads and waits for the answer.
pub(super) fn read(journal: &dyn Journal, session: SessionNo, seqs: Vec<Seq>) -> Vec<Stored> {
    let (sender, receiver) = mpsc::channel();
    journal.read(session, seqs, Box::new(move |found| sender.send(found).unwrap()));
    receiver.recv().unwrap()
}

/// In an order that does not depend on the journal, and without its name, which the model does not have.
pub(super) fn normal(mut recovered: Recovered) -> Recovered {
    assert_ne!(std::mem::take(&mut recovered.journal), 0, "a journal has a name");
    recovered.spooled.sort_by(|a, b| a.topic.cmp(&b.topic));
    recovered.retained.sort_by(|a, b| a.topic().cmp(b.topic()));
    recovered.sessions.sort_by_key(|session| session.record.no);
    recovered
}

/// Every session reads everything that was ever stored.
fn check_reads(journal: &dyn Journal, model: &Model) {
    let mut seqs = model.seqs();
    for session in model.sessions.keys() {
        assert_eq!(read(journal, *session, seqs.clone()), model.read(*session, &seqs), "session {session}");
        seqs.reverse();
    }
}

/// Does `raws` to a fresh journal and to the model; they must agree after each restart.
fn agree<S: Subject>(raws: &[Raw]) -> (S, World) {
    let mut subject = S::fresh();
    let mut world = World::default();
    let mut last = 0;
    for raw in raws {
        match world.next(raw, || subject.journal().next_seq()) {
            Do::Append(ops) => last = append(subject.journal(), &ops),
            Do::Sync => wait(subject.journal(), last),
            Do::Restart => {
                check_reads(subject.journal(), &world.model);
                subject = restart(subject, &mut world.model);
                last = 0;
            }
        }
    }
    check_reads(subject.journal(), &world.model);
    wait(subject.journal(), last);
    check_reads(subject.journal(), &world.model);
    assert_eq!(subject.journal().health(), JournalHealth::Ok);
    subject = restart(subject, &mut world.model);
    check_reads(subject.journal(), &world.model);
    (subject, world)
}

fn restart<S: Subject>(subject: S, model: &mut Model) -> S {
    let before = subject.journal().next_seq();
    let (subject, recovered) = subject.restart();
    assert_eq!(normal(recovered), model.restart());
    assert!(subject.journal().next_seq() > before, "numbers are never used twice");
    subject
}

pub(super) struct Memory(Arc<MemoryJournal>);

impl Subject for Memory {
    fn fresh() -> Memory {
        Memory(MemoryJournal::new(MemoryOptions::default()))
    }

    fn journal(&self) -> &dyn Journal {
        &*self.0
    }

    fn restart(self) -> (Memory, Recovered) {
        let (journal, recovered) = self.0.reopen();
        (Memory(journal), recovered)
    }
}

pub(super) struct OnDisk(Option<Arc<RedbJournal>>, tempfile::TempDir);

impl OnDisk {
    fn open(dir: tempfile::TempDir) -> (OnDisk, Recovered) {
        let options = RedbOptions { dir: dir.path().to_owned(), ..RedbOptions::default() };
        let (journal, recovered) = RedbJournal::open(options).unwrap();
        (OnDisk(Some(journal), dir), recovered)
    }
}

impl Subject for OnDisk {
    fn fresh() -> OnDisk {
        let (subject, recovered) = OnDisk::open(tempfile::tempdir().unwrap());
        assert_eq!(normal(recovered), Recovered { next_session: 1, ..Recovered::default() });
        subject
    }

    fn journal(&self) -> &dyn Journal {
        self.0.as_deref().unwrap()
    }

    fn restart(mut self) -> (OnDisk, Recovered) {
        drop(self.0.take());
        OnDisk::open(self.1)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn memory_agrees_with_the_model(raws in raws(1..120)) {
        agree::<Memory>(&raws);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn redb_agrees_with_the_model(raws in raws(1..120)) {
        agree::<OnDisk>(&raws);
    }
}

/// Runs a test against both journals.
macro_rules! both {
    ($($name:ident)*) => {$(
        mod $name {
            #[test]
            fn memory() {
                super::$name::<$crate::storage::conformance::Memory>();
            }

            #[test]
            fn redb() {
                super::$name::<$crate::storage::conformance::OnDisk>();
            }
        }
    )*};
}

pub(super) use both;

both! {
    nothing_is_appended_after_close
    a_step_keeps_its_place_when_released
    session_numbers_are_never_used_twice
    a_message_goes_with_its_last_recipient
    waiting_for_what_is_durable_returns_at_once
    an_unsettled_rest_of_an_ended_session_goes
}

fn store(journal: &dyn Journal, to: &[SessionNo]) -> (Seq, Lsn) {
    let seq = journal.next_seq();
    let recipients = to.iter().map(|no| recipient(*no, 0)).collect();
    (seq, append(journal, &[Op::Message { seq, id: None, message: message("t", 9), recipients }]))
}

pub(super) fn sessions(journal: &dyn Journal, numbers: std::ops::RangeInclusive<SessionNo>) {
    let ops: Vec<Op> = numbers.map(|no| Op::Session(record(no, 1))).collect();
    append(journal, &ops);
}

fn nothing_is_appended_after_close<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=1);
    let (seq, lsn) = store(subject.journal(), &[1]);
    subject.journal().close();
    assert!(subject.journal().durable() >= lsn, "closing makes everything durable");
    let (_, late) = store(subject.journal(), &[1]);
    assert!(subject.journal().durable() < late);
    subject.journal().close();
    let (_, recovered) = subject.restart();
    assert_eq!(recovered.sessions[0].pending, [seq]);
}

fn a_step_keeps_its_place_when_released<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=1);
    let seqs: Vec<Seq> = (0..3).map(|_| store(subject.journal(), &[1]).0).collect();
    let step = |at: usize, state| Op::Outbound { session: 1, packet_id: at as u16 + 1, seq: seqs[at], state };
    for at in [2, 0, 1] {
        append(subject.journal(), &[step(at, OutboundState::Sent)]);
    }
    append(subject.journal(), &[step(2, OutboundState::Released)]);
    let (subject, recovered) = subject.restart();
    let steps =
        |recovered: &Recovered| recovered.sessions[0].outbound.iter().map(|s| s.0).collect::<Vec<_>>();
    assert_eq!(steps(&recovered), [3, 1, 2]);
    append(subject.journal(), &[step(0, OutboundState::Released)]);
    let (_, recovered) = subject.restart();
    assert_eq!(steps(&recovered), [3, 1, 2]);
    assert_eq!(recovered.sessions[0].outbound[1], (1, seqs[0], OutboundState::Released));
    assert_eq!((recovered.sessions[0].pending.len(), recovered.sessions[0].pending_bytes), (0, 0));
}

fn session_numbers_are_never_used_twice<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=9);
    append(subject.journal(), &[Op::SessionEnd { session: 9 }, Op::SessionEnd { session: 8 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!((recovered.sessions.len(), recovered.next_session), (7, 10));
    let (_, recovered) = subject.restart();
    assert_eq!(recovered.next_session, 10);
}

fn a_message_goes_with_its_last_recipient<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=3);
    let (seq, lsn) = store(subject.journal(), &[1, 2, 3]);
    wait(subject.journal(), lsn);
    let settle = |session| Op::Settle { seq, session };
    // Told twice, and across a restart: counts once.
    append(subject.journal(), &[settle(1)]);
    append(subject.journal(), &[settle(1)]);
    assert_eq!(read(subject.journal(), 1, vec![seq]), []);
    assert_eq!(read(subject.journal(), 2, vec![seq]).len(), 1);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.sessions.iter().map(|s| s.pending.len()).collect::<Vec<_>>(), [0, 1, 1]);
    append(subject.journal(), &[settle(1), settle(2)]);
    assert_eq!(read(subject.journal(), 3, vec![seq, seq + 1]).len(), 1);
    append(subject.journal(), &[settle(3)]);
    assert_eq!(read(subject.journal(), 3, vec![seq]), []);
}

fn waiting_for_what_is_durable_returns_at_once<S: Subject>() {
    let subject = S::fresh();
    wait(subject.journal(), subject.journal().append(&[]));
    let (_, lsn) = store(subject.journal(), &[1]);
    wait(subject.journal(), lsn);
    wait(subject.journal(), subject.journal().append(&[]));
    assert!(!subject.journal().congested());
}

fn an_unsettled_rest_of_an_ended_session_goes<S: Subject>() {
    let subject = S::fresh();
    sessions(subject.journal(), 1..=2);
    let (only, _) = store(subject.journal(), &[1]);
    let (both, _) = store(subject.journal(), &[1, 2]);
    append(subject.journal(), &[Op::SessionEnd { session: 1 }]);
    let (subject, recovered) = subject.restart();
    assert_eq!(recovered.sessions.len(), 1);
    assert_eq!(recovered.sessions[0].pending, [both]);
    assert_eq!(read(subject.journal(), 1, vec![only]), []);
    append(subject.journal(), &[Op::Settle { seq: both, session: 2 }]);
    let (_, recovered) = subject.restart();
    assert!(recovered.sessions[0].pending.is_empty());
}
