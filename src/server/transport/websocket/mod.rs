//! WebSocket over TCP or TLS (RFC 6455): MQTT's bytes in binary frames (MQTT 5.0 section 6).

pub(in crate::server) mod frames;
pub(in crate::server) mod upgrade;

use super::{Backlog, Change, Transport};
use crate::node::channel::{Broken, Read};
use frames::{Control, Decoder, Fault};
use std::cell::RefCell;
use std::task::{Poll, Waker};
use upgrade::{Answer, Refusal, UPGRADE_BYTES_MAX, Welcome};

/// Bytes of one message of the broker. As many may wait for a client that takes nothing.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Reads in one turn that bring nothing for the channel.
const IDLE_READS: usize = 16;

thread_local! {
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why a connection does not become a WebSocket.
#[derive(Debug)]
pub(in crate::server) enum UpgradeError {
    /// The client closed the connection.
    Gone,
    /// The request is refused; the response is still to be sent.
    Refused(Refusal),
}

/// A WebSocket over `inner`.
pub(in crate::server) struct WebSocket<T> {
    inner: T,
    decoder: Decoder,
    /// What came right behind the request for the upgrade.
    early: Backlog,
    /// Frames that `inner` has not taken yet.
    outgoing: Backlog,
    /// Nothing more is read: the client has said so, or has sent what it may not.
    ended: bool,
    /// A close frame was sent.
    closed: bool,
    /// What the client did that it may not.
    fault: Option<Fault>,
    /// Bytes of headers and control frames, since somebody asked.
    overhead: usize,
}

/// A connection that is to become a WebSocket.
pub(in crate::server) struct Upgrade<T> {
    pub(in crate::server) inner: T,
    request: Vec<u8>,
}

impl<T: Transport> Upgrade<T> {
    pub(in crate::server) fn new(inner: T) -> Upgrade<T> {
        Upgrade { inner, request: Vec::new() }
    }

    /// Reads the request; completes with the answer to send and what came behind the request.
    pub(in crate::server) fn poll(
        &mut self,
        waker: &Waker,
        welcome: &Welcome,
    ) -> Poll<Result<(String, Vec<u8>), UpgradeError>> {
        loop {
            if !self.inner.flush(waker) {
                return Poll::Pending;
            }
            let mut buffer = [0; 2048];
            let room = (UPGRADE_BYTES_MAX - self.request.len()).min(buffer.len());
            match self.inner.read(waker, &mut buffer[..room]) {
                Read::Bytes(n) => self.request.extend_from_slice(&buffer[..n]),
                Read::Nothing => return Poll::Pending,
                Read::Ended => return Poll::Ready(Err(UpgradeError::Gone)),
            }
            return match upgrade::judge(&self.request, welcome) {
                Answer::Incomplete => continue,
                Answer::Accept(answer, used) => Poll::Ready(Ok((answer, self.request.split_off(used)))),
                Answer::Refuse(refusal) => Poll::Ready(Err(UpgradeError::Refused(refusal))),
            };
        }
    }

    /// The WebSocket, once the request was accepted: `answer` goes before its frames, `early` came already.
    pub(in crate::server) fn accepted(self, answer: String, early: Vec<u8>) -> WebSocket<T> {
        WebSocket {
            inner: self.inner,
            decoder: Decoder::default(),
            early: Backlog { bytes: early, sent: 0 },
            outgoing: Backlog { bytes: answer.into_bytes(), sent: 0 },
            ended: false,
            closed: false,
            fault: None,
            overhead: 0,
        }
    }
}

impl<T: Transport> WebSocket<T> {
    fn flush_out(&mut self, waker: &Waker) -> Result<bool, Broken> {
        let inner = &mut self.inner;
        self.outgoing.send(|bytes| inner.write(waker, bytes))
    }

    /// Reads once into `buffer`; what came behind the request first.
    fn read_once(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        if self.early.is_empty() {
            return self.inner.read(waker, buffer);
        }
        let mut taken = 0;
        let took = self.early.send(|bytes| {
            taken = bytes.len().min(buffer.len());
            buffer[..taken].copy_from_slice(&bytes[..taken]);
            Ok(taken)
        });
        debug_assert!(took.is_ok());
        Read::Bytes(taken)
    }

    fn close(&mut self, code: Option<u16>, why: &str) {
        if !self.closed {
            self.closed = true;
            frames::put_close(&mut self.outgoing.bytes, code, why);
        }
    }

    fn answer(&mut self, control: Control) {
        match control {
            // Of several pings that wait for an answer, any one may go without (section 5.5.3).
            Control::Ping(payload) if !self.closed && self.outgoing.len() < MESSAGE_BYTES_MAX => {
                frames::put_pong(&mut self.outgoing.bytes, &payload);
            }
            Control::Ping(_) => {}
            Control::Close(code) => {
                self.ended = true;
                self.close(code, "");
            }
        }
    }
}

impl<T: Transport> Transport for WebSocket<T> {
    fn read(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        let mut spent = 0;
        for _ in 0..IDLE_READS {
            if self.ended {
                return Read::Ended;
            }
            let n = match self.read_once(waker, buffer) {
                Read::Bytes(n) => n,
                other => return other,
            };
            let mut controls = Vec::new();
            let decoded = self.decoder.decode(&mut buffer[..n], |control| controls.push(control));
            controls.into_iter().for_each(|control| self.answer(control));
            let payload = decoded.unwrap_or_else(|(payload, fault)| {
                self.ended = true;
                self.fault = Some(fault);
                self.close(Some(fault.code), fault.why);
                payload
            });
            let overhead = n.saturating_sub(payload);
            self.overhead += overhead;
            spent += overhead;
            if self.flush_out(waker).is_err() {
                self.ended = true;
            }
            if payload > 0 {
                return Read::Bytes(payload);
            }
            // As much as it may read now: what it reads next is another turn's.
            if spent >= buffer.len() {
                break;
            }
        }
        waker.wake_by_ref(); // others first
        Read::Nothing
    }

    fn write(&mut self, waker: &Waker, bytes: &[u8]) -> Result<usize, Broken> {
        let mut taken = 0;
        while taken < bytes.len() {
            if !self.flush_out(waker)? {
                break;
            }
            let chunk = &bytes[taken..bytes.len().min(taken + MESSAGE_BYTES_MAX)];
            taken += chunk.len();
            if self.closed {
                continue; // nothing is sent after a close frame
            }
            let inner = &mut self.inner;
            let outgoing = &mut self.outgoing;
            FRAME.with_borrow_mut(|frame| {
                frame.clear();
                frames::put_binary_header(frame, chunk.len());
                frame.extend_from_slice(chunk);
                let sent = inner.write(waker, frame)?;
                outgoing.push(&frame[sent..]);
                Ok(())
            })?;
        }
        Ok(taken)
    }

    fn overhead(&mut self) -> usize {
        std::mem::take(&mut self.overhead)
    }

    /// Also of frames of which nothing is for MQTT: it is known only once they are read.
    fn unread(&self) -> u64 {
        self.inner.unread() + self.early.len() as u64
    }

    fn hung_up(&self) -> bool {
        self.inner.hung_up()
    }

    fn untaken(&self) -> u64 {
        self.inner.untaken() + self.outgoing.len() as u64
    }

    fn flush(&mut self, waker: &Waker) -> bool {
        match self.flush_out(waker) {
            Ok(true) => self.inner.flush(waker),
            Ok(false) => false,
            Err(Broken) => {
                self.ended = true;
                true
            }
        }
    }

    fn shut(&mut self, waker: &Waker) -> bool {
        self.close(Some(frames::NORMAL), "");
        match self.flush_out(waker) {
            Ok(true) => self.inner.shut(waker),
            Ok(false) => false,
            Err(Broken) => true,
        }
    }

    fn drain(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        self.inner.drain(waker, buffer)
    }

    fn trusted(&mut self) -> bool {
        self.inner.trusted()
    }

    fn trust_changes(&mut self) -> Option<Change> {
        self.inner.trust_changes()
    }
}

#[cfg(test)]
#[path = "fuzz_tests.rs"]
mod fuzz_tests;
