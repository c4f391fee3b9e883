//! For each node: the revisions at which the publishes were matched that it has not answered.

use crate::broker::ports::Revision;
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub struct Floors {
    nodes: HashMap<Arc<str>, BTreeMap<Revision, usize>>,
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

    /// The smallest revision of a publish on its way to `node`.
    pub fn lowest(&self, node: &str) -> Option<Revision> {
        self.nodes.get(node)?.keys().next().copied()
    }
}
