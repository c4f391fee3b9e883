//! The indexes at a million entries: time of an insert, a match and a wildcard look-up, and bytes an entry.
#![allow(missing_docs)]

use std::hint::black_box;
use std::ops::ControlFlow;

use berth::topic::{RetainedTrie, Trie};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: usize = 1_000_000;

/// A name, how to make the n-th filter, and a topic that it matches.
type Shape = (&'static str, fn(usize) -> String, fn(usize) -> String);

const SHAPES: [Shape; 3] = [
    (
        "P/s/<client>/<k>/+",
        |n| format!("P/s/client{}/{}/+", n / 20, n % 20),
        |n| format!("P/s/client{}/{}/temperature", n / 20, n % 20),
    ),
    (
        "devices/<id>/cmd/#",
        |n| format!("devices/device-{n}/cmd/#"),
        |n| format!("devices/device-{n}/cmd/reboot"),
    ),
    (
        "site/<uuid>/+/state",
        |n| format!("site/{}/+/state", uuid(n)),
        |n| format!("site/{}/lamp/state", uuid(n)),
    ),
];

fn uuid(n: usize) -> String {
    let n = n as u128 * 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    format!(
        "{:08x}-{:04x}-4000-8000-{:012x}",
        n as u32,
        (n >> 32) as u16,
        (n >> 48) as u64 & 0xffff_ffff_ffff
    )
}

/// Numbers below [`ENTRIES`] in an order the processor cannot foresee.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) % ENTRIES)
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0_usize) * 4096
}

fn subscriptions(criterion: &mut Criterion) {
    for (name, filter, topic) in SHAPES {
        let mut group = criterion.benchmark_group(name);
        let filters: Vec<String> = (0..ENTRIES).map(filter).collect();
        let topics: Vec<String> = shuffled(1 << 17).map(topic).collect();

        let before = resident_bytes();
        let mut trie = Trie::new();
        for filter in &filters {
            trie.get_or_insert_with(filter, || 0_u64);
        }
        println!(
            "{name}: {} bytes a filter counted, {} resident, of these 16 for the value",
            trie.memory_bytes() / ENTRIES,
            resident_bytes().saturating_sub(before) / ENTRIES,
        );
        for (case, active) in [("match at 1M, 1000 topics active", 1000), ("match at 1M, any topic", 1 << 17)]
        {
            let mut next = topics.iter().take(active).cycle();
            group.bench_function(case, |bencher| {
                bencher.iter(|| {
                    let mut found = 0;
                    trie.for_each_match(next.next().map_or("", String::as_str), |value| found += 1 + *value);
                    assert_eq!(black_box(found), 1);
                });
            });
        }
        let mut next = topics.iter().cycle();
        trie.get_or_insert_with("#", || 0);
        for level in 0..5 {
            let filter = "+/".repeat(level) + "+";
            trie.get_or_insert_with(&filter, || 0);
        }
        group.bench_function("match at 1M beside # and +/+/...", |bencher| {
            bencher.iter(|| {
                let mut found = 0;
                trie.for_each_match(next.next().map_or("", String::as_str), |value| found += 1 + *value);
                assert_eq!(black_box(found), 3);
            });
        });
        let mut numbers = shuffled(1 << 17).collect::<Vec<_>>().into_iter().cycle();
        group.bench_function("remove and insert at 1M", |bencher| {
            bencher.iter(|| {
                let filter = &filters[numbers.next().unwrap_or(0)];
                black_box(trie.remove(filter));
                trie.get_or_insert_with(filter, || 0);
            });
        });
        drop(trie);

        group.sample_size(10).throughput(Throughput::Elements(ENTRIES as u64));
        group.bench_function("insert 1M", |bencher| {
            bencher.iter_batched(
                Trie::new,
                |mut trie| {
                    for filter in &filters {
                        trie.get_or_insert_with(filter, || 0_u64);
                    }
                    trie
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

fn retained(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("retained a/<id>/c");
    let topics: Vec<String> = (0..ENTRIES).map(|n| format!("a/{n}/c")).collect();
    let before = resident_bytes();
    let mut store = RetainedTrie::new();
    for topic in &topics {
        store.insert(topic, 0_u64);
    }
    for n in 0..100 {
        store.insert(&format!("a/{n}/rare"), 0);
    }
    println!(
        "retained: {} bytes a topic counted, {} resident, of these 16 for the value",
        store.memory_bytes() / ENTRIES,
        resident_bytes().saturating_sub(before) / ENTRIES,
    );
    let mut next = shuffled(1 << 17).collect::<Vec<_>>().into_iter().cycle();
    group.bench_function("get at 1M", |bencher| {
        bencher.iter(|| store.get(&topics[next.next().unwrap_or(0)]).copied());
    });
    group.bench_function("replace at 1M", |bencher| {
        bencher.iter(|| store.insert(&topics[next.next().unwrap_or(0)], 1));
    });
    group.bench_function("remove and insert at 1M", |bencher| {
        bencher.iter(|| {
            let topic = &topics[next.next().unwrap_or(0)];
            black_box(store.remove(topic));
            store.insert(topic, 1)
        });
    });
    group.sample_size(10);
    for (filter, expected) in [("a/+/c", ENTRIES), ("a/+/rare", 100), ("#", ENTRIES + 100)] {
        group.bench_function(filter, |bencher| {
            bencher.iter(|| {
                let mut found = 0;
                store.for_each_match(filter, |_| {
                    found += 1;
                    ControlFlow::Continue(())
                });
                assert_eq!(found, expected);
            });
        });
    }
    group.bench_function("insert 1M", |bencher| {
        bencher.iter_batched(
            RetainedTrie::new,
            |mut store| {
                for topic in &topics {
                    store.insert(topic, 0_u64);
                }
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, subscriptions, retained);
criterion_main!(benches);
