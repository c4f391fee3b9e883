//! The limit on open files: every connection takes one.

use crate::server::parting::PARTINGS_MAX;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but clients: journal, listeners, HTTP, logs.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one and warns if that is less than `connections` need.
pub(super) fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "limit on open files not raised");
    }
    let wanted = (connections + PARTINGS_MAX) as u64 + OTHERS;
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|c| *c < wanted) {
        tracing::warn!(
            allowed,
            wanted,
            "fewer open files allowed (ulimit -n) than limits.max_connections may need"
        );
    }
}
