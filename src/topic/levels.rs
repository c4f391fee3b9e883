//! The level names of an index, each kept once and counted: `cmd` in a million filters takes no more than in one.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

use super::arena::{Arena, Id, IdTable};

/// Names up to this many bytes need no allocation of their own; chosen so that an entry takes 24 bytes.
const INLINE: usize = 18;

#[derive(Debug)]
enum Entry {
    Short { len: u8, bytes: [u8; INLINE], uses: u32 },
    Long { bytes: Box<[u8]>, uses: u32 },
}

impl Entry {
    fn new(level: &[u8]) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..level.len()), u8::try_from(level.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(level);
                Self::Short { len, bytes, uses: 0 }
            }
            _ => Self::Long { bytes: level.into(), uses: 0 },
        }
    }

    #[inline]
    fn name(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes, .. } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long { bytes, .. } => bytes,
        }
    }

    fn uses(&mut self) -> &mut u32 {
        match self {
            Self::Short { uses, .. } | Self::Long { uses, .. } => uses,
        }
    }
}

/// Level names by id, with use counts. The hashes are seeded at random: a client cannot choose names that collide.
#[derive(Debug)]
pub(super) struct Levels {
    entries: Arena<Entry>,
    table: IdTable,
    long_bytes: usize,
    hasher: RandomState,
}

impl Levels {
    pub(super) fn new() -> Self {
        Self {
            entries: Arena::new(),
            table: IdTable::default(),
            long_bytes: 0,
            hasher: RandomState::default(),
        }
    }

    /// How many different names are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.table.len(), self.entries.len());
        self.entries.len()
    }

    #[inline]
    pub(super) fn hash(&self, level: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(level);
        hasher.finish()
    }

    /// The id of a name, with one use more. `hash` is [`Levels::hash`] of it.
    pub(super) fn acquire(&mut self, level: &[u8], hash: u64) -> Id {
        let entries = &self.entries;
        let found = self.table.find(hash as u32, |id| entries[id].name() == level);
        let id = found.unwrap_or_else(|| {
            let entry = Entry::new(level);
            if matches!(entry, Entry::Long { .. }) {
                self.long_bytes += level.len();
            }
            let id = self.entries.insert(entry);
            self.table.insert(hash as u32, id);
            id
        });
        *self.entries[id].uses() += 1;
        id
    }

    /// Gives one use back; the last one frees the name.
    pub(super) fn release(&mut self, id: Id) {
        let uses = self.entries[id].uses();
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        if let Some(entry) = self.entries.remove(id) {
            self.table.remove(self.hash(entry.name()) as u32, id);
            if let Entry::Long { bytes, .. } = entry {
                self.long_bytes -= bytes.len();
            }
        }
    }

    #[inline]
    pub(super) fn name(&self, id: Id) -> &[u8] {
        self.entries[id].name()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.memory_bytes() + self.table.memory_bytes() + self.long_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shared_and_freed() {
        assert_eq!(size_of::<Option<Entry>>(), 24);
        let mut levels = Levels::new();
        let names = ["", "a", "exactly eighteen b", "nineteen bytes long", "漢字", &"x".repeat(65_535)];
        let mut ids = Vec::new();
        for name in names {
            let hash = levels.hash(name.as_bytes());
            let id = levels.acquire(name.as_bytes(), hash);
            assert_eq!(levels.acquire(name.as_bytes(), hash), id);
            assert_eq!(levels.name(id), name.as_bytes());
            ids.push(id);
        }
        assert_eq!((levels.len(), levels.long_bytes), (names.len(), 19 + 65_535));
        for &id in &ids {
            levels.release(id);
        }
        assert_eq!(levels.len(), names.len());
        for &id in &ids {
            levels.release(id);
        }
        assert_eq!((levels.len(), levels.long_bytes), (0, 0));
    }
}
