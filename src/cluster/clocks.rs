//! What the nodes' clocks show, and the cluster's time that is made of it (docs/decisions/0023-cluster-time.md).
//!
//! The oldest process that knows the time keeps it: it moves it towards the median of all clocks, so slowly that no expiry notices. All
//! others follow that process. So the time goes on when nodes come and go whose clocks are wrong. At first it is young: whoever makes it may
//! have seen too few clocks, since the others are just starting; then the one who keeps it, whoever has made it, goes to the median at once.

use super::Cluster;
use super::Remote;
use crate::clock::Time;
use crate::ports::{BoxFuture, Incarnation, LinkClock, LinkState, PeerClock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Between two looks, milliseconds.
const LOOK_MS: u64 = 1_000;

/// Between two looks at all clocks while the cluster's time is not known, milliseconds.
const LOOK_SOON_MS: u64 = 50;

/// How long a process waits for clocks that it cannot measure, and for nodes that are gone, before it makes a time without them,
/// milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// For how long the time is young once it is made: it gives way at once to three clocks or more, milliseconds.
const YOUNG_MS: u64 = 60_000;

/// Beyond this a difference is no error of measurement, milliseconds.
const JUMP_MS: i64 = 1_000;

/// How fast the one who keeps the time moves it, microseconds per millisecond.
const KEEP_US_PER_MS: u64 = 1;

/// How fast the others follow, microseconds per millisecond.
const FOLLOW_US_PER_MS: u64 = 50;

/// A registered process other than this one.
#[derive(Clone, Debug)]
struct Other {
    node: Arc<str>,
    incarnation: Incarnation,
    clock: LinkClock,
}

/// What a look sees.
#[derive(Clone, Debug)]
struct View {
    me: (Arc<str>, Incarnation),
    others: Vec<Other>,
    /// Nodes are gone that have state: they may be back with another clock.
    missing: bool,
}

/// A node's clock as this node has measured it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClock {
    /// The node.
    pub node: Arc<str>,
    /// By how much the node's clock is ahead of this node's, milliseconds.
    pub ahead_ms: i64,
    /// By how much the node's clock is ahead of the median of all clocks, milliseconds.
    pub difference_ms: i64,
    /// By how much the two differences may be wrong at most, milliseconds.
    pub error_ms: u64,
    /// Whether the difference from the median is above `cluster.max_clock_difference`.
    pub apart: bool,
}

/// The clocks of all nodes, as far as this node has measured them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// The clocks of this node and of all nodes that were measured.
    pub nodes: Vec<NodeClock>,
    /// Whether clocks of registered nodes have not been measured yet.
    pub measuring: bool,
}

impl Clocks {
    /// The clock of a node, if it was measured.
    pub fn of(&self, node: &str) -> Option<&NodeClock> {
        self.nodes.iter().find(|n| *n.node == *node)
    }
}

/// The cluster's time as this process reckons it.
#[derive(Debug, Default)]
struct Reckoning {
    /// By how much it is ahead of the own clock, microseconds.
    ahead_us: i64,
    known: bool,
    /// Until then the time is young, by the own clock.
    young_until: Time,
    since: Option<Time>,
    last: Option<Time>,
}

/// The lower one of those in the middle, with its error.
fn median(mut clocks: Vec<(i64, u64)>) -> (i64, u64) {
    clocks.sort_unstable();
    clocks.get(clocks.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

impl View {
    fn measured(&self) -> impl Iterator<Item = (&Other, PeerClock)> {
        self.others.iter().filter_map(|other| match other.clock {
            LinkClock::Measured(clock) if clock.incarnation == other.incarnation => Some((other, clock)),
            _ => None,
        })
    }

    /// All clocks, the own one first: by how much they are ahead of it, and the error of that.
    fn clocks(&self) -> Vec<(i64, u64)> {
        [(0, 0)].into_iter().chain(self.measured().map(|(_, c)| (c.ahead_ms, c.error_ms))).collect()
    }

    /// Whether clocks may still be measured.
    fn measuring(&self) -> bool {
        let untold = |other: &Other| other.clock == LinkClock::Untold;
        self.measured().count() < self.others.iter().filter(|other| !untold(other)).count()
    }

    /// The oldest other process that knows the time, by how much that is ahead of the own clock, and for how long it is young, milliseconds.
    fn eldest(&self) -> Option<(Incarnation, i64, u64)> {
        let knows = |(_, c): (&Other, PeerClock)| {
            Some((c.incarnation, c.ahead_ms.saturating_add(c.cluster_ahead_ms?), c.cluster_young_ms))
        };
        self.measured().filter_map(knows).min()
    }

    /// The differences of the clocks from their median.
    fn differences(&self, limit_ms: u64) -> Vec<NodeClock> {
        let (middle, middle_error) = median(self.clocks());
        let one = |node: &Arc<str>, ahead_ms: i64, error_ms: u64| {
            let difference_ms = ahead_ms.saturating_sub(middle);
            let error_ms = error_ms.saturating_add(middle_error);
            let apart = difference_ms.unsigned_abs() > limit_ms.saturating_add(error_ms);
            NodeClock { node: node.clone(), ahead_ms, difference_ms, error_ms, apart }
        };
        let others = self.measured().map(|(other, c)| one(&other.node, c.ahead_ms, c.error_ms));
        [one(&self.me.0, 0, 0)].into_iter().chain(others).collect()
    }
}

impl Reckoning {
    /// A look at `now`. Returns by how much the time jumped that was known before, milliseconds, if it did.
    fn look(&mut self, view: &View, now: Time) -> Option<i64> {
        let since = *self.since.get_or_insert(now);
        let passed_ms = now.since_ms(self.last.replace(now).unwrap_or(now));
        let clocks = view.clocks();
        let counted = clocks.len();
        let (middle, _) = median(clocks);
        match (view.eldest(), self.known) {
            (Some((_, ahead, young_ms)), false) => {
                self.becomes(ahead, now.plus_ms(young_ms));
                None
            }
            (Some((who, ahead, young_ms)), true) if who < view.me.1 => {
                self.young_until = now.plus_ms(young_ms);
                self.jump(ahead).or_else(|| self.approach(ahead, passed_ms * FOLLOW_US_PER_MS))
            }
            (_, true) => {
                let jump = if counted > 2 && now < self.young_until { self.jump(middle) } else { None };
                jump.or_else(|| self.approach(middle, passed_ms * KEEP_US_PER_MS))
            }
            (None, false) => {
                let older = |other: &Other| other.incarnation < view.me.1 && other.clock != LinkClock::Untold;
                let waits = view.missing || view.measuring() || view.others.iter().any(older);
                self.ahead_us = middle.saturating_mul(1000);
                if !waits || now.since_ms(since) >= PATIENCE_MS {
                    self.becomes(middle, now.plus_ms(YOUNG_MS));
                }
                None
            }
        }
    }

    fn becomes(&mut self, ahead_ms: i64, young_until: Time) {
        self.ahead_us = ahead_ms.saturating_mul(1000);
        (self.known, self.young_until) = (true, young_until);
    }

    /// Goes to what is too far away to be approached.
    fn jump(&mut self, ahead_ms: i64) -> Option<i64> {
        let by = ahead_ms.saturating_sub(self.ahead_ms());
        (by.saturating_abs() > JUMP_MS).then(|| {
            self.ahead_us = ahead_ms.saturating_mul(1000);
            by
        })
    }

    fn approach(&mut self, ahead_ms: i64, at_most_us: u64) -> Option<i64> {
        let most = i64::try_from(at_most_us).unwrap_or(i64::MAX);
        let way = ahead_ms.saturating_mul(1000).saturating_sub(self.ahead_us);
        self.ahead_us = self.ahead_us.saturating_add(way.clamp(-most, most));
        None
    }

    fn ahead_ms(&self) -> i64 {
        self.ahead_us.div_euclid(1000)
    }
}

/// What is said of a clock in the log.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Apart(NodeClock),
    Right(NodeClock),
}

/// The differences that the log has named.
#[derive(Debug, Default)]
struct Told(BTreeMap<Arc<str>, i64>);

impl Told {
    /// What is new: a clock is apart, is so by much more or less than was said, or is right again.
    fn look(&mut self, clocks: &[NodeClock], limit_ms: u64) -> Vec<News> {
        self.0.retain(|node, _| clocks.iter().any(|c| c.node == *node));
        let mut news = Vec::new();
        for c in clocks {
            let told = self.0.get(&c.node).copied();
            let changed = |told: i64| told.abs_diff(c.difference_ms) > limit_ms.saturating_add(c.error_ms);
            if c.apart && told.is_none_or(changed) {
                self.0.insert(c.node.clone(), c.difference_ms);
                news.push(News::Apart(c.clone()));
            } else if told.is_some() && c.difference_ms.unsigned_abs() <= limit_ms - limit_ms / 10 {
                self.0.remove(&c.node);
                news.push(News::Right(c.clone()));
            }
        }
        news
    }
}

/// A difference as people read it.
fn seconds(ms: i64) -> String {
    format!("{:+.1}s", ms as f64 / 1000.0)
}

impl Remote {
    /// What is known of the nodes' clocks.
    pub fn clocks(&self) -> Clocks {
        self.clocks.lock().clone()
    }

    fn clock_view(&self) -> View {
        let links = self.ports.peers.links();
        let live = self.members.live();
        let of = |node: &str| links.iter().find(|l| *l.node == *node).map(|l| l.clock).unwrap_or_default();
        let others = live.iter().filter(|m| m.id.node != self.me.node);
        let others = others.map(|m| {
            let (node, incarnation) = (m.id.node.clone(), m.id.incarnation);
            Other { clock: of(&node), node, incarnation }
        });
        let gone = |node: &Arc<str>| *node != self.me.node && !live.iter().any(|m| m.id.node == *node);
        let missing = self.members.custodies().iter().any(|(_, custody)| gone(&custody.holder.node));
        View { me: (self.me.node.clone(), self.me.incarnation), others: others.collect(), missing }
    }

    /// Whether there is a link that is being opened, or whose clock is about to be known.
    fn awaits_clocks(&self) -> bool {
        let (links, clocks) = (self.ports.peers.links(), self.clocks());
        let awaited = |node: &str| match links.iter().find(|l| *l.node == *node).map(|l| (l.state, l.clock)) {
            None | Some((LinkState::Connecting, _)) => true,
            Some((LinkState::Up, LinkClock::Unmeasured)) => true,
            Some((LinkState::Up, LinkClock::Measured(_))) => clocks.of(node).is_none(),
            Some(_) => false,
        };
        self.members.live().iter().any(|m| m.id.node != self.me.node && awaited(&m.id.node))
    }

    /// Looks at all clocks.
    fn reckon(&self, reckoning: &mut Reckoning, told: &mut Told) {
        // Before its own registration it does not know who else there is.
        if self.applied() < self.me.registered_at() || self.applied() == 0 {
            return;
        }
        let (view, limit) = (self.clock_view(), self.limits.clock_difference_ms);
        if let Some(by) = reckoning.look(&view, self.now()) {
            tracing::warn!(
                by = seconds(by),
                "the cluster's time jumps: messages and records that expire do so by that much earlier or later"
            );
        }
        self.ports.time.be_young(reckoning.young_until);
        self.ports.time.set(reckoning.ahead_ms(), reckoning.known);
        let clocks = Clocks { nodes: view.differences(limit), measuring: view.measuring() };
        if let Some(own) = clocks.of(&self.me.node) {
            self.metrics.clock_difference.set_ms(own.difference_ms);
        }
        for news in told.look(&clocks.nodes, limit) {
            self.say(&news);
        }
        *self.clocks.lock() = clocks;
    }

    fn say(&self, news: &News) {
        let (clock, apart) = match news {
            News::Apart(clock) => (clock, true),
            News::Right(clock) => (clock, false),
        };
        let (node, difference) = (&clock.node, seconds(clock.difference_ms));
        match (apart, *node == self.me.node) {
            (true, true) => tracing::warn!(
                difference,
                "the clock of this node differs from the median of the cluster's: set it right, then restart this node, which \
                 reads it when it starts (cluster.max_clock_difference)"
            ),
            (true, false) => tracing::warn!(
                %node,
                difference,
                "the clock of a node differs from the median of the cluster's: set it right, then restart that node, which reads \
                 it when it starts (cluster.max_clock_difference)"
            ),
            (false, _) => tracing::info!(%node, difference, "the clock of the node is right again"),
        }
    }
}

/// Measures the clocks again and again, for as long as the cluster is there.
pub(super) async fn watch(cluster: Weak<Cluster>) {
    let (mut reckoning, mut told) = (Reckoning::default(), Told::default());
    loop {
        let pause = {
            let Some(remote) = cluster.upgrade().map(|b| b.remote.clone()) else { return };
            remote.reckon(&mut reckoning, &mut told);
            let known = remote.ports.time.known();
            remote.ports.tasks.sleep(if known { LOOK_MS } else { LOOK_SOON_MS })
        };
        pause.await;
    }
}

impl Cluster {
    /// Completes when this node knows the cluster's time, or has measured the clocks of all nodes that it has a link to and can only
    /// wait for the others; after `at_most_ms` at the latest.
    pub fn when_clocks_measured(&self, at_most_ms: u64) -> BoxFuture<()> {
        let remote = self.remote.clone();
        Box::pin(async move {
            let until = remote.now().plus_ms(at_most_ms);
            while !remote.ports.time.known() && remote.awaits_clocks() && remote.now() < until {
                remote.ports.tasks.sleep(LOOK_SOON_MS).await;
            }
        })
    }
}

#[cfg(test)]
#[path = "clocks_tests.rs"]
mod clocks_tests;
