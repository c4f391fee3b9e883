//! The names of levels: short ones inside their node, longer ones kept once for all nodes and counted.

use std::hash::{BuildHasher, Hasher};

use crate::hashing::State;

use super::arena::{Arena, Id};
use super::table::IdTable;

/// Names up to this many bytes live in the node: a match finds them where it looks anyway.
const SHORT: usize = 15;

/// In place of a length: the first four bytes are the id of a long name.
const LONG: u8 = u8::MAX;

/// The name of a level, 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    bytes: [u8; SHORT],
    len: u8,
}

impl Name {
    /// The empty name.
    pub(super) const EMPTY: Self = Self { bytes: [0; SHORT], len: 0 };

    fn long(id: Id) -> Self {
        let mut bytes = [0; SHORT];
        bytes[..4].copy_from_slice(&id.raw().to_ne_bytes());
        Self { bytes, len: LONG }
    }

    #[inline]
    fn long_id(&self) -> Option<Id> {
        let [a, b, c, d, ..] = self.bytes;
        if self.len == LONG { Id::from_raw(u32::from_ne_bytes([a, b, c, d])) } else { None }
    }
}

#[derive(Debug)]
struct Long {
    bytes: Box<[u8]>,
    uses: u32,
}

/// The long names of one index. Hashes are seeded at random: a client cannot choose names that collide.
#[derive(Debug)]
pub(super) struct Names {
    long: Arena<Long>,
    table: IdTable,
    bytes: usize,
    hasher: State,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { long: Arena::new(), table: IdTable::default(), bytes: 0, hasher: State::default() }
    }

    /// How many different long names are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.table.len(), self.long.len());
        self.long.len()
    }

    #[inline]
    pub(super) fn hash(&self, level: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(level);
        hasher.finish()
    }

    /// The name for a level, with one use more if it is long. `hash` is [`Names::hash`] of it.
    pub(super) fn acquire(&mut self, level: &[u8], hash: u64) -> Name {
        if let (0..=SHORT, Ok(len)) = (level.len(), u8::try_from(level.len())) {
            let mut bytes = [0; SHORT];
            bytes[..level.len()].copy_from_slice(level);
            return Name { bytes, len };
        }
        let hash = hash as u32 ^ (hash >> 32) as u32;
        let long = &self.long;
        let id = self.table.find(hash, |id| *long[id].bytes == *level).unwrap_or_else(|| {
            let id = self.long.insert(Long { bytes: level.into(), uses: 0 });
            self.table.insert(hash, id);
            self.bytes += level.len();
            id
        });
        self.long[id].uses += 1;
        Name::long(id)
    }

    /// Gives one use back; the last one frees a long name.
    pub(super) fn release(&mut self, name: Name) {
        let Some(id) = name.long_id() else {
            return;
        };
        self.long[id].uses -= 1;
        if self.long[id].uses == 0
            && let Some(long) = self.long.remove(id)
        {
            let hash = self.hash(&long.bytes);
            self.table.remove(hash as u32 ^ (hash >> 32) as u32, id);
            self.bytes -= long.bytes.len();
        }
    }

    #[inline]
    pub(super) fn bytes<'a>(&'a self, name: &'a Name) -> &'a [u8] {
        match name.long_id() {
            Some(id) => &self.long[id].bytes,
            None => name.bytes.get(..usize::from(name.len)).unwrap_or_default(),
        }
    }

    /// Bytes allocated.
    pub(super) fn memory_bytes(&self) -> usize {
        self.long.memory_bytes() + self.table.memory_bytes() + self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shared_and_freed() {
        let mut names = Names::new();
        let texts =
            ["", "a", "fifteen bytes b", "sixteen bytes lo", "漢字", &"x".repeat(255), &"x".repeat(65_535)];
        let mut used = Vec::new();
        for text in texts {
            let text = text.as_bytes();
            let hash = names.hash(text);
            for _ in 0..2 {
                let name = names.acquire(text, hash);
                assert_eq!(names.bytes(&name), text);
                used.push(name);
            }
        }
        assert_eq!((names.len(), names.bytes), (3, 16 + 255 + 65_535));
        let (first, second): (Vec<_>, Vec<_>) = used.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
        for name in first {
            names.release(name);
        }
        assert_eq!(names.len(), 3);
        for name in second {
            names.release(name);
        }
        assert_eq!((names.len(), names.bytes), (0, 0));
    }
}
