//! For each node: the revisions at which the publishes were matched that it has not answered.

use crate::broker::ports::Revision;
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub struct Floors {
    nodes: HashMap<Arc<str>, BTreeMap<Revision, usize>>,
    /// The lowest of the floors that have risen since somebody asked.
    risen: Option<Revision>,
}

impl Floors {
    /// A publish matched at `at` is on its way to `node`.
    pub fn add(&mut self, node: &Arc<str>, at: Revision) {
        *self.nodes.entry(node.clone()).or_default().entry(at).or_default() += 1;
    }

    /// It is settled.
    pub fn remove(&mut self, node: &Arc<str>, at: Revision) {
        let Some(revisions) = self.nodes.get_mut(node) else { return };
        if let Some(n) = revisions.get_mut(&at) {
            *n -= 1;
            if *n == 0 {
                revisions.remove(&at);
                if revisions.first_key_value().is_none_or(|(lowest, _)| *lowest > at) {
                    self.risen = Some(self.risen.map_or(at, |r| r.min(at)));
                }
            }
        }
        if revisions.is_empty() {
            self.nodes.remove(node);
        }
    }

    /// What was matched at `old` is now on its way as matched at `new`.
    pub fn replace(&mut self, node: &Arc<str>, old: Revision, new: Revision) {
        if old != new {
            self.add(node, new);
            self.remove(node, old);
        }
    }

    /// From where a floor has risen since the last call: above it, more is settled than was.
    pub fn take_risen(&mut self) -> Option<Revision> {
        self.risen.take()
    }

    /// The smallest revision of a publish on its way to `node`.
    pub fn lowest(&self, node: &str) -> Option<Revision> {
        self.nodes.get(node)?.keys().next().copied()
    }
}
