//! What links in memory keep of what the port promises.

use super::store_tests::message;
use super::*;
use crate::clock::Time;
use crate::ports::{
    Answer, Answers, BoxFuture, Frame, Inbox, LinkState, Member, MemberId, MessageId, PeerError, Peers,
    Report, Request, Response,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Frame(u64),
    Report(u64),
    Answered(u64),
    Link(Option<u64>),
}

/// Answers everything at once, unless it keeps the answers back.
#[derive(Default)]
struct End {
    seen: Mutex<Vec<Event>>,
    keep_back: AtomicBool,
    kept: Mutex<Vec<(Arc<dyn Answers>, MessageId)>>,
}

fn accepted() -> Answer {
    Answer::Accepted { matched: true, declined: Vec::new() }
}

impl End {
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.seen.lock())
    }
}

impl Inbox for End {
    fn frames(&self, _: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool {
        for id in frames.into_iter().filter_map(|f| f.id) {
            self.seen.lock().push(Event::Frame(id.seq));
            if self.keep_back.load(Ordering::Relaxed) {
                self.kept.lock().push((answers.clone(), id));
            } else {
                answers.answer(vec![(id, accepted())]);
            }
        }
        false
    }

    fn relieved(&self) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn report(&self, _: &MemberId, report: Report) {
        self.seen.lock().push(Event::Report(report.applied));
    }

    fn answered(&self, _: &Arc<str>, answers: Vec<(MessageId, Answer)>) {
        self.seen.lock().extend(answers.iter().map(|(id, _)| Event::Answered(id.seq)));
    }

    fn link(&self, _: &Arc<str>, process: Option<MemberId>) {
        self.seen.lock().push(Event::Link(process.map(|p| p.incarnation)));
    }

    fn request(&self, from: MemberId, _: Request) -> BoxFuture<Response> {
        Box::pin(async move { Response::Refused(from.node) })
    }

    fn superseded(&self, process: &MemberId) -> bool {
        process.incarnation == 13
    }
}

struct Stage {
    sim: SimTasks,
    net: Network,
}

struct Node {
    process: Arc<SimProcess>,
    peers: Arc<MemoryPeers>,
    end: Arc<End>,
}

fn id(node: &str, incarnation: u64) -> MemberId {
    MemberId { node: node.into(), incarnation }
}

fn member(node: &str) -> Member {
    Member {
        id: id(node, 0),
        peer_address: String::new(),
        mqtt_address: String::new(),
        http_address: None,
        zone: String::new(),
        version: String::new(),
        started_ms: 0,
        draining: false,
    }
}

impl Stage {
    fn new(seed: u64) -> Stage {
        Stage { sim: SimTasks::new(seed, Time(0)), net: Network::new(seed) }
    }

    fn start(&self, node: &str, incarnation: u64) -> Node {
        let process = self.sim.process();
        let peers = self.net.join(id(node, incarnation), process.clone());
        let end = Arc::new(End::default());
        peers.connect(end.clone());
        peers.keep(vec![member("a"), member("b")]);
        self.sim.run_until_idle();
        Node { process, peers, end }
    }
}

impl Node {
    fn send(&self, seqs: std::ops::Range<u64>) {
        for seq in seqs {
            let id = Some(MessageId { origin: 1, seq });
            let frame = Frame {
                id,
                matched_at: 1,
                direct: true,
                groups: Vec::new(),
                message: message("m"),
                update: None,
                first: false,
            };
            self.peers.send(&"b".into(), frame);
        }
    }

    fn report(&self, applied: u64) {
        self.peers.report(Report { applied, ..Report::default() });
    }
}

#[test]
fn frames_reports_and_answers_come_in_order() {
    for seed in 0..30 {
        let stage = Stage::new(seed);
        let (a, b) = (stage.start("a", 1), stage.start("b", 2));
        assert_eq!((a.end.take(), b.end.take()), (vec![Event::Link(Some(2))], vec![Event::Link(Some(1))]));
        stage.net.latency(10);
        a.send(0..5);
        a.report(7);
        a.report(8);
        a.send(5..6);
        stage.sim.advance(500);
        let mut expected: Vec<Event> = (0..5).map(Event::Frame).collect();
        expected.extend([Event::Report(8), Event::Frame(5)]);
        assert_eq!(b.end.take(), expected, "seed {seed}");
        assert_eq!(a.end.take(), (0..6).map(Event::Answered).collect::<Vec<_>>());
        assert_eq!(a.peers.links()[0].unanswered, 0);
    }
}

#[test]
fn what_is_not_answered_is_sent_again_by_name_and_before_a_report_and_all_later_ones() {
    for seed in 0..30 {
        let stage = Stage::new(seed);
        let (a, b) = (stage.start("a", 1), stage.start("b", 2));
        b.end.keep_back.store(true, Ordering::Relaxed);
        // 2 was matched again.
        a.send(0..2);
        a.send(3..4);
        a.send(2..3);
        a.report(9);
        stage.sim.run_until_idle();
        let (answers, _) = b.end.kept.lock()[0].clone();
        answers.answer(vec![(MessageId { origin: 1, seq: 1 }, accepted())]);
        stage.sim.run_until_idle();
        stage.net.partition("a", "b", true);
        answers.answer(vec![(MessageId { origin: 1, seq: 0 }, accepted())]);
        a.send(4..6);
        a.peers.cancel(&"b".into(), MessageId { origin: 1, seq: 5 });
        stage.sim.run_until_idle();
        assert_eq!(a.peers.links()[0].state, LinkState::Down);
        a.end.take();
        b.end.take();
        b.end.keep_back.store(false, Ordering::Relaxed);
        stage.net.partition("a", "b", false);
        stage.sim.run_until_idle();
        let expected = [0, 2, 3, 4].map(Event::Frame).into_iter().chain([Event::Report(9)]);
        let seen: Vec<Event> = b.end.take().into_iter().filter(|e| !matches!(e, Event::Link(_))).collect();
        assert_eq!(seen, expected.collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(a.peers.links()[0].unanswered, 0);
    }
}

#[test]
fn reports_do_not_gather_where_nothing_gets_through() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    stage.net.stall("a", "b", true);
    for n in 0..100 {
        a.send(n..n + 1);
        a.report(n);
        if n > 0 {
            a.peers.cancel(&"b".into(), MessageId { origin: 1, seq: n });
        }
    }
    a.send(100..101);
    b.end.take();
    stage.net.stall("a", "b", false);
    stage.sim.run_until_idle();
    let expected = [Event::Frame(0), Event::Report(0), Event::Report(99), Event::Frame(100)];
    assert_eq!(b.end.take(), expected);
}

#[test]
fn a_new_process_gets_what_the_old_one_did_not_answer() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    b.end.keep_back.store(true, Ordering::Relaxed);
    a.send(0..2);
    stage.sim.run_until_idle();
    b.process.kill();
    stage.net.crash("b");
    stage.sim.run_until_idle();
    assert_eq!(a.end.take(), [Event::Link(Some(2)), Event::Link(None)]);
    let b = stage.start("b", 5);
    assert_eq!(a.end.take(), [Event::Link(Some(5)), Event::Answered(0), Event::Answered(1)]);
    assert_eq!(b.end.take(), [Event::Link(Some(1)), Event::Frame(0), Event::Frame(1)]);
}

#[test]
fn a_superseded_process_is_refused() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 13), stage.start("b", 2));
    a.send(0..1);
    stage.sim.advance(3000);
    assert_eq!((a.peers.links()[0].state, b.end.take()), (LinkState::Refused, vec![Event::Link(Some(13))]));
}

#[test]
fn a_request_is_answered_or_fails_in_time() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    let ask = || {
        let request = a.peers.request(&"b".into(), Request::Events { after: 1 });
        stage.sim.wait(request, 60_000).unwrap()
    };
    assert!(matches!(ask(), Ok(Response::Refused(node)) if node.as_ref() == "a"));
    stage.net.stall("a", "b", true);
    let began = stage.sim.now();
    assert_eq!(ask().unwrap_err(), PeerError::TimedOut("b".into()));
    assert!(stage.sim.now() > began);
    a.send(0..1);
    stage.sim.advance(1000);
    assert!(!b.end.take().contains(&Event::Frame(0)) && a.peers.links()[0].state == LinkState::Up);
    stage.net.stall("a", "b", false);
    stage.sim.run_until_idle();
    assert_eq!(b.end.take(), [Event::Frame(0)]);
    stage.net.partition("a", "b", true);
    assert_eq!(ask().unwrap_err(), PeerError::Unreachable("b".into()));
}

#[test]
fn without_a_link_only_what_has_an_id_is_kept() {
    let stage = Stage::new(1);
    let a = stage.start("a", 1);
    let frame = Frame {
        id: None,
        matched_at: 1,
        direct: true,
        groups: Vec::new(),
        message: message("m"),
        update: None,
        first: false,
    };
    a.peers.send(&"b".into(), frame);
    a.send(0..1);
    assert_eq!(a.peers.links()[0].queued, 1);
    a.peers.keep(Vec::new());
    assert!(a.peers.links().is_empty());
}
