//! Retained messages in a cluster: the store has the last one of every topic, each node an index of them.
//!
//! An update is acknowledged when the store has it. While the store is away it waits in the journal, one per topic, and the
//! publish goes on once that is durable; it is written later, unless another node's update came in between. An update that was
//! accepted and that the store cannot take becomes a clear, so that all nodes agree that what it replaced is gone.

use super::durable::durable;
use super::{Cluster, Remote};
use crate::broker::delivery::Publishing;
use crate::broker::promise::{Kept, Promise};
use crate::broker::retain::Updated;
use crate::broker::retained::{Forbidden, NOT_RETAINED, Underway};
use crate::hashing::HashMap;
use crate::mqtt::{Message, Reason};
use crate::ports::{
    BoxFuture, Change, Incarnation, Journal, Lsn, MessageId, Retain, RetainOutcome, RetainedProgress,
    Revision, SpooledRetain, TooLarge,
};
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often an update that waits for the store looks whether it still answers, milliseconds.
const STORE_LOOK_MS: u64 = 100;

/// Clears of topics without a message, as far as this node knows, that wait for the store. More are refused; at QoS 0 they are
/// left out, there being nothing to clear.
const CLEARS_MAX: usize = 65_536;

/// Updates of retained messages under way.
#[derive(Debug, Default)]
pub(super) struct Retains(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Updates that the index does not know yet, with the revision that it was at when they were accepted: those that will be
    /// written soon …
    under_way: BTreeMap<MessageId, Revision>,
    /// … and those that wait for the store.
    open: BTreeMap<MessageId, Revision>,
    /// The update of each topic that the journal keeps, and where.
    spooled: HashMap<Arc<str>, (MessageId, Lsn)>,
    /// The last update of each topic that has no outcome yet.
    waiting: HashMap<Arc<str>, Waits>,
    /// Of all that wait.
    sum: Underway,
    /// Clears among them of topics without a known message.
    clears: usize,
}

/// An update without an outcome.
#[derive(Debug)]
struct Waits {
    id: MessageId,
    /// What it counts for in the sum.
    counts: Underway,
    /// It clears a topic without a known message.
    clears_nothing: bool,
}

impl Table {
    /// What waits beside a topic's update.
    fn beside(&self, topic: &str) -> Underway {
        let own = self.waiting.get(topic).map(|waits| waits.counts).unwrap_or_default();
        Underway { topics: self.sum.topics - own.topics, bytes: self.sum.bytes - own.bytes }
    }

    /// Whether a clear of a topic whose message has this revision may wait; one that has something to clear always may.
    fn takes_clear(&self, topic: &str, known: Revision) -> bool {
        known > 0 || self.clears < CLEARS_MAX || self.waiting.contains_key(topic)
    }

    fn wait(&mut self, update: &Retain) {
        self.forget(&update.topic);
        let size = update.message.as_ref().map(Message::size);
        let counts =
            Underway { topics: usize::from(size.is_some() && update.known == 0), bytes: size.unwrap_or(0) };
        self.sum.topics += counts.topics;
        self.sum.bytes += counts.bytes;
        let clears_nothing = size.is_none() && update.known == 0;
        self.clears += usize::from(clears_nothing);
        self.waiting.insert(update.topic.clone(), Waits { id: update.id, counts, clears_nothing });
    }

    fn forget(&mut self, topic: &str) {
        self.sum = self.beside(topic);
        let gone = self.waiting.remove(topic);
        self.clears -= usize::from(gone.is_some_and(|waits| waits.clears_nothing));
    }

    /// What other nodes are told, `applied` being how far the index has come, and `next` the number of the next update.
    fn progress(&self, me: Incarnation, applied: Revision, next: u64) -> RetainedProgress {
        let before =
            |first: Option<(&MessageId, &Revision)>| first.map_or(applied, |(_, at)| at.saturating_sub(1));
        let own = MessageId { origin: me, seq: 0 }..;
        let below = |first: Option<(&MessageId, &Revision)>| first.map_or(next, |(id, _)| id.seq);
        let settled = before(self.under_way.first_key_value()).min(applied);
        let waited = below(self.under_way.range(own.clone()).next());
        RetainedProgress {
            settled,
            written: before(self.open.first_key_value()).min(settled),
            waited,
            decided: below(self.open.range(own).next()).min(waited),
        }
    }

    /// Whether this is the last update of its topic.
    fn is_last(&self, update: &Retain) -> bool {
        self.waiting.get(&update.topic).is_some_and(|waits| waits.id == update.id)
    }

    fn done(&mut self, update: &Retain) {
        if self.is_last(update) {
            self.forget(&update.topic);
        }
    }

    /// Has the journal keep an update until the store has it, unless it keeps a later one of the topic; when that is durable, this one is
    /// safe.
    fn spool(&mut self, journal: &dyn Journal, update: &Retain) -> Lsn {
        if let Some(&(id, lsn)) = self.spooled.get(&update.topic)
            && id.origin == update.id.origin
            && id.seq > update.id.seq
        {
            return lsn;
        }
        let spooled = SpooledRetain {
            topic: update.topic.clone(),
            message: update.message.clone(),
            id: update.id,
            known: update.known,
            since: update.since,
        };
        let lsn = journal.append(&[Change::Spool(&spooled)]);
        self.spooled.insert(update.topic.clone(), (update.id, lsn));
        lsn
    }
}

/// What the journal does for an update of a retained message that the cluster's store is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    /// Keeps it only while the store is away.
    IfAway,
    /// Keeps it as well: it is not published again if it is lost here.
    AsWell,
    /// Keeps it, and that is enough: there is nobody to wait for the store.
    Enough,
}

impl Keeping {
    /// How sure the journal must be of a retained message that is published so.
    pub fn of(publishing: &Publishing<'_>) -> Keeping {
        match (publishing.record, publishing.inbound) {
            (Some(_), _) => Keeping::Enough,
            // A repetition is acknowledged as the first one, and changes nothing.
            (None, Some(_)) => Keeping::AsWell,
            (None, None) => Keeping::IfAway,
        }
    }
}

impl Cluster {
    /// Writes an update of a retained message; an empty payload clears, and so does what a limit forbids to be retained, unless
    /// whoever publishes it can be `told`.
    ///
    /// # Errors
    /// The limit that forbids it, those that wait for the store counted.
    pub(super) fn retain(
        &self,
        message: &Message,
        keeping: Keeping,
        told: bool,
    ) -> Result<Updated, Forbidden> {
        let remote = &self.remote;
        let (topic, clears) = (Arc::<str>::from(message.topic()), message.payload().is_empty());
        let kept = keeping == Keeping::Enough || !remote.ports.coordinator.writable();
        let mut table = remote.retains.0.lock();
        let mut forbidden = None;
        if !clears {
            let journaled = kept || keeping == Keeping::AsWell;
            forbidden = self.may_retain(message, table.beside(&topic), journaled).err();
        }
        let known = self.broker.retained.revision_of(&topic);
        let clears = clears || forbidden.is_some();
        if let Some(why) = forbidden.filter(|_| told) {
            return Err(why);
        }
        if clears && !table.takes_clear(&topic, known) {
            let why = Forbidden::Clears { max: CLEARS_MAX };
            return if told { Err(why) } else { Ok(Updated { forbidden: Some(why), ..Updated::default() }) };
        }
        let (id, since) = (remote.outbox.next_id(), remote.applied());
        let update = Retain { known, since, message: (!clears).then(|| message.clone()), id, topic, kept };
        // Before any session is looked up that gets it.
        self.broker.retained.begin(message, id, clears, !remote.ports.coordinator.writable());
        if kept {
            let lsn = table.spool(&*self.broker.journal, &update);
            remote.metrics.retained_spooled.inc();
            remote.write_retained(&mut table, self.broker.journal.clone(), update, None);
            return Ok(Updated { lsn: Some(lsn), promise: None, forbidden, id: Some(id) });
        }
        let lsn = (keeping == Keeping::AsWell).then(|| table.spool(&*self.broker.journal, &update));
        let promise = Promise::new();
        let promised = Promised { promise: promise.clone(), told };
        remote.write_retained(&mut table, self.broker.journal.clone(), update, Some(promised));
        Ok(Updated { lsn, promise: Some(promise), forbidden, id: Some(id) })
    }

    /// Whether a message may become the retained one of its topic now, beside those on their way; `journaled` says that the
    /// journal has to keep it.
    fn may_retain(&self, message: &Message, underway: Underway, journaled: bool) -> Result<(), Forbidden> {
        self.broker.admits_retained(message, underway)?;
        self.remote.takes(message)?;
        if journaled { self.broker.journal_takes(message) } else { Ok(()) }
    }

    /// Takes up updates that the journal of an earlier process kept because the store was away.
    pub fn take_up_spooled(&self, spooled: Vec<SpooledRetain>) {
        let remote = &self.remote;
        let mut table = remote.retains.0.lock();
        for p in spooled {
            table.spooled.insert(p.topic.clone(), (p.id, 0));
            let message = p.message.filter(|message| match remote.takes(message) {
                Ok(()) => true,
                // It was accepted by an earlier process, whose limits were others.
                Err(why) => {
                    tracing::warn!(topic = &*p.topic, %why, "{NOT_RETAINED}");
                    false
                }
            });
            let update =
                Retain { topic: p.topic, message, id: p.id, known: p.known, since: p.since, kept: true };
            remote.write_retained(&mut table, self.broker.journal.clone(), update, None);
        }
    }

    /// How many topics have an update that the journal keeps for the store.
    pub fn spooled_retained(&self) -> usize {
        self.remote.retains.0.lock().spooled.len()
    }
}

/// What whoever publishes an update waits for.
struct Promised {
    promise: Arc<Promise>,
    /// It can be told that the update is refused.
    told: bool,
}

impl Remote {
    /// Whether the store takes a message as the retained one of its topic.
    ///
    /// # Errors
    /// Its limit.
    pub fn takes(&self, message: &Message) -> Result<(), Forbidden> {
        let TooLarge { max, size } = match self.ports.coordinator.takes(message) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        Err(Forbidden::Request { max, size })
    }

    /// How far the updates of this node are, for the others: the index has come to `applied`.
    pub(super) fn retained_progress(&self, applied: Revision) -> RetainedProgress {
        let table = self.retains.0.lock();
        // Under the lock: whoever takes a number for an update has it.
        table.progress(self.me.incarnation, applied, self.outbox.next_seq())
    }

    /// Has an update written, however long it takes; keeps what is promised when it may be acknowledged.
    fn write_retained(
        self: &Arc<Remote>,
        table: &mut Table,
        journal: Arc<dyn Journal>,
        update: Retain,
        mut promised: Option<Promised>,
    ) {
        table.wait(&update);
        let earlier = update.id.origin != self.me.incarnation;
        let at = if earlier { 0 } else { self.applied() };
        table.open.insert(update.id, at);
        if !earlier && self.ports.coordinator.writable() {
            table.under_way.insert(update.id, at);
        }
        // Under the lock: updates of a topic are written in the order of their numbers.
        let written = self.ports.coordinator.retain(update.clone());
        let remote = self.clone();
        self.ports.tasks.spawn(Box::pin(async move {
            let outcome = match remote.written_or_away(written).await {
                Ok(outcome) => outcome,
                Err(written) => {
                    remote.waits_for_store(update.id);
                    if !update.kept {
                        let lsn = remote.retains.0.lock().spool(&*journal, &update);
                        remote.metrics.retained_spooled.inc();
                        durable(journal.clone(), lsn).await;
                        // From here on it is accepted.
                        if let Some(Promised { promise, .. }) = promised.take() {
                            promise.keep(Kept::Done { matched: false });
                        }
                    }
                    written.await
                }
            };
            match outcome {
                RetainOutcome::Overtaken => remote.metrics.retained_overtaken.inc(),
                RetainOutcome::Refused if !promised.as_ref().is_some_and(|p| p.told) => {
                    remote.clear_instead(&journal, &update);
                }
                _ => {}
            }
            let instead = remote.finished(&*journal, &update, outcome);
            if let Some(Promised { promise, .. }) = promised {
                if outcome == RetainOutcome::Refused {
                    promise.keep(Kept::Failed(Reason::QuotaExceeded));
                } else {
                    if let Some(lsn) = instead {
                        durable(journal, lsn).await;
                    }
                    promise.keep(Kept::Done { matched: false });
                }
            }
            if let RetainOutcome::Written(at) = outcome {
                remote.when_applied(at).await;
            }
            remote.decided(&update);
        }));
    }

    /// Nobody knows when an update will be written.
    fn waits_for_store(&self, id: MessageId) {
        let mut table = self.retains.0.lock();
        table.under_way.remove(&id);
        let progress = table.progress(self.me.incarnation, self.applied(), self.outbox.next_seq());
        drop(table);
        self.retained.decided_below(self.me.incarnation, progress.decided, progress.waited);
        self.report_soon();
    }

    /// The index knows what became of an update, or that it is void.
    fn decided(&self, update: &Retain) {
        let mut table = self.retains.0.lock();
        table.under_way.remove(&update.id);
        table.open.remove(&update.id);
        drop(table);
        self.retained.decided(&update.topic, update.id);
        self.report_soon();
    }

    /// The store refuses an update that was accepted: its topic is cleared, unless a later update decides.
    fn clear_instead(self: &Arc<Remote>, journal: &Arc<dyn Journal>, update: &Retain) {
        let mut table = self.retains.0.lock();
        if update.message.is_none() || !table.is_last(update) {
            return;
        }
        let id = self.outbox.next_id(); // of no publish
        let clear = Retain { message: None, id, ..update.clone() };
        if table.spooled.get(&update.topic).is_some_and(|(id, _)| *id == update.id) {
            table.spool(&**journal, &clear);
        }
        self.write_retained(&mut table, journal.clone(), clear, None);
    }

    /// An update has an outcome; returns where the journal keeps what has replaced it.
    fn finished(&self, journal: &dyn Journal, update: &Retain, outcome: RetainOutcome) -> Option<Lsn> {
        let mut table = self.retains.0.lock();
        table.done(update);
        let (id, lsn) = table.spooled.get(&update.topic).copied()?;
        if id == update.id {
            table.spooled.remove(&update.topic);
            // Under the lock: the journal has the last one that the table has.
            journal.append(&[Change::Unspool { topic: &update.topic }]);
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
        Retain { topic: topic.into(), message, id: MessageId { origin: 1, seq }, known, since: 0, kept: true }
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
        assert_eq!((table.waiting.len(), table.clears), (1, 1));
        table.wait(&update("a", "3", 5, 0));
        assert_eq!(table.clears, 0);
    }

    #[test]
    fn a_clear_waits_whatever_else_does_if_there_is_something_to_clear() {
        let mut table = Table::default();
        for n in 0..CLEARS_MAX as u64 {
            assert!(table.takes_clear(&n.to_string(), 0));
            table.wait(&update(&n.to_string(), "", n, 0));
        }
        assert!(!table.takes_clear("another", 0), "it would have no effect");
        assert!(table.takes_clear("another", 7) && table.takes_clear("0", 0));
        table.done(&update("0", "", 0, 0));
        assert!(table.takes_clear("another", 0));
    }
}
