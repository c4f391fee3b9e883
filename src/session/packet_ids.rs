//! Packet identifiers of outbound messages: ascending, wrapping, never one that is in use.

/// Hands out packet identifiers in constant time.
///
/// Identifiers ascend; within one lap only those still in use when the lap began can clash, so only these are kept.
#[derive(Debug, Default)]
pub struct PacketIds {
    last: u16,
    /// Identifiers in use when this lap began, ascending.
    avoid: Vec<u16>,
}

impl PacketIds {
    /// The next free identifier. `in_use` lists the identifiers in use; it is read once a lap. `None` if all are.
    pub fn next<I: Iterator<Item = u16>>(&mut self, in_use: impl FnOnce() -> I) -> Option<u16> {
        let mut in_use = Some(in_use);
        loop {
            if self.last == u16::MAX {
                // A second wrap within one call means that every identifier is taken.
                self.start_lap((in_use.take()?)());
            }
            self.last += 1;
            if self.avoid.binary_search(&self.last).is_err() {
                return Some(self.last);
            }
        }
    }

    /// Starts as if `ids` had just been handed out: a session read back from the journal.
    pub fn resume(&mut self, ids: impl Iterator<Item = u16>) {
        self.start_lap(ids);
    }

    fn start_lap(&mut self, ids: impl Iterator<Item = u16>) {
        self.last = 0;
        self.avoid.clear();
        self.avoid.extend(ids);
        self.avoid.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn skips_identifiers_in_use_after_a_wrap() {
        let mut ids = PacketIds::default();
        let mut used: HashSet<u16> = HashSet::new();
        for n in 0..300_000u32 {
            let id = ids.next(|| used.clone().into_iter()).unwrap();
            assert!(id != 0 && !used.contains(&id), "{id}");
            if n % 1000 == 7 {
                used.insert(id); // never acknowledged
            }
        }
    }

    #[test]
    fn says_when_none_is_left() {
        let mut ids = PacketIds::default();
        ids.resume(1..=u16::MAX);
        assert_eq!(ids.next(|| 1..=u16::MAX), None);
    }

    #[test]
    fn a_recovered_session_keeps_its_identifiers() {
        let mut ids = PacketIds::default();
        ids.resume([1, 2, 4].into_iter());
        assert_eq!(ids.next(std::iter::empty), Some(3));
        assert_eq!(ids.next(std::iter::empty), Some(5));
    }
}
