//! Names of the length and with the characters that MQTT allows, as an operator meets them.

use crate::broker::{Broker, command};
use crate::client::{Client, Dial};
use crate::operate::{Said, ctl, ctl_json};
use berth::mqtt::{QoS, Reason};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

/// A name of 65,535 bytes: what is special in a URL, a shell, JSON and a terminal, then the longest escapes there are, then `end`.
pub fn longest(end: &str) -> String {
    let mut name = "/a%2F \"it's\" ?&=#\\\n\r\t\u{1b}[2J\u{85}\u{202e}é$(x)`".replace(['+', '#'], "");
    name.extend(std::iter::repeat_n('\u{1}', 65_535 - name.len() - end.len()));
    name + end
}

/// Runs `berth ctl` with `input` on standard input.
pub fn ctl_reading(http: SocketAddr, args: &[&str], input: &str) -> Said {
    let mut child = command()
        .arg("ctl")
        .args(args)
        .env("BERTH_URL", format!("http://{http}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// What may be written to a terminal, in lines that fit one.
pub fn readable(text: &str) -> &str {
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    for line in text.lines() {
        assert!(line.chars().count() < 1_200, "{} characters: {line}", line.chars().count());
    }
    text
}

fn post(broker: &Broker, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(broker.http).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n");
    // It may be refused, and the connection closed, before all is written.
    let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn a_client_identifier_of_65535_bytes_is_shown_and_kicked() {
    let mut broker = Broker::start();
    for (dial, closed) in [
        (Dial::v5(&longest("5")).persistent(), Some(Reason::AdministrativeAction)),
        (Dial::v4(&longest("4")).persistent(), None),
    ] {
        let id = longest(if closed.is_some() { "5" } else { "4" });
        let mut client = dial.connect(broker.mqtt);
        client.subscribe(&[(&longest("/f"), QoS::AtLeastOnce)]);
        let found = ctl_json(broker.http, &["sessions", "show", &id]);
        assert!(found["client_id"] == *id && found["session"]["filters"][0]["filter"] == *longest("/f"));
        let table = ctl(broker.http, &["sessions", "show", &id]).ok();
        assert!(readable(&table).contains("connected from 127.0.0.1:"), "{table}");
        assert!(table.contains("(65535 bytes)") && table.contains("--json has all"), "{table}");
        // As of when it is differs.
        let session = |text: String| {
            let mut session = serde_json::from_str::<Value>(&text).unwrap()["session"].take();
            assert!(session.as_object_mut().unwrap().remove("as_of").is_some(), "{text}");
            session
        };
        let read = ctl_reading(broker.http, &["--json", "sessions", "show", "-"], &format!("{id}\n")).ok();
        assert_eq!(session(read), session(ctl(broker.http, &["--json", "sessions", "show", &id]).ok()));
        let said = ctl_reading(broker.http, &["sessions", "kick", "-"], &id).ok();
        assert!(readable(&said).contains("is closed; its session stays"), "{said}");
        assert_eq!(client.expect_closed(), closed);
    }
    let said = ctl(broker.http, &["sessions", "show", &longest("nobody")]).failed(1);
    assert!(readable(&said).contains("no session of client") && said.contains("nobody"), "{said}");
    let said = ctl_reading(broker.http, &["sessions", "show", "-"], &"x".repeat(65_536)).failed(2);
    assert!(said.contains("longer than 65535 bytes"), "{said}");
    broker.wait_log(|l| l.contains("an operator closed the client's connection"));
    readable(&broker.log());
}

#[test]
fn lists_of_long_names_go_on_from_page_to_page() {
    let broker = Broker::start();
    let names: Vec<String> = (0..50).map(|n| longest(&format!("{n:02}"))).collect();
    let mut clients: Vec<Client> = names.iter().map(|n| Dial::v5(n).connect(broker.mqtt)).collect();
    for client in &mut clients {
        client.subscribe(&[("t", QoS::AtMostOnce)]);
    }
    let (mut found, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let args =
            ["--json", "sessions", "list", "--limit", "1000", "--prefix", &names[0][..60_000], "--after=-"];
        let page: Value =
            serde_json::from_str(&ctl_reading(broker.http, &args, &format!("{after}\n")).ok()).unwrap();
        let ids = page["sessions"].as_array().unwrap().iter();
        found.extend(ids.map(|s| s["client_id"].as_str().unwrap().to_owned()));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    assert!(found == names, "{} names", found.len());
    assert!(pages > 1, "an answer has an end, however long the names are");
    let table = ctl(broker.http, &["sessions", "list", "--limit", "2"]).ok();
    assert!(readable(&table).contains("00 (65535 bytes)") && table.contains("01 (65535 bytes)"), "{table}");
    assert!(table.contains("--after=-") && table.contains("--json has all"), "{table}");

    let routes = ctl_json(broker.http, &["routes", "show", "t"]);
    let listed = routes["sessions"].as_array().unwrap().len();
    assert!(routes["sessions_total"] == 50 && (1..50).contains(&listed), "{listed}");
    let table = ctl(broker.http, &["routes", "show", "t"]).ok();
    assert!(readable(&table).contains(&format!("and {} more sessions here", 50 - listed)), "{table}");

    let publisher = &mut clients[0];
    publisher.subscribe(&[(&format!("$share/g/{}", &longest("t")[9..]), QoS::AtMostOnce)]);
    for name in &names {
        assert_eq!(publisher.publish_with(name, b"x", QoS::AtLeastOnce, true), Reason::NoMatchingSubscribers);
    }
    let retained = ctl_json(broker.http, &["retained", "list", &names[7]]);
    assert!(retained["total"] == 1 && retained["messages"][0]["topic"] == *names[7]);
    let table = ctl(broker.http, &["retained", "list", "--limit", "1000"]).ok();
    assert!(readable(&table).contains("more: --limit, or a narrower filter"), "{table}");
    let table = ctl_reading(broker.http, &["routes", "show", "-"], &longest("t")[9..]).ok();
    assert!(readable(&table).contains("$share/g/"), "{table}");
}

#[test]
fn questions_in_a_body_are_as_strict_as_those_in_a_url() {
    let broker = Broker::start();
    let mut client = Dial::v5("a").connect(broker.mqtt);
    let json = "Content-Type: application/json\r\n";
    let (code, body) = post(&broker, "/api/v1/ask/session", json, r#"{"client": "a"}"#);
    assert_eq!((code, &body["client_id"]), (200, &"a".into()));
    let (code, body) = post(&broker, "/api/v1/ask/sessions", json, r#"{"prefix": "a", "limit": 5}"#);
    assert_eq!((code, &body["sessions"][0]["client_id"]), (200, &"a".into()));
    for (path, body) in [
        ("/api/v1/ask/session", r#"{"client": "a", "klient": "b"}"#),
        ("/api/v1/ask/session", "{}"),
        ("/api/v1/ask/session", "no JSON"),
        ("/api/v1/ask/sessions", r#"{"limit": 0}"#),
        ("/api/v1/ask/routes", r##"{"topic": "#"}"##),
        ("/api/v1/ask/retained", r#"{"filter": "a#"}"#),
    ] {
        let (code, said) = post(&broker, path, json, body);
        assert!(code == 400 && said["error"].is_string(), "{path} {body}: {code} {said}");
    }
    // A web page could send this without asking its browser.
    let plain = "Content-Type: text/plain\r\n";
    assert_eq!(post(&broker, "/api/v1/kick", plain, r#"{"client": "a"}"#).0, 400);
    assert_eq!(
        post(&broker, "/api/v1/kick", &format!("{json}Origin: http://x\r\n"), r#"{"client": "a"}"#).0,
        403
    );
    let long = format!(r#"{{"client": "{}"}}"#, "x".repeat(2 << 20));
    assert_eq!(post(&broker, "/api/v1/ask/session", json, &long).0, 400);
    client.ping();
    let (code, body) = post(&broker, "/api/v1/kick", json, r#"{"client": "a"}"#);
    assert_eq!((code, &body["closed"]), (200, &true.into()));
    client.expect_closed();
}
