//! The publishes that this node owns: those of its clients that other nodes have to take, until all of them have.
//!
//! Everything here is bookkeeping: [`machine`] does it, and [`Outbox`] shares it among threads. What is sent is in `send.rs`, what is matched in
//! `matching.rs`.

mod asked;
pub mod duty;
pub mod entry;
mod held;
pub mod machine;
mod part;
mod past;
mod queries;
#[cfg(test)]
mod transcripts;
mod view;
mod watermarks;

use crate::broker::promise::Promise;
use crate::clock::Time;
use crate::mqtt::{Message, Reason};
use crate::ports::{
    Answer, BoxFuture, Incarnation, Lsn, MemberId, MessageId, Recipient, Revision, Seq, SessionNo,
};
use crate::session::Loss;
use crate::sync::Once;
use entry::{Entry, Plan};
use held::{Count, Held};
use machine::{Actions, Input, Machine};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
pub use view::View;

/// Publishers that wait for room are let go on once this part (of 8) of it is used.
const ROOM_EIGHTHS: usize = 7;

/// Publishes below the low-water mark that may be open still.
const OPEN_MAX: usize = 4_096;

/// Publishes done with after which the others should hear of the new low-water mark: they remember every one until then.
const REPORT_AFTER: usize = 4_096;

/// How much waits, for those who ask without the lock.
#[derive(Debug, Default)]
struct Shown {
    publishes: AtomicUsize,
    bytes: AtomicUsize,
}

impl Shown {
    fn set(&self, count: Count) {
        self.publishes.store(count.publishes, Ordering::Relaxed);
        self.bytes.store(count.bytes, Ordering::Relaxed);
    }

    fn get(&self) -> Count {
        let (publishes, bytes) = (&self.publishes, &self.bytes);
        Count { publishes: publishes.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }
}

#[derive(Debug)]
struct Locked {
    machine: Machine,
    /// Publishers that wait for room.
    room: Vec<Waker>,
}

/// The publishes of this node's clients that other nodes have to take, until all of them have.
#[derive(Debug)]
pub struct Outbox {
    me: MemberId,
    max: Count,
    locked: Mutex<Locked>,
    next: AtomicU64,
    /// What waits for nodes that can be asked, or to be matched.
    here: Shown,
    /// What waits for nodes that are away.
    away: Shown,
    /// Something waits to be matched: what comes now has to queue behind it.
    has_unmatched: AtomicBool,
    /// Chooses nodes for shared subscriptions.
    draws: AtomicU64,
    /// What earlier incarnations left has been read from the journal.
    read: Arc<Once<()>>,
    /// Publishes done with since the low-water mark was last asked for.
    unreported: AtomicUsize,
}

impl Outbox {
    /// An empty outbox for this process, which may hold `max_publishes` of `max_bytes` together.
    pub fn new(me: MemberId, max_publishes: usize, max_bytes: usize) -> Outbox {
        let (incarnation, machine) = (me.incarnation, Machine::new(me.node.clone()));
        Outbox {
            me,
            max: Count { publishes: max_publishes, bytes: max_bytes },
            locked: Mutex::new(Locked { machine, room: Vec::new() }),
            next: AtomicU64::new(1),
            here: Shown::default(),
            away: Shown::default(),
            has_unmatched: AtomicBool::new(false),
            draws: AtomicU64::new(incarnation),
            read: Once::new(),
            unreported: AtomicUsize::new(0),
        }
    }

    /// Changes what the machine has; then whoever waits for room is woken if there is some.
    fn with<R>(&self, f: impl FnOnce(&mut Machine) -> R) -> R {
        let mut locked = self.locked.lock();
        let r = f(&mut locked.machine);
        let Held { here, away } = locked.machine.held;
        self.here.set(here);
        self.away.set(away);
        self.has_unmatched.store(!locked.machine.unmatched.is_empty(), Ordering::Release);
        let wakes = if !locked.room.is_empty() && self.has_room(here) {
            std::mem::take(&mut locked.room)
        } else {
            Vec::new()
        };
        drop(locked);
        wakes.into_iter().for_each(Waker::wake);
        r
    }

    /// Tells the machine what has happened, and keeps promises. What else is to be done is the caller's.
    fn handle(&self, input: Input, applied: Revision, now: Time) -> Actions {
        let mut actions = self.with(|machine| machine.handle(input, applied, now));
        actions.kept.drain(..).for_each(|(promise, kept)| promise.keep(kept));
        actions.settled.drain(..).for_each(|once| {
            once.set(());
        });
        actions
    }

    /// A name for the next publish. Whoever takes it stays inside the barrier until the publish is in the outbox or needs none.
    pub fn next_id(&self) -> MessageId {
        MessageId { origin: self.me.incarnation, seq: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// The number of the next publish.
    pub fn next_seq(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// A number that differs from call to call, by which nodes are chosen for shared subscriptions.
    pub fn draw(&self) -> u64 {
        scattered(self.draws.fetch_add(1, Ordering::Relaxed))
    }

    /// How many publishes wait for other nodes.
    pub fn held(&self) -> usize {
        self.here.get().publishes + self.away.get().publishes
    }

    /// Whether publishers should pause, since too many publishes wait for other nodes.
    pub fn full(&self) -> bool {
        self.is_full(self.here.get())
    }

    /// Whether no more publishes may wait for nodes that are away.
    pub fn away_full(&self) -> bool {
        self.is_full(self.away.get())
    }

    /// Whether no more publishes may wait at all: publishers that pause have come in great numbers, one publish each.
    pub fn overfull(&self) -> bool {
        let (here, away) = (self.here.get(), self.away.get());
        here.publishes + away.publishes >= 2 * self.max.publishes
            || here.bytes + away.bytes >= 2 * self.max.bytes
    }

    /// Which limit keeps more from waiting.
    pub fn limit_reached(&self) -> Loss {
        let (here, away, max) = (self.here.get().publishes, self.away.get().publishes, self.max.publishes);
        if away >= max || here + away >= 2 * max {
            Loss::HeldMessages(max as u64)
        } else {
            Loss::HeldBytes(self.max.bytes as u64)
        }
    }

    fn is_full(&self, count: Count) -> bool {
        count.publishes >= self.max.publishes || count.bytes >= self.max.bytes
    }

    fn has_room(&self, here: Count) -> bool {
        here.publishes <= self.max.publishes / 8 * ROOM_EIGHTHS
            && here.bytes <= self.max.bytes / 8 * ROOM_EIGHTHS
    }

    /// Wakes `waker` when there is room again; false if there is.
    pub fn wake_when_room(&self, waker: &Waker) -> bool {
        let mut locked = self.locked.lock();
        if !self.full() {
            return false;
        }
        if !locked.room.iter().any(|w| w.will_wake(waker)) {
            locked.room.push(waker.clone());
        }
        true
    }

    /// Whether publishes wait to be matched, so that later ones have to queue.
    pub fn has_unmatched(&self) -> bool {
        self.has_unmatched.load(Ordering::Acquire)
    }

    /// Publishes of this incarnation with a lower number are done with, save those listed. To be called with the barrier closed.
    pub fn low_water(&self) -> (u64, Vec<u64>) {
        self.unreported.store(0, Ordering::Relaxed);
        let next = self.next_seq();
        let (listed, beyond) = self.locked.lock().machine.open_of(self.me.incarnation, OPEN_MAX);
        (beyond.unwrap_or(next), listed)
    }

    /// Whether the low-water mark has come so far that the others should hear of it.
    pub fn low_water_is_news(&self) -> bool {
        self.unreported.load(Ordering::Relaxed) >= REPORT_AFTER
    }

    /// Earlier incarnations of this node whose publishes are all done with.
    pub fn retired(&self) -> Vec<Incarnation> {
        if self.read.get().is_none() {
            return Vec::new();
        }
        self.locked.lock().machine.retired()
    }

    /// What is set when no QoS 2 publish of a session is open any more; `None` if none is open now.
    pub fn publishes_settled(&self, session: SessionNo) -> Option<Arc<Once<()>>> {
        self.locked.lock().machine.exactly_once.get(&session).map(|(_, once)| once.clone())
    }

    /// The packet identifiers of a session's QoS 2 publishes whose outcome is open.
    pub fn under_way(&self, session: SessionNo) -> Vec<u16> {
        self.locked.lock().machine.under_way(session)
    }

    /// The promise that tells the outcome of the publish that came under this packet identifier, if it is open.
    pub fn promise(&self, session: SessionNo, packet_id: u16) -> Option<Arc<Promise>> {
        self.locked.lock().machine.promise(session, packet_id)
    }

    /// Whether a publish is in the outbox.
    pub fn is_open(&self, id: MessageId) -> bool {
        self.locked.lock().machine.entries.contains_key(&id)
    }

    /// Takes a publish into the outbox that has been matched; what is to be sent at once.
    pub fn begin(&self, id: MessageId, entry: Entry, plan: Plan) -> Actions {
        self.handle(Input::Begin { id, entry, plan }, 0, Time(0))
    }

    /// Takes a publish into the outbox that is to be matched later, behind those that wait already; false if none does any more and
    /// `always` is not set: then it was not taken.
    pub fn queue(&self, id: MessageId, entry: Entry, always: bool) -> bool {
        self.with(|machine| {
            let taken = always || !machine.unmatched.is_empty();
            if taken {
                machine.handle(Input::Queue { id, entry }, 0, Time(0));
            }
            taken
        })
    }

    /// The next publish to be matched; `None` if there is none, or its record is not durable. Nobody else matches it before it is given
    /// back.
    pub fn next_unmatched(&self, applied: Revision) -> Option<(MessageId, View)> {
        self.with(|machine| machine.next_unmatched(applied))
    }

    /// Whether the caller has to match what is unmatched from now on: there is something to match, and nobody does.
    pub fn attend_unmatched(&self) -> bool {
        self.locked.lock().machine.attend_unmatched()
    }

    /// Says that the caller does not match what is unmatched any more.
    pub fn leave_unmatched(&self) {
        self.locked.lock().machine.attended = false;
    }

    /// Takes the first publish out of the queue of those to be matched: it has been matched and sent.
    pub fn unmatched_done(&self, id: MessageId) {
        self.handle(Input::UnmatchedDone(id), 0, Time(0));
    }

    /// Takes a publish out to match it; `None` if there is nothing to match, or somebody is at it.
    pub fn check_out(&self, id: MessageId, applied: Revision) -> Option<View> {
        self.locked.lock().machine.check_out(id, applied)
    }

    /// Gives a publish back with what matching came to.
    pub fn check_in(&self, id: MessageId, plan: Plan, applied: Revision) -> Actions {
        self.handle(Input::Matched { id, plan }, applied, Time(0))
    }

    /// Takes in what `node` said. A publish at QoS 1 that a node cannot take fails; others are matched again later.
    pub fn answered(&self, node: &Arc<str>, answers: Vec<(MessageId, Answer)>, applied: Revision) -> Actions {
        self.handle(Input::Answered { node: node.clone(), answers }, applied, Time(0))
    }

    /// Makes this node match a publish of its own again: a session here that was about to move moved at `at`, or stays (0).
    pub fn moved_here(&self, id: MessageId, at: Revision, applied: Revision) -> Actions {
        self.answered(&self.me.node, vec![(id, Answer::Moved(at))], applied)
    }

    /// Takes note that the record of a publish is durable.
    pub fn recorded(&self, id: MessageId, applied: Revision) -> Actions {
        self.handle(Input::Recorded(id), applied, Time(0))
    }

    /// Takes note that record `seq` of a duty is durable.
    pub fn noted(&self, id: MessageId, seq: Seq, applied: Revision) -> Actions {
        self.handle(Input::Noted { id, seq }, applied, Time(0))
    }

    /// Publishes that waited for a revision up to `applied`, in order.
    pub fn due(&self, applied: Revision) -> Vec<MessageId> {
        self.handle(Input::Advanced, applied, Time(0)).again
    }

    /// Takes the publishes that a node could not make safe: they are to be matched again.
    pub fn retry(&self) -> Vec<MessageId> {
        self.handle(Input::Retry, 0, Time(0)).again
    }

    /// Puts publishes back to be matched again, before all that come after them, that wait for one of `nodes`. The caller has the barrier
    /// closed. Nobody waits any more for answers of those in `lost`. Returns the frames that were not answered, by node and name: what is
    /// still said to one of them must not be taken for an answer to what the node is asked anew.
    #[must_use]
    pub fn queue_again(&self, nodes: &[Arc<str>], lost: &[Arc<str>]) -> Vec<(Arc<str>, MessageId)> {
        let (nodes, lost) = (nodes.to_vec(), lost.to_vec());
        self.handle(Input::NodesChanged { nodes, lost }, 0, Time(0)).cancels
    }

    /// Puts publishes back to be matched again, before all that come after them, that one of `nodes` has not answered and that were not
    /// matched at `at` or later. Whether there are any. The caller has the barrier closed.
    pub fn queue_behind(&self, nodes: &[Arc<str>], at: Revision) -> bool {
        self.handle(Input::Behind { nodes: nodes.to_vec(), at }, 0, Time(0)).changed
    }

    /// The nodes that have not answered publishes.
    pub fn asked_nodes(&self) -> Vec<Arc<str>> {
        self.locked.lock().machine.asked_nodes()
    }

    /// Processes that may have served a shared subscription and cannot be asked, and the nodes that are waited for.
    pub fn awaited(&self) -> Vec<(MemberId, Arc<str>)> {
        self.locked.lock().machine.awaited()
    }

    /// The revision below which every publish to `node` is answered, and sent on if it had moved; `applied` if all are.
    pub fn settled_watermark(&self, node: &str, applied: Revision) -> Revision {
        self.locked.lock().machine.settled_watermark(node, applied)
    }

    /// The revision below which every publish to `node` is answered, or was matched again since; `applied` if all are.
    pub fn past_watermark(&self, node: &str, applied: Revision) -> Revision {
        self.locked.lock().machine.past_watermark(node, applied)
    }

    /// As [`Outbox::past_watermark`], for each node that publishes are on their way to.
    pub fn past_watermarks(&self, applied: Revision) -> Vec<(Arc<str>, Revision)> {
        self.locked.lock().machine.past_watermarks(applied)
    }

    /// Gives the record of a duty a new number, `seq`: `append` puts it into the journal, given the message, the number that it had and
    /// what it has to say. Whoever finds that the publish is at its end settles the record by its number, which nobody sees before
    /// the record has been appended: what is settled before it is there would stay, and be sent again after every restart.
    pub fn renote(
        &self,
        id: MessageId,
        seq: Seq,
        append: impl FnOnce(&Message, Seq, Recipient) -> Lsn,
    ) -> Option<Lsn> {
        let mut locked = self.locked.lock();
        let (message, old, recipient) = locked.machine.renumber(id, seq)?;
        Some(append(&message, old, recipient))
    }

    /// Removes a publish that is over, and with it the promise not to send it again. Returns whether it was open.
    pub fn remove(&self, id: MessageId) -> bool {
        let removed = self.handle(Input::Remove(id), 0, Time(0)).changed;
        self.unreported.fetch_add(usize::from(removed), Ordering::Relaxed);
        removed
    }

    /// Gives publishes up that are open for `patience_ms` or longer, and those at QoS 1 in `failed`: their publishers are told `reason`, their
    /// frames are to be cancelled at these nodes. Those that the journal has are never given up.
    pub fn give_up(
        &self,
        patience_ms: u64,
        failed: Vec<MessageId>,
        reason: Reason,
        now: Time,
    ) -> Vec<(MessageId, SmallVec<[Arc<str>; 2]>)> {
        let given_up = self.handle(Input::GiveUp { patience_ms, failed, reason }, 0, now).given_up;
        self.unreported.fetch_add(given_up.len(), Ordering::Relaxed);
        given_up
    }

    /// Publishes that were open for too long when [`Outbox::give_up`] last looked and wait for no node that is away, with what they wait for:
    /// at most `max`, each of them once.
    pub fn overdue(&self, max: usize) -> Vec<(MessageId, String)> {
        self.locked.lock().machine.take_overdue(max)
    }

    /// Ends the wait of publishes that have expired for nodes that are away.
    pub fn expire(&self, now: Time, applied: Revision) -> Actions {
        self.handle(Input::Expire, applied, now)
    }

    /// Takes note that what earlier incarnations left is about to be read from the journal.
    pub fn recovering(&self, earlier: Vec<Incarnation>) {
        self.locked.lock().machine.earlier = earlier;
    }

    /// Takes note that what earlier incarnations left has been read from the journal.
    pub fn recovered(&self) {
        self.read.set(());
    }

    /// Completes when what earlier incarnations left has been read from the journal.
    pub fn when_read(&self) -> BoxFuture<()> {
        self.read.wait()
    }

    /// How many publishes there are by what they wait for: (not matched, to be matched again, other nodes, there or gone).
    pub fn counts(&self) -> (usize, usize, usize) {
        self.locked.lock().machine.counts()
    }
}

/// A number that is always the same for a publish, and scattered over all of them: by it nodes are chosen for shared subscriptions.
pub fn draw_of(id: MessageId) -> u64 {
    scattered(id.seq ^ id.origin.rotate_left(32))
}

fn scattered(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
