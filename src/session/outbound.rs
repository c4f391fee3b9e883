//! To the client: deliveries, flow control, resending and the acknowledgements of the client (MQTT 5.0 sections 4.3, 4.4, 4.9).

use super::actions::{Actions, Delivery, Effect, Loss, remaining_s};
use super::connect::Request;
use super::inflight::{Entry, Inflight, Stage};
use super::limits::READY_WINDOW;
use super::packet_ids::PacketIds;
use super::{Conn, Session};
use crate::clock::Time;
use crate::mqtt::encode::{self, AckKind, Alias, PublishOut};
use crate::mqtt::packet::Ack;
use crate::mqtt::{QoS, Reason};
use crate::topic::AliasUse;
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// Messages to the client.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub(super) inflight: Inflight,
    /// QoS 1 and 2 messages ready to go once the client has room.
    pub(super) ready: VecDeque<Delivery>,
    packet_ids: PacketIds,
    quota: u16,
    /// Messages in flight are being read back; nothing else is sent before them.
    resuming: bool,
    /// Messages in flight that are held; nothing else is sent before them.
    held: usize,
}

impl Outbound {
    pub(super) fn load(&self) -> usize {
        self.inflight.len() + self.ready.len()
    }

    /// Whether messages in flight are still being read back from the journal.
    pub(super) fn resuming(&self) -> bool {
        self.resuming
    }

    pub(super) fn ready_for_more(&self) -> bool {
        !self.resuming && self.ready.len() < READY_WINDOW
    }

    fn next_packet_id(&mut self) -> Option<u16> {
        let inflight = &self.inflight;
        self.packet_ids.next(|| inflight.iter().map(|e| e.packet_id))
    }

    /// What the journal had of a session: `(packet_id, seq, released)` in order.
    pub(super) fn recover(&mut self, steps: impl Iterator<Item = (u16, NonZeroU64, bool)>) {
        for (packet_id, seq, released) in steps {
            // Only the journal knows the QoS of a PUBLISH that was not released; it is set when the message is read back.
            let stage = if released { Stage::Released } else { Stage::Sent };
            self.inflight.push(Entry {
                packet_id,
                qos: QoS::ExactlyOnce,
                stage,
                seq: Some(seq),
                held: false,
                delivery: None,
            });
        }
        let inflight = &self.inflight;
        self.packet_ids.resume(inflight.iter().map(|e| e.packet_id));
    }
}

impl Session {
    /// Resends what is in flight, in order; reads it back from the journal first if it is not here.
    pub(super) fn resume_outbound(&mut self, quota: u16, now: Time, out: &mut Actions) {
        self.outbound.quota = quota;
        self.outbound.resuming = false; // a connection before this one may have ended while it was
        let missing: Vec<u64> = self
            .outbound
            .inflight
            .iter()
            .filter(|e| e.delivery.is_none() && matches!(e.stage, Stage::Recording | Stage::Sent))
            .filter_map(|e| e.seq.map(NonZeroU64::get))
            .collect();
        if missing.is_empty() {
            return self.resend(now, out);
        }
        self.outbound.resuming = true;
        out.effects.push(Effect::Load(missing));
    }

    pub(super) fn loaded(&mut self, found: Vec<Delivery>, now: Time, out: &mut Actions) {
        if !self.outbound.resuming {
            return;
        }
        self.outbound.resuming = false;
        let mut found = found.into_iter().peekable();
        for e in self.outbound.inflight.iter_mut() {
            if e.delivery.is_none() && e.seq.is_some() && found.peek().is_some_and(|d| d.seq == e.seq) {
                e.delivery = found.next();
                e.qos = e.delivery.as_ref().map_or(e.qos, |d| d.qos);
            }
        }
        // What the journal no longer holds was settled.
        self.outbound
            .inflight
            .retain(|e| e.delivery.is_some() || matches!(e.stage, Stage::Releasing | Stage::Released));
        self.resend(now, out);
    }

    /// Sends what is in flight again, as much of it as the receive maximum of this connection allows at once (section 4.9).
    fn resend(&mut self, now: Time, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        self.outbound.held = 0;
        for e in self.outbound.inflight.iter_mut() {
            e.held = e.delivery.is_some() && matches!(e.stage, Stage::Recording | Stage::Sent);
            if e.held {
                self.outbound.held += 1;
            } else {
                e.stage = Stage::Released;
                encode::ack(out.packet(), conn.version, AckKind::PubRel, e.packet_id, Reason::Success, None);
            }
        }
        self.send_held(usize::from(self.outbound.quota), now, out);
        self.send_ready(now, out);
    }

    /// Sends at most `room` of the messages that are held, in order.
    fn send_held(&mut self, mut room: usize, now: Time, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        let mut too_large = Vec::new();
        for e in self.outbound.inflight.iter_mut().filter(|e| e.held) {
            if room == 0 {
                break;
            }
            e.held = false;
            self.outbound.held -= 1;
            let dup = e.stage == Stage::Sent;
            e.stage = Stage::Sent;
            match &e.delivery {
                Some(d) if conn.write_publish(d, e.packet_id, dup, now, out) => room -= 1,
                _ => too_large.push(e.packet_id),
            }
        }
        for packet_id in too_large {
            self.finish(packet_id, out);
        }
    }

    pub(super) fn deliver(&mut self, delivery: Delivery, now: Time, out: &mut Actions) {
        if delivery.qos == QoS::AtMostOnce {
            let Some(conn) = self.conn.as_mut() else { return };
            if delivery.message.expired(now) {
                out.effects.push(Effect::Dropped(Loss::Expired));
            } else if conn.write_publish(&delivery, 0, false, now, out) {
                out.effects.push(Effect::Sent(QoS::AtMostOnce));
            }
            // The journal has it if it was queued at a higher QoS than the client may have now.
            out.effects.extend(delivery.seq.map(|seq| Effect::Settle { seq }));
        } else if self.outbound.ready.is_empty() && self.has_quota() {
            self.send(delivery, now, out);
        } else {
            self.outbound.ready.push_back(delivery);
        }
    }

    fn has_quota(&self) -> bool {
        !self.outbound.resuming
            && self.outbound.held == 0
            && self.outbound.inflight.len() < usize::from(self.outbound.quota)
    }

    /// Sends what is ready while the client has room.
    pub(super) fn send_ready(&mut self, now: Time, out: &mut Actions) {
        if self.outbound.held > 0 {
            let under_way = self.outbound.inflight.len() - self.outbound.held;
            self.send_held(usize::from(self.outbound.quota).saturating_sub(under_way), now, out);
        }
        while self.has_quota()
            && let Some(delivery) = self.outbound.ready.pop_front()
        {
            match delivery.qos {
                QoS::AtMostOnce => self.deliver(delivery, now, out),
                QoS::AtLeastOnce | QoS::ExactlyOnce => self.send(delivery, now, out),
            }
        }
    }

    /// Has `judge` look at what waits for the client's room, and says whether it was sent on an earlier connection. What it returns
    /// takes the place of the message; a message of which it returns nothing is not sent, and settled by the judge.
    pub fn judge_again(&mut self, mut judge: impl FnMut(Delivery, bool) -> Option<Delivery>) {
        let Outbound { inflight, held, ready, .. } = &mut self.outbound;
        let waiting: Vec<u16> = inflight.iter().filter(|e| e.held).map(|e| e.packet_id).collect();
        for packet_id in waiting {
            let Some(entry) = inflight.get_mut(packet_id) else { continue };
            match entry.delivery.take().and_then(|d| judge(d, true)) {
                Some(d) => (entry.qos, entry.delivery) = (d.qos, Some(d)),
                None => {
                    inflight.remove(packet_id);
                    *held -= 1;
                }
            }
        }
        *ready = std::mem::take(ready).into_iter().filter_map(|d| judge(d, false)).collect();
    }

    /// Sends what is ready while the client has room, which it may have since [`Session::judge_again`].
    pub fn send_more(&mut self, now: Time, out: &mut Actions) {
        if self.conn.as_ref().is_some_and(|c| !c.closed) {
            self.send_ready(now, out);
        }
    }

    fn send(&mut self, delivery: Delivery, now: Time, out: &mut Actions) {
        let seq = delivery.seq;
        if delivery.message.expired(now) {
            out.effects.push(Effect::Dropped(Loss::Expired));
            out.effects.extend(seq.map(|seq| Effect::Settle { seq }));
            return;
        }
        let Some(packet_id) = self.outbound.next_packet_id() else {
            self.outbound.ready.push_front(delivery);
            return;
        };
        let qos = delivery.qos;
        let recorded = seq.filter(|_| self.durable);
        let Some(conn) = self.conn.as_mut() else { return };
        let mut stage = Stage::Sent;
        if let Some(seq) = recorded.filter(|_| qos == QoS::ExactlyOnce || self.outbound.inflight.recording())
        {
            stage = Stage::Recording;
            let token = self.next_token;
            self.next_token += 1;
            conn.pending.push(token, Request::Publish(packet_id));
            out.effects.push(Effect::Outbound { token: Some(token), packet_id, seq, released: false });
        } else {
            if !conn.write_publish(&delivery, packet_id, false, now, out) {
                out.effects.extend(seq.map(|seq| Effect::Settle { seq }));
                return;
            }
            if let Some(seq) = recorded {
                out.effects.push(Effect::Outbound { token: None, packet_id, seq, released: false });
            }
            out.effects.push(Effect::Sent(qos));
        }
        self.outbound.inflight.push(Entry {
            packet_id,
            qos,
            stage,
            seq,
            held: false,
            delivery: Some(delivery),
        });
    }

    /// What the effect with `token` recorded is durable: the packet that waited for it may go.
    pub(super) fn recorded(&mut self, token: u64, now: Time, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        let version = conn.version;
        match conn.pending.take(token) {
            Some(Request::PubComp(packet_id)) => {
                encode::ack(out.packet(), version, AckKind::PubComp, packet_id, Reason::Success, None);
            }
            Some(Request::Publish(packet_id)) => {
                let Some(entry) = self.outbound.inflight.get_mut(packet_id) else { return };
                let Some(delivery) = &entry.delivery else { return };
                entry.stage = Stage::Sent;
                if conn.write_publish(delivery, packet_id, false, now, out) {
                    out.effects.push(Effect::Sent(delivery.qos));
                } else {
                    self.finish(packet_id, out);
                    self.send_ready(now, out);
                }
            }
            Some(Request::PubRel(packet_id)) => {
                if let Some(entry) = self.outbound.inflight.get_mut(packet_id) {
                    entry.stage = Stage::Released;
                    encode::ack(out.packet(), version, AckKind::PubRel, packet_id, Reason::Success, None);
                }
            }
            Some(Request::SubAck(_) | Request::UnsubAck(_)) | None => {}
        }
    }

    pub(super) fn puback(&mut self, ack: Ack, now: Time, out: &mut Actions) {
        match self.outbound.inflight.get_mut(ack.packet_id).map(|e| (e.qos, e.stage)) {
            Some((QoS::AtLeastOnce, Stage::Sent)) => {
                if ack.reason as u8 >= 0x80 {
                    out.effects.push(Effect::Dropped(Loss::Refused));
                }
                self.finish(ack.packet_id, out);
                self.send_ready(now, out);
            }
            Some(_) => self.fail(Reason::ProtocolError, "PUBACK for a message that is not QoS 1", out),
            None => {} // a late one; harmless
        }
    }

    pub(super) fn pubrec(&mut self, ack: Ack, now: Time, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        let version = conn.version;
        let Some(entry) = self.outbound.inflight.get_mut(ack.packet_id) else {
            // PUBREL with 0x92 (MQTT 5) or plain (MQTT 3): the client forgets the identifier either way.
            let reason = Reason::PacketIdentifierNotFound;
            if (ack.reason as u8) < 0x80 {
                encode::ack(out.packet(), version, AckKind::PubRel, ack.packet_id, reason, None);
            }
            return;
        };
        match (entry.qos, entry.stage) {
            (QoS::ExactlyOnce, Stage::Sent) if ack.reason as u8 >= 0x80 => {
                out.effects.push(Effect::Dropped(Loss::Refused));
                self.finish(ack.packet_id, out);
                self.send_ready(now, out);
            }
            (QoS::ExactlyOnce, Stage::Sent) => {
                entry.delivery = None;
                self.outbound.held -= usize::from(std::mem::take(&mut entry.held));
                if let Some(seq) = entry.seq.filter(|_| self.durable) {
                    entry.stage = Stage::Releasing;
                    let token = self.next_token;
                    self.next_token += 1;
                    conn.pending.push(token, Request::PubRel(ack.packet_id));
                    let packet_id = ack.packet_id;
                    out.effects.push(Effect::Outbound { token: Some(token), packet_id, seq, released: true });
                } else {
                    entry.stage = Stage::Released;
                    encode::ack(out.packet(), version, AckKind::PubRel, ack.packet_id, Reason::Success, None);
                }
            }
            (QoS::ExactlyOnce, Stage::Releasing) => {}
            (QoS::ExactlyOnce, Stage::Released) => {
                encode::ack(out.packet(), version, AckKind::PubRel, ack.packet_id, Reason::Success, None);
            }
            _ => self.fail(Reason::ProtocolError, "PUBREC for a message that was not sent with QoS 2", out),
        }
    }

    pub(super) fn pubcomp(&mut self, ack: Ack, now: Time, out: &mut Actions) {
        match self.outbound.inflight.get_mut(ack.packet_id).map(|e| e.stage) {
            Some(Stage::Released) => {
                self.finish(ack.packet_id, out);
                self.send_ready(now, out);
            }
            Some(_) => self.fail(Reason::ProtocolError, "PUBCOMP before PUBREL", out),
            None => {}
        }
    }

    /// The message under `packet_id` is done for good.
    fn finish(&mut self, packet_id: u16, out: &mut Actions) {
        if let Some(entry) = self.outbound.inflight.remove(packet_id) {
            self.outbound.held -= usize::from(entry.held);
            out.effects.extend(entry.seq.map(|seq| Effect::Settle { seq }));
        }
    }
}

impl Conn {
    /// Writes a PUBLISH; false (and counted) if it does not fit the client's maximum packet size.
    fn write_publish(
        &mut self,
        d: &Delivery,
        packet_id: u16,
        dup: bool,
        now: Time,
        out: &mut Actions,
    ) -> bool {
        let mut p = PublishOut {
            version: self.version,
            message: &d.message,
            qos: d.qos,
            retain: d.retain,
            dup,
            packet_id,
            topic_alias: None,
            message_expiry_s: remaining_s(&d.message, now),
            subscription_ids: d.subscription_ids(),
        };
        // An alias takes three bytes more at its first use; the plain form decides whether the message fits.
        if self.maximum_packet_size < u32::MAX
            && encode::publish_len(&p) + 3 > self.maximum_packet_size as usize
        {
            if encode::publish_len(&p) > self.maximum_packet_size as usize {
                out.effects.push(Effect::Dropped(Loss::TooLarge(u64::from(self.maximum_packet_size))));
                return false;
            }
        } else {
            p.topic_alias = match self.aliases_out.assign(d.message.topic()) {
                AliasUse::None => None,
                AliasUse::Set(alias) => Some(Alias::Set(alias)),
                AliasUse::Use(alias) => Some(Alias::Use(alias)),
            };
        }
        encode::publish(out.packet(), &p);
        out.messages_end = out.wire.len();
        out.payload_bytes += d.message.payload().len() as u64;
        true
    }
}
