//! The content of the coordination store and its transactions: what etcd keeps below the cluster's prefix. Pure: every
//! change gives the events of its revision.

use crate::ports::{
    Claim, ClaimOutcome, Custody, Epoch, Expected, Incarnation, IndexEvent, Member, MemberId, Owner, Retain,
    RetainOutcome, RetainedRecord, Revision, Route, RouteChange, SessionOwner, Timeline, generation_of,
};
use crate::user::SessionUser;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The retained message of a topic, or that there is none, and since when.
type RetainedEntry = (Option<RetainedRecord>, Revision);

/// The epoch of an eviction, whether the session expired, and since when.
type EvictionEntry = (Epoch, bool, Revision);

/// The content of the coordination store and its transactions: what etcd keeps below the cluster's prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct Space {
    pub(super) timeline: Timeline,
    /// The revision at which that began.
    began: Revision,
    pub(super) revision: Revision,
    pub(super) members: BTreeMap<Arc<str>, Member>,
    pub(super) custody: BTreeMap<MemberId, Custody>,
    pub(super) sessions: BTreeMap<Arc<str>, (SessionOwner, Revision)>,
    pub(super) routes: BTreeMap<MemberId, BTreeMap<Arc<str>, Route>>,
    pub(super) retained: BTreeMap<Arc<str>, RetainedEntry>,
    /// Whose update cleared a topic.
    cleared_by: BTreeMap<Arc<str>, Incarnation>,
    /// By node and client.
    pub(super) evictions: BTreeMap<(Arc<str>, Arc<str>), EvictionEntry>,
    pub(super) leader: Option<MemberId>,
}

impl Space {
    fn next(&mut self) -> Revision {
        self.revision += 1;
        self.revision
    }

    /// The store is put back to this: all leases run out, and the restoration is counted.
    pub(super) fn restored(&self, timeline: Timeline) -> Space {
        let mut space = self.clone();
        let members: Vec<MemberId> = space.members.values().map(|m| m.id.clone()).collect();
        for process in members {
            space.expire(&process);
        }
        (space.timeline, space.began) = (timeline, space.next());
        space
    }

    /// Whether this process is registered: the fence of every transaction.
    pub(super) fn registered(&self, process: &MemberId) -> bool {
        self.members.get(&process.node).is_some_and(|m| m.id == *process)
    }

    /// Who speaks for what `owner` owns: through further holders only where a record is merged.
    pub(super) fn holder(&self, owner: &MemberId) -> MemberId {
        let mut at = owner;
        // Chains are as short as the number of processes.
        for _ in 0..=self.custody.len() {
            match self.custody.get(at) {
                Some(c) if c.holder != *at && c.merged => at = &c.holder,
                Some(c) => return c.holder.clone(),
                None => break,
            }
        }
        at.clone()
    }

    /// The record of a session, if any.
    pub(super) fn owner(&self, client_id: &str) -> Option<Owner> {
        let (session, revision) = self.sessions.get(client_id)?;
        let holder = self.holder(&session.owner);
        Some(Owner { session: session.clone(), revision: *revision, holder })
    }

    /// Registers a process, makes its custody record, and adopts the incarnations of its node whose state is in its journal.
    pub(super) fn register(
        &mut self,
        mut member: Member,
        journal: u64,
        first: bool,
    ) -> (MemberId, Vec<IndexEvent>) {
        let revision = self.next();
        if first {
            member.id.incarnation = self.timeline.incarnation(revision);
        }
        let id = member.id.clone();
        let mut events = Vec::new();
        if first {
            self.custody.insert(id.clone(), Custody { holder: id.clone(), merged: true, copies: 1, journal });
            for (of, custody) in &mut self.custody {
                if of.node == id.node && custody.journal == journal {
                    (custody.holder, custody.merged) = (id.clone(), true);
                    events.push(IndexEvent::Custody { of: of.clone(), custody: Some(custody.clone()) });
                }
            }
        }
        self.members.insert(id.node.clone(), member.clone());
        events.push(IndexEvent::Member { node: id.node.clone(), member: Some(member) });
        self.elect(&mut events);
        (id, events)
    }

    /// The lease of a process is gone, and with it its member record.
    pub(super) fn expire(&mut self, process: &MemberId) -> Vec<IndexEvent> {
        if !self.registered(process) {
            return Vec::new();
        }
        self.next();
        self.members.remove(&process.node);
        let mut events = vec![IndexEvent::Member { node: process.node.clone(), member: None }];
        self.elect(&mut events);
        events
    }

    /// The member of longest standing leads.
    fn elect(&mut self, events: &mut Vec<IndexEvent>) {
        if self.leader.as_ref().is_some_and(|l| self.registered(l)) {
            return;
        }
        self.leader = self.members.values().map(|m| m.id.clone()).min_by_key(|id| id.incarnation);
        events.push(IndexEvent::Leader(self.leader.clone()));
    }

    /// Gives up everything that a dead node owns. Nothing is done while the node lives.
    pub(super) fn forget(&mut self, node: &str) -> Vec<IndexEvent> {
        if self.members.contains_key(node) {
            return Vec::new();
        }
        self.next();
        let given_up = |this: &Space, of: &MemberId| this.holder(of).node.as_ref() == node;
        let gone: Vec<MemberId> = self.custody.keys().filter(|of| given_up(self, of)).cloned().collect();
        let sessions: Vec<Arc<str>> = self
            .sessions
            .iter()
            .filter(|(_, (s, _))| gone.contains(&s.owner))
            .map(|(c, _)| c.clone())
            .collect();
        let mut events = Vec::new();
        for client_id in sessions {
            self.sessions.remove(&client_id);
            events.push(IndexEvent::Session { client_id, session: None, revision: self.revision });
        }
        for of in gone {
            self.custody.remove(&of);
            // Nobody says what was in them.
            self.routes.remove(&of);
            events.push(IndexEvent::Custody { of, custody: None });
        }
        let evictions: Vec<_> = self.evictions.keys().filter(|(n, _)| n.as_ref() == node).cloned().collect();
        for key in evictions {
            self.evictions.remove(&key);
            let (node, client_id) = key;
            let revision = self.revision;
            events.push(IndexEvent::Eviction { node, client_id, epoch: None, expired: false, revision });
        }
        events
    }

    /// A claim of a registered process.
    pub(super) fn claim(&mut self, me: &MemberId, claim: &Claim) -> (ClaimOutcome, Vec<IndexEvent>) {
        let found = self.owner(&claim.client_id);
        let as_expected = match (&claim.expected, &found) {
            (Expected::Absent, None) => true,
            (Expected::Read(read), Some(found)) => {
                read.revision == found.revision && read.holder == found.holder
            }
            _ => false,
        };
        if !as_expected {
            return (ClaimOutcome::Found(found), Vec::new());
        }
        let revision = self.next();
        let session = SessionOwner {
            owner: me.clone(),
            epoch: claim.epoch,
            expiry_s: claim.expiry_s,
            user: claim.user.clone(),
        };
        self.sessions.insert(claim.client_id.clone(), (session.clone(), revision));
        let client_id = claim.client_id.clone();
        let event = IndexEvent::Session { client_id: client_id.clone(), session: Some(session), revision };
        let mut events = vec![event];
        if let Some(node) = claim.evict.clone() {
            self.evictions.insert((node.clone(), client_id.clone()), (claim.epoch, false, revision));
            let epoch = Some(claim.epoch);
            events.push(IndexEvent::Eviction { node, client_id, epoch, expired: false, revision });
        }
        (ClaimOutcome::Granted(revision), events)
    }

    /// Changes expiry and user of a session if it is `me`'s at `epoch`.
    pub(super) fn set_expiry(
        &mut self,
        me: &MemberId,
        client_id: &str,
        epoch: Epoch,
        expiry_s: u32,
        user: SessionUser,
    ) -> Vec<IndexEvent> {
        let theirs = |o: &Owner| o.session.epoch == epoch && o.holder == *me;
        if !self.owner(client_id).is_some_and(|o| theirs(&o)) {
            return Vec::new();
        }
        let (revision, client_id) = (self.next(), Arc::<str>::from(client_id));
        let session = SessionOwner { owner: me.clone(), epoch, expiry_s, user };
        self.sessions.insert(client_id.clone(), (session.clone(), revision));
        vec![IndexEvent::Session { client_id, session: Some(session), revision }]
    }

    /// A session of a node that is gone has expired.
    pub(super) fn expire_session(&mut self, client_id: &str) -> Vec<IndexEvent> {
        let Some(owner) = self.owner(client_id).filter(|o| !self.registered(&o.holder)) else {
            return Vec::new();
        };
        let revision = self.next();
        self.sessions.remove(client_id);
        let (node, client_id, epoch) =
            (owner.holder.node, Arc::<str>::from(client_id), owner.session.epoch + 1);
        self.evictions.insert((node.clone(), client_id.clone()), (epoch, true, revision));
        let session = IndexEvent::Session { client_id: client_id.clone(), session: None, revision };
        vec![session, IndexEvent::Eviction { node, client_id, epoch: Some(epoch), expired: true, revision }]
    }

    /// Removes a session's record if it is `me`'s at `epoch`.
    pub(super) fn release(&mut self, me: &MemberId, client_id: &str, epoch: Epoch) -> Vec<IndexEvent> {
        let theirs = |o: &Owner| o.session.epoch == epoch && o.holder == *me;
        if !self.owner(client_id).is_some_and(|o| theirs(&o)) {
            return Vec::new();
        }
        let revision = self.next();
        self.sessions.remove(client_id);
        vec![IndexEvent::Session { client_id: client_id.into(), session: None, revision }]
    }

    /// Adds and removes routes; those of incarnations that `me` has custody of and that it does not need go as well.
    pub(super) fn routes(&mut self, me: &MemberId, changes: Vec<RouteChange>) -> (Revision, Vec<IndexEvent>) {
        if changes.is_empty() {
            return (self.revision, Vec::new());
        }
        let revision = self.next();
        let routes = self.routes.entry(me.clone()).or_default();
        let (mut add, mut del) = (BTreeMap::new(), Vec::new());
        for RouteChange { filter, route } in changes {
            match route {
                Some((persistent, weight)) => {
                    let route = Route { filter: filter.clone(), persistent, weight };
                    routes.insert(filter.clone(), route.clone());
                    del.retain(|f| *f != filter);
                    add.insert(filter, route);
                }
                None => {
                    routes.remove(&filter);
                    add.remove(&filter);
                    del.push(filter);
                }
            }
        }
        (revision, vec![IndexEvent::Routes { of: me.clone(), add: add.into_values().collect(), del }])
    }

    /// Removes the routes of an incarnation that somebody else speaks for by now.
    pub(super) fn drop_routes(&mut self, of: &MemberId) -> Vec<IndexEvent> {
        let Some(gone) = self.routes.remove(of).filter(|r| !r.is_empty()) else { return Vec::new() };
        self.next();
        vec![IndexEvent::Routes { of: of.clone(), add: Vec::new(), del: gone.into_keys().collect() }]
    }

    /// Sets or clears a retained message. A late update may only overwrite what was known, or the same origin's own.
    pub(super) fn retain(&mut self, update: &Retain, late: bool) -> (RetainOutcome, Vec<IndexEvent>) {
        if late && !self.may_overwrite(update) {
            return (RetainOutcome::Overtaken, Vec::new());
        }
        let revision = self.next();
        let retained = update.message.clone().map(|message| RetainedRecord { message, id: update.id });
        if retained.is_none() {
            self.cleared_by.insert(update.topic.clone(), update.id.origin);
        }
        self.retained.insert(update.topic.clone(), (retained.clone(), revision));
        let topic = update.topic.clone();
        (RetainOutcome::Written(revision), vec![IndexEvent::Retained { topic, retained, revision }])
    }

    fn may_overwrite(&self, update: &Retain) -> bool {
        match self.retained.get(&update.topic) {
            None => true,
            // Accepted before the store was restored, and newer than everything in the backup.
            Some((_, revision)) if generation_of(update.id.origin) < self.timeline.generation => {
                *revision < self.began
            }
            Some((None, revision)) => {
                let own =
                    self.cleared_by.get(&update.topic).is_some_and(|origin| *origin == update.id.origin);
                own || update.known.max(update.since) >= *revision
            }
            Some((Some(record), revision)) => {
                let own = record.id.origin == update.id.origin && record.id.seq <= update.id.seq;
                own || update.known >= *revision
            }
        }
    }

    /// A node has taken note of an eviction.
    pub(super) fn evicted(&mut self, me: &MemberId, client_id: &str, epoch: Epoch) -> Vec<IndexEvent> {
        let key = (me.node.clone(), Arc::from(client_id));
        if self.evictions.get(&key).is_none_or(|(e, _, _)| *e > epoch) {
            return Vec::new();
        }
        let revision = self.next();
        self.evictions.remove(&key);
        let (node, client_id) = key;
        vec![IndexEvent::Eviction { node, client_id, epoch: None, expired: false, revision }]
    }

    /// Everything there is.
    pub(super) fn snapshot(&self) -> Vec<IndexEvent> {
        let members = self
            .members
            .iter()
            .map(|(node, m)| IndexEvent::Member { node: node.clone(), member: Some(m.clone()) });
        let custody = self
            .custody
            .iter()
            .map(|(of, c)| IndexEvent::Custody { of: of.clone(), custody: Some(c.clone()) });
        let sessions = self.sessions.iter().map(|(client_id, (session, revision))| IndexEvent::Session {
            client_id: client_id.clone(),
            session: Some(session.clone()),
            revision: *revision,
        });
        let routes = self.routes.iter().map(|(of, routes)| IndexEvent::Routes {
            of: of.clone(),
            add: routes.values().cloned().collect(),
            del: Vec::new(),
        });
        let retained =
            self.retained.iter().filter(|(_, (r, _))| r.is_some()).map(|(topic, (r, revision))| {
                IndexEvent::Retained { topic: topic.clone(), retained: r.clone(), revision: *revision }
            });
        let evictions = self.evictions.iter().map(|((node, client_id), (epoch, expired, revision))| {
            IndexEvent::Eviction {
                node: node.clone(),
                client_id: client_id.clone(),
                epoch: Some(*epoch),
                expired: *expired,
                revision: *revision,
            }
        });
        let leader = std::iter::once(IndexEvent::Leader(self.leader.clone()));
        members
            .chain(custody)
            .chain(sessions)
            .chain(routes)
            .chain(retained)
            .chain(evictions)
            .chain(leader)
            .collect()
    }
}
