//! Sessions without a connection that have a deadline: a will that is due later, or the end of their expiry interval.

use super::Broker;
use super::handle::Handle;
use super::publish::Scratch;
use crate::clock::Time;
use crate::session::{Actions, Effect, Loss, Session};
use crate::telemetry::metrics::SessionState;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

/// How often a node that lets no deadline pass looks whether it may, milliseconds.
const LOOK_MS: u64 = 500;

/// Deadlines of dormant sessions, one each. An entry may be stale: its session is being looked at; looking it up then does nothing.
#[derive(Debug, Default)]
pub(super) struct Dormant {
    deadlines: Mutex<BTreeMap<(Time, u64), Weak<Handle>>>,
    /// Woken when an earlier deadline than all others comes in.
    waker: Mutex<Option<Waker>>,
}

impl Dormant {
    /// Remembers that `handle` has something to do at `at`.
    pub(super) fn watch(&self, at: Time, handle: &Arc<Handle>) {
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
    pub(super) fn unwatch(&self, handle: &Handle) {
        let mut deadlines = self.deadlines.lock();
        if let Some(before) = handle.set_watched(None) {
            deadlines.remove(&(before, handle.no));
        }
    }

    fn pop_due(&self, now: Time) -> Option<Weak<Handle>> {
        let mut deadlines = self.deadlines.lock();
        let first = deadlines.first_entry()?;
        let due = (first.key().0 <= now).then(|| first.remove())?;
        if let Some(handle) = due.upgrade() {
            handle.set_watched(None);
        }
        Some(due)
    }

    fn next(&self) -> Option<Time> {
        self.deadlines.lock().first_key_value().map(|((at, _), _)| *at)
    }
}

impl Broker {
    /// When [`Broker::on_timeout`] is due next. `waker` is woken if that becomes earlier.
    pub fn next_timeout(&self, waker: &Waker) -> Option<Time> {
        *self.dormant.waker.lock() = Some(waker.clone());
        let (next, look) = (self.dormant.next(), self.deadlines_wait());
        let next = next.map(|at| look.map_or(at, |look| at.max(look)));
        next.into_iter().chain(self.metrics.losses.next_timeout(waker)).min()
    }

    /// A node that does not know whether what it knows is recent lets no deadline of a session pass: the session may be another's. When to
    /// look again.
    fn deadlines_wait(&self) -> Option<Time> {
        let remote = self.remote.as_ref()?;
        let now = remote.now();
        (!remote.is_current(now)).then(|| now.plus_ms(LOOK_MS))
    }

    /// Publishes wills that are due, ends sessions that have expired, and logs what has been lost.
    pub fn on_timeout(&self, now: Time, scratch: &mut Scratch) {
        while self.deadlines_wait().is_none()
            && let Some(handle) = self.dormant.pop_due(now)
        {
            if let Some(handle) = handle.upgrade() {
                self.wake_dormant(&handle, now, scratch);
            }
        }
        self.expire_retained(now);
        self.metrics.losses.tell(now);
    }

    /// Runs the timers of a session that may be dormant; watches its next deadline.
    pub(super) fn wake_dormant(&self, handle: &Arc<Handle>, now: Time, scratch: &mut Scratch) {
        if self.remote.as_ref().is_some_and(|r| r.sessions.being_evicted(&handle.client_id, handle.epoch())) {
            return; // that says what becomes of its will
        }
        let Some(mut session) = handle.mailbox.check_out() else { return };
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Dormant).sub(1);
        sessions.of(SessionState::Active).add(1);
        if !self.run_timers(handle, &mut session, now, scratch) {
            self.park(handle, session, scratch);
        }
    }

    /// Runs the timers of a session that was taken out of its mailbox; true if it is over now.
    pub(super) fn run_timers(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> bool {
        let mut actions = Actions::default();
        session.wake(now, &mut actions);
        if actions.effects.is_empty() {
            return false;
        }
        if actions.effects.iter().any(|e| matches!(e, Effect::End)) {
            self.metrics.sessions_expired.inc();
        }
        self.carry_out(handle, session, actions.effects, now, scratch).ended
    }

    /// Watches the next deadline of a dormant session that was not put to rest here.
    pub(super) fn watch_parked(&self, handle: &Arc<Handle>) {
        if let Some(Some(at)) = handle.mailbox.parked(Session::next_timeout) {
            self.dormant.watch(at, handle);
        }
    }

    /// Puts a session to rest in its mailbox until its client or its next deadline comes.
    pub(super) fn park(&self, handle: &Arc<Handle>, session: Box<Session>, scratch: &mut Scratch) {
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Active).sub(1);
        sessions.of(SessionState::Dormant).add(1);
        let deadline = session.next_timeout();
        let dropped = handle.mailbox.park(session, &mut scratch.wakes);
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
