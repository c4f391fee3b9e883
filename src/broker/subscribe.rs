//! SUBSCRIBE and UNSUBSCRIBE as the broker carries them out (MQTT 5.0 sections 3.8 to 3.11). The journal's record of a subscription says
//! what it is younger than, which is for the caller to know: hence [`Broker::begin_subscribe`] and [`Broker::finish_subscribe`].

use super::Broker;
use super::delivery::Delivered;
use super::handle::{Handle, Subscription, Subscriptions};
use super::mailbox::Wakes;
use super::retain::is_own;
use super::retained::{Found, Retained};
use super::router::{Subscriber, Target};
use crate::clock::Time;
use crate::mqtt::packet::{RetainHandling, SubscribeOptions};
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Change, Identity, Incarnation, Lsn, MessageId, SubscriptionRecord};
use crate::session::{Extra, SubscribeRequest};
use crate::topic::{Filter, OwnedFilter};
use parking_lot::MutexGuard;
use smallvec::SmallVec;
use std::sync::Arc;

/// What became of a SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug, Default)]
pub struct Answered {
    /// The reason codes, one per filter.
    pub codes: SmallVec<[Reason; 4]>,
    /// Up to where the journal must be durable for the answer to be sent; `None` = it can be sent now.
    pub lsn: Option<Lsn>,
}

/// A SUBSCRIBE whose subscriptions are in the router and not in the journal yet. The session's list of them is locked until this is
/// dropped.
#[derive(Debug)]
pub struct Subscribing<'h> {
    handle: &'h Arc<Handle>,
    /// By filter of the packet.
    filters: SmallVec<[Result<Granted, Reason>; 1]>,
    added: Added,
    subscriptions: MutexGuard<'h, Subscriptions>,
}

/// A subscription that was granted.
#[derive(Debug)]
pub struct Granted {
    /// The filter, `$share/…` included.
    pub name: Arc<str>,
    /// Whether the session did not have it.
    pub is_new: bool,
    /// Whether the subscription is a shared one.
    pub shared: bool,
    options: SubscribeOptions,
    target: Target,
}

impl Granted {
    /// Whether the subscription is new and not shared: it is owed nothing that is older.
    pub fn is_young(&self) -> bool {
        self.is_new && !self.shared
    }
}

impl Subscribing<'_> {
    /// The subscriptions that were granted.
    pub fn granted(&self) -> impl Iterator<Item = &Granted> {
        self.filters.iter().filter_map(|f| f.as_ref().ok())
    }

    /// The filters of the granted subscriptions, each with true if the session did not have it.
    pub fn routes(&self) -> Vec<(Arc<str>, bool)> {
        self.granted().map(|g| (g.name.clone(), g.is_new)).collect()
    }
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
    /// Subscribes `handle`, if no other node has to know. What retained messages it should get is added to `retained`.
    pub fn subscribe(
        &self,
        handle: &Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> Answered {
        let subscribing = self.begin_subscribe(handle, who, request);
        let mut wanted: SmallVec<[RetainedRequest; 1]> = SmallVec::new();
        let answered = self.finish_subscribe(&subscribing, request, |_| Vec::new(), &mut wanted);
        self.end_subscribe(subscribing);
        retained.extend(wanted.into_iter().filter(|r| is_own(&r.filter) || !self.retained.is_empty()));
        answered
    }

    /// Puts the subscriptions of a SUBSCRIBE that are granted into the router.
    pub fn begin_subscribe<'h>(
        &self,
        handle: &'h Arc<Handle>,
        who: &Identity,
        request: &SubscribeRequest,
    ) -> Subscribing<'h> {
        let id = request.subscription_id;
        let mut added = Added::default();
        let mut subscriptions = handle.subscriptions.lock();
        let mut filters = SmallVec::new();
        for f in &request.filters {
            let granted = f.filter.as_ref().map_err(|reason| *reason).and_then(|filter| {
                let (name, filter) = (filter.text(), filter.filter());
                let options = self.granted(who, &filter, name, f.options, &subscriptions)?;
                let s = subscriber(handle, &filter, name, options, id);
                let target = Broker::target_of(&s);
                let is_new = self.add(&mut subscriptions, &filter, name, s, id, &mut added);
                let (name, shared) = (name.clone(), filter.share.is_some());
                Ok(Granted { name, is_new, shared, options, target })
            });
            filters.push(granted);
        }
        Subscribing { handle, filters, added, subscriptions }
    }

    /// Gives the journal the subscriptions; `older` says what each is younger than. What retained messages the session should get is
    /// added to `retained`.
    pub fn finish_subscribe(
        &self,
        subscribing: &Subscribing<'_>,
        request: &SubscribeRequest,
        older: impl Fn(&Granted) -> Vec<(Incarnation, u64)>,
        retained: &mut impl Extend<RetainedRequest>,
    ) -> Answered {
        let mut answered = Answered::default();
        let handle = subscribing.handle;
        for granted in &subscribing.filters {
            let granted = match granted {
                Ok(granted) => granted,
                Err(reason) => {
                    answered.codes.push(*reason);
                    continue;
                }
            };
            if handle.durable {
                let subscription = SubscriptionRecord {
                    filter: granted.name.clone(),
                    options: granted.options,
                    subscription_id: request.subscription_id,
                    older: older(granted),
                };
                let change = Change::Subscribe { session: handle.no, subscription: &subscription };
                answered.lsn = Some(self.journal.append(&[change]));
            }
            answered.codes.push(match granted.options.qos {
                QoS::AtMostOnce => Reason::Success,
                QoS::AtLeastOnce => Reason::GrantedQoS1,
                QoS::ExactlyOnce => Reason::GrantedQoS2,
            });
            let wanted = match granted.options.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => granted.is_new,
                RetainHandling::DoNotSend => false,
            };
            // No retained messages for shared subscriptions (section 4.8.2).
            if wanted && !granted.shared {
                let (filter, target) = (granted.name.clone(), granted.target.clone());
                let born = self.retained_store(&filter).updates();
                retained.extend([RetainedRequest { filter, target, born }]);
            }
        }
        answered
    }

    /// Unlocks the session's list of subscriptions, and counts the new ones: all that has to be known of them is.
    pub fn end_subscribe(&self, subscribing: Subscribing<'_>) {
        let Subscribing { added, subscriptions, .. } = subscribing;
        drop(subscriptions);
        self.count_added(&added);
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

    /// Unsubscribes `handle` from filters, those aside that were refused already. What it had is added to `gone`.
    pub fn unsubscribe(
        &self,
        handle: &Arc<Handle>,
        filters: &[Result<OwnedFilter, Reason>],
        gone: &mut impl Extend<Arc<str>>,
    ) -> Answered {
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
            drop(subscriptions);
            gone.extend([name.clone()]);
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

    /// Queues, in the journal, the retained messages for a new subscription that a persistent session must not lose. `sent` is told which
    /// update each of them is, if that has a name. Returns when they are durable.
    pub fn queue_retained(
        &self,
        request: &RetainedRequest,
        now: Time,
        sent: impl Fn(MessageId, &Message),
        d: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Option<Lsn> {
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
            let queued = self.send_found(request, f, |message, id| {
                id.into_iter().for_each(|id| sent(id, message));
                self.deliver_one(message, t, true, d, wakes)
            });
            lsn = lsn.max(queued.flatten().flatten());
        }
        lsn
    }

    fn retained_store(&self, filter: &str) -> &Retained {
        if is_own(filter) { &self.own } else { &self.retained }
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

    /// Calls `send` to send a retained message for a new subscription, unless its session has been given something newer. `send` is told
    /// which update it is, if that has a name.
    pub fn send_found<R>(
        &self,
        request: &RetainedRequest,
        found: &Found,
        send: impl FnOnce(&Message, Option<MessageId>) -> R,
    ) -> Option<R> {
        self.retained_store(&request.filter).send(found, request.born, send)
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
