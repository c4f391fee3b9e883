//! What an operator may know of the sessions, routes and retained messages of this node: bounded looks that change nothing.

mod rights;
mod sessions;

pub use rights::{Action, Judged, Losing, Question};
pub use sessions::{
    Connection, SessionDetails, SessionPage, SessionQuery, SessionState, SessionSummary, SubscriptionInfo,
    Unanswered, WillInfo,
};

use super::Node;
use crate::broker::router::Cache;
use crate::clock::Time;
use crate::cluster::{RemoteCache, RemoteNode};
use crate::topic::{Filter, TopicError, validate_name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Entries of one list in an answer; more are counted, not listed.
pub const LISTED_MAX: usize = 1000;

/// Bytes of the names in one list of an answer; more names are counted, or on the next page. Escaped as JSON they are six times as
/// many at most, which fits into an answer of one node to another.
pub const LISTED_BYTES_MAX: usize = 2 << 20;

/// How many names of these lengths go into one list: at least one.
pub(super) fn listed(lengths: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |length: &usize| {
        bytes += length;
        bytes <= LISTED_BYTES_MAX
    };
    lengths.take(LISTED_MAX).take_while(fits).count().max(1)
}

/// Characters of a retained payload that are shown.
const PAYLOAD_SHOWN: usize = 120;

/// Where a publish to a topic goes, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Routes {
    /// The topic.
    pub topic: String,
    /// The node that answers.
    pub node: String,
    /// Sessions of this node, at most [`LISTED_MAX`].
    pub sessions: Vec<MatchedSession>,
    /// How many sessions of this node match.
    pub sessions_total: usize,
    /// Shared subscriptions, each once, at most [`LISTED_MAX`].
    pub groups: Vec<MatchedGroup>,
    /// How many shared subscriptions match.
    #[serde(default)]
    pub groups_total: usize,
    /// Other nodes with sessions that match.
    pub nodes: Vec<MatchedNode>,
}

/// A session of this node that a topic goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MatchedSession {
    /// Client identifier.
    pub client_id: String,
    /// Highest QoS that it gets.
    pub qos: u8,
    /// Whether it gets nothing that it published itself.
    pub no_local: bool,
    /// Whether the journal keeps messages for it.
    pub persistent: bool,
    /// Whether a client is connected to it.
    pub connected: bool,
}

/// A shared subscription that a topic goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MatchedGroup {
    /// `$share/<group>/<filter>`.
    pub name: String,
    /// Where its members are, each node once.
    pub nodes: Vec<MatchedShare>,
}

/// The members of a shared subscription on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MatchedShare {
    /// The node.
    pub node: String,
    /// How many members.
    pub weight: u32,
    /// Whether one of them is persistent.
    pub persistent: bool,
    /// Nobody speaks for them now.
    pub orphaned: bool,
}

/// Another node with sessions that a topic goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MatchedNode {
    /// The node.
    pub node: String,
    /// Whether one of them is persistent.
    pub persistent: bool,
    /// The node is gone: QoS 1 and 2 publishes for its persistent sessions wait until it is back or forgotten.
    pub orphaned: bool,
}

/// Some of the retained messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetainedPage {
    /// The messages, by topic.
    pub messages: Vec<RetainedInfo>,
    /// How many there are.
    pub total: usize,
}

/// One retained message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetainedInfo {
    /// The topic.
    pub topic: String,
    /// QoS as published.
    pub qos: u8,
    /// Bytes of the payload.
    pub bytes: usize,
    /// The beginning of the payload; missing if it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Milliseconds since the epoch at which it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The revision of the cluster that set it; 0 if this node is alone.
    pub revision: u64,
}

impl Node {
    /// Where a publish to `topic` would go now.
    ///
    /// # Errors
    /// If it is no topic name.
    pub fn routes_of(&self, topic: &str) -> Result<Routes, TopicError> {
        validate_name(topic)?;
        let node = self.node_name().to_string();
        let mut cache = Cache::default();
        let matches = self.broker.router.lookup(topic, &mut cache);
        let present = matches.targets.iter().filter(|t| !t.only_own && t.handle.mailbox.present());
        let mut sessions: Vec<_> = present
            .map(|t| MatchedSession {
                client_id: t.handle.client_id.to_string(),
                qos: t.qos as u8,
                no_local: t.no_local,
                persistent: t.handle.durable,
                connected: t.handle.mailbox.online(),
            })
            .collect();
        sessions.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        let sessions_total = sessions.len();
        sessions.truncate(listed(sessions.iter().map(|s| s.client_id.len())));
        let mut groups: Vec<_> = matches
            .groups
            .iter()
            .map(|g| {
                let (weight, persistent) = g.weight();
                let here = MatchedShare { node: node.clone(), weight, persistent, orphaned: false };
                MatchedGroup { name: g.name.to_string(), nodes: vec![here] }
            })
            .collect();
        let nodes = self.remote_routes(topic, &mut groups);
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        let groups_total = groups.len();
        groups.truncate(listed(groups.iter().map(|g| g.name.len())));
        Ok(Routes { topic: topic.to_owned(), node, sessions, sessions_total, groups, groups_total, nodes })
    }

    /// The other nodes that `topic` goes to; adds their shares to `groups`.
    fn remote_routes(&self, topic: &str, groups: &mut Vec<MatchedGroup>) -> Vec<MatchedNode> {
        let Some(remote) = self.remote() else { return Vec::new() };
        let mut cache = RemoteCache::default();
        let matches = remote.lookup(topic, &mut cache);
        for group in &matches.groups {
            let shares = group.nodes.iter().map(|n| MatchedShare {
                node: n.node.to_string(),
                weight: n.weight,
                persistent: n.persistent,
                orphaned: n.orphaned,
            });
            match groups.iter_mut().find(|g| g.name == *group.name) {
                Some(found) => found.nodes.extend(shares),
                None => groups.push(MatchedGroup { name: group.name.to_string(), nodes: shares.collect() }),
            }
        }
        let node = |n: &RemoteNode| MatchedNode {
            node: n.node.to_string(),
            persistent: n.persistent,
            orphaned: n.orphaned,
        };
        let mut nodes: Vec<_> = matches.nodes.iter().map(node).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }

    /// The first `limit` (at most [`LISTED_MAX`]) retained messages by topic whose topic matches `filter`.
    ///
    /// # Errors
    /// If it is no topic filter.
    pub fn retained_of(&self, filter: &str, limit: usize, now: Time) -> Result<RetainedPage, TopicError> {
        let filter = Filter::parse(filter)?.filter;
        let mut found = self.broker.retained.matching(filter, now);
        found.sort_by(|a, b| a.topic().cmp(b.topic()));
        let total = found.len();
        let own = |at| self.remote().map_or(at, |r| r.ports.time.own(at));
        let info = |m: &crate::mqtt::Message| RetainedInfo {
            topic: m.topic().to_owned(),
            qos: m.qos() as u8,
            bytes: m.payload().len(),
            payload: beginning(m.payload()),
            expires_at: m.expires_at().map(|at| own(at).as_millis()),
            revision: self.broker.retained.revision_of(m.topic()),
        };
        let room = limit.min(listed(found.iter().map(|m| m.topic().len())));
        Ok(RetainedPage { messages: found.iter().take(room).map(info).collect(), total })
    }

    /// The name of this node in its cluster; empty if it is alone.
    pub(super) fn node_name(&self) -> Arc<str> {
        self.remote().map_or_else(|| "".into(), |r| r.me.node.clone())
    }
}

/// The first characters of a payload, if it is text that may be printed.
fn beginning(payload: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(payload).ok()?;
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r')) {
        return None;
    }
    let mut shown: String = text.chars().take(PAYLOAD_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_as_far_as_they_are_text() {
        assert_eq!(beginning(b"21.5").as_deref(), Some("21.5"));
        assert_eq!(beginning(b"").as_deref(), Some(""));
        assert_eq!(beginning(&[0xFF, 0xFE]), None);
        assert_eq!(beginning(b"\x1b[2J"), None); // would clear the operator's screen
        let long = "é".repeat(PAYLOAD_SHOWN + 1);
        assert_eq!(beginning(long.as_bytes()), Some("é".repeat(PAYLOAD_SHOWN) + "…"));
    }
}
