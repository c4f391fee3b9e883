//! What the leader does, every few seconds, each duty a bounded piece at a time:
//!
//! 1. *Fold chains of custody*: where a holder's own record names another holder that has it all, records name that one.
//! 2. *Note who is gone*: `gone` in a custody record tells since when, by the cluster's time, its holder has been away, neither
//!    registered nor linked.
//! 3. *Give up* what has been away for longer than `forget_after`, if that is set.
//! 4. *Expire retained messages* whose time is up.
//! 5. *Remove session records* of incarnations that were given up.
//! 6. *End sessions* that have expired since their node went, by the expiry in their records. Time counts from when this leader saw it
//!    go: clocks of leaders may differ.
//! 7. *Collect* custody records, routes, evictions and keys of journals that nothing refers to any more.
//!
//! Everything it writes compares its member key, its election key, and the records it was judged by. 5 to 7 are one pass over
//! the sessions: see [`super::sweep`]. A duty that fails does not keep the others from being done.

use super::client::Etcd;
use super::custody::{
    self, CHANGES_MAX, Change, Linked, Nested, Stored, giving_up, is_orphan, nested_successes,
};
use super::election::Election;
use super::error::StoreError;
use super::fence::{exists_since, unchanged_since};
use super::journals;
use super::keys::Keys;
use super::members::{Members, Node};
use super::records::CustodyRecord;
use super::sweep::{Gone, Guard, Sweep, Unused};
use crate::clock::{self, Time};
use crate::hashing::{HashMap, HashSet};
use crate::ports::{ClusterTime, MemberId, Revision};
use etcd_client::{Txn, TxnOp};
use futures_util::FutureExt;
use std::sync::Arc;
use std::time::Duration;

/// Pages of sessions looked at in one round.
const PAGES_PER_ROUND: usize = 20;

/// Between two rounds at least.
const ROUND_LEAST: Duration = Duration::from_millis(500);

/// Retained messages expired in one round.
const EXPIRED_PER_ROUND: usize = 20_000;

/// How long after a pass over all sessions the next one may be for the same incarnations.
const PASS_PAUSE: Duration = Duration::from_secs(600);

/// For how long a leader must itself have seen that a node is gone before it gives it up, unless `forget_after` is shorter: the
/// clock of the leader that noted it may be wrong.
const GONE_SEEN: Duration = Duration::from_secs(600);

/// How far a `gone` may lie in the future: leaders do not measure the cluster's time quite alike.
const GONE_AHEAD_MS: u64 = 60_000;

/// By how much a `gone` that this process notes may seem earlier than when it saw that.
const NOTED_BEFORE_MS: u64 = 1_000;

/// No cluster is older than 2025: a `gone` from before is of a clock that is wrong.
const GONE_EARLIEST: Time = Time(1_735_689_600_000);

/// Retained messages whose time is up: topics with the revision of the value that has expired, at most so many.
pub type ExpiredRetained = Arc<dyn Fn(Time, usize) -> Vec<(Arc<str>, Revision)> + Send + Sync>;

/// How a leader does its duties.
pub struct LeaderOptions {
    /// Between two rounds.
    pub interval: Duration,
    /// How long a node may be away before what it has is given up; `None` = for ever.
    pub forget_after: Option<Duration>,
    /// How long an incarnation that was adopted is kept, so that all nodes have seen who has it.
    pub collect_after: Duration,
    /// Retained messages that have expired, from this node's index.
    pub expired: ExpiredRetained,
    /// Processes that this node has a working link to: they live, registered or not.
    pub linked: Linked,
    /// The cluster's time. Until it is known nothing is noted by it, and nothing given up.
    pub time: Arc<ClusterTime>,
}

/// The leader's duties.
pub struct Leader {
    etcd: Etcd,
    keys: Keys,
    guard: Guard,
    options: LeaderOptions,
    /// The pass under way, and what it is for.
    sweep: Option<(Sweep, HashSet<MemberId>)>,
    /// The `gone` of custody records, and since when this process has seen that.
    gone_seen: HashMap<MemberId, (u64, Time)>,
    /// Since when incarnations have been out of use, as far as this process has seen.
    unused_since: HashMap<MemberId, Time>,
    /// What the last complete pass was for, and when the next one for the same may be.
    last_pass: (HashSet<MemberId>, Time),
    /// Holders that are gone, what their records say of that, and since when this process has seen it.
    away: HashMap<MemberId, (Option<u64>, Time)>,
    /// Those that the last complete pass knew to be gone, and when the next of their sessions expires.
    expiring: (HashSet<MemberId>, Time),
}

/// What a round looks at.
struct World {
    members: Members,
    custody: Vec<Stored>,
    now: Time,
}

impl Leader {
    /// Ready to do the duties of the winner of `election`.
    pub fn new(etcd: &Etcd, keys: &Keys, election: &Election, options: LeaderOptions) -> Leader {
        Leader {
            etcd: etcd.clone(),
            keys: keys.clone(),
            guard: election.guard(),
            options,
            sweep: None,
            gone_seen: HashMap::default(),
            unused_since: HashMap::default(),
            last_pass: (HashSet::default(), Time(0)),
            away: HashMap::default(),
            expiring: (HashSet::default(), Time(u64::MAX)),
        }
    }

    /// Does the duties for ever, whenever this process leads.
    pub async fn run(mut self, election: Arc<Election>) {
        let mut failing = false;
        loop {
            if election.elected().now_or_never().is_none() {
                // What happens meanwhile is not seen.
                self.away.clear();
                election.elected().await;
            }
            match self.round().await {
                Ok(()) => failing = false,
                Err(StoreError::Fenced) => self.sweep = None,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the leader's duties have to wait");
                    }
                }
            }
            let due = Duration::from_millis(self.expiring.1.since_ms(clock::now()));
            tokio::time::sleep(self.options.interval.min(due.max(ROUND_LEAST))).await;
        }
    }

    /// Each duty once, bounded.
    ///
    /// # Errors
    /// The first failure: etcd does not answer, or this process does not lead. The next round goes on.
    pub async fn round(&mut self) -> Result<(), StoreError> {
        let expired = self.expire_retained(clock::now()).await;
        let mut world = self.look().await?;
        self.see_away(&world);
        let folded = self.change(folded(&world, &self.keys)).await;
        let noted = self.change(self.gone(&world)).await;
        let too_long_gone = self.too_long_gone(&world);
        let given_up = self.change(too_long_gone).await;
        if [&folded, &noted, &given_up].into_iter().flatten().any(|changed| *changed > 0) {
            world = self.look().await?;
        }
        let swept = self.sweep(&world).await;
        expired.and(folded).and(noted).and(given_up).and(swept)
    }

    async fn look(&self) -> Result<World, StoreError> {
        // Members are read first: whoever adopts meanwhile is judged by what was true before, and then finds its record changed.
        let members = Members::read(&self.etcd, &self.keys).await?;
        let custody = custody::read_all(&self.etcd, &self.keys).await?;
        Ok(World { members, custody, now: clock::now() })
    }

    /// Writes what is still as read. Returns how many.
    async fn change(&self, mut changes: Vec<Change>) -> Result<usize, StoreError> {
        changes.truncate(CHANGES_MAX);
        custody::write(&self.etcd, &self.keys, &self.guard, &changes).await
    }

    /// Duty 2, in the cluster's time. The member key must be as read.
    fn gone(&self, world: &World) -> Vec<Change> {
        let Some(now) = self.options.time.judged_at(world.now) else { return Vec::new() };
        let verdict = |stored: &Stored| {
            let holder = &stored.record.holder;
            let gone = !world.members.is_live(holder) && !(self.options.linked)(holder);
            let plausible = |since| (GONE_EARLIEST..=now.plus_ms(GONE_AHEAD_MS)).contains(&Time(since));
            let right = stored.record.gone.map_or(!gone, |since| gone && plausible(since));
            if stored.record.given_up || right {
                return None;
            }
            let created = match world.members.node(&holder.node) {
                Node::Absent => 0,
                Node::Live { created, .. } => created,
            };
            let record = CustodyRecord { gone: gone.then_some(now.as_millis()), ..stored.record.clone() };
            let also = vec![exists_since(self.keys.member(&holder.node), created)];
            Some(Change { stored: stored.clone(), record, also })
        };
        world.custody.iter().filter_map(verdict).collect()
    }

    /// Duty 3. What is noted and what this process has seen itself must both be long enough.
    fn too_long_gone(&mut self, world: &World) -> Vec<Change> {
        let Some(limit) = self.options.forget_after else { return Vec::new() };
        let Some(now) = self.options.time.judged_at(world.now) else { return Vec::new() };
        let seen = std::mem::take(&mut self.gone_seen);
        for stored in &world.custody {
            if let Some(gone) = stored.record.gone {
                let before = seen.get(&stored.of).filter(|(value, _)| *value == gone);
                let since = before.map_or(world.now, |(_, since)| *since);
                self.gone_seen.insert(stored.of.clone(), (gone, since));
            }
        }
        let over = |s: &&Stored| {
            let seen = self.gone_seen.get(&s.of);
            seen.is_some_and(|(noted, seen)| {
                now.since_ms(Time(*noted)) > limit.as_millis() as u64
                    && world.now.since_ms(*seen) >= limit.min(GONE_SEEN).as_millis() as u64
            })
        };
        let linked = &self.options.linked;
        let orphans =
            world.custody.iter().filter(|s| !s.record.given_up && is_orphan(s, &world.members, linked));
        let log = |s: &&Stored| {
            tracing::warn!(incarnation = %s.of, holder = %s.record.holder,
                "gone for longer than cluster.forget_after: given up with all its sessions");
        };
        orphans.filter(over).inspect(log).map(|s| giving_up(s, &self.keys, &world.members)).collect()
    }

    async fn expire_retained(&self, now: Time) -> Result<(), StoreError> {
        let expired = (self.options.expired)(now, EXPIRED_PER_ROUND);
        let one = |(topic, revision): &(Arc<str>, Revision)| {
            let key = self.keys.retained(topic);
            let bytes = 2 * key.len();
            let same = unchanged_since(&*key, i64::try_from(*revision).unwrap_or(0));
            Nested { txn: Txn::new().when([same]).and_then([TxnOp::delete(key, None)]), bytes }
        };
        nested_successes(&self.etcd, &self.guard, expired.iter().map(one)).await?;
        Ok(())
    }

    /// Takes note of holders that will not come back, or not now.
    fn see_away(&mut self, world: &World) {
        let before = std::mem::take(&mut self.away);
        // What this process notes may seem a little earlier: the cluster's time is moved now and then.
        let noted_from = |since: Time| self.options.time.cluster(since).minus_ms(NOTED_BEFORE_MS);
        for stored in &world.custody {
            let Stored { of, record, .. } = stored;
            let orphan = is_orphan(stored, &world.members, &self.options.linked);
            if !orphan || record.given_up || record.holder != *of {
                continue;
            }
            // Another moment in the record than before: it has been there meanwhile.
            let same = |(noted, since): &&(Option<u64>, Time)| {
                *noted == record.gone
                    || noted.is_none() && record.gone.is_some_and(|g| Time(g) >= noted_from(*since))
            };
            let since = before.get(of).filter(same).map_or(world.now, |(_, since)| *since);
            self.away.insert(of.clone(), (record.gone, since));
        }
    }

    async fn sweep(&mut self, world: &World) -> Result<(), StoreError> {
        if self.sweep.is_none() {
            self.sweep = self.begin_pass(world).await?;
        }
        // One that fails is begun again.
        let Some((mut sweep, reasons)) = self.sweep.take() else { return Ok(()) };
        for _ in 0..PAGES_PER_ROUND {
            if sweep.step(&self.etcd, &self.keys, &self.guard).await? {
                self.expiring = sweep.expiring();
                self.last_pass = (reasons, world.now.plus_ms(PASS_PAUSE.as_millis() as u64));
                return journals::collect(&self.etcd, &self.keys, &self.guard).await;
            }
        }
        self.sweep = Some((sweep, reasons));
        Ok(())
    }

    /// A pass over all sessions, if there is a reason for one.
    async fn begin_pass(&mut self, world: &World) -> Result<Option<(Sweep, HashSet<MemberId>)>, StoreError> {
        let unused = self.unused(world);
        let given_up = world.custody.iter().filter(|s| s.record.given_up);
        let reasons: HashSet<_> =
            unused.iter().map(|u| &u.stored).chain(given_up).map(|s| s.of.clone()).collect();
        let collects = !reasons.is_empty() && (reasons != self.last_pass.0 || world.now >= self.last_pass.1);
        let others = self.away.keys().any(|holder| !self.expiring.0.contains(holder));
        if !collects && !others && world.now < self.expiring.1 {
            return Ok(None);
        }
        let gone = |(holder, (_, since)): (&MemberId, &(Option<u64>, Time))| {
            let created = match world.members.node(&holder.node) {
                Node::Absent => 0,
                Node::Live { created, .. } => created,
            };
            (holder.clone(), Gone::new(*since, created))
        };
        let gone = self.away.iter().map(gone).collect();
        let sweep = Sweep::begin(&self.etcd, &self.keys, unused, gone, world.now).await?;
        Ok(Some((sweep, reasons)))
    }

    /// Incarnations that may go if no session refers to them: those that a live process has adopted, and those of a live node
    /// that has lost the journal. Nothing of a node that is gone: its journal may still have use for them.
    fn unused(&mut self, world: &World) -> Vec<Unused> {
        let held: HashSet<_> =
            world.custody.iter().filter(|s| s.of != s.record.holder).map(|s| &s.record.holder).collect();
        let verdict = |s: &Stored| {
            let in_use = world.members.is_live(&s.of) || held.contains(&s.of) || s.record.given_up;
            let adopted = s.record.merged && world.members.is_live(&s.record.holder);
            let lost = s.of.node == s.record.holder.node
                && matches!(world.members.node(&s.of.node), Node::Live { .. })
                && is_orphan(s, &world.members, &self.options.linked);
            (!in_use && (adopted || lost)).then(|| Unused { stored: s.clone(), lost })
        };
        let mut unused: Vec<_> = world.custody.iter().filter_map(verdict).collect();
        self.unused_since.retain(|of, _| unused.iter().any(|u| u.stored.of == *of));
        let wait = self.options.collect_after.as_millis() as u64;
        unused.retain(|u| {
            let since = *self.unused_since.entry(u.stored.of.clone()).or_insert(world.now);
            world.now.since_ms(since) >= wait
        });
        unused
    }
}

/// Duty 1. The holder's own record must be as read.
fn folded(world: &World, keys: &Keys) -> Vec<Change> {
    let records: HashMap<_, _> = world.custody.iter().map(|s| (&s.of, s)).collect();
    let fold = |stored: &Stored| {
        let through = records.get(&stored.record.holder)?;
        let whole = through.record.merged && !through.record.given_up;
        if stored.record.given_up || through.of == through.record.holder || !whole {
            return None;
        }
        let record = CustodyRecord {
            holder: through.record.holder.clone(),
            journal: through.record.journal,
            ..stored.record.clone()
        };
        let also = vec![unchanged_since(keys.custody(&through.of), through.revision)];
        Some(Change { stored: stored.clone(), record, also })
    };
    world.custody.iter().filter_map(fold).collect()
}
