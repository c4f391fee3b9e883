//! The cluster's directory (`users/`, `acl/`, `bans/`): reads a record, and changes one that nobody has changed meanwhile.

use super::client::Etcd;
use super::error::StoreError;
use super::fence::{Fence, unchanged_since};
use super::keys::Keys;
use crate::ports::{DirectoryKey, Revision};
use bytes::Bytes;
use etcd_client::{Txn, TxnOp, TxnOpResponse};

/// Bytes of a record of the directory: etcd takes requests of 1.5 MiB by default.
pub const DIRECTORY_RECORD_BYTES_MAX: usize = 1 << 20;

/// A record as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The record's value; `None` = there is no such record.
    pub value: Option<Bytes>,
    /// The revision at which it was written; 0 = there is none.
    pub revision: i64,
}

/// Reads a record, linearizably.
///
/// # Errors
/// If etcd does not answer.
pub async fn read(etcd: &Etcd, keys: &Keys, key: &DirectoryKey) -> Result<Stored, StoreError> {
    let mut answer = etcd.get(keys.directory(key), None).await?;
    let found = answer.take_kvs().into_iter().next();
    Ok(found.map_or_else(Stored::default, |kv| Stored {
        revision: kv.mod_revision(),
        value: Some(Bytes::from(kv.0.value)),
    }))
}

/// Sets a record or (`None`) removes it, if it is still as it was read. Returns the revision of the change; `None` = somebody else has
/// changed it.
///
/// # Errors
/// If etcd does not answer, and then it may have been carried out; or if this process is not registered any more.
pub async fn write(
    etcd: &Etcd,
    keys: &Keys,
    fence: &Fence,
    key: &DirectoryKey,
    read: &Stored,
    value: Option<Vec<u8>>,
) -> Result<Option<Revision>, StoreError> {
    let key = keys.directory(key);
    let Some(fence) = fence.compare() else { return Err(StoreError::Fenced) };
    let change = match value {
        Some(value) => TxnOp::put(key.clone(), value, None),
        None => TxnOp::delete(key.clone(), None),
    };
    let one = Txn::new().when([unchanged_since(key, read.revision)]).and_then([change]);
    let answer = etcd.txn(Txn::new().when([fence]).and_then([TxnOp::txn(one)])).await?;
    if !answer.succeeded() {
        return Err(StoreError::Fenced);
    }
    let done =
        answer.op_responses().iter().any(|op| matches!(op, TxnOpResponse::Txn(txn) if txn.succeeded()));
    let revision = answer.header().map_or(0, |header| header.revision());
    Ok(done.then(|| Revision::try_from(revision).unwrap_or(0)))
}
