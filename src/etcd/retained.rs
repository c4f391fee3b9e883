//! Writes retained messages: one update per topic on its way, later ones of the topic wait and the last of them wins; many
//! topics share a proposal.

use super::batch::{Failure, LONE_BYTES_MAX, Nested, Op, Proposer};
use super::claims::{compare_revision, outcome};
use super::keys::Keys;
use super::retained_value;
use crate::clock;
use crate::hashing::HashMap;
use crate::mqtt::Message;
use crate::names::shown;
use crate::ports::{
    BoxFuture, ClusterTime, Incarnation, MessageId, Retain, RetainOutcome, Revision, TooLarge, generation_of,
};
use etcd_client::{Txn, TxnOp, TxnOpResponse};
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Topics remembered with nothing to write, at most; beyond that the oldest knowledge of own writes goes.
const TOPICS_IDLE_MAX: usize = 16_384;

/// How often to look whether the cluster's time is known.
const TIME_LOOK: Duration = Duration::from_millis(50);

type Waiter = oneshot::Sender<RetainOutcome>;

/// Writes retained messages: one update per topic on its way, later ones of the topic wait and the last of them wins; many topics share a
/// proposal.
pub struct RetainedWriter {
    keys: Keys,
    proposer: Arc<Proposer>,
    writable: Box<dyn Fn() -> bool + Send + Sync>,
    /// Without an answer for so long an update counts as spooled.
    patience: Duration,
    writer: Writer,
    cleared: ClearedSince,
    time: Arc<ClusterTime>,
    topics: Mutex<Topics>,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// This process's incarnation.
    pub origin: Incarnation,
    /// The revision at which the life of the store began that it has registered in: older values are those of a backup. 0 = that is
    /// the first one.
    pub life_began: Revision,
}

impl Writer {
    /// Whether an update was accepted before the store was restored: the revisions that it knows of are not this store's. It is newer
    /// than everything in the backup.
    fn before_restore(&self, update: &Retain) -> bool {
        generation_of(update.id.origin) < generation_of(self.origin)
    }
}

/// Whether a topic was cleared after a revision; looked up once the index has all that etcd has.
pub type ClearedSince = Box<dyn Fn(&Arc<str>, Revision) -> BoxFuture<bool> + Send + Sync>;

#[derive(Default)]
struct Topics {
    all: HashMap<Arc<str>, Topic>,
    /// Those with nothing to write.
    idle: usize,
}

#[derive(Default)]
struct Topic {
    flying: bool,
    next: Option<Next>,
    /// This node's last write.
    own: Option<Own>,
}

/// The next update of a topic.
struct Next {
    update: Retain,
    /// It was accepted while etcd was away.
    spooled: bool,
    /// Those who wait for it.
    waiters: Vec<Waiter>,
}

impl Next {
    /// A later update takes its place, with what it knew and how it was accepted. Those who need not wait for it: the journal
    /// keeps it.
    fn merge(&mut self, update: Retain, spooled: bool, waiter: Waiter) -> Vec<Waiter> {
        let replaced = if update.kept { std::mem::take(&mut self.waiters) } else { Vec::new() };
        (self.update, self.spooled) = (update, spooled);
        self.waiters.push(waiter);
        replaced
    }
}

#[derive(Clone, Copy)]
struct Own {
    /// The revision of the write.
    at: Revision,
    /// The key's revision since: 0 if it was cleared.
    revision: Revision,
}

/// What an attempt tells.
enum Attempt {
    Done(RetainOutcome, Option<Own>),
    /// The key is at this revision.
    Again(Revision),
}

impl RetainedWriter {
    /// Writes through `proposer`; `writable` says whether etcd takes writes now, and
    /// after `patience` without an answer it counts as away.
    pub fn new(
        keys: Keys,
        proposer: Arc<Proposer>,
        writer: Writer,
        patience: Duration,
        writable: impl Fn() -> bool + Send + Sync + 'static,
        cleared: ClearedSince,
        time: Arc<ClusterTime>,
    ) -> RetainedWriter {
        let (writable, topics) = (Box::new(writable), Mutex::default());
        RetainedWriter { keys, proposer, writable, patience, writer, cleared, time, topics }
    }

    /// Completes when the cluster's time is known.
    async fn timed(&self) {
        while !self.time.known() {
            tokio::time::sleep(TIME_LOOK).await;
        }
    }

    /// Whether a message can be written: etcd's requests have a limit.
    ///
    /// # Errors
    /// The limit, and the bytes of the message in a request.
    pub fn takes(&self, message: &Message) -> Result<(), TooLarge> {
        let key = self.keys.retained(message.topic());
        let (max, size) = (LONE_BYTES_MAX, bytes_of(&key, retained_value::size_of(message)));
        if size > max { Err(TooLarge { max, size }) } else { Ok(()) }
    }

    /// Writes an update. If etcd refuses it (it may take smaller requests than it does by default) nothing changes, and it is logged.
    pub fn retain(self: &Arc<Self>, update: Retain) -> impl Future<Output = RetainOutcome> + Send + 'static {
        let (done, outcome) = oneshot::channel();
        let topic = update.topic.clone();
        let spooled = update.id.origin != self.writer.origin || !(self.writable)();
        {
            let mut topics = self.topics.lock();
            let Topics { all, idle } = &mut *topics;
            let entry = match all.entry(topic.clone()) {
                Entry::Occupied(entry) => {
                    *idle -= usize::from(!entry.get().flying);
                    entry.into_mut()
                }
                Entry::Vacant(entry) => entry.insert(Topic::default()),
            };
            match &mut entry.next {
                Some(next) => {
                    for waiter in next.merge(update, spooled, done) {
                        let _ = waiter.send(RetainOutcome::Replaced);
                    }
                }
                next => *next = Some(Next { update, spooled, waiters: vec![done] }),
            }
            if !entry.flying {
                entry.flying = true;
                tokio::spawn(self.clone().write(topic));
            }
        }
        async move {
            // The writer ends with the node only.
            match outcome.await {
                Ok(outcome) => outcome,
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Topics with something to write.
    pub fn waiting(&self) -> usize {
        let topics = self.topics.lock();
        topics.all.len() - topics.idle
    }

    /// Writes what waits for a topic until nothing does.
    async fn write(self: Arc<Self>, topic: Arc<str>) {
        while let Some((Next { mut update, spooled, waiters }, own)) = self.take(&topic) {
            if self.writer.before_restore(&update) {
                (update.known, update.since) = (0, self.writer.life_began);
            }
            // An update that began before our last write was applied here knows less than we do.
            let base = match own {
                Some(own) if own.at > update.known => own.revision,
                _ => update.known,
            };
            // Its own clear is no reason to leave it out.
            let since = update.since.max(own.map_or(0, |own| own.at));
            let (outcome, own) = self.write_one(&update, base, since, spooled).await;
            if let Some(own) = own
                && let Some(entry) = self.topics.lock().all.get_mut(&topic)
            {
                entry.own = Some(own);
            }
            for waiter in waiters {
                let _ = waiter.send(outcome);
            }
        }
    }

    fn take(&self, topic: &Arc<str>) -> Option<(Next, Option<Own>)> {
        let mut topics = self.topics.lock();
        let Topics { all, idle } = &mut *topics;
        let entry = all.get_mut(topic)?;
        if let Some(next) = entry.next.take() {
            return Some((next, entry.own));
        }
        entry.flying = false;
        *idle += 1;
        if *idle > TOPICS_IDLE_MAX {
            let mut ages: Vec<Revision> = all.values().filter_map(Topic::idle_since).collect();
            ages.sort_unstable();
            let middle = ages.get(ages.len() / 2).copied().unwrap_or(0);
            let before = all.len();
            all.retain(|_, entry| entry.idle_since().is_none_or(|at| at > middle));
            *idle -= before - all.len();
        }
        None
    }

    async fn write_one(
        &self,
        update: &Retain,
        mut base: Revision,
        since: Revision,
        mut spooled: bool,
    ) -> (RetainOutcome, Option<Own>) {
        let key = self.keys.retained(&update.topic);
        if update.id.origin != self.writer.origin
            && update.message.as_ref().is_some_and(|m| m.expires_at().is_some())
        {
            // Of an earlier process: nobody waits for it, and this one may have just begun.
            self.timed().await;
        }
        let encode = |message| retained_value::encode(message, update.id, &self.time);
        let value = update.message.as_ref().map(encode);
        loop {
            // A key that is not there does not say for how long.
            let may_be_void = spooled && base == 0 && update.since > 0 && value.is_some();
            if may_be_void && (self.cleared)(&update.topic, since).await {
                return (RetainOutcome::Overtaken, None);
            }
            let change = match &value {
                Some(value) => TxnOp::put(&*key, value.clone(), None),
                None => TxnOp::delete(&*key, None),
            };
            let txn = Txn::new()
                .when([compare_revision(&*key, base)])
                .and_then([change])
                .or_else([TxnOp::get(&*key, None)]);
            let bytes = bytes_of(&key, value.as_ref().map_or(0, Vec::len));
            let until = clock::now().plus_ms(u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX));
            let (keys, grows) = (vec![key.clone()], value.is_some());
            let op = |done| Op { keys, txn, bytes, until: Some(until), bulk: true, grows, done };
            match outcome(&self.proposer, op).await {
                Ok(nested) => {
                    spooled |= nested.again;
                    match outcome_of(update, &nested, spooled, self.writer) {
                        Attempt::Done(outcome, own) => return (outcome, own),
                        Attempt::Again(revision) => base = revision,
                    }
                }
                Err(Failure::Unavailable(_)) => spooled = true,
                Err(Failure::Refused(why)) => {
                    tracing::error!(
                        topic = %shown(&update.topic),
                        %why,
                        bytes,
                        "etcd refuses a retained message; leave its --max-request-bytes at 1.5 MiB or more, or lower \
                         retained.max_payload"
                    );
                    return (RetainOutcome::Refused, None);
                }
            }
        }
    }
}

impl Topic {
    fn idle_since(&self) -> Option<Revision> {
        (!self.flying).then(|| self.own.map_or(0, |own| own.at))
    }
}

/// Bytes of a transaction: the key is compared, written and read.
fn bytes_of(key: &str, value: usize) -> usize {
    3 * key.len() + value
}

/// What an attempt came to.
fn outcome_of(update: &Retain, nested: &Nested, spooled: bool, writer: Writer) -> Attempt {
    let written = |revision: Revision, set: bool| {
        let own = Own { at: revision, revision: if set { revision } else { 0 } };
        Attempt::Done(RetainOutcome::Written(revision), Some(own))
    };
    if nested.succeeded {
        return written(nested.revision, update.message.is_some());
    }
    let there = match nested.responses.first() {
        Some(TxnOpResponse::Get(get)) => {
            get.kvs().first().map(|kv| (kv.mod_revision() as Revision, retained_value::id_of(kv.value())))
        }
        _ => None,
    };
    match there {
        // An earlier attempt went through unheard.
        Some((revision, Some(id))) if id == update.id => written(revision, true),
        Some((revision, Some(id))) if is_own_earlier(id, update.id) => Attempt::Again(revision),
        Some((revision, _)) if writer.before_restore(update) && revision < writer.life_began => {
            Attempt::Again(revision)
        }
        None if update.message.is_none() => written(nested.revision, false),
        _ if spooled => Attempt::Done(RetainOutcome::Overtaken, None),
        Some((revision, _)) => Attempt::Again(revision),
        None => Attempt::Again(0),
    }
}

fn is_own_earlier(there: MessageId, update: MessageId) -> bool {
    there.origin == update.origin && there.seq < update.seq
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(seq: u64, known: Revision, kept: bool) -> Retain {
        Retain { topic: "t".into(), message: None, id: MessageId { origin: 1, seq }, known, since: 0, kept }
    }

    #[test]
    fn an_update_that_takes_the_place_of_another_inherits_nothing() {
        let (first, mut first_hears) = oneshot::channel();
        let mut next = Next { update: update(1, 5, true), spooled: true, waiters: vec![first] };
        // Etcd is back, and another node's message of revision 8 was known.
        let (second, mut second_hears) = oneshot::channel();
        assert!(next.merge(update(2, 8, false), false, second).is_empty(), "both wait");
        assert_eq!((next.update.id.seq, next.update.known, next.spooled), (2, 8, false));
        let (third, _) = oneshot::channel();
        for waiter in next.merge(update(3, 0, true), true, third) {
            waiter.send(RetainOutcome::Replaced).unwrap();
        }
        assert_eq!((next.update.id.seq, next.update.known, next.spooled), (3, 0, true));
        assert_eq!((next.waiters.len(), first_hears.try_recv()), (1, Ok(RetainOutcome::Replaced)));
        assert_eq!(second_hears.try_recv(), Ok(RetainOutcome::Replaced));
    }
}
