//! A TCP proxy that fails on demand.

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
        let accepting = tokio::spawn(accept(listener, target, state.subscribe()));
        Proxy { address, state, accepting }
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

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        let now = *state.borrow();
        if !now.refusing {
            tokio::spawn(forward(near, target, state.clone(), now.cuts));
        }
    }
}

async fn forward(near: TcpStream, target: SocketAddr, state: watch::Receiver<State>, cuts: u64) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let mut cut = state.clone();
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = cut.wait_for(|s| s.cuts != cuts) => {}
        () = pump(near_read, far_write, state.clone()) => {}
        () = pump(far_read, near_write, state) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(n) = from.read(&mut buffer).await else { return };
        if state.wait_for(|s| !s.stalled).await.is_err()
            || n == 0
            || to.write_all(&buffer[..n]).await.is_err()
        {
            return;
        }
    }
}
