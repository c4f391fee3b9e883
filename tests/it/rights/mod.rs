//! What clients may do: rules from a file, in every version of the protocol, on one node and on three.

mod bans;
mod cluster;
mod codes;
mod commands;
mod delivery;
mod live;
mod mosquitto;
mod table;

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In};
use berth::mqtt::QoS;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The password of all users of these tests.
pub const PASSWORD: &str = "pw";

/// Who they are: `root` and others with the password [`PASSWORD`]; nobody has to be one of them.
const USERS: [&str; 8] = ["root", "eve", "bob", "nobody", "u", "v", "+", "monitor"];

/// The password as mosquitto writes it in its older files, which costs little to check.
const HASH: &str = "$6$dHdlbHZlIGJ5dGVz$X7OpsZWUajxGhmDys9l1Ab0leQ25vOkLoqvRCf3xuWVYL8lTfKdwNIJSR9ITGUqdCrn/dc9UkiKkhJnC0E0PNA==";

/// Puts the users into a folder: the options that tell a broker of them. Whose a session was does not matter to these tests.
pub fn accounts(dir: &Path) -> [(&'static str, String); 3] {
    let path = dir.join("users");
    let lines: String = USERS.iter().map(|user| format!("{user}:{HASH}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    [
        ("auth.password.file", path.to_str().unwrap().to_owned()),
        ("auth.allow_anonymous", "true".to_owned()),
        ("auth.client_id_theft", "allow".to_owned()),
    ]
}

/// A setup with the users.
pub fn with_accounts(dir: &Path) -> Setup {
    accounts(dir).iter().fold(Setup::new(), |setup, (key, value)| setup.set(key, value))
}

/// A client of one of the users, or of nobody.
pub fn as_user(dial: Dial, user: Option<&str>) -> Dial {
    match user {
        Some(user) => dial.user(user, PASSWORD),
        None => dial,
    }
}

/// A file of rules.
pub struct Rules {
    pub dir: TempDir,
    pub path: PathBuf,
}

impl Rules {
    /// With these rules, one a line, as YAML flow tables: `allow: all, topics: a`.
    pub fn new(rules: &[&str]) -> Rules {
        let dir = TempDir::new().unwrap();
        let rules_file = Rules { path: dir.path().join("acl.yaml"), dir };
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
        with_accounts(self.dir.path()).set("acl.file", self.path.to_str().unwrap())
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
