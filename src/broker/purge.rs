//! Makes room in the full queue of a dormant session: messages that have expired go. Elsewhere they are dropped when they
//! would be sent, since finding them takes reading the journal.

use super::Broker;
use super::handle::Handle;
use super::publish::Scratch;
use crate::clock::Time;
use crate::hashing::HashSet;
use crate::ports::Stored;
use crate::session::Loss;
use std::sync::Arc;

/// Messages that are looked at at a time, oldest first.
const PURGE_BATCH_MAX: usize = 256;

impl Broker {
    /// Makes room in the queues that publishes found full.
    pub(super) fn purge_full(&self, scratch: &mut Scratch, now: Time) {
        for handle in scratch.full.drain(..) {
            self.purge(&handle, now);
        }
    }

    /// Looks for expired messages among the oldest of a full queue, beside everything else; what comes later finds room.
    fn purge(&self, handle: &Arc<Handle>, now: Time) {
        let Some((seqs, attachment)) = handle.mailbox.start_purging(PURGE_BATCH_MAX, now) else { return };
        let (broker, handle, session) = (self.me.clone(), handle.clone(), handle.no);
        let looked_at = seqs.len();
        let done = move |found: Vec<Stored>| {
            if let Some(broker) = broker.upgrade() {
                broker.purged(&handle, attachment, looked_at, found, now);
            }
        };
        self.journal.read(session, seqs, Box::new(done));
    }

    fn purged(&self, handle: &Handle, attachment: u32, looked_at: usize, found: Vec<Stored>, now: Time) {
        let (mut expired, mut again) = (HashSet::default(), Time(u64::MAX));
        for s in &found {
            match s.message.expires_at() {
                Some(at) if at <= now => {
                    expired.insert(s.seq);
                }
                Some(at) => again = again.min(at),
                None => {}
            }
        }
        if !expired.is_empty() {
            again = now; // there may be more behind these
        }
        let gone = handle.mailbox.finish_purging(attachment, looked_at, &expired, again);
        self.metrics.lost(handle.whose(), Loss::Expired, gone.len() as u64);
        for seq in gone {
            self.settle_row(seq, handle.no);
        }
    }
}
