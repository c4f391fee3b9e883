//! Figures of the journal on disk. `cargo bench --bench journal [name…]`; `BERTH_BENCH_DIR` says where (default: the
//! directory for temporary files, which should be on the disk that matters).
//!
//! Plain loops and not a statistics harness: each figure is one long run against a real disk.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use berth::clock::{Time, monotonic_us};
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, QoS};
use berth::ports::{Change, Journal, Lsn, Recipient, Seq, SessionNo, SessionRecord};
use berth::storage::{RedbJournal, RedbOptions};
use berth::user::SessionUser;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Wake, Waker};
use std::thread::Thread;

const PAYLOAD: [u8; 256] = [7; 256];

type Bench = (&'static str, fn(&Path));

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let benches: [Bench; 9] = [
        ("append-1", |dir| append(dir, 1)),
        ("append-4", |dir| append(dir, 4)),
        ("steady", |dir| steady(dir, 4000)),
        ("steady-short", |dir| steady(dir, 64)),
        ("fan-out", fan_out),
        ("recover", recover),
        ("read", read),
        ("pinned", pinned),
        ("compact", compact),
    ];
    for (name, bench) in benches {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let base = std::env::var_os("BERTH_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
            let dir = tempfile::tempdir_in(base).unwrap();
            bench(dir.path());
        }
    }
}

fn open(dir: &Path) -> Arc<RedbJournal> {
    RedbJournal::open(RedbOptions { dir: dir.to_owned(), ..RedbOptions::default() }).unwrap().0
}

fn message() -> Message {
    Message::new(Parts {
        topic: "bench/topic/name",
        payload: &PAYLOAD,
        properties: &[],
        qos: QoS::AtLeastOnce,
        retain: false,
        expires_at: None,
    })
}

fn to(session: SessionNo) -> Recipient {
    let subscription_ids = Default::default();
    Recipient {
        session,
        qos: QoS::AtLeastOnce,
        retain: false,
        subscription_ids,
        shared: None,
        publisher: None,
        unserved: None,
    }
}

fn make_session(journal: &RedbJournal, no: SessionNo) {
    let client_id = format!("client-{no}").into();
    journal.append(&[Change::Session(&SessionRecord {
        no,
        client_id,
        expiry_s: u32::MAX,
        disconnected_at: None,
        will: None,
        created_at: Time(1),
        epoch: 0,
        pending: false,
        user: SessionUser::Unknown,
        queue_policy: None,
    })]);
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait(journal: &RedbJournal, lsn: Lsn) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    while journal.durable() < lsn {
        journal.wake_at(lsn, &waker);
        std::thread::park();
    }
}

fn store(journal: &RedbJournal, message: &Message, recipients: &[Recipient]) -> (Seq, Lsn) {
    let seq = journal.next_seq();
    let lsn = journal.append(&[Change::Message { seq, id: None, message, recipients }]);
    if journal.congested() {
        wait(journal, lsn);
    }
    (seq, lsn)
}

fn rate(what: &str, n: u64, since_us: u64) {
    let us = (monotonic_us() - since_us).max(1);
    println!("{what}: {n} in {:.2} s, {:.0}/s", us as f64 / 1e6, n as f64 * 1e6 / us as f64);
}

fn commits(journal: &RedbJournal) {
    let stats = journal.stats();
    println!(
        "    {} commits of {:.0} changes, {:.2} ms each; {} void; {} rows elided; file {} MiB; RSS {} MiB",
        stats.commits,
        stats.changes as f64 / stats.commits.max(1) as f64,
        stats.commit_us_total as f64 / stats.commits.max(1) as f64 / 1000.0,
        stats.commits_void,
        stats.rows_elided,
        journal.size_bytes() >> 20,
        rss_mib(),
    );
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Each thread appends as fast as it can, to a session of its own.
fn append(dir: &Path, threads: u64) {
    const EACH: u64 = 1_000_000;
    let journal = open(dir);
    let per_thread = EACH / threads;
    let started = monotonic_us();
    std::thread::scope(|scope| {
        for no in 1..=threads {
            let journal = &journal;
            scope.spawn(move || {
                make_session(journal, no);
                let (message, to) = (message(), [to(no)]);
                let last = (0..per_thread).map(|_| store(journal, &message, &to).1).max();
                wait(journal, last.unwrap());
            });
        }
    });
    rate(&format!("append, {threads} threads"), per_thread * threads, started);
    commits(&journal);
}

/// Store and settle with `open` messages in between, acknowledged like an offline queue that drains as fast as it fills.
fn steady(dir: &Path, open_messages: usize) {
    const N: u64 = 1_000_000;
    let journal = open(dir);
    make_session(&journal, 1);
    let (message, to) = (message(), [to(1)]);
    let mut queue: VecDeque<(Seq, Lsn)> = VecDeque::new();
    let started = monotonic_us();
    let mut last = 0;
    for _ in 0..N {
        queue.push_back(store(&journal, &message, &to));
        if queue.len() > open_messages
            && let Some((seq, lsn)) = queue.pop_front()
        {
            // A message is sent, and settled, only when it is durable.
            wait(&journal, lsn);
            last = journal.append(&[Change::Settle { seq, session: 1 }]);
        }
    }
    wait(&journal, last);
    rate(&format!("store, then settle when durable, {open_messages} open"), N, started);
    commits(&journal);
}

/// One message to ten sessions, each of which settles it a thousand messages later than the one before.
fn fan_out(dir: &Path) {
    const N: usize = 100_000;
    const LAG: usize = 1000;
    let journal = open(dir);
    (1..=10).for_each(|no| make_session(&journal, no));
    let (message, to) = (message(), (1..=10).map(to).collect::<Vec<_>>());
    let mut stored: Vec<(Seq, Lsn)> = Vec::with_capacity(N);
    let started = monotonic_us();
    let mut last = 0;
    for at in 0..N + 10 * LAG {
        if at < N {
            stored.push(store(&journal, &message, &to));
        }
        for session in 1..=10_usize {
            let Some((seq, lsn)) = at.checked_sub(session * LAG).and_then(|at| stored.get(at)) else {
                continue;
            };
            wait(&journal, *lsn);
            last = journal.append(&[Change::Settle { seq: *seq, session: session as SessionNo }]);
        }
        if journal.congested() {
            wait(&journal, last);
        }
    }
    wait(&journal, last);
    rate("deliveries of messages with 10 recipients", N as u64 * 10, started);
    commits(&journal);
}

/// Start with a file of which nine tenths are free.
fn compact(dir: &Path) {
    let journal = open(dir);
    make_session(&journal, 1);
    let (message, to) = (message(), [to(1)]);
    let stored: Vec<(Seq, Lsn)> = (0..1_000_000).map(|_| store(&journal, &message, &to)).collect();
    wait(&journal, stored[999_999].1);
    let settle = |(seq, _): &(Seq, Lsn)| journal.append(&[Change::Settle { seq: *seq, session: 1 }]);
    let started = monotonic_us();
    let last = stored[..900_000].iter().map(settle).max();
    wait(&journal, last.unwrap());
    rate("settle a queue", 900_000, started);
    let before = journal.size_bytes();
    drop(journal);
    let started = monotonic_us();
    let journal = open(dir);
    rate("recover and compact", 100_000, started);
    println!("    file {} MiB, then {} MiB", before >> 20, journal.size_bytes() >> 20);
}

/// Opens a journal with messages in it.
fn recover(dir: &Path) {
    for (n, sessions) in [(100_000, 10), (1_000_000, 100)] {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let journal = open(dir.path());
        (1..=sessions).for_each(|no| make_session(&journal, no));
        let message = message();
        let last = (0..n).map(|at| store(&journal, &message, &[to(at % sessions + 1)]).1).max();
        wait(&journal, last.unwrap());
        commits(&journal);
        drop(journal);
        let started = monotonic_us();
        let options = RedbOptions { dir: dir.path().to_owned(), ..RedbOptions::default() };
        let (journal, recovered) = RedbJournal::open(options).unwrap();
        let pending: usize = recovered.sessions.iter().map(|session| session.pending.len()).sum();
        rate("recover", pending as u64, started);
        println!("    RSS {} MiB", rss_mib());
        drop(journal);
    }
}

/// Reads a long queue from its head, some messages at a time, the next when the last have come; then sparse ones.
fn read(dir: &Path) {
    const N: u64 = 1_000_000;
    let journal = open(dir);
    make_session(&journal, 1);
    let (message, to) = (message(), [to(1)]);
    let stored: Vec<(Seq, Lsn)> = (0..N).map(|_| store(&journal, &message, &to)).collect();
    wait(&journal, stored.last().unwrap().1);
    let (sender, receiver) = mpsc::channel();
    for (at_once, step, n) in [(64, 1, N), (128, 1, N), (128, 1, 150_000), (128, 50, N)] {
        let seqs: Vec<Seq> = stored.iter().take(n as usize).map(|(seq, _)| *seq).step_by(step).collect();
        let started = monotonic_us();
        let mut chunks = seqs.chunks(at_once);
        let mut found = 0;
        let mut ask = || {
            let sender = sender.clone();
            let chunk = chunks.next()?;
            journal.read(1, chunk.to_vec(), Box::new(move |found| sender.send(found.len()).unwrap()));
            Some(())
        };
        // Two sessions' worth of requests under way.
        let mut under_way = usize::from(ask().is_some()) + usize::from(ask().is_some());
        while under_way > 0 {
            found += receiver.recv().unwrap();
            under_way = under_way - 1 + usize::from(ask().is_some());
        }
        rate(&format!("read {at_once} at a time, each {step}th of {n}"), found as u64, started);
    }
    println!("    RSS {} MiB", rss_mib());
}

/// A million messages come and go, but one in a thousand stays for good: does the file grow?
fn pinned(dir: &Path) {
    let journal = open(dir);
    make_session(&journal, 1);
    let (message, to) = (message(), [to(1)]);
    let mut queue = VecDeque::new();
    let mut last = 0;
    for at in 1..=3_000_000_u64 {
        let (seq, lsn) = store(&journal, &message, &to);
        if at % 1000 != 0 {
            queue.push_back((seq, lsn));
        }
        if queue.len() > 10_000
            && let Some((seq, lsn)) = queue.pop_front()
        {
            wait(&journal, lsn);
            last = journal.append(&[Change::Settle { seq, session: 1 }]);
        }
        if at % 500_000 == 0 {
            println!("pinned: {} of {at} messages stay, file {} KiB", at / 1000, journal.size_bytes() >> 10);
        }
    }
    wait(&journal, last);
    commits(&journal);
}
