//! Room for large packets of which only a part has come: their sum is bounded (G10).
//!
//! A packet asks for the room of all its bytes when its header is known, and is read on when it has it. So whoever has room
//! never waits for others to give theirs back; how long it may keep it, `limits.packet_timeout` and the keep alive say. Room is
//! granted in the order of asking.

use super::Broker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

#[derive(Debug, Default)]
struct Inner {
    used: usize,
    waiting: VecDeque<Arc<Ask>>,
}

impl Inner {
    /// Grants what fits, in order; whoever must be woken is added to `wakers`.
    fn grant(&mut self, max: usize, wakers: &mut Vec<Waker>) {
        while let Some(ask) = self.waiting.front() {
            // One packet always fits: the limit may be below the largest packet of a running connection.
            if self.used > 0 && self.used + ask.len > max {
                return;
            }
            self.used += ask.len;
            ask.granted.store(true, Ordering::Release);
            wakers.extend(ask.waker.lock().take());
            self.waiting.pop_front();
        }
    }
}

#[derive(Debug)]
struct Ask {
    len: usize,
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

/// See the module.
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

    /// Asks for room for a packet of `len` bytes.
    pub fn ask(&self, len: usize) -> Room {
        let ask = Arc::new(Ask { len, granted: AtomicBool::new(false), waker: Mutex::new(None) });
        let mut inner = self.inner.lock();
        inner.waiting.push_back(ask.clone());
        inner.grant(self.max, &mut Vec::new()); // nobody before it fits, or they would have been granted
        Room { ask, inner: self.inner.clone(), max: self.max }
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

    /// Has `waker` woken when the room is granted.
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
                inner.used -= self.ask.len;
            } else {
                inner.waiting.retain(|a| !Arc::ptr_eq(a, &self.ask));
            }
            inner.grant(self.max, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Broker {
    /// Bytes of large packets that are arriving, all connections together.
    pub fn arriving_bytes(&self) -> usize {
        self.receiving.packets.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_granted_in_order_and_given_back() {
        let rooms = Rooms::new(100);
        let first = rooms.ask(60);
        let second = rooms.ask(50);
        let third = rooms.ask(10);
        let granted = |rooms: &[&Room]| rooms.iter().map(|r| r.granted()).collect::<Vec<_>>();
        assert_eq!(granted(&[&first, &second, &third]), [true, false, false], "nobody overtakes");
        assert_eq!(rooms.used(), 60);
        drop(first);
        assert_eq!(granted(&[&second, &third]), [true, true]);
        let fourth = rooms.ask(50);
        let fifth = rooms.ask(40);
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
        let large = rooms.ask(1000);
        let small = rooms.ask(1);
        assert!(large.granted() && !small.granted());
        drop(large);
        assert!(small.granted());
    }
}
