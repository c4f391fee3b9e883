//! Order across a takeover (G3): what comes straight to the new owner is kept back until everything that was sent to the old
//! owner before has found its way here.

use crate::broker::ports::{Incarnation, MessageId, Seq};
use hashbrown::HashSet;
use std::collections::BTreeMap;

/// Journaled messages kept back, by origin and in the order of the origin.
#[derive(Debug, Default)]
pub(super) struct OrderHold {
    kept: BTreeMap<MessageId, (Seq, usize)>,
    bytes: u64,
    released: HashSet<Incarnation>,
}

impl OrderHold {
    /// Whether messages of this origin are kept back.
    pub fn holds(&self, origin: Incarnation) -> bool {
        !self.released.contains(&origin)
    }

    pub fn keep(&mut self, id: MessageId, seq: Seq, size: usize) {
        self.kept.insert(id, (seq, size));
        self.bytes += size as u64;
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was kept back of this origin, in order; from now on its messages pass.
    pub fn release(&mut self, origin: Incarnation) -> Vec<(Seq, usize)> {
        self.released.insert(origin);
        let first = MessageId { origin, seq: 0 };
        let last = MessageId { origin, seq: u64::MAX };
        let ids: Vec<MessageId> = self.kept.range(first..=last).map(|(id, _)| *id).collect();
        let found: Vec<_> = ids.iter().filter_map(|id| self.kept.remove(id)).collect();
        self.bytes -= found.iter().map(|(_, size)| *size as u64).sum::<u64>();
        found
    }

    /// Everything that is kept back, by origin and in order.
    pub fn release_all(self) -> impl Iterator<Item = (Seq, usize)> {
        self.kept.into_values()
    }
}
