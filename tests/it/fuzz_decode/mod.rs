//! Fuzzing on the stable toolchain: seeded mutation of the corpus, the same checks as the fuzz target in `fuzz/`.

mod check;

use crate::arbitrary::any_from_client;
use crate::corpus::{State, malformed};
use crate::fuzz_loop;
use crate::random::Random;
use berth::mqtt::Version;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

fn selector(version: Option<Version>) -> u8 {
    match version {
        None => 0,
        Some(Version::V31) => 1,
        Some(Version::V311) => 2,
        Some(Version::V5) => 3,
    }
}

/// Malformed packets from the corpus and valid ones: whatever is near the border.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = malformed()
        .into_iter()
        .map(|case| {
            let version = if case.state == State::Pre { None } else { case.version };
            [&[selector(version)], &case.bytes[..]].concat()
        })
        .collect();
    let mut runner = TestRunner::deterministic();
    let packets = any_from_client();
    for _ in 0..500 {
        let Ok(tree) = packets.new_tree(&mut runner) else { continue };
        let (version, packet) = tree.current();
        seeds.push([&[selector(packet.state(version))], &packet.encode(version)[..]].concat());
    }
    seeds
}

fn mutated(rng: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[rng.index(seeds.len())].clone();
    for _ in 0..rng.index(6) {
        let at = rng.index(data.len());
        let byte = match rng.index(4) {
            0 => [0x00, 0x01, 0x7F, 0x80, 0xFF, 0x26, b'+', b'#'][rng.index(8)],
            _ => rng.next() as u8,
        };
        match rng.index(8) {
            0 => data[at] = byte,
            1 => data[at] ^= 1 << rng.index(8),
            2 => data.insert(at, byte),
            3 if data.len() > 1 => drop(data.remove(at)),
            4 => data.truncate(at.max(1)),
            // Two that keep the (one byte) remaining length of the first frame true, to get behind the fixed header.
            5 if data.len() > 3 => {
                data.insert(at.max(3), byte);
                data[2] = data[2].wrapping_add(1);
            }
            6 if data.len() > 4 => {
                data.remove(at.max(3));
                data[2] = data[2].wrapping_sub(1);
            }
            // Another packet behind it.
            _ => data.extend_from_slice(&seeds[rng.index(seeds.len())][1..]),
        }
    }
    data
}

#[test]
fn any_bytes() {
    let seeds = seeds();
    seeds.iter().for_each(|seed| check::check(seed));
    fuzz_loop::run(|rng| mutated(rng, &seeds), |data| check::check(data));
}
