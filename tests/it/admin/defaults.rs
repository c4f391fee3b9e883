//! What a broker does that nobody has configured: the safe thing, each time.

use crate::broker::{Broker, Setup, free_address};
use crate::client::Dial;
use crate::listeners::pki::{GOOD, Pki};
use crate::tree::{read, root};
use berth::config::options::SECTIONS;
use berth::config::{Config, Sources};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

#[test]
fn every_safe_default_is_the_default_and_names_a_test() {
    let page = read("docs/security.md");
    let (_, table) = page.split_once("### Safe defaults").unwrap();
    let (table, _) = table.split_once("### Hardening").unwrap();
    let (mut wrong, mut rows) = (Vec::new(), 0);
    for row in table.lines().filter(|l| l.starts_with("| `")) {
        rows += 1;
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let options = SECTIONS
            .iter()
            .flat_map(|s| s.options.iter().map(move |o| (format!("{}.{}", s.path, o.name), o)));
        match options.into_iter().find(|(key, _)| *key == cells[1]) {
            Some((_, option)) if option.default == cells[2] => {}
            Some((key, option)) => {
                wrong.push(format!("{key} is {:?} by default, not {:?}", option.default, cells[2]))
            }
            None => wrong.push(format!("there is no option {}", cells[1])),
        }
    }
    assert!(rows >= 15, "{rows}");
    for test in table.split('`').filter(|word| word.contains(".rs::")) {
        let (path, name) = test.split_once("::").unwrap();
        let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        if !text.contains(&format!("fn {name}(")) {
            wrong.push(format!("{test} does not exist"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_broker_without_options_is_reached_from_its_machine_only() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.warnings(), Vec::<String>::new());
    assert_eq!(config.listeners.opened().count(), 1);
    let addresses = config.listeners.all().flat_map(|(_, listener)| listener.address.clone());
    let all: Vec<SocketAddr> =
        addresses.chain(config.http.address).chain([config.cluster.node.peer_address]).collect();
    assert!(all.len() >= 3 && all.iter().all(|a| a.ip().is_loopback()), "{all:?}");
    assert!(!config.cluster.node.enabled, "nothing listens for other nodes");
    assert!(!config.http.plain_tokens && config.auth.allow_anonymous.is_none());
    // By its name a listener of any type is on loopback as well.
    for name in ["tls", "ws", "wss"] {
        let tls =
            [(format!("listeners.{name}.cert_file"), "/c"), (format!("listeners.{name}.key_file"), "/k")];
        let mut pairs = vec![("limits.max_qos", "2")];
        let enabled = format!("listeners.{name}.enabled");
        pairs.push((&enabled, "true"));
        if name != "ws" {
            pairs.extend(tls.iter().map(|(key, value)| (&**key, *value)));
        }
        let config = Config::from_pairs(&pairs).unwrap();
        let listener = config.listeners.get(name).unwrap();
        assert!(listener.address.iter().all(|a| a.ip().is_loopback()), "{name}");
    }
}

/// The status line of an HTTP request's answer.
fn status(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    write!(stream, "{request}Connection: close\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn web_pages_of_others_are_refused() {
    let ws = free_address();
    let broker = Setup::new().set("listeners.ws.address", &ws.to_string()).start();
    let upgrade = |host: &str, origin: &str| {
        let head = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\n{origin}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        );
        let mut stream = TcpStream::connect(ws).unwrap();
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        write!(stream, "{head}{key}Sec-WebSocket-Protocol: mqtt\r\n\r\n").unwrap();
        let mut bytes = [0; 12];
        stream.read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[9..]).into_owned()
    };
    let here = ws.to_string();
    for (host, origin, code) in [
        (&*here, String::new(), "101"),
        (&here, format!("Origin: http://{here}\r\n"), "101"),
        (&here, "Origin: https://evil.example\r\n".to_owned(), "403"),
        (&here, "Origin: null\r\n".to_owned(), "403"),
        // A name of a stranger's that was made to mean this machine.
        ("evil.example", "Origin: http://evil.example\r\n".to_owned(), "403"),
    ] {
        assert_eq!(upgrade(host, &origin), code, "{host} {origin}");
    }
    for (head, code) in [
        ("Host: localhost\r\n", "200"),
        ("Host: localhost\r\nOrigin: http://localhost\r\n", "403"),
        ("Host: evil.example\r\n", "403"),
    ] {
        assert_eq!(status(broker.http, &format!("GET /api/v1/sessions HTTP/1.1\r\n{head}")), code, "{head}");
    }
}

#[test]
fn nobody_may_claim_an_address() {
    let broker = Broker::start();
    let mut stream = TcpStream::connect(broker.mqtt).unwrap();
    stream.write_all(b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 1883\r\n").unwrap();
    let mut client = Vec::new();
    // Whether the end comes as an end or as a reset: nothing comes before it.
    let _ = stream.read_to_end(&mut client);
    assert_eq!(client, b"");
    let _client = Dial::v5("robot").connect(broker.mqtt);
    let found = broker.get_json("/api/v1/sessions/robot");
    assert!(found["session"]["connection"]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{found}");
}

/// What `openssl s_client` says of a port, with what is typed into it.
fn openssl(to: SocketAddr, args: &[&str], typed: &str) -> (bool, String) {
    let mut child = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &to.to_string(), "-servername", "localhost"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    // It may have ended before. What is typed last ends it: until then nothing may end the input.
    let _ = keyboard.write_all(typed.as_bytes());
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (done.status.success(), said)
}

#[test]
fn openssl_finds_nothing_weak() {
    let pki = Pki::new("authority");
    let ((cert, key), client) = (pki.server("broker"), pki.sign("robot", 7, GOOD, &[]));
    let (door, guarded) = (free_address(), free_address());
    let ca = pki.ca().file;
    let broker = Setup::new()
        .set("listeners.door.type", "tls")
        .set("listeners.door.address", &door.to_string())
        .set("listeners.door.cert_file", &cert.file)
        .set("listeners.door.key_file", &key.file)
        .set("listeners.guarded.type", "tls")
        .set("listeners.guarded.address", &guarded.to_string())
        .set("listeners.guarded.cert_file", &cert.file)
        .set("listeners.guarded.key_file", &key.file)
        .set("listeners.guarded.client_certificates", "required")
        .set("listeners.guarded.client_ca_file", &ca)
        .set("http.cert_file", &cert.file)
        .set("http.key_file", &key.file)
        .start();
    let weak = "@SECLEVEL=0";
    for port in [door, broker.http] {
        let cipher = |list: &str| openssl(port, &["-tls1_2", "-cipher", &format!("{list}:{weak}")], "Q\n");
        for list in [
            "aNULL",
            "eNULL",
            "RC4",
            "3DES",
            "EXPORT:LOW",
            "kRSA",
            "kDHE",
            "AES128-SHA",
            "ECDHE+AES+SHA1",
            "ECDHE+AES+SHA256:!AESGCM",
            "CAMELLIA:ARIA:SEED:IDEA",
        ] {
            let (agreed, said) = cipher(list);
            assert!(!agreed, "{port} agrees on {list}: {said}");
        }
        let (agreed, said) = cipher("ECDHE+AESGCM:ECDHE+CHACHA20");
        assert!(
            agreed
                && said.contains("Compression: NONE")
                && said.contains("Secure Renegotiation IS supported"),
            "{said}"
        );
        for version in ["-tls1", "-tls1_1"] {
            assert!(
                !openssl(port, &[version, "-cipher", &format!("ALL:{weak}")], "Q\n").0,
                "{port} speaks {version}"
            );
        }
        // Asked for from within: refused.
        let (_, said) = openssl(port, &["-tls1_2"], "R\n");
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
        let (agreed, said) = openssl(port, &["-tls1_3"], "Q\n");
        assert!(agreed && !said.contains("Early data was accepted"), "{said}");
        assert!(!said.contains("Max Early Data: ") || said.contains("Max Early Data: 0"), "{said}");
    }
    // Sessions are resumed, but never by those whose certificate would not be asked for again.
    let session = pki.path("session");
    let session = session.to_str().unwrap();
    let shows = ["-cert", &client.0.file, "-key", &client.1.file];
    for (port, own, resumed) in [(door, &[][..], true), (guarded, &shows[..], false)] {
        let first = openssl(port, &[&["-tls1_2", "-sess_out", session], own].concat(), "Q\n");
        assert!(first.0, "{}", first.1);
        let (agreed, said) = openssl(port, &[&["-tls1_2", "-sess_in", session], own].concat(), "Q\n");
        assert!(agreed, "{said}");
        assert_eq!(said.contains("Reused, "), resumed, "{port}: {said}");
    }
}
