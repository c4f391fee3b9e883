//! The end of sessions, and their timers while nobody is connected to them, by this node alone or with the others.

use super::Node;
use crate::broker::delivery::Scratch;
use crate::broker::ending::CarriedOut;
use crate::broker::handle::Handle;
use crate::clock::Time;
use crate::ports::Lsn;
use crate::session::{Effect, Session};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::Waker;

/// How often a node that lets no deadline pass looks whether it may, milliseconds.
const LOOK_MS: u64 = 500;

impl Node {
    /// Ends a session that no connection has and that was taken out of its mailbox. Its waiting will is published.
    /// Returns when that is durable.
    pub(super) fn end_dormant(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        match &self.cluster {
            Some(cluster) => cluster.end_dormant(handle, session, now, scratch).lsn,
            None => self.broker.end_dormant(handle, session, now, scratch).lsn,
        }
    }

    /// Ends a session for good. Returns when that is durable, if the journal knows the session.
    pub(super) fn end_session(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        match &self.cluster {
            Some(cluster) => cluster.end_session(handle, session, now, scratch),
            None => self.broker.end_session(handle, session, now, scratch),
        }
    }

    /// Carries out what a session wants that has just lost its connection, then puts it to rest unless it is over.
    /// Returns when the last change to it is durable.
    pub(super) fn carry_out_left(
        &self,
        handle: &Arc<Handle>,
        mut session: Box<Session>,
        effects: Vec<Effect>,
        unsent: &[(NonZeroU64, usize)],
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        // Back into the mailbox first: if the session ends, what was not sent is handed on with the rest.
        handle.mailbox.put_back(unsent);
        let CarriedOut { ended, lsn, .. } = match &self.cluster {
            Some(cluster) => cluster.carry_out(handle, &mut session, effects, now, scratch),
            None => self.broker.carry_out(handle, &mut session, effects, now, scratch),
        };
        if !ended {
            if let Some(cluster) = &self.cluster {
                // DISCONNECT may have changed it.
                cluster.tell_expiry(handle, session.expiry_s(), handle.user());
            }
            self.broker.park(handle, session, &mut scratch.wakes);
        }
        lsn
    }

    /// Runs the timers of a session that was taken out of its mailbox; true if it is over now.
    pub(super) fn run_timers(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> bool {
        match &self.cluster {
            Some(cluster) => cluster.run_timers(handle, session, now, scratch),
            None => self.broker.run_timers(handle, session, now, scratch),
        }
    }

    /// When [`Node::on_timeout`] is due next. `waker` is woken if that becomes earlier.
    pub fn next_timeout(&self, waker: &Waker) -> Option<Time> {
        let (next, look) = (self.broker.dormant.next_timeout(waker), self.deadlines_wait());
        let next = next.map(|at| look.map_or(at, |look| at.max(look)));
        next.into_iter().chain(self.broker.metrics.losses.next_timeout(waker)).min()
    }

    /// A node that does not know whether what it knows is recent lets no deadline of a session pass: the session may be another's. When to
    /// look again.
    fn deadlines_wait(&self) -> Option<Time> {
        let remote = self.remote()?;
        let now = remote.now();
        (!remote.is_current(now)).then(|| now.plus_ms(LOOK_MS))
    }

    /// Publishes wills that are due, ends sessions that have expired, and logs what has been lost.
    pub fn on_timeout(&self, now: Time, scratch: &mut Scratch) {
        while self.deadlines_wait().is_none()
            && let Some(handle) = self.broker.dormant.pop_due(now)
        {
            match (handle.upgrade(), &self.cluster) {
                (Some(handle), Some(cluster)) => cluster.wake_dormant(&handle, now, scratch),
                (Some(handle), None) => self.broker.wake_dormant(&handle, now, scratch),
                (None, _) => {}
            }
        }
        self.expire_retained(now);
        self.broker.metrics.losses.tell(now);
    }
}
