//! The network between the nodes of a cluster in one process, and what one process sees of it.

use super::before;
use super::link::{Link, Receiver};
use super::random::Random;
use crate::peers::CONTROL_MESSAGE_MAX;
use crate::ports::{
    BoxFuture, Frame, Inbox, LinkStatus, Member, MemberId, MessageId, PeerError, Peers, Report, Request,
    Response, Tasks,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a request to another node may take, milliseconds.
const REQUEST_MS: u64 = 5_000;

/// A response as the other side gets it: one that is too large for a real link becomes a refusal here as well.
fn limited(response: Response) -> Response {
    let size = match &response {
        Response::State { bytes, .. } | Response::Events(Some((bytes, _))) => bytes.len(),
        Response::Operated(json) => json.len(),
        _ => 0,
    };
    if size <= CONTROL_MESSAGE_MAX {
        return response;
    }
    Response::Refused(format!("a response of more than {CONTROL_MESSAGE_MAX} bytes").into())
}

type Pair = (Arc<str>, Arc<str>);

fn pair(a: &str, b: &str) -> Pair {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    (first.into(), second.into())
}

#[derive(Default)]
struct State {
    /// The processes that may be reached.
    up: BTreeMap<Arc<str>, Receiver>,
    /// Ways on which no connection holds: who makes it, and to whom.
    parted: BTreeSet<Pair>,
    /// Pairs between which connections hold but nothing gets through.
    stalled: BTreeSet<Pair>,
    links: Vec<Arc<Link>>,
    latency_ms: u64,
}

pub(super) struct Shared {
    state: Mutex<State>,
    random: Mutex<Random>,
}

/// The network between the nodes of a cluster in one process, and what one process sees of it. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

impl Network {
    /// Nobody is there yet.
    pub fn new(seed: u64) -> Network {
        Network(Arc::new(Shared { state: Mutex::default(), random: Mutex::new(Random(seed)) }))
    }

    /// The end of a process. It can be reached from [`MemoryPeers::connect`] on.
    pub fn join(&self, me: MemberId, tasks: Arc<dyn Tasks>) -> Arc<MemoryPeers> {
        Arc::new(MemoryPeers { net: self.clone(), me, tasks, mine: Mutex::default() })
    }

    /// Breaks all connections between two nodes and lets none be made, or allows them again.
    pub fn partition(&self, a: &str, b: &str, parted: bool) {
        self.part_one_way(a, b, parted);
        self.part_one_way(b, a, parted);
    }

    /// As [`Network::partition`], but only of connections that `from` makes: those that `to` makes go on.
    pub fn part_one_way(&self, from: &str, to: &str, parted: bool) {
        let way = (from.into(), to.into());
        self.change(|s| if parted { s.parted.insert(way) } else { s.parted.remove(&way) });
    }

    /// Lets nothing through between two nodes, while their connections hold, or lets all of it through again.
    pub fn stall(&self, a: &str, b: &str, stalled: bool) {
        self.change(|s| if stalled { s.stalled.insert(pair(a, b)) } else { s.stalled.remove(&pair(a, b)) });
    }

    /// A node's process died.
    pub fn crash(&self, node: &str) {
        let gone = {
            let mut state = self.0.state.lock();
            let gone = state.up.remove(node);
            state.links.iter().filter(|l| l.me.node.as_ref() == node).for_each(|l| l.close());
            state.links.retain(|l| l.me.node.as_ref() != node);
            state.links.iter().for_each(|l| l.kick());
            gone
        };
        drop(gone);
    }

    /// Every delivery takes a random time up to this, milliseconds.
    pub fn latency(&self, ms: u64) {
        self.change(|s| s.latency_ms = ms);
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        let mut state = self.0.state.lock();
        change(&mut state);
        state.links.iter().for_each(|l| l.kick());
    }

    /// The process of `node`, if a connection from `me` to it holds.
    pub(super) fn reach(&self, me: &MemberId, node: &str) -> Option<Receiver> {
        let state = self.0.state.lock();
        let alive = state.up.get(&me.node).is_some_and(|r| r.id == *me);
        let open = alive && !state.parted.contains(&(me.node.clone(), node.into()));
        state.up.get(node).filter(|_| open).cloned()
    }

    pub(super) fn stalls(&self, a: &str, b: &str) -> bool {
        self.0.state.lock().stalled.contains(&pair(a, b))
    }

    pub(super) fn delay(&self) -> u64 {
        let most = self.0.state.lock().latency_ms;
        if most == 0 { 0 } else { self.0.random.lock().below(most + 1) }
    }

    /// Whether a process that may not be reached any more has read what was on its way to it.
    pub(super) fn lingers(&self, to: &Receiver) -> bool {
        let lives = self.0.state.lock().up.get(&to.id.node).is_some_and(|r| r.id == to.id);
        lives && self.0.random.lock().below(2) == 0
    }

    /// How much of a queue is delivered at once.
    pub(super) fn some_of(&self, n: usize) -> usize {
        1 + self.0.random.lock().index(n)
    }
}

/// The links of one process to others.
pub struct MemoryPeers {
    net: Network,
    me: MemberId,
    tasks: Arc<dyn Tasks>,
    mine: Mutex<Mine>,
}

#[derive(Default)]
struct Mine {
    inbox: Option<Arc<dyn Inbox>>,
    links: BTreeMap<Arc<str>, Arc<Link>>,
}

impl MemoryPeers {
    /// Lets others reach this process, and hands what they send to `inbox`.
    pub fn connect(&self, inbox: Arc<dyn Inbox>) {
        self.mine.lock().inbox = Some(inbox.clone());
        let receiver = Receiver { id: self.me.clone(), inbox };
        self.net.change(|s| s.up.insert(self.me.node.clone(), receiver));
        let links: Vec<_> = self.mine.lock().links.values().cloned().collect();
        links.into_iter().for_each(|link| self.run(link));
    }

    fn run(&self, link: Arc<Link>) {
        let Some(inbox) = self.mine.lock().inbox.clone() else { return };
        self.net.0.state.lock().links.push(link.clone());
        let (net, tasks) = (self.net.clone(), self.tasks.clone());
        self.tasks.spawn(Box::pin(async move { link.run(&net, &*tasks, &*inbox).await }));
    }

    fn link(&self, node: &str) -> Option<Arc<Link>> {
        self.mine.lock().links.get(node).cloned()
    }
}

impl Peers for MemoryPeers {
    fn keep(&self, members: Vec<Member>) {
        let nodes: BTreeSet<Arc<str>> =
            members.into_iter().map(|m| m.id.node).filter(|n| *n != self.me.node).collect();
        let mut mine = self.mine.lock();
        let leaving: Vec<_> = mine.links.keys().filter(|node| !nodes.contains(*node)).cloned().collect();
        let gone: Vec<_> = leaving.iter().filter_map(|node| mine.links.remove(node)).collect();
        let mut new = Vec::new();
        for node in nodes {
            mine.links.entry(node.clone()).or_insert_with(|| {
                let link = Arc::new(Link::new(self.me.clone(), node));
                new.push(link.clone());
                link
            });
        }
        drop(mine);
        for link in gone {
            link.close();
            self.net.0.state.lock().links.retain(|l| !Arc::ptr_eq(l, &link));
        }
        new.into_iter().for_each(|link| self.run(link));
    }

    fn send(&self, node: &Arc<str>, frame: Frame) {
        if let Some(link) = self.link(node) {
            link.send(frame);
        }
    }

    fn cancel(&self, node: &Arc<str>, id: MessageId) {
        if let Some(link) = self.link(node) {
            link.cancel(id);
        }
    }

    fn report(&self, report: Report) {
        for link in self.mine.lock().links.values() {
            link.report(report.clone());
        }
    }

    fn request(&self, node: &Arc<str>, request: Request) -> BoxFuture<Result<Response, PeerError>> {
        let (net, me, node, tasks) = (self.net.clone(), self.me.clone(), node.clone(), self.tasks.clone());
        let deadline = tasks.now().plus_ms(REQUEST_MS);
        let kept = self.link(&node).is_some();
        Box::pin(async move {
            let Some(asked) = net.reach(&me, &node).filter(|_| kept) else {
                return Err(PeerError::Unreachable(node));
            };
            let broken = || net.reach(&me, &node).is_none_or(|r| r.id != asked.id);
            tasks.sleep(net.delay()).await;
            if broken() {
                return Err(PeerError::Unreachable(node));
            }
            if !net.stalls(&me.node, &node) {
                if asked.inbox.superseded(&me) {
                    return Err(PeerError::Unreachable(node));
                }
                let left = deadline.since_ms(tasks.now());
                let answer = asked.inbox.request(me.clone(), request);
                if let Some(answer) = before(answer, tasks.sleep(left)).await {
                    tasks.sleep(net.delay()).await;
                    if broken() {
                        return Err(PeerError::Unreachable(node));
                    }
                    if !net.stalls(&me.node, &node) {
                        return Ok(limited(answer));
                    }
                }
            }
            tasks.sleep(deadline.since_ms(tasks.now())).await;
            Err(PeerError::TimedOut(node))
        })
    }

    fn links(&self) -> Vec<LinkStatus> {
        self.mine.lock().links.values().map(|l| l.status()).collect()
    }
}
