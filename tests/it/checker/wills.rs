//! Wills (G8): once per lost connection, in time, and never after a clean goodbye, a return within the delay, or a connection elsewhere
//! while its node was gone. An observer
//! whose session lasts counts them.

use crate::history::{Event, Name, Will};
use std::collections::{HashMap, HashSet};

/// A will that has not been decided on.
#[derive(Clone, Copy, Debug)]
struct Standing {
    will: Will,
    /// CONNACK came: the broker has it.
    confirmed: bool,
    /// DISCONNECT was sent.
    leaving: bool,
    /// When its connection was lost at the earliest, and at the latest.
    lost: Option<(u64, u64)>,
    /// CONNECTs sent since.
    attempts: u32,
    clean_attempts: u32,
    /// When the last of them was sent.
    attempted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Due,
    Never(&'static str),
    /// It may come or not.
    Open,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Wills {
    now: u64,
    /// By how much times may be off, ms.
    slack: u64,
    standing: HashMap<Name, Vec<Standing>>,
    /// Every will that a client has sent.
    known: HashSet<Will>,
    decided: Vec<(Will, Verdict)>,
    seen: HashMap<(Name, u64), u32>,
}

impl Standing {
    fn lost_between(&mut self, since: u64, now: u64) {
        let first = self.lost.map_or(since, |(first, _)| first);
        self.lost = Some((first, now));
    }

    /// What the next connection of its client, now confirmed, means for it.
    fn verdict(&self, now: u64, slack: u64) -> Verdict {
        let Some((first, last)) = self.lost else { return Verdict::Open };
        let delay = self.will.delay_ms;
        if !self.confirmed || self.leaving {
            return Verdict::Open;
        }
        let late = self.attempted >= last + delay + slack;
        if delay == 0 || (self.attempts == 1 && (self.clean_attempts == 1 || late)) {
            return Verdict::Due;
        }
        match self.clean_attempts == 0 && now + slack < first + delay {
            true => Verdict::Never("its client was back in time"),
            false => Verdict::Open,
        }
    }
}

impl Wills {
    pub(super) fn on(&mut self, event: &Event) -> Option<String> {
        match *event {
            Event::Now(now) => self.now = now,
            Event::Slack(ms) => self.slack = ms,
            Event::Connecting { by, clean, will, .. } => {
                let standing = self.standing.entry(by).or_default();
                for s in standing.iter_mut() {
                    if s.lost.is_none() {
                        s.lost_between(self.now, self.now);
                    }
                    s.attempts += 1;
                    s.clean_attempts += u32::from(clean);
                    s.attempted = self.now;
                }
                if let Some(will) = will {
                    self.known.insert(will);
                    standing.push(Standing {
                        will,
                        confirmed: false,
                        leaving: false,
                        lost: None,
                        attempts: 0,
                        clean_attempts: 0,
                        attempted: 0,
                    });
                }
            }
            Event::Connected { by, .. } => {
                for mut s in std::mem::take(self.standing.entry(by).or_default()) {
                    if s.lost.is_some() {
                        self.decided.push((s.will, s.verdict(self.now, self.slack)));
                    } else {
                        s.confirmed = true;
                        self.standing.entry(by).or_default().push(s);
                    }
                }
            }
            Event::Lost { by, since } => {
                let now = self.now;
                self.standing.entry(by).or_default().iter_mut().for_each(|s| s.lost_between(since, now));
            }
            Event::Elsewhere { by } => {
                for s in std::mem::take(self.standing.entry(by).or_default()) {
                    let verdict = match s.lost {
                        // It may have come before its node went.
                        Some(_) if s.will.delay_ms > 0 => Verdict::Never("its client is connected elsewhere"),
                        _ => Verdict::Open,
                    };
                    self.decided.push((s.will, verdict));
                }
            }
            Event::Leaving { by } => {
                let standing = self.standing.entry(by).or_default();
                standing.iter_mut().filter(|s| s.lost.is_none()).for_each(|s| s.leaving = true);
            }
            Event::Left { by } => {
                for s in std::mem::take(self.standing.entry(by).or_default()) {
                    self.decided.push((s.will, Verdict::Never("its client said goodbye")));
                }
            }
            Event::WillSeen { of, n, qos } => return self.see(of, n, qos),
            _ => {}
        }
        None
    }

    fn see(&mut self, of: Name, n: u64, qos: u8) -> Option<String> {
        let Some(will) = self.known.iter().find(|w| (w.of, w.n, w.qos) == (of, n, qos)).copied() else {
            return Some(format!("will {n} of client {of} came, which nobody has sent"));
        };
        let times = self.seen.entry((of, n)).or_default();
        *times += 1;
        if qos == 2 && *times > 1 {
            return Some(format!("{will:?} came {times} times"));
        }
        let standing = self.standing.get(&of).into_iter().flatten().find(|s| s.will == will)?;
        match standing.lost {
            None if standing.confirmed && !standing.leaving => {
                Some(format!("{will:?} came, and its connection is not lost"))
            }
            Some((first, _))
                if standing.clean_attempts == 0 && self.now + self.slack < first + will.delay_ms =>
            {
                Some(format!("{will:?} came before its delay had passed"))
            }
            _ => None,
        }
    }

    pub(super) fn end(self) -> Vec<String> {
        let mut broken = Vec::new();
        for (will, verdict) in self.decided {
            let seen = self.seen.contains_key(&(will.of, will.n));
            match verdict {
                Verdict::Due if !seen => broken.push(format!("at the end: {will:?} never came")),
                Verdict::Never(why) if seen => broken.push(format!("at the end: {will:?} came, but {why}")),
                _ => {}
            }
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;

    fn w(delay_ms: u64) -> Will {
        Will { of: "1".into(), n: 1, qos: 2, delay_ms }
    }

    fn seen(n: u64) -> Event {
        Event::WillSeen { of: "1".into(), n, qos: 2 }
    }

    fn lost() -> Event {
        Event::Lost { by: "1".into(), since: 0 }
    }

    fn connect(clean: bool, present: bool, will: Option<Will>) -> [Event; 2] {
        let by = "1".into();
        let connecting = Event::Connecting { by, conn: 1, clean, will };
        [connecting, Event::Connected { by, conn: 1, clean, present }]
    }

    fn checked(will: Will, more: &[&[Event]]) -> Vec<String> {
        check(&[&connect(false, false, Some(will))[..], &more.concat()].concat())
    }

    #[test]
    fn good_histories_pass() {
        let (back, anew) = (connect(false, true, None), connect(true, false, None));
        let left = [Event::Leaving { by: "1".into() }, Event::Left { by: "1".into() }];
        let good: &[(Will, &[&[Event]])] = &[
            (w(0), &[&[lost(), seen(1)], &back]),
            (w(0), &[&back, &[seen(1)]]),
            (w(0), &[&left, &back]),
            (w(3000), &[&[lost(), Event::Now(2999)], &back]),
            (w(3000), &[&[lost(), Event::Now(3000), seen(1)], &back]),
            (w(3000), &[&[lost()], &anew, &[seen(1)]]),
            (w(3000), &[&[lost(), Event::Elsewhere { by: "1".into() }], &anew]),
            (w(0), &[&[lost(), Event::Elsewhere { by: "1".into() }], &anew]),
            // The server may have died before it knew: the delay begins again.
            (w(3000), &[&[lost(), Event::Now(3000), lost(), Event::Now(4000)], &back]),
        ];
        for (will, more) in good {
            assert_eq!(checked(*will, more), Vec::<String>::new(), "{will:?} {more:?}");
        }
    }

    #[test]
    fn every_broken_promise_is_found() {
        let (back, anew) = (connect(false, true, None), connect(true, false, None));
        let left = [Event::Leaving { by: "1".into() }, Event::Left { by: "1".into() }];
        let bad: &[(Will, &[&[Event]], &str)] = &[
            (w(0), &[&[lost()], &back], "never came"),
            (w(0), &[&[lost(), seen(1), seen(1)], &back], "came 2 times"),
            (w(0), &[&[seen(1)]], "is not lost"),
            (w(0), &[&left, &[seen(1)]], "said goodbye"),
            (w(0), &[&[seen(2)]], "nobody has sent"),
            (w(3000), &[&[lost(), Event::Now(2999), seen(1)]], "before its delay"),
            (w(3000), &[&[lost(), Event::Now(2999)], &back, &[seen(1)]], "back in time"),
            (w(3000), &[&[lost(), Event::Now(3000)], &back], "never came"),
            (w(3000), &[&[lost()], &anew], "never came"),
            (
                w(3000),
                &[&[lost(), Event::Elsewhere { by: "1".into() }], &anew, &[seen(1)]],
                "connected elsewhere",
            ),
        ];
        for (will, more, what) in bad {
            let broken = checked(*will, more);
            assert!(broken.iter().any(|b| b.contains(what)), "{what:?} not among {broken:?} for {more:?}");
        }
    }
}
