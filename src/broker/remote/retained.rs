//! Retained messages in a cluster: the store has the last one of every topic, each node an index of them.
//!
//! An update is acknowledged when the store has it. While the store is away it waits in the journal, one per topic, and the
//! publish goes on once that is durable; it is written later, unless another node's update came in between.

use super::{Kept, Remote, Ticket};
use crate::broker::Broker;
use crate::broker::ports::{
    BoxFuture, Change, Journal, Lsn, MessageId, ParkedRetain, Retain, RetainOutcome, Revision,
};
use crate::broker::publish::Keeping;
use crate::broker::retained::Underway;
use crate::clock::Time;
use crate::mqtt::{Message, Reason};
use futures_util::future::{Either, select};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

/// How often an update that waits for the store looks whether it still answers, milliseconds.
const STORE_LOOK_MS: u64 = 100;

/// Updates of retained messages under way.
#[derive(Debug, Default)]
pub(super) struct Retains(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Updates so far.
    updates: u64,
    /// The update of each topic that the journal keeps, and where.
    parked: HashMap<Arc<str>, (MessageId, Lsn)>,
    /// The last update of each topic that has no outcome yet.
    waiting: HashMap<Arc<str>, Waits>,
    /// Of all that wait.
    sum: Underway,
}

/// An update without an outcome.
#[derive(Debug)]
struct Waits {
    id: MessageId,
    /// What it counts for in the sum.
    counts: Underway,
}

impl Table {
    /// What waits beside a topic's update.
    fn beside(&self, topic: &str) -> Underway {
        let own = self.waiting.get(topic).map(|waits| waits.counts).unwrap_or_default();
        Underway { topics: self.sum.topics - own.topics, bytes: self.sum.bytes - own.bytes }
    }

    fn wait(&mut self, update: &Retain) {
        self.sum = self.beside(&update.topic);
        let size = update.message.as_ref().map(Message::size);
        let counts =
            Underway { topics: usize::from(size.is_some() && update.known == 0), bytes: size.unwrap_or(0) };
        self.sum.topics += counts.topics;
        self.sum.bytes += counts.bytes;
        self.waiting.insert(update.topic.clone(), Waits { id: update.id, counts });
    }

    fn done(&mut self, update: &Retain) {
        if self.waiting.get(&update.topic).is_some_and(|waits| waits.id == update.id) {
            self.sum = self.beside(&update.topic);
            self.waiting.remove(&update.topic);
        }
    }

    /// Has the journal keep an update, unless it keeps a later one of the topic; when that is durable, this one is safe.
    fn park(&mut self, journal: &dyn Journal, update: &Retain) -> Lsn {
        if let Some(&(id, lsn)) = self.parked.get(&update.topic)
            && id.origin == update.id.origin
            && id.seq > update.id.seq
        {
            return lsn;
        }
        let parked = ParkedRetain {
            topic: update.topic.clone(),
            message: update.message.clone(),
            id: update.id,
            known: update.known,
        };
        let lsn = journal.append(&[Change::Park(&parked)]);
        self.parked.insert(update.topic.clone(), (update.id, lsn));
        lsn
    }
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
    /// Writes an update of a retained message; an empty payload clears.
    ///
    /// # Errors
    /// The limits of retained messages forbid it, those that wait for the store counted.
    pub(in crate::broker) fn retain_in_cluster(
        &self,
        remote: &Arc<Remote>,
        message: &Message,
        keeping: Keeping,
    ) -> Result<Updated, Reason> {
        let coordinator = &remote.ports.coordinator;
        let (topic, limits) = (Arc::<str>::from(message.topic()), &self.limits.retained);
        let kept = keeping == Keeping::Enough || !coordinator.writable();
        let mut table = remote.retains.0.lock();
        let admitted = if message.payload().is_empty() {
            table.waiting.len() < limits.messages || table.waiting.contains_key(&topic)
        } else {
            self.retained.admits(message, limits, table.beside(&topic)) && coordinator.takes(message)
        };
        if !admitted {
            return Err(Reason::QuotaExceeded);
        }
        table.updates += 1;
        let update = Retain {
            known: self.retained.revision_of(&topic),
            message: (!message.payload().is_empty()).then(|| message.clone()),
            id: MessageId { origin: remote.me.incarnation, seq: table.updates },
            topic,
            kept,
        };
        if kept {
            let lsn = table.park(&*self.journal, &update);
            remote.metrics.retained_parked.inc();
            remote.write_retained(&mut table, self.journal.clone(), update, None);
            return Ok(Updated { lsn: Some(lsn), ticket: None });
        }
        let lsn = (keeping == Keeping::AsWell).then(|| table.park(&*self.journal, &update));
        let ticket = Ticket::new();
        remote.write_retained(&mut table, self.journal.clone(), update, Some(ticket.clone()));
        Ok(Updated { lsn, ticket: Some(ticket) })
    }

    /// Takes up updates that the journal kept because the store was away.
    pub(in crate::broker) fn take_up_parked(&self, parked: Vec<ParkedRetain>) {
        let Some(remote) = &self.remote else { return };
        let mut table = remote.retains.0.lock();
        for p in parked {
            table.parked.insert(p.topic.clone(), (p.id, 0));
            let update = Retain { topic: p.topic, message: p.message, id: p.id, known: p.known, kept: true };
            remote.write_retained(&mut table, self.journal.clone(), update, None);
        }
    }

    /// Topics whose retained message has expired, with the revision to delete: at most `max`. For the leader.
    pub fn expired_retained(&self, now: Time, max: usize) -> Vec<(Arc<str>, Revision)> {
        self.retained.expired(now, max)
    }

    /// Retained messages whose update waits for the store.
    pub fn parked_retained(&self) -> usize {
        self.remote.as_ref().map_or(0, |r| r.retains.0.lock().parked.len())
    }
}

impl Remote {
    /// Has an update written, however long it takes; keeps `ticket` when it may be acknowledged.
    fn write_retained(
        self: &Arc<Remote>,
        table: &mut Table,
        journal: Arc<dyn Journal>,
        update: Retain,
        ticket: Option<Arc<Ticket>>,
    ) {
        table.wait(&update);
        // Under the lock: updates of a topic are written in the order of their numbers.
        let written = self.ports.coordinator.retain(update.clone());
        let remote = self.clone();
        self.ports.tasks.spawn(Box::pin(async move {
            let outcome = if update.kept {
                written.await
            } else {
                match remote.written_or_away(written).await {
                    Ok(outcome) => outcome,
                    Err(written) => {
                        let lsn = remote.retains.0.lock().park(&*journal, &update);
                        remote.metrics.retained_parked.inc();
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
            let instead = remote.finished(&*journal, &update, outcome);
            if let Some(ticket) = ticket {
                if let Some(lsn) = instead {
                    durable(journal, lsn).await;
                }
                ticket.keep(Kept::Done { matched: false });
            }
        }));
    }

    /// An update has an outcome; returns where the journal keeps what has replaced it.
    fn finished(&self, journal: &dyn Journal, update: &Retain, outcome: RetainOutcome) -> Option<Lsn> {
        let mut table = self.retains.0.lock();
        table.done(update);
        let (id, lsn) = table.parked.get(&update.topic).copied()?;
        if id == update.id {
            table.parked.remove(&update.topic);
            // Under the lock: the journal has the last one that the table has.
            journal.append(&[Change::Unpark { topic: &update.topic }]);
            return None;
        }
        (outcome == RetainOutcome::Replaced).then_some(lsn)
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
            if !self.ports.coordinator.writable() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::QoS;
    use crate::mqtt::message::Parts;

    fn update(topic: &str, payload: &str, seq: u64, known: Revision) -> Retain {
        let parts = Parts {
            topic,
            payload: payload.as_bytes(),
            properties: &[],
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at: None,
        };
        let message = (!payload.is_empty()).then(|| Message::new(parts));
        Retain { topic: topic.into(), message, id: MessageId { origin: 1, seq }, known, kept: true }
    }

    #[test]
    fn what_waits_is_counted_once_per_topic_until_the_last_update_has_an_outcome() {
        let mut table = Table::default();
        let (first, second) = (update("a", "1", 1, 0), update("a", "22", 2, 0));
        let other = update("b", "x", 3, 9);
        [&first, &second, &other].into_iter().for_each(|u| table.wait(u));
        let size = |u: &Retain| u.message.as_ref().unwrap().size();
        let sum = |table: &Table, beside| {
            let Underway { topics, bytes } = table.beside(beside);
            (topics, bytes)
        };
        assert_eq!(sum(&table, "c"), (1, size(&second) + size(&other)));
        assert_eq!(sum(&table, "a"), (0, size(&other)));
        // The first one was replaced.
        table.done(&first);
        assert_eq!(sum(&table, "c"), (1, size(&second) + size(&other)));
        table.wait(&update("a", "", 4, 0));
        assert_eq!(sum(&table, "c"), (0, size(&other)));
        table.done(&other);
        assert_eq!(sum(&table, "c"), (0, 0));
        assert_eq!(table.waiting.len(), 1);
    }
}
