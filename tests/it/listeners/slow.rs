//! Clients that never come to the point: each phase before CONNECT, a byte at a time, is cut at the one deadline, and others connect.

use super::pki::Pki;
use super::{connect_ws, connected_tls, listen, secure, tls_config};
use crate::broker::{Setup, free_address};
use crate::client::Dial;
use crate::wait;
use berth::clock;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// The time for all of it, milliseconds, and between two bytes.
const TIMEOUT_MS: u64 = 2_000;
const PACE_MS: u64 = 100;

/// How much later than that a connection may be cut on a busy machine.
const LATE_MS: u64 = 3_000;

/// Writes a byte at a time, over and over, until the broker has closed: after how many milliseconds.
fn dribble(mut stream: impl Read + Write, socket: &TcpStream, bytes: &[u8], since: clock::Time) -> u64 {
    socket.set_read_timeout(Some(Duration::from_millis(PACE_MS))).unwrap();
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).and_then(|()| stream.flush()).is_err() {
            break;
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        assert!(clock::now().since_ms(since) < 60_000, "never closed");
    }
    clock::now().since_ms(since)
}

fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut out = Vec::new();
    ClientConnection::new(config.clone(), name).unwrap().write_tls(&mut out).unwrap();
    out
}

#[test]
fn a_byte_at_a_time_is_cut_at_the_deadline_in_every_phase() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let config = tls_config(&pki.ca(), None);
    let connect_timeout = format!("{TIMEOUT_MS}ms");
    let addresses = [0; 4].map(|_| free_address());
    let mut setup = Setup::new().set("limits.connect_timeout", &connect_timeout);
    for (name, address) in ["tls", "ws", "wss", "proxied"].iter().zip(addresses) {
        setup = setup.set(&format!("listeners.{name}.address"), &address.to_string());
        for (key, file) in files.iter().filter(|_| matches!(*name, "tls" | "wss")) {
            setup = setup.set(&format!("listeners.{name}.{key}"), file);
        }
    }
    for (key, value) in [("type", "tcp"), ("proxy_protocol", "required"), ("proxy_from", "127.0.0.1")] {
        setup = setup.set(&format!("listeners.proxied.{key}"), value);
    }
    let broker = setup.start();
    let [tls, ws, wss, proxied] = addresses;

    let hello = client_hello(&config);
    let request = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
    let long = b"x".to_vec();
    let connect = [vec![0x10, 0xFF, 0xFF, 0x03, 0, 4], b"MQTT\x04\x02".to_vec()].concat();
    let ping = vec![0x89, 0x80, 0, 0, 0, 0];
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 5".to_vec();
    let raw = |to: SocketAddr, before: &[u8], bytes: Vec<u8>| {
        let before = before.to_vec();
        std::thread::spawn(move || {
            let since = clock::now();
            let mut socket = TcpStream::connect(to).unwrap();
            socket.write_all(&before).unwrap();
            dribble(socket.try_clone().unwrap(), &socket, &bytes, since)
        })
    };
    let upgraded = |to: SocketAddr, bytes: Vec<u8>| {
        std::thread::spawn(move || {
            let since = clock::now();
            let socket = TcpStream::connect(to).unwrap();
            let copy = socket.try_clone().unwrap();
            let mut socket = super::upgrade(socket, &format!("ws://{to}/mqtt"), &[super::MQTT]).unwrap();
            dribble(socket.get_mut(), &copy, &bytes, since)
        })
    };
    let covered = |to: SocketAddr, bytes: Vec<u8>| {
        let config = config.clone();
        std::thread::spawn(move || {
            let since = clock::now();
            let (stream, copy) = secure(to, &config, "localhost").unwrap();
            dribble(stream, &copy, &bytes, since)
        })
    };
    let slow = [
        ("CONNECT over TCP", raw(broker.mqtt, &[], connect.clone())),
        ("nothing but a proxy's header", raw(proxied, &[], line.clone())),
        ("CONNECT behind a proxy's header", raw(proxied, b"PROXY UNKNOWN\r\n", connect.clone())),
        ("a client hello", raw(tls, &[], hello.clone())),
        ("half a handshake, then more of it", raw(tls, &hello[..hello.len() - 60], hello.clone())),
        ("CONNECT over TLS", covered(tls, connect.clone())),
        ("a request", raw(ws, &request, long.clone())),
        ("a client hello for WebSocket", raw(wss, &[], hello)),
        ("a request over TLS", covered(wss, request.clone())),
        ("pings of WebSocket", upgraded(ws, ping)),
        (
            "CONNECT over WebSocket",
            upgraded(ws, [vec![0x82, 0xFE, 0x7F, 0xFF, 0, 0, 0, 0], connect].concat()),
        ),
    ];
    // Others connect all the while, and quickly.
    while !slow.iter().all(|(_, s)| s.is_finished()) {
        let since = clock::now();
        Dial::v5("tcp").connect(broker.mqtt).disconnect();
        connected_tls(&Dial::v5("tls"), tls, &config).disconnect();
        connect_ws(&Dial::v5("ws"), ws).disconnect();
        let took = clock::now().since_ms(since);
        assert!(took < 2_000, "{took} ms for three connections");
        wait::pace(20);
    }
    for (what, slow) in slow {
        let took = slow.join().unwrap();
        let expected = TIMEOUT_MS - 10..TIMEOUT_MS + LATE_MS;
        assert!(expected.contains(&took), "{what}: {took} ms");
    }
    wait::until_true("all are counted", || {
        broker.metric("mqtt_errors_total{type=\"connect_timeout\"}") == 11.0
    });
}

/// More connections than may be without a CONNECT: new clients get in at once, and the oldest give way.
#[test]
fn those_that_say_nothing_do_not_keep_others_out() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let setup =
        Setup::new().set("limits.max_arriving_connections", "64").set("limits.connect_timeout", "30s");
    let (setup, address) = super::with_listener(setup, "tls", &files);
    let broker = setup.start();
    let config = tls_config(&pki.ca(), None);
    let hello = client_hello(&config);
    let mut silent: Vec<TcpStream> = Vec::new();
    for round in 0..6 {
        for _ in 0..64 {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&hello[..hello.len() / 2]).unwrap();
            silent.push(stream);
        }
        let since = clock::now();
        connected_tls(&Dial::v5("tls"), address, &config).disconnect();
        Dial::v5("tcp").connect(broker.mqtt).disconnect();
        let took = clock::now().since_ms(since);
        assert!(took < 2_000, "round {round}: {took} ms");
    }
    let active = broker.metric("mqtt_connections_active");
    assert!(active <= 64.0, "{active}");
    let gone = broker.metric("berth_turned_away_total{reason=\"crowded\"}");
    assert!(gone >= 300.0, "{gone}");
    assert_eq!(broker.log().matches("kind=Crowded").count(), 1);
}

#[test]
fn an_upgrade_has_a_bound_on_its_size() {
    let (_broker, address) = listen("ws", &[]);
    let mut stream = TcpStream::connect(address).unwrap();
    let mut sent = b"GET /mqtt HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
    sent.resize(8 * 1024, b'x');
    stream.write_all(&sent).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}
