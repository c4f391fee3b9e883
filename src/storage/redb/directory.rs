//! The cluster's directory as it was last seen: a row for each of its records, by name. The value is what the store has, behind a byte
//! with the version of the row.

use super::recover::ScanError;
use super::schema::DIRECTORY;
use crate::ports::{DirectoryKey, DirectoryRecord};
use crate::storage::record::RecordError;
use redb::{ReadTransaction, ReadableTable, TableError, WriteTransaction};

/// The version of rows, and the only one there has been.
const VERSION: u8 = 1;

/// Appends the row of a value.
pub(super) fn put(out: &mut Vec<u8>, value: &[u8]) {
    out.push(VERSION);
    out.extend_from_slice(value);
}

/// Reads the rows, and how many bytes they have; a journal of a release that kept none has none.
pub(super) fn read(txn: &ReadTransaction) -> Result<(Vec<DirectoryRecord>, u64), ScanError> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let table = match txn.open_table(DIRECTORY) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok((found, bytes)),
        Err(error) => return Err(error.into()),
    };
    for row in table.iter()? {
        let (name, row) = row?;
        let (name, row) = (name.value(), row.value());
        let wrong = |source| ScanError::Record { table: "directory", key: format!("{name:?}"), source };
        let key = DirectoryKey::parse(name).ok_or_else(|| wrong(RecordError::Value("name")))?;
        let value = match row.split_first() {
            Some((&VERSION, value)) => value.into(),
            Some((&found, _)) => {
                return Err(wrong(RecordError::Version { found, oldest: VERSION, current: VERSION }));
            }
            None => return Err(wrong(RecordError::Truncated)),
        };
        bytes += (name.len() + row.len()) as u64;
        found.push(DirectoryRecord { key, value });
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok((found, bytes))
}

/// Sets a row or (`None`) removes it.
pub(super) fn set(txn: &WriteTransaction, name: &str, row: Option<&[u8]>) -> Result<(), redb::Error> {
    let mut table = txn.open_table(DIRECTORY)?;
    match row {
        Some(row) => drop(table.insert(name, row)?),
        None => drop(table.remove(name)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{FoundJournal, JOURNAL_FILE, RedbOptions};
    use super::*;
    use crate::ports::{Change, Journal};
    use crate::storage::conformance::wait;
    use redb::Database;
    use std::path::Path;

    fn find(dir: &Path) -> Result<FoundJournal, String> {
        FoundJournal::find(RedbOptions { dir: dir.to_owned(), ..RedbOptions::default() })
            .map_err(|e| e.to_string())
    }

    #[test]
    fn records_are_there_after_a_restart_and_a_wrong_row_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let user = DirectoryKey::User("alice".into());
        let (journal, recovered, _) = find(dir.path()).unwrap().begin(false).unwrap();
        assert_eq!(recovered.directory, []);
        let lsn = journal.append(&[
            Change::Directory { key: &user, value: Some(b"one") },
            Change::Directory { key: &DirectoryKey::Rules, value: Some(b"rules") },
            Change::Directory { key: &user, value: Some(b"two") },
        ]);
        wait(&*journal, lsn);
        journal.close();
        drop(journal);
        let record =
            |key: &DirectoryKey, value: &[u8]| DirectoryRecord { key: key.clone(), value: value.into() };
        let (journal, recovered, _) = find(dir.path()).unwrap().begin(false).unwrap();
        assert_eq!(recovered.directory, [record(&user, b"two"), record(&DirectoryKey::Rules, b"rules")]);
        wait(&*journal, journal.append(&[Change::Directory { key: &user, value: None }]));
        journal.close();
        drop(journal);
        let found = find(dir.path()).unwrap();
        assert_eq!(found.recovered().directory, [record(&DirectoryKey::Rules, b"rules")]);
        drop(found);
        for (name, row, said) in [("acl/rules", &[9_u8, 1][..], "version 9"), ("elsewhere", &[1][..], "name")]
        {
            let db = Database::open(dir.path().join(JOURNAL_FILE)).unwrap();
            let txn = db.begin_write().unwrap();
            set(&txn, name, Some(row)).unwrap();
            txn.commit().unwrap();
            drop(db);
            let Err(error) = find(dir.path()) else { panic!("{name} was read") };
            assert!(error.contains("directory") && error.contains(said), "{error}");
            let db = Database::open(dir.path().join(JOURNAL_FILE)).unwrap();
            let txn = db.begin_write().unwrap();
            set(&txn, name, None).unwrap();
            txn.commit().unwrap();
        }
    }
}
