//! The mailbox of a session: where publishers on other threads put messages, and where a dormant session rests.
//!
//! Two queues, in this order for the client: `queue` holds messages in memory, `backlog` the numbers of journaled messages
//! whose bodies stay on disk until there is room. While the backlog is not empty, journaled messages join it, so order holds.

mod admission;
mod backlog;
mod displace;
mod moving;
mod order;

use crate::clock::Time;
use crate::hashing::HashSet;
use crate::mqtt::QoS;
use crate::ports::{Incarnation, MessageId, Revision, Seq};
use crate::queue_policy::QueuePolicy;
use crate::session::{CloseCause, Delivery, Loss, Session};
use crate::sync::Once;
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::task::Waker;

use backlog::Backlog;
pub use displace::Displaced;
pub use moving::Rank;
pub use order::{OrderHold, Sending};

/// Wakers of tasks that have something to do, woken together when the publisher is done with its batch.
#[derive(Debug, Default)]
pub struct Wakes(Vec<Waker>);

impl Wakes {
    /// Wakes all tasks.
    pub fn flush(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Limits of every mailbox.
#[derive(Clone, Copy, Debug)]
pub struct MailboxLimits {
    /// Messages in memory.
    pub messages: usize,
    /// Bytes in memory.
    pub bytes: usize,
    /// Messages of a persistent session, on disk and in memory.
    pub queued_messages: usize,
    /// Bytes of a persistent session, on disk and in memory.
    pub queued_bytes: u64,
    /// What is dropped when one of these is reached, unless the session's client has chosen.
    pub policy: QueuePolicy,
}

impl Default for MailboxLimits {
    fn default() -> MailboxLimits {
        MailboxLimits {
            messages: 10_000,
            bytes: 8 << 20,
            queued_messages: 100_000,
            queued_bytes: 256 << 20,
            policy: QueuePolicy::DropNew,
        }
    }
}

/// Where a session is.
#[derive(Debug)]
pub enum Place {
    /// With a connection.
    Attached,
    /// In the mailbox, dormant.
    Parked(Box<Session>),
    /// In the mailbox, and perhaps about to be another node's.
    Frozen(Box<Frozen>),
    /// With another node since this revision.
    Departed(Revision),
    /// Nowhere: it is over.
    Gone,
}

/// A session of which it is not known whether it stays here.
#[derive(Debug)]
pub struct Frozen {
    session: Box<Session>,
    /// How that comes out: the revision at which it moved, or `None` = it stays. Made when the first asks.
    outcome: Option<Arc<Once<Option<Revision>>>>,
}

impl Frozen {
    /// A frozen session whose outcome nobody waits for yet.
    pub fn new(session: Box<Session>) -> Frozen {
        Frozen { session, outcome: None }
    }
}

/// Why a mailbox did not take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The message is dropped, and counted.
    Dropped(Loss),
    /// The session may be about to move, or to come: whether the message is for this node is known when
    /// [`Mailbox::moving`] says so, or when the session is this node's.
    Moving,
    /// The session moved at this revision: whoever matched on an older index has to match again.
    Moved(Revision),
}

#[derive(Debug)]
struct Inner {
    place: Place,
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    backlog: Backlog,
    /// Numbers at the front of the backlog that are being read.
    reading: usize,
    /// What was read.
    read: Option<Vec<Delivery>>,
    /// What [`crate::session::Effect::Load`] asked for.
    loaded: Option<Vec<Delivery>>,
    close: Option<CloseCause>,
    /// Where the client is told to go.
    reference: Option<Arc<str>>,
    waker: Option<Waker>,
    signalled: bool,
    /// Counts attachments: a late answer of the journal to an earlier one is void.
    attachment: u32,
    /// Counts claims while attached: only the latest may succeed.
    claims: u64,
    successors: Vec<Waker>,
    /// Expired messages are being looked for.
    purging: bool,
    /// Before this time none of the oldest messages expires.
    purge_at: Time,
    /// Until older messages, on their way by the session's last owner, are here.
    order: Option<Arc<OrderHold>>,
    /// Publishes that were refused for now: later ones of their senders wait for them.
    expected: BTreeSet<(Incarnation, MessageId)>,
}

/// Where publishers on other threads put messages for a session, and where it rests while it is dormant.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    online: AtomicBool,
    load: AtomicUsize,
    /// The policy that the client has chosen: its place among [`QueuePolicy::ALL`], from 1; 0 = none.
    policy: AtomicU8,
}

/// What a connection takes out of its mailbox.
#[derive(Debug, Default)]
pub struct Taken {
    /// Why to close, if so.
    pub close: Option<CloseCause>,
    /// Where the client is told to go, if so.
    pub reference: Option<Arc<str>>,
    /// The answer to a load.
    pub loaded: Option<Vec<Delivery>>,
}

/// What a claim finds.
#[derive(Debug)]
pub enum Found {
    /// The dormant session, now attached.
    Session(Box<Session>),
    /// Another connection has it and was told to go; the waker is woken when it has.
    Busy,
    /// A later claim came: give up.
    Superseded,
    /// The session is over.
    Gone,
}

impl Mailbox {
    /// A mailbox whose session is at `place`, with messages `backlog` in the journal.
    pub fn new(place: Place, backlog: VecDeque<Seq>, backlog_bytes: u64) -> Mailbox {
        let online = matches!(place, Place::Attached);
        Mailbox {
            inner: Mutex::new(Inner {
                place,
                queue: VecDeque::new(),
                queue_bytes: 0,
                backlog: Backlog::new(backlog, backlog_bytes),
                reading: 0,
                read: None,
                loaded: None,
                close: None,
                reference: None,
                waker: None,
                signalled: false,
                attachment: 1,
                claims: 0,
                successors: Vec::new(),
                purging: false,
                purge_at: Time(0),
                order: None,
                expected: BTreeSet::new(),
            }),
            online: AtomicBool::new(online),
            load: AtomicUsize::new(0),
            policy: AtomicU8::new(0),
        }
    }

    /// Whether a connection has the session.
    pub fn online(&self) -> bool {
        self.online.load(Relaxed)
    }

    /// About how many messages wait for the client, in flight ones included: the measure of shared subscriptions.
    pub fn load(&self) -> usize {
        self.load.load(Relaxed)
    }

    /// Puts a message in. Journaled ones are taken unless the session is over or moves; others are dropped when there is no room or no
    /// client. How many others were dropped in its place, that the journal does not have.
    ///
    /// # Errors
    /// Says why it was not taken.
    pub fn push(&self, d: Delivery, limits: &MailboxLimits, wakes: &mut Wakes) -> Result<usize, Refusal> {
        self.push_admitted(d, None, limits, wakes)
    }

    /// Asks the connection that has the session to close.
    pub fn close(&self, cause: CloseCause, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        if matches!(inner.place, Place::Attached) {
            inner.close.get_or_insert(cause);
            inner.signal(wakes);
        }
    }

    /// For the connection that has the session: moves waiting messages to `local` if that is empty and `more` are wanted,
    /// and arranges to be woken by the next one.
    pub fn take(&self, waker: &Waker, more: bool, local: &mut VecDeque<Delivery>) -> Taken {
        let mut inner = self.inner.lock();
        inner.signalled = false;
        match &mut inner.waker {
            Some(w) => w.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        if more && local.is_empty() {
            if !inner.queue.is_empty() {
                std::mem::swap(&mut inner.queue, local);
                inner.queue_bytes = 0;
            } else if let Some(read) = inner.read.take() {
                let n = std::mem::take(&mut inner.reading);
                inner.backlog.drop_front(n);
                local.extend(read);
            }
        }
        let reference = inner.reference.take();
        Taken { close: inner.close.take(), reference, loaded: inner.loaded.take() }
    }

    /// The next numbers to read from the journal, at most `max`, if none are being read, and for which attachment.
    pub fn start_reading(&self, max: usize) -> Option<(Vec<Seq>, u32)> {
        let mut inner = self.inner.lock();
        if inner.reading > 0 || inner.backlog.is_empty() || !inner.queue.is_empty() {
            return None;
        }
        let seqs: Vec<Seq> = inner.backlog.iter().take(max).collect();
        inner.reading = seqs.len();
        Some((seqs, inner.attachment))
    }

    /// What the journal found for [`Mailbox::start_reading`].
    pub fn finish_reading(&self, attachment: u32, found: Vec<Delivery>) {
        let mut wakes = Wakes::default();
        let mut inner = self.inner.lock();
        if inner.attachment == attachment {
            inner.read = Some(found);
            inner.signal(&mut wakes);
        }
        drop(inner);
    }

    /// The attachment that an answer of the journal must belong to.
    pub fn attachment(&self) -> u32 {
        self.inner.lock().attachment
    }

    /// What the journal found for [`crate::session::Effect::Load`].
    pub fn finish_loading(&self, attachment: u32, found: Vec<Delivery>) {
        let mut wakes = Wakes::default();
        let mut inner = self.inner.lock();
        if inner.attachment == attachment {
            inner.loaded = Some(found);
            inner.signal(&mut wakes);
        }
        drop(inner);
    }

    /// Puts back what a connection took but did not send, in order and with sizes, before all that waits here.
    pub fn put_back(&self, unsent: &[(NonZeroU64, usize)]) {
        if unsent.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        inner.queue_to_backlog();
        for (seq, size) in unsent.iter().rev() {
            inner.backlog.push_front(seq.get(), *size);
        }
    }

    /// Gives back what a connection took but did not handle, for [`Mailbox::end`].
    pub fn give_back(&self, mut unsent: VecDeque<Delivery>) {
        let mut inner = self.inner.lock();
        unsent.append(&mut inner.queue);
        inner.queue = unsent;
    }

    /// Puts the session to rest. Returns how many unjournaled messages were dropped.
    pub fn park(&self, session: Box<Session>, wakes: &mut Wakes) -> usize {
        let mut inner = self.inner.lock();
        inner.queue_to_backlog();
        let dropped = inner.queue.len();
        inner.queue = VecDeque::new();
        inner.queue_bytes = 0;
        inner.place = Place::Parked(session);
        self.load.store(inner.waiting(), Relaxed);
        self.online.store(false, Relaxed);
        inner.leave(wakes);
        dropped
    }

    /// The session is over. Returns the numbers of all journaled messages that waited, and the other messages.
    pub fn end(&self, wakes: &mut Wakes) -> (VecDeque<Seq>, VecDeque<Delivery>) {
        let mut inner = self.inner.lock();
        inner.place = Place::Gone;
        inner.order = None;
        inner.expected = BTreeSet::new();
        inner.queue_bytes = 0;
        self.online.store(false, Relaxed);
        inner.leave(wakes);
        (inner.backlog.take(), std::mem::take(&mut inner.queue))
    }

    /// Claims the session for a new connection. `place_in_line` is the caller's place among those that claim it: 0 at first.
    pub fn claim(&self, place_in_line: &mut u64, waker: &Waker, wakes: &mut Wakes) -> Found {
        let mut inner = self.inner.lock();
        if *place_in_line > 0 && inner.claims > *place_in_line {
            return Found::Superseded;
        }
        match std::mem::replace(&mut inner.place, Place::Attached) {
            Place::Parked(session) => {
                inner.close = None;
                self.online.store(true, Relaxed);
                Found::Session(session)
            }
            Place::Attached => {
                if *place_in_line == 0 {
                    inner.claims += 1;
                    *place_in_line = inner.claims;
                    inner.close.get_or_insert(CloseCause::TakenOver);
                    inner.signal(wakes);
                    // An earlier claim that still waits must learn that it is superseded.
                    wakes.0.append(&mut inner.successors);
                }
                inner.succeed(waker);
                Found::Busy
            }
            Place::Frozen(frozen) => {
                inner.place = Place::Frozen(frozen);
                if *place_in_line == 0 {
                    inner.claims += 1;
                    *place_in_line = inner.claims;
                    wakes.0.append(&mut inner.successors);
                }
                inner.succeed(waker);
                Found::Busy
            }
            over @ (Place::Departed(_) | Place::Gone) => {
                inner.place = over;
                Found::Gone
            }
        }
    }

    /// Takes the dormant session out to run its timers; `None` if it is not dormant. Meanwhile a claim waits, until
    /// [`Mailbox::park`] or [`Mailbox::end`].
    pub fn check_out(&self) -> Option<Box<Session>> {
        let mut inner = self.inner.lock();
        match std::mem::replace(&mut inner.place, Place::Attached) {
            Place::Parked(session) => Some(session),
            other => {
                inner.place = other;
                None
            }
        }
    }

    /// Takes note that the connection holds `n` messages that the client has not settled.
    pub fn set_load(&self, n: usize) {
        self.load.store(n, Relaxed);
    }

    /// What `f` says of the dormant session; `None` if it is not dormant.
    pub fn parked<R>(&self, f: impl FnOnce(&Session) -> R) -> Option<R> {
        match &self.inner.lock().place {
            Place::Parked(session) => Some(f(session)),
            _ => None,
        }
    }

    /// Begins to look for expired messages among the oldest `max` of a dormant session's queue: their numbers, and for
    /// which attachment. `None` if that is under way, or would find nothing before a time that is still to come.
    pub fn start_purging(&self, max: usize, now: Time) -> Option<(Vec<Seq>, u32)> {
        let mut inner = self.inner.lock();
        if !matches!(inner.place, Place::Parked(_)) || inner.purging || inner.purge_at > now {
            return None;
        }
        inner.purging = true;
        Some((inner.backlog.iter().take(max).collect(), inner.attachment))
    }

    /// Takes those of `expired` out that are still among the oldest `looked_at` messages, and returns them: others have given way to new
    /// messages meanwhile. The next look is worth it at `again`. Nothing is done if the client came back meanwhile: it gets no expired
    /// message anyway.
    pub fn finish_purging(
        &self,
        attachment: u32,
        looked_at: usize,
        expired: &HashSet<Seq>,
        again: Time,
    ) -> Vec<Seq> {
        let mut inner = self.inner.lock();
        inner.purging = false;
        if inner.attachment != attachment || !matches!(inner.place, Place::Parked(_)) {
            return Vec::new();
        }
        inner.purge_at = again;
        inner.backlog.take_out(looked_at, expired)
    }

    /// How many messages wait, in memory and on disk.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting()
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.queue.len() + self.backlog.len()
    }

    fn push(
        &mut self,
        d: Delivery,
        limits: &MailboxLimits,
        policy: QueuePolicy,
        wakes: &mut Wakes,
    ) -> Result<usize, Refusal> {
        let size = d.size();
        let mut displaced = 0;
        if d.seq.is_none() && policy == QueuePolicy::DropOldest && matches!(self.place, Place::Attached) {
            displaced = self.displace_in_memory(size, limits);
        }
        let full = if self.queue.len() >= limits.messages {
            Some(Loss::MailboxMessages(limits.messages as u64))
        } else if self.queue_bytes + size > limits.bytes {
            Some(Loss::MailboxBytes(limits.bytes as u64))
        } else {
            None
        };
        match (&self.place, d.seq) {
            (Place::Gone, _) => return Err(Refusal::Dropped(Loss::SessionEnded)),
            (Place::Frozen(_), Some(_)) => return Err(Refusal::Moving),
            (Place::Departed(at), Some(_)) => return Err(Refusal::Moved(*at)),
            (Place::Parked(_) | Place::Frozen(_) | Place::Departed(_), None) => {
                return Err(Refusal::Dropped(Loss::Offline));
            }
            (Place::Attached, None)
                if let Some(loss) = full
                    && !(self.queue.is_empty() && d.qos > QoS::AtMostOnce) =>
            {
                return Err(Refusal::Dropped(loss));
            }
            (Place::Parked(_), Some(seq)) => self.backlog_push(seq, size),
            (Place::Attached, Some(seq)) if full.is_some() || !self.backlog.is_empty() => {
                self.backlog_push(seq, size)
            }
            (Place::Attached, _) => {
                self.queue_bytes += size;
                self.queue.push_back(d);
            }
        }
        self.signal(wakes);
        Ok(displaced)
    }

    /// Remembers to wake `waker` when the session is free.
    fn succeed(&mut self, waker: &Waker) {
        if !self.successors.iter().any(|w| w.will_wake(waker)) {
            self.successors.push(waker.clone());
        }
    }

    fn backlog_push(&mut self, seq: NonZeroU64, size: usize) {
        self.backlog.push_back(seq.get(), size);
    }

    /// Journaled messages in memory go to the front of the backlog: they are older than those in it. Others stay.
    fn queue_to_backlog(&mut self) {
        // What is being read from the front stays counted by its place, so a read under way is void.
        self.reading = 0;
        self.read = None;
        self.attachment = self.attachment.wrapping_add(1);
        let queue = std::mem::take(&mut self.queue);
        let (journaled, others): (VecDeque<_>, VecDeque<_>) =
            queue.into_iter().partition(|d| d.seq.is_some());
        for d in journaled.iter().rev() {
            let size = d.size();
            self.queue_bytes = self.queue_bytes.saturating_sub(size);
            if let Some(seq) = d.seq {
                self.backlog.push_front(seq.get(), size);
            }
        }
        self.queue = others;
    }

    fn signal(&mut self, wakes: &mut Wakes) {
        if !self.signalled && matches!(self.place, Place::Attached) {
            self.signalled = true;
            wakes.0.extend(self.waker.take());
        }
    }

    /// The connection is gone: its waker and what was read for it are void.
    fn leave(&mut self, wakes: &mut Wakes) {
        self.attachment = self.attachment.wrapping_add(1);
        self.reading = 0;
        self.read = None;
        self.loaded = None;
        self.close = None;
        self.reference = None;
        self.waker = None;
        self.signalled = false;
        self.purge_at = Time(0);
        wakes.0.append(&mut self.successors);
    }
}

#[cfg(test)]
mod tests;
