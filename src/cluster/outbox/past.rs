//! How far publishes are at other nodes, and which of them are matched again because of what has become of these.

use super::Outbox;
use super::entry::{Entry, Stage};
use crate::ports::{MessageId, Revision};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Outbox {
    /// The revision below which every publish to `node` is answered, and sent on if it had moved; `applied` if all are.
    pub fn settled_watermark(&self, node: &str, applied: Revision) -> Revision {
        self.inner.lock().watermarks.lowest(node).map_or(applied, |watermark| watermark.min(applied))
    }

    /// The revision below which every publish to `node` is answered, or was matched again since; `applied` if all are.
    pub fn past_watermark(&self, node: &str, applied: Revision) -> Revision {
        let inner = self.inner.lock();
        let watermark = inner.watermarks.past().find(|(n, _)| ***n == *node).map(|(_, at)| at);
        watermark.map_or(applied, |watermark| watermark.min(applied))
    }

    /// As [`Outbox::past_watermark`], for each node that publishes are on their way to.
    pub fn past_watermarks(&self, applied: Revision) -> Vec<(Arc<str>, Revision)> {
        self.inner.lock().watermarks.past().map(|(node, at)| (node.clone(), at.min(applied))).collect()
    }

    /// Puts publishes back to be matched again, before all that come after them, that wait for one of `nodes`. Nobody waits any more for
    /// answers of those in `lost`. Returns the frames that were not answered, by node and name: what is still said to one of them must not
    /// be taken for an answer to what the node is asked anew. The caller has the barrier closed.
    #[must_use]
    pub fn queue_again(&self, nodes: &[Arc<str>], lost: &[Arc<str>]) -> Vec<(Arc<str>, MessageId)> {
        self.put_back(|e| e.waits_for_any(nodes) || e.waits_for_any(lost), lost).1
    }

    /// Puts publishes back to be matched again, before all that come after them, that one of `nodes` has not answered and that were not
    /// matched at `at` or later. Whether there are any. The caller has the barrier closed.
    pub fn queue_behind(&self, nodes: &[Arc<str>], at: Revision) -> bool {
        self.put_back(|e| e.stage == Stage::Open && e.is_behind(nodes, at), &[]).0
    }

    /// Whether any publish is to be matched again, and the frames to nodes in `lost` that were not answered.
    fn put_back(
        &self,
        concerned: impl Fn(&Entry) -> bool,
        lost: &[Arc<str>],
    ) -> (bool, Vec<(Arc<str>, MessageId)>) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let before = inner.unmatched.len();
        let mut unanswered = Vec::new();
        for (id, e) in inner.entries.iter_mut().filter(|(_, e)| concerned(e)) {
            unanswered.extend(e.lose(lost).into_iter().map(|node| (node, *id)));
            match e.stage {
                Stage::Open => {
                    e.stage = Stage::Unmatched;
                    inner.unmatched.push_back(*id);
                }
                // Nothing of it has left: its turn comes among those that wait.
                Stage::Recording if e.prepared.is_some() => {
                    e.postpone();
                    inner.unmatched.push_back(*id);
                }
                Stage::Recording | Stage::Unmatched | Stage::Settling => {}
            }
        }
        let any = inner.unmatched.len() > before;
        if any {
            inner.unmatched.make_contiguous().sort_unstable();
            self.has_unmatched.store(true, Ordering::Release);
        }
        (any, unanswered)
    }
}
