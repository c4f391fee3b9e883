//! What is handed out of the table of publishes: one to be matched, and what is to be done next.

use super::entry::{OpenGroup, Sends};
use crate::broker::promise::Promise;
use crate::mqtt::Message;
use crate::ports::{Lsn, MessageId, Revision, Seq, SessionNo};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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

/// What is to be done after a node has answered or a publish was matched.
#[derive(Debug, Default)]
pub struct Next {
    /// Frames to send and to cancel.
    pub sends: Vec<(MessageId, Message, Sends)>,
    /// Publishes to match again at once.
    pub again: Vec<MessageId>,
    /// What was matched at this revision is settled at a node now, and nothing older is left: news, if the index has moved on.
    pub risen: Option<Revision>,
    /// Publishes that every node has, with their rows in the journal.
    pub done: Vec<(MessageId, Option<Seq>)>,
}

impl super::Outbox {
    /// The number of the next name.
    pub fn peek_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}
