//! Retained messages (G7): a new subscription is sent the last one that was acknowledged on its topic, or a later one. Every
//! topic has one publisher and one QoS, as order holds only so far: what is sent again at QoS 1 is a new message to the broker.
//! Once nothing is under way any more, all find the same.

use crate::history::{Event, Msg, Name, clears};
use std::collections::{BTreeMap, HashMap};

/// Numbers on one topic.
#[derive(Clone, Debug, Default)]
struct Topic {
    sent: u64,
    acked: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<Name, Topic>,
    /// What was acknowledged when a client began to look.
    looking: HashMap<Name, BTreeMap<Name, u64>>,
    settled: bool,
    /// What somebody found after everything had settled.
    found: Option<Vec<Msg>>,
}

impl Retained {
    pub(super) fn on(&mut self, event: &Event) -> Vec<String> {
        match event {
            Event::Sent(msg) if msg.retain => {
                let topic = self.topics.entry(msg.topic).or_default();
                topic.sent = topic.sent.max(msg.n);
            }
            Event::Acked(msg) if msg.retain => {
                let topic = self.topics.entry(msg.topic).or_default();
                topic.acked = topic.acked.max(msg.n);
            }
            Event::Looking { by } => {
                let acked = self.topics.iter().map(|(name, topic)| (*name, topic.acked)).collect();
                self.looking.insert(*by, acked);
            }
            Event::Looked { by, found } => return self.look(*by, found),
            Event::Settled => self.settled = true,
            _ => {}
        }
        Vec::new()
    }

    fn look(&mut self, by: Name, found: &[Msg]) -> Vec<String> {
        let mut broken = Vec::new();
        let before = self.looking.remove(&by);
        for (name, Topic { sent, acked }) in &self.topics {
            let acked = before.as_ref().map_or(*acked, |b| b.get(name).copied().unwrap_or(0));
            let mut of_it = found.iter().filter(|m| m.topic == *name);
            match of_it.next() {
                // The first number stands for nothing published yet; it counts as cleared.
                None if (acked..=*sent).any(clears) => {}
                None => broken.push(format!("nothing retained on {name}, and {acked} was acknowledged")),
                Some(m) if m.n < acked => {
                    broken.push(format!("{m:?} is retained, and {acked} was acknowledged"))
                }
                Some(m) if m.n > *sent || m.clears() => broken.push(format!("{m:?} is retained by nobody")),
                Some(_) => {}
            }
            broken.extend(of_it.next().map(|m| format!("{m:?} is retained besides another")));
        }
        if self.settled {
            let mut found = found.to_vec();
            found.sort_unstable();
            let first = self.found.get_or_insert_with(|| found.clone());
            if *first != found {
                broken.push(format!("{by} finds {found:?} retained, others found {first:?}"));
            }
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;

    fn msg(n: u64) -> Msg {
        Msg { from: "p".into(), topic: "r".into(), qos: 1, n, retain: true }
    }

    fn looked(numbers: &[u64]) -> Event {
        Event::Looked { by: "l".into(), found: numbers.iter().map(|n| msg(*n)).collect() }
    }

    fn looking() -> Event {
        Event::Looking { by: "l".into() }
    }

    #[test]
    fn what_may_be_retained() {
        let [sent, acked] = [|n| Event::Sent(msg(n)), |n| Event::Acked(msg(n))];
        let cases: &[(&[Event], &str)] = &[
            (&[looked(&[]), sent(1), looked(&[]), looked(&[1]), acked(1), looked(&[1])], ""),
            (&[sent(1), acked(1), sent(2), looked(&[1]), looked(&[2]), acked(2), looked(&[2])], ""),
            (&[sent(3), acked(3), sent(4), looked(&[]), looked(&[3]), acked(4), looked(&[])], ""),
            (&[sent(1), acked(1), sent(2), looking(), acked(2), looked(&[1])], ""),
            (
                &[
                    sent(1),
                    sent(2),
                    acked(1),
                    looked(&[1]),
                    looked(&[2]),
                    Event::Settled,
                    looked(&[2]),
                    looked(&[2]),
                ],
                "",
            ),
            (&[sent(1), acked(1), sent(2), Event::Settled, looked(&[2]), looked(&[1])], "others found"),
            (&[sent(1), acked(1), looking(), looked(&[])], "nothing retained"),
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
