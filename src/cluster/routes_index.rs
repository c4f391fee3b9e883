//! Which other nodes a topic goes to: the routes of all incarnations by filter. A sharded index as [`super::super::router`]
//! is one, with a few bytes a route: incarnations are numbers here.

use super::members::Reachability;
use crate::broker::router::head;
use crate::hashing::{HashMap, State};
use crate::names::shown;
use crate::ports::{MemberId, Route};
use crate::topic::{Filter, Trie};
use parking_lot::RwLock;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shards for filters whose first two levels are plain; one more holds those with a wildcard there.
const SHARDS: usize = 32;

/// Another node that a topic goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// The node.
    pub node: Arc<str>,
    /// Whether a persistent session there may want it.
    pub persistent: bool,
    /// Whether the process that speaks for these sessions is neither registered nor linked: the publish waits.
    pub orphaned: bool,
}

/// Members of a shared subscription on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteShare {
    /// The node.
    pub node: Arc<str>,
    /// How many members the node has.
    pub weight: u32,
    /// Whether a member there is a persistent session.
    pub persistent: bool,
    /// Whether the process that speaks for these members is neither registered nor linked ([`RemoteNode::orphaned`]).
    pub orphaned: bool,
}

/// A shared subscription with members on other nodes. Those on this node are in the local router's group of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteGroup {
    /// `$share/<group>/<filter>`.
    pub name: Arc<str>,
    /// The nodes where its members are, each as often as in [`RemoteMatches::nodes`].
    pub nodes: Vec<RemoteShare>,
}

/// The other nodes that a topic goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteMatches {
    /// Nodes with plain subscriptions, each once; twice if a process is there and another of its node is waited for.
    pub nodes: Vec<RemoteNode>,
    /// Shared subscriptions, each once.
    pub groups: Vec<RemoteGroup>,
}

impl RemoteMatches {
    /// Whether no other node wants it.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.groups.is_empty()
    }

    /// Whether a publish waits for a node that is away.
    pub fn waits(&self) -> bool {
        let group_waits = |g: &RemoteGroup| g.nodes.iter().all(|n| n.orphaned);
        self.nodes.iter().any(|n| n.orphaned) || self.groups.iter().any(group_waits)
    }
}

/// The last lookup of one publisher among the routes of other nodes.
#[derive(Debug, Default)]
pub struct RemoteCache {
    topic: String,
    generations: Option<(u64, u64, u64)>,
    matches: RemoteMatches,
}

/// One incarnation's route.
#[derive(Clone, Copy, Debug)]
struct Entry {
    of: u32,
    /// The snapshot that mentioned it last, or that was complete when it came.
    snapshot: u16,
    persistent: bool,
}

/// The routes of one filter. Most have one.
#[derive(Debug)]
enum Leaf {
    One(Entry),
    Many(Box<Many>),
}

#[derive(Debug, Default)]
struct Many {
    direct: Vec<Entry>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    members: Vec<(Entry, u32)>,
}

impl Leaf {
    fn direct(&self) -> &[Entry] {
        match self {
            Leaf::One(e) => std::slice::from_ref(e),
            Leaf::Many(m) => &m.direct,
        }
    }

    fn groups(&self) -> &[Group] {
        match self {
            Leaf::One(_) => &[],
            Leaf::Many(m) => &m.groups,
        }
    }

    fn many(&mut self) -> &mut Many {
        if let Leaf::One(e) = self {
            *self = Leaf::Many(Box::new(Many { direct: vec![*e], groups: Vec::new() }));
        }
        match self {
            Leaf::Many(m) => m,
            Leaf::One(_) => unreachable!("made so above"),
        }
    }

    /// Adds or replaces a plain route; the one that was there.
    fn put(&mut self, entry: Entry) -> Option<Entry> {
        let direct = match self {
            Leaf::One(e) if e.of == entry.of => return Some(std::mem::replace(e, entry)),
            leaf => &mut leaf.many().direct,
        };
        match direct.iter_mut().find(|e| e.of == entry.of) {
            Some(e) => Some(std::mem::replace(e, entry)),
            None => {
                direct.push(entry);
                None
            }
        }
    }

    /// Adds or replaces a shared route; the one that was there.
    fn put_shared(&mut self, name: &Arc<str>, entry: Entry, weight: u32) -> Option<Entry> {
        let groups = &mut self.many().groups;
        let at = groups.iter().position(|g| g.name == *name).unwrap_or_else(|| {
            groups.push(Group { name: name.clone(), members: Vec::new() });
            groups.len() - 1
        });
        let members = &mut groups[at].members;
        match members.iter_mut().find(|(e, _)| e.of == entry.of) {
            Some(m) => Some(std::mem::replace(m, (entry, weight)).0),
            None => {
                members.push((entry, weight));
                None
            }
        }
    }

    /// Removes the routes for which `gone` holds; returns whose they were. Empty leaves are for the caller to remove.
    fn remove(&mut self, mut gone: impl FnMut(&Entry, Option<&str>) -> bool, removed: &mut Vec<u32>) -> bool {
        let many = match self {
            Leaf::One(e) => {
                let is_gone = gone(e, None);
                if is_gone {
                    removed.push(e.of);
                }
                return is_gone;
            }
            Leaf::Many(many) => many,
        };
        many.direct.retain(|e| {
            let is_gone = gone(e, None);
            if is_gone {
                removed.push(e.of);
            }
            !is_gone
        });
        for g in &mut many.groups {
            let name = &g.name;
            g.members.retain(|(e, _)| {
                let is_gone = gone(e, Some(name));
                if is_gone {
                    removed.push(e.of);
                }
                !is_gone
            });
        }
        many.groups.retain(|g| !g.members.is_empty());
        match (many.direct.as_slice(), many.groups.is_empty()) {
            ([], true) => return true,
            ([one], true) => *self = Leaf::One(*one),
            _ => {}
        }
        false
    }
}

#[derive(Debug)]
struct Shard {
    trie: RwLock<Trie<Leaf>>,
    /// Changes with every change of the trie.
    generation: AtomicU64,
}

/// An incarnation by its number.
#[derive(Clone, Debug)]
struct Owner {
    of: MemberId,
    reachability: Reachability,
    routes: usize,
}

#[derive(Debug, Default)]
struct Owners {
    owners: Vec<Option<Owner>>,
    numbers: HashMap<MemberId, u32>,
    free: Vec<u32>,
    /// Nodes that are waited for, and want less than before.
    released: Vec<Arc<str>>,
}

impl Owners {
    fn number(&mut self, of: &MemberId, reachability: impl FnOnce() -> Reachability) -> u32 {
        if let Some(n) = self.numbers.get(of) {
            return *n;
        }
        let owner = Some(Owner { of: of.clone(), reachability: reachability(), routes: 0 });
        let n = match self.free.pop() {
            Some(n) => {
                self.owners[n as usize] = owner;
                n
            }
            None => {
                self.owners.push(owner);
                u32::try_from(self.owners.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(of.clone(), n);
        n
    }

    /// Counts routes in and out; a number without routes is free.
    fn count(&mut self, n: u32, added: usize, removed: usize) {
        if removed > 0 {
            self.release(n);
        }
        let Some(slot) = self.owners.get_mut(n as usize) else { return };
        let Some(owner) = slot else { return };
        owner.routes = (owner.routes + added).saturating_sub(removed);
        if owner.routes == 0 {
            self.numbers.remove(&owner.of);
            *slot = None;
            self.free.push(n);
        }
    }

    /// An incarnation wants less than before: what waits for it may not have to any more.
    fn release(&mut self, n: u32) {
        if let Some(Reachability::Orphan(node)) = self.reachability(n)
            && !self.released.contains(node)
        {
            self.released.push(node.clone());
        }
    }

    fn reachability(&self, n: u32) -> Option<&Reachability> {
        self.owners.get(n as usize)?.as_ref().map(|o| &o.reachability)
    }
}

/// The routes of all incarnations by filter: which other nodes a topic goes to.
#[derive(Debug)]
pub struct RoutesIndex {
    shards: Vec<Shard>,
    hasher: State,
    owners: RwLock<Owners>,
    /// Changes when anybody's reachability does.
    reachabilities: AtomicU64,
    snapshot: AtomicU64,
}

impl Default for RoutesIndex {
    fn default() -> RoutesIndex {
        let shard = || Shard { trie: RwLock::new(Trie::new()), generation: AtomicU64::new(0) };
        RoutesIndex {
            shards: (0..=SHARDS).map(|_| shard()).collect(),
            hasher: State::default(),
            owners: RwLock::default(),
            reachabilities: AtomicU64::new(0),
            snapshot: AtomicU64::new(0),
        }
    }
}

impl RoutesIndex {
    fn shard_of(&self, path: &str) -> &Shard {
        let at = head(path).map_or(SHARDS, |head| {
            let mut h = self.hasher.build_hasher();
            h.write(head);
            h.finish() as usize % SHARDS
        });
        &self.shards[at]
    }

    fn change<R>(&self, filter: &str, f: impl FnOnce(&mut Trie<Leaf>) -> R) -> R {
        let shard = self.shard_of(filter);
        let mut trie = shard.trie.write();
        let r = f(&mut trie);
        // Under the lock: a reader that sees the old generation has matched before the change.
        shard.generation.fetch_add(1, Ordering::Release);
        r
    }

    #[allow(clippy::cast_possible_truncation)] // wraps around
    fn snapshot(&self) -> u16 {
        self.snapshot.load(Ordering::Acquire) as u16
    }

    /// Adds and removes routes of an incarnation. `reachability` says how it is to be treated if it was not known yet. True if it is
    /// waited for, and wants less than before: [`RoutesIndex::update_reachability`] must follow.
    pub fn apply(
        &self,
        of: &MemberId,
        add: &[Route],
        del: &[Arc<str>],
        reachability: impl FnOnce() -> Reachability,
    ) -> bool {
        let n = self.owners.write().number(of, reachability);
        let snapshot = self.snapshot();
        let (mut added, mut weaker, mut removed) = (0, false, Vec::new());
        for r in add {
            let Ok(filter) = Filter::parse(&r.filter) else {
                tracing::warn!(of = %of, filter = %shown(&r.filter), "a route that is no topic filter is left out");
                continue;
            };
            let entry = Entry { of: n, snapshot, persistent: r.persistent };
            let old = self.change(filter.filter, |trie| match filter.share {
                None => {
                    let mut is_new = false;
                    let leaf = trie.get_or_insert_with(filter.filter, || {
                        is_new = true;
                        Leaf::One(entry)
                    });
                    if is_new { None } else { leaf.put(entry) }
                }
                Some(_) => trie
                    .get_or_insert_with(filter.filter, || Leaf::Many(Box::default()))
                    .put_shared(&r.filter, entry, r.weight),
            });
            added += usize::from(old.is_none());
            weaker |= old.is_some_and(|old| old.persistent && !entry.persistent);
        }
        for name in del {
            let Ok(filter) = Filter::parse(name) else { continue };
            let shared = filter.share.map(|_| &**name);
            self.change(filter.filter, |trie| {
                let Some(leaf) = trie.get_mut(filter.filter) else { return };
                if leaf.remove(|e, group| e.of == n && group == shared, &mut removed) {
                    trie.remove(filter.filter);
                }
            });
        }
        let mut owners = self.owners.write();
        if weaker {
            owners.release(n);
        }
        owners.count(n, added, removed.len());
        !owners.released.is_empty()
    }

    /// Looks again at how everybody can be reached. Returns the nodes for which that has changed, and those that are waited for and want
    /// less than before.
    pub fn update_reachability(&self, reachability: impl Fn(&MemberId) -> Reachability) -> Vec<Arc<str>> {
        let mut owners = self.owners.write();
        let mut nodes = std::mem::take(&mut owners.released);
        for owner in owners.owners.iter_mut().flatten() {
            let old = std::mem::replace(&mut owner.reachability, reachability(&owner.of));
            if old != owner.reachability {
                nodes.extend([&old, &owner.reachability].into_iter().filter_map(Reachability::node).cloned());
            }
        }
        drop(owners);
        self.reachabilities.fetch_add(1, Ordering::Release);
        nodes
    }

    /// What is not mentioned from now until [`RoutesIndex::end_snapshot`] will go.
    pub fn begin_snapshot(&self) {
        self.snapshot.fetch_add(1, Ordering::AcqRel);
    }

    /// Removes what the snapshot did not mention. True as with [`RoutesIndex::apply`].
    pub fn end_snapshot(&self) -> bool {
        let snapshot = self.snapshot();
        let mut removed = Vec::new();
        for shard in &self.shards {
            let mut stale: Vec<String> = Vec::new();
            shard.trie.read().for_each(|filter, leaf| {
                let shared = leaf.groups().iter().flat_map(|g| g.members.iter().map(|(e, _)| e));
                if leaf.direct().iter().chain(shared).any(|e| e.snapshot != snapshot) {
                    stale.push(filter.to_owned());
                }
            });
            if stale.is_empty() {
                continue;
            }
            let mut trie = shard.trie.write();
            for filter in stale {
                let Some(leaf) = trie.get_mut(&filter) else { continue };
                if leaf.remove(|e, _| e.snapshot != snapshot, &mut removed) {
                    trie.remove(&filter);
                }
            }
            shard.generation.fetch_add(1, Ordering::Release);
        }
        let mut owners = self.owners.write();
        removed.into_iter().for_each(|n| owners.count(n, 0, 1));
        !owners.released.is_empty()
    }

    /// The other nodes that `topic` goes to. The result stays valid until the next call with this cache.
    pub fn lookup<'c>(&self, topic: &str, cache: &'c mut RemoteCache) -> &'c RemoteMatches {
        let (own, wild) = (self.shard_of(topic), &self.shards[SHARDS]);
        // Read before the lookup: a change in between makes this result look old, never new.
        let generations = (
            own.generation.load(Ordering::Acquire),
            wild.generation.load(Ordering::Acquire),
            self.reachabilities.load(Ordering::Acquire),
        );
        if cache.generations != Some(generations) || cache.topic != topic {
            cache.topic.clear();
            cache.topic.push_str(topic);
            cache.generations = Some(generations);
            let m = &mut cache.matches;
            m.nodes.clear();
            m.groups.clear();
            let owners = self.owners.read();
            for shard in [own, wild] {
                shard.trie.read().for_each_match(topic, |leaf| m.add(leaf, &owners));
            }
        }
        &cache.matches
    }

    /// How many routes all incarnations have.
    pub fn len(&self) -> usize {
        self.owners.read().owners.iter().flatten().map(|o| o.routes).sum()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every route: whose, filter, whether persistent, weight; for tests and operators. In no particular order.
    pub fn all(&self) -> Vec<(MemberId, Route)> {
        let owners = self.owners.read();
        let mut all = Vec::new();
        let mut push = |e: &Entry, filter: Arc<str>, weight| {
            if let Some(Some(o)) = owners.owners.get(e.of as usize) {
                all.push((o.of.clone(), Route { filter, persistent: e.persistent, weight }));
            }
        };
        for shard in &self.shards {
            shard.trie.read().for_each(|filter, leaf| {
                leaf.direct().iter().for_each(|e| push(e, filter.into(), 1));
                for g in leaf.groups() {
                    g.members.iter().for_each(|(e, weight)| push(e, g.name.clone(), *weight));
                }
            });
        }
        all
    }

    /// Bytes that the index has allocated, an estimate.
    pub fn memory_bytes(&self) -> usize {
        self.shards.iter().map(|s| s.trie.read().memory_bytes()).sum()
    }

    /// Removes all routes of an incarnation.
    pub fn remove_all(&self, of: &MemberId) {
        let Some(n) = self.owners.read().numbers.get(of).copied() else { return };
        let mut removed = Vec::new();
        for shard in &self.shards {
            let mut filters: Vec<String> = Vec::new();
            shard.trie.read().for_each(|filter, leaf| {
                let shared = leaf.groups().iter().flat_map(|g| g.members.iter().map(|(e, _)| e));
                if leaf.direct().iter().chain(shared).any(|e| e.of == n) {
                    filters.push(filter.to_owned());
                }
            });
            for filter in filters {
                self.change(&filter, |trie| {
                    if trie.get_mut(&filter).is_some_and(|leaf| leaf.remove(|e, _| e.of == n, &mut removed)) {
                        trie.remove(&filter);
                    }
                });
            }
        }
        self.owners.write().count(n, 0, removed.len());
    }
}

impl RemoteMatches {
    fn add(&mut self, leaf: &Leaf, owners: &Owners) {
        for e in leaf.direct() {
            let Some((node, orphaned)) = routed(owners, e) else { continue };
            match self.nodes.iter_mut().find(|n| n.node == *node && n.orphaned == orphaned) {
                Some(n) => n.persistent |= e.persistent,
                None => {
                    self.nodes.push(RemoteNode { node: node.clone(), persistent: e.persistent, orphaned });
                }
            }
        }
        for g in leaf.groups() {
            let mut nodes: Vec<RemoteShare> = Vec::new();
            for (e, weight) in &g.members {
                let Some((node, orphaned)) = routed(owners, e) else { continue };
                match nodes.iter_mut().find(|n| n.node == *node && n.orphaned == orphaned) {
                    // Two starts of one node: the newer has taken over what the older had.
                    Some(n) => {
                        n.weight = n.weight.max(*weight);
                        n.persistent |= e.persistent;
                    }
                    None => nodes.push(RemoteShare {
                        node: node.clone(),
                        weight: *weight,
                        persistent: e.persistent,
                        orphaned,
                    }),
                }
            }
            if !nodes.is_empty() {
                self.groups.push(RemoteGroup { name: g.name.clone(), nodes });
            }
        }
    }
}

/// The node that a route leads to, and whether it has to wait for it; `None` if it counts for nothing.
fn routed<'o>(owners: &'o Owners, e: &Entry) -> Option<(&'o Arc<str>, bool)> {
    match owners.reachability(e.of)? {
        Reachability::Live(node) => Some((node, false)),
        Reachability::Orphan(node) if e.persistent => Some((node, true)),
        Reachability::Orphan(_) | Reachability::Own | Reachability::Gone => None,
    }
}

#[cfg(test)]
mod tests;
