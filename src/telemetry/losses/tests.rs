//! What the log says of losses, and how much.

use super::*;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

const FULL: Loss = Loss::MailboxBytes(8 << 20);

fn client(n: usize) -> Arc<Named> {
    Named::new(Subject::Client, format!("c{n}").into())
}

/// A line as `first c1 1`, `again c1 5 of 6`, `others 7 of 3`.
fn brief(line: &Line) -> String {
    match line {
        Line::First { name, lost, .. } => format!("first {name} {lost}"),
        Line::Again { name, lost, all, .. } => format!("again {name} {lost} of {all}"),
        Line::Others { lost, clients, .. } => format!("others {lost} of {clients}"),
    }
}

fn briefs(lines: &[Line]) -> Vec<String> {
    lines.iter().map(brief).collect()
}

fn at(minutes: u64) -> Time {
    Time(1_000 + minutes * SUMMARY_MS)
}

#[test]
fn millions_of_drops_leave_a_line_then_one_a_minute() {
    let losses = Losses::new(SUMMARY_MS);
    let slow = client(1);
    assert_eq!(losses.next_timeout(Waker::noop()), None);
    let first = losses.note(slow.whose(), FULL, 1).unwrap();
    assert_eq!(brief(&first), "first c1 1");
    assert_eq!(losses.next_timeout(Waker::noop()), Some(Time(0)), "it is to be looked at once");
    assert!(losses.due(at(0)).is_empty());
    assert_eq!(losses.next_timeout(Waker::noop()), Some(at(1)));
    for _ in 0..100_000 {
        assert!(losses.note(slow.whose(), FULL, 46).is_none());
    }
    assert!(losses.due(Time(at(1).0 - 1)).is_empty());
    assert_eq!(briefs(&losses.due(at(1))), ["again c1 4600000 of 4600001"]);
    assert!(losses.note(slow.whose(), FULL, 2).is_none());
    assert_eq!(briefs(&losses.due(at(2))), ["again c1 2 of 4600003"]);
    // It has ended: nothing is said, nothing is to be done, and what comes later is a first again.
    assert!(losses.due(at(3)).is_empty());
    assert_eq!(losses.next_timeout(Waker::noop()), None);
    assert_eq!(brief(&losses.note(slow.whose(), FULL, 3).unwrap()), "first c1 3");
}

#[test]
fn each_reason_and_each_limit_has_its_line() {
    let losses = Losses::new(SUMMARY_MS);
    let slow = client(1);
    let kinds = [
        (Loss::MailboxMessages(2), "mailbox_full", Some("session.mailbox_messages=2")),
        (FULL, "mailbox_full", Some("session.mailbox_bytes=8388608")),
        (Loss::QueueMessages(7), "queue_full", Some("session.max_queued_messages=7")),
        (Loss::QueueBytes(9), "queue_full", Some("session.max_queued_bytes=9")),
        (Loss::Displaced("session.max_queued_bytes", 8), "displaced", Some("session.max_queued_bytes=8")),
        (Loss::TooLarge(20), "too_large", Some("the client's maximum packet size=20")),
        (Loss::Offline, "offline", None),
        (Loss::Journal(100), "journal", Some("publish.timeout=100ms")),
        (Loss::RetainedPayload(5), "quota", Some("retained.max_payload=5")),
        (Loss::LinkDown, "link_down", None),
    ];
    for (loss, reason, limit) in kinds {
        assert!(losses.note(slow.whose(), loss, 1).is_some(), "{loss:?}");
        assert!(losses.note(slow.whose(), loss, 1).is_none(), "{loss:?}");
        assert_eq!((loss.reason(), loss.limit().as_deref()), (reason, limit));
    }
}

#[test]
fn the_lines_of_a_minute_are_bounded_however_many_clients_there_are() {
    let losses = Losses::new(SUMMARY_MS);
    let clients: Vec<_> = (0..10_000).map(client).collect();
    let flood = || {
        let note = |named: &Arc<Named>| losses.note(named.whose(), FULL, 3);
        clients.iter().chain(&clients).filter_map(note).count()
    };
    assert_eq!(flood(), FOLLOWED_MAX);
    assert!(losses.due(at(0)).is_empty());
    let own = |c: &&Arc<Named>| c.account.cells.get().is_some();
    assert_eq!(clients.iter().filter(own).count(), FOLLOWED_MAX, "the others take no memory");
    // Those that lose what the protocol means them to lose do not take the places.
    assert!(losses.note(clients[9_999].whose(), Loss::Offline, 1).is_some());
    for minute in 1..4 {
        let lines = losses.due(at(minute));
        assert_eq!(lines.iter().filter(|l| matches!(l, Line::Again { .. })).count(), FOLLOWED_MAX);
        let others = (10_000 - FOLLOWED_MAX) * 6;
        assert_eq!(brief(lines.last().unwrap()), format!("others {others} of {}", 10_000 - FOLLOWED_MAX));
        assert_eq!(lines.len(), FOLLOWED_MAX + 1);
        assert_eq!(flood(), 0, "every place is taken");
    }
    // Once the others stop they have their last line, and a place is free for the next client.
    assert_eq!(losses.due(at(4)).len(), FOLLOWED_MAX + 1);
    assert!(losses.due(at(5)).is_empty());
    assert_eq!(losses.next_timeout(Waker::noop()), None);
    assert!(losses.note(clients[9_998].whose(), FULL, 1).is_some());
}

#[test]
fn a_client_that_comes_back_goes_on_where_it_was() {
    let losses = Losses::new(SUMMARY_MS);
    let (before, after) = (client(1), client(1));
    assert!(losses.note(before.whose(), FULL, 1).is_some());
    losses.due(at(0));
    assert!(losses.note(before.whose(), FULL, 4).is_none());
    assert!(losses.note(after.whose(), FULL, 2).is_none(), "the same client, another session");
    assert!(losses.note(after.whose(), FULL, 8).is_none());
    assert_eq!(briefs(&losses.due(at(1))), ["again c1 14 of 15"]);
    assert!(losses.due(at(2)).is_empty());
    assert!(
        losses.note(Named::new(Subject::Node, "c1".into()).whose(), FULL, 1).is_some(),
        "a node is no client"
    );
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn only_what_is_new_wakes_the_timer() {
    let losses = Losses::new(SUMMARY_MS);
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    for (n, expected) in [(1, 1), (1, 1), (2, 2)] {
        losses.next_timeout(&waker);
        losses.note(client(n).whose(), FULL, 1);
        assert_eq!(woken.0.load(SeqCst), expected);
    }
}

/// Whatever threads do at the same time, every loss is in exactly one line.
#[test]
fn no_loss_is_left_out_or_told_twice() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 20_000;
    let losses = Losses::new(0);
    let clients: Vec<_> = (0..FOLLOWED_MAX + 20).map(client).collect();
    let told = AtomicU64::new(0);
    let tell = |lines: &[Line]| {
        for line in lines {
            let (Line::First { lost, .. } | Line::Again { lost, .. } | Line::Others { lost, .. }) = line;
            told.fetch_add(*lost, SeqCst);
        }
    };
    let running = AtomicUsize::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (losses, clients, tell, running) = (&losses, &clients, &tell, &running);
            scope.spawn(move || {
                for n in 0..ROUNDS {
                    let account = &clients[(n * (thread + 1)) % clients.len()];
                    tell(losses.note(account.whose(), FULL, 1).as_slice());
                }
                running.fetch_sub(1, SeqCst);
            });
        }
        let mut now = 0;
        while running.load(SeqCst) > 0 {
            now += 1;
            tell(&losses.due(Time(now)));
        }
        (0..3).for_each(|more| tell(&losses.due(Time(now + 1 + more))));
    });
    assert_eq!(losses.next_timeout(Waker::noop()), None);
    assert_eq!(told.load(SeqCst), (THREADS * ROUNDS) as u64);
}
