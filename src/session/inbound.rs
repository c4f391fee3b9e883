//! From the client: PUBLISH and PUBREL, SUBSCRIBE and UNSUBSCRIBE, DISCONNECT (MQTT 5.0 sections 3.3, 3.6, 3.8, 3.10, 3.14).
//!
//! Acknowledgements of publishes leave in the order of the publishes (section 4.6), whatever order the outcomes come in.

use super::Session;
use super::actions::{Actions, CloseCause, Effect, FilterRequest, Outcome, SubscribeRequest, Token};
use super::connect::{Request, expires_at};
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::encode::{self, AckKind};
use crate::mqtt::message::Parts;
use crate::mqtt::packet::{Ack, Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe};
use crate::mqtt::{Message, QoS, Reason, Version};
use crate::topic::{AliasError, OwnedFilter};
use std::collections::VecDeque;

/// A publish that came over an earlier connection is still under way.
const EARLIER: Token = Token::MAX;

/// Why a client is closed whose publish nobody can answer for.
const NOT_SAFE: &str = "the publish could not be stored safely";

/// Publishes from the client.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// Publishes without an acknowledgement yet, oldest first; tokens ascend.
    answers: VecDeque<Answer>,
    /// QoS 2 packet identifiers in use, with the token of a publish that is still under way (0 = none, or [`EARLIER`]).
    exactly_once: HashMap<u16, Token>,
}

#[derive(Debug)]
struct Answer {
    token: Token,
    packet_id: u16,
    qos: QoS,
    outcome: Option<Outcome>,
}

impl Inbound {
    /// Publishes whose outcome is open. Not those that wait for PUBREL: to hold back what the client says until it has said
    /// something would be for ever.
    pub(super) fn under_way(&self) -> usize {
        self.answers.len()
    }

    /// Whether the receive maximum is used up.
    fn exhausted(&self, maximum: u16) -> bool {
        let at_least_once = || self.answers.iter().filter(|a| a.qos == QoS::AtLeastOnce).count();
        self.answers.len() + self.exactly_once.len() >= usize::from(maximum)
            && at_least_once() + self.exactly_once.len() >= usize::from(maximum)
    }

    /// What a lost connection leaves: identifiers of publishes under way stay in use, their acknowledgements are void. Those
    /// that were refused, but not told so, have not happened.
    pub(super) fn detach(&mut self) {
        for answer in std::mem::take(&mut self.answers) {
            let refused = matches!(answer.outcome, Some(Outcome::Denied(_) | Outcome::Failed(_)));
            if refused && answer.qos == QoS::ExactlyOnce {
                self.exactly_once.remove(&answer.packet_id);
            }
        }
        self.exactly_once.values_mut().for_each(|t| *t = 0);
    }

    /// Packet identifiers of QoS 2 publishes in use, ascending.
    pub(super) fn ids(&self) -> Vec<u16> {
        let mut ids: Vec<u16> = self.exactly_once.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn recover(&mut self, packet_ids: &[u16]) {
        self.exactly_once.extend(packet_ids.iter().map(|id| (*id, 0)));
    }
}

impl Session {
    /// The outcome of a QoS 2 publish of an earlier connection is still open: a repetition is not answered before that is known
    /// ([`Effect::Repeated`]). After [`Session::attach`], before the first packet.
    pub fn still_under_way(&mut self, packet_id: u16) {
        if let Some(under_way) = self.inbound.exactly_once.get_mut(&packet_id) {
            *under_way = EARLIER;
        }
    }

    pub(super) fn publish(&mut self, p: &Publish<'_>, now: Time, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        let topic = match p.topic_alias {
            None => p.topic,
            Some(alias) => match conn.aliases_in.resolve(alias, p.topic) {
                Ok(topic) => topic,
                Err(e) => {
                    let reason = match e {
                        AliasError::OutOfRange(_) => Reason::TopicAliasInvalid,
                        AliasError::Unknown(_) => Reason::ProtocolError,
                        AliasError::NoSpace(_) => Reason::QuotaExceeded,
                    };
                    let why = e.to_string();
                    return self.fail(reason, &why, out);
                }
            },
        };
        if p.qos > conn.limits.maximum_qos {
            return self.fail(Reason::QoSNotSupported, "QoS above the announced maximum QoS", out);
        }
        if p.qos == QoS::ExactlyOnce
            && let Some(under_way) = self.inbound.exactly_once.get(&p.packet_id)
        {
            // A repetition: the first one counts. If its outcome is still open, that answers for both.
            match *under_way {
                0 => {
                    let (kind, reason) = (AckKind::PubRec, Reason::Success);
                    encode::ack(out.packet(), conn.version, kind, p.packet_id, reason, None);
                }
                EARLIER => {
                    let token = self.await_outcome(p.packet_id, p.qos);
                    out.effects.push(Effect::Repeated { token, packet_id: p.packet_id });
                }
                _ => {}
            }
            return;
        }
        if p.qos > QoS::AtMostOnce
            && conn.version.is_v5()
            && self.inbound.exhausted(conn.limits.receive_maximum)
        {
            return self.fail(
                Reason::ReceiveMaximumExceeded,
                "more publishes than the receive maximum allows",
                out,
            );
        }
        if let Err(e) = crate::topic::validate_name(topic) {
            let why = e.to_string();
            return self.fail(Reason::TopicNameInvalid, &why, out);
        }
        let message = Message::new(Parts {
            topic,
            payload: p.payload,
            properties: &p.properties.forwardable(),
            qos: p.qos,
            retain: p.retain,
            expires_at: expires_at(p.message_expiry_s, now),
        });
        if p.qos == QoS::AtMostOnce {
            out.effects.push(Effect::Publish { token: None, message, inbound: None });
            return;
        }
        let token = self.await_outcome(p.packet_id, p.qos);
        let inbound = (p.qos == QoS::ExactlyOnce && self.durable).then_some(p.packet_id);
        out.effects.push(Effect::Publish { token: Some(token), message, inbound });
    }

    /// The client is to be answered when the outcome of this publish is known.
    fn await_outcome(&mut self, packet_id: u16, qos: QoS) -> Token {
        let token = self.token();
        self.inbound.answers.push_back(Answer { token, packet_id, qos, outcome: None });
        if qos == QoS::ExactlyOnce {
            self.inbound.exactly_once.insert(packet_id, token);
        }
        token
    }

    pub(super) fn published(&mut self, token: Token, outcome: Outcome, out: &mut Actions) {
        let Some(front) = self.inbound.answers.front() else { return };
        // Tokens ascend but other requests take some too: start at the distance, walk back.
        let guess = usize::try_from(token.saturating_sub(front.token)).unwrap_or(usize::MAX);
        let mut at = guess.min(self.inbound.answers.len() - 1);
        while at > 0 && self.inbound.answers[at].token > token {
            at -= 1;
        }
        if self.inbound.answers[at].token != token {
            return;
        }
        self.inbound.answers[at].outcome = Some(outcome);
        while self.inbound.answers.front().is_some_and(|a| a.outcome.is_some()) {
            if self.conn.as_ref().is_none_or(|c| c.closed) {
                return; // one before it failed: this one must not be answered without it
            }
            if let Some(Answer { packet_id, qos, outcome: Some(outcome), .. }) =
                self.inbound.answers.pop_front()
            {
                self.answer(packet_id, qos, outcome, out);
            }
        }
    }

    fn answer(&mut self, packet_id: u16, qos: QoS, outcome: Outcome, out: &mut Actions) {
        let Some(conn) = self.conn.as_ref() else { return };
        let (version, wanted, maximum) = (conn.version, conn.problem_information, conn.maximum_packet_size);
        let mut why = None;
        let reason = match (version, outcome) {
            (Version::V5, Outcome::Safe { matched: false }) => Reason::NoMatchingSubscribers,
            (_, Outcome::Safe { .. }) => Reason::Success,
            (Version::V5, Outcome::Denied(r)) => r,
            (Version::V5, Outcome::Failed(failure)) => {
                why = failure.why.filter(|_| wanted);
                failure.reason
            }
            (Version::V5, Outcome::Late(r)) if qos == QoS::AtLeastOnce => r,
            (_, Outcome::Denied(_)) => Reason::Success,
            (_, Outcome::Failed(failure)) => {
                if qos == QoS::ExactlyOnce {
                    // It has not happened: a repetition is another attempt.
                    self.free(packet_id, out);
                }
                return self.fail(failure.reason, failure.why.as_deref().unwrap_or(NOT_SAFE), out);
            }
            (_, Outcome::Late(r)) => return self.fail(r, NOT_SAFE, out),
        };
        let kind = if qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
        if qos == QoS::ExactlyOnce {
            if (reason as u8) < 0x80 {
                self.inbound.exactly_once.insert(packet_id, 0);
            } else {
                self.free(packet_id, out);
            }
        }
        let start = out.wire.len();
        encode::ack(out.packet(), version, kind, packet_id, reason, why.as_deref());
        if why.is_some() && out.wire.len() - start > maximum as usize {
            // The words go rather than the packet (section 3.4.2.2.2).
            out.take_back(start);
            encode::ack(out.packet(), version, kind, packet_id, reason, None);
        }
    }

    /// A QoS 2 packet identifier was refused.
    fn free(&mut self, packet_id: u16, out: &mut Actions) {
        self.inbound.exactly_once.remove(&packet_id);
        if self.durable {
            out.effects.push(Effect::InboundEnd { token: None, packet_id });
        }
    }

    pub(super) fn pubrel(&mut self, ack: Ack, out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        let version = conn.version;
        match self.inbound.exactly_once.get(&ack.packet_id) {
            // If the outcome is open, PUBREC went out right before a restart that did not know.
            Some(0 | &EARLIER) => {
                self.inbound.exactly_once.remove(&ack.packet_id);
                if !self.durable {
                    encode::ack(
                        out.packet(),
                        version,
                        AckKind::PubComp,
                        ack.packet_id,
                        Reason::Success,
                        None,
                    );
                    return;
                }
                let token = self.next_token;
                self.next_token += 1;
                conn.pending.push(token, Request::PubComp(ack.packet_id));
                out.effects.push(Effect::InboundEnd { token: Some(token), packet_id: ack.packet_id });
            }
            Some(_) => self.fail(Reason::ProtocolError, "PUBREL before PUBREC", out),
            None => {
                let reason = Reason::PacketIdentifierNotFound;
                encode::ack(out.packet(), version, AckKind::PubComp, ack.packet_id, reason, None);
            }
        }
    }

    pub(super) fn subscribe(&mut self, s: &Subscribe<'_>, out: &mut Actions) {
        let token = self.token();
        let Some(conn) = self.conn.as_mut() else { return };
        let (maximum_qos, bridge) = (conn.limits.maximum_qos, conn.bridge);
        let request = |(at, f): (usize, SubscribeFilter<'_>)| {
            let filter = checked(at, f.filter)?;
            let mut options = f.options;
            options.qos = options.qos.min(maximum_qos);
            if bridge {
                options.retain_as_published = true;
                options.no_local = filter.as_ref().is_ok_and(|f| f.filter().share.is_none());
            }
            Ok(FilterRequest { filter, options })
        };
        let filters: Result<Vec<_>, String> = s.filters().enumerate().map(request).collect();
        let filters = match filters {
            Ok(filters) => filters,
            Err(why) => return self.fail(Reason::MalformedPacket, &why, out),
        };
        conn.pending.push(token, Request::SubAck(s.packet_id));
        let request = Box::new(SubscribeRequest { filters, subscription_id: s.subscription_id });
        out.effects.push(Effect::Subscribe { token, request });
    }

    pub(super) fn subscribed(&mut self, token: Token, codes: &[Reason], out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        if let Some(Request::SubAck(packet_id)) = conn.pending.take(token) {
            let start = out.wire.len();
            encode::suback(out.packet(), conn.version, packet_id, codes);
            self.check_size(start, out);
        }
    }

    pub(super) fn unsubscribe(&mut self, u: &Unsubscribe<'_>, out: &mut Actions) {
        let token = self.token();
        let Some(conn) = self.conn.as_mut() else { return };
        let filters: Result<Vec<_>, String> = u.filters().enumerate().map(|(at, f)| checked(at, f)).collect();
        let filters = match filters {
            Ok(filters) => filters,
            Err(why) => return self.fail(Reason::MalformedPacket, &why, out),
        };
        conn.pending.push(token, Request::UnsubAck(u.packet_id));
        out.effects.push(Effect::Unsubscribe { token, filters });
    }

    pub(super) fn unsubscribed(&mut self, token: Token, codes: &[Reason], out: &mut Actions) {
        let Some(conn) = self.conn.as_mut() else { return };
        if let Some(Request::UnsubAck(packet_id)) = conn.pending.take(token) {
            let start = out.wire.len();
            encode::unsuback(out.packet(), conn.version, packet_id, codes);
            self.check_size(start, out);
        }
    }

    /// An answer that the client has to get but does not take ends the connection (MQTT 5.0 section 3.1.2.11.4).
    fn check_size(&mut self, start: usize, out: &mut Actions) {
        let fits =
            self.conn.as_ref().is_none_or(|c| out.wire.len() - start <= c.maximum_packet_size as usize);
        if !fits {
            out.take_back(start);
            self.fail(Reason::PacketTooLarge, "the answer exceeds the client's maximum packet size", out);
        }
    }

    pub(super) fn disconnect(&mut self, d: &Disconnect<'_>, out: &mut Actions) {
        if let Some(expiry_s) = d.session_expiry_s {
            if self.expiry_s == 0 && expiry_s > 0 {
                return self.fail(
                    Reason::ProtocolError,
                    "session expiry at DISCONNECT after none at CONNECT",
                    out,
                );
            }
            let max = self.conn.as_ref().map_or(u32::MAX, |c| c.limits.max_session_expiry_s);
            self.expiry_s = expiry_s.min(max);
        }
        let cause = if d.reason == Reason::Success {
            CloseCause::Disconnected
        } else {
            CloseCause::DisconnectedWithWill
        };
        self.close(cause, None, out);
    }
}

/// A topic filter to carry out, or to refuse alone because only this broker does not allow it. `at` counts the filters of the
/// packet from 0.
///
/// # Errors
/// In words, if the filter is malformed and so its packet is (sections 4.7.1, 4.7.3, 4.8.2 and 4.13.1).
fn checked(at: usize, filter: &str) -> Result<Result<OwnedFilter, Reason>, String> {
    match OwnedFilter::parse(filter) {
        Ok(filter) => Ok(Ok(filter)),
        Err(e) if e.is_well_formed() => Ok(Err(Reason::TopicFilterInvalid)),
        Err(e) => Err(format!("topic filter {}: {e}", at + 1)),
    }
}
