//! The shared subscription, whose group is never without a member: what was acknowledged comes to one of them, at QoS 2 to
//! one alone. When a member's session ends, what it held at QoS 1 goes to another; QoS 2 that was begun ends with it
//! (MQTT 5.0 section 4.8.2), so nothing is asked of QoS 2 sent before.

use super::{ClientNo, Event, Msg};
use std::collections::{HashMap, HashSet};

/// The topic that is for the group.
pub const TOPIC: u8 = 2;

impl Msg {
    /// Whether the message is for one of the group.
    pub fn shared(&self) -> bool {
        self.topic == TOPIC && !self.retain
    }
}

#[derive(Debug, Default)]
struct Fate {
    acked: bool,
    received: u32,
    /// A member's session ended afterwards.
    disturbed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared {
    members: HashSet<ClientNo>,
    fates: HashMap<Msg, Fate>,
}

impl Shared {
    pub(super) fn on(&mut self, event: &Event) {
        match *event {
            Event::Joining { by } => {
                self.members.insert(by);
            }
            Event::Connecting { by, clean: true, .. } if self.members.contains(&by) => {
                self.fates.values_mut().for_each(|f| f.disturbed = true);
            }
            Event::Sent(msg) if msg.shared() => {
                self.fates.entry(msg).or_default();
            }
            Event::Acked(msg) if msg.shared() => self.fates.entry(msg).or_default().acked = true,
            Event::Received { msg, .. } if msg.shared() => self.fates.entry(msg).or_default().received += 1,
            _ => {}
        }
    }

    pub(super) fn end(self) -> Vec<String> {
        let mut broken = Vec::new();
        for (msg, fate) in self.fates {
            if fate.disturbed && msg.qos == 2 {
                continue;
            }
            if fate.acked && fate.received == 0 {
                broken.push(format!("at the end: the group never got {msg:?}, which was acknowledged"));
            }
            if msg.qos == 2 && fate.received > 1 {
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
        let msg = |qos| Msg { from: 0, topic: TOPIC, qos, n: 1, retain: false };
        let [sent, acked] = [|m| Event::Sent(m), |m| Event::Acked(m)];
        let got = |by, msg| Event::Received { by, msg };
        let gone = Event::Connecting { by: 1, clean: true, will: None };
        let (one, two) = (msg(1), msg(2));
        let cases: &[(&[Event], &str)] = &[
            (&[sent(one), acked(one), got(1, one), got(2, one)], ""),
            (&[sent(two), got(2, two), acked(two)], ""),
            (&[sent(two), acked(two), gone.clone()], ""),
            (&[sent(one), acked(one)], "never got"),
            (&[sent(two), acked(two)], "never got"),
            (&[sent(one), acked(one), gone.clone()], "never got"),
            (&[gone, sent(two), acked(two)], "never got"),
            (&[sent(two), got(1, two), got(2, two)], "2 times"),
        ];
        for (history, what) in cases {
            let joined = [Event::Joining { by: 1 }, Event::Joining { by: 2 }];
            let broken = check(&[&joined[..], history].concat());
            assert_eq!(broken.is_empty(), what.is_empty(), "{history:?}: {broken:?}");
            assert!(broken.iter().all(|b| b.contains(what)), "{what:?} is not what {broken:?} says");
        }
    }
}
