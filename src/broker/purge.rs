//! Makes room in the full queue of a dormant session: messages that have expired go. Elsewhere they are dropped when they
//! would be sent, since finding them takes reading the journal.

use super::Broker;
use super::handle::Handle;
use crate::clock::Time;
use crate::hashing::HashSet;
use crate::ports::{Seq, Stored};
use crate::session::Loss;
use std::sync::Arc;

/// Messages that are looked at at a time, oldest first.
const PURGE_BATCH_MAX: usize = 256;

impl Broker {
    /// Looks for expired messages among the oldest of a full queue, beside everything else; what comes later finds room. `settle` is
    /// told the rows that the session is done with.
    pub fn purge(
        &self,
        handle: &Arc<Handle>,
        now: Time,
        settle: impl FnOnce(&Handle, Vec<Seq>) + Send + 'static,
    ) {
        let Some((seqs, attachment)) = handle.mailbox.start_purging(PURGE_BATCH_MAX, now) else { return };
        let (metrics, handle, session) = (self.metrics.clone(), handle.clone(), handle.no);
        let looked_at = seqs.len();
        let done = move |found: Vec<Stored>| {
            let gone = purged(&handle, attachment, looked_at, &found, now);
            metrics.lost(handle.whose(), Loss::Expired, gone.len() as u64);
            settle(&handle, gone);
        };
        self.journal.read(session, seqs, Box::new(done));
    }

    /// Makes room as [`Broker::purge`] does, if no other node knows of the messages.
    pub fn purge_alone(&self, handle: &Arc<Handle>, now: Time) {
        let broker = self.me.clone();
        self.purge(handle, now, move |handle, gone| {
            if let Some(broker) = broker.upgrade() {
                gone.into_iter().for_each(|seq| broker.settle(seq, handle.no));
            }
        });
    }
}

/// Takes expired messages out of the queue: their numbers.
fn purged(handle: &Handle, attachment: u32, looked_at: usize, found: &[Stored], now: Time) -> Vec<Seq> {
    let (mut expired, mut again) = (HashSet::default(), Time(u64::MAX));
    for s in found {
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
    handle.mailbox.finish_purging(attachment, looked_at, &expired, again)
}
