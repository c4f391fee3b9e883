//! The coordinator of one process of a cluster in memory.

use super::store::{Process, Store};
use super::unavailable;
use crate::clock::Time;
use crate::ports::{
    BoxFuture, Claim, ClaimOutcome, Coordinator, Epoch, Index, MemberId, Owner, Retain, RetainOutcome,
    Revision, RouteChange, StoreKnown, Unavailable,
};
use crate::user::SessionUser;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Requests of one client keep their order; those of different clients overtake each other.
const SESSION_WORKERS: usize = 16;

/// An update of a retained message that is not written yet, and who waits for it.
struct Waiting {
    update: Retain,
    late: bool,
    for_it: Vec<oneshot::Sender<RetainOutcome>>,
}

/// The coordinator of one process of a cluster in memory.
pub struct MemoryCoordinator {
    store: Store,
    process: Arc<Process>,
    sessions: Vec<mpsc::UnboundedSender<BoxFuture<()>>>,
    routes: mpsc::UnboundedSender<BoxFuture<()>>,
    retained: Arc<Mutex<BTreeMap<Arc<str>, Waiting>>>,
    /// The routes of earlier incarnations are gone.
    routed: Arc<AtomicBool>,
}

/// A queue whose work is done one after the other.
fn worker(process: &Process) -> mpsc::UnboundedSender<BoxFuture<()>> {
    let (send, mut work) = mpsc::unbounded_channel::<BoxFuture<()>>();
    process.tasks.spawn(Box::pin(async move {
        while let Some(next) = work.recv().await {
            next.await;
        }
    }));
    send
}

/// The other end of a request whose process may die.
fn answer<T: Send + 'static>(
    wait: oneshot::Receiver<Result<T, Unavailable>>,
) -> BoxFuture<Result<T, Unavailable>> {
    Box::pin(async move { wait.await.unwrap_or_else(|_| Err(unavailable("the process has ended"))) })
}

/// The other end of a request that is tried for as long as the process lives.
fn certain<T: Send + 'static>(wait: oneshot::Receiver<T>) -> BoxFuture<T> {
    Box::pin(async move {
        match wait.await {
            Ok(done) => done,
            Err(_) => std::future::pending().await,
        }
    })
}

impl MemoryCoordinator {
    pub(super) fn new(store: Store, process: Arc<Process>) -> Arc<MemoryCoordinator> {
        let sessions = (0..SESSION_WORKERS).map(|_| worker(&process)).collect();
        let routes = worker(&process);
        Arc::new(MemoryCoordinator {
            store,
            process,
            sessions,
            routes,
            retained: Arc::default(),
            routed: Arc::default(),
        })
    }

    /// Begins to deliver what the cluster knows to `index`: a snapshot, then every change.
    pub fn connect(&self, index: Arc<dyn Index>) {
        self.store.watch(&self.process, index);
    }

    fn session_worker(&self, client_id: &str) -> &mpsc::UnboundedSender<BoxFuture<()>> {
        let mut hasher = DefaultHasher::new();
        client_id.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % SESSION_WORKERS as u64).unwrap_or(0);
        &self.sessions[at]
    }
}

impl Coordinator for MemoryCoordinator {
    fn me(&self) -> MemberId {
        self.process.id.clone()
    }

    fn known(&self, revision: Revision) -> Option<StoreKnown> {
        let timeline = self.store.look(|space| space.timeline);
        Some(StoreKnown { timeline, revision, mark: 0 })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<Result<ClaimOutcome, Unavailable>> {
        let (done, wait) = oneshot::channel();
        let (store, process) = (self.store.clone(), self.process.clone());
        let deadline = Store::request_deadline(&process);
        let worker = self.session_worker(&claim.client_id).clone();
        let _ = worker.send(Box::pin(async move {
            let outcome = store.attempt(&process, deadline, |space| space.claim(&process.id, &claim)).await;
            let _ = done.send(outcome);
        }));
        answer(wait)
    }

    fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        let (done, wait) = oneshot::channel();
        let (store, process, client_id) = (self.store.clone(), self.process.clone(), client_id.to_owned());
        let deadline = Store::request_deadline(&process);
        let tasks = process.tasks.clone();
        tasks.spawn(Box::pin(async move {
            let found =
                store.attempt(&process, deadline, |space| (space.owner(&client_id), Vec::new())).await;
            let _ = done.send(found);
        }));
        answer(wait)
    }

    fn release(&self, client_id: &str, epoch: Epoch) -> BoxFuture<()> {
        let (done, wait) = oneshot::channel();
        let (store, process, client_id) = (self.store.clone(), self.process.clone(), client_id.to_owned());
        let worker = self.session_worker(&client_id).clone();
        let _ = worker.send(Box::pin(async move {
            store.persist(&process, |space, _| ((), space.release(&process.id, &client_id, epoch))).await;
            let _ = done.send(());
        }));
        certain(wait)
    }

    fn expiry(&self, client_id: &str, epoch: Epoch, expiry_s: u32, user: SessionUser) -> BoxFuture<()> {
        let (done, wait) = oneshot::channel();
        let (store, process, client_id) = (self.store.clone(), self.process.clone(), client_id.to_owned());
        let worker = self.session_worker(&client_id).clone();
        let _ = worker.send(Box::pin(async move {
            let me = &process.id;
            store
                .persist(&process, |space, _| {
                    ((), space.set_expiry(me, &client_id, epoch, expiry_s, user.clone()))
                })
                .await;
            let _ = done.send(());
        }));
        certain(wait)
    }

    fn routes(&self, changes: Vec<RouteChange>) -> BoxFuture<Revision> {
        let (done, wait) = oneshot::channel();
        let (store, process, routed) = (self.store.clone(), self.process.clone(), self.routed.clone());
        let _ = self.routes.send(Box::pin(async move {
            let me = &process.id;
            let revision = store.persist(&process, |space, _| space.routes(me, changes.clone())).await;
            if !routed.swap(true, Ordering::AcqRel) {
                for (of, custody) in store.custody() {
                    if custody.holder == *me && of != *me {
                        store.persist(&process, |space, _| ((), space.drop_routes(&of))).await;
                    }
                }
            }
            let _ = done.send(revision);
        }));
        certain(wait)
    }

    fn retain(&self, update: Retain) -> BoxFuture<RetainOutcome> {
        let (done, wait) = oneshot::channel();
        // One that an earlier process spooled is late as well.
        let earlier = update.id.origin != self.process.id.incarnation;
        let late = earlier || !self.store.may_write(&self.process);
        let topic = update.topic.clone();
        {
            let mut retained = self.retained.lock();
            if let Some(waiting) = retained.get_mut(&topic) {
                if update.kept {
                    for waiter in waiting.for_it.drain(..) {
                        let _ = waiter.send(RetainOutcome::Replaced);
                    }
                }
                (waiting.update, waiting.late) = (update, late);
                waiting.for_it.push(done);
                return certain(wait);
            }
            retained.insert(topic.clone(), Waiting { update, late, for_it: vec![done] });
        }
        let (store, process, retained) = (self.store.clone(), self.process.clone(), self.retained.clone());
        self.process
            .tasks
            .spawn(Box::pin(async move { write_retained(&store, &process, &retained, topic).await }));
        certain(wait)
    }

    fn evicted(&self, client_id: &str, epoch: Epoch) {
        let (store, process, client_id) = (self.store.clone(), self.process.clone(), client_id.to_owned());
        let worker = self.session_worker(&client_id).clone();
        let _ = worker.send(Box::pin(async move {
            store.persist(&process, |space, _| ((), space.evicted(&process.id, &client_id, epoch))).await;
        }));
    }

    fn read_revision(&self) -> BoxFuture<Result<Revision, Unavailable>> {
        let (done, wait) = oneshot::channel();
        let (store, process) = (self.store.clone(), self.process.clone());
        let deadline = Store::request_deadline(&process);
        let tasks = process.tasks.clone();
        tasks.spawn(Box::pin(async move {
            let _ = done.send(store.attempt(&process, deadline, |space| (space.revision, Vec::new())).await);
        }));
        answer(wait)
    }

    fn lease_until(&self) -> Time {
        self.store.lease_until(&self.process)
    }

    fn lease_since(&self) -> Time {
        self.store.lease_since(&self.process)
    }

    fn reachable(&self) -> bool {
        self.store.linked(&self.process)
    }

    fn events_after(&self, after: Revision) -> Option<(Bytes, Revision)> {
        self.store.events_after(&self.process, after)
    }

    fn apply_from_peer(&self, events: Bytes) -> BoxFuture<Result<(), String>> {
        let (store, process) = (self.store.clone(), self.process.clone());
        Box::pin(async move { store.by_peer(&process, events).await })
    }
}

/// Writes a topic's update, or the one that has replaced it by then. One update of a topic is under way at a time.
async fn write_retained(
    store: &Store,
    process: &Process,
    retained: &Mutex<BTreeMap<Arc<str>, Waiting>>,
    topic: Arc<str>,
) {
    loop {
        let (mut written, mut waiters) = (None, Vec::new());
        let outcome = store
            .persist(process, |space, late| {
                // What came while an attempt was under way is left for the next round.
                if written.is_none()
                    && let Some(waiting) = retained.lock().get_mut(&topic)
                {
                    waiters = std::mem::take(&mut waiting.for_it);
                    written = Some((waiting.update.clone(), waiting.late));
                }
                match &written {
                    Some((update, was_late)) => space.retain(update, late || *was_late),
                    None => (RetainOutcome::Overtaken, Vec::new()),
                }
            })
            .await;
        for waiter in waiters {
            let _ = waiter.send(outcome);
        }
        let mut retained = retained.lock();
        if retained.get(&topic).is_none_or(|w| w.for_it.is_empty()) {
            retained.remove(&topic);
            return;
        }
    }
}
