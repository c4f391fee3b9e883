//! Clients behind a proxy that tells their addresses.

use super::pki::Pki;
use super::{listen, tls_config, with_listener};
use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::{Reason, Version};
use rustls::ClientConnection;
use rustls::StreamOwned;
use rustls::pki_types::ServerName;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const TRUSTED: [(&str, &str); 2] = [("proxy_protocol", "required"), ("proxy_from", "10.0.0.0/8,127.0.0.0/8")];

fn v2(rest: &[u8], command: u8, kind: u8) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    out.extend([0x20 | command, kind, 0, rest.len() as u8]);
    out.extend_from_slice(rest);
    out
}

/// The address of a client as the broker shows it to operators.
fn shown(broker: &Broker, id: &str) -> String {
    let (status, body) = broker.get(&format!("/api/v1/sessions/{id}"));
    assert_eq!(status, 200, "{body}");
    let page: serde_json::Value = serde_json::from_str(&body).unwrap();
    let text = page.to_string();
    let at = text.find("\"peer\":\"").unwrap_or_else(|| panic!("{text}")) + 8;
    text[at..].split('"').next().unwrap().to_owned()
}

#[test]
fn the_address_that_a_proxy_tells_is_the_clients() {
    let (setup, address) = with_listener(Setup::new(), "tcp", &TRUSTED);
    let broker = setup.set("auth.allow_anonymous", "true").start();
    let tlv = [192, 0, 2, 9, 10, 0, 0, 1, 0, 7, 0, 1, 3, 0, 1, 0xFF];
    let mut v6 = "2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
    v6.extend([0; 16]);
    v6.extend([0, 8, 0, 1]);
    // The header, and the address shown: of the proxy's own, its port is not known.
    let cases: &[(Vec<u8>, &str)] = &[
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 55555 1883\r\n".to_vec(), "192.0.2.7:55555"),
        (b"PROXY TCP6 2001:db8::7 ::1 55555 1883\r\n".to_vec(), "[2001:db8::7]:55555"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
        (v2(&tlv, 1, 0x11), "192.0.2.9:7"),
        (v2(&v6, 1, 0x21), "[2001:db8::5]:8"),
        (v2(&[], 0, 0), "127.0.0.1:"),
    ];
    for (n, (header, expected)) in cases.iter().enumerate() {
        for cut in [0, 1, header.len() / 2, header.len()] {
            let id = format!("c{n}-{cut}");
            let mut client = Client::raw(address, Version::V5).unwrap();
            // In two pieces, the second with CONNECT behind it.
            client.send(&header[..cut]).unwrap();
            wait::pace(5);
            client.send(&[&header[cut..], &Dial::v5(&id).bytes()].concat()).unwrap();
            assert!(matches!(client.recv(), In::ConnAck { reason: Reason::Success, .. }), "{header:02x?}");
            let shown = shown(&broker, &id);
            assert!(shown.starts_with(expected), "{shown} {expected}");
            client.disconnect();
        }
    }
}

/// Without `allow_anonymous` only this machine may come: what counts is the address that is told.
#[test]
fn an_address_that_is_told_counts_for_rights() {
    let (_broker, address) = listen("tcp", &TRUSTED);
    for (from, expected) in [("127.0.0.9", Reason::Success), ("192.0.2.7", Reason::NotAuthorized)] {
        let mut client = Client::raw(address, Version::V5).unwrap();
        client.send(format!("PROXY TCP4 {from} 127.0.0.1 5 1883\r\n").as_bytes()).unwrap();
        let (_, answer) = Dial::v5("c").try_connect_over(client).unwrap();
        assert!(matches!(answer, In::ConnAck { reason, .. } if reason == expected), "{from}: {answer:?}");
    }
}

fn closed_without_a_word(to: SocketAddr, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer.is_empty(),
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn who_tells_nothing_or_may_not_tell_is_refused() {
    let (broker, address) = listen("tcp", &TRUSTED);
    let malformed = [
        Dial::v5("direct").bytes(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7\r\n".to_vec(),
        v2(&[1, 2, 3], 1, 0x11),
        v2(&[0; 12], 1, 0x99),
        v2(&[0; 12], 7, 0x11),
    ];
    for bytes in &malformed {
        assert!(closed_without_a_word(address, bytes), "{bytes:02x?}");
    }
    let counted = |broker: &Broker, n: usize| {
        wait::until_true("all refused ones are counted", || {
            broker.metric("berth_turned_away_total{reason=\"proxy\"}") == n as f64
        });
    };
    counted(&broker, malformed.len());
    assert_eq!(broker.log().matches("kind=Proxy").count(), 1);

    let (broker, address) = listen("tcp", &[("proxy_protocol", "required"), ("proxy_from", "10.0.0.0/8")]);
    assert!(closed_without_a_word(address, b"PROXY TCP4 10.0.0.7 10.0.0.1 5 1883\r\n"));
    counted(&broker, 1);
    // A listener without the option takes a header for what it is there: no MQTT.
    assert!(closed_without_a_word(broker.mqtt, b"PROXY TCP4 10.0.0.7 10.0.0.1 5 1883\r\n"));
}

/// The header comes before the handshake.
#[test]
fn a_proxy_in_front_of_tls() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let (setup, address) = with_listener(Setup::new(), "tls", &[&files[..], &TRUSTED].concat());
    let broker = setup.set("auth.allow_anonymous", "true").start();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 55555 8883\r\n").unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(tls_config(&pki.ca(), None), name).unwrap();
    let client = Client::over(socket.try_clone().unwrap(), Version::V5).unwrap();
    let client = client.under(Box::new(StreamOwned::new(session, socket)));
    let (client, answer) = Dial::v5("behind").try_connect_over(client).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::Success, .. }), "{answer:?}");
    assert_eq!(shown(&broker, "behind"), "192.0.2.7:55555");
    client.disconnect();
}
