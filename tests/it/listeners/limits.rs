//! Limits of one listener, which those of others have nothing to do with.

use super::pki::Pki;
use super::{connect_ws, connected_tls, listen, tls_config};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason, Version};
use std::net::{Shutdown, SocketAddr, TcpStream};

fn refused(dial: &Dial, to: SocketAddr) -> Reason {
    match dial.try_connect(to).unwrap().1 {
        In::ConnAck { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_at_a_time() {
    let (broker, address) = listen("tcp", &[("max_connections", "3")]);
    let inside: Vec<Client> = (0..3).map(|n| Dial::v5(&format!("c{n}")).connect(address)).collect();
    for version in [Version::V311, Version::V5] {
        let expected = if version.is_v5() { Reason::QuotaExceeded } else { Reason::ServerUnavailable };
        assert_eq!(refused(&Dial::new(version, "more"), address), expected);
    }
    Dial::v5("elsewhere").connect(broker.mqtt).disconnect();
    drop(inside);
    wait::until_true("there is room again", || refused(&Dial::v5("more"), address) == Reason::Success);
}

#[test]
fn connections_per_second_wait_their_turn() {
    let (broker, address) = listen("tcp", &[("max_connection_rate", "20")]);
    let since = clock::now();
    let all: Vec<Client> = (0..60).map(|n| Dial::v5(&format!("c{n}")).connect(address)).collect();
    let took = clock::now().since_ms(since);
    // Twenty at once, and forty in two seconds: nobody is refused.
    assert!((1_900..15_000).contains(&took), "{took} ms");
    assert_eq!(all.len(), 60);
    assert!(broker.metric("berth_turned_away_total{reason=\"connection_rate\"}") >= 1.0);
    assert_eq!(broker.log().matches("kind=ConnectionRate").count(), 1);
    let since = clock::now();
    Dial::v5("elsewhere").connect(broker.mqtt).disconnect();
    assert!(clock::now().since_ms(since) < 1_000);
}

/// Connections that say nothing count as others do, and give way to who comes.
#[test]
fn silent_connections_keep_nobody_out_of_a_small_listener() {
    let (broker, address) = listen("tcp", &[("max_connections", "5")]);
    let mut first = Dial::v5("first").connect(address);
    let silent: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(address).unwrap()).collect();
    let since = clock::now();
    let get_in = |id: &str| {
        wait::until("a client gets in", || match Dial::v5(id).try_connect(address) {
            Ok((client, In::ConnAck { reason: Reason::Success, .. })) => Some(client),
            _ => None,
        })
    };
    let mut others: Vec<Client> = (0..4).map(|n| get_in(&format!("c{n}"))).collect();
    let took = clock::now().since_ms(since);
    assert!(took < 10_000, "{took} ms: the time for CONNECT is as long");
    others.iter_mut().for_each(Client::ping);
    first.ping();
    drop(silent);
    assert!(broker.metric("berth_turned_away_total{reason=\"crowded\"}") >= 1.0);
    // Those that are connected give way to nobody.
    assert!(!matches!(
        Dial::v5("late").try_connect(address),
        Ok((_, In::ConnAck { reason: Reason::Success, .. }))
    ));
    others.iter_mut().for_each(Client::ping);
}

/// What a client may send, and how long so many messages of so many bytes take at least, milliseconds.
#[test]
fn a_client_that_sends_more_is_read_more_slowly_and_not_cut_off() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let config = tls_config(&pki.ca(), None);
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], usize, usize, u64);
    let cases: [Case<'_>; 5] = [
        ("tcp", &[("max_message_rate", "100")], 300, 10, 1_700),
        ("tls", &[("max_message_rate", "100")], 300, 10, 1_700),
        ("ws", &[("max_message_rate", "100")], 300, 10, 1_700),
        ("tcp", &[("max_byte_rate", "100kB")], 30, 10_000, 1_700),
        ("tls", &[("max_byte_rate", "100kB")], 30, 10_000, 1_700),
    ];
    for (kind, rate, messages, bytes, least) in cases {
        let options = if kind == "tls" { [&files[..], rate].concat() } else { rate.to_vec() };
        let (broker, address) = listen(kind, &options);
        let dial = Dial::v5("fast").keep_alive(1);
        let mut fast = match kind {
            "tcp" => dial.connect(address),
            "tls" => connected_tls(&dial, address, &config),
            _ => connect_ws(&dial, address),
        };
        let mut sub = Dial::v5("sub").connect(broker.mqtt);
        sub.subscribe(&[("t", QoS::AtMostOnce)]);
        let since = clock::now();
        for n in 0..messages {
            let payload = format!("{n:bytes$}");
            fast.send_publish("t", payload.as_bytes(), QoS::AtMostOnce, false).unwrap();
        }
        for n in 0..messages {
            assert_eq!(sub.receive().text().trim(), n.to_string(), "{kind} {rate:?}");
        }
        let took = clock::now().since_ms(since);
        assert!(took >= least && took < least + 15_000, "{kind} {rate:?}: {took} ms");
        fast.ping(); // it was silent for longer than its keep alive only because nobody read it
        let paused = broker.metric("berth_turned_away_total{reason=\"client_rate\"}");
        assert!(paused >= 1.0, "{kind} {rate:?}");
        assert_eq!(broker.log().matches("kind=ClientRate").count(), 1);
    }
}

/// A slowed client whose session goes elsewhere does not keep it, and one that leaves is noticed.
#[test]
fn a_slowed_client_can_be_taken_over_and_can_leave() {
    let (broker, address) = listen("tcp", &[("max_byte_rate", "1KiB")]);
    let mut slow = Dial::v5("slow").connect(address);
    for _ in 0..20 {
        slow.send_publish("t", &[0; 1000], QoS::AtMostOnce, false).unwrap();
    }
    let since = clock::now();
    let mut next = Dial::v5("slow").connect(broker.mqtt);
    let took = clock::now().since_ms(since);
    assert!(took < 5_000, "{took} ms");
    assert_eq!(slow.expect_closed(), Some(Reason::SessionTakenOver));
    next.ping();
    let mut leaves = Dial::v5("leaves").connect(address);
    leaves.send_publish("t", &[0; 3000], QoS::AtMostOnce, false).unwrap();
    leaves.stream().shutdown(Shutdown::Both).unwrap();
    wait::until_true("it has left", || broker.metric("mqtt_connections_active") == 1.0);
}

#[test]
fn packets_keep_alives_and_versions() {
    let options = [
        ("max_packet_size", "1KiB"),
        ("min_keep_alive", "10s"),
        ("max_keep_alive", "20s"),
        ("versions", "3.1.1, 5"),
    ];
    let (broker, address) = listen("tcp", &options);
    for (asked, imposed) in [(1, Some(10)), (15, None), (300, Some(20)), (0, Some(20))] {
        let (_, answer) = Dial::v5("k").keep_alive(asked).try_connect(address).unwrap();
        let In::ConnAck { properties, .. } = answer else { panic!("{answer:?}") };
        let told = properties.iter().find(|p| p.contains("ServerKeepAlive"));
        let expected = imposed.map(|s| format!("ServerKeepAlive({s})"));
        assert_eq!(told.cloned(), expected, "{asked}");
        assert!(properties.iter().any(|p| p == "MaximumPacketSize(1024)"), "{properties:?}");
    }
    let mut large = Dial::v5("large").connect(address);
    large.send_publish("t", &[0; 2000], QoS::AtMostOnce, false).unwrap();
    assert_eq!(large.expect_closed(), Some(Reason::PacketTooLarge));
    let mut elsewhere = Dial::v5("large").connect(broker.mqtt);
    elsewhere.publish("t", &"x".repeat(2000), QoS::AtLeastOnce);

    let old = Dial::new(Version::V31, "old");
    assert_eq!(refused(&old, address), Reason::UnsupportedProtocolVersion);
    old.connect(broker.mqtt).disconnect();
    Dial::v4("new").connect(address).disconnect();
    let (_broker, only_3) = listen("tcp", &[("versions", "3.1.1")]);
    assert_eq!(refused(&Dial::v5("five"), only_3), Reason::UnsupportedProtocolVersion);
    Dial::v4("four").connect(only_3).disconnect();
}
