//! Dialogues with the outbox: `tests/transcripts/outbox/*.txt`.
//!
//! A line that begins with `>` is told to the machine, lines that begin with `<` are what it says to that; `#` begins a comment. A publish is
//! named by its number. `UPDATE_TRANSCRIPTS=1` writes what was said into the files; whether it is right, whoever reads the difference
//! decides.
//!
//! ```text
//! > begin 1 qos2 row=3 session=7 packet=9 expires=50 recording PLAN      it was matched
//! > queue 1 ...                                                          it is to be matched later
//! > next | out 1 | matched 1 PLAN | unmatched-done 1                     matching
//! > answer n1 1 accepted | moved 9 | failed | declined $share/g/t
//! > recorded 1 | noted 1 4 | applied 9 | nodes n1 [lost n2] | behind n1 at 6 | retry | give-up [1] | expire | remove 1 | time 20000
//! > show                                                                 what waits, watermarks, what is overdue
//! PLAN = at=5 [direct] [ask=n1,n2] [group=$share/g/t:n1[:unnoted]] [ask-group=n1:$share/g/t]
//!        [served=$share/g/t] [away=n3] [gone=n4] [moving] [moved=6]
//! ```

use super::entry::{Asked, Entry, OpenGroup, Plan, Sends, Stage};
use super::machine::{Actions, Input, Machine};
use super::view::View;
use crate::broker::promise::Promise;
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS, Reason};
use crate::ports::{Answer, MemberId, MessageId, Revision};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// The incarnation whose publishes these are.
const ORIGIN: u64 = 7;

/// How long publishers wait, milliseconds.
const PATIENCE_MS: u64 = 10_000;

struct Stand {
    machine: Machine,
    applied: Revision,
    now: Time,
    said: Vec<String>,
}

fn id(seq: &str) -> MessageId {
    MessageId { origin: ORIGIN, seq: seq.parse().expect("the number of a publish") }
}

/// What follows `key=` among words; `None` if there is no such word.
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| text.parse().expect("a number"))
}

fn names(words: &[&str], key: &str) -> Vec<Arc<str>> {
    value(words, key).map_or_else(Vec::new, |names| names.split(',').map(Arc::from).collect())
}

fn entry(words: &[&str], since: Time) -> Entry {
    let qos = if words.contains(&"qos2") { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
    let expires_at = number(words, "expires").map(Time);
    let (payload, properties) = (&b"1"[..], &[][..]);
    let message = Message::new(Parts { topic: "t", payload, properties, qos, retain: false, expires_at });
    let mut entry = Entry::new(message, number(words, "session").unwrap_or(0), since);
    entry.promise = Some(Promise::new());
    entry.inbound = number(words, "packet").map(|id| u16::try_from(id).expect("a packet identifier"));
    entry.duty = number(words, "row");
    if words.contains(&"recording") {
        entry.stage = Stage::Recording;
    }
    entry
}

fn group(text: &str) -> OpenGroup {
    let mut parts = text.split(':');
    let mut group = OpenGroup::new(parts.next().expect("a shared subscription").into());
    group.at = parts.next().map(Arc::from);
    group.unnoted = parts.next() == Some("unnoted");
    group.process = group.at.clone().filter(|_| group.unnoted).map(|node| MemberId { node, incarnation: 1 });
    group
}

fn plan(words: &[&str]) -> Plan {
    let mut plan = Plan {
        matched_at: number(words, "at").expect("at=REVISION"),
        direct: words.contains(&"direct"),
        moving: words.contains(&"moving"),
        moved: number(words, "moved"),
        away: names(words, "away").into(),
        gone: names(words, "gone").into(),
        served: names(words, "served").into(),
        groups: names(words, "group").iter().map(|text| group(text)).collect(),
        ..Plan::default()
    };
    let direct = || Asked { direct: true, ..Asked::default() };
    plan.ask.extend(names(words, "ask").into_iter().map(|node| (node, direct())));
    for text in names(words, "ask-group") {
        let (node, name) = text.split_once(':').expect("NODE:NAME");
        let ask = OpenGroup::new(name.into()).ask();
        match plan.ask.iter_mut().find(|(asked, _)| **asked == *node) {
            Some((_, asked)) => asked.groups.push(ask),
            None => {
                let groups = std::iter::once(ask).collect();
                plan.ask.push((node.into(), Asked { groups, ..Asked::default() }));
            }
        }
    }
    plan
}

fn answer(words: &[&str]) -> Answer {
    match words {
        ["accepted"] => Answer::Accepted { matched: true, declined: Vec::new() },
        ["declined", names @ ..] => {
            Answer::Accepted { matched: false, declined: names.iter().map(|name| Arc::from(*name)).collect() }
        }
        ["moved", at] => Answer::Moved(at.parse().expect("a revision")),
        ["failed"] => Answer::Failed("full".into()),
        _ => panic!("no answer: {words:?}"),
    }
}

fn asked_in_words(asked: &Asked) -> String {
    let mut words = Vec::new();
    if asked.direct {
        words.push("direct".to_owned());
    }
    words.extend(asked.groups.iter().map(|group| group.name.to_string()));
    words.join(" ")
}

impl Stand {
    fn say(&mut self, what: impl Into<String>) {
        self.said.push(what.into());
    }

    fn tell(&mut self, input: Input) {
        let actions = self.machine.handle(input, self.applied, self.now);
        self.acts(actions);
    }

    fn acts(&mut self, actions: Actions) {
        for (id, _, Sends { frames, cancels, first }) in actions.sends {
            let first = if first && !frames.is_empty() { " first" } else { "" };
            for (node, at, asked) in frames {
                self.say(format!("send {} to {node} at {at}: {}{first}", id.seq, asked_in_words(&asked)));
            }
            cancels.into_iter().for_each(|node| self.say(format!("cancel {} at {node}", id.seq)));
        }
        actions.cancels.into_iter().for_each(|(node, id)| self.say(format!("cancel {} at {node}", id.seq)));
        actions.kept.into_iter().for_each(|(promise, kept)| {
            promise.keep(kept);
            self.say(format!("tell the publisher {kept:?}"));
        });
        actions.settled.iter().for_each(|_| self.say("the session has no open QoS 2 publish"));
        for (id, row) in actions.done {
            self.say(format!("done {}{}", id.seq, row.map_or_else(String::new, |row| format!(" row {row}"))));
        }
        actions.failed.into_iter().for_each(|id| self.say(format!("failed {}", id.seq)));
        for (id, nodes) in actions.given_up {
            let asked = nodes.iter().map(|node| format!(", cancel at {node}")).collect::<String>();
            self.say(format!("given up {}{asked}", id.seq));
        }
        actions.again.into_iter().for_each(|id| self.say(format!("match again {}", id.seq)));
        actions.risen.into_iter().for_each(|at| self.say(format!("settled at {at}")));
    }

    fn view(&mut self, out: Option<(MessageId, View)>) {
        let Some((id, view)) = out else { return self.say("nothing to match") };
        let groups = view.groups.iter().map(|g| g.name.to_string()).collect::<Vec<_>>().join(" ");
        let all = if view.all_groups { " all groups" } else { "" };
        let direct = if view.direct { " direct" } else { "" };
        self.say(format!("match {}:{direct}{all} {groups}", id.seq).trim_end().to_owned());
    }

    fn show(&mut self) {
        let held = self.machine.held;
        let (unmatched, again, asked) = self.machine.counts();
        self.say(format!(
            "held {} here, {} away; {unmatched} not matched, {again} to match again, {asked} wait for nodes",
            held.here.publishes, held.away.publishes
        ));
        for node in ["n1", "n2", "n3"] {
            let settled = self.machine.settled_watermark(node, self.applied);
            let past = self.machine.past_watermark(node, self.applied);
            if (settled, past) != (self.applied, self.applied) {
                self.say(format!("{node} has answered all below {settled}, matched again below {past}"));
            }
        }
        for (id, waits) in self.machine.take_overdue(usize::MAX) {
            self.say(format!("overdue {}, {waits}", id.seq));
        }
        let (open, _) = self.machine.open_of(ORIGIN, usize::MAX);
        self.say(format!("open {open:?}"));
    }

    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["begin", seq, rest @ ..] => {
                let (id, entry, plan) = (id(seq), entry(rest, self.now), plan(rest));
                // The index is never older than what was matched.
                self.applied = self.applied.max(plan.matched_at);
                self.tell(Input::Begin { id, entry, plan });
            }
            ["queue", seq, rest @ ..] => {
                let mut entry = entry(rest, self.now);
                if entry.stage == Stage::Open {
                    entry.stage = Stage::Unmatched;
                }
                self.tell(Input::Queue { id: id(seq), entry });
            }
            ["next"] => {
                let next = self.machine.next_unmatched(self.applied);
                self.view(next);
            }
            ["out", seq] => {
                let out = self.machine.check_out(id(seq), self.applied).map(|view| (id(seq), view));
                self.view(out);
            }
            ["matched", seq, rest @ ..] => self.tell(Input::Matched { id: id(seq), plan: plan(rest) }),
            ["unmatched-done", seq] => self.tell(Input::UnmatchedDone(id(seq))),
            ["answer", node, seq, rest @ ..] => {
                let answers = vec![(id(seq), answer(rest))];
                self.tell(Input::Answered { node: Arc::from(*node), answers });
            }
            ["recorded", seq] => self.tell(Input::Recorded(id(seq))),
            ["noted", seq, row] => self.tell(Input::Noted { id: id(seq), seq: row.parse().expect("a row") }),
            ["applied", at] => {
                self.applied = at.parse().expect("a revision");
                self.tell(Input::Advanced);
            }
            ["nodes", rest @ ..] => {
                let (nodes, lost) =
                    rest.split_at(rest.iter().position(|w| *w == "lost").unwrap_or(rest.len()));
                let of = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
                self.tell(Input::NodesChanged {
                    nodes: of(nodes),
                    lost: of(lost.get(1..).unwrap_or_default()),
                });
            }
            ["behind", node, "at", at] => {
                self.tell(Input::Behind {
                    nodes: vec![Arc::from(*node)],
                    at: at.parse().expect("a revision"),
                });
            }
            ["retry"] => self.tell(Input::Retry),
            ["give-up", failed @ ..] => {
                let reason = Reason::ImplementationSpecificError;
                let failed = failed.iter().map(|seq| id(seq)).collect();
                self.tell(Input::GiveUp { patience_ms: PATIENCE_MS, failed, reason });
            }
            ["expire"] => self.tell(Input::Expire),
            ["remove", seq] => self.tell(Input::Remove(id(seq))),
            ["time", at] => self.now = Time(at.parse().expect("milliseconds")),
            ["show"] => self.show(),
            _ => panic!("what is {line:?}?"),
        }
    }
}

/// A transcript with what is said now.
fn played(text: &str) -> String {
    let mut stand = Stand { machine: Machine::new("n0".into()), applied: 1, now: Time(1), said: Vec::new() };
    let mut played = String::new();
    for line in text.lines().filter(|line| !line.starts_with("< ")) {
        let _ = writeln!(played, "{line}");
        if let Some(told) = line.strip_prefix("> ") {
            stand.hear(told);
            stand.said.drain(..).for_each(|said| {
                let _ = writeln!(played, "< {said}");
            });
        }
    }
    played
}

#[test]
fn dialogues_with_the_outbox() {
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/outbox");
    let mut played_all = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let written = std::fs::read_to_string(&path).unwrap();
        let played = played(&written);
        if update {
            std::fs::write(&path, &played).unwrap();
        } else {
            assert_eq!(played, written, "{}: UPDATE_TRANSCRIPTS=1 shows the difference", path.display());
        }
        played_all += 1;
    }
    assert!(played_all >= 8, "{played_all} transcripts in {}", folder.display());
}
