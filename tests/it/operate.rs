//! What an operator asks a broker and tells it to do: `/api/v1/` and `berth ctl`, against real processes.

use crate::broker::{Broker, Setup, command, free_address};
use crate::client::Dial;
use crate::wait;
use berth::mqtt::{QoS, Reason};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;

/// What a run of `berth ctl` gave.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its output, which must be that of a success.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        assert_eq!(self.err, "");
        self.out
    }

    /// Its words, which must be those of a failure.
    pub fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &*self.out), (code, ""), "{}", self.err);
        assert!(self.err.starts_with("berth ctl: ") || code == 2, "{}", self.err);
        self.err
    }
}

/// Runs `berth ctl` against the broker whose admin HTTP is at `http`.
pub fn ctl(http: SocketAddr, args: &[&str]) -> Said {
    let output = command().arg("ctl").args(args).env("BERTH_URL", format!("http://{http}")).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// The JSON that `berth ctl` prints.
pub fn ctl_json(http: SocketAddr, args: &[&str]) -> Value {
    serde_json::from_str(&ctl(http, &[args, &["--json"]].concat()).ok()).unwrap()
}

/// A request with a method other than GET, or more headers: status code and JSON.
fn ask(broker: &Broker, request: &str, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(broker.http).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn column(page: &Value, list: &str, field: &str) -> Vec<String> {
    page[list].as_array().unwrap().iter().map(|s| s[field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn sessions_are_listed_in_pages() {
    let broker = Broker::start();
    let _online: Vec<_> = ["a", "b/1", "b/2"].map(|id| Dial::v5(id).connect(broker.mqtt)).into();
    let mut dormant = Dial::v5("c ü").persistent().connect(broker.mqtt);
    dormant.subscribe(&[("t", QoS::AtLeastOnce)]);
    dormant.disconnect();
    wait::until_true("it is dormant", || {
        broker.get_json("/api/v1/sessions/c%20%C3%BC")["session"]["state"] == "dormant"
    });
    Dial::v5("a").connect(broker.mqtt).publish("t", "x", QoS::AtLeastOnce);
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let args = ["sessions", "list", "--limit", "3", "--after", &after];
        let page = ctl_json(broker.http, &args);
        found.extend(column(&page, "sessions", "client_id"));
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    let first: Vec<_> = found.iter().filter(|id| **id != "a").cloned().collect();
    assert_eq!(first, ["b/1", "b/2", "c ü"]);
    let page = broker.get_json("/api/v1/sessions?prefix=b%2F");
    assert_eq!(column(&page, "sessions", "client_id"), ["b/1", "b/2"]);
    let table = ctl(broker.http, &["sessions", "list", "--prefix", "c"]).ok();
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("client  node  state"), "{table}");
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row, ["c", "ü", "-", "dormant", "yes", "1", "1", "0"], "{table}");
    assert_eq!(lines.next(), None);
    assert_eq!(ctl(broker.http, &["sessions", "list", "--prefix", "z"]).ok(), "no sessions\n");
}

#[test]
fn a_session_is_described_and_kicked() {
    let broker = Broker::start();
    let dial = Dial::v5("robot/7").persistent().expiry(90).will("gone/7", "bye", 30);
    let mut client = dial.connect(broker.mqtt);
    client.subscribe(&[("orders/+", QoS::ExactlyOnce), ("$share/g/jobs/#", QoS::AtLeastOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for n in 0..3 {
        publisher.publish("orders/1", &n.to_string(), QoS::AtLeastOnce);
    }
    assert_eq!(client.receive_only().text(), "0"); // not acknowledged
    let found = wait::until("three are in flight", || {
        let found = broker.get_json("/api/v1/sessions/robot%2F7");
        (found["session"]["in_flight"] == 3).then_some(found)
    });
    let session = &found["session"];
    let expected = serde_json::json!({
        "client_id": "robot/7", "state": "connected", "persistent": true, "subscriptions": 2, "queued": 0,
        "expiry_seconds": 90,
        "will": {"topic": "gone/7", "qos": 0, "retain": false, "delay_seconds": 30},
        "filters": [{"filter": "$share/g/jobs/#", "qos": 1}, {"filter": "orders/+", "qos": 2}],
    });
    for (key, value) in expected.as_object().unwrap() {
        if key == "will" {
            assert_eq!(session[key]["topic"], value["topic"], "{session}");
            assert_eq!(session[key]["delay_seconds"], value["delay_seconds"], "{session}");
        } else {
            assert_eq!(&session[key], value, "{key} in {session}");
        }
    }
    assert_eq!(session["connection"]["version"], "5.0");
    let text = ctl(broker.http, &["sessions", "show", "robot/7"]).ok();
    for words in
        ["robot/7", "connected from 127.0.0.1:", "1m 30s after", "gone/7", "orders/+", "2 subscriptions"]
    {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }

    let said = ctl(broker.http, &["sessions", "kick", "robot/7"]).ok();
    assert_eq!(said, "the connection of robot/7 is closed; its session stays\n");
    assert_eq!(client.expect_closed(), Some(Reason::AdministrativeAction));
    let dormant = wait::until("it is dormant", || {
        let found = broker.get_json("/api/v1/sessions/robot%2F7");
        (found["session"]["state"] == "dormant").then_some(found)
    });
    assert!(dormant["session"]["connection"].is_null() && dormant["session"]["disconnected_at"].is_u64());
    assert_eq!(dormant["session"]["expiry_seconds"], 90);
    let said = ctl(broker.http, &["sessions", "kick", "robot/7"]).ok();
    assert_eq!(said, "robot/7 is not connected; its session is dormant\n");
    let said = ctl(broker.http, &["sessions", "kick", "nobody"]).failed(1);
    assert_eq!(said, "berth ctl: no session of client \"nobody\" is known\n");
    assert!(ctl(broker.http, &["sessions", "show", "nobody"]).failed(1).contains("nobody"));
    assert_eq!(broker.get("/api/v1/sessions/nobody").0, 404);
}

#[test]
fn routes_and_retained_messages_are_shown() {
    let broker = Broker::start();
    let mut a = Dial::v5("a").connect(broker.mqtt);
    a.subscribe(&[("s/+/t", QoS::AtMostOnce), ("s/#", QoS::AtLeastOnce)]);
    let mut b = Dial::v5("b").persistent().connect(broker.mqtt);
    b.subscribe(&[("$share/g/s/1/t", QoS::ExactlyOnce)]);
    let routes = ctl_json(broker.http, &["routes", "show", "s/1/t"]);
    assert_eq!(routes["sessions_total"], 1);
    let session = &routes["sessions"][0];
    assert_eq!(
        (&session["client_id"], &session["qos"], &session["connected"]),
        (&"a".into(), &1.into(), &true.into())
    );
    assert_eq!(routes["groups"][0]["name"], "$share/g/s/1/t");
    assert_eq!(routes["groups"][0]["nodes"][0]["weight"], 1);
    assert_eq!(routes["groups"][0]["nodes"][0]["persistent"], true);
    let text = ctl(broker.http, &["routes", "show", "s/1/t"]).ok();
    assert!(
        text.contains("session") && text.contains("$share/g/s/1/t") && text.contains("1 members"),
        "{text}"
    );
    assert!(ctl(broker.http, &["routes", "show", "u"]).ok().contains("nobody subscribes"));
    let wrong = ctl(broker.http, &["routes", "show", "s/#"]).failed(1);
    assert!(wrong.contains("\"s/#\" is not a topic name"), "{wrong}");

    for (topic, payload) in [("r/2", &b"two"[..]), ("r/1", b"one"), ("q", &[0xFF, 0])] {
        a.publish_with(topic, payload, QoS::AtLeastOnce, true);
    }
    let page = ctl_json(broker.http, &["retained", "list", "r/+"]);
    assert_eq!(
        (column(&page, "messages", "topic"), &page["total"]),
        (vec!["r/1".into(), "r/2".into()], &2.into())
    );
    assert_eq!(page["messages"][0]["payload"], "one");
    let text = ctl(broker.http, &["retained", "list", "--limit", "1"]).ok();
    assert!(text.contains("(binary)") && text.contains("and 2 more"), "{text}");
    assert!(ctl(broker.http, &["retained", "list", "a#"]).failed(1).contains("not a topic filter"));
}

#[test]
fn drain_ends_the_process_as_sigterm_does() {
    let mut broker = Broker::start();
    let mut client = Dial::v5("a").persistent().connect(broker.mqtt);
    client.subscribe(&[("t", QoS::AtLeastOnce)]);
    let said = ctl(broker.http, &["drain", "--wait"]).ok();
    assert!(said.ends_with("has ended\n"), "{said}");
    assert_eq!(client.expect_closed(), Some(Reason::ServerShuttingDown));
    assert_eq!(broker.wait().code(), Some(0));
    broker.restart();
    assert!(Dial::v5("a").persistent().connect(broker.mqtt).present);
    assert!(ctl(broker.http, &["node", "drain"]).ok().contains("1 sessions to hand over"));
    assert_eq!(broker.wait().code(), Some(0));
}

#[test]
fn errors_say_what_to_do() {
    let nobody = free_address();
    let said = ctl(nobody, &["cluster", "status"]).failed(1);
    for words in [&*nobody.to_string(), "is the broker running", "--url"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(
        ctl(nobody, &["--url", "https://u@x", "cluster", "status"]).failed(2).contains("must name a host")
    );
    for wrong in
        [&["sessions"][..], &["sessions", "list", "--limit", "0"], &["nonsense"], &["routes", "show"]]
    {
        assert_eq!(ctl(nobody, wrong).code, 2, "{wrong:?}");
    }

    let broker = Broker::start();
    // That is MQTT, not HTTP.
    let said = ctl(broker.mqtt, &["cluster", "status"]).failed(1);
    assert!(said.contains("did not answer as a broker does"), "{said}");
    let said = ctl(broker.http, &["cluster", "forget", "n2"]).failed(1);
    assert!(said.contains("this broker is alone"), "{said}");
    let status = ctl(broker.http, &["cluster", "status"]).ok();
    assert!(status.contains("ready") && status.contains("standalone"), "{status}");
}

#[test]
fn ready_tells_by_its_exit_code() {
    let nobody = free_address();
    assert!(ctl(nobody, &["ready"]).failed(3).contains("is the broker running"));
    assert_eq!(ctl(nobody, &["ready", "--wait", "soon"]).code, 2);

    // It listens there and never answers.
    let mute = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    assert!(ctl(mute.local_addr().unwrap(), &["ready"]).failed(3).contains("did not answer"));

    let mut broker = Broker::start();
    assert_eq!(ctl(broker.http, &["ready"]).ok(), "ready\n");
    assert_eq!(ctl_json(broker.http, &["ready"])["status"], "ready");
    assert!(ctl(broker.mqtt, &["ready"]).failed(3).contains("did not answer as a broker does"));

    // One that comes while somebody waits for it.
    broker.stop();
    let http = broker.http;
    let waits = std::thread::spawn(move || ctl(http, &["ready", "--wait", "60"]));
    broker.restart();
    assert_eq!(waits.join().unwrap().ok(), "ready\n");
}

#[test]
fn web_pages_are_refused() {
    let broker = Broker::start();
    let mut client = Dial::v5("a").connect(broker.mqtt);
    for headers in ["Origin: http://example.org\r\n", "Origin: null\r\n"] {
        let (code, body) = ask(&broker, "DELETE /api/v1/sessions/a", headers);
        assert_eq!(code, 403, "{body}");
        assert!(body["error"].as_str().unwrap().contains("web pages"), "{body}");
        assert_eq!(ask(&broker, "POST /api/v1/node/drain", headers).0, 403);
    }
    client.ping();
    assert_eq!(ask(&broker, "DELETE /api/v1/sessions/a", "").1["closed"], true);
    client.expect_closed();
    // What only shows is for whoever reaches the port.
    assert_eq!(ask(&broker, "GET /health", "Origin: http://example.org\r\n").0, 200);
}

/// While a node waits for etcd its operator can see that, and why.
#[test]
fn a_node_that_waits_for_etcd_says_so() {
    let etcd = free_address();
    let mut broker = Setup::new()
        .set("node.id", "n1")
        .set("cluster.enabled", "true")
        .set("cluster.peer_address", &free_address().to_string())
        .set("etcd.endpoints", &format!("http://{etcd}"))
        .spawn();
    let reason = wait::until("it says what it waits for", || {
        let (code, body) = broker.try_get("/ready")?;
        assert_eq!(code, 503);
        let reason: Value = serde_json::from_str(&body).unwrap();
        let reason = reason["reason"].as_str().unwrap().to_owned();
        reason.contains(&etcd.to_string()).then_some(reason)
    });
    assert!(reason.starts_with("starting: registering this node in etcd"), "{reason}");
    assert_eq!(broker.get("/health").0, 200);
    let status = broker.get_json("/cluster/status");
    assert_eq!((&status["mode"], &status["node"]["ready"]), (&"cluster".into(), &false.into()));
    assert!(status["node"]["not_ready"].as_str().unwrap().contains(&etcd.to_string()));
    let (code, body) = broker.get("/api/v1/sessions");
    assert_eq!(code, 503, "{body}");
    assert!(ctl(broker.http, &["sessions", "list"]).failed(1).contains("not now (503): starting"));
    assert!(ctl(broker.http, &["drain"]).failed(1).contains("starting"));
    assert!(ctl(broker.http, &["ready"]).failed(1).contains("starting: registering this node in etcd"));
    assert!(ctl(broker.http, &["cluster", "status"]).ok().contains("not ready: starting"));
    assert!(broker.get("/metrics").1.contains("berth_uptime_seconds"));
    assert_eq!(broker.stop().code(), Some(0));
}

#[test]
fn with_tokens_ctl_needs_one_and_orders_are_in_the_audit_log() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let admin = file("admin", "# operators\nalice aaaaaaaaaaaaaaaaaaaaaaaa\n");
    let read = file("read", "bbbbbbbbbbbbbbbbbbbbbbbb\n");
    let log = dir.path().join("audit.jsonl");
    let mut broker = Setup::new()
        .set("http.admin_token_file", &admin)
        .set("http.read_token_file", &read)
        .set("audit.file", log.to_str().unwrap())
        .start();
    let _client = Dial::v5("robot/7").connect(broker.mqtt);
    let said = ctl(broker.http, &["cluster", "status"]).failed(1);
    assert!(said.contains("401") && said.contains("--token-file"), "{said}");
    let with = |file: &str, args: &[&str]| ctl(broker.http, &[&["--token-file", file], args].concat());
    assert!(with(&read, &["sessions", "list"]).ok().contains("robot/7"));
    let said = with(&read, &["sessions", "kick", "robot/7"]).failed(1);
    assert!(said.contains("403") && said.contains("http.admin_token_file"), "{said}");
    with(&admin, &["sessions", "kick", "robot/7"]).ok();
    assert_eq!(ctl(broker.http, &["ready"]).ok(), "ready\n");
    let said = with("/nowhere", &["ready"]).failed(2);
    assert!(said.contains("/nowhere"), "{said}");

    let lines: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said: Vec<_> =
        lines.iter().map(|l| (&l["who"], &l["action"], &l["subject"], &l["outcome"])).collect();
    assert_eq!(
        format!("{said:?}").replace("String", ""),
        r#"[(("read-only"), ("refused"), ("DELETE /api/v1/sessions/robot%2F7"), ("refused")), (("alice"), ("session kick"), ("robot/7"), ("done"))]"#
    );
    let said = broker.wait_log(|line| line.contains("session kick"));
    assert!(said.contains("alice") && !broker.log().contains("aaaaaaaaaa"), "{said}");
    assert!(!broker.get("/metrics").1.contains("aaaaaaaaaa"));

    // A file that everybody may read is refused before anything else is done.
    std::fs::set_permissions(&admin, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut refused = Setup::new().set("http.admin_token_file", &admin).spawn();
    assert!(!refused.wait().success());
    let said = refused.log();
    assert!(said.contains("http.admin_token_file") && said.contains("chmod o="), "{said}");
}
