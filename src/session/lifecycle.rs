//! Attaching to a connection and leaving it; the will, the session's expiry and the keep alive.

use super::actions::{Actions, CloseCause, Effect, Leftover, Loss};
use super::connect::{Pending, Settings, expires_at};
use super::inflight::Stage;
use super::{Conn, Session, limits};
use crate::clock::Time;
use crate::mqtt::Message;
use crate::mqtt::message::Parts;
use crate::topic::{InboundAliases, OutboundAliases};
use crate::user::Author;
use std::num::NonZeroU64;
use std::sync::Arc;

/// How long at least the will of a session waits that was handed to another node, seconds. Its client has to come back there.
const HANDED_OVER_WILL_S: u32 = 30;

/// A will waiting for its connection to be lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Will {
    /// The message, without expiry.
    pub message: Message,
    /// Will delay interval, seconds.
    pub delay_s: u32,
    /// Message expiry interval, seconds from the publication of the will on.
    pub message_expiry_s: Option<u32>,
    /// Who has left it; `None` = not known.
    pub author: Option<Arc<Author>>,
}

impl Will {
    fn due(&self, now: Time) -> Message {
        let expires_at = expires_at(self.message_expiry_s, now);
        if expires_at.is_none() {
            return self.message.clone();
        }
        Message::new(Parts { expires_at, ..self.message.parts() })
    }
}

/// The deadlines of a session. At any time one is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// Nothing was heard for one and a half times the keep alive (section 3.1.2.10).
    KeepAlive,
    /// The will is due (section 3.1.3.2.2).
    Will,
    /// The session expires (section 3.1.2.11.2).
    Expiry,
}

impl Session {
    /// Takes a new connection. The CONNACK must be written before this is called.
    pub fn attach(&mut self, s: &Settings, now: Time, out: &mut Actions) {
        self.expiry_s = s.expiry_s;
        self.detached_at = None;
        self.will = s.will.clone().map(Box::new);
        self.conn = Some(Box::new(Conn {
            version: s.version,
            bridge: s.bridge,
            limits: s.limits,
            keep_alive_ms: u64::from(s.silence_s()) * 1000,
            heard_at: now,
            problem_information: s.problem_information,
            maximum_packet_size: s.maximum_packet_size,
            aliases_in: InboundAliases::new(s.limits.topic_alias_maximum),
            aliases_out: OutboundAliases::new(s.topic_alias_maximum.min(limits::OUTBOUND_ALIASES)),
            pending: Pending::default(),
            closed: false,
        }));
        self.resume_outbound(s.send_quota, now, out);
    }

    /// Leaves its connection: the will is deleted, due or waits; the session ends, or waits for its client.
    pub fn detach(&mut self, cause: CloseCause, now: Time, out: &mut Actions) {
        if self.conn.take().is_none() {
            return;
        }
        if matches!(cause, CloseCause::Disconnected | CloseCause::Evicted) {
            self.will = None;
        }
        self.detached_at = Some(now);
        self.inbound.detach();
        // The server may defer wills at its own shutdown until it is back (3.1.1 section 3.1.2.5).
        if cause == CloseCause::HandedOver {
            match &mut self.will {
                // Its client was told to come back elsewhere, and needs a while for it.
                Some(will) if self.expiry_s > 0 => will.delay_s = will.delay_s.max(HANDED_OVER_WILL_S),
                _ => self.will = None, // nobody has this session after us, and its client did nothing wrong
            }
        }
        if !cause.keeps_will() {
            self.fire_due(now, out);
        }
        // Whether it is this broker's to end is known when it is back, or knows more.
        if self.expiry_s == 0 && !matches!(cause, CloseCause::ShuttingDown | CloseCause::NotServing) {
            out.effects.push(Effect::End);
            return;
        }
        if self.durable {
            for e in self.outbound.inflight.iter_mut().filter(|e| e.seq.is_some()) {
                e.delivery = None; // the journal has it
            }
            self.outbound.inflight.shrink();
        }
        out.effects.push(Effect::Save);
    }

    /// What is still to be sent and can be had from the journal again, in order and with its bytes; messages without a
    /// number are dropped.
    pub fn park(&mut self, out: &mut Actions) -> Vec<(NonZeroU64, usize)> {
        let ready = std::mem::take(&mut self.outbound.ready);
        let mut seqs = Vec::with_capacity(ready.len());
        for d in ready {
            match d.seq {
                Some(seq) => seqs.push((seq, d.size())),
                None => out.effects.push(Effect::Dropped(Loss::Offline)),
            }
        }
        seqs
    }

    /// A dormant session as the journal had it.
    pub fn recovered(
        expiry_s: u32,
        detached_at: Time,
        will: Option<Will>,
        inbound: &[u16],
        outbound: impl Iterator<Item = (u16, NonZeroU64, bool)>,
    ) -> Session {
        let mut s = Session::new(true);
        s.expiry_s = expiry_s;
        s.detached_at = Some(detached_at);
        s.will = will.map(Box::new);
        s.inbound.recover(inbound);
        s.outbound.recover(outbound);
        s
    }

    /// Inbound QoS 2 packet identifiers in use, ascending.
    pub fn inbound_ids(&self) -> Vec<u16> {
        self.inbound.ids()
    }

    /// Journaled messages in flight `(packet_id, seq, released)`, in the order in which they were first sent.
    pub fn outbound_steps(&self) -> Vec<(u16, NonZeroU64, bool)> {
        let released = |stage| matches!(stage, Stage::Releasing | Stage::Released);
        let steps = self.outbound.inflight.iter();
        steps.filter_map(|e| Some((e.packet_id, e.seq?, released(e.stage)))).collect()
    }

    /// The will goes, unpublished.
    pub fn forget_will(&mut self) {
        self.will = None;
    }

    /// A dormant session that nobody has been connected to yet.
    pub fn unused(durable: bool, expiry_s: u32, now: Time) -> Session {
        let mut s = Session::new(durable);
        (s.expiry_s, s.detached_at) = (expiry_s, Some(now));
        s
    }

    /// Everything the session held, for whoever ends it.
    pub fn take_leftovers(&mut self) -> Vec<Leftover> {
        let ready = std::mem::take(&mut self.outbound.ready);
        let begun = self.outbound.inflight.take().map(|e| Leftover {
            seq: e.seq,
            begun: true,
            released: matches!(e.stage, Stage::Releasing | Stage::Released),
            delivery: e.delivery,
        });
        let waiting = ready.into_iter().map(|d| Leftover {
            seq: d.seq,
            delivery: Some(d),
            begun: false,
            released: false,
        });
        begun.chain(waiting).collect()
    }

    /// The will that is still to be published, if any.
    pub fn will(&self) -> Option<&Will> {
        self.will.as_deref()
    }

    /// When the connection ended; `None` while attached.
    pub fn detached_at(&self) -> Option<Time> {
        self.detached_at
    }

    /// The deadlines of a dormant session are later by so much.
    pub fn put_off(&mut self, ms: u64) {
        self.detached_at = self.detached_at.map(|at| at.plus_ms(ms));
    }

    fn deadlines(&self) -> [Option<(Time, Timer)>; 3] {
        if let Some(c) = self.conn.as_ref() {
            let at = (c.keep_alive_ms > 0).then(|| c.heard_at.plus_ms(c.keep_alive_ms * 3 / 2));
            return [at.map(|t| (t, Timer::KeepAlive)), None, None];
        }
        let Some(since) = self.detached_at else { return [None; 3] };
        let end = (self.expiry_s < u32::MAX).then(|| since.plus_secs(u64::from(self.expiry_s)));
        let will = self.will.as_ref().map(|w| {
            let at = since.plus_secs(u64::from(w.delay_s));
            end.map_or(at, |e| at.min(e))
        });
        // The will before the end: a session that ends takes its will along otherwise.
        [will.map(|t| (t, Timer::Will)), end.map(|t| (t, Timer::Expiry)), None]
    }

    /// When [`super::Input::Timeout`] (attached) or [`Session::wake`] (dormant) is due next.
    pub fn next_timeout(&self) -> Option<Time> {
        self.deadlines().into_iter().flatten().map(|(t, _)| t).min()
    }

    /// The client has given a sign of life other than a packet, or was not listened to until `now`.
    pub fn heard(&mut self, now: Time) {
        if let Some(c) = self.conn.as_mut() {
            c.heard_at = now;
        }
    }

    /// The keep alive in force, milliseconds; `None` = off, or no connection.
    pub fn keep_alive_ms(&self) -> Option<u64> {
        self.conn.as_ref().map(|c| c.keep_alive_ms).filter(|ms| *ms > 0)
    }

    pub(super) fn timeout(&mut self, now: Time, out: &mut Actions) {
        let late =
            self.deadlines().into_iter().flatten().any(|(t, timer)| timer == Timer::KeepAlive && t <= now);
        if late {
            self.close(
                CloseCause::KeepAlive,
                Some("nothing heard within one and a half times the keep alive"),
                out,
            );
        }
    }

    /// A dormant session's time has come: its will may be due, or its end.
    pub fn wake(&mut self, now: Time, out: &mut Actions) {
        if self.conn.is_some() {
            return;
        }
        self.fire_due(now, out);
        let over =
            self.deadlines().into_iter().flatten().any(|(t, timer)| timer == Timer::Expiry && t <= now);
        if over {
            out.effects.push(Effect::End);
        }
    }

    /// The session is ended from outside (clean start, kick): its will is due if it was waiting (section 3.1.3.2.2).
    pub fn end(&mut self, now: Time, out: &mut Actions) {
        if let Some(will) = self.will.take() {
            out.effects.push(Effect::Will(will.due(now)));
        }
        out.effects.push(Effect::End);
    }

    fn fire_due(&mut self, now: Time, out: &mut Actions) {
        let due = self.deadlines().into_iter().flatten().any(|(t, timer)| timer == Timer::Will && t <= now);
        if due && let Some(will) = self.will.take() {
            out.effects.push(Effect::Will(will.due(now)));
        }
    }
}
