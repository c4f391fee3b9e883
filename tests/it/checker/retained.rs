//! Retained messages: a new subscription is sent the last one that was acknowledged on its topic, or a later one. Every topic
//! has one publisher and one QoS, as order holds only so far: what is sent again at QoS 1 is a new message to the broker.

use super::{ClientNo, Event, Msg};
use std::collections::BTreeMap;

/// Every so many retained messages one is empty: it clears the topic.
const CLEARING: u32 = 4;

impl Msg {
    /// Whether the message, one that is to be retained, leaves nothing behind.
    pub fn clears(&self) -> bool {
        self.n.is_multiple_of(CLEARING)
    }
}

/// Numbers on the topic of one client at one QoS.
#[derive(Debug, Default)]
struct Topic {
    sent: u32,
    acked: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Retained(BTreeMap<(ClientNo, u8), Topic>);

impl Retained {
    pub(super) fn on(&mut self, event: &Event) -> Vec<String> {
        match event {
            Event::Sent(msg) if msg.retain => {
                let topic = self.0.entry((msg.from, msg.qos)).or_default();
                topic.sent = topic.sent.max(msg.n);
            }
            Event::Acked(msg) if msg.retain => {
                let topic = self.0.entry((msg.from, msg.qos)).or_default();
                topic.acked = topic.acked.max(msg.n);
            }
            Event::Looked { found } => return self.look(found),
            _ => {}
        }
        Vec::new()
    }

    fn look(&self, found: &[Msg]) -> Vec<String> {
        let mut broken = Vec::new();
        for ((from, qos), topic) in &self.0 {
            let Topic { sent, acked } = topic;
            let mut of_it = found.iter().filter(|m| (m.from, m.qos) == (*from, *qos));
            match of_it.next() {
                // The first number stands for nothing published yet; it counts as cleared.
                None if (*acked..=*sent).any(|n| n.is_multiple_of(CLEARING)) => {}
                None => broken.push(format!(
                    "nothing retained of client {from} at QoS {qos}, and {acked} was acknowledged"
                )),
                Some(m) if m.n < *acked => {
                    broken.push(format!("{m:?} is retained, and {acked} was acknowledged"));
                }
                Some(m) if m.n > *sent || m.clears() => broken.push(format!("{m:?} is retained by nobody")),
                Some(_) => {}
            }
            broken.extend(of_it.next().map(|m| format!("{m:?} is retained besides another")));
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;

    fn msg(n: u32) -> Msg {
        Msg { from: 1, topic: 0, qos: 1, n, retain: true }
    }

    fn looked(numbers: &[u32]) -> Event {
        Event::Looked { found: numbers.iter().map(|n| msg(*n)).collect() }
    }

    #[test]
    fn what_may_be_retained() {
        let [sent, acked] = [|n| Event::Sent(msg(n)), |n| Event::Acked(msg(n))];
        let cases: &[(&[Event], &str)] = &[
            (&[looked(&[]), sent(1), looked(&[]), looked(&[1]), acked(1), looked(&[1])], ""),
            (&[sent(1), acked(1), sent(2), looked(&[1]), looked(&[2]), acked(2), looked(&[2])], ""),
            (&[sent(3), acked(3), sent(4), looked(&[]), looked(&[3]), acked(4), looked(&[])], ""),
            (&[sent(1), acked(1), looked(&[])], "nothing retained"),
            (&[sent(1), acked(1), sent(2), acked(2), looked(&[1])], "2 was acknowledged"),
            (&[sent(3), acked(3), sent(4), acked(4), looked(&[3])], "4 was acknowledged"),
            (&[sent(1), looked(&[2])], "by nobody"),
            (&[sent(1), looked(&[1, 1])], "besides another"),
        ];
        for (history, what) in cases {
            let broken = check(history);
            assert_eq!(broken.is_empty(), what.is_empty(), "{history:?}: {broken:?}");
            assert!(broken.iter().all(|b| b.contains(what)), "{what:?} is not what {broken:?} says");
        }
    }
}
