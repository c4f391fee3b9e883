//! The tree of levels under both indexes: nodes of 40 bytes in an arena, and one hash table for the edges of all
//! nodes that have more than one child. It knows names and nodes; wildcards and values are the indexes' business.

use super::arena::{Arena, Id};
use super::level::{Name, Names};
use super::table::IdTable;

/// The node every path starts from.
pub(super) const ROOT: Id = Id::FIRST;

/// One level of a path. `X` is what the index needs besides.
#[derive(Debug)]
pub(super) struct Node<X> {
    pub(super) parent: Id,
    /// The name of this level; the root has none.
    name: Name,
    /// What is stored under this very path.
    pub(super) value: Option<Id>,
    /// How many named children there are.
    pub(super) children: u32,
    /// Kept by [`ChildLinks`]: with exactly one child, its raw id.
    pub(super) child: u32,
    pub(super) extra: X,
}

/// How a node knows its children, besides the edge table. Called when the count of children does not include (yet,
/// any more) the child in question.
pub(super) trait ChildLinks: Sized + Default {
    fn attach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id);
    fn detach(nodes: &mut Arena<Node<Self>>, parent: Id, child: Id);
}

#[derive(Debug)]
pub(super) struct Tree<X> {
    pub(super) nodes: Arena<Node<X>>,
    names: Names,
    edges: IdTable,
}

/// The level that starts at `at`, and where the next one starts; [`END`] after the last.
#[inline]
pub(super) fn split(path: &[u8], at: usize) -> (&[u8], usize) {
    let rest = path.get(at..).unwrap_or_default();
    // Most levels end within a few bytes, where a plain loop beats the set-up of the vectorised search; that one is
    // for the long ones, which every waiting branch may have to measure again.
    let (near, far) = rest.split_at(rest.len().min(NEAR));
    let len = match near.iter().position(|&byte| byte == b'/') {
        None if !far.is_empty() => memchr::memchr(b'/', far).map(|len| len + NEAR),
        len => len,
    };
    match len {
        Some(len) => (&rest[..len], at + len + 1),
        None => (rest, END),
    }
}

/// Bytes looked at one by one for the end of a level.
const NEAR: usize = 24;

/// The position behind the last level.
pub(super) const END: usize = usize::MAX;

/// The hash of an edge: that of its name, which is secretly seeded, mixed with the parent.
#[inline]
fn edge_hash(parent: Id, level_hash: u64) -> u32 {
    let mixed = level_hash ^ u64::from(parent.raw()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let product = u128::from(mixed) * 0xD6E8_FEB8_6659_FD93;
    (product as u64 ^ (product >> 64) as u64) as u32
}

impl<X: ChildLinks> Tree<X> {
    pub(super) fn new() -> Self {
        let mut nodes = Arena::new();
        nodes.insert(Node {
            parent: ROOT,
            name: Name::EMPTY,
            value: None,
            children: 0,
            child: 0,
            extra: X::default(),
        });
        Self { nodes, names: Names::new(), edges: IdTable::default() }
    }

    /// The name of a node's level.
    #[inline]
    pub(super) fn name<'a>(&'a self, node: &'a Node<X>) -> &'a [u8] {
        self.names.bytes(&node.name)
    }

    /// The child of this name.
    #[inline]
    pub(super) fn child(&self, id: Id, level: &[u8]) -> Option<Id> {
        let node = &self.nodes[id];
        match node.children {
            0 => None,
            1 => Id::from_raw(node.child).filter(|&child| self.name(&self.nodes[child]) == level),
            _ => self.edge(id, level, self.names.hash(level)),
        }
    }

    #[inline]
    fn edge(&self, parent: Id, level: &[u8], level_hash: u64) -> Option<Id> {
        self.edges.find(edge_hash(parent, level_hash), |child| {
            let child = &self.nodes[child];
            child.parent == parent && self.name(child) == level
        })
    }

    /// The child of this name, created if need be.
    pub(super) fn child_or_insert(&mut self, parent: Id, level: &[u8]) -> Id {
        if let Some(child) = self.child(parent, level) {
            return child;
        }
        let level_hash = self.names.hash(level);
        let child = self.insert_node(parent, level, level_hash);
        if self.nodes[parent].children > 0 {
            self.index_sole_child(parent);
            self.edges.insert(edge_hash(parent, level_hash), child);
        }
        X::attach(&mut self.nodes, parent, child);
        self.nodes[parent].children += 1;
        child
    }

    /// A node that is not among the named children of its parent.
    pub(super) fn insert_unlinked(&mut self, parent: Id, level: &[u8]) -> Id {
        self.insert_node(parent, level, self.names.hash(level))
    }

    fn insert_node(&mut self, parent: Id, level: &[u8], level_hash: u64) -> Id {
        let name = self.names.acquire(level, level_hash);
        self.nodes.insert(Node { parent, name, value: None, children: 0, child: 0, extra: X::default() })
    }

    /// Takes a named child off its parent; it must have no children itself.
    pub(super) fn remove_child(&mut self, parent: Id, child: Id) {
        if self.nodes[parent].children > 1 {
            self.edges.remove(self.edge_hash_of(parent, child), child);
        }
        self.nodes[parent].children -= 1;
        X::detach(&mut self.nodes, parent, child);
        if let Some(last) = self.sole_child(parent) {
            self.edges.remove(self.edge_hash_of(parent, last), last);
        }
        self.remove_unlinked(child);
    }

    /// Frees a node that is not (any more) among the named children of its parent.
    pub(super) fn remove_unlinked(&mut self, id: Id) {
        if let Some(node) = self.nodes.remove(id) {
            self.names.release(node.name);
        }
    }

    /// An only child is not in the edge table; it goes there before a second one comes.
    fn index_sole_child(&mut self, parent: Id) {
        if let Some(child) = self.sole_child(parent) {
            self.edges.insert(self.edge_hash_of(parent, child), child);
        }
    }

    fn sole_child(&self, parent: Id) -> Option<Id> {
        let parent = &self.nodes[parent];
        if parent.children == 1 { Id::from_raw(parent.child) } else { None }
    }

    fn edge_hash_of(&self, parent: Id, child: Id) -> u32 {
        edge_hash(parent, self.names.hash(self.name(&self.nodes[child])))
    }

    /// The node of a path, every level taken as a name.
    pub(super) fn find(&self, path: &str) -> Option<Id> {
        let (mut id, mut at) = (ROOT, 0);
        while at != END {
            let (level, next) = split(path.as_bytes(), at);
            id = self.child(id, level)?;
            at = next;
        }
        Some(id)
    }

    /// Writes the path of a node into `path`, replacing what is there. `ids` is scratch space.
    pub(super) fn path(&self, id: Id, ids: &mut Vec<Id>, path: &mut String) {
        path.clear();
        ids.clear();
        let mut id = id;
        while id != ROOT {
            let node = &self.nodes[id];
            ids.push(id);
            id = node.parent;
        }
        for (number, &id) in ids.iter().rev().enumerate() {
            if number > 0 {
                path.push('/');
            }
            // Levels come from `str`s split at a character, so this never fails.
            path.push_str(std::str::from_utf8(self.name(&self.nodes[id])).unwrap_or_default());
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.nodes.memory_bytes() + self.names.memory_bytes() + self.edges.memory_bytes()
    }

    /// Nodes, long level names and indexed edges in use.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.names.len(), self.edges.len())
    }
}
