//! Topic aliases of one connection, both ways (MQTT 5.0 section 3.3.2.3.4). They live and die with the connection;
//! this module never sees a packet and never decides what to do about an error.

use std::hash::{BuildHasher, Hasher};

use thiserror::Error;

/// Most bytes of topic names kept for the aliases one client sets; two of the longest names, or thousands of
/// usual ones. Without it a client could make the server keep 65,535 names of 65,535 bytes.
const INBOUND_BYTES_MAX: usize = 256 * 1024;

/// Most aliases the server sets on one connection, whatever the client would accept.
const OUTBOUND_ALIASES_MAX: usize = 16;

/// Longest topic in bytes the server keeps an alias for.
const OUTBOUND_TOPIC_BYTES_MAX: usize = 1024;

/// Shortest topic in bytes that gains from an alias: the alias property itself takes three bytes.
const OUTBOUND_TOPIC_BYTES_MIN: usize = 4;

/// How many of the last topics sent are remembered, to see which of them come again.
const SEEN: usize = 16;

/// An alias gives way to another topic when it was not used in this many messages.
const STALE_AFTER_MESSAGES: u32 = 256;

/// Why a topic alias in a PUBLISH from a client cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AliasError {
    /// The alias is zero or above the maximum the server announced (reason 0x94).
    #[error("topic alias {0} is out of range")]
    OutOfRange(u16),
    /// The topic is empty and the alias was never set on this connection (reason 0x82).
    #[error("topic alias {0} is not set")]
    Unknown(u16),
    /// The topic names behind this connection's aliases would take too many bytes (reason 0x97).
    #[error("topic alias {0} would exceed the space for aliases")]
    NoSpace(u16),
}

/// The aliases a client has set. Allocates nothing until the first is set; then 16 bytes for each alias up to the
/// highest one in use, and the names, which are limited in total.
#[derive(Debug, Default)]
pub struct InboundAliases {
    topics: Vec<Option<Box<str>>>,
    bytes: usize,
    max: u16,
}

impl InboundAliases {
    /// No aliases yet; `max` is the Topic Alias Maximum the server sent in its CONNACK (0 allows none).
    #[must_use]
    pub fn new(max: u16) -> Self {
        Self { topics: Vec::new(), bytes: 0, max }
    }

    /// The topic a PUBLISH means: sets the alias if the packet has a topic, looks it up if the topic is empty.
    ///
    /// # Errors
    /// See [`AliasError`]; nothing has changed then.
    pub fn resolve(&mut self, alias: u16, topic: &str) -> Result<&str, AliasError> {
        if alias == 0 || alias > self.max {
            return Err(AliasError::OutOfRange(alias));
        }
        let index = usize::from(alias) - 1;
        if topic.is_empty() {
            return self.topics.get(index).and_then(Option::as_deref).ok_or(AliasError::Unknown(alias));
        }
        let old = self.topics.get(index).and_then(Option::as_deref);
        if old != Some(topic) {
            let bytes = self.bytes - old.map_or(0, str::len) + topic.len();
            if bytes > INBOUND_BYTES_MAX {
                return Err(AliasError::NoSpace(alias));
            }
            if index >= self.topics.len() {
                self.topics.resize_with(index + 1, || None);
            }
            if let Some(slot) = self.topics.get_mut(index) {
                *slot = Some(topic.into());
                self.bytes = bytes;
            }
        }
        self.topics.get(index).and_then(Option::as_deref).ok_or(AliasError::Unknown(alias))
    }
}

/// How the server sends the topic of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AliasUse {
    /// Send the topic and no alias.
    None,
    /// Send the topic with this alias, which the client remembers.
    Set(u16),
    /// Send this alias and an empty topic.
    Use(u16),
}

/// The aliases the server has set on a connection: up to 16 topics that were sent more than once, first come, first
/// served; one that falls out of use gives way. Allocates nothing until the first message.
#[derive(Debug, Default)]
pub struct OutboundAliases {
    state: Option<Box<Outbound>>,
    max: u16,
}

#[derive(Debug, Default)]
struct Outbound {
    aliases: Vec<Alias>,
    /// Hashes of the last topics without an alias; a collision only sets an alias one message too early.
    seen: [u32; SEEN],
    seen_next: usize,
    messages: u32,
}

#[derive(Debug)]
struct Alias {
    topic: Box<str>,
    hash: u32,
    used: u32,
}

impl OutboundAliases {
    /// No aliases yet; `max` is the Topic Alias Maximum of the client's CONNECT (0 allows none).
    #[must_use]
    pub fn new(max: u16) -> Self {
        Self { state: None, max }
    }

    /// How to send a message with this topic now. The caller must really send it so, and in this order, or drop the
    /// connection: the client learns the alias from the packet.
    pub fn assign(&mut self, topic: &str) -> AliasUse {
        if self.max == 0 || !(OUTBOUND_TOPIC_BYTES_MIN..=OUTBOUND_TOPIC_BYTES_MAX).contains(&topic.len()) {
            return AliasUse::None;
        }
        let limit = OUTBOUND_ALIASES_MAX.min(usize::from(self.max));
        self.state.get_or_insert_default().assign(topic, limit)
    }
}

impl Outbound {
    fn assign(&mut self, topic: &str, limit: usize) -> AliasUse {
        let hash = short_hash(topic);
        self.messages = self.messages.wrapping_add(1);
        let now = self.messages;
        for (alias, number) in self.aliases.iter_mut().zip(1..) {
            if alias.hash == hash && *alias.topic == *topic {
                alias.used = now;
                return AliasUse::Use(number);
            }
        }
        let Some(seen) = self.seen.iter_mut().find(|seen| **seen == hash) else {
            if let Some(slot) = self.seen.get_mut(self.seen_next) {
                *slot = hash;
            }
            self.seen_next = (self.seen_next + 1) % SEEN;
            return AliasUse::None;
        };
        let fresh = || Alias { topic: topic.into(), hash, used: now };
        if self.aliases.len() < limit {
            *seen = 0;
            self.aliases.push(fresh());
            return u16::try_from(self.aliases.len()).map_or(AliasUse::None, AliasUse::Set);
        }
        let idle = |alias: &Alias| now.wrapping_sub(alias.used);
        match self.aliases.iter_mut().zip(1..).max_by_key(|(alias, _)| idle(alias)) {
            Some((alias, number)) if idle(alias) > STALE_AFTER_MESSAGES => {
                *seen = 0;
                *alias = fresh();
                AliasUse::Set(number)
            }
            _ => AliasUse::None,
        }
    }
}

/// Never zero, which marks an empty slot of `seen`.
fn short_hash(topic: &str) -> u32 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(topic.as_bytes());
    (hasher.finish() as u32) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inbound_sets_and_looks_up() {
        let mut aliases = InboundAliases::new(10);
        assert_eq!(aliases.resolve(1, ""), Err(AliasError::Unknown(1)));
        assert_eq!(aliases.resolve(1, "a/b"), Ok("a/b"));
        assert_eq!(aliases.resolve(10, "c"), Ok("c"));
        assert_eq!(aliases.resolve(1, ""), Ok("a/b"));
        assert_eq!(aliases.resolve(1, "d"), Ok("d"), "an alias may be set again");
        assert_eq!(aliases.resolve(1, ""), Ok("d"));
        assert_eq!(aliases.resolve(10, ""), Ok("c"));
        assert_eq!(aliases.resolve(9, ""), Err(AliasError::Unknown(9)));
        assert_eq!(aliases.resolve(0, "x"), Err(AliasError::OutOfRange(0)));
        assert_eq!(aliases.resolve(11, "x"), Err(AliasError::OutOfRange(11)));
        assert_eq!(InboundAliases::new(0).resolve(1, "x"), Err(AliasError::OutOfRange(1)));
    }

    #[test]
    fn inbound_space_is_limited_and_given_back() {
        let long = "x".repeat(65_535);
        let mut aliases = InboundAliases::new(u16::MAX);
        for alias in 1..=4 {
            assert_eq!(aliases.resolve(alias, &long), Ok(long.as_str()));
        }
        assert_eq!(aliases.resolve(5, &long), Err(AliasError::NoSpace(5)));
        assert_eq!(aliases.resolve(5, ""), Err(AliasError::Unknown(5)));
        assert_eq!(aliases.resolve(4, &long), Ok(long.as_str()), "the same again takes no more");
        assert_eq!(aliases.resolve(4, "short"), Ok("short"));
        assert_eq!(aliases.resolve(5, &long[..65_000]), Ok(&long[..65_000]));
        assert_eq!(aliases.bytes, 3 * 65_535 + 5 + 65_000);
    }

    #[test]
    fn outbound_only_for_repeated_topics() {
        let mut aliases = OutboundAliases::new(2);
        assert_eq!(aliases.assign("first"), AliasUse::None);
        assert_eq!(aliases.assign("second"), AliasUse::None);
        assert_eq!(aliases.assign("second"), AliasUse::Set(1));
        assert_eq!(aliases.assign("second"), AliasUse::Use(1));
        assert_eq!(aliases.assign("first"), AliasUse::Set(2));
        assert_eq!(aliases.assign("third"), AliasUse::None);
        assert_eq!(aliases.assign("third"), AliasUse::None, "both are in use");
        assert_eq!(aliases.assign("first"), AliasUse::Use(2));
        for _ in 0..STALE_AFTER_MESSAGES {
            assert_eq!(aliases.assign("first"), AliasUse::Use(2));
        }
        assert_eq!(aliases.assign("third"), AliasUse::Set(1), "the idle one gives way");
        assert_eq!(aliases.assign("third"), AliasUse::Use(1));
        assert_eq!(aliases.assign("second"), AliasUse::None);
    }

    #[test]
    fn outbound_limits() {
        let mut none = OutboundAliases::new(0);
        for _ in 0..3 {
            assert_eq!(none.assign("topic"), AliasUse::None);
        }
        assert!(none.state.is_none());

        let mut many = OutboundAliases::new(u16::MAX);
        let long = "x".repeat(OUTBOUND_TOPIC_BYTES_MAX + 1);
        for _ in 0..3 {
            assert_eq!(many.assign("a/b"), AliasUse::None, "too short to gain");
            assert_eq!(many.assign(&long), AliasUse::None, "too long to keep");
        }
        for number in 0..100 {
            let topic = format!("topic/{number}");
            many.assign(&topic);
            many.assign(&topic);
        }
        assert_eq!(many.state.unwrap().aliases.len(), OUTBOUND_ALIASES_MAX);
    }

    /// A client that applies what it is told always ends up with the topic that was meant.
    #[test]
    fn both_ends_agree() {
        let (mut sender, mut receiver) = (OutboundAliases::new(8), InboundAliases::new(8));
        let mut random = 12_345_u32;
        let mut used = 0;
        for round in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let topic = format!("topic/{}", (random >> 16) % 12 + round / 5_000 * 10);
            match sender.assign(&topic) {
                AliasUse::None => {}
                AliasUse::Set(alias) => assert_eq!(receiver.resolve(alias, &topic), Ok(topic.as_str())),
                AliasUse::Use(alias) => {
                    used += 1;
                    assert_eq!(receiver.resolve(alias, ""), Ok(topic.as_str()));
                }
            }
        }
        assert!(used > 10_000, "{used}");
    }
}
