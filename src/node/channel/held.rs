//! A PUBLISH that is not handled while memory is short ([`crate::node::memory`]). What comes before it is: whoever only receives is heard
//! as ever. Behind it waits what the client has sent since.

use super::{Channel, State};
use crate::clock::Time;
use crate::node::Node;
use crate::node::memory::TRICKLE_MS;
use std::sync::Arc;
use std::task::Waker;

/// The type of a PUBLISH packet in its first byte (MQTT 5.0 section 2.1.2).
const PUBLISH: u8 = 3;

/// Between two looks whether the client whose PUBLISH is held is still there, milliseconds.
const LOOK_MS: u64 = 1_000;

/// A PUBLISH that is held back because memory runs short.
pub(super) struct Held {
    since: Time,
    /// For [`crate::node::memory::Pressure::wait`].
    place: Option<u64>,
    /// The held PUBLISH passes although memory is short.
    passes: bool,
    /// When to look whether the client is still there; `None` = it is not: what it has sent passes one by one, up to its end, since it
    /// may have said goodbye.
    look_at: Option<Time>,
    node: Arc<Node>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("since", &self.since)
            .field("passes", &self.passes)
            .field("look_at", &self.look_at)
            .finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.node.broker.metrics.publishers_paused.sub(1);
        if let Some(place) = self.place {
            self.node.pressure.leave(place);
        }
    }
}

impl Channel {
    /// Whether the client's next packet is a PUBLISH that waits for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.passes)
    }

    /// Whether the packet at the front of `next` has to wait for memory; `waker` is then woken when it need not any more. `begun`: a
    /// part of it may be here already. What has begun to arrive goes on, for it has its room.
    pub(super) fn holds_back(&mut self, next: &[u8], begun: bool, waker: &Waker, now: Time) -> bool {
        let node = &self.node;
        if !node.pressure.pauses()
            || next.first().is_none_or(|first| first >> 4 != PUBLISH)
            || !matches!(self.state, State::Open(_))
            || (begun && self.arriving.is_some())
        {
            return false;
        }
        let before = self.held.take();
        if before.as_ref().is_some_and(|held| held.passes) {
            return false;
        }
        let mut place = None;
        if !node.pressure.wait(waker, &mut place) {
            return false;
        }
        node.broker.metrics.publishers_paused.add(1);
        let look_at = Some(now.plus_ms(LOOK_MS));
        self.held = Some(Box::new(Held { since: now, place, passes: false, look_at, node: node.clone() }));
        true
    }

    /// Lets a held PUBLISH go on if it may.
    pub(super) fn look_at_memory(&mut self, waker: &Waker, now: Time) {
        let due = self.trickles_at().is_some_and(|at| at <= now);
        let Some(held) = &mut self.held else { return };
        if !self.node.pressure.wait(waker, &mut held.place) {
            self.held = None;
        } else if due {
            held.passes = true;
        }
    }

    /// Whether a look is due, by [`Channel::held_look_at`], at whether the client whose PUBLISH is held is still connected.
    pub(super) fn looks_for_held(&self, now: Time) -> bool {
        self.held_look_at().is_some_and(|at| at <= now)
    }

    /// When to look whether the client whose PUBLISH is held is still connected; `None` = no PUBLISH is held, or its client is gone.
    pub(super) fn held_look_at(&self) -> Option<Time> {
        self.held.as_ref().filter(|held| !held.passes)?.look_at
    }

    /// Notes whether the client whose PUBLISH is held was still connected at `now`; if it was not, its packets pass one by one.
    pub(super) fn looked_for_held(&mut self, there: bool, now: Time) {
        if let Some(held) = &mut self.held {
            held.look_at = there.then(|| now.plus_ms(LOOK_MS));
        }
    }

    /// When a PUBLISH passes although memory is short: messages wait for the acknowledgements that come behind it, or its client is gone
    /// and nothing is known of its end before what it has sent is read.
    pub(super) fn trickles_at(&self) -> Option<Time> {
        let held = self.held.as_ref().filter(|held| !held.passes)?;
        let State::Open(open) = &self.state else { return None };
        (held.look_at.is_none() || open.session.load() > 0).then(|| held.since.plus_ms(TRICKLE_MS))
    }
}
