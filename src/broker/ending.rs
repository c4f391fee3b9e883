//! The end of a session: subscriptions, queue and record go; what came through shared subscriptions goes to other members
//! (MQTT 5.0 section 4.8.2). Here are its steps, what takes them in order whoever ends it ([`Endings`]), and how a node that is alone does.

use super::Broker;
use super::delivery::{Delivered, Publishing, Scratch};
use super::handle::{Handle, Subscriptions};
use super::mailbox::{Rank, Wakes};
use super::promise::Promise;
use super::router::Cache;
use crate::clock::Time;
use crate::hashing::HashSet;
use crate::mqtt::{Message, QoS};
use crate::names::shown;
use crate::ports::{Change, Lsn, Seq, SessionNo, SessionRecord, Stored, WillRecord};
use crate::session::{Actions, Delivery, Effect, Extra, Failure, Loss, Session, Settings, Will};
use crate::telemetry::metrics::SessionState;
use crate::topic::Filter;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::{Arc, Weak};

/// What became of a session without a connection.
#[derive(Debug, Default)]
pub struct CarriedOut {
    /// Whether the session is over.
    pub ended: bool,
    /// When the last change to it is durable.
    pub lsn: Option<Lsn>,
    /// What tells when the session's will, if that was published, is safe on other nodes; `None` = none has to do with it.
    pub will: Option<Arc<Promise>>,
}

/// What a session without a connection wants done that others have to do with.
#[derive(Debug)]
pub enum Wanted {
    /// The session's will is due: this message.
    Will(Message),
    /// The session is over.
    End,
}

/// A message that an ended session leaves, or its row in the journal.
#[derive(Debug)]
pub enum Left {
    /// To be handed on if it came through a shared subscription; `true` if it was sent before.
    Message(Delivery, bool),
    /// The client has the message of this row, but for the end of the exchange.
    Released(Seq),
}

/// What an ended session leaves.
#[derive(Debug)]
pub struct Remains {
    /// The session's subscriptions, which are still in the router.
    pub subscriptions: Subscriptions,
    /// Messages that were in memory, and rows that are to be settled.
    pub left: Vec<Left>,
    /// Messages that only the journal has.
    pub on_disk: VecDeque<Seq>,
    /// Messages of `on_disk` that were sent before.
    pub begun: HashSet<Seq>,
}

impl Remains {
    /// How many of the session's subscriptions were shared ones.
    pub fn shared(&self) -> usize {
        self.subscriptions.keys().filter(|name| name.starts_with("$share/")).count()
    }
}

/// An ended session whose messages are being handed on.
#[derive(Debug)]
pub struct HandOn {
    /// The session.
    pub from: Arc<Handle>,
    /// Messages that are still to be read.
    pub seqs: VecDeque<Seq>,
    /// Messages of `seqs` that were sent to the client before.
    pub begun: HashSet<Seq>,
    /// When the session ended.
    pub now: Time,
}

impl HandOn {
    /// The next messages to read from the journal.
    pub fn batch(&mut self) -> Vec<Seq> {
        let n = self.seqs.len().min(HAND_ON_BATCH_MAX);
        self.seqs.drain(..n).collect()
    }
}

/// What became of a message for another member of a shared subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// A member here has it, or (`false`) has lost it.
    Member(bool),
    /// No member here can have the message; `leaving` = one is about to leave this node.
    Nobody {
        /// A member is about to leave this node, or has just left.
        leaving: bool,
    },
    /// Nobody else may have the message: it has expired, came through no shared subscription, or was begun at QoS 2 (MQTT 5, 4.8.2).
    Nowhere,
}

/// Messages of an ended session that are read from the journal at a time to be handed on.
const HAND_ON_BATCH_MAX: usize = 128;

/// Messages of a session that left which are settled in one step.
const SETTLE_BATCH_MAX: usize = 1_024;

impl Broker {
    /// Does the part of an effect of a session without a connection that is its own; what is left to be done.
    pub fn carry_out_own(
        &self,
        handle: &Handle,
        session: &Session,
        effect: Effect,
        done: &mut CarriedOut,
    ) -> Option<Wanted> {
        match effect {
            Effect::Will(message) => return Some(Wanted::Will(message)),
            Effect::End => return Some(Wanted::End),
            Effect::Save => done.lsn = self.save(handle, session),
            Effect::Dropped(loss) => self.metrics.lost(handle.whose(), loss, 1),
            // A session without a connection does nothing else.
            _ => {}
        }
        None
    }

    /// The record of a session that has given its will up, if the will may be published; else the journal has that record.
    pub fn will_record_due(
        &self,
        handle: &Handle,
        session: &Session,
        message: &Message,
    ) -> Option<SessionRecord> {
        // The session has given its will up already, so this record is without it.
        let record = self.record(handle, session);
        if !self.will_is_due(handle, message) {
            self.journal.append(&[Change::Session(&record)]);
            return None;
        }
        self.metrics.wills_published.inc();
        Some(record)
    }

    /// A will was refused: the session has given it up all the same.
    pub fn will_refused(
        &self,
        handle: &Handle,
        record: &SessionRecord,
        message: &Message,
        failure: &Failure,
    ) {
        let (reason, why) = (failure.reason, failure.why.as_deref());
        tracing::warn!(client = %shown(&handle.client_id), topic = %shown(message.topic()), ?reason, why, "will not published");
        self.journal.append(&[Change::Session(record)]);
    }

    /// What a session wants whose timers run at `now`.
    pub fn due_effects(&self, session: &mut Session, now: Time) -> Vec<Effect> {
        let mut actions = Actions::default();
        session.wake(now, &mut actions);
        if actions.effects.iter().any(|e| matches!(e, Effect::End)) {
            self.metrics.sessions_expired.inc();
        }
        actions.effects
    }

    /// What the journal keeps of a session.
    pub fn record(&self, handle: &Handle, session: &Session) -> SessionRecord {
        SessionRecord {
            no: handle.no,
            client_id: handle.client_id.clone(),
            expiry_s: session.expiry_s(),
            disconnected_at: session.detached_at(),
            will: session.will().map(will_record),
            created_at: handle.created_at,
            epoch: handle.epoch(),
            pending: false,
            user: handle.user(),
            queue_policy: handle.mailbox.policy(),
        }
    }

    /// Writes the record of a session that has one.
    pub fn save(&self, handle: &Handle, session: &Session) -> Option<Lsn> {
        if !handle.durable && session.will().is_none() {
            return None;
        }
        handle.set_recorded();
        Some(self.journal.append(&[Change::Session(&self.record(handle, session))]))
    }

    /// Writes the record of a session whose client is about to get its CONNACK. `None` if the journal need not know it.
    pub fn save_connected(&self, handle: &Handle, settings: &Settings) -> Option<Lsn> {
        if !handle.durable && settings.will.is_none() {
            return None;
        }
        handle.set_recorded();
        let record = SessionRecord {
            no: handle.no,
            client_id: handle.client_id.clone(),
            expiry_s: settings.expiry_s,
            disconnected_at: None,
            will: settings.will.as_ref().map(will_record),
            created_at: handle.created_at,
            epoch: handle.epoch(),
            pending: false,
            user: handle.user(),
            queue_policy: settings.queue_policy,
        };
        Some(self.journal.append(&[Change::Session(&record)]))
    }

    /// Writes the record of a new session whose claim is about to be made.
    pub fn save_pending(&self, handle: &Handle) -> Option<Lsn> {
        let mut record = handle.mailbox.parked(|s| self.record(handle, s))?;
        record.pending = true;
        handle.set_recorded();
        Some(self.journal.append(&[Change::Session(&record)]))
    }

    /// Writes the record of a dormant session.
    pub fn save_parked(&self, handle: &Handle) {
        let record = handle.mailbox.parked(|s| self.record(handle, s));
        if let Some(record) = record {
            self.journal.append(&[Change::Session(&record)]);
        }
    }

    /// Takes an ended session out of its mailbox and of the registry. Its subscriptions are no longer its own, and still in the router.
    pub fn take_apart(&self, handle: &Arc<Handle>, session: &mut Session, wakes: &mut Wakes) -> Remains {
        let (backlog, queue) = handle.mailbox.end(wakes);
        self.dormant.unwatch(handle);
        if self.registry.remove(handle) {
            self.metrics.sessions.of(SessionState::Active).sub(1);
        }
        let subscriptions = std::mem::take(&mut *handle.subscriptions.lock());
        self.metrics.subscriptions_active.sub(subscriptions.len() as u64);
        let mut remains =
            Remains { subscriptions, left: Vec::new(), on_disk: VecDeque::new(), begun: HashSet::default() };
        for l in session.take_leftovers() {
            match (l.delivery, l.seq) {
                (Some(d), _) => remains.left.push(Left::Message(d, l.begun)),
                (None, Some(seq)) if l.released => remains.left.push(Left::Released(seq.get())),
                (None, Some(seq)) => {
                    remains.begun.insert(seq.get());
                    remains.on_disk.push_back(seq.get());
                }
                (None, None) => {}
            }
        }
        remains.left.extend(queue.into_iter().map(|d| Left::Message(d, false)));
        remains.on_disk.extend(backlog);
        remains
    }

    /// Takes subscriptions out of the router.
    pub fn unsubscribe_all(&self, handle: &Handle, subscriptions: &Subscriptions) {
        for name in subscriptions.keys() {
            if let Ok(filter) = Filter::parse(name) {
                self.router.unsubscribe(&filter, name, handle.no);
            }
        }
    }

    /// A record of an ended session whose messages are still being handed on: after a crash it is still over, and its will is not due
    /// again. `None` if the journal does not know the session.
    pub fn ended_record(&self, handle: &Handle, session: &Session, now: Time) -> Option<SessionRecord> {
        handle.recorded().then(|| {
            let mut record = self.record(handle, session);
            (record.expiry_s, record.disconnected_at, record.will) = (0, Some(now), None);
            record
        })
    }

    /// Whether the journal may know a session.
    pub fn is_known(handle: &Handle) -> bool {
        handle.durable || handle.recorded()
    }

    /// A session that is another node's now, or did not become this one's, goes from the journal with its messages `left`.
    pub fn forget_rows(&self, session: SessionNo, left: &[Seq]) {
        for some in left.chunks(SETTLE_BATCH_MAX) {
            let settled: Vec<Change<'_>> =
                some.iter().map(|seq| Change::Settle { seq: *seq, session }).collect();
            self.journal.append(&settled);
        }
        self.journal.append(&[Change::SessionEnd { session }]);
    }

    /// Gives a message that `from` does not get to another member of its shared subscription here.
    pub fn hand_to_member(
        &self,
        from: &Handle,
        d: &Delivery,
        begun: bool,
        now: Time,
        delivered: &mut Delivered,
        wakes: &mut Wakes,
    ) -> Handed {
        let begun_exactly_once = begun && d.qos == QoS::ExactlyOnce;
        let may = !begun_exactly_once && d.qos > QoS::AtMostOnce && !d.message.expired(now);
        let Some(name) = d.shared().filter(|_| may) else { return Handed::Nowhere };
        let Ok(filter) = Filter::parse(name) else { return Handed::Nowhere };
        let group = self.router.group(&filter, name);
        let member = group.and_then(|g| self.pick(&g, from.no, d.message.topic()));
        match member.map(|m| (m.handle.mailbox.rank(), m)) {
            Some((Rank::Online | Rank::Dormant, member)) => {
                let target = Broker::target_of(&member);
                let given = self.deliver_one(&d.message, &target, d.retain, delivered, wakes);
                Handed::Member(given.is_some())
            }
            Some((Rank::Moving | Rank::Left(_), _)) => Handed::Nobody { leaving: true },
            Some((Rank::Gone, _)) | None => Handed::Nobody { leaving: false },
        }
    }
}

/// How sessions without a connection come to their ends: with a node that is alone ([`Broker`]), or with one of a cluster.
pub trait Endings: Send + Sync + 'static {
    /// The node's part of it.
    fn broker(&self) -> &Broker;

    /// What holds it, for what is done later.
    fn weak(&self) -> Weak<Self>
    where
        Self: Sized;

    /// Publishes the will of a session and forgets it, in one step of the journal (G8).
    fn publish_will(
        &self,
        handle: &Handle,
        session: &Session,
        message: &Message,
        now: Time,
        done: &mut CarriedOut,
        scratch: &mut Scratch,
    );

    /// Ends a session for good. Returns when that is durable, if the journal knows the session.
    fn end_session(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn>;

    /// Gives a message that a session does not get, because it has ended or for another loss `why`, to another member of its shared
    /// subscription, or drops it.
    fn hand_on(&self, from: &Handle, d: &Delivery, begun: bool, why: Loss, now: Time, scratch: &mut Scratch);

    /// Whether a session may be taken out of its mailbox for its timers.
    fn may_wake(&self, handle: &Handle) -> bool;

    /// Carries out the effects of a session without a connection.
    fn carry_out(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        effects: Vec<Effect>,
        now: Time,
        scratch: &mut Scratch,
    ) -> CarriedOut {
        let mut done = CarriedOut::default();
        for effect in effects {
            match self.broker().carry_out_own(handle, session, effect, &mut done) {
                Some(Wanted::Will(message)) => {
                    self.publish_will(handle, session, &message, now, &mut done, scratch);
                }
                Some(Wanted::End) => {
                    done.lsn = self.end_session(handle, session, now, scratch);
                    done.ended = true;
                }
                None => {}
            }
        }
        done
    }

    /// Ends a session that no connection has and that was taken out of its mailbox. Its waiting will is published.
    fn end_dormant(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> CarriedOut {
        let mut actions = Actions::default();
        session.end(now, &mut actions);
        self.carry_out(handle, session, actions.effects, now, scratch)
    }

    /// Runs the timers of a session that was taken out of its mailbox; true if it is over now.
    fn run_timers(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> bool {
        let effects = self.broker().due_effects(session, now);
        !effects.is_empty() && self.carry_out(handle, session, effects, now, scratch).ended
    }

    /// Runs the timers of a session that may be dormant; watches its next deadline.
    fn wake_dormant(&self, handle: &Arc<Handle>, now: Time, scratch: &mut Scratch) {
        if !self.may_wake(handle) {
            return;
        }
        let Some(mut session) = handle.mailbox.check_out() else { return };
        self.broker().count_woken();
        if !self.run_timers(handle, &mut session, now, scratch) {
            self.broker().park(handle, session, &mut scratch.wakes);
        }
    }

    /// Reads what an ended session still had in the journal, a batch at a time, and hands it on.
    fn hand_on_from_journal(&self, mut job: HandOn)
    where
        Self: Sized,
    {
        let journal = &self.broker().journal;
        if job.seqs.is_empty() {
            if Broker::is_known(&job.from) {
                journal.append(&[Change::SessionEnd { session: job.from.no }]);
            }
            return;
        }
        let (batch, session, me) = (job.batch(), job.from.no, self.weak());
        let done = move |found: Vec<Stored>| {
            let Some(me) = me.upgrade() else { return };
            let mut scratch = Scratch::default();
            for s in found {
                let begun = job.begun.contains(&s.seq);
                me.hand_on(&job.from, &delivery(s), begun, Loss::SessionEnded, job.now, &mut scratch);
            }
            me.hand_on_from_journal(job);
        };
        journal.read(session, batch, Box::new(done));
    }
}

/// How a node that is alone does it.
impl Endings for Broker {
    fn broker(&self) -> &Broker {
        self
    }

    fn weak(&self) -> Weak<Broker> {
        self.me.clone()
    }

    fn may_wake(&self, _: &Handle) -> bool {
        true
    }

    fn publish_will(
        &self,
        handle: &Handle,
        session: &Session,
        message: &Message,
        now: Time,
        _: &mut CarriedOut,
        scratch: &mut Scratch,
    ) {
        let Some(record) = self.will_record_due(handle, session, message) else { return };
        let publishing =
            Publishing { session: handle.no, inbound: None, record: Some(&record), handle: Some(handle) };
        if let Err(failure) = self.publish(message, &publishing, now, &mut Cache::default(), scratch) {
            self.will_refused(handle, &record, message, &failure);
        }
    }

    fn end_session(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let remains = self.take_apart(handle, session, &mut scratch.wakes);
        self.unsubscribe_all(handle, &remains.subscriptions);
        let shared = remains.shared();
        let ended = Loss::SessionEnded;
        for left in remains.left {
            match left {
                Left::Message(d, begun) => self.hand_on(handle, &d, begun, ended, now, scratch),
                Left::Released(seq) => self.settle_lost(handle, seq, ended),
            }
        }
        self.metrics.shared_subscriptions.sub(shared as u64);
        if shared > 0 && !remains.on_disk.is_empty() {
            // Takes a while.
            let record = self.ended_record(handle, session, now);
            let lsn = record.map(|record| self.journal.append(&[Change::Session(&record)]));
            let (from, seqs, begun) = (handle.clone(), remains.on_disk, remains.begun);
            self.hand_on_from_journal(HandOn { from, seqs, begun, now });
            return lsn;
        }
        remains.on_disk.into_iter().for_each(|seq| self.settle_lost(handle, seq, ended));
        Broker::is_known(handle).then(|| self.journal.append(&[Change::SessionEnd { session: handle.no }]))
    }

    fn hand_on(&self, from: &Handle, d: &Delivery, begun: bool, why: Loss, now: Time, scratch: &mut Scratch) {
        let (delivered, wakes) = scratch.begin();
        let handed = self.hand_to_member(from, d, begun, now, delivered, wakes);
        for (seq, session) in delivered.displaced.drain(..) {
            self.settle(seq, session);
        }
        match handed {
            Handed::Member(given) => {
                if given {
                    self.metrics.shared_redeliveries.inc();
                }
                if let Some(seq) = d.seq {
                    self.settle(seq.get(), from.no);
                }
            }
            Handed::Nobody { .. } | Handed::Nowhere => match d.seq {
                Some(seq) => self.settle_lost(from, seq.get(), why),
                None => self.metrics.lost(from.whose(), why, 1),
            },
        }
    }
}

impl Broker {
    fn settle_lost(&self, handle: &Handle, seq: Seq, why: Loss) {
        self.metrics.lost(handle.whose(), why, 1);
        self.settle(seq, handle.no);
    }
}

fn will_record(w: &Will) -> WillRecord {
    let Will { message, delay_s, message_expiry_s, author } = w.clone();
    WillRecord { message, delay_s, message_expiry_s, author }
}

/// A message as the journal has it for one session.
pub fn delivery(s: Stored) -> Delivery {
    let r = s.recipient;
    let plain = r.subscription_ids.is_empty() && r.shared.is_none();
    let extra = (!plain).then(|| Extra { subscription_ids: r.subscription_ids, shared: r.shared });
    Delivery {
        message: s.message,
        seq: NonZeroU64::new(s.seq),
        qos: r.qos,
        retain: r.retain,
        extra: extra.map(Arc::new),
    }
}
