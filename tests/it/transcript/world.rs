//! One broker with its clients, without sockets, threads or a clock: time passes when it is told to.
//!
//! A client's connection is driven as the server drives it: a channel is polled only when it was woken, when bytes came or when
//! its time has come. So a wake-up that the broker forgets shows as an answer that is missing.

use super::held_back::HeldBackJournal;
use berth::clock::Time;
use berth::mqtt::{QoS, Reason, Version, frame_len};
use berth::node::channel::{Broken, Driven, Read, Socket};
use berth::node::{Admission, Channel, Context, Limits, Node, Ports, Sys};
use berth::ports::{
    Account, Ask, AuthStep, Authorizer, By, Credentials, Decision, Door, EnhancedAuth, Identity, NoBans,
    Permissions, Recovered, Ruling,
};
use berth::telemetry::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Wake, Waker};

/// When every world begins: 2026-01-01.
pub const START: Time = Time(1_767_225_600_000);

/// Bytes that a client's socket yields at a time.
const SEGMENT: usize = 64 * 1024;

/// Rounds of work without an end after which something is wrong.
const ROUNDS_MAX: usize = 10_000;

/// See the module.
pub struct World {
    pub now: Time,
    pub node: Arc<Node>,
    pub journal: Arc<HeldBackJournal>,
    pub limits: Limits,
    pub clients: Vec<Client>,
    /// Connections that broke, and over which something came that is still to be handled.
    broken: Vec<Client>,
    pub sys_interval_ms: Option<u64>,
    sys: Option<(Sys, Time)>,
    timers: Arc<Flag>,
    cx: Context,
}

/// A client and its connection, if it has one.
pub struct Client {
    pub name: String,
    /// The version its packets are read in.
    pub version: Version,
    line: Line,
    /// Bytes that the broker could not write yet.
    unsent: Vec<u8>,
    channel: Option<Channel>,
    closed: bool,
    woken: Arc<Flag>,
}

/// A client's socket.
#[derive(Default)]
struct Line {
    /// Bytes that the broker has not read.
    unread: Vec<u8>,
    /// Bytes that the client has.
    received: Vec<u8>,
    /// The client does not read what comes.
    stalled: bool,
    /// The client sends nothing more.
    ended: bool,
    /// Nothing reaches the client.
    broken: bool,
}

impl Socket for &mut Line {
    fn read(&mut self, buffer: &mut [u8]) -> Read {
        let n = self.unread.len().min(buffer.len());
        if n == 0 {
            return if self.ended { Read::Ended } else { Read::Nothing };
        }
        buffer[..n].copy_from_slice(&self.unread[..n]);
        self.unread.drain(..n);
        Read::Bytes(n)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        if self.broken {
            return Err(Broken);
        }
        if self.stalled {
            return Ok(0);
        }
        self.received.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn unread(&self) -> u64 {
        self.unread.len() as u64
    }

    fn hung_up(&self) -> bool {
        self.ended
    }

    fn untaken(&self) -> u64 {
        0
    }
}

/// What a client sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A whole packet.
    Frame(Vec<u8>),
    /// The broker closed the connection.
    Closed,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Flag {
    fn new() -> Arc<Flag> {
        Arc::new(Flag(AtomicBool::new(true)))
    }
}

/// Everybody may do everything, save `mallory`, and save `secret/…`.
struct Doorman;

/// A method that asks one question: whoever answers with a name is that user, but for `mallory`.
struct Riddle {
    asked: bool,
}

impl EnhancedAuth for Riddle {
    fn step(&mut self, data: Option<&[u8]>) -> AuthStep {
        let text = String::from_utf8_lossy(data.unwrap_or_default()).into_owned();
        if !std::mem::replace(&mut self.asked, true) {
            return AuthStep::Continue(format!("{text}, who are you?").into_bytes());
        }
        if text == "mallory" {
            return AuthStep::Refuse(Reason::BadUserNameOrPassword);
        }
        let account = Account { user: Some(text.as_str().into()), ..Account::default() };
        AuthStep::Accept(format!("welcome, {text}").into_bytes(), Arc::new(account))
    }
}

impl Authorizer for Doorman {
    fn connect(&self, who: &Credentials<'_>) -> Decision {
        Decision::Now(match who.username {
            Some("mallory") => Err(Reason::BadUserNameOrPassword),
            Some("eve") => Err(Reason::NotAuthorized),
            name => Ok(Arc::new(Account { user: name.map(Arc::from), ..Account::default() })),
        })
    }

    fn enhanced(&self, method: &str, _: &Credentials<'_>) -> Result<Box<dyn EnhancedAuth>, Reason> {
        if method == "RIDDLE" {
            Ok(Box::new(Riddle { asked: false }))
        } else {
            Err(Reason::BadAuthenticationMethod)
        }
    }
}

/// Nobody may do anything below `secret/`; below `limited/` nothing is above QoS 1, and nothing is retained.
impl Permissions for Doorman {
    fn restricts(&self) -> bool {
        true
    }

    fn version(&self, _: &Identity) -> u64 {
        1
    }

    fn ruling(&self, _: &Identity, ask: &Ask<'_>) -> Ruling {
        let retained = matches!(ask, Ask::Publish { retain: true, .. });
        let limited = ask.path().starts_with("limited/");
        if ask.path().starts_with("secret/") || (limited && retained) {
            return Ruling::deny(By::Default);
        }
        Ruling::allow(if limited { QoS::AtLeastOnce } else { QoS::ExactlyOnce }, By::Default)
    }

    fn shown(&self, _: &By) -> Option<String> {
        None
    }
}

impl World {
    /// A new broker with an empty journal.
    pub fn new(limits: Limits, sys_interval_ms: Option<u64>) -> World {
        let journal = HeldBackJournal::new();
        let node = start(limits, &journal, Recovered::default(), START);
        let mut world = World {
            now: START,
            node,
            journal,
            limits,
            clients: Vec::new(),
            broken: Vec::new(),
            sys_interval_ms,
            sys: None,
            timers: Flag::new(),
            cx: Context::default(),
        };
        world.start_sys();
        world
    }

    fn start_sys(&mut self) {
        self.sys = self.sys_interval_ms.map(|_| (Sys::new("berth version 0", self.now), self.now));
    }

    /// The broker's process dies and is started again. Connections are gone without a goodbye.
    pub fn restart(&mut self) {
        for c in &mut self.clients {
            c.forget_connection();
        }
        self.broken.clear();
        let (journal, recovered) = self.journal.crash();
        self.node = start(self.limits, &journal, recovered, self.now);
        self.journal = journal;
        self.timers = Flag::new();
        self.cx = Context::default();
        self.start_sys();
        self.settle();
    }

    /// The number of the client with this name; there is one from now on.
    pub fn client(&mut self, name: &str) -> usize {
        if let Some(at) = self.clients.iter().position(|c| c.name == name) {
            return at;
        }
        self.clients.push(Client::new(name));
        self.clients.len() - 1
    }

    /// Opens a connection for a client that has none.
    pub fn open(&mut self, at: usize) {
        let c = &mut self.clients[at];
        if c.channel.is_some() {
            return;
        }
        c.forget_connection();
        let admission = self.node.admit_connection();
        if admission == Admission::Close {
            c.closed = true;
            return;
        }
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
        c.channel = Some(Channel::new(self.node.clone(), Door::tcp(peer), admission, self.now));
        c.woken = Flag::new();
    }

    /// Whether a client has a connection.
    pub fn connected(&self, at: usize) -> bool {
        self.clients[at].channel.is_some()
    }

    /// Puts bytes into a client's socket.
    pub fn send(&mut self, at: usize, bytes: &[u8]) {
        let c = &mut self.clients[at];
        c.line.unread.extend_from_slice(bytes);
        c.woken.0.store(true, SeqCst);
    }

    /// A client's connection breaks; what it has sent before is still to be read.
    pub fn lose(&mut self, at: usize) {
        let c = &mut self.clients[at];
        c.line.broken = true;
        c.line.ended = true;
        c.woken.0.store(true, SeqCst);
        let mut rest = Client::new(&c.name);
        std::mem::swap(c, &mut rest);
        self.broken.push(rest);
        self.settle();
    }

    /// A client closes its side of the connection: it sends nothing more.
    pub fn finish(&mut self, at: usize) {
        self.clients[at].line.ended = true;
        self.clients[at].woken.0.store(true, SeqCst);
        self.settle();
    }

    /// A client stops reading, or reads again.
    pub fn stall(&mut self, at: usize, stalled: bool) {
        self.clients[at].line.stalled = stalled;
        self.clients[at].woken.0.store(true, SeqCst);
        self.settle();
    }

    /// The broker shuts down as it does on SIGTERM.
    pub fn shut_down(&mut self) {
        self.node.drain();
        for at in 0..self.clients.len() {
            let World { clients, cx, now, .. } = self;
            let c = &mut clients[at];
            if let Some(channel) = c.channel.as_mut() {
                std::mem::swap(&mut cx.actions.wire, &mut c.unsent);
                channel.shut_down(*now, cx);
                std::mem::swap(&mut cx.actions.wire, &mut c.unsent);
                c.woken.0.store(true, SeqCst);
            }
        }
        self.cx.scratch.wakes.flush();
        self.settle();
    }

    /// Lets time pass, stopping wherever something is due.
    pub fn advance(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        loop {
            self.settle();
            match self.next_deadline().filter(|t| *t <= end) {
                Some(t) => self.now = self.now.max(t),
                None => break,
            }
        }
        self.now = end;
        self.settle();
    }

    fn next_deadline(&mut self) -> Option<Time> {
        let node = self.node.next_timeout(&Waker::from(self.timers.clone()));
        let all = self.clients.iter().chain(&self.broken);
        let links = all.filter_map(|c| c.channel.as_ref()?.next_timeout());
        let sys = self.sys.as_ref().map(|(_, t)| *t);
        links.chain(node).chain(sys).min()
    }

    /// Works until nothing is left to do at this time.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut worked = self.run_timers();
            let World { clients, broken, cx, now, node, .. } = self;
            for c in clients.iter_mut().chain(broken.iter_mut()) {
                worked |= c.work_if_due(node, cx, *now);
            }
            broken.retain(|c| c.channel.is_some());
            if !worked {
                return;
            }
        }
        panic!("the broker does not come to rest");
    }

    fn run_timers(&mut self) -> bool {
        let mut worked = self.timers.0.swap(false, SeqCst);
        let waker = Waker::from(self.timers.clone());
        if self.node.next_timeout(&waker).is_some_and(|t| t <= self.now) {
            self.node.on_timeout(self.now, &mut self.cx.scratch);
            worked = true;
        }
        if let (Some((sys, due)), Some(interval)) = (self.sys.as_mut(), self.sys_interval_ms)
            && *due <= self.now
        {
            sys.publish(&self.node, self.now, &mut self.cx.scratch);
            *due = self.now.plus_ms(interval);
            worked = true;
        }
        self.cx.scratch.wakes.flush();
        worked
    }

    /// What a client has seen since the last call.
    pub fn take_seen(&mut self, at: usize) -> Vec<Seen> {
        let c = &mut self.clients[at];
        let mut seen = Vec::new();
        let mut used = 0;
        let received = &mut c.line.received;
        while let Some(len) = frame_len(&received[used..], u32::MAX).expect("no frame") {
            seen.push(Seen::Frame(received[used..used + len].to_vec()));
            used += len;
        }
        received.drain(..used);
        assert!(received.is_empty() || c.line.stalled, "half a packet");
        if std::mem::take(&mut c.closed) {
            seen.push(Seen::Closed);
        }
        seen
    }
}

impl Client {
    fn new(name: &str) -> Client {
        Client {
            name: name.to_owned(),
            version: Version::V5,
            line: Line::default(),
            unsent: Vec::new(),
            channel: None,
            closed: false,
            woken: Flag::new(),
        }
    }

    fn work_if_due(&mut self, node: &Node, cx: &mut Context, now: Time) -> bool {
        let Some(channel) = self.channel.as_mut() else { return false };
        let due = channel.next_timeout().is_some_and(|t| t <= now);
        if !self.woken.0.swap(false, SeqCst) && !due {
            return false;
        }
        std::mem::swap(&mut cx.actions.wire, &mut self.unsent);
        self.work(cx, now);
        std::mem::swap(&mut cx.actions.wire, &mut self.unsent);
        if self.channel.as_ref().is_some_and(|l| l.closed() && self.unsent.is_empty()) {
            self.channel = None;
            self.closed = true;
            node.dismiss_connection();
        }
        true
    }

    /// As the server's connection task does it.
    fn work(&mut self, cx: &mut Context, now: Time) {
        let waker = Waker::from(self.woken.clone());
        let Some(channel) = self.channel.as_mut() else { return };
        let mut buffer = vec![0; SEGMENT];
        for _ in 0..ROUNDS_MAX {
            if channel.drive(&mut &mut self.line, &mut buffer, &waker, now, cx) != Driven::Again {
                return;
            }
        }
        panic!("a connection does not come to rest");
    }

    fn forget_connection(&mut self) {
        self.channel = None;
        self.closed = false;
        self.line = Line::default();
        self.unsent.clear();
    }
}

fn start(limits: Limits, journal: &Arc<HeldBackJournal>, recovered: Recovered, now: Time) -> Arc<Node> {
    let ports = Ports {
        journal: journal.clone(),
        cluster: None,
        authorizer: Arc::new(Doorman),
        permissions: Arc::new(Doorman),
        bans: Arc::new(NoBans),
    };
    Node::new(limits, ports, Arc::new(Metrics::new()), recovered, now)
}
