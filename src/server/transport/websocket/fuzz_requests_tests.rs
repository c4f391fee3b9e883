//! Requests for an upgrade, and what must become of them.

use super::super::upgrade::{UPGRADE_BYTES_MAX, UPGRADE_HEADERS_MAX};
use crate::server::fuzz_tests::random::Random;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tungstenite::handshake::derive_accept_key;

/// The outcome that a request must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// With this status.
    Refused(u16),
    /// The bytes end before the request is complete.
    Incomplete,
    /// Whatever it is, it must hold together.
    Anything,
}

fn text(rng: &mut Random, most: usize) -> String {
    (0..rng.index(most + 1)).map(|_| char::from(b'!' + rng.index(94) as u8)).collect()
}

/// A name as somebody else writes it.
fn cased(rng: &mut Random, name: &str) -> String {
    match rng.index(4) {
        0 => name.to_uppercase(),
        1 => name.to_lowercase(),
        _ => name.to_owned(),
    }
}

/// One thing that is wrong with a request, and the status for it.
fn bend(rng: &mut Random, head: &mut [String; 3], headers: &mut Vec<(String, String)>) -> Verdict {
    let set = |headers: &mut Vec<(String, String)>, name: &str, value: &str| {
        headers.iter_mut().find(|h| h.0 == name).unwrap().1 = value.to_owned();
    };
    let one_of = |rng: &mut Random, values: &[&str]| values[rng.index(values.len())].to_owned();
    let names =
        ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol"];
    Verdict::Refused(match rng.index(10) {
        0 => {
            head[1] = one_of(rng, &["/", "/mqtt/", "/MQTT", "/mqt", "/mqtt%20", "*", "http://a/mqtt"]);
            404
        }
        1 => {
            head[0] = one_of(rng, &["POST", "get", "HEAD", "OPTIONS", "CONNECT"]);
            400
        }
        2 => {
            head[2] = one_of(rng, &["HTTP/1.0", "HTTP/2", "HTTP/9", "http/1.1", "MQTT"]);
            400
        }
        3 => {
            let name = names[rng.index(names.len())];
            headers.retain(|h| h.0 != name);
            if matches!(name, "Sec-WebSocket-Key" | "Sec-WebSocket-Protocol") { 400 } else { 426 }
        }
        4 => {
            let name = ["Sec-WebSocket-Version", "Sec-WebSocket-Key"][rng.index(2)];
            let again = headers.iter().find(|h| h.0 == name).unwrap().clone();
            headers.push(again);
            400
        }
        5 => {
            let key = [&[7; 15][..], &[7; 17], &[]][rng.index(3)];
            let key = if rng.chance(50) {
                BASE64_STANDARD.encode(key)
            } else {
                "AAAAAAAAAAAAAAAAAAAAAA".to_owned()
            };
            set(headers, "Sec-WebSocket-Key", &key);
            400
        }
        6 => {
            set(headers, "Sec-WebSocket-Version", &one_of(rng, &["8", "0", "13, 8", "131", ""]));
            426
        }
        7 => {
            set(headers, "Sec-WebSocket-Protocol", &one_of(rng, &["amqp", "MQTT", "mqttv5", "mqtt;q=1", ""]));
            400
        }
        8 => {
            headers.push((
                "Origin".to_owned(),
                one_of(rng, &["http://evil.example", "null", "", "http://127.0.0.2"]),
            ));
            403
        }
        _ => {
            while headers.len() <= UPGRADE_HEADERS_MAX {
                headers.push(("X".to_owned(), text(rng, 3)));
            }
            431
        }
    })
}

/// A request, and what must become of it.
pub fn request(rng: &mut Random) -> (Vec<u8>, Verdict) {
    let key: Vec<u8> = (0..16).map(|_| rng.next() as u8).collect();
    let pick = |rng: &mut Random, values: &[&str]| values[rng.index(values.len())].to_owned();
    let host = "127.0.0.1:8083".to_owned();
    let mut headers = vec![
        ("Host".to_owned(), host),
        ("Upgrade".to_owned(), pick(rng, &["websocket", "WebSocket", "h2c, websocket"])),
        ("Connection".to_owned(), pick(rng, &["Upgrade", "keep-alive, Upgrade", "upgrade"])),
        ("Sec-WebSocket-Version".to_owned(), "13".to_owned()),
        ("Sec-WebSocket-Key".to_owned(), BASE64_STANDARD.encode(key)),
        (
            "Sec-WebSocket-Protocol".to_owned(),
            pick(rng, &["mqtt", "mqttv3.1", "chat, mqtt", "mqttv3.1,mqtt"]),
        ),
    ];
    for _ in 0..[0, 0, 3, 20, UPGRADE_HEADERS_MAX - headers.len()][rng.index(5)] {
        headers.push((format!("X-{}", rng.index(100)), text(rng, 40)));
    }
    let mut head = ["GET".to_owned(), pick(rng, &["/mqtt", "/mqtt?token=1"]), "HTTP/1.1".to_owned()];
    let mut verdict = if rng.chance(40) { bend(rng, &mut head, &mut headers) } else { Verdict::Accepted };
    for at in (1..headers.len()).rev() {
        headers.swap(at, rng.index(at + 1));
    }
    let mut out = format!("{}\r\n", head.join(" "));
    for (name, value) in &headers {
        let (before, after) = ([" ", "", " \t "][rng.index(3)], ["", "", " "][rng.index(3)]);
        out += &format!("{}:{before}{value}{after}\r\n", cased(rng, name));
    }
    // As long as one may be, or nearly, or longer.
    if rng.chance(8) && headers.len() < UPGRADE_HEADERS_MAX {
        let padding = (UPGRADE_BYTES_MAX + rng.index(5)).saturating_sub(out.len() + "P: \r\n\r\n".len() + 2);
        out += &format!("P: {}\r\n", "p".repeat(padding));
    }
    out += "\r\n";
    // What is wrong with the version of HTTP is seen at its beginning.
    let early = head[2] != "HTTP/1.1" && head[2] != "HTTP/1.0";
    if (out.len() > UPGRADE_BYTES_MAX || headers.len() > UPGRADE_HEADERS_MAX) && !early {
        verdict = Verdict::Refused(431);
    }
    (out.into_bytes(), verdict)
}

/// The answer to a request that is accepted, by what is in it; it must be a whole request and nothing behind it.
pub fn answer_to(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let lines: Vec<&str> =
        text.trim_start_matches(['\r', '\n']).split('\n').map(|l| l.trim_end_matches('\r')).collect();
    let [first, headers @ .., "", ""] = &lines[..] else { panic!("no blank line at its end, or no line") };
    let words: Vec<&str> = first.split(' ').collect();
    let ["GET", path, "HTTP/1.1"] = &words[..] else { panic!("{words:?}") };
    assert_eq!(path.split('?').next(), Some("/mqtt"));
    let values = |name: &str| -> Vec<&str> {
        let parted = headers.iter().filter_map(|line| line.split_once(':'));
        parted.filter(|h| h.0.eq_ignore_ascii_case(name)).map(|h| h.1.trim()).collect()
    };
    assert!(!headers.contains(&""), "a blank line before its end");
    assert!(headers.len() <= UPGRADE_HEADERS_MAX);
    let listed = |name: &str, word: &str| {
        values(name).iter().flat_map(|v| v.split(',')).any(|w| w.trim().eq_ignore_ascii_case(word))
    };
    assert!(listed("Upgrade", "websocket") && listed("Connection", "upgrade"));
    assert_eq!(values("Sec-WebSocket-Version"), ["13"]);
    let [key] = values("Sec-WebSocket-Key")[..] else { panic!("not one key") };
    let accept = derive_accept_key(key.as_bytes());
    let offers =
        |name| values("Sec-WebSocket-Protocol").iter().flat_map(|v| v.split(',')).any(|p| p.trim() == name);
    let protocol = if offers("mqtt") { "mqtt" } else { "mqttv3.1" };
    assert!(offers(protocol));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}
