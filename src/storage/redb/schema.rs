//! The tables of the journal file and how they are told apart from other files' and other versions'.

use redb::TableDefinition;

/// The layout of tables that this program writes. A program that knows only lesser ones refuses the file.
///
/// 2 has the rows of a cluster and [`META_JOURNAL`]; a file of 1 becomes one of 2 when it is opened.
///
/// 4 has the users of sessions, which a program that knows only lesser ones would give to anybody. In 3 incarnations may have a
/// generation: it was compared with a restored store.
///
/// 5 has the cluster's directory ([`DIRECTORY`]), without which a program would let in whom it should not, the authors of wills, and the
/// queue policies that clients have chosen.
pub(super) const SCHEMA: u64 = 5;

/// Facts about the journal, by the names below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Messages, steps and retained messages, in the order of their acceptance.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Who is done with which message, of those with several recipients.
pub(super) const SETTLED: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("settled");
/// Session records by session number.
pub(super) const SESSIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("sessions");
/// Subscriptions by session number and filter.
pub(super) const SUBSCRIPTIONS: TableDefinition<'_, (u64, &str), &[u8]> =
    TableDefinition::new("subscriptions");
/// The last starts of a node of a cluster on this journal, by their numbers from 1: the stamp, and [`META_POSITION`] before it.
/// Releases that do not know the table leave it alone.
pub(super) const STARTS: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("starts");
/// Records of the cluster's directory by name.
pub(super) const DIRECTORY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("directory");

/// In [`META`]: the [`SCHEMA`] of the file.
pub(super) const META_SCHEMA: &str = "schema";
/// In [`META`]: when the journal was made, milliseconds since the UNIX epoch. Tells it from a file put in its place.
pub(super) const META_CREATED: &str = "created_ms";
/// In [`META`]: a random number that names the journal in the cluster, never 0.
pub(super) const META_JOURNAL: &str = "journal";
/// In [`META`]: keys of the log below this may have been used.
pub(super) const META_KEYS_RESERVED: &str = "keys_reserved";
/// In [`META`]: the smallest session number never used.
pub(super) const META_NEXT_SESSION: &str = "next_session";
/// In [`META`]: how many batches have been committed since the journal counts them. Written with each of them.
pub(super) const META_POSITION: &str = "position";

/// In [`META`]: how far the coordination store had come, as far as is known.
pub(super) const META_STORE_REVISION: &str = "store_revision";
/// In [`META`]: what tells its change at that revision from others; 0 = nothing does.
pub(super) const META_STORE_MARK: &str = "store_mark";
/// In [`META`]: which generation of the store that was. Not there in generation 0.
pub(super) const META_STORE_GENERATION: &str = "store_generation";
/// In [`META`]: the random number that goes with the generation.
pub(super) const META_STORE_NAME: &str = "store_name";

/// Keys are reserved this many at a time: few enough for 2^32 restarts, enough never to run out between commits.
pub(super) const KEYS_RESERVE: u64 = 1 << 32;
