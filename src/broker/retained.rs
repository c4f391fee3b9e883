//! Retained messages (MQTT 5.0 section 3.3.1.3): the last one of every topic, in memory, found by filter without a scan.

use crate::clock::Time;
use crate::mqtt::Message;
use crate::topic::RetainedTrie;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

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
        RetainedLimits { messages: 1_000_000, bytes: 1 << 30, payload: 256 << 10 }
    }
}

#[derive(Debug, Default)]
struct Inner {
    index: RetainedTrie<Message>,
    bytes: usize,
    /// Topics whose message expires, soonest first.
    expiring: BTreeSet<(Time, Box<str>)>,
}

impl Inner {
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
    /// Whether `message` may become its topic's retained message.
    pub fn admits(&self, message: &Message, limits: &RetainedLimits) -> bool {
        if message.payload().len() > limits.payload {
            return false;
        }
        let inner = self.inner.read();
        let old = inner.index.get(message.topic());
        let messages = inner.index.len() + usize::from(old.is_none());
        let bytes = inner.bytes + message.size() - old.map_or(0, Message::size);
        messages <= limits.messages && bytes <= limits.bytes
    }

    /// Sets the retained message of its topic; runs `record` under the same lock, so that the journal has the same order.
    pub fn set<R>(&self, message: &Message, record: impl FnOnce() -> R) -> R {
        let mut inner = self.inner.write();
        if let Some(old) = inner.index.insert(message.topic(), message.clone()) {
            inner.forget(&old);
        }
        inner.bytes += message.size();
        if let Some(at) = message.expires_at() {
            inner.expiring.insert((at, message.topic().into()));
        }
        record()
    }

    /// Clears a topic; runs `record` under the same lock if there was a message.
    pub fn clear<R>(&self, topic: &str, record: impl FnOnce() -> R) -> Option<R> {
        let mut inner = self.inner.write();
        let old = inner.index.remove(topic)?;
        inner.forget(&old);
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
                inner.bytes -= old.size();
                record(&topic);
            }
        }
    }

    /// Messages whose topic matches `filter` and that have not expired.
    pub fn matching(&self, filter: &str, now: Time) -> Vec<Message> {
        let mut found = Vec::new();
        self.inner.read().index.for_each_match(filter, |m| {
            if !m.expired(now) {
                found.push(m.clone());
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
