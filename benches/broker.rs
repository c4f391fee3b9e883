//! The whole way of a message but the sockets: bytes in at a publisher's channel, bytes out at the subscribers'.
#![allow(missing_docs, clippy::unwrap_used)]

use berth::auth::Anonymous;
use berth::clock::Time;
use berth::mqtt::packet::{RetainHandling, SubscribeOptions};
use berth::mqtt::{QoS, Version, client};
use berth::node::{Admission, Channel, Context, Limits, Node, Ports};
use berth::ports::{Door, NoBans, Recovered, Unrestricted};
use berth::storage::{MemoryJournal, MemoryOptions};
use berth::telemetry::Metrics;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use std::task::Waker;

const NOW: Time = Time(1_700_000_000_000);

/// Messages that come in one read.
const BATCH: usize = 50;

fn node() -> Arc<Node> {
    let ports = Ports {
        journal: MemoryJournal::new(MemoryOptions::default()),
        cluster: None,
        authorizer: Arc::new(Anonymous { anywhere: false, nowhere: false }),
        permissions: Arc::new(Unrestricted),
        bans: Arc::new(NoBans),
    };
    Node::new(Limits::default(), ports, Arc::new(Metrics::new()), Recovered::default(), NOW)
}

fn feed(channel: &mut Channel, bytes: &[u8], cx: &mut Context) -> usize {
    channel.receive(bytes, Waker::noop(), NOW, cx);
    channel.poll(Waker::noop(), NOW, cx);
    let written = cx.actions.wire.len();
    cx.actions.wire.clear();
    written
}

fn connected(node: &Arc<Node>, id: &str, cx: &mut Context) -> Channel {
    let mut channel =
        Channel::new(node.clone(), Door::tcp("127.0.0.1:1".parse().unwrap()), Admission::Serve, NOW);
    let mut bytes = Vec::new();
    let connect = client::Connect {
        version: Version::V311,
        bridge: false,
        clean_start: true,
        keep_alive_s: 0,
        properties: &[],
        client_id: id,
        will: None,
        username: None,
        password: None,
    };
    client::connect(&mut bytes, &connect);
    assert_eq!(feed(&mut channel, &bytes, cx), 4);
    channel
}

fn batch(qos: QoS) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 1..=BATCH {
        let publish = client::Publish {
            topic: "bench/topic",
            payload: &[7; 64],
            qos,
            retain: false,
            dup: false,
            packet_id: n as u16,
            properties: &[],
        };
        client::publish(&mut bytes, Version::V311, &publish);
    }
    bytes
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for (subscribers, qos) in [(1, QoS::AtMostOnce), (1, QoS::AtLeastOnce), (500, QoS::AtMostOnce)] {
        let (node, mut cx) = (node(), Context::default());
        let mut publisher = connected(&node, "publisher", &mut cx);
        let options = SubscribeOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        let mut channels: Vec<Channel> = (0..subscribers)
            .map(|n| {
                let mut channel = connected(&node, &format!("s{n}"), &mut cx);
                let mut bytes = Vec::new();
                client::subscribe(&mut bytes, Version::V311, 1, &[], &[("bench/+", options)]);
                assert_eq!(feed(&mut channel, &bytes, &mut cx), 5);
                channel
            })
            .collect();
        let bytes = batch(qos);
        group.throughput(Throughput::Elements((BATCH * subscribers) as u64));
        let mut next_id = 1u16;
        group.bench_function(BenchmarkId::new(format!("qos{}", qos as u8), subscribers), |b| {
            b.iter(|| {
                feed(&mut publisher, &bytes, &mut cx);
                for channel in &mut channels {
                    assert!(feed(channel, &[], &mut cx) > BATCH * 64);
                    if qos > QoS::AtMostOnce {
                        let mut acks = Vec::with_capacity(4 * BATCH);
                        for _ in 0..BATCH {
                            let [high, low] = next_id.to_be_bytes();
                            acks.extend_from_slice(&[0x40, 2, high, low]);
                            next_id = next_id.checked_add(1).unwrap_or(1);
                        }
                        feed(channel, &acks, &mut cx);
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
