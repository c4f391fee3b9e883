//! What goes into a session and what comes out.

use crate::clock::Time;
use crate::mqtt::packet::{Packet, SubscribeOptions};
use crate::mqtt::{Message, QoS, Reason};
pub use crate::telemetry::Loss;
use crate::topic::OwnedFilter;
use smallvec::SmallVec;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Names one question of a session to the outside; ascending within a session, never 0.
pub type Token = u64;

/// One message for one session.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Its number in the journal; `None` if the journal does not hold it (QoS 0, or a transient session).
    pub seq: Option<NonZeroU64>,
    /// QoS to deliver with.
    pub qos: QoS,
    /// RETAIN flag to deliver with.
    pub retain: bool,
    /// What only some deliveries have.
    pub extra: Option<Arc<Extra>>,
}

/// What only some deliveries have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Subscription identifiers to send along.
    pub subscription_ids: SmallVec<[u32; 2]>,
    /// The shared subscription it came through.
    pub shared: Option<Arc<str>>,
}

impl Delivery {
    /// Subscription identifiers to send along.
    pub fn subscription_ids(&self) -> &[u32] {
        self.extra.as_ref().map_or(&[], |e| &e.subscription_ids)
    }

    /// The shared subscription it came through.
    pub fn shared(&self) -> Option<&Arc<str>> {
        self.extra.as_ref().and_then(|e| e.shared.as_ref())
    }

    /// Bytes of memory, as queue limits count them.
    pub fn size(&self) -> usize {
        self.message.size() + size_of::<Delivery>()
    }
}

/// What a session is told.
#[derive(Debug)]
pub enum Input<'a> {
    /// A packet from the client, any but CONNECT.
    Packet(Packet<'a>),
    /// A message for the client.
    Deliver(Delivery),
    /// The answer to [`Effect::Publish`].
    Published {
        /// The token of the effect.
        token: Token,
        /// What became of it.
        outcome: Outcome,
    },
    /// The answer to [`Effect::Subscribe`]: one code per filter.
    Subscribed {
        /// The token of the effect.
        token: Token,
        /// One code per filter.
        codes: SmallVec<[Reason; 4]>,
    },
    /// The answer to [`Effect::Unsubscribe`]: one code per filter.
    Unsubscribed {
        /// The token of the effect.
        token: Token,
        /// One code per filter.
        codes: SmallVec<[Reason; 4]>,
    },
    /// What the effect with this token recorded is durable.
    Durable {
        /// The token of the effect.
        token: Token,
    },
    /// The answer to [`Effect::Load`]: what the journal still holds of it, in order.
    Loaded(Vec<Delivery>),
    /// The time of [`super::Session::next_timeout`] has come.
    Timeout,
}

/// Why something was not accepted, as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason.
    pub reason: Reason,
    /// In words: the limit, its value and what exceeds it, where a limit is the reason.
    pub why: Option<Box<str>>,
}

impl Failure {
    /// For this reason and, in words, because of `why`.
    pub fn new(reason: Reason, why: impl Into<Box<str>>) -> Failure {
        Failure { reason, why: Some(why.into()) }
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Failure {
        Failure { reason, why: None }
    }
}

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every session that must have it has it safely.
    Safe {
        /// Whether any subscription matched.
        matched: bool,
    },
    /// It is not allowed; MQTT 3 clients get a plain acknowledgement (3.1.1 section 3.3.5).
    Denied(Reason),
    /// It was not accepted: MQTT 3 connections are closed instead of acknowledged.
    Failed(Box<Failure>),
    /// It could not be made safe in time, and may become so yet. At QoS 2 nothing is said, since an error would free the
    /// packet identifier and the client's repetition, if it did not hear of it, would count as a new message (G4).
    Late(Reason),
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug)]
pub struct FilterRequest {
    /// The filter, or why it is refused without asking further.
    pub filter: Result<OwnedFilter, Reason>,
    /// Its options, QoS limited to the server's maximum.
    pub options: SubscribeOptions,
}

/// A SUBSCRIBE to carry out.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// One entry per filter, in order.
    pub filters: Vec<FilterRequest>,
    /// Subscription identifier.
    pub subscription_id: Option<u32>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The client sent DISCONNECT with reason 0x00: the will is deleted.
    Disconnected,
    /// The client sent DISCONNECT with another reason: the will stands.
    DisconnectedWithWill,
    /// The network connection went away.
    Lost,
    /// Nothing was heard for one and a half times the keep alive.
    KeepAlive,
    /// A packet began and did not end in time.
    PacketTimeout,
    /// The client took nothing of what was written for it for too long.
    WriteTimeout,
    /// The client broke the protocol or a limit.
    Refused(Reason),
    /// Another connection took the client identifier.
    TakenOver,
    /// Its client has connected elsewhere, and may have said much since: the will is void.
    Evicted,
    /// An operator ended it.
    Kicked,
    /// What let the client in holds no more: its account is gone or has another password.
    AccountChanged,
    /// What let the client in was for a time, which is over.
    AccountExpired,
    /// Its client was banned.
    Banned,
    /// The broker shuts down.
    ShuttingDown,
    /// The broker leaves the cluster, and another node has the session.
    HandedOver,
    /// The broker cannot know any more whose sessions are its own.
    NotServing,
}

impl CloseCause {
    /// Whether the session goes on elsewhere, or here later, so that its will is not due because of this.
    pub(super) fn keeps_will(self) -> bool {
        matches!(self, CloseCause::ShuttingDown | CloseCause::HandedOver | CloseCause::NotServing)
    }

    /// The reason an MQTT 5 client is told in DISCONNECT.
    pub fn told(self) -> Option<Reason> {
        match self {
            CloseCause::Disconnected | CloseCause::DisconnectedWithWill | CloseCause::Lost => None,
            CloseCause::KeepAlive => Some(Reason::KeepAliveTimeout),
            CloseCause::PacketTimeout | CloseCause::WriteTimeout => Some(Reason::QuotaExceeded),
            CloseCause::Refused(r) => Some(r),
            CloseCause::TakenOver | CloseCause::Evicted => Some(Reason::SessionTakenOver),
            // 0x8A is for CONNACK only (section 3.14.2.1).
            CloseCause::Kicked | CloseCause::Banned => Some(Reason::AdministrativeAction),
            CloseCause::AccountChanged => Some(Reason::NotAuthorized),
            CloseCause::AccountExpired => Some(Reason::MaximumConnectTime),
            CloseCause::ShuttingDown => Some(Reason::ServerShuttingDown),
            CloseCause::HandedOver => Some(Reason::ServerMoved),
            CloseCause::NotServing => Some(Reason::ServerBusy),
        }
    }
}

/// What a session wants done outside. Effects are carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Route a message; answer with [`Input::Published`] if there is a token.
    Publish {
        /// To answer with; `None` at QoS 0.
        token: Option<Token>,
        /// The message.
        message: Message,
        /// The QoS 2 packet identifier to record with it (durable sessions).
        inbound: Option<u16>,
    },
    /// A QoS 2 publish of an earlier connection, whose outcome was open when this one began, was repeated; answer with
    /// [`Input::Published`] when the outcome is known.
    Repeated {
        /// To answer with.
        token: Token,
        /// The packet identifier.
        packet_id: u16,
    },
    /// Subscribe; answer with [`Input::Subscribed`].
    Subscribe {
        /// To answer with.
        token: Token,
        /// What to subscribe.
        request: Box<SubscribeRequest>,
    },
    /// Unsubscribe; answer with [`Input::Unsubscribed`].
    Unsubscribe {
        /// To answer with.
        token: Token,
        /// The filters, in order; the reason in place of one that is refused without looking for it.
        filters: Vec<Result<OwnedFilter, Reason>>,
    },
    /// Read these messages back from the journal; answer with [`Input::Loaded`].
    Load(Vec<u64>),
    /// The client has this journaled message for good.
    Settle {
        /// Its number.
        seq: NonZeroU64,
    },
    /// Record how far an outbound message has come; answer with [`Input::Durable`] if there is a token.
    Outbound {
        /// To answer with.
        token: Option<Token>,
        /// Packet identifier.
        packet_id: u16,
        /// The message.
        seq: NonZeroU64,
        /// PUBREC came: the message is released.
        released: bool,
    },
    /// An inbound QoS 2 packet identifier is free again; answer with [`Input::Durable`] if there is a token.
    InboundEnd {
        /// To answer with.
        token: Option<Token>,
        /// The packet identifier.
        packet_id: u16,
    },
    /// A message was dropped (count it).
    Dropped(Loss),
    /// A message left for the client (count it); the number is its QoS.
    Sent(QoS),
    /// Write what is in `wire`, then close. The owner answers with [`super::Session::detach`].
    Close {
        /// Why.
        cause: CloseCause,
        /// In words, for the log.
        why: Option<Box<str>>,
    },
    /// Publish the will and, in the same step, forget it.
    Will(Message),
    /// Write the session's record (durable sessions, and those with a will).
    Save,
    /// The session is over: drop its subscriptions, queue and record.
    End,
}

/// A message that a session held when it ended.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Its number in the journal.
    pub seq: Option<NonZeroU64>,
    /// The message, unless only the journal holds it.
    pub delivery: Option<Delivery>,
    /// Whether it was sent: at QoS 2 nobody else may get it then (MQTT 5.0 section 4.8.2).
    pub begun: bool,
    /// Whether the client has it for certain (QoS 2, PUBREC came).
    pub released: bool,
}

/// Receives a session's output. Reused from call to call.
#[derive(Debug, Default)]
pub struct Actions {
    /// Bytes for the client.
    pub wire: Vec<u8>,
    /// What to do, in order.
    pub effects: Vec<Effect>,
    /// Bytes at the front of `wire` that the socket has taken.
    pub sent: usize,
    /// Where the last PUBLISH in `wire` ends.
    pub messages_end: usize,
    /// Packets written to `wire`; whoever counts them sets it back.
    pub packets: u64,
    /// Payload bytes of PUBLISH packets written to `wire`.
    pub payload_bytes: u64,
}

impl Actions {
    /// Where to write one packet for the client.
    pub fn packet(&mut self) -> &mut Vec<u8> {
        self.packets += 1;
        &mut self.wire
    }

    /// Bytes in `wire` that the socket has yet to take.
    pub fn unsent(&self) -> usize {
        self.wire.len().saturating_sub(self.sent)
    }

    /// Bytes in `wire` that the socket has yet to take and that came after the last message: answers to the client.
    pub fn answers(&self) -> usize {
        self.wire.len().saturating_sub(self.messages_end.max(self.sent))
    }

    /// The socket has taken `n` bytes more. They go from the buffer when they are half of it, so that a large message which
    /// goes in many pieces is not moved each time.
    pub fn took(&mut self, n: usize) {
        self.sent += n;
        if self.sent >= self.wire.len() {
            self.forget_wire();
        } else if self.sent >= self.wire.len() - self.sent {
            self.compact();
        }
    }

    /// Removes from `wire` what the socket has taken.
    pub fn compact(&mut self) {
        let sent = std::mem::take(&mut self.sent).min(self.wire.len());
        self.wire.drain(..sent);
        self.messages_end = self.messages_end.saturating_sub(sent);
    }

    /// The client gets nothing of what is in `wire`.
    pub fn forget_wire(&mut self) {
        self.wire.clear();
        (self.sent, self.messages_end) = (0, 0);
    }

    /// Takes the last packet back, which begins at `start`.
    pub(super) fn take_back(&mut self, start: usize) {
        self.packets -= 1;
        self.wire.truncate(start);
    }
}

/// The remaining message expiry at `now`, seconds, rounded up (MQTT 5.0 section 3.3.2.3.3).
pub(super) fn remaining_s(message: &Message, now: Time) -> Option<u32> {
    message.expires_at().map(|t| u32::try_from(t.since_ms(now).div_ceil(1000)).unwrap_or(u32::MAX))
}
