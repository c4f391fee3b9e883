//! The part that the fuzz drivers of the server share with each other and with those of the integration tests.

#[allow(dead_code, missing_docs)]
#[path = "../../tests/it/arbitrary.rs"]
mod arbitrary;
#[path = "../../tests/it/fuzz_loop.rs"]
pub mod fuzz_loop;
#[allow(dead_code)]
#[path = "../../tests/it/random.rs"]
pub mod random;

use crate::mqtt::{Version, decode, frame_len};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use random::Random;

/// Packets of each kind and version that a stream is made of.
const PACKETS: usize = 60;

/// Packets of clients of one version: some CONNECT packets, and some others.
#[derive(Default)]
struct Packets {
    connects: Vec<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

/// Packets of clients, for each version.
pub struct Clients(Vec<Packets>);

impl Clients {
    pub fn new() -> Clients {
        let mut runner = TestRunner::deterministic();
        let of = |version| {
            let mut packets = Packets::default();
            while packets.connects.len() < PACKETS || packets.others.len() < PACKETS {
                let packet = arbitrary::from_client(version).new_tree(&mut runner).unwrap().current();
                let first = packet.state(version).is_none();
                let kind = if first { &mut packets.connects } else { &mut packets.others };
                kind.push(packet.encode(version));
            }
            packets
        };
        Clients([Version::V31, Version::V311, Version::V5].map(of).into())
    }

    /// CONNECT and up to `most` packets more, as one client sends them.
    pub fn stream(&self, rng: &mut Random, most: usize) -> Vec<u8> {
        let Packets { connects, others } = &self.0[rng.index(self.0.len())];
        let mut stream = connects[rng.index(connects.len())].clone();
        (0..rng.index(most + 1)).for_each(|_| stream.extend(&others[rng.index(others.len())]));
        stream
    }
}

/// How many packets are in `stream`, all of which must be whole ones that a client may send.
pub fn packets(mut stream: &[u8]) -> usize {
    let (mut version, mut count) = (None, 0);
    while let Some(len) = frame_len(stream, u32::MAX).unwrap() {
        match decode(version, &stream[..len]) {
            Ok(crate::mqtt::Packet::Connect(c)) => version = Some(c.version),
            Ok(_) => {}
            Err(error) => panic!("packet {count}: {error}"),
        }
        (stream, count) = (&stream[len..], count + 1);
    }
    assert!(stream.is_empty(), "the last packet is cut off");
    count
}

/// Changes some bytes, or drops, repeats or inserts some.
pub fn mutate(rng: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.index(4) {
        let at = rng.index(bytes.len().max(1));
        if at >= bytes.len() {
            return;
        }
        let byte = match rng.index(3) {
            0 => [0x00, 0x01, 0x0A, 0x0D, b' ', b':', 0x7F, 0x80, 0xFE, 0xFF][rng.index(10)],
            _ => rng.next() as u8,
        };
        match rng.index(6) {
            0 => bytes[at] = byte,
            1 => bytes[at] ^= 1 << rng.index(8),
            2 => bytes.insert(at, byte),
            3 => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..bytes.len().min(at + rng.index(20))].to_vec();
                let to = rng.index(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}
