//! The numbers of journaled messages that wait for room in memory, oldest first, and how large each is.

use crate::hashing::HashSet;
use crate::ports::Seq;
use std::collections::VecDeque;

/// The numbers of journaled messages that wait for room in memory, oldest first, and how large each is.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    seqs: VecDeque<Seq>,
    /// Of each, bytes.
    sizes: VecDeque<u32>,
    bytes: u64,
}

impl Backlog {
    /// The backlog of these messages, which have so many bytes together. What each of them has nobody has said: they count alike.
    pub fn new(seqs: VecDeque<Seq>, bytes: u64) -> Backlog {
        let mut backlog = Backlog::default();
        let mut left = bytes;
        for (at, seq) in seqs.iter().enumerate() {
            let share = left / (seqs.len() - at) as u64;
            left -= share;
            backlog.push_back(*seq, share as usize);
        }
        backlog
    }

    pub fn len(&self) -> usize {
        self.seqs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Bytes of all messages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = Seq> {
        self.seqs.iter().copied()
    }

    pub fn push_back(&mut self, seq: Seq, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.seqs.push_back(seq);
        self.sizes.push_back(size);
        self.bytes += u64::from(size);
    }

    pub fn push_front(&mut self, seq: Seq, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.seqs.push_front(seq);
        self.sizes.push_front(size);
        self.bytes += u64::from(size);
    }

    /// Takes the message at `at` out.
    pub fn remove(&mut self, at: usize) -> Option<Seq> {
        let seq = self.seqs.remove(at)?;
        self.bytes -= self.sizes.remove(at).map_or(0, u64::from);
        Some(seq)
    }

    /// Takes the oldest `n` out.
    pub fn drop_front(&mut self, n: usize) {
        let n = n.min(self.seqs.len());
        self.seqs.drain(..n);
        self.bytes -= self.sizes.drain(..n).map(u64::from).sum::<u64>();
        if self.seqs.is_empty() {
            self.seqs.shrink_to(64);
            self.sizes.shrink_to(64);
        }
    }

    /// Takes those of the oldest `n` out that are in `which`, and returns them in order. The others stay as they are.
    pub fn take_out(&mut self, n: usize, which: &HashSet<Seq>) -> Vec<Seq> {
        let n = n.min(self.seqs.len());
        let looked_at: Vec<_> = self.seqs.drain(..n).zip(self.sizes.drain(..n)).collect();
        let (out, stay): (Vec<_>, Vec<_>) = looked_at.into_iter().partition(|(seq, _)| which.contains(seq));
        self.bytes -= out.iter().map(|(_, size)| u64::from(*size)).sum::<u64>();
        for (seq, size) in stay.into_iter().rev() {
            self.seqs.push_front(seq);
            self.sizes.push_front(size);
        }
        out.into_iter().map(|(seq, _)| seq).collect()
    }

    /// Takes all messages out.
    pub fn take(&mut self) -> VecDeque<Seq> {
        std::mem::take(self).seqs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_takes_its_bytes_along() {
        let mut backlog = Backlog::new([1, 2, 3].into(), 11);
        backlog.push_back(4, 100);
        backlog.push_front(9, 1000);
        assert_eq!((backlog.len(), backlog.bytes()), (5, 1111));
        assert_eq!(backlog.remove(0), Some(9));
        assert_eq!((backlog.remove(3), backlog.bytes()), (Some(4), 11));
        // Number 3 is not among the first two, and 7 is not there.
        assert_eq!(backlog.take_out(2, &[1, 3, 7].into_iter().collect()), [1]);
        assert_eq!((backlog.iter().collect::<Vec<_>>(), backlog.bytes()), (vec![2, 3], 8));
        backlog.drop_front(9);
        assert_eq!((backlog.len(), backlog.bytes(), backlog.remove(0)), (0, 0, None));
    }
}
