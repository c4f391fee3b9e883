//! Which processes make up the cluster: who is registered, who is linked, who speaks for whom, and what each has reported.

mod reported;

use crate::clock::Time;
use crate::hashing::{HashMap, HashSet};
use crate::ports::{Custody, Incarnation, Member, MemberId, MessageId, Report, RetainedProgress, Revision};
use parking_lot::RwLock;
use reported::Reported;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Steps from an incarnation to the process that speaks for it; the leader folds longer chains.
const CUSTODY_CHAIN_MAX: usize = 64;

/// Who takes publishes for what a process has subscribed to, and whether that can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// This process speaks for the one that had the routes: the local router has all that its sessions have subscribed to.
    Own,
    /// The process of this node that speaks for it is registered or linked: publishes go there.
    Live(Arc<str>),
    /// The process of this node that speaks for it is neither registered nor linked: publishes for its persistent sessions wait until
    /// custody has moved or the process is back.
    Orphan(Arc<str>),
    /// The process was given up, and all it owned with it.
    Gone,
}

impl Reachability {
    /// The node that publishes go to, or wait for.
    pub fn node(&self) -> Option<&Arc<str>> {
        match self {
            Reachability::Live(node) | Reachability::Orphan(node) => Some(node),
            Reachability::Own | Reachability::Gone => None,
        }
    }
}

/// Who can say what a process has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The process of this node can be asked.
    Reached(Arc<str>),
    /// The process of this node can say it, and is not there.
    Away(Arc<str>),
    /// Nobody will ever say it: the process was given up.
    Nobody,
}

/// A process whose record went: it may not know yet.
#[derive(Debug)]
struct Deregistered {
    member: Member,
    at: Time,
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<Arc<str>, (Member, u32)>,
    deregistered: Vec<Deregistered>,
    custody: HashMap<MemberId, (Custody, u32)>,
    links: HashMap<Arc<str>, MemberId>,
    reports: HashMap<MemberId, Reported>,
    /// Incarnations none of whose publishes will come again.
    over: HashSet<Incarnation>,
    leader: Option<MemberId>,
    /// Which snapshot what is mentioned now belongs to.
    snapshot: u32,
    leader_snapshot: u32,
}

/// The processes that make up the cluster, as this node knows them: registrations, links, custody and reports.
#[derive(Debug)]
pub struct Members {
    me: MemberId,
    table: RwLock<Table>,
}

impl Members {
    /// Knows nobody yet.
    pub fn new(me: MemberId) -> Members {
        Members { me, table: RwLock::default() }
    }

    /// All registered nodes, this one included, by name.
    pub fn live(&self) -> Vec<Member> {
        self.table.read().live.values().map(|(m, _)| m.clone()).collect()
    }

    /// The record of a registered node.
    pub fn get(&self, node: &str) -> Option<Member> {
        self.table.read().live.get(node).map(|(m, _)| m.clone())
    }

    /// Whether this very process is registered and has not left.
    pub fn is_live(&self, process: &MemberId) -> bool {
        self.table.read().is_live(process)
    }

    /// The process that the working link to a node leads to.
    pub fn linked(&self, node: &str) -> Option<MemberId> {
        self.table.read().links.get(node).cloned()
    }

    /// The process of this incarnation, if it is registered or linked.
    pub(super) fn present(&self, incarnation: Incarnation) -> Option<MemberId> {
        let table = self.table.read();
        let mut processes = table.live.values().map(|(m, _)| &m.id).chain(table.links.values());
        processes.find(|p| p.incarnation == incarnation).cloned()
    }

    /// Registered nodes without a working link.
    pub(super) fn unlinked(&self) -> Vec<Arc<str>> {
        let table = self.table.read();
        let nodes = table.live.keys().filter(|n| **n != self.me.node && !table.links.contains_key(*n));
        nodes.cloned().collect()
    }

    /// Whether frames to a node have somewhere to go: it is registered or linked.
    pub fn reachable(&self, node: &str) -> bool {
        let table = self.table.read();
        table.live.get(node).is_some_and(|(m, _)| !table.left(&m.id)) || table.links.contains_key(node)
    }

    /// Whether a node hands its sessions over and takes no new ones.
    pub fn draining(&self, node: &str) -> bool {
        self.table.read().live.get(node).is_some_and(|(m, _)| m.draining)
    }

    /// The process that leads the cluster, if any does.
    pub fn leader(&self) -> Option<MemberId> {
        self.table.read().leader.clone()
    }

    /// Who speaks for an incarnation now: the end of its chain of custody.
    pub fn holder_of(&self, of: &MemberId) -> MemberId {
        self.table.read().holder_of(of)
    }

    /// The custody record of an incarnation.
    pub fn custody_of(&self, of: &MemberId) -> Option<Custody> {
        self.table.read().custody.get(of).map(|(c, _)| c.clone())
    }

    /// Every incarnation that may still be heard of: those in custody, registered or linked.
    pub fn known(&self) -> HashSet<Incarnation> {
        let table = self.table.read();
        let live = table.live.values().map(|(m, _)| &m.id);
        live.chain(table.links.values()).chain(table.custody.keys()).map(|of| of.incarnation).collect()
    }

    /// Every incarnation with a custody record.
    pub fn custodies(&self) -> Vec<(MemberId, Custody)> {
        self.table.read().custody.iter().map(|(of, (c, _))| (of.clone(), c.clone())).collect()
    }

    /// Whether everything that an incarnation owned was given up.
    pub fn given_up(&self, of: &MemberId) -> bool {
        let table = self.table.read();
        table.given_up(of) || table.given_up(&table.holder_of(of))
    }

    /// Who takes publishes for what an incarnation has subscribed to.
    pub fn reachability(&self, of: &MemberId) -> Reachability {
        let table = self.table.read();
        let holder = table.holder_of(of);
        if holder == self.me {
            return Reachability::Own;
        }
        if table.given_up(of) || table.given_up(&holder) {
            return Reachability::Gone;
        }
        if table.is_live(&holder) || table.is_linked(&holder) {
            return Reachability::Live(holder.node);
        }
        Reachability::Orphan(holder.node)
    }

    /// Whom to ask what a process has done.
    pub fn speaker(&self, process: &MemberId) -> Speaker {
        let table = self.table.read();
        let holder = table.holder_of(process);
        if holder.node == self.me.node {
            return Speaker::Nobody;
        }
        if table.is_live(&holder) || table.is_linked(&holder) {
            return Speaker::Reached(holder.node);
        }
        match table.given_up(process) || table.given_up(&holder) {
            // All it had is with the node's present process, or is given up.
            true if table.live.contains_key(&process.node) => Speaker::Reached(process.node.clone()),
            true => Speaker::Nobody,
            false => Speaker::Away(holder.node),
        }
    }

    /// The process that a node is asked by: the one registered, or else linked.
    pub fn process_of(&self, node: &str) -> Option<MemberId> {
        let table = self.table.read();
        let live = table.live.get(node).map(|(m, _)| &m.id);
        live.or_else(|| table.links.get(node)).cloned()
    }

    /// Whether a process must not be heard any more: another start of its node is registered, or another process speaks
    /// for it.
    pub fn superseded(&self, process: &MemberId) -> bool {
        let table = self.table.read();
        let newer = |other: &MemberId| other.node == process.node && other.incarnation > process.incarnation;
        table.live.get(&process.node).is_some_and(|(m, _)| newer(&m.id))
            || table.holder_of(process) != *process
    }

    /// How far the process of a node that is registered, or else linked, has applied the index by its latest report.
    pub fn applied_of(&self, node: &str) -> Revision {
        let table = self.table.read();
        let process = table.live.get(node).map(|(m, _)| &m.id).or_else(|| table.links.get(node));
        process.and_then(|p| table.reports.get(p)).map_or(0, |r| r.applied)
    }

    /// The revision up to which every frame of process `sender` to node `of` is answered: all those that were matched before it.
    pub fn settled(&self, sender: &MemberId, of: &str) -> Revision {
        let table = self.table.read();
        table.reports.get(sender).and_then(|r| r.settled.get(of).copied()).unwrap_or(0)
    }

    /// The revision up to which every publish of process `sender` that was matched for node `of` is answered, or was matched again since:
    /// all those that were matched before it.
    pub fn past(&self, sender: &MemberId, of: &str) -> Revision {
        self.table.read().reports.get(sender).map_or(0, |r| r.past(of))
    }

    /// The revision up to which every publish of process `sender` is answered by this node, and by any other, or was matched again since:
    /// all those that were matched before it.
    pub fn settled_everywhere(&self, sender: &MemberId) -> Revision {
        let table = self.table.read();
        let Some(r) = table.reports.get(sender) else { return 0 };
        let nodes = r.settled.iter();
        let settled = nodes.map(|(node, at)| if *node == self.me.node { *at } else { r.past(node) });
        settled.min().unwrap_or(0)
    }

    /// Whether no publish of an incarnation will come again.
    pub fn is_over(&self, incarnation: Incarnation) -> bool {
        self.table.read().over.contains(&incarnation)
    }

    /// The least that all other processes have applied that must have: those registered, those linked, and those whose
    /// record went without their having said goodbye and that were heard after `since`. `u64::MAX` if there is none. `mine` is
    /// how far this node has come.
    pub(super) fn applied_by_all(&self, since: Time, mine: Revision) -> Revision {
        let table = self.table.read();
        let applied = |p: &MemberId| table.reports.get(p).map_or(0, |r| r.applied);
        table.required(&self.me, since, mine).iter().map(applied).min().unwrap_or(u64::MAX)
    }

    /// The other registered processes that have not shown that they have had this node's report of `at` or a later one, and
    /// have applied `applied`.
    pub(super) fn not_told(&self, at: Time, applied: Revision) -> Vec<MemberId> {
        let table = self.table.read();
        let told = |p: &MemberId| table.reports.get(p).is_some_and(|r| r.echo >= at && r.applied >= applied);
        let live = table.live.values().map(|(m, _)| &m.id);
        live.filter(|p| p.node != self.me.node && !table.left(p) && !told(p)).cloned().collect()
    }

    /// The least revision up to which all other processes that must have ([`Members::applied_by_all`]) say what became of their
    /// updates of retained messages. One that has left counts until its key is gone: what it has accepted may be on its way to the store.
    pub(super) fn retained_by_all(&self, since: Time) -> Revision {
        let table = self.table.read();
        let settled = |r: &Reported| r.retained.map_or(r.applied, |p| p.settled);
        let of = |p: &MemberId| table.reports.get(p).map_or(0, settled);
        table.required(&self.me, since, 0).iter().map(of).min().unwrap_or(u64::MAX)
    }

    /// Whether a process reports what became of its updates of retained messages.
    pub(super) fn says_what_is_retained(&self, incarnation: Incarnation) -> bool {
        let table = self.table.read();
        let of = table.reports.iter().find(|(p, _)| p.incarnation == incarnation);
        of.is_some_and(|(_, r)| r.retained.is_some())
    }

    /// Whether another process speaks for an incarnation: it accepts nothing any more.
    pub(super) fn is_superseded(&self, incarnation: Incarnation) -> bool {
        let table = self.table.read();
        let of = table.custody.keys().find(|p| p.incarnation == incarnation);
        of.is_some_and(|p| table.superseded(p))
    }

    /// As [`Members::retained_by_all`], updates that wait for the store included, by what is registered or linked now.
    pub(super) fn written_by_all(&self) -> Revision {
        let table = self.table.read();
        let written = |r: &Reported| r.retained.map_or(r.applied, |p| p.written);
        let of = |p: &MemberId| table.reports.get(p).map_or(0, written);
        table.required(&self.me, Time(u64::MAX), 0).iter().map(of).min().unwrap_or(u64::MAX)
    }

    /// Whether no other process has spooled updates of retained messages.
    pub(super) fn none_spooled(&self) -> bool {
        let table = self.table.read();
        let none = |p: RetainedProgress| p.written == p.settled;
        table.reports.values().all(|r| r.retained.is_none_or(none))
    }

    /// The most that any other process has applied that counts.
    pub(super) fn most_applied(&self, mine: Revision) -> Revision {
        let table = self.table.read();
        let applied = |p: &MemberId| table.reports.get(p).map_or(0, |r| r.applied);
        table.required(&self.me, Time(u64::MAX), mine).iter().map(applied).max().unwrap_or(0)
    }

    /// Whether frames with a publish of another process may still be on their way here.
    pub(super) fn may_come(&self, id: MessageId) -> bool {
        let table = self.table.read();
        let of = table.reports.iter().find(|(p, _)| p.incarnation == id.origin);
        of.is_some_and(|(_, r)| r.low_water <= id.seq || r.open.binary_search(&id.seq).is_ok())
    }

    /// The linked processes that have applied more than `applied` by their reports, those with most first.
    pub(super) fn ahead_of(&self, applied: Revision) -> Vec<(MemberId, Revision)> {
        let table = self.table.read();
        let reported = table.links.values().filter_map(|p| Some((p.clone(), table.reports.get(p)?.applied)));
        let mut ahead: Vec<_> = reported.filter(|(_, a)| *a > applied).collect();
        ahead.sort_by_key(|(_, a)| std::cmp::Reverse(*a));
        ahead
    }

    /// By this node's clock, an instant at which it had applied, or has applied since, all that every other process
    /// registered or linked had. `None` if one of them has not shown it. `Some(None)` if there is no other. `mine` is how far
    /// this node has come.
    pub(super) fn evidence(&self, mine: Revision) -> Option<Option<Time>> {
        let table = self.table.read();
        let mut least = None;
        for p in table.required(&self.me, Time(u64::MAX), mine) {
            let at = table.reports.get(&p).map(|r| r.evidence).filter(|at| *at > Time(0))?;
            least = Some(least.map_or(at, |l: Time| l.min(at)));
        }
        Some(least)
    }

    /// What every process was last heard to say by its own clock.
    pub(super) fn heard(&self) -> Vec<(MemberId, Time)> {
        self.table.read().reports.iter().map(|(p, r)| (p.clone(), r.sent_at)).collect()
    }

    /// Records a report; `applied` is how far this node has come. True if the process says for the first time that it leaves.
    pub(super) fn report(&self, from: &MemberId, report: Report, applied: Revision, now: Time) -> bool {
        let mut table = self.table.write();
        if table.superseded(from) {
            return false;
        }
        for incarnation in &report.retired {
            table.over.insert(*incarnation);
        }
        let echo = report.heard.iter().find(|(p, _)| *p == self.me).map(|(_, at)| *at);
        let r = table.reports.entry(from.clone()).or_default();
        r.applied = report.applied;
        r.came = now;
        let leaves = report.leaving && !r.leaving;
        r.leaving |= report.leaving;
        r.retained = report.retained;
        (r.low_water, r.open) = (report.low_water, report.open);
        r.settled = report.settled.into_iter().collect();
        r.past = report.past.into_iter().collect();
        r.past_others = report.past_others;
        r.sent_at = r.sent_at.max(report.sent_at);
        if let Some(at) = echo {
            r.echo = r.echo.max(at);
            r.note(report.applied, at);
            r.reached(applied);
        }
        leaves
    }

    /// Takes note that this node's index has come to `applied`.
    pub(super) fn advanced(&self, applied: Revision) {
        self.table.write().reports.values_mut().for_each(|r| r.reached(applied));
    }

    /// The link to a node leads to this process now, or is down.
    pub(super) fn link(&self, node: &Arc<str>, process: Option<MemberId>) {
        let mut table = self.table.write();
        match process {
            Some(p) => table.links.insert(node.clone(), p),
            None => table.links.remove(node),
        };
        table.forget();
    }

    /// Nodes to keep links to: those registered, and those whose record went while their link works.
    pub fn to_keep(&self) -> Vec<Member> {
        let table = self.table.read();
        let live = table.live.values().map(|(m, _)| m).filter(|m| m.id.node != self.me.node);
        let linked = |m: &Member| table.links.get(&m.id.node) == Some(&m.id) && !table.given_up(&m.id);
        let deregistered = table.deregistered.iter().map(|d| &d.member);
        let deregistered = deregistered.filter(|m| linked(m) && !table.live.contains_key(&m.id.node));
        live.chain(deregistered).cloned().collect()
    }

    /// Processes that are neither registered nor linked, and may come back as they were: they speak for themselves, and their nodes have not
    /// been started again. They may have gone before this process started.
    pub(super) fn away(&self) -> Vec<MemberId> {
        let table = self.table.read();
        table.custody.keys().filter(|p| table.is_away(p)).cloned().collect()
    }

    /// Whether a process is one of [`Members::away`].
    pub(super) fn is_away(&self, process: &MemberId) -> bool {
        self.table.read().is_away(process)
    }

    pub(super) fn begin_snapshot(&self) {
        let mut table = self.table.write();
        table.snapshot = table.snapshot.wrapping_add(1);
    }

    /// Forgets what the snapshot did not mention; true if that was anything.
    pub(super) fn end_snapshot(&self, now: Time) -> bool {
        let mut table = self.table.write();
        let snapshot = table.snapshot;
        let gone: Vec<_> =
            table.live.iter().filter(|(_, (_, s))| *s != snapshot).map(|(n, _)| n.clone()).collect();
        gone.iter().for_each(|node| table.set_member(node, None, now));
        let before = table.custody.len();
        table.custody.retain(|_, (_, s)| *s == snapshot);
        if table.leader_snapshot != snapshot {
            table.leader = None;
        }
        let changed = !gone.is_empty() || table.custody.len() < before;
        table.forget();
        changed
    }

    pub(super) fn set_member(&self, node: &Arc<str>, member: Option<Member>, now: Time) {
        let mut table = self.table.write();
        table.set_member(node, member, now);
        table.forget();
    }

    pub(super) fn set_custody(&self, of: MemberId, custody: Option<Custody>) {
        let mut table = self.table.write();
        match custody {
            Some(custody) => {
                let entry = (custody, table.snapshot);
                table.custody.insert(of, entry);
            }
            None => {
                let holder = table.holder_of(&of);
                table.custody.remove(&of);
                // A process that had adopted it says itself when it will send none of its publishes again.
                let adopted = holder != of && (table.is_live(&holder) || table.is_linked(&holder));
                if !adopted {
                    table.over.insert(of.incarnation);
                }
            }
        }
        table.forget();
    }

    pub(super) fn set_leader(&self, leader: Option<MemberId>) {
        let mut table = self.table.write();
        table.leader = leader;
        table.leader_snapshot = table.snapshot;
    }
}

impl Table {
    fn is_live(&self, process: &MemberId) -> bool {
        self.live.get(&process.node).is_some_and(|(m, _)| m.id == *process) && !self.left(process)
    }

    /// Whether it has said that it leaves.
    fn left(&self, process: &MemberId) -> bool {
        self.reports.get(process).is_some_and(|r| r.leaving)
    }

    fn is_linked(&self, process: &MemberId) -> bool {
        self.links.get(&process.node) == Some(process)
    }

    fn holder_of(&self, of: &MemberId) -> MemberId {
        let mut at = of;
        for _ in 0..CUSTODY_CHAIN_MAX {
            let Some((custody, _)) = self.custody.get(at) else { break };
            if custody.holder == *at {
                break;
            }
            at = &custody.holder;
            // What the holder's own journal does not have all of goes no further with it.
            if !custody.merged {
                break;
            }
        }
        at.clone()
    }

    fn given_up(&self, of: &MemberId) -> bool {
        !self.custody.contains_key(of) && !self.is_live(of)
    }

    fn is_away(&self, process: &MemberId) -> bool {
        let here = self.live.get(&process.node).is_some_and(|(m, _)| m.id == *process);
        self.custody.contains_key(process) && !here && !self.is_linked(process) && !self.superseded(process)
    }

    fn superseded(&self, process: &MemberId) -> bool {
        let newer = self.live.get(&process.node).is_some_and(|(m, _)| m.id.incarnation > process.incarnation);
        newer || self.holder_of(process) != *process
    }

    /// Processes other than `me` that count: see [`Members::applied_by_all`]. One that left counts until this node has come
    /// as far as it had.
    fn required(&self, me: &MemberId, since: Time, mine: Revision) -> Vec<MemberId> {
        let mut all: Vec<MemberId> = self.live.values().map(|(m, _)| m.id.clone()).collect();
        all.extend(self.links.values().cloned());
        // Of one that was never heard, the time of its departure counts.
        let heard = |d: &Deregistered| self.reports.get(&d.member.id).map_or(d.at, |r| r.came);
        all.extend(self.deregistered.iter().filter(|d| heard(d) > since).map(|d| d.member.id.clone()));
        all.sort();
        all.dedup();
        let over = |p: &MemberId| self.reports.get(p).is_some_and(|r| r.leaving && r.applied <= mine);
        all.retain(|p| p.node != me.node && !self.superseded(p) && !over(p));
        all
    }

    fn set_member(&mut self, node: &Arc<str>, member: Option<Member>, now: Time) {
        let snapshot = self.snapshot;
        let old = match member {
            Some(m) => {
                self.deregistered.retain(|d| d.member.id.node != *node || d.member.id == m.id);
                self.deregistered.retain(|d| d.member.id != m.id);
                self.live.insert(node.clone(), (m, snapshot))
            }
            None => self.live.remove(node),
        };
        let Some((member, _)) = old.filter(|_| !self.live.contains_key(node)) else { return };
        // Who was draining had closed its clients before it left.
        if !member.draining && !self.left(&member.id) {
            self.deregistered.retain(|d| d.member.id.node != *node);
            self.deregistered.push(Deregistered { member, at: now });
        } else if self.is_linked(&member.id) {
            // Its link is not kept: what it has not answered is lost with that.
            self.links.remove(node);
        }
    }

    /// Forgets reports of processes that nobody will ask about. What was said of whole incarnations stays as long as they
    /// are in custody.
    fn forget(&mut self) {
        let Table { live, deregistered, custody, links, reports, over, .. } = self;
        reports.retain(|p, _| {
            live.get(&p.node).is_some_and(|(m, _)| m.id == *p)
                || links.get(&p.node) == Some(p)
                || deregistered.iter().any(|d| d.member.id == *p)
        });
        if over.len() > 2 * (custody.len() + live.len() + 16) {
            over.retain(|i| custody.keys().any(|c| c.incarnation == *i));
        }
    }
}

#[cfg(test)]
mod tests;
