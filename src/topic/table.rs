//! A hash table of ids, one cache line a look-up: open addressing, 8 bytes a slot.
//!
//! The place of a hash is its share of the table (`hash * slots / 2^32`), not its low bits. So the table may have
//! any size, grows by half instead of doubling, and growing it reads and writes memory in order: a million ids move
//! in a few milliseconds. Comparing what ids stand for is the caller's business; hashes must be well mixed.

use super::arena::Id;

/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;

/// Tables of fewer slots than this are not worth shrinking.
const SHRINK_ABOVE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    hash: u32,
    /// The raw id; 0 if the slot is empty.
    raw: u32,
}

const EMPTY: Slot = Slot { hash: 0, raw: 0 };

/// Ids by hash. At least a fifth of the slots is empty, so that every search ends soon.
#[derive(Debug, Default)]
pub(super) struct IdTable {
    slots: Vec<Slot>,
    len: usize,
}

impl IdTable {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where the search for a hash begins.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, slot: usize) -> usize {
        if slot + 1 < self.slots.len() { slot + 1 } else { 0 }
    }

    /// How far `to` is behind `from`, around the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }

    /// The place and id of the first entry of this hash that `is_it`.
    #[inline]
    fn search(&self, hash: u32, mut is_it: impl FnMut(Id) -> bool) -> Option<(usize, Id)> {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots.get(at)?;
            let id = Id::from_raw(slot.raw)?;
            if slot.hash == hash && is_it(id) {
                return Some((at, id));
            }
            at = self.after(at);
        }
    }

    #[inline]
    pub(super) fn find(&self, hash: u32, is_it: impl FnMut(Id) -> bool) -> Option<Id> {
        self.search(hash, is_it).map(|(_, id)| id)
    }

    /// Adds an id, which must not be in the table.
    pub(super) fn insert(&mut self, hash: u32, id: Id) {
        if (self.len + 1) * 5 > self.slots.len() * 4 {
            self.resize((self.slots.len() + self.slots.len() / 2).max(SLOTS_MIN));
        }
        self.place(Slot { hash, raw: id.raw() });
        self.len += 1;
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while self.slots[at] != EMPTY {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    /// Takes an id out, if it is there.
    pub(super) fn remove(&mut self, hash: u32, id: Id) {
        let Some((mut hole, _)) = self.search(hash, |other| other == id) else {
            return;
        };
        // Move later entries up, unless that would put them before the place where the search for them begins.
        let mut at = self.after(hole);
        while self.slots[at] != EMPTY {
            if self.distance(self.home(self.slots[at].hash), at) >= self.distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
        if self.slots.len() > SHRINK_ABOVE && self.len < self.slots.len() / 5 {
            self.resize((self.len * 2).max(SLOTS_MIN));
        }
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        for slot in old.into_iter().filter(|slot| *slot != EMPTY) {
            self.place(slot);
        }
    }

    /// Bytes allocated.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> Id {
        Id::from_raw(n).unwrap()
    }

    #[test]
    fn shrinks_after_a_mass_removal() {
        let mut table = IdTable::default();
        assert_eq!(table.find(1, |_| true), None);
        let hash = |n: u32| n.wrapping_mul(2_654_435_761) >> 8 << 9; // every other one collides
        for n in 1..=100_000 {
            table.insert(hash(n), id(n));
        }
        assert!(table.memory_bytes() < 100_000 * 16, "{}", table.memory_bytes());
        for n in 1_001..=100_000 {
            table.remove(hash(n), id(n));
        }
        table.remove(hash(1_001), id(1_001));
        assert_eq!(table.len(), 1_000);
        assert!(table.memory_bytes() < 64 * 1024, "{}", table.memory_bytes());
        assert!((1..=1_000).all(|n| table.find(hash(n), |other| other == id(n)) == Some(id(n))));
    }

    /// Clusters around the end of a small table, inserted and removed in all sorts of orders.
    #[test]
    fn holes_are_closed_around_the_end() {
        let mut random = 1_u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 8
        };
        for _ in 0..500 {
            let mut table = IdTable::default();
            let mut entries: Vec<(u32, Id)> = Vec::new();
            for n in 1..=200 {
                if entries.len() == 12 || (!entries.is_empty() && next() % 3 == 0) {
                    let (hash, id) = entries.swap_remove(next() as usize % entries.len());
                    table.remove(hash, id);
                    assert_eq!(table.find(hash, |other| other == id), None);
                } else {
                    let hash = 0xE000_0000_u32.wrapping_add((next() % 4) << 28);
                    table.insert(hash, id(n));
                    entries.push((hash, id(n)));
                }
                assert_eq!((table.len(), table.slots.len()), (entries.len(), SLOTS_MIN));
                for &(hash, id) in &entries {
                    assert_eq!(table.find(hash, |other| other == id), Some(id));
                }
            }
        }
    }
}
