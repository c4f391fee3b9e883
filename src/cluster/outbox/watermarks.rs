//! Watermarks: for each node, the revision below which every publish that it was asked to take is settled.

use crate::hashing::HashMap;
use crate::ports::Revision;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The revision at which what a node was asked was matched, and the one at which it was matched the last time.
pub type Matched = (Revision, Revision);

/// How many publishes there are of each node and revision.
type Nodes = HashMap<Arc<str>, BTreeMap<Revision, usize>>;

/// For each node the revisions at which publishes were matched that it has not answered: below the lowest of them everything is settled.
#[derive(Debug, Default)]
pub struct Watermarks {
    /// The revisions at which what nodes were asked was matched.
    asked: Nodes,
    /// The revisions at which that was matched the last time: whoever had left a node by then has been looked for elsewhere.
    matched: Nodes,
    /// The lowest of the watermarks that have risen since somebody asked.
    risen: Option<Revision>,
}

impl Watermarks {
    /// Counts in a publish that is on its way to `node`: matched at `asked`, and the last time at `matched`.
    pub fn add(&mut self, node: &Arc<str>, (asked, matched): Matched) {
        add(&mut self.asked, node, asked);
        add(&mut self.matched, node, matched);
    }

    /// Counts out a publish that is settled at `node`.
    pub fn remove(&mut self, node: &Arc<str>, (asked, matched): Matched) {
        let risen =
            remove(&mut self.asked, node, asked).into_iter().chain(remove(&mut self.matched, node, matched));
        self.risen = self.risen.into_iter().chain(risen).min();
    }

    /// Counts what was on its way as in `old` as in `new` from now on.
    pub fn replace(&mut self, node: &Arc<str>, old: Matched, new: Matched) {
        if old != new {
            self.add(node, new);
            self.remove(node, old);
        }
    }

    /// The lowest watermark that has risen since the last call, as it was before: above it, more is settled than was.
    pub fn take_risen(&mut self) -> Option<Revision> {
        self.risen.take()
    }

    /// The smallest revision at which a publish on its way to `node` was matched; `None` = nothing is on its way there.
    pub fn lowest(&self, node: &str) -> Option<Revision> {
        self.asked.get(node)?.keys().next().copied()
    }

    /// The smallest revision at which a publish on its way to `node` was matched the last time; `None` = nothing is on its way there.
    pub fn lowest_matched(&self, node: &str) -> Option<Revision> {
        self.matched.get(node)?.keys().next().copied()
    }

    /// For each node that publishes are on their way to: the smallest revision at which one was matched the last time.
    pub fn past(&self) -> impl Iterator<Item = (&Arc<str>, Revision)> {
        self.matched.iter().filter_map(|(node, revisions)| Some((node, *revisions.keys().next()?)))
    }
}

fn add(nodes: &mut Nodes, node: &Arc<str>, at: Revision) {
    *nodes.entry(node.clone()).or_default().entry(at).or_default() += 1;
}

/// One less; the revision, if it was the lowest and none is left there.
fn remove(nodes: &mut Nodes, node: &Arc<str>, at: Revision) -> Option<Revision> {
    let revisions = nodes.get_mut(node)?;
    let mut risen = None;
    if let Some(n) = revisions.get_mut(&at) {
        *n -= 1;
        if *n == 0 {
            revisions.remove(&at);
            risen = revisions.first_key_value().is_none_or(|(lowest, _)| *lowest > at).then_some(at);
        }
    }
    if revisions.is_empty() {
        nodes.remove(node);
    }
    risen
}
