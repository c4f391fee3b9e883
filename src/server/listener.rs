//! Listeners: they accept connections and give each a task.

use super::arrival::{Guest, Place, receive};
use super::connection::serve;
use super::crowd::{Crowd, Entrance, Entry};
use super::http::ShownListener;
use super::notices::Notices;
use super::parting::Partings;
use super::rates::Bucket;
use super::transport::tls::Tls;
use super::transport::websocket::WebSocket;
use super::transport::websocket::upgrade::Welcome;
use crate::clock::{self, Time};
use crate::config::{self, ListenerType, Network, ProxyProtocol};
use crate::node::{Admission, Node, REFUSING_MAX, Terms};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Turned;
use crate::tls::{Files, Keeper, TlsError};
use parking_lot::{Mutex, RwLock};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long to wait after a failed accept (out of file descriptors, mostly) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long those take that give way.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(5);

/// Between two questions of the system whether a silent client's machine is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Questions without an answer after which the client is gone.
const KEEP_ALIVE_RETRIES: u32 = 4;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An address could not be opened.
    #[error("cannot listen on {address} (listeners.{listener}.address): {source}")]
    Bind {
        /// The listener's name.
        listener: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A certificate, or what belongs to it, cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What all listeners share.
#[derive(Clone, Debug)]
pub struct Hall {
    /// Clients that are being parted from.
    pub partings: Partings,
    /// Clients that have not sent CONNECT yet.
    pub crowd: Crowd,
    /// Notified when all connections have to end.
    pub stop: Arc<Notify>,
}

/// What a listener counts.
#[derive(Debug, Default)]
struct Figures {
    /// Connections that are open.
    connections: AtomicU64,
    /// Connections that were turned away.
    refused: AtomicU64,
}

/// A listener as operators see it.
#[derive(Clone, Debug)]
pub struct View {
    name: Arc<str>,
    kind: ListenerType,
    addresses: Vec<SocketAddr>,
    keeper: Option<Arc<Keeper>>,
    figures: Arc<Figures>,
}

impl View {
    /// How it is now.
    pub fn shown(&self) -> ShownListener {
        let expires = self.keeper.as_ref().and_then(|keeper| keeper.current().expires_at);
        ShownListener {
            name: self.name.to_string(),
            kind: self.kind.name(),
            addresses: self.addresses.iter().map(SocketAddr::to_string).collect(),
            connections: self.figures.connections.load(Ordering::Relaxed),
            refused: self.figures.refused.load(Ordering::Relaxed),
            certificate_expires_at: expires.map(Time::as_millis),
        }
    }
}

/// What holds for the clients of a listener that come now.
#[derive(Debug)]
pub struct Conditions {
    pub(super) terms: Arc<Terms>,
    pub(super) message_rate: Option<u64>,
    pub(super) byte_rate: Option<u64>,
    max_connections: Option<u64>,
    rate: Option<Mutex<Bucket>>,
}

impl Conditions {
    /// As a listener is configured.
    pub fn of(listener: &config::Listener, terms: Terms) -> Conditions {
        Conditions {
            terms: Arc::new(terms),
            message_rate: listener.max_message_rate,
            byte_rate: listener.max_byte_rate,
            max_connections: listener.max_connections,
            rate: listener.max_connection_rate.map(|per_s| Mutex::new(Bucket::new(per_s, clock::now()))),
        }
    }
}

/// What may be changed of a listener while it is open: clients that are connected keep what was agreed with them.
#[derive(Debug)]
pub struct Tuning {
    listener: Arc<str>,
    keeper: Option<Arc<Keeper>>,
    conditions: RwLock<Arc<Conditions>>,
}

impl Tuning {
    /// The listener's name.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// Its certificates.
    pub fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.keeper.as_ref()
    }

    /// What holds for those that come from now on.
    pub fn change(&self, conditions: Conditions) {
        *self.conditions.write() = Arc::new(conditions);
    }

    pub(super) fn conditions(&self) -> Arc<Conditions> {
        self.conditions.read().clone()
    }
}

/// A listener, bound but not yet accepting.
#[derive(Debug)]
pub struct Listener {
    name: Arc<str>,
    kind: ListenerType,
    sockets: Vec<(TcpListener, SocketAddr)>,
    options: config::Listener,
    tuning: Arc<Tuning>,
    figures: Arc<Figures>,
}

impl Listener {
    /// Reads the certificates of a listener and binds its addresses.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn bind(name: &str, listener: &config::Listener, terms: Terms) -> Result<Listener, OpenError> {
        let kind = listener.speaks();
        let keeper = match kind.has_tls() {
            true => Some(Arc::new(Keeper::new(Files::of(name, listener), clock::now())?)),
            false => None,
        };
        let mut sockets = Vec::new();
        for address in &listener.address {
            let refused = |source| OpenError::Bind { listener: name.to_owned(), address: *address, source };
            let socket = open(*address, listener.backlog).map_err(refused)?;
            let bound = socket.local_addr().map_err(refused)?;
            sockets.push((socket, bound));
        }
        let name: Arc<str> = Arc::from(name);
        let conditions = RwLock::new(Arc::new(Conditions::of(listener, terms)));
        let tuning = Arc::new(Tuning { listener: name.clone(), keeper, conditions });
        Ok(Listener { name, kind, sockets, options: listener.clone(), tuning, figures: Arc::default() })
    }

    /// What is spoken below MQTT.
    pub fn kind(&self) -> ListenerType {
        self.kind
    }

    /// Its first address, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.sockets.first().map(|(_, address)| *address)
    }

    /// What may be changed of it while it is open.
    pub fn tuning(&self) -> &Arc<Tuning> {
        &self.tuning
    }

    /// What operators see of it, from now on.
    pub fn view(&self) -> View {
        View {
            name: self.name.clone(),
            kind: self.kind,
            addresses: self.sockets.iter().map(|(_, address)| *address).collect(),
            keeper: self.tuning.keeper().cloned(),
            figures: self.figures.clone(),
        }
    }

    /// Begins to accept connections, until the tasks are aborted.
    pub fn open(self, node: &Arc<Node>, hall: &Hall) -> Vec<JoinHandle<()>> {
        let listener = self.options;
        let proxied = listener.proxy_protocol == ProxyProtocol::Required;
        let shared = Arc::new(Shared {
            name: self.name,
            kind: self.kind,
            metrics: node.broker.metrics.clone(),
            partings: hall.partings.clone(),
            crowd: hall.crowd.clone(),
            tuning: self.tuning,
            welcome: Welcome {
                path: listener.path,
                origins: listener.allowed_origins,
                secure: self.kind.has_tls(),
            },
            proxies: proxied.then_some(listener.proxy_from),
            nodelay: listener.nodelay,
            keep_alive: listener.keep_alive,
            figures: self.figures,
            notices: Notices::default(),
        });
        let mut tasks = Vec::new();
        for (socket, address) in self.sockets {
            let (name, kind) = (&*shared.name, shared.kind.name());
            tracing::info!(%address, listener = name, kind, "MQTT listens");
            let acceptor = Acceptor { socket, address, shared: shared.clone(), stop: hall.stop.clone() };
            tasks.push(tokio::spawn(acceptor.run(node.clone())));
        }
        tasks
    }
}

/// What all connections of a listener share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    kind: ListenerType,
    pub(super) metrics: Arc<Metrics>,
    pub(super) partings: Partings,
    crowd: Crowd,
    pub(super) tuning: Arc<Tuning>,
    pub(super) welcome: Welcome,
    /// Who has to tell clients' addresses; `None` = nobody.
    pub(super) proxies: Option<Vec<Network>>,
    nodelay: bool,
    keep_alive: Option<Duration>,
    figures: Arc<Figures>,
    notices: Notices,
}

impl Shared {
    /// One connection more: whether it may stay.
    pub(super) fn count_in(&self) -> Admission {
        let n = self.figures.connections.fetch_add(1, Ordering::Relaxed) + 1;
        match self.tuning.conditions().max_connections {
            Some(max) if n > max + REFUSING_MAX => Admission::Close,
            Some(max) if n > max => Admission::Refuse,
            _ => Admission::Serve,
        }
    }

    /// One connection less.
    pub(super) fn count_out(&self) {
        self.figures.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a client that is turned away or slowed down, and has the log say so if it is time.
    pub(super) fn turned(&self, peer: SocketAddr, kind: Turned, why: &dyn Display) {
        if !matches!(kind, Turned::ConnectionRate | Turned::ClientRate) {
            self.count_refused();
        }
        self.notices.turned(&self.metrics, &self.name, peer, kind, why, clock::now());
    }

    /// Counts a connection that is turned away.
    pub(super) fn count_refused(&self) {
        self.figures.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Until when no new connection is accepted, if more came than may.
    fn closed_until(&self, now: Time) -> Option<Time> {
        let conditions = self.tuning.conditions();
        let mut bucket = conditions.rate.as_ref()?.lock();
        (bucket.left(now) < 1).then(|| bucket.opens_at())
    }

    /// Sets the options of an accepted socket.
    fn tune(&self, stream: &TcpStream) -> io::Result<()> {
        if self.nodelay {
            stream.set_nodelay(true)?;
        }
        let Some(idle) = self.keep_alive else { return Ok(()) };
        let keep_alive = TcpKeepalive::new().with_time(idle).with_interval(KEEP_ALIVE_INTERVAL.min(idle));
        SockRef::from(stream).set_tcp_keepalive(&keep_alive.with_retries(KEEP_ALIVE_RETRIES))
    }
}

/// Accepts connections at one address.
struct Acceptor {
    socket: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<Notify>,
}

impl Acceptor {
    async fn run(self, node: Arc<Node>) {
        let mut failing = false;
        loop {
            self.wait_for_turn().await;
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    self.accepted(stream, peer, &node).await;
                }
                Err(error) => {
                    if !failing {
                        let (address, listener) = (self.address, &*self.shared.name);
                        tracing::error!(%address, listener, %error, "cannot accept connections; raise the limit on open files (ulimit -n)?");
                        failing = true;
                    }
                    // Nothing tells when descriptors are free again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits while more connections have come than the listener's rate allows: new ones wait in the kernel.
    async fn wait_for_turn(&self) {
        let mut said = false;
        while let Some(until) = self.shared.closed_until(clock::now()) {
            if !said {
                said = true;
                let why = "connections wait: more come than max_connection_rate allows";
                self.shared.turned(self.address, Turned::ConnectionRate, &why);
            }
            tokio::time::sleep_until(Instant::from_std(clock::instant(until))).await;
        }
    }

    /// Waits until there is room for one more connection that has not sent CONNECT.
    async fn let_in(&self, peer: SocketAddr) -> Entrance {
        loop {
            match self.shared.crowd.enter(peer.ip(), clock::now()) {
                Entry::In(entrance, gone) => {
                    if let Some(gone) = gone {
                        let why = "the oldest without CONNECT gives way (limits.max_arriving_connections)";
                        self.shared.turned(SocketAddr::new(gone, 0), Turned::Crowded, &why);
                    }
                    return entrance;
                }
                Entry::Later(at) => tokio::time::sleep_until(Instant::from_std(clock::instant(at))).await,
            }
        }
    }

    /// A place among those that are counted. Where there is none, connections without CONNECT give way: whoever fills the places and says
    /// nothing keeps nobody out.
    async fn place(&self, peer: SocketAddr, node: &Arc<Node>) -> (Option<Place>, Admission) {
        let shared = &self.shared;
        let (mut place, mut admission) = Place::take(node, shared);
        for listener in [Some(&*shared.name), None] {
            if admission == Admission::Serve || (listener.is_none() && !node.connections_full()) {
                break;
            }
            let Some((gone, n)) = shared.crowd.give_way(listener, clock::now()) else { continue };
            let why = format!("{n} without CONNECT give way to {peer}: max_connections is reached");
            shared.turned(SocketAddr::new(gone, 0), Turned::Crowded, &why);
            drop(place.take());
            // Their tasks end beside this one.
            tokio::time::sleep(GIVE_WAY_PAUSE).await;
            (place, admission) = Place::take(node, shared);
        }
        (place, admission)
    }

    async fn accepted(&self, stream: TcpStream, peer: SocketAddr, node: &Arc<Node>) {
        let shared = &self.shared;
        if let Some(rate) = &shared.tuning.conditions().rate {
            rate.lock().take(1, clock::now());
        }
        let (place, admission) = self.place(peer, node).await;
        if !matches!(admission, Admission::Serve) {
            shared.count_refused();
        }
        let Some(place) = place else {
            tracing::debug!(%peer, listener = &*shared.name, "closed: max_connections is reached");
            return;
        };
        let entrance = self.let_in(peer).await;
        if let Err(error) = shared.tune(&stream) {
            tracing::debug!(%peer, listener = &*shared.name, %error, "socket options not set");
        }
        let id = entrance.id();
        let guest = Guest {
            node: node.clone(),
            shared: shared.clone(),
            peer,
            certificate: None,
            accepted: clock::now(),
            admission,
            place,
            entrance,
        };
        let stop = self.stop.clone();
        let task = match shared.kind {
            ListenerType::Tcp if shared.proxies.is_none() => tokio::spawn(serve(stream, guest, stop)),
            ListenerType::Tcp => tokio::spawn(receive::<TcpStream>(stream, guest, stop)),
            ListenerType::Tls => tokio::spawn(receive::<Tls>(stream, guest, stop)),
            ListenerType::Ws => tokio::spawn(receive::<WebSocket<TcpStream>>(stream, guest, stop)),
            ListenerType::Wss => tokio::spawn(receive::<WebSocket<Tls>>(stream, guest, stop)),
        };
        shared.crowd.served_by(id, task.abort_handle(), &shared.name);
    }
}

fn open(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}
