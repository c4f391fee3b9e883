//! A mailbox whose session moves to another node, or has come from one.

use super::{Frozen, Mailbox, Place, Wakes};
use crate::ports::{Revision, Seq};
use crate::session::{CloseCause, Session};
use crate::sync::Once;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Who of a shared subscription's members is asked first; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A client is there.
    Online,
    /// Dormant: messages wait.
    Dormant,
    /// On its way to another node, or to this one.
    Moving,
    /// With another node since then; the latest first, since it is the least known.
    Left(Reverse<Revision>),
    /// Over.
    Gone,
}

impl Mailbox {
    /// Puts a session that was taken out ([`Mailbox::claim`], [`Mailbox::check_out`]) back as one that may be about to move:
    /// from now on nothing is taken. To be called with the barrier closed, so that whoever was admitted has pushed. Returns the numbers of
    /// all journaled messages that wait, in order, and how many others were dropped.
    pub fn freeze(&self, session: Box<Session>, wakes: &mut Wakes) -> (Vec<Seq>, usize) {
        let mut inner = self.inner.lock();
        inner.queue_to_backlog();
        let dropped = inner.queue.len();
        inner.queue.clear();
        inner.queue_bytes = 0;
        inner.place = Place::Frozen(Box::new(Frozen::new(session)));
        self.online.store(false, Relaxed);
        self.load.store(inner.backlog.len(), Relaxed);
        inner.leave(wakes);
        (inner.backlog.iter().collect(), dropped)
    }

    /// Takes the frozen session out, which stays here. What comes waits for [`Mailbox::park`] or [`Mailbox::end`]. `None` if it is not
    /// frozen.
    pub fn thaw(&self) -> Option<Box<Session>> {
        let mut inner = self.inner.lock();
        match std::mem::replace(&mut inner.place, Place::Attached) {
            Place::Frozen(frozen) => {
                drop(inner);
                let Frozen { session, outcome } = *frozen;
                if let Some(outcome) = outcome {
                    outcome.set(None);
                }
                Some(session)
            }
            other => {
                inner.place = other;
                None
            }
        }
    }

    /// Marks the frozen session as with another node since `at`. Returns it and the numbers of all journaled messages that waited; `None`
    /// if it is not frozen.
    pub fn depart(&self, at: Revision, wakes: &mut Wakes) -> Option<(Box<Session>, VecDeque<Seq>)> {
        let mut inner = self.inner.lock();
        let frozen = match std::mem::replace(&mut inner.place, Place::Departed(at)) {
            Place::Frozen(frozen) => *frozen,
            other => {
                inner.place = other;
                return None;
            }
        };
        let backlog = inner.backlog.take();
        self.load.store(0, Relaxed);
        inner.leave(wakes);
        drop(inner);
        if let Some(outcome) = frozen.outcome {
            outcome.set(Some(at));
        }
        Some((frozen.session, backlog))
    }

    /// What `f` says of the frozen session; `None` if it is not frozen.
    pub fn frozen<R>(&self, f: impl FnOnce(&Session) -> R) -> Option<R> {
        match &self.inner.lock().place {
            Place::Frozen(frozen) => Some(f(&frozen.session)),
            _ => None,
        }
    }

    /// Since which revision the session is with another node, if it is.
    pub fn departed(&self) -> Option<Revision> {
        match &self.inner.lock().place {
            Place::Departed(at) => Some(*at),
            _ => None,
        }
    }

    /// Whether the session is neither over nor with another node.
    pub fn present(&self) -> bool {
        !matches!(self.inner.lock().place, Place::Departed(_) | Place::Gone)
    }

    /// What tells, while the session is frozen, how that comes out ([`Refusal::Moving`](super::Refusal::Moving)).
    pub fn moving(&self) -> Option<Arc<Once<Option<Revision>>>> {
        match &mut self.inner.lock().place {
            Place::Frozen(frozen) => Some(frozen.outcome.get_or_insert_with(Once::new).clone()),
            _ => None,
        }
    }

    /// Puts the dormant session's deadlines off by `ms` milliseconds: its client was here for so long, or was taken to be.
    pub fn put_off(&self, ms: u64) {
        if let Place::Parked(session) = &mut self.inner.lock().place {
            session.put_off(ms);
        }
    }

    /// Asks the connection that has the session to close and to send its client to `reference`, unless that is empty.
    pub fn hand_over(&self, reference: Arc<str>, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        if matches!(inner.place, Place::Attached) {
            inner.close.get_or_insert(CloseCause::HandedOver);
            inner.reference = (!reference.is_empty()).then_some(reference);
            inner.signal(wakes);
        }
    }

    /// How good a choice the session is for a message of a shared subscription.
    pub fn rank(&self) -> Rank {
        if self.online() {
            return Rank::Online;
        }
        let inner = self.inner.lock();
        match &inner.place {
            Place::Parked(_) if inner.unsure() => Rank::Moving,
            Place::Attached | Place::Parked(_) => Rank::Dormant,
            Place::Frozen(_) => Rank::Moving,
            Place::Departed(at) => Rank::Left(Reverse(*at)),
            Place::Gone => Rank::Gone,
        }
    }
}
