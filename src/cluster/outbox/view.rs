//! What is handed out of the outbox: a publish to be matched.

use super::asked::OpenGroup;
use crate::broker::promise::Promise;
use crate::mqtt::Message;
use crate::ports::{Lsn, Revision, SessionNo};
use smallvec::SmallVec;
use std::sync::Arc;

/// A publish that is handed out to be matched.
#[derive(Debug)]
pub struct View {
    /// The message.
    pub message: Message,
    /// The session that published it; 0 = nobody of this node any more.
    pub session: SessionNo,
    /// Whether sessions that subscribed for themselves are meant.
    pub direct: bool,
    /// The revision at which the publish was first matched; 0 = it was not, or not by this process.
    pub first_matched: Revision,
    /// Whether shared subscriptions are still to be looked for.
    pub all_groups: bool,
    /// Whether nothing but shared subscriptions is meant.
    pub shared_only: bool,
    /// Shared subscriptions not served yet.
    pub groups: SmallVec<[OpenGroup; 1]>,
    /// Nodes that have not answered.
    pub asked: SmallVec<[Arc<str>; 2]>,
    /// Shared subscriptions that a node which has not answered is asked to serve.
    pub asked_groups: SmallVec<[Arc<str>; 1]>,
    /// Whether who is asked to serve a shared subscription has to be in the journal first.
    pub noted: bool,
    /// What the publisher waits for.
    pub(super) promise: Option<Arc<Promise>>,
}

impl View {
    /// Takes note that sessions here got the publish: whoever waits for it waits until the journal is durable up to `lsn`.
    pub fn needs(&self, lsn: Lsn) {
        if let Some(promise) = &self.promise {
            promise.needs(lsn);
        }
    }
}
