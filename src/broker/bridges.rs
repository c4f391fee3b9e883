//! What bridges say of themselves: mosquitto tells the broker that a bridge connects to whether it is there, as retained
//! messages and a will on `$SYS/broker/connection/<name>/state`.
//!
//! An MQTT 5 bridge is not told from other clients, so any client may say it. Such a message goes where others go, in a cluster to
//! other nodes too. What is retained of it is kept in memory with the rest of `$SYS`, by the node that the bridge is connected to.

use super::Broker;
use super::retain::Updated;
use super::retained::Forbidden;
use crate::hashing::HashMap;
use crate::mqtt::Message;
use crate::names::shown;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// States that are kept. One more takes the place of the one that was told longest ago.
const BRIDGE_STATES_MAX: usize = 1_024;

/// Bytes of topic, payload and properties of a state that is kept.
const BRIDGE_STATE_BYTES_MAX: usize = 1_024;

/// Whether a topic is for the state of a bridge. Its name is a client identifier, and may have several levels.
pub(super) fn is_state(topic: &str) -> bool {
    let name = topic.strip_prefix("$SYS/broker/connection/").and_then(|rest| rest.strip_suffix("/state"));
    name.is_some_and(|name| !name.is_empty())
}

/// Whether what a message says about a bridge may be retained.
///
/// # Errors
/// The state is larger than [`BRIDGE_STATE_BYTES_MAX`].
pub(super) fn admits(state: &Message) -> Result<(), Forbidden> {
    let size = state.topic().len() + state.payload().len() + state.properties().len();
    if state.payload().is_empty() || size <= BRIDGE_STATE_BYTES_MAX {
        return Ok(());
    }
    Err(Forbidden::BridgeState { max: BRIDGE_STATE_BYTES_MAX, size })
}

/// The topics of states that are kept, in the order in which they were told.
#[derive(Debug, Default)]
struct Told {
    next: u64,
    numbers: HashMap<Arc<str>, u64>,
    topics: BTreeMap<u64, Arc<str>>,
    /// The log has said that more than [`BRIDGE_STATES_MAX`] states were told.
    full: bool,
}

impl Told {
    /// Takes a topic that was told just now; the one that has to go for it.
    fn tell(&mut self, topic: &str) -> Option<Arc<str>> {
        self.forget(topic);
        let topic: Arc<str> = Arc::from(topic);
        self.numbers.insert(topic.clone(), self.next);
        self.topics.insert(self.next, topic);
        self.next += 1;
        if self.topics.len() <= BRIDGE_STATES_MAX {
            self.full &= self.topics.len() == BRIDGE_STATES_MAX;
            return None;
        }
        let (_, oldest) = self.topics.pop_first()?;
        self.numbers.remove(&oldest);
        Some(oldest)
    }

    fn forget(&mut self, topic: &str) {
        if let Some(number) = self.numbers.remove(topic) {
            self.topics.remove(&number);
        }
    }
}

/// The states that bridges have told of themselves, and which of them were told last.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    told: Mutex<Told>,
}

impl Broker {
    /// Keeps what is retained about a bridge; an empty payload clears it. `told`: whoever publishes it can be told that it is
    /// refused.
    ///
    /// # Errors
    /// The state is too large, and the publisher can be told so. If it cannot be told, the older state of the bridge is cleared instead.
    pub fn keep_bridge_state(&self, state: &Message, told: bool) -> Result<Updated, Forbidden> {
        let topic = state.topic();
        let forbidden = admits(state).err();
        if let Some(why) = forbidden.filter(|_| told) {
            return Err(why);
        }
        let mut told = self.bridges.told.lock();
        if state.payload().is_empty() || forbidden.is_some() {
            told.forget(topic);
            self.own.clear(topic, || ());
            return Ok(Updated { forbidden, ..Updated::default() });
        }
        self.own.set(state, || ());
        if let Some(oldest) = told.tell(topic) {
            self.own.clear(&oldest, || ());
            if !std::mem::replace(&mut told.full, true) {
                let limit = BRIDGE_STATES_MAX;
                tracing::warn!(
                    forgotten = %shown(&oldest),
                    limit,
                    "too many states of bridges: the oldest ones are forgotten (BRIDGE_STATES_MAX)"
                );
            }
        }
        Ok(Updated::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::message::Parts;

    #[test]
    fn only_topics_of_one_shape_tell_the_state_of_a_bridge() {
        for topic in ["host.b", "b", "a/b", "/", "state", "state/state", "x/state/y", "漢"] {
            assert!(is_state(&format!("$SYS/broker/connection/{topic}/state")), "{topic}");
        }
        for topic in [
            "$SYS/broker/connection//state",
            "$SYS/broker/connection/state",
            "$SYS/broker/connection/b",
            "$SYS/broker/connection/b/state/",
            "$SYS/broker/connection/b/State",
            "$SYS/broker/connection/b/restate",
            "$SYS/broker/connections/b/state",
            "$SYS/broker/version",
            "$SYS/broker/x/connection/b/state",
            "$SYS/cluster/connection/b/state",
            "x/$SYS/broker/connection/b/state",
            "$sys/broker/connection/b/state",
        ] {
            assert!(!is_state(topic), "{topic}");
        }
    }

    #[test]
    fn the_state_that_was_told_longest_ago_goes() {
        let mut told = Told::default();
        let topic = |n: usize| format!("$SYS/broker/connection/{n}/state");
        for n in 0..BRIDGE_STATES_MAX {
            assert_eq!(told.tell(&topic(n)), None);
        }
        assert_eq!(told.tell(&topic(0)), None, "it is there already");
        told.forget(&topic(1));
        assert_eq!(told.tell("new"), None, "there is room again");
        assert_eq!(told.tell("one more").as_deref(), Some(&*topic(2)));
        assert_eq!(told.tell("another").as_deref(), Some(&*topic(3)));
        assert_eq!((told.topics.len(), told.numbers.len()), (BRIDGE_STATES_MAX, BRIDGE_STATES_MAX));
        assert!(told.numbers.contains_key(&*topic(0)) && !told.numbers.contains_key(&*topic(2)));
    }

    #[test]
    fn a_state_that_is_retained_is_small() {
        let admitted = |payload: usize, properties: usize| {
            let (payload, properties) = (vec![b'x'; payload], vec![0; properties]);
            let qos = crate::mqtt::QoS::AtLeastOnce;
            let parts = Parts {
                topic: "t",
                payload: &payload,
                properties: &properties,
                qos,
                retain: true,
                expires_at: None,
            };
            admits(&Message::new(parts)).is_ok()
        };
        assert!(admitted(1, 0) && admitted(1_000, 23));
        assert!(!admitted(1_000, 24) && !admitted(1_024, 0));
        assert!(admitted(0, 70_000), "nothing is kept of it");
    }
}
