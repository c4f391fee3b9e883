//! What clients may do, as the broker asks and remembers it: each session keeps what was decided of its topics lately, for as long
//! as the rules are the same. While nothing is restricted nobody is asked.

use super::handle::Handle;
use super::router::{Group, Subscriber};
use super::{Broker, bridges, retain};
use crate::hashing::HashMap;
use crate::mqtt::{Message, QoS};
use crate::names::shown;
use crate::ports::{AccessClaims, Account, Ask, Door, Identity};
use crate::session::{Delivery, Loss};
use crate::telemetry::metrics::Denied;
use crate::user::{Author, SessionUser};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;

/// Decisions that a session remembers of publishing, and as many of receiving; at the limit they are forgotten.
pub const DECISIONS_MAX: usize = 256;

/// Bytes of a topic up to which a decision about it is remembered.
pub const DECIDED_TOPIC_BYTES_MAX: usize = 256;

/// The highest QoS of each kind of message on a topic; `None` = denied.
type Limit = Option<QoS>;

/// Who a session's client is, and what was decided of its topics lately.
#[derive(Debug, Default)]
pub struct Rights(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The session's client, connected or not; `None` = it has not been here since this process has the session.
    who: Option<Arc<Identity>>,
    /// The client that has left the session's will, as far as rules ask about it, if the session came here without its client.
    author: Option<Arc<Identity>>,
    /// Of the rules by which was decided.
    version: u64,
    receive: Decisions<Limit>,
    /// Of publishes without RETAIN, and with it.
    publish: Decisions<[Limit; 2]>,
}

#[derive(Debug)]
struct Decisions<T>(HashMap<Box<str>, T>);

impl<T> Default for Decisions<T> {
    fn default() -> Decisions<T> {
        Decisions(HashMap::default())
    }
}

impl<T: Copy> Decisions<T> {
    fn of(&mut self, topic: &str, decide: impl FnOnce() -> T) -> T {
        if let Some(decision) = self.0.get(topic) {
            return *decision;
        }
        let decision = decide();
        if topic.len() <= DECIDED_TOPIC_BYTES_MAX {
            if self.0.len() >= DECISIONS_MAX {
                self.0.clear();
            }
            self.0.insert(topic.into(), decision);
        }
        decision
    }
}

impl Rights {
    /// Takes note that the session's client is `who` from now on.
    pub fn set_who(&self, who: Arc<Identity>) {
        *self.0.lock() = Inner { who: Some(who), ..Inner::default() };
    }

    /// The session came here with a will of `author`.
    fn set_author(&self, author: Identity) {
        self.0.lock().author = Some(Arc::new(author));
    }

    /// The client that has left the session's will; `None` = not known.
    fn author(&self) -> Option<Arc<Identity>> {
        let inner = self.0.lock();
        inner.who.clone().or_else(|| inner.author.clone())
    }

    /// The session's client, connected or not; `None` = it has not been here since this process has the session.
    pub fn who(&self) -> Option<Arc<Identity>> {
        self.0.lock().who.clone()
    }
}

impl Handle {
    /// The session came here, from the journal or another node, with a will that `author` has left.
    pub fn knows_author(&self, author: Option<&Author>) {
        let Some((author, address)) = author.and_then(|a| Some((a, a.address.parse().ok()?))) else { return };
        let user = match self.user() {
            SessionUser::Named(name) => Some(name),
            SessionUser::Anonymous | SessionUser::Unknown => None,
        };
        let claims = author.publish.as_ref().map(|publish| {
            Box::new(AccessClaims { publish: Some(publish.to_vec()), ..AccessClaims::default() })
        });
        self.rights.set_author(Identity {
            client_id: self.client_id.clone(),
            username: user.clone(),
            door: Arc::new(Door {
                listener: author.listener.clone(),
                peer: SocketAddr::new(address, 0),
                certificate: None,
            }),
            account: Arc::new(Account { user, groups: author.groups.clone(), claims, ..Account::default() }),
        });
    }
}

/// What is kept of a client with its will.
pub fn author_of(who: &Identity) -> Author {
    Author {
        listener: who.door.listener.clone(),
        address: who.door.peer.ip().to_string().into(),
        groups: who.account.groups.clone(),
        publish: who.account.claims.as_ref().and_then(|claims| claims.publish.as_deref().map(Into::into)),
    }
}

impl Inner {
    /// Whether anything is restricted for the client. What was decided by other rules is forgotten.
    fn restricted(&mut self, broker: &Broker) -> bool {
        let Some(who) = &self.who else { return false };
        let version = broker.permissions.version(who);
        if version != self.version {
            let (who, author) = (self.who.take(), self.author.take());
            *self = Inner { who, author, version, ..Inner::default() };
        }
        version > 0
    }
}

impl Broker {
    /// Whether decisions about `who` have to be asked for, and since which change of the rules; 0 = it may do everything.
    pub fn restricted(&self, who: &Identity) -> u64 {
        self.permissions.version(who)
    }

    /// The highest QoS at which the client of a session may be given a message on `topic`; `None` = it may not. A client that has
    /// not been here is not known: it is judged when it comes.
    pub fn may_receive(&self, handle: &Handle, topic: &str) -> Limit {
        if !self.permissions.restricts() {
            return Some(QoS::ExactlyOnce);
        }
        let mut rights = handle.rights.0.lock();
        let restricted = rights.restricted(self);
        let Inner { who: Some(who), receive, .. } = &mut *rights else { return Some(QoS::ExactlyOnce) };
        if !restricted {
            return Some(QoS::ExactlyOnce);
        }
        let who: &Identity = who;
        receive.of(topic, || self.permissions.ruling(who, &Ask::Receive { topic }).max_qos)
    }

    /// Whether the client of a session may publish `message`.
    pub fn may_publish(&self, handle: &Handle, message: &Message) -> bool {
        let topic = message.topic();
        if !published_by_clients(topic) {
            return false;
        }
        if !self.permissions.restricts() {
            return true;
        }
        let mut rights = handle.rights.0.lock();
        let restricted = rights.restricted(self);
        let Inner { who: Some(who), publish, .. } = &mut *rights else { return true };
        if !restricted {
            return true;
        }
        let who: &Identity = who;
        let limits = publish.of(topic, || {
            [false, true].map(|retain| self.permissions.ruling(who, &Ask::Publish { topic, retain }).max_qos)
        });
        limits[usize::from(message.retain())].is_some_and(|max| message.qos() <= max)
    }

    /// Whether a client may have `message` as its will.
    pub fn may_leave(&self, who: &Identity, message: &Message) -> bool {
        let ask = Ask::Publish { topic: message.topic(), retain: message.retain() };
        let may = published_by_clients(message.topic())
            && self.permissions.ruling(who, &ask).max_qos.is_some_and(|max| message.qos() <= max);
        if !may {
            self.metrics.denied.of(Denied::Will).inc();
        }
        may
    }

    /// Whether a will may be published now; counts and tells if not. Of a will that a release left which did not keep its author
    /// nothing is known but that it was allowed when its client connected.
    pub fn will_is_due(&self, handle: &Handle, message: &Message) -> bool {
        let may = handle.rights.author().is_none_or(|who| self.may_leave(&who, message));
        if !may {
            self.metrics.lost(handle.whose(), Loss::NotAuthorized, 1);
            tracing::info!(client = %shown(&handle.client_id), topic = %shown(message.topic()), "will not published: its client may not publish there any more");
        }
        may
    }

    /// The highest QoS of a subscription; `None` = it is denied, and counted.
    pub fn may_subscribe(&self, who: &Identity, filter: &str) -> Limit {
        if self.restricted(who) == 0 {
            return Some(QoS::ExactlyOnce);
        }
        let max = self.permissions.ruling(who, &Ask::Subscribe { filter }).max_qos;
        if max.is_none() {
            self.metrics.denied.of(Denied::Subscribe).inc();
        }
        max
    }

    /// The member of a shared subscription that takes the next message, among those that may be given it.
    pub fn pick(&self, group: &Group, except: u64, topic: &str) -> Option<Subscriber> {
        if !self.permissions.restricts() {
            return group.pick(except);
        }
        group.pick_among(except, |m| self.may_receive(&m.handle, topic).is_some())
    }

    /// Counts a message for a shared subscription which none of its members may be given.
    pub fn nobody_may(&self, group: &Group) {
        if !group.is_empty() && self.permissions.restricts() {
            self.metrics.denied.of(Denied::Deliver).inc();
            self.metrics.lost(self.metrics.losses.shared(), Loss::NotAllowed, 1);
        }
    }

    /// Counts a message that the client of a session may not be given.
    pub fn not_allowed(&self, handle: &Handle) {
        self.metrics.denied.of(Denied::Deliver).inc();
        self.metrics.lost(handle.whose(), Loss::NotAllowed, 1);
    }

    /// A delivery whose client may be restricted, at the QoS that it may have. `begun`: it was sent before.
    ///
    /// # Errors
    /// Its client may not have it: it is counted, and to be handed on.
    pub fn permitted(
        &self,
        handle: &Handle,
        mut d: Delivery,
        begun: bool,
    ) -> Result<Delivery, Box<Delivery>> {
        match self.may_receive(handle, d.message.topic()) {
            // A packet identifier is in use: the exchange is brought to its end.
            Some(max) if begun => d.qos = d.qos.min(max.max(QoS::AtLeastOnce)),
            Some(max) => d.qos = d.qos.min(max),
            None => {
                self.metrics.denied.of(Denied::Deliver).inc();
                return Err(Box::new(d));
            }
        }
        Ok(d)
    }
}

/// Whether clients may publish to a topic at all: what is below `$SYS` is the broker's, but for what bridges say of themselves.
pub fn published_by_clients(topic: &str) -> bool {
    !retain::is_own(topic) || bridges::is_state(topic)
}
