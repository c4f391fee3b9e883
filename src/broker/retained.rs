//! Retained messages (MQTT 5.0 section 3.3.1.3): the last one of every topic, in memory, found by filter without a scan.

use super::ports::Revision;
use crate::clock::Time;
use crate::mqtt::Message;
use crate::topic::RetainedTrie;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Limits of the retained messages.
#[derive(Clone, Copy, Debug)]
pub struct RetainedLimits {
    /// Topics with a retained message.
    pub messages: usize,
    /// Bytes of all retained messages.
    pub bytes: usize,
    /// Largest payload, bytes.
    pub payload: usize,
}

impl Default for RetainedLimits {
    fn default() -> RetainedLimits {
        RetainedLimits { messages: 1_000_000, bytes: 1 << 30, payload: 1 << 20 }
    }
}

impl RetainedLimits {
    /// Whether a message could be retained if there were no other.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn allow(&self, message: &Message) -> Result<(), Forbidden> {
        let (payload, size) = (message.payload().len(), message.size());
        if payload > self.payload {
            return Err(Forbidden::Payload { max: self.payload, size: payload });
        }
        if self.messages == 0 {
            return Err(Forbidden::Messages { max: 0, size });
        }
        if size > self.bytes {
            return Err(Forbidden::Bytes { max: self.bytes, used: 0, size });
        }
        Ok(())
    }
}

/// What the log says of a message that was accepted although a limit forbids to retain it.
pub const NOT_RETAINED: &str = "message not retained; what was retained on its topic is cleared";

/// A limit that forbids a message to be retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// [`RetainedLimits::payload`].
    #[error("retained.max_payload allows {max} bytes, and the payload has {size}")]
    Payload {
        /// The limit.
        max: usize,
        /// Bytes of the payload.
        size: usize,
    },
    /// [`RetainedLimits::messages`].
    #[error("retained.max_messages allows {max}, and this one of {size} bytes would be one more")]
    Messages {
        /// The limit.
        max: usize,
        /// Bytes of the message.
        size: usize,
    },
    /// [`RetainedLimits::bytes`].
    #[error(
        "retained.max_bytes allows {max} bytes, {used} are taken by others, and this message takes {size}"
    )]
    Bytes {
        /// The limit.
        max: usize,
        /// Bytes of the other messages.
        used: usize,
        /// Bytes of the message.
        size: usize,
    },
    /// The cluster's store takes no larger one.
    #[error(
        "a request to etcd takes {max} bytes of topic, payload and properties, and this message has {size} there"
    )]
    Request {
        /// The limit.
        max: usize,
        /// Bytes of the message in the request.
        size: usize,
    },
    /// So many clears of topics of which no message is known wait for the cluster's store.
    #[error("{max} topics without a known message wait to be cleared, and this would be one more")]
    Clears {
        /// The limit.
        max: usize,
    },
    /// What a bridge says of itself is too large.
    #[error(
        "the state of a bridge may have {max} bytes of topic, payload and properties, and this one has {size}"
    )]
    BridgeState {
        /// The limit.
        max: usize,
        /// Bytes of it.
        size: usize,
    },
    /// A journal in memory is full.
    #[error(
        "storage.memory_max allows {max} bytes, {used} are taken by others, and this message takes {size}"
    )]
    Memory {
        /// The limit.
        max: u64,
        /// Bytes of what else it has.
        used: u64,
        /// Bytes of the message.
        size: usize,
    },
    /// A journal on disk cannot be written, and `storage.max_pending` waits.
    #[error(
        "the journal cannot be written, as much as storage.max_pending allows waits, and this message takes {size} bytes"
    )]
    Journal {
        /// Bytes of the message.
        size: usize,
    },
}

/// Updates that are to become retained messages and are in no index yet, those of one topic left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Underway {
    /// Topics without a retained message so far.
    pub topics: usize,
    /// Bytes of all.
    pub bytes: usize,
}

/// A topic's message, and what the cluster says of it.
#[derive(Debug)]
struct Kept {
    message: Message,
    /// The revision that set it; 0 if this node is alone.
    revision: Revision,
    /// The snapshot that mentioned it last.
    snapshot: u32,
}

#[derive(Debug, Default)]
struct Inner {
    index: RetainedTrie<Kept>,
    snapshot: u32,
    bytes: usize,
    /// Topics whose message expires, soonest first.
    expiring: BTreeSet<(Time, Box<str>)>,
}

impl Inner {
    fn set(&mut self, message: &Message, revision: Revision) {
        let kept = Kept { message: message.clone(), revision, snapshot: self.snapshot };
        if let Some(old) = self.index.insert(message.topic(), kept) {
            self.forget(&old.message);
        }
        self.bytes += message.size();
        if let Some(at) = message.expires_at() {
            self.expiring.insert((at, message.topic().into()));
        }
    }

    fn forget(&mut self, old: &Message) {
        self.bytes -= old.size();
        if let Some(at) = old.expires_at() {
            self.expiring.remove(&(at, old.topic().into()));
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Retained {
    inner: RwLock<Inner>,
}

impl Retained {
    /// Whether `message` may become its topic's retained message, beside those that are on their way. What is there may be
    /// replaced by something no larger, also if limits that were lowered leave no room.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub fn admits(
        &self,
        message: &Message,
        limits: &RetainedLimits,
        underway: Underway,
    ) -> Result<(), Forbidden> {
        limits.allow(message)?;
        let inner = self.inner.read();
        let (size, old) = (message.size(), inner.index.get(message.topic()).map(|k| k.message.size()));
        if old.is_none() && inner.index.len() + underway.topics >= limits.messages {
            return Err(Forbidden::Messages { max: limits.messages, size });
        }
        let old = old.unwrap_or(0);
        let used = inner.bytes + underway.bytes - old;
        if size > old && used + size > limits.bytes {
            return Err(Forbidden::Bytes { max: limits.bytes, used, size });
        }
        Ok(())
    }

    /// Sets the retained message of its topic; runs `record` under the same lock, so that the journal has the same order.
    pub fn set<R>(&self, message: &Message, record: impl FnOnce() -> R) -> R {
        let mut inner = self.inner.write();
        inner.set(message, 0);
        record()
    }

    /// Sets or clears a topic as the cluster says at `revision`.
    pub fn apply(&self, topic: &str, message: Option<&Message>, revision: Revision) {
        let mut inner = self.inner.write();
        match message {
            Some(message) => inner.set(message, revision),
            None => {
                if let Some(old) = inner.index.remove(topic) {
                    inner.forget(&old.message);
                }
            }
        }
    }

    /// The revision that set a topic's message; 0 = there is none.
    pub fn revision_of(&self, topic: &str) -> Revision {
        self.inner.read().index.get(topic).map_or(0, |k| k.revision)
    }

    /// What the cluster does not mention from now until [`Retained::end_snapshot`] will go.
    pub fn begin_snapshot(&self) {
        let mut inner = self.inner.write();
        inner.snapshot = inner.snapshot.wrapping_add(1);
    }

    /// Removes what the snapshot did not mention.
    pub fn end_snapshot(&self) {
        let mut inner = self.inner.write();
        let snapshot = inner.snapshot;
        let mut stale = Vec::new();
        inner.index.for_each(|k| {
            if k.snapshot != snapshot {
                stale.push(k.message.clone());
            }
        });
        for message in stale {
            inner.index.remove(message.topic());
            inner.forget(&message);
        }
    }

    /// Topics whose message has expired, at most `max`, and the revisions that set them.
    pub fn expired(&self, now: Time, max: usize) -> Vec<(Arc<str>, Revision)> {
        let inner = self.inner.read();
        let due = inner.expiring.iter().take_while(|(at, _)| *at <= now).take(max);
        due.filter_map(|(_, t)| Some((Arc::from(&**t), inner.index.get(t)?.revision))).collect()
    }

    /// Clears a topic; runs `record` under the same lock if there was a message.
    pub fn clear<R>(&self, topic: &str, record: impl FnOnce() -> R) -> Option<R> {
        let mut inner = self.inner.write();
        let old = inner.index.remove(topic)?;
        inner.forget(&old.message);
        Some(record())
    }

    /// Clears every topic whose message has expired; runs `record` for each under the same lock.
    pub fn expire(&self, now: Time, mut record: impl FnMut(&str)) {
        let mut inner = self.inner.write();
        while let Some((at, topic)) = inner.expiring.pop_first() {
            if at > now {
                inner.expiring.insert((at, topic));
                return;
            }
            if let Some(old) = inner.index.remove(&topic) {
                inner.bytes -= old.message.size();
                record(&topic);
            }
        }
    }

    /// Messages whose topic matches `filter` and that have not expired.
    pub fn matching(&self, filter: &str, now: Time) -> Vec<Message> {
        let mut found = Vec::new();
        self.inner.read().index.for_each_match(filter, |k| {
            if !k.message.expired(now) {
                found.push(k.message.clone());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// Topics with a retained message.
    pub fn len(&self) -> usize {
        self.inner.read().index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.inner.read().index.is_empty()
    }

    /// Bytes of all retained messages.
    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }
}
