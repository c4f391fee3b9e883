//! SUBSCRIBE in a cluster: SUBACK means that every node routes to the session, and retained messages are read as new as the
//! SUBSCRIBE is (G6, G7).

use super::local_routes::{NewFilters, RouteWait};
use super::young::Older;
use super::{Cluster, Remote};
use crate::broker::handle::Handle;
use crate::broker::promise::{Kept, Promise};
use crate::broker::retain::is_own;
use crate::broker::subscribe::{Answered, Granted, RetainedRequest};
use crate::clock::Time;
use crate::mqtt::{Message, Reason};
use crate::ports::{
    BoxFuture, Change, Coordinator, Identity, Incarnation, MemberId, MessageId, RetainedProgress, Revision,
    SessionNo, SubscriptionRecord,
};
use crate::session::SubscribeRequest;
use crate::telemetry::metrics::SubackWait;
use crate::topic::OwnedFilter;
use futures_util::future::{Either, select};
use std::sync::Arc;

/// How often those that wait for the store look whether it still answers, milliseconds.
const STORE_LOOK_MS: u64 = 100;

impl Cluster {
    /// Subscribes `handle`. What retained messages it should get is added to `retained`. Routes that all nodes have to know first, if there
    /// are any.
    pub fn subscribe(
        &self,
        handle: &Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> (Answered, Option<RouteWait>) {
        let remote = &self.remote;
        // No update is on its way between its number and the sessions that are given it.
        remote.barrier.closed(|| {
            let subscribing = self.broker.begin_subscribe(handle, who, request);
            let young: Vec<Arc<str>> =
                subscribing.granted().filter(|g| g.is_young()).map(|g| g.name.clone()).collect();
            for name in &young {
                remote.young.begin(handle.no, name);
            }
            let older = |g: &Granted| match g.is_young() {
                true => remote.under_way().to_vec(),
                false => remote.older_than(handle.no, &g.name),
            };
            let answered = self.broker.finish_subscribe(&subscribing, request, older, retained);
            let wait = self.routes_added(&subscribing.routes(), handle.durable);
            self.broker.end_subscribe(subscribing);
            (answered, wait.map(|wait| wait.of_young(handle.clone(), young)))
        })
    }

    /// Unsubscribes `handle` from filters, those aside that were refused already.
    pub fn unsubscribe(&self, handle: &Arc<Handle>, filters: &[Result<OwnedFilter, Reason>]) -> Answered {
        let mut gone: Vec<Arc<str>> = Vec::new();
        let answered = self.broker.unsubscribe(handle, filters, &mut gone);
        self.routes_removed(&gone, handle.durable);
        for name in &gone {
            self.remote.young.forget(handle.no, Some(name));
        }
        answered
    }

    /// Counts the routes of a session in; filters with `true` are new to it. `None` if there are no filters.
    pub fn routes_added(&self, filters: &[(Arc<str>, bool)], persistent: bool) -> Option<RouteWait> {
        (!filters.is_empty()).then(|| self.remote.local.add(filters, persistent))
    }

    /// Counts routes of a session out.
    pub fn routes_removed<'f>(&self, filters: impl IntoIterator<Item = &'f Arc<str>>, persistent: bool) {
        self.remote.local.remove(filters, persistent);
    }

    /// A session is sent an update as the retained message of its topic: it does not get it again as a publish that is still on its
    /// way to this node, nor an older one of the same publisher behind it (G3).
    pub fn sent_as_retained(&self, id: MessageId, message: &Message, session: SessionNo) {
        let remote = &self.remote;
        if remote.members.may_come(id) {
            remote.deduplication.insert(id, session);
        }
        if id.origin != remote.me.incarnation {
            remote.young.given(session, id, message);
        }
    }

    /// Completes when the cluster knows the routes of all sessions there are now, and this node's index has them and its own
    /// registration: before that it should not be called ready.
    pub fn when_routes_known(&self) -> BoxFuture<()> {
        let remote = self.remote.clone();
        Box::pin(async move {
            let written = remote.local.all_written().written().await;
            remote.when_applied(written.max(remote.me.registered_at())).await;
        })
    }

    /// What SUBACK has to wait for; `None` = nothing. If retained messages are to be sent, `requests`, also for an index that has
    /// what was retained before this call, and what was matched without these subscriptions.
    pub fn when_routed(&self, mut wait: RouteWait, requests: &[RetainedRequest]) -> Option<Arc<Promise>> {
        let young = wait.take_young();
        self.routed(&self.remote, wait, requests, young)
    }

    fn routed(
        &self,
        remote: &Arc<Remote>,
        wait: RouteWait,
        requests: &[RetainedRequest],
        young: Option<NewFilters>,
    ) -> Option<Arc<Promise>> {
        let requests: Vec<RetainedRequest> =
            requests.iter().filter(|r| !is_own(&r.filter)).cloned().collect();
        let reads = !requests.is_empty();
        if !reads && wait.known().is_some_and(|r| r <= remote.all_applied()) {
            self.grown_up(remote, young, None);
            return None;
        }
        let waits = &remote.metrics.suback_waits;
        let coordinator = &remote.ports.coordinator;
        let known = wait.known().is_some();
        if !coordinator.reachable() || (!known && !coordinator.writable()) {
            waits.of(SubackWait::Skipped).inc();
            self.grown_up(remote, young, Some(wait.clone()));
            self.read_again(remote, wait, requests);
            return None;
        }
        let under_way = requests.iter().flat_map(|r| self.broker.retained.under_way(&r.filter)).collect();
        let (promise, remote, cluster) = (Promise::new(), remote.clone(), self.me.clone());
        let given = promise.clone();
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            let routes = wait.clone();
            let outcome =
                if reads { remote.readable(wait, under_way).await } else { remote.routed(wait).await };
            let all = outcome == SubackWait::Done && remote.none_spooled();
            remote.metrics.suback_waits.of(outcome).inc();
            if let Some(cluster) = cluster.upgrade() {
                let unknown = (outcome != SubackWait::Done).then(|| routes.clone());
                cluster.grown_up(&remote, young, unknown);
                if !all {
                    cluster.read_again(&remote, routes, requests);
                }
            }
            promise.keep(Kept::Done { matched: false });
        }));
        Some(given)
    }

    /// SUBACK leaves for new subscriptions: from here on they are owed what is accepted, and nothing older. With `unknown`, the wait for
    /// their routes, not all nodes may know of them.
    fn grown_up(&self, remote: &Remote, young: Option<NewFilters>, unknown: Option<RouteWait>) {
        let Some(NewFilters { session, filters }) = young else { return };
        let known = unknown.is_none();
        let older = || {
            let under_way = remote.under_way();
            if known {
                return under_way;
            }
            // Publishes of these are not matched by nodes that do not know: they are this node's own, or come from journals.
            under_way.iter().copied().filter(|(of, _)| !remote.may_not_know(*of)).collect()
        };
        remote.young.acknowledged(session.no, &filters, older, known);
        if session.durable {
            let subscriptions = session.subscriptions.lock();
            for (filter, s) in filters.iter().filter_map(|f| Some((f, subscriptions.get(f)?))) {
                let (filter, options, subscription_id) = (filter.clone(), s.options, s.id);
                let older = remote.older_than(session.no, &filter);
                if !older.is_empty() {
                    let subscription = SubscriptionRecord { filter, options, subscription_id, older };
                    let change = Change::Subscribe { session: session.no, subscription: &subscription };
                    self.broker.journal.append(&[change]);
                }
            }
        }
        if let Some(wait) = unknown {
            let cluster = self.me.clone();
            let tasks = remote.ports.tasks.clone();
            tasks.spawn(Box::pin(async move {
                let written = wait.written().await;
                if let Some(cluster) = cluster.upgrade() {
                    cluster.remote.young.routed(session.no, &filters, written);
                }
            }));
        }
    }
}

impl Remote {
    /// What a subscription of a session is younger than; before its SUBACK that is all that is known now.
    pub(super) fn older_than(&self, session: SessionNo, filter: &str) -> Vec<(Incarnation, u64)> {
        let Some(older) = self.young.of(session, filter) else { return Vec::new() };
        older.unwrap_or_else(|| self.under_way()).to_vec()
    }

    /// The highest number known of an origin's publishes, all those that may come again included.
    pub(super) fn highest(&self, origin: Incarnation) -> u64 {
        if origin == self.me.incarnation {
            return self.outbox.next_seq().saturating_sub(1);
        }
        if self.members.is_superseded(origin) { u64::MAX } else { self.young.highest(origin) }
    }

    /// Whether an origin matches publishes itself, and not by this node's index.
    fn may_not_know(&self, origin: Incarnation) -> bool {
        origin != self.me.incarnation && !self.members.is_superseded(origin)
    }

    /// The highest number known of each origin, of those some of whose publishes may still come again.
    fn under_way(&self) -> Older {
        let known = self.members.custodies().into_iter().map(|(of, _)| of.incarnation);
        let known = known.map(|of| (of, self.highest(of)));
        known.filter(|(origin, seq)| !self.deduplication.all_past(*origin, *seq)).collect()
    }

    async fn routed(self: &Arc<Remote>, wait: RouteWait) -> SubackWait {
        let written = self.while_it(|store| store.writable(), wait.written()).await;
        let Some(written) = written else { return SubackWait::Skipped };
        let all = self.when_all_applied(written, self.limits.suback_wait_ms);
        let Some(all) = self.while_reachable(all).await else { return SubackWait::Skipped };
        if all { SubackWait::Done } else { SubackWait::TimedOut }
    }

    /// As [`Remote::routed`], and what is retained can be read. A publish that another node has matched without the route is no longer
    /// under way then: this node's index has what it retained, or something newer. One that came here before the subscription is among
    /// those `under_way`. All others come to it.
    async fn readable(
        self: &Arc<Remote>,
        wait: RouteWait,
        under_way: Vec<(Arc<str>, MessageId)>,
    ) -> SubackWait {
        let wrote = wait.wrote();
        let written = self.while_it(|store| store.writable(), wait.written()).await;
        let Some(written) = written else { return SubackWait::Skipped };
        let deadline = self.now().plus_ms(self.limits.suback_wait_ms);
        let all = self.when_all_retained(written, self.limits.suback_wait_ms);
        let Some(mut all) = self.while_reachable(all).await else { return SubackWait::Skipped };
        let remote = self.clone();
        let known = Box::pin(async move {
            remote.when_applied(remote.members.most_applied(remote.applied())).await;
            remote.retained.when_decided(under_way).await;
        });
        // At least as long as the others had.
        let deadline = deadline.max(self.now().plus_ms(STORE_LOOK_MS));
        let Some(known) = self.while_reachable(Box::pin(self.clone().by(deadline, known))).await else {
            return SubackWait::Skipped;
        };
        all &= known;
        // What was written for this very SUBSCRIBE is as new as it is; other routes may be older.
        if !wrote && !self.when_caught_up().await {
            return SubackWait::Skipped;
        }
        if all { SubackWait::Done } else { SubackWait::TimedOut }
    }

    /// Whether all nodes know what became of every update that was matched at a revision or before, and none waits for the store.
    pub(super) fn all_written(&self, revision: Revision) -> bool {
        let own = self.retained_progress(self.applied()).written;
        self.ports.coordinator.reachable() && own.min(self.members.written_by_all()) >= revision
    }

    /// Whether no node has updates that wait for the store, as far as is known.
    fn none_spooled(&self) -> bool {
        let own = self.retained_progress(self.applied());
        own.written == own.settled && self.members.none_spooled()
    }

    /// Whether `f` has come to its end by `deadline`.
    async fn by(self: Arc<Remote>, deadline: Time, f: BoxFuture<()>) -> bool {
        self.until(deadline, f).await.is_some()
    }

    /// What another process says of its updates of retained messages, its index having come to `applied`.
    pub(super) fn take_progress(self: &Arc<Remote>, from: &MemberId, applied: Revision, r: RetainedProgress) {
        let origin = from.incarnation;
        if applied <= self.applied() {
            return self.retained.decided_below(origin, r.decided, r.waited);
        }
        // This index will know as much once it has come as far.
        let remote = self.clone();
        self.ports.tasks.spawn(Box::pin(async move {
            remote.when_applied(applied).await;
            remote.retained.decided_below(origin, r.decided, r.waited);
        }));
    }

    /// `f`, unless the store stops answering meanwhile.
    async fn while_reachable<T>(&self, f: BoxFuture<T>) -> Option<T> {
        self.while_it(|store| store.reachable(), f).await
    }

    /// `f`, unless the store `is` no longer such meanwhile.
    pub(super) async fn while_it<T>(&self, is: fn(&dyn Coordinator) -> bool, f: BoxFuture<T>) -> Option<T> {
        let mut f = f;
        loop {
            match select(f, self.ports.tasks.sleep(STORE_LOOK_MS)).await {
                Either::Left((done, _)) => return Some(done),
                Either::Right(((), rest)) => f = rest,
            }
            if !is(&*self.ports.coordinator) {
                return None;
            }
        }
    }

    /// Completes when the index is as new as this call; false if the store does not answer.
    pub fn when_caught_up(self: &Arc<Remote>) -> BoxFuture<bool> {
        let remote = self.clone();
        Box::pin(async move {
            let read = remote.while_reachable(remote.ports.coordinator.read_revision()).await;
            let Some(Ok(revision)) = read else { return false };
            remote.while_reachable(remote.when_applied(revision)).await.is_some()
        })
    }
}
