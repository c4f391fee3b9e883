//! One client's protocol endpoint without a socket: bytes in, bytes out, and what happens in between.
//!
//! The owner (a connection task, or a test in virtual time) calls [`Channel::drive`] with its socket when woken, when the socket is
//! ready or when [`Channel::next_timeout`] has come. A channel never waits.

mod arriving;
mod connect;
mod drive;
mod effects;
mod exchange;
mod held;
mod open;
mod terms;
mod waiting;

use super::quotas::UserPlace;
use super::{Admission, Node};
use crate::broker::delivery::Scratch;
use crate::broker::handle::Handle;
use crate::broker::retained::Found;
use crate::broker::subscribe::RetainedRequest;
use crate::clock::Time;
use crate::cluster::Cache;
use crate::mqtt::decode::{self, DecodeError};
use crate::mqtt::{Reason, Version};
use crate::ports::{Door, Identity};
use crate::session::{self, Actions, CloseCause, Delivery, Session};
use crate::telemetry::metrics::ErrorType;
use arriving::Arriving;
pub use arriving::{CONNECT_BYTES_MAX, SMALL_PACKET_MAX};
use connect::{Connecting, Leaving};
use drive::{Blocked, Leave};
pub use drive::{Broken, Driven, ROUNDS_MAX, Read, Socket, TURN_BYTES_MAX};
use held::Held;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
pub use terms::Terms;
use waiting::Waiting;

/// Bytes waiting for the client beyond which no more messages are produced for it.
pub const WIRE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of answers waiting for the client behind the last message, beyond which nothing more is read from it. Messages do not
/// count, however large they are: a client is heard while more of them wait for it than it takes.
pub const ANSWER_BYTES_MAX: usize = 192 * 1024;

/// Why a client is let go that takes nothing.
const WRITE_TIMED_OUT: &str = "the client took no byte of what was written for it (limits.write_timeout)";

/// Why a client is let go that begins a packet and does not end it.
const PACKET_TIMED_OUT: &str = "a packet took too long to arrive (limits.packet_timeout)";

/// Why a client is let go whose certificate was good when it came.
const DISTRUSTED: &str = "the client's certificate was revoked, or its authority is not trusted any more";

/// Numbers of journaled messages read at a time for one client.
const READ_BATCH_MAX: usize = 128;

/// One client's end of the protocol, without a socket: bytes in, bytes out, and what happens in between.
#[derive(Debug)]
pub struct Channel {
    node: Arc<Node>,
    door: Arc<Door>,
    state: State,
    /// The beginning of a packet, or packets that must wait.
    partial: Vec<u8>,
    /// The packet that `partial` is the beginning of.
    arriving: Option<Box<Arriving>>,
    /// Nothing more comes from the client.
    ended: bool,
    /// The client gets nothing more.
    broken: bool,
    /// Set while the client may not have taken all that was written for it.
    blocked: Option<Blocked>,
    /// Since when it is not read, if that has not been made up for yet.
    unread_since: Option<Time>,
    /// Since when it is known that CONNECT did not come in time, while there may be more to read.
    late_since: Option<Time>,
    /// Bytes that its socket has taken, and of these those before it was looked last whether it had taken them.
    written_bytes: u64,
    looked_bytes: u64,
    /// See [`Actions::sent`] and [`Actions::messages_end`], between two turns.
    sent: usize,
    messages_end: usize,
    counts: Counts,
    /// PUBLISH packets that came.
    messages_in: u64,
    /// What its listener has agreed on for it; `None` = the node's own terms.
    terms: Option<Arc<Terms>>,
    /// There are too many connections: CONNECT will be refused.
    unwelcome: bool,
    /// The log has said why it is refused.
    said: bool,
    /// The next packet is a PUBLISH that waits for memory.
    held: Option<Box<Held>>,
}

#[derive(Debug)]
enum State {
    /// Nothing came yet; the channel is closed at this time.
    AwaitingConnect(Time),
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
    identity: Arc<Identity>,
    /// The version of the rules by which the session's deliveries were judged.
    judged: u64,
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
    /// Why and how the connection is to be closed, once what the client has said before is read.
    leave: Option<Box<Leave>>,
    /// The client gets nothing more: nothing is taken out of the mailbox for it.
    muted: bool,
    /// How it showed who it is, if by enhanced authentication; and again, if it is doing so.
    method: Option<Box<str>>,
    exchange: Option<Box<exchange::Exchange>>,
    /// Its place among the connections of its user.
    _place: Option<UserPlace>,
}

/// Retained messages still to be sent.
#[derive(Debug, Default)]
struct RetainedTodo {
    requests: VecDeque<RetainedRequest>,
    current: Option<(RetainedRequest, std::vec::IntoIter<Found>)>,
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

/// What a thread needs to run channels: buffers that are reused from call to call.
#[derive(Debug, Default)]
pub struct Context {
    /// Bytes and effects.
    pub actions: Actions,
    /// For the publish path.
    pub scratch: Scratch,
}

impl Channel {
    /// A channel to a client that has just connected through `door`.
    pub fn new(node: Arc<Node>, door: Arc<Door>, admission: Admission, now: Time) -> Channel {
        let deadline = now.plus_ms(node.broker.limits.connect_timeout_ms());
        Channel {
            node,
            door,
            state: State::AwaitingConnect(deadline),
            partial: Vec::new(),
            arriving: None,
            ended: false,
            broken: false,
            blocked: None,
            unread_since: None,
            late_since: None,
            written_bytes: 0,
            looked_bytes: 0,
            sent: 0,
            messages_end: 0,
            counts: Counts::default(),
            messages_in: 0,
            terms: None,
            unwelcome: admission != Admission::Serve,
            said: false,
            held: None,
        }
    }

    /// Puts the channel under the terms of its listener, for a client that was `accepted` earlier: the time for its CONNECT began then.
    #[must_use]
    pub fn under(mut self, terms: Arc<Terms>, accepted: Time) -> Channel {
        self.state = State::AwaitingConnect(accepted.plus_ms(self.node.broker.limits.connect_timeout_ms()));
        self.terms = Some(terms);
        self
    }

    /// The limits of its session.
    fn session_limits(&self) -> session::Limits {
        self.terms.as_ref().map_or(self.node.broker.limits.session(), |t| t.session)
    }

    /// Whether nothing has come from the client yet.
    pub fn awaits_connect(&self) -> bool {
        matches!(self.state, State::AwaitingConnect(_))
    }

    /// PUBLISH packets that came from the client.
    pub fn messages_in(&self) -> u64 {
        self.messages_in
    }

    /// Takes bytes from the client: any number, cut anywhere. Then call [`Channel::poll`].
    pub fn receive(&mut self, bytes: &[u8], waker: &Waker, now: Time, cx: &mut Context) {
        self.counts.bytes_in += bytes.len() as u64;
        let packets = self.counts.packets_in;
        if self.partial.is_empty() {
            let used = self.consume(bytes, waker, now, cx);
            if used < bytes.len() && !self.closed() {
                self.partial.extend_from_slice(&bytes[used..]);
            }
        } else {
            self.partial.extend_from_slice(bytes);
            self.consume_partial(waker, now, cx);
        }
        let completed = self.counts.packets_in > packets;
        if !self.partial.is_empty() || self.arriving.is_some() {
            self.note_arriving(bytes.len(), completed, self.takes_packets(cx), now);
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
            if self.holds_back(rest, used == 0, waker, now) {
                break;
            }
            let (version, maximum) = match &self.state {
                State::Open(o) => (Some(o.version), o.maximum_packet_size),
                // Only MQTT 5 has exchanges.
                State::Connecting(_) => {
                    (Some(Version::V5), self.session_limits().maximum_packet_size.min(CONNECT_BYTES_MAX))
                }
                _ => (None, self.session_limits().maximum_packet_size.min(CONNECT_BYTES_MAX)),
            };
            let frame =
                match decode::first_or_later(version, rest).and_then(|()| decode::frame_len(rest, maximum)) {
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
            State::AwaitingConnect(_) => true,
            State::Open(o) => {
                o.closing.is_none()
                    && !self.waits_for_memory()
                    && o.session.wants_packets()
                    && cx.actions.answers() < ANSWER_BYTES_MAX
                    && (o.waiting.is_empty() || !self.node.publishers_pause())
            }
            State::Connecting(c) => c.listens(),
            State::Leaving(_) | State::Closed => false,
        }
    }

    /// Whether the owner should read from the socket. While it should not, what the client sends waits in the kernel.
    fn wants_read(&self, cx: &Context) -> bool {
        match &self.state {
            State::AwaitingConnect(_) => !self.waits_for_room(),
            State::Connecting(c) => c.listens() || self.partial.is_empty(),
            State::Open(o) => {
                o.closing.is_none()
                    && !self.waits_for_memory()
                    && cx.actions.answers() < ANSWER_BYTES_MAX
                    && !self.waits_for_room()
                    && o.session.wants_packets()
                    && (o.waiting.is_empty()
                        || !self.node.broker.journal.congested() && !self.node.publishers_pause())
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
            State::AwaitingConnect(_) | State::Connecting(_) => {}
            State::Open(_) => {
                self.poll_open(waker, now, cx);
                self.look_at_memory(waker, now);
                let packets = self.counts.packets_in;
                while !self.partial.is_empty() && self.takes_packets(cx) {
                    let before = self.partial.len();
                    self.consume_partial(waker, now, cx);
                    if self.partial.len() == before {
                        break; // the beginning of a packet
                    }
                    self.poll_open(waker, now, cx); // what these packets asked for must be given or waited for
                }
                let completed = self.counts.packets_in > packets;
                if completed || (!self.partial.is_empty() && self.arriving.is_none()) {
                    self.note_arriving(self.partial.len(), completed, self.takes_packets(cx), now);
                }
            }
            State::Leaving(l) => {
                if l.done(self.node.broker.journal.durable(), now) {
                    self.state = State::Closed;
                } else {
                    self.node.broker.journal.wake_at(l.lsn, waker);
                }
            }
            State::Closed => {}
        }
        self.take_room(Some(waker));
        self.count(cx);
    }

    /// The owner has written to the socket what it took. Whoever is being closed has had its goodbye now: what it did not take it
    /// never gets, since after this another connection may have the session, and nothing is written to two (G1).
    fn written(&mut self, waker: &Waker, now: Time, cx: &mut Context) {
        if let State::Open(open) = &self.state
            && let Some(cause) = open.closing
        {
            cx.actions.forget_wire();
            self.leave(cause, now, cx);
            self.poll(waker, now, cx);
        }
    }

    /// When [`Channel::poll`] must be called next, even if nothing wakes it.
    pub fn next_timeout(&self) -> Option<Time> {
        let limit = self.node.broker.limits.publish_timeout_ms();
        match &self.state {
            State::AwaitingConnect(deadline) => Some(*deadline),
            State::Connecting(c) => c.deadline(),
            State::Open(o) => {
                let waiting = o.waiting.since().map(|t| t.plus_ms(limit));
                // Nobody waits any more for a client that has closed its side to say something.
                let keep_alive = o.session.next_timeout().filter(|_| !self.ended);
                let arriving = self.arriving.as_ref().map(|a| a.deadline).filter(|_| !self.ended);
                let account = o.identity.account.expires_at;
                [waiting, keep_alive, arriving, account, self.look_at(), self.trickles_at()]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Leaving(l) => Some(l.deadline),
            State::Closed => None,
        }
    }

    /// The network connection is gone, and all that came over it has been handled.
    pub fn lost(&mut self, now: Time, cx: &mut Context) {
        match &mut self.state {
            // Whoever was being closed already is not lost: a client that said goodbye may be gone before it is answered.
            State::Open(open) => {
                let leaves = open.leave.as_ref().map(|l| l.cause());
                let cause = open.closing.or(leaves).unwrap_or(CloseCause::Lost);
                self.leave(cause, now, cx);
            }
            State::Connecting(_) => self.abandon(now, cx),
            State::AwaitingConnect(_) | State::Leaving(_) | State::Closed => {}
        }
        self.state = State::Closed;
        self.forget_partial();
        self.count(cx);
    }

    /// What came of a packet is not needed any more.
    fn forget_partial(&mut self) {
        self.partial = Vec::new();
        self.arriving = None;
    }

    /// The node shuts down: the client is told, its session kept.
    pub fn shut_down(&mut self, now: Time, cx: &mut Context) {
        match &mut self.state {
            State::Open(o) if o.closing.is_none() => {
                o.leave.get_or_insert_with(|| Leave::new(CloseCause::ShuttingDown, None, None));
                o.muted = true;
            }
            State::Connecting(_) => self.refuse_connecting(Reason::ServerShuttingDown, now, cx),
            State::AwaitingConnect(_) => self.state = State::Closed,
            State::Open(_) | State::Leaving(_) | State::Closed => {}
        }
        self.count(cx);
    }

    /// Closes the channel because this node may not serve clients any more: the client is told at once, and nothing else; its session is
    /// kept.
    pub fn stop_serving(&mut self, now: Time, cx: &mut Context) {
        cx.actions.forget_wire();
        (self.sent, self.messages_end) = (0, 0);
        match &mut self.state {
            State::Open(o) if o.closing.is_none() => {
                o.session.close(CloseCause::NotServing, None, &mut cx.actions);
                self.run_effects(now, cx);
            }
            State::Open(_) | State::AwaitingConnect(_) | State::Leaving(_) | State::Closed => {}
            State::Connecting(_) => self.refuse_connecting(Reason::ServerUnavailable, now, cx),
        }
        self.count(cx);
    }

    /// The client's certificate is not good any more: it is told at once, and nothing else; its session is kept.
    pub fn distrust(&mut self, now: Time, cx: &mut Context) {
        cx.actions.forget_wire();
        (self.sent, self.messages_end) = (0, 0);
        match &mut self.state {
            State::Open(o) if o.closing.is_none() => {
                o.session.close(
                    CloseCause::Refused(Reason::NotAuthorized),
                    Some(DISTRUSTED),
                    &mut cx.actions,
                );
                self.run_effects(now, cx);
            }
            State::Connecting(_) => self.refuse_connecting(Reason::NotAuthorized, now, cx),
            State::AwaitingConnect(_) => self.state = State::Closed,
            State::Open(_) | State::Leaving(_) | State::Closed => {}
        }
        self.count(cx);
    }

    /// Whether the client sends nothing more: it has closed its side, or the connection is broken.
    pub fn ended(&self) -> bool {
        self.ended || self.broken
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
                self.node.broker.metrics.errors.of(ErrorType::from_code(e.reason() as u8)).inc();
                self.refuse_bytes(e, version, cx);
            }
        }
    }

    fn count(&mut self, cx: &mut Context) {
        let c = std::mem::take(&mut self.counts);
        let m = &self.node.broker.metrics;
        if c.bytes_in > 0 {
            m.bytes_received.add(c.bytes_in);
            m.packets_received.add(c.packets_in);
        }
        for (at, qos) in [0u8, 1, 2].into_iter().enumerate() {
            if c.publishes_in[at] > 0 {
                self.messages_in += c.publishes_in[at];
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
