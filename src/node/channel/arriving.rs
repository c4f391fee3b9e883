//! A packet of which only the beginning has come: how long it may take, whether it is a sign of life, and the room it needs.

use super::{Channel, State};
use crate::clock::Time;
use crate::mqtt::decode;
use crate::node::receiving::Room;
use std::task::Waker;

/// Bytes of an arriving packet that count as a sign of life if they come within one keep alive, as a whole packet does.
pub(super) const LIFE_BYTES_MIN: usize = 1024;

/// Length of a CONNECT, bytes: five strings of the largest size, and properties beside.
pub const CONNECT_BYTES_MAX: u32 = 512 * 1024;

/// Packets up to this length need no room among those that arrive: a read brings as much.
pub const SMALL_PACKET_MAX: usize = 64 * 1024;

/// Parts of a keep alive by which bytes are counted.
const PARTS: u64 = 16;

/// How often it is looked whether a client that waits for room is still there, milliseconds.
const ROOM_LOOK_MS: u64 = 1_000;

/// Bytes that came within the last keep alive, counted by its parts.
#[derive(Debug, Default)]
struct Recent {
    bytes: [u16; PARTS as usize],
    /// The part that is counted now, from the beginning of time.
    part: u64,
}

impl Recent {
    /// So many bytes came; true if that makes a sign of life. `keep_alive_ms` is the client's.
    fn came(&mut self, bytes: usize, keep_alive_ms: u64, now: Time) -> bool {
        let part = now.0 / (keep_alive_ms / PARTS).max(1);
        for old in (self.part + 1..=part).take(PARTS as usize) {
            self.bytes[(old % PARTS) as usize] = 0;
        }
        self.part = part;
        let own = &mut self.bytes[(part % PARTS) as usize];
        *own = own.saturating_add(u16::try_from(bytes).unwrap_or(u16::MAX));
        let lives = self.bytes.iter().map(|b| usize::from(*b)).sum::<usize>() >= LIFE_BYTES_MIN;
        if lives {
            self.bytes = Default::default();
        }
        lives
    }
}

/// A packet that is still arriving: how much of it has come, and until when the rest must.
#[derive(Debug)]
pub(super) struct Arriving {
    /// When the packet must be complete. Later by the time in which the node does not read.
    pub deadline: Time,
    recent: Recent,
    /// The room for it, held or waited for, if it is large.
    pub room: Option<Room>,
    /// When to look whether a client that waits for room is still there.
    pub look_at: Time,
}

impl Arriving {
    fn new(now: Time, timeout_ms: u64) -> Box<Arriving> {
        let deadline = now.plus_ms(timeout_ms);
        Box::new(Arriving { deadline, recent: Recent::default(), room: None, look_at: now })
    }
}

impl Channel {
    /// Takes note that `bytes` came, and perhaps with them the last ones of a packet: looks after the packet that is still arriving.
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
        let limits = &self.node.broker.limits;
        let arriving = self.arriving.get_or_insert_with(|| Arriving::new(now, limits.packet_timeout_ms()));
        let mut maximum = CONNECT_BYTES_MAX;
        let mut rooms = &self.node.receiving.connects;
        if let State::Open(open) = &mut self.state {
            maximum = open.maximum_packet_size;
            rooms = &self.node.receiving.packets;
            if let Some(keep_alive_ms) = open.session.keep_alive_ms()
                && arriving.recent.came(bytes, keep_alive_ms, now)
            {
                open.session.heard(now);
            }
        }
        if arriving.room.is_none()
            && let Ok(Some(len)) = decode::header_len(&self.partial, maximum)
            && len > SMALL_PACKET_MAX
        {
            let room = rooms.ask(len, self.door.peer.ip());
            if !room.granted()
                && let Some((most, held_bytes)) = rooms.most()
                && let Some(more) = self.node.refusals.first(&"a packet waits for room")
            {
                tracing::warn!(
                    peer = %self.door.peer, packet_bytes = len, %most, held_bytes, more,
                    "a packet above 64 KiB waits for room (limits.max_arriving_bytes): most of it has the host in `most`"
                );
            }
            arriving.room = Some(room);
            self.take_room(None);
        }
    }

    /// Whether the packet that arrives must wait for room.
    pub(super) fn waits_for_room(&self) -> bool {
        self.arriving.as_ref().and_then(|a| a.room.as_ref()).is_some_and(|room| !room.granted())
    }

    /// Whether a whole packet is here.
    pub(super) fn whole_packet(&self) -> bool {
        matches!(decode::frame_len(&self.partial, u32::MAX), Ok(Some(_)))
    }

    /// Whether the packet that waits for room would be complete with so many bytes more.
    pub(super) fn can_complete(&self, unread: u64) -> bool {
        let len = self.arriving.as_ref().and_then(|a| a.room.as_ref()).map_or(0, Room::packet_len);
        self.partial.len() as u64 + unread >= len as u64
    }

    /// Sets when to look next whether the client that waits for room is still there, after a look at `now`.
    pub(super) fn look_later(&mut self, now: Time) {
        if let Some(a) = &mut self.arriving {
            a.look_at = now.plus_ms(ROOM_LOOK_MS);
        }
    }

    /// Makes use of room that was granted; arranges for `waker` to be woken if none was yet.
    pub(super) fn take_room(&mut self, waker: Option<&Waker>) {
        let Some(room) = self.arriving.as_ref().and_then(|a| a.room.as_ref()) else { return };
        if let Some(waker) = waker {
            room.wake(waker);
        }
        if room.granted() && self.partial.capacity() < room.packet_len() {
            self.partial.reserve_exact(room.packet_len() - self.partial.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that come so many milliseconds after the begin, and whether they are a sign of life with a keep alive of 16 s.
    #[test]
    fn a_kibibyte_within_a_keep_alive_is_a_sign_of_life() {
        let tables: &[&[(u64, usize, bool)]] = &[
            &[(0, 1024, true), (1, 1023, false), (2, 1, true)],
            &[(0, 1, false), (15_999, 1023, true)],
            // What came longer ago does not count, and what came since does.
            &[(0, 1, false), (16_000, 1023, false), (31_999, 1, true)],
            &[(0, 10, false), (15_500, 1000, false), (17_000, 1000, true)],
            &[(0, 900, false), (16_500, 900, false), (33_000, 900, false)],
            &[(0, 70_000, true), (40_000_000, 70_000, true)],
        ];
        for table in tables {
            let mut recent = Recent::default();
            for &(at, bytes, lives) in *table {
                let now = Time(1_600_000_000).plus_ms(at);
                assert_eq!(recent.came(bytes, 16_000, now), lives, "{bytes} bytes at {at} ms of {table:?}");
            }
        }
    }
}
