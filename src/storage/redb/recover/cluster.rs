//! What the scan remembers of rows and fields that only a node of a cluster has.

use crate::ports::{MessageId, NodeRecord, Recovered, Seq, SessionNo, SpooledRetain};
use crate::storage::order::order_by_origin;

/// Found so far.
#[derive(Default)]
pub(super) struct ClusterRows {
    /// Of live messages that have an ID, ascending by number.
    pub(super) ids: Vec<(Seq, MessageId)>,
    pub(super) seen: Vec<(MessageId, SessionNo)>,
    pub(super) duties: Vec<(Seq, MessageId)>,
    /// With their keys, ascending.
    pub(super) spooled: Vec<(u64, SpooledRetain)>,
    pub(super) node: Option<NodeRecord>,
}

impl ClusterRows {
    /// Hands over what was found; rows in `gone` (ascending) do not count.
    pub(super) fn finish(mut self, recovered: &mut Recovered, gone: &[u64]) {
        if !self.ids.is_empty() {
            let id_of = |seq: Seq| {
                let at = self.ids.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
                self.ids.get(at).map(|(_, id)| *id)
            };
            for session in &mut recovered.sessions {
                order_by_origin(&mut session.pending, id_of);
            }
        }
        self.duties.sort_unstable_by_key(|(seq, id)| (*id, *seq));
        self.spooled.retain(|(key, _)| gone.binary_search(key).is_err());
        recovered.seen = by_publish(self.seen);
        recovered.ids = self.ids;
        recovered.duties = self.duties;
        recovered.spooled = self.spooled.into_iter().map(|(_, update)| update).collect();
        recovered.node = self.node;
    }
}

/// Publishes and sessions, both ascending, each once.
fn by_publish(mut seen: Vec<(MessageId, SessionNo)>) -> Vec<(MessageId, Vec<SessionNo>)> {
    seen.sort_unstable();
    seen.dedup();
    let publishes = seen.chunk_by(|(a, _), (b, _)| a == b);
    publishes
        .filter_map(|of_one| Some((of_one.first()?.0, of_one.iter().map(|(_, session)| *session).collect())))
        .collect()
}
