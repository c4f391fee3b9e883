//! Threads that check passwords, beside those that serve clients. A bounded number of checks runs at a time, a bounded number waits, and
//! addresses have their turns one after another: whoever sends many wrong passwords waits behind its own.

use crate::hashing::HashMap;
use crate::host::host;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

/// By how much the system prefers the threads that serve clients to those that check passwords.
const NICE: i32 = 5;

/// One check.
type Job = Box<dyn FnOnce() + Send>;

/// How much may run and wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Checks at a time.
    pub parallel: usize,
    /// Checks that wait.
    pub queue: usize,
    /// Checks of one address that wait.
    pub queue_per_address: usize,
}

/// Too much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Of all addresses together.
    All,
    /// Of this address.
    Address,
}

#[derive(Default)]
struct State {
    waiting: HashMap<IpAddr, VecDeque<Job>>,
    /// Addresses with something that waits, each once, in the order of their turns.
    turns: VecDeque<IpAddr>,
    waiting_total: usize,
    closed: bool,
}

struct Shared {
    limits: PoolLimits,
    state: Mutex<State>,
    work: Condvar,
}

/// Threads that check passwords, beside those that serve clients. Its threads end when it is dropped.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(limits: PoolLimits) -> std::io::Result<Pool> {
        let pool = Pool::without_threads(limits);
        for n in 0..limits.parallel.max(1) {
            let shared = pool.0.clone();
            std::thread::Builder::new().name(format!("password-{n}")).spawn(move || {
                // Of this thread alone; without it the checks only have their full share.
                let _ = rustix::process::nice(NICE);
                while let Some(job) = shared.next() {
                    // A check that panics costs its client the connection, and nobody else anything.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(pool)
    }

    fn without_threads(limits: PoolLimits) -> Pool {
        Pool(Arc::new(Shared { limits, state: Mutex::default(), work: Condvar::new() }))
    }

    /// Has `job` done when it is its turn.
    ///
    /// # Errors
    /// If too many wait.
    pub fn submit(&self, from: IpAddr, job: Job) -> Result<(), Busy> {
        let from = host(from);
        let mut state = self.0.state.lock();
        let State { waiting, turns, waiting_total, .. } = &mut *state;
        if *waiting_total >= self.0.limits.queue {
            return Err(Busy::All);
        }
        let mine = waiting.entry(from).or_default();
        if mine.len() >= self.0.limits.queue_per_address {
            return Err(Busy::Address);
        }
        if mine.is_empty() {
            turns.push_back(from);
        }
        mine.push_back(job);
        *waiting_total += 1;
        self.0.work.notify_one();
        Ok(())
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting_total
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        let from = self.turns.pop_front()?;
        let mine = self.waiting.get_mut(&from)?;
        let job = mine.pop_front();
        if mine.is_empty() {
            self.waiting.remove(&from);
        } else {
            self.turns.push_back(from);
        }
        self.waiting_total -= usize::from(job.is_some());
        job
    }
}

impl Shared {
    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.take() {
                return Some(job);
            }
            self.work.wait(&mut state);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        // Whoever waits for these learns that they are not done.
        (state.waiting, state.turns, state.waiting_total) = Default::default();
        drop(state);
        self.0.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn limits(queue: usize, queue_per_address: usize) -> PoolLimits {
        PoolLimits { parallel: 1, queue, queue_per_address }
    }

    #[test]
    fn addresses_have_their_turns() {
        let pool = Pool::without_threads(limits(100, 100));
        let (done, seen) = mpsc::channel();
        let submit = |from: &str, n: u32| {
            let (done, from) = (done.clone(), from.to_owned());
            let ip = from.parse().unwrap();
            pool.submit(ip, Box::new(move || done.send((from, n)).unwrap())).unwrap();
        };
        (0..50).for_each(|n| submit("192.0.2.1", n));
        submit("192.0.2.2", 0);
        (0..2).for_each(|n| submit("2001:db8::1", n));
        submit("2001:db8::2", 2);
        for _ in 0..54 {
            pool.0.state.lock().take().unwrap()();
        }
        assert!(pool.0.state.lock().take().is_none());
        let order: Vec<(String, u32)> = seen.try_iter().collect();
        assert_eq!(order.iter().position(|(from, _)| from == "192.0.2.2"), Some(1));
        let sixes: Vec<_> = order.iter().enumerate().filter(|(_, (from, _))| from.contains("::")).collect();
        assert_eq!(sixes.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [2, 4, 6], "one network, one turn");
        let mine: Vec<u32> = order.iter().filter(|(f, _)| f == "192.0.2.1").map(|(_, n)| *n).collect();
        assert_eq!(mine, (0..50).collect::<Vec<_>>(), "in order");
    }

    #[test]
    fn what_waits_is_bounded() {
        let pool = Pool::without_threads(limits(5, 3));
        let submit = |from: &str| pool.submit(from.parse().unwrap(), Box::new(|| ()));
        for _ in 0..3 {
            assert_eq!(submit("192.0.2.1"), Ok(()));
        }
        assert_eq!(submit("192.0.2.1"), Err(Busy::Address));
        assert_eq!(submit("::ffff:192.0.2.1"), Err(Busy::Address));
        assert_eq!((submit("192.0.2.2"), submit("192.0.2.3")), (Ok(()), Ok(())));
        assert_eq!(submit("192.0.2.4"), Err(Busy::All));
        assert_eq!(pool.waiting(), 5);
    }

    #[test]
    fn threads_do_the_work_and_survive_a_panic() {
        let pool = Pool::start(limits(10, 10)).unwrap();
        let from = "192.0.2.1".parse().unwrap();
        #[allow(clippy::panic)]
        pool.submit(from, Box::new(|| panic!("as a test wants it"))).unwrap();
        let (done, seen) = mpsc::channel();
        pool.submit(from, Box::new(move || done.send(7).unwrap())).unwrap();
        assert_eq!(seen.recv(), Ok(7));
    }
}
