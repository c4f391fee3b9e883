//! The journal that forgets: everything in memory, durable at once. For brokers that need not survive a restart, and for
//! tests and simulation, which [`MemoryJournal::reopen`] it. Never touches a disk, starts a thread or waits.

use super::order::order_by_origin;
use super::random_name;
use super::wakers::Wakers;
use crate::mqtt::Message;
use crate::ports::{
    Change, DirectoryKey, DirectoryRecord, Journal, JournalHealth, Lsn, MessageId, NoRoom, NodeRecord,
    ORIGIN_DUTY, OutboundState, ReadDone, Recipient, Recovered, RecoveredSession, Seq, SessionNo,
    SessionRecord, SpooledRetain, StoreKnown, Stored, SubscriptionRecord,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

/// How a [`MemoryJournal`] behaves.
#[derive(Clone, Debug)]
pub struct MemoryOptions {
    /// Bytes of stored and retained messages ([`Message::size`] plus 96 for each recipient) beyond which the
    /// journal is congested and its health is failing.
    pub max_bytes: u64,
}

/// What a recipient of a stored message counts for, bytes.
const RECIPIENT_BYTES: u64 = 96;

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        MemoryOptions { max_bytes: 256 << 20 }
    }
}

/// A journal in memory.
///
/// Changes are durable at once, save beyond [`MemoryOptions::max_bytes`]: then they are kept but not called durable until
/// settlements have made room, as on a full disk. [`Journal::read`] calls back before it returns, on the calling
/// thread, with no lock held.
pub struct MemoryJournal {
    options: MemoryOptions,
    /// Names it; never 0.
    name: u64,
    next_seq: AtomicU64,
    /// Number of times that room was made after there was none: 0 for a journal that was never full.
    durable: AtomicU64,
    state: Mutex<State>,
    wakers: Wakers,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Nothing becomes durable: [`MemoryJournal::stall`].
    stalled: bool,
    /// So many more calls of [`Journal::append`] reach the disk; the rest is lost by the next start. For simulations of a crash.
    lost_after: Option<usize>,
    bytes: u64,
    next_session: SessionNo,
    next_order: u64,
    messages: BTreeMap<Seq, Entry>,
    sessions: BTreeMap<SessionNo, Session>,
    retained: BTreeMap<Box<str>, Message>,
    spooled: BTreeMap<Arc<str>, SpooledRetain>,
    directory: BTreeMap<DirectoryKey, Arc<[u8]>>,
    node: Option<NodeRecord>,
    store: StoreKnown,
    seen: BTreeMap<MessageId, BTreeSet<SessionNo>>,
    /// `seen` the other way round.
    seen_by: BTreeSet<(SessionNo, MessageId)>,
    /// Sessions that ended, and messages that these had not settled.
    ended: (u64, u64),
}

struct Entry {
    id: Option<MessageId>,
    message: Message,
    /// All sessions it was stored for, if it has an ID.
    stored_for: Box<[SessionNo]>,
    /// Those that have not settled.
    recipients: BTreeMap<SessionNo, Recipient>,
}

#[derive(Default)]
struct Session {
    record: Option<SessionRecord>,
    subscriptions: BTreeMap<Arc<str>, SubscriptionRecord>,
    inbound: BTreeSet<u16>,
    outbound: BTreeMap<u16, Step>,
    /// Messages not settled, with the packet identifier of their outbound step.
    unsettled: BTreeMap<Seq, Option<u16>>,
}

struct Step {
    seq: Seq,
    state: OutboundState,
    order: u64,
}

fn cost(message: &Message) -> u64 {
    message.size() as u64
}

fn spooled_cost(spooled: &SpooledRetain) -> u64 {
    RECIPIENT_BYTES + spooled.topic.len() as u64 + spooled.message.as_ref().map_or(0, cost)
}

impl MemoryJournal {
    /// An empty journal.
    pub fn new(options: MemoryOptions) -> Arc<MemoryJournal> {
        MemoryJournal::named(options, random_name())
    }

    /// An empty journal whose name ([`Recovered::journal`]) is chosen by the caller: for runs that can be replayed.
    pub fn named(options: MemoryOptions, name: u64) -> Arc<MemoryJournal> {
        MemoryJournal::with(options, name, 1, State::default())
    }

    /// What names this journal: [`Recovered::journal`].
    pub fn name(&self) -> u64 {
        self.name
    }

    fn with(options: MemoryOptions, name: u64, next_seq: Seq, state: State) -> Arc<MemoryJournal> {
        Arc::new(MemoryJournal {
            options,
            name,
            next_seq: AtomicU64::new(next_seq),
            durable: AtomicU64::new(0),
            state: Mutex::new(state),
            wakers: Wakers::default(),
        })
    }

    /// What a process would find that starts after this one has died: a new journal with this one's contents. This one
    /// is closed and empty afterwards.
    pub fn reopen(&self) -> (Arc<MemoryJournal>, Recovered) {
        let mut state = {
            let mut held = self.state.lock();
            let state = std::mem::take(&mut *held);
            held.closed = true;
            state
        };
        (state.closed, state.stalled, state.lost_after) = (false, false, None);
        state.forget_unknown_sessions();
        let recovered = Recovered { journal: self.name, ..state.recovered() };
        let next_seq = self.next_seq.load(Ordering::Relaxed);
        let journal = MemoryJournal::with(self.options.clone(), self.name, next_seq, state);
        (journal, recovered)
    }

    /// Lets nothing more become durable, as a disk that hangs, or goes on. What was appended meanwhile is then durable.
    pub fn stall(&self, stalled: bool) {
        let mut state = self.state.lock();
        let was_full = self.full(&state);
        state.stalled = stalled;
        if was_full && !self.full(&state) {
            self.durable.fetch_add(1, Ordering::AcqRel);
            drop(state);
            self.wakers.wake_all();
        }
    }

    /// Only the next `appends` reach the disk: what comes after them is not durable, and gone at the next start.
    pub fn lose_after(&self, appends: usize) {
        self.state.lock().lost_after = Some(appends);
    }

    /// Sessions that ended, and messages that they left behind without settling them: on a disk these stay until the next
    /// start.
    #[must_use]
    pub fn ended(&self) -> (u64, u64) {
        self.state.lock().ended
    }

    fn full(&self, state: &State) -> bool {
        state.stalled || state.bytes > self.options.max_bytes
    }
}

impl Journal for MemoryJournal {
    fn next_seq(&self) -> Seq {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    fn append(&self, changes: &[Change<'_>]) -> Lsn {
        let room_again = {
            let mut state = self.state.lock();
            let durable = self.durable.load(Ordering::Acquire);
            if state.closed || state.lost_after == Some(0) {
                return durable.saturating_add(1);
            }
            state.lost_after = state.lost_after.map(|left| left - 1);
            let was_full = self.full(&state);
            for change in changes {
                state.apply(change);
            }
            match (was_full, self.full(&state)) {
                (false, false) => return durable,
                (_, true) => return durable + 1,
                (true, false) => {
                    self.durable.store(durable + 1, Ordering::Release);
                    durable + 1
                }
            }
        };
        self.wakers.wake_all();
        room_again
    }

    fn durable(&self) -> Lsn {
        self.durable.load(Ordering::Acquire)
    }

    fn wake_at(&self, lsn: Lsn, waker: &Waker) {
        self.wakers.register(lsn, waker, || self.durable());
    }

    fn congested(&self) -> bool {
        self.full(&self.state.lock())
    }

    fn read(&self, session: SessionNo, seqs: Vec<Seq>, done: ReadDone) {
        let found = {
            let state = self.state.lock();
            seqs.into_iter().filter_map(|seq| state.stored(session, seq)).collect()
        };
        done(found);
    }

    fn health(&self) -> JournalHealth {
        let state = self.state.lock();
        if !self.full(&state) {
            return JournalHealth::Ok;
        }
        if state.stalled {
            return JournalHealth::Failing("the journal in memory is stalled".to_owned());
        }
        JournalHealth::Failing(format!(
            "the journal in memory holds {} bytes of messages, more than the {} of storage.memory_max; raise it, \
             or let subscribers drain or expire their queues",
            state.bytes, self.options.max_bytes
        ))
    }

    fn takes(&self, message: &Message) -> Result<(), NoRoom> {
        let (state, max) = (self.state.lock(), self.options.max_bytes);
        let used = state.bytes - state.retained.get(message.topic()).map_or(0, cost);
        if used + cost(message) > max { Err(NoRoom::Full { max, used }) } else { Ok(()) }
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn know(&self, known: StoreKnown) {
        self.state.lock().store.learn(known);
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.wakers.wake_all();
    }
}

impl State {
    fn apply(&mut self, change: &Change<'_>) {
        match *change {
            Change::Seen { id, sessions } => self.see(id, sessions),
            Change::Unseen { id } => {
                for session in self.seen.remove(&id).unwrap_or_default() {
                    self.seen_by.remove(&(session, id));
                }
            }
            Change::Node(node) => self.node = Some(node.clone()),
            Change::Spool(spooled) => {
                self.bytes += spooled_cost(spooled);
                if let Some(old) = self.spooled.insert(spooled.topic.clone(), spooled.clone()) {
                    self.bytes -= spooled_cost(&old);
                }
            }
            Change::Unspool { topic } => {
                if let Some(old) = self.spooled.remove(topic) {
                    self.bytes -= spooled_cost(&old);
                }
            }
            Change::Directory { key, value: Some(value) } => {
                self.directory.insert(key.clone(), value.into());
            }
            Change::Directory { key, value: None } => {
                self.directory.remove(key);
            }
            Change::Message { seq, id, message, recipients } => self.store(seq, id, message, recipients),
            Change::Settle { seq, session } => self.settle(seq, session),
            Change::Outbound { session, packet_id, seq, state } => {
                self.outbound(session, packet_id, seq, state)
            }
            Change::InboundBegin { session, packet_id } => {
                self.sessions.entry(session).or_default().inbound.insert(packet_id);
            }
            Change::InboundEnd { session, packet_id } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.inbound.remove(&packet_id);
                }
            }
            Change::Session(record) => {
                self.saw(record.no);
                self.sessions.entry(record.no).or_default().record = Some(record.clone());
            }
            Change::SessionEnd { session } => self.end(session),
            Change::Subscribe { session, subscription } => {
                let subscriptions = &mut self.sessions.entry(session).or_default().subscriptions;
                subscriptions.insert(subscription.filter.clone(), subscription.clone());
            }
            Change::Unsubscribe { session, filter } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.subscriptions.remove(filter);
                }
            }
            Change::Retain(message) => {
                self.bytes += cost(message);
                if let Some(old) = self.retained.insert(message.topic().into(), message.clone()) {
                    self.bytes -= cost(&old);
                }
            }
            Change::ClearRetained { topic } => {
                if let Some(old) = self.retained.remove(topic) {
                    self.bytes -= cost(&old);
                }
            }
        }
    }

    fn saw(&mut self, session: SessionNo) {
        self.next_session = self.next_session.max(session.saturating_add(1));
    }

    fn see(&mut self, id: MessageId, sessions: &[SessionNo]) {
        for session in sessions {
            self.saw(*session);
            self.seen.entry(id).or_default().insert(*session);
            self.seen_by.insert((*session, id));
        }
    }

    fn store(&mut self, seq: Seq, id: Option<MessageId>, message: &Message, recipients: &[Recipient]) {
        if recipients.is_empty() {
            return;
        }
        for recipient in recipients {
            self.saw(recipient.session);
            self.sessions.entry(recipient.session).or_default().unsettled.insert(seq, None);
        }
        let stored_for = match id {
            Some(_) => recipients.iter().map(|recipient| recipient.session).collect(),
            None => Box::default(),
        };
        self.bytes += cost(message) + RECIPIENT_BYTES * recipients.len() as u64;
        let recipients = recipients.iter().map(|recipient| (recipient.session, recipient.clone())).collect();
        self.messages.insert(seq, Entry { id, message: message.clone(), stored_for, recipients });
    }

    fn settle(&mut self, seq: Seq, session: SessionNo) {
        let Some(holder) = self.sessions.get_mut(&session) else { return };
        let Some(packet_id) = holder.unsettled.remove(&seq) else { return };
        if let Some(packet_id) = packet_id {
            holder.outbound.remove(&packet_id);
        }
        self.release(seq, session);
    }

    /// Takes `session` off the recipients of `seq`.
    fn release(&mut self, seq: Seq, session: SessionNo) {
        let Some(entry) = self.messages.get_mut(&seq) else { return };
        if entry.recipients.remove(&session).is_some() {
            self.bytes -= RECIPIENT_BYTES;
        }
        if entry.recipients.is_empty() {
            self.bytes -= cost(&entry.message);
            self.messages.remove(&seq);
        }
    }

    fn outbound(&mut self, session: SessionNo, packet_id: u16, seq: Seq, state: OutboundState) {
        self.next_order += 1;
        let order = self.next_order;
        let Some(session) = self.sessions.get_mut(&session) else { return };
        let Some(slot) = session.unsettled.get_mut(&seq) else {
            // A step of a message that the session does not hold says nothing, but it has taken the identifier.
            let replaced = session.outbound.remove(&packet_id);
            replaced.and_then(|replaced| session.unsettled.insert(replaced.seq, None));
            return;
        };
        let before = slot.replace(packet_id);
        if before.is_some_and(|before| before != packet_id) {
            before.and_then(|before| session.outbound.remove(&before));
        }
        match session.outbound.get_mut(&packet_id) {
            Some(step) if step.seq == seq => step.state = state,
            Some(step) => {
                let replaced = std::mem::replace(step, Step { seq, state, order });
                session.unsettled.insert(replaced.seq, None);
            }
            None => {
                session.outbound.insert(packet_id, Step { seq, state, order });
            }
        }
    }

    fn end(&mut self, session: SessionNo) {
        self.forget_seen(session);
        let Some(gone) = self.sessions.remove(&session) else { return };
        self.ended.0 += u64::from(gone.record.is_some());
        self.ended.1 += gone.unsettled.len() as u64;
        for seq in gone.unsettled.into_keys() {
            self.release(seq, session);
        }
    }

    fn forget_seen(&mut self, session: SessionNo) {
        let from = (session, MessageId { origin: 0, seq: 0 });
        while let Some(of) = self.seen_by.range(from..).next().copied().filter(|of| of.0 == session) {
            self.seen_by.remove(&of);
            if let Some(sessions) = self.seen.get_mut(&of.1) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    self.seen.remove(&of.1);
                }
            }
        }
    }

    fn stored(&self, session: SessionNo, seq: Seq) -> Option<Stored> {
        let entry = self.messages.get(&seq)?;
        let recipient = entry.recipients.get(&session)?;
        Some(Stored { seq, id: entry.id, message: entry.message.clone(), recipient: recipient.clone() })
    }

    /// What belongs to sessions without a record goes. Duties are no session's: they stay if their message has an ID.
    fn forget_unknown_sessions(&mut self) {
        let known = |no: &SessionNo| self.sessions.get(no).is_some_and(|session| session.record.is_some());
        let held = self.sessions.keys().filter(|no| **no != ORIGIN_DUTY);
        let seen = self.seen_by.iter().map(|(no, _)| no);
        let unknown: BTreeSet<SessionNo> = held.chain(seen).filter(|no| !known(no)).copied().collect();
        for session in unknown {
            self.forget_seen(session);
            if session != ORIGIN_DUTY {
                self.end(session);
            }
        }
        let nameless: Vec<Seq> =
            self.duties().filter(|(_, entry)| entry.id.is_none()).map(|(seq, _)| seq).collect();
        for seq in nameless {
            self.settle(seq, ORIGIN_DUTY);
        }
    }

    /// Messages with an unsettled [`ORIGIN_DUTY`].
    fn duties(&self) -> impl Iterator<Item = (Seq, &Entry)> {
        let seqs = self.sessions.get(&ORIGIN_DUTY).into_iter().flat_map(|duty| duty.unsettled.keys());
        seqs.filter_map(|seq| Some((*seq, self.messages.get(seq)?)))
    }

    fn recovered(&self) -> Recovered {
        let sessions = self.sessions.values().filter_map(|session| self.recovered_session(session)).collect();
        let mut duties: Vec<(Seq, MessageId)> =
            self.duties().filter_map(|(seq, entry)| Some((seq, entry.id?))).collect();
        duties.sort_unstable_by_key(|(seq, id)| (*id, *seq));
        Recovered {
            sessions,
            retained: self.retained.values().cloned().collect(),
            seen: self.recovered_seen(),
            ids: self.messages.iter().filter_map(|(seq, entry)| Some((*seq, entry.id?))).collect(),
            duties,
            spooled: self.spooled.values().cloned().collect(),
            directory: self
                .directory
                .iter()
                .map(|(key, value)| DirectoryRecord { key: key.clone(), value: value.clone() })
                .collect(),
            node: self.node.clone(),
            next_session: self.next_session.max(1),
            store: self.store,
            journal: 0,
        }
    }

    fn recovered_seen(&self) -> Vec<(MessageId, Vec<SessionNo>)> {
        let mut seen = self.seen.clone();
        for entry in self.messages.values() {
            let Some(id) = entry.id else { continue };
            let sessions = entry
                .stored_for
                .iter()
                .filter(|no| self.sessions.get(no).is_some_and(|session| session.record.is_some()));
            seen.entry(id).or_default().extend(sessions);
        }
        let seen = seen.into_iter().filter(|(_, sessions)| !sessions.is_empty());
        seen.map(|(id, sessions)| (id, sessions.into_iter().collect())).collect()
    }

    fn recovered_session(&self, session: &Session) -> Option<RecoveredSession> {
        let mut steps: Vec<(&u16, &Step)> = session.outbound.iter().collect();
        steps.sort_unstable_by_key(|(_, step)| step.order);
        let mut pending: Vec<Seq> =
            session.unsettled.iter().filter(|(_, step)| step.is_none()).map(|(seq, _)| *seq).collect();
        order_by_origin(&mut pending, |seq| self.messages.get(&seq)?.id);
        let pending_bytes =
            pending.iter().filter_map(|seq| self.messages.get(seq)).map(|entry| cost(&entry.message)).sum();
        Some(RecoveredSession {
            record: session.record.clone()?,
            subscriptions: session.subscriptions.values().cloned().collect(),
            inbound: session.inbound.iter().copied().collect(),
            outbound: steps.into_iter().map(|(packet_id, step)| (*packet_id, step.seq, step.state)).collect(),
            pending,
            pending_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::message::Parts;
    use crate::storage::conformance::{append, wait};
    use crate::storage::model::{Op, message, recipient, record};

    #[test]
    fn beyond_its_limit_it_fails_until_there_is_room() {
        let journal = MemoryJournal::new(MemoryOptions { max_bytes: 2000 });
        append(&*journal, &[Op::Session(record(1, 1)), Op::Session(record(2, 1))]);
        let mut stored = Vec::new();
        while !journal.congested() {
            let seq = journal.next_seq();
            let recipients = vec![recipient(1, 1), recipient(2, 1)];
            stored.push((
                seq,
                append(&*journal, &[Op::Message { seq, id: None, message: message("t", 100), recipients }]),
            ));
        }
        let (seq, lsn) = *stored.last().unwrap();
        assert!(journal.durable() < lsn, "not called durable when there is no room");
        assert!(stored.len() > 1 && stored[0].1 <= journal.durable());
        let JournalHealth::Failing(said) = journal.health() else { panic!("it is full") };
        assert!(said.contains("storage.memory_max;"), "{said}");
        let settle = |session| Op::Settle { seq, session };
        append(&*journal, &[settle(1), settle(2)]);
        wait(&*journal, lsn);
        assert_eq!((journal.health(), journal.congested()), (JournalHealth::Ok, false));
        for (seq, _) in &stored {
            append(&*journal, &[Op::Settle { seq: *seq, session: 1 }, Op::Settle { seq: *seq, session: 2 }]);
        }
        append(&*journal, &[Op::Retain(message("t", 100)), Op::ClearRetained { topic: "t".to_owned() }]);
        assert_eq!(journal.state.lock().bytes, 0);
    }

    #[test]
    fn what_it_takes_as_a_retained_message_fits_beside_the_others() {
        let message =
            |topic, len| Message::new(Parts { topic, payload: &vec![0; len], ..message("", 0).parts() });
        let journal = MemoryJournal::new(MemoryOptions { max_bytes: 2000 });
        append(&*journal, &[Op::Retain(message("a", 900)), Op::Retain(message("b", 500))]);
        let used = cost(&message("b", 500));
        assert_eq!(journal.takes(&message("a", 1300)), Ok(()), "it takes the place of another");
        assert_eq!(journal.takes(&message("a", 1500)), Err(NoRoom::Full { max: 2000, used }));
        assert!(journal.takes(&message("c", 600)).is_err());
        append(&*journal, &[Op::ClearRetained { topic: "a".to_owned() }]);
        assert_eq!(journal.takes(&message("c", 600)), Ok(()));
    }
}
