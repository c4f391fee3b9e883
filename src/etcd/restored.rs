//! How often the store was restored from a backup (`restored`), and which journals have been given up (`forgotten/`).
//!
//! A process that registers compares what its journal knows with what the store has ([`crate::etcd::older`]), and counts a
//! restoration that nobody has counted. From a mark of a journal that was given up a late starter learns that what is missing in
//! the store is missing for good.

use super::client::Etcd;
use super::error::StoreError;
use super::fence::{Fence, unchanged_since};
use super::keys::Keys;
use super::member::ATTEMPTS;
use super::records::{self, CustodyRecord, ForgottenRecord, RestoredRecord};
use super::snapshot::end_of;
use crate::backoff::Backoff;
use crate::etcd::older::{Found, Known, Record, Verdict, mark_of};
use crate::ports::{MemberId, Revision, Timeline};
use etcd_client::proto::{PbEvent, PbKeyValue};
use etcd_client::{Compare, EventType, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchOptions};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::timeout;

/// How long etcd may take to say what happened at a revision.
const LOOK: Duration = Duration::from_secs(3);

/// Between two attempts to take back a mark.
const RETRY: Duration = Duration::from_secs(1);

/// What came of comparing the journal with the store, for a process that registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The store's life.
    pub timeline: Timeline,
    /// The revision at which it began; 0 = it is the first one.
    pub began: Revision,
    /// The journal was last compared with another life of it.
    pub restored: bool,
    /// What processes with this journal had was given up.
    pub forgotten: bool,
}

impl Comparison {
    /// What every process of this life of the store may compare: nobody has counted a restoration since.
    pub(super) fn compare(&self, keys: &Keys) -> Compare {
        unchanged_since(keys.restored(), i64::try_from(self.began).unwrap_or(i64::MAX))
    }
}

/// The life of the store that the value of `restored` names.
pub(super) fn timeline(key: &[u8], value: &[u8]) -> Result<Timeline, records::RecordError> {
    let record: RestoredRecord = records::read(key, value)?;
    Ok(Timeline { generation: record.generation, name: record.name })
}

/// Compares what a journal knows with the store, and counts a restoration if this is the first to notice. `before` is how far the
/// store had come before this process wrote to it.
pub(super) async fn compare(
    etcd: &Etcd,
    keys: &Keys,
    node: &str,
    journal: u64,
    known: &Known,
    before: Revision,
) -> Result<Comparison, StoreError> {
    let mut attempts = 1;
    loop {
        let (timeline, began, record) = match look(etcd, keys, node, journal, known).await {
            Ok(found) => found,
            Err(StoreError::Etcd(e)) if e.is_endpoint() && attempts < ATTEMPTS => {
                attempts += 1;
                continue;
            }
            Err(e) => return Err(e),
        };
        let forgotten = record == Record::GivenUp;
        let comparison = |restored| Comparison { timeline, began, restored, forgotten };
        let mut found = Found { revision: before, timeline, record, same_change: None };
        let mut verdict = known.verdict(&found);
        if verdict == Verdict::AsKnown && known.store.mark != 0 {
            found.same_change = same_change(etcd, keys, known).await;
            verdict = known.verdict(&found);
        }
        tracing::debug!(?known, ?found, "the journal is compared with etcd");
        match verdict {
            Verdict::AsKnown => return Ok(comparison(false)),
            Verdict::Restored => {
                tracing::warn!(
                    node,
                    generation = timeline.generation,
                    "etcd was restored from a backup since this node's journal was last compared with it: its sessions are \
                     claimed anew from the journal"
                );
                return Ok(comparison(true));
            }
            Verdict::WentBack { generation, why } => {
                tracing::warn!(
                    node,
                    generation,
                    why,
                    "etcd is older than this node's journal: it was restored from a backup. This is counted in etcd, and what \
                     the journals have is claimed anew"
                );
                // Whatever became of it, the next look tells.
                count(etcd, keys, generation, began).await?;
            }
        }
    }
}

/// Whether the change at the revision that the journal knows last is the one that it knows; `None` if etcd does not have it any more,
/// or does not say it now. There is something at that revision or later: this process has made its member key.
async fn same_change(etcd: &Etcd, keys: &Keys, known: &Known) -> Option<bool> {
    let revision = i64::try_from(known.store.revision).ok()?;
    let mut connection = etcd.watcher().await.ok()?;
    let options =
        WatchOptions::new().with_range(end_of(keys.root().as_bytes())).with_start_revision(revision);
    let opened = timeout(LOOK, connection.client.watch(keys.root(), Some(options))).await;
    let mut stream = opened.ok()?.ok()?;
    loop {
        let response = timeout(LOOK, stream.message()).await.ok()?.ok()??;
        if response.compact_revision() > 0 || response.canceled() {
            return None;
        }
        let deletes = |event: &PbEvent| event.r#type == EventType::Delete as i32;
        let changes = response.0.events.into_iter();
        let changed: Vec<_> = changes.filter_map(|e| Some((deletes(&e), e.kv?))).collect();
        let Some(first) = changed.first().map(|(_, kv)| kv.mod_revision) else { continue };
        let is_it = |(deleted, kv): &(bool, PbKeyValue)| {
            let value = (!deleted).then_some(&*kv.value);
            kv.mod_revision == revision && mark_of(&kv.key, value) == known.store.mark
        };
        return Some(first == revision && changed.iter().any(is_it));
    }
}

/// Counts a restoration, unless somebody else has changed the count.
async fn count(etcd: &Etcd, keys: &Keys, generation: u64, began: Revision) -> Result<(), StoreError> {
    let key = keys.restored();
    let value = records::write(&RestoredRecord::new(generation, random_name()));
    let same = unchanged_since(&*key, i64::try_from(began).unwrap_or(i64::MAX));
    match etcd.txn(Txn::new().when([same]).and_then([TxnOp::put(key, value, None)])).await {
        Ok(_) => Ok(()),
        Err(e) if e.is_endpoint() => {
            tracing::debug!(error = %e, "whether a restoration was counted is not known; looking again");
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// Never 0, and never the same twice but for one chance in 2^64.
fn random_name() -> u64 {
    // The keys of the standard library's hashers are what the operating system has of randomness.
    RandomState::new().hash_one(crate::clock::monotonic_us()).max(1)
}

/// The store's life, when it began, and what it has of the last process with this journal.
async fn look(
    etcd: &Etcd,
    keys: &Keys,
    node: &str,
    journal: u64,
    known: &Known,
) -> Result<(Timeline, Revision, Record), StoreError> {
    let last = MemberId { node: node.into(), incarnation: known.last.unwrap_or(0) };
    let gets = [keys.restored(), keys.custody(&last), keys.forgotten(journal)];
    let gets = gets.map(|key| TxnOp::get(key, Some(GetOptions::new())));
    let answer = etcd.txn(Txn::new().and_then(gets)).await?;
    let mut found = answer.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Get(get) => get.kvs().first().cloned(),
        _ => None,
    });
    let mut next = || -> Option<KeyValue> { found.next().flatten() };
    let (restored, custody, mark) = (next(), next(), next());
    let (timeline, began) = match &restored {
        Some(kv) => (timeline(kv.key(), kv.value())?, Revision::try_from(kv.mod_revision()).unwrap_or(0)),
        None => (Timeline::default(), 0),
    };
    let marked = match &mark {
        Some(kv) => {
            let mark: ForgottenRecord = records::read(kv.key(), kv.value())?;
            known.is_marked(mark.up_to, timeline)
        }
        None => false,
    };
    let record = match &custody {
        Some(kv) => {
            let record: CustodyRecord = records::read(kv.key(), kv.value())?;
            match (record.given_up, record.journal == journal) {
                (true, _) => Record::GivenUp,
                (false, true) => Record::Kept,
                (false, false) => Record::Missing,
            }
        }
        None if marked => Record::GivenUp,
        None => Record::Missing,
    };
    Ok((timeline, began, record))
}

/// Takes back the mark of a journal: a process that has opened it has registered, and has dropped what was given up. Tried until etcd
/// has answered.
pub async fn unmark(etcd: &Etcd, keys: &Keys, fence: &Fence, journal: u64) {
    let key = keys.forgotten(journal);
    let mut backoff = Backoff::steady(RETRY);
    loop {
        let Some(when) = fence.compare() else { return };
        let txn = Txn::new().when([when]).and_then([TxnOp::delete(&*key, None)]);
        match etcd.txn(txn).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(%error, key, "a mark is taken back later"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}
