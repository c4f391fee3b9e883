//! How soon a killed broker with full queues serves again. Checks that everything is there, prints how long it took:
//!
//! `cargo test --release --test it recovery -- --nocapture` measures what counts.

use crate::broker::{Broker, Setup};
use crate::client::{Client, Dial, In, Out, publish_bytes};
use crate::wait;
use berth::clock::monotonic_us;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};
use std::net::SocketAddr;
use std::sync::Barrier;

const SESSIONS: usize = 1_000;
const MESSAGES: usize = 100;
const PAYLOAD: usize = 256;
const THREADS: usize = 4;

fn dial(n: usize) -> Dial {
    Dial::v5(&format!("session-{n}")).persistent()
}

/// Sessions of one thread.
fn part(thread: usize) -> std::ops::Range<usize> {
    thread * SESSIONS / THREADS..(thread + 1) * SESSIONS / THREADS
}

/// Queues all messages, a window of them at a time.
fn fill(broker: &Broker) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for n in part(thread) {
                    let mut client = dial(n).connect(broker.mqtt);
                    client.subscribe(&[(&format!("queue/{n}"), QoS::AtLeastOnce)]);
                    client.disconnect();
                }
            });
        }
    });
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    let mut bytes = Vec::new();
    for round in 0..MESSAGES {
        for window in (0..SESSIONS).collect::<Vec<_>>().chunks(500) {
            bytes.clear();
            for n in window {
                let topic = format!("queue/{n}");
                let payload = format!("{round:PAYLOAD$}");
                let packet_id = *n as u16 + 1;
                let (qos, payload) = (QoS::AtLeastOnce, payload.as_bytes());
                let out = Out { topic: &topic, payload, qos, retain: false, dup: false, packet_id };
                bytes.extend(publish_bytes(Version::V5, &out));
            }
            publisher.send(&bytes).unwrap();
            for n in window {
                assert_eq!(publisher.recv(), In::PubAck(*n as u16 + 1, Reason::Success));
            }
        }
    }
}

/// Connects as soon as that is possible.
fn resume(n: usize, address: SocketAddr) -> Client {
    let (client, answer) = wait::until("the broker is back", || dial(n).try_connect(address).ok());
    assert!(resumed(&answer), "{answer:?}");
    client
}

#[test]
fn recovery_of_1000_sessions_with_100000_messages() {
    let mut broker = Setup::new().start();
    let began = monotonic_us();
    fill(&broker);
    let filled_us = monotonic_us() - began;
    assert_eq!(broker.metric("berth_queued_messages") as usize, SESSIONS * MESSAGES);
    let journal_mb = broker.metric("berth_journal_size_bytes") / 1e6;
    broker.sigkill();

    let address = broker.mqtt;
    let start = monotonic_us();
    broker.respawn();
    let mut first = resume(0, address);
    let first_us = monotonic_us() - start;
    let connected = Barrier::new(THREADS + 1);
    let mut connected_us = 0;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let connected = &connected;
            scope.spawn(move || {
                // All at once, as clients do whose broker was away.
                let mut clients: Vec<_> = part(thread)
                    .filter(|n| *n > 0)
                    .map(|n| {
                        let mut client = Client::raw(address, Version::V5).unwrap();
                        client.send(&dial(n).bytes()).unwrap();
                        client
                    })
                    .collect();
                for client in &mut clients {
                    let answer = client.recv();
                    assert!(resumed(&answer), "{answer:?}");
                }
                connected.wait();
                clients.iter_mut().for_each(drain);
            });
        }
        connected.wait();
        connected_us = monotonic_us() - start;
        drain(&mut first);
    });
    let drained_us = monotonic_us() - start;
    wait::until_true("nothing is queued", || broker.metric("berth_queued_messages") == 0.0);
    let log = broker.wait_log(|l| l.contains("journal read"));
    println!(
        "recovery ({} build, {journal_mb:.0} MB journal, filled at {} msg/s): first CONNACK after {} ms, all {SESSIONS} \
         sessions after {} ms, all {} messages received after {} ms;{}",
        if cfg!(debug_assertions) { "debug" } else { "release" },
        (SESSIONS * MESSAGES) as u64 * 1_000_000 / filled_us,
        first_us / 1000,
        connected_us / 1000,
        SESSIONS * MESSAGES,
        drained_us / 1000,
        log.split("journal read").nth(1).unwrap_or_default()
    );
}

fn resumed(answer: &In) -> bool {
    matches!(answer, In::ConnAck { present: true, reason: Reason::Success, .. })
}

/// Receives a whole queue, in order.
fn drain(client: &mut Client) {
    for n in 0..MESSAGES {
        let p = client.receive_only();
        assert_eq!((p.text().trim(), p.dup), (&*n.to_string(), false), "{}", p.topic);
        client.ack(AckKind::PubAck, p.packet_id).unwrap();
    }
}
