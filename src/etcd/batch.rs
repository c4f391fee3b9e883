//! Packs independent compare-and-swap operations into few proposals: each is a nested transaction with its own compares and
//! its own outcome; the outer transaction compares this node's own member key, so that who has lost its lease writes nothing.
//!
//! Batches form by themselves: while a proposal is on its way the next one gathers. More than one is on its way only when
//! there are enough operations to fill it, or when the last one is slow. No key is twice in a proposal, nor in two at once.
//!
//! etcd (all versions up to 3.6) does not count what nested transactions write towards its quota: it would never raise its
//! NOSPACE alarm for them, nor heed it. So a proposal that adds to the database names, for the case that the fence fails, one
//! more put, which is counted; it could not be carried out, since its key is not there.

use super::client::Etcd;
use super::error::EtcdError;
use super::trouble::Trouble;
use crate::backoff::Backoff;
use crate::clock::{self, Time};
use crate::hashing::HashSet;
use crate::names::shown;
use crate::telemetry::Metrics;
use etcd_client::{Compare, PutOptions, Txn, TxnOp, TxnOpResponse};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Nested transactions in a proposal: etcd allows 128 operations, those inside one nested transaction counted.
pub const NESTED_MAX: usize = 120;

/// Bytes of keys and values in a proposal of several operations; etcd refuses requests above 1.5 MiB.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Bytes of keys and values of one operation, 1.4 MiB: one above [`REQUEST_BYTES_MAX`] goes by itself.
pub const LONE_BYTES_MAX: usize = (7 << 20) / 5;

/// Proposals on their way at once.
const FLYING_MAX: usize = 8;

/// One proposal in so many begins with what lets others go first, so that it is not kept out for ever.
const BULK_TURN: u64 = 4;

/// Operations looked at to fill one proposal.
const SCAN_MAX: usize = 4 * NESTED_MAX;

/// A proposal on its way for so long does not hold up the next one.
const SLOW_MS: u64 = 20;

/// The first pause after a failure; doubled until [`PAUSE_MAX_MS`].
const PAUSE_MIN_MS: u64 = 50;

/// Between two looks for what has waited too long, milliseconds.
const SWEEP_MS: u64 = 250;

/// The longest pause between attempts, milliseconds.
const PAUSE_MAX_MS: u64 = 1000;

/// Compares this node's member key as it is now; `None` while it has none.
pub type FenceNow = Arc<dyn Fn() -> Option<Compare> + Send + Sync>;

/// What a nested transaction came to.
pub struct Nested {
    /// Whether its compares held.
    pub succeeded: bool,
    /// The answers of the operations that were carried out.
    pub responses: Vec<TxnOpResponse>,
    /// The revision of the proposal.
    pub revision: u64,
    /// An earlier attempt has no known outcome: this may have found what that one wrote.
    pub again: bool,
}

/// Why a nested transaction has no outcome.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Its time is up, or it was never tried; says why. It may have been carried out all the same.
    Unavailable(Arc<str>),
    /// etcd refuses it, whatever is tried.
    Refused(Arc<str>),
}

/// Takes the outcome.
pub type Done = Box<dyn FnOnce(Result<Nested, Failure>) + Send>;

/// One independent operation.
pub struct Op {
    /// The keys it may write.
    pub keys: Vec<String>,
    /// At most 8 compares and as many operations. Carrying it out twice must do no harm.
    pub txn: Txn,
    /// Bytes of its keys and values.
    pub bytes: usize,
    /// Until when it is tried; `None` = until etcd answers.
    pub until: Option<Time>,
    /// Others go first: there may be very many of these.
    pub bulk: bool,
    /// It may add to the database: not while that is full.
    pub grows: bool,
    /// Takes the outcome.
    pub done: Done,
}

struct Queued {
    op: Op,
    /// It was sent and nobody knows what became of it.
    again: bool,
    /// Its batch was refused: goes by itself, so that the others do not suffer.
    alone: bool,
}

/// The pauses after failures.
struct Retries(Backoff);

impl Default for Retries {
    fn default() -> Retries {
        Retries(Backoff::new(Duration::from_millis(PAUSE_MIN_MS), Duration::from_millis(PAUSE_MAX_MS)))
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// What lets others go first.
    bulk: VecDeque<Queued>,
    /// Proposals made.
    proposals: u64,
    /// Failed; back into the queue at `resume_at`.
    retrying: Vec<Queued>,
    resume_at: Time,
    retries: Retries,
    /// When to look next for what has waited too long.
    sweep_at: Time,
    busy: HashSet<String>,
    flying: usize,
    /// The database was full when something was written last.
    full: bool,
    trouble: Trouble,
    last_start: Time,
}

/// Packs independent compare-and-swap operations into few proposals to etcd. Dropping it ends all that waits.
pub struct Proposer {
    shared: Arc<Shared>,
    driver: tokio::task::JoinHandle<()>,
}

struct Shared {
    etcd: Etcd,
    fence: FenceNow,
    /// A key that nobody ever writes.
    nothing: String,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Notify,
}

enum Step {
    Send(Vec<Queued>),
    Wait(Option<Duration>),
}

impl Proposer {
    /// Starts it. Needs a runtime.
    pub fn new(etcd: Etcd, fence: FenceNow, nothing: String, metrics: Arc<Metrics>) -> Proposer {
        let (state, wake) = (Mutex::default(), Notify::new());
        let shared = Arc::new(Shared { etcd, fence, nothing, metrics, state, wake });
        let driver = tokio::spawn(drive(shared.clone()));
        Proposer { shared, driver }
    }

    /// Queues an operation.
    pub fn submit(&self, op: Op) {
        let bulk = op.bulk;
        self.shared.state.lock().queue_of(bulk).push_back(Queued { op, again: false, alone: false });
        self.shared.wake.notify_one();
    }

    /// Whether something should be written to see whether etcd's database has room.
    pub fn is_room_unknown(&self) -> bool {
        self.shared.etcd.is_room_unknown()
    }

    /// Operations that wait or are on their way.
    pub fn waiting(&self) -> usize {
        let state = self.shared.state.lock();
        state.queue.len() + state.bulk.len() + state.retrying.len() + state.busy.len()
    }

    /// The same without those that let others go first, unless they are on their way.
    pub fn waiting_first(&self) -> usize {
        let state = self.shared.state.lock();
        let retrying = state.retrying.iter().filter(|queued| !queued.op.bulk).count();
        state.queue.len() + retrying + state.busy.len()
    }
}

impl Drop for Proposer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn drive(shared: Arc<Shared>) {
    loop {
        let now = clock::now();
        let (step, late) = {
            let mut state = shared.state.lock();
            let late = state.expired(now);
            state.full = shared.etcd.full();
            (state.step(now), late)
        };
        for queued in late {
            (queued.op.done)(Err(Failure::Unavailable("etcd did not answer in time".into())));
        }
        match step {
            Step::Send(batch) => {
                tokio::spawn(fly(shared.clone(), batch));
            }
            Step::Wait(None) => shared.wake.notified().await,
            Step::Wait(Some(pause)) => {
                let _ = tokio::time::timeout(pause, shared.wake.notified()).await;
            }
        }
    }
}

impl State {
    /// What to do now.
    fn step(&mut self, now: Time) -> Step {
        if !self.retrying.is_empty() && now >= self.resume_at {
            let retrying = std::mem::take(&mut self.retrying);
            retrying.into_iter().rev().for_each(|queued| self.queue_of(queued.op.bulk).push_front(queued));
        }
        let slow = now.since_ms(self.last_start) >= SLOW_MS;
        let full = self.queue.len() + self.bulk.len() >= NESTED_MAX;
        if self.flying == 0 || (self.flying < FLYING_MAX && (full || slow)) {
            let batch = self.gather();
            if !batch.is_empty() {
                self.flying += 1;
                self.last_start = now;
                return Step::Send(batch);
            }
        }
        Step::Wait(self.alarm(now))
    }

    /// When to look again if nothing happens.
    fn alarm(&self, now: Time) -> Option<Duration> {
        let queued = !self.queue.is_empty() || !self.bulk.is_empty();
        let slow =
            (queued && self.flying > 0 && self.flying < FLYING_MAX).then(|| self.last_start.plus_ms(SLOW_MS));
        let resume = (!self.retrying.is_empty()).then_some(self.resume_at);
        let late = |queue: &VecDeque<Queued>| queue.front()?.op.until.map(|until| until.max(self.sweep_at));
        let next = [slow, resume, late(&self.queue), late(&self.bulk)].into_iter().flatten().min()?;
        // A queue that is blocked by keys on their way is woken by their end.
        Some(now.until(next).max(Duration::from_millis(if next <= now { SLOW_MS } else { 1 })))
    }

    fn queue_of(&mut self, bulk: bool) -> &mut VecDeque<Queued> {
        if bulk { &mut self.bulk } else { &mut self.queue }
    }

    /// Takes as many operations as fit into one proposal. The order of operations on one key is kept.
    fn gather(&mut self) -> Vec<Queued> {
        self.proposals += 1;
        if !self.full {
            return self.gather_such(|_| true);
        }
        // A full database takes no proposal with anything that grows in it: what makes room goes by itself.
        let shrinking = self.gather_such(|op| !op.grows);
        if shrinking.is_empty() { self.gather_such(|op| op.grows) } else { shrinking }
    }

    fn gather_such(&mut self, wanted: fn(&Op) -> bool) -> Vec<Queued> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let bulk_first = self.proposals.is_multiple_of(BULK_TURN);
        for bulk in [bulk_first, !bulk_first] {
            self.gather_from(bulk, wanted, &mut batch, &mut bytes);
        }
        batch
    }

    fn gather_from(
        &mut self,
        bulk: bool,
        wanted: fn(&Op) -> bool,
        batch: &mut Vec<Queued>,
        bytes: &mut usize,
    ) {
        let mut kept = VecDeque::new();
        let mut blocked: HashSet<String> = HashSet::default();
        let mut scanned = 0;
        while batch.len() < NESTED_MAX
            && batch.first().is_none_or(|queued| !queued.alone)
            && scanned < SCAN_MAX
            && let Some(queued) = self.queue_of(bulk).pop_front()
        {
            scanned += 1;
            let fits = batch.is_empty() || (*bytes + queued.op.bytes <= REQUEST_BYTES_MAX && !queued.alone);
            let free = |key: &String| !self.busy.contains(key) && !blocked.contains(key);
            if !fits || !wanted(&queued.op) || !queued.op.keys.iter().all(free) {
                blocked.extend(queued.op.keys.iter().cloned());
                kept.push_back(queued);
                continue;
            }
            *bytes += queued.op.bytes;
            self.busy.extend(queued.op.keys.iter().cloned());
            batch.push(queued);
        }
        kept.into_iter().rev().for_each(|queued| self.queue_of(bulk).push_front(queued));
    }

    /// Takes out what has waited too long.
    fn expired(&mut self, now: Time) -> Vec<Queued> {
        let late = |queued: &Queued| queued.op.until.is_some_and(|until| until <= now);
        let mut out: Vec<Queued> = self.retrying.extract_if(.., |queued| late(queued)).collect();
        if now >= self.sweep_at {
            self.sweep_at = now.plus_ms(SWEEP_MS);
            for queue in [&mut self.queue, &mut self.bulk] {
                let (over, kept): (VecDeque<_>, VecDeque<_>) =
                    std::mem::take(queue).into_iter().partition(late);
                *queue = kept;
                out.extend(over);
            }
        }
        out
    }

    fn landed(&mut self, batch: &[Queued]) {
        self.flying -= 1;
        for key in batch.iter().flat_map(|queued| &queued.op.keys) {
            self.busy.remove(key);
        }
    }

    fn retry_later(&mut self, batch: Vec<Queued>, now: Time) {
        self.resume_at = now.plus_ms(self.retries.0.pause().as_millis() as u64);
        self.retrying.extend(batch);
    }
}

/// Whether etcd says that the request itself is at fault.
fn is_refusal(error: &EtcdError) -> bool {
    let EtcdError::Refused { what, .. } = error else { return false };
    ["too large", "duplicate key", "too many operations", "key is not provided", "larger than max"]
        .iter()
        .any(|text| what.contains(text))
}

/// A put that cannot be carried out: only what it would cost matters.
fn counted(nothing: &str) -> TxnOp {
    TxnOp::put(nothing, "", Some(PutOptions::new().with_ignore_value()))
}

/// Whether etcd says that it came to [`counted`]: the fence has failed.
fn is_not_there(error: &EtcdError) -> bool {
    matches!(error, EtcdError::Refused { what, .. } if what.contains("key not found"))
}

async fn fly(shared: Arc<Shared>, mut batch: Vec<Queued>) {
    let Some(fence) = (shared.fence)() else {
        return shared.failed(batch, None);
    };
    let nested: Vec<TxnOp> = batch.iter().map(|queued| TxnOp::txn(queued.op.txn.clone())).collect();
    shared.metrics.etcd_proposals.inc();
    shared.metrics.etcd_proposal_changes.record(batch.len() as f64);
    let grows = batch.iter().any(|queued| queued.op.grows);
    let mut txn = Txn::new().when([fence]).and_then(nested);
    if grows {
        txn = txn.or_else([counted(&shared.nothing)]);
    }
    match shared.etcd.txn(txn).await {
        Ok(response) if response.succeeded() => {
            if grows {
                shared.etcd.has_room();
            }
            let revision = response.header().map_or(0, |h| h.revision()) as u64;
            shared.succeeded(batch, response.op_responses(), revision);
        }
        // The member key is another: nothing was written.
        Ok(_) => shared.failed(batch, None),
        Err(error) if is_not_there(&error) => shared.failed(batch, None),
        Err(error) => {
            for queued in &mut batch {
                queued.again = true;
            }
            shared.failed(batch, Some(error));
        }
    }
}

impl Shared {
    fn succeeded(&self, batch: Vec<Queued>, responses: Vec<TxnOpResponse>, revision: u64) {
        let over = {
            let mut state = self.state.lock();
            state.landed(&batch);
            state.retries.0.reset();
            state.resume_at = Time::default();
            state.trouble.over(clock::now())
        };
        self.wake.notify_one();
        if let Some(ms) = over {
            tracing::info!(ms, "etcd carries out proposals again");
        }
        let mut responses = responses.into_iter();
        for Queued { op, again, .. } in batch {
            let outcome = match responses.next() {
                Some(TxnOpResponse::Txn(txn)) => {
                    let (succeeded, responses) = (txn.succeeded(), txn.op_responses());
                    Ok(Nested { succeeded, responses, revision, again })
                }
                _ => Err(Failure::Refused("etcd left out an answer".into())),
            };
            (op.done)(outcome);
        }
    }

    /// No outcome: because of `error`, or (`None`) because this node has no lease now.
    fn failed(&self, mut batch: Vec<Queued>, error: Option<EtcdError>) {
        let now = clock::now();
        let mut lost = Vec::new();
        let news;
        {
            let mut state = self.state.lock();
            state.landed(&batch);
            news = error.as_ref().is_some_and(|error| state.trouble.is_news(error, now));
            match &error {
                Some(error) if is_refusal(error) && batch.len() > 1 => {
                    batch.iter_mut().for_each(|queued| queued.alone = true);
                    batch.into_iter().for_each(|queued| state.queue_of(queued.op.bulk).push_back(queued));
                }
                Some(error) if is_refusal(error) => lost = batch,
                _ => state.retry_later(batch, now),
            }
        }
        self.wake.notify_one();
        if let Some(error) = error {
            self.metrics.etcd_errors.inc();
            if news {
                tracing::warn!(%error, "a proposal to etcd has no outcome: it is tried until it has");
            }
            let why: Arc<str> = error.to_string().into();
            for queued in lost {
                let key = queued.op.keys.first().map_or("", String::as_str);
                tracing::error!(key = %shown(key), %error, "etcd refuses an operation; it is given up");
                (queued.op.done)(Err(Failure::Refused(why.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(keys: &[&str], bytes: usize) -> Queued {
        let keys = keys.iter().map(|&k| k.to_owned()).collect();
        let done = Box::new(|_| ());
        let op = Op { keys, txn: Txn::new(), bytes, until: None, bulk: false, grows: true, done };
        Queued { op, again: false, alone: false }
    }

    #[test]
    fn what_there_may_be_very_much_of_lets_others_go_first_but_gets_its_turn() {
        let mut state = State::default();
        let fill = |state: &mut State, bulk: bool, count: usize| {
            for i in 0..count {
                let mut op = op(&[&format!("{bulk}{i}")], 1);
                op.op.bulk = bulk;
                state.queue_of(bulk).push_back(op);
            }
        };
        fill(&mut state, true, 10 * NESTED_MAX);
        fill(&mut state, false, 10);
        let batch = state.gather();
        assert!(batch[..10].iter().all(|queued| !queued.op.bulk) && batch.len() == NESTED_MAX);
        let mut bulk = 0;
        for _ in 0..BULK_TURN {
            state.busy.clear();
            state.queue.clear();
            fill(&mut state, false, 2 * NESTED_MAX);
            bulk += state.gather().iter().filter(|queued| queued.op.bulk).count();
        }
        assert_eq!(bulk, NESTED_MAX);
    }

    #[test]
    fn what_etcd_says_of_a_request_that_is_at_fault_is_a_refusal() {
        let endpoint: Arc<str> = "http://e:2379".into();
        let refused = |what: &str| EtcdError::Refused { endpoint: endpoint.clone(), what: what.to_owned() };
        assert!(is_refusal(&refused("etcdserver: request is too large (InvalidArgument)")));
        assert!(is_refusal(&refused("etcdserver: duplicate key given in txn request (InvalidArgument)")));
        assert!(is_refusal(&refused("etcdserver: too many operations in txn request (InvalidArgument)")));
        assert!(is_refusal(&refused("grpc: received message larger than max (ResourceExhausted)")));
        assert!(!is_refusal(&EtcdError::NoSpace));
    }

    fn keys(batch: &[Queued]) -> Vec<&str> {
        batch.iter().flat_map(|q| q.op.keys.iter().map(String::as_str)).collect()
    }

    #[test]
    fn no_key_is_twice_on_its_way_and_the_order_of_a_key_is_kept() {
        let mut state = State::default();
        state.queue.extend([op(&["a"], 1), op(&["a", "b"], 1), op(&["b"], 1), op(&["c"], 1)]);
        let first = state.gather();
        assert_eq!(keys(&first), ["a", "c"]);
        assert!(state.gather().is_empty());
        state.flying = 1;
        state.landed(&first);
        assert_eq!(keys(&state.gather()), ["a", "b"]);
        assert_eq!(state.queue.len(), 1);
    }

    #[test]
    fn proposals_keep_to_their_limits() {
        let mut state = State::default();
        let names: Vec<String> = (0..300).map(|i| format!("k{i}")).collect();
        state.queue.extend(names.iter().map(|name| op(&[name], 10)));
        assert_eq!(state.gather().len(), NESTED_MAX);
        state.queue.clear();
        state.queue.extend([op(&["x"], REQUEST_BYTES_MAX * 2), op(&["y"], 1), op(&["z"], REQUEST_BYTES_MAX)]);
        assert_eq!(keys(&state.gather()), ["x"]);
        assert_eq!(keys(&state.gather()), ["y"]);
        assert_eq!(keys(&state.gather()), ["z"]);
        let mut odd = op(&["odd"], 1);
        odd.alone = true;
        state.queue.extend([odd, op(&["even"], 1)]);
        assert_eq!(keys(&state.gather()), ["odd"]);
    }

    #[test]
    fn what_makes_room_is_not_kept_out_by_what_needs_it() {
        let mut state = State { full: true, ..State::default() };
        let removal = |key: &str| {
            let mut removal = op(&[key], 1);
            removal.op.grows = false;
            removal
        };
        state.queue.extend([op(&["a"], 1), removal("a"), removal("b"), op(&["c"], 1), removal("d")]);
        assert_eq!(keys(&state.gather()), ["b", "d"], "not the one that comes after another of its key");
        assert_eq!(keys(&state.gather()), ["a", "c"]);
        state.full = false;
        state.busy.clear();
        state.queue.push_back(op(&["e"], 1));
        assert_eq!(keys(&state.gather()), ["a", "e"]);
    }

    #[test]
    fn batches_form_while_one_is_on_its_way() {
        let mut state = State::default();
        let now = Time(1_000_000);
        state.queue.push_back(op(&["a"], 1));
        assert!(matches!(state.step(now), Step::Send(_)));
        state.queue.push_back(op(&["b"], 1));
        assert!(matches!(state.step(now.plus_ms(5)), Step::Wait(Some(_))));
        assert!(matches!(state.step(now.plus_ms(SLOW_MS)), Step::Send(_)));
        let names: Vec<String> = (0..NESTED_MAX).map(|i| format!("k{i}")).collect();
        state.queue.extend(names.iter().map(|name| op(&[name], 1)));
        assert!(matches!(state.step(now.plus_ms(SLOW_MS)), Step::Send(_)));
    }

    #[test]
    fn what_fails_is_tried_again_after_a_pause_and_in_order() {
        let mut state = State::default();
        let now = Time(1_000_000);
        state.queue.push_back(op(&["a"], 1));
        let Step::Send(batch) = state.step(now) else { panic!("nothing to send") };
        state.landed(&batch);
        state.retry_later(batch, now);
        state.queue.push_back(op(&["b"], 1));
        let Step::Send(batch) = state.step(now) else { panic!("new ones need not wait") };
        assert_eq!(keys(&batch), ["b"]);
        state.landed(&batch);
        assert!(matches!(state.step(now.plus_ms(1)), Step::Wait(Some(_))));
        let Step::Send(batch) = state.step(now.plus_ms(PAUSE_MIN_MS)) else { panic!("time is up") };
        assert_eq!(keys(&batch), ["a"]);
    }
}
