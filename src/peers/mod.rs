//! The links to other nodes, over gRPC.
//!
//! Every node dials every other one and opens two calls on two connections: one carries its publishes and reports there and
//! the answers back, the other its requests and their responses. So nothing of the control path waits behind publishes, and
//! each ordered pair of nodes has a state of its own.
//!
//! **Order and repetition.** A frame with an ID gets a position in the link's queue and stays there until it is answered or
//! cancelled. When the streams break, everything left is sent again in the order of positions, before anything newer, to
//! whatever process of the node answers; then the latest report. The receiver hands frames of one node to the broker under
//! one lock, and a newer connection of the node shuts older ones out first: a late byte of an old connection cannot
//! overtake a repetition. A link that nobody keeps any more ([`Peers::keep`]) forgets its frames; the caller sends them
//! anew if the node returns.
//!
//! **Answers** travel by position: runs of plain answers as ranges, the rest one by one, in any order, so a frame that is
//! held back delays nobody's answer.

mod accept;
mod answers;
mod asks;
mod breaker;
mod dial;
mod hello;
mod link;
mod options;
mod probe;
pub mod proto;
mod queue;
mod samples;
mod server;
mod slots;
mod tls;
mod wire;

pub use asks::CONTROL_MESSAGE_MAX;
pub use options::{PeerIdentity, PeerOptions, PeerTls, PemFile};
pub use probe::{Answered, Probe};
pub use queue::REPORTS_MAX;
pub use server::{BindError, PeerServer};

use crate::clock;
use crate::ports::{
    BoxFuture, Frame, Inbox, LinkStatus, Member, MessageId, PeerError, Peers, Report, Request, Response,
};
use crate::telemetry::metrics::PeerRequest;
use crate::telemetry::{Loss, Metrics};
use breaker::Pass;
use link::{Link, Phase, Target};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Bytes that may be under way on one stream before the other side has read them.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What all links have in common.
struct Shared {
    options: PeerOptions,
    identity: PeerIdentity,
    tls: Option<PeerTls>,
    metrics: Arc<Metrics>,
    inbox: OnceLock<Weak<dyn Inbox>>,
    /// Why nodes cannot be reached.
    failures: RwLock<HashMap<Arc<str>, String>>,
    /// Numbers the attempts to connect, over all links: see `Hello.attempt`.
    attempts: AtomicU64,
}

impl Shared {
    fn inbox(&self) -> Option<Arc<dyn Inbox>> {
        self.inbox.get()?.upgrade()
    }
}

#[derive(Default)]
struct Links {
    by_node: HashMap<Arc<str>, Arc<Link>>,
    /// Tasks of closed links that have not ended: a new link to the node begins after that.
    tasks: HashMap<Arc<str>, JoinHandle<()>>,
    /// What was to be kept before there was an inbox.
    early: Vec<Member>,
}

/// [`Peers`] over gRPC: the dialling side. The other side is [`PeerServer`].
pub struct GrpcPeers {
    shared: Arc<Shared>,
    links: RwLock<Links>,
    latest: Mutex<Option<Report>>,
    runtime: Handle,
}

impl GrpcPeers {
    /// Without links. To be called within a tokio runtime, which then runs the links. Nothing is dialled before
    /// [`GrpcPeers::attach`].
    pub fn new(
        options: PeerOptions,
        identity: PeerIdentity,
        tls: Option<PeerTls>,
        metrics: Arc<Metrics>,
    ) -> Arc<GrpcPeers> {
        let shared = Shared {
            options,
            identity,
            tls,
            metrics,
            inbox: OnceLock::new(),
            failures: RwLock::default(),
            attempts: AtomicU64::new(0),
        };
        Arc::new(GrpcPeers {
            shared: Arc::new(shared),
            links: RwLock::default(),
            latest: Mutex::new(None),
            runtime: Handle::current(),
        })
    }

    /// Names who hears of answers and links. The first call counts.
    pub fn attach(&self, inbox: Weak<dyn Inbox>) {
        if self.shared.inbox.set(inbox).is_err() {
            return;
        }
        let early = std::mem::take(&mut self.links.write().early);
        if !early.is_empty() {
            self.keep(early);
        }
    }

    fn link(&self, node: &Arc<str>) -> Option<Arc<Link>> {
        self.links.read().by_node.get(node).cloned()
    }

    /// The link to a node, made if there is none: it waits to learn where the node is.
    fn link_or_new(&self, node: &Arc<str>) -> Arc<Link> {
        if let Some(link) = self.link(node) {
            return link;
        }
        self.aim(&mut self.links.write(), node, None)
    }

    fn aim(&self, links: &mut Links, node: &Arc<str>, target: Option<Target>) -> Arc<Link> {
        if let Some(link) = links.by_node.get(node) {
            if let Some(target) = target {
                link.aim(target);
            }
            return link.clone();
        }
        let latest = self.latest.lock().clone();
        let link = Link::new(&self.shared, node, target.unwrap_or(Target::Unknown), latest);
        links.by_node.insert(node.clone(), link.clone());
        let before = links.tasks.remove(node);
        let run = link.clone();
        let task = self.runtime.spawn(async move {
            if let Some(before) = before {
                // It ended one way or the other.
                let _ = before.await;
            }
            run.run().await;
        });
        links.tasks.insert(node.clone(), task);
        link
    }
}

impl Drop for GrpcPeers {
    fn drop(&mut self) {
        for link in self.links.get_mut().by_node.values() {
            link.aim(Target::Gone);
        }
    }
}

impl Peers for GrpcPeers {
    fn keep(&self, members: Vec<Member>) {
        let mut links = self.links.write();
        if self.shared.inbox.get().is_none() {
            links.early = members;
            return;
        }
        let me = &self.shared.identity.me.node;
        links.by_node.retain(|node, link| {
            let kept = members.iter().any(|m| m.id.node == *node);
            if !kept {
                link.aim(Target::Gone);
            }
            kept
        });
        let gone: Vec<_> = links
            .tasks
            .iter()
            .filter(|(node, task)| task.is_finished() && !links.by_node.contains_key(*node))
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            links.tasks.remove(&node);
        }
        for member in members.into_iter().filter(|m| m.id.node != *me) {
            let node = member.id.node.clone();
            self.aim(&mut links, &node, Some(Target::At(Box::new(member))));
        }
    }

    fn send(&self, node: &Arc<str>, frame: Frame) {
        let links = self.links.read();
        if let Some(link) = links.by_node.get(node) {
            // Under the lock: `keep` must not take the link away in between.
            link.send(frame);
            return;
        }
        drop(links);
        if frame.id.is_none() {
            let metrics = &self.shared.metrics;
            metrics.lost(metrics.losses.node(node).whose(), Loss::LinkDown, 1);
            return;
        }
        self.link_or_new(node).send(frame);
    }

    fn cancel(&self, node: &Arc<str>, id: MessageId) {
        if let Some(link) = self.link(node) {
            link.cancel(id);
        }
    }

    fn report(&self, report: Report) {
        // Both locks, so that a new link has this report or gets it here, and never an older one after it.
        let links = self.links.read();
        let mut latest = self.latest.lock();
        for link in links.by_node.values() {
            link.report(&report);
        }
        *latest = Some(report);
    }

    fn request(&self, node: &Arc<str>, request: Request) -> BoxFuture<Result<Response, PeerError>> {
        let link = self.link(node);
        let (node, metrics) = (node.clone(), self.shared.metrics.clone());
        Box::pin(async move {
            let outcome = match link {
                Some(link) => ask(&link, request).await,
                None => Err(PeerError::Unreachable(node)),
            };
            let counter = match &outcome {
                Ok(_) => PeerRequest::Answered,
                Err(PeerError::TimedOut(_)) => PeerRequest::TimedOut,
                Err(PeerError::Unreachable(_)) => PeerRequest::Unreachable,
            };
            metrics.peer_requests.of(counter).inc();
            outcome
        })
    }

    fn links(&self) -> Vec<LinkStatus> {
        let links: Vec<_> = self.links.read().by_node.values().cloned().collect();
        let mut links: Vec<_> = links.iter().map(|link| link.status()).collect();
        links.sort_by(|a, b| a.node.cmp(&b.node));
        links
    }
}

/// Gives a request up when its future is dropped, and a probe of the breaker with it.
struct Asked<'a> {
    link: &'a Link,
    id: Option<u64>,
    probe: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.link.asks(|asks| asks.give_up(id));
        }
        if self.probe {
            self.link.breaker.lock().abandoned();
        }
    }
}

async fn ask(link: &Link, request: Request) -> Result<Response, PeerError> {
    let unreachable = || PeerError::Unreachable(link.node().clone());
    if wire::request(request.clone()).encoded_len() > CONTROL_MESSAGE_MAX {
        return Ok(Response::Refused(format!("a request of more than {CONTROL_MESSAGE_MAX} bytes").into()));
    }
    let pass = link.breaker.lock().pass(clock::now());
    if pass == Pass::Stop {
        return Err(unreachable());
    }
    let mut asked = Asked { link, id: None, probe: pass == Pass::Probe };
    let answered = tokio::time::timeout(link.options().request_timeout, async {
        let mut phase = link.phase();
        // Fails when the link is gone.
        let settled = phase.wait_for(|phase| *phase != Phase::Opening).await.map(|phase| *phase);
        if settled.map_err(|_| unreachable())? == Phase::Failing {
            return Err(unreachable());
        }
        let _permit = link.asks_in_flight.acquire().await.map_err(|_| unreachable())?;
        let (id, response) = link.asks(|asks| asks.ask(request)).ok_or_else(unreachable)?;
        asked.id = Some(id);
        response.await.map_err(|_| unreachable())
    })
    .await;
    match answered {
        Ok(Ok(response)) => {
            asked.probe = false;
            link.breaker.lock().answered();
            Ok(response)
        }
        Ok(Err(error)) => Err(error),
        Err(_) if asked.id.is_none() => Err(unreachable()),
        Err(_) => {
            asked.probe = false;
            link.breaker.lock().failed(clock::now());
            Err(PeerError::TimedOut(link.node().clone()))
        }
    }
}
