//! Sessions of this node as an operator sees them.

use super::{LISTED_MAX, listed};
use crate::broker::handle::{Attached, Handle};
use crate::clock::Time;
use crate::node::Node;
use crate::session::Will;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Which sessions to list: those whose client identifier begins with `prefix` and comes after `after`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionQuery {
    /// How many; [`LISTED_MAX`] at most.
    pub limit: usize,
    /// Begin after this client identifier; empty = at the beginning.
    #[serde(default)]
    pub after: String,
    /// What the client identifiers begin with.
    #[serde(default)]
    pub prefix: String,
}

/// Sessions in the order of their client identifiers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionSummary>,
    /// There are more: ask again with this as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Nodes whose sessions are missing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// A node that did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unanswered {
    /// The node.
    pub node: String,
    /// Why.
    pub error: String,
}

/// How a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// A client is connected to it.
    Connected,
    /// Nobody is.
    Dormant,
    /// It is on its way to another node.
    Moving,
}

/// One session in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionSummary {
    /// Client identifier.
    pub client_id: String,
    /// The node it lives on; empty if that node is alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// How it is.
    pub state: SessionState,
    /// Whether the journal keeps its state.
    pub persistent: bool,
    /// How many subscriptions it has.
    pub subscriptions: usize,
    /// Messages that wait for it and were not sent to a client.
    pub queued: usize,
    /// Messages handed to its client that are not acknowledged.
    pub in_flight: usize,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionDetails {
    /// What lists show.
    #[serde(flatten)]
    pub summary: SessionSummary,
    /// Session expiry interval, seconds; missing = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry_seconds: Option<u32>,
    /// How often its owner has changed; 0 if this node is alone.
    pub epoch: u64,
    /// What the clock of the node that has it shows, milliseconds since the epoch: the other moments are by that clock. 0 = the node is
    /// of a release that does not say so.
    #[serde(default)]
    pub as_of: u64,
    /// When it was made, milliseconds since the epoch.
    pub created_at: u64,
    /// The client's connection, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// When its last connection ended, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected_at: Option<u64>,
    /// Its will, if one is to be published should the connection be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub will: Option<WillInfo>,
    /// Its subscriptions by filter, at most [`LISTED_MAX`].
    pub filters: Vec<SubscriptionInfo>,
}

/// A client's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The protocol: `3.1`, `3.1.1` or `5.0`.
    pub version: String,
    /// Since when, milliseconds since the epoch.
    pub since: u64,
}

impl Connection {
    /// What an operator sees of the connection that has a session.
    fn of(attached: &Attached) -> Connection {
        Connection {
            peer: attached.peer,
            version: attached.version.name().to_owned(),
            since: attached.since.as_millis(),
        }
    }
}

/// A will, without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WillInfo {
    /// The topic.
    pub topic: String,
    /// QoS.
    pub qos: u8,
    /// Whether it is retained.
    pub retain: bool,
    /// Will delay interval, seconds.
    pub delay_seconds: u32,
}

impl WillInfo {
    /// What an operator sees of `will`.
    pub fn of(will: &Will) -> WillInfo {
        WillInfo {
            topic: will.message.topic().to_owned(),
            qos: will.message.qos() as u8,
            retain: will.message.retain(),
            delay_seconds: will.delay_s,
        }
    }
}

/// One subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubscriptionInfo {
    /// The filter, `$share/…` included.
    pub filter: String,
    /// Maximum QoS.
    pub qos: u8,
    /// Its identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

/// A session among those with the smallest client identifiers so far.
struct Candidate(Arc<Handle>);

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.0.client_id.cmp(&other.0.client_id)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl SessionQuery {
    fn wants(&self, client_id: &str) -> bool {
        client_id > self.after.as_str() && client_id.starts_with(&self.prefix)
    }

    /// How many sessions at most.
    pub fn room(&self) -> usize {
        self.limit.clamp(1, LISTED_MAX)
    }
}

impl Node {
    /// This node's sessions. Looks at all of them, and keeps a page.
    pub fn sessions_of(&self, query: &SessionQuery) -> SessionPage {
        let room = query.room();
        let mut first: BinaryHeap<Candidate> = BinaryHeap::with_capacity(room + 1);
        let mut more = false;
        self.broker.registry.for_each(|h| {
            if !query.wants(&h.client_id) || !h.mailbox.present() {
                return;
            }
            first.push(Candidate(h.clone()));
            if first.len() > room {
                first.pop();
                more = true;
            }
        });
        let mut first = first.into_sorted_vec();
        let fit = listed(first.iter().map(|c| c.0.client_id.len()));
        more |= first.len() > fit;
        first.truncate(fit);
        let sessions: Vec<_> = first.iter().map(|c| summary(&c.0, &self.node_name())).collect();
        let next = sessions.last().filter(|_| more).map(|s| s.client_id.clone());
        SessionPage { sessions, next, unanswered: Vec::new() }
    }

    /// A session of this node; `None` if it is not here.
    pub fn session_of(&self, client_id: &str, now: Time) -> Option<SessionDetails> {
        let handle = self.broker.session(client_id).filter(|h| h.mailbox.present())?;
        let mut filters: Vec<_> = handle
            .subscriptions
            .lock()
            .iter()
            .map(|(filter, s)| SubscriptionInfo {
                filter: filter.to_string(),
                qos: s.options.qos as u8,
                id: s.id,
            })
            .collect();
        filters.sort_by(|a, b| a.filter.cmp(&b.filter));
        filters.truncate(listed(filters.iter().map(|f| f.filter.len())));
        let attached = handle.attached().filter(|_| handle.mailbox.online());
        let parked = handle.mailbox.parked(|s| (s.expiry_s(), s.detached_at(), s.will().map(WillInfo::of)));
        let (expiry_s, disconnected_at, will) = match (&attached, parked) {
            (Some(a), _) => (a.expiry_s, None, a.will.as_ref().map(WillInfo::of)),
            (None, Some(parked)) => parked,
            (None, None) => (0, None, None),
        };
        Some(SessionDetails {
            summary: summary(&handle, &self.node_name()),
            expiry_seconds: (expiry_s < u32::MAX).then_some(expiry_s),
            epoch: handle.epoch(),
            as_of: now.as_millis(),
            created_at: handle.created_at.as_millis(),
            connection: attached.as_ref().map(Connection::of),
            disconnected_at: disconnected_at.map(Time::as_millis),
            will,
            filters,
        })
    }
}

fn summary(handle: &Handle, node: &str) -> SessionSummary {
    let mailbox = &handle.mailbox;
    let queued = mailbox.waiting();
    let parked = mailbox.parked(|s| s.outbound_steps().len());
    let (state, in_flight) = match parked {
        Some(in_flight) => (SessionState::Dormant, in_flight),
        None if mailbox.online() => (SessionState::Connected, mailbox.load().saturating_sub(queued)),
        None => (SessionState::Moving, 0),
    };
    SessionSummary {
        client_id: handle.client_id.to_string(),
        node: node.to_owned(),
        state,
        persistent: handle.durable,
        subscriptions: handle.subscriptions.lock().len(),
        queued,
        in_flight,
    }
}
