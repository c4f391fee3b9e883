//! What a client may do, and what it would lose, as an operator asks.

use super::LISTED_MAX;
use crate::broker::handle::Handle;
use crate::broker::rights::published_by_clients;
use crate::node::Node;
use crate::ports::{Account, Ask, By, Door, Identity, Permissions, Ruling};
use crate::topic::{Filter, TopicError, validate_name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Filters of one session that are named; more are counted.
const FILTERS_NAMED: usize = 10;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Publish to a topic.
    Publish,
    /// Subscribe to a filter.
    Subscribe,
    /// Be given a message.
    Receive,
}

/// Whether a client may do something. What is not said is as it is known of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Client identifier.
    pub client: String,
    /// What it wants to do.
    pub action: Action,
    /// The topic, or the filter of a subscription.
    pub topic: String,
    /// With this QoS.
    #[serde(default)]
    pub qos: u8,
    /// With RETAIN.
    #[serde(default)]
    pub retain: bool,
    /// As this user.
    #[serde(default)]
    pub user: Option<String>,
    /// As a member of these groups.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
    /// From this address.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// By this listener.
    #[serde(default)]
    pub listener: Option<String>,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Judged {
    /// Client identifier.
    pub client: String,
    /// Whether the client is, or was, connected to the node that answers; else only what was asked is known of it.
    pub known: bool,
    /// The node that answers; empty if it is alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// As which user it is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As a member of which groups.
    pub groups: Vec<String>,
    /// From which address; missing if none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// By which listener.
    pub listener: String,
    /// Whether it may.
    pub allowed: bool,
    /// The highest QoS; missing if nothing is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_qos: Option<u8>,
    /// What decided.
    #[serde(flatten)]
    pub by: By,
    /// The same in words.
    pub why: String,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// What a session would lose by other rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Losing {
    /// Client identifier.
    pub client: String,
    /// Its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it is connected.
    pub connected: bool,
    /// Subscriptions that would deliver nothing any more, some of them.
    pub filters: Vec<String>,
    /// How many there are.
    pub filters_total: usize,
    /// Whether no rule would allow it to publish.
    pub publishes_nothing: bool,
}

impl Question {
    /// Checks the topic or filter.
    ///
    /// # Errors
    /// If it is none.
    pub fn check(&self) -> Result<(), TopicError> {
        match self.action {
            Action::Subscribe => Filter::parse(&self.topic).map(|_| ()),
            Action::Publish | Action::Receive => validate_name(&self.topic),
        }
    }

    fn ask(&self) -> Ask<'_> {
        let topic = &*self.topic;
        match self.action {
            Action::Publish => Ask::Publish { topic, retain: self.retain },
            Action::Subscribe => Ask::Subscribe { filter: Filter::parse(topic).map_or(topic, |f| f.filter) },
            Action::Receive => Ask::Receive { topic },
        }
    }

    fn identity(&self, known: Option<&Identity>) -> Identity {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let door = known.map_or_else(|| Door::tcp(nowhere), |who| who.door.clone());
        let peer = self.address.map_or(door.peer, |ip| SocketAddr::from((ip, 0)));
        let listener = self.listener.as_deref().map_or_else(|| door.listener.clone(), Arc::from);
        let mut account = known.map_or_else(Account::default, |who| (*who.account).clone());
        if let Some(user) = &self.user {
            account.user = Some(user.as_str().into());
        }
        if let Some(groups) = &self.groups {
            account.groups = groups.iter().map(|g| Arc::from(&**g)).collect();
        }
        Identity {
            client_id: Arc::from(&*self.client),
            username: account.user.clone(),
            account: Arc::new(account),
            door: Arc::new(Door { listener, peer, certificate: door.certificate.clone() }),
        }
    }
}

impl Node {
    /// Answers a question from what this node knows of the client; `None` if it knows nothing of it.
    pub fn judge_here(&self, question: &Question) -> Option<Judged> {
        let known = self.broker.session(&question.client).and_then(|h| h.rights.who())?;
        Some(self.judge_as(question, Some(&known)))
    }

    /// Answers a question about a client of which `known` is known.
    pub fn judge_as(&self, question: &Question, known: Option<&Identity>) -> Judged {
        let who = question.identity(known);
        let ruling = match question.action {
            Action::Publish if !published_by_clients(&question.topic) => Ruling::deny(By::Broker),
            _ => self.broker.permissions.ruling(&who, &question.ask()),
        };
        let enough = |max| question.action == Action::Subscribe || question.qos <= max as u8;
        let mut why = ruling.by.to_string();
        if ruling.max_qos.is_some_and(|max| !enough(max)) {
            why += &format!(", which allows QoS {} at most", ruling.max_qos.map_or(0, |q| q as u8));
        }
        let address = who.door.peer.ip().to_canonical();
        Judged {
            client: question.client.clone(),
            known: known.is_some(),
            node: self.remote().map(|r| r.me.node.to_string()).unwrap_or_default(),
            user: who.username.as_deref().map(str::to_owned),
            groups: who.account.groups.iter().map(|g| g.to_string()).collect(),
            address: Some(address).filter(|a| !a.is_unspecified()),
            listener: who.door.listener.to_string(),
            allowed: ruling.max_qos.is_some_and(enough),
            max_qos: ruling.max_qos.map(|q| q as u8),
            rule: self.broker.permissions.shown(&ruling.by),
            by: ruling.by,
            why,
        }
    }

    /// The sessions that would lose subscriptions if `next` decided, or could not publish any more by what `publishes` says; at most
    /// [`LISTED_MAX`], and how many there are.
    pub fn losing(
        &self,
        next: &dyn Permissions,
        publishes: impl Fn(&Identity) -> bool,
    ) -> (Vec<Losing>, usize) {
        let (mut losing, mut total) = (Vec::new(), 0);
        self.broker.registry.for_each(|handle| {
            let Some(loses) = self.loses(handle, next, &publishes) else { return };
            total += 1;
            if losing.len() < LISTED_MAX {
                losing.push(loses);
            }
        });
        losing.sort_by(|a: &Losing, b| a.client.cmp(&b.client));
        (losing, total)
    }

    fn loses(
        &self,
        handle: &Handle,
        next: &dyn Permissions,
        publishes: &impl Fn(&Identity) -> bool,
    ) -> Option<Losing> {
        let nobody = Question {
            client: handle.client_id.to_string(),
            action: Action::Receive,
            topic: String::new(),
            qos: 0,
            retain: false,
            user: None,
            groups: None,
            address: None,
            listener: None,
        };
        let who = nobody.identity(handle.rights.who().as_deref());
        let denied = |by: &dyn Permissions, name: &str| {
            Filter::parse(name)
                .is_ok_and(|f| by.ruling(&who, &Ask::Subscribe { filter: f.filter }).max_qos.is_none())
        };
        let mut filters: Vec<String> = handle
            .subscriptions
            .lock()
            .keys()
            .filter(|name| denied(next, name) && !denied(&*self.broker.permissions, name))
            .map(|name| name.to_string())
            .collect();
        let publishes_nothing = !publishes(&who);
        if filters.is_empty() && !publishes_nothing {
            return None;
        }
        let filters_total = filters.len();
        filters.sort();
        filters.truncate(FILTERS_NAMED);
        Some(Losing {
            client: nobody.client,
            user: who.username.as_deref().map(str::to_owned),
            connected: handle.mailbox.online(),
            filters,
            filters_total,
            publishes_nothing,
        })
    }
}
