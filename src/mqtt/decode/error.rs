//! Why a frame was refused, and how a server answers that.

use crate::mqtt::{Reason, Version};

/// Why a frame was refused. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The packet breaks a rule of the specification.
    #[error("{what} (byte {at})")]
    Invalid {
        /// What MQTT 5 calls it.
        reason: Reason,
        /// Which rule.
        what: &'static str,
        /// Where in the frame, in bytes from its start.
        at: u32,
        /// The version of a CONNECT that was refused after its version was known.
        connect: Option<Version>,
    },
    /// The packet is larger than allowed.
    #[error("packet of {len} bytes, only {max} are allowed")]
    TooLarge {
        /// Its length in bytes, fixed header included.
        len: u32,
        /// How many bytes are allowed.
        max: u32,
    },
    /// The first packet is not CONNECT, or its protocol name is neither `MQTT` nor `MQIsdp`: no MQTT client.
    #[error("not an MQTT client: {0}")]
    NotMqtt(&'static str),
    /// The protocol level of a CONNECT is not one of ours.
    #[error("unsupported protocol level {level}")]
    UnsupportedVersion {
        /// The level.
        level: u8,
        /// The version whose CONNACK the client may understand.
        answer: Version,
    },
}

/// What a server may send before it closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Close,
    /// CONNACK of this version with [`DecodeError::reason`].
    ConnAck(Version),
    /// DISCONNECT (MQTT 5) with [`DecodeError::reason`].
    Disconnect,
}

impl DecodeError {
    #[cold]
    pub(in crate::mqtt) fn invalid(reason: Reason, what: &'static str, at: usize) -> DecodeError {
        DecodeError::Invalid { reason, what, at: u32::try_from(at).unwrap_or(u32::MAX), connect: None }
    }

    /// The reason code of MQTT 5 (section 4.13).
    pub fn reason(&self) -> Reason {
        match self {
            DecodeError::Invalid { reason, .. } => *reason,
            DecodeError::TooLarge { .. } => Reason::PacketTooLarge,
            DecodeError::NotMqtt(_) => Reason::ProtocolError,
            DecodeError::UnsupportedVersion { .. } => Reason::UnsupportedProtocolVersion,
        }
    }

    /// How to answer: `connected` is the version of the connection, `None` before CONNECT.
    ///
    /// MQTT 3 has answers only for an unsupported level (return code 1) and a refused client identifier (2); whatever
    /// else is wrong closes the connection without a word (MQTT 3.1.1 section 4.8).
    pub fn answer(&self, connected: Option<Version>) -> Answer {
        match (connected, self) {
            (Some(Version::V5), _) => Answer::Disconnect,
            (Some(_), _) => Answer::Close,
            (None, DecodeError::UnsupportedVersion { answer, .. }) => Answer::ConnAck(*answer),
            (None, DecodeError::Invalid { connect: Some(Version::V5), .. }) => Answer::ConnAck(Version::V5),
            (
                None,
                DecodeError::Invalid {
                    connect: Some(version), reason: Reason::ClientIdentifierNotValid, ..
                },
            ) => Answer::ConnAck(*version),
            (None, _) => Answer::Close,
        }
    }
}
