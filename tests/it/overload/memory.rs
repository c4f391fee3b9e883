//! The memory watermarks: publishers wait, whoever receives does not, and everything goes on once memory is free again.

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

const MIB: u64 = 1 << 20;

/// A broker that begins to do something when `slack` bytes more are used than by an idle one; `refuse_at` percent of its memory is where
/// it refuses connections, if that is more.
fn start(slack: u64, refuse_at: Option<u64>) -> Broker {
    let idle = Broker::start().resident_bytes();
    let limit = (idle + slack) * 2;
    Setup::new()
        .set("limits.memory", &limit.to_string())
        .set("limits.memory_pause_at", "50%")
        .set("limits.memory_refuse_at", &format!("{}%", refuse_at.unwrap_or(50)))
        .set("session.mailbox_bytes", "1GiB")
        .set("session.mailbox_messages", "1_000_000")
        .start()
}

/// A subscriber that takes nothing: what is published waits for it in memory.
fn stopped(to: SocketAddr) -> Client {
    let mut client = Dial::v5("stopped").connect_narrow(to, 4096);
    client.subscribe(&[("flood/#", QoS::AtMostOnce)]);
    client
}

/// Publishes until it is told to stop, however long it has to wait in between; then how many messages it has sent.
fn flood<'s>(
    scope: &'s Scope<'s, '_>,
    to: SocketAddr,
    stop: &'s AtomicBool,
) -> std::thread::ScopedJoinHandle<'s, u64> {
    let mut client = Dial::v5("flood").keep_alive(2).connect(to);
    scope.spawn(move || {
        let payload = vec![b'x'; 32 * 1024];
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            client.publish_with("flood/a", &payload, QoS::AtLeastOnce, false);
            sent += 1;
        }
        client.disconnect();
        sent
    })
}

fn level(broker: &Broker) -> f64 {
    broker.metric("berth_memory_level")
}

#[test]
fn publishers_wait_while_receivers_are_heard_and_go_on_when_memory_is_free() {
    let broker = start(48 * MIB, Some(100));
    // Has a message in flight that it acknowledges while memory is short.
    let mut receiver = Dial::v4("receiver").persistent().connect(broker.mqtt);
    receiver.subscribe(&[("in/#", QoS::AtLeastOnce)]);
    // Publishes as well: its acknowledgement comes behind its PUBLISH packets.
    let mut both = Dial::v5("both").connect(broker.mqtt);
    both.subscribe(&[("in/#", QoS::AtLeastOnce)]);
    Dial::v5("first").connect(broker.mqtt).publish("in/a", "1", QoS::AtLeastOnce);
    let (first, second) = (receiver.receive_only().packet_id, both.receive_only().packet_id);
    let sink = stopped(broker.mqtt);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flooding = flood(scope, broker.mqtt, &stop);
        wait::until_true("memory runs short", || level(&broker) == 1.0);
        wait::until_true("the publisher waits", || broker.metric("berth_publishers_paused") == 1.0);
        let status = broker.get_json("/cluster/status");
        assert_eq!(status["node"]["memory"], "publishers paused");
        assert_eq!(broker.get("/ready").0, 200);

        receiver.ack(AckKind::PubAck, first).unwrap();
        receiver.ping();
        // Two PUBLISH packets before its acknowledgement: they pass one by one.
        both.send_publish("elsewhere", b"a", QoS::AtMostOnce, false).unwrap();
        both.send_publish("elsewhere", b"b", QoS::AtMostOnce, false).unwrap();
        both.ack(AckKind::PubAck, second).unwrap();
        both.ping();
        // Nothing is in flight to it now: its next one waits, and with it what comes behind.
        both.send_publish("elsewhere", b"c", QoS::AtMostOnce, false).unwrap();
        wait::until_true("it waits too", || broker.metric("berth_publishers_paused") == 2.0);
        // Who comes now is served.
        let mut late = Dial::v5("late").connect(broker.mqtt);
        assert_eq!(late.subscribe(&[("in/#", QoS::AtLeastOnce)]), [1]);
        late.ping();
        // Longer than one and a half keep alives of the publisher, which is not heard because nobody reads it.
        wait::pace(4_000);
        assert_eq!((level(&broker), broker.metric("berth_publishers_paused")), (1.0, 2.0));

        drop(sink);
        wait::until_true("memory is free", || level(&broker) == 0.0);
        both.ping();
        wait::until_true("nobody waits", || broker.metric("berth_publishers_paused") == 0.0);
        let mut receives = Dial::v5("receives").connect(broker.mqtt);
        receives.subscribe(&[("flood/#", QoS::AtMostOnce)]);
        receives.receive();
        stop.store(true, Ordering::Relaxed);
        assert!(flooding.join().unwrap() > 100);
    });
    let log = broker.log();
    assert_eq!(log.matches("publishers are not read until it is freed").count(), 1, "{log}");
    assert_eq!(log.matches("there is memory again: publishers are read").count(), 1, "{log}");
    assert_eq!(broker.metric("berth_memory_pauses_total"), 1.0);
    assert_eq!(broker.metric("mqtt_errors_total{type=\"keep_alive_timeout\"}"), 0.0);
}

/// Clients whose PUBLISH is held close their connection: their end counts although memory stays short, and so does what they said before.
#[test]
fn whoever_is_gone_while_its_publish_waits_has_gone() {
    let broker = start(48 * MIB, Some(100));
    let mut watcher = Dial::v5("watcher").connect(broker.mqtt);
    watcher.subscribe(&[("will/#", QoS::AtMostOnce), ("said/#", QoS::AtMostOnce)]);
    let sink = stopped(broker.mqtt);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flooding = flood(scope, broker.mqtt, &stop);
        wait::until_true("the publisher waits", || broker.metric("berth_publishers_paused") == 1.0);
        let client =
            |name: &str| Dial::v5(name).will(&format!("will/{name}"), "gone", 0).connect(broker.mqtt);
        let (mut lost, mut polite) = (client("lost"), client("polite"));
        for (name, client) in [("lost", &mut lost), ("polite", &mut polite)] {
            (0..3).for_each(|_| {
                client.send_publish(&format!("said/{name}"), b"last words", QoS::AtMostOnce, false).unwrap();
            });
        }
        wait::until_true("they wait", || broker.metric("berth_publishers_paused") == 3.0);
        let inside = broker.metric("mqtt_connections_active");
        drop(lost);
        polite.send(&[0xE0, 0]).unwrap();
        drop(polite);
        wait::until_true("they are gone", || broker.metric("mqtt_connections_active") == inside - 2.0);
        assert_eq!(level(&broker), 1.0, "memory is short all the while");
        let mut heard: Vec<String> = (0..7).map(|_| watcher.receive_only().topic.to_string()).collect();
        heard.sort();
        let expected = [["said/lost"; 3].as_slice(), &["said/polite"; 3], &["will/lost"]].concat();
        assert_eq!(heard, expected);
        drop(sink);
        stop.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
    });
    assert_eq!(broker.metric("berth_publishers_paused"), 0.0);
}

#[test]
fn nobody_new_is_let_in_when_memory_is_nearly_used_up() {
    let broker = start(48 * MIB, None);
    let mut inside = Dial::v5("inside").connect(broker.mqtt);
    let sink = stopped(broker.mqtt);
    let stop = AtomicBool::new(false);
    let mosquitto = |version: &str| {
        let port = broker.mqtt.port().to_string();
        let args = ["-h", "127.0.0.1", "-p", &port, "-V", version, "-t", "t", "-m", "m", "-q", "1"];
        Command::new("mosquitto_pub").args(args).output().unwrap()
    };
    std::thread::scope(|scope| {
        let flooding = flood(scope, broker.mqtt, &stop);
        wait::until_true("memory runs short", || level(&broker) == 2.0);
        for (version, expected) in [
            (Version::V31, Reason::ServerUnavailable),
            (Version::V311, Reason::ServerUnavailable),
            (Version::V5, Reason::QuotaExceeded),
        ] {
            match Dial::new(version, "new").try_connect(broker.mqtt).unwrap().1 {
                In::ConnAck { reason, .. } => assert_eq!(reason, expected, "{version:?}"),
                other => panic!("{other:?}"),
            }
        }
        for (version, words) in [("311", "unavailable"), ("5", "Quota exceeded")] {
            let output = mosquitto(version);
            let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
            assert!(!output.status.success() && said.contains(&words.to_lowercase()), "{version}: {said}");
        }
        let (code, reason) = broker.get("/ready");
        assert!(code == 503 && reason.contains("limits.memory_refuse_at"), "{reason}");
        inside.ping();
        assert_eq!(broker.metric("berth_memory_refused_total"), 5.0);
        drop(sink);
        wait::until_true("memory is free", || level(&broker) == 0.0);
        assert_eq!(broker.get("/ready").0, 200);
        assert!(mosquitto("5").status.success());
        stop.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
    });
    let log = broker.log();
    assert_eq!(log.matches(": new connections are refused").count(), 1, "{log}");
    let recovered = log.lines().find(|l| l.contains("there is memory again")).unwrap();
    assert!(recovered.contains("refused=5"), "{recovered}");
    assert!(!log.contains("connection refused"), "{log}");
}

/// A look that fails, since no file can be opened, is not the last one.
#[test]
fn memory_is_looked_at_again_once_files_can_be_opened_again() {
    let broker = start(48 * MIB, Some(100));
    let files_max = |max: &str| {
        let (pid, limit) = (format!("--pid={}", broker.pid()), format!("--nofile={max}:"));
        let output = Command::new("prlimit").args([pid, limit]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    files_max("8");
    wait::until_true("a look fails", || broker.log().contains("how much memory is used cannot be read"));
    files_max("1024");
    wait::until_true("a look succeeds", || {
        broker.log().contains("how much memory is used can be read again")
    });
    let sink = stopped(broker.mqtt);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flooding = flood(scope, broker.mqtt, &stop);
        wait::until_true("memory runs short", || level(&broker) == 1.0);
        drop(sink);
        stop.store(true, Ordering::Relaxed);
        flooding.join().unwrap();
    });
    assert_eq!(broker.log().matches("how much memory is used cannot be read").count(), 1);
}

#[test]
fn without_a_limit_nobody_waits() {
    let broker = Setup::new().set("limits.memory", "off").start();
    assert_eq!(broker.metric("berth_memory_limit_bytes"), 0.0);
    let broker = Broker::start();
    wait::until_true("the machine's memory is known", || broker.metric("berth_memory_limit_bytes") > 0.0);
    assert_eq!(level(&broker), 0.0);
}
