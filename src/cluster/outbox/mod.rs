//! The publishes that this node owns: those of its clients that other nodes have to take, until all of them have.
//!
//! Everything here is bookkeeping; what is sent is in `send.rs`, what is matched in `matching.rs`.

mod asked;
pub mod entry;
mod held;
mod part;
mod past;
mod unserved;
mod view;
mod watermarks;

use crate::broker::promise::{Kept, Promise};
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::mqtt::{QoS, Reason};
use crate::ports::{Answer, BoxFuture, Incarnation, MemberId, MessageId, Revision, SessionNo};
use crate::session::Loss;
use crate::sync::Once;
use entry::{Entry, Plan, Sends, Stage};
use held::{Count, Held};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
pub use view::{Next, View};
use watermarks::Watermarks;

/// Publishers that wait for room are let go on once this part (of 8) of it is used.
const ROOM_EIGHTHS: usize = 7;

/// Publishes below the low-water mark that may be open still.
const OPEN_MAX: usize = 4_096;

/// Publishes done with after which the others should hear of the new low-water mark: they remember every one until then.
const REPORT_AFTER: usize = 4_096;

#[derive(Debug, Default)]
struct Inner {
    /// This node.
    me: Arc<str>,
    /// The publishes by name. Those of earlier incarnations come first: their numbers are lower.
    entries: BTreeMap<MessageId, Entry>,
    watermarks: Watermarks,
    /// Publishes that are not matched yet, in order.
    unmatched: VecDeque<MessageId>,
    /// A task matches what is unmatched.
    attended: bool,
    /// Waiting for a revision to be applied.
    again: BTreeSet<(Revision, MessageId)>,
    /// QoS 2 publishes of sessions whose outcome is open, and who waits for that.
    exactly_once: HashMap<SessionNo, (usize, Arc<Once<()>>)>,
    /// To be tried again after a while: a node could not make them safe.
    retry: Vec<MessageId>,
    /// Publishers that wait for room.
    room: Vec<Waker>,
    /// Earlier incarnations of this node.
    earlier: Vec<Incarnation>,
}

/// The publishes of this node's clients that other nodes have to take, until all of them have.
#[derive(Debug)]
pub struct Outbox {
    me: MemberId,
    max: (usize, usize),
    inner: Mutex<Inner>,
    next: AtomicU64,
    held: Held,
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
        let (incarnation, node) = (me.incarnation, me.node.clone());
        Outbox {
            me,
            max: (max_publishes, max_bytes),
            inner: Mutex::new(Inner { me: node, ..Inner::default() }),
            next: AtomicU64::new(1),
            held: Held::default(),
            has_unmatched: AtomicBool::new(false),
            draws: AtomicU64::new(incarnation),
            read: Once::new(),
            unreported: AtomicUsize::new(0),
        }
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
        self.held.here.get().0 + self.held.away.get().0
    }

    /// Whether publishers should pause, since too many publishes wait for other nodes.
    pub fn full(&self) -> bool {
        self.is_full(&self.held.here)
    }

    /// Whether no more publishes may wait for nodes that are away.
    pub fn away_full(&self) -> bool {
        self.is_full(&self.held.away)
    }

    /// Whether no more publishes may wait at all: publishers that pause have come in great numbers, one publish each.
    pub fn overfull(&self) -> bool {
        let ((here, bytes), (away, away_bytes)) = (self.held.here.get(), self.held.away.get());
        here + away >= 2 * self.max.0 || bytes + away_bytes >= 2 * self.max.1
    }

    /// Which limit keeps more from waiting.
    pub fn limit_reached(&self) -> Loss {
        let ((here, _), (away, _)) = (self.held.here.get(), self.held.away.get());
        let (publishes, bytes) = self.max;
        if away >= publishes || here + away >= 2 * publishes {
            Loss::HeldMessages(publishes as u64)
        } else {
            Loss::HeldBytes(bytes as u64)
        }
    }

    fn is_full(&self, count: &Count) -> bool {
        let (publishes, bytes) = count.get();
        publishes >= self.max.0 || bytes >= self.max.1
    }

    /// Takes out the publishers that wait for room, if there is some again.
    fn room_again(&self, inner: &mut Inner) -> Vec<Waker> {
        let (publishes, bytes) = self.held.here.get();
        if publishes <= self.max.0 / 8 * ROOM_EIGHTHS && bytes <= self.max.1 / 8 * ROOM_EIGHTHS {
            return std::mem::take(&mut inner.room);
        }
        Vec::new()
    }

    /// Wakes `waker` when there is room again; false if there is.
    pub fn wake_when_room(&self, waker: &Waker) -> bool {
        let mut inner = self.inner.lock();
        if !self.full() {
            return false;
        }
        if !inner.room.iter().any(|w| w.will_wake(waker)) {
            inner.room.push(waker.clone());
        }
        true
    }

    /// Whether publishes wait to be matched, so that later ones have to queue.
    pub fn has_unmatched(&self) -> bool {
        self.has_unmatched.load(Ordering::Acquire)
    }

    /// Publishes of this incarnation with a lower number are done with, save those listed. To be called with the barrier closed.
    pub fn low_water(&self) -> (u64, Vec<u64>) {
        let from = MessageId { origin: self.me.incarnation, seq: 0 };
        self.unreported.store(0, Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        let inner = self.inner.lock();
        let mut open = inner.entries.range(from..).map(|(id, _)| id.seq);
        let listed: Vec<u64> = open.by_ref().take(OPEN_MAX).collect();
        (open.next().unwrap_or(next), listed)
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
        let inner = self.inner.lock();
        let open = |origin: Incarnation| {
            let range = MessageId { origin, seq: 0 }..=MessageId { origin, seq: u64::MAX };
            inner.entries.range(range).next().is_some()
        };
        inner.earlier.iter().copied().filter(|i| !open(*i)).collect()
    }

    /// QoS 2 publishes of a session whose outcome is open.
    pub fn open_publishes(&self, session: SessionNo) -> usize {
        self.inner.lock().exactly_once.get(&session).map_or(0, |(n, _)| *n)
    }

    /// What is set when no QoS 2 publish of a session is open any more; `None` if none is open now.
    pub fn publishes_settled(&self, session: SessionNo) -> Option<Arc<Once<()>>> {
        self.inner.lock().exactly_once.get(&session).map(|(_, once)| once.clone())
    }

    /// The packet identifiers of a session's QoS 2 publishes whose outcome is open.
    pub fn under_way(&self, session: SessionNo) -> Vec<u16> {
        let inner = self.inner.lock();
        if !inner.exactly_once.contains_key(&session) {
            return Vec::new();
        }
        let of_session = inner.entries.values().filter(|e| e.counts_for == Some(session));
        of_session.filter_map(|e| e.inbound).collect()
    }

    /// The promise that tells the outcome of the publish that came under this packet identifier, if it is open. There are two if the first
    /// one was answered right before a restart that did not know: the newer counts.
    pub fn promise(&self, session: SessionNo, packet_id: u16) -> Option<Arc<Promise>> {
        let inner = self.inner.lock();
        let came = |e: &&Entry| e.counts_for == Some(session) && e.inbound == Some(packet_id);
        inner.entries.values().rev().find(came)?.promise.clone()
    }

    /// Whether a publish is in the outbox.
    pub fn is_open(&self, id: MessageId) -> bool {
        self.inner.lock().entries.contains_key(&id)
    }

    /// Takes a publish into the outbox that has been matched; what is to be sent at once.
    pub fn begin(&self, id: MessageId, mut entry: Entry, plan: Plan) -> Next {
        let mut next = Next::default();
        let mut inner = self.inner.lock();
        let sends = entry.apply(plan, &self.me.node, &mut inner.watermarks);
        let message = entry.message.clone();
        self.count_in(&mut inner, &mut entry);
        if entry.stage == Stage::Recording {
            // That they are on their way counts already.
            entry.prepared = Some(Box::new(sends));
        } else {
            next.sends.push((id, message, sends));
        }
        inner.entries.insert(id, entry);
        inner.look(id, 0, &self.held, &mut next);
        next
    }

    /// Takes a publish into the outbox that is to be matched later, behind those that wait already; false if none does any more and
    /// `always` is not set: then it was not taken.
    pub fn queue(&self, id: MessageId, mut entry: Entry, always: bool) -> bool {
        let mut inner = self.inner.lock();
        if !always && !self.has_unmatched() {
            return false;
        }
        self.count_in(&mut inner, &mut entry);
        inner.entries.insert(id, entry);
        inner.unmatched.push_back(id);
        self.has_unmatched.store(true, Ordering::Release);
        true
    }

    fn count_in(&self, inner: &mut Inner, entry: &mut Entry) {
        self.held.of(entry).add(entry.size());
        if entry.message.qos() == QoS::ExactlyOnce && entry.session != 0 {
            entry.counts_for = Some(entry.session);
            inner.exactly_once.entry(entry.session).or_insert_with(|| (0, Once::new())).0 += 1;
        }
    }

    /// The next publish to be matched; `None` if there is none, or its record is not durable. Nobody else matches it before it is given
    /// back.
    pub fn next_unmatched(&self, applied: Revision) -> Option<(MessageId, View)> {
        let mut inner = self.inner.lock();
        loop {
            let Some(id) = inner.unmatched.front().copied() else {
                self.has_unmatched.store(false, Ordering::Release);
                return None;
            };
            match inner.entries.get_mut(&id) {
                Some(e) if !e.is_recorded() => return None,
                Some(e) => {
                    e.stage = Stage::Open;
                    e.match_soon(true);
                    return Some((id, e.check_out(applied)?));
                }
                None => inner.unmatched.pop_front(), // given up
            };
        }
    }

    /// Whether the caller has to match what is unmatched from now on: there is something to match, and nobody does.
    pub fn attend_unmatched(&self) -> bool {
        let mut inner = self.inner.lock();
        let first = inner.unmatched.front().and_then(|id| inner.entries.get(id));
        let ready = first.map_or(!inner.unmatched.is_empty(), Entry::is_recorded);
        ready && !std::mem::replace(&mut inner.attended, true)
    }

    /// Says that the caller does not match what is unmatched any more.
    pub fn leave_unmatched(&self) {
        self.inner.lock().attended = false;
    }

    /// Takes the first publish out of the queue of those to be matched: it has been matched and sent.
    pub fn unmatched_done(&self, id: MessageId) {
        let mut inner = self.inner.lock();
        if inner.unmatched.front() == Some(&id) {
            inner.unmatched.pop_front();
        }
        if inner.unmatched.is_empty() {
            self.has_unmatched.store(false, Ordering::Release);
        }
    }

    /// Takes a publish out to match it; `None` if there is nothing to match, or somebody is at it.
    pub fn check_out(&self, id: MessageId, applied: Revision) -> Option<View> {
        self.inner.lock().entries.get_mut(&id)?.check_out(applied)
    }

    /// Gives a publish back with what matching came to.
    pub fn check_in(&self, id: MessageId, plan: Plan, applied: Revision) -> Next {
        let mut next = Next::default();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(e) = inner.entries.get_mut(&id) else { return next };
        e.busy = false;
        let sends = e.apply(plan, &self.me.node, &mut inner.watermarks);
        next.sends.push((id, e.message.clone(), sends));
        inner.look(id, applied, &self.held, &mut next);
        next.risen = inner.watermarks.take_risen();
        let wake = self.room_again(inner);
        drop(guard);
        wake.into_iter().for_each(Waker::wake);
        next
    }

    /// Takes in what `node` said. A publish at QoS 1 that a node cannot take fails; others are matched again later.
    pub fn answered(
        &self,
        node: &Arc<str>,
        answers: Vec<(MessageId, Answer)>,
        applied: Revision,
    ) -> (Next, Vec<MessageId>) {
        let mut next = Next::default();
        let mut failed = Vec::new();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for (id, answer) in answers {
            let Some(e) = inner.entries.get_mut(&id) else { continue };
            let unsafe_there = matches!(answer, Answer::Failed(_));
            if let Some((at, asked)) = e.answer(node, answer, applied, &mut inner.watermarks) {
                let mut sends = Sends::default();
                sends.frames.push((node.clone(), at, asked));
                next.sends.push((id, e.message.clone(), sends));
            }
            if unsafe_there {
                failed.push(id);
                inner.retry.push(id);
            }
            inner.look(id, applied, &self.held, &mut next);
        }
        next.risen = inner.watermarks.take_risen();
        (next, failed)
    }

    /// Makes this node match a publish of its own again: a session here that was about to move moved at `at`, or stays (0).
    pub fn moved_here(&self, id: MessageId, at: Revision, applied: Revision) -> Next {
        self.answered(&self.me.node, vec![(id, Answer::Moved(at))], applied).0
    }

    /// Takes note that the records of publishes are durable.
    pub fn recorded(&self, ids: impl IntoIterator<Item = MessageId>, applied: Revision) -> Next {
        let mut next = Next::default();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for id in ids {
            let Some(e) = inner.entries.get_mut(&id).filter(|e| e.stage == Stage::Recording) else {
                continue;
            };
            if e.prepared.is_none() {
                e.stage = Stage::Unmatched;
                continue;
            }
            e.stage = Stage::Open;
            if let Some(sends) = e.recorded(applied) {
                next.sends.push((id, e.message.clone(), sends));
            }
            inner.look(id, applied, &self.held, &mut next);
        }
        next
    }

    /// Publishes that waited for a revision up to `applied`, in order.
    pub fn due(&self, applied: Revision) -> Vec<MessageId> {
        let mut inner = self.inner.lock();
        let mut due = Vec::new();
        while let Some((at, id)) = inner.again.first().copied().filter(|(at, _)| *at <= applied) {
            inner.again.remove(&(at, id));
            due.push(id);
        }
        due.sort_unstable();
        due
    }

    /// Takes the publishes that a node could not make safe: they are to be matched again.
    pub fn retry(&self) -> Vec<MessageId> {
        let mut inner = self.inner.lock();
        let mut retry = std::mem::take(&mut inner.retry);
        retry.retain(|id| inner.entries.get_mut(id).map(Entry::try_again).is_some());
        retry
    }

    /// The nodes that have not answered publishes.
    pub fn asked_nodes(&self) -> Vec<Arc<str>> {
        let inner = self.inner.lock();
        let mut nodes: Vec<Arc<str>> = inner.entries.values().flat_map(|e| e.asked().cloned()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Removes a publish that is over, and with it the promise not to send it again. Returns whether it was open.
    pub fn remove(&self, id: MessageId) -> bool {
        let mut inner = self.inner.lock();
        let Some(mut e) = inner.entries.remove(&id) else { return false };
        e.give_up(&mut inner.watermarks);
        inner.uncount(e.counts_for);
        self.held.of(&e).sub(e.size());
        self.unreported.fetch_add(1, Ordering::Relaxed);
        let wake = self.room_again(&mut inner);
        drop(inner);
        wake.into_iter().for_each(Waker::wake);
        true
    }

    /// Gives publishes up that are open since `before` or longer, and those at QoS 1 in `failed`: their publishers are told
    /// `reason`, their frames are to be cancelled at these nodes. Those that the journal has are never given up.
    pub fn give_up(
        &self,
        before: Time,
        failed: &[MessageId],
        reason: Reason,
    ) -> Vec<(MessageId, SmallVec<[Arc<str>; 2]>)> {
        let mut given_up = Vec::new();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for (id, e) in &mut inner.entries {
            let failed = e.message.qos() == QoS::AtLeastOnce && failed.contains(id);
            if e.duty.is_none() && (e.since <= before || failed) {
                e.keep(Kept::Failed(reason));
                given_up.push((*id, e.give_up(&mut inner.watermarks)));
            }
        }
        drop(guard);
        for (id, _) in &given_up {
            self.remove(*id);
        }
        given_up
    }

    /// Publishes that are open since `before` or longer and wait for no node that is away, with what they wait for: at most `max`, each of
    /// them once.
    pub fn overdue(&self, before: Time, max: usize) -> Vec<(MessageId, String)> {
        let mut inner = self.inner.lock();
        let is_overdue =
            |e: &&mut Entry| e.since <= before && !e.told && !e.orphaned() && e.stage != Stage::Settling;
        let overdue = inner.entries.iter_mut().filter(|(_, e)| is_overdue(e)).take(max);
        overdue
            .map(|(id, e)| {
                e.told = true;
                (*id, e.waits_in_words())
            })
            .collect()
    }

    /// Ends the wait of publishes that have expired for nodes that are away.
    pub fn expire(&self, now: Time, applied: Revision) -> Next {
        let mut next = Next::default();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let away = inner.entries.iter().filter(|(_, e)| e.counted_away && e.message.expired(now));
        for id in away.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(e) = inner.entries.get_mut(&id) {
                e.expire(&mut inner.watermarks);
            }
            inner.look(id, applied, &self.held, &mut next);
        }
        next
    }

    /// Takes note that what earlier incarnations left is about to be read from the journal.
    pub fn recovering(&self, earlier: Vec<Incarnation>) {
        self.inner.lock().earlier = earlier;
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
        let inner = self.inner.lock();
        let again = inner.entries.values().filter(|e| e.due_at().is_some()).count();
        let asked = inner.entries.values().filter(|e| e.orphaned() || e.asked().next().is_some()).count();
        (inner.unmatched.len(), again, asked)
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

impl Inner {
    /// Whether publish `id` has come to its end, or has to be matched again.
    fn look(&mut self, id: MessageId, applied: Revision, held: &Held, next: &mut Next) {
        let Some(e) = self.entries.get_mut(&id) else { return };
        held.recount(e);
        if e.done() {
            e.stage = Stage::Settling;
            e.keep(Kept::Done { matched: e.matched });
            next.done.push((id, e.duty));
            let session = e.counts_for.take();
            self.uncount(session);
            return;
        }
        if let Some(at) = e.due_at().filter(|_| !e.busy && e.stage == Stage::Open) {
            if at <= applied {
                next.again.push(id);
            } else {
                self.again.insert((at, id));
            }
        }
        if let Some(group) = e.unattended(&self.me) {
            debug_assert!(false, "nobody attends to {} of {id:?}: {e:?}", group.name);
            tracing::error!(
                origin = id.origin,
                seq = id.seq,
                group = &*group.name,
                asked = group.at.as_deref(),
                "a publish for a shared subscription waits for nobody: it is matched again"
            );
            self.retry.push(id);
        }
    }

    /// The outcome of a QoS 2 publish of a session is known.
    fn uncount(&mut self, session: Option<SessionNo>) {
        let Some(session) = session else { return };
        if let Some((n, settled)) = self.exactly_once.get_mut(&session) {
            *n -= 1;
            if *n == 0 {
                settled.set(());
                self.exactly_once.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests;
