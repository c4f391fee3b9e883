//! Requests, and what becomes of them.

use super::*;
use proptest::prelude::*;

const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: 127.0.0.1:8083\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Protocol: mqtt\r\n\r\n";

fn welcome(origins: Origins, secure: bool) -> Welcome {
    Welcome { path: "/mqtt".to_owned(), origins, secure }
}

fn status(request: &str, welcome: &Welcome) -> u16 {
    match judge(request.as_bytes(), welcome) {
        Answer::Incomplete => 0,
        Answer::Accept(response, length) => {
            assert_eq!(length, request.len());
            assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\n"));
            101
        }
        Answer::Refuse(refusal) => {
            let response = refusal.response();
            assert!(response.starts_with(&format!("HTTP/1.1 {} ", refusal.status)), "{response}");
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{response}");
            refusal.status
        }
    }
}

#[test]
fn requests_are_judged() {
    let changed = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    };
    let cases = [
        (GOOD.to_owned(), 101),
        (changed("/mqtt ", "/mqtt?token=1 "), 101),
        (changed("websocket\r", "WebSocket\r"), 101),
        (changed("Connection: Upgrade", "connection: keep-alive, Upgrade"), 101),
        (changed("Protocol: mqtt", "Protocol: chat, mqtt"), 101),
        (changed("Protocol: mqtt", "Protocol: mqttv3.1"), 101),
        (changed("/mqtt ", "/ "), 404),
        (changed("/mqtt ", "/mqtt/ "), 404),
        (changed("GET", "POST"), 400),
        (changed("Upgrade: websocket\r\n", ""), 426),
        (changed("Connection: Upgrade", "Connection: close"), 426),
        (changed("Version: 13", "Version: 8"), 426),
        (changed("Sec-WebSocket-Version: 13\r\n", ""), 426),
        (changed("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400),
        (changed("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        (
            changed(
                "Sec-WebSocket-Version: 13\r\n",
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n",
            ),
            400,
        ),
        (changed("Protocol: mqtt", "Protocol: amqp"), 400),
        (changed("Sec-WebSocket-Protocol: mqtt\r\n", ""), 400),
        (changed("HTTP/1.1", "HTTP/9"), 400),
        (changed("HTTP/1.1", "HTTP/1.0"), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
        ("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00".to_owned(), 400),
        ("\x16\x03\x01".to_owned(), 400),
        (changed("\r\n\r\n", &format!("\r\n{}\r\n", "X-A: b\r\n".repeat(UPGRADE_HEADERS_MAX))), 431),
        (format!("GET /mqtt HTTP/1.1\r\nX: {}", "x".repeat(UPGRADE_BYTES_MAX)), 431),
    ];
    for (request, expected) in cases {
        assert_eq!(status(&request, &welcome(Origins::Same, false)), expected, "{request}");
    }
    for cut in 0..GOOD.len() {
        assert_eq!(status(&GOOD[..cut], &welcome(Origins::Same, false)), 0, "{cut}");
    }
}

/// RFC 6455 section 1.3 has the answer to its example.
#[test]
fn the_key_of_the_specification() {
    let Answer::Accept(response, _) = judge(GOOD.as_bytes(), &welcome(Origins::Same, false)) else {
        panic!()
    };
    assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{response}");
}

#[test]
fn pages_of_other_hosts_may_not_connect() {
    let listed = Origins::These(vec!["https://app.example".to_owned()]);
    // Host, origin, which are allowed, over TLS, let in.
    let cases = [
        ("127.0.0.1:8083", "http://127.0.0.1:3000", Origins::Same, false, true),
        ("localhost:8083", "http://LOCALHOST", Origins::Same, false, true),
        ("[::1]:8083", "http://[::1]", Origins::Same, false, true),
        ("127.0.0.1:8083", "http://evil.example", Origins::Same, false, false),
        ("127.0.0.1:8083", "null", Origins::Same, false, false),
        // A name that was made to lead here: its page is of the same host.
        ("evil.example:8083", "http://evil.example:8083", Origins::Same, false, false),
        ("broker.example:8084", "https://broker.example", Origins::Same, true, true),
        ("broker.example:8084", "https://evil.example", Origins::Same, true, false),
        ("broker.example", "https://broker.example.evil.example", Origins::Same, true, false),
        ("", "https://", Origins::Same, true, false),
        ("broker.example", "https://app.example", listed.clone(), false, true),
        ("broker.example", "HTTPS://App.Example", listed.clone(), false, true),
        ("broker.example", "http://app.example", listed.clone(), false, false),
        ("broker.example", "https://broker.example", listed, true, false),
        ("broker.example", "https://evil.example", Origins::Any, false, true),
    ];
    for (host, origin, origins, secure, let_in) in cases {
        let request = GOOD.replace("Host: 127.0.0.1:8083", &format!("Host: {host}\r\nOrigin: {origin}"));
        let expected = if let_in { 101 } else { 403 };
        assert_eq!(status(&request, &welcome(origins, secure)), expected, "{host} {origin}");
    }
}

proptest! {
    /// Whatever comes is judged the same however much of it came before, and nothing of it is a panic.
    #[test]
    fn anything_may_come(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..GOOD.len(), flip in any::<u8>()) {
        let welcome = welcome(Origins::Same, false);
        judge(&bytes, &welcome);
        let mut nearly = GOOD.as_bytes().to_vec();
        nearly[at] ^= flip;
        if let Answer::Accept(_, length) = judge(&nearly, &welcome) {
            prop_assert!(length <= nearly.len());
        }
    }
}
