//! `journals/<journal>`: what etcd was told of each journal, by which a copy of it is told from the journal itself.
//!
//! A start reads it before it changes anything ([`look`]); the registration writes it in the transaction that makes the process
//! count; from then on the process tells how far the journal has come ([`Positions`]). It goes when no custody record names the
//! journal any more ([`collect`]).

use super::client::Etcd;
use super::custody::{self, Nested, nested_successes};
use super::error::StoreError;
use super::fence::{Fence, unchanged_since};
use super::keys::{Key, Keys};
use super::records::{self, CustodyRecord, JournalRecord, MemberRecord};
use super::scan::Scan;
use super::sweep::Guard;
use crate::etcd::history::Told;
use crate::etcd::older::Known;
use crate::hashing::HashSet;
use crate::ports::{BoxFuture, Incarnation, MemberId, Stamped};
use etcd_client::{Txn, TxnOp};
use std::sync::Arc;
use std::time::Duration;

/// Tells whether a process (the second: with this journal) still answers at the address it registered.
pub type Answers = Arc<dyn Fn(MemberId, u64, String) -> BoxFuture<bool> + Send + Sync>;

/// The journal that a process registers with.
#[derive(Clone)]
pub struct Entry {
    /// The journal's ID.
    pub journal: u64,
    /// This start of it; `None` = the journal ends with the process and has no copies.
    pub begun: Option<Begun>,
    /// Asked before another process's lease is revoked.
    pub answers: Answers,
    /// What the journal knows of the store.
    pub known: Known,
    /// The processes whose state it holds.
    pub holds: Vec<Incarnation>,
}

/// A start of a journal, durable there.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// The start.
    pub stamped: Stamped,
    /// How far the journal had come.
    pub position: u64,
    /// The revision of the journal's key when it was compared with the journal; 0 = there was none.
    pub looked_at: i64,
}

impl Entry {
    /// A journal that ends with its process, where no other process answers.
    pub fn unstamped(journal: u64) -> Entry {
        let answers: Answers = Arc::new(|_, _, _| Box::pin(std::future::ready(false)));
        Entry { journal, begun: None, answers, known: Known::default(), holds: Vec::new() }
    }
}

/// What etcd knows of a journal at a start.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What etcd was told last of the journal, and by whom.
    pub told: Option<(Told, MemberId)>,
    /// Processes that may still live with the journal, and where they are reached.
    pub processes: Vec<(MemberId, String)>,
    /// The revision of the journal's key; 0 = there is none.
    pub revision: i64,
}

/// Reads what etcd knows of a journal of `node`.
///
/// # Errors
/// If etcd does not answer, or a record cannot be read.
pub async fn look(etcd: &Etcd, keys: &Keys, node: &Arc<str>, journal: u64) -> Result<Looked, StoreError> {
    let mut processes = Vec::new();
    if let Some(kv) = etcd.get(keys.member(node), None).await?.kvs().first() {
        let record: MemberRecord = records::read(kv.key(), kv.value())?;
        if record.journal == journal {
            let created = u64::try_from(kv.create_revision()).unwrap_or(0);
            let incarnation = record.incarnation.unwrap_or(created);
            processes.push((MemberId { node: node.clone(), incarnation }, record.peer));
        }
    }
    let Some((record, revision)) = read(etcd, keys, journal).await? else {
        let told = told_in_custody(etcd, keys, node, journal).await?;
        return Ok(Looked { told, processes, revision: 0 });
    };
    // It may have lost its lease and serve on.
    if let Some(peer) = record.peer {
        let process = (record.process.clone(), peer);
        if !processes.contains(&process) {
            processes.push(process);
        }
    }
    let told = Told { stamp: record.stamp, number: Some(record.start), position: record.position };
    Ok(Looked { told: Some((told, record.process)), processes, revision })
}

/// What is in the custody record of the last process of `node` that had the journal: the stamp alone.
async fn told_in_custody(
    etcd: &Etcd,
    keys: &Keys,
    node: &Arc<str>,
    journal: u64,
) -> Result<Option<(Told, MemberId)>, StoreError> {
    let mut last: Option<(MemberId, CustodyRecord)> = None;
    let mut scan = Scan::new(keys.custodies_of(node));
    while let Some(page) = scan.page(etcd).await? {
        for kv in page {
            let Some(Key::Custody { of }) = keys.parse(kv.key()) else { continue };
            let record: CustodyRecord = records::read(kv.key(), kv.value())?;
            // Keys come in the order of incarnations.
            if record.journal == journal {
                last = Some((of, record));
            }
        }
    }
    Ok(last.and_then(|(of, record)| {
        let told = Told { stamp: record.stamp?, number: None, position: 0 };
        Some((told, of))
    }))
}

/// A journal's record and the revision at which it was written.
pub(super) async fn read(
    etcd: &Etcd,
    keys: &Keys,
    journal: u64,
) -> Result<Option<(JournalRecord, i64)>, StoreError> {
    let answer = etcd.get(keys.journal(journal), None).await?;
    let Some(kv) = answer.kvs().first() else { return Ok(None) };
    Ok(Some((records::read(kv.key(), kv.value())?, kv.mod_revision())))
}

/// Tells etcd how far the journal of this process has come.
pub struct Positions {
    etcd: Etcd,
    key: String,
    fence: Fence,
    /// As etcd has it.
    record: tokio::sync::Mutex<JournalRecord>,
    now: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Positions {
    /// For a process that has registered with `journal` and written `record`; `now` is how far the journal has come.
    pub fn new(
        etcd: &Etcd,
        keys: &Keys,
        fence: Fence,
        journal: u64,
        record: JournalRecord,
        now: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> Positions {
        let record = tokio::sync::Mutex::new(record);
        Positions { etcd: etcd.clone(), key: keys.journal(journal), fence, record, now }
    }

    /// Tells it whenever it has grown, at most once in `every`, for ever.
    pub async fn run(self: Arc<Positions>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let mut told = self.record.lock().await;
            let position = (self.now)();
            if position > told.position {
                self.tell(&mut told, position).await;
            }
        }
    }

    /// Tells it for the last time, and that this process does not answer any more.
    pub async fn leave(&self) {
        let mut told = self.record.lock().await;
        told.peer = None;
        let position = (self.now)();
        self.tell(&mut told, position).await;
    }

    /// What does not get there is told the next time.
    async fn tell(&self, told: &mut JournalRecord, position: u64) {
        let Some(when) = self.fence.compare() else { return };
        let record = JournalRecord { position, ..told.clone() };
        let put = TxnOp::put(&*self.key, records::write(&record), None);
        match self.etcd.txn(Txn::new().when([when]).and_then([put])).await {
            Ok(answer) if answer.succeeded() => *told = record,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "etcd is not told how far the journal has come"),
        }
    }
}

/// Removes the keys of journals that no custody record names: what they had was given up, or is elsewhere.
pub(super) async fn collect(etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<(), StoreError> {
    let mut told = Vec::new();
    let mut scan = Scan::keys_only(keys.journals());
    while let Some(page) = scan.page(etcd).await? {
        for kv in page {
            if let Some(Key::Journal { journal }) = keys.parse(kv.key()) {
                told.push((journal, kv.mod_revision()));
            }
        }
    }
    // Read afterwards: whoever registers with a journal meanwhile writes its key, which is then not as read.
    let custody = custody::read_all(etcd, keys).await?;
    let named: HashSet<u64> = custody.iter().map(|stored| stored.record.journal).collect();
    let mut removals = Vec::new();
    for (journal, revision) in told {
        if !named.contains(&journal) {
            let key = keys.journal(journal);
            let bytes = 2 * key.len();
            let same = unchanged_since(&*key, revision);
            removals
                .push(Nested { txn: Txn::new().when([same]).and_then([TxnOp::delete(key, None)]), bytes });
        }
    }
    nested_successes(etcd, guard, removals).await?;
    Ok(())
}
