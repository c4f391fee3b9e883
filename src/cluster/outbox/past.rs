//! How far publishes are at other nodes, and which of them are matched again because of what has become of these.

use super::entry::{Entry, Stage};
use super::machine::{Actions, Machine};
use crate::ports::Revision;
use std::sync::Arc;

impl Machine {
    /// The revision below which every publish to `node` is answered, and sent on if it had moved; `applied` if all are.
    pub fn settled_watermark(&self, node: &str, applied: Revision) -> Revision {
        self.watermarks.lowest(node).map_or(applied, |watermark| watermark.min(applied))
    }

    /// The revision below which every publish to `node` is answered, or was matched again since; `applied` if all are.
    pub fn past_watermark(&self, node: &str, applied: Revision) -> Revision {
        self.watermarks.lowest_matched(node).map_or(applied, |watermark| watermark.min(applied))
    }

    /// As [`Machine::past_watermark`], for each node that publishes are on their way to.
    pub fn past_watermarks(&self, applied: Revision) -> Vec<(Arc<str>, Revision)> {
        self.watermarks.past().map(|(node, at)| (node.clone(), at.min(applied))).collect()
    }

    /// What is still said to one of the frames in `cancels` must not be taken for an answer to what the node is asked anew.
    pub(super) fn nodes_changed(&mut self, nodes: &[Arc<str>], lost: &[Arc<str>], actions: &mut Actions) {
        self.put_back(|e| e.waits_for_any(nodes) || e.waits_for_any(lost), lost, actions);
    }

    pub(super) fn behind(&mut self, nodes: &[Arc<str>], at: Revision, actions: &mut Actions) {
        let is_behind = |node: &Arc<str>| self.watermarks.lowest_matched(node).is_some_and(|past| past < at);
        if nodes.iter().any(is_behind) {
            self.put_back(|e| e.stage == Stage::Open && e.is_behind(nodes, at), &[], actions);
        }
    }

    /// Puts publishes back to be matched again, before all that come after them. Frames to nodes in `lost` are cancelled.
    fn put_back(&mut self, concerned: impl Fn(&Entry) -> bool, lost: &[Arc<str>], actions: &mut Actions) {
        let before = self.unmatched.len();
        for (id, e) in self.entries.iter_mut().filter(|(_, e)| concerned(e)) {
            actions.cancels.extend(e.lose(lost).into_iter().map(|node| (node, *id)));
            match e.stage {
                Stage::Open => {
                    e.stage = Stage::Unmatched;
                    self.unmatched.push_back(*id);
                }
                // Nothing of it has left: its turn comes among those that wait.
                Stage::Recording if e.prepared.is_some() => {
                    e.postpone();
                    self.unmatched.push_back(*id);
                }
                Stage::Recording | Stage::Unmatched | Stage::Settling => {}
            }
        }
        actions.changed = self.unmatched.len() > before;
        if actions.changed {
            self.unmatched.make_contiguous().sort_unstable();
        }
    }
}
