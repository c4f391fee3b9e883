//! Sessions by client identifier, and who gets one: at most one connection serves a client identifier (G1).

use super::Broker;
use super::handle::Handle;
use super::mailbox::{Found, Mailbox, Place, Wakes};
use super::publish::Scratch;
use crate::clock::Time;
use crate::hashing::{HashMap, State};
use crate::mqtt::Reason;
use crate::ports::Lsn;
use crate::session::{CloseCause, Session, Settings};
use crate::telemetry::metrics::SessionState;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::task::Waker;

const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Arc<str>, Arc<Handle>>>;

/// Sessions by client identifier.
#[derive(Debug)]
pub(super) struct Registry {
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

    pub(super) fn get(&self, client_id: &str) -> Option<Arc<Handle>> {
        self.shard(client_id).lock().get(client_id).cloned()
    }

    pub(super) fn insert(&self, handle: Arc<Handle>) {
        self.shard(&handle.client_id).lock().insert(handle.client_id.clone(), handle);
    }

    /// Removes `handle`, unless its client identifier has passed to another session meanwhile.
    pub(super) fn remove(&self, handle: &Arc<Handle>) -> bool {
        let mut shard = self.shard(&handle.client_id).lock();
        match shard.get(&handle.client_id) {
            Some(h) if Arc::ptr_eq(h, handle) => shard.remove(&handle.client_id).is_some(),
            _ => false,
        }
    }

    pub(super) fn for_each(&self, mut f: impl FnMut(&Arc<Handle>)) {
        for shard in &self.shards {
            // Copied out, so that `f` may use the registry.
            let handles: Vec<_> = shard.lock().values().cloned().collect();
            handles.iter().for_each(&mut f);
        }
    }
}

/// A connection on its way to a session; one per CONNECT.
#[derive(Debug, Default)]
pub struct Claimant {
    row: Option<(Arc<Handle>, u64)>,
    ended: Lsn,
    recorded: Option<Lsn>,
}

impl Claimant {
    /// When the end of the session that a clean start replaced is durable; before that the client must not hear that it
    /// begins anew, or a crash would bring back what it has forgotten.
    pub fn ended(&self) -> Lsn {
        self.ended
    }

    /// When the record of the new session is durable, if it was written with the end of the old one.
    pub(super) fn recorded(&self) -> Option<Lsn> {
        self.recorded
    }
}

/// What became of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The session is the caller's.
    Granted {
        /// Its handle.
        handle: Arc<Handle>,
        /// The session.
        session: Box<Session>,
        /// Whether it existed before.
        present: bool,
    },
    /// Another connection must leave first: call again when woken.
    Waiting,
    /// A later connection with the same client identifier came.
    Superseded,
    /// It is not on this node (any more): bring it here, then call again.
    Elsewhere,
    /// Refused for this reason.
    Refused(Reason),
    /// The session is another user's; the log says so.
    NotTheirs,
}

impl Broker {
    /// Gets the session of `settings.client_id` for a new connection: an existing one, or a new one if there is none or
    /// the client wants a clean start.
    pub fn claim(
        &self,
        settings: &Settings,
        claimant: &mut Claimant,
        waker: &Waker,
        now: Time,
        scratch: &mut Scratch,
    ) -> Claim {
        loop {
            if let Some((handle, ticket)) = &mut claimant.row {
                match handle.mailbox.claim(ticket, waker, &mut scratch.wakes) {
                    Found::Busy => return Claim::Waiting,
                    Found::Superseded => return Claim::Superseded,
                    Found::Session(mut session) => {
                        let handle = handle.clone();
                        self.dormant.unwatch(&handle);
                        let sessions = &self.metrics.sessions;
                        sessions.of(SessionState::Dormant).sub(1);
                        sessions.of(SessionState::Active).add(1);
                        // It may have become another user's since it was looked at.
                        if !self.may_have_session(&handle.client_id, &handle.user(), &settings.user) {
                            self.park(&handle, session, scratch);
                            return Claim::NotTheirs;
                        }
                        // Its timers may be due this very moment: the client is late then, not we. Not if it was made for it.
                        let fresh = handle.take_fresh();
                        let over = !fresh && self.run_timers(&handle, &mut session, now, scratch);
                        if !over && (fresh || !settings.clean_start) {
                            self.inherit(&handle, &settings.user);
                            return Claim::Granted { handle, session, present: !fresh };
                        }
                        if !over && self.remote.is_some() && handle.durable == (settings.expiry_s > 0) {
                            let new = self.replace(&handle, settings, now);
                            // First: what the cluster says is this node's must be in its journal after a crash in between.
                            claimant.recorded = self.save_connected(&new, settings);
                            let ended = self.end_dormant(&handle, &mut session, now, scratch);
                            claimant.ended = claimant.ended.max(ended.unwrap_or(0));
                            let session = Box::new(Session::new(new.durable));
                            return Claim::Granted { handle: new, session, present: false };
                        }
                        if !over {
                            let ended = self.end_dormant(&handle, &mut session, now, scratch);
                            claimant.ended = claimant.ended.max(ended.unwrap_or(0));
                        }
                    }
                    Found::Gone => {
                        self.registry.remove(handle);
                    }
                }
                claimant.row = None;
            }
            let shard = self.registry.shard(&settings.client_id);
            let mut map = shard.lock();
            match map.entry(settings.client_id.clone()) {
                Entry::Occupied(e) => {
                    let handle = e.get().clone();
                    drop(map);
                    if !self.may_have_session(&handle.client_id, &handle.user(), &settings.user) {
                        return Claim::NotTheirs;
                    }
                    if handle.mailbox.online() {
                        self.metrics.takeovers.inc();
                    }
                    claimant.row = Some((handle, 0));
                }
                Entry::Vacant(_) if self.remote.is_some() => return Claim::Elsewhere,
                Entry::Vacant(e) => {
                    if self.sessions() >= self.limits.sessions() as u64 {
                        return Claim::Refused(Reason::QuotaExceeded);
                    }
                    let durable = settings.expiry_s > 0;
                    let mailbox = Mailbox::new(Place::Attached, VecDeque::new(), 0);
                    let no = self.new_session_no();
                    let handle = Arc::new(Handle::new(no, settings.client_id.clone(), durable, now, mailbox));
                    handle.set_user(settings.user.clone());
                    e.insert(handle.clone());
                    self.metrics.sessions.of(SessionState::Active).add(1);
                    return Claim::Granted {
                        handle,
                        session: Box::new(Session::new(durable)),
                        present: false,
                    };
                }
            }
        }
    }

    /// Puts a new session in the place of `old`, which ends by a clean start. In the cluster it has the same record.
    fn replace(&self, old: &Arc<Handle>, settings: &Settings, now: Time) -> Arc<Handle> {
        let mailbox = Mailbox::new(Place::Attached, VecDeque::new(), 0);
        let no = self.new_session_no();
        let handle = Arc::new(Handle::new(no, old.client_id.clone(), old.durable, now, mailbox));
        handle.set_epoch(old.epoch());
        let (expiry_s, user) = old.expiry.by_store();
        handle.expiry.is_told(expiry_s, &user);
        handle.set_user(settings.user.clone());
        old.disown();
        // The old one no longer counts itself out when it ends: the new one takes its place there too.
        self.registry.insert(handle.clone());
        handle
    }

    /// Removes a session that left from the registry; false if another has taken its place.
    pub(super) fn registry_remove(&self, handle: &Arc<Handle>) -> bool {
        self.dormant.unwatch(handle);
        self.registry.remove(handle)
    }

    /// The session of a client identifier.
    pub fn session(&self, client_id: &str) -> Option<Arc<Handle>> {
        self.registry.get(client_id)
    }

    /// Closes the connection of one client; false if it has none.
    pub fn kick(&self, client_id: &str) -> bool {
        let Some(handle) = self.session(client_id).filter(|h| h.mailbox.online()) else { return false };
        handle.mailbox.close(CloseCause::Kicked, &mut Wakes::default());
        true
    }

    /// Closes the connections of all clients that are banned `now`; returns how many.
    pub fn end_banned(&self, now: Time) -> usize {
        let (mut ended, mut wakes) = (0, Wakes::default());
        self.registry.for_each(|handle| {
            let online = handle.mailbox.online();
            let who = handle.rights.who().filter(|_| online);
            if who.is_some_and(|who| self.bans.banned(&who, now).is_some()) {
                handle.mailbox.close(CloseCause::Banned, &mut wakes);
                ended += 1;
            }
        });
        ended
    }

    /// Messages waiting in all mailboxes.
    pub fn queued_messages(&self) -> u64 {
        let mut n = 0;
        self.registry.for_each(|h| n += h.mailbox.waiting() as u64);
        n
    }

    /// Counts a new connection in, if there is room for it.
    pub fn admit_connection(&self) -> Admission {
        let n = self.metrics.connections_active.get() + 1;
        let max = self.limits.connections() as u64;
        if n > max + REFUSING_MAX {
            return Admission::Close;
        }
        self.metrics.connections_active.add(1);
        if n > max {
            return Admission::Refuse;
        }
        if n > self.metrics.connections_max.get() {
            self.metrics.connections_max.set(n);
        }
        Admission::Serve
    }

    /// Counts a connection out.
    pub fn dismiss_connection(&self) {
        self.metrics.connections_active.sub(1);
    }
}

/// Connections beyond the limit that are kept for as long as it takes to tell them why they are refused.
pub const REFUSING_MAX: u64 = 64;

/// Whether a new connection may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Serve it.
    Serve,
    /// Hear its CONNECT and refuse it with 0x97.
    Refuse,
    /// There are too many even to refuse: close it.
    Close,
}
