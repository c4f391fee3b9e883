//! What the broker promises, checked on a history of what clients did and saw: nothing acknowledged is lost to a session
//! that was subscribed, nothing of QoS 2 comes twice, order holds per publisher, topic and QoS, Session Present is true,
//! wills go out as they should, what is retained is found, a group
//! gets what it shares.
//!
//! Knows nothing of the load that made the history, nor of what happened to the broker meanwhile.

mod retained;
pub mod shared;
mod wills;

use retained::Retained;
use shared::Shared;
use std::collections::{HashMap, HashSet};
pub use wills::Will;
use wills::Wills;

/// A client.
pub type ClientNo = usize;

/// A message: number `n` of `from` on `topic` at `qos`. Numbers ascend per publisher, topic and QoS. What is to be retained
/// goes to a topic of its publisher and QoS alone, which nobody listens to for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msg {
    pub from: ClientNo,
    pub topic: u8,
    pub qos: u8,
    pub n: u32,
    pub retain: bool,
}

/// What was done or seen. Every session is meant to outlive its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Milliseconds since the beginning. Time stands still in between.
    Now(u64),
    /// CONNECT was sent. A connection of the same client that was there before is lost thereby.
    Connecting { by: ClientNo, clean: bool, will: Option<Will> },
    /// CONNACK came, without an error.
    Connected { by: ClientNo, clean: bool, present: bool },
    /// SUBACK came: `by` is to get every message from now on.
    Subscribed { by: ClientNo },
    /// SUBSCRIBE was sent: `by` may be a member of the group until its session ends.
    Joining { by: ClientNo },
    /// A message was sent, for the first time or again.
    Sent(Msg),
    /// PUBACK or PUBREC came, without an error.
    Acked(Msg),
    /// A message came. What QoS 2 shows to be a repetition is left out: this is what an application sees.
    Received { by: ClientNo, msg: Msg },
    /// The connection is gone, since `since` at the earliest; or the server that knew so may have forgotten.
    Lost { by: ClientNo, since: u64 },
    /// DISCONNECT was sent, the one without the will.
    Leaving { by: ClientNo },
    /// The server has heard the DISCONNECT and closed the connection.
    Left { by: ClientNo },
    /// A will came to the observer, which is subscribed to all of them; repetitions are left out as with `Received`.
    WillSeen { of: ClientNo, n: u32, qos: u8 },
    /// A new subscription was sent these retained messages, at once.
    Looked { found: Vec<Msg> },
}

/// Whether the broker has a session of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    No,
    Yes,
    /// It was asked to make or discard one, and did not say whether it has.
    Unclear,
}

/// One session of a client.
#[derive(Debug, Default)]
struct Life {
    known: Known,
    /// Messages whose first sending came after SUBACK.
    owed: Vec<Msg>,
    due: HashSet<Msg>,
    subscribed: bool,
    received: HashSet<Msg>,
    /// The last first receipt by publisher, topic and QoS.
    last: HashMap<(ClientNo, u8, u8), u32>,
}

/// Every promise that the history shows broken, in words.
pub fn check(history: &[Event]) -> Vec<String> {
    let mut lives: HashMap<ClientNo, Life> = HashMap::new();
    let mut sent: HashSet<Msg> = HashSet::new();
    let mut acked: HashSet<Msg> = HashSet::new();
    let (mut wills, mut retained) = (Wills::default(), Retained::default());
    let mut shared = Shared::default();
    let mut broken = Vec::new();
    for (at, event) in history.iter().enumerate() {
        let mut complain = |what: String| broken.push(format!("event {at}: {what}"));
        wills.on(event).into_iter().for_each(&mut complain);
        shared.on(event);
        retained.on(event).into_iter().for_each(&mut complain);
        match *event {
            Event::Connecting { by, clean, .. } => {
                let life = lives.entry(by).or_default();
                if clean {
                    // Nothing is owed to the old session any more.
                    *life = Life { known: Known::Unclear, ..Life::default() };
                } else if life.known == Known::No {
                    life.known = Known::Unclear;
                }
            }
            Event::Connected { by, clean, present } => {
                let life = lives.entry(by).or_default();
                if present && (clean || life.known == Known::No) {
                    complain(format!("client {by} is told of a session that it has not"));
                }
                if !present {
                    if life.known == Known::Yes {
                        complain(format!("client {by}'s session is gone"));
                    }
                    *life = Life::default();
                }
                life.known = Known::Yes;
            }
            Event::Subscribed { by } => lives.entry(by).or_default().subscribed = true,
            Event::Sent(msg) => {
                if !msg.retain && sent.insert(msg) && !msg.shared() {
                    for life in lives.values_mut().filter(|l| l.subscribed) {
                        life.owed.push(msg);
                        life.due.insert(msg);
                    }
                }
            }
            Event::Acked(msg) => {
                acked.insert(msg);
            }
            Event::Received { by, msg } => {
                let life = lives.entry(by).or_default();
                if !sent.contains(&msg) {
                    complain(format!("client {by} got {msg:?}, which nobody has sent"));
                }
                let first = life.received.insert(msg);
                if !first && msg.qos == 2 && !msg.shared() {
                    complain(format!("client {by} got {msg:?} twice"));
                }
                // Of what was sent before the subscription only repetitions by the publisher come, whenever they come.
                if life.due.contains(&msg) {
                    let last = life.last.entry((msg.from, msg.topic, msg.qos)).or_default();
                    if first && msg.n < *last {
                        complain(format!("client {by} got {msg:?} after number {last}"));
                    }
                    *last = msg.n.max(*last);
                }
            }
            Event::Now(_)
            | Event::Joining { .. }
            | Event::Lost { .. }
            | Event::Leaving { .. }
            | Event::Left { .. }
            | Event::WillSeen { .. }
            | Event::Looked { .. } => {}
        }
    }
    let mut clients: Vec<_> = lives.iter().collect();
    clients.sort_unstable_by_key(|(by, _)| **by);
    for (by, life) in clients {
        for msg in life.owed.iter().filter(|m| acked.contains(*m) && !life.received.contains(*m)) {
            broken.push(format!("at the end: client {by} never got {msg:?}, which was acknowledged"));
        }
    }
    broken.extend(wills.end());
    broken.extend(shared.end());
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Msg = Msg { from: 0, topic: 0, qos: 2, n: 1, retain: false };

    fn start() -> Vec<Event> {
        vec![
            Event::Connecting { by: 1, clean: false, will: None },
            Event::Connected { by: 1, clean: false, present: false },
            Event::Subscribed { by: 1 },
        ]
    }

    fn finds(more: &[Event], what: &str) {
        let history = [&start()[..], more].concat();
        let broken = check(&history);
        assert!(broken.iter().any(|b| b.contains(what)), "{what:?} not among {broken:?}");
    }

    #[test]
    fn a_good_history_passes() {
        let more = [
            Event::Sent(M),
            Event::Received { by: 1, msg: M },
            Event::Sent(M),
            Event::Acked(M),
            Event::Connecting { by: 1, clean: false, will: None },
            Event::Connected { by: 1, clean: false, present: true },
            Event::Connecting { by: 1, clean: true, will: None },
            Event::Connected { by: 1, clean: true, present: false },
        ];
        assert_eq!(check(&[&start()[..], &more].concat()), Vec::<String>::new());
    }

    #[test]
    fn every_broken_promise_is_found() {
        let got = Event::Received { by: 1, msg: M };
        finds(&[Event::Sent(M), Event::Acked(M)], "never got");
        finds(&[Event::Sent(M), got.clone(), got.clone()], "twice");
        finds(std::slice::from_ref(&got), "nobody has sent");
        let later = Msg { n: 2, ..M };
        let order = [Event::Sent(M), Event::Sent(later), Event::Received { by: 1, msg: later }, got];
        finds(&order, "after number 2");
        let again = Event::Connecting { by: 1, clean: false, will: None };
        finds(&[again, Event::Connected { by: 1, clean: false, present: false }], "is gone");
        let new = Event::Connecting { by: 2, clean: true, will: None };
        finds(&[new, Event::Connected { by: 2, clean: true, present: true }], "has not");
    }
}
