//! The ordered list of rules: the first one that matches decides.

use super::pattern::Pattern;
use crate::config::Network;
use crate::hashing::{HashMap, HashSet};
use crate::mqtt::QoS;
use crate::ports::{Ask, By, Identity, Ruling};

/// Rules of one list.
pub const RULES_MAX: usize = 10_000;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Allows, within limits.
    Allow {
        /// The highest QoS.
        max_qos: QoS,
        /// Whether publishes may be retained.
        retain: bool,
    },
    /// Denies.
    Deny {
        /// Only publishes with RETAIN.
        only_retained: bool,
    },
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Actions {
    /// Publishing.
    pub publish: bool,
    /// Subscribing, and being given messages.
    pub subscribe: bool,
}

/// Whom a rule concerns: each condition that is set must hold. The default is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Who {
    /// The user's name is one of these.
    pub users: Option<HashSet<Box<str>>>,
    /// There is a user name, or there is none.
    pub anonymous: Option<bool>,
    /// The user belongs to one of these groups.
    pub groups: Option<HashSet<Box<str>>>,
    /// The client identifier is one of these, or begins with one of `client_prefixes`.
    pub clients: Option<HashSet<Box<str>>>,
    /// See `clients`.
    pub client_prefixes: Option<Vec<Box<str>>>,
    /// The address is in one of these networks.
    pub addresses: Option<Vec<Network>>,
    /// The client came by one of these listeners.
    pub listeners: Option<HashSet<Box<str>>>,
}

impl Who {
    fn includes(&self, who: &Identity) -> bool {
        let user = who.username.as_deref();
        self.users.as_ref().is_none_or(|users| user.is_some_and(|u| users.contains(u)))
            && self.anonymous.is_none_or(|anonymous| anonymous == user.is_none())
            && self
                .groups
                .as_ref()
                .is_none_or(|groups| who.account.groups.iter().any(|g| groups.contains(&**g)))
            && self.includes_client(&who.client_id)
            && self
                .addresses
                .as_ref()
                .is_none_or(|networks| networks.iter().any(|n| n.contains(who.door.peer.ip())))
            && self.listeners.as_ref().is_none_or(|names| names.contains(&*who.door.listener))
    }

    fn includes_client(&self, client_id: &str) -> bool {
        if self.clients.is_none() && self.client_prefixes.is_none() {
            return true;
        }
        self.clients.as_ref().is_some_and(|names| names.contains(client_id))
            || self.client_prefixes.as_ref().is_some_and(|p| p.iter().any(|p| client_id.starts_with(&**p)))
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// What it does.
    pub effect: Effect,
    /// With what.
    pub actions: Actions,
    /// Topics it is about.
    pub topics: Vec<Pattern>,
    /// For whom.
    pub who: Who,
    /// As the file has it, on one line.
    pub shown: String,
}

impl Rule {
    /// What it says; `None` if it says nothing about this.
    fn ruling(&self, who: &Identity, ask: &Ask<'_>, by: By) -> Option<Ruling> {
        let concerns = if ask.reads() { self.actions.subscribe } else { self.actions.publish };
        let retained = matches!(ask, Ask::Publish { retain: true, .. });
        if !concerns || (matches!(self.effect, Effect::Deny { only_retained: true }) && !retained) {
            return None;
        }
        let about = |p: &Pattern| match ask {
            Ask::Publish { topic, .. } | Ask::Receive { topic } => p.matches(who, topic),
            Ask::Subscribe { filter } => p.covers(who, filter),
        };
        if !self.who.includes(who) || !self.topics.iter().any(about) {
            return None;
        }
        Some(match self.effect {
            Effect::Allow { retain: false, .. } if retained => Ruling::deny(by),
            Effect::Allow { max_qos, .. } => Ruling::allow(max_qos, by),
            Effect::Deny { .. } => Ruling::deny(by),
        })
    }
}

/// The ordered list of rules: the first one that matches decides. Rules for single users and clients are found by name.
#[derive(Debug, Default)]
pub(super) struct List {
    rules: Vec<Rule>,
    by_user: HashMap<Box<str>, Vec<usize>>,
    by_client: HashMap<Box<str>, Vec<usize>>,
    others: Vec<usize>,
}

impl List {
    pub fn new(rules: Vec<Rule>) -> List {
        let mut list = List::default();
        for (at, rule) in rules.iter().enumerate() {
            let who = &rule.who;
            let (index, names) = match (&who.users, &who.clients) {
                (Some(users), _) => (&mut list.by_user, users),
                (None, Some(clients)) if who.client_prefixes.is_none() => (&mut list.by_client, clients),
                _ => {
                    list.others.push(at);
                    continue;
                }
            };
            for name in names {
                index.entry(name.clone()).or_default().push(at);
            }
        }
        list.rules = rules;
        list
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a rule that allows publishing concerns `who`.
    pub fn may_publish_somewhere(&self, who: &Identity) -> bool {
        let allows = |r: &Rule| r.actions.publish && matches!(r.effect, Effect::Allow { .. });
        self.rules.iter().any(|r| allows(r) && r.who.includes(who))
    }

    /// What the first rule that matches says.
    pub fn ruling(&self, who: &Identity, ask: &Ask<'_>) -> Option<Ruling> {
        let of_user = who.username.as_deref().and_then(|name| self.by_user.get(name));
        let of_client = self.by_client.get(&*who.client_id);
        let mut rows = [of_user, of_client, Some(&self.others)].map(|row| row.map_or(&[][..], Vec::as_slice));
        loop {
            let row = rows.iter_mut().filter(|row| !row.is_empty()).min_by_key(|row| row.first().copied())?;
            let (&at, rest) = row.split_first()?;
            *row = rest;
            let by = By::Rule { number: at + 1 };
            if let Some(ruling) = self.rules.get(at).and_then(|rule| rule.ruling(who, ask, by)) {
                return Some(ruling);
            }
        }
    }
}
