//! What a client or an operator publishes and subscribes to, by this node alone or with the others.

use super::Node;
use crate::broker::delivery::{Publishing, Scratch};
use crate::broker::handle::Handle;
use crate::broker::promise::Promise;
use crate::broker::publish::Routed;
use crate::broker::retain::is_own;
use crate::broker::retained::{Forbidden, Found};
use crate::broker::subscribe::{Answered, RetainedRequest};
use crate::clock::Time;
use crate::cluster::{Cache, RouteWait};
use crate::mqtt::{Message, Reason};
use crate::ports::{Identity, Lsn, MessageId, Seq, SessionNo};
use crate::session::{Delivery, Failure, Loss, SubscribeRequest};
use crate::topic::OwnedFilter;
use std::sync::Arc;
use std::task::Waker;

impl Node {
    /// Routes `message` to all who must have it.
    ///
    /// # Errors
    /// As [`Broker::publish`](crate::broker::Broker::publish), and as [`Cluster::publish`](crate::cluster::Cluster::publish).
    pub fn publish(
        &self,
        message: &Message,
        publishing: &Publishing<'_>,
        now: Time,
        cache: &mut Cache,
        scratch: &mut Scratch,
    ) -> Result<Routed, Failure> {
        match &self.cluster {
            Some(cluster) => cluster.publish(message, publishing, cache, scratch),
            None => self.broker.publish(message, publishing, now, &mut cache.local, scratch),
        }
    }

    /// Subscribes `handle`. What retained messages it should get is added to `retained`. The routes that other nodes have to know first,
    /// if there are any.
    pub(super) fn subscribe(
        &self,
        handle: &Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> (Answered, Option<RouteWait>) {
        match &self.cluster {
            Some(cluster) => cluster.subscribe(handle, who, request, retained),
            None => (self.broker.subscribe(handle, who, request, retained), None),
        }
    }

    /// What SUBACK has to wait for; `None` = nothing.
    pub(super) fn when_routed(&self, wait: RouteWait, retained: &[RetainedRequest]) -> Option<Arc<Promise>> {
        self.cluster.as_ref()?.when_routed(wait, retained)
    }

    /// Unsubscribes `handle` from filters, those aside that were refused already.
    pub(super) fn unsubscribe(
        &self,
        handle: &Arc<Handle>,
        filters: &[Result<OwnedFilter, Reason>],
    ) -> Answered {
        match &self.cluster {
            Some(cluster) => cluster.unsubscribe(handle, filters),
            None => self.broker.unsubscribe(handle, filters, &mut Vec::new()),
        }
    }

    /// A session is done with a journaled message.
    pub(super) fn settle(&self, seq: Seq, session: SessionNo) {
        match &self.cluster {
            Some(cluster) => cluster.settle_row(seq, session),
            None => self.broker.settle(seq, session),
        }
    }

    /// What is left of a delivery whose client may be restricted: nothing, or the same at a lower QoS. What came through a shared
    /// subscription goes to another member; the rest is dropped and counted. `begun`: it was sent before.
    pub(super) fn permitted(
        &self,
        handle: &Handle,
        d: Delivery,
        begun: bool,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Delivery> {
        let d = match self.broker.permitted(handle, d, begun) {
            Ok(d) => return Some(d),
            Err(d) => d,
        };
        self.endings().hand_on(handle, &d, begun, Loss::NotAllowed, now, scratch);
        None
    }

    /// Queues, in the journal, the retained messages for a new subscription that a persistent session must not lose.
    /// Returns when they are durable.
    pub(super) fn queue_retained(
        &self,
        request: &RetainedRequest,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let session = request.target.handle.no;
        let (delivered, wakes) = scratch.begin();
        let sent = |id, message: &Message| self.sent_as_retained(id, message, session);
        let lsn = self.broker.queue_retained(request, now, sent, delivered, wakes);
        for (seq, session) in delivered.displaced.drain(..) {
            self.settle(seq, session);
        }
        lsn
    }

    /// Calls `send` to send a retained message for a new subscription, unless its session has been given something newer.
    pub(super) fn send_found<R>(
        &self,
        request: &RetainedRequest,
        found: &Found,
        send: impl FnOnce(&Message) -> R,
    ) -> Option<R> {
        self.broker.send_found(request, found, |message, id| {
            id.into_iter().for_each(|id| self.sent_as_retained(id, message, request.target.handle.no));
            send(message)
        })
    }

    fn sent_as_retained(&self, id: MessageId, message: &Message, session: SessionNo) {
        if let Some(cluster) = &self.cluster {
            cluster.sent_as_retained(id, message, session);
        }
    }

    /// Whether a message could ever become the retained one of its topic: what a client is told that leaves a will.
    ///
    /// # Errors
    /// The limit that forbids it.
    pub(super) fn could_retain(&self, message: &Message) -> Result<(), Forbidden> {
        self.broker.could_retain(message)?;
        match self.remote().filter(|_| !message.payload().is_empty() && !is_own(message.topic())) {
            Some(remote) => remote.takes(message),
            None => Ok(()),
        }
    }

    /// The packet identifiers of a session's QoS 2 publishes that wait for other nodes.
    pub(super) fn publishes_under_way(&self, session: SessionNo) -> Vec<u16> {
        self.cluster.as_ref().map_or_else(Vec::new, |c| c.publishes_under_way(session))
    }

    /// What tells the outcome of one of them; `None` if all nodes have it.
    pub(super) fn publish_under_way(&self, session: SessionNo, packet_id: u16) -> Option<Arc<Promise>> {
        self.cluster.as_ref()?.publish_under_way(session, packet_id)
    }

    /// Whether publishers should pause since too many publishes wait for other nodes.
    pub(super) fn publishers_pause(&self) -> bool {
        self.cluster.as_ref().is_some_and(|c| c.publishers_pause())
    }

    /// Wakes a publisher that pauses when there is room again.
    pub(super) fn wake_publisher(&self, waker: &Waker) {
        if let Some(cluster) = &self.cluster {
            cluster.wake_publisher(waker);
        }
    }

    /// How long a SUBACK may wait for the other nodes, milliseconds.
    pub(super) fn suback_wait_ms(&self) -> u64 {
        self.remote().map_or(0, |r| r.limits.suback_wait_ms)
    }

    /// How long a CONNECT may wait for a session that another node owns, milliseconds.
    pub(super) fn takeover_timeout_ms(&self) -> u64 {
        self.remote().map_or(0, |r| r.limits.takeover_timeout_ms)
    }

    /// Publishes of this node's clients that not every other node has yet.
    pub fn remote_held(&self) -> usize {
        self.cluster.as_ref().map_or(0, |c| c.remote_held())
    }

    /// Retained messages whose update waits for the store.
    pub fn spooled_retained(&self) -> usize {
        self.cluster.as_ref().map_or(0, |c| c.spooled_retained())
    }

    /// Clears retained messages that have expired. In a cluster the leader does it for all.
    pub fn expire_retained(&self, now: Time) {
        if self.cluster.is_none() {
            self.broker.expire_retained(now);
        }
    }
}
