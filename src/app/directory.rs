//! Users, rules and bans that the nodes of a cluster share: followed here, and changed in etcd as operators order.

use super::Process;
use super::cluster::Member;
use crate::auth::Directory;
use crate::clock;
use crate::etcd::directory::{self as store, Stored};
use crate::ports::DirectoryKey;
use crate::server::http::ApiError;
use std::sync::Arc;
use std::time::Duration;

/// How often a change is tried that somebody else was faster with.
const TRIES_MAX: usize = 10;

/// How long an order waits until its change, which etcd has, holds on this node.
const APPLIED: Duration = Duration::from_secs(5);

/// Ends the connections of clients that a change of the directory concerns.
pub(super) async fn follow(directory: Arc<Directory>, process: Arc<Process>) {
    loop {
        let news = directory.news().await;
        if news.users {
            let ended = process.node.review_accounts();
            if ended > 0 {
                tracing::info!(ended, "connections ended: their accounts were removed or changed in etcd");
            }
        }
        if news.bans {
            let now = clock::now();
            process.metrics.bans.set(process.bans.list(now).len() as u64);
            let ended = process.node.end_banned(now);
            if ended > 0 {
                tracing::info!(ended, "connections ended: their clients were banned in the cluster");
            }
        }
    }
}

/// The cluster that has the directory, and the directory.
pub(super) fn of(process: &Process) -> Result<(&Member, &Arc<Directory>), ApiError> {
    let found = process.member.as_ref().zip(process.directory.as_ref());
    found.ok_or_else(|| ApiError::Conflict("this broker is alone (cluster.enabled is false)".to_owned()))
}

/// Reads a record as etcd has it now.
pub(super) async fn read(member: &Member, key: &DirectoryKey) -> Result<Stored, ApiError> {
    store::read(&member.etcd, &member.keys, key).await.map_err(|e| ApiError::Unavailable(e.to_string()))
}

/// Reads a record, has `change` say what becomes of it, and writes that; again if somebody else was faster. Completes when it holds on
/// this node.
pub(super) async fn change<T>(
    member: &Member,
    key: &DirectoryKey,
    mut change: impl FnMut(Option<&[u8]>) -> Result<(Option<Vec<u8>>, T), ApiError>,
) -> Result<T, ApiError> {
    for _ in 0..TRIES_MAX {
        let stored = read(member, key).await?;
        let (value, done) = change(stored.value.as_deref())?;
        if value.as_deref() == stored.value.as_deref() {
            return Ok(done);
        }
        let fence = member.membership.fence();
        let written = store::write(&member.etcd, &member.keys, &fence, key, &stored, value).await;
        if let Some(revision) = written.map_err(|e| ApiError::Unavailable(e.to_string()))? {
            if tokio::time::timeout(APPLIED, member.coordinator.applies(revision)).await.is_err() {
                let why = "etcd has the change, but this node does not hear of it: see /cluster/status";
                return Err(ApiError::Unavailable(why.to_owned()));
            }
            return Ok(done);
        }
    }
    Err(ApiError::Conflict("others change the same all the time: try again".to_owned()))
}
