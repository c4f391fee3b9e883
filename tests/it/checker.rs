//! What the broker promises, checked on a [`crate::history`] of what clients did and saw: nothing acknowledged is lost to a
//! session that was subscribed, nothing comes twice without a reason, order holds per publisher, topic and QoS, Session
//! Present is true, nobody is served twice at once, wills go out as they should, what is retained is found and the same
//! everywhere, a group gets what it shares.
//!
//! Knows nothing of the load that made the history, nor of what happened to the brokers meanwhile.

mod owner;
mod retained;
mod shared;
#[cfg(test)]
mod tests;
mod wills;

use crate::history::{Event, Msg, Name};
use owner::Owner;
use retained::Retained;
use shared::Shared;
use std::collections::{BTreeMap, HashMap, HashSet};
use wills::Wills;

/// Whether the broker has a session of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    No,
    Yes,
    /// It was asked to make or discard one, and did not say whether it has.
    Unclear,
}

/// How often a message was received on the connection it came on last.
#[derive(Debug, Default)]
struct Delivered {
    conn: u64,
    times: usize,
}

/// One session of a client.
#[derive(Debug, Default)]
struct Life {
    known: Known,
    filters: Vec<Name>,
    /// Messages whose first sending came after SUBACK.
    owed: Vec<Msg>,
    due: HashSet<Msg>,
    received: HashMap<Msg, Delivered>,
    /// The last first receipt by publisher, topic and QoS.
    last: HashMap<(Name, Name, u8), u64>,
}

/// What a history shows.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    pub sent: usize,
    pub acked: usize,
    pub received: usize,
    pub kills: usize,
    /// QoS 1 messages received more than once, with good reason.
    pub repeated: usize,
    /// Every promise that is broken, in words.
    pub breaches: Vec<String>,
}

#[derive(Default)]
struct Checker {
    lives: BTreeMap<Name, Life>,
    sends: HashMap<Msg, usize>,
    acked: HashSet<Msg>,
    report: Report,
    at: usize,
}

impl Checker {
    fn complain(&mut self, what: String) {
        self.report.breaches.push(format!("event {}: {what}", self.at));
    }

    fn life(&mut self, of: Name) -> &mut Life {
        self.lives.entry(of).or_default()
    }

    fn on(&mut self, event: &Event, shared: &Shared) {
        match *event {
            Event::Connecting { by, clean, .. } => {
                let life = self.life(by);
                if clean {
                    // Nothing is owed to the old session any more.
                    *life = Life { known: Known::Unclear, ..Life::default() };
                } else if life.known == Known::No {
                    life.known = Known::Unclear;
                }
            }
            Event::Connected { by, clean, present, .. } => self.connected(by, clean, present),
            Event::Subscribed { by, filter } => self.life(by).filters.push(filter),
            Event::Sent(msg) => {
                let sends = self.sends.entry(msg).or_default();
                *sends += 1;
                if *sends == 1 && !msg.retain {
                    let wants = |l: &Life| l.filters.iter().any(|f| matches(f.as_str(), msg.topic.as_str()));
                    let plain = |by: &Name, l: &Life| wants(l) && !shared.serves(*by, &msg);
                    for (_, life) in self.lives.iter_mut().filter(|(by, life)| plain(by, life)) {
                        life.owed.push(msg);
                        life.due.insert(msg);
                    }
                }
            }
            Event::Acked(msg) => {
                if !self.sends.contains_key(&msg) {
                    self.complain(format!("acknowledged but never sent: {msg:?}"));
                }
                self.acked.insert(msg);
            }
            Event::Received { by, conn, msg, .. } => self.received(by, conn, msg, shared.serves(by, &msg)),
            Event::Killed => self.report.kills += 1,
            _ => {}
        }
    }

    fn connected(&mut self, by: Name, clean: bool, present: bool) {
        let known = self.life(by).known;
        if present && (clean || known == Known::No) {
            self.complain(format!("client {by} is told of a session that it has not"));
        }
        if !present {
            if known == Known::Yes {
                self.complain(format!("client {by}'s session is gone"));
            }
            *self.life(by) = Life::default();
        }
        self.life(by).known = Known::Yes;
    }

    fn received(&mut self, by: Name, conn: u64, msg: Msg, shared: bool) {
        self.report.received += 1;
        let Some(&sends) = self.sends.get(&msg) else {
            return self.complain(format!("client {by} got {msg:?}, which nobody has sent"));
        };
        let life = self.life(by);
        let seen = life.received.entry(msg).or_default();
        let first = seen.times == 0;
        if seen.conn != conn {
            *seen = Delivered { conn, times: 0 };
        }
        seen.times += 1;
        let times = seen.times;
        // Where a subscription begins is free, but it never goes back. Only what a publisher repeats may come whenever it comes, if
        // it was sent first before the subscription. The members of a group keep no order.
        let mut after = None;
        if first && !shared && (life.due.contains(&msg) || (sends == 1 && !msg.retain)) {
            let last = life.last.entry((msg.from, msg.topic, msg.qos)).or_default();
            after = (msg.n < *last).then_some(*last);
            *last = msg.n.max(*last);
        }
        if let Some(last) = after {
            self.complain(format!("client {by} got {msg:?} after number {last}"));
        }
        if first || shared {
            return;
        }
        if msg.qos == 2 {
            self.complain(format!("client {by} got {msg:?} twice"));
        } else if times <= sends {
            // A publisher that sends QoS 1 again has published again; and what was not acknowledged comes again on the next
            // connection.
            self.report.repeated += 1;
        } else {
            self.complain(format!("client {by} got {msg:?} twice without a reason"));
        }
    }

    fn end(&mut self) {
        for (by, life) in &self.lives {
            let got = |m: &Msg| life.received.contains_key(m);
            for msg in life.owed.iter().filter(|m| self.acked.contains(*m) && !got(m)) {
                let what = format!("at the end: client {by} never got {msg:?}, which was acknowledged");
                self.report.breaches.push(what);
            }
        }
        (self.report.sent, self.report.acked) = (self.sends.len(), self.acked.len());
    }
}

/// What a history shows that is complete: nothing was under way when it ended.
pub fn judge(history: &[Event]) -> Report {
    let mut checker = Checker::default();
    let (mut wills, mut retained) = (Wills::default(), Retained::default());
    let (mut shared, mut owner) = (Shared::default(), Owner::default());
    for (at, event) in history.iter().enumerate() {
        checker.at = at;
        shared.on(event);
        let of_wills = wills.on(event).into_iter();
        let more = of_wills.chain(retained.on(event)).chain(owner.on(event)).collect::<Vec<_>>();
        more.into_iter().for_each(|what| checker.complain(what));
        checker.on(event, &shared);
    }
    checker.end();
    let mut report = checker.report;
    report.breaches.extend(wills.end());
    report.breaches.extend(shared.end());
    report
}

/// Every promise that the history shows broken, in words.
pub fn check(history: &[Event]) -> Vec<String> {
    judge(history).breaches
}

/// Whether `filter` matches `topic`; written apart from the broker's, for topics that do not begin with `$`.
fn matches(filter: &str, topic: &str) -> bool {
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(name)) if level == name => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}
