//! Shared subscriptions that may not have had a QoS 2 publish: what the journal knows of them, and who is waited for.

use super::{Next, Outbox};
use crate::mqtt::Message;
use crate::ports::{Lsn, MemberId, MessageId, Recipient, Revision, Seq};
use std::sync::Arc;

impl Outbox {
    /// The record of a duty gets a new number, `seq`: `append` puts it into the journal, given the message, the number that it had and
    /// what it has to say. Whoever finds that the publish is at its end settles the record by its number, which nobody sees before
    /// the record has been appended: what is settled before it is there would stay, and be sent again after every restart.
    pub fn renote(
        &self,
        id: MessageId,
        seq: Seq,
        append: impl FnOnce(&Message, Seq, Recipient) -> Lsn,
    ) -> Option<Lsn> {
        let mut inner = self.inner.lock();
        let e = inner.entries.get_mut(&id)?;
        let recipient = e.duty_recipient()?;
        let old = e.duty.replace(seq)?;
        Some(append(&e.message, old, recipient))
    }

    /// Takes note that record `seq` of a duty is durable.
    pub fn noted(&self, id: MessageId, seq: Seq, applied: Revision) -> Next {
        let mut next = Next::default();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        // If it has been replaced, the newer one is waited for.
        if let Some(e) = inner.entries.get_mut(&id).filter(|e| e.duty == Some(seq)) {
            e.asks_noted();
            inner.look(id, applied, &self.held, &mut next);
        }
        next
    }

    /// Processes that may have served a shared subscription and cannot be asked, and the nodes that are waited for.
    pub fn awaited(&self) -> Vec<(MemberId, Arc<str>)> {
        let inner = self.inner.lock();
        let groups = inner.entries.values().flat_map(|e| &e.groups).filter(|g| g.away);
        let mut all: Vec<_> = groups.filter_map(|g| Some((g.process.clone()?, g.at.clone()?))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
