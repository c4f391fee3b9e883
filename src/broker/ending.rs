//! The end of a session: subscriptions, queue and record go; what came through shared subscriptions goes to other members
//! (MQTT 5.0 section 4.8.2).

use super::Broker;
use super::handle::Handle;
use super::mailbox::Rank;
use super::publish::{Cache, Origin, Scratch};
use super::remote::Remote;
use super::remote::sessions::Over;
use crate::clock::Time;
use crate::hashing::HashSet;
use crate::mqtt::{Message, QoS};
use crate::names::shown;
use crate::ports::{Change, Lsn, Seq, SessionNo, SessionRecord, Stored, WillRecord};
use crate::session::{Actions, Delivery, Effect, Extra, Loss, Session, Settings, Will};
use crate::telemetry::metrics::SessionState;
use crate::topic::Filter;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

/// What became of a session without a connection.
pub(super) struct CarriedOut {
    /// It is over.
    pub ended: bool,
    /// When the last change to it is durable.
    pub lsn: Option<Lsn>,
}

/// An ended session whose messages are being handed on.
struct HandOn {
    from: Arc<Handle>,
    seqs: VecDeque<Seq>,
    begun: HashSet<Seq>,
    now: Time,
}

/// Messages of an ended session that are read from the journal at a time to be handed on.
const HAND_ON_BATCH_MAX: usize = 128;

/// Messages of a session that left which are settled in one step.
const SETTLE_BATCH_MAX: usize = 1_024;

impl Broker {
    /// Ends a session that no connection has and that was taken out of its mailbox. Its waiting will is published.
    /// Returns when that is durable, as [`Broker::end_session`] does.
    pub(super) fn end_dormant(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let mut actions = Actions::default();
        session.end(now, &mut actions);
        self.carry_out(handle, session, actions.effects, now, scratch).lsn
    }

    /// Carries out the effects of a session without a connection.
    pub(super) fn carry_out(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        effects: Vec<Effect>,
        now: Time,
        scratch: &mut Scratch,
    ) -> CarriedOut {
        let mut done = CarriedOut { ended: false, lsn: None };
        for effect in effects {
            match effect {
                Effect::Will(message) => self.publish_will(handle, session, &message, scratch),
                Effect::End => {
                    done.lsn = self.end_session(handle, session, now, scratch);
                    done.ended = true;
                }
                Effect::Save => done.lsn = self.save(handle, session),
                Effect::Dropped(loss) => self.metrics.lost(handle.whose(), loss, 1),
                // A session without a connection does nothing else.
                _ => {}
            }
        }
        done
    }

    /// Carries out what a session wants that has just lost its connection, then puts it to rest unless it is over.
    /// Returns when the last change to it is durable.
    pub(super) fn carry_out_left(
        &self,
        handle: &Arc<Handle>,
        mut session: Box<Session>,
        effects: Vec<Effect>,
        unsent: &[(NonZeroU64, usize)],
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        // Back into the mailbox first: if the session ends, what was not sent is handed on with the rest.
        handle.mailbox.put_back(unsent);
        let done = self.carry_out(handle, &mut session, effects, now, scratch);
        if !done.ended {
            // DISCONNECT may have changed it.
            self.tell_expiry(handle, session.expiry_s(), handle.user());
            self.park(handle, session, scratch);
        }
        done.lsn
    }

    /// Publishes the will of a session and forgets it, in one step of the journal (G8).
    pub(super) fn publish_will(
        &self,
        handle: &Handle,
        session: &Session,
        message: &Message,
        scratch: &mut Scratch,
    ) {
        // The session has given its will up already, so this record is without it.
        let record = self.record(handle, session);
        let origin =
            Origin { session: handle.no, inbound: None, record: Some(&record), handle: Some(handle) };
        if !self.will_is_due(handle, message) {
            self.journal.append(&[Change::Session(&record)]);
            return;
        }
        self.metrics.wills_published.inc();
        let routed = self.publish(message, &origin, &mut Cache::default(), scratch);
        scratch.will = routed.as_ref().ok().and_then(|r| r.ticket.clone());
        if let Err(failure) = routed {
            let (reason, why) = (failure.reason, failure.why.as_deref());
            tracing::warn!(client = %shown(&handle.client_id), topic = %shown(message.topic()), ?reason, why, "will not published");
            self.journal.append(&[Change::Session(&record)]);
        }
    }

    /// What the journal keeps of a session.
    pub(super) fn record(&self, handle: &Handle, session: &Session) -> SessionRecord {
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
    pub(super) fn save(&self, handle: &Handle, session: &Session) -> Option<Lsn> {
        if !handle.durable && session.will().is_none() {
            return None;
        }
        handle.set_recorded();
        Some(self.journal.append(&[Change::Session(&self.record(handle, session))]))
    }

    /// Writes the record of a session whose client is about to get its CONNACK. `None` if the journal need not know it.
    pub(super) fn save_connected(&self, handle: &Handle, settings: &Settings) -> Option<Lsn> {
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
    pub(super) fn save_pending(&self, handle: &Handle) -> Option<Lsn> {
        let mut record = handle.mailbox.parked(|s| self.record(handle, s))?;
        record.pending = true;
        handle.set_recorded();
        Some(self.journal.append(&[Change::Session(&record)]))
    }

    /// Writes the record of a dormant session.
    pub(super) fn save_parked(&self, handle: &Handle) {
        let record = handle.mailbox.parked(|s| self.record(handle, s));
        if let Some(record) = record {
            self.journal.append(&[Change::Session(&record)]);
        }
    }

    /// Ends a session for good. Returns when that is durable, if the journal knows the session.
    pub(super) fn end_session(
        &self,
        handle: &Arc<Handle>,
        session: &mut Session,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let (backlog, queue) = handle.mailbox.end(&mut scratch.wakes);
        self.dormant.unwatch(handle);
        if self.registry.remove(handle) {
            self.metrics.sessions.of(SessionState::Active).sub(1);
        }
        let subscriptions = std::mem::take(&mut *handle.subscriptions.lock());
        self.member_left(handle, &subscriptions);
        self.metrics.subscriptions_active.sub(subscriptions.len() as u64);
        let mut shared = 0;
        for name in subscriptions.keys() {
            if let Ok(filter) = Filter::parse(name) {
                shared += u64::from(filter.share.is_some());
                self.router.unsubscribe(&filter, name, handle.no);
            }
        }
        self.routes_removed(subscriptions.keys(), handle.durable);
        let mut on_disk: VecDeque<Seq> = VecDeque::new();
        let mut begun: HashSet<Seq> = HashSet::default();
        let ended = Loss::SessionEnded;
        for l in session.take_leftovers() {
            match (l.delivery, l.seq) {
                (Some(d), _) => self.hand_on(handle, &d, l.begun, ended, now, scratch),
                (None, Some(seq)) if l.released => self.settle(handle, seq.get(), ended),
                (None, Some(seq)) => {
                    begun.insert(seq.get());
                    on_disk.push_back(seq.get());
                }
                (None, None) => {}
            }
        }
        for d in queue {
            self.hand_on(handle, &d, false, ended, now, scratch);
        }
        on_disk.extend(backlog);
        self.metrics.shared_subscriptions.sub(shared);
        let tombstone = self.tombstone(handle, now);
        if shared > 0 && !on_disk.is_empty() {
            // Takes a while: after a crash in between the session is still over, and its will is not due again.
            let lsn = handle.recorded().then(|| {
                let mut record = self.record(handle, session);
                (record.expiry_s, record.disconnected_at, record.will) = (0, Some(now), None);
                self.append_end(Change::Session(&record), tombstone.as_ref())
            });
            self.release(handle, lsn, tombstone);
            self.hand_on_from_journal(HandOn { from: handle.clone(), seqs: on_disk, begun, now });
            return lsn;
        }
        on_disk.into_iter().for_each(|seq| self.settle(handle, seq, ended));
        let lsn = self.forget(handle, tombstone.as_ref());
        self.release(handle, lsn, tombstone);
        lsn
    }

    /// What the journal keeps of an ended session until the cluster has forgotten it as well: whatever the cluster says is this
    /// node's must be in its journal after a crash, or nobody could tell that it is over.
    fn tombstone(&self, handle: &Handle, now: Time) -> Option<SessionRecord> {
        let owned = self.remote.is_some() && handle.durable && !handle.disowned();
        owned.then(|| SessionRecord {
            no: self.new_session_no(),
            client_id: handle.client_id.clone(),
            expiry_s: 0,
            disconnected_at: Some(now),
            will: None,
            created_at: handle.created_at,
            epoch: handle.epoch(),
            pending: false,
            user: handle.user(),
            queue_policy: None,
        })
    }

    fn append_end(&self, end: Change<'_>, tombstone: Option<&SessionRecord>) -> Lsn {
        match tombstone {
            Some(record) => self.journal.append(&[end, Change::Session(record)]),
            None => self.journal.append(&[end]),
        }
    }

    /// The cluster forgets that this node owns the session, once the journal has its end and its will; then the tombstone goes.
    fn release(&self, handle: &Handle, ended: Option<Lsn>, tombstone: Option<SessionRecord>) {
        let Some(remote) = self.remote.as_ref().filter(|_| !handle.disowned()) else { return };
        remote.sessions.note_ended(&handle.client_id, handle.epoch());
        let release = Over {
            client_id: handle.client_id.clone(),
            epoch: handle.epoch(),
            tombstone: tombstone.map(|t| t.no),
        };
        self.after_durable(
            remote,
            |r| &r.sessions.over,
            ended.unwrap_or(0),
            release,
            |broker, remote, over| over.into_iter().for_each(|o| broker.release_now(remote, o)),
        );
    }

    fn release_now(&self, remote: &Remote, over: Over) {
        let released = remote.ports.coordinator.release(&over.client_id, over.epoch);
        let Some(session) = over.tombstone else { return };
        let journal = self.journal.clone();
        remote.ports.tasks.spawn(Box::pin(async move {
            released.await;
            journal.append(&[Change::SessionEnd { session }]);
        }));
    }

    /// Reads what an ended session still had in the journal, a batch at a time, and hands it on.
    fn hand_on_from_journal(&self, mut job: HandOn) {
        if job.seqs.is_empty() {
            self.forget(&job.from, None);
            return;
        }
        let n = job.seqs.len().min(HAND_ON_BATCH_MAX);
        let batch: Vec<Seq> = job.seqs.drain(..n).collect();
        let (session, broker) = (job.from.no, self.me.clone());
        let done = move |found: Vec<Stored>| {
            let Some(broker) = broker.upgrade() else { return };
            let mut scratch = Scratch::default();
            for s in found {
                let begun = job.begun.contains(&s.seq);
                let ended = Loss::SessionEnded;
                broker.hand_on(&job.from, &delivery(s), begun, ended, job.now, &mut scratch);
            }
            broker.hand_on_from_journal(job);
        };
        self.journal.read(session, batch, Box::new(done));
    }

    fn settle(&self, handle: &Handle, seq: Seq, why: Loss) {
        self.metrics.lost(handle.whose(), why, 1);
        self.settle_row(seq, handle.no);
    }

    /// A session that is another node's now, or did not become this one's, goes from the journal with its messages `left`.
    pub(super) fn forget_rows(&self, session: SessionNo, left: &[Seq]) {
        for some in left.chunks(SETTLE_BATCH_MAX) {
            let settled: Vec<Change<'_>> =
                some.iter().map(|seq| Change::Settle { seq: *seq, session }).collect();
            self.journal.append(&settled);
        }
        self.journal.append(&[Change::SessionEnd { session }]);
    }

    fn forget(&self, handle: &Handle, tombstone: Option<&SessionRecord>) -> Option<Lsn> {
        let known = handle.durable || handle.recorded();
        known.then(|| self.append_end(Change::SessionEnd { session: handle.no }, tombstone))
    }

    /// Gives a message that a session does not get, because it has ended or for another loss `why`, to another member of its shared
    /// subscription, or drops it.
    pub(super) fn hand_on(
        &self,
        from: &Handle,
        d: &Delivery,
        begun: bool,
        why: Loss,
        now: Time,
        scratch: &mut Scratch,
    ) {
        let begun_exactly_once = begun && d.qos == QoS::ExactlyOnce;
        let may = !begun_exactly_once && d.qos > QoS::AtMostOnce && !d.message.expired(now);
        let handed = d.shared().filter(|_| may).and_then(|name| self.hand_to_member(from, d, name, scratch));
        let Some(given) = handed else {
            return match d.seq {
                Some(seq) => self.settle(from, seq.get(), why),
                None => self.metrics.lost(from.whose(), why, 1),
            };
        };
        if given {
            self.metrics.shared_redeliveries.inc();
        }
        if let Some(seq) = d.seq {
            self.settle_row(seq.get(), from.no);
        }
    }
}

impl Broker {
    /// Gives a message to another member than `from`: whether it took it; `None` if there is no other.
    fn hand_to_member(
        &self,
        from: &Handle,
        d: &Delivery,
        name: &Arc<str>,
        scratch: &mut Scratch,
    ) -> Option<bool> {
        // No session freezes between the look at it and its mailbox.
        let _inside = self.remote.as_ref().map(|r| r.gate.enter());
        let group = self.router.group(&Filter::parse(name).ok()?, name);
        let member = group.and_then(|g| self.pick(&g, from.no, d.message.topic()));
        match member.map(|m| (m.handle.mailbox.rank(), m)) {
            Some((Rank::Online | Rank::Dormant, member)) => {
                let target = Broker::target_of(&member);
                Some(self.deliver_one(&d.message, &target, d.retain, scratch).is_some())
            }
            Some((Rank::Moving | Rank::Left(_), _)) => {
                self.hand_to_others(&d.message, name, true).then_some(true)
            }
            Some((Rank::Gone, _)) | None => self.hand_to_others(&d.message, name, false).then_some(true),
        }
    }
}

fn will_record(w: &Will) -> WillRecord {
    let Will { message, delay_s, message_expiry_s, author } = w.clone();
    WillRecord { message, delay_s, message_expiry_s, author }
}

/// A message as the journal has it for one session.
pub(super) fn delivery(s: Stored) -> Delivery {
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
