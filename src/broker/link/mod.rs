//! One client's protocol endpoint without a socket: bytes in, bytes out, and what happens in between.
//!
//! The owner (a connection task, or a test in virtual time) feeds bytes with [`Link::receive`], calls [`Link::poll`] when woken
//! or when [`Link::next_timeout`] has come, and writes what is in [`Actions::wire`] after each call. A link never waits.

mod connect;
mod effects;
mod lines;
mod open;
mod waiting;

use super::handle::Handle;
use super::ports::Identity;
use super::publish::{Cache, Scratch};
use super::subscribe::RetainedRequest;
use super::{Admission, Broker};
use crate::clock::Time;
use crate::mqtt::decode::{self, DecodeError};
use crate::mqtt::{Message, Version};
use crate::session::{Actions, CloseCause, Delivery, Session};
use crate::telemetry::metrics::ErrorType;
use connect::{Connecting, Leaving};
use lines::Lines;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;
use waiting::Waiting;

/// Bytes waiting for the client beyond which no more are produced for it.
pub const WIRE_BYTES_MAX: usize = 64 * 1024;

/// Numbers of journaled messages read at a time for one client.
const READ_BATCH_MAX: usize = 128;

/// See the module.
#[derive(Debug)]
pub struct Link {
    broker: Arc<Broker>,
    peer: SocketAddr,
    state: State,
    /// The beginning of a packet, or packets that must wait.
    partial: Vec<u8>,
    counts: Counts,
    /// There are too many connections: CONNECT will be refused.
    unwelcome: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing came yet; closed at this time.
    Fresh(Time),
    /// CONNECT came; CONNACK is still to be sent.
    Connecting(Box<Connecting>),
    /// Connected.
    Open(Box<Open>),
    /// Closed for the client; something must be durable before the socket is.
    Leaving(Leaving),
    /// Write what is left, then close the socket.
    Closed,
}

/// A connected client.
#[derive(Debug)]
struct Open {
    session: Box<Session>,
    handle: Arc<Handle>,
    identity: Identity,
    version: Version,
    maximum_packet_size: u32,
    cache: Cache,
    /// Deliveries taken out of the mailbox.
    local: VecDeque<Delivery>,
    waiting: Waiting,
    /// SUBACKs outstanding: nothing is delivered before them.
    subscribing: usize,
    retained: Option<Box<RetainedTodo>>,
    closing: Option<CloseCause>,
    lines: Lines,
}

/// Retained messages still to be sent.
#[derive(Debug, Default)]
struct RetainedTodo {
    requests: VecDeque<RetainedRequest>,
    current: Option<(RetainedRequest, std::vec::IntoIter<Message>)>,
}

/// What is added to the metrics once per call.
#[derive(Debug, Default)]
struct Counts {
    packets_in: u64,
    bytes_in: u64,
    publishes_in: [u64; 3],
    payload_in: u64,
    publishes_out: [u64; 3],
}

/// What a thread needs to run links: buffers that are reused from call to call.
#[derive(Debug, Default)]
pub struct Context {
    /// Bytes and effects.
    pub actions: Actions,
    /// For the publish path.
    pub scratch: Scratch,
}

impl Link {
    /// A link to a client that has just connected from `peer`.
    pub fn new(broker: Arc<Broker>, peer: SocketAddr, admission: Admission, now: Time) -> Link {
        let deadline = now.plus_ms(broker.limits.connect_timeout_ms);
        Link {
            broker,
            peer,
            state: State::Fresh(deadline),
            partial: Vec::new(),
            counts: Counts::default(),
            unwelcome: admission != Admission::Serve,
        }
    }

    /// Takes bytes from the client: any number, cut anywhere. Then call [`Link::poll`].
    pub fn receive(&mut self, bytes: &[u8], waker: &Waker, now: Time, cx: &mut Context) {
        self.counts.bytes_in += bytes.len() as u64;
        if self.partial.is_empty() {
            let used = self.consume(bytes, waker, now, cx);
            if used < bytes.len() && !self.closed() {
                self.partial.extend_from_slice(&bytes[used..]);
            }
        } else {
            self.partial.extend_from_slice(bytes);
            self.consume_partial(waker, now, cx);
        }
        self.count(cx);
    }

    fn consume_partial(&mut self, waker: &Waker, now: Time, cx: &mut Context) {
        let mut partial = std::mem::take(&mut self.partial);
        let used = self.consume(&partial, waker, now, cx);
        if self.closed() || used == partial.len() {
            return; // the buffer is given back: most clients never need it again
        }
        partial.drain(..used);
        self.partial = partial;
    }

    /// Handles whole packets from the front of `bytes` while they may be handled; returns how many bytes were used.
    fn consume(&mut self, bytes: &[u8], waker: &Waker, now: Time, cx: &mut Context) -> usize {
        let mut used = 0;
        while self.takes_packets(cx) {
            let rest = &bytes[used..];
            let (version, maximum) = match &self.state {
                State::Open(o) => (Some(o.version), o.maximum_packet_size),
                _ => (None, self.broker.limits.session.maximum_packet_size),
            };
            let frame = match decode::frame_len(rest, maximum) {
                Ok(Some(len)) => &rest[..len],
                Ok(None) => break,
                Err(e) => {
                    self.malformed(&e, version, now, cx);
                    break;
                }
            };
            used += frame.len();
            self.counts.packets_in += 1;
            match decode::decode(version, frame) {
                Ok(packet) => self.packet(packet, waker, now, cx),
                Err(e) => self.malformed(&e, version, now, cx),
            }
        }
        used
    }

    fn takes_packets(&self, cx: &Context) -> bool {
        match &self.state {
            State::Fresh(_) => true,
            State::Open(o) => {
                o.closing.is_none()
                    && o.session.wants_packets()
                    && cx.actions.wire.len() < WIRE_BYTES_MAX * 4
                    && (o.waiting.is_empty() || !self.broker.publishers_pause())
            }
            State::Connecting(_) | State::Leaving(_) | State::Closed => false,
        }
    }

    /// Whether the owner should read from the socket. While it should not, what the client sends waits in the kernel.
    pub fn wants_read(&self) -> bool {
        match &self.state {
            State::Fresh(_) => true,
            State::Connecting(_) => self.partial.is_empty(),
            State::Open(o) => {
                o.closing.is_none()
                    && o.session.wants_packets()
                    && (o.waiting.is_empty()
                        || !self.broker.journal.congested() && !self.broker.publishers_pause())
            }
            State::Leaving(_) | State::Closed => false,
        }
    }

    /// Does whatever can be done now and arranges for `waker` to be woken when there is more.
    pub fn poll(&mut self, waker: &Waker, now: Time, cx: &mut Context) {
        if matches!(self.state, State::Connecting(_)) {
            self.poll_connecting(waker, now, cx); // and on, if that opened it
        }
        match &self.state {
            State::Fresh(deadline) => {
                if *deadline <= now {
                    self.connect_timed_out();
                }
            }
            State::Connecting(_) => {}
            State::Open(_) => {
                self.poll_open(waker, now, cx);
                while !self.partial.is_empty() && self.takes_packets(cx) {
                    let before = self.partial.len();
                    self.consume_partial(waker, now, cx);
                    if self.partial.len() == before {
                        break; // the beginning of a packet
                    }
                    self.poll_open(waker, now, cx); // what these packets asked for must be given or waited for
                }
            }
            State::Leaving(l) => {
                if l.done(self.broker.journal.durable(), now) {
                    self.state = State::Closed;
                } else {
                    self.broker.journal.wake_at(l.lsn, waker);
                }
            }
            State::Closed => {}
        }
        self.count(cx);
    }

    /// The owner has written to the socket what it took. Whoever is being closed has had its goodbye now: what it did not take it
    /// never gets, since after this another connection may have the session, and nothing is written to two (G1).
    pub fn written(&mut self, waker: &Waker, now: Time, cx: &mut Context) {
        if let State::Open(open) = &self.state
            && let Some(cause) = open.closing
        {
            cx.actions.wire.clear();
            self.leave(cause, now, cx);
            self.poll(waker, now, cx);
        }
    }

    /// When [`Link::poll`] must be called next, even if nothing wakes it.
    pub fn next_timeout(&self) -> Option<Time> {
        let limit = self.broker.limits.publish_timeout_ms;
        match &self.state {
            State::Fresh(deadline) => Some(*deadline),
            State::Connecting(c) => c.deadline(),
            State::Open(o) => {
                let waiting = o.waiting.since().map(|t| t.plus_ms(limit));
                [waiting, o.session.next_timeout()].into_iter().flatten().min()
            }
            State::Leaving(l) => Some(l.deadline),
            State::Closed => None,
        }
    }

    /// The network connection is gone.
    pub fn lost(&mut self, now: Time, cx: &mut Context) {
        match &mut self.state {
            // Whoever was being closed already is not lost: a client that said goodbye may be gone before it is answered.
            State::Open(open) => {
                let cause = open.closing.unwrap_or(CloseCause::Lost);
                self.leave(cause, now, cx);
            }
            State::Connecting(_) => self.abandon(now, cx),
            State::Fresh(_) | State::Leaving(_) | State::Closed => {}
        }
        self.state = State::Closed;
        self.count(cx);
    }

    /// The broker shuts down: the client is told, its session kept.
    pub fn shut_down(&mut self, now: Time, cx: &mut Context) {
        match &mut self.state {
            State::Open(o) if o.closing.is_none() => {
                o.session.close(CloseCause::ShuttingDown, None, &mut cx.actions);
                self.run_effects(now, cx);
            }
            State::Connecting(_) => self.refuse_connecting(crate::mqtt::Reason::ServerShuttingDown, now, cx),
            State::Fresh(_) => self.state = State::Closed,
            State::Open(_) | State::Leaving(_) | State::Closed => {}
        }
        self.count(cx);
    }

    /// This node may not serve clients any more: the client is told, its session kept.
    pub fn stop_serving(&mut self, now: Time, cx: &mut Context) {
        match &mut self.state {
            State::Open(o) if o.closing.is_none() => {
                o.session.close(CloseCause::NotServing, None, &mut cx.actions);
                self.run_effects(now, cx);
            }
            State::Open(_) | State::Fresh(_) | State::Leaving(_) | State::Closed => {}
            State::Connecting(_) => self.refuse_connecting(crate::mqtt::Reason::ServerUnavailable, now, cx),
        }
        self.count(cx);
    }

    /// Whether the owner should close the socket once everything is written.
    pub fn closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether the client is connected (CONNACK was sent).
    pub fn open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    fn malformed(&mut self, e: &DecodeError, version: Option<Version>, now: Time, cx: &mut Context) {
        match &mut self.state {
            State::Open(o) => {
                o.session.fail(e.reason(), &e.to_string(), &mut cx.actions);
                self.run_effects(now, cx);
            }
            _ => {
                self.broker.metrics.errors.of(ErrorType::from_code(e.reason() as u8)).inc();
                self.refuse_bytes(e, version, cx);
            }
        }
    }

    fn count(&mut self, cx: &mut Context) {
        let c = std::mem::take(&mut self.counts);
        let m = &self.broker.metrics;
        if c.bytes_in > 0 {
            m.bytes_received.add(c.bytes_in);
            m.packets_received.add(c.packets_in);
        }
        for (at, qos) in [0u8, 1, 2].into_iter().enumerate() {
            if c.publishes_in[at] > 0 {
                m.messages_received.of(qos.into()).add(c.publishes_in[at]);
            }
            if c.publishes_out[at] > 0 {
                m.messages_sent.of(qos.into()).add(c.publishes_out[at]);
            }
        }
        if c.payload_in > 0 {
            m.publish_bytes_received.add(c.payload_in);
        }
        let packets = std::mem::take(&mut cx.actions.packets);
        if packets > 0 {
            m.packets_sent.add(packets);
        }
        let payload = std::mem::take(&mut cx.actions.payload_bytes);
        if payload > 0 {
            m.publish_bytes_sent.add(payload);
        }
    }
}
