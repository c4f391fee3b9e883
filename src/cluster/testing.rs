//! A coordination store and a runtime for unit tests: both do what the test says, when it says so.

use crate::clock::Time;
use crate::ports::{
    BoxFuture, Claim, ClaimOutcome, Coordinator, Epoch, MemberId, Owner, Retain, RetainOutcome, Revision,
    RouteChange, Tasks, Unavailable,
};
use crate::sync::level::Level;
use crate::user::SessionUser;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

/// Runs tasks when told to, in virtual time.
#[derive(Default)]
pub struct Manual {
    tasks: Mutex<Vec<BoxFuture<()>>>,
    now: Arc<Level>,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Manual {
    /// Works until nothing is left to do at this time.
    pub fn run(&self) {
        let waker = Waker::from(self.wakes.clone());
        loop {
            let before = self.wakes.0.load(Ordering::Relaxed);
            let tasks = std::mem::take(&mut *self.tasks.lock());
            let mut left: Vec<_> = tasks
                .into_iter()
                .filter_map(|mut t| {
                    t.as_mut().poll(&mut Context::from_waker(&waker)).is_pending().then_some(t)
                })
                .collect();
            let mut tasks = self.tasks.lock();
            let spawned = !tasks.is_empty();
            left.append(&mut tasks);
            *tasks = left;
            if !spawned && self.wakes.0.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Lets time pass, then works.
    pub fn advance(&self, ms: u64) {
        self.run();
        self.now.set(self.now.get() + ms);
        self.run();
    }
}

impl Tasks for Manual {
    fn spawn(&self, task: BoxFuture<()>) {
        self.tasks.lock().push(task);
    }

    fn sleep(&self, ms: u64) -> BoxFuture<()> {
        self.now.when(self.now.get() + ms)
    }

    fn now(&self) -> Time {
        Time(self.now.get())
    }
}

/// Writes routes when told to.
#[derive(Default)]
pub struct FakeStore {
    /// What was told, a call each.
    pub told: Mutex<Vec<Vec<RouteChange>>>,
    /// How many calls are written; call `n` at revision `n`, from 1.
    pub written: Level,
    calls: AtomicU64,
    /// Since when and until when there is a lease.
    pub lease: Mutex<(Time, Time)>,
}

impl FakeStore {
    /// What was told since the last time.
    pub fn take(&self) -> Vec<Vec<RouteChange>> {
        std::mem::take(&mut *self.told.lock())
    }
}

fn away<T: Send + 'static>() -> BoxFuture<Result<T, Unavailable>> {
    Box::pin(std::future::ready(Err(Unavailable("not in this test".into()))))
}

impl Coordinator for FakeStore {
    fn me(&self) -> MemberId {
        MemberId { node: "a".into(), incarnation: 1 }
    }

    fn claim(&self, _: Claim) -> BoxFuture<Result<ClaimOutcome, Unavailable>> {
        away()
    }

    fn owner(&self, _: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        away()
    }

    fn release(&self, _: &str, _: Epoch) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }

    fn expiry(&self, _: &str, _: Epoch, _: u32, _: SessionUser) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }

    fn routes(&self, changes: Vec<RouteChange>) -> BoxFuture<Revision> {
        self.told.lock().push(changes);
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let written = self.written.when(call);
        Box::pin(async move {
            written.await;
            call
        })
    }

    fn retain(&self, _: Retain) -> BoxFuture<RetainOutcome> {
        Box::pin(std::future::pending())
    }

    fn evicted(&self, _: &str, _: Epoch) {}

    fn read_revision(&self) -> BoxFuture<Result<Revision, Unavailable>> {
        away()
    }

    fn lease_until(&self) -> Time {
        self.lease.lock().1
    }

    fn lease_since(&self) -> Time {
        self.lease.lock().0
    }

    fn reachable(&self) -> bool {
        true
    }

    fn events_after(&self, _: Revision) -> Option<(bytes::Bytes, Revision)> {
        None
    }

    fn apply_from_peer(&self, _: bytes::Bytes) -> BoxFuture<Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
