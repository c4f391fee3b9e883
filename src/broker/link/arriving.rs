//! A packet of which only the beginning has come: how long it may take, whether it is a sign of life, and the room it needs.

use super::{Link, State};
use crate::broker::receiving::Room;
use crate::clock::Time;
use crate::mqtt::decode;
use std::task::Waker;

/// Bytes of an arriving packet that count as a sign of life if they come within one keep alive, as a whole packet does.
pub(super) const LIFE_BYTES_MIN: usize = 1024;

/// Packets up to this length need no room among those that arrive: a read brings as much.
pub const SMALL_PACKET_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Arriving {
    /// When the packet must be complete.
    pub deadline: Time,
    /// Since when `bytes` are counted.
    window: Time,
    /// Bytes that came since then.
    bytes: usize,
    /// The room for it, held or waited for, if it is large.
    pub room: Option<Room>,
}

impl Arriving {
    fn new(now: Time, timeout_ms: u64) -> Arriving {
        Arriving { deadline: now.plus_ms(timeout_ms), window: now, bytes: 0, room: None }
    }

    /// So many bytes came; true if that is a sign of life. `keep_alive_ms` is the client's.
    fn came(&mut self, bytes: usize, keep_alive_ms: u64, now: Time) -> bool {
        if now.since_ms(self.window) > keep_alive_ms {
            (self.window, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
        let lives = self.bytes >= LIFE_BYTES_MIN;
        if lives {
            (self.window, self.bytes) = (now, 0);
        }
        lives
    }
}

impl Link {
    /// So many bytes came, and perhaps with them the last ones of a packet: looks after the packet that is still arriving.
    pub(super) fn note_arriving(&mut self, bytes: usize, completed: bool, takes: bool, now: Time) {
        if completed || self.partial.is_empty() {
            self.arriving = None;
            if self.partial.capacity() > 4 * SMALL_PACKET_MAX {
                self.partial.shrink_to(SMALL_PACKET_MAX); // it held a large packet
            }
        }
        if self.partial.is_empty() || !takes {
            return; // whole packets may wait here: their time has not begun
        }
        let limits = &self.broker.limits;
        let arriving = self.arriving.get_or_insert_with(|| Arriving::new(now, limits.packet_timeout_ms));
        let mut maximum = limits.session.maximum_packet_size;
        if let State::Open(open) = &mut self.state {
            maximum = open.maximum_packet_size;
            if let Some(keep_alive_ms) = open.session.keep_alive_ms()
                && arriving.came(bytes, keep_alive_ms, now)
            {
                open.session.heard(now);
            }
        }
        if arriving.room.is_none()
            && let Ok(Some(len)) = decode::header_len(&self.partial, maximum)
            && len > SMALL_PACKET_MAX
        {
            arriving.room = Some(self.broker.receiving.ask(len));
            self.take_room(None);
        }
    }

    /// Whether the packet that arrives must wait for room. `waker` is woken when there is some.
    pub(super) fn waits_for_room(&self) -> bool {
        self.arriving.as_ref().and_then(|a| a.room.as_ref()).is_some_and(|room| !room.granted())
    }

    /// Makes use of room that was granted; arranges for `waker` to be woken if none was yet.
    pub(super) fn take_room(&mut self, waker: Option<&Waker>) {
        let Some(room) = self.arriving.as_ref().and_then(|a| a.room.as_ref()) else { return };
        if let Some(waker) = waker {
            room.wake(waker);
        }
        if room.granted() && self.partial.capacity() < room.len() {
            self.partial.reserve_exact(room.len() - self.partial.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that come so many milliseconds after the begin, and whether they are a sign of life with a keep alive of 10 s.
    #[test]
    fn a_kibibyte_within_a_keep_alive_is_a_sign_of_life() {
        let tables: &[&[(u64, usize, bool)]] = &[
            &[(0, 1024, true), (1, 1023, false), (2, 1, true)],
            &[(0, 1, false), (10_000, 1023, true)],
            // Too slow: what came more than a keep alive ago does not count.
            &[(0, 1, false), (10_001, 1023, false), (20_001, 1, true)],
            &[(0, 900, false), (10_500, 900, false), (21_000, 900, false)],
        ];
        for table in tables {
            let mut a = Arriving::new(Time(0), 1);
            for &(at, bytes, lives) in *table {
                assert_eq!(a.came(bytes, 10_000, Time(at)), lives, "{bytes} bytes at {at} ms of {table:?}");
            }
        }
    }
}
