//! Sessions by client identifier.

use super::Broker;
use super::handle::Handle;
use super::mailbox::Wakes;
use crate::hashing::{HashMap, State};
use crate::session::CloseCause;
use crate::telemetry::metrics::SessionState;
use parking_lot::Mutex;
use std::hash::BuildHasher;
use std::sync::Arc;

const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Arc<str>, Arc<Handle>>>;

/// Sessions by client identifier.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Shard>,
    hasher: State,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: State::default() }
    }
}

impl Registry {
    fn shard(&self, client_id: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(client_id) as usize % SHARDS]
    }

    /// The session of a client identifier.
    pub fn get(&self, client_id: &str) -> Option<Arc<Handle>> {
        self.shard(client_id).lock().get(client_id).cloned()
    }

    /// Puts a session in: the one of its client identifier is `handle` from now on.
    pub fn insert(&self, handle: Arc<Handle>) {
        self.shard(&handle.client_id).lock().insert(handle.client_id.clone(), handle);
    }

    /// The session of a client identifier, else the one that `make` makes, if it does; `true` with one that was made.
    pub fn get_or_make(
        &self,
        client_id: &Arc<str>,
        make: impl FnOnce() -> Option<Arc<Handle>>,
    ) -> Option<(Arc<Handle>, bool)> {
        let mut shard = self.shard(client_id).lock();
        if let Some(known) = shard.get(client_id) {
            return Some((known.clone(), false));
        }
        let made = make()?;
        shard.insert(client_id.clone(), made.clone());
        Some((made, true))
    }

    /// Removes `handle`, unless its client identifier has passed to another session meanwhile.
    pub fn remove(&self, handle: &Arc<Handle>) -> bool {
        let mut shard = self.shard(&handle.client_id).lock();
        match shard.get(&handle.client_id) {
            Some(h) if Arc::ptr_eq(h, handle) => shard.remove(&handle.client_id).is_some(),
            _ => false,
        }
    }

    /// Calls `f` with each session.
    pub fn for_each(&self, mut f: impl FnMut(&Arc<Handle>)) {
        for shard in &self.shards {
            // Copied out, so that `f` may use the registry.
            let handles: Vec<_> = shard.lock().values().cloned().collect();
            handles.iter().for_each(&mut f);
        }
    }
}

impl Broker {
    /// Removes a session that left from the registry; false if another has taken its place.
    pub fn registry_remove(&self, handle: &Arc<Handle>) -> bool {
        self.dormant.unwatch(handle);
        self.registry.remove(handle)
    }

    /// The session of a client identifier.
    pub fn session(&self, client_id: &str) -> Option<Arc<Handle>> {
        self.registry.get(client_id)
    }

    /// Puts a dormant session into the registry, and counts it.
    pub fn registry_insert(&self, handle: &Arc<Handle>) {
        self.registry.insert(handle.clone());
        self.metrics.sessions.of(SessionState::Dormant).add(1);
    }

    /// Counts a dormant session as active that was taken out of its mailbox.
    pub fn count_woken(&self) {
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Dormant).sub(1);
        sessions.of(SessionState::Active).add(1);
    }

    /// Closes the connection of one client; false if it has none.
    pub fn kick(&self, client_id: &str) -> bool {
        let Some(handle) = self.session(client_id).filter(|h| h.mailbox.online()) else { return false };
        handle.mailbox.close(CloseCause::Kicked, &mut Wakes::default());
        true
    }

    /// How many messages wait in all mailboxes.
    pub fn queued_messages(&self) -> u64 {
        let mut n = 0;
        self.registry.for_each(|h| n += h.mailbox.waiting() as u64);
        n
    }

    /// Closes the connections of those clients of which `ends` says so; returns how many there were.
    pub fn close_those(&self, cause: CloseCause, ends: impl Fn(&Handle) -> bool) -> usize {
        let (mut closed, mut wakes) = (0, Wakes::default());
        self.registry.for_each(|h| {
            if h.mailbox.online() && ends(h) {
                closed += 1;
                h.mailbox.close(cause, &mut wakes);
            }
        });
        wakes.flush();
        closed
    }
}
