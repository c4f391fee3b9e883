//! What is in the store, for whoever judges the outcome.

use super::store::Store;
use crate::ports::{Custody, Epoch, Member, MemberId, Owner, RetainedRecord, Revision, Route};
use std::sync::Arc;

impl Store {
    /// The last revision.
    pub fn revision(&self) -> Revision {
        self.look(|space| space.revision)
    }

    /// The record of a session.
    pub fn owner(&self, client_id: &str) -> Option<Owner> {
        self.look(|space| space.owner(client_id))
    }

    /// Every session's record.
    pub fn sessions(&self) -> Vec<(Arc<str>, Owner)> {
        self.look(|space| space.sessions.keys().filter_map(|c| Some((c.clone(), space.owner(c)?))).collect())
    }

    /// Every member.
    pub fn members(&self) -> Vec<Member> {
        self.look(|space| space.members.values().cloned().collect())
    }

    /// Every custody record.
    pub fn custody(&self) -> Vec<(MemberId, Custody)> {
        self.look(|space| space.custody.iter().map(|(of, c)| (of.clone(), c.clone())).collect())
    }

    /// The routes of an incarnation, by filter.
    pub fn routes(&self, of: &MemberId) -> Vec<Route> {
        self.look(|space| space.routes.get(of).into_iter().flat_map(|r| r.values().cloned()).collect())
    }

    /// The retained message of a topic.
    pub fn retained(&self, topic: &str) -> Option<RetainedRecord> {
        self.look(|space| space.retained.get(topic)?.0.clone())
    }

    /// Evictions that nobody has taken note of: node, client, epoch.
    pub fn evictions(&self) -> Vec<(Arc<str>, Arc<str>, Epoch)> {
        self.look(|space| {
            space.evictions.iter().map(|((n, c), (e, _, _))| (n.clone(), c.clone(), *e)).collect()
        })
    }

    /// Who leads.
    pub fn leader(&self) -> Option<MemberId> {
        self.look(|space| space.leader.clone())
    }
}
