//! Updates of retained messages that sessions of this node have been given, or are about to be, while the index does not say yet
//! what became of them.

use crate::hashing::HashMap;
use crate::mqtt::Message;
use crate::ports::{Incarnation, MessageId};
use crate::topic::matches;
use smallvec::SmallVec;
use std::sync::Arc;

/// Updates that are remembered, at most; the ones above it are not looked at.
const UPDATES_MAX: usize = 65_536;

/// An update.
#[derive(Debug)]
pub(super) struct Update {
    pub id: MessageId,
    /// `None` = it clears.
    pub message: Option<Message>,
    /// The update's number among all that this node has seen; 0 = not all sessions here that match are given it.
    pub at: u64,
    /// Whether the update waits for the store, nobody knows how long.
    pub spooled: bool,
}

/// The updates that sessions of this node have been given, or are about to be, while the index does not say yet what became of them.
#[derive(Debug, Default)]
pub(super) struct Live {
    topics: HashMap<Arc<str>, SmallVec<[Update; 1]>>,
    len: usize,
    /// For each origin: what has a lower number is decided.
    decided: HashMap<Incarnation, u64>,
}

impl Live {
    /// Adds an update: a session may be given it from now on.
    pub fn begin(&mut self, topic: &str, update: Update) {
        let id = update.id;
        if self.len >= UPDATES_MAX || self.decided.get(&id.origin).is_some_and(|below| id.seq < *below) {
            return;
        }
        let updates = match self.topics.get_mut(topic) {
            Some(updates) => updates,
            None => self.topics.entry(topic.into()).or_default(),
        };
        if !updates.iter().any(|u| u.id == id) {
            updates.push(update);
            self.len += 1;
        }
    }

    /// What is known of a topic, in the order in which it came.
    pub fn of(&self, topic: &str) -> &[Update] {
        self.topics.get(topic).map_or(&[][..], |updates| updates.as_slice())
    }

    /// Takes note that a session that matches is not given an update.
    pub fn not_given(&mut self, topic: &str, id: MessageId) {
        let updates = self.topics.get_mut(topic).into_iter().flatten();
        updates.filter(|u| u.id == id).for_each(|u| u.at = 0);
    }

    /// Topics that match a filter, with updates that wait for the store for nobody knows how long, and no others.
    pub fn spooled(&self, filter: &str) -> impl Iterator<Item = &Arc<str>> {
        let spooled = |updates: &[Update]| updates.iter().any(|u| u.spooled);
        self.topics.iter().filter(move |(t, u)| spooled(u) && matches(filter, t)).map(|(t, _)| t)
    }

    /// Updates of topics that match a filter which will be decided soon.
    pub fn under_way(&self, filter: &str) -> Vec<(Arc<str>, MessageId)> {
        let mut found = Vec::new();
        for (topic, updates) in self.topics.iter().filter(|(topic, _)| matches(filter, topic)) {
            found.extend(updates.iter().filter(|u| !u.spooled).map(|u| (topic.clone(), u.id)));
        }
        found
    }

    /// Whether an update will be decided soon.
    pub fn is_under_way(&self, topic: &str, id: MessageId) -> bool {
        self.of(topic).iter().any(|u| u.id == id && !u.spooled)
    }

    /// Takes note that the index has this update of the topic, or knows that it is void, and with it earlier ones of its origin. The number
    /// of this very one, if it is known.
    pub fn decide(&mut self, topic: &str, id: MessageId) -> Option<u64> {
        let updates = self.topics.get_mut(topic)?;
        let at = updates.iter().find(|u| u.id == id).map(|u| u.at);
        let before = updates.len();
        updates.retain(|u| u.id.origin != id.origin || u.id.seq > id.seq);
        self.len -= before - updates.len();
        if updates.is_empty() {
            self.topics.remove(topic);
        }
        at
    }

    /// Takes note that the updates of an origin below `decided` are, and that those below `waited` that are not wait for the store.
    pub fn decide_below(&mut self, origin: Incarnation, decided: u64, waited: u64) {
        self.decided.insert(origin, decided);
        if self.topics.is_empty() {
            return;
        }
        self.change(|u| {
            u.spooled |= u.id.origin == origin && u.id.seq < waited;
            u.id.origin != origin || u.id.seq >= decided
        });
    }

    /// Forgets the updates of an origin: nobody will say what became of them.
    pub fn forget(&mut self, origin: Incarnation) {
        self.decided.remove(&origin);
        self.change(|u| u.id.origin != origin);
    }

    fn change(&mut self, mut keep: impl FnMut(&mut Update) -> bool) {
        self.topics.retain(|_, updates| {
            updates.retain(&mut keep);
            !updates.is_empty()
        });
        self.len = self.topics.values().map(SmallVec::len).sum();
    }
}
