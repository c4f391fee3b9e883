//! What an operator does to a broker and sees of it: start, refusals to start, stop, pages, logs.

use crate::broker::{Broker, Setup, command, free_address};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

/// Runs `berth` to its end, which must come by itself.
fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

/// Runs a broker that must not start; returns what it says.
fn refused(dir: &Path, args: &[&str]) -> String {
    let listen = free_address().to_string();
    let common = ["--set", "http.address=off", "--log-level", "error", "-d", dir.to_str().unwrap()];
    let listen = ["--listen", &listen];
    let args: Vec<&str> = listen.iter().chain(&common).chain(args).copied().collect();
    let output = run(&args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn mentions(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_directory_has_one_broker() {
    let mut broker = Broker::start();
    let text = refused(&broker.dir, &[]);
    mentions(&text, &["in use by", broker.dir.to_str().unwrap(), "storage.dir"]);
    // The one that was there goes on, and its successor may start at once.
    Dial::v5("a").persistent().connect(broker.mqtt).publish("t", "x", QoS::AtLeastOnce);
    broker.sigkill();
    broker.restart();
    assert!(Dial::v5("a").persistent().connect(broker.mqtt).present);
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    mentions(&refused(&file, &[]), &["storage.dir", "file"]);
    mentions(&refused(&file.join("below"), &[]), &["storage.dir", "below"]);
    mentions(&refused(Path::new("/proc/berth"), &[]), &["storage.dir", "/proc/berth"]);
}

/// Root may write everywhere, except where nobody may: a file system mounted read-only.
#[test]
fn a_read_only_directory_is_named() {
    let Some(mounted) = Tmpfs::mount("size=16m") else { return };
    let data = mounted.path().join("data");
    Setup::new().dir(&data).start().stop();
    mounted.remount("ro");
    mentions(&refused(&data, &[]), &["not writable", "Read-only"]);
    mounted.remount("rw");
    Setup::new().dir(&data).start();
}

#[test]
fn foreign_and_damaged_journals_are_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let mut broker = Setup::new().dir(&data).start();
    Dial::v5("kept").persistent().connect(broker.mqtt).subscribe(&[("t", QoS::AtLeastOnce)]);
    assert!(broker.stop().success());
    let journal = std::fs::read_dir(&data)
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| p.metadata().unwrap().len());
    let journal = journal.unwrap();
    let whole = std::fs::read(&journal).unwrap();

    let foreign = b"this is somebody else's file\n".repeat(1000);
    std::fs::write(&journal, &foreign).unwrap();
    mentions(
        &refused(&data, &[]),
        &["is not a journal of this broker", journal.to_str().unwrap(), "move it away"],
    );
    assert_eq!(std::fs::read(&journal).unwrap(), foreign);

    for part in [1, 3, 7] {
        let cut = &whole[..whole.len() * part / 8];
        std::fs::write(&journal, cut).unwrap();
        mentions(&refused(&data, &[]), &[journal.to_str().unwrap()]);
        assert_eq!(std::fs::read(&journal).unwrap().len(), cut.len());
    }

    std::fs::write(&journal, &whole).unwrap();
    broker.restart();
    assert!(Dial::v5("kept").persistent().connect(broker.mqtt).present);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let (taken, mqtt) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_address().to_string());
    let port = taken.local_addr().unwrap().to_string();
    for (args, option) in [
        (vec!["--listen".to_owned(), port.clone()], "listeners.tcp.address"),
        (
            vec!["--listen".to_owned(), mqtt, "--set".to_owned(), format!("http.address={port}")],
            "http.address",
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["-d", data.to_str().unwrap()]).collect();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1));
        mentions(&String::from_utf8(output.stderr).unwrap(), &[&port, option, "in use"]);
        assert!(!data.exists(), "the journal was touched");
    }
}

#[test]
fn a_wrong_configuration_is_reported_at_once() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("berth.yaml");
    std::fs::write(&file, "limits:\n  max_qos: 7\n  max_conections: 5\nsession:\n  max_expiry: soon\n")
        .unwrap();
    for command_line in [&["config", "check"][..], &["serve"]] {
        let output = command()
            .args(command_line)
            .args(["--config", file.to_str().unwrap(), "--set", "storage.cache=tiny"])
            .env("BERTH__PUBLISH__TIMEOUT", "-1s")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        mentions(&text, &["limits.max_qos", "\"7\"", "from 0 to 2", "berth.yaml"]);
        mentions(&text, &["limits.max_conections", "limits.max_connections"]);
        mentions(&text, &["session.max_expiry", "soon", "storage.cache", "tiny", "--set"]);
        mentions(&text, &["publish.timeout", "-1s", "BERTH__PUBLISH__TIMEOUT"]);
        assert!(text.starts_with("berth: 5 problems") || text.contains("5 problems"), "{text}");
    }
}

#[test]
fn strangers_are_let_in_only_when_that_is_said() {
    let output = run(&["--listen", "0.0.0.0:0", "--set", "http.address=off"]);
    assert_eq!(output.status.code(), Some(2));
    mentions(&String::from_utf8(output.stderr).unwrap(), &["auth.allow_anonymous"]);

    let broker = Setup::new().set("listeners.tcp.address", "0.0.0.0:0").set("auth.allow_anonymous", "true");
    // --listen comes later and wins: the address is loopback, and allowed anyway.
    Dial::v5("a").connect(broker.start().mqtt);
    let broker = Setup::new().set("auth.allow_anonymous", "false").start();
    for (dial, reason) in [(Dial::v5("a"), Reason::NotAuthorized), (Dial::v4("a"), Reason::NotAuthorized)] {
        let (mut client, answer) = dial.try_connect(broker.mqtt).unwrap();
        assert!(matches!(answer, In::ConnAck { reason: r, .. } if r == reason), "{answer:?}");
        assert_eq!(client.recv(), In::Closed);
    }
    assert_eq!(broker.metric("berth_connects_refused_total{reason=\"not_authorized\"}"), 2.0);
}

#[test]
fn sigterm_tells_clients_and_keeps_what_was_acknowledged() {
    let mut broker = Broker::start();
    let offline = Dial::v5("offline").persistent();
    offline.connect(broker.mqtt).subscribe(&[("t", QoS::ExactlyOnce)]);
    let mut v5 = Dial::v5("v5").persistent().connect(broker.mqtt);
    let mut v4 = Dial::v4("v4").connect(broker.mqtt);
    let mut silent = Client::raw(broker.mqtt, Version::V5).unwrap();
    for n in 0..50 {
        v5.publish("t", &n.to_string(), [QoS::AtLeastOnce, QoS::ExactlyOnce][n % 2]);
    }
    broker.signal("TERM");
    assert_eq!(v5.expect_closed(), Some(Reason::ServerShuttingDown));
    assert_eq!(v4.expect_closed(), None);
    assert_eq!(silent.expect_closed(), None);
    assert_eq!(broker.wait().code(), Some(0));
    mentions(&broker.log(), &["stopping", "SIGTERM", "stopped"]);
    broker.restart();
    let mut client = offline.connect(broker.mqtt);
    let expected: Vec<_> = (0..50).map(|n: i32| n.to_string()).collect();
    assert_eq!(client.receive_texts(50), expected);
    assert!(Dial::v5("v5").persistent().connect(broker.mqtt).present);
}

/// A client that takes nothing does not hold the broker up, and everything under way is either kept or not acknowledged.
#[test]
fn sigterm_under_load_ends_in_time() {
    let mut broker = Setup::new().set("shutdown.timeout", "3s").start();
    let mut stuck = Dial::v5("stuck").connect(broker.mqtt);
    stuck.subscribe(&[("t", QoS::AtMostOnce)]);
    let offline = Dial::v5("offline").persistent();
    offline.connect(broker.mqtt).subscribe(&[("t", QoS::AtLeastOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    let payload = vec![b'x'; 10_000];
    let mut acked = 0;
    for _ in 0..600 {
        publisher.send_publish("t", &payload, QoS::AtLeastOnce, false).unwrap();
    }
    let began = berth::clock::now();
    broker.signal("TERM");
    loop {
        match publisher.recv() {
            In::PubAck(_, reason) if !reason.is_error() => acked += 1,
            In::Closed => break,
            _ => {}
        }
    }
    assert_eq!(broker.wait().code(), Some(0));
    let took_ms = berth::clock::now().since_ms(began);
    assert!(took_ms < 10_000, "{took_ms} ms; shutdown.timeout is 3 s");
    broker.restart();
    assert!(broker.metric("berth_queued_messages") as usize >= acked, "{acked} were acknowledged");
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut broker = Setup::new().set("shutdown.timeout", "1h").start();
    // It never reads, so that its last bytes cannot be written.
    let mut stuck = Dial::v5("stuck").connect(broker.mqtt);
    stuck.subscribe(&[("t", QoS::AtMostOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for _ in 0..100 {
        publisher.publish_with("t", &vec![b'x'; 200_000], QoS::AtMostOnce, false);
    }
    publisher.ping();
    broker.signal("TERM");
    broker.wait_log(|l| l.contains("stopping"));
    broker.signal("INT");
    let code = broker.wait().code();
    // The first one may have come to its end before the second.
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    if code == Some(130) {
        mentions(&broker.log(), &["at once"]);
    }
}

#[test]
fn pages_tell_the_truth() {
    let mut broker = Setup::new().set("node.id", "node-7").start();
    assert_eq!(broker.get("/health").0, 200);
    assert_eq!(broker.get("/ready").0, 200);
    assert_eq!(broker.get("/nothing").0, 404);
    let mut online = Dial::v5("online").connect(broker.mqtt);
    online.subscribe(&[("t/#", QoS::ExactlyOnce), ("u", QoS::AtMostOnce)]);
    let mut offline = Dial::v4("offline").persistent().connect(broker.mqtt);
    offline.subscribe(&[("t/1", QoS::AtLeastOnce)]);
    offline.disconnect();
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for n in 0..6u32 {
        publisher.publish("t/1", "x", QoS::from_bits((n % 3) as u8).unwrap());
        assert_eq!(online.receive().topic, "t/1");
    }
    publisher.publish_with("r", b"kept", QoS::AtLeastOnce, true);
    online.ping();
    wait::until_true("the broker knows that one is gone", || {
        broker.get_json("/cluster/status")["node"]["sessions_dormant"] == 1
    });
    let status = broker.get_json("/cluster/status");
    let node = &status["node"];
    assert_eq!(status["mode"], "standalone");
    let expected = serde_json::json!({
        "id": "node-7", "version": env!("CARGO_PKG_VERSION"), "ready": true, "connections": 2, "sessions": 3,
        "sessions_dormant": 1, "subscriptions": 3, "queued_messages": 4,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&node[key], value, "{key} in {node}");
    }
    assert_eq!((&node["journal"]["type"], &node["journal"]["healthy"]), (&"redb".into(), &true.into()));
    assert!(node["journal"]["size_bytes"].as_u64().unwrap() > 0);
    for (metric, expected) in [
        ("mqtt_connections_total", 3.0),
        ("mqtt_connections_active", 2.0),
        ("mqtt_messages_received_total{qos=\"0\"}", 2.0),
        ("mqtt_messages_received_total{qos=\"1\"}", 3.0),
        ("mqtt_messages_received_total{qos=\"2\"}", 2.0),
        ("mqtt_messages_sent_total{qos=\"0\"}", 2.0),
        ("mqtt_messages_sent_total{qos=\"1\"}", 2.0),
        ("mqtt_messages_sent_total{qos=\"2\"}", 2.0),
        ("mqtt_subscriptions_active", 3.0),
        ("berth_sessions{state=\"active\"}", 2.0),
        ("berth_sessions{state=\"dormant\"}", 1.0),
        ("berth_queued_messages", 4.0),
        ("berth_journal_healthy", 1.0),
        ("berth_takeovers_total", 0.0),
    ] {
        assert_eq!(broker.metric(metric), expected, "{metric}");
    }
    assert!(broker.metric("mqtt_bytes_received_total") > 100.0);
    online.disconnect();
    publisher.disconnect();
    wait::until_true("nobody is connected", || broker.metric("mqtt_connections_active") == 0.0);
    let status = broker.get_json("/cluster/status");
    assert_eq!((&status["node"]["sessions"], &status["node"]["subscriptions"]), (&1.into(), &1.into()));
    // Counters begin anew, the rest is as it was.
    broker.sigkill();
    broker.restart();
    assert_eq!(broker.metric("mqtt_connections_total"), 0.0);
    let again = broker.get_json("/cluster/status");
    for key in ["sessions", "sessions_dormant", "subscriptions", "queued_messages"] {
        assert_eq!(again["node"][key], status["node"][key], "{key}");
    }
}

#[test]
fn json_logs_are_json() {
    let mut broker = Setup::new().set("log.format", "json").env("BERTH__LOG__LEVEL", "debug").start();
    let mut client = Dial::v5("quo\"ted\\ \u{e9}").connect(broker.mqtt);
    client.send(&[0xF0, 0]).unwrap();
    client.expect_closed();
    assert!(broker.stop().success());
    let log = broker.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    assert!(
        lines
            .iter()
            .all(|l| l["level"].is_string() && l["message"].is_string() && l["timestamp"].is_string())
    );
    assert!(lines.iter().any(|l| l["message"] == "MQTT listens" && l["address"] == broker.mqtt.to_string()));
    assert!(lines.iter().any(|l| l["client"] == "quo\"ted\\ \u{e9}"), "{log}");
}

/// A file system of its own, unmounted when dropped.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// `None`, said aloud, if mounting is not permitted here.
    pub fn mount(options: &str) -> Option<Tmpfs> {
        let dir = TempDir::new().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "berth-test"])
            .arg(dir.path())
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Tmpfs(dir)),
            Ok(done) => skip(&String::from_utf8_lossy(&done.stderr)),
            Err(e) => skip(&e.to_string()),
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let done =
            std::process::Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        assert!(done.success());
    }
}

/// Says so past the test runner, which shows nothing of a test that passes.
fn skip(why: &str) -> Option<Tmpfs> {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: cannot mount a tmpfs: {}", why.trim());
    None
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a broker that is being killed may still have its files open.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// What is waiting for the client now, without acknowledging it.
#[test]
fn queued_messages_are_counted_until_they_are_acknowledged() {
    let broker = Broker::start();
    let mut client = Dial::v5("slow").persistent().receive_maximum(2).connect(broker.mqtt);
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for _ in 0..10 {
        publisher.publish("t", "x", QoS::AtLeastOnce);
    }
    let first: Vec<_> = (0..2).map(|_| client.receive_only().packet_id).collect();
    client.ping();
    for id in first {
        client.ack(AckKind::PubAck, id).unwrap();
    }
    for _ in 0..8 {
        client.receive();
    }
    client.ping();
    drop(client);
    wait::until_true("nothing waits", || {
        broker.metric("berth_queued_messages") == 0.0 && broker.metric("mqtt_connections_active") == 1.0
    });
}
