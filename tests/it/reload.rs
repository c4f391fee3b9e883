//! The configuration read again while the broker runs: all or nothing, by SIGHUP or `berth ctl reload`.

use crate::accounts::Files;
use crate::broker::{Broker, Setup};
use crate::client::{Dial, In};
use crate::cluster::nodes::BerthCluster;
use crate::operate::{ctl, ctl_json};
use crate::wait;
use berth::mqtt::{QoS, Reason};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

fn answer(dial: &Dial, to: SocketAddr) -> Reason {
    match dial.try_connect(to).unwrap().1 {
        In::ConnAck { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// A broker with a configuration file, rules, users and an audit log.
struct Stage {
    files: Files,
    broker: Broker,
}

const RULES: &str = "rules:\n  - {allow: all, topics: ['#']}\n";

impl Stage {
    fn start(options: &str) -> Stage {
        let files = Files::new();
        files.user("alice", "a");
        files.write("rules.yaml", RULES);
        files.write("berth.yaml", Stage::yaml(&files, options));
        let config = files.path("berth.yaml");
        let broker = Setup::new().arg("--config").arg(config.to_str().unwrap()).start();
        Stage { files, broker }
    }

    fn yaml(files: &Files, options: &str) -> String {
        let path = |name: &str| files.path(name).display().to_string();
        format!(
            "auth: {{password: {{file: {}}}}}\nacl: {{file: {}}}\naudit: {{file: {}}}\n{options}",
            path("users"),
            path("rules.yaml"),
            path("audit")
        )
    }

    fn configure(&self, options: &str) {
        self.files.write("berth.yaml", Stage::yaml(&self.files, options));
    }

    fn audited(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.files.path("audit")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn alice(&self, id: &str) -> Dial {
        Dial::v5(id).user("alice", "a")
    }
}

#[test]
fn what_changed_counts_at_once_and_what_needs_a_restart_is_named() {
    let stage = Stage::start("limits: {max_qos: 2}\n");
    let (broker, http) = (&stage.broker, stage.broker.http);
    let mut live = stage.alice("live").connect(broker.mqtt);
    assert!(!broker.log().contains(" DEBUG "));
    stage.configure(
        "limits: {max_connections: 2, max_packet_size: 1KiB, max_subscriptions_per_session: 1}\n\
         log: {level: debug}\nsys: {interval: 5s}\nsession: {max_expiry: 1h}\n",
    );
    let answered = ctl_json(http, &["reload"]);
    let changed = [
        "limits.max_connections",
        "limits.max_packet_size",
        "limits.max_subscriptions_per_session",
        "log.level",
        "session.max_expiry",
    ];
    assert_eq!(answered["changed"], json!(changed));
    assert_eq!(answered["restart"], json!(["sys.interval"]));
    // What is shown is what holds.
    let options = ctl_json(http, &["config", "show"])["options"].as_array().unwrap().clone();
    let of = |key: &str| options.iter().find(|o| o["key"] == key).unwrap().clone();
    let shown =
        |key: &str| (of(key)["value"].clone(), of(key)["origin"].as_str().unwrap().starts_with("file"));
    assert_eq!(shown("limits.max_connections"), (json!("2"), true));
    assert_eq!(shown("session.max_expiry"), (json!("1h"), true));
    assert_ne!(of("sys.interval")["value"], "5s");
    let read = answered["read"].to_string();
    assert!(read.contains("1 users from") && read.contains("1 access rules from"), "{read}");
    // The one that was there stays, on its terms: only one more comes in.
    live.publish("t", &"x".repeat(2000), QoS::AtLeastOnce);
    assert_eq!(live.subscribe(&[("a", QoS::AtMostOnce), ("b", QoS::AtMostOnce)]), [0, 0x97]);
    let (_second, granted) = stage.alice("second").expiry(86_400).try_connect(broker.mqtt).unwrap();
    let In::ConnAck { properties, .. } = granted else { panic!("{granted:?}") };
    let said = format!("{properties:?}");
    assert!(
        said.contains("MaximumPacketSize(1024)") && said.contains("SessionExpiryInterval(3600)"),
        "{said}"
    );
    assert_eq!(answer(&stage.alice("third"), broker.mqtt), Reason::QuotaExceeded);
    wait::until_true("it logs more", || broker.log().contains(" DEBUG "));
    // Once more: nothing is new, and the restart is still needed.
    let text = ctl(http, &["reload"]).ok();
    assert!(text.contains("needs restart: sys.interval") && !text.contains("changed:"), "{text}");
    assert_eq!(broker.metric("berth_config_reloads_total{result=\"ok\"}"), 2.0);
    let audited = stage.audited();
    let told = |line: &Value| (line["action"].clone(), line["outcome"].clone());
    assert_eq!(
        audited.iter().map(told).collect::<Vec<_>>(),
        vec![(json!("config reload"), json!("done")); 2]
    );
    live.ping();
}

#[test]
fn if_anything_is_wrong_nothing_changes() {
    let stage = Stage::start("limits: {max_qos: 2}\n");
    let (broker, http) = (&stage.broker, stage.broker.http);
    let good = "limits: {max_qos: 1, max_connections: 1}\n";
    // What is wrong, in which file, and the words for it.
    let cases: [(&str, &str, String, &[&str]); 4] = [
        (
            "options",
            "berth.yaml",
            Stage::yaml(&stage.files, "limits: {max_qos: 1, max_conections: 1}\n"),
            &["limits.max_conections", "did you mean"],
        ),
        (
            "values",
            "berth.yaml",
            Stage::yaml(&stage.files, "limits: {max_qos: 9, max_connections: none}\n"),
            &["limits.max_qos", "limits.max_connections"],
        ),
        ("rules", "rules.yaml", "rules:\n  - {alow: all, topics: ['#']}\n".to_owned(), &["rules.yaml"]),
        ("users", "users", "alice\n".to_owned(), &["users", "line 1"]),
    ];
    let users = std::fs::read_to_string(stage.files.users()).unwrap();
    let failed = "berth_config_reloads_total{result=\"failed\"}";
    for (what, file, content, words) in cases {
        stage.configure(good);
        stage.files.write(file, content);
        let said = ctl(http, &["reload"]).failed(1);
        assert!(said.contains("nothing was changed"), "{what}: {said}");
        for word in words {
            assert!(said.contains(word), "{what}: no {word} in {said}");
        }
        stage.files.write("rules.yaml", RULES);
        stage.files.write("users", &users);
        stage.configure("limits: {max_qos: 2}\n");
        let (_client, granted) = stage.alice("c").try_connect(broker.mqtt).unwrap();
        let In::ConnAck { properties, .. } = granted else { panic!("{granted:?}") };
        assert!(!format!("{properties:?}").contains("MaximumQoS"), "{what}: {properties:?}");
        let _another = stage.alice("another").connect(broker.mqtt);
    }
    assert_eq!(broker.metric(failed), 4.0);
    assert!(stage.audited().iter().all(|line| line["outcome"] == "failed"));
    // The same by SIGHUP, whose answer is the log.
    stage.configure("limits: {max_qos: 9}\n");
    broker.signal("HUP");
    wait::until_true("it is refused", || broker.metric(failed) == 5.0);
    let last =
        broker.log().lines().rfind(|line| line.contains("configuration not read again")).map(str::to_owned);
    assert!(last.as_ref().is_some_and(|line| line.contains("limits.max_qos")), "{last:?}");
    stage.configure(good);
    broker.signal("HUP");
    wait::until_true("it is taken", || broker.metric("berth_config_reloads_total{result=\"ok\"}") == 1.0);
    let (_client, granted) = stage.alice("c").try_connect(broker.mqtt).unwrap();
    assert!(format!("{granted:?}").contains("MaximumQoS"), "{granted:?}");
}

#[test]
fn users_bans_and_limits_of_listeners() {
    let stage = Stage::start("");
    let (broker, http) = (&stage.broker, stage.broker.http);
    stage.files.user("bob", "b");
    ctl(http, &["reload"]).ok();
    let mut bob = Dial::v4("bob").user("bob", "b").connect(broker.mqtt);
    // Written by hand.
    let bans = broker.dir.join("bans.json");
    std::fs::write(&bans, r#"[{"kind": "user", "name": "bob", "since": 1}]"#).unwrap();
    let text = ctl(http, &["reload"]).ok();
    assert!(text.contains("1 bans"), "{text}");
    assert_eq!(bob.expect_closed(), None);
    assert_eq!(answer(&Dial::v5("bob").user("bob", "b"), broker.mqtt), Reason::Banned);
    stage.configure(
        "listeners: {tcp: {versions: '3.1.1', max_connections: 1}}\nbans: {flapping_connects: 2}\n",
    );
    let answered = ctl_json(http, &["reload"]);
    let changed = ["bans.flapping_connects", "listeners.tcp.max_connections", "listeners.tcp.versions"];
    assert_eq!(answered["changed"], json!(changed));
    assert_eq!(answer(&stage.alice("five"), broker.mqtt), Reason::UnsupportedProtocolVersion);
    let port = broker.mqtt.port().to_string();
    let publish = || {
        let args = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-V",
            "311",
            "-i",
            "m",
            "-u",
            "alice",
            "-P",
            "a",
            "-t",
            "t",
            "-m",
            "m",
        ];
        let published = Command::new("mosquitto_pub").args(args).output().unwrap().status.success();
        // It has gone; the broker may not have heard so, and there is room for one.
        wait::until_true("nobody is connected", || broker.metric("mqtt_connections_active") == 0.0);
        published
    };
    assert!(publish());
    assert!(publish(), "the second time");
    assert!(!publish(), "the third time within a minute");
}

#[test]
fn what_is_logged_can_be_changed_alone() {
    let stage = Stage::start("");
    let (broker, http) = (&stage.broker, stage.broker.http);
    assert_eq!(ctl(http, &["log", "level", "debug"]).ok(), "log level debug (was info)\n");
    stage.alice("c").connect(broker.mqtt).disconnect();
    wait::until_true("it logs more", || broker.log().contains(" DEBUG "));
    let said = ctl(http, &["log", "level", "loud"]).failed(1);
    assert!(said.contains("expected one of off, error"), "{said}");
    // The next reload goes by the configuration again.
    ctl(http, &["reload"]).ok();
    assert_eq!(ctl(http, &["log", "level", "warn"]).ok(), "log level warn (was info)\n");
    let audited = stage.audited();
    let first = (&audited[0]["action"], &audited[0]["subject"], &audited[0]["outcome"]);
    assert_eq!(first, (&json!("log level"), &json!("debug"), &json!("done")));
    assert_eq!(audited[1]["outcome"], "failed");
}

#[test]
fn every_node_of_a_cluster_takes_it_and_nobody_is_cut_off() {
    let files = Files::new();
    let rules =
        |topic: &str| RULES.replacen("  -", &format!("  - {{deny: publish, topics: ['{topic}']}}\n  -"), 1);
    let path: PathBuf = files.write("rules.yaml", rules("one"));
    let cluster = BerthCluster::with(3, 1, &[("acl.file", path.to_str().unwrap())]);
    let mut clients: Vec<_> = (0..3).map(|i| cluster.connect(i, &Dial::v5(&format!("c{i}")))).collect();
    for client in &mut clients {
        assert_eq!(client.publish_with("one", b"", QoS::AtLeastOnce, false), Reason::NotAuthorized);
    }
    files.write("rules.yaml", "rules:\n  - {deny: publish");
    for i in 0..3 {
        assert!(ctl(cluster.http(i), &["reload"]).failed(1).contains("rules.yaml"));
    }
    files.write("rules.yaml", rules("two"));
    for i in 0..3 {
        let read = ctl_json(cluster.http(i), &["reload"])["read"].to_string();
        assert!(read.contains("2 access rules"), "{read}");
    }
    for client in &mut clients {
        assert_eq!(client.publish_with("two", b"", QoS::AtLeastOnce, false), Reason::NotAuthorized);
        client.publish("one", "", QoS::AtLeastOnce);
    }
}

#[test]
fn rules_and_their_default_change_together() {
    let files = Files::new();
    let config = files.write("berth.yaml", "acl: {default: deny}\n");
    let broker = Setup::new().arg("--config").arg(config.to_str().unwrap()).start();
    let mut client = Dial::v5("c").connect(broker.mqtt);
    let mut denied =
        || assert_eq!(client.publish_with("secret", b"", QoS::AtLeastOnce, false), Reason::NotAuthorized);
    denied();
    // Rules in place of the default: without them the new default would allow everything.
    let rules = files.write("rules.yaml", "rules:\n  - {deny: all, topics: [secret]}\n");
    files.write("berth.yaml", format!("acl: {{file: {}}}\nlimits: {{max_qos: 1}}\n", rules.display()));
    let answered = ctl_json(broker.http, &["reload"]);
    assert_eq!(answered["changed"], json!(["limits.max_qos"]));
    assert_eq!(answered["restart"], json!(["acl.default", "acl.file"]));
    denied();
    // The answer says why, and what is shown is what holds.
    assert!(answered["notes"].to_string().contains("acl.default"), "{answered}");
    let options = ctl_json(broker.http, &["config", "show"])["options"].as_array().unwrap().clone();
    assert!(options.iter().any(|o| o["key"] == "acl.default" && o["value"] == "deny"));
    files.write("berth.yaml", "acl: {default: allow}\n");
    assert_eq!(ctl_json(broker.http, &["reload"])["changed"], json!(["acl.default", "limits.max_qos"]));
    client.publish("secret", "", QoS::AtLeastOnce);
}

#[test]
fn all_files_of_accounts_that_are_wrong_are_named_and_those_of_before_are_not_missed() {
    let files = Files::new();
    files.user("alice", "a");
    let secret = "0123456789abcdef0123456789abcdef";
    let (key, admin) = (files.write("key", secret), files.write("admin", secret));
    let (users, read) = (files.users(), files.write("read", "fedcba9876543210fedcba9876543210"));
    let auth =
        format!("auth: {{password: {{file: {}}}, jwt: {{key_file: {}}}}}\n", users.display(), key.display());
    let tokens =
        format!("http: {{admin_token_file: {}, read_token_file: {}}}\n", admin.display(), read.display());
    let config = files.write("berth.yaml", format!("{auth}{tokens}"));
    let broker = Setup::new().arg("--config").arg(config.to_str().unwrap()).start();
    let (before, kept) = (std::fs::read(&users).unwrap(), files.write("kept", secret));
    let ask = |args: &[&str]| ctl(broker.http, &[&["--token-file", kept.to_str().unwrap()], args].concat());
    for (file, content) in [("users", "alice\n"), ("key", "short"), ("admin", "short"), ("read", "short")] {
        files.write(file, content);
    }
    let said = ask(&["reload"]).failed(1);
    for option in ["auth.password.file", "auth.jwt.key_file", "http.admin_token_file", "http.read_token_file"]
    {
        assert!(said.contains(option), "no {option} in {said}");
    }
    for (file, content) in [("key", secret), ("admin", secret), ("read", "fedcba9876543210fedcba9876543210")]
    {
        files.write(file, content);
    }
    // Users that are kept elsewhere after the restart: the file of before may be gone by then, and its users stay.
    std::fs::remove_file(&users).unwrap();
    files.write("berth.yaml", format!("auth: {{jwt: {{key_file: {}}}}}\n{tokens}", key.display()));
    let said = ask(&["reload"]).ok();
    assert!(said.contains("needs restart: auth.password.file"), "{said}");
    assert!(said.contains("1 keys of tokens") && said.contains("2 tokens of admin HTTP"), "{said}");
    assert_eq!(answer(&Dial::v5("c").user("alice", "a"), broker.mqtt), Reason::Success);
    files.write("users", before);
    files.write("berth.yaml", format!("{auth}{tokens}"));
    assert!(ask(&["reload"]).ok().contains("1 users from"));
}

#[test]
fn a_configuration_that_lost_everything_is_refused() {
    let stage = Stage::start("limits: {max_qos: 1}\n");
    let (broker, http) = (&stage.broker, stage.broker.http);
    for nothing in ["", "\n# nothing\n---\n"] {
        stage.files.write("berth.yaml", nothing);
        let said = ctl(http, &["reload"]).failed(1);
        assert!(said.contains("berth.yaml") && said.contains("nothing is left"), "{said}");
        assert!(said.contains("nothing was changed"), "{said}");
    }
    let (_client, granted) = stage.alice("c").try_connect(broker.mqtt).unwrap();
    assert!(format!("{granted:?}").contains("MaximumQoS"), "{granted:?}");
    // Said in so many words it is an order.
    stage.files.write("berth.yaml", "{}\n");
    assert_eq!(ctl_json(http, &["reload"])["changed"], json!(["limits.max_qos"]));
    stage.configure("");
    ctl(http, &["reload"]).ok();
}

#[test]
fn a_broker_without_a_configuration_file_says_so() {
    let broker = Broker::start();
    let text = ctl(broker.http, &["reload"]).ok();
    assert!(text.contains("no configuration file") && text.contains("/etc/berth/berth.yaml"), "{text}");
    assert!(!text.contains("no option has changed"), "{text}");
}
