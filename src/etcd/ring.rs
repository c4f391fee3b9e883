//! The recent events as etcd told them, for nodes that lag: what they ask for, and what they get.

use super::decode::RawEvent;
use crate::ports::Revision;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Events kept, at most; older ones go.
pub const RING_EVENTS_MAX: usize = 65_536;

/// Bytes of keys and values kept, at most; older ones go.
pub const RING_BYTES_MAX: usize = 16 << 20;

/// Bytes of one answer, about, at most: it ends after a whole revision, and the asker asks again.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// First byte of an answer: the version of its format.
const VERSION: u8 = 1;

/// Where an answer says up to which revision it goes.
const UP_TO: std::ops::Range<usize> = 9..17;

/// Events of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// All events after this revision ...
    pub after: Revision,
    /// ... and up to this one.
    pub up_to: Revision,
    /// In order.
    pub events: Vec<RawEvent>,
}

/// The recent events as etcd told them, for nodes that lag: what they ask for, and what they get. Has whole revisions only.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<RawEvent>,
    bytes: usize,
    /// Everything after this revision and up to `end` is in the ring.
    start: Revision,
    end: Revision,
}

fn weight(event: &RawEvent) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, Bytes::len)
}

impl Ring {
    /// Forgets everything: a snapshot of `revision` came in its place.
    pub fn restart(&mut self, revision: Revision) {
        *self = Ring { start: revision, end: revision, ..Ring::default() };
    }

    /// Adds all events up to `revision`, in order.
    pub fn push(&mut self, events: impl IntoIterator<Item = RawEvent>, revision: Revision) {
        for event in events {
            self.bytes += weight(&event);
            self.events.push_back(event);
        }
        self.end = revision;
        while self.events.len() > RING_EVENTS_MAX || self.bytes > RING_BYTES_MAX {
            let Some(event) = self.events.pop_front() else { break };
            self.bytes -= weight(&event);
            self.start = event.revision;
        }
    }

    /// Everything after `after`, and up to which revision it goes; `None` if the ring no longer has all of it.
    pub fn after(&self, after: Revision) -> Option<(Bytes, Revision)> {
        if after < self.start {
            return None;
        }
        let first = self.events.partition_point(|event| event.revision <= after);
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64(after);
        out.put_u64(0);
        let (mut up_to, mut at) = (after.max(self.end), after);
        for event in self.events.range(first..) {
            if event.revision != at && out.len() >= ANSWER_BYTES_MAX {
                up_to = at;
                break;
            }
            at = event.revision;
            encode(event, &mut out);
        }
        out[UP_TO].copy_from_slice(&up_to.to_be_bytes());
        Some((out.freeze(), up_to))
    }
}

fn encode(event: &RawEvent, out: &mut BytesMut) {
    out.put_u64(event.revision);
    out.put_u64(event.created);
    out.put_u32(event.key.len() as u32);
    out.put_slice(&event.key);
    match &event.value {
        Some(value) => {
            out.put_u8(1);
            out.put_u32(value.len() as u32);
            out.put_slice(value);
        }
        None => out.put_u8(0),
    }
}

/// Reads what [`Ring::after`] wrote; `None` if that is not what it is.
pub fn decode(mut bytes: Bytes) -> Option<Lacking> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let (after, up_to) = (bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?);
    let mut events: Vec<RawEvent> = Vec::new();
    while bytes.has_remaining() {
        let (revision, created) = (bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?);
        let key = take(&mut bytes)?;
        let value = match bytes.try_get_u8().ok()? {
            0 => None,
            1 => Some(take(&mut bytes)?),
            _ => return None,
        };
        if revision > up_to || events.last().is_some_and(|last| last.revision > revision) {
            return None;
        }
        events.push(RawEvent { key, value, revision, created });
    }
    Some(Lacking { after, up_to, events })
}

fn take(bytes: &mut Bytes) -> Option<Bytes> {
    let len = bytes.try_get_u32().ok()? as usize;
    (len <= bytes.len()).then(|| bytes.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, revision: Revision, size: usize) -> RawEvent {
        let value = (size > 0).then(|| Bytes::from(vec![7; size]));
        RawEvent { key: Bytes::copy_from_slice(key.as_bytes()), value, revision, created: 1 }
    }

    #[test]
    fn who_lags_gets_what_it_lacks() {
        let mut ring = Ring::default();
        ring.restart(10);
        assert_eq!(ring.after(9), None);
        assert_eq!(decode(ring.after(10).unwrap().0).unwrap().events, []);
        let events = [event("a", 11, 3), event("b", 11, 0), event("c", 14, 1)];
        ring.push(events.clone(), 14);
        let (bytes, up_to) = ring.after(10).unwrap();
        let lacking = Lacking { after: 10, up_to: 14, events: events.to_vec() };
        assert_eq!((decode(bytes).unwrap(), up_to), (lacking, 14));
        let (bytes, _) = ring.after(11).unwrap();
        assert_eq!(decode(bytes).unwrap().events, events[2..]);
        assert_eq!(ring.after(20).unwrap().1, 20);
    }

    #[test]
    fn bounded_by_number_and_bytes() {
        let mut ring = Ring::default();
        for revision in 1..=RING_EVENTS_MAX as u64 + 5 {
            ring.push([event("k", revision, 1)], revision);
        }
        assert_eq!(ring.events.len(), RING_EVENTS_MAX);
        assert!(ring.after(4).is_none() && ring.after(5).is_some());
        ring.restart(0);
        for revision in 1..=40 {
            ring.push([event("k", revision, 1 << 20)], revision);
        }
        assert!(ring.bytes <= RING_BYTES_MAX);
        assert!(ring.after(20).is_none());
        let (bytes, up_to) = ring.after(30).unwrap();
        assert_eq!(up_to, 31);
        assert_eq!(decode(bytes).unwrap().events.len(), 1);
    }

    #[test]
    fn an_answer_ends_with_a_whole_revision() {
        let mut ring = Ring::default();
        ring.push([event("a", 1, 900_000), event("b", 1, 900_000), event("c", 2, 1)], 2);
        let (bytes, up_to) = ring.after(0).unwrap();
        assert_eq!((decode(bytes).unwrap().events.len(), up_to), (2, 1));
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(decode(Bytes::new()), None);
        assert_eq!(decode(Bytes::from_static(&[9])), None);
        assert_eq!(decode(Bytes::from_static(&[1, 0, 0])), None);
        let mut ring = Ring::default();
        ring.push([event("abc", 5, 9)], 5);
        let (bytes, _) = ring.after(0).unwrap();
        for cut in (0..17).chain(18..bytes.len()) {
            assert_eq!(decode(bytes.slice(..cut)), None, "{cut}");
        }
    }
}
