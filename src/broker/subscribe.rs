//! SUBSCRIBE and UNSUBSCRIBE as the broker carries them out (MQTT 5.0 sections 3.8 to 3.11).

use super::Broker;
use super::handle::{Handle, Subscription, Subscriptions};
use super::publish::Scratch;
use super::remote::RouteWait;
use super::retained::{Found, Retained};
use super::router::{Subscriber, Target};
use super::sys;
use crate::clock::Time;
use crate::mqtt::packet::{RetainHandling, SubscribeOptions};
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Change, Identity, Lsn, SubscriptionRecord};
use crate::session::{Extra, SubscribeRequest};
use crate::topic::{Filter, OwnedFilter};
use smallvec::SmallVec;
use std::sync::Arc;

/// What became of a SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug, Default)]
pub struct Answered {
    /// One code per filter.
    pub codes: SmallVec<[Reason; 4]>,
    /// When it is safe to say so; `None` = now.
    pub lsn: Option<Lsn>,
    /// Routes that the cluster has to know first; `None` if this node is alone.
    pub routes: Option<RouteWait>,
}

/// New subscriptions, to be counted together.
#[derive(Debug, Default)]
pub(super) struct Added {
    all: u64,
    shared: u64,
}

/// Retained messages to send to a new subscription.
#[derive(Clone, Debug)]
pub struct RetainedRequest {
    /// The filter.
    pub filter: Arc<str>,
    /// QoS, RETAIN and identifiers to send them with.
    pub target: Target,
    /// Updates that had come when the subscription was in the router: it is given the later ones by itself.
    pub born: u64,
}

impl Broker {
    /// Subscribes `handle`. What retained messages it should get is added to `retained`.
    pub fn subscribe(
        &self,
        handle: &Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> Answered {
        match &self.remote {
            // No update is on its way between its number and the sessions that are given it.
            Some(remote) => remote.gate.closed(|| self.subscribe_all(handle, who, request, retained)),
            None => self.subscribe_all(handle, who, request, retained),
        }
    }

    fn subscribe_all(
        &self,
        handle: &Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> Answered {
        let mut answered = Answered::default();
        let id = request.subscription_id;
        // In a cluster the index may not know yet what must be sent.
        let retains = self.remote.is_some() || !self.retained.is_empty();
        let (mut routes, mut young) = (Vec::new(), Vec::new());
        let mut added = Added::default();
        let mut subscriptions = handle.subscriptions.lock();
        for f in &request.filters {
            let (name, filter) = match &f.filter {
                Ok(filter) => (filter.text(), filter.filter()),
                Err(reason) => {
                    answered.codes.push(*reason);
                    continue;
                }
            };
            let options = match self.granted(who, &filter, name, f.options, &subscriptions) {
                Ok(options) => options,
                Err(reason) => {
                    answered.codes.push(reason);
                    continue;
                }
            };
            let s = subscriber(handle, &filter, name, options, id);
            let target = (retains || sys::is_own(filter.filter)).then(|| Broker::target_of(&s));
            let is_new = self.add(&mut subscriptions, &filter, name, s, id, &mut added);
            routes.push((name.clone(), is_new));
            if let Some(remote) = self.remote.as_ref().filter(|_| is_new && filter.share.is_none()) {
                remote.young.begin(handle.no, name);
                young.push(name.clone());
            }
            if handle.durable {
                let subscription = SubscriptionRecord {
                    filter: name.clone(),
                    options,
                    subscription_id: id,
                    older: self.older_than(handle, name, is_new && filter.share.is_none()),
                };
                let change = Change::Subscribe { session: handle.no, subscription: &subscription };
                answered.lsn = Some(self.journal.append(&[change]));
            }
            answered.codes.push(match options.qos {
                QoS::AtMostOnce => Reason::Success,
                QoS::AtLeastOnce => Reason::GrantedQoS1,
                QoS::ExactlyOnce => Reason::GrantedQoS2,
            });
            let wanted = match options.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => is_new,
                RetainHandling::DoNotSend => false,
            };
            // No retained messages for shared subscriptions (section 4.8.2).
            if let Some(target) = target.filter(|_| wanted && filter.share.is_none()) {
                let born = self.retained_store(name).updates();
                retained.extend([RetainedRequest { filter: name.clone(), target, born }]);
            }
        }
        let wait = self.routes_added(&routes, handle.durable);
        answered.routes = wait.map(|wait| wait.of_young(handle.clone(), young));
        drop(subscriptions);
        self.count_added(&added);
        answered
    }

    /// The options with which a subscription is granted, or why it is not.
    fn granted(
        &self,
        who: &Identity,
        filter: &Filter<'_>,
        name: &str,
        options: SubscribeOptions,
        subscriptions: &Subscriptions,
    ) -> Result<SubscribeOptions, Reason> {
        let max = self.may_subscribe(who, filter.filter).ok_or(Reason::NotAuthorized)?;
        if subscriptions.len() >= self.limits.subscriptions() && !subscriptions.contains_key(name) {
            return Err(Reason::QuotaExceeded);
        }
        Ok(SubscribeOptions { qos: options.qos.min(max), ..options })
    }

    /// Puts a subscription into the router and the session's own list; true if it is new.
    pub(super) fn add(
        &self,
        subscriptions: &mut Subscriptions,
        filter: &Filter<'_>,
        name: &Arc<str>,
        s: Subscriber,
        id: Option<u32>,
        added: &mut Added,
    ) -> bool {
        let subscription = Subscription { options: s.options, id };
        let is_new = subscriptions.insert(name.clone(), subscription).is_none();
        self.router.subscribe(filter, name, s);
        added.all += u64::from(is_new);
        added.shared += u64::from(is_new && filter.share.is_some());
        is_new
    }

    /// Counts new subscriptions.
    pub(super) fn count_added(&self, added: &Added) {
        self.metrics.subscriptions_active.add(added.all);
        if added.shared > 0 {
            self.metrics.shared_subscriptions.add(added.shared);
        }
    }

    /// Unsubscribes `handle` from filters, those aside that were refused already.
    pub fn unsubscribe(&self, handle: &Arc<Handle>, filters: &[Result<OwnedFilter, Reason>]) -> Answered {
        let mut answered = Answered::default();
        for filter in filters {
            let (name, filter) = match filter {
                Ok(filter) => (filter.text(), filter.filter()),
                Err(reason) => {
                    answered.codes.push(*reason);
                    continue;
                }
            };
            let mut subscriptions = handle.subscriptions.lock();
            if subscriptions.remove(name).is_none() {
                answered.codes.push(Reason::NoSubscriptionExisted);
                continue;
            }
            self.router.unsubscribe(&filter, name, handle.no);
            self.routes_removed([name], handle.durable);
            if let Some(remote) = &self.remote {
                remote.young.forget(handle.no, Some(name));
            }
            drop(subscriptions);
            self.metrics.subscriptions_active.sub(1);
            self.metrics.shared_subscriptions.sub(u64::from(filter.share.is_some()));
            if handle.durable {
                let change = Change::Unsubscribe { session: handle.no, filter: name };
                answered.lsn = Some(self.journal.append(&[change]));
            }
            answered.codes.push(Reason::Success);
        }
        answered
    }

    /// Queues, in the journal, the retained messages for a new subscription that a persistent session must not lose.
    /// Returns when they are durable.
    pub fn queue_retained(&self, request: &RetainedRequest, now: Time, scratch: &mut Scratch) -> Option<Lsn> {
        let t = &request.target;
        if !journals(t) {
            return None;
        }
        let found = self.found(request, now);
        let mut lsn = None;
        for f in found.iter().filter(|f| f.message.qos() > QoS::AtMostOnce) {
            if self.may_receive(&t.handle, f.message.topic()).is_none() {
                self.not_allowed(&t.handle);
                continue;
            }
            let sent = self.send_found(request, f, |m| self.deliver_one(m, t, true, scratch));
            lsn = lsn.max(sent.flatten().flatten());
        }
        lsn
    }

    fn retained_store(&self, filter: &str) -> &Retained {
        if sys::is_own(filter) { &self.own } else { &self.retained }
    }

    fn found(&self, request: &RetainedRequest, now: Time) -> Vec<Found> {
        self.retained_store(&request.filter).found(&request.filter, now)
    }

    /// The other retained messages for a new subscription, for the connection to send as the client takes them.
    pub fn retained_for(&self, request: &RetainedRequest, now: Time) -> Vec<Found> {
        let mut found = self.found(request, now);
        if journals(&request.target) {
            found.retain(|f| f.message.qos() == QoS::AtMostOnce);
        }
        found
    }

    /// Has `send` send a retained message for a new subscription, unless its session has been given something newer.
    pub fn send_found<R>(
        &self,
        request: &RetainedRequest,
        found: &Found,
        send: impl FnOnce(&Message) -> R,
    ) -> Option<R> {
        self.retained_store(&request.filter).send(found, request.born, |message, id| {
            if let Some(id) = id {
                self.sent_as_retained(id, request.target.handle.no);
            }
            send(message)
        })
    }
}

/// Whether what `t` is to have at QoS 1 and 2 is kept in the journal.
fn journals(t: &Target) -> bool {
    t.handle.durable && t.qos > QoS::AtMostOnce
}

/// The router's entry for a subscription.
pub(super) fn subscriber(
    handle: &Arc<Handle>,
    filter: &Filter<'_>,
    name: &Arc<str>,
    options: SubscribeOptions,
    id: Option<u32>,
) -> Subscriber {
    let shared = filter.share.is_some().then(|| name.clone());
    let extra = (id.is_some() || shared.is_some())
        .then(|| Arc::new(Extra { subscription_ids: id.into_iter().collect(), shared }));
    Subscriber { handle: handle.clone(), options, extra }
}
