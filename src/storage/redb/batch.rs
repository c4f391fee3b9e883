//! Changes gathered for one commit: a flat buffer of encoded rows and lists of what to do with them. Knows no database
//! and no locks; reused from commit to commit, so that gathering allocates nothing once warm.

use crate::ports::{Lsn, Seq, SessionNo};
use hashbrown::HashMap;
use std::ops::Range;

/// What an empty batch keeps of its buffer, bytes.
const BUFFER_KEPT: usize = 16 << 20;

/// Changes that are committed together.
#[derive(Default)]
pub(super) struct Batch {
    /// Position of the changes: the number of the batch.
    pub(super) lsn: Lsn,
    /// The smallest session number never seen when the batch was closed.
    pub(super) next_session: SessionNo,
    bytes: Vec<u8>,
    rows: Vec<RowPut>,
    row_at: HashMap<u64, usize, foldhash::fast::FixedState>,
    deletes: Vec<u64>,
    settled: Vec<(Seq, SessionNo)>,
    settled_ends: Vec<Seq>,
    records: Vec<RecordOp>,
    changes: u64,
    elided: u64,
}

/// A row to be put into the log.
struct RowPut {
    key: u64,
    at: Range<usize>,
    /// Not deleted again by the same batch.
    live: bool,
}

/// A change to the tables of sessions, subscriptions and the directory; ranges are of [`Batch::slice`].
pub(super) enum RecordOp {
    PutSession { session: SessionNo, record: Range<usize> },
    EndSession { session: SessionNo },
    PutSubscription { session: SessionNo, filter: Range<usize>, record: Range<usize> },
    EndSubscription { session: SessionNo, filter: Range<usize> },
    PutDirectory { name: Range<usize>, record: Range<usize> },
    EndDirectory { name: Range<usize> },
}

impl Batch {
    /// Empties the batch and gives it a new number; keeps its memory.
    pub(super) fn reset(&mut self, lsn: Lsn) {
        self.lsn = lsn;
        self.bytes.clear();
        // One huge message must not hold its memory for good.
        self.bytes.shrink_to(BUFFER_KEPT);
        self.rows.clear();
        self.row_at.clear();
        self.deletes.clear();
        self.settled.clear();
        self.settled_ends.clear();
        self.records.clear();
        self.changes = 0;
        self.elided = 0;
    }

    /// Counts a change, whether or not it leaves anything to write.
    pub(super) fn count_change(&mut self) {
        self.changes += 1;
    }

    /// Changes counted.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Rows that came and went within the batch and are never written.
    pub(super) fn elided(&self) -> u64 {
        self.elided
    }

    /// Whether there is nothing to write.
    pub(super) fn is_void(&self) -> bool {
        self.elided == self.rows.len() as u64
            && self.deletes.is_empty()
            && self.settled.is_empty()
            && self.settled_ends.is_empty()
            && self.records.is_empty()
    }

    /// Memory that the changes take, bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
            + self.rows.len() * (size_of::<RowPut>() + 24)
            + self.deletes.len() * size_of::<u64>()
            + self.settled.len() * size_of::<(Seq, SessionNo)>()
            + self.settled_ends.len() * size_of::<Seq>()
            + self.records.len() * size_of::<RecordOp>()
    }

    /// Lets `encode` append to the buffer and returns where that is.
    fn write(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        start..self.bytes.len()
    }

    /// Puts a row that `encode` appends to the buffer under `key`, which is new.
    pub(super) fn put_row(&mut self, key: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        let at = self.write(encode);
        self.delete_if_here(key);
        self.row_at.insert(key, self.rows.len());
        self.rows.push(RowPut { key, at, live: true });
    }

    /// Deletes the row under `key`.
    pub(super) fn delete_row(&mut self, key: u64) {
        if !self.delete_if_here(key) {
            self.deletes.push(key);
        }
    }

    fn delete_if_here(&mut self, key: u64) -> bool {
        let Some(row) = self.row_at.remove(&key).and_then(|at| self.rows.get_mut(at)) else { return false };
        row.live = false;
        self.elided += 1;
        true
    }

    /// Records that `session` is done with `seq`, others not.
    pub(super) fn settle(&mut self, seq: Seq, session: SessionNo) {
        self.settled.push((seq, session));
    }

    /// Records that all sessions are done with `seq`, which had several: what was recorded of it goes.
    pub(super) fn settle_last(&mut self, seq: Seq) {
        self.settled_ends.push(seq);
    }

    /// Puts a session's record that `encode` appends to the buffer.
    pub(super) fn put_session(&mut self, session: SessionNo, encode: impl FnOnce(&mut Vec<u8>)) {
        let record = self.write(encode);
        self.records.push(RecordOp::PutSession { session, record });
    }

    /// Deletes a session's record and its subscriptions.
    pub(super) fn end_session(&mut self, session: SessionNo) {
        self.records.push(RecordOp::EndSession { session });
    }

    /// Puts a subscription that `encode` appends to the buffer.
    pub(super) fn put_subscription(
        &mut self,
        session: SessionNo,
        filter: &str,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let filter = self.write(|out| out.extend_from_slice(filter.as_bytes()));
        let record = self.write(encode);
        self.records.push(RecordOp::PutSubscription { session, filter, record });
    }

    /// Deletes a subscription.
    pub(super) fn end_subscription(&mut self, session: SessionNo, filter: &str) {
        let filter = self.write(|out| out.extend_from_slice(filter.as_bytes()));
        self.records.push(RecordOp::EndSubscription { session, filter });
    }

    /// Puts a record of the directory that `encode` appends to the buffer.
    pub(super) fn put_directory(&mut self, name: &str, encode: impl FnOnce(&mut Vec<u8>)) {
        let name = self.write(|out| out.extend_from_slice(name.as_bytes()));
        let record = self.write(encode);
        self.records.push(RecordOp::PutDirectory { name, record });
    }

    /// Deletes a record of the directory.
    pub(super) fn end_directory(&mut self, name: &str) {
        let name = self.write(|out| out.extend_from_slice(name.as_bytes()));
        self.records.push(RecordOp::EndDirectory { name });
    }

    /// Part of the buffer.
    pub(super) fn slice(&self, at: &Range<usize>) -> &[u8] {
        self.bytes.get(at.clone()).unwrap_or_default()
    }

    /// Part of the buffer that came from text.
    pub(super) fn text(&self, at: &Range<usize>) -> &str {
        std::str::from_utf8(self.slice(at)).unwrap_or_default()
    }

    /// The row that the batch puts under `key`.
    pub(super) fn row(&self, key: u64) -> Option<&[u8]> {
        let row = self.rows.get(*self.row_at.get(&key)?)?;
        Some(self.slice(&row.at))
    }

    /// Puts the rows to write into `out`, ascending by key.
    pub(super) fn rows_into(&self, out: &mut Vec<(u64, Range<usize>)>) {
        out.clear();
        out.extend(self.rows.iter().filter(|row| row.live).map(|row| (row.key, row.at.clone())));
        if !out.is_sorted_by_key(|(key, _)| *key) {
            out.sort_unstable_by_key(|(key, _)| *key);
        }
    }

    /// Rows to delete, as they came.
    pub(super) fn deletes(&self) -> &[u64] {
        &self.deletes
    }

    /// Settlements to record, as they came.
    pub(super) fn settled(&self) -> &[(Seq, SessionNo)] {
        &self.settled
    }

    /// Messages of which all settlements go, as they came.
    pub(super) fn settled_ends(&self) -> &[Seq] {
        &self.settled_ends
    }

    /// Changes to sessions, subscriptions and the directory, in order.
    pub(super) fn records(&self) -> &[RecordOp] {
        &self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(batch: &Batch) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        batch.rows_into(&mut out);
        out.into_iter().map(|(key, at)| (key, batch.slice(&at).to_vec())).collect()
    }

    #[test]
    fn a_row_that_comes_and_goes_is_never_written() {
        let mut batch = Batch::default();
        batch.reset(1);
        assert!(batch.is_void());
        batch.put_row(7, |out| out.push(70));
        batch.put_row(5, |out| out.push(50));
        assert_eq!(batch.row(7), Some(&[70][..]));
        batch.delete_row(7);
        assert_eq!(batch.row(7), None);
        batch.delete_row(3);
        assert_eq!(rows(&batch), [(5, vec![50])]);
        assert_eq!(batch.deletes(), [3]);
        batch.reset(2);
        batch.put_row(8, |out| out.push(80));
        batch.delete_row(8);
        assert!(batch.is_void());
        assert_eq!((batch.elided(), batch.lsn), (1, 2));
    }

    #[test]
    fn rows_are_written_in_ascending_order() {
        let mut batch = Batch::default();
        for key in [4_u64, 2, 9, 1] {
            batch.put_row(key, |out| out.push(key as u8));
        }
        assert_eq!(rows(&batch), [(1, vec![1]), (2, vec![2]), (4, vec![4]), (9, vec![9])]);
    }
}
