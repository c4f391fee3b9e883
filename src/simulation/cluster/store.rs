//! The coordination store of a cluster in one process: one key space, a lease and a watch for each process, and everything
//! that can go wrong between them.

mod backup;
pub use backup::Backup;

use super::coordinator::MemoryCoordinator;
use super::random::Random;
use super::space::Space;
use super::{before, give_way, unavailable};
use crate::clock::Time;
use crate::ports::{Custody, Index, IndexEvent, Member, MemberId, Revision, Tasks, Unavailable};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// How long a lease lives without a sign of its process, milliseconds.
pub(super) const LEASE_MS: u64 = 10_000;

/// How long a request may take before its sender gives up, milliseconds.
const REQUEST_MS: u64 = 2_000;

/// How often a process makes sure that it is fresh, milliseconds.
const LOOK_MS: u64 = 1_000;

/// How soon a process notices that its lease is gone, milliseconds.
const NOTICE_MS: u64 = 100;

/// A process that wants to become a member.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Its node's name.
    pub node: Arc<str>,
    /// Names its journal: incarnations of the node whose state is there are adopted.
    pub journal: u64,
}

/// Something on its way to an index.
enum Delivery {
    Snapshot(Vec<IndexEvent>, Revision),
    Events(Vec<IndexEvent>, Revision),
    /// Everything that was there at this time has been delivered.
    Fresh(Time),
}

/// A process as the store knows it.
pub(super) struct Process {
    pub(super) id: MemberId,
    pub(super) tasks: Arc<dyn Tasks>,
    journal: u64,
    alive: AtomicBool,
    index: Mutex<Option<Arc<dyn Index>>>,
    watch: Mutex<VecDeque<Delivery>>,
    /// There may be something to deliver.
    news: Notify,
    /// The store may be within reach again.
    reach: Notify,
}

/// What a node's processes have in common.
struct Seat {
    process: Arc<Process>,
    member: Member,
    /// Since when it has its lease.
    leased: Time,
    /// Since when it does not reach the store.
    cut: Option<Time>,
    /// Its index has what was written up to here.
    applied: Revision,
    /// Events up to here came by another node: they are delivered whatever holds the store's own back.
    by_peer: Revision,
    /// Events up to here are no longer in the ring that other nodes are served from.
    ring_start: Revision,
    /// Its events are held back, but for this many deliveries.
    lag: Option<usize>,
    /// So many answers to it will be lost.
    lose_answers: usize,
}

#[derive(Default)]
struct State {
    space: Space,
    seats: BTreeMap<Arc<str>, Seat>,
    /// Since when the whole store is away.
    outage: Option<Time>,
    latency_ms: u64,
}

impl State {
    fn seat(&self, process: &Process) -> Option<&Seat> {
        self.seats.get(&process.id.node).filter(|s| s.process.id == process.id && s.process.alive())
    }

    fn linked(&self, process: &Process) -> bool {
        self.outage.is_none() && self.seat(process).is_some_and(|s| s.cut.is_none())
    }

    fn may_write(&self, process: &Process) -> bool {
        self.linked(process) && self.space.registered(&process.id)
    }

    /// Sends what has changed to every watch.
    fn announce(&self, events: Vec<IndexEvent>) {
        if events.is_empty() {
            return;
        }
        for seat in self.seats.values() {
            seat.process.push(Delivery::Events(events.clone(), self.space.revision));
        }
    }

    fn wake_all(&self) {
        for seat in self.seats.values() {
            seat.process.news.notify_one();
            seat.process.reach.notify_waiters();
        }
    }
}

impl Process {
    fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    fn push(&self, delivery: Delivery) {
        // Without an index there is nobody to watch; it begins with a snapshot.
        if self.alive() && self.index.lock().is_some() {
            self.watch.lock().push_back(delivery);
            self.news.notify_one();
        }
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    random: Mutex<Random>,
    tasks: Arc<dyn Tasks>,
}

/// The coordination store of a cluster in one process. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Shared>);

impl Store {
    /// An empty store. Its own work (leases that run out) goes on in `tasks`.
    pub fn new(tasks: Arc<dyn Tasks>, seed: u64) -> Store {
        let random = Mutex::new(Random(seed));
        Store(Arc::new(Shared { state: Mutex::default(), random, tasks }))
    }

    /// A process registers: a new incarnation, with custody of itself and of those incarnations of its node whose state is
    /// in its journal. Its requests and deliveries run in `tasks`.
    ///
    /// # Errors
    /// The store is away, or a live process has the node's name.
    pub fn register(
        &self,
        who: &Registration,
        tasks: Arc<dyn Tasks>,
    ) -> Result<Arc<MemoryCoordinator>, Unavailable> {
        let mut state = self.0.state.lock();
        let seat = state.seats.get(&who.node);
        if state.outage.is_some() || seat.is_some_and(|s| s.cut.is_some()) {
            return Err(unavailable("the store is out of reach"));
        }
        if seat.is_some_and(|s| s.process.alive() && state.space.registered(&s.process.id)) {
            return Err(unavailable(&format!("another process is registered as node {}", who.node)));
        }
        let member = Member {
            id: MemberId { node: who.node.clone(), incarnation: 0 },
            peer_address: format!("{}:7948", who.node),
            mqtt_address: format!("{}:1883", who.node),
            http_address: None,
            zone: String::new(),
            version: String::new(),
            started_ms: tasks.now().as_millis(),
            draining: false,
        };
        let (id, events) = state.space.register(member.clone(), who.journal, true);
        let member = Member { id: id.clone(), ..member };
        let process = Arc::new(Process {
            id,
            tasks,
            journal: who.journal,
            alive: AtomicBool::new(true),
            index: Mutex::default(),
            watch: Mutex::default(),
            news: Notify::new(),
            reach: Notify::new(),
        });
        let seat = Seat {
            process: process.clone(),
            member,
            leased: process.tasks.now(),
            cut: None,
            applied: 0,
            by_peer: 0,
            ring_start: process.id.registered_at(),
            lag: None,
            lose_answers: 0,
        };
        state.seats.insert(who.node.clone(), seat);
        state.announce(events);
        drop(state);
        Ok(MemoryCoordinator::new(self.clone(), process))
    }

    /// A node's process dies: it does nothing more, and its lease runs out unless it is registered again before.
    pub fn crash(&self, node: &str) {
        let state = self.0.state.lock();
        let Some(seat) = state.seats.get(node) else { return };
        let process = seat.process.clone();
        process.alive.store(false, Ordering::Release);
        process.watch.lock().clear();
        let index = process.index.lock().take();
        drop(state);
        drop(index);
        self.expire_later(process, None);
    }

    /// A node that left properly: no lease is left behind.
    pub fn leave(&self, node: &str) {
        self.crash(node);
        self.expire_lease(node);
    }

    /// Cuts a node off from the store, or connects it again. After its lease has run out it registers again as the same
    /// process, if it still has custody of itself.
    pub fn cut_from_store(&self, node: &str, cut: bool) {
        let now = self.0.tasks.now();
        let mut state = self.0.state.lock();
        let Some(seat) = state.seats.get_mut(node) else { return };
        if seat.cut.is_some() == cut {
            return;
        }
        seat.cut = cut.then_some(now);
        let process = seat.process.clone();
        state.wake_all();
        drop(state);
        if cut {
            self.expire_later(process, Some(now));
        } else {
            self.return_later(process);
        }
    }

    /// The whole store goes away, or comes back. Leases do not run out meanwhile.
    pub fn outage(&self, away: bool) {
        let mut state = self.0.state.lock();
        state.outage = away.then(|| self.0.tasks.now());
        state.wake_all();
        let processes: Vec<_> = state.seats.values().map(|s| s.process.clone()).collect();
        drop(state);
        if !away {
            processes.into_iter().for_each(|p| self.return_later(p));
        }
    }

    /// Whether the store is there at all.
    pub fn answers(&self) -> bool {
        self.0.state.lock().outage.is_none()
    }

    /// Holds a node's events back, or lets all of them through again.
    pub fn lag(&self, node: &str, lag: bool) {
        self.with_seat(node, |seat| seat.lag = lag.then_some(0));
    }

    /// Lets `n` deliveries (a revision, or a sign of being fresh) of a node that lags through.
    pub fn deliver(&self, node: &str, n: usize) {
        self.with_seat(node, |seat| seat.lag = seat.lag.map(|more| more + n));
    }

    /// The next `n` requests of a node are carried out, but the answers are lost.
    pub fn lose_answers(&self, node: &str, n: usize) {
        self.with_seat(node, |seat| seat.lose_answers = n);
    }

    /// A node forgets the events so far: it cannot serve them to one that lags any more.
    pub fn forget_events(&self, node: &str) {
        self.with_seat(node, |seat| seat.ring_start = seat.applied);
    }

    /// Every step of a request takes a random time up to this, milliseconds.
    pub fn latency(&self, ms: u64) {
        self.0.state.lock().latency_ms = ms;
    }

    /// Revokes a node's lease, also under a live process, which then registers again.
    pub fn expire_lease(&self, node: &str) {
        let Some(process) = self.0.state.lock().seats.get(node).map(|s| s.process.clone()) else { return };
        self.expire(&process);
        self.return_later(process);
    }

    /// Gives up what a dead node owns; does nothing while it is a member.
    pub fn forget(&self, node: &str) {
        let mut state = self.0.state.lock();
        let events = state.space.forget(node);
        state.announce(events);
    }

    /// A session of a node that is gone expires, as the leader sees to it.
    pub fn expire_session(&self, client_id: &str) {
        let mut state = self.0.state.lock();
        let events = state.space.expire_session(client_id);
        state.announce(events);
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Space) -> T) -> T {
        look(&self.0.state.lock().space)
    }

    fn with_seat(&self, node: &str, change: impl FnOnce(&mut Seat)) {
        let mut state = self.0.state.lock();
        if let Some(seat) = state.seats.get_mut(node) {
            change(seat);
            seat.process.news.notify_one();
        }
    }

    fn expire(&self, process: &Process) {
        let mut state = self.0.state.lock();
        let events = state.space.expire(&process.id);
        state.announce(events);
    }

    /// Ends the lease of a process that is cut off since `cut`, or dead, when it is still so then.
    fn expire_later(&self, process: Arc<Process>, cut: Option<Time>) {
        let store = self.clone();
        self.0.tasks.spawn(Box::pin(async move {
            loop {
                store.0.tasks.sleep(LEASE_MS).await;
                let state = store.0.state.lock();
                let seat = state.seats.get(&process.id.node).filter(|s| s.process.id == process.id);
                let due = seat.is_some_and(|s| if cut.is_some() { s.cut == cut } else { !process.alive() });
                let away = state.outage.is_some();
                drop(state);
                match (due, away) {
                    (false, _) => return,
                    (true, true) => {}
                    (true, false) => return store.expire(&process),
                }
            }
        }));
    }

    /// Registers a process again that has noticed that its lease is gone.
    fn return_later(&self, process: Arc<Process>) {
        let store = self.clone();
        self.0.tasks.spawn(Box::pin(async move {
            store.0.tasks.sleep(NOTICE_MS).await;
            let mut state = store.0.state.lock();
            if !state.linked(&process) || state.space.registered(&process.id) {
                return;
            }
            let own = |c: &Custody| c.holder == process.id;
            if !state.space.custody.get(&process.id).is_some_and(own) {
                return;
            }
            let Some(member) = state.seat(&process).map(|s| s.member.clone()) else { return };
            let (_, events) = state.space.register(member, process.journal, false);
            if let Some(seat) = state.seats.get_mut(&process.id.node) {
                seat.leased = store.0.tasks.now();
            }
            state.announce(events);
            state.wake_all();
        }));
    }
}

/// What a process does with the store.
impl Store {
    /// Begins to deliver what there is and what comes to `index`.
    pub(super) fn watch(&self, process: &Arc<Process>, index: Arc<dyn Index>) {
        let state = self.0.state.lock();
        *process.index.lock() = Some(index);
        process.push(Delivery::Snapshot(state.space.snapshot(), state.space.revision));
        process.push(Delivery::Fresh(process.tasks.now()));
        drop(state);
        let (store, watched) = (self.clone(), process.clone());
        process.tasks.spawn(Box::pin(async move { store.deliver_all(watched).await }));
        let (store, watched) = (self.clone(), process.clone());
        process.tasks.spawn(Box::pin(async move {
            while watched.alive() {
                watched.tasks.sleep(LOOK_MS).await;
                let state = store.0.state.lock();
                if state.linked(&watched) {
                    watched.push(Delivery::Fresh(watched.tasks.now()));
                }
            }
        }));
    }

    async fn deliver_all(&self, process: Arc<Process>) {
        while process.alive() {
            let mut news = pin!(process.news.notified());
            news.as_mut().enable();
            match self.next_delivery(&process) {
                Some((index, delivery)) => {
                    let revision = match delivery {
                        Delivery::Snapshot(events, revision) => {
                            index.begin_snapshot();
                            index.apply(events, None);
                            index.end_snapshot(revision);
                            revision
                        }
                        Delivery::Events(events, revision) => {
                            index.apply(events, Some(revision));
                            revision
                        }
                        Delivery::Fresh(at) => {
                            index.fresh_at(at);
                            0
                        }
                    };
                    drop(index);
                    self.applied(&process, revision);
                    give_way().await;
                }
                None => news.await,
            }
        }
    }

    fn next_delivery(&self, process: &Process) -> Option<(Arc<dyn Index>, Delivery)> {
        let mut state = self.0.state.lock();
        let linked = state.linked(process);
        let seat = state.seats.get_mut(&process.id.node)?;
        let index = process.index.lock().clone()?;
        let by_peer = |d: &Delivery| matches!(d, Delivery::Events(_, revision) if *revision <= seat.by_peer);
        let by_peer = process.watch.lock().front().is_some_and(by_peer);
        let delivery = match &mut seat.lag {
            _ if by_peer => process.watch.lock().pop_front(),
            _ if !linked => None,
            Some(0) => None,
            Some(more) => {
                let next = process.watch.lock().pop_front();
                *more -= usize::from(next.is_some());
                next
            }
            None => process.watch.lock().pop_front(),
        };
        Some((index, delivery?))
    }

    fn applied(&self, process: &Process, revision: Revision) {
        let mut state = self.0.state.lock();
        if let Some(seat) = state.seats.get_mut(&process.id.node).filter(|s| s.process.id == process.id) {
            seat.applied = seat.applied.max(revision);
            process.reach.notify_waiters();
        }
    }

    /// What a process can tell another of the events after a revision: which they are, and how far they go. The events
    /// themselves are in the other's queue already.
    pub(super) fn events_after(&self, process: &Process, after: Revision) -> Option<(Bytes, Revision)> {
        let state = self.0.state.lock();
        let seat = state.seat(process).filter(|s| after >= s.ring_start)?;
        let range = [after.to_be_bytes(), seat.applied.to_be_bytes()].concat();
        Some((range.into(), seat.applied))
    }

    /// Delivers what [`Store::events_after`] named; completes when that is done.
    pub(super) async fn by_peer(&self, process: &Process, events: Bytes) -> Result<(), String> {
        let numbers: Vec<Revision> =
            events.chunks(8).filter_map(|n| Some(u64::from_be_bytes(n.try_into().ok()?))).collect();
        let [after, to] = numbers[..] else { return Err("these are no events".to_owned()) };
        {
            let mut state = self.0.state.lock();
            let seat = state.seats.get_mut(&process.id.node).ok_or("the process has ended")?;
            if after > seat.applied {
                return Err(format!(
                    "they begin after revision {after}, this index ends at {}",
                    seat.applied
                ));
            }
            seat.by_peer = seat.by_peer.max(to);
            process.news.notify_one();
        }
        loop {
            let mut reach = pin!(process.reach.notified());
            reach.as_mut().enable();
            if self.0.state.lock().seat(process).is_none_or(|s| s.applied >= to) {
                return Ok(());
            }
            reach.await;
        }
    }

    /// When a request begun now is given up.
    pub(super) fn request_deadline(process: &Process) -> Time {
        process.tasks.now().plus_ms(REQUEST_MS)
    }

    pub(super) fn linked(&self, process: &Process) -> bool {
        self.0.state.lock().linked(process)
    }

    pub(super) fn may_write(&self, process: &Process) -> bool {
        self.0.state.lock().may_write(process)
    }

    /// Until when the lease of a process is certainly alive.
    pub(super) fn lease_until(&self, process: &Process) -> Time {
        let state = self.0.state.lock();
        let Some(seat) = state.seat(process).filter(|_| state.space.registered(&process.id)) else {
            return Time(0);
        };
        let since = [seat.cut, state.outage].into_iter().flatten().min();
        since.unwrap_or_else(|| process.tasks.now()).plus_ms(LEASE_MS)
    }

    /// Since when a process has its lease.
    pub(super) fn lease_since(&self, process: &Process) -> Time {
        self.0.state.lock().seat(process).map_or(Time(u64::MAX), |seat| seat.leased)
    }

    async fn pause(&self, process: &Process) {
        let most = self.0.state.lock().latency_ms;
        if most > 0 {
            let ms = self.0.random.lock().below(most + 1);
            process.tasks.sleep(ms).await;
        }
    }

    async fn within_reach(&self, process: &Process) {
        loop {
            let mut reach = pin!(process.reach.notified());
            reach.as_mut().enable();
            if self.may_write(process) {
                return;
            }
            reach.await;
        }
    }

    /// Carries out a transaction, or reads, once. `None` = no answer; it may have been carried out all the same.
    async fn once<T>(
        &self,
        process: &Process,
        work: impl FnOnce(&mut Space) -> (T, Vec<IndexEvent>),
    ) -> Option<T> {
        self.pause(process).await;
        let (done, lost) = {
            let mut state = self.0.state.lock();
            if !state.may_write(process) {
                return None;
            }
            let (done, events) = work(&mut state.space);
            state.announce(events);
            let seat = state.seats.get_mut(&process.id.node)?;
            let lost = seat.lose_answers > 0;
            seat.lose_answers = seat.lose_answers.saturating_sub(1);
            (done, lost)
        };
        self.pause(process).await;
        (!lost && self.linked(process)).then_some(done)
    }

    /// One attempt, given up at `deadline`.
    pub(super) async fn attempt<T>(
        &self,
        process: &Process,
        deadline: Time,
        work: impl FnOnce(&mut Space) -> (T, Vec<IndexEvent>),
    ) -> Result<T, Unavailable> {
        let left = |p: &Process| p.tasks.sleep(deadline.since_ms(p.tasks.now()));
        let reached = before(Box::pin(self.within_reach(process)), left(process)).await;
        if reached.is_some()
            && let Some(done) = self.once(process, work).await
        {
            return Ok(done);
        }
        left(process).await;
        Err(unavailable("the store did not answer in time"))
    }

    /// As often as it takes.
    pub(super) async fn persist<T>(
        &self,
        process: &Process,
        mut work: impl FnMut(&mut Space, bool) -> (T, Vec<IndexEvent>),
    ) -> T {
        let mut late = false;
        loop {
            late |= !self.may_write(process);
            self.within_reach(process).await;
            if let Some(done) = self.once(process, |space| work(space, late)).await {
                return done;
            }
            late = true;
            give_way().await;
        }
    }
}
