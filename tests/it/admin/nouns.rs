//! `berth ctl listeners`, `config show`, `sessions purge`, `publish`, and `berth completion`.

use super::Tokens;
use crate::broker::{Setup, command, free_address};
use crate::client::Dial;
use crate::listeners::pki::Pki;
use crate::operate::{ctl, ctl_json};
use crate::wait;
use berth::mqtt::QoS;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn listeners_are_listed_with_their_connections_and_certificates() {
    let pki = Pki::new("authority");
    let (cert, key) = pki.server("broker");
    let address = free_address();
    let broker = Setup::new()
        .set("listeners.door.type", "tls")
        .set("listeners.door.address", &address.to_string())
        .set("listeners.door.cert_file", &cert.file)
        .set("listeners.door.key_file", &key.file)
        .set("listeners.off.type", "ws")
        .set("listeners.off.enabled", "false")
        .start();
    let _clients = ["a", "b"].map(|id| Dial::v5(id).connect(broker.mqtt));
    // That is no handshake.
    TcpStream::connect(address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let answer = wait::until("all are counted", || {
        let answer = ctl_json(broker.http, &["listeners"]);
        (answer["listeners"][1]["refused"] == 1 && answer["listeners"][1]["connections"] == 0)
            .then_some(answer)
    });
    let listeners = answer["listeners"].as_array().unwrap();
    let fields = |l: &Value| json!([l["name"], l["type"], l["addresses"], l["connections"], l["refused"]]);
    let expected = [
        json!(["tcp", "tcp", [broker.mqtt.to_string()], 2, 0]),
        json!(["door", "tls", [address.to_string()], 0, 1]),
    ];
    assert_eq!(listeners.iter().map(fields).collect::<Vec<_>>(), expected);
    assert!(listeners[0].get("certificate_expires_at").is_none());
    // The second of January 2090.
    assert_eq!(listeners[1]["certificate_expires_at"], 3_786_998_400_000_u64);
    let text = ctl(broker.http, &["listeners"]).ok();
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["listener", "type", "address", "connections", "refused", "certificate"]);
    assert_eq!(rows[2][..7], ["door", "tls", &*address.to_string(), "0", "1", "expires", "in"]);
}

#[test]
fn sessions_that_nobody_uses_are_ended() {
    let tokens = Tokens::new();
    let audit = tokens.path("audit");
    let mut broker = Setup::new()
        .set("http.admin_token_file", &tokens.admin.file)
        .set("http.read_token_file", &tokens.read.file)
        .set("audit.file", &audit)
        .start();
    for id in ["a-1", "a-2", "b-1"] {
        let mut client = Dial::v5(id).persistent().connect(broker.mqtt);
        client.subscribe(&[("t", QoS::AtLeastOnce)]);
        client.disconnect();
    }
    let mut here = Dial::v5("a-here").persistent().connect(broker.mqtt);
    wait::until_true("three are dormant", || broker.metric("berth_sessions{state=\"dormant\"}") == 3.0);
    here.publish("t", "queued", QoS::AtLeastOnce);
    let admin = |args: &[&str]| ctl(broker.http, &[&["--token-file", &*tokens.admin.file], args].concat());
    let read = |args: &[&str]| ctl(broker.http, &[&["--token-file", &*tokens.read.file], args].concat());
    let list = || {
        let text = read(&["sessions", "list"]).ok();
        text.lines().skip(1).map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let said = admin(&["sessions", "purge", "a-*"]).ok();
    let expected = "a-1\na-2\n1 that match have a client connected: they are left alone\n2 sessions would be ended: --yes ends them\n";
    assert_eq!(said, expected);
    assert_eq!(list(), ["a-1", "a-2", "a-here", "b-1"], "they are only listed");
    assert!(
        admin(&["sessions", "purge", "*", "--offline", "1h"]).ok().ends_with("no session would be ended\n")
    );
    assert!(
        admin(&["sessions", "purge", "*", "--offline", "1h", "--yes"])
            .ok()
            .ends_with("0 sessions were ended\n")
    );
    assert!(read(&["sessions", "purge", "a-*", "--yes"]).failed(1).contains("403"));
    assert_eq!(list().len(), 4);
    let said = admin(&["sessions", "purge", "a-?", "--yes"]).ok();
    assert_eq!(said, "2 sessions were ended\n");
    assert_eq!(list(), ["a-here", "b-1"]);
    let answer: Value = serde_json::from_str(&admin(&["sessions", "purge", "*", "--json"]).ok()).unwrap();
    assert_eq!(answer, json!({ "clients": ["b-1"], "total": 1, "connected": 1, "ended": 0 }));
    // For good: they are not in the journal either, and whoever comes back begins anew.
    drop(here);
    broker.stop();
    broker.restart();
    assert!(!Dial::v5("a-1").persistent().connect(broker.mqtt).present);
    assert!(Dial::v5("b-1").persistent().connect(broker.mqtt).present);
    let lines: Vec<String> = std::fs::read_to_string(&audit)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|l| format!("{} {} {} {}", l["who"], l["action"], l["subject"], l["outcome"]).replace('"', ""))
        .collect();
    let expected = [
        "alice session purge * done",
        "read-only refused POST /api/v1/purge refused",
        "alice session purge a-? done",
    ];
    assert_eq!(lines, expected, "what only lists is no change");
}

#[test]
fn an_operator_publishes() {
    let tokens = Tokens::new();
    let audit = tokens.path("audit");
    let broker = Setup::new()
        .set("http.admin_token_file", &tokens.admin.file)
        .set("http.read_token_file", &tokens.read.file)
        .set("audit.file", &audit)
        .start();
    let mut client = Dial::v5("robot").connect(broker.mqtt);
    client.subscribe(&[("orders/#", QoS::ExactlyOnce)]);
    let admin = |args: &[&str]| ctl(broker.http, &[&["--token-file", &*tokens.admin.file], args].concat());
    for (qos, text) in [("0", "none"), ("1", "one"), ("2", "two")] {
        let said = admin(&["publish", "orders/7", text, "--qos", qos]).ok();
        assert_eq!(said, format!("{} bytes published to orders/7\n", text.len()));
        let got = client.receive();
        assert_eq!((got.text(), (got.qos as u8).to_string()), (text, qos.to_owned()));
    }
    assert_eq!(admin(&["publish", "else", "x"]).ok(), "1 bytes published to else; nobody subscribes to it\n");
    // From standard input, as it is.
    let mut child = command()
        .args([
            "ctl",
            "--token-file",
            &*tokens.admin.file,
            "publish",
            "orders/state",
            "--retain",
            "--qos",
            "1",
        ])
        .env("BERTH_URL", format!("http://{}", broker.http))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[0, 0xFF, b'\n']).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(client.receive().payload, [0, 0xFF, b'\n']);
    let mut late = Dial::v4("late").connect(broker.mqtt);
    late.subscribe(&[("orders/state", QoS::AtMostOnce)]);
    assert_eq!(late.receive().payload, [0, 0xFF, b'\n']);
    for (args, code, words) in [
        (&["publish", "a/#", "x"][..], 1, "is not a topic name"),
        (&["publish", "$SYS/broker/uptime", "x"], 1, "nobody else publishes below $SYS"),
        (&["publish", "a", "x", "--qos", "3"], 2, "--qos"),
    ] {
        let said = admin(args).failed(code);
        assert!(said.contains(words), "{said}");
    }
    let said = ctl(broker.http, &["--token-file", &tokens.read.file, "publish", "orders/7", "x"]).failed(1);
    assert!(said.contains("403"), "{said}");
    let lines = std::fs::read_to_string(&audit).unwrap();
    assert_eq!(
        lines.lines().filter(|l| l.contains("\"publish\"") && l.contains("alice")).count(),
        7,
        "{lines}"
    );
    assert!(!lines.contains("none"), "payloads are not written down");
}

#[test]
fn options_are_shown_with_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berth.yaml");
    std::fs::write(&file, "limits: {max_qos: 1}\nlisteners: {more: {type: tcp, address: '127.0.0.1:0'}}\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let broker = Setup::new()
        .arg("--config")
        .arg(file)
        .env("BERTH__SESSION__MAX_INFLIGHT", "7")
        .env("BERTH__ETCD__PASSWORD", "plantedsecret")
        .set("auth.http.url", "https://accounts.example.org/mqtt?key=plantedsecret")
        .set("log.level", "warn,berth=info")
        .start();
    let answer = ctl_json(broker.http, &["config", "show"]);
    assert_eq!(answer["file"], file);
    let options = answer["options"].as_array().unwrap();
    let of = |key: &str| {
        let found: Vec<_> = options.iter().filter(|o| o["key"] == key).collect();
        assert_eq!(found.len(), 1, "{key}");
        (found[0]["value"].as_str().unwrap(), found[0]["origin"].as_str().unwrap())
    };
    let from_file = |line: usize| format!("file {file}, line {line}");
    let (first, second) = (from_file(1), from_file(2));
    let expected = [
        ("limits.max_qos", ("1", &*first)),
        ("session.max_inflight", ("7", "env BERTH__SESSION__MAX_INFLIGHT")),
        ("log.level", ("warn,berth=info", "flag --set")),
        ("limits.receive_maximum", ("1000", "default")),
        ("listeners.more.type", ("tcp", &*second)),
        ("etcd.password", ("***", "env BERTH__ETCD__PASSWORD")),
        ("auth.http.url", ("https://accounts.example.org/mqtt?***", "flag --set")),
        ("etcd.password_file", ("", "default")),
    ];
    for (key, shown) in expected {
        assert_eq!(of(key), shown, "{key}");
    }
    for key in berth::config::options::keys() {
        of(&key);
    }
    let text = ctl(broker.http, &["config", "show", "--changed"]).ok();
    assert!(text.starts_with(&format!("configuration file: {file}\n")), "{text}");
    assert!(text.contains("limits.max_qos") && !text.contains("limits.receive_maximum"), "{text}");
    assert!(!text.contains("plantedsecret") && !answer.to_string().contains("plantedsecret"));
    assert!(!broker.log().contains("plantedsecret"));
}

#[test]
fn shells_complete_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let done = command().args(["completion", shell]).output().unwrap();
        let script = String::from_utf8(done.stdout).unwrap();
        assert!(
            done.status.success() && script.contains("listeners") && script.contains("token-file"),
            "{shell}"
        );
    }
    assert_eq!(command().args(["completion", "tcsh"]).output().unwrap().status.code(), Some(2));
    // As somebody types: the last word is completed.
    let ask = "source <(\"$0\" completion bash); COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
               _berth berth \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; echo \"${COMPREPLY[@]}\"";
    for (typed, expected) in [
        (&["berth", "ctl", "sess"][..], "sessions"),
        (&["berth", "ctl", "sessions", "pu"], "purge"),
        (&["berth", "completion", "f"], "fish"),
    ] {
        let done =
            Command::new("bash").args(["-c", ask, env!("CARGO_BIN_EXE_berth")]).args(typed).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), expected, "{typed:?} {done:?}");
    }
}
