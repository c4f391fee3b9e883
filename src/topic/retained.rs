//! The index of retained messages: topic names to one value each, and all values whose topic matches a filter.
//!
//! It never sees `$share` (shared subscriptions get no retained messages) and never validates.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::arena::{Arena, Id};
use super::tree::{ChildLinks, END, Node, ROOT, Tree, split};

/// Levels of children that wait to be walked, before a match allocates. One waits for each level below a wildcard.
const STACK: usize = 16;

/// The position of a walk below `#`: every node counts.
const ALL: usize = END - 1;

/// A node's place among the children of its parent, a doubly linked list.
#[derive(Debug, Default)]
struct Siblings {
    next: Option<Id>,
    prev: Option<Id>,
}

impl ChildLinks for Siblings {
    fn attach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id) {
        let next = Id::from_raw(nodes[parent].child);
        nodes[parent].child = child.raw();
        nodes[child].extra = Siblings { next, prev: None };
        if let Some(next) = next {
            nodes[next].extra.prev = Some(child);
        }
    }

    fn detach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id) {
        let Siblings { next, prev } = std::mem::take(&mut nodes[child].extra);
        match prev {
            Some(prev) => nodes[prev].extra.next = next,
            None => nodes[parent].child = next.map_or(0, Id::raw),
        }
        if let Some(next) = next {
            nodes[next].extra.prev = prev;
        }
    }
}

/// A step of a match that waits: this node, and its later siblings too if the level was a wildcard.
struct Step {
    id: Id,
    at: usize,
    siblings: bool,
}

/// A map from topic names to values that finds all topics matching a filter.
#[derive(Debug)]
pub struct RetainedTrie<V> {
    tree: Tree<Siblings>,
    values: Arena<V>,
}

impl<V> Default for RetainedTrie<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> RetainedTrie<V> {
    /// An empty index.
    #[must_use]
    pub fn new() -> Self {
        Self { tree: Tree::new(), values: Arena::new() }
    }

    /// How many topics have a value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no topic has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets the value of a topic and hands the one before back.
    pub fn insert(&mut self, topic: &str, value: V) -> Option<V> {
        let (mut id, mut at) = (ROOT, 0);
        while at != END {
            let (level, next) = split(topic.as_bytes(), at);
            id = self.tree.child_or_insert(id, level);
            at = next;
        }
        let node = &mut self.tree.nodes[id];
        match node.value {
            Some(old) => Some(std::mem::replace(&mut self.values[old], value)),
            None => {
                node.value = Some(self.values.insert(value));
                None
            }
        }
    }

    /// The value of a topic.
    #[must_use]
    pub fn get(&self, topic: &str) -> Option<&V> {
        let id = self.tree.find(topic)?;
        self.values.get(self.tree.nodes[id].value?)
    }

    /// The value of a topic, to be changed.
    #[must_use]
    pub fn get_mut(&mut self, topic: &str) -> Option<&mut V> {
        let id = self.tree.find(topic)?;
        self.values.get_mut(self.tree.nodes[id].value?)
    }

    /// Takes a topic out and hands its value back.
    pub fn remove(&mut self, topic: &str) -> Option<V> {
        let mut id = self.tree.find(topic)?;
        let value = self.tree.nodes[id].value.take()?;
        while id != ROOT {
            let node = &self.tree.nodes[id];
            if node.value.is_some() || node.children > 0 {
                break;
            }
            let parent = node.parent;
            self.tree.remove_child(parent, id);
            id = parent;
        }
        self.values.remove(value)
    }

    /// Calls `f` with the value of every topic, in no particular order.
    pub fn for_each<'t>(&'t self, mut f: impl FnMut(&'t V)) {
        self.values.iter().for_each(|(_, value)| f(value));
    }

    /// Calls `f` with the value of every topic that matches the filter, each once, in no particular order, until it
    /// breaks. Named levels are looked up; only the children below a `+` and the subtree below a `#` are walked.
    pub fn for_each_match<'t>(&'t self, filter: &str, mut f: impl FnMut(&'t V) -> ControlFlow<()>) {
        let path = filter.as_bytes();
        let mut waiting: SmallVec<[Step; STACK]> = SmallVec::new();
        let mut next_step = Some(Step { id: ROOT, at: 0, siblings: false });
        while let Some(Step { mut id, mut at, siblings }) = next_step {
            let node = &self.tree.nodes[id];
            if let (true, Some(next)) = (siblings, node.extra.next) {
                waiting.push(Step { id: next, at, siblings });
            }
            // A leading wildcard does not see topics that begin with `$` (MQTT-4.7.2-1).
            if siblings && node.parent == ROOT && self.tree.name(node).first() == Some(&b'$') {
                next_step = waiting.pop();
                continue;
            }
            loop {
                let node = &self.tree.nodes[id];
                if (at == END || at == ALL)
                    && let Some(value) = node.value.and_then(|id| self.values.get(id))
                    && f(value).is_break()
                {
                    return;
                }
                if at == END {
                    break;
                }
                let (level, next) = if at == ALL { (&b"+"[..], ALL) } else { split(path, at) };
                match level {
                    b"#" if next == END => at = ALL, // this node too: `a/#` matches `a` (section 4.7.1.2)
                    b"+" => {
                        if let Some(first) = Id::from_raw(node.child) {
                            waiting.push(Step { id: first, at: next, siblings: true });
                        }
                        break;
                    }
                    _ => match self.tree.child(id, level) {
                        Some(child) => (id, at) = (child, next),
                        None => break,
                    },
                }
            }
            next_step = waiting.pop();
        }
    }

    /// Bytes this index has allocated, the values themselves included but not what they own. An estimate: what the
    /// allocator adds is not in it. Walks one header for some thousand entries.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.tree.memory_bytes() + self.values.memory_bytes()
    }

    /// Nodes, long level names and indexed edges in use.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        self.tree.counts()
    }
}
