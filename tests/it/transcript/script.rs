//! A dialogue as a file: what is done, line by line, and what must come of it.

use super::encode;
use super::log::Log;
use super::render;
use super::words::{millis, number, split};
use super::world::World;
use berth::mqtt::QoS;
use berth::node::Limits;
use berth::telemetry::metrics::DropReason;
use std::collections::HashMap;

/// A line that is not an expectation, and the expectations after it.
struct Step {
    number: usize,
    line: String,
    expected: Vec<String>,
}

/// A dialogue.
pub struct Script {
    steps: Vec<Step>,
    /// What it covers.
    pub tags: Vec<String>,
}

/// What came of a dialogue.
pub struct Outcome {
    /// Where it differs from what was expected; empty if nowhere.
    pub differences: Vec<String>,
    /// The dialogue as it should be if what came is right.
    pub actual: String,
}

struct Runner {
    limits: Limits,
    sys_interval_ms: Option<u64>,
    world: Option<World>,
    /// What is still to be sent of a packet that was begun, by client.
    begun: HashMap<String, Vec<u8>>,
    log: Log,
}

impl Script {
    pub fn parse(text: &str) -> Script {
        let mut steps: Vec<Step> = Vec::new();
        let mut tags = Vec::new();
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('<') {
                // Belongs to the command before it, comments in between or not.
                if let Some(step) = steps.iter_mut().rev().find(|s| s.line.starts_with(['>', '*'])) {
                    step.expected.push(line.to_owned());
                    continue;
                }
            }
            if let Some(list) = line.strip_prefix("# covers:") {
                tags.extend(list.split([',', ' ']).filter(|t| !t.is_empty()).map(str::to_owned));
            }
            steps.push(Step { number: at + 1, line: line.to_owned(), expected: Vec::new() });
        }
        Script { steps, tags }
    }

    /// Plays the dialogue.
    pub fn run(&self) -> Outcome {
        let log = Log::default();
        log.during(|| self.play(log.clone()))
    }

    fn play(&self, log: Log) -> Outcome {
        let (limits, begun) = (Limits::default(), HashMap::new());
        let mut runner = Runner { limits, sys_interval_ms: None, world: None, begun, log };
        let mut outcome = Outcome { differences: Vec::new(), actual: String::new() };
        for step in &self.steps {
            let seen = runner.step(&step.line).unwrap_or_else(|e| vec![format!("< ERROR {e}")]);
            outcome.actual.push_str(&step.line);
            outcome.actual.push('\n');
            for line in &seen {
                outcome.actual.push_str(line);
                outcome.actual.push('\n');
            }
            let broken = seen.iter().any(|l| l.starts_with("< ERROR") || l.contains(" INVALID "));
            if seen != step.expected || broken {
                outcome.differences.push(difference(step, &seen));
            }
        }
        outcome
    }
}

fn difference(step: &Step, seen: &[String]) -> String {
    let mut text = format!("line {}: {}\n", step.number, step.line);
    let list = |mark: &str, lines: &[String]| -> String {
        if lines.is_empty() {
            return format!("    {mark} nothing\n");
        }
        lines.iter().map(|l| format!("    {mark} {l}\n")).collect()
    };
    text.push_str(&list("expected", &step.expected));
    text.push_str(&list("but came", seen));
    text
}

impl Runner {
    fn step(&mut self, line: &str) -> Result<Vec<String>, String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(Vec::new());
        }
        if let Some(rest) = line.strip_prefix("* ") {
            let words = split(rest);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let ["broker", settings @ ..] = words.as_slice() {
                settings.iter().try_for_each(|s| self.configure(s))?;
                return Ok(Vec::new());
            }
            if words == ["log"] {
                return Ok(self.log.take().iter().map(|line| format!("< broker {line}")).collect());
            }
            let mut lines = self.command(&words)?;
            lines.extend(self.collect());
            return Ok(lines);
        }
        // `>>` leaves the bytes in the socket until more come with `>`.
        let (more, rest) = match (line.strip_prefix(">> "), line.strip_prefix("> ")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(format!("what is {line:?}?")),
        };
        let words = split(rest);
        let (name, packet) = words.split_first().ok_or("who?")?;
        let world = self.world();
        let at = world.client(name);
        if !world.connected(at) {
            world.open(at);
        }
        if let Some(version) = encode::version(packet) {
            world.clients[at].version = version;
        }
        let bytes = encode::packet(world.clients[at].version, packet)?;
        world.send(at, &bytes);
        if more {
            return Ok(Vec::new());
        }
        world.settle();
        Ok(self.collect())
    }

    fn world(&mut self) -> &mut World {
        self.world.get_or_insert_with(|| World::new(self.limits, self.sys_interval_ms))
    }

    fn collect(&mut self) -> Vec<String> {
        let world = self.world();
        let mut lines = Vec::new();
        for at in 0..world.clients.len() {
            for seen in world.take_seen(at) {
                let c = &world.clients[at];
                lines.push(format!("< {} {}", c.name, render::seen(c.version, &seen, &world.limits)));
            }
        }
        lines
    }

    /// Carries out a command that is no packet; returns what it says itself.
    fn command(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        let limits = self.limits;
        if let ["part", name, n, packet @ ..] = words {
            return self.send_part(name, number(n)?, packet);
        }
        let world = self.world();
        match words {
            ["advance", time] => world.advance(millis(time)?),
            ["open", name] => {
                let at = world.client(name);
                world.open(at);
                world.settle();
            }
            ["lost", name] => {
                let at = world.client(name);
                if !world.connected(at) {
                    return Err(format!("{name} has no connection"));
                }
                world.lose(at);
            }
            ["finish", name] => {
                let at = world.client(name);
                if !world.connected(at) {
                    return Err(format!("{name} has no connection"));
                }
                world.finish(at);
            }
            ["stall", name] => {
                let at = world.client(name);
                world.stall(at, true);
            }
            ["unstall", name] => {
                let at = world.client(name);
                world.stall(at, false);
            }
            ["restart"] => {
                world.limits = limits;
                world.restart();
            }
            ["shutdown"] => world.shut_down(),
            ["kick", client_id] => {
                if !world.node.broker.kick(client_id) {
                    return Err(format!("{client_id} is not connected"));
                }
                world.settle();
            }
            ["journal", "hold"] => world.journal.hold(),
            ["journal", "fail"] => world.journal.fail(),
            ["journal", "release"] => {
                world.journal.release(None);
                world.settle();
            }
            ["journal", "release", n] => {
                world.journal.release(Some(number(n)?));
                world.settle();
            }
            ["count", rest @ ..] => return rest.iter().map(|what| count(world, what)).collect(),
            other => return Err(format!("unknown command {other:?}")),
        }
        Ok(Vec::new())
    }

    /// Sends so many bytes of a packet: a new one, or the one that was begun.
    fn send_part(&mut self, name: &str, n: usize, packet: &[&str]) -> Result<Vec<String>, String> {
        let world = self.world();
        let at = world.client(name);
        if !world.connected(at) {
            return Err(format!("{name} has no connection"));
        }
        let version = world.clients[at].version;
        let mut bytes = self.begun.remove(name).unwrap_or_default();
        if !packet.is_empty() {
            let packet: Vec<String> = packet.iter().map(|w| (*w).to_owned()).collect();
            bytes = encode::packet(version, &packet)?;
        }
        if n > bytes.len() {
            return Err(format!("only {} bytes are left", bytes.len()));
        }
        let rest = bytes.split_off(n);
        self.begun.insert(name.to_owned(), rest);
        let world = self.world();
        world.send(at, &bytes);
        world.settle();
        Ok(Vec::new())
    }

    fn configure(&mut self, setting: &str) -> Result<(), String> {
        let (name, value) = setting.split_once('=').ok_or_else(|| format!("{setting}: no value"))?;
        let l = &mut self.limits.broker;
        match name {
            "receive_maximum" => l.session.receive_maximum = number(value)?,
            "maximum_packet_size" => l.session.maximum_packet_size = number(value)?,
            "topic_alias_maximum" => l.session.topic_alias_maximum = number(value)?,
            "maximum_qos" => l.session.maximum_qos = QoS::from_bits(number(value)?).ok_or("no QoS")?,
            "max_keep_alive" => l.session.max_keep_alive_s = number(value)?,
            "max_session_expiry" => l.session.max_session_expiry_s = number(value)?,
            "max_inflight" => l.session.max_inflight = number(value)?,
            "mailbox_messages" => l.mailbox.messages = number(value)?,
            "mailbox_bytes" => l.mailbox.bytes = number(value)?,
            "queued_messages" => l.mailbox.queued_messages = number(value)?,
            "queued_bytes" => l.mailbox.queued_bytes = number(value)?,
            "retained_messages" => l.retained.messages = number(value)?,
            "retained_bytes" => l.retained.bytes = number(value)?,
            "retained_payload" => l.retained.payload = number(value)?,
            "connections" => l.connections = number(value)?,
            "sessions" => l.sessions = number(value)?,
            "subscriptions" => l.subscriptions = number(value)?,
            "publish_timeout" => l.publish_timeout_ms = millis(value)?,
            "connect_timeout" => l.connect_timeout_ms = millis(value)?,
            "packet_timeout" => l.packet_timeout_ms = millis(value)?,
            "write_timeout" => l.write_timeout_ms = millis(value)?,
            "arriving_bytes" => l.arriving_bytes = number(value)?,
            "sys_interval" => self.sys_interval_ms = Some(millis(value)?),
            other => return Err(format!("unknown setting {other}")),
        }
        Ok(())
    }
}

/// What the broker counts, as a line.
fn count(world: &World, what: &str) -> Result<String, String> {
    let m = &world.node.broker.metrics;
    let (retained, _) = world.node.broker.retained_size();
    let n = match what {
        "mailbox_full" => m.messages_dropped.of(DropReason::MailboxFull).get(),
        "queue_full" => m.messages_dropped.of(DropReason::QueueFull).get(),
        "expired" => m.messages_dropped.of(DropReason::Expired).get(),
        "too_large" => m.messages_dropped.of(DropReason::TooLarge).get(),
        "offline" => m.messages_dropped.of(DropReason::Offline).get(),
        "refused" => m.messages_dropped.of(DropReason::Refused).get(),
        "session_ended" => m.messages_dropped.of(DropReason::SessionEnded).get(),
        "sessions" => world.node.broker.sessions(),
        "queued" => world.node.broker.queued_messages(),
        "retained" => retained as u64,
        "subscriptions" => m.subscriptions_active.get(),
        "wills" => m.wills_published.get(),
        "redeliveries" => m.shared_redeliveries.get(),
        "unsaved" => world.journal.waiting() as u64,
        other => return Err(format!("{other} is not counted")),
    };
    Ok(format!("< broker {what}={n}"))
}
