//! Clients are heard: while more waits for them than they take, while a packet takes its time, and before they are judged.

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In, Out, publish_bytes};
use crate::cluster::netns::{self, Network};
use crate::wait;
use berth::clock;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Version};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Publishes QoS 0 messages of 200 bytes to `topic` as fast as they are taken until it is told to stop.
struct Flood<'a> {
    stop: &'a AtomicBool,
}

impl Flood<'_> {
    fn beside<R>(broker: &Broker, topic: &str, work: impl FnOnce() -> R) -> R {
        let stop = AtomicBool::new(false);
        let flood = Flood { stop: &stop };
        std::thread::scope(|scope| {
            scope.spawn(|| flood.run(broker.mqtt, topic));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn run(&self, to: SocketAddr, topic: &str) {
        let mut client = Dial::v5("flood").connect(to);
        let out = Out {
            topic,
            payload: &[b'x'; 200],
            qos: QoS::AtMostOnce,
            retain: false,
            dup: false,
            packet_id: 0,
        };
        let batch = publish_bytes(Version::V5, &out).repeat(100);
        while !self.stop.load(SeqCst) {
            client.send(&batch).unwrap();
        }
    }
}

/// Reads about 3 MB/s until `wanted` has come.
fn read_slowly(client: &mut Client, wanted: impl Fn(&In) -> bool) {
    let mut read = 0;
    loop {
        let packet = client.recv();
        assert_ne!(packet, In::Closed);
        if wanted(&packet) {
            return;
        }
        read += 200;
        if read > 12_000 {
            read = 0;
            wait::pace(4);
        }
    }
}

/// The flow is faster than the client reads all the time: its PINGREQ and UNSUBSCRIBE are answered, and it stays.
#[test]
fn a_client_that_reads_slower_than_the_flow_stays() {
    let broker = Broker::start();
    for dial in [Dial::v5("slow"), Dial::v4("slow")] {
        let mut client = dial.clone().keep_alive(2).connect_narrow(broker.mqtt, 8192);
        client.subscribe(&[("flow", QoS::AtMostOnce)]);
        Flood::beside(&broker, "flow", || {
            let began = clock::now();
            let mut pings = 0;
            // Twice as long as it may be silent.
            while clock::now().since_ms(began) < 6000 {
                client.send(&[0xC0, 0]).unwrap();
                pings += 1;
                read_slowly(&mut client, |p| *p == In::PingResp);
            }
            let mut out = Vec::new();
            berth::mqtt::client::unsubscribe(&mut out, dial.version, 77, &[], &["flow"]);
            client.send(&out).unwrap();
            read_slowly(&mut client, |p| matches!(p, In::UnsubAck(77, _)));
            println!("{pings} pings were answered");
        });
        client.disconnect();
    }
    assert!(broker.metric("berth_messages_dropped_total{reason=\"mailbox_full\"}") > 0.0, "it was no flood");
    assert_eq!(broker.metric("mqtt_errors_total{type=\"keep_alive_timeout\"}"), 0.0);
}

/// A goodbye behind a backlog is read, however the connection ends after it: the will does not fire.
#[test]
fn a_goodbye_behind_a_backlog_cancels_the_will() {
    let broker = Broker::start();
    let mut watch = Dial::v5("watch").connect(broker.mqtt);
    watch.subscribe(&[("wills/#", QoS::AtLeastOnce)]);
    let connections = || broker.metric("mqtt_connections_active");
    for (dial, resets) in
        [(Dial::v5("a"), false), (Dial::v5("b"), true), (Dial::v4("c"), false), (Dial::v4("d"), true)]
    {
        let topic = format!("wills/{}", dial.client_id);
        let mut client = dial.clone().will(&topic, "gone", 0).connect_narrow(broker.mqtt, 8192);
        client.subscribe(&[("flow", QoS::AtMostOnce)]);
        let dropped = "berth_messages_dropped_total{reason=\"mailbox_full\"}";
        let before = broker.metric(dropped);
        Flood::beside(&broker, "flow", || {
            wait::until_true("its queue is full", || broker.metric(dropped) > before);
            let goodbye: &[u8] = if dial.version.is_v5() { &[0xE0, 2, 0, 0] } else { &[0xE0, 0] };
            client.send(goodbye).unwrap();
            if resets {
                drop(client); // with unread bytes: the connection is reset
            } else {
                client.stream().shutdown(std::net::Shutdown::Write).unwrap();
                wait::until_true("it is gone", || connections() == 2.0);
            }
        });
        wait::until_true("it is gone", || connections() == 1.0);
        Dial::v5("marker").connect(broker.mqtt).publish("wills/marker", "no will came", QoS::AtLeastOnce);
        assert_eq!(watch.receive().text(), "no will came", "{dial:?} resets {resets}");
    }
}

/// A long queue reaches a client behind a narrow link, which acknowledges all the time while it reads.
#[test]
fn a_slow_link_gets_its_long_queue() {
    const MESSAGES: u32 = 1500;
    let broker = Setup::new().set("session.max_inflight", "65535").start();
    for dial in [Dial::v5("slow").persistent(), Dial::v4("slow").persistent()] {
        let mut client = dial.connect(broker.mqtt);
        client.subscribe(&[("queue", QoS::AtLeastOnce)]);
        client.disconnect();
        let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
        for n in 0..MESSAGES {
            let mut payload = n.to_be_bytes().to_vec();
            payload.resize(2000, b'x');
            publisher.publish_with("queue", &payload, QoS::AtLeastOnce, false);
        }
        let mut client = dial.clone().keep_alive(1).connect_narrow(broker.mqtt, 4096);
        assert!(client.present);
        for n in 0..MESSAGES {
            let p = client.receive_only();
            assert_eq!((&p.payload[..4], p.dup), (&n.to_be_bytes()[..], false));
            client.ack(AckKind::PubAck, p.packet_id).unwrap();
            if n % 4 == 0 {
                wait::pace(8); // about 1 MB/s
            }
        }
        client.disconnect();
        wait::until_true("all are settled", || broker.metric("berth_queued_messages") == 0.0);
        Dial::new(dial.version, "slow").clean().connect(broker.mqtt).disconnect();
    }
}

/// A client that is subscribed to what it publishes, and reads only when it has said everything, is not held up for ever.
#[test]
fn a_client_that_publishes_to_itself_is_read() {
    let broker = Broker::start();
    for (dial, qos) in [(Dial::v5("self"), QoS::AtMostOnce), (Dial::v4("self"), QoS::AtLeastOnce)] {
        let mut client = dial.connect_narrow(broker.mqtt, 8192);
        client.subscribe(&[("own", qos)]);
        for _ in 0..6000 {
            client.send_publish("own", &[b'x'; 2000], qos, false).unwrap();
        }
        client.send(&[0xC0, 0]).unwrap();
        client.wait_for("PINGRESP", |p| (*p == In::PingResp).then_some(()));
        if qos > QoS::AtMostOnce {
            for n in 0..6000 {
                let id = client.wait_for("PUBACK", |p| match p {
                    In::PubAck(id, _) => Some(*id),
                    _ => None,
                });
                assert_eq!(u32::from(id), n + 2, "the SUBSCRIBE had the first one");
            }
        }
    }
}

/// While the broker stands still, its clients speak; that it hears them late is not held against them.
#[test]
fn a_broker_that_stood_still_hears_its_clients_first() {
    let broker = Setup::new().set("limits.connect_timeout", "1s").start();
    let mut clients: Vec<Client> = [Dial::v5("five"), Dial::v4("four")]
        .map(|dial| dial.keep_alive(1).connect(broker.mqtt))
        .into_iter()
        .collect();
    let mut late = Client::raw(broker.mqtt, Version::V5).unwrap();
    clients.iter_mut().for_each(Client::ping);
    broker.signal("STOP");
    wait::until_stopped(broker.pid());
    for client in &mut clients {
        client.send(&[0xC0, 0]).unwrap();
    }
    late.send(&Dial::v5("late").bytes()).unwrap();
    wait::pace(2000);
    broker.signal("CONT");
    for client in &mut clients {
        assert_eq!(client.recv(), In::PingResp);
    }
    assert!(matches!(late.recv(), In::ConnAck { .. }));
}

/// A packet that arrives in steady pieces keeps its client alive.
#[test]
fn a_large_packet_in_steady_pieces_arrives() {
    let broker = Broker::start();
    for dial in [Dial::v5("steady"), Dial::v4("steady")] {
        let mut client = dial.clone().keep_alive(1).connect(broker.mqtt);
        let out = Out {
            topic: "t",
            payload: &[b'x'; 60_000],
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            packet_id: 9,
        };
        let bytes = publish_bytes(dial.version, &out);
        for piece in bytes.chunks(4000) {
            client.send(piece).unwrap();
            wait::pace(150);
        }
        client.wait_for("PUBACK", |p| matches!(p, In::PubAck(9, _)).then_some(()));
    }
}

/// Who takes nothing is let go with that reason; who takes little stays.
#[test]
fn a_client_that_takes_no_byte_is_let_go() {
    let mut broker = Setup::new().set("limits.write_timeout", "2s").start();
    let mut slow = Dial::v5("slow").connect_narrow(broker.mqtt, 8192);
    slow.subscribe(&[("flow", QoS::AtMostOnce)]);
    let mut stuck = Dial::v5("stuck").connect_narrow(broker.mqtt, 8192);
    stuck.subscribe(&[("flow", QoS::AtMostOnce)]);
    Flood::beside(&broker, "flow", || {
        let timeouts = || broker.metric("mqtt_errors_total{type=\"write_timeout\"}");
        let mut buffer = vec![0; 6000];
        // The slow one reads 60 kB a second: the system lets the broker write only now and then.
        wait::until_true("the one that reads nothing is let go", || {
            std::io::Read::read_exact(&mut slow.stream(), &mut buffer).unwrap();
            wait::pace(100);
            timeouts() == 1.0
        });
        for _ in 0..30 {
            std::io::Read::read_exact(&mut slow.stream(), &mut buffer).unwrap();
            wait::pace(100);
        }
        assert_eq!(timeouts(), 1.0);
    });
    let line = broker.wait_log(|l| l.contains("disconnected"));
    assert!(line.contains("stuck") && line.contains("limits.write_timeout"), "{line}");
    drop((slow, stuck));
}

/// A client that takes nothing is noticed also while its system and ours keep all that was written.
#[test]
fn a_client_that_takes_nothing_of_a_little_is_let_go() {
    let broker = Setup::new().set("limits.write_timeout", "1s").start();
    let mut stuck = Dial::v4("stuck").connect_narrow(broker.mqtt, 8192);
    stuck.subscribe(&[("some", QoS::AtMostOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    for _ in 0..40 {
        publisher.send_publish("some", &[b'x'; 10_000], QoS::AtMostOnce, false).unwrap();
    }
    wait::until_true("it is let go", || broker.metric("mqtt_errors_total{type=\"write_timeout\"}") == 1.0);
    drop(stuck);
}

/// While one large message is on its way to it, a client is heard, and its goodbye is.
#[test]
fn a_client_behind_one_large_message_is_heard() {
    let broker = Broker::start();
    let mut watch = Dial::v5("watch").connect(broker.mqtt);
    watch.subscribe(&[("wills/#", QoS::AtLeastOnce), ("heard", QoS::AtLeastOnce)]);
    for dial in [Dial::v5("slow"), Dial::v4("slow")] {
        let mut slow = dial.clone().will("wills/slow", "gone", 0).connect_narrow(broker.mqtt, 8192);
        slow.subscribe(&[("large", QoS::AtMostOnce)]);
        let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
        publisher.publish_with("large", &vec![b'x'; 12 << 20], QoS::AtLeastOnce, false);
        slow.send_publish("heard", b"here I am", QoS::AtMostOnce, false).unwrap();
        assert_eq!(watch.receive().text(), "here I am");
        let goodbye: &[u8] = if dial.version.is_v5() { &[0xE0, 2, 0, 0] } else { &[0xE0, 0] };
        slow.send(goodbye).unwrap();
        wait::until_true("it is gone", || broker.metric("mqtt_connections_active") == 2.0);
        publisher.publish("wills/marker", "no will came", QoS::AtLeastOnce);
        assert_eq!(watch.receive().text(), "no will came");
    }
}

/// Packets of which a part has come take bounded memory together, all arrive in the end, and small ones go on beside them.
#[test]
fn packets_that_arrive_share_bounded_room() {
    const CLIENTS: usize = 12;
    let broker = Setup::new()
        .set("limits.max_packet_size", "16MiB")
        .set("limits.max_arriving_bytes", "32MiB")
        .set("limits.packet_timeout", "1m")
        .start();
    let finish = AtomicBool::new(false);
    let before = broker.resident_bytes();
    let mut most = before;
    std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (to, finish) = (broker.mqtt, &finish);
                scope.spawn(move || {
                    // Of two hosts, each of which may have half of the room.
                    let dial = Dial::v5(&format!("upload-{n}")).keep_alive(2);
                    let mut client = dial.connect_from([127, 0, 0, 2 + n as u8 % 2].into(), to);
                    let out = Out {
                        topic: "firmware",
                        payload: &vec![b'x'; 15 << 20],
                        qos: QoS::AtLeastOnce,
                        retain: false,
                        dup: false,
                        packet_id: 1,
                    };
                    let bytes = publish_bytes(Version::V5, &out);
                    let (most, rest) = bytes.split_at(bytes.len() - 1000);
                    client.send(most).unwrap(); // held up until there is room
                    wait::until_true("it may finish", || finish.load(SeqCst));
                    client.send(rest).unwrap();
                    client.wait_for("PUBACK", |p| matches!(p, In::PubAck(1, _)).then_some(()));
                })
            })
            .collect();
        let arriving = || broker.metric("berth_arriving_bytes");
        wait::until_true("there is no more room", || arriving() > 30e6);
        let mut other = Dial::v5("other").connect(broker.mqtt);
        other.subscribe(&[("small", QoS::AtLeastOnce)]);
        for n in 0..200 {
            other.publish("small", &n.to_string(), QoS::AtLeastOnce);
            assert_eq!(other.receive().text(), n.to_string());
            most = most.max(broker.resident_bytes());
        }
        assert!(arriving() <= f64::from(32 << 20));
        finish.store(true, SeqCst);
        uploads.into_iter().for_each(|u| u.join().unwrap());
    });
    let grown = most.saturating_sub(before);
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");
    assert_eq!(broker.metric("berth_arriving_bytes"), 0.0);
}

/// Ten pieces of firmware of 4 MiB, one after the other, pass untouched with the defaults.
#[test]
fn firmware_passes_untouched() {
    let broker = Broker::start();
    pass_firmware(broker.mqtt, broker.mqtt);
}

/// Sends firmware in from one address out at another, at each QoS.
pub fn pass_firmware(from: SocketAddr, to: SocketAddr) {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut device = Dial::v5("device").connect(to);
        device.subscribe(&[("firmware/+", qos)]);
        let piece = |n: u8| -> Vec<u8> { (0..4 << 20).map(|at: u32| (at / 7) as u8 ^ n).collect() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut server = Dial::v4("server").connect(from);
                for n in 0..10 {
                    server.publish_with(&format!("firmware/{n}"), &piece(n), qos, false);
                }
                server.disconnect();
            });
            for n in 0..10 {
                let p = device.receive();
                assert_eq!((&*p.topic, p.qos), (&*format!("firmware/{n}"), qos));
                assert!(p.payload == piece(n), "piece {n} at {qos:?}");
            }
        });
        device.disconnect();
    }
}

/// A client without a keep alive whose machine vanishes is gone when the system has asked in vain (TCP keep-alive).
#[test]
fn a_vanished_client_without_a_keep_alive_goes() {
    if !netns::available() {
        return;
    }
    let network = Network::new(1);
    let start = |keep_alive: &str| {
        Setup::new()
            .within(network.namespace(0), network.address(0))
            .set("auth.allow_anonymous", "true")
            .set("log.level", "debug")
            .set("listeners.tcp.keep_alive", keep_alive)
            .start()
    };
    let (mut asks, silent) = (start("1s"), start("off"));
    let clients = [&asks, &silent].map(|b| Dial::v5("vanishes").connect(b.mqtt));
    network.cut_off(0);
    let gone = |line: &str| line.contains("disconnected") && line.contains("vanishes");
    let line = asks.wait_log(gone);
    assert!(line.contains("Lost"), "{line}");
    assert!(!silent.log().lines().any(gone), "without the option it stays");
    drop(clients);
    network.heal();
}

/// An MQTT 3 client is held to the server's longest keep alive where one is set.
#[test]
fn the_longest_keep_alive_holds_for_all_versions() {
    let broker = Setup::new().set("limits.max_keep_alive", "1s").start();
    let mut silent = [Dial::v5("five"), Dial::v4("four"), Dial::new(Version::V31, "three")]
        .map(|dial| dial.keep_alive(600).connect(broker.mqtt));
    for client in &mut silent {
        client.patience(Duration::from_secs(20));
        client.expect_closed();
    }
    assert_eq!(broker.metric("mqtt_errors_total{type=\"keep_alive_timeout\"}"), 3.0);
}
