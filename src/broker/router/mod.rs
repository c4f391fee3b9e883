//! Which sessions a topic goes to. A sharded index: a reader takes two read locks for the length of one lookup and
//! remembers the result until one of the two shards changes, so steady traffic takes none.
//!
//! It knows subscriptions, not delivery.

use super::handle::Handle;
use super::mailbox::Rank;
use crate::hashing::{HashMap, State};
use crate::mqtt::QoS;
use crate::mqtt::packet::SubscribeOptions;
use crate::ports::SessionNo;
use crate::session::Extra;
use crate::topic::{Filter, Trie};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shards for filters whose first two levels are plain; one more holds those with a wildcard there.
const SHARDS: usize = 32;

/// Subscribers of one filter up to which a list is searched; more are found by number.
const FEW: usize = 16;

/// Members of a shared subscription that are compared for each message.
const LOOKED_AT: usize = 16;

/// A subscriber of a filter.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// The session that has subscribed.
    pub handle: Arc<Handle>,
    /// The options of the subscription.
    pub options: SubscribeOptions,
    /// The subscription identifier and the shared subscription it belongs to, if any.
    pub extra: Option<Arc<Extra>>,
}

#[derive(Debug)]
enum Subscribers {
    Few(SmallVec<[Subscriber; 1]>),
    Many(HashMap<u64, Subscriber>),
}

impl Subscribers {
    fn iter(&self) -> impl Iterator<Item = &Subscriber> {
        let (few, many) = match self {
            Subscribers::Few(list) => (Some(list.iter()), None),
            Subscribers::Many(map) => (None, Some(map.values())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    fn len(&self) -> usize {
        match self {
            Subscribers::Few(list) => list.len(),
            Subscribers::Many(map) => map.len(),
        }
    }

    /// Inserts or replaces; true if it is new.
    fn insert(&mut self, s: Subscriber) -> bool {
        match self {
            Subscribers::Few(list) => {
                if let Some(old) = list.iter_mut().find(|o| o.handle.no == s.handle.no) {
                    *old = s;
                    return false;
                }
                if list.len() < FEW {
                    list.push(s);
                } else {
                    let mut map: HashMap<u64, Subscriber> = HashMap::default();
                    map.extend(list.drain(..).map(|o| (o.handle.no, o)));
                    map.insert(s.handle.no, s);
                    *self = Subscribers::Many(map);
                }
                true
            }
            Subscribers::Many(map) => map.insert(s.handle.no, s).is_none(),
        }
    }

    fn remove(&mut self, no: u64) -> bool {
        match self {
            Subscribers::Few(list) => {
                let at = list.iter().position(|s| s.handle.no == no);
                at.map(|at| list.swap_remove(at)).is_some()
            }
            Subscribers::Many(map) => map.remove(&no).is_some(),
        }
    }
}

/// A shared subscription: its members take turns.
#[derive(Debug)]
pub struct Group {
    /// `$share/<group>/<filter>`.
    pub name: Arc<str>,
    members: Mutex<Vec<Subscriber>>,
    turn: AtomicUsize,
}

impl Group {
    /// How many members the shared subscription has here, and whether a persistent session is among them.
    pub fn weight(&self) -> (u32, bool) {
        let members = self.members.lock();
        let persistent = members.iter().any(|m| m.handle.durable);
        (u32::try_from(members.len()).unwrap_or(u32::MAX), persistent)
    }

    /// Whether session `no` is a member.
    pub fn has(&self, no: u64) -> bool {
        self.members.lock().iter().any(|m| m.handle.no == no)
    }

    /// How many members the shared subscription has.
    pub fn len(&self) -> usize {
        self.members.lock().len()
    }

    /// Whether the shared subscription has no member (any more).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The member that takes the next message: online before dormant before moving, then the least loaded, then in turn.
    /// `except` is left out (it is ending).
    pub fn pick(&self, except: u64) -> Option<Subscriber> {
        self.pick_among(except, |_| true)
    }

    /// The member that takes the next message, as with [`Group::pick`], among those that `may` have it.
    pub fn pick_among(&self, except: u64, may: impl Fn(&Subscriber) -> bool) -> Option<Subscriber> {
        let members = self.members.lock();
        let n = members.len();
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let best = |among: usize| {
            (0..among)
                .map(|i| &members[start.wrapping_add(i) % n])
                .filter(|m| m.handle.no != except && may(m))
                .map(|m| ((m.handle.mailbox.rank(), m.handle.mailbox.load()), m))
                .min_by_key(|(rank, _)| *rank)
        };
        // Of a large group a few in turn are looked at, and all only if none of these is online.
        let found = best(n.min(LOOKED_AT)).filter(|((rank, _), _)| *rank == Rank::Online).or_else(|| best(n));
        found.map(|(_, m)| m.clone())
    }
}

#[derive(Debug)]
struct Leaf {
    direct: Subscribers,
    /// Boxed because most leaves have none, and there are very many leaves.
    #[allow(clippy::box_collection)]
    groups: Option<Box<Vec<Arc<Group>>>>,
}

impl Leaf {
    fn new() -> Leaf {
        Leaf { direct: Subscribers::Few(SmallVec::new()), groups: None }
    }

    fn is_empty(&self) -> bool {
        self.direct.len() == 0 && self.groups.is_none()
    }
}

#[derive(Debug)]
struct Shard {
    trie: RwLock<Trie<Leaf>>,
    /// Changes with every change of the trie.
    generation: AtomicU64,
}

/// The subscriptions of a node's sessions by filter: which sessions a topic goes to.
#[derive(Debug)]
pub struct Router {
    shards: Vec<Shard>,
    hasher: State,
}

/// A session that a topic goes to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The session.
    pub handle: Arc<Handle>,
    /// Maximum QoS.
    pub qos: QoS,
    /// Whether the publisher itself does not get the message (No Local).
    pub no_local: bool,
    /// Whether nobody but the publisher itself gets the message.
    pub only_own: bool,
    /// RETAIN as published.
    pub retain_as_published: bool,
    /// Subscription identifiers.
    pub extra: Option<Arc<Extra>>,
}

impl Target {
    /// Whether the session may get what session `publisher` publishes.
    pub fn is_for(&self, publisher: SessionNo) -> bool {
        if self.handle.no == publisher { !self.no_local } else { !self.only_own }
    }
}

/// The sessions that a topic goes to.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// Sessions, each once.
    pub targets: Vec<Target>,
    /// Shared subscriptions, each once.
    pub groups: Vec<Arc<Group>>,
}

/// The last lookup of one publisher among the sessions of this node.
#[derive(Debug, Default)]
pub struct Cache {
    topic: String,
    generations: Option<(u64, u64)>,
    matches: Matches,
}

impl Default for Router {
    fn default() -> Router {
        let shard = || Shard { trie: RwLock::new(Trie::new()), generation: AtomicU64::new(0) };
        Router { shards: (0..=SHARDS).map(|_| shard()).collect(), hasher: State::default() }
    }
}

/// The first two levels of a topic or filter; `None` if there is a wildcard among them.
pub fn head(path: &str) -> Option<&[u8]> {
    let bytes = path.as_bytes();
    let end = memchr::memchr_iter(b'/', bytes).nth(1).unwrap_or(bytes.len());
    let head = &bytes[..end];
    memchr::memchr2(b'+', b'#', head).is_none().then_some(head)
}

impl Router {
    /// The shard of a topic, or of a filter without wildcards in its first two levels; `None` for other filters.
    fn shard_of(&self, path: &str) -> Option<usize> {
        let mut h = self.hasher.build_hasher();
        h.write(head(path)?);
        Some(h.finish() as usize % SHARDS)
    }

    fn change<R>(&self, filter: &str, f: impl FnOnce(&mut Trie<Leaf>) -> R) -> R {
        let shard = &self.shards[self.shard_of(filter).unwrap_or(SHARDS)];
        let mut trie = shard.trie.write();
        let r = f(&mut trie);
        // Under the lock: a reader that sees the old generation has matched before the change.
        shard.generation.fetch_add(1, Ordering::Release);
        r
    }

    /// Adds or replaces a subscription; true if it is new.
    pub fn subscribe(&self, filter: &Filter<'_>, name: &Arc<str>, s: Subscriber) -> bool {
        self.change(filter.filter, |trie| {
            let leaf = trie.get_or_insert_with(filter.filter, Leaf::new);
            if filter.share.is_none() {
                return leaf.direct.insert(s);
            }
            let groups = leaf.groups.get_or_insert_default();
            let group = match groups.iter().position(|g| g.name == *name) {
                Some(at) => groups[at].clone(),
                None => {
                    let group = Group {
                        name: name.clone(),
                        members: Mutex::new(Vec::new()),
                        turn: AtomicUsize::new(0),
                    };
                    groups.push(Arc::new(group));
                    groups[groups.len() - 1].clone()
                }
            };
            let mut members = group.members.lock();
            if let Some(old) = members.iter_mut().find(|m| m.handle.no == s.handle.no) {
                *old = s;
                return false;
            }
            members.push(s);
            true
        })
    }

    /// Removes a subscription; false if there was none.
    pub fn unsubscribe(&self, filter: &Filter<'_>, name: &str, no: u64) -> bool {
        self.change(filter.filter, |trie| {
            let Some(leaf) = trie.get_mut(filter.filter) else { return false };
            let removed = if filter.share.is_none() {
                leaf.direct.remove(no)
            } else if let Some(groups) = leaf.groups.as_mut()
                && let Some(at) = groups.iter().position(|g| *g.name == *name)
            {
                let mut members = groups[at].members.lock();
                let before = members.len();
                members.retain(|m| m.handle.no != no);
                let (removed, empty) = (members.len() < before, members.is_empty());
                drop(members);
                if empty {
                    groups.swap_remove(at);
                }
                if groups.is_empty() {
                    leaf.groups = None;
                }
                removed
            } else {
                false
            };
            if leaf.is_empty() {
                trie.remove(filter.filter);
            }
            removed
        })
    }

    /// The sessions that `topic` goes to. The result stays valid until the next call with this cache.
    pub fn lookup<'c>(&self, topic: &str, cache: &'c mut Cache) -> &'c Matches {
        let own = &self.shards[self.shard_of(topic).unwrap_or(SHARDS)];
        let wild = &self.shards[SHARDS];
        // Read before the lookup: a change in between makes this result look old, never new.
        let generations = (own.generation.load(Ordering::Acquire), wild.generation.load(Ordering::Acquire));
        if cache.generations != Some(generations) || cache.topic != topic {
            cache.topic.clear();
            cache.topic.push_str(topic);
            cache.generations = Some(generations);
            let m = &mut cache.matches;
            m.targets.clear();
            m.groups.clear();
            let mut leaves = 0;
            own.trie.read().for_each_match(topic, |leaf| leaves += m.add(leaf));
            wild.trie.read().for_each_match(topic, |leaf| leaves += m.add(leaf));
            if leaves > 1 {
                m.merge_overlapping();
            }
        }
        &cache.matches
    }

    /// The shared subscription `name` whose filter is `filter`.
    pub fn group(&self, filter: &Filter<'_>, name: &str) -> Option<Arc<Group>> {
        let trie = self.shards[self.shard_of(filter.filter).unwrap_or(SHARDS)].trie.read();
        let groups = trie.get(filter.filter)?.groups.as_ref()?;
        groups.iter().find(|g| *g.name == *name).cloned()
    }

    /// How many distinct filters there are.
    pub fn filters(&self) -> usize {
        self.shards.iter().map(|s| s.trie.read().len()).sum()
    }
}

impl Matches {
    /// Adds what a filter leads to; returns 1 if any of it is direct.
    fn add(&mut self, leaf: &Leaf) -> usize {
        self.targets.extend(leaf.direct.iter().map(|s| Target {
            handle: s.handle.clone(),
            qos: s.options.qos,
            no_local: s.options.no_local,
            only_own: false,
            retain_as_published: s.options.retain_as_published,
            extra: s.extra.clone(),
        }));
        self.groups.extend(leaf.groups.iter().flat_map(|g| g.iter().cloned()));
        usize::from(leaf.direct.len() > 0)
    }

    /// Overlapping subscriptions of a session become one: the highest QoS, all identifiers (MQTT 5.0 section 3.3.4).
    fn merge_overlapping(&mut self) {
        self.targets.sort_by_key(|t| t.handle.no);
        let same = |a: &Target, b: &Target| a.handle.no == b.handle.no;
        // Some with no local and some without: what the session publishes itself goes by the latter alone.
        let mut own = Vec::new();
        for targets in self.targets.chunk_by(same).filter(|ts| ts.iter().any(|t| t.no_local)) {
            let mut others = targets.iter().filter(|t| !t.no_local);
            if let Some(first) = others.next() {
                let mut merged = Target { only_own: true, ..first.clone() };
                others.for_each(|t| merged.add(t));
                own.push(merged);
            }
        }
        self.targets.dedup_by(|next, first| {
            let overlap = same(next, first);
            if overlap {
                first.add(next);
            }
            overlap
        });
        self.targets.append(&mut own);
    }
}

impl Target {
    /// Adds what another subscription of the same session says.
    fn add(&mut self, other: &Target) {
        self.qos = self.qos.max(other.qos);
        self.no_local |= other.no_local;
        self.retain_as_published |= other.retain_as_published;
        if let Some(more) = &other.extra {
            let mut all = self.extra.as_deref().cloned().unwrap_or_default();
            all.subscription_ids.extend_from_slice(&more.subscription_ids);
            self.extra = Some(Arc::new(all));
        }
    }
}

#[cfg(test)]
mod tests;
