//! An ACL file of mosquitto's, with mosquitto's meaning (mosquitto.conf(5), `acl_file`; compared with mosquitto 2.0): of the lines
//! for one user, those that deny are looked at first, then those that allow; then the `pattern` lines in the same way; what no
//! line allows is denied. Subscriptions are all granted: each message is judged when it is to be delivered.

use super::pattern::Pattern;
use super::rules::Fault;
use crate::hashing::HashMap;
use crate::mqtt::QoS;
use crate::ports::{Ask, By, Identity, Ruling};

/// Lines of one file that are rules.
pub const LINES_MAX: usize = 100_000;

/// One line.
#[derive(Debug)]
struct Line {
    number: usize,
    pattern: Pattern,
    read: bool,
    write: bool,
}

impl Line {
    fn denies(&self) -> bool {
        !self.read && !self.write
    }

    fn shown(&self, kind: &str) -> String {
        let access = match (self.read, self.write) {
            (true, true) => "readwrite",
            (true, false) => "read",
            (false, true) => "write",
            (false, false) => "deny",
        };
        format!("{kind} {access} {}", self.pattern.text())
    }
}

/// The lines of an ACL file of mosquitto's, with mosquitto's meaning.
#[derive(Debug, Default)]
pub(super) struct Lines {
    anonymous: Vec<Line>,
    users: HashMap<Box<str>, Vec<Line>>,
    patterns: Vec<Line>,
}

impl Lines {
    /// Reads a file.
    ///
    /// # Errors
    /// The first line that mosquitto would refuse, too.
    pub fn parse(text: &str) -> Result<Lines, Fault> {
        let mut lines = Lines::default();
        let mut user: Option<Box<str>> = None;
        let mut count = 0;
        for (at, line) in text.lines().enumerate() {
            let number = at + 1;
            let fault = |why: String| Fault { rule: None, line: number, key: None, why };
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (keyword, rest) = line.trim_start_matches(' ').split_once(' ').unwrap_or((line.trim(), ""));
            let rest = rest.trim();
            match keyword {
                "user" if rest.is_empty() => return Err(fault("user without a name".to_owned())),
                "user" => {
                    user = Some(rest.into());
                    lines.users.entry(rest.into()).or_default();
                }
                "topic" | "pattern" if rest.is_empty() => {
                    return Err(fault(format!("{keyword} without a topic")));
                }
                "topic" | "pattern" => {
                    count += 1;
                    if count > LINES_MAX {
                        return Err(fault(format!("more than {LINES_MAX} lines")));
                    }
                    let pattern = keyword == "pattern";
                    let line = access(number, rest, pattern).map_err(fault)?;
                    match (pattern, &user) {
                        (true, _) => lines.patterns.push(line),
                        (false, None) => lines.anonymous.push(line),
                        (false, Some(user)) => lines.users.entry(user.clone()).or_default().push(line),
                    }
                }
                _ => {
                    let why = "expected topic, pattern or user at the beginning of the line";
                    return Err(fault(why.to_owned()));
                }
            }
        }
        for list in lines.users.values_mut().chain([&mut lines.anonymous, &mut lines.patterns]) {
            list.sort_by_key(|line| !line.denies());
        }
        lines.users.retain(|_, list| !list.is_empty());
        Ok(lines)
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.anonymous.is_empty() && self.users.is_empty() && self.patterns.is_empty()
    }

    /// What the lines say.
    pub fn ruling(&self, who: &Identity, ask: &Ask<'_>) -> Option<Ruling> {
        let allow = |by| Some(Ruling::allow(QoS::ExactlyOnce, by));
        let (topic, write) = match ask {
            Ask::Subscribe { .. } => return allow(By::Granted),
            Ask::Receive { topic } => (topic, false),
            Ask::Publish { topic, .. } => (topic, true),
        };
        let said = |lines: &[Line]| {
            lines.iter().find_map(|line| {
                let by = By::Line { line: line.number };
                let concerns = if write { line.write } else { line.read };
                if !(concerns || line.denies()) || !line.pattern.matches(who, topic) {
                    return None;
                }
                Some(if line.denies() { Ruling::deny(by) } else { Ruling::allow(QoS::ExactlyOnce, by) })
            })
        };
        if let Some(ruling) = said(self.own(who)) {
            return Some(ruling);
        }
        let widens = |name: &str| name.contains(['+', '#']);
        if !self.patterns.is_empty()
            && (widens(&who.client_id) || who.username.as_deref().is_some_and(widens))
        {
            return Some(Ruling::deny(By::DangerousName));
        }
        said(&self.patterns)
    }

    /// The `topic` lines for a client.
    fn own(&self, who: &Identity) -> &[Line] {
        match &who.username {
            Some(user) => self.users.get(&**user).map_or(&[], Vec::as_slice),
            None => &self.anonymous,
        }
    }

    /// Whether a line that allows publishing concerns `who`.
    pub fn may_publish_somewhere(&self, who: &Identity) -> bool {
        let has_name = |line: &Line| !line.pattern.needs_user() || who.username.is_some();
        self.own(who).iter().chain(self.patterns.iter().filter(|l| has_name(l))).any(|line| line.write)
    }

    /// All lines in the order of the file, with their numbers.
    pub fn shown(&self) -> Vec<(usize, String)> {
        let mut shown: Vec<(usize, String)> = Vec::new();
        shown.extend(self.anonymous.iter().map(|l| (l.number, l.shown("topic"))));
        shown.extend(self.patterns.iter().map(|l| (l.number, l.shown("pattern"))));
        for (user, lines) in &self.users {
            shown.extend(lines.iter().map(|l| (l.number, format!("{} users={user}", l.shown("topic")))));
        }
        shown.sort();
        shown
    }
}

/// `[read|write|readwrite|deny] <topic>`: a first word is the access only if another one follows.
fn access(number: usize, rest: &str, pattern: bool) -> Result<Line, String> {
    let (word, topic) = match rest.split_once(' ') {
        Some((word, topic)) => (Some(word), topic.trim()),
        None => (None, rest),
    };
    let (read, write) = match word {
        None | Some("readwrite") => (true, true),
        Some("read") => (true, false),
        Some("write") => (false, true),
        Some("deny") => (false, false),
        Some(other) => {
            return Err(format!("{other:?}: expected read, write, readwrite or deny before the topic"));
        }
    };
    let parsed = if pattern { Pattern::parse(topic) } else { Pattern::plain(topic) };
    Ok(Line { number, pattern: parsed.map_err(|e| format!("{topic:?}: {e}"))?, read, write })
}
