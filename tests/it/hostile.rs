//! Clients that mean harm or know no better: each is dealt with as the specification says, and others notice nothing.

use crate::broker::{Broker, Setup};
use crate::bystanders::Bystanders;
use crate::client::{Client, Dial, In, Out, publish_bytes, subscribe_bytes};
use crate::corpus::{Case, Expected, State, malformed};
use crate::random::Random;
use crate::wait;
use berth::mqtt::{QoS, Reason, Version};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What the broker answers to a case, up to the close.
fn answer(case: &Case, address: SocketAddr) -> Result<Option<Reason>, String> {
    // Whoever's version is unknown is answered as MQTT 3.1.1 has it, which every client can read.
    let version = case.version.unwrap_or(Version::V311);
    let mut client = match case.state {
        State::Pre => Client::raw(address, version).map_err(|e| e.to_string())?,
        State::Connected | State::Session => {
            Dial::new(version, &format!("case-{}", case.line)).connect(address)
        }
    };
    // The broker may close while this is being written.
    let _ = client.send(&case.bytes);
    println!("line {}", case.line); // in case the answer is nonsense
    let _ = client.stream().shutdown(std::net::Shutdown::Write);
    let mut told = None;
    loop {
        match client.try_recv() {
            Ok(In::Closed) => return Ok(told),
            Ok(In::Disconnect(reason) | In::ConnAck { reason, .. }) if told.is_none() => told = Some(reason),
            Ok(other) => return Err(format!("{other:?}")),
            Err(e) => return Err(e.to_string()),
        }
    }
}

#[test]
fn malformed_packets_are_refused_and_others_served() {
    let broker = Broker::start();
    let cases = malformed();
    let wrong: Vec<String> = Bystanders::watch(&broker, || {
        let wrong = |case: &Case| {
            let expected = match case.expected {
                Expected::Close => None,
                // A CONNACK of MQTT 3 has five codes only.
                Expected::Reason(r) if case.version.is_some_and(Version::is_v5) => Some(r),
                Expected::Reason(r) => Reason::from_connack_v3(r.connack_v3()),
            };
            let got = answer(case, broker.mqtt);
            (got != Ok(expected))
                .then(|| format!("line {}: {}: {got:?}, not {expected:?}", case.line, case.rule))
        };
        cases.iter().filter_map(wrong).collect()
    });
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    wait::until_true("all are gone", || broker.metric("mqtt_connections_active") == 0.0);
}

/// Noise, and packets that were right until a bit was changed. What comes back must be right itself (the client checks).
#[test]
fn random_bytes_do_no_harm() {
    let mut random = Random::seeded("BERTH_NOISE_SEED");
    let broker = Broker::start();
    Bystanders::watch(&broker, || {
        for round in 0..400 {
            let version = [Version::V31, Version::V311, Version::V5][random.below(3) as usize];
            let mut bytes = Vec::new();
            if round % 4 == 0 {
                bytes.extend((0..random.below(300)).map(|_| random.next() as u8));
            } else {
                let id = format!("noise-{}", random.below(5));
                bytes.extend(Dial::new(version, &id).bytes());
                let from = if round % 4 == 1 { 0 } else { bytes.len() };
                bytes.extend(subscribe_bytes(version, 1, &[("noise/#", QoS::ExactlyOnce)]));
                for n in 0..random.below(6) as u16 {
                    let qos = QoS::from_bits((n % 3) as u8).unwrap();
                    let out = Out {
                        topic: "noise/t",
                        payload: b"payload",
                        qos,
                        retain: n == 4,
                        dup: false,
                        packet_id: n + 1,
                    };
                    bytes.extend(publish_bytes(version, &out));
                }
                for _ in 0..random.below(4) {
                    let at = from + random.below((bytes.len() - from) as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            let mut stream = std::net::TcpStream::connect(broker.mqtt).unwrap();
            stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            let cut = random.below(bytes.len() as u64 + 1) as usize;
            // It may be closed already.
            let _ = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
                Err(e) => panic!("not closed: {e}; {bytes:02x?}"),
            }
        }
    });
    wait::until_true("all are gone", || broker.metric("mqtt_connections_active") == 0.0);
}

/// Connections that say nothing, or a part of CONNECT, or of a packet that would be huge.
#[test]
fn slow_and_huge_beginnings_are_cut_off() {
    let broker = Setup::new().set("limits.connect_timeout", "300ms").start();
    Bystanders::watch(&broker, || {
        let connect = Dial::v5("slow").bytes();
        let silent: Vec<Client> = (0..connect.len())
            .map(|len| {
                let mut client = Client::raw(broker.mqtt, Version::V5).unwrap();
                client.send(&connect[..len]).unwrap();
                client
            })
            .collect();
        for mut client in silent {
            assert_eq!(client.expect_closed(), None);
        }
        let timeouts = broker.metric("mqtt_errors_total{type=\"connect_timeout\"}");
        assert_eq!(timeouts, connect.len() as f64);

        // A byte now and then does not help: the time is for all of CONNECT.
        let mut drip = Client::raw(broker.mqtt, Version::V5).unwrap();
        drip.patience(Duration::from_millis(40));
        let mut sent = 0;
        loop {
            match drip.try_recv() {
                Ok(In::Closed) => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if sent + 1 < connect.len() {
                        let _ = drip.send(&connect[sent..=sent]);
                        sent += 1;
                    }
                }
                other => panic!("{other:?}"),
            }
        }

        // What cannot become a CONNECT is refused by its first bytes, and takes no room from others.
        for begin in [&[0x30, 0xFF, 0xFF, 0x7F][..], &[0x10, 0xFF, 0xFF, 0x7F], &[0xC0]] {
            let mut client = Client::raw(broker.mqtt, Version::V5).unwrap();
            client.send(begin).unwrap();
            assert_eq!(client.expect_closed(), None);
        }
        assert_eq!(broker.metric("mqtt_errors_total{type=\"connect_timeout\"}"), timeouts + 1.0);
        assert_eq!(broker.metric("berth_arriving_bytes"), 0.0);

        // 256 MiB are announced: refused by the header alone, before and after CONNECT.
        let huge = [0x30, 0xFF, 0xFF, 0xFF, 0x7F];
        let mut client = Client::raw(broker.mqtt, Version::V5).unwrap();
        client.send(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F]).unwrap();
        client.expect_closed();
        let mut client = Dial::v5("huge").connect(broker.mqtt);
        client.send(&huge).unwrap();
        assert_eq!(client.expect_closed(), Some(Reason::PacketTooLarge));
        let mut client = Dial::v4("huge").connect(broker.mqtt);
        client.send(&huge).unwrap();
        assert_eq!(client.expect_closed(), None);
    });
}

#[test]
fn too_many_connections_are_refused_with_a_reason() {
    const MAX: usize = 20;
    let broker = Setup::new().set("limits.max_connections", &MAX.to_string()).start();
    let address = broker.mqtt;
    Bystanders::watch(&broker, || {
        // The bystanders are two of them, once they are there.
        wait::until_true("the bystanders are there", || broker.metric("mqtt_connections_active") == 2.0);
        let mut inside: Vec<Client> =
            (2..MAX).map(|n| Dial::v5(&format!("in-{n}")).connect(address)).collect();
        for round in 0..30 {
            for (dial, reason) in
                [(Dial::v5("more"), Reason::QuotaExceeded), (Dial::v4("more"), Reason::ServerUnavailable)]
            {
                let (mut client, answer) = dial.try_connect(address).unwrap();
                assert!(
                    matches!(answer, In::ConnAck { reason: r, .. } if r == reason),
                    "{round}: {answer:?}"
                );
                assert_eq!(client.recv(), In::Closed);
            }
        }
        // A flood that does not even say CONNECT.
        let flood: Vec<_> = (0..300).map(|_| Client::raw(address, Version::V5)).collect();
        for client in &mut inside {
            client.ping();
        }
        drop((flood, inside));
        wait::until_true("there is room again", || {
            matches!(
                Dial::v5("later").try_connect(address),
                Ok((_, In::ConnAck { reason: Reason::Success, .. }))
            )
        });
    });
}

/// A host takes all the room for large packets that it can get and sends nothing more: large packets of others go on.
#[test]
fn one_host_does_not_keep_the_large_packets_of_others_waiting() {
    const LEN: usize = 1 << 20;
    let broker = Setup::new().set("limits.max_arriving_bytes", "4MiB").start();
    let attacker = [127, 0, 0, 66].into();
    let payload = vec![b'x'; LEN];
    let out =
        Out { topic: "t", payload: &payload, qos: QoS::AtLeastOnce, retain: false, dup: false, packet_id: 1 };
    let begin = |n: usize| {
        let mut client = Dial::v5(&format!("greedy-{n}")).keep_alive(0).connect_from(attacker, broker.mqtt);
        client.send(&publish_bytes(Version::V5, &out)[..100]).unwrap();
        client
    };
    let greedy: Vec<_> = (0..9).map(begin).collect();
    wait::until_true("it has what it can get", || broker.metric("berth_arriving_bytes") > LEN as f64);
    wait::until_true("it is named", || broker.log().contains("most=127.0.0.66"));
    let mut other = Dial::v5("other").connect(broker.mqtt);
    (0..9).for_each(|_| other.publish("t", &"x".repeat(LEN), QoS::AtLeastOnce));
    assert_eq!(broker.log().matches("a packet above 64 KiB waits for room").count(), 1);
    drop(greedy);
}

/// A client that is sent away and comes again, as often as it can, fills no log.
#[test]
fn whoever_is_sent_away_again_and_again_is_named_once() {
    let broker = Broker::start();
    for (kind, bytes) in [("too large", &[0x30, 0xFF, 0xFF, 0xFF, 0x7F][..]), ("no packet", &[0xF0, 0, 0, 0])]
    {
        let before = broker.log().matches("disconnected").count();
        for n in 0..20 {
            let mut client = Dial::v5(&format!("again-{n}")).connect(broker.mqtt);
            client.send(bytes).unwrap();
            client.expect_closed();
        }
        wait::until_true("all are gone", || broker.metric("mqtt_connections_active") == 0.0);
        let log = broker.log();
        assert_eq!(log.matches("disconnected").count() - before, 1, "{kind}: {log}");
        assert!(log.contains("peer=127.0.0.1:"), "{log}");
    }
}

/// A subscriber that never reads while others publish 300 MB to it: memory stays bounded and the publisher is not held up.
#[test]
fn a_client_that_never_reads_costs_a_bounded_amount() {
    const PAYLOAD: usize = 50_000;
    const MESSAGES: usize = 6_000;
    let broker = Setup::new().set("session.mailbox_bytes", "4MiB").start();
    Bystanders::watch(&broker, || {
        let stuck: Vec<Client> = (0..3)
            .map(|n| {
                let mut client = Dial::v5(&format!("stuck-{n}")).connect(broker.mqtt);
                client.subscribe(&[("flood", QoS::AtLeastOnce)]);
                client
            })
            .collect();
        let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
        publisher.publish("flood", "x", QoS::AtLeastOnce);
        let before = broker.resident_bytes();
        let payload = vec![b'x'; PAYLOAD];
        let mut most = before;
        for n in 0..MESSAGES {
            let qos = if n % 10 == 0 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            publisher.publish_with("flood", &payload, qos, false);
            if n % 200 == 0 {
                most = most.max(broker.resident_bytes());
            }
        }
        most = most.max(broker.resident_bytes());
        let grown = most.saturating_sub(before);
        println!("{} MB published, memory grew by {} MB", PAYLOAD * MESSAGES / 1_000_000, grown / 1_000_000);
        // Three mailboxes share their messages; the rest are buffers and what an allocator keeps.
        assert!(grown < 64 << 20, "memory grew by {grown} bytes");
        assert!(broker.metric("berth_messages_dropped_total{reason=\"mailbox_full\"}") > 10_000.0);
        let said = ["reason=mailbox_full", "WARN", "limit=session.mailbox_"];
        wait::until_true("the log says so", || {
            broker.log().lines().any(|l| said.iter().all(|part| l.contains(part)))
        });
        let log = broker.log();
        let told: Vec<&str> = log.lines().filter(|l| l.contains("reason=mailbox_full")).collect();
        assert!(told.len() < 20, "{} lines", told.len());
        drop(stuck);
    });
}

/// Anybody can have any number of connections refused: the log has a line of each kind, not of each connection.
#[test]
fn refused_connections_do_not_fill_the_log() {
    let broker = Setup::new().set("limits.connect_timeout", "100ms").start();
    let mut unsupported = Dial::v5("x").bytes();
    unsupported[8] = 9;
    let no_client_id = Dial::v4("").persistent().bytes();
    for _ in 0..20 {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0x10, 0xFF, 0xFF, 0xFF, 0x7F],
            &unsupported,
            &no_client_id,
            b"",
        ] {
            let mut stream = TcpStream::connect(broker.mqtt).unwrap();
            stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            stream.write_all(bytes).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    let log = broker.log();
    let told: Vec<&str> = log.lines().filter(|l| l.contains("127.0.0.1:") && l.contains("peer=")).collect();
    assert!((4..=6).contains(&told.len()), "{told:#?}");
}

#[test]
fn the_receive_maximum_is_enforced() {
    let broker = Setup::new().set("limits.receive_maximum", "5").start();
    Bystanders::watch(&broker, || {
        let mut client = Dial::v5("greedy").connect(broker.mqtt);
        // QoS 2 counts until PUBREL is answered, and this client never sends one.
        for n in 0..6 {
            let sent = client.send_publish("t", b"x", QoS::ExactlyOnce, false);
            assert!(sent.is_ok() || n > 5);
        }
        let mut answered = 0;
        let told = loop {
            match client.recv() {
                In::PubRec(..) => answered += 1,
                In::Disconnect(reason) => break reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((told, answered), (Reason::ReceiveMaximumExceeded, 5));
        assert_eq!(client.recv(), In::Closed);
        assert_eq!(broker.metric("mqtt_errors_total{type=\"receive_maximum_exceeded\"}"), 1.0);

        // MQTT 3 knows no such limit: the broker takes it as it comes.
        let mut older = Dial::v4("older").connect(broker.mqtt);
        for _ in 0..50 {
            older.send_publish("t", b"x", QoS::AtLeastOnce, false).unwrap();
        }
        for n in 1..=50 {
            assert_eq!(older.recv(), In::PubAck(n, Reason::Success));
        }
    });
}

#[test]
fn subscriptions_are_limited_one_by_one() {
    let broker = Setup::new().set("limits.max_subscriptions_per_session", "10").start();
    Bystanders::watch(&broker, || {
        for (dial, refused) in [(Dial::v5("five"), 0x97), (Dial::v4("four"), 0x80)] {
            let mut client = dial.connect(broker.mqtt);
            let names: Vec<String> = (0..13).map(|n| format!("many/{n}")).collect();
            let filters: Vec<_> = names.iter().map(|n| (&**n, QoS::AtLeastOnce)).collect();
            let codes = client.subscribe(&filters);
            assert_eq!(codes, [vec![1; 10], vec![refused; 3]].concat());
            // One that is there may be changed; another fits when one goes.
            assert_eq!(
                client.subscribe(&[("many/3", QoS::AtMostOnce), ("new", QoS::AtMostOnce)]),
                [0, refused]
            );
            client.unsubscribe(&["many/3"]);
            assert_eq!(client.subscribe(&[("new", QoS::AtMostOnce)]), [0]);
            client.disconnect();
        }
        wait::until_true("they are gone", || broker.metric("mqtt_subscriptions_active") == 1.0);
    });
}

#[test]
fn thousands_of_filters_in_one_packet() {
    let broker = Broker::start();
    Bystanders::watch(&broker, || {
        let names: Vec<String> = (0..20_000).map(|n| format!("wide/{}/{n}/+", n % 100)).collect();
        let filters: Vec<_> = names.iter().map(|n| (&**n, QoS::AtLeastOnce)).collect();
        for dial in [Dial::v5("wide-5").persistent(), Dial::v4("wide-4")] {
            let mut client = dial.connect(broker.mqtt);
            assert_eq!(client.subscribe(&filters), vec![1; filters.len()]);
            client.publish("wide/77/177/x", "found", QoS::AtLeastOnce);
            assert_eq!(client.receive().text(), "found");
            let names: Vec<&str> = names.iter().map(|n| &**n).collect();
            let codes = client.unsubscribe(&names);
            assert!(codes.iter().all(|c| *c == 0), "{codes:?}");
            client.publish("wide/77/177/x", "not found", QoS::AtLeastOnce);
            client.ping();
            client.disconnect();
        }
    });
}
