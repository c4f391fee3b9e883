//! SUBSCRIBE and UNSUBSCRIBE as the broker carries them out (MQTT 5.0 sections 3.8 to 3.11).

use super::Broker;
use super::handle::{Handle, Subscription};
use super::ports::{Change, Identity, Lsn, SubscriptionRecord};
use super::publish::Scratch;
use super::router::{Subscriber, Target};
use crate::clock::Time;
use crate::mqtt::packet::{RetainHandling, SubscribeOptions};
use crate::mqtt::{Message, QoS, Reason};
use crate::session::{Extra, SubscribeRequest};
use crate::topic::Filter;
use smallvec::SmallVec;
use std::sync::Arc;

/// What became of a SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug, Default)]
pub struct Answered {
    /// One code per filter.
    pub codes: SmallVec<[Reason; 4]>,
    /// When it is safe to say so; `None` = now.
    pub lsn: Option<Lsn>,
}

/// Retained messages to send to a new subscription.
#[derive(Clone, Debug)]
pub struct RetainedRequest {
    /// The filter.
    pub filter: Arc<str>,
    /// QoS, RETAIN and identifiers to send them with.
    pub target: Target,
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
        let mut answered = Answered::default();
        for f in &request.filters {
            let refused = f.refused.or_else(|| self.refuses(handle, who, &f.filter));
            if let Some(reason) = refused {
                answered.codes.push(reason);
                continue;
            }
            let Ok(filter) = Filter::parse(&f.filter) else {
                answered.codes.push(Reason::TopicFilterInvalid);
                continue;
            };
            let s = subscriber(handle, &filter, &f.filter, f.options, request.subscription_id);
            let target = Broker::target_of(&s);
            let is_new = self.add(handle, &f.filter, s, request.subscription_id);
            if handle.durable {
                let subscription = SubscriptionRecord {
                    filter: f.filter.clone(),
                    options: f.options,
                    subscription_id: request.subscription_id,
                };
                let change = Change::Subscribe { session: handle.no, subscription: &subscription };
                answered.lsn = Some(self.journal.append(&[change]));
            }
            answered.codes.push(match f.options.qos {
                QoS::AtMostOnce => Reason::Success,
                QoS::AtLeastOnce => Reason::GrantedQoS1,
                QoS::ExactlyOnce => Reason::GrantedQoS2,
            });
            // No retained messages for shared subscriptions (section 4.8.2).
            let wanted = match f.options.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => is_new,
                RetainHandling::DoNotSend => false,
            };
            if wanted && filter.share.is_none() {
                retained.extend([RetainedRequest { filter: f.filter.clone(), target }]);
            }
        }
        answered
    }

    fn refuses(&self, handle: &Handle, who: &Identity, filter: &str) -> Option<Reason> {
        let parsed = Filter::parse(filter).ok()?;
        if !self.authorizer.subscribe(who, parsed.filter) {
            return Some(Reason::NotAuthorized);
        }
        let subscriptions = handle.subscriptions.lock();
        let full = subscriptions.len() >= self.limits.subscriptions && !subscriptions.contains_key(filter);
        full.then_some(Reason::QuotaExceeded)
    }

    /// Puts a subscription into the router and the session's own list; true if it is new.
    pub(super) fn add(&self, handle: &Handle, name: &Arc<str>, s: Subscriber, id: Option<u32>) -> bool {
        let Ok(filter) = Filter::parse(name) else { return false };
        let subscription = Subscription { options: s.options, id };
        let mut subscriptions = handle.subscriptions.lock();
        let is_new = subscriptions.insert(name.clone(), subscription).is_none();
        self.router.subscribe(&filter, name, s);
        if is_new {
            self.metrics.subscriptions_active.add(1);
            self.metrics.shared_subscriptions.add(u64::from(filter.share.is_some()));
        }
        is_new
    }

    /// Unsubscribes `handle`; `None` stands for a filter that is not valid.
    pub fn unsubscribe(&self, handle: &Arc<Handle>, filters: &[Option<Arc<str>>]) -> Answered {
        let mut answered = Answered::default();
        for name in filters {
            let Some((name, filter)) = name.as_ref().and_then(|n| Some((n, Filter::parse(n).ok()?))) else {
                answered.codes.push(Reason::TopicFilterInvalid);
                continue;
            };
            let mut subscriptions = handle.subscriptions.lock();
            if subscriptions.remove(name).is_none() {
                answered.codes.push(Reason::NoSubscriptionExisted);
                continue;
            }
            self.router.unsubscribe(&filter, name, handle.no);
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

    /// Retained messages for a new subscription. Those that a persistent session must not lose are queued here, in the
    /// journal; the others are returned, for the connection to send as the client takes them.
    pub fn retained_for(
        &self,
        request: &RetainedRequest,
        now: Time,
        scratch: &mut Scratch,
    ) -> Vec<Message> {
        let mut found = self.retained.matching(&request.filter, now);
        let t = &request.target;
        if t.handle.durable && t.qos > QoS::AtMostOnce {
            found.retain(|m| {
                let journaled = m.qos() > QoS::AtMostOnce;
                if journaled {
                    self.deliver_one(m, t, true, scratch);
                }
                !journaled
            });
        }
        found
    }
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
