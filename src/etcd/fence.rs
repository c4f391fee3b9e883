//! What lets this process write: its member key. Every transaction compares the key's create-revision, so who has lost the
//! lease can write nothing.

use etcd_client::{Compare, CompareOp};
use std::sync::Arc;
use tokio::sync::watch;

/// The create-revision of this process's member key; it changes when the process has to register again.
#[derive(Clone, Debug)]
pub struct Fence {
    key: Arc<str>,
    created: watch::Receiver<Option<i64>>,
}

impl Fence {
    pub(super) fn new(key: String, created: watch::Receiver<Option<i64>>) -> Fence {
        Fence { key: key.into(), created }
    }

    /// The comparison of every transaction; `None` while this process is not registered and may write nothing.
    pub fn compare(&self) -> Option<Compare> {
        self.created().map(|created| exists_since(&*self.key, created))
    }

    /// The create-revision.
    pub fn created(&self) -> Option<i64> {
        *self.created.borrow()
    }

    /// Completes when it has changed since this handle last saw it (or at once if the membership has ended).
    pub async fn changed(&mut self) {
        // An error means that nobody is left who could change it.
        let _ = self.created.changed().await;
    }
}

/// The key is the one made at this revision; 0 = there is none.
pub(super) fn exists_since(key: impl Into<Vec<u8>>, created: i64) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, created)
}

/// The key is as written at this revision.
pub(super) fn unchanged_since(key: impl Into<Vec<u8>>, modified: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, modified)
}
