//! The end of sessions, and their timers while nobody is connected to them, by this node alone or with the others.

use super::Node;
use crate::broker::delivery::Scratch;
use crate::broker::ending::{CarriedOut, Endings};
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
    /// How sessions without a connection end here: by this node alone, or with the others.
    pub(super) fn endings(&self) -> &dyn Endings {
        match &self.cluster {
            Some(cluster) => &**cluster,
            None => &*self.broker,
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
        let CarriedOut { ended, lsn, .. } =
            self.endings().carry_out(handle, &mut session, effects, now, scratch);
        if !ended {
            if let Some(cluster) = &self.cluster {
                // DISCONNECT may have changed it.
                cluster.tell_expiry(handle, session.expiry_s(), handle.user());
            }
            self.broker.park(handle, session, &mut scratch.wakes);
        }
        lsn
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
        (!remote.is_fresh(now)).then(|| now.plus_ms(LOOK_MS))
    }

    /// Publishes wills that are due, ends sessions that have expired, and logs what has been lost.
    pub fn on_timeout(&self, now: Time, scratch: &mut Scratch) {
        while self.deadlines_wait().is_none()
            && let Some(handle) = self.broker.dormant.pop_due(now)
        {
            if let Some(handle) = handle.upgrade() {
                self.endings().wake_dormant(&handle, now, scratch);
            }
        }
        self.expire_retained(now);
        self.broker.metrics.losses.tell(now);
    }
}
