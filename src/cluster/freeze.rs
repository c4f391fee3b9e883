//! The old owner's side of a takeover: the session is frozen, its state handed over in parts, and it leaves once it is known
//! who owns it (docs/decisions/0007-moving-sessions.md).
//!
//! Whatever is lost between the two nodes, the store decides: this node serves the session again only after it has claimed it
//! anew, and drops it only when the store, or the new owner, has said that it is the new owner's.

use super::durable::durable;
use super::outgoing::Outgoing;
use super::parts::{Format, Head, encode_head};
use super::sessions::Departed;
use super::{Cluster, Remote};
use crate::broker::delivery::Scratch;
use crate::broker::ending::Endings;
use crate::broker::handle::{Handle, Subscriptions};
use crate::broker::mailbox::{Found, Wakes};
use crate::clock::Time;
use crate::names::shown;
use crate::ports::{
    BoxFuture, Claim, ClaimOutcome, Epoch, Expected, Incarnation, MemberId, OutboundState, Response,
    Revision, Seq, SubscriptionRecord,
};
use crate::session::{Loss, Session};
use crate::telemetry::metrics::{MoveResult, SessionState};
use bytes::BytesMut;
use futures_util::future::{Either, select};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

/// How often to look for what nobody tells of, milliseconds.
const LOOK_MS: u64 = 20;

/// The pause before the store's revision is asked for again, milliseconds.
const REVISION_PAUSE_MS: u64 = 200;

const GIVEN_UP: &str = "the takeover was given up meanwhile";

/// A session taken out of its mailbox, so that no connection has it.
pub(super) enum Out {
    /// The session.
    Session(Box<Session>),
    /// The session is over, or with another node.
    Gone,
}

/// What became of a frozen session.
enum Fate {
    /// The session is with another node since this revision.
    Left(Revision),
    /// The session is over: another node has made a new one, at a clean start of the client.
    Replaced,
    /// The session was not moved: this node, its old owner, serves it again.
    Stays,
}

impl Cluster {
    /// Takes a session out of its mailbox; a connection that has it is closed.
    pub(super) async fn take_out(&self, handle: &Arc<Handle>) -> Out {
        self.take_out_boxed(handle).await
    }

    /// As [`Cluster::take_out`], as a future that owns what it needs.
    pub(super) fn take_out_boxed(&self, handle: &Arc<Handle>) -> BoxFuture<Out> {
        let (handle, metrics) = (handle.clone(), self.broker.metrics.clone());
        let mut place_in_line = 0;
        Box::pin(poll_fn(move |cx| {
            let mut wakes = Wakes::default();
            match handle.mailbox.claim(&mut place_in_line, cx.waker(), &mut wakes) {
                Found::Session(session) => {
                    metrics.sessions.of(SessionState::Dormant).sub(1);
                    metrics.sessions.of(SessionState::Active).add(1);
                    Poll::Ready(Out::Session(session))
                }
                Found::Gone => Poll::Ready(Out::Gone),
                Found::Busy => Poll::Pending,
                Found::Superseded => {
                    // A connection on this node was faster; it has to leave too.
                    place_in_line = 0;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }))
    }

    /// Freezes a session for `to` and begins to hand it over.
    pub(super) async fn freeze(
        self: &Arc<Cluster>,
        to: MemberId,
        client_id: Arc<str>,
        epoch: Epoch,
        correlation: Arc<str>,
        reads: u32,
    ) -> Response {
        let remote = self.remote.clone();
        let since = remote.now();
        let deadline = since.plus_ms(remote.limits.takeover_timeout_ms);
        let lane = remote.sessions.lanes.join(&client_id);
        let asking = remote.sessions.asked.join(&correlation);
        loop {
            if let Some(answer) = remote.asked_before(&to, &client_id, &correlation) {
                return answer;
            }
            let (reconciled, turn) = (remote.sessions.when_reconciled(), lane.turn());
            let ready = Box::pin(async move {
                reconciled.await;
                turn.await;
            });
            // What this one waits for may be an earlier takeover by the same node, which may be frozen only by now.
            if remote.until(deadline.min(remote.now().plus_ms(LOOK_MS)), ready).await.is_some() {
                break;
            }
            if deadline <= remote.now() {
                return Response::Refused("the session is busy".into());
            }
        }
        let here = |h: &Arc<Handle>| h.mailbox.present() && h.epoch() == epoch && !h.disowned();
        let Some(handle) = self.broker.session(&client_id).filter(here) else { return Response::NotHere };
        if !handle.durable {
            return Response::Refused("the session is not kept beyond its connection".into());
        }
        // Its client has come: what is not due by now waits.
        self.broker.dormant.unwatch(&handle);
        remote.ordered(&handle, deadline).await;
        let refused = if !remote.linked_to(&to) {
            // It would be given up at once, with its client gone.
            Some("the node that has the session has no link to this one")
        } else if remote.is_full() {
            Some("etcd takes no writes")
        } else {
            asking.given_up().then_some(GIVEN_UP)
        };
        if let Some(why) = refused {
            self.broker.watch_parked(&handle);
            return Response::Refused(why.into());
        }
        let Out::Session(mut session) = self.take_out(&handle).await else { return Response::NotHere };
        if handle.take_unused() {
            // No client was told of it, and none is to hear of it now.
            self.end_session(&handle, &mut session, remote.now(), &mut Scratch::default());
            return Response::NotHere;
        }
        if let Some(open) = remote.outbox.publishes_settled(handle.no)
            && remote.until(deadline, open.wait()).await.is_none()
        {
            self.broker.park(&handle, session, &mut Wakes::default());
            return Response::Refused("QoS 2 publishes of the session wait for other nodes".into());
        }
        // Its new owner takes a QoS 2 publish that is repeated there for one that is safe here.
        if !session.inbound_ids().is_empty() {
            let journal = self.broker.journal.clone();
            let lsn = journal.append(&[]);
            if remote.until(deadline, Box::pin(durable(journal, lsn))).await.is_none() {
                self.broker.park(&handle, session, &mut Wakes::default());
                return Response::Refused("what the session has published is not durable yet".into());
            }
        }
        if asking.given_up() {
            self.broker.park(&handle, session, &mut Wakes::default());
            return Response::Refused(GIVEN_UP.into());
        }
        let format = Format::for_reader(reads);
        let Some(state) = self.freeze_out(&remote, &handle, session, since, format) else {
            return Response::NotHere;
        };
        let outgoing =
            Arc::new(Outgoing::new(correlation, to, handle, (since, remote.now()), format, state, lane));
        if !self.broker.rivals.is_quiet(&client_id, remote.now()) {
            tracing::info!(
                client = %shown(&client_id), correlation = %outgoing.correlation, to = %outgoing.to, epoch,
                "session frozen for another node"
            );
        }
        remote.metrics.sessions_frozen.add(1);
        remote.sessions.outgoing.lock().insert(client_id, outgoing.clone());
        if asking.given_up() {
            outgoing.taken.set(None);
        }
        let cluster = self.clone();
        let first = outgoing.first().unwrap_or(Response::NotHere);
        remote.ports.tasks.spawn(Box::pin(async move { cluster.see_off(outgoing).await }));
        first
    }

    /// Freezes a session that was taken out: its state as it was `since`, when its client had come, but for the messages, and
    /// those, which are still to be read.
    fn freeze_out(
        &self,
        remote: &Remote,
        handle: &Arc<Handle>,
        mut session: Box<Session>,
        since: Time,
        format: Format,
    ) -> Option<(BytesMut, VecDeque<Seq>)> {
        let mut scratch = Scratch::default();
        if self.run_timers(handle, &mut session, since, &mut scratch) {
            return None;
        }
        let steps = session.outbound_steps();
        let subscriptions = handle.subscriptions.lock();
        let mut head = Head {
            record: self.broker.record(handle, &session),
            gone_ms: session.detached_at().map_or(0, |at| since.since_ms(at)),
            subscriptions: subscriptions
                .iter()
                .map(|(filter, s)| SubscriptionRecord {
                    filter: filter.clone(),
                    options: s.options,
                    subscription_id: s.id,
                    older: remote.older_than(handle.no, filter),
                })
                .collect(),
            inbound: session.inbound_ids(),
            outbound: steps
                .iter()
                .map(|(id, seq, released)| {
                    let state = if *released { OutboundState::Released } else { OutboundState::Sent };
                    (*id, seq.get(), state)
                })
                .collect(),
            seen: Vec::new(),
        };
        drop(subscriptions);
        let mut left: VecDeque<Seq> = head.outbound.iter().map(|(_, seq, _)| *seq).collect();
        // Nobody is between the note that the session has a publish and its mailbox: both are handed over, or neither is.
        let (waiting, dropped) = remote.barrier.closed(|| {
            head.seen = remote.deduplication.take_for(handle.no);
            handle.mailbox.freeze(session, &mut scratch.wakes)
        });
        self.broker.metrics.lost(handle.whose(), Loss::Offline, dropped as u64);
        left.extend(waiting);
        Some((encode_head(&head, format, remote.now()), left))
    }

    /// The new owner says how its takeover came out.
    pub(super) async fn taken(&self, client_id: &str, correlation: &str, at: Option<Revision>) -> Response {
        let remote = &self.remote;
        if at.is_none() {
            remote.sessions.asked.give_up(correlation);
        }
        if let Some(outgoing) = remote.sessions.outgoing(client_id, correlation) {
            outgoing.taken.set(at);
            outgoing.settled.wait().await;
        }
        Response::Done
    }

    /// Sees a frozen session to wherever it goes.
    async fn see_off(self: Arc<Cluster>, out: Arc<Outgoing>) {
        let remote = self.remote.clone();
        let said = match select(out.taken.wait(), Box::pin(remote.silence(&out))).await {
            Either::Left((said, _)) => said,
            Either::Right(_) => {
                tracing::warn!(
                    client = %shown(&out.handle.client_id), correlation = %out.correlation, to = %out.to,
                    "nothing heard of a takeover any more; asking etcd whose the session is"
                );
                None
            }
        };
        let fate = match said {
            Some(at) => Fate::Left(at),
            None => self.claim_back(&remote, &out.handle).await,
        };
        let ms = remote.now().since_ms(out.since);
        let quiet = self.broker.rivals.is_quiet(&out.handle.client_id, remote.now());
        match fate {
            Fate::Left(at) => {
                if !quiet {
                    tracing::info!(client = %shown(&out.handle.client_id), correlation = %out.correlation, to = %out.to, at, ms, "session left");
                }
                remote.metrics.moves.of(MoveResult::Left).inc();
                self.depart(&out.handle, at);
            }
            Fate::Replaced => {
                remote.metrics.moves.of(MoveResult::Left).inc();
                if let Some(session) = out.handle.mailbox.thaw() {
                    let will_stays = remote.will_stays(&out.handle.client_id, out.handle.epoch() + 1).await;
                    self.end_replaced(&out.handle, session, will_stays).await;
                }
                self.take_deferred_soon(&remote);
            }
            Fate::Stays => {
                if !quiet {
                    tracing::info!(client = %shown(&out.handle.client_id), correlation = %out.correlation, ms, "session stays");
                }
                remote.metrics.moves.of(MoveResult::Stayed).inc();
                self.stay(&out.handle);
            }
        }
        remote.metrics.sessions_frozen.sub(1);
        remote.sessions.outgoing.lock().remove(&out.handle.client_id);
        out.settled.set(());
    }

    /// Serves a session again that was frozen.
    pub(super) fn stay(&self, handle: &Arc<Handle>) {
        let Some(session) = handle.mailbox.thaw() else { return };
        self.broker.save(handle, &session);
        self.broker.park(handle, session, &mut Wakes::default());
        self.take_deferred_soon(&self.remote);
    }

    /// Claims a frozen session anew, so that nobody else can any more, unless somebody had already.
    async fn claim_back(&self, remote: &Remote, handle: &Handle) -> Fate {
        loop {
            let owner = remote.owner_certainly(&handle.client_id).await;
            let (expected, epoch, expiry_s) = match owner {
                Some(o) if o.holder == remote.me => {
                    let (epoch, expiry_s) = (o.session.epoch + 1, o.session.expiry_s);
                    (Expected::Read(o), epoch, expiry_s)
                }
                Some(o) => return remote.gone(handle, o.revision).await,
                None => {
                    let known = remote.applied().max(remote.me.registered_at());
                    let at = remote.revision_certainly().await;
                    // Nobody ends what this node has: another node claimed it, and there it ended.
                    if at >= known {
                        return remote.gone(handle, at).await;
                    }
                    // The store went back in time (decision 10).
                    (Expected::Absent, handle.epoch() + 1, 1)
                }
            };
            let client_id = handle.client_id.clone();
            let user = handle.user();
            let claim = Claim { client_id, expected, epoch, expiry_s, user: user.clone(), evict: None };
            if let ClaimOutcome::Granted(_) = remote.claim_certainly(claim).await {
                handle.set_epoch(epoch);
                handle.expiry.is_told(expiry_s, &user);
                return Fate::Stays;
            }
        }
    }

    /// A frozen session is with another node since `at`.
    pub(super) fn depart(self: &Arc<Cluster>, handle: &Arc<Handle>, at: Revision) {
        let remote = self.remote.clone();
        handle.disown();
        let Some((session, backlog)) = handle.mailbox.depart(at, &mut Wakes::default()) else { return };
        let in_flight = session.outbound_steps().into_iter().map(|(_, seq, _)| seq.get());
        let left: Vec<Seq> = in_flight.chain(backlog).collect();
        drop(session);
        self.moved_at(&remote, at);
        self.take_deferred_soon(&remote);
        self.count_out(handle);
        let subscriptions = self.forget_subscriptions(handle);
        remote.metrics.sessions_departed.add(1);
        let entry = Departed { handle: handle.clone(), subscriptions };
        let key = (at, handle.no);
        let mut departed = remote.sessions.departed.lock();
        departed.insert(key, entry);
        let oldest = (departed.len() > remote.limits.departed).then(|| departed.pop_first()).flatten();
        drop(departed);
        if let Some(((at, _), oldest)) = oldest {
            // Before it goes: who looks for it from now on has to look again elsewhere.
            remote.forget_move(at);
            self.unroute(&remote, oldest);
        }
        let (cluster, handle) = (self.clone(), handle.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            remote.when_applied(at).await;
            remote.deduplication.forget_session(handle.no);
            cluster.broker.forget_rows(handle.no, &left);
            drop(left);
            remote.when_all_applied(at, remote.limits.suback_wait_ms).await;
            // What was not answered comes again as it was matched then, over a new connection or from a node that was away.
            remote.forget_move(at);
            let entry = remote.sessions.departed.lock().remove(&key);
            if let Some(entry) = entry {
                cluster.unroute(&remote, entry);
            }
        }));
    }

    fn unroute(&self, remote: &Remote, departed: Departed) {
        remote.metrics.sessions_departed.sub(1);
        self.broker.unsubscribe_all(&departed.handle, &departed.subscriptions);
    }

    /// Counts a session's subscriptions out, here and in the cluster; the router keeps them.
    pub(super) fn forget_subscriptions(&self, handle: &Handle) -> Subscriptions {
        let subscriptions = std::mem::take(&mut *handle.subscriptions.lock());
        self.member_left(handle, &subscriptions);
        self.broker.metrics.subscriptions_active.sub(subscriptions.len() as u64);
        let shared = subscriptions.keys().filter(|name| name.starts_with("$share/")).count();
        self.broker.metrics.shared_subscriptions.sub(shared as u64);
        self.routes_removed(subscriptions.keys(), handle.durable);
        subscriptions
    }
}

impl Remote {
    /// Whether the store answers and takes no writes. One that only this node does not reach is no reason to keep a session: the
    /// other node may.
    fn is_full(&self) -> bool {
        let store = &self.ports.coordinator;
        store.reachable() && !store.writable()
    }

    /// Completes when nothing has been heard of a takeover for too long, or nothing can be any more: who asked has been started
    /// again, or cannot be reached.
    async fn silence(&self, out: &Outgoing) {
        loop {
            let end = out.touched().plus_ms(self.limits.takeover_timeout_ms);
            let news = self.sessions.news();
            if end <= self.now() || self.members.superseded(&out.to) || !self.linked_to(&out.to) {
                return;
            }
            self.until(end, news).await;
        }
    }

    /// What became of a session that is not this node's since `at`, or an earlier revision.
    async fn gone(&self, handle: &Handle, at: Revision) -> Fate {
        // An eviction is known with the claim that brought it.
        self.when_applied(at).await;
        let replaced = self.sessions.replaced_by(&handle.client_id, handle.epoch() + 1);
        if replaced { Fate::Replaced } else { Fate::Left(at) }
    }

    /// A revision of the store, not older than what was read before: asked for until the store has answered.
    pub(super) async fn revision_certainly(&self) -> Revision {
        loop {
            if let Ok(revision) = self.ports.coordinator.read_revision().await {
                return revision;
            }
            self.ports.tasks.sleep(REVISION_PAUSE_MS).await;
        }
    }

    /// Waits until nothing is kept back for the sake of order: what is handed over must be complete up to some point.
    async fn ordered(&self, handle: &Handle, deadline: Time) {
        loop {
            let reports = self.sessions.reports();
            let away: Vec<Incarnation> = self.members.away().into_iter().map(|p| p.incarnation).collect();
            if !handle.mailbox.keeps_back(&away) || self.until(deadline, reports).await.is_none() {
                return;
            }
        }
    }
}
