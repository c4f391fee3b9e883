//! Custody records: who may speak for everything an incarnation owns. Adopting one's own incarnations after a restart, and
//! giving up those that will not come back.
//!
//! Giving up goes in this order: first the custody record is marked `"given_up":true` (from then on it reads like a missing
//! one, and nobody can adopt it), then the sessions' records go, at last routes and custody record in one transaction. A crash
//! in between leaves a marked record, and the leader goes on from there: no session ever points to a record that could be
//! taken for a holder.

use super::batch::REQUEST_BYTES_MAX;
use super::client::Etcd;
use super::error::StoreError;
use super::fence::{Fence, exists_since, unchanged_since};
use super::journals;
use super::keys::{Key, Keys};
use super::members::{Members, Node};
use super::records::{self, CustodyRecord, SessionRecord};
use super::scan::Scan;
use super::sweep::{Guard, Sweep};
use crate::clock;
use crate::hashing::{HashMap, HashSet};
use crate::ports::{Incarnation, MemberId};
use etcd_client::{Compare, Txn, TxnOp, TxnOpResponse};
use std::sync::Arc;

/// Independent changes in one transaction: etcd takes 128 operations by default (`--max-txn-ops`).
pub const CHANGES_MAX: usize = 100;

/// Rounds of reading and comparing before somebody else's changes are given as the reason of a failure.
const ROUNDS_MAX: usize = 10;

/// A custody record as read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The incarnation.
    pub of: MemberId,
    /// Its record.
    pub record: CustodyRecord,
    /// The revision at which it was written.
    pub revision: i64,
}

/// Reads all custody records.
///
/// # Errors
/// If etcd does not answer, or a record cannot be read.
pub async fn read_all(etcd: &Etcd, keys: &Keys) -> Result<Vec<Stored>, StoreError> {
    let mut found = Vec::new();
    let mut scan = Scan::new(keys.custodies());
    while let Some(page) = scan.page(etcd).await? {
        for kv in page {
            if let Some(Key::Custody { of }) = keys.parse(kv.key()) {
                let record = records::read(kv.key(), kv.value())?;
                found.push(Stored { of, record, revision: kv.mod_revision() });
            }
        }
    }
    Ok(found)
}

/// A record to be written if nobody has changed it.
pub(super) struct Change {
    pub stored: Stored,
    pub record: CustodyRecord,
    /// What else must hold.
    pub also: Vec<Compare>,
}

/// Writes records, each by a comparison of its own. Returns how many were as read.
pub(super) async fn write(
    etcd: &Etcd,
    keys: &Keys,
    guard: &Guard,
    changes: &[Change],
) -> Result<usize, StoreError> {
    let one = |change: &Change| {
        let key = keys.custody(&change.stored.of);
        let value = records::write(&change.record);
        let bytes = 2 * key.len() + value.len();
        let mut when = change.also.clone();
        when.push(unchanged_since(&*key, change.stored.revision));
        Nested { txn: Txn::new().when(when).and_then([TxnOp::put(key, value, None)]), bytes }
    };
    nested_successes(etcd, guard, changes.iter().map(one)).await
}

/// An independent transaction, and the bytes of its keys and values.
pub(super) struct Nested {
    pub txn: Txn,
    pub bytes: usize,
}

/// Runs independent transactions, as many in one request as etcd takes. Returns how many of them did what they were to do.
pub(super) async fn nested_successes(
    etcd: &Etcd,
    guard: &Guard,
    nested: impl IntoIterator<Item = Nested>,
) -> Result<usize, StoreError> {
    let mut succeeded = 0;
    let mut nested = nested.into_iter().peekable();
    while let Some(first) = nested.next() {
        let mut bytes = first.bytes;
        let mut request = vec![TxnOp::txn(first.txn)];
        while request.len() < CHANGES_MAX
            && let Some(next) = nested.next_if(|next| bytes + next.bytes <= REQUEST_BYTES_MAX)
        {
            bytes += next.bytes;
            request.push(TxnOp::txn(next.txn));
        }
        let Some(when) = guard() else { return Err(StoreError::Fenced) };
        let answer = etcd.txn(Txn::new().when(when).and_then(request)).await?;
        if !answer.succeeded() {
            return Err(StoreError::Fenced);
        }
        let done = |op: &TxnOpResponse| matches!(op, TxnOpResponse::Txn(txn) if txn.succeeded());
        succeeded += answer.op_responses().iter().filter(|op| done(op)).count();
    }
    Ok(succeeded)
}

/// The guard of a node that acts for itself.
pub(super) fn own_guard(fence: &Fence) -> Guard {
    let fence = fence.clone();
    Box::new(move || Some(vec![fence.compare()?]))
}

/// Adopts everything whose holder was an earlier process of this node with the journal that `me` has opened; also `lost`, incarnations
/// whose state is in that journal and that the store may not know, since it was restored. Returns the incarnations that `me` speaks
/// for now, itself left out.
///
/// # Errors
/// If etcd does not answer, or this process is not registered any more.
pub async fn adopt(
    etcd: &Etcd,
    keys: &Keys,
    fence: &Fence,
    me: &MemberId,
    journal: u64,
    lost: &[Incarnation],
) -> Result<Vec<MemberId>, StoreError> {
    let guard = own_guard(fence);
    for _ in 0..ROUNDS_MAX {
        let mut mine = Vec::new();
        let mut changes = Vec::new();
        let all = read_all(etcd, keys).await?;
        for incarnation in lost {
            let of = MemberId { node: me.node.clone(), incarnation: *incarnation };
            if all.iter().all(|stored| stored.of != of) {
                let record = CustodyRecord::own(me, journal);
                // Revision 0: there is none.
                let stored = Stored { of, record: record.clone(), revision: 0 };
                changes.push(Change { stored, record, also: Vec::new() });
            }
        }
        for stored in all {
            let record = &stored.record;
            let same_journal = record.holder.node == me.node && record.journal == journal;
            if !same_journal || record.given_up || stored.of == *me {
                continue;
            }
            mine.push(stored.of.clone());
            if record.holder != *me || record.gone.is_some() {
                let record = CustodyRecord { holder: me.clone(), gone: None, ..record.clone() };
                changes.push(Change { stored, record, also: Vec::new() });
            }
        }
        if changes.is_empty() {
            return Ok(mine);
        }
        // Whatever the outcome, the next reading tells.
        match write(etcd, keys, &guard, &changes).await {
            Ok(_) => {}
            Err(StoreError::Etcd(e)) if e.is_endpoint() => tracing::debug!(%e, "adopting again"),
            Err(e) => return Err(e),
        }
    }
    Err(StoreError::Contended(keys.custodies_of(&me.node)))
}

/// What was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The incarnations.
    pub incarnations: Vec<MemberId>,
    /// Number of sessions.
    pub sessions: usize,
}

/// Why a node is not forgotten.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ForgetError {
    /// It lives.
    #[error(
        "node {node} is a live member (incarnation {incarnation}, {peer}) and its sessions are with it: to give up what it \
         has, stop it first, wait until its lease has run out, then forget it"
    )]
    Alive {
        /// The node.
        node: String,
        /// Which start of it.
        incarnation: u64,
        /// Its address.
        peer: String,
    },
    /// It serves without etcd.
    #[error(
        "node {node} is not registered in etcd, but it answers this node (incarnation {incarnation}) and serves its sessions: \
         let it reach etcd again; or, to give up what it has, stop it first, then forget it"
    )]
    Serving {
        /// The node.
        node: String,
        /// Which start of it.
        incarnation: u64,
    },
    /// There is nothing of it.
    #[error("nothing of a node {node} is known; there is something of: {known}")]
    Unknown {
        /// The node.
        node: String,
        /// Nodes of which there is something.
        known: String,
    },
    /// Something failed; what was done is kept, and the command may be given again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether this node has a working link to a process.
pub type Linked = Arc<dyn Fn(&MemberId) -> bool + Send + Sync>;

/// Whether custody as read may be given up: its holder neither lives nor can be brought back by a process that lives. Who has
/// lost etcd but not the other nodes serves on.
pub(super) fn is_orphan(stored: &Stored, members: &Members, linked: &Linked) -> bool {
    if !stored.record.given_up && linked(&stored.record.holder) {
        return false;
    }
    match members.node(&stored.record.holder.node) {
        Node::Absent => true,
        // A live node with another journal cannot have what the record says; one that registers just now may be about to adopt.
        Node::Live { record, .. } => {
            record.journal != stored.record.journal
                && record.incarnation != Some(stored.record.holder.incarnation)
        }
    }
}

/// The change that gives up an orphan.
pub(super) fn giving_up(stored: &Stored, keys: &Keys, members: &Members) -> Change {
    let node = &stored.record.holder.node;
    let created = match members.node(node) {
        Node::Absent => 0,
        Node::Live { created, .. } => created,
    };
    Change {
        stored: stored.clone(),
        record: CustodyRecord { given_up: true, ..stored.record.clone() },
        also: vec![exists_since(keys.member(node), created)],
    }
}

/// Gives up everything that processes of `node` have custody of and that cannot come back by a live one: all of it when the
/// node is gone, what is on lost journals when it runs again with a new one.
///
/// # Errors
/// See [`ForgetError`].
pub async fn forget(
    etcd: &Etcd,
    keys: &Keys,
    fence: &Fence,
    node: &str,
    linked: &Linked,
) -> Result<Forgotten, ForgetError> {
    let guard = own_guard(fence);
    let mut sessions = 0;
    for round in 0..ROUNDS_MAX {
        let members = Members::read(etcd, keys).await?;
        let all = read_all(etcd, keys).await?;
        let theirs: Vec<_> = all.iter().filter(|s| *s.record.holder.node == *node).collect();
        let orphans: Vec<_> = theirs.iter().filter(|s| is_orphan(s, &members, linked)).collect();
        if orphans.is_empty() && round == 0 {
            return Err(refusal(node, &members, &all, linked));
        }
        let left = orphans.iter().filter(|s| !s.record.given_up);
        let changes: Vec<_> = left.map(|s| giving_up(s, keys, &members)).collect();
        if !changes.is_empty() {
            // As soon as the records are given up the leader may remove them before this pass does.
            let of: HashSet<_> = orphans.iter().map(|s| s.of.clone()).collect();
            sessions = sessions.max(count_sessions(etcd, keys, &of).await?);
            write(etcd, keys, &guard, &changes).await?;
            continue;
        }
        let mut sweep = Sweep::begin(etcd, keys, Vec::new(), HashMap::default(), clock::now()).await?;
        while !sweep.step(etcd, keys, &guard).await? {}
        journals::collect(etcd, keys, &guard).await?;
        let incarnations = orphans.iter().map(|s| s.of.clone()).collect();
        return Ok(Forgotten { incarnations, sessions: sweep.removed().max(sessions) });
    }
    Err(StoreError::Contended(keys.custodies_of(node)).into())
}

/// How many sessions these incarnations have.
async fn count_sessions(etcd: &Etcd, keys: &Keys, of: &HashSet<MemberId>) -> Result<usize, StoreError> {
    let mut count = 0;
    let mut scan = Scan::new(keys.sessions());
    while let Some(page) = scan.page(etcd).await? {
        let owners = page.iter().filter_map(|kv| records::read::<SessionRecord>(kv.key(), kv.value()).ok());
        count += owners.filter(|record| of.contains(&record.owner)).count();
    }
    Ok(count)
}

fn refusal(node: &str, members: &Members, all: &[Stored], linked: &Linked) -> ForgetError {
    if let Node::Live { record, created } = members.node(node) {
        let incarnation = record.incarnation.unwrap_or_else(|| u64::try_from(created).unwrap_or(0));
        return ForgetError::Alive { node: node.to_owned(), incarnation, peer: record.peer.clone() };
    }
    let mut holders = all.iter().map(|s| &s.record.holder);
    if let Some(holder) = holders.find(|holder| *holder.node == *node && linked(holder)) {
        return ForgetError::Serving { node: node.to_owned(), incarnation: holder.incarnation };
    }
    let mut known: Vec<_> = all.iter().map(|s| &*s.record.holder.node).collect();
    known.sort_unstable();
    known.dedup();
    let known = if known.is_empty() { "no node".to_owned() } else { known.join(", ") };
    ForgetError::Unknown { node: node.to_owned(), known }
}
