//! Retained messages (MQTT 5.0 section 3.3.1.3): the last one of every topic, in memory, found by filter without a scan.
//!
//! What is sent because of a SUBSCRIBE is never older than what its session has been given of the topic already. So every update
//! has a number, taken before sessions are looked up that get it, and every request has the number at which its subscription was in
//! the router: what has a higher one comes to the subscription by itself.

mod live;

use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::Message;
use crate::ports::{BoxFuture, ClusterTime, Incarnation, MessageId, Revision};
use crate::sync::level::Waiters;
use crate::topic::{RetainedTrie, matches};
use live::{Live, Update};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Topics of which it is remembered when the cluster cleared them.
const CLEARED_MAX: usize = 65_536;

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
struct Entry {
    message: Message,
    /// The revision that set it; 0 if this node is alone.
    revision: Revision,
    /// The snapshot that mentioned it last.
    snapshot: u32,
    /// The update that set it, in a cluster.
    id: Option<MessageId>,
    /// Differs from that of every other update.
    version: u64,
    /// The number at which sessions here were given it; 0 if they were not, as far as is known.
    given: u64,
}

/// A retained message that was found for a subscription.
#[derive(Clone, Debug)]
pub struct Found {
    /// The message, whose expiry is not for use: it may be in the cluster's time.
    pub message: Message,
    /// Which update of its topic it is; 0 = one that waits for the store.
    version: u64,
    /// When it was found.
    at: Time,
}

#[derive(Debug, Default)]
struct Inner {
    index: RetainedTrie<Entry>,
    snapshot: u32,
    bytes: usize,
    /// Topics whose message expires, soonest first.
    expiring: BTreeSet<(Time, Box<str>)>,
    /// Updates so far.
    updates: u64,
    live: Live,
    cleared: Cleared,
}

/// How a topic was cleared.
#[derive(Clone, Copy, Debug)]
struct Clear {
    revision: Revision,
    /// The number at which sessions here were given that; 0 if they were not, as far as is known.
    given: u64,
    /// When the message that it took away expired.
    expired_at: Option<Time>,
}

/// When topics were cleared, the last ones of them.
#[derive(Debug, Default)]
struct Cleared {
    at: HashMap<Arc<str>, Clear>,
    order: BTreeSet<(Revision, Arc<str>)>,
}

impl Cleared {
    fn note(&mut self, topic: &str, clear: Clear) {
        let topic: Arc<str> = topic.into();
        if let Some(before) = self.at.insert(topic.clone(), clear) {
            self.order.remove(&(before.revision, topic.clone()));
        }
        self.order.insert((clear.revision, topic));
        if self.order.len() > CLEARED_MAX
            && let Some((_, first)) = self.order.pop_first()
        {
            self.at.remove(&first);
        }
    }
}

impl Inner {
    fn next(&mut self) -> u64 {
        self.updates += 1;
        self.updates
    }

    fn set(&mut self, message: &Message, revision: Revision, id: Option<MessageId>, given: u64) {
        let (version, snapshot) = (self.next(), self.snapshot);
        let entry = Entry { message: message.clone(), revision, snapshot, id, version, given };
        if let Some(old) = self.index.insert(message.topic(), entry) {
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

/// The retained messages of a node: the last one of every topic, in memory, found by filter without a scan.
#[derive(Debug)]
pub struct Retained {
    inner: RwLock<Inner>,
    /// Those who wait until updates are decided.
    waiting: Mutex<Waiters>,
    /// What the expiries of the index are in.
    time: Arc<ClusterTime>,
}

impl Default for Retained {
    fn default() -> Retained {
        Retained::timed(Arc::new(ClusterTime::own_clock()))
    }
}

impl Retained {
    /// An empty store, to be filled with messages whose expiry is in this time.
    pub fn timed(time: Arc<ClusterTime>) -> Retained {
        Retained { inner: RwLock::default(), waiting: Mutex::default(), time }
    }

    /// Whether a message of the index has expired at this moment of the own clock.
    fn is_over(&self, message: &Message, now: Time) -> bool {
        message.expires_at().is_some() && self.time.judged_at(now).is_some_and(|at| message.expired(at))
    }

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
        let given = inner.updates + 1;
        inner.set(message, 0, None, given);
        record()
    }

    /// Sets or clears a topic as the cluster says at `revision`.
    pub fn apply(&self, topic: &str, update: Option<(&Message, MessageId)>, revision: Revision) {
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        match update {
            Some((message, id)) => {
                let given = inner.live.decide(topic, id);
                let snapshot = inner.snapshot;
                match inner.index.get_mut(topic).filter(|k| k.revision == revision) {
                    Some(known) => known.snapshot = snapshot,
                    None => inner.set(message, revision, Some(id), given.unwrap_or(0)),
                }
            }
            None => {
                let old = inner.index.remove(topic);
                let clears = inner.live.of(topic).iter().rev().find(|u| u.message.is_none());
                let clear = Clear {
                    revision,
                    given: clears.map_or(0, |u| u.at),
                    expired_at: old.as_ref().and_then(|k| k.message.expires_at()),
                };
                inner.cleared.note(topic, clear);
                if let Some(old) = old {
                    inner.forget(&old.message);
                }
            }
        }
        drop(guard);
        self.poke();
    }

    /// How many updates there were so far. A subscription that is in the router when this is read is given all with a higher number.
    pub fn updates(&self) -> u64 {
        self.inner.read().updates
    }

    /// Sessions here are about to be given an update that the index does not have yet; an empty payload clears, and so does what
    /// may not be retained. `spooled`: the store takes it at some later time, nobody knows when.
    pub fn begin(&self, message: &Message, id: MessageId, clears: bool, spooled: bool) {
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        let (at, topic) = (inner.next(), message.topic());
        if let Some(entry) = inner.index.get_mut(topic)
            && let Some(known) = entry.id.filter(|known| known.origin == id.origin)
            && known.seq >= id.seq
        {
            // Its event was faster, or that of a later one.
            if known == id {
                entry.given = at;
            }
            return;
        }
        inner.live.begin(topic, Update { id, message: (!clears).then(|| message.clone()), at, spooled });
    }

    /// A session that an update is for is not given it, as its subscription is younger than the publish: whoever is to be sent the
    /// topic's message because of a SUBSCRIBE is sent it, also those who have had it.
    pub fn not_given(&self, topic: &str, id: MessageId) {
        let mut inner = self.inner.write();
        inner.live.not_given(topic, id);
        if let Some(entry) = inner.index.get_mut(topic).filter(|k| k.id == Some(id)) {
            entry.given = 0;
        }
    }

    /// Takes note that the index knows what became of an update.
    pub fn decided(&self, topic: &str, id: MessageId) {
        self.inner.write().live.decide(topic, id);
        self.poke();
    }

    /// Takes note that the index knows what became of the updates of an origin below `decided`; those below `waited` wait for the store if
    /// they are not decided.
    pub fn decided_below(&self, origin: Incarnation, decided: u64, waited: u64) {
        self.inner.write().live.decide_below(origin, decided, waited);
        self.poke();
    }

    /// Forgets the updates of an origin: nobody will say what became of them.
    pub fn forget_origin(&self, origin: Incarnation) {
        self.inner.write().live.forget(origin);
        self.poke();
    }

    /// Updates of topics that match a filter, which sessions here have been given and which the index will know soon.
    pub fn under_way(&self, filter: &str) -> Vec<(Arc<str>, MessageId)> {
        self.inner.read().live.under_way(filter)
    }

    /// Completes when none of these updates is under way any more.
    pub async fn when_decided(&self, updates: Vec<(Arc<str>, MessageId)>) {
        loop {
            let news = self.news();
            if !self.any_under_way(&updates) {
                return;
            }
            news.await;
        }
    }

    fn any_under_way(&self, updates: &[(Arc<str>, MessageId)]) -> bool {
        let inner = self.inner.read();
        updates.iter().any(|(topic, id)| inner.live.is_under_way(topic, *id))
    }

    fn news(&self) -> BoxFuture<()> {
        self.waiting.lock().join()
    }

    fn poke(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.listed() > 0 {
            let waiters = std::mem::take(&mut *waiting);
            drop(waiting);
            waiters.wake();
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

    /// Whether a topic was cleared after this revision, as far as is known.
    pub fn cleared_since(&self, topic: &str, since: Revision) -> bool {
        self.inner.read().cleared.at.get(topic).is_some_and(|clear| clear.revision > since)
    }

    /// Removes what the snapshot of `revision` did not mention.
    pub fn end_snapshot(&self, revision: Revision) {
        let mut inner = self.inner.write();
        let snapshot = inner.snapshot;
        let mut stale = Vec::new();
        inner.index.for_each(|k| {
            if k.snapshot != snapshot {
                stale.push(k.message.clone());
            }
        });
        for message in stale {
            let clear = Clear { revision, given: 0, expired_at: message.expires_at() };
            inner.cleared.note(message.topic(), clear);
            inner.index.remove(message.topic());
            inner.forget(&message);
        }
    }

    /// Topics whose message has expired, at most `max`, and the revisions that set them.
    pub fn expired(&self, now: Time, max: usize) -> Vec<(Arc<str>, Revision)> {
        let Some(now) = self.time.judged_at(now) else { return Vec::new() };
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

    /// Messages whose topic matches `filter` and that have not expired; their expiry is as the index has it.
    pub fn matching(&self, filter: &str, now: Time) -> Vec<Message> {
        let mut found = Vec::new();
        self.inner.read().index.for_each_match(filter, |k| {
            if !self.is_over(&k.message, now) {
                found.push(k.message.clone());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// The retained messages that match `filter`, for a subscription; what is spooled for the store counts as retained.
    pub fn found(&self, filter: &str, now: Time) -> Vec<Found> {
        let mut found = Vec::new();
        let inner = self.inner.read();
        inner.index.for_each_match(filter, |k| {
            if !self.is_over(&k.message, now) {
                found.push(Found { message: k.message.clone(), version: k.version, at: now });
            }
            ControlFlow::Continue(())
        });
        for topic in inner.live.spooled(filter).filter(|t| inner.index.get(t).is_none()) {
            let last = inner.live.of(topic).iter().rev().find_map(|u| u.message.as_ref());
            if let Some(message) = last.filter(|m| !m.expired(now)) {
                found.push(Found { message: message.clone(), version: 0, at: now });
            }
        }
        found
    }

    /// The retained messages that match `filter` and were set after a revision, for a subscription.
    pub fn found_after(&self, filter: &str, after: Revision, now: Time) -> Vec<Found> {
        let mut found = Vec::new();
        self.inner.read().index.for_each_match(filter, |k| {
            if k.revision > after && !self.is_over(&k.message, now) {
                found.push(Found { message: k.message.clone(), version: k.version, at: now });
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// Topics that match a filter and were cleared after a revision, as far as that is known; not those whose message had expired, nor
    /// those whose clear a subscription of this age was given.
    pub fn cleared_after(&self, filter: &str, after: Revision, born: u64, now: Time) -> Vec<Arc<str>> {
        let inner = self.inner.read();
        let later = inner.cleared.order.range((after.saturating_add(1), Arc::from(""))..);
        let judged_at = self.time.judged_at(now);
        let missed = |topic: &&Arc<str>| {
            let expired = |c: &Clear| c.expired_at.is_some_and(|at| judged_at.is_some_and(|now| at <= now));
            matches(filter, topic)
                && inner.index.get(topic).is_none()
                && inner.cleared.at.get(*topic).is_some_and(|c| c.given <= born && !expired(c))
        };
        later.map(|(_, topic)| topic).filter(missed).cloned().collect()
    }

    /// Calls `send` to send what was found to a subscription that was in the router when `born` updates had come, unless that has been
    /// given something newer. No session is given a later update before `send` has returned. It is told the update's name if its publish
    /// may still be on its way to this node. The message's expiry is by the own clock.
    pub fn send<R>(
        &self,
        found: &Found,
        born: u64,
        send: impl FnOnce(&Message, Option<MessageId>) -> R,
    ) -> Option<R> {
        let inner = self.inner.read();
        let topic = found.message.topic();
        let live = inner.live.of(topic);
        if live.iter().any(|u| u.at > born) {
            return None;
        }
        if let Some(last) = live.last().filter(|u| u.spooled) {
            return Some(send(last.message.as_ref()?, None));
        }
        let entry = inner.index.get(topic)?;
        if entry.version != found.version || entry.given > born {
            return None;
        }
        let message = self.time.message(&entry.message, found.at);
        Some(send(&message, entry.id.filter(|_| entry.given == 0)))
    }

    /// How many topics have a retained message.
    pub fn len(&self) -> usize {
        self.inner.read().index.len()
    }

    /// Whether no topic has a retained message.
    pub fn is_empty(&self) -> bool {
        self.inner.read().index.is_empty()
    }

    /// Bytes of all retained messages.
    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }
}

#[cfg(test)]
mod tests;
