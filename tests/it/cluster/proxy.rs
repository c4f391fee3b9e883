//! A TCP proxy that fails on demand.

use super::trap::{Trap, Traps, Way};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Default)]
struct State {
    /// How often `cut` was called: connections made before end.
    cuts: u64,
    stalled: bool,
    refusing: bool,
}

/// Forwards connections to a target until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    traps: Traps,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to `target` from a port of its own on loopback.
    pub async fn start(target: SocketAddr) -> Proxy {
        Proxy::listen(Ipv4Addr::LOCALHOST.into(), target).await
    }

    /// Forwards to `target` from a port of its own on `address`.
    pub async fn listen(address: IpAddr, target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = watch::Sender::new(State::default());
        let traps = Traps::default();
        let accepting = tokio::spawn(accept(listener, target, state.subscribe(), traps.clone()));
        Proxy { address, state, traps, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections there are; new ones are welcome.
    pub fn cut(&self) {
        self.state.send_modify(|s| s.cuts += 1);
    }

    /// While on, no byte passes in either direction, but connections are accepted and stay.
    pub fn stall(&self, on: bool) {
        self.state.send_modify(|s| s.stalled = on);
    }

    /// Sets a trap; the one before is released.
    pub fn trap(&self, trap: Trap) {
        self.traps.set(Some(trap));
    }

    /// Whether what the trap waits for has come by, and something is held.
    pub fn caught(&self) -> bool {
        self.traps.caught()
    }

    /// Lets pass what a trap holds, and removes the trap.
    pub fn release(&self) {
        self.traps.set(None);
    }

    /// While on, new connections are closed at once; those there are end.
    pub fn refuse(&self, on: bool) {
        self.state.send_modify(|s| {
            s.refusing = on;
            s.cuts += u64::from(on);
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>, traps: Traps) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        let now = *state.borrow();
        if !now.refusing {
            tokio::spawn(forward(near, target, state.clone(), now.cuts, traps.clone()));
        }
    }
}

async fn forward(
    near: TcpStream,
    target: SocketAddr,
    state: watch::Receiver<State>,
    cuts: u64,
    traps: Traps,
) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let mut cut = state.clone();
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let connection = traps.connection();
    let there = Pump { way: Way::There, connection, state: state.clone(), traps: traps.clone() };
    let back = Pump { way: Way::Back, connection, state, traps };
    tokio::select! {
        _ = cut.wait_for(|s| s.cuts != cuts) => {}
        () = there.run(near_read, far_write) => {}
        () = back.run(far_read, near_write) => {}
    }
}

/// One direction of a connection.
struct Pump {
    way: Way,
    connection: u64,
    state: watch::Receiver<State>,
    traps: Traps,
}

impl Pump {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Ok(n) = from.read(&mut buffer).await else { return };
            self.traps.look(self.connection, self.way, &buffer[..n]);
            if self.state.wait_for(|s| !s.stalled).await.is_err() {
                return;
            }
            self.traps.pass(self.connection, self.way).await;
            if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    }
}
