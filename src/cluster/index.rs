//! The cluster takes in what the cluster knows, in the order of the store's revisions.

use super::members::Reachability;
use super::{Cluster, Remote};
use crate::clock::Time;
use crate::ports::{Index, IndexEvent, Revision};
use parking_lot::Mutex;
use std::sync::Arc;

/// Where the stream of events is.
#[derive(Debug, Default)]
pub(super) struct Stream(Mutex<Position>);

#[derive(Debug, Default)]
struct Position {
    in_snapshot: bool,
    /// Events whose revision is not complete yet, for those who are told when it is.
    parts: Vec<IndexEvent>,
}

impl Index for Cluster {
    fn begin_snapshot(&self) {
        let remote = &self.remote;
        let mut stream = remote.stream.0.lock();
        stream.in_snapshot = true;
        stream.parts.clear();
        remote.members.begin_snapshot();
        remote.routes.begin_snapshot();
        self.broker.retained.begin_snapshot();
        remote.ports.directory.begin_snapshot();
    }

    fn apply(&self, events: Vec<IndexEvent>, revision: Option<Revision>) {
        let remote = &self.remote;
        let mut stream = remote.stream.0.lock();
        let now = remote.now();
        self.take_directory(remote, &events);
        let mut reachabilities = false;
        for event in &events {
            reachabilities |= self.take_in(remote, event, now);
        }
        if reachabilities {
            remote.membership_changed();
        }
        // Only now: what waits for them has found that nobody there will answer.
        for event in &events {
            if let IndexEvent::Custody { of, custody: None } = event {
                // Its pages go with the record, without a word of what was in them.
                remote.routes.remove_all(of);
            }
        }
        if stream.in_snapshot {
            drop(stream);
            remote.note_moves(&events);
            return self.on_index(&events);
        }
        let Some(revision) = revision else {
            return stream.parts.extend(events);
        };
        let mut parts = std::mem::take(&mut stream.parts);
        drop(stream);
        parts.extend(events);
        // Whoever waits for the revision finds them.
        remote.note_evictions(&parts);
        remote.note_moves(&parts);
        remote.advance(revision);
        self.on_index(&parts);
        self.on_advanced(revision);
    }

    fn end_snapshot(&self, revision: Revision) {
        let remote = &self.remote;
        let mut stream = remote.stream.0.lock();
        stream.in_snapshot = false;
        remote.members.end_snapshot(remote.now());
        // Before their routes go: what waits for nodes that were given up has to find that.
        remote.membership_changed();
        if remote.routes.end_snapshot() {
            remote.membership_changed();
        }
        self.broker.retained.end_snapshot(revision);
        self.end_directory(remote);
        drop(stream);
        let before = remote.applied();
        if revision < before {
            tracing::error!(
                revision,
                before,
                "the store went back in time: was it restored from a backup? This process has to be started again"
            );
        }
        remote.advance(revision);
        // What the snapshot did not mention went without an event.
        self.on_membership(remote);
        self.on_advanced(revision);
    }

    fn cleared_since(&self, topic: &str, since: Revision) -> bool {
        self.broker.retained.cleared_since(topic, since)
    }

    fn fresh_at(&self, at: Time) {
        let remote = &self.remote;
        remote.freshness.store_showed(at, remote.now());
        remote.serving_changed();
    }
}

impl Cluster {
    /// Puts one event into the tables; true if it may change how others are to be treated.
    fn take_in(&self, remote: &Remote, event: &IndexEvent, now: Time) -> bool {
        match event {
            IndexEvent::Member { node, member } => {
                remote.members.set_member(node, member.clone(), now);
                true
            }
            IndexEvent::Custody { of, custody } => {
                remote.members.set_custody(of.clone(), custody.clone());
                true
            }
            IndexEvent::Routes { of, add, del } => {
                remote.routes.apply(of, add, del, || remote.members.reachability(of))
            }
            IndexEvent::Retained { topic, retained, revision } => {
                self.broker.retained.apply(topic, retained.as_ref().map(|r| (&r.message, r.id)), *revision);
                false
            }
            IndexEvent::Leader(leader) => {
                remote.members.set_leader(leader.clone());
                false
            }
            IndexEvent::Session { .. } | IndexEvent::Eviction { .. } | IndexEvent::Directory { .. } => false,
        }
    }

    /// Tells the other parts what has happened. Outside a snapshot the applied revision has reached these events.
    fn on_index(&self, events: &[IndexEvent]) {
        let membership = |e: &IndexEvent| matches!(e, IndexEvent::Member { .. } | IndexEvent::Custody { .. });
        self.on_session_events(events);
        self.on_starts(events);
        self.on_routes(events);
        if events.iter().any(membership) {
            self.on_membership(&self.remote);
        }
    }

    /// Sessions of a process that has just started wait for what was matched before.
    fn on_starts(&self, events: &[IndexEvent]) {
        let started = events.iter().filter_map(|e| match e {
            IndexEvent::Member { member: Some(m), .. } => Some(m.id.registered_at()),
            _ => None,
        });
        if let Some(newest) = started.max() {
            self.remote.sessions.note_move(newest);
            self.moved_at(&self.remote, newest);
        }
    }

    /// Routes of nodes that are gone were taken back, their sessions having expired: publishes that wait for them are matched again.
    fn on_routes(&self, events: &[IndexEvent]) {
        let remote = &self.remote;
        let orphan = |event: &IndexEvent| match event {
            IndexEvent::Routes { of, del, .. } if !del.is_empty() => match remote.members.reachability(of) {
                Reachability::Orphan(node) => Some(node),
                _ => None,
            },
            _ => None,
        };
        let nodes: Vec<_> = events.iter().filter_map(orphan).collect();
        if !nodes.is_empty() {
            let unanswered = remote.barrier.closed(|| remote.outbox.queue_again(&nodes, &[]));
            debug_assert!(unanswered.is_empty(), "no node is lost: {unanswered:?}");
            self.match_unmatched(remote);
        }
    }

    fn on_membership(&self, remote: &Arc<Remote>) {
        remote.sessions.poke();
        self.nodes_changed();
    }

    /// Tells the other parts how far the index has come.
    fn on_advanced(&self, applied: Revision) {
        self.remote.sessions.events_came(applied);
        // What waited for a node may have been put back.
        self.match_unmatched(&self.remote);
        self.knows(applied);
        self.match_due(applied);
    }
}
