//! Every limit of a session.

/// Messages a session holds ready while the client's receive maximum is used up. More wait in the mailbox.
pub const READY_WINDOW: usize = 256;

/// SUBSCRIBE and UNSUBSCRIBE packets whose answer is outstanding; more pause reading.
pub const PENDING_REQUESTS: usize = 64;

/// Topic aliases we assign on one connection, however many the client allows.
pub const OUTBOUND_ALIASES: u16 = 16;

/// The largest maximum packet size that is announced, bytes. A packet may have 5 bytes more, its fixed header; but some clients take
/// this for the largest value there is, and give up on a CONNACK that says more.
pub const ANNOUNCED_PACKET_MAX: u32 = crate::mqtt::VARINT_MAX;

/// Limits that the configuration sets for every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Receive maximum we announce: QoS 1 and 2 publishes of a client that are not yet answered.
    pub receive_maximum: u16,
    /// Largest packet accepted, bytes.
    pub maximum_packet_size: u32,
    /// Topic aliases a client may use.
    pub topic_alias_maximum: u16,
    /// Highest QoS accepted.
    pub maximum_qos: crate::mqtt::QoS,
    /// Largest keep alive granted, seconds; 0 = no limit. MQTT 3 clients are held to it without being told.
    pub max_keep_alive_s: u16,
    /// Smallest keep alive granted, seconds; 0 = any. MQTT 3 clients are given as much time without being told.
    pub min_keep_alive_s: u16,
    /// Largest session expiry interval granted, seconds; `u32::MAX` = no limit.
    pub max_session_expiry_s: u32,
    /// Messages in flight to one client.
    pub max_inflight: u16,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            receive_maximum: 1000,
            maximum_packet_size: 16 << 20,
            topic_alias_maximum: 32,
            maximum_qos: crate::mqtt::QoS::ExactlyOnce,
            max_keep_alive_s: 0,
            min_keep_alive_s: 0,
            max_session_expiry_s: u32::MAX,
            max_inflight: 1000,
        }
    }
}

impl Limits {
    /// The keep alive that a client which asks for `asked_s` is held to, seconds; 0 = none.
    pub fn keep_alive_s(&self, asked_s: u16) -> u16 {
        match (asked_s, self.max_keep_alive_s) {
            (0, max) => max,
            (asked, 0) => asked.max(self.min_keep_alive_s),
            (asked, max) => asked.max(self.min_keep_alive_s).min(max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alives_are_kept_within_bounds() {
        // Smallest, largest, asked for, granted.
        let cases = [
            (0, 0, 0, 0),
            (0, 0, 7, 7),
            (10, 0, 7, 10),
            (10, 0, 0, 0),
            (10, 0, 11, 11),
            (0, 5, 0, 5),
            (0, 5, 7, 5),
            (3, 5, 1, 3),
            (3, 5, 4, 4),
        ];
        for (min_keep_alive_s, max_keep_alive_s, asked, granted) in cases {
            let limits = Limits { min_keep_alive_s, max_keep_alive_s, ..Limits::default() };
            assert_eq!(limits.keep_alive_s(asked), granted, "{limits:?}");
        }
    }
}
