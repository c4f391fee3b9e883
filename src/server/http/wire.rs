//! What admin HTTP is spoken over: TCP, or TLS over it. A handshake goes on as its connection is read, so that a slow one holds nobody up.

use crate::clock::{self, Time};
use crate::tls::Keeper;
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A connection, from its first byte on.
pub(super) enum Wire {
    /// Without TLS.
    Plain(TcpStream),
    /// In its handshake.
    Arriving { handshake: Pin<Box<Accept<TcpStream>>>, peer: SocketAddr, trust: Trust },
    /// With TLS.
    Secure(Box<TlsStream<TcpStream>>, Trust),
    /// Its handshake failed.
    Broken,
}

/// What a client's certificate was good for, to be asked again when the files change.
pub(super) struct Trust {
    keeper: Arc<Keeper>,
    generation: u64,
    came: Time,
    chain: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn holds(&mut self) -> bool {
        let generation = self.keeper.current().generation;
        if generation != self.generation && !self.chain.is_empty() {
            if !self.keeper.trusts(&self.chain, self.came) {
                return false;
            }
            self.generation = generation;
        }
        true
    }
}

impl Wire {
    /// A connection that has just come; with a keeper of certificates, it must begin with a handshake.
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, keeper: Option<&Arc<Keeper>>) -> Wire {
        let Some(keeper) = keeper else { return Wire::Plain(stream) };
        let current = keeper.current();
        let handshake = Box::pin(TlsAcceptor::from(current.config.clone()).accept(stream));
        let (keeper, generation) = (keeper.clone(), current.generation);
        let trust = Trust { keeper, generation, came: clock::now(), chain: Vec::new() };
        Wire::Arriving { handshake, peer, trust }
    }

    /// Whether its handshake is not done.
    pub(super) fn arrives(&self) -> bool {
        matches!(self, Wire::Arriving { .. })
    }

    /// Goes on with the handshake, if there is one to be done.
    fn poll_arrive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire::Arriving { handshake, peer, .. } = self else { return Poll::Ready(Ok(())) };
        let done = ready!(handshake.as_mut().poll(cx));
        let peer = *peer;
        let Wire::Arriving { mut trust, .. } = std::mem::replace(self, Wire::Broken) else {
            return Poll::Ready(Ok(()));
        };
        match done {
            Ok(stream) => {
                trust.chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                *self = Wire::Secure(Box::new(stream), trust);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "no TLS handshake at admin HTTP");
                Poll::Ready(Err(error))
            }
        }
    }
}

/// What is left of a connection whose handshake failed.
fn broken<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_arrive(cx))?;
        match &mut *self {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Secure(stream, trust) => {
                // Before what is asked is read: a certificate may have been revoked since the last request.
                if !trust.holds() {
                    return broken();
                }
                let polled = Pin::new(&mut *stream).poll_read(cx, buf);
                // What TLS itself answers, such as that nothing is negotiated anew: nobody else has anything to write now.
                if stream.get_ref().1.wants_write()
                    && let Poll::Ready(Err(error)) = Pin::new(stream).poll_flush(cx)
                {
                    return Poll::Ready(Err(error));
                }
                polled
            }
            Wire::Arriving { .. } | Wire::Broken => broken(),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_arrive(cx))?;
        match &mut *self {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Secure(stream, _) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Arriving { .. } | Wire::Broken => broken(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Secure(stream, _) => Pin::new(stream).poll_flush(cx),
            Wire::Arriving { .. } | Wire::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Secure(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Wire::Arriving { .. } | Wire::Broken => Poll::Ready(Ok(())),
        }
    }
}
