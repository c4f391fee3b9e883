//! Connections to admin HTTP: few, and never idle for long.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections at a time; further ones wait in the kernel.
pub const HTTP_CONNECTIONS_MAX: usize = 64;

/// A connection that neither reads nor writes for so long is closed, unless it waits for an answer of this node.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(60);

/// A listener whose connections are few and never idle for long.
pub(super) struct Bounded {
    inner: TcpListener,
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
        let idle = Box::pin(tokio::time::sleep(self.idle_max));
        let (requests, idle_max) = (Requests::default(), self.idle_max);
        (BoundedStream { stream, requests, idle, idle_max, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Bounded {
    /// With [`HTTP_CONNECTIONS_MAX`].
    pub(super) fn new(inner: TcpListener, idle_max: Duration) -> Bounded {
        Bounded { inner, permits: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)), idle_max }
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
    stream: TcpStream,
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
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
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
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn idle_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded {
            inner: listener,
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
}
