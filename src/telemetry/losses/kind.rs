//! Why something is lost: what counts it, how loudly it is told, and by which limit.

use crate::telemetry::cells::Label;
use crate::telemetry::labels::{DropReason, PublishRefusal};

/// Why a message is not delivered to a receiver, a publish is not accepted, or a QoS 0 publish does not reach another node; with
/// the value of the limit, if one is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// QoS 0 for a client that reads too slowly: messages in memory.
    MailboxMessages(u64),
    /// The same: bytes in memory.
    MailboxBytes(u64),
    /// QoS 1 or 2 for a session whose queue is full: messages.
    QueueMessages(u64),
    /// The same: bytes.
    QueueBytes(u64),
    /// The oldest of a full queue gave way to a newer one, as the session's queue policy has it: by this limit, and its value.
    Displaced(&'static str, u64),
    /// The message expiry interval has passed.
    Expired,
    /// Larger than the client's maximum packet size.
    TooLarge(u64),
    /// QoS 0 for a session that nobody is connected to.
    Offline,
    /// The client answered with an error.
    Refused,
    /// The session ended.
    SessionEnded,
    /// The journal, or the cluster, did not make a publish safe within so many milliseconds.
    Journal(u64),
    /// The disk of the journal hangs: the publish was not begun.
    JournalStalled,
    /// Another node could not make a publish safe.
    OtherNode,
    /// The client may not publish there.
    NotAuthorized,
    /// The client may not be given the message.
    NotAllowed,
    /// Too many publishes wait for other nodes.
    HeldMessages(u64),
    /// The same: bytes.
    HeldBytes(u64),
    /// Too many retained messages.
    RetainedMessages(u64),
    /// The same: bytes.
    RetainedBytes(u64),
    /// A payload that is too large to be retained.
    RetainedPayload(u64),
    /// A retained message that does not fit into a request to etcd.
    RetainedRequest(u64),
    /// Too many clears of topics of which no retained message is known.
    RetainedClears(u64),
    /// What a bridge says of itself is too large to be retained.
    BridgeState(u64),
    /// A journal in memory has no room for a retained message.
    JournalMemory(u64),
    /// The journal cannot be written, and as much as may waits for it.
    JournalFailing,
    /// The link to the node is down.
    LinkDown,
    /// Too many QoS 0 publishes wait for the link to the node.
    LinkMessages(u64),
    /// The same: bytes.
    LinkBytes(u64),
}

/// How many kinds there are.
pub(super) const KINDS: usize = 28;

/// How loudly a loss is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// A limit or a fault loses messages.
    Warn,
    /// The protocol means it.
    Info,
}

/// Which metric counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Counted {
    /// `berth_messages_dropped_total`
    Message(DropReason),
    /// `berth_publishes_refused_total`
    Publish(PublishRefusal),
    /// `berth_peer_frames_dropped_total`
    Frame,
}

impl Loss {
    /// A number below [`KINDS`].
    pub(super) fn index(self) -> usize {
        match self {
            Loss::MailboxMessages(_) => 0,
            Loss::MailboxBytes(_) => 1,
            Loss::QueueMessages(_) => 2,
            Loss::QueueBytes(_) => 3,
            Loss::Expired => 4,
            Loss::TooLarge(_) => 5,
            Loss::Offline => 6,
            Loss::Refused => 7,
            Loss::SessionEnded => 8,
            Loss::Journal(_) => 9,
            Loss::OtherNode => 10,
            Loss::NotAuthorized => 11,
            Loss::HeldMessages(_) => 12,
            Loss::HeldBytes(_) => 13,
            Loss::RetainedMessages(_) => 14,
            Loss::RetainedBytes(_) => 15,
            Loss::RetainedPayload(_) => 16,
            Loss::RetainedRequest(_) => 17,
            Loss::LinkDown => 18,
            Loss::LinkMessages(_) => 19,
            Loss::LinkBytes(_) => 20,
            Loss::RetainedClears(_) => 21,
            Loss::JournalMemory(_) => 22,
            Loss::JournalFailing => 23,
            Loss::BridgeState(_) => 24,
            Loss::JournalStalled => 25,
            Loss::NotAllowed => 26,
            Loss::Displaced(..) => 27,
        }
    }

    pub(in crate::telemetry) fn counted(self) -> Counted {
        match self {
            Loss::MailboxMessages(_) | Loss::MailboxBytes(_) => Counted::Message(DropReason::MailboxFull),
            Loss::QueueMessages(_) | Loss::QueueBytes(_) => Counted::Message(DropReason::QueueFull),
            Loss::Displaced(..) => Counted::Message(DropReason::Displaced),
            Loss::Expired => Counted::Message(DropReason::Expired),
            Loss::TooLarge(_) => Counted::Message(DropReason::TooLarge),
            Loss::Offline => Counted::Message(DropReason::Offline),
            Loss::Refused => Counted::Message(DropReason::Refused),
            Loss::SessionEnded => Counted::Message(DropReason::SessionEnded),
            Loss::NotAllowed => Counted::Message(DropReason::NotAllowed),
            Loss::Journal(_) | Loss::JournalStalled | Loss::OtherNode => {
                Counted::Publish(PublishRefusal::Journal)
            }
            Loss::NotAuthorized => Counted::Publish(PublishRefusal::NotAuthorized),
            Loss::HeldMessages(_)
            | Loss::HeldBytes(_)
            | Loss::RetainedMessages(_)
            | Loss::RetainedBytes(_)
            | Loss::RetainedPayload(_)
            | Loss::RetainedRequest(_)
            | Loss::RetainedClears(_)
            | Loss::BridgeState(_)
            | Loss::JournalMemory(_)
            | Loss::JournalFailing => Counted::Publish(PublishRefusal::Quota),
            Loss::LinkDown | Loss::LinkMessages(_) | Loss::LinkBytes(_) => Counted::Frame,
        }
    }

    /// As the metric's label has it, or more exactly.
    pub(super) fn reason(self) -> &'static str {
        let of = |values: &'static [&'static str], at: usize| values.get(at).copied().unwrap_or_default();
        match (self.counted(), self) {
            (_, Loss::OtherNode) => "other_node",
            (Counted::Message(reason), _) => of(DropReason::VALUES, reason.index()),
            (Counted::Publish(reason), _) => of(PublishRefusal::VALUES, reason.index()),
            (Counted::Frame, Loss::LinkDown) => "link_down",
            (Counted::Frame, _) => "link_full",
        }
    }

    pub(super) fn level(self) -> Level {
        match self {
            Loss::Expired
            | Loss::Displaced(..)
            | Loss::Offline
            | Loss::SessionEnded
            | Loss::NotAuthorized
            | Loss::NotAllowed => Level::Info,
            _ => Level::Warn,
        }
    }

    /// The limit and its value.
    pub(super) fn limit(self) -> Option<String> {
        let (name, value) = match self {
            Loss::MailboxMessages(n) => ("session.mailbox_messages", n),
            Loss::MailboxBytes(n) => ("session.mailbox_bytes", n),
            Loss::QueueMessages(n) => ("session.max_queued_messages", n),
            Loss::QueueBytes(n) => ("session.max_queued_bytes", n),
            Loss::Displaced(limit, n) => (limit, n),
            Loss::TooLarge(n) => ("the client's maximum packet size", n),
            Loss::Journal(ms) => return Some(format!("publish.timeout={ms}ms")),
            Loss::HeldMessages(n) => ("cluster.max_held_messages", n),
            Loss::HeldBytes(n) => ("cluster.max_held_bytes", n),
            Loss::RetainedMessages(n) => ("retained.max_messages", n),
            Loss::RetainedBytes(n) => ("retained.max_bytes", n),
            Loss::RetainedPayload(n) => ("retained.max_payload", n),
            Loss::RetainedRequest(n) => ("a request to etcd", n),
            Loss::RetainedClears(n) => ("CLEARS_MAX", n),
            Loss::BridgeState(n) => ("BRIDGE_STATE_BYTES_MAX", n),
            Loss::JournalMemory(n) => ("storage.memory_max", n),
            Loss::JournalStalled => return Some("storage.stall_timeout".to_owned()),
            Loss::JournalFailing => return Some("storage.max_pending".to_owned()),
            Loss::LinkMessages(n) => ("queued_frames_max", n),
            Loss::LinkBytes(n) => ("queued_bytes_max", n),
            Loss::Expired
            | Loss::Offline
            | Loss::Refused
            | Loss::SessionEnded
            | Loss::OtherNode
            | Loss::NotAuthorized
            | Loss::NotAllowed
            | Loss::LinkDown => return None,
        };
        Some(format!("{name}={value}"))
    }
}
