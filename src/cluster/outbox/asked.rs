//! What nodes are asked to do with a publish, and the shared subscriptions that nobody has served yet. Pure.

use crate::ports::{GroupTry, MemberId, Revision, Unserved};
use smallvec::SmallVec;
use std::sync::Arc;

/// What a node is asked to do with a publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Give it to its own subscribers.
    pub direct: bool,
    /// Serve these shared subscriptions.
    pub groups: SmallVec<[GroupTry; 1]>,
}

impl Asked {
    /// Whether the node is asked nothing.
    pub(super) fn is_empty(&self) -> bool {
        !self.direct && self.groups.is_empty()
    }

    /// Whether the node is asked to serve a shared subscription.
    pub(super) fn has(&self, name: &str) -> bool {
        self.groups.iter().any(|g| *g.name == *name)
    }

    /// Adds `more` to what the node is asked.
    pub(super) fn add(&mut self, more: Asked) {
        self.direct |= more.direct;
        for g in more.groups {
            self.groups.retain(|old| old.name != g.name);
            self.groups.push(g);
        }
    }
}

/// A shared subscription that has not been served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenGroup {
    /// `$share/<group>/<filter>`.
    pub name: Arc<str>,
    /// Nodes without a member online, this one included.
    pub tried: SmallVec<[Arc<str>; 2]>,
    /// The node that is asked now.
    pub at: Option<Arc<str>>,
    /// Whether the node is asked to queue the message for a persistent member.
    pub queue: bool,
    /// Whether the node cannot be asked: it is waited for.
    pub away: bool,
    /// Nodes without a persistent member to queue it for, and the revision of the index at which each was asked: a member may have
    /// come there since.
    pub without: SmallVec<[(Arc<str>, Revision); 2]>,
    /// At QoS 2: the process that was asked. It may have served the subscription, so nobody else is asked before it has said that it has
    /// not, or whoever speaks for it has.
    pub process: Option<MemberId>,
    /// The process is asked as soon as the journal has it that it is asked.
    pub unnoted: bool,
    /// The journal has it that the process is asked, and it has not been asked yet.
    pub unasked: bool,
}

impl OpenGroup {
    /// A shared subscription that nobody was asked to serve.
    pub fn new(name: Arc<str>) -> OpenGroup {
        OpenGroup {
            name,
            tried: SmallVec::new(),
            at: None,
            queue: false,
            away: false,
            without: SmallVec::new(),
            process: None,
            unnoted: false,
            unasked: false,
        }
    }

    /// A shared subscription as the journal has it with the duty of a QoS 2 publish.
    pub fn of_duty(unserved: Unserved) -> OpenGroup {
        let at = unserved.asked.as_ref().map(|process| process.node.clone());
        OpenGroup { at, process: unserved.asked, ..OpenGroup::new(unserved.name) }
    }

    /// What the journal has to know of the subscription.
    pub fn unserved(&self) -> Unserved {
        Unserved { name: self.name.clone(), asked: self.process.clone() }
    }

    /// What to ask a node to do for the subscription.
    pub fn ask(&self) -> GroupTry {
        GroupTry { name: self.name.clone(), queue: self.queue, tried: self.tried.to_vec() }
    }

    /// Takes note that a node which was asked at revision `at` of the index has nobody for the subscription; `queue`: not even a persistent
    /// member.
    pub fn declined_by(&mut self, node: &Arc<str>, queue: bool, at: Revision) {
        if self.at.as_ref() == Some(node) {
            self.open_again();
        }
        if queue {
            self.without.retain(|(without, _)| without != node);
            self.without.push((node.clone(), at));
        } else if !self.tried.contains(node) {
            self.tried.push(node.clone());
        }
    }

    /// What the subscription waits for, in words.
    pub(super) fn in_words(&self) -> String {
        let OpenGroup { name, at, queue, away, process, unnoted, unasked, .. } = self;
        let process = process.as_ref().map(ToString::to_string);
        format!(
            "for a member of {name} (at {at:?}, process {process:?}, queue {queue}, away {away}, unnoted {unnoted}, unasked {unasked})"
        )
    }

    /// Forgets who was asked: another one is to be chosen.
    pub fn open_again(&mut self) {
        (self.at, self.queue, self.away) = (None, false, false);
        (self.process, self.unnoted, self.unasked) = (None, false, false);
    }

    /// Forgets who has declined: somebody has moved, so who had no member before may have one now.
    pub(super) fn begin_anew(&mut self) {
        self.tried.clear();
        self.without.clear();
    }
}
