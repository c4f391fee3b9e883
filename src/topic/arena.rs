//! Where the indexes keep their nodes, values and long level names: 32-bit ids instead of pointers, in chunks, so
//! that growth neither moves all of it nor allocates twice of it.
//!
//! An id is valid until it is removed. Ids never leave this layer, so a stale one is an error of ours, not of a
//! client.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

/// Slots of a chunk: small enough that growing by one is no pause, large enough to make its header negligible.
const CHUNK: usize = 4096;

/// A slot of an [`Arena`]. Four bytes, also as an `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(NonZeroU32);

impl Id {
    /// The slot a new arena hands out first.
    pub(super) const FIRST: Self = Self(NonZeroU32::MIN);

    /// The id [`Id::raw`] was taken from; `None` for 0.
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        NonZeroU32::new(raw).map(Self)
    }

    /// A number for arithmetic, never 0.
    pub(super) fn raw(self) -> u32 {
        self.0.get()
    }

    fn at(chunk: usize, slot: usize) -> Self {
        // Four billion slots are more memory than any machine here has; saturating keeps this free of panics.
        let index = u32::try_from(chunk * CHUNK + slot).unwrap_or(u32::MAX);
        Self(NonZeroU32::MIN.saturating_add(index))
    }

    fn place(self) -> (usize, usize) {
        let index = self.raw() as usize - 1;
        (index / CHUNK, index % CHUNK)
    }
}

/// Values under stable ids. A value type with a niche costs no more than itself. A chunk that becomes empty gives
/// its memory back.
#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks that have room, each once.
    open: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    slots: Vec<Option<T>>,
    free: Vec<u16>,
    len: usize,
}

impl<T> Arena<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), open: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, value: T) -> Id {
        self.len += 1;
        let number = match self.open.last() {
            Some(&number) => number as usize,
            None => {
                let number = self.chunks.len();
                self.chunks.push(Chunk { slots: Vec::new(), free: Vec::new(), len: 0 });
                self.open.push(u32::try_from(number).unwrap_or(u32::MAX));
                number
            }
        };
        let chunk = &mut self.chunks[number];
        let slot = match chunk.free.pop() {
            Some(slot) => {
                chunk.slots[usize::from(slot)] = Some(value);
                usize::from(slot)
            }
            None => {
                chunk.slots.push(Some(value));
                chunk.slots.len() - 1
            }
        };
        chunk.len += 1;
        if chunk.len == CHUNK {
            chunk.free = Vec::new();
            self.open.pop();
        }
        Id::at(number, slot)
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        let (number, slot) = id.place();
        let chunk = self.chunks.get_mut(number)?;
        let value = chunk.slots.get_mut(slot)?.take()?;
        self.len -= 1;
        if chunk.len == CHUNK {
            self.open.push(u32::try_from(number).unwrap_or(u32::MAX));
        }
        chunk.len -= 1;
        if chunk.len == 0 {
            chunk.slots = Vec::new();
            chunk.free = Vec::new();
        } else {
            chunk.free.push(u16::try_from(slot).unwrap_or(u16::MAX));
        }
        Some(value)
    }

    #[inline]
    pub(super) fn get(&self, id: Id) -> Option<&T> {
        let (number, slot) = id.place();
        self.chunks.get(number)?.slots.get(slot)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let (number, slot) = id.place();
        self.chunks.get_mut(number)?.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.chunks.iter().enumerate().flat_map(|(number, chunk)| {
            let slots = chunk.slots.iter().enumerate();
            slots.filter_map(move |(slot, value)| Some((Id::at(number, slot), value.as_ref()?)))
        })
    }

    /// Bytes allocated, without what the values own.
    pub(super) fn memory_bytes(&self) -> usize {
        let slots = |chunk: &Chunk<T>| {
            chunk.slots.capacity() * size_of::<Option<T>>() + chunk.free.capacity() * size_of::<u16>()
        };
        self.chunks.capacity() * size_of::<Chunk<T>>()
            + self.open.capacity() * size_of::<u32>()
            + self.chunks.iter().map(slots).sum::<usize>()
    }
}

impl<T> Index<Id> for Arena<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: Id) -> &T {
        match self.get(id) {
            Some(value) => value,
            None => unreachable!("an id outlived its slot"),
        }
    }
}

impl<T> IndexMut<Id> for Arena<T> {
    #[inline]
    fn index_mut(&mut self, id: Id) -> &mut T {
        match self.get_mut(id) {
            Some(value) => value,
            None => unreachable!("an id outlived its slot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_chunks_given_back() {
        let mut arena = Arena::new();
        let ids: Vec<Id> = (0..3 * CHUNK).map(|n| arena.insert(Box::new(n))).collect();
        assert_eq!(ids[0], Id::FIRST);
        assert_eq!((arena.chunks.len(), arena.open.len(), arena.len()), (3, 0, 3 * CHUNK));
        let full = arena.memory_bytes();

        for id in &ids[CHUNK..] {
            assert!(arena.remove(*id).is_some());
        }
        assert_eq!(arena.remove(ids[CHUNK]), None);
        assert!(arena.get(ids[CHUNK]).is_none());
        assert!(arena.memory_bytes() < full / 2);
        assert_eq!(*arena[ids[7]], 7);

        arena.remove(ids[7]);
        for n in 0..2 * CHUNK + 1 {
            arena.insert(Box::new(n));
        }
        assert_eq!((arena.chunks.len(), arena.open.len(), arena.len()), (3, 0, 3 * CHUNK));
        let seen: Vec<Id> = arena.iter().map(|(id, _)| id).collect();
        assert_eq!(seen, ids);
    }
}
