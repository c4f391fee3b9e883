//! Who owns what. All requests are batched by the implementation: callers never gather anything themselves.

use super::index::{Epoch, MemberId, MessageId, Owner, Revision};
use super::journal::StoreKnown;
use super::tasks::BoxFuture;
use crate::clock::Time;
use crate::mqtt::Message;
use crate::user::SessionUser;
use std::sync::Arc;

/// The coordination store did not answer in time, or this node may not write to it now. The request may have been carried
/// out all the same: whoever needs to know reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub Arc<str>);

/// What a claim expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No record.
    Absent,
    /// The record written at this revision, its holder as read (the custody record it was followed through is compared).
    Read(Owner),
}

/// A compare-and-swap on `sessions/<client>`: this node becomes the owner if what is there is what was expected.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Client identifier.
    pub client_id: Arc<str>,
    /// What must be there.
    pub expected: Expected,
    /// Epoch of the new record: 1 above the old one's, or 1.
    pub epoch: Epoch,
    /// Session expiry interval of the new record, seconds.
    pub expiry_s: u32,
    /// The user that the session belongs to.
    pub user: SessionUser,
    /// Write `evictions/<node>/<client>` for this node as well: the session is taken over its head.
    pub evict: Option<Arc<str>>,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The session is this node's from this revision on.
    Granted(Revision),
    /// Something else is there: this record, or none.
    Found(Option<Owner>),
}

/// Routes that this node gained or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// The filter; `$share/<group>/<filter>` for a shared subscription.
    pub filter: Arc<str>,
    /// `None` = removed; else whether a persistent session needs it, and its weight.
    pub route: Option<(bool, u32)>,
}

/// An update of a topic's retained message.
#[derive(Clone, Debug)]
pub struct Retain {
    /// The topic.
    pub topic: Arc<str>,
    /// The message; `None` clears.
    pub message: Option<Message>,
    /// Names the update.
    pub id: MessageId,
    /// The topic's revision known when the update was accepted (0 = no message). While the store is away this and this
    /// node's own earlier update of the topic are the only things it may overwrite.
    pub known: Revision,
    /// How far the index of this node had come when the update was accepted; 0 = that is not known any more. What another node has cleared
    /// after it stays cleared, if this update comes late.
    pub since: Revision,
    /// Whether this node's journal keeps the update until it is written: what it replaces need not wait for it.
    pub kept: bool,
}

/// A message is too large for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes of topic, payload and properties that the store takes, as it counts them.
    pub max: usize,
    /// Bytes of this message, at most.
    pub size: usize,
}

/// What became of a [`Retain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainOutcome {
    /// The update, or a later one of this node in its place, was written at this revision.
    Written(Revision),
    /// A newer update of another node was there: this one is void.
    Overtaken,
    /// A later update of this node, which the journal keeps, has taken its place before it was written.
    Replaced,
    /// The store refuses it, whatever is tried: nothing has changed.
    Refused,
}

/// Decides which node owns a session, and tells the cluster what it must know.
pub trait Coordinator: Send + Sync + 'static {
    /// This process.
    fn me(&self) -> MemberId;

    /// What a journal may note of the store, which has come as far as `revision`. `None` once this process has seen that the store was
    /// restored: its revisions say nothing of the store that the journal was compared with, and would hide that it was another.
    fn known(&self, revision: Revision) -> Option<StoreKnown> {
        Some(StoreKnown { revision, ..StoreKnown::default() })
    }

    /// Makes one attempt to become the owner of a session.
    fn claim(&self, claim: Claim) -> BoxFuture<Result<ClaimOutcome, Unavailable>>;

    /// The record of a session, read linearizably.
    fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>>;

    /// Removes the record of a session that is over, if it is this node's at `epoch`. Tried until the store has answered, whether or not
    /// anybody waits; completes then.
    fn release(&self, client_id: &str, epoch: Epoch) -> BoxFuture<()>;

    /// Changes the record of a session, if it is this node's at `epoch`: it lasts so long after its end of connection, seconds, and is this
    /// user's. Tried until the store has answered; completes then.
    fn expiry(&self, client_id: &str, epoch: Epoch, expiry_s: u32, user: SessionUser) -> BoxFuture<()>;

    /// Adds and removes routes. Completes with the revision at which all of them are written; tried until the store has
    /// answered. Calls are carried out in order.
    fn routes(&self, changes: Vec<RouteChange>) -> BoxFuture<Revision>;

    /// Updates a retained message; completes when written. Updates of a topic coalesce; tried until the store has answered.
    fn retain(&self, update: Retain) -> BoxFuture<RetainOutcome>;

    /// Says that this node has taken note of an eviction. Tried until the store has answered.
    fn evicted(&self, client_id: &str, epoch: Epoch);

    /// A revision that is not older than anything written before the call: one linearizable read for all that wait.
    fn read_revision(&self) -> BoxFuture<Result<Revision, Unavailable>>;

    /// Until when the lease of this node is certainly alive.
    fn lease_until(&self) -> Time;

    /// When the lease of [`Coordinator::lease_until`] was asked for: a later one than the first, if the node has lost one.
    fn lease_since(&self) -> Time;

    /// Whether the store answers now.
    fn reachable(&self) -> bool;

    /// Whether the last request was answered: if not, the store may be away soon.
    fn answering(&self) -> bool {
        self.reachable()
    }

    /// Whether the store answers and takes writes: not while it is full.
    fn writable(&self) -> bool {
        self.reachable()
    }

    /// Whether the store can take a message as the retained one of its topic.
    ///
    /// # Errors
    /// How large it may be, and is.
    fn takes(&self, _message: &Message) -> Result<(), TooLarge> {
        Ok(())
    }

    /// The index events after a revision for a node that lags, as its [`Coordinator::apply_from_peer`] takes them, and how
    /// far they go; `None` if the ring of recent events does not reach back so far.
    fn events_after(&self, after: Revision) -> Option<(bytes::Bytes, Revision)>;

    /// Applies what [`Coordinator::events_after`] of another node gave, in order with what the store itself sends; what has
    /// been applied already is left out.
    ///
    /// # Errors
    /// Says why they cannot be read, or that they do not begin where this node's index ends.
    fn apply_from_peer(&self, events: bytes::Bytes) -> BoxFuture<Result<(), String>>;
}
