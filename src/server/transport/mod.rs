//! What bytes travel over: TCP, TLS, and WebSocket over either. All of them are driven by the one loop of a channel.

mod plain;
pub(super) mod tls;
pub(super) mod websocket;

use super::rates::Throttle;
use crate::clock::Time;
use crate::node::channel::{Broken, Read, Socket};
use std::future::Future;
use std::pin::Pin;
use std::task::Waker;

/// Completes when it has to be asked again whether a peer is still trusted.
pub(super) type Change = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to a client. Nothing here waits: `waker` is woken when there is more to do. See [`Socket`] for what the questions mean.
pub(super) trait Transport: Send + 'static {
    /// Reads what is there into `buffer`.
    fn read(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read;

    /// Takes what it can of `bytes`; returns how many bytes that is. A bounded number of them may wait here for the peer.
    fn write(&mut self, waker: &Waker, bytes: &[u8]) -> Result<usize, Broken>;

    /// Bytes that were read beside those for the channel, since this was asked last: a client that is slowed down has sent them, too.
    fn overhead(&mut self) -> usize {
        0
    }

    /// Bytes that are there and were not read yet.
    fn unread(&self) -> u64;

    /// Whether the peer has closed its side, or the connection is broken.
    fn hung_up(&self) -> bool;

    /// Bytes of what was written that the peer has not taken.
    fn untaken(&self) -> u64;

    /// Writes what waits here, as far as the peer takes it now. True if nothing waits any more, or never can be written.
    fn flush(&mut self, waker: &Waker) -> bool;

    /// Tells the peer that nothing more comes, after all that was written. True once that is done, or can never be.
    fn shut(&mut self, waker: &Waker) -> bool;

    /// Reads what a peer that was told goodbye still sends, and throws it away; `buffer` is used for it.
    fn drain(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read;

    /// As [`Transport::shut`], to a peer that sends nothing more.
    fn conclude(&mut self, waker: &Waker) -> bool {
        self.shut(waker)
    }

    /// Whether the peer is still who it was found to be when it came, as far as is known now.
    fn trusted(&mut self) -> bool {
        true
    }

    /// Completes when more is known than when the peer came, or when [`Transport::trusted`] was asked last; `None` = never.
    fn trust_changes(&mut self) -> Option<Change> {
        None
    }
}

/// A transport within one turn of its task, which is woken by `waker`.
pub(super) struct Turn<'a, T> {
    pub(super) transport: &'a mut T,
    pub(super) waker: &'a Waker,
    /// What slows the client down, if anything does.
    pub(super) throttle: Option<&'a mut Throttle>,
    pub(super) now: Time,
}

impl<T: Transport> Socket for Turn<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> Read {
        let Some(throttle) = &mut self.throttle else { return self.transport.read(self.waker, buffer) };
        let room = throttle.room(self.now).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else { return Read::Nothing };
        let read = self.transport.read(self.waker, buffer);
        throttle.cost(self.transport.overhead(), self.now);
        if let Read::Bytes(n) = read {
            throttle.came(n, self.now);
        }
        read
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        self.transport.write(self.waker, bytes)
    }

    fn unread(&self) -> u64 {
        self.transport.unread()
    }

    fn hung_up(&self) -> bool {
        self.transport.hung_up()
    }

    fn untaken(&self) -> u64 {
        self.transport.untaken()
    }
}

/// Bytes that wait for a peer, oldest first.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what `write` takes. True if nothing is left; memory is then given back. Of what was sent no more is kept than waits.
    fn send(&mut self, write: impl FnOnce(&[u8]) -> Result<usize, Broken>) -> Result<bool, Broken> {
        if self.is_empty() {
            return Ok(true);
        }
        self.sent += write(&self.bytes[self.sent..])?;
        let done = self.is_empty();
        if done {
            *self = Backlog::default();
        } else if self.sent >= self.len() {
            // Who takes a little each time, and is sent as much again, never takes the last of it.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(done)
    }
}
