//! TLS over TCP. Records are decrypted and encrypted in buffers of the thread: an idle connection holds none.

use super::{Backlog, Change, Transport};
use crate::clock::Time;
use crate::node::channel::{Broken, Read};
use crate::tls::{Current, Keeper};
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Poll, Waker};
use tokio::net::TcpStream;

/// Bytes of one connection that came and are no whole record or handshake message yet.
pub const RECORD_BYTES_MAX: usize = 68 * 1024;

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// Bytes encrypted at a time. As many, encrypted, may wait for a client that takes nothing.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// More than encryption adds to [`CHUNK_BYTES_MAX`] bytes, which are at most five records.
const OVERHEAD_BYTES: usize = 1024;

/// Reads in one turn that bring nothing for the channel.
const IDLE_READS: usize = 16;

struct Buffers {
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        incoming: vec![0; RECORD_BYTES_MAX + READ_BYTES].into_boxed_slice(),
        outgoing: vec![0; CHUNK_BYTES_MAX + OVERHEAD_BYTES].into_boxed_slice(),
    });
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum HandshakeError {
    /// The client closed the connection.
    #[error("the client closed the connection before the handshake was done")]
    Gone,
    /// TLS cannot be agreed on.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A TLS connection, or the handshake for one.
pub(in crate::server) struct Tls {
    stream: TcpStream,
    session: Box<UnbufferedServerConnection>,
    /// Came, and is no whole record yet.
    incoming: Vec<u8>,
    /// Decrypted, and not read yet.
    plain: Backlog,
    /// Encrypted, and not taken by the socket yet.
    outgoing: Backlog,
    /// Nothing more comes.
    ended: bool,
    /// The connection cannot be used any more, but for what is in `outgoing`.
    failed: bool,
    /// The peer was told that nothing more comes.
    said_goodbye: bool,
    /// Where to ask whether the peer is still trusted: of peers that have shown a certificate.
    trust: Option<Box<Trust>>,
}

struct Trust {
    keeper: Arc<Keeper>,
    generation: u64,
    came: Time,
}

impl Tls {
    /// A connection that is to begin with a handshake.
    pub(in crate::server) fn new(stream: TcpStream, current: &Current) -> Result<Tls, rustls::Error> {
        Ok(Tls {
            stream,
            session: Box::new(UnbufferedServerConnection::new(current.config.clone())?),
            incoming: Vec::new(),
            plain: Backlog::default(),
            outgoing: Backlog::default(),
            ended: false,
            failed: false,
            said_goodbye: false,
            trust: None,
        })
    }

    /// Goes on with the handshake; completes when it is done.
    pub(in crate::server) fn poll_handshake(&mut self, waker: &Waker) -> Poll<Result<(), HandshakeError>> {
        loop {
            if self.flush_out(waker).is_err() {
                return Poll::Ready(Err(HandshakeError::Gone));
            }
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match self.advance(waker, &mut []) {
                Ok(Read::Bytes(_)) => {}
                Ok(Read::Nothing) => return Poll::Pending,
                Ok(Read::Ended) => return Poll::Ready(Err(HandshakeError::Gone)),
                Err(error) => {
                    let _ = self.flush_out(waker); // the alert that tells the client why
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// The certificates that the client has shown, its own first.
    pub(in crate::server) fn client_chain(&self) -> &[CertificateDer<'static>] {
        self.session.peer_certificates().unwrap_or_default()
    }

    /// Has the certificate of a client that came at `came`, with the files of `generation`, looked at again when they change.
    pub(in crate::server) fn watch(&mut self, keeper: Arc<Keeper>, generation: u64, came: Time) {
        self.trust = Some(Box::new(Trust { keeper, generation, came }));
    }

    /// Reads once from the socket and decrypts. `Bytes(n)`: something came, of which `n` bytes are in `buffer` now; what has no room
    /// there is in `self.plain`.
    fn advance(&mut self, waker: &Waker, buffer: &mut [u8]) -> Result<Read, rustls::Error> {
        BUFFERS.with_borrow_mut(|buffers| {
            let held = self.incoming.len();
            let Some((before, rest)) = buffers.incoming.split_at_mut_checked(held) else {
                return Ok(Read::Ended);
            };
            before.copy_from_slice(&self.incoming);
            let most = rest.len().min(READ_BYTES);
            let came = match self.stream.read(waker, &mut rest[..most]) {
                Read::Bytes(n) => n,
                other => return Ok(other),
            };
            let all = &mut buffers.incoming[..held + came];
            let mut filled = 0;
            let plain = &mut self.plain;
            let outcome = process(&mut self.session, all, &mut self.outgoing, |bytes| {
                let n = bytes.len().min(buffer.len() - filled);
                buffer[filled..filled + n].copy_from_slice(&bytes[..n]);
                filled += n;
                plain.push(&bytes[n..]);
            });
            let (used, state) = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.failed = true;
                    self.incoming = Vec::new();
                    return Err(error);
                }
            };
            let left = &all[used..];
            if left.len() > RECORD_BYTES_MAX {
                self.failed = true;
                return Err(rustls::Error::General("a message is too large".to_owned()));
            }
            if left.is_empty() {
                self.incoming = Vec::new();
            } else {
                self.incoming.clear();
                self.incoming.extend_from_slice(left);
            }
            self.ended |= state == State::Ended;
            Ok(Read::Bytes(filled))
        })
    }

    fn flush_out(&mut self, waker: &Waker) -> Result<bool, Broken> {
        let stream = &mut self.stream;
        self.outgoing.send(|bytes| stream.write(waker, bytes))
    }

    /// Encrypts `chunk` and writes what the socket takes; the rest waits in `outgoing`, which is empty before.
    fn encrypt(&mut self, waker: &Waker, chunk: &[u8]) -> Result<(), Broken> {
        BUFFERS.with_borrow_mut(|buffers| {
            let n = self.with_traffic(|traffic| traffic.encrypt(chunk, &mut buffers.outgoing).ok())?;
            self.send(waker, buffers.outgoing.get(..n).ok_or(Broken)?)
        })
    }

    /// Writes encrypted bytes behind those that wait.
    fn send(&mut self, waker: &Waker, bytes: &[u8]) -> Result<(), Broken> {
        let sent = if self.outgoing.is_empty() { self.stream.write(waker, bytes)? } else { 0 };
        self.outgoing.push(&bytes[sent..]);
        Ok(())
    }

    /// Has `write` encrypt something, once nothing else has to be said first.
    fn with_traffic(
        &mut self,
        write: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
        ) -> Option<usize>,
    ) -> Result<usize, Broken> {
        let (plain, outgoing) = (&mut self.plain, &mut self.outgoing);
        let settled = process(&mut self.session, &mut self.incoming, outgoing, |bytes| plain.push(bytes));
        let (used, _) = settled.map_err(|_| Broken)?;
        self.incoming.drain(..used);
        match self.session.process_tls_records(&mut self.incoming).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => write(&mut traffic).ok_or(Broken),
            _ => Err(Broken),
        }
    }

    /// Takes what was decrypted and had no room.
    fn take_plain(&mut self, buffer: &mut [u8]) -> usize {
        let mut taken = 0;
        let took = self.plain.send(|bytes| {
            taken = bytes.len().min(buffer.len());
            buffer[..taken].copy_from_slice(&bytes[..taken]);
            Ok(taken)
        });
        debug_assert!(took.is_ok());
        taken
    }
}

/// Where a connection is once all that came has been processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Handshake,
    Open,
    /// The peer has said that nothing more comes.
    Ended,
}

/// Processes what came, as far as it is whole: how many bytes of it were used, and what comes of it. `plain` gets what was decrypted,
/// `outgoing` what has to be answered, the alert included that goes before an error.
fn process(
    session: &mut UnbufferedServerConnection,
    incoming: &mut [u8],
    outgoing: &mut Backlog,
    mut plain: impl FnMut(&[u8]),
) -> Result<(usize, State), rustls::Error> {
    let mut used = 0;
    let mut ended = false;
    loop {
        let UnbufferedStatus { mut discard, state } = session.process_tls_records(&mut incoming[used..]);
        let mut failed = None;
        let mut done = None;
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, outgoing)?,
            Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(), // it is in `outgoing`
            Ok(ConnectionState::PeerClosed) => ended = true,
            Ok(ConnectionState::Closed) => done = Some(State::Ended),
            Ok(ConnectionState::BlockedHandshake) => done = Some(State::Handshake),
            Ok(ConnectionState::WriteTraffic(_)) => done = Some(State::Open),
            Ok(_) => failed = Some(rustls::Error::General("early data is not offered".to_owned())),
            Err(error) => failed = Some(error),
        }
        used += discard;
        if let Some(error) = failed {
            alerts(session, outgoing);
            return Err(error);
        }
        if let Some(state) = done {
            return Ok((used, if ended { State::Ended } else { state }));
        }
    }
}

/// Takes what a failed connection still has to say. Once that is nothing it must not be asked again: it would look at what came, which is not
/// shown to it, and panic.
fn alerts(session: &mut UnbufferedServerConnection, outgoing: &mut Backlog) {
    while session.wants_write() {
        match session.process_tls_records(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if encode(&mut data, outgoing).is_err() {
                    return;
                }
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
            _ => return,
        }
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Backlog) -> Result<(), rustls::Error> {
    let general = |e: &EncodeError| rustls::Error::General(e.to_string());
    let size = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(e)) => e.required_size,
        Err(e) => return Err(general(&e)),
    };
    let at = outgoing.bytes.len();
    outgoing.bytes.resize(at + size, 0);
    let written = data.encode(&mut outgoing.bytes[at..]).map_err(|e| general(&e))?;
    outgoing.bytes.truncate(at + written);
    Ok(())
}

impl Transport for Tls {
    fn read(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        if !self.plain.is_empty() {
            return Read::Bytes(self.take_plain(buffer));
        }
        for _ in 0..IDLE_READS {
            if self.ended || self.failed {
                return Read::Ended;
            }
            match self.advance(waker, buffer) {
                Ok(Read::Bytes(0)) => {}
                Ok(read) => return read,
                Err(_) => {
                    let _ = self.flush_out(waker);
                    return Read::Ended;
                }
            }
            if self.flush_out(waker).is_err() {
                self.failed = true;
            }
        }
        waker.wake_by_ref(); // others first
        Read::Nothing
    }

    fn write(&mut self, waker: &Waker, bytes: &[u8]) -> Result<usize, Broken> {
        if self.failed {
            return Err(Broken);
        }
        let mut taken = 0;
        while taken < bytes.len() {
            if !self.flush_out(waker)? {
                break;
            }
            let chunk = &bytes[taken..bytes.len().min(taken + CHUNK_BYTES_MAX)];
            self.encrypt(waker, chunk)?;
            taken += chunk.len();
        }
        Ok(taken)
    }

    /// The beginning of a record does not count: nothing can be read of it.
    fn unread(&self) -> u64 {
        self.stream.unread() + self.plain.len() as u64
    }

    fn hung_up(&self) -> bool {
        self.stream.hung_up()
    }

    fn untaken(&self) -> u64 {
        self.stream.untaken() + self.outgoing.len() as u64
    }

    fn flush(&mut self, waker: &Waker) -> bool {
        match self.flush_out(waker) {
            Ok(done) => done,
            Err(Broken) => {
                self.failed = true;
                true
            }
        }
    }

    fn shut(&mut self, waker: &Waker) -> bool {
        if !self.said_goodbye && !self.failed {
            self.said_goodbye = true;
            let mut alert = [0; 128];
            if let Ok(n) = self.with_traffic(|traffic| traffic.queue_close_notify(&mut alert).ok())
                && let Some(alert) = alert.get(..n)
                && self.send(waker, alert).is_err()
            {
                return true;
            }
        }
        match self.flush_out(waker) {
            Ok(true) => self.stream.shut(waker),
            Ok(false) => false,
            Err(Broken) => true,
        }
    }

    fn drain(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        self.stream.drain(waker, buffer)
    }

    fn trusted(&mut self) -> bool {
        let Some(trust) = &mut self.trust else { return true };
        // First, so that a change while it is looked at is not missed.
        trust.generation = trust.keeper.current().generation;
        trust.keeper.trusts(self.session.peer_certificates().unwrap_or_default(), trust.came)
    }

    fn trust_changes(&mut self) -> Option<Change> {
        let trust = self.trust.as_ref()?;
        let (keeper, known) = (trust.keeper.clone(), trust.generation);
        Some(Box::pin(async move {
            let changed = keeper.changed();
            // They may have changed between the handshake and here.
            if keeper.current().generation == known {
                changed.await;
            }
        }))
    }
}
