//! Puts a batch into a write transaction: ascending, in runs, which is what the tree is fast at. Applying a batch again
//! changes nothing, so that it can be retried whatever became of the last attempt.

use super::batch::{Batch, RecordOp};
use super::directory;
use super::schema::{LOG, SESSIONS, SETTLED, SUBSCRIPTIONS};
use redb::{CursorError, ReadableTable, Table, WriteTransaction};
use std::ops::{Bound, Range};

/// A run of consecutive keys of at least this length is deleted as a range.
const RUN_MIN: usize = 4;

/// Memory kept from batch to batch.
#[derive(Default)]
pub(super) struct Scratch {
    rows: Vec<(u64, Range<usize>)>,
    keys: Vec<u64>,
    settled: Vec<(u64, u64)>,
}

type LogTable<'t> = Table<'t, u64, &'static [u8]>;

/// Applies `batch` to `txn`.
pub(super) fn apply(txn: &WriteTransaction, batch: &Batch, scratch: &mut Scratch) -> Result<(), redb::Error> {
    let mut log = txn.open_table(LOG)?;
    delete_rows(&mut log, batch.deletes(), &mut scratch.keys)?;
    batch.rows_into(&mut scratch.rows);
    put_rows(&mut log, batch, &scratch.rows)?;
    drop(log);
    if !batch.settled().is_empty() || !batch.settled_ends().is_empty() {
        settle(txn, batch, scratch)?;
    }
    if !batch.records().is_empty() {
        apply_records(txn, batch)?;
    }
    Ok(())
}

fn delete_rows(log: &mut LogTable<'_>, deletes: &[u64], keys: &mut Vec<u64>) -> Result<(), redb::Error> {
    keys.clear();
    keys.extend_from_slice(deletes);
    keys.sort_unstable();
    keys.dedup();
    delete_sorted(log, keys)
}

/// Deletes rows, ascending by key.
pub(super) fn delete_sorted(log: &mut LogTable<'_>, keys: &[u64]) -> Result<(), redb::Error> {
    for run in keys.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        if let (Some(first), Some(last)) = (run.first(), run.last())
            && run.len() >= RUN_MIN
        {
            log.retain_in(*first..=*last, |_, _| false)?;
        } else {
            for key in run {
                log.remove(key)?;
            }
        }
    }
    Ok(())
}

/// Puts rows: those behind the last row of the table through a cursor, which is three times as fast, the others one
/// by one.
fn put_rows(log: &mut LogTable<'_>, batch: &Batch, rows: &[(u64, Range<usize>)]) -> Result<(), redb::Error> {
    let last = log.last()?.map(|(key, _)| key.value());
    let behind = rows.partition_point(|(key, _)| last.is_some_and(|last| *key <= last));
    let (among, behind) = rows.split_at(behind);
    for (key, at) in among {
        log.insert(key, batch.slice(at))?;
    }
    let mut cursor = log.upper_bound_mut(Bound::<u64>::Unbounded)?;
    for (key, at) in behind {
        match cursor.insert_before(key, batch.slice(at)) {
            Ok(()) => {}
            Err(CursorError::Storage(error)) => return Err(error.into()),
            // Cannot be: rows ascend and lie behind the last one. Failing the attempt is the safe answer.
            Err(error) => return Err(redb::Error::Corrupted(error.to_string())),
        }
    }
    cursor.close()?;
    Ok(())
}

fn settle(txn: &WriteTransaction, batch: &Batch, scratch: &mut Scratch) -> Result<(), redb::Error> {
    let mut table = txn.open_table(SETTLED)?;
    let Scratch { keys: ends, settled, .. } = scratch;
    ends.clear();
    ends.extend_from_slice(batch.settled_ends());
    ends.sort_unstable();
    settled.clear();
    settled.extend_from_slice(batch.settled());
    settled.sort_unstable();
    for end in ends.iter() {
        table.retain_in((*end, 0)..=(*end, u64::MAX), |_, ()| false)?;
    }
    for pair in settled.iter().filter(|(seq, _)| ends.binary_search(seq).is_err()) {
        table.insert(pair, ())?;
    }
    Ok(())
}

fn apply_records(txn: &WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    let mut sessions = txn.open_table(SESSIONS)?;
    let mut subscriptions = txn.open_table(SUBSCRIPTIONS)?;
    for op in batch.records() {
        match op {
            RecordOp::PutSession { session, record } => {
                sessions.insert(session, batch.slice(record))?;
            }
            RecordOp::EndSession { session } => {
                sessions.remove(session)?;
                let from = (*session, "");
                match session.checked_add(1) {
                    Some(next) => subscriptions.retain_in(from..(next, ""), |_, _| false)?,
                    None => subscriptions.retain_in(from.., |_, _| false)?,
                }
            }
            RecordOp::PutSubscription { session, filter, record } => {
                subscriptions.insert((*session, batch.text(filter)), batch.slice(record))?;
            }
            RecordOp::EndSubscription { session, filter } => {
                subscriptions.remove((*session, batch.text(filter)))?;
            }
            RecordOp::PutDirectory { name, record } => {
                directory::set(txn, batch.text(name), Some(batch.slice(record)))?;
            }
            RecordOp::EndDirectory { name } => directory::set(txn, batch.text(name), None)?,
        }
    }
    Ok(())
}
