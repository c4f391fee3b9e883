//! Order across a move or a restart (G3): what a node sends straight to the session's new owner waits until everything that
//! it sent to the old owner before has found its way here.

use super::Refusal;
use crate::hashing::HashSet;
use crate::ports::{Incarnation, MessageId, Revision, registered_at};
use parking_lot::Mutex;
use smallvec::SmallVec;

/// One publish as a process sends it to sessions. They take what one process sends in the order of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The process that sends it: the publish's origin, or a later start of that node.
    pub sender: Incarnation,
    /// The publish's name.
    pub id: MessageId,
    /// The revision of the index at which it was matched.
    pub matched_at: Revision,
}

impl Sending {
    /// What the order of publishes goes by: the sender, then the name.
    pub fn key(&self) -> (Incarnation, MessageId) {
        (self.sender, self.id)
    }
}

#[derive(Debug, Default)]
struct Inner {
    since: Option<Revision>,
    released: HashSet<Incarnation>,
    over: bool,
    /// Processes that were away when it was over: what they send still waits, until they are released as well.
    away: SmallVec<[Incarnation; 1]>,
}

/// Decides which processes' publishes a session that came here may take already, or all sessions of a start.
#[derive(Debug, Default)]
pub struct OrderHold(Mutex<Inner>);

impl OrderHold {
    /// Takes note that the session is this node's since revision `since`.
    pub fn begin(&self, since: Revision) {
        self.0.lock().since = Some(since);
    }

    /// Takes note that nothing of process `sender` is on its way by another node any more.
    pub fn release(&self, sender: Incarnation) {
        let mut inner = self.0.lock();
        match inner.over {
            true => inner.away.retain(|away| *away != sender),
            false => drop(inner.released.insert(sender)),
        }
    }

    /// Ends the waiting, but for what processes send that are `away` and may come back.
    pub fn end(&self, away: impl IntoIterator<Item = Incarnation>) {
        let mut inner = self.0.lock();
        inner.over = true;
        inner.released = HashSet::default();
        inner.away = away.into_iter().collect();
    }

    /// Whether nothing waits of processes that are there.
    pub fn over(&self) -> bool {
        self.0.lock().over
    }

    /// Whether it is not known yet that the session is this node's.
    pub(super) fn unsure(&self) -> bool {
        let inner = self.0.lock();
        inner.since.is_none() && !inner.over
    }

    pub(super) fn admits(&self, sending: &Sending) -> Result<(), Refusal> {
        let inner = self.0.lock();
        if inner.over && !inner.away.contains(&sending.sender) {
            return Ok(());
        }
        match inner.since {
            // Who started later has never known the session elsewhere.
            Some(since)
                if registered_at(sending.sender) >= since || inner.released.contains(&sending.sender) =>
            {
                Ok(())
            }
            // The old owner was asked as well; a new match says what is left to do.
            Some(since) if sending.matched_at < since => Err(Refusal::Moved(since)),
            Some(_) | None => Err(Refusal::Moving),
        }
    }
}
