//! Outbound messages in flight, in the order in which they were first sent.

use super::actions::Delivery;
use crate::mqtt::QoS;
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// How far a message in flight has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// PUBLISH waits until its packet identifier is durable: QoS 2, and QoS 1 that follows such a one.
    Recording,
    /// PUBLISH was sent.
    Sent,
    /// QoS 2: PUBREC came; PUBREL waits until that is durable.
    Releasing,
    /// QoS 2: PUBREL was sent.
    Released,
}

/// One message in flight.
#[derive(Debug)]
pub(super) struct Entry {
    pub packet_id: u16,
    pub qos: QoS,
    pub stage: Stage,
    pub seq: Option<NonZeroU64>,
    /// It has to be sent again on this connection as soon as the client's receive maximum allows.
    pub held: bool,
    /// The message; `None` once released, and for journaled messages of a dormant session.
    pub delivery: Option<Delivery>,
}

/// Messages in flight. Acknowledged ones leave holes that are trimmed from the front, so that the usual acknowledgement
/// (of the oldest) costs nothing and none moves the others.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    entries: VecDeque<Option<Entry>>,
    live: usize,
}

impl Inflight {
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn push(&mut self, entry: Entry) {
        self.entries.push_back(Some(entry));
        self.live += 1;
    }

    fn position(&self, packet_id: u16) -> Option<usize> {
        self.entries.iter().position(|e| e.as_ref().is_some_and(|e| e.packet_id == packet_id))
    }

    pub fn get_mut(&mut self, packet_id: u16) -> Option<&mut Entry> {
        let at = self.position(packet_id)?;
        self.entries.get_mut(at)?.as_mut()
    }

    pub fn remove(&mut self, packet_id: u16) -> Option<Entry> {
        let at = self.position(packet_id)?;
        let entry = self.entries.get_mut(at)?.take();
        self.live -= usize::from(entry.is_some());
        while matches!(self.entries.front(), Some(None)) {
            self.entries.pop_front();
        }
        if self.entries.len() > 64 && self.entries.len() > self.live * 4 {
            self.entries.retain(Option::is_some); // a stuck front must not let holes pile up
        }
        entry
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// Whether the last one has not been sent yet. Then what follows must wait its turn too (section 4.6: what is sent again
    /// goes in the order in which it was sent first, and the journal has the order in which it was recorded).
    pub fn recording(&self) -> bool {
        self.entries.iter().flatten().next_back().is_some_and(|e| e.stage == Stage::Recording)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().flatten()
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(|e| e.as_ref().is_some_and(&mut keep));
        self.live = self.entries.len();
    }

    pub fn take(&mut self) -> impl Iterator<Item = Entry> {
        self.live = 0;
        std::mem::take(&mut self.entries).into_iter().flatten()
    }

    pub fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }
}
