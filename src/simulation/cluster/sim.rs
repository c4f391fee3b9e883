//! Tasks in virtual time: one thread, a clock of its own, and an order of work that a seed decides.

use super::random::Random;
use crate::clock::Time;
use crate::ports::{BoxFuture, Tasks};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

/// Polls within one moment after which something turns in circles.
const POLLS_MAX: u64 = 20_000_000;

type TaskNo = u64;
type ProcessNo = u64;

struct Task {
    process: ProcessNo,
    /// `None` while it is polled.
    work: Option<BoxFuture<()>>,
    /// Among those that are ready.
    ready: bool,
}

#[derive(Default)]
struct State {
    now: Time,
    random: Option<Random>,
    next: u64,
    tasks: BTreeMap<TaskNo, Task>,
    ready: Vec<TaskNo>,
    timers: BTreeMap<(Time, u64), Waker>,
    dead: BTreeSet<ProcessNo>,
    next_process: ProcessNo,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn make_ready(&mut self, task: TaskNo) {
        let Some(waiting) = self.tasks.get_mut(&task) else { return };
        if !std::mem::replace(&mut waiting.ready, true) {
            self.ready.push(task);
        }
    }

    /// The next task to poll and its work.
    fn draw(&mut self) -> Option<(TaskNo, BoxFuture<()>)> {
        while !self.ready.is_empty() {
            let at = self.random.as_mut().map_or(0, |r| r.index(self.ready.len()));
            let no = self.ready.swap_remove(at);
            let Some(task) = self.tasks.get_mut(&no) else { continue };
            task.ready = false;
            if let Some(work) = task.work.take() {
                return Some((no, work));
            }
        }
        None
    }
}

#[derive(Default)]
struct Shared(Mutex<State>);

/// Tasks in virtual time: one thread, a clock of its own, and an order of work that a seed decides. What it hands out as [`Tasks`] is a
/// [`SimProcess`], whose work can be ended all at once.
#[derive(Clone)]
pub struct SimTasks(Arc<Shared>);

struct TaskWaker {
    task: TaskNo,
    shared: Weak<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.0.lock().make_ready(self.task);
        }
    }
}

impl SimTasks {
    /// Nothing to do yet; it is `now`.
    pub fn new(seed: u64, now: Time) -> SimTasks {
        let state = State { now, random: Some(Random(seed)), ..State::default() };
        SimTasks(Arc::new(Shared(Mutex::new(state))))
    }

    /// Tasks that die together.
    pub fn process(&self) -> Arc<SimProcess> {
        let mut state = self.0.0.lock();
        state.next_process += 1;
        Arc::new(SimProcess { no: state.next_process, shared: Arc::downgrade(&self.0) })
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.0.0.lock().now
    }

    /// Works until nothing is left to do at this time. Returns false if there is no end to it.
    pub fn run_until_idle(&self) -> bool {
        for _ in 0..POLLS_MAX {
            let Some((no, mut work)) = self.0.0.lock().draw() else { return true };
            let waker = Waker::from(Arc::new(TaskWaker { task: no, shared: Arc::downgrade(&self.0) }));
            let done = work.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut state = self.0.0.lock();
            let gone = match state.tasks.get_mut(&no) {
                Some(task) if !done => {
                    task.work = Some(work);
                    None
                }
                _ => state.tasks.remove(&no).and_then(|t| t.work).or(Some(work)),
            };
            // Whatever a task held may have work of its own to do when it goes.
            drop(state);
            drop(gone);
        }
        tracing::error!(polls = POLLS_MAX, "the simulation does not come to rest");
        false
    }

    /// Lets time pass, stopping wherever something is due. Returns false if there is no end to the work of a moment.
    pub fn advance(&self, ms: u64) -> bool {
        let end = self.now().plus_ms(ms);
        loop {
            if !self.run_until_idle() {
                return false;
            }
            let due = {
                let mut state = self.0.0.lock();
                match state.timers.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= end) {
                    Some(key) => {
                        state.now = state.now.max(key.0);
                        state.timers.remove(&key)
                    }
                    None => {
                        state.now = end;
                        None
                    }
                }
            };
            match due {
                Some(waker) => waker.wake(),
                None => return self.run_until_idle(),
            }
        }
    }

    /// What `work` comes to, if it does within `ms`; time passes only as far as it has to.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        ms: u64,
    ) -> Option<T> {
        let end = self.now().plus_ms(ms);
        let result = Arc::new(Mutex::new(None));
        let put = result.clone();
        self.process().spawn(Box::pin(async move {
            let done = work.await;
            *put.lock() = Some(done);
        }));
        loop {
            self.run_until_idle();
            if let Some(done) = result.lock().take() {
                return Some(done);
            }
            let next = self.0.0.lock().timers.first_key_value().map(|((at, _), _)| *at)?;
            if next > end {
                self.advance(self.now().until(end).as_millis().try_into().unwrap_or(0));
                return result.lock().take();
            }
            self.advance(next.since_ms(self.now()));
        }
    }

    /// Lets time pass until `holds`, at most `ms`; whether it does.
    pub fn until(&self, ms: u64, mut holds: impl FnMut() -> bool) -> bool {
        let end = self.now().plus_ms(ms);
        loop {
            self.run_until_idle();
            if holds() {
                return true;
            }
            let next = self.0.0.lock().timers.first_key_value().map(|((at, _), _)| *at);
            match next.filter(|at| *at <= end) {
                Some(at) => self.advance(at.since_ms(self.now())),
                None => {
                    self.advance(end.since_ms(self.now()));
                    return holds();
                }
            };
        }
    }
}

/// The tasks of one process of a simulation.
pub struct SimProcess {
    no: ProcessNo,
    shared: Weak<Shared>,
}

impl SimProcess {
    /// Ends all its tasks, and begins none any more.
    pub fn kill(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.0.lock();
        state.dead.insert(self.no);
        let theirs: Vec<TaskNo> =
            state.tasks.iter().filter(|(_, t)| t.process == self.no).map(|(no, _)| *no).collect();
        let gone: Vec<Option<Task>> = theirs.iter().map(|no| state.tasks.remove(no)).collect();
        drop(state);
        drop(gone);
    }
}

impl Tasks for SimProcess {
    fn spawn(&self, task: BoxFuture<()>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.0.lock();
        if state.dead.contains(&self.no) {
            drop(state);
            return;
        }
        let no = state.number();
        state.tasks.insert(no, Task { process: self.no, work: Some(task), ready: false });
        state.make_ready(no);
    }

    fn sleep(&self, ms: u64) -> BoxFuture<()> {
        let shared = self.shared.clone();
        let until = self.now().plus_ms(ms);
        let mut armed: Option<u64> = None;
        Box::pin(poll_fn(move |cx| {
            let Some(shared) = shared.upgrade() else { return Poll::Pending };
            let mut state = shared.0.lock();
            if state.now >= until {
                return Poll::Ready(());
            }
            let no = *armed.get_or_insert_with(|| state.number());
            state.timers.insert((until, no), cx.waker().clone());
            Poll::Pending
        }))
    }

    fn now(&self) -> Time {
        self.shared.upgrade().map_or(Time(0), |s| s.0.lock().now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::cluster::give_way;

    fn trace(seed: u64) -> Vec<(u64, u64)> {
        let sim = SimTasks::new(seed, Time(1000));
        let process = sim.process();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for no in 0..5 {
            let (seen, tasks) = (seen.clone(), process.clone());
            process.spawn(Box::pin(async move {
                for _ in 0..3 {
                    give_way().await;
                    seen.lock().push((no, tasks.now().0));
                }
                tasks.sleep(10 * no).await;
                seen.lock().push((no, tasks.now().0));
            }));
        }
        assert!(sim.advance(25));
        assert_eq!(sim.now(), Time(1025));
        std::mem::take(&mut *seen.lock())
    }

    #[test]
    fn a_seed_decides_the_order_and_time_stands_still_in_between() {
        assert_eq!(trace(7), trace(7));
        assert!((0..20).any(|seed| trace(seed) != trace(7)), "a seed decides nothing");
        let later: Vec<_> = trace(3).into_iter().filter(|(_, at)| *at > 1000).collect();
        assert_eq!(later, [(1, 1010), (2, 1020)]);
    }

    #[test]
    fn the_work_of_a_dead_process_is_dropped() {
        let sim = SimTasks::new(1, Time(0));
        let (process, other) = (sim.process(), sim.process());
        let held = Arc::new(());
        for p in [&process, &other] {
            let (held, tasks) = (held.clone(), p.clone());
            p.spawn(Box::pin(async move {
                tasks.sleep(100).await;
                drop(held);
            }));
        }
        sim.run_until_idle();
        process.kill();
        assert_eq!(Arc::strong_count(&held), 2);
        process.spawn(Box::pin(async { panic!("it is dead") }));
        sim.advance(200);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn waiting_lets_pass_only_as_much_time_as_it_takes() {
        let sim = SimTasks::new(1, Time(0));
        let process = sim.process();
        let sleep = process.sleep(30);
        assert_eq!(sim.wait(sleep, 100), Some(()));
        assert_eq!(sim.now(), Time(30));
        assert_eq!(sim.wait(process.sleep(101), 100), None);
        assert_eq!(sim.now(), Time(130));
        assert_eq!(sim.wait(std::future::pending::<()>(), 1), None);
        let at = process.sleep(50);
        let done = Arc::new(Mutex::new(false));
        let set = done.clone();
        process.spawn(Box::pin(async move {
            at.await;
            *set.lock() = true;
        }));
        let before = sim.now();
        assert!(sim.until(1000, || *done.lock()) && sim.now() == before.plus_ms(50));
    }
}
