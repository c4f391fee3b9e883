//! What clients did and saw, as a history that [`crate::checker`] judges; the load that makes one and the checker know nothing of
//! each other. The format is described in `docs/history.md`: text, one JSON object a line, in the order in which things were
//! seen; `BERTH_HISTORY=FILE` re-checks one.

use crate::broker::logs_dir;
use crate::checker;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::Duration;

/// The name of a client, topic or filter. Every name is kept once, for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Name(&'static str);

impl Name {
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
        let mut names = NAMES.lock().unwrap();
        if let Some(name) = names.get(text) {
            return Name(name);
        }
        let name: &'static str = text.to_owned().leak();
        names.insert(name);
        Name(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        Ok(String::deserialize(from)?.as_str().into())
    }
}

/// Every so many messages on a topic that are to be retained one is empty: it clears the topic.
const CLEARING: u64 = 4;

/// One message: number `n` of publisher `from` on `topic` with `qos`. Numbers ascend per publisher, topic and QoS. A topic for
/// what is to be retained has one publisher and one QoS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Msg {
    pub from: Name,
    pub topic: Name,
    pub qos: u8,
    pub n: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retain: bool,
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
        Some(Msg { from: from.into(), topic: topic.into(), qos, n, retain: false })
    }

    /// Whether the message, one that is to be retained, leaves nothing behind.
    pub fn clears(&self) -> bool {
        clears(self.n)
    }
}

/// Whether message `n` on a topic for what is retained clears it; 0 stands for nothing published yet.
pub fn clears(n: u64) -> bool {
    n.is_multiple_of(CLEARING)
}

/// The will of one connection: number `n` of client `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Will {
    pub of: Name,
    pub n: u64,
    pub qos: u8,
    /// Will delay interval, ms.
    pub delay_ms: u64,
}

impl Will {
    /// The payload that carries all but the delay.
    pub fn payload(&self) -> String {
        format!("{} {} {}", self.of, self.qos, self.n)
    }

    /// That it came, from its payload.
    pub fn seen(payload: &str) -> Option<Event> {
        let mut fields = payload.split(' ');
        let (of, qos, n) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Event::WillSeen { of: of.into(), n, qos })
    }
}

/// Something that was done or seen. Every session is meant to outlive its connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Milliseconds since the beginning. Time stands still in between, but for the [`Event::Slack`].
    Now(u64),
    /// From here on times may be off by so many milliseconds: the history is of real processes.
    Slack(u64),
    /// CONNECT is sent on `by`'s connection number `conn`. A will of an earlier one counts as lost with it.
    Connecting { by: Name, conn: u64, clean: bool, will: Option<Will> },
    /// CONNACK came, without an error.
    Connected { by: Name, conn: u64, clean: bool, present: bool },
    /// `by`'s subscription to `filter` was acknowledged: it is to get every message that matches from now on.
    Subscribed { by: Name, filter: Name },
    /// SUBSCRIBE was sent: `by` may be a member of the group of `filter` (`$share/<group>/<filter>`) until its session ends.
    Joining { by: Name, filter: Name },
    /// A publisher begins to send a message, for the first time or again. Written before the first byte leaves.
    Sent(Msg),
    /// PUBACK or PUBREC came for it, without an error.
    Acked(Msg),
    /// `by` got it on its connection number `conn`. What the rules of QoS 2 show to be a repetition is left out: this is
    /// what an application sees.
    Received { by: Name, conn: u64, dup: bool, msg: Msg },
    /// On `by`'s connection number `conn` something is sent that the server must answer.
    Asked { by: Name, conn: u64 },
    /// The answer came.
    Answered { by: Name, conn: u64 },
    /// The connection is gone, since `since` at the earliest; or the server that knew so may have forgotten.
    Lost { by: Name, since: u64 },
    /// CONNACK came from another node while the one that had its last connection was gone.
    Elsewhere { by: Name },
    /// DISCONNECT was sent, the one without the will.
    Leaving { by: Name },
    /// The server has heard the DISCONNECT and closed the connection.
    Left { by: Name },
    /// A will came to the observer, which is subscribed to all of them; repetitions are left out as with `Received`.
    WillSeen { of: Name, n: u64, qos: u8 },
    /// `by` subscribes anew to all topics that have something retained.
    Looking { by: Name },
    /// It was sent these retained messages.
    Looked { by: Name, found: Vec<Msg> },
    /// A broker is killed.
    Killed,
    /// Nothing is under way any more: whoever looks from now on finds the same.
    Settled,
}

/// When things were seen, beside the logs of the processes ([`logs_dir`]): number, milliseconds since 1970, what.
static TIMES: LazyLock<Option<File>> = LazyLock::new(|| {
    Some(File::create(logs_dir()?.join(format!("history-{}.txt", std::process::id()))).unwrap())
});

/// Collects events from many threads.
#[derive(Default)]
pub struct History {
    events: Mutex<Vec<Event>>,
    grown: Condvar,
}

impl History {
    pub fn add(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        if let Some(mut file) = TIMES.as_ref() {
            let line = format!("{} {} {event:?}\n", events.len(), berth::clock::now().as_millis());
            file.write_all(line.as_bytes()).unwrap();
        }
        events.push(event);
        drop(events);
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

/// Checks `events`, prints a line, and panics with the history kept if there is a breach.
pub fn must_hold(what: &str, events: &[Event]) -> checker::Report {
    let report = checker::judge(events);
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
        let name = format!("berth-history-{}-{}.jsonl", what.replace(' ', "-"), std::process::id());
        let file = std::env::temp_dir().join(name);
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
        Event::Looked {
            by: "s".into(),
            found: vec![Msg { retain: true, ..Msg::parse("r", b"p 1 2").unwrap() }],
        },
        Event::Killed,
    ];
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("history");
    save(&events, &file);
    assert_eq!(parse(&std::fs::read_to_string(file).unwrap()), events);
}
