//! Links between nodes, on loopback, without a broker: what one node sends, the other gets, in order, and answers once.

use super::proxy::Proxy;
use crate::wait::becomes_true;
use berth::mqtt::message::Parts;
use berth::mqtt::{Message, QoS};
use berth::peers::{GrpcPeers, PeerIdentity, PeerOptions, PeerServer, PeerTls};
use berth::ports::{
    Answer, Answers, BoxFuture, Frame, Inbox, LinkState, LinkStatus, Member, MemberId, MessageId, PeerError,
    Peers, Report, Request, Response,
};
use berth::telemetry::Metrics;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// The journal that every node says it has.
pub const JOURNAL: u64 = 5;

/// What a node received, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Got {
    /// A frame by its number; 0 without ID.
    Frame(u64),
    /// A report by its revision.
    Report(u64),
}

/// An inbox that writes down what happens.
#[derive(Default)]
pub struct Recorder {
    pub got: Mutex<Vec<Got>>,
    pub answered: Mutex<HashMap<MessageId, Vec<Answer>>>,
    pub links: Mutex<Vec<Option<MemberId>>>,
    pub superseded: Mutex<Vec<MemberId>>,
    /// Frames are not answered while on; see `release`.
    pub hold: AtomicBool,
    held: Mutex<Vec<(MessageId, Arc<dyn Answers>)>>,
    /// Every batch asks for a pause while on.
    pub full: AtomicBool,
    relief: Arc<Notify>,
    /// Requests are never answered while on.
    pub mute: AtomicBool,
}

impl Recorder {
    pub fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    /// Answers what was held.
    pub fn release(&self, answer: &Answer) {
        self.hold.store(false, Ordering::SeqCst);
        for (id, answers) in std::mem::take(&mut *self.held.lock()) {
            answers.answer(vec![(id, answer.clone())]);
        }
    }

    /// Takes more again.
    pub fn relieve(&self) {
        self.full.store(false, Ordering::SeqCst);
        self.relief.notify_one();
    }

    pub fn answers(&self) -> usize {
        self.answered.lock().values().map(Vec::len).sum()
    }
}

impl Inbox for Recorder {
    fn frames(&self, _: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool {
        let hold = self.hold.load(Ordering::SeqCst);
        let mut plain = Vec::new();
        for frame in frames {
            self.got.lock().push(Got::Frame(frame.id.map_or(0, |id| id.seq)));
            match frame.id {
                Some(id) if hold => self.held.lock().push((id, answers.clone())),
                Some(id) => plain.push((id, accepted(id.seq % 3 > 0))),
                None => {}
            }
        }
        // The order of answers is free.
        plain.reverse();
        answers.answer(plain);
        self.full.load(Ordering::SeqCst)
    }

    fn relieved(&self) -> BoxFuture<()> {
        let relief = self.relief.clone();
        Box::pin(async move { relief.notified().await })
    }

    fn report(&self, _: &MemberId, report: Report) {
        self.got.lock().push(Got::Report(report.applied));
    }

    fn answered(&self, _: &Arc<str>, answers: Vec<(MessageId, Answer)>) {
        let mut answered = self.answered.lock();
        for (id, answer) in answers {
            answered.entry(id).or_default().push(answer);
        }
    }

    fn link(&self, _: &Arc<str>, process: Option<MemberId>) {
        self.links.lock().push(process);
    }

    fn request(&self, from: MemberId, request: Request) -> BoxFuture<Response> {
        let mute = self.mute.load(Ordering::SeqCst);
        Box::pin(async move {
            if mute {
                return std::future::pending().await;
            }
            match request {
                Request::Operate(text) => Response::Operated(format!("{from}: {text}").into()),
                Request::Next { part, .. } => {
                    Response::State { bytes: vec![7; part as usize].into(), last: true }
                }
                Request::Events { after } => Response::Events(Some((vec![1].into(), after))),
                _ => Response::NotHere,
            }
        })
    }

    fn superseded(&self, process: &MemberId) -> bool {
        self.superseded.lock().contains(process)
    }
}

pub fn accepted(matched: bool) -> Answer {
    Answer::Accepted { matched, declined: Vec::new() }
}

/// Options that make failures quick.
pub fn quick() -> PeerOptions {
    PeerOptions {
        peer_timeout: Duration::from_secs(15),
        keepalive: Duration::from_millis(200),
        request_timeout: Duration::from_secs(10),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        refused_pause: Duration::from_millis(50),
        breaker_pause: Duration::from_millis(200),
        ..PeerOptions::default()
    }
}

/// One node.
pub struct Node {
    pub me: MemberId,
    pub inbox: Arc<Recorder>,
    pub peers: Arc<GrpcPeers>,
    pub metrics: Arc<Metrics>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
}

impl Node {
    pub async fn start(node: &str, incarnation: u64, options: PeerOptions) -> Node {
        Node::with(node, incarnation, options, None, "test", "127.0.0.1:0").await
    }

    pub async fn with(
        node: &str,
        incarnation: u64,
        options: PeerOptions,
        tls: Option<PeerTls>,
        cluster: &str,
        bind: &str,
    ) -> Node {
        let me = MemberId { node: node.into(), incarnation };
        let (inbox, metrics) = (Arc::new(Recorder::default()), Arc::new(Metrics::new()));
        let identity = PeerIdentity { cluster: cluster.into(), me: me.clone(), journal: JOURNAL };
        let peers = GrpcPeers::new(options, identity, tls, metrics.clone());
        let weak = Arc::downgrade(&inbox);
        peers.attach(weak);
        let server = PeerServer::bind(bind).await.unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = peers.clone();
        tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            server.serve(&served, stopped).await.unwrap();
        });
        Node { me, inbox, peers, metrics, address, stop: Some(stop) }
    }

    pub fn keep(&self, others: &[(&Node, SocketAddr)]) {
        self.peers.keep(others.iter().map(|(node, address)| member(&node.me, *address)).collect());
    }

    pub fn status(&self) -> LinkStatus {
        self.peers.links().into_iter().next().unwrap()
    }

    pub async fn up(&self) {
        becomes_true("the link is up", || self.status().state == LinkState::Up).await;
    }

    /// The link's error, once it is in `state`.
    pub async fn error(&self, state: LinkState) -> String {
        becomes_true("the link fails", || self.status().state == state).await;
        self.status().error.unwrap()
    }

    pub fn send(&self, to: &Node, seq: u64) {
        self.peers.send(&to.me.node, frame(self.me.incarnation, seq));
    }

    /// Ends the listening side, as a process that ends does.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        self.peers.keep(Vec::new());
    }
}

pub fn member(id: &MemberId, address: SocketAddr) -> Member {
    Member {
        id: id.clone(),
        peer_address: address.to_string(),
        mqtt_address: String::new(),
        http_address: None,
        zone: String::new(),
        version: String::new(),
        started_ms: 0,
        draining: false,
    }
}

/// Number `seq` of an origin; 0 = QoS 0, without ID.
pub fn frame(origin: u64, seq: u64) -> Frame {
    let qos = if seq == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let message = Message::new(Parts {
        topic: "sensors/1/temperature",
        payload: &[b'x'; 100],
        properties: &[],
        qos,
        retain: false,
        expires_at: None,
    });
    let id = (seq > 0).then_some(MessageId { origin, seq });
    Frame { id, matched_at: 1, direct: true, groups: Vec::new(), message, update: None, first: false }
}

/// Two nodes; the first has a link to the second through a proxy.
pub async fn pair(options: PeerOptions) -> (Node, Node, Proxy) {
    let (a, b) = (Node::start("a", 11, options.clone()).await, Node::start("b", 12, options).await);
    let proxy = Proxy::start(b.address).await;
    a.keep(&[(&b, proxy.address())]);
    a.up().await;
    (a, b, proxy)
}

fn report(applied: u64) -> Report {
    Report { applied, ..Report::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_exchange_frames_reports_and_answers() {
    let nodes = [
        Node::start("a", 1, quick()).await,
        Node::start("b", 2, quick()).await,
        Node::start("c", 3, quick()).await,
    ];
    for node in &nodes {
        let others: Vec<_> = nodes.iter().map(|n| (n, n.address)).collect();
        node.keep(&others);
    }
    for node in &nodes {
        becomes_true("both links are up", || {
            let links = node.peers.links();
            links.len() == 2 && links.iter().all(|l| l.state == LinkState::Up)
        })
        .await;
        for other in nodes.iter().filter(|n| n.me != node.me) {
            for seq in 1..=100 {
                node.send(other, seq);
            }
        }
        node.peers.report(report(50));
    }
    for node in &nodes {
        becomes_true("all frames and reports came", || node.inbox.got().len() == 2 * 101).await;
        becomes_true("all answers came", || node.inbox.answers() == 200).await;
        assert!(node.inbox.answered.lock().iter().all(|(id, answers)| {
            answers.iter().all(|answer| *answer == accepted(id.seq % 3 > 0)) && answers.len() == 2
        }));
        assert_eq!(node.metrics.peer_links_up.get(), 2);
        assert_eq!(node.metrics.peer_frames_received.get(), 200);
        becomes_true("nothing is left", || node.peers.links().iter().all(|l| l.unanswered + l.queued == 0))
            .await;
        becomes_true("round trips are measured", || node.peers.links().iter().all(|l| l.rtt_us.is_some()))
            .await;
    }
}

/// Of those that wait together only the first and the last come.
#[tokio::test(flavor = "multi_thread")]
async fn reports_do_not_overtake_frames() {
    let (a, b, _proxy) = pair(quick()).await;
    for n in 1..=500 {
        a.send(&b, n);
        a.peers.report(report(n));
    }
    becomes_true("the last came", || b.inbox.got().contains(&Got::Report(500))).await;
    let (mut frames, mut reports) = (0, 0);
    for got in b.inbox.got() {
        match got {
            Got::Frame(n) => {
                assert_eq!(n, frames + 1);
                frames = n;
            }
            Got::Report(n) => {
                assert!(reports < n && n <= frames, "report {n} after {reports} and frame {frames}");
                reports = n;
            }
        }
    }
    assert_eq!((frames, reports), (500, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_comes_again_before_newer_frames_and_the_report_last() {
    let (a, b, proxy) = pair(quick()).await;
    b.inbox.hold.store(true, Ordering::SeqCst);
    for seq in 1..=3 {
        a.send(&b, seq);
    }
    becomes_true("they came", || b.inbox.got().len() == 3).await;
    proxy.refuse(true);
    becomes_true("the link is down", || a.status().state != LinkState::Up).await;
    a.peers.report(report(5));
    a.send(&b, 4);
    a.send(&b, 0);
    a.peers.report(report(6));
    a.peers.cancel(&b.me.node, MessageId { origin: 11, seq: 2 });
    let status = a.status();
    assert_eq!((status.unanswered, status.queued), (0, 3));
    b.inbox.got.lock().clear();
    proxy.refuse(false);
    becomes_true("they came again", || b.inbox.got().len() >= 4).await;
    assert_eq!(b.inbox.got(), [Got::Frame(1), Got::Frame(3), Got::Frame(4), Got::Report(6)]);
    // Those of the broken connection are void: one answer each all the same.
    b.inbox.release(&Answer::Moved(9));
    becomes_true("answers", || a.inbox.answers() >= 3).await;
    a.send(&b, 5);
    becomes_true("the last", || a.inbox.answers() >= 4).await;
    let answered = a.inbox.answered.lock().clone();
    assert_eq!(answered[&MessageId { origin: 11, seq: 1 }], [Answer::Moved(9)]);
    assert!(!answered.contains_key(&MessageId { origin: 11, seq: 2 }), "cancelled");
    assert!(answered.values().all(|answers| answers.len() == 1));
    assert_eq!(a.metrics.peer_frames_resent.get(), 2);
    assert_eq!(a.metrics.peer_frames_dropped.get(), 1, "QoS 0 while the link was down");
    let links = a.inbox.links.lock().clone();
    assert_eq!(links, [Some(b.me.clone()), None, Some(b.me.clone())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_answers_arrive() {
    let (a, b, _proxy) = pair(quick()).await;
    let declined = Answer::Accepted { matched: true, declined: vec!["$share/g/f".into()] };
    let kinds = [declined, Answer::Moved(7), Answer::Failed("disk full".into()), accepted(false)];
    for (seq, kind) in (1..).zip(&kinds) {
        b.inbox.hold.store(true, Ordering::SeqCst);
        a.send(&b, seq);
        becomes_true("it came", || b.inbox.got().len() as u64 == seq).await;
        b.inbox.release(kind);
        becomes_true("its answer came", || a.inbox.answers() as u64 == seq).await;
        assert_eq!(a.inbox.answered.lock()[&MessageId { origin: 11, seq }], std::slice::from_ref(kind));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_receiver_is_left_alone_until_it_is_relieved() {
    let (a, b, _proxy) = pair(quick()).await;
    b.inbox.full.store(true, Ordering::SeqCst);
    a.send(&b, 1);
    becomes_true("the first came", || b.inbox.got().len() == 1).await;
    for seq in 2..=1000 {
        a.send(&b, seq);
    }
    // Requests go on meanwhile, and show that time has passed.
    for _ in 0..20 {
        let reply = a.peers.request(&b.me.node, Request::Operate("x".into())).await.unwrap();
        assert!(matches!(reply, Response::Operated(text) if &*text == "a@11: x"));
    }
    assert_eq!(b.inbox.got().len(), 1);
    b.inbox.relieve();
    becomes_true("all came", || a.inbox.answers() == 1000).await;
    assert_eq!(b.inbox.got(), (1..=1000).map(Got::Frame).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_or_fail_within_their_time() {
    let (a, b, proxy) = pair(PeerOptions { request_timeout: Duration::from_secs(1), ..quick() }).await;
    let to = &b.me.node;
    let next = Request::Next { client_id: "c".into(), correlation: "x".into(), part: 4 << 20 };
    let Response::State { bytes, last } = a.peers.request(to, next).await.unwrap() else { panic!() };
    assert_eq!((bytes.len(), last), (4 << 20, true));
    let large = Request::Next { client_id: "c".into(), correlation: "x".into(), part: 17 << 20 };
    assert!(
        matches!(a.peers.request(to, large).await, Ok(Response::Refused(_))),
        "it would break the stream"
    );
    let nobody = a.peers.request(&"nobody".into(), Request::Events { after: 1 }).await;
    assert_eq!(nobody.unwrap_err(), PeerError::Unreachable("nobody".into()));

    b.inbox.mute.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = a.peers.request(to, Request::Events { after: 1 }).await.unwrap_err();
        assert_eq!(error, PeerError::TimedOut(to.clone()));
    }
    let error = a.peers.request(to, Request::Events { after: 1 }).await.unwrap_err();
    assert_eq!(error, PeerError::Unreachable(to.clone()), "the breaker is open");
    assert!(a.status().error.unwrap().contains("3 requests in a row"));
    b.inbox.mute.store(false, Ordering::SeqCst);
    let deadline = crate::wait::deadline();
    while a.peers.request(to, Request::Events { after: 1 }).await.is_err() {
        assert!(berth::clock::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(a.status().error, None);

    proxy.refuse(true);
    becomes_true("it fails", || a.status().state == LinkState::Down).await;
    let asked = a.peers.request(to, Request::Events { after: 1 }).await;
    assert_eq!(asked.unwrap_err(), PeerError::Unreachable(to.clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_link_that_is_being_opened() {
    let (a, b) = (Node::start("a", 1, quick()).await, Node::start("b", 2, quick()).await);
    a.keep(&[(&b, b.address)]);
    let reply = a.peers.request(&b.me.node, Request::Events { after: 8 }).await.unwrap();
    assert!(matches!(reply, Response::Events(Some((_, 8)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_frames() {
    let (a, b) = (Node::start("a", 1, quick()).await, Node::start("b", 2, quick()).await);
    a.keep(&[(&b, b.address)]);
    a.up().await;
    let started = berth::clock::monotonic_us();
    for seq in 1..=100_000 {
        a.send(&b, seq);
    }
    becomes_true("all are answered", || a.inbox.answers() == 100_000).await;
    let us = berth::clock::monotonic_us() - started;
    println!("100000 frames in {us} us, both sides in this process");
    assert!(b.inbox.got().into_iter().eq((1..=100_000).map(Got::Frame)));
    assert_eq!(a.status().unanswered, 0);
}
