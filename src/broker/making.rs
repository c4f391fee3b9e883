//! How sessions come into being: for a client, in the place of another, or as a record has them.

use super::Broker;
use super::delivery::Scratch;
use super::ending::Endings;
use super::handle::Handle;
use super::mailbox::{Frozen, Mailbox, OrderHold, Place};
use super::subscribe::{Added, subscriber};
use crate::clock::Time;
use crate::ports::{
    Epoch, OutboundState, Recovered, RecoveredSession, Seq, SessionRecord, SubscriptionRecord, WillRecord,
};
use crate::session::{Session, Settings, Will};
use crate::telemetry::metrics::SessionState;
use crate::topic::Filter;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A persistent session as a journal or another node has it, but for its subscriptions.
#[derive(Debug)]
pub struct Restored {
    /// The session's record.
    pub record: SessionRecord,
    /// When the session's client went.
    pub detached_at: Time,
    /// Packet identifiers of QoS 2 publishes of its client that are not released.
    pub inbound: Vec<u16>,
    /// Messages in flight to its client: packet identifier, number in the journal, whether PUBREC came.
    pub outbound: Vec<(u16, NonZeroU64, bool)>,
    /// Messages that wait, in order, and their bytes.
    pub queue: (VecDeque<Seq>, u64),
    /// What decides which nodes' messages the session takes already.
    pub hold: Option<Arc<OrderHold>>,
    /// Whether the cluster may still give the session to another node: until that is known the session takes no messages.
    pub frozen: bool,
}

impl Restored {
    /// A session as the journal had it, and its subscriptions. Its client was connected until `now` if it was at the end of the process
    /// before.
    pub fn of(r: RecoveredSession, now: Time) -> (Restored, Vec<SubscriptionRecord>) {
        let step = |(packet_id, seq, state)| {
            Some((packet_id, NonZeroU64::new(seq)?, state == OutboundState::Released))
        };
        let restored = Restored {
            detached_at: r.record.disconnected_at.unwrap_or(now),
            record: r.record,
            inbound: r.inbound,
            outbound: r.outbound.into_iter().filter_map(step).collect(),
            queue: (r.pending.into(), r.pending_bytes),
            hold: None,
            frozen: false,
        };
        (restored, r.subscriptions)
    }
}

impl Broker {
    /// The session of a client that has just connected to a node that is alone, and whether it was made for it. `None` if as many
    /// sessions as may be are there.
    pub fn session_for(&self, settings: &Settings, now: Time) -> Option<(Arc<Handle>, bool)> {
        self.registry.get_or_make(&settings.client_id, || {
            if self.sessions() >= self.limits.sessions() as u64 {
                return None;
            }
            let mailbox = Mailbox::new(Place::Attached, VecDeque::new(), 0);
            let (no, durable) = (self.new_session_no(), settings.expiry_s > 0);
            let handle = Handle::new(no, settings.client_id.clone(), durable, now, mailbox);
            handle.set_user(settings.user.clone());
            self.metrics.sessions.of(SessionState::Active).add(1);
            Some(Arc::new(handle))
        })
    }

    /// Makes a dormant session for a client that is on its way to it, and puts it nowhere.
    pub fn make_unused(&self, settings: &UnusedSession<'_>, now: Time) -> Arc<Handle> {
        let UnusedSession { client_id, durable, expiry_s, epoch } = *settings;
        let session = Box::new(Session::unused(durable, expiry_s, now));
        let mailbox = Mailbox::new(Place::Parked(session), VecDeque::new(), 0);
        let handle = Handle::new(self.new_session_no(), client_id.clone(), durable, now, mailbox);
        handle.set_epoch(epoch);
        handle.set_unused();
        Arc::new(handle)
    }

    /// Puts a new session in the place of `old`, which ends by a clean start. In the cluster it has the same record.
    pub fn replace(&self, old: &Arc<Handle>, settings: &Settings, now: Time) -> Arc<Handle> {
        let mailbox = Mailbox::new(Place::Attached, VecDeque::new(), 0);
        let no = self.new_session_no();
        let handle = Arc::new(Handle::new(no, old.client_id.clone(), old.durable, now, mailbox));
        handle.set_epoch(old.epoch());
        let (expiry_s, user) = old.expiry.by_store();
        handle.expiry.is_told(expiry_s, &user);
        handle.set_user(settings.user.clone());
        old.disown();
        // The old one no longer counts itself out when it ends: the new one takes its place there too.
        self.registry.insert(handle.clone());
        handle
    }

    /// Makes a session as a record has it, dormant and without subscriptions, and puts it nowhere.
    pub fn restore(&self, restored: Restored) -> Arc<Handle> {
        let Restored { record, detached_at, inbound, outbound, queue, hold, frozen } = restored;
        let author = record.will.as_ref().and_then(|will| will.author.clone());
        let will = record.will.map(will_of);
        let session =
            Box::new(Session::recovered(record.expiry_s, detached_at, will, &inbound, outbound.into_iter()));
        let place = match frozen {
            true => Place::Frozen(Box::new(Frozen::new(session))),
            false => Place::Parked(session),
        };
        let (queue, bytes) = queue;
        let mailbox = Mailbox::new(place, queue, bytes);
        mailbox.set_policy(record.queue_policy);
        if let Some(hold) = hold {
            mailbox.hold_order(hold);
        }
        let handle = Arc::new(Handle::new(record.no, record.client_id, true, record.created_at, mailbox));
        handle.set_recorded();
        handle.set_epoch(record.epoch);
        handle.set_user(record.user);
        handle.knows_author(author.as_deref());
        handle
    }

    /// Makes a session as the journal had it, and puts it into the registry. Later ones have higher numbers.
    pub fn recover(&self, restored: Restored) -> Arc<Handle> {
        self.next_session.fetch_max(restored.record.no + 1, Ordering::Relaxed);
        let handle = self.restore(restored);
        self.registry_insert(&handle);
        handle
    }

    /// Takes up the sessions and retained messages of a journal, on a node that is alone.
    pub fn recover_alone(&self, recovered: Recovered, now: Time) {
        recovered.retained.iter().for_each(|message| self.retained.set(message, || ()));
        let mut handles = Vec::new();
        for r in recovered.sessions {
            let was_connected = r.record.disconnected_at.is_none();
            let (restored, subscriptions) = Restored::of(r, now);
            let handle = self.recover(restored);
            self.subscribe_again(&handle, subscriptions);
            if was_connected {
                self.save_parked(&handle);
            }
            handles.push(handle);
        }
        // After all are subscribed, so that a will that is due finds every session.
        let mut scratch = Scratch::default();
        for handle in handles {
            self.wake_dormant(&handle, now, &mut scratch);
        }
        self.expire_retained(now);
    }

    /// Gives a session subscriptions that it was granted before. Returns their filters, each with true if the session did not have it.
    pub fn subscribe_again(
        &self,
        handle: &Arc<Handle>,
        records: Vec<SubscriptionRecord>,
    ) -> Vec<(Arc<str>, bool)> {
        let (mut added, mut routes) = (Added::default(), Vec::new());
        let mut subscriptions = handle.subscriptions.lock();
        for s in records {
            if let Ok(filter) = Filter::parse(&s.filter) {
                let entry = subscriber(handle, &filter, &s.filter, s.options, s.subscription_id);
                let is_new =
                    self.add(&mut subscriptions, &filter, &s.filter, entry, s.subscription_id, &mut added);
                routes.push((s.filter, is_new));
            }
        }
        drop(subscriptions);
        self.count_added(&added);
        routes
    }
}

/// The settings of a session that [`Broker::make_unused`] makes.
#[derive(Clone, Copy, Debug)]
pub struct UnusedSession<'a> {
    /// Client identifier.
    pub client_id: &'a Arc<str>,
    /// Whether the journal keeps the session's state.
    pub durable: bool,
    /// Session expiry interval, seconds.
    pub expiry_s: u32,
    /// The epoch under which this node claims the session.
    pub epoch: Epoch,
}

/// A will as the journal has it.
fn will_of(w: WillRecord) -> Will {
    let WillRecord { message, delay_s, message_expiry_s, author } = w;
    Will { message, delay_s, message_expiry_s, author }
}
