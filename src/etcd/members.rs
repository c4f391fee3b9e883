//! The member records as etcd has them.

use super::client::Etcd;
use super::error::StoreError;
use super::keys::{Key, Keys};
use super::records::{self, MemberRecord};
use super::scan::Scan;
use crate::hashing::HashMap;
use crate::ports::MemberId;
use std::sync::Arc;

/// All registered nodes.
pub struct Members(HashMap<Arc<str>, (MemberRecord, i64)>);

/// A node as the member records show it.
pub enum Node<'a> {
    /// It has no record.
    Absent,
    /// It has one.
    Live {
        /// The record.
        record: &'a MemberRecord,
        /// The revision at which the key was made.
        created: i64,
    },
}

impl Members {
    /// Reads all records.
    ///
    /// # Errors
    /// If etcd does not answer, or a record cannot be read.
    pub async fn read(etcd: &Etcd, keys: &Keys) -> Result<Members, StoreError> {
        let mut found = HashMap::default();
        let mut scan = Scan::new(keys.members());
        while let Some(page) = scan.page(etcd).await? {
            for kv in page {
                if let Some(Key::Member { node }) = keys.parse(kv.key()) {
                    found.insert(node, (records::read(kv.key(), kv.value())?, kv.create_revision()));
                }
            }
        }
        Ok(Members(found))
    }

    /// What is known of a node.
    pub fn node(&self, node: &str) -> Node<'_> {
        self.0.get(node).map_or(Node::Absent, |(record, created)| Node::Live { record, created: *created })
    }

    /// Whether this very process is registered.
    pub fn is_live(&self, id: &MemberId) -> bool {
        self.0.get(&id.node).is_some_and(|(record, _)| record.incarnation == Some(id.incarnation))
    }
}
