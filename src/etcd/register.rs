//! The first registration of a process: its node ID must be free, or held by an earlier process with the same journal.

use super::client::Etcd;
use super::error::{EtcdError, StoreError};
use super::fence::{exists_since, unchanged_since};
use super::journals::{self, Entry};
use super::keys::Keys;
use super::member::ATTEMPTS;
use super::records::{self, CustodyRecord, JournalRecord, MemberRecord};
use super::restored::{self, Comparison};
use crate::clock::{self, Time};
use crate::ports::{Incarnation, MemberId, Revision};
use etcd_client::{GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse};
use std::time::Duration;

/// Between two looks at a registration that may be a dead process's.
const LOOK: Duration = Duration::from_millis(200);

/// How long after its lease's time a registration must be there still to be taken for a live one: etcd removes expired
/// leases twice a second.
const SLACK: Duration = Duration::from_millis(2_000);

/// A process cannot register.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The node ID is taken.
    #[error(
        "node.id {node:?} is in use: a process with another journal is registered as {node} in etcd (incarnation \
         {incarnation}, peers reach it at {peer}, clients at {mqtt}, HTTP at {http}) and keeps its lease alive. Give each \
         broker a node.id of its own; if that process is a left-over, stop it and start this one again"
    )]
    Clash {
        /// The node.
        node: String,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Where other nodes reach it.
        peer: String,
        /// Where clients reach it.
        mqtt: String,
        /// Where its admin HTTP listens.
        http: String,
    },
    /// A process with this journal lives.
    #[error(
        "process {process} has this journal ({journal:016x}) and still answers other nodes at {peer}: two processes on one journal, \
         or on copies of it, would each lose what the other acknowledges. Stop that process before this one is started in its \
         place; if both are wanted, give this one a node.id and an empty storage.dir of its own. Journal and lease are as before"
    )]
    Lives {
        /// The process.
        process: MemberId,
        /// The journal.
        journal: u64,
        /// Where other nodes reach it.
        peer: String,
    },
    /// Another process registered with the same journal since it was compared with etcd.
    #[error(
        "process {by} has registered with this journal ({journal:016x}), or a copy of it, a moment ago: start this one again, and \
         it will say what became of that"
    )]
    Overtaken {
        /// The process that registered with the same journal.
        by: MemberId,
        /// The journal.
        journal: u64,
    },
    /// The lease ran out in the middle.
    #[error("etcd was too slow: the lease ran out before node {0} was registered. Start it again")]
    TooSlow(String),
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EtcdError> for RegisterError {
    fn from(error: EtcdError) -> RegisterError {
        RegisterError::Store(error.into())
    }
}

/// What a registration is.
pub(super) struct Registered {
    /// The lease.
    pub lease: i64,
    /// When the last answered sign of life was sent.
    pub sent: Time,
    /// The member key's create-revision.
    pub created: i64,
    /// The incarnation that this makes.
    pub incarnation: Incarnation,
    /// How the journal and the store stand.
    pub comparison: Comparison,
    /// The member record as it is in etcd.
    pub record: MemberRecord,
}

/// A new lease, and when it was asked for.
pub(super) async fn grant(etcd: &Etcd) -> Result<(i64, Time), EtcdError> {
    let ttl = i64::try_from(etcd.options().lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1);
    let limit = etcd.options().request_timeout;
    let mut tries = 1;
    loop {
        let sent = clock::now();
        match etcd.lease(limit, |mut leases| async move { leases.grant(ttl, None).await }).await {
            Ok(answer) => return Ok((answer.id(), sent)),
            Err(e) if e.is_endpoint() && tries < etcd.members() => tries += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Revokes a lease; one that is gone already is fine.
pub(super) async fn revoke(etcd: &Etcd, lease: i64) -> Result<(), EtcdError> {
    let limit = etcd.options().request_timeout;
    let mut tries = 1;
    loop {
        match etcd.lease(limit, |mut leases| async move { leases.revoke(lease).await }).await {
            Ok(_) | Err(EtcdError::LeaseGone { .. }) => return Ok(()),
            Err(e) if e.is_endpoint() && tries < etcd.members() => tries += 1,
            Err(e) => return Err(e),
        }
    }
}

/// Registers a process. The record's incarnation is filled in.
pub(super) async fn register(
    etcd: &Etcd,
    keys: &Keys,
    node: &str,
    record: MemberRecord,
    entry: &Entry,
) -> Result<Registered, RegisterError> {
    // Before anything is written.
    let before = etcd.get(keys.restored(), None).await?;
    let before = before.header().map_or(0, |h| Revision::try_from(h.revision()).unwrap_or(0));
    let (lease, sent) = grant(etcd).await?;
    let outcome = enter(etcd, keys, node, record, entry, lease, before).await;
    match outcome {
        Ok(Entered { created, comparison, record }) => {
            let incarnation = record.incarnation.unwrap_or_default();
            Ok(Registered { lease, sent, created, incarnation, comparison, record })
        }
        Err(e) => {
            // Not left to run out: the next attempt should not have to wait for it.
            if let Err(error) = revoke(etcd, lease).await {
                tracing::debug!(%error, "a lease is left to run out");
            }
            Err(e)
        }
    }
}

struct Entered {
    created: i64,
    comparison: Comparison,
    record: MemberRecord,
}

/// Both transactions of a registration. Between them the journal is compared with the store.
async fn enter(
    etcd: &Etcd,
    keys: &Keys,
    node: &str,
    mut record: MemberRecord,
    entry: &Entry,
    lease: i64,
    before: Revision,
) -> Result<Entered, RegisterError> {
    let created = take_key(etcd, keys, node, &record, entry, lease).await?;
    let member = keys.member(node);
    let journal = keys.journal(record.journal);
    let stamp = entry.begun.map(|begun| begun.stamped.stamp);
    let mut looked_at = entry.begun.map(|begun| begun.looked_at);
    let mut attempts = 1;
    loop {
        let comparison = restored::compare(etcd, keys, node, record.journal, &entry.known, before).await?;
        let incarnation = comparison.timeline.incarnation(Revision::try_from(created).unwrap_or(0));
        let me = MemberId { node: node.into(), incarnation };
        record.incarnation = Some(me.incarnation);
        let custody = CustodyRecord { stamp, ..CustodyRecord::own(&me, record.journal) };
        let mut puts = vec![
            TxnOp::put(keys.custody(&me), records::write(&custody), None),
            TxnOp::put(&*member, records::write(&record), Some(PutOptions::new().with_lease(lease))),
        ];
        if let Some(begun) = entry.begun {
            let told = JournalRecord::new(&me, begun.stamped, begun.position, &record.peer);
            puts.push(TxnOp::put(&*journal, records::write(&told), None));
        }
        let same = looked_at.map(|at| unchanged_since(&*journal, at));
        let when: Vec<_> =
            [exists_since(&*member, created), comparison.compare(keys)].into_iter().chain(same).collect();
        let get = TxnOp::get(&*member, Some(GetOptions::new().with_keys_only()));
        match etcd.txn(Txn::new().when(when).and_then(puts).or_else([get])).await {
            Ok(answer) if answer.succeeded() => return Ok(Entered { created, comparison, record }),
            // Somebody has counted a restoration of the store meanwhile, or told etcd of this journal.
            Ok(answer) if is_there(answer.op_responses(), created) && attempts < ATTEMPTS => {
                looked_at = told_by_us(etcd, keys, entry).await?;
                attempts += 1;
            }
            Ok(_) => return Err(RegisterError::TooSlow(node.to_owned())),
            Err(e) if e.is_endpoint() && attempts < ATTEMPTS => attempts += 1,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether the member key is the one made at `created`.
fn is_there(found: Vec<TxnOpResponse>, created: i64) -> bool {
    found.iter().any(|op| match op {
        TxnOpResponse::Get(get) => get.kvs().first().is_some_and(|kv| kv.create_revision() == created),
        _ => false,
    })
}

/// The revision of the journal's key, if it is as it was compared with the journal or this process has written it since: by an
/// attempt whose answer was lost, or that came to nothing afterwards.
async fn told_by_us(etcd: &Etcd, keys: &Keys, entry: &Entry) -> Result<Option<i64>, RegisterError> {
    let Some(begun) = entry.begun else { return Ok(None) };
    match journals::read(etcd, keys, entry.journal).await? {
        Some((record, revision)) if record.stamp == begun.stamped.stamp => Ok(Some(revision)),
        Some((record, revision)) if revision != begun.looked_at => {
            Err(RegisterError::Overtaken { by: record.process, journal: entry.journal })
        }
        // Gone: somebody gave up what the journal had.
        None => Ok(Some(0)),
        Some(_) => Ok(Some(begun.looked_at)),
    }
}

/// Makes the member key, when it is free. Returns its create-revision.
async fn take_key(
    etcd: &Etcd,
    keys: &Keys,
    node: &str,
    record: &MemberRecord,
    entry: &Entry,
    lease: i64,
) -> Result<i64, RegisterError> {
    let key = keys.member(node);
    let put = TxnOp::put(&*key, records::write(record), Some(PutOptions::new().with_lease(lease)));
    let get = TxnOp::get(&*key, None);
    let txn = Txn::new().when([exists_since(&*key, 0)]).and_then([put]).or_else([get]);
    let mut attempts = 1;
    loop {
        let answer = match etcd.txn(txn.clone()).await {
            Err(e) if e.is_endpoint() && attempts < ATTEMPTS => {
                attempts += 1;
                continue;
            }
            answer => answer?,
        };
        if answer.succeeded() {
            return Ok(answer.header().map_or(0, ResponseHeader::revision));
        }
        let found = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(get) => get.kvs().first().cloned(),
            _ => None,
        });
        let Some(other) = found else { continue };
        if other.lease() == lease {
            // An attempt whose answer was lost.
            return Ok(other.create_revision());
        }
        let theirs: MemberRecord = records::read(other.key(), other.value()).map_err(StoreError::from)?;
        if theirs.journal == record.journal {
            refuse_beside(node, &other, &theirs, entry).await?;
            tracing::info!(node, "an earlier process of this node is still listed: its lease is revoked");
            revoke(etcd, other.lease()).await?;
        } else {
            outlive(etcd, node, &other, &theirs, lease).await?;
        }
    }
}

/// A process that has this process's journal, and lives, keeps its place.
async fn refuse_beside(
    node: &str,
    other: &KeyValue,
    theirs: &MemberRecord,
    entry: &Entry,
) -> Result<(), RegisterError> {
    let incarnation =
        theirs.incarnation.unwrap_or_else(|| Incarnation::try_from(other.create_revision()).unwrap_or(0));
    let process = MemberId { node: node.into(), incarnation };
    let (journal, peer) = (entry.journal, theirs.peer.clone());
    if (entry.answers)(process.clone(), journal, peer.clone()).await {
        return Err(RegisterError::Lives { process, journal, peer });
    }
    Ok(())
}

/// Waits until the lease of another process's registration has run out. A live process renews it: that is a clash. Once it may
/// have its whole time again for another reason: a new leader of etcd gives it to every lease.
async fn outlive(
    etcd: &Etcd,
    node: &str,
    other: &KeyValue,
    record: &MemberRecord,
    mine: i64,
) -> Result<(), RegisterError> {
    let clash = || RegisterError::Clash {
        node: node.to_owned(),
        incarnation: record
            .incarnation
            .unwrap_or_else(|| Incarnation::try_from(other.create_revision()).unwrap_or(0)),
        peer: record.peer.clone(),
        mqtt: record.mqtt.clone(),
        http: record.http.clone().unwrap_or_else(|| "none".to_owned()),
    };
    let mut least = i64::MAX;
    let mut deadline = None;
    let mut extended = false;
    loop {
        let Some(left) = time_to_live(etcd, other.lease()).await? else { return Ok(()) };
        // It must not run out while this one waits.
        let limit = etcd.options().request_timeout;
        etcd.lease(limit, |mut leases| async move { leases.keep_alive(mine).await }).await?;
        if left > least {
            if std::mem::replace(&mut extended, true) {
                return Err(clash());
            }
            deadline = None;
        }
        let wait = Duration::from_secs(u64::try_from(left).unwrap_or(0)) + SLACK;
        let until = *deadline.get_or_insert_with(|| {
            tracing::info!(
                node,
                ?wait,
                "another process is listed as this node: waiting whether its lease runs out"
            );
            clock::now().plus_ms(wait.as_millis() as u64)
        });
        if clock::now() > until {
            return Err(clash());
        }
        least = left;
        tokio::time::sleep(LOOK).await;
    }
}

/// Seconds that a lease has left; `None` if it is gone.
async fn time_to_live(etcd: &Etcd, lease: i64) -> Result<Option<i64>, EtcdError> {
    let limit = etcd.options().request_timeout;
    match etcd.lease(limit, |mut leases| async move { leases.time_to_live(lease, None).await }).await {
        Ok(answer) => Ok((answer.ttl() >= 0).then(|| answer.ttl())),
        Err(EtcdError::LeaseGone { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
