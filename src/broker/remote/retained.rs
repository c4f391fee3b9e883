//! Retained messages in a cluster: the store has the last one of every topic, each node an index of them.
//!
//! An update is acknowledged when the store has it. While the store is away it waits in the journal, one per topic, and the
//! publish goes on once that is durable; it is written later, unless another node's update came in between.

use super::{Kept, Remote, Ticket};
use crate::broker::Broker;
use crate::broker::ports::{
    BoxFuture, Change, Journal, Lsn, MessageId, ParkedRetain, Retain, RetainOutcome, Revision,
};
use crate::clock::Time;
use crate::mqtt::Message;
use futures_util::future::{Either, select};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

/// How often an update that waits for the store looks whether it still answers, milliseconds.
const STORE_LOOK_MS: u64 = 100;

/// Updates of retained messages under way.
#[derive(Debug, Default)]
pub(super) struct Retains {
    next: AtomicU64,
    /// The update of each topic that the journal keeps.
    parked: Mutex<HashMap<Arc<str>, MessageId>>,
}

/// When an update of a retained message may be acknowledged.
#[derive(Debug, Default)]
pub struct Updated {
    /// Once the journal is durable up to here.
    pub lsn: Option<Lsn>,
    /// Once this is kept.
    pub ticket: Option<Arc<Ticket>>,
}

impl Broker {
    /// Writes an update of a retained message, whose limits have been checked; an empty payload clears. With `keep` the
    /// journal has it until it is written, whether or not the store answers.
    pub(in crate::broker) fn retain_in_cluster(
        &self,
        remote: &Arc<Remote>,
        message: &Message,
        keep: bool,
    ) -> Updated {
        let topic: Arc<str> = message.topic().into();
        let seq = remote.retains.next.fetch_add(1, Ordering::Relaxed) + 1;
        let update = Retain {
            known: self.retained.revision_of(&topic),
            message: (!message.payload().is_empty()).then(|| message.clone()),
            id: MessageId { origin: remote.me.incarnation, seq },
            topic,
        };
        if keep || !remote.ports.coordinator.reachable() {
            let lsn = remote.park(&*self.journal, &update);
            remote.write_retained(self.journal.clone(), update, true, None);
            return Updated { lsn: Some(lsn), ticket: None };
        }
        let ticket = Ticket::new();
        remote.write_retained(self.journal.clone(), update, false, Some(ticket.clone()));
        Updated { lsn: None, ticket: Some(ticket) }
    }

    /// Takes up updates that the journal kept because the store was away.
    pub(in crate::broker) fn take_up_parked(&self, parked: Vec<ParkedRetain>) {
        let Some(remote) = &self.remote else { return };
        for p in parked {
            remote.retains.parked.lock().insert(p.topic.clone(), p.id);
            let update = Retain { topic: p.topic, message: p.message, id: p.id, known: p.known };
            remote.write_retained(self.journal.clone(), update, true, None);
        }
    }

    /// Topics whose retained message has expired, with the revision to delete: at most `max`. For the leader.
    pub fn expired_retained(&self, now: Time, max: usize) -> Vec<(Arc<str>, Revision)> {
        self.retained.expired(now, max)
    }

    /// Retained messages whose update waits for the store.
    pub fn parked_retained(&self) -> usize {
        self.remote.as_ref().map_or(0, |r| r.retains.parked.lock().len())
    }
}

impl Remote {
    fn park(&self, journal: &dyn Journal, update: &Retain) -> Lsn {
        let parked = ParkedRetain {
            topic: update.topic.clone(),
            message: update.message.clone(),
            id: update.id,
            known: update.known,
        };
        // Under the lock: the journal has the last one that the table has.
        let mut table = self.retains.parked.lock();
        table.insert(update.topic.clone(), update.id);
        self.metrics.retained_parked.inc();
        journal.append(&[Change::Park(&parked)])
    }

    fn unpark(&self, journal: &dyn Journal, update: &Retain) {
        let mut table = self.retains.parked.lock();
        if table.get(&update.topic) == Some(&update.id) {
            table.remove(&update.topic);
            journal.append(&[Change::Unpark { topic: &update.topic }]);
        }
    }

    /// Has an update written, however long it takes; keeps `ticket` when it may be acknowledged.
    fn write_retained(
        self: &Arc<Remote>,
        journal: Arc<dyn Journal>,
        update: Retain,
        parked: bool,
        ticket: Option<Arc<Ticket>>,
    ) {
        // Before the task runs: updates of a topic are written in the order of these calls.
        let written = self.ports.coordinator.retain(update.clone());
        let remote = self.clone();
        self.ports.tasks.spawn(Box::pin(async move {
            let outcome = if parked {
                written.await
            } else {
                match remote.written_or_away(written).await {
                    Ok(outcome) => outcome,
                    Err(written) => {
                        let lsn = remote.park(&*journal, &update);
                        durable(journal.clone(), lsn).await;
                        if let Some(ticket) = &ticket {
                            ticket.keep(Kept::Done { matched: false });
                        }
                        written.await
                    }
                }
            };
            if outcome == RetainOutcome::Overtaken {
                remote.metrics.retained_overtaken.inc();
            }
            remote.unpark(&*journal, &update);
            if let Some(ticket) = ticket {
                ticket.keep(Kept::Done { matched: false });
            }
        }));
    }

    /// What became of an update; the wait for it if the store stopped answering before that.
    async fn written_or_away(
        &self,
        mut written: BoxFuture<RetainOutcome>,
    ) -> Result<RetainOutcome, BoxFuture<RetainOutcome>> {
        loop {
            match select(written, self.ports.tasks.sleep(STORE_LOOK_MS)).await {
                Either::Left((outcome, _)) => return Ok(outcome),
                Either::Right(((), rest)) => written = rest,
            }
            if !self.ports.coordinator.reachable() {
                return Err(written);
            }
        }
    }
}

/// Completes once the journal is durable up to `lsn`.
async fn durable(journal: Arc<dyn Journal>, lsn: Lsn) {
    poll_fn(|cx| {
        if journal.durable() >= lsn {
            return Poll::Ready(());
        }
        journal.wake_at(lsn, cx.waker());
        Poll::Pending
    })
    .await;
}
