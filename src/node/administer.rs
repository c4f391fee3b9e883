//! What an operator does to the sessions and topics of this node: ends sessions that nobody uses, publishes.

use super::Node;
use super::inspect::{LISTED_MAX, listed};
use crate::broker::delivery::{Publishing, Scratch};
use crate::broker::handle::Handle;
use crate::broker::promise::Kept;
use crate::broker::retain::is_own;
use crate::clock::Time;
use crate::cluster::{Cache, Remote};
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::names::shown;
use crate::ports::durable;
use crate::session::Failure;
use crate::topic::validate_name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Which sessions to end: of those that nobody is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// What their client identifiers match: `*` stands for any characters, `?` for one.
    pub pattern: String,
    /// For how long their clients have been away at least, seconds.
    pub offline_seconds: u64,
}

/// Sessions that are, or would be, ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Purged {
    /// Client identifiers of the first of them, in their order.
    pub clients: Vec<String>,
    /// How many there are.
    pub total: usize,
    /// How many match and have a client that is connected: they are left alone.
    pub connected: usize,
    /// How many were ended.
    pub ended: usize,
}

/// Why an operator's message is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It can never be.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be now.
    #[error("{0}")]
    Refused(String),
}

impl From<Failure> for PublishError {
    fn from(failure: Failure) -> PublishError {
        let why = failure.why.map_or_else(String::new, |why| format!(": {why}"));
        PublishError::Refused(format!("the message is refused with {:?}{why}", failure.reason))
    }
}

/// Whether `text` matches a pattern in which `*` stands for any characters and `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star is, and what it stands for so far ends.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, end)) = star else { return false };
                star = Some((at, end + 1));
                p = at + 1;
                t = end + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

impl Node {
    /// The sessions of this node that `which` is about; with `really` they are ended, with their queues and subscriptions, and their wills
    /// are published. Looks at all sessions: not for a thread that serves clients.
    ///
    /// # Errors
    /// If this node does not know enough of its cluster to say which sessions are its own.
    pub fn purge_sessions(&self, which: &Purge, really: bool, now: Time) -> Result<Purged, String> {
        if really
            && let Some(remote) = self.remote()
            && !remote.is_fresh(remote.now())
        {
            return Err(
                "what this node knows of its cluster is too old: its sessions may be another's by now"
                    .to_owned(),
            );
        }
        let (mut purged, mut first, mut found) = (Purged::default(), BTreeSet::new(), Vec::new());
        self.broker.registry.for_each(|handle| {
            if !matches(&which.pattern, &handle.client_id) {
                return;
            }
            purged.connected += usize::from(handle.mailbox.online());
            if !self.is_away(handle, which, now) {
                return;
            }
            purged.total += 1;
            first.insert(handle.client_id.clone());
            if first.len() > LISTED_MAX {
                first.pop_last();
            }
            if really {
                found.push(handle.clone());
            }
        });
        let room = listed(first.iter().map(|id| id.len()));
        purged.clients = first.iter().take(room).map(ToString::to_string).collect();
        purged.ended = found.iter().filter(|handle| self.end_away(handle, which, now)).count();
        Ok(purged)
    }

    /// Whether a session has no connection, and has had none for as long as asked.
    fn is_away(&self, handle: &Handle, which: &Purge, now: Time) -> bool {
        let least = which.offline_seconds.saturating_mul(1000);
        handle
            .mailbox
            .parked(|s| s.detached_at().map_or(0, |at| now.since_ms(at)))
            .is_some_and(|away| away >= least)
    }

    /// Ends a session, unless its client has come back or another node has it by now.
    fn end_away(&self, handle: &Arc<Handle>, which: &Purge, now: Time) -> bool {
        let evicted = |r: &Arc<Remote>| r.sessions.being_evicted(&handle.client_id, handle.epoch());
        if self.remote().is_some_and(evicted) || !self.is_away(handle, which, now) {
            return false;
        }
        let Some(mut session) = handle.mailbox.check_out() else { return false };
        self.broker.count_woken();
        self.endings().end_dormant(handle, &mut session, now, &mut Scratch::default());
        tracing::debug!(client = %shown(&handle.client_id), "an operator ended a session");
        true
    }

    /// Publishes a message that no client has sent. Completes once it is as safe as its QoS promises; says whether there was a subscription
    /// that matched.
    ///
    /// # Errors
    /// If it cannot be published, and why.
    pub async fn publish_as_operator(
        &self,
        topic: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
        now: Time,
    ) -> Result<bool, PublishError> {
        let invalid =
            |why: &dyn std::fmt::Display| PublishError::Invalid(format!("\"{}\" {why}", shown(topic)));
        validate_name(topic).map_err(|e| invalid(&format!("is not a topic name: {e}")))?;
        if is_own(topic) {
            return Err(invalid(&"is the broker's own: nobody else publishes below $SYS"));
        }
        let max = self.broker.limits.session().maximum_packet_size as usize;
        if topic.len() + payload.len() > max {
            let why = format!("and its payload have more than the {max} bytes of limits.max_packet_size");
            return Err(invalid(&why));
        }
        let parts = Parts { topic, payload, properties: &[], qos, retain, expires_at: None };
        let message = Message::new(parts);
        let routed = {
            let (mut cache, mut scratch) = (Cache::default(), Scratch::default());
            self.publish(&message, &Publishing::default(), now, &mut cache, &mut scratch)?
        };
        let (mut lsn, mut matched) = (routed.lsn.unwrap_or(0), routed.matched);
        if let Some(promise) = routed.promise {
            promise.when_kept().await;
            match promise.kept() {
                Some(Kept::Failed(reason)) => return Err(PublishError::from(Failure::from(reason))),
                Some(Kept::Done { matched: there }) => matched |= there,
                None => {}
            }
            lsn = lsn.max(promise.lsn());
        }
        durable(self.broker.journal.clone(), lsn).await;
        Ok(matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*a", "bab", false),
            ("*a*b", "xaxaxb", true),
            ("*ab*", "aab", true),
            ("?", "ü", true),
            ("?", "", false),
            ("??*", "a", false),
            ("sensor-?/*/t", "sensor-7/a/b/t", true),
            ("A", "a", false),
            ("***", "x", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // Not in a time that grows with every star.
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
    }
}
