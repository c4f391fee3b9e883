//! What clients may do: rules from a file, in every version of the protocol, on one node and on three.

mod bans;
mod cluster;
mod commands;
mod delivery;
mod live;
mod mosquitto;
mod table;

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In};
use berth::mqtt::QoS;
use std::path::PathBuf;
use tempfile::TempDir;

/// A file of rules.
pub struct Rules {
    _dir: TempDir,
    pub path: PathBuf,
}

impl Rules {
    /// With these rules, one a line, as YAML flow tables: `allow: all, topics: a`.
    pub fn new(rules: &[&str]) -> Rules {
        let dir = TempDir::new().unwrap();
        let rules_file = Rules { path: dir.path().join("acl.yaml"), _dir: dir };
        rules_file.write(rules);
        rules_file
    }

    /// Puts others in their place, as an editor that saves in one step.
    pub fn write(&self, rules: &[&str]) {
        let lines: String = rules.iter().map(|rule| format!("  - {{{rule}}}\n")).collect();
        let new = self.path.with_extension("new");
        std::fs::write(&new, format!("rules:\n{lines}")).unwrap();
        std::fs::rename(&new, &self.path).unwrap();
    }

    /// How a broker is told of them.
    pub fn setup(&self) -> Setup {
        Setup::new().set("acl.file", self.path.to_str().unwrap())
    }

    /// A broker with them.
    pub fn start(&self) -> Broker {
        self.setup().start()
    }

    /// Writes other rules, and waits until the broker says that they hold.
    pub fn change(&self, broker: &mut Broker, rules: &[&str]) {
        let changes = |log: &str| log.matches("access rules changed").count();
        let before = changes(&broker.log());
        self.write(rules);
        crate::wait::until_true("the rules are taken", || changes(&broker.log()) > before);
    }
}

/// A client that has subscribed to a filter.
pub fn subscribed(dial: &Dial, broker: &Broker, filter: &str, qos: QoS) -> Client {
    let mut client = dial.connect(broker.mqtt);
    assert_eq!(client.subscribe(&[(filter, qos)]), [qos as u8]);
    client
}

/// The topics of all messages that came before the one on `end`, which must come.
pub fn topics_until(client: &mut Client, end: &str) -> Vec<String> {
    let mut topics = Vec::new();
    loop {
        let topic = client.receive().topic;
        if topic == end {
            return topics;
        }
        topics.push(topic);
    }
}

/// Whether the connection has seen its end.
pub fn is_open(client: &mut Client) -> bool {
    client.send(&[0xC0, 0]).is_ok() && client.wait_for("PINGRESP", |p| (*p == In::PingResp).then_some(true))
}
