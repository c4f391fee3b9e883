//! Reason codes (MQTT 5.0 section 2.4) and their MQTT 3.1.1 CONNACK return codes (section 3.2.2.3).

/// A reason code of MQTT 5.0. The broker speaks these inside; an MQTT 3 client sees what fits its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the specification's
pub enum Reason {
    Success = 0x00,
    GrantedQoS1 = 0x01,
    GrantedQoS2 = 0x02,
    DisconnectWithWill = 0x04,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    ContinueAuthentication = 0x18,
    ReAuthenticate = 0x19,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8A,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9A,
    QoSNotSupported = 0x9B,
    UseAnotherServer = 0x9C,
    ServerMoved = 0x9D,
    SharedSubscriptionsNotSupported = 0x9E,
    ConnectionRateExceeded = 0x9F,
    MaximumConnectTime = 0xA0,
    SubscriptionIdentifiersNotSupported = 0xA1,
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl Reason {
    /// Every reason there is, by code.
    pub const ALL: [Reason; 43] = [
        Reason::Success,
        Reason::GrantedQoS1,
        Reason::GrantedQoS2,
        Reason::DisconnectWithWill,
        Reason::NoMatchingSubscribers,
        Reason::NoSubscriptionExisted,
        Reason::ContinueAuthentication,
        Reason::ReAuthenticate,
        Reason::UnspecifiedError,
        Reason::MalformedPacket,
        Reason::ProtocolError,
        Reason::ImplementationSpecificError,
        Reason::UnsupportedProtocolVersion,
        Reason::ClientIdentifierNotValid,
        Reason::BadUserNameOrPassword,
        Reason::NotAuthorized,
        Reason::ServerUnavailable,
        Reason::ServerBusy,
        Reason::Banned,
        Reason::ServerShuttingDown,
        Reason::BadAuthenticationMethod,
        Reason::KeepAliveTimeout,
        Reason::SessionTakenOver,
        Reason::TopicFilterInvalid,
        Reason::TopicNameInvalid,
        Reason::PacketIdentifierInUse,
        Reason::PacketIdentifierNotFound,
        Reason::ReceiveMaximumExceeded,
        Reason::TopicAliasInvalid,
        Reason::PacketTooLarge,
        Reason::MessageRateTooHigh,
        Reason::QuotaExceeded,
        Reason::AdministrativeAction,
        Reason::PayloadFormatInvalid,
        Reason::RetainNotSupported,
        Reason::QoSNotSupported,
        Reason::UseAnotherServer,
        Reason::ServerMoved,
        Reason::SharedSubscriptionsNotSupported,
        Reason::ConnectionRateExceeded,
        Reason::MaximumConnectTime,
        Reason::SubscriptionIdentifiersNotSupported,
        Reason::WildcardSubscriptionsNotSupported,
    ];

    /// The code of MQTT 5.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reason with this code, if the specification knows it.
    pub fn from_code(code: u8) -> Option<Reason> {
        Reason::ALL.binary_search_by_key(&code, |&reason| reason as u8).ok().map(|i| Reason::ALL[i])
    }

    /// Whether this is a failure (0x80 and above).
    pub fn is_error(self) -> bool {
        self as u8 >= 0x80
    }

    /// The CONNACK return code of MQTT 3 (MQTT 3.1.1 table 3.1): 0 for success, else the nearest of 1 to 5.
    pub fn connack_v3(self) -> u8 {
        match self {
            Reason::UnsupportedProtocolVersion => 1,
            Reason::ClientIdentifierNotValid => 2,
            Reason::BadUserNameOrPassword => 4,
            Reason::NotAuthorized | Reason::BadAuthenticationMethod | Reason::Banned => 5,
            reason if reason.is_error() => 3,
            _ => 0,
        }
    }

    /// The reason that a CONNACK return code of MQTT 3 stands for; `None` if it is not one of 0 to 5.
    pub fn from_connack_v3(code: u8) -> Option<Reason> {
        match code {
            0 => Some(Reason::Success),
            1 => Some(Reason::UnsupportedProtocolVersion),
            2 => Some(Reason::ClientIdentifierNotValid),
            3 => Some(Reason::ServerUnavailable),
            4 => Some(Reason::BadUserNameOrPassword),
            5 => Some(Reason::NotAuthorized),
            _ => None,
        }
    }

    /// The SUBACK return code of MQTT 3 (MQTT 3.1.1 section 3.9.3): the granted QoS, or 0x80.
    pub fn suback_v3(self) -> u8 {
        if self.is_error() { 0x80 } else { self as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn codes_there_and_back() {
        let mut known = 0;
        for code in 0..=255u8 {
            if let Some(reason) = Reason::from_code(code) {
                assert_eq!(reason.code(), code);
                known += 1;
            }
        }
        assert_eq!(known, Reason::ALL.len());
        for code in 0..=5 {
            assert_eq!(Reason::from_connack_v3(code).map(Reason::connack_v3), Some(code));
        }
        assert_eq!(Reason::from_connack_v3(6), None);
        for reason in Reason::ALL {
            assert_eq!(reason.connack_v3() != 0, reason.is_error(), "{reason:?}");
        }
    }
}
