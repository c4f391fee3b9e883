//! Who gets a session: at most one connection serves a client identifier (G1).

use super::Node;
use crate::broker::delivery::Scratch;
use crate::broker::handle::Handle;
use crate::broker::mailbox::Found;
use crate::clock::Time;
use crate::cluster::sessions::Run;
use crate::mqtt::Reason;
use crate::ports::Lsn;
use crate::session::{Session, Settings};
use std::sync::Arc;
use std::task::Waker;

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
        /// The session's handle.
        handle: Arc<Handle>,
        /// The session.
        session: Box<Session>,
        /// Whether the session existed before.
        present: bool,
    },
    /// Another connection must leave first: call again when woken.
    Waiting,
    /// A later connection with the same client identifier came.
    Superseded,
    /// The session is not on this node (any more): bring it here, then call again.
    Elsewhere,
    /// Refused for this reason.
    Refused(Reason),
    /// The session is another user's; the log says so.
    NotTheirs,
}

impl Node {
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
            if let Some((handle, place_in_line)) = &mut claimant.row {
                match handle.mailbox.claim(place_in_line, waker, &mut scratch.wakes) {
                    Found::Busy => return Claim::Waiting,
                    Found::Superseded => return Claim::Superseded,
                    Found::Session(mut session) => {
                        let (handle, broker) = (handle.clone(), &self.broker);
                        broker.dormant.unwatch(&handle);
                        broker.count_woken();
                        // It may have become another user's since it was looked at.
                        if !broker.may_have_session(&handle.client_id, &handle.user(), &settings.user) {
                            broker.park(&handle, session, &mut scratch.wakes);
                            return Claim::NotTheirs;
                        }
                        // Its timers may be due this very moment: the client is late then, not we. Not if it was made for it.
                        let unused = handle.take_unused();
                        let over = !unused && self.endings().run_timers(&handle, &mut session, now, scratch);
                        if !over && (unused || !settings.clean_start) {
                            broker.inherit(&handle, &settings.user);
                            return Claim::Granted { handle, session, present: !unused };
                        }
                        if !over && self.cluster.is_some() && handle.durable == (settings.expiry_s > 0) {
                            let new = broker.replace(&handle, settings, now);
                            // First: what the cluster says is this node's must be in its journal after a crash in between.
                            claimant.recorded = broker.save_connected(&new, settings);
                            let ended = self.endings().end_dormant(&handle, &mut session, now, scratch);
                            claimant.ended = claimant.ended.max(ended.lsn.unwrap_or(0));
                            let session = Box::new(Session::new(new.durable));
                            return Claim::Granted { handle: new, session, present: false };
                        }
                        if !over {
                            let ended = self.endings().end_dormant(&handle, &mut session, now, scratch);
                            claimant.ended = claimant.ended.max(ended.lsn.unwrap_or(0));
                        }
                    }
                    Found::Gone => {
                        self.broker.registry.remove(handle);
                    }
                }
                claimant.row = None;
            }
            let found = match &self.cluster {
                Some(_) => self.broker.session(&settings.client_id).map(|handle| (handle, false)),
                None => self.broker.session_for(settings, now),
            };
            match found {
                Some((handle, true)) => {
                    let session = Box::new(Session::new(handle.durable));
                    return Claim::Granted { handle, session, present: false };
                }
                Some((handle, false)) => {
                    if !self.broker.may_have_session(&handle.client_id, &handle.user(), &settings.user) {
                        return Claim::NotTheirs;
                    }
                    if handle.mailbox.online() {
                        self.broker.metrics.takeovers.inc();
                    }
                    claimant.row = Some((handle, 0));
                }
                None if self.cluster.is_some() => return Claim::Elsewhere,
                None => return Claim::Refused(Reason::QuotaExceeded),
            }
        }
    }

    /// Brings the session of a CONNECT to this node, or makes one. `None` if this node is alone: all sessions are here.
    pub(super) fn bring_here(&self, settings: &Settings) -> Option<Arc<Run>> {
        self.cluster.as_ref()?.bring_here(settings)
    }

    /// Ends a session that was made for a client that did not come to it.
    pub(super) fn drop_unused(&self, client_id: &str, now: Time) {
        if let Some(cluster) = &self.cluster {
            cluster.drop_unused(client_id, now);
        }
    }
}
