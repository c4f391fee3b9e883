//! The starts that a journal remembers: see [`History`].

use super::schema::{META, META_POSITION, STARTS};
use crate::ports::{History, JournalStart, STARTS_KEPT, Stamped};
use redb::{ReadTransaction, ReadableTable, TableError, WriteTransaction};

/// Reads them; a journal of a release that kept none has had none.
pub(super) fn read(txn: &ReadTransaction) -> Result<History, redb::Error> {
    let mut history = History::default();
    if let Some(position) = txn.open_table(META)?.get(META_POSITION)? {
        history.position = position.value();
    }
    let table = match txn.open_table(STARTS) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(history),
        Err(error) => return Err(error.into()),
    };
    for row in table.iter()? {
        let (number, start) = row?;
        let (stamp, from) = start.value();
        history.count = number.value();
        history.starts.push(JournalStart { stamp, from });
    }
    Ok(history)
}

/// Adds a start of a journal that has come so far, and forgets the oldest.
pub(super) fn note(txn: &WriteTransaction, start: Stamped, position: u64) -> Result<(), redb::Error> {
    let mut table = txn.open_table(STARTS)?;
    table.insert(start.number, (start.stamp, position))?;
    let kept = u64::try_from(STARTS_KEPT).unwrap_or(u64::MAX);
    if let Some(forgotten) = start.number.checked_sub(kept) {
        table.retain_in(..=forgotten, |_, _| false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{FoundJournal, JOURNAL_FILE, RedbOptions};
    use super::*;
    use crate::ports::{Change, Journal, NodeRecord};
    use crate::storage::conformance::wait;
    use redb::{Database, ReadableDatabase};
    use std::path::Path;

    fn find(dir: &Path) -> FoundJournal {
        FoundJournal::find(RedbOptions { dir: dir.to_owned(), ..RedbOptions::default() }).unwrap()
    }

    /// Starts, commits so many batches, and ends.
    fn run(dir: &Path, batches: usize) -> Stamped {
        let (journal, _, stamped) = find(dir).begin(true).unwrap();
        for _ in 0..batches {
            let lsn = journal.append(&[Change::Node(&NodeRecord::default())]);
            wait(&*journal, lsn);
        }
        journal.close();
        stamped.unwrap()
    }

    #[test]
    fn starts_are_remembered_with_how_far_the_journal_had_come() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(*find(dir.path()).history(), History::default());
        let first = run(dir.path(), 3);
        let second = run(dir.path(), 0);
        assert_eq!((first.number, second.number), (1, 2));
        assert_ne!(first.stamp, second.stamp);
        let starts =
            vec![JournalStart { stamp: first.stamp, from: 0 }, JournalStart { stamp: second.stamp, from: 3 }];
        assert_eq!(*find(dir.path()).history(), History { starts, count: 2, position: 3 });
        // A start that is not one of a cluster is none.
        let (journal, ..) = find(dir.path()).begin(false).unwrap();
        assert_eq!(journal.position(), 3);
        drop(journal);
        assert_eq!(find(dir.path()).history().count, 2);
    }

    #[test]
    fn the_oldest_starts_are_forgotten_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        drop(find(dir.path()));
        let db = Database::open(dir.path().join(JOURNAL_FILE)).unwrap();
        for number in 1..=STARTS_KEPT as u64 + 3 {
            let txn = db.begin_write().unwrap();
            note(&txn, Stamped { stamp: 1000 + number, number }, number).unwrap();
            txn.commit().unwrap();
        }
        let history = read(&db.begin_read().unwrap()).unwrap();
        assert_eq!((history.starts.len(), history.count), (STARTS_KEPT, STARTS_KEPT as u64 + 3));
        assert_eq!(history.starts[0], JournalStart { stamp: 1004, from: 4 });
    }

    #[test]
    fn what_is_only_found_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 2);
        let rows = |dir: &Path| {
            let db = Database::open(dir.join(JOURNAL_FILE)).unwrap();
            let txn = db.begin_read().unwrap();
            let meta = txn.open_table(META).unwrap();
            let meta: Vec<_> = meta.iter().unwrap().map(|row| row.unwrap()).collect();
            meta.into_iter().map(|(k, v)| (k.value().to_owned(), v.value())).collect::<Vec<_>>()
        };
        let before = rows(dir.path());
        drop(find(dir.path()));
        assert_eq!(rows(dir.path()), before);
    }

    #[test]
    fn a_journal_that_is_set_aside_leaves_an_empty_one_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 2);
        let old = find(dir.path());
        let name = old.recovered().journal;
        let (aside, empty) = old.set_aside("then").unwrap();
        assert_eq!(aside, dir.path().join("journal.redb.then"));
        assert_ne!(empty.recovered().journal, name);
        assert_eq!(*empty.history(), History::default());
        drop(empty);
        std::fs::rename(&aside, dir.path().join(JOURNAL_FILE)).unwrap();
        assert_eq!(find(dir.path()).recovered().journal, name);
    }
}
