//! Shared subscriptions, whose groups are never without a member and whose members have none of their topics besides: what was acknowledged
//! comes to one of each group, at QoS 2 to one alone, whoever else gets it. When a member's session ends, what it held at QoS 1 goes to another; QoS 2 that was begun ends with it
//! (MQTT 5.0 section 4.8.2), so nothing is asked of QoS 2 sent before.

use super::matches;
use crate::history::{Event, Msg, Name};
use std::collections::{HashMap, HashSet};

#[derive(Debug, Default)]
struct Fate {
    /// Groups that want it.
    groups: u32,
    acked: bool,
    received: u32,
    /// A member's session ended afterwards.
    disturbed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Whose groups these are.
    members: HashMap<Name, HashSet<Name>>,
    groups: HashSet<Name>,
    fates: HashMap<Msg, Fate>,
}

/// Whether `$share/<group>/<filter>` matches a message's topic.
fn wants(group: &Name, msg: &Msg) -> bool {
    let filter = group.as_str().splitn(3, '/').nth(2).expect("$share/<group>/<filter>");
    matches(filter, msg.topic.as_str())
}

impl Shared {
    /// Whether a client gets the message as a member of a group.
    pub(super) fn serves(&self, by: Name, msg: &Msg) -> bool {
        self.members.get(&by).is_some_and(|groups| groups.iter().any(|g| wants(g, msg)))
    }

    pub(super) fn on(&mut self, event: &Event) {
        match *event {
            Event::Joining { by, filter } => {
                self.members.entry(by).or_default().insert(filter);
                self.groups.insert(filter);
            }
            Event::Connecting { by, clean: true, .. } if self.members.contains_key(&by) => {
                self.fates.values_mut().for_each(|f| f.disturbed = true);
            }
            Event::Sent(msg) => {
                let groups = self.groups.iter().filter(|g| wants(g, &msg)).count() as u32;
                if groups > 0 && !msg.retain {
                    self.fates.entry(msg).or_default().groups = groups;
                }
            }
            Event::Acked(msg) => self.fates.get_mut(&msg).into_iter().for_each(|f| f.acked = true),
            Event::Received { by, msg, .. } if self.serves(by, &msg) => {
                self.fates.get_mut(&msg).into_iter().for_each(|f| f.received += 1);
            }
            _ => {}
        }
    }

    pub(super) fn end(self) -> Vec<String> {
        let mut broken = Vec::new();
        for (msg, fate) in self.fates {
            if fate.disturbed && msg.qos == 2 {
                continue;
            }
            if fate.acked && fate.received < fate.groups {
                broken.push(format!("at the end: the group never got {msg:?}, which was acknowledged"));
            }
            if msg.qos == 2 && fate.received > fate.groups {
                broken.push(format!("at the end: the group got {msg:?} {} times", fate.received));
            }
        }
        broken.sort_unstable();
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;

    #[test]
    fn what_the_group_gets() {
        let msg = |qos| Msg { from: "p".into(), topic: "s/t".into(), qos, n: 1, retain: false };
        let [sent, acked] = [|m| Event::Sent(m), |m| Event::Acked(m)];
        let got = |by: &str, msg| Event::Received { by: by.into(), conn: 1, dup: false, msg };
        let gone = Event::Connecting { by: "1".into(), conn: 2, clean: true, will: None };
        let (one, two) = (msg(1), msg(2));
        let cases: &[(&[Event], &str)] = &[
            (&[sent(one), acked(one), got("1", one), got("2", one)], ""),
            (&[sent(two), got("2", two), acked(two)], ""),
            (&[sent(two), acked(two), gone.clone()], ""),
            (&[sent(one), acked(one)], "never got"),
            (&[sent(two), acked(two)], "never got"),
            (&[sent(one), acked(one), gone.clone()], "never got"),
            (&[gone, sent(two), acked(two)], "never got"),
            (&[sent(two), got("1", two), got("2", two)], "2 times"),
        ];
        for (history, what) in cases {
            let joined = ["1", "2"].map(|by| Event::Joining { by: by.into(), filter: "$share/g/s/+".into() });
            let broken = check(&[&joined[..], history].concat());
            assert_eq!(broken.is_empty(), what.is_empty(), "{history:?}: {broken:?}");
            assert!(broken.iter().all(|b| b.contains(what)), "{what:?} is not what {broken:?} says");
        }
    }
}
