//! What clients saw of a broker that was killed, and whether it kept its word: nothing acknowledged lost, nothing of QoS 2
//! twice, nothing out of order. The checker knows nothing of the load that made the history.
//!
//! A history is text, one JSON object a line, in the order in which things were seen; `BERTH_HISTORY=FILE` re-checks one.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// One message: number `n` of publisher `from` on `topic` with `qos`. Numbers ascend per publisher, topic and QoS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Msg {
    pub from: String,
    pub topic: String,
    pub qos: u8,
    pub n: u64,
}

impl Msg {
    /// The payload that carries all but the topic.
    pub fn payload(&self) -> String {
        format!("{} {} {}", self.from, self.qos, self.n)
    }

    /// From topic and payload.
    pub fn parse(topic: &str, payload: &[u8]) -> Option<Msg> {
        let mut fields = std::str::from_utf8(payload).ok()?.split(' ');
        let (from, qos, n) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Msg { from: from.to_owned(), topic: topic.to_owned(), qos, n })
    }
}

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// `by`'s subscription to `filter` was acknowledged.
    Subscribed { by: String, filter: String },
    /// A publisher begins to send a message, for the first time or again. Written before the first byte leaves.
    Sent(Msg),
    /// PUBACK or PUBREC came for it.
    Acked(Msg),
    /// `by` got it on its connection number `conn`. What the rules of QoS 2 show to be a repetition is left out: this is
    /// what an application sees.
    Received { by: String, conn: usize, dup: bool, msg: Msg },
    /// The broker is killed.
    Killed,
}

/// Collects events from many threads.
#[derive(Default)]
pub struct History {
    events: Mutex<Vec<Event>>,
    grown: Condvar,
}

impl History {
    pub fn add(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.grown.notify_all();
    }

    pub fn len(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// Waits until there are `n` events or `patience` is over; false then.
    pub fn wait_len(&self, n: usize, patience: Duration) -> bool {
        let events = self.events.lock().unwrap();
        let (events, _) = self.grown.wait_timeout_while(events, patience, |e| e.len() < n).unwrap();
        events.len() >= n
    }

    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

/// Writes a history.
pub fn save(events: &[Event], path: &Path) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    for event in events {
        serde_json::to_writer(&mut file, event).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.flush().unwrap();
}

/// Reads a history.
pub fn parse(text: &str) -> Vec<Event> {
    text.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect()
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
    /// Every breach, in words.
    pub breaches: Vec<String>,
}

/// How often a message was received on the connection it came on last.
#[derive(Default)]
struct Delivered {
    conn: usize,
    times: usize,
}

/// Checks a history that is complete: nothing was under way when it ended.
pub fn check(events: &[Event]) -> Report {
    let mut report = Report::default();
    let mut sends: HashMap<&Msg, usize> = HashMap::new();
    let mut acked: HashSet<&Msg> = HashSet::new();
    let mut delivered: HashMap<&str, HashMap<&Msg, Delivered>> = HashMap::new();
    let mut newest: HashMap<(&str, &str, &str, u8), u64> = HashMap::new();
    let mut filters: HashMap<&str, Vec<&str>> = HashMap::new();
    for event in events {
        match event {
            Event::Subscribed { by, filter } => filters.entry(by).or_default().push(filter),
            Event::Sent(m) => *sends.entry(m).or_default() += 1,
            Event::Acked(m) => {
                if !sends.contains_key(m) {
                    report.breaches.push(format!("acknowledged but never sent: {m:?}"));
                }
                acked.insert(m);
            }
            Event::Killed => report.kills += 1,
            Event::Received { by, conn, dup: _, msg } => {
                report.received += 1;
                let Some(&sends) = sends.get(msg) else {
                    report.breaches.push(format!("{by} received what nobody sent: {msg:?}"));
                    continue;
                };
                let seen = delivered.entry(by).or_default().entry(msg).or_default();
                let first = seen.times == 0;
                if seen.conn != *conn {
                    *seen = Delivered { conn: *conn, times: 0 };
                }
                seen.times += 1;
                match seen.times {
                    _ if first => {
                        let key = (by.as_str(), msg.from.as_str(), msg.topic.as_str(), msg.qos);
                        let newest = newest.entry(key).or_default();
                        if msg.n < *newest {
                            report.breaches.push(format!("{by} received {msg:?} after number {newest}"));
                        }
                        *newest = msg.n.max(*newest);
                    }
                    _ if msg.qos == 2 => {
                        report.breaches.push(format!("{by} received QoS 2 twice: {msg:?}"));
                    }
                    // A publisher that sends QoS 1 again has published again; and what was not acknowledged comes again on
                    // the next connection, marked as a repetition if the broker lived to remember that it was sent.
                    times if times <= sends => report.repeated += 1,
                    _ => report.breaches.push(format!("{by} received twice without a reason: {msg:?}")),
                }
            }
        }
    }
    report.sent = sends.len();
    report.acked = acked.len();
    let mut lost: Vec<_> = acked.into_iter().collect();
    lost.sort();
    for (by, filters) in filters {
        let got = delivered.get(by);
        for m in &lost {
            let wanted = filters.iter().any(|f| matches(f, &m.topic));
            if wanted && !got.is_some_and(|got| got.contains_key(m)) {
                report.breaches.push(format!("{by} never received what was acknowledged: {m:?}"));
            }
        }
    }
    report
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

/// Checks `events`, prints a line, and panics with the history kept if there is a breach.
pub fn must_hold(what: &str, events: &[Event]) -> Report {
    let report = check(events);
    println!(
        "{what}: {} kills, {} sent, {} acknowledged, {} received, {} of QoS 1 repeated, {} breaches",
        report.kills,
        report.sent,
        report.acked,
        report.received,
        report.repeated,
        report.breaches.len()
    );
    if !report.breaches.is_empty() {
        let file = std::env::temp_dir().join(format!("berth-history-{}.jsonl", std::process::id()));
        save(events, &file);
        let shown: Vec<_> = report.breaches.iter().take(20).map(String::as_str).collect();
        panic!(
            "{} breaches; BERTH_HISTORY={} checks again:\n{}",
            report.breaches.len(),
            file.display(),
            shown.join("\n")
        );
    }
    report
}

#[test]
fn a_saved_history_is_checked_again() {
    if let Some(path) = std::env::var_os("BERTH_HISTORY") {
        must_hold("history", &parse(&std::fs::read_to_string(path).unwrap()));
    }
    let events = vec![
        Event::Subscribed { by: "s".into(), filter: "a/#".into() },
        Event::Sent(Msg::parse("a/b", b"p 1 7").unwrap()),
        Event::Received { by: "s".into(), conn: 3, dup: true, msg: Msg::parse("a/b", b"p 1 7").unwrap() },
        Event::Killed,
    ];
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("history");
    save(&events, &file);
    assert_eq!(parse(&std::fs::read_to_string(file).unwrap()), events);
}

/// Short histories: `+t/q/n` sent, `!` acked, `>` received by s, `D` received with DUP, `K` killed and connected again.
#[test]
fn the_checker_finds_breaches() {
    let cases = [
        ("+t/1/1 !t/1/1 >t/1/1", ""),
        ("+t/1/1 !t/1/1", "never received"),
        ("+t/1/1", ""),
        ("+t/1/1 >t/1/1", ""),
        (">t/1/1", "nobody sent"),
        ("!t/1/1 +t/1/1 >t/1/1", "never sent"),
        ("+t/2/1 >t/2/1 K +t/2/1 >t/2/1", "QoS 2 twice"),
        ("+t/2/1 >t/2/1 Dt/2/1", "QoS 2 twice"),
        ("+t/1/1 >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 Dt/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 K Dt/1/1", ""),
        ("+t/1/1 >t/1/1 +t/1/1 >t/1/1 K Dt/1/1 Dt/1/1", ""),
        ("+t/1/1 >t/1/1 K >t/1/1", ""),
        ("+t/1/1 K >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 >t/1/1 +t/1/1 >t/1/1", ""),
        ("+t/1/1 +t/1/1 >t/1/1 >t/1/1", ""),
        ("+t/1/1 +t/1/1 >t/1/1 >t/1/1 >t/1/1", "without a reason"),
        ("+t/1/1 +t/1/2 >t/1/2 >t/1/1", "after number 2"),
        ("+t/1/1 +t/1/2 >t/1/1 >t/1/2 K Dt/1/1", ""),
        ("+t/1/1 +t/1/2 +t/1/3 >t/1/1 >t/1/3", ""),
        ("+t/1/1 +u/1/2 >u/1/2 >t/1/1", ""),
        ("+t/1/1 +t/2/2 >t/2/2 >t/1/1", ""),
        ("+x/1/1 !x/1/1", ""),
    ];
    for (text, expected) in cases {
        let mut events = vec![
            Event::Subscribed { by: "s".into(), filter: "t".into() },
            Event::Subscribed { by: "s".into(), filter: "u".into() },
        ];
        let mut conn = 0;
        for word in text.split(' ') {
            let msg = || {
                let fields: Vec<_> = word[1..].split('/').collect();
                Msg::parse(fields[0], format!("p {} {}", fields[1], fields[2]).as_bytes()).unwrap()
            };
            events.push(match &word[..1] {
                "+" => Event::Sent(msg()),
                "!" => Event::Acked(msg()),
                "K" => {
                    conn += 1;
                    Event::Killed
                }
                mark => Event::Received { by: "s".into(), conn, dup: mark == "D", msg: msg() },
            });
        }
        let breaches = check(&events).breaches;
        assert_eq!(breaches.len(), usize::from(!expected.is_empty()), "{text}: {breaches:?}");
        assert!(breaches.iter().all(|b| b.contains(expected)), "{text}: {breaches:?}");
    }
}

#[test]
fn filters_match() {
    let cases = [
        ("#", "a/b", true),
        ("a/#", "a", true),
        ("a/#", "a/b/c", true),
        ("a/+", "a/b", true),
        ("a/+", "a/b/c", false),
        ("+/b", "a/b", true),
        ("a", "a/b", false),
        ("a/b", "a", false),
    ];
    for (filter, topic, expected) in cases {
        assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
    }
}
