//! The TCP listener: accepts connections and gives each a task.

use super::connection::serve;
use super::parting::Partings;
use crate::broker::ports::Door;
use crate::broker::{Admission, Broker};
use crate::config::Tcp;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// How long to wait after a failed accept (out of file descriptors, mostly) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Between two questions of the system whether a silent client's machine is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Questions without an answer after which the client is gone.
const KEEP_ALIVE_RETRIES: u32 = 4;

/// An address could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (listeners.tcp.address): {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// A listener, bound but not yet accepting.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    nodelay: bool,
    keep_alive: Option<Duration>,
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(address: SocketAddr, tcp: &Tcp) -> Result<Listener, BindError> {
        let refused = |source| BindError { address, source };
        let listener = open(address, tcp.backlog).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Listener { listener, address, nodelay: tcp.nodelay, keep_alive: tcp.keep_alive })
    }

    /// The address, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections until dropped. Each ends when `stop` is notified.
    pub async fn run(self, broker: Arc<Broker>, partings: Partings, stop: Arc<Notify>) {
        let mut failing = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    let admission = broker.admit_connection();
                    if admission == Admission::Close {
                        tracing::debug!(%peer, "closed: limits.max_connections is reached");
                        continue;
                    }
                    if let Err(error) = self.tune(&stream) {
                        tracing::debug!(%peer, %error, "socket options not set (listeners.tcp)");
                    }
                    let (broker, partings, stop) = (broker.clone(), partings.clone(), stop.clone());
                    tokio::spawn(serve(stream, Door::tcp(peer), broker, admission, partings, stop));
                }
                Err(error) => {
                    if !failing {
                        let address = self.address;
                        tracing::error!(%address, %error, "cannot accept connections; raise the limit on open files (ulimit -n)?");
                        failing = true;
                    }
                    // Nothing tells when descriptors are free again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Listener {
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
