//! The labels that metrics have, and their values.

use super::cells::Label;

macro_rules! label {
    ($(#[$doc:meta])+ $name:ident = $label:literal { $($(#[$variant_doc:meta])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])+ $variant,)+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($text),+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Quality of service of a PUBLISH packet.
    Qos = "qos" {
        /// At most once.
        Zero = "0",
        /// At least once.
        One = "1",
        /// Exactly once.
        Two = "2",
    }
}

impl From<u8> for Qos {
    fn from(qos: u8) -> Qos {
        match qos {
            0 => Qos::Zero,
            1 => Qos::One,
            _ => Qos::Two,
        }
    }
}

label! {
    /// Why a connection was ended by an error.
    ErrorType = "type" {
        /// Bytes that are no MQTT (reason 0x81).
        Malformed = "malformed_packet",
        /// A packet that the specification forbids there (0x82 and its special cases).
        Protocol = "protocol_error",
        /// A packet larger than `limits.max_packet_size` (0x95).
        PacketTooLarge = "packet_too_large",
        /// More unacknowledged messages than `limits.receive_maximum` (0x93).
        ReceiveMaximum = "receive_maximum_exceeded",
        /// No CONNECT within `limits.connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// Nothing heard for one and a half keep alive intervals (0x8D).
        KeepAlive = "keep_alive_timeout",
        /// A packet took longer to arrive than `limits.packet_timeout` (0x97).
        PacketTimeout = "packet_timeout",
        /// The client took nothing of what was written for it for `limits.write_timeout` (0x97).
        WriteTimeout = "write_timeout",
        /// The network failed.
        Io = "io",
        /// The journal did not accept what it had to.
        Journal = "journal",
    }
}

impl ErrorType {
    /// The type of an error by which the broker ends a connection with reason code `code` (MQTT 5.0 section 3.14.2.1).
    pub fn from_code(code: u8) -> ErrorType {
        match code {
            0x81 => ErrorType::Malformed,
            0x8D => ErrorType::KeepAlive,
            0x93 => ErrorType::ReceiveMaximum,
            0x95 => ErrorType::PacketTooLarge,
            _ => ErrorType::Protocol,
        }
    }
}

label! {
    /// Why a CONNECT was refused.
    RefuseReason = "reason" {
        /// `limits.max_connections` or `session.max_sessions` is reached (0x97, 0x9F).
        Quota = "quota",
        /// A protocol version that the broker does not speak (0x84).
        Version = "unsupported_version",
        /// A client identifier that cannot be used (0x85).
        ClientId = "client_id",
        /// The client may not connect, or not by this authentication method (0x86, 0x87, 0x8C).
        NotAuthorized = "not_authorized",
        /// The client is banned (0x8A).
        Banned = "banned",
        /// The broker is starting, stopping, or cannot write its journal (0x88, 0x89, 0x8B).
        Unavailable = "unavailable",
        /// Anything else that the specification forbids in a CONNECT.
        Other = "other",
    }
}

impl RefuseReason {
    /// The reason for a CONNACK with reason code `code` (MQTT 5.0 section 3.2.2.2).
    pub fn from_code(code: u8) -> RefuseReason {
        match code {
            0x84 => RefuseReason::Version,
            0x85 => RefuseReason::ClientId,
            0x86 | 0x87 | 0x8C => RefuseReason::NotAuthorized,
            0x8A => RefuseReason::Banned,
            0x88 | 0x89 | 0x8B => RefuseReason::Unavailable,
            0x97 | 0x9F => RefuseReason::Quota,
            _ => RefuseReason::Other,
        }
    }
}

label! {
    /// Why a client did not come as far as CONNECT, or was slowed down.
    Turned = "reason" {
        /// TLS could not be agreed on, or the client broke the handshake off.
        Tls = "tls",
        /// The client's certificate is not good, or none was shown where one is required.
        Certificate = "certificate",
        /// The request for the upgrade to WebSocket was refused.
        WebSocket = "websocket",
        /// No header of the PROXY protocol, or one from an address that may not send any.
        Proxy = "proxy",
        /// The handshake, the upgrade or the proxy's header was not complete within `limits.connect_timeout`.
        Timeout = "timeout",
        /// The connection gave way to newer ones: `limits.max_arriving_connections`.
        Crowded = "crowded",
        /// New connections wait, since more come than the listener's `max_connection_rate`: counted once for each wait.
        ConnectionRate = "connection_rate",
        /// Reading from a client paused because of the listener's `max_message_rate` or `max_byte_rate`: counted once for each pause.
        ClientRate = "client_rate",
    }
}

label! {
    /// What was decided about a client that wants to connect.
    AuthDecision = "outcome" {
        /// Let in, as a user.
        Accepted = "accepted",
        /// Let in without an account.
        Anonymous = "anonymous",
        /// Refused: it showed nothing, and may not come anonymously.
        NoCredentials = "no_credentials",
        /// Refused: no method knows its user.
        UnknownUser = "unknown_user",
        /// Refused: the password of its user is another.
        WrongPassword = "wrong_password",
        /// Refused: its token, or what it proved in an exchange, is not valid.
        InvalidProof = "invalid_proof",
        /// Refused by the HTTP hook.
        Hook = "hook_refused",
        /// Refused: too many wait for a decision.
        Busy = "busy",
        /// Refused: what has to decide does not answer.
        Unavailable = "unavailable",
    }
}

label! {
    /// What became of certificates that were read again.
    Reload = "outcome" {
        /// They are in use.
        Done = "done",
        /// They cannot be used: the old ones stay in use.
        Failed = "failed",
    }
}

label! {
    /// How reading a file again went.
    ReloadResult = "result" {
        /// What it says counts.
        Ok = "ok",
        /// It is wrong or cannot be read: what it said before counts.
        Failed = "failed",
    }
}

label! {
    /// What became of a claim of a session in etcd.
    ClaimResult = "outcome" {
        /// This node owns the session.
        Granted = "granted",
        /// Another record was there than expected.
        Found = "found",
        /// etcd did not answer in time, or took no writes.
        Unavailable = "unavailable",
    }
}

label! {
    /// What became of a session that was to move between nodes.
    MoveResult = "result" {
        /// It came to this node.
        Came = "came",
        /// It left for another.
        Left = "left",
        /// It was to leave, and stayed.
        Stayed = "stayed",
        /// It was to come, but another node was faster.
        Lost = "lost",
        /// It was to come, and did not, or not yet.
        Failed = "failed",
    }
}

label! {
    /// What became of a session while this node was leaving.
    HandOver = "result" {
        /// Another node has it.
        Moved = "moved",
        /// It stays in this node's journal.
        Stayed = "stayed",
    }
}

label! {
    /// Why a message was not delivered to one of its receivers.
    DropReason = "reason" {
        /// QoS 0 for a client that reads too slowly.
        MailboxFull = "mailbox_full",
        /// QoS 1 or 2 for a session whose queue is full.
        QueueFull = "queue_full",
        /// The oldest of a full queue or mailbox, which gave way to a newer one (session.queue_policy: drop_oldest).
        Displaced = "displaced",
        /// Its message expiry interval passed while it was queued.
        Expired = "expired",
        /// Larger than what the client accepts.
        TooLarge = "too_large",
        /// QoS 0 for a session that nobody is connected to.
        Offline = "offline",
        /// The client answered with an error.
        Refused = "refused",
        /// Its session ended while it was queued.
        SessionEnded = "session_ended",
        /// The client may not read its topic.
        NotAllowed = "not_allowed",
    }
}

label! {
    /// What a client may not do.
    Denied = "kind" {
        /// Publish.
        Publish = "publish",
        /// Subscribe.
        Subscribe = "subscribe",
        /// Be given a message.
        Deliver = "deliver",
        /// Leave a will, or have it published.
        Will = "will",
    }
}

label! {
    /// Why a PUBLISH was not accepted.
    PublishRefusal = "reason" {
        /// The journal, or another node, could not make it safe within `publish.timeout`.
        Journal = "journal",
        /// A limit of retained messages (0x97).
        Quota = "quota",
        /// The client may not publish there (0x87).
        NotAuthorized = "not_authorized",
    }
}

label! {
    /// What became of a SUBACK's wait for the other nodes.
    SubackWait = "outcome" {
        /// Every node had applied the routes.
        Done = "done",
        /// Some node had not within `cluster.suback_wait`.
        TimedOut = "timed_out",
        /// etcd did not answer, so there was nothing to wait for.
        Skipped = "skipped",
    }
}

label! {
    /// Whether somebody is connected to a session.
    SessionState = "state" {
        /// Yes.
        Active = "active",
        /// No.
        Dormant = "dormant",
    }
}

label! {
    /// What another node said to a publish.
    PeerAnswer = "answer" {
        /// Safe there.
        Accepted = "accepted",
        /// A session left meanwhile: matched again.
        Moved = "moved",
        /// It could not be made safe there.
        Failed = "failed",
    }
}

label! {
    /// What became of a link to another node.
    LinkChange = "change" {
        /// It came up.
        Up = "up",
        /// It broke, or could not be opened.
        Down = "down",
        /// The other side, or a certificate, refused it.
        Refused = "refused",
    }
}

label! {
    /// What became of a request to another node.
    PeerRequest = "outcome" {
        /// It was answered.
        Answered = "answered",
        /// It was not answered in time.
        TimedOut = "timed_out",
        /// There was no working link, or the circuit breaker was open.
        Unreachable = "unreachable",
    }
}
