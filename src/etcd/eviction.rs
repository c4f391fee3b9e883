//! The value of `evictions/<node>/<client>`.

use super::records::VALUE_VERSION;
use crate::ports::Epoch;
use serde::{Deserialize, Serialize};

/// The value of `evictions/<node>/<client>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionRecord {
    v: u32,
    /// The epoch that replaced the session.
    pub epoch: Epoch,
    /// Nobody replaced it: it expired while its node was gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

impl EvictionRecord {
    /// Replaced under `epoch`.
    pub fn new(epoch: Epoch) -> EvictionRecord {
        EvictionRecord { v: VALUE_VERSION, epoch, expired: false }
    }

    /// A session of the epoch before has expired.
    pub fn expired(epoch: Epoch) -> EvictionRecord {
        EvictionRecord { expired: true, ..EvictionRecord::new(epoch) }
    }
}
