//! What a process has reported, as far as it matters to this node.

use crate::clock::Time;
use crate::hashing::HashMap;
use crate::ports::{RetainedProgress, Revision};
use std::collections::VecDeque;
use std::sync::Arc;

/// Reports of one process that wait until this node has come as far.
const REPORTS_AHEAD_MAX: usize = 64;

/// What a process has reported, as far as it matters to this node.
#[derive(Debug, Default)]
pub(super) struct Reported {
    pub applied: Revision,
    /// How far the process is with its updates of retained messages; `None` = it does not say.
    pub retained: Option<RetainedProgress>,
    pub low_water: u64,
    /// Publishes below that are not done with, ascending.
    pub open: Vec<u64>,
    pub settled: HashMap<Arc<str>, Revision>,
    /// Whether the process serves nobody and acknowledges nothing any more; nothing of it comes after what it had applied then.
    pub leaving: bool,
    /// When the latest report of the process came, by this node's clock.
    pub came: Time,
    pub past: HashMap<Arc<str>, Revision>,
    pub past_others: Revision,
    /// When the process made its latest report, by the process's clock.
    pub sent_at: Time,
    /// When this node had made the newest of its own reports that the process had received by its latest one, by this node's clock.
    pub echo: Time,
    /// An instant of this node's clock after which the process still had applied no more than this node has by now.
    pub evidence: Time,
    /// Reports that are ahead of this node: the revision that this node has to apply, and what is `evidence` once it has.
    pub ahead: VecDeque<(Revision, Time)>,
}

impl Reported {
    pub fn past(&self, of: &str) -> Revision {
        if self.past_others == 0 {
            return self.settled.get(of).copied().unwrap_or(0);
        }
        self.past.get(of).copied().unwrap_or(self.past_others)
    }

    pub fn note(&mut self, needs: Revision, at: Time) {
        if self.ahead.len() < REPORTS_AHEAD_MAX {
            self.ahead.push_back((needs, at));
        }
    }

    pub fn reached(&mut self, applied: Revision) {
        let evidence = &mut self.evidence;
        self.ahead.retain(|(needs, at)| {
            let reached = *needs <= applied;
            if reached {
                *evidence = (*evidence).max(*at);
            }
            !reached
        });
    }
}
