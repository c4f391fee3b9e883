//! Sessions without a connection that have a deadline: a will that is due later, or the end of their expiry interval.

use super::Broker;
use super::handle::Handle;
use super::mailbox::Wakes;
use crate::clock::Time;
use crate::session::{Loss, Session};
use crate::telemetry::metrics::SessionState;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

/// Deadlines of dormant sessions, one each. An entry may be stale: its session is being looked at; looking it up then does nothing.
#[derive(Debug, Default)]
pub struct Dormant {
    deadlines: Mutex<BTreeMap<(Time, u64), Weak<Handle>>>,
    /// Woken when an earlier deadline than all others comes in.
    waker: Mutex<Option<Waker>>,
}

impl Dormant {
    /// Remembers that `handle` has something to do at `at`.
    pub fn watch(&self, at: Time, handle: &Arc<Handle>) {
        let mut deadlines = self.deadlines.lock();
        if let Some(before) = handle.set_watched(Some(at)) {
            deadlines.remove(&(before, handle.no));
        }
        deadlines.insert((at, handle.no), Arc::downgrade(handle));
        let first = deadlines.first_key_value().is_some_and(|(k, _)| *k == (at, handle.no));
        drop(deadlines);
        if first && let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// The session has a connection, or is not here any more.
    pub fn unwatch(&self, handle: &Handle) {
        let mut deadlines = self.deadlines.lock();
        if let Some(before) = handle.set_watched(None) {
            deadlines.remove(&(before, handle.no));
        }
    }

    /// The next session whose deadline has come by `now`.
    pub fn pop_due(&self, now: Time) -> Option<Weak<Handle>> {
        let mut deadlines = self.deadlines.lock();
        let first = deadlines.first_entry()?;
        let due = (first.key().0 <= now).then(|| first.remove())?;
        if let Some(handle) = due.upgrade() {
            handle.set_watched(None);
        }
        Some(due)
    }

    /// The first deadline of all. `waker` is woken when an earlier one comes in.
    pub fn next_timeout(&self, waker: &Waker) -> Option<Time> {
        *self.waker.lock() = Some(waker.clone());
        self.next()
    }

    fn next(&self) -> Option<Time> {
        self.deadlines.lock().first_key_value().map(|((at, _), _)| *at)
    }
}

impl Broker {
    /// Watches the next deadline of a dormant session that was not put to rest here.
    pub fn watch_parked(&self, handle: &Arc<Handle>) {
        if let Some(Some(at)) = handle.mailbox.parked(Session::next_timeout) {
            self.dormant.watch(at, handle);
        }
    }

    /// Puts a session to rest in its mailbox until its client or its next deadline comes.
    pub fn park(&self, handle: &Arc<Handle>, session: Box<Session>, wakes: &mut Wakes) {
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Active).sub(1);
        sessions.of(SessionState::Dormant).add(1);
        let deadline = session.next_timeout();
        let dropped = handle.mailbox.park(session, wakes);
        self.metrics.lost(handle.whose(), Loss::Offline, dropped as u64);
        if let Some(at) = deadline {
            self.dormant.watch(at, handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::mailbox::{Mailbox, Place};
    use std::collections::VecDeque;

    #[test]
    fn a_session_has_one_deadline_however_often_its_client_comes_and_goes() {
        let dormant = Dormant::default();
        let mailbox = Mailbox::new(Place::Attached, VecDeque::new(), 0);
        let handle = Arc::new(Handle::new(1, "c".into(), true, Time(0), mailbox));
        for n in 1..10_000 {
            dormant.watch(Time(n + 86_400_000), &handle);
        }
        assert_eq!(dormant.deadlines.lock().len(), 1);
        assert_eq!(dormant.next(), Some(Time(86_409_999)));
        dormant.unwatch(&handle);
        assert_eq!(dormant.next(), None);
        dormant.watch(Time(5), &handle);
        assert!(dormant.pop_due(Time(4)).is_none() && dormant.pop_due(Time(5)).is_some());
        dormant.watch(Time(7), &handle);
        assert_eq!(dormant.deadlines.lock().len(), 1);
        assert_eq!(dormant.next(), Some(Time(7)));
    }
}
