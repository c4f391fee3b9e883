//! Writes retained messages: one update per topic on its way, later ones of the topic wait and the last of them wins; many
//! topics share a proposal.

use super::batch::{Failure, Nested, Op, Proposer, REQUEST_BYTES_MAX};
use super::claims::{compare_revision, outcome};
use super::keys::Keys;
use super::retained_value;
use crate::broker::ports::{MessageId, Retain, RetainOutcome, Revision};
use crate::clock;
use crate::mqtt::Message;
use etcd_client::{Txn, TxnOp, TxnOpResponse};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Topics remembered with nothing to write, at most; beyond that the oldest knowledge of own writes goes.
const TOPICS_IDLE_MAX: usize = 16_384;

type Waiter = oneshot::Sender<RetainOutcome>;

/// See the module.
pub struct RetainedWriter {
    keys: Keys,
    proposer: Arc<Proposer>,
    writable: Box<dyn Fn() -> bool + Send + Sync>,
    /// Without an answer for so long an update counts as parked.
    patience: Duration,
    origin: u64,
    topics: Mutex<Topics>,
}

#[derive(Default)]
struct Topics {
    all: HashMap<Arc<str>, Topic, foldhash::fast::RandomState>,
    /// Those with nothing to write.
    idle: usize,
}

#[derive(Default)]
struct Topic {
    flying: bool,
    /// The next update and who waits for it.
    next: Option<(Retain, Vec<Waiter>)>,
    /// It was accepted while etcd was away.
    parked: bool,
    /// This node's last write.
    own: Option<Own>,
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
    /// Writes through `proposer`; `origin` is this process's incarnation, `writable` says whether etcd takes writes now, and
    /// after `patience` without an answer it counts as away.
    pub fn new(
        keys: Keys,
        proposer: Arc<Proposer>,
        origin: u64,
        patience: Duration,
        writable: impl Fn() -> bool + Send + Sync + 'static,
    ) -> RetainedWriter {
        let (writable, topics) = (Box::new(writable), Mutex::default());
        RetainedWriter { keys, proposer, writable, patience, origin, topics }
    }

    /// Whether a message can be written: etcd's requests have a limit.
    pub fn takes(&self, message: &Message) -> bool {
        let key = self.keys.retained(message.topic());
        bytes_of(&key, retained_value::size_of(message)) <= REQUEST_BYTES_MAX
    }

    /// Writes an update. If it cannot be written at all (etcd refuses its size) it is void, and logged.
    pub fn retain(self: &Arc<Self>, update: Retain) -> impl Future<Output = RetainOutcome> + Send + 'static {
        let (done, outcome) = oneshot::channel();
        let topic = update.topic.clone();
        let parked = update.id.origin != self.origin || !(self.writable)();
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
            entry.parked |= parked;
            match &mut entry.next {
                Some((next, waiters)) => {
                    // What the first of them knew: whatever came since is another node's.
                    let known = next.known;
                    if update.kept {
                        for waiter in waiters.drain(..) {
                            let _ = waiter.send(RetainOutcome::Replaced);
                        }
                    }
                    *next = Retain { known, ..update };
                    waiters.push(done);
                }
                next => *next = Some((update, vec![done])),
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
        while let Some((update, waiters, parked, own)) = self.take(&topic) {
            // An update that began before our last write was applied here knows less than we do.
            let base = match own {
                Some(own) if own.at > update.known => own.revision,
                _ => update.known,
            };
            let (outcome, own) = self.write_one(&update, base, parked).await;
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

    fn take(&self, topic: &Arc<str>) -> Option<(Retain, Vec<Waiter>, bool, Option<Own>)> {
        let mut topics = self.topics.lock();
        let Topics { all, idle } = &mut *topics;
        let entry = all.get_mut(topic)?;
        if let Some((update, waiters)) = entry.next.take() {
            let parked = std::mem::take(&mut entry.parked);
            return Some((update, waiters, parked, entry.own));
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
        mut parked: bool,
    ) -> (RetainOutcome, Option<Own>) {
        let key = self.keys.retained(&update.topic);
        let value = update.message.as_ref().map(|message| retained_value::encode(message, update.id));
        loop {
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
                    parked |= nested.again;
                    match judge(update, &nested, parked) {
                        Attempt::Done(outcome, own) => return (outcome, own),
                        Attempt::Again(revision) => base = revision,
                    }
                }
                Err(Failure::Unavailable(_)) => parked = true,
                Err(Failure::Refused(why)) => {
                    tracing::error!(
                        topic = &*update.topic,
                        %why,
                        "a retained message cannot be written to etcd and is void; lower retained.max_payload"
                    );
                    return (RetainOutcome::Overtaken, None);
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
fn judge(update: &Retain, nested: &Nested, parked: bool) -> Attempt {
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
        None if update.message.is_none() => written(nested.revision, false),
        _ if parked => Attempt::Done(RetainOutcome::Overtaken, None),
        Some((revision, _)) => Attempt::Again(revision),
        None => Attempt::Again(0),
    }
}

fn is_own_earlier(there: MessageId, update: MessageId) -> bool {
    there.origin == update.origin && there.seq < update.seq
}
