//! The subscription index: topic filters to one value each, and all values whose filter matches a topic.
//!
//! It never sees `$share` (the caller strips it) and never validates; filters come from
//! [`Filter::parse`](super::Filter::parse) and topics from [`validate_name`](super::validate_name).

use smallvec::SmallVec;

use super::arena::{Arena, Id};
use super::tree::{ChildLinks, END, Node, ROOT, Tree, split};

/// Branches of a match that wait, before it allocates. One waits for each `+` on the path being walked.
const STACK: usize = 24;

/// The wildcards below a node. `#` is always a leaf, so it is only a value here and no node.
#[derive(Debug, Default)]
struct Wild {
    plus: Option<Id>,
    hash: Option<Id>,
}

/// All named children are folded into one number: enough to know an only child, and two words less a node.
impl ChildLinks for Wild {
    fn attach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id) {
        nodes[parent].child ^= child.raw();
    }

    fn detach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id) {
        nodes[parent].child ^= child.raw();
    }
}

/// Where the value of a filter hangs: on its node, or as `#` below it.
#[derive(Clone, Copy)]
struct Place {
    node: Id,
    hash: bool,
}

/// A map from topic filters to values that finds all filters matching a topic.
#[derive(Debug)]
pub struct Trie<V> {
    tree: Tree<Wild>,
    values: Arena<V>,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Trie<V> {
    /// An empty index.
    #[must_use]
    pub fn new() -> Self {
        Self { tree: Tree::new(), values: Arena::new() }
    }

    /// How many filters have a value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no filter has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a filter, made by `make` if there is none yet.
    pub fn get_or_insert_with(&mut self, filter: &str, make: impl FnOnce() -> V) -> &mut V {
        let path = filter.as_bytes();
        let (mut node, mut at, mut hash) = (ROOT, 0, false);
        while at != END {
            let (level, next) = split(path, at);
            match level {
                b"#" if next == END => hash = true,
                b"+" => {
                    node = match self.tree.nodes[node].extra.plus {
                        Some(plus) => plus,
                        None => {
                            let plus = self.tree.insert_unlinked(node, level);
                            self.tree.nodes[node].extra.plus = Some(plus);
                            plus
                        }
                    }
                }
                _ => node = self.tree.child_or_insert(node, level),
            }
            at = next;
        }
        let node = &mut self.tree.nodes[node];
        let slot = if hash { &mut node.extra.hash } else { &mut node.value };
        let values = &mut self.values;
        let id = *slot.get_or_insert_with(|| values.insert(make()));
        &mut self.values[id]
    }

    /// The value of exactly this filter.
    #[must_use]
    pub fn get(&self, filter: &str) -> Option<&V> {
        let id = self.value_id(self.place(filter)?)?;
        self.values.get(id)
    }

    /// The value of exactly this filter, to change it.
    pub fn get_mut(&mut self, filter: &str) -> Option<&mut V> {
        let id = self.value_id(self.place(filter)?)?;
        self.values.get_mut(id)
    }

    /// Takes a filter out and hands its value back.
    pub fn remove(&mut self, filter: &str) -> Option<V> {
        let place = self.place(filter)?;
        let node = &mut self.tree.nodes[place.node];
        let id = if place.hash { node.extra.hash.take() } else { node.value.take() }?;
        self.prune(place.node);
        self.values.remove(id)
    }

    fn place(&self, filter: &str) -> Option<Place> {
        let (mut node, mut at) = (ROOT, 0);
        while at != END {
            let (level, next) = split(filter.as_bytes(), at);
            node = match level {
                b"#" if next == END => return Some(Place { node, hash: true }),
                b"+" => self.tree.nodes[node].extra.plus?,
                _ => self.tree.child(node, level)?,
            };
            at = next;
        }
        Some(Place { node, hash: false })
    }

    fn value_id(&self, place: Place) -> Option<Id> {
        let node = &self.tree.nodes[place.node];
        if place.hash { node.extra.hash } else { node.value }
    }

    /// Frees a node and its ancestors as far as nothing hangs on them.
    fn prune(&mut self, mut id: Id) {
        while id != ROOT {
            let node = &self.tree.nodes[id];
            let used = node.value.is_some() || node.extra.hash.is_some() || node.extra.plus.is_some();
            if used || node.children > 0 {
                return;
            }
            let parent = node.parent;
            if self.tree.nodes[parent].extra.plus == Some(id) {
                self.tree.nodes[parent].extra.plus = None;
                self.tree.remove_unlinked(id);
            } else {
                self.tree.remove_child(parent, id);
            }
            id = parent;
        }
    }

    /// Calls `f` with the value of every filter that matches the topic, each once, in no particular order.
    ///
    /// Visits no more nodes than there are in the index and none deeper than the topic; allocates only when more
    /// than 24 `+` branches wait on one path.
    pub fn for_each_match<'t>(&'t self, topic: &str, mut f: impl FnMut(&'t V)) {
        let path = topic.as_bytes();
        // A leading wildcard does not see topics that begin with `$` (MQTT-4.7.2-1).
        let hidden = path.first() == Some(&b'$');
        let mut waiting: SmallVec<[(Id, usize); STACK]> = SmallVec::new();
        let mut next_branch = Some((ROOT, 0));
        while let Some((mut id, mut at)) = next_branch {
            loop {
                let node = &self.tree.nodes[id];
                let wild = if hidden && id == ROOT { &Wild { plus: None, hash: None } } else { &node.extra };
                if let Some(value) = wild.hash.and_then(|id| self.values.get(id)) {
                    f(value);
                }
                if at == END {
                    if let Some(value) = node.value.and_then(|id| self.values.get(id)) {
                        f(value);
                    }
                    break;
                }
                let (level, next) = split(path, at);
                if let Some(plus) = wild.plus {
                    waiting.push((plus, next));
                }
                match self.tree.child(id, level) {
                    Some(child) => (id, at) = (child, next),
                    None => break,
                }
            }
            next_branch = waiting.pop();
        }
    }

    /// Calls `f` with every filter and its value, in no particular order.
    pub fn for_each(&self, mut f: impl FnMut(&str, &V)) {
        let (mut ids, mut path) = (Vec::new(), String::new());
        for (id, node) in self.tree.nodes.iter() {
            if node.value.is_none() && node.extra.hash.is_none() {
                continue;
            }
            self.tree.path(id, &mut ids, &mut path);
            if let Some(value) = node.value.and_then(|id| self.values.get(id)) {
                f(&path, value);
            }
            if let Some(value) = node.extra.hash.and_then(|id| self.values.get(id)) {
                path.push_str(if id == ROOT { "#" } else { "/#" });
                f(&path, value);
            }
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
