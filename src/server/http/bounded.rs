//! Connections to admin HTTP: few, and never idle for long.

use super::wire::Wire;
use crate::tls::Keeper;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections at a time; further ones wait in the kernel.
pub const HTTP_CONNECTIONS_MAX: usize = 64;

/// A connection that neither reads nor writes for so long is closed, unless it waits for an answer of this node.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a TLS handshake may take.
pub const HTTP_HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// A listener whose connections are few and never idle for long.
pub(super) struct Bounded {
    inner: TcpListener,
    /// Its certificates; `None` = without TLS.
    keeper: Option<Arc<Keeper>>,
    permits: Arc<Semaphore>,
    idle_max: Duration,
}

impl axum::serve::Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        // The semaphore is never closed; without a permit the connection would only be uncounted.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.inner).await;
        let (requests, idle_max) = (Requests::default(), self.idle_max);
        let stream = Wire::new(stream, address, self.keeper.as_ref());
        let patience = if stream.arrives() { idle_max.min(HTTP_HANDSHAKE_MAX) } else { idle_max };
        let idle = Box::pin(tokio::time::sleep(patience));
        (BoundedStream { stream, requests, idle, idle_max, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Bounded {
    /// With [`HTTP_CONNECTIONS_MAX`].
    pub(super) fn new(inner: TcpListener, keeper: Option<Arc<Keeper>>, idle_max: Duration) -> Bounded {
        Bounded { inner, keeper, permits: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)), idle_max }
    }
}

/// Requests of one connection that are being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<AtomicUsize>);

impl Requests {
    /// One more, until what is returned is dropped.
    pub(super) fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(self.0.clone())
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// See [`Requests::begin`].
pub(super) struct Answering(Arc<AtomicUsize>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that fails once nothing has moved for `idle_max` although nobody works at an answer.
pub(super) struct BoundedStream {
    stream: Wire,
    requests: Requests,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl BoundedStream {
    /// What is asked on it.
    pub(super) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// `polled` unless it waits for longer than allowed; restarts the clock when something moved.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.idle.set(tokio::time::sleep(self.idle_max));
            return polled;
        }
        while self.idle.as_mut().poll(cx).is_ready() {
            if !self.requests.any() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.idle.set(tokio::time::sleep(self.idle_max));
        }
        Poll::Pending
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let arrives = self.stream.arrives();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if arrives && !self.stream.arrives() {
            let idle_max = self.idle_max;
            self.idle.set(tokio::time::sleep(idle_max));
        }
        self.watch(cx, polled)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::config::Config;
    use crate::tls::Files;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn idle_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded {
            inner: listener,
            keeper: None,
            permits: Arc::new(Semaphore::new(1)),
            idle_max: Duration::from_millis(1),
        };
        let address = axum::serve::Listener::local_addr(&bounded).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (mut stream, _) = axum::serve::Listener::accept(&mut bounded).await;
        assert_eq!(bounded.permits.available_permits(), 0);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(stream);
        assert_eq!(bounded.permits.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_end_is_cut_off() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
        std::fs::write(&cert, own.cert.pem()).unwrap();
        std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let config = Config::from_pairs(&[("http.cert_file", cert), ("http.key_file", key)]).unwrap();
        let keeper = Keeper::new(Files::of_http(&config.http).unwrap(), clock::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded::new(listener, Some(Arc::new(keeper)), Duration::from_millis(1));
        let address = axum::serve::Listener::local_addr(&bounded).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        // The beginning of a ClientHello.
        client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        let (mut stream, _) = axum::serve::Listener::accept(&mut bounded).await;
        assert!(stream.stream.arrives());
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
