//! WebSocket: paho with and without TLS, requests that are refused, frames of all kinds.

use super::pki::Pki;
use super::{MQTT, VERSIONS, connect_ws, connect_wss, listen, tls_config, upgrade, with_listener};
use crate::broker::Setup;
use crate::client::{Dial, In};
use crate::clients::paho_script;
use crate::wait;
use berth::mqtt::{QoS, Reason};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use tungstenite::{Message, WebSocket};

#[test]
fn paho_over_websocket_and_secure_websocket() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let ca = pki.ca();
    for (kind, options, ca) in [("ws", &[][..], ""), ("wss", &files[..], &*ca.file)] {
        let (_broker, address) = listen(kind, options);
        for version in ["3", "5"] {
            let done =
                paho_script("listeners/paho_websocket.py", &[&address.port().to_string(), version, ca]);
            assert!(done.lines().count() >= 4, "{kind} {version}: {done}");
        }
    }
}

#[test]
fn every_version_over_both() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let config = tls_config(&pki.ca(), None);
    let (setup, ws) = with_listener(Setup::new(), "ws", &[]);
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let wss = crate::broker::free_address();
    let setup = setup.set("listeners.wss.address", &wss.to_string());
    let setup = files.iter().fold(setup, |s, (k, v)| s.set(&format!("listeners.wss.{k}"), v));
    let _broker = setup.start();
    for version in VERSIONS {
        let mut a = connect_ws(&Dial::new(version, "a"), ws);
        let mut b = connect_wss(&Dial::new(version, "b"), wss, &config);
        assert_eq!(a.subscribe(&[("to/a", QoS::ExactlyOnce)]), [2]);
        assert_eq!(b.subscribe(&[("to/b", QoS::ExactlyOnce)]), [2]);
        for (n, len) in [0, 1, 117, 125, 126, 65_400, 65_536, 300_000].into_iter().enumerate() {
            let text = format!("{n}-{}", "z".repeat(len));
            a.publish("to/b", &text, QoS::ExactlyOnce);
            assert_eq!(b.receive().text(), text);
            b.publish("to/a", &text, QoS::AtLeastOnce);
            assert_eq!(a.receive().text(), text);
        }
        a.disconnect();
        b.disconnect();
    }
}

fn answer(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn what_is_no_upgrade_gets_an_answer_in_words() {
    let (broker, address) = listen("ws", &[("path", "/broker"), ("allowed_origins", "https://app.example")]);
    let upgrade = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        ("GET /mqtt HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "404", "/broker"),
        ("GET /broker HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426", "over WebSocket"),
        ("POST /broker HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400", "GET"),
        (format!("GET /broker HTTP/1.1\r\n{upgrade}\r\n"), "400", "subprotocol mqtt"),
        (
            format!(
                "GET /broker HTTP/1.1\r\n{upgrade}Sec-WebSocket-Protocol: mqtt\r\nOrigin: https://evil.example\r\n\r\n"
            ),
            "403",
            "allowed_origins",
        ),
        ("\x10\x0c no HTTP\r\n\r\n".to_owned(), "400", "over WebSocket"),
    ];
    for (request, status, words) in &cases {
        let text = answer(address, request);
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} ")) && text.contains(words),
            "{request}: {text}"
        );
    }
    wait::until_true("all refused ones are counted", || {
        broker.metric("berth_turned_away_total{reason=\"websocket\"}") == cases.len() as f64
    });
    assert_eq!(broker.log().matches("kind=WebSocket").count(), 1);
}

/// A WebSocket on which nothing was said.
fn open(to: SocketAddr) -> WebSocket<TcpStream> {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    upgrade(socket, &format!("ws://{to}/mqtt"), &[MQTT]).unwrap()
}

/// The next message; panics if there is none.
fn next(socket: &mut WebSocket<TcpStream>) -> Message {
    socket.read().unwrap()
}

#[test]
fn frames_of_all_kinds() {
    let (_broker, address) = listen("ws", &[]);
    // Text closes with 1003, also where it is the first frame.
    for text_first in [true, false] {
        let mut socket = open(address);
        if !text_first {
            socket.send(Message::Binary(Dial::v5("text").bytes().into())).unwrap();
            assert!(matches!(next(&mut socket), Message::Binary(_)));
        }
        socket.send(Message::Text("MQTT?".into())).unwrap();
        let Message::Close(Some(close)) = next(&mut socket) else { panic!() };
        assert_eq!(close.code, CloseCode::Unsupported);
        assert!(socket.read().is_err(), "closed");
    }
    // CONNECT in fragments of one byte, with pings between them.
    let mut socket = open(address);
    let connect = Dial::v5("fragments").bytes();
    for (at, byte) in connect.iter().enumerate() {
        let data = if at == 0 { Data::Binary } else { Data::Continue };
        let header = FrameHeader {
            is_final: at + 1 == connect.len(),
            opcode: OpCode::Data(data),
            ..FrameHeader::default()
        };
        socket.write(Message::Frame(Frame::from_payload(header, vec![*byte].into()))).unwrap();
        if at % 5 == 0 {
            let header = FrameHeader { opcode: OpCode::Control(Control::Ping), ..FrameHeader::default() };
            socket.write(Message::Frame(Frame::from_payload(header, vec![at as u8].into()))).unwrap();
        }
    }
    socket.flush().unwrap();
    let mut pongs = Vec::new();
    loop {
        match next(&mut socket) {
            Message::Pong(payload) => pongs.push(payload[0] as usize),
            Message::Binary(bytes) => break assert_eq!(bytes[0], 0x20),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pongs, (0..connect.len()).step_by(5).collect::<Vec<_>>());
    // A goodbye of WebSocket is answered, and the will is published: it is none of MQTT.
    let mut watcher = connect_ws(&Dial::v5("watcher"), address);
    watcher.subscribe(&[("wills", QoS::AtMostOnce)]);
    let mut leaving = open(address);
    leaving.send(Message::Binary(Dial::v5("leaving").will("wills", "left", 0).bytes().into())).unwrap();
    next(&mut leaving);
    leaving.close(None).unwrap();
    assert!(matches!(next(&mut leaving), Message::Close(_)));
    assert_eq!(watcher.receive().text(), "left");
}

/// What comes right behind the request, in the same segment, is not lost.
#[test]
fn a_client_need_not_wait_for_the_answer() {
    let (_broker, address) = listen("ws", &[]);
    let connect = Dial::v4("eager").bytes();
    let mut all = b"GET /mqtt HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        .to_vec();
    all.extend([0x82, 0x80 | connect.len() as u8, 0, 0, 0, 0]);
    all.extend(connect);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.write_all(&all).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(&[0x82, 4, 0x20, 2, 0, 0]) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
}

/// Pings are no sign of life of MQTT: who sends nothing else is disconnected in time.
#[test]
fn pings_of_websocket_are_not_those_of_mqtt() {
    let (broker, address) = listen("ws", &[]);
    let mut socket = open(address);
    socket.send(Message::Binary(Dial::v5("pings").keep_alive(1).bytes().into())).unwrap();
    assert!(matches!(next(&mut socket), Message::Binary(_)));
    socket.get_mut().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let closed = wait::until("the broker closes", || {
        let _ = socket.send(Message::Ping(vec![1].into()));
        loop {
            match socket.read() {
                Ok(Message::Binary(bytes)) if bytes[0] == 0xE0 => return Some(bytes[2]),
                Ok(_) => {}
                Err(tungstenite::Error::Io(_)) => return None,
                Err(e) => panic!("{e}"),
            }
        }
    });
    assert_eq!(closed, Reason::KeepAliveTimeout as u8);
    assert_eq!(broker.metric("mqtt_errors_total{type=\"keep_alive_timeout\"}"), 1.0);
}

/// Nor are they free of charge where clients are slowed down.
#[test]
fn pings_of_websocket_count_as_bytes() {
    let (broker, address) = listen("ws", &[("max_byte_rate", "10kB")]);
    let mut socket = open(address);
    socket.send(Message::Binary(Dial::v5("pings").bytes().into())).unwrap();
    assert!(matches!(next(&mut socket), Message::Binary(_)));
    let since = berth::clock::now();
    for _ in 0..300 {
        socket.send(Message::Ping(vec![1; 100].into())).unwrap();
    }
    socket.send(Message::Binary(vec![0xC0, 0].into())).unwrap();
    let answer = loop {
        match next(&mut socket) {
            Message::Binary(bytes) => break bytes,
            other => assert!(matches!(other, Message::Pong(_)), "{other:?}"),
        }
    };
    assert_eq!(answer[0], 0xD0);
    let took = berth::clock::now().since_ms(since);
    assert!(took >= 1_700, "{took} ms");
    assert!(broker.metric("berth_turned_away_total{reason=\"client_rate\"}") >= 1.0);
}

/// The broker stops: DISCONNECT, then a close frame, then the end.
#[test]
fn websocket_is_closed_politely() {
    let (mut broker, address) = listen("ws", &[]);
    let mut socket = open(address);
    socket.send(Message::Binary(Dial::v5("polite").bytes().into())).unwrap();
    next(&mut socket);
    broker.signal("TERM");
    let Message::Binary(last) = next(&mut socket) else { panic!() };
    assert_eq!(last[0], 0xE0);
    let Message::Close(Some(close)) = next(&mut socket) else { panic!() };
    assert_eq!(close.code, CloseCode::Normal);
    assert!(broker.wait().success());
}

/// A client that goes on writing reads why it was let go, also here.
#[test]
fn the_reason_is_read_by_who_goes_on_writing() {
    let (_broker, address) = listen("ws", &[("max_packet_size", "1KiB")]);
    let mut client = connect_ws(&Dial::v5("talks"), address);
    client.send(&[0x30, 0x80, 0x80, 0x40]).unwrap(); // a PUBLISH of 1 MiB
    for _ in 0..16 {
        if client.send(&[0; 64 << 10]).is_err() {
            break;
        }
    }
    let told = loop {
        match client.recv() {
            In::Disconnect(reason) => break reason,
            In::Closed => panic!("closed without a word"),
            _ => {}
        }
    };
    assert_eq!(told, Reason::PacketTooLarge);
}
