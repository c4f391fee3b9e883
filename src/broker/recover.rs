//! Starting: the broker as its journal had it.

use super::bridges::Bridges;
use super::dormant::Dormant;
use super::handle::Handle;
use super::limits::Live;
use super::mailbox::{Frozen, Mailbox, OrderHold, Place};
use super::publish::Scratch;
use super::receiving::Receiving;
use super::registry::Registry;
use super::remote::Remote;
use super::retained::Retained;
use super::rivals::Rivals;
use super::router::Router;
use super::subscribe::{Added, subscriber};
use super::{Broker, Limits, Ports};
use crate::clock::Time;
use crate::ports::{OutboundState, Recovered, RecoveredSession, WillRecord};
use crate::session::{Session, Will};
use crate::telemetry::metrics::SessionState;
use crate::telemetry::{Metrics, Repeats};
use crate::topic::Filter;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

impl Broker {
    /// A broker with what the journal had. Sessions that were connected at the crash count as disconnected `now`: their
    /// expiry and will delay begin here.
    pub fn new(
        limits: Limits,
        ports: Ports,
        metrics: Arc<Metrics>,
        mut recovered: Recovered,
        now: Time,
    ) -> Arc<Broker> {
        let remote = ports.cluster.map(|c| Arc::new(Remote::new(c, limits.remote, metrics.clone())));
        let retained = remote.as_ref().map_or_else(Arc::default, |r| r.retained.clone());
        let broker = Arc::new_cyclic(|me| Broker {
            limits: Live::new(&limits),
            metrics,
            pressure: Default::default(),
            journal: ports.journal,
            authorizer: ports.authorizer,
            permissions: ports.permissions,
            bans: ports.bans,
            remote,
            registry: Registry::default(),
            router: Router::default(),
            retained,
            own: Retained::default(),
            bridges: Bridges::default(),
            dormant: Dormant::default(),
            receiving: Receiving::new(limits.arriving_bytes),
            rivals: Rivals::default(),
            users: Arc::default(),
            thefts: Repeats::default(),
            refusals: Repeats::default(),
            next_session: AtomicU64::new(recovered.next_session.max(1)),
            draining: AtomicBool::new(false),
            me: me.clone(),
        });
        // First: what is published from here on comes after what was begun before.
        broker.recover_publishes(&mut recovered);
        // In a cluster the store has them, and the journal only what the store has not taken yet.
        if broker.remote.is_none() {
            recovered.retained.iter().for_each(|message| broker.retained.set(message, || ()));
        }
        // What others sent here before may come after what they send now.
        let hold = broker.remote.as_ref().map(|r| r.sessions.hold.clone());
        let handles: Vec<_> =
            recovered.sessions.into_iter().map(|s| broker.recover_session(s, &hold, now)).collect();
        // After all are subscribed, so that a will that is due finds every session.
        let mut scratch = Scratch::default();
        // In a cluster only once it is known which of them are still this node's.
        if broker.remote.is_none() {
            for handle in handles {
                broker.wake_dormant(&handle, now, &mut scratch);
            }
        }
        broker.expire_retained(now);
        broker.take_up_parked(recovered.parked);
        broker.start_remote();
        broker.start_publishing();
        broker
    }

    fn recover_session(&self, r: RecoveredSession, hold: &Option<Arc<OrderHold>>, now: Time) -> Arc<Handle> {
        let record = r.record;
        let (pending, epoch, user) = (record.pending, record.epoch, record.user);
        let author = record.will.as_ref().and_then(|will| will.author.clone());
        let queue_policy = record.queue_policy;
        let will = record.will.map(will_of);
        let steps = r.outbound.into_iter().filter_map(|(packet_id, seq, state)| {
            Some((packet_id, NonZeroU64::new(seq)?, state == OutboundState::Released))
        });
        let detached_at = record.disconnected_at.unwrap_or(now);
        let session = Session::recovered(record.expiry_s, detached_at, will, &r.inbound, steps);
        let was_connected = record.disconnected_at.is_none();
        let place = match &self.remote {
            Some(_) => Place::Frozen(Box::new(Frozen::new(Box::new(session)))),
            None => Place::Parked(Box::new(session)),
        };
        let mailbox = Mailbox::new(place, r.pending.into(), r.pending_bytes);
        mailbox.set_policy(queue_policy);
        if let Some(hold) = hold {
            mailbox.hold_order(hold.clone());
        }
        let handle = Arc::new(Handle::new(record.no, record.client_id, true, record.created_at, mailbox));
        handle.set_recorded();
        handle.set_epoch(epoch);
        handle.set_user(user);
        handle.knows_author(author.as_deref());
        self.next_session.fetch_max(record.no + 1, Ordering::Relaxed);
        self.registry.insert(handle.clone());
        self.metrics.sessions.of(SessionState::Dormant).add(1);
        let mut added = Added::default();
        let mut subscriptions = handle.subscriptions.lock();
        let mut routes = Vec::new();
        for s in r.subscriptions {
            // The journal has only what a session was granted.
            if let Ok(filter) = Filter::parse(&s.filter) {
                let entry = subscriber(&handle, &filter, &s.filter, s.options, s.subscription_id);
                if let Some(remote) = self.remote.as_ref().filter(|_| !s.older.is_empty()) {
                    remote.young.add(handle.no, &s.filter, s.older.into());
                }
                let is_new =
                    self.add(&mut subscriptions, &filter, &s.filter, entry, s.subscription_id, &mut added);
                routes.push((s.filter, is_new));
            }
        }
        drop(subscriptions);
        self.routes_added(&routes, true);
        self.count_added(&added);
        if was_connected {
            self.save_parked(&handle);
        }
        self.keep_aside(&handle, pending, was_connected);
        handle
    }
}

/// A will as the journal has it.
pub(super) fn will_of(w: WillRecord) -> Will {
    let WillRecord { message, delay_s, message_expiry_s, author } = w;
    Will { message, delay_s, message_expiry_s, author }
}
