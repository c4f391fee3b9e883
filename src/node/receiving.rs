//! Room for large packets of which only a part has come: their sum is bounded (G10).
//!
//! A packet asks for the room of all its bytes when its header is known, and is read on when it has it. So whoever has room
//! never waits for others to give theirs back; how long it may keep it, `limits.packet_timeout` and the keep alive say. Room is
//! granted in the order of asking, and one host has at most half of it: whoever takes it and sends nothing keeps others of that host waiting,
//! and nobody else.

use super::Node;
use crate::hashing::{HashMap, HashSet};
use crate::host::host;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

#[derive(Debug, Default)]
struct Inner {
    used: usize,
    /// By hosts that have room.
    held: HashMap<IpAddr, usize>,
    waiting: VecDeque<Arc<Ask>>,
}

impl Inner {
    /// Grants what fits, in order; whoever must be woken is added to `wakers`.
    fn grant(&mut self, max: usize, wakers: &mut Vec<Waker>) {
        let (mut at, mut waits) = (0, HashSet::default());
        while let Some(ask) = self.waiting.get(at) {
            let held = self.held.get(&ask.host).copied().unwrap_or(0);
            // For room of its own host, in which nobody overtakes either, while others go on.
            if waits.contains(&ask.host) || (held > 0 && held + ask.len > max / HOST_SHARE) {
                waits.insert(ask.host);
                at += 1;
                continue;
            }
            // One packet always fits: the limit may be below the largest packet of a running connection.
            if self.used > 0 && self.used + ask.len > max {
                return;
            }
            self.used += ask.len;
            self.held.insert(ask.host, held + ask.len);
            ask.granted.store(true, Ordering::Release);
            wakers.extend(ask.waker.lock().take());
            self.waiting.remove(at);
        }
    }

    /// Takes back what was granted.
    fn take_back(&mut self, ask: &Ask) {
        self.used -= ask.len;
        let left = self.held.get(&ask.host).map_or(0, |held| held.saturating_sub(ask.len));
        if left == 0 {
            self.held.remove(&ask.host);
        } else {
            self.held.insert(ask.host, left);
        }
    }
}

/// Of the room one host may have so much: a half.
const HOST_SHARE: usize = 2;

#[derive(Debug)]
struct Ask {
    len: usize,
    host: IpAddr,
    granted: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Bytes of CONNECT packets above 64 KiB that arrive, all connections together. They have room of their own, so that nobody who
/// has not connected takes that of those who have.
const CONNECTING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The room of one broker.
#[derive(Debug)]
pub struct Receiving {
    /// For CONNECT.
    pub connects: Rooms,
    /// For all other packets.
    pub packets: Rooms,
}

impl Receiving {
    /// With so many bytes for packets of connected clients.
    pub fn new(max: usize) -> Receiving {
        Receiving { connects: Rooms::new(CONNECTING_BYTES_MAX), packets: Rooms::new(max) }
    }
}

/// The room for large packets that arrive, and who waits for some.
#[derive(Debug)]
pub struct Rooms {
    inner: Arc<Mutex<Inner>>,
    max: usize,
}

impl Rooms {
    /// At most `max` bytes at a time.
    pub fn new(max: usize) -> Rooms {
        Rooms { inner: Arc::default(), max }
    }

    /// Asks for room for a packet of `len` bytes that comes from `address`.
    pub fn ask(&self, len: usize, address: IpAddr) -> Room {
        let (granted, waker) = (AtomicBool::new(false), Mutex::new(None));
        let ask = Arc::new(Ask { len, host: host(address), granted, waker });
        let mut inner = self.inner.lock();
        inner.waiting.push_back(ask.clone());
        inner.grant(self.max, &mut Vec::new()); // nobody before it can be granted, or they would have been
        Room { ask, inner: self.inner.clone(), max: self.max }
    }

    /// The host that has most of the room, and how many bytes; `None` = nobody has any.
    pub fn most(&self) -> Option<(IpAddr, usize)> {
        self.inner.lock().held.iter().map(|(host, held)| (*host, *held)).max_by_key(|(_, held)| *held)
    }

    /// Length of all packets that have room, bytes.
    pub fn used(&self) -> usize {
        self.inner.lock().used
    }
}

/// The room of one packet, or its place in the row; given back when dropped.
#[derive(Debug)]
pub struct Room {
    ask: Arc<Ask>,
    inner: Arc<Mutex<Inner>>,
    max: usize,
}

impl Room {
    /// Whether the packet may be read on.
    pub fn granted(&self) -> bool {
        self.ask.granted.load(Ordering::Acquire)
    }

    /// Length of the packet, bytes.
    pub fn packet_len(&self) -> usize {
        self.ask.len
    }

    /// Wakes `waker` when the room is granted.
    pub fn wake(&self, waker: &Waker) {
        // Under the lock, so that a grant in between is not missed.
        let _inner = self.inner.lock();
        if !self.granted() {
            *self.ask.waker.lock() = Some(waker.clone());
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.inner.lock();
            if self.granted() {
                inner.take_back(&self.ask);
            } else {
                inner.waiting.retain(|a| !Arc::ptr_eq(a, &self.ask));
            }
            inner.grant(self.max, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Node {
    /// Bytes of large packets that are arriving, all connections together.
    pub fn arriving_bytes(&self) -> usize {
        self.receiving.packets.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn room_is_granted_in_order_and_given_back() {
        let rooms = Rooms::new(100);
        let first = rooms.ask(60, address(1));
        let second = rooms.ask(50, address(2));
        let third = rooms.ask(10, address(3));
        let granted = |rooms: &[&Room]| rooms.iter().map(|r| r.granted()).collect::<Vec<_>>();
        assert_eq!(granted(&[&first, &second, &third]), [true, false, false], "nobody overtakes");
        assert_eq!(rooms.used(), 60);
        drop(first);
        assert_eq!(granted(&[&second, &third]), [true, true]);
        let fourth = rooms.ask(50, address(4));
        let fifth = rooms.ask(40, address(5));
        assert_eq!(granted(&[&fourth, &fifth]), [false, false]);
        // Who gives up leaves the row.
        drop(fourth);
        assert!(fifth.granted());
        drop((second, third, fifth));
        assert_eq!(rooms.used(), 0);
    }

    #[test]
    fn one_packet_always_fits() {
        let rooms = Rooms::new(100);
        let large = rooms.ask(1000, address(1));
        let small = rooms.ask(1, address(2));
        assert!(large.granted() && !small.granted());
        drop(large);
        assert!(small.granted());
    }

    /// A host that takes all it can get and sends nothing keeps nobody else waiting.
    #[test]
    fn one_host_has_half_of_the_room() {
        let rooms = Rooms::new(100);
        let greedy: Vec<_> = (0..9).map(|_| rooms.ask(20, address(1))).collect();
        let granted = |rooms: &[Room]| rooms.iter().filter(|room| room.granted()).count();
        assert_eq!((granted(&greedy), rooms.used()), (2, 40));
        assert_eq!(rooms.most(), Some((address(1), 40)));
        // More than half at once, since it has none yet; then there is no room for another one, and nobody overtakes that.
        let others = [rooms.ask(60, address(2)), rooms.ask(10, address(3)), rooms.ask(1, address(4))];
        assert_eq!(granted(&others), 1);
        drop(others);
        assert_eq!((granted(&greedy), rooms.used()), (2, 40), "it has its half already");
        let small = rooms.ask(5, address(1));
        assert!(!small.granted(), "nobody overtakes");
        drop(small);
        let left: Vec<_> = greedy.into_iter().skip(1).collect();
        assert_eq!((granted(&left), rooms.used()), (2, 40), "what one gives back another one gets");
        drop(left);
        assert_eq!((rooms.used(), rooms.most()), (0, None));
        assert!(rooms.inner.lock().held.is_empty());
    }
}
