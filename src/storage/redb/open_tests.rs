//! Files that must not be opened, and damage of all kinds: a clear error or a valid state, never a panic.

use super::crash_tests::{open, try_open};
use super::schema::{LOG, META, META_JOURNAL, META_SCHEMA, SCHEMA, SESSIONS, SETTLED, SUBSCRIPTIONS};
use super::testdisk::{Dice, TestDisk};
use super::{JOURNAL_FILE, RedbJournal, RedbOptions};
use crate::mqtt::QoS;
use crate::ports::{Journal, OutboundState, Recovered, StoreKnown, Timeline};
use crate::storage::conformance::{append, read};
use crate::storage::model::{Do, Op, World, raws};
use crate::storage::record_tests::session_of_version_1;
use crate::storage::{OpenError, RecordError};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redb::{Database, ReadableDatabase, WriteTransaction};
use std::path::Path;
use std::sync::Arc;

fn options(dir: &Path) -> RedbOptions {
    RedbOptions { dir: dir.to_owned(), ..RedbOptions::default() }
}

fn open_in(dir: &Path) -> Result<(Arc<RedbJournal>, Recovered), OpenError> {
    RedbJournal::open(options(dir))
}

/// The error of opening, which must name the path.
fn refused(dir: &Path) -> OpenError {
    let error = open_in(dir).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
    error
}

/// Changes the file of a journal behind its back.
fn tamper(dir: &Path, with: impl FnOnce(&WriteTransaction)) {
    let db = Database::open(dir.join(JOURNAL_FILE)).unwrap();
    let txn = db.begin_write().unwrap();
    with(&txn);
    txn.commit().unwrap();
}

fn a_journal() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    drop(open_in(dir.path()).unwrap());
    dir
}

#[test]
fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refused(&dir.path().join("none")), OpenError::MissingDirectory { .. }));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(refused(&file), OpenError::NotADirectory { .. }));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not hold root back, but nobody makes files in /sys.
    let superuser = std::fs::write(dir.path().join("probe"), "").is_ok();
    let path = if superuser { Path::new("/sys/kernel") } else { dir.path() };
    let error = refused(path);
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error:?}");
}

#[test]
fn a_directory_in_use_is_named_with_the_process_that_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_in(dir.path()).unwrap();
    let OpenError::InUse { holder, .. } = refused(dir.path()) else { panic!("it is in use") };
    assert_eq!(holder, format!("process {}", std::process::id()));
    drop(journal);
    open_in(dir.path()).unwrap();
}

/// Between fork and exec a child has a copy of every file.
#[test]
fn a_directory_is_free_once_its_journal_is_closed_although_a_child_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let lock = super::open::lock_directory(dir.path()).unwrap();
    let childs_copy = lock.copy_of_file();
    drop(lock);
    super::open::lock_directory(dir.path()).unwrap();
    drop(childs_copy);
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(JOURNAL_FILE);
    for content in [&b"hello"[..], &[0; 100_000], b"SQLite format 3\0 and so on"] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(refused(dir.path()), OpenError::Foreign { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    std::fs::write(&path, "").unwrap();
    assert!(matches!(refused(dir.path()), OpenError::Corrupt { .. }), "not taken for a new journal");
    std::fs::remove_file(&path).unwrap();
    let db = Database::create(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(redb::TableDefinition::<u64, u64>::new("other")).unwrap();
    txn.commit().unwrap();
    drop(db);
    assert!(matches!(refused(dir.path()), OpenError::Foreign { .. }));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = a_journal();
    tamper(dir.path(), |txn| {
        txn.open_table(META).unwrap().insert(META_SCHEMA, SCHEMA + 1).unwrap();
    });
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::NewerSchema { found: 6, known: 5, .. }), "{error:?}");
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = a_journal();
    let path = dir.path().join(JOURNAL_FILE);
    let whole = std::fs::read(&path).unwrap();
    for len in [9, 100, 4096, 5000, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::Foreign { .. }), "{len}: {error:?}");
    }
    std::fs::write(&path, &whole).unwrap();
    open_in(dir.path()).unwrap();
}

#[test]
fn rows_that_cannot_be_decoded_are_named() {
    type Tamper = fn(&WriteTransaction);
    let cases: [(&str, &str, RecordError, Tamper); 6] = [
        ("log", "7", RecordError::Truncated, |txn| {
            txn.open_table(LOG).unwrap().insert(7, &[][..]).unwrap();
        }),
        ("log", "7", RecordError::Kind(99), |txn| {
            txn.open_table(LOG).unwrap().insert(7, &[1, 99][..]).unwrap();
        }),
        ("log", "7", RecordError::Truncated, |txn| {
            // A message that claims 2^63 recipients.
            let row = [1, 1, 255, 255, 255, 255, 255, 255, 255, 255, 127, 1, 0, 0];
            txn.open_table(LOG).unwrap().insert(7, &row[..]).unwrap();
        }),
        ("log", "8", RecordError::Version { found: 4, oldest: 1, current: 3 }, |txn| {
            txn.open_table(LOG).unwrap().insert(8, &[4, 1, 0][..]).unwrap();
        }),
        ("sessions", "3", RecordError::Value("flags"), |txn| {
            txn.open_table(SESSIONS).unwrap().insert(3, &[1, 255][..]).unwrap();
        }),
        ("subscriptions", "(4, \"a/#\")", RecordError::Value("subscription options"), |txn| {
            txn.open_table(SUBSCRIPTIONS).unwrap().insert((4, "a/#"), &[1, 255][..]).unwrap();
        }),
    ];
    for (in_table, at_key, why, with) in cases {
        let dir = a_journal();
        tamper(dir.path(), with);
        let OpenError::Record { table, key, source, .. } = refused(dir.path()) else { panic!("{in_table}") };
        assert_eq!((table, key.as_str(), source), (in_table, at_key, why));
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let dir = a_journal();
    tamper(dir.path(), |txn| {
        let row = [&[1, 3, 1, 0][..], &[0; 8]].concat();
        txn.open_table(LOG).unwrap().insert(u64::MAX - 1, row.as_slice()).unwrap();
    });
    assert!(matches!(refused(dir.path()), OpenError::Corrupt { .. }));
}

/// The bytes of a journal with a bit of everything in it.
fn sample(dice: &mut Dice) -> Vec<u8> {
    let seed: [u8; 32] = std::array::from_fn(|_| dice.roll(256) as u8);
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let raws = raws(100..200).new_tree(&mut runner).unwrap().current();
    let disk = TestDisk::default();
    let (journal, _) = open(&disk);
    let mut world = World::default();
    for raw in &raws {
        if let Do::Append(ops) = world.next(raw, || journal.next_seq()) {
            append(&*journal, &ops);
        }
    }
    if dice.roll(2) == 0 {
        // As after kill -9.
        let running = disk.data();
        drop(journal);
        return running;
    }
    drop(journal);
    disk.data()
}

fn damage(data: &mut Vec<u8>, dice: &mut Dice) {
    let len = data.len() as u64;
    for _ in 0..=dice.roll(8) {
        let header = dice.roll(3) == 0;
        let at = dice.roll(if header { 512 } else { len }) as usize;
        match dice.roll(6) {
            0 => data[at] ^= 1 << dice.roll(8),
            1 => data[at] = dice.roll(256) as u8,
            2 => {
                let end = (at + dice.roll(64) as usize).min(data.len());
                data[at..end].fill(if dice.roll(2) == 0 { 0 } else { 0xFF });
            }
            3 => {
                let (from, to) = (dice.roll(len / 4096) as usize * 4096, at / 4096 * 4096);
                let end = (from + 4096).min(data.len()).min(data.len() - to + from);
                data.copy_within(from..end, to);
            }
            4 => {
                let end = (at + 8).min(data.len());
                data[at..end].copy_from_slice(&dice.roll(u64::MAX).to_le_bytes()[..end - at]);
            }
            _ if dice.roll(4) == 0 => {
                data.truncate(at.max(1));
                return;
            }
            _ => {}
        }
    }
}

/// Opens a damaged file and, if that works, uses it.
fn survive(data: Vec<u8>) -> bool {
    let disk = TestDisk::with(data);
    let Ok((journal, recovered)) = try_open(&disk) else { return false };
    for session in &recovered.sessions {
        journal.read(session.record.no, session.pending.clone(), Box::new(|_| ()));
        append(
            &*journal,
            &session
                .pending
                .iter()
                .take(3)
                .map(|seq| crate::storage::model::Op::Settle { seq: *seq, session: session.record.no })
                .collect::<Vec<_>>(),
        );
    }
    journal.close();
    true
}

/// Random damage for `BERTH_FUZZ_SECONDS` (5) from `BERTH_FUZZ_SEED` (random): no panic, no hang.
#[test]
fn damage_never_panics() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = from_env("BERTH_FUZZ_SEED").unwrap_or_else(crate::clock::monotonic_us);
    let until = crate::clock::now().plus_secs(from_env("BERTH_FUZZ_SECONDS").unwrap_or(5));
    println!("BERTH_FUZZ_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut opened, mut refused) = (0, 0);
    while crate::clock::now() < until || opened == 0 || refused == 0 {
        let whole = sample(&mut dice);
        assert!(survive(whole.clone()), "an undamaged file");
        for _ in 0..50 {
            let mut data = whole.clone();
            damage(&mut data, &mut dice);
            if survive(data) { opened += 1 } else { refused += 1 }
        }
    }
    println!("{opened} files opened, {refused} refused");
}

/// A program that knows no users would give sessions to anybody, and one that knows no generations would take new processes for
/// older ones: both refuse the file by the number of its schema.
#[test]
fn an_older_journal_is_of_the_newest_schema_from_its_first_start_on() {
    for (schema, generation) in [(2, 0), (3, 1), (4, 0), (4, 1), (SCHEMA, 0), (SCHEMA, 2)] {
        let dir = a_journal();
        tamper(dir.path(), |txn| {
            txn.open_table(META).unwrap().insert(META_SCHEMA, schema).unwrap();
        });
        let (journal, _) = open_in(dir.path()).unwrap();
        let timeline = Timeline { generation, name: generation };
        journal.know(StoreKnown { timeline, revision: 9, mark: 0 });
        drop(journal);
        assert_eq!(meta(dir.path(), META_SCHEMA), Some(SCHEMA), "{schema}, generation {generation}");
    }
}

/// A file as the version of the broker wrote it that knew no clusters: schema 1 with rows of version 1.
fn of_schema_1() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::create(dir.path().join(JOURNAL_FILE)).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let mut meta = txn.open_table(META).unwrap();
        let facts = [
            ("schema", 1),
            ("created_ms", 1_700_000_000_000),
            ("keys_reserved", 1 << 32),
            ("next_session", 6),
        ];
        for (name, value) in facts {
            meta.insert(name, value).unwrap();
        }
        let mut log = txn.open_table(LOG).unwrap();
        let to_one = [1, 1, 1, 3, 1, 0, 1, 1, b't', 2, b'h', b'i'];
        let to_two = [1, 1, 2, 3, 1, 0, 4, 2, 0, 1, 1, b't', 1, b'!'];
        let step = [
            &[1, 2, 0, 9, 0][..],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[10, 0, 0, 0, 0, 0, 0, 0],
            &[12, 0, 0, 0, 0, 0, 0, 0],
        ];
        let inbound = [1, 3, 44, 1, 4, 0, 0, 0, 0, 0, 0, 0];
        let retained = [1, 4, 5, 1, b'r', 1, b'k'];
        let rows = [(10, &to_one[..]), (11, &to_two), (12, &step.concat()), (13, &inbound), (14, &retained)];
        for (key, row) in rows {
            log.insert(key, row).unwrap();
        }
        txn.open_table(SETTLED).unwrap().insert((11, 3), ()).unwrap();
        let mut sessions = txn.open_table(SESSIONS).unwrap();
        for no in [3, 4] {
            sessions.insert(no, &session_of_version_1(no).0[..]).unwrap();
        }
        txn.open_table(SUBSCRIPTIONS).unwrap().insert((4, "a/#"), &[1, 1, 1, 7, 0, 0, 0][..]).unwrap();
    }
    txn.commit().unwrap();
    dir
}

fn meta(dir: &Path, name: &str) -> Option<u64> {
    let db = Database::open(dir.join(JOURNAL_FILE)).unwrap();
    let meta = db.begin_read().unwrap().open_table(META).unwrap();
    meta.get(name).unwrap().map(|value| value.value())
}

#[test]
fn a_file_of_schema_1_is_taken_over_whole() {
    let dir = of_schema_1();
    let (journal, recovered) = open_in(dir.path()).unwrap();
    let [three, four] = &recovered.sessions[..] else { panic!("{recovered:?}") };
    assert_eq!((&three.record, &four.record), (&session_of_version_1(3).1, &session_of_version_1(4).1));
    assert_eq!((&three.outbound[..], &three.pending[..]), (&[(9, 10, OutboundState::Sent)][..], &[][..]));
    assert_eq!((&four.pending[..], &four.inbound[..]), (&[11][..], &[300][..]));
    assert_eq!(four.subscriptions[0].subscription_id, Some(7));
    assert_eq!(recovered.retained[0].payload(), b"k");
    assert_eq!((recovered.next_session, recovered.node.is_none()), (6, true));
    assert!(recovered.seen.is_empty() && recovered.duties.is_empty() && recovered.spooled.is_empty());
    assert!(journal.next_seq() >= 1 << 32, "no number is used twice");
    let of_three = read(&*journal, 3, vec![10, 11]);
    assert_eq!(
        of_three.iter().map(|s| (s.seq, s.id, s.message.payload())).collect::<Vec<_>>(),
        [(10, None, &b"hi"[..])]
    );
    assert_eq!(read(&*journal, 4, vec![10, 11])[0].recipient.qos, QoS::ExactlyOnce);
    let name = recovered.journal;
    assert_ne!(name, 0);
    append(&*journal, &[Op::Settle { seq: 10, session: 3 }, Op::Session(three.record.clone())]);
    drop(journal);
    assert_eq!((meta(dir.path(), META_SCHEMA), meta(dir.path(), META_JOURNAL)), (Some(SCHEMA), Some(name)));
    let (_, again) = open_in(dir.path()).unwrap();
    assert_eq!((again.journal, &again.sessions[1], &again.sessions[0].record), (name, four, &three.record));
    assert!(again.sessions[0].outbound.is_empty());
}

/// Rewritten before anybody is told: a crash right after opening leaves the name that was told.
#[test]
fn the_name_is_durable_before_the_journal_is_open() {
    let disk = TestDisk::default();
    let (journal, recovered) = open(&disk);
    let crashed = TestDisk::with(disk.data());
    drop(journal);
    assert_eq!(open(&crashed).1.journal, recovered.journal);
}

/// A refused file is left as it was, its schema too.
#[test]
fn a_damaged_file_of_schema_1_stays_of_schema_1() {
    let dir = of_schema_1();
    tamper(dir.path(), |txn| {
        txn.open_table(LOG).unwrap().insert(15, &[1, 7, 0, 0][..]).unwrap();
    });
    assert!(matches!(refused(dir.path()), OpenError::Record { source: RecordError::Kind(7), .. }));
    assert_eq!((meta(dir.path(), META_SCHEMA), meta(dir.path(), META_JOURNAL)), (Some(1), None));
}
