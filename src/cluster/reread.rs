//! Subscriptions that had to do with less than a SUBACK promises, since the store or a node was away: once all of them know each
//! other again, what was retained meanwhile is sent to them.

use super::local_routes::RouteWait;
use super::{Cluster, Remote};
use crate::broker::delivery::Scratch;
use crate::broker::subscribe::RetainedRequest;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::Revision;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// SUBSCRIBEs that wait to be looked at again, at most; of more nothing is sent later.
const REREADS_MAX: usize = 10_000;

/// How often they look whether all nodes have caught up, milliseconds.
const LOOK_MS: u64 = 500;

/// How many wait.
#[derive(Debug, Default)]
pub(super) struct Rereads(AtomicUsize);

/// A SUBSCRIBE that waits.
struct Reread {
    cluster: Weak<Cluster>,
    remote: Arc<Remote>,
    requests: Vec<RetainedRequest>,
    /// What is newer is sent.
    after: Revision,
}

impl Drop for Reread {
    fn drop(&mut self) {
        self.remote.rereads.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Sends what was retained after this call, and did not come to these subscriptions, once that is known.
    pub(super) fn read_again(&self, remote: &Arc<Remote>, wait: RouteWait, requests: Vec<RetainedRequest>) {
        if requests.is_empty() {
            return;
        }
        let waiting = remote.rereads.0.fetch_add(1, Ordering::Relaxed);
        let (cluster, after) = (self.me.clone(), remote.applied());
        let reread = Reread { cluster, remote: remote.clone(), requests, after };
        if waiting < REREADS_MAX {
            remote.ports.tasks.spawn(Box::pin(reread.run(wait)));
        }
    }

    /// Sends what a subscription has missed; false if its session may be about to leave: then nothing is sent.
    fn send_missed(&self, request: &RetainedRequest, after: Revision, scratch: &mut Scratch) -> bool {
        let (t, now) = (&request.target, self.remote.now());
        // What the session is noted to have it has: no session freezes between the note and its mailbox.
        let _inside = self.remote.barrier.enter();
        if t.handle.mailbox.frozen(|_| ()).is_some() {
            return false;
        }
        for found in self.broker.retained.found_after(&request.filter, after, now) {
            self.broker.send_found(request, &found, |message, id| {
                id.into_iter().for_each(|id| self.sent_as_retained(id, message, t.handle.no));
                self.deliver_one(message, t, true, scratch)
            });
        }
        for topic in self.broker.retained.cleared_after(&request.filter, after, request.born, now) {
            let (payload, properties) = (&[][..], &[][..]);
            let (qos, expires_at) = (QoS::AtLeastOnce, None);
            let parts = Parts { topic: &topic, payload, properties, qos, retain: true, expires_at };
            self.deliver_one(&Message::new(parts), t, t.retain_as_published, scratch);
        }
        true
    }
}

impl Reread {
    async fn run(self, wait: RouteWait) {
        let remote = &self.remote;
        let written = wait.written().await;
        loop {
            if self.requests.iter().all(|r| !r.target.handle.mailbox.present()) {
                return;
            }
            if remote.all_written(written) {
                remote.when_applied(remote.members.most_applied(remote.applied())).await;
                if remote.when_caught_up().await && remote.all_written(written) {
                    break;
                }
            }
            remote.ports.tasks.sleep(LOOK_MS).await;
        }
        for request in &self.requests {
            while !self.answered(request) {
                remote.ports.tasks.sleep(LOOK_MS).await;
            }
        }
    }

    /// Sends a subscription what it has missed, if it is still there; false if that has to wait.
    fn answered(&self, request: &RetainedRequest) -> bool {
        let Some(cluster) = self.cluster.upgrade() else { return true };
        let handle = &request.target.handle;
        let there = handle.mailbox.present() && handle.subscriptions.lock().contains_key(&request.filter);
        !there || cluster.send_missed(request, self.after, &mut Scratch::default())
    }
}
