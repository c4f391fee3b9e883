//! One MQTT session as a pure state machine: packets, deliveries and answers go in, bytes and effects come out.
//!
//! It never does I/O, reads a clock, takes a lock or waits. What must be safe before a packet leaves is a question
//! of type here: [`Session::handle`] emits an [`Effect`] with a [`Token`], and the packet is written only when the
//! [`Input`] with that token comes back. An acknowledgement before safety cannot be written by accident.

mod actions;
pub mod connect;
mod inbound;
mod inflight;
mod lifecycle;
pub mod limits;
mod outbound;
mod packet_ids;
#[cfg(test)]
mod tests;

pub use actions::{
    Actions, CloseCause, Delivery, Effect, Extra, Failure, FilterRequest, Input, Leftover, Loss, Outcome,
    SubscribeRequest, Token,
};
pub use connect::Settings;
pub use limits::Limits;

use crate::clock::Time;
use crate::mqtt::packet::Packet;
use crate::mqtt::{Reason, Version, encode};
use crate::topic::{InboundAliases, OutboundAliases};
use connect::Pending;
use inbound::Inbound;
pub use lifecycle::Will;
use outbound::Outbound;

/// One session, attached to a connection or dormant.
#[derive(Debug)]
pub struct Session {
    /// Whether the journal keeps this session's state. Fixed when the session is made.
    durable: bool,
    /// Session expiry interval, seconds; `u32::MAX` = never.
    expiry_s: u32,
    /// When the connection ended; `None` while attached.
    detached_at: Option<Time>,
    will: Option<Box<Will>>,
    inbound: Inbound,
    outbound: Outbound,
    next_token: Token,
    conn: Option<Box<Conn>>,
}

/// What lives as long as one connection.
#[derive(Debug)]
struct Conn {
    version: Version,
    /// Its client is a bridge: it gets nothing back that it publishes, and RETAIN as published.
    bridge: bool,
    limits: Limits,
    keep_alive_ms: u64,
    heard_at: Time,
    problem_information: bool,
    maximum_packet_size: u32,
    aliases_in: InboundAliases,
    aliases_out: OutboundAliases,
    pending: Pending,
    closed: bool,
}

impl Session {
    /// A new session. `durable` says whether the journal keeps its state (expiry above 0).
    pub fn new(durable: bool) -> Session {
        Session {
            durable,
            expiry_s: 0,
            detached_at: None,
            will: None,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            next_token: 1,
            conn: None,
        }
    }

    /// Whether the journal keeps this session's state.
    pub fn durable(&self) -> bool {
        self.durable
    }

    /// Session expiry interval, seconds; `u32::MAX` = never.
    pub fn expiry_s(&self) -> u32 {
        self.expiry_s
    }

    /// The version of the attached connection.
    pub fn version(&self) -> Option<Version> {
        self.conn.as_ref().map(|c| c.version)
    }

    fn token(&mut self) -> Token {
        let t = self.next_token;
        self.next_token += 1;
        t
    }

    /// Feeds one input. Does nothing once the connection is closed.
    pub fn handle(&mut self, input: Input<'_>, now: Time, out: &mut Actions) {
        if self.conn.as_ref().is_none_or(|c| c.closed) {
            return;
        }
        match input {
            Input::Packet(packet) => self.packet(packet, now, out),
            Input::Deliver(delivery) => self.deliver(delivery, now, out),
            Input::Published { token, outcome } => self.published(token, outcome, out),
            Input::Subscribed { token, codes } => self.subscribed(token, &codes, out),
            Input::Unsubscribed { token, codes } => self.unsubscribed(token, &codes, out),
            Input::Durable { token } => self.recorded(token, now, out),
            Input::Loaded(found) => self.loaded(found, now, out),
            Input::Timeout => self.timeout(now, out),
        }
    }

    fn packet(&mut self, packet: Packet<'_>, now: Time, out: &mut Actions) {
        if let Some(c) = self.conn.as_mut() {
            c.heard_at = now;
        }
        match packet {
            // Of a connection before this one: what they answer is about to be sent again.
            Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) if self.outbound.resuming() => {}
            Packet::Publish(p) => self.publish(&p, now, out),
            Packet::PubAck(a) => self.puback(a, now, out),
            Packet::PubRec(a) => self.pubrec(a, now, out),
            Packet::PubRel(a) => self.pubrel(a, out),
            Packet::PubComp(a) => self.pubcomp(a, now, out),
            Packet::Subscribe(s) => self.subscribe(&s, out),
            Packet::Unsubscribe(u) => self.unsubscribe(&u, out),
            Packet::PingReq => encode::pingresp(out.packet()),
            Packet::Disconnect(d) => self.disconnect(&d, out),
            Packet::Auth(_) => {
                self.fail(Reason::ProtocolError, "AUTH without an authentication method in CONNECT", out);
            }
            Packet::Connect(_) => self.fail(Reason::ProtocolError, "a second CONNECT", out),
        }
    }

    /// Ends the connection because of what the client did: DISCONNECT with `reason` for MQTT 5, then close.
    pub fn fail(&mut self, reason: Reason, why: &str, out: &mut Actions) {
        self.close(CloseCause::Refused(reason), Some(why), out);
    }

    /// Ends the connection for `cause`. MQTT 5 clients are told the reason if there is one to tell.
    pub fn close(&mut self, cause: CloseCause, why: Option<&str>, out: &mut Actions) {
        self.close_with(cause, why, None, out);
    }

    /// Ends the connection for `cause` and tells an MQTT 5 client where to go (section 4.13).
    pub fn close_and_refer(&mut self, cause: CloseCause, reference: &str, out: &mut Actions) {
        self.close_with(cause, None, Some(reference), out);
    }

    fn close_with(
        &mut self,
        cause: CloseCause,
        why: Option<&str>,
        reference: Option<&str>,
        out: &mut Actions,
    ) {
        let Some(conn) = self.conn.as_mut() else { return };
        if conn.closed {
            return;
        }
        conn.closed = true;
        if let (Version::V5, Some(reason)) = (conn.version, cause.told()) {
            let said = why.filter(|_| conn.problem_information);
            let start = out.wire.len();
            encode::disconnect(out.packet(), reason, said, reference, None);
            if out.wire.len() - start > conn.maximum_packet_size as usize {
                out.take_back(start);
                encode::disconnect(out.packet(), reason, None, None, None);
            }
        }
        out.effects.push(Effect::Close { cause, why: why.map(Into::into) });
    }

    /// Whether more packets may be read now; MQTT 3 clients feel the receive maximum as back-pressure.
    pub fn wants_packets(&self) -> bool {
        self.conn.as_ref().is_some_and(|c| {
            self.inbound.under_way() < usize::from(c.limits.receive_maximum) * 2
                && c.pending.requests.len() < limits::PENDING_REQUESTS + usize::from(c.limits.receive_maximum)
        })
    }

    /// Whether more deliveries may be handed over now: the window of messages ready to send has room.
    pub fn wants_deliveries(&self) -> bool {
        self.outbound.ready_for_more()
    }

    /// Messages handed to this session that the client has not settled.
    pub fn load(&self) -> usize {
        self.outbound.load()
    }
}
