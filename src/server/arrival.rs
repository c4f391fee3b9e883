//! What comes before MQTT: a proxy's header, the TLS handshake, the upgrade to WebSocket. All of it has one deadline, which CONNECT has
//! to keep as well: nobody wins time by being slow in several steps.

use super::connection::serve;
use super::crowd::Entrance;
use super::listener::Shared;
use super::parting::part;
use super::proxy::{self, Malformed, Step, Told};
use super::transport::Transport;
use super::transport::tls::{HandshakeError, Tls};
use super::transport::websocket::{Upgrade, UpgradeError, WebSocket};
use crate::clock::{self, Time};
use crate::node::{Admission, Node};
use crate::ports::{CertificateNames, Door};
use crate::telemetry::metrics::{ErrorType, Turned};
use crate::tls::names;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The place of a connection among those that are counted, which it leaves when this is dropped.
pub(super) struct Place {
    node: Arc<Node>,
    shared: Arc<Shared>,
}

impl Place {
    /// One more, if there is room for it.
    pub(super) fn take(node: &Arc<Node>, shared: &Arc<Shared>) -> (Option<Place>, Admission) {
        let admission = node.admit_connection();
        if admission == Admission::Close {
            return (None, admission);
        }
        let mine = shared.count_in();
        let place = Place { node: node.clone(), shared: shared.clone() };
        let admission = if mine == Admission::Serve { admission } else { mine };
        (Some(place).filter(|_| admission != Admission::Close), admission)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.count_out();
        self.node.dismiss_connection();
    }
}

/// A client that has come and not said CONNECT yet.
pub(super) struct Guest {
    pub(super) node: Arc<Node>,
    pub(super) shared: Arc<Shared>,
    pub(super) peer: SocketAddr,
    pub(super) certificate: Option<Box<CertificateNames>>,
    pub(super) accepted: Time,
    pub(super) admission: Admission,
    pub(super) place: Place,
    pub(super) entrance: Entrance,
}

impl Guest {
    pub(super) fn door(&mut self) -> Arc<Door> {
        Arc::new(Door {
            listener: self.shared.name.clone(),
            peer: self.peer,
            certificate: self.certificate.take(),
        })
    }
}

/// Why a client does not come as far as CONNECT.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the connection ended")]
    Gone,
    #[error("{0} is none of the proxies (proxy_from)")]
    Stranger(SocketAddr),
    #[error(transparent)]
    Proxy(#[from] Malformed),
    #[error("{0}")]
    Tls(rustls::Error),
    #[error("HTTP {0}: {1}")]
    Upgrade(u16, String),
}

impl Refused {
    fn kind(&self) -> Option<Turned> {
        Some(match self {
            Refused::Gone => return None,
            Refused::Stranger(_) | Refused::Proxy(_) => Turned::Proxy,
            Refused::Tls(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Turned::Certificate
            }
            Refused::Tls(_) => Turned::Tls,
            Refused::Upgrade(..) => Turned::WebSocket,
        })
    }
}

/// A transport that begins with something before MQTT.
pub(super) trait Opens: Transport + Sized {
    /// Opens it over a socket.
    fn open(stream: TcpStream, guest: &mut Guest) -> impl Future<Output = Result<Self, Refused>> + Send;
}

impl Opens for TcpStream {
    async fn open(stream: TcpStream, _: &mut Guest) -> Result<TcpStream, Refused> {
        Ok(stream)
    }
}

impl Opens for Tls {
    async fn open(stream: TcpStream, guest: &mut Guest) -> Result<Tls, Refused> {
        let Some(keeper) = guest.shared.tuning.keeper().cloned() else { return Err(Refused::Gone) };
        let current = keeper.current();
        let mut tls = Tls::new(stream, &current).map_err(Refused::Tls)?;
        match poll_fn(|cx| tls.poll_handshake(cx.waker())).await {
            Ok(()) => {}
            Err(HandshakeError::Gone) => return Err(Refused::Gone),
            Err(HandshakeError::Tls(error)) => {
                part(&mut tls, Vec::new(), &guest.shared.partings).await;
                return Err(Refused::Tls(error));
            }
        }
        guest.node.broker.metrics.tls_handshakes.inc();
        if let Some(own) = tls.client_chain().first() {
            guest.certificate = names(own).map(Box::new);
            tls.watch(keeper, current.generation, guest.accepted);
        }
        Ok(tls)
    }
}

impl<T: Opens> Opens for WebSocket<T> {
    async fn open(stream: TcpStream, guest: &mut Guest) -> Result<WebSocket<T>, Refused> {
        let mut upgrade = Upgrade::new(T::open(stream, guest).await?);
        let welcome = &guest.shared.welcome;
        match poll_fn(|cx| upgrade.poll(cx.waker(), welcome)).await {
            Ok((answer, early)) => Ok(upgrade.accepted(answer, early)),
            Err(UpgradeError::Gone) => Err(Refused::Gone),
            Err(UpgradeError::Refused(refusal)) => {
                let response = refusal.response().into_bytes();
                part(&mut upgrade.inner, response, &guest.shared.partings).await;
                Err(Refused::Upgrade(refusal.status, refusal.why))
            }
        }
    }
}

/// Reads a proxy's header, and no byte behind it.
async fn tell(stream: &mut (impl AsyncRead + Unpin)) -> Result<Told, Refused> {
    let mut header = Vec::new();
    loop {
        let more = match proxy::step(&header)? {
            Step::Done(told) => return Ok(told),
            Step::More(n) => n,
        };
        let had = header.len();
        header.resize(had + more, 0);
        stream.read_exact(&mut header[had..]).await.map_err(|_| Refused::Gone)?;
    }
}

async fn open<T: Opens>(mut stream: TcpStream, guest: &mut Guest) -> Result<T, Refused> {
    if let Some(proxies) = &guest.shared.proxies {
        if !proxies.iter().any(|network| network.contains(guest.peer.ip())) {
            return Err(Refused::Stranger(guest.peer));
        }
        if let Told::From(client) = tell(&mut stream).await? {
            guest.peer = client;
            guest.entrance.moves(client.ip());
        }
    }
    T::open(stream, guest).await
}

/// Receives a client, and serves it until it ends or `stop` is notified.
pub(super) async fn receive<T: Opens>(stream: TcpStream, guest: Guest, stop: Arc<Notify>) {
    let (shared, peer) = (guest.shared.clone(), guest.peer);
    let deadline = guest.accepted.plus_ms(guest.node.broker.limits.connect_timeout_ms());
    let deadline = Instant::from_std(clock::instant(deadline));
    let stopped = stop.notified();
    // In a box, so that what is needed only now is given back, and no place is kept for it.
    let opened = {
        let mut guest = guest;
        let opening = Box::pin(async move {
            let outcome = open::<T>(stream, &mut guest).await;
            (outcome, guest)
        });
        let timed = Box::pin(tokio::time::timeout_at(deadline, opening));
        tokio::select! {
            opened = timed => opened,
            () = stopped => return,
        }
    };
    match opened {
        Ok((Ok(transport), guest)) => serve(transport, guest, stop).await,
        Ok((Err(refused), guest)) => {
            if let Some(kind) = refused.kind() {
                shared.turned(guest.peer, kind, &refused);
            }
        }
        Err(_) => {
            shared.metrics.errors.of(ErrorType::ConnectTimeout).inc();
            let why = "not within limits.connect_timeout: the handshake, the upgrade or the proxy's header";
            shared.turned(peer, Turned::Timeout, &why);
        }
    }
}

#[cfg(test)]
#[path = "arrival_fuzz_tests.rs"]
mod arrival_fuzz_tests;
