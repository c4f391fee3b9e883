//! The new owner's side of a takeover: the state comes in parts and is put into the journal as a pending session, its routes are
//! published, the session is claimed, and the old owner told (docs/decisions/0007-moving-sessions.md).
//!
//! Until the claim is granted everything here is void; from then on everything is here. Between the two only the store knows,
//! so the claim is repeated until it has answered, and nothing is thrown away before.

use super::parts::{self, Arriving, Head, Piece};
use super::{Cluster, Remote, RouteWait, durable};
use crate::broker::ending::delivery;
use crate::broker::handle::Handle;
use crate::broker::mailbox::{OrderHold, Wakes};
use crate::broker::making::Restored;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::names::shown;
use crate::ports::{
    Change, Claim, ClaimOutcome, Expected, MemberId, OutboundState, Owner, Recipient, Request, Response,
    Revision, Seq, SessionNo, SessionRecord, Stored,
};
use crate::session::Session;
use crate::telemetry::metrics::MoveResult;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

/// How long to wait before a request without an answer is repeated, milliseconds.
const ASK_PAUSE_MS: u64 = 20;

/// How long a takeover may go on that makes progress, milliseconds.
const TAKEOVER_MAX_MS: u64 = 600_000;

/// How long to wait before the old owner is told again how it came out, milliseconds.
const TELL_PAUSE_MS: u64 = 100;

/// How a takeover came out.
pub(super) enum Moved {
    /// The session is here.
    Here,
    /// Somebody else was faster: this is there, or nothing is known.
    Lost(Option<Owner>),
    /// The old owner does not have it, cannot give it away now, or does not answer.
    NotNow,
}

/// State as it comes in.
struct Incoming {
    head: Head,
    /// When that came.
    since: Time,
    no: SessionNo,
    /// In-flight messages: the old owner's number of each, and the new one.
    steps: HashMap<Seq, Seq>,
    backlog: VecDeque<Seq>,
    bytes: u64,
}

/// What both nodes log.
struct Trip<'a> {
    client_id: &'a Arc<str>,
    from: &'a MemberId,
    correlation: Arc<str>,
    since: Time,
    deadline: Time,
}

impl Cluster {
    /// Moves a session from the node that holds it to this one. The caller has the lane of the client identifier.
    pub(super) async fn take_over(
        self: &Arc<Cluster>,
        client_id: &Arc<str>,
        owner: &Owner,
        deadline: Time,
    ) -> Moved {
        let remote = self.remote.clone();
        let since = remote.now();
        let correlation = remote.sessions.correlation(&remote.me);
        let mut trip = Trip { client_id, from: &owner.holder, correlation, since, deadline };
        let quiet = self.broker.rivals.is_quiet(client_id, since);
        if !quiet {
            tracing::info!(client = %shown(client_id), correlation = %trip.correlation, from = %trip.from, "takeover begins");
        }
        let (outcome, at) = self.carry_over(&remote, &mut trip, owner).await;
        let (result, ms) = (outcome.result(), remote.now().since_ms(since));
        remote.metrics.moves.of(result).inc();
        if matches!(outcome, Moved::Here) {
            remote.metrics.move_seconds.record(ms as f64 / 1000.0);
        }
        let came = matches!(outcome, Moved::Here);
        if came && !self.broker.rivals.turn(client_id, &trip.from.node, remote.now()) || quiet {
            tracing::debug!(client = %shown(client_id), correlation = %trip.correlation, from = %trip.from, ?result, ms, at, "takeover ended");
        } else {
            tracing::info!(client = %shown(client_id), correlation = %trip.correlation, from = %trip.from, ?result, ms, at, "takeover ended");
        }
        self.tell(&remote, &trip, at);
        outcome
    }

    async fn carry_over(
        self: &Arc<Cluster>,
        remote: &Arc<Remote>,
        trip: &mut Trip<'_>,
        owner: &Owner,
    ) -> (Moved, Option<Revision>) {
        let incoming = match self.fetch(remote, trip, owner).await {
            Ok(incoming) => incoming,
            Err(why) => {
                if !self.broker.rivals.is_quiet(trip.client_id, remote.now()) {
                    tracing::info!(client = %shown(trip.client_id), correlation = %trip.correlation, why, "takeover does not succeed now");
                }
                return (Moved::NotNow, None);
            }
        };
        let (no, expiry_s, since) = (incoming.no, incoming.head.record.expiry_s, incoming.since);
        let user = incoming.head.record.user.clone();
        let hold = Arc::new(OrderHold::default());
        let (handle, routed) = self.settle_in(remote, incoming, owner, &hold);
        if !self.ready(remote, trip, routed).await {
            self.discard(remote, &handle);
            return (Moved::NotNow, None);
        }
        let claim = Claim {
            client_id: trip.client_id.clone(),
            expected: Expected::Read(owner.clone()),
            epoch: handle.epoch(),
            expiry_s,
            user: user.clone(),
            evict: None,
        };
        match remote.claim_certainly(claim).await {
            ClaimOutcome::Granted(at) => {
                self.knows(at);
                // Its client came before it was on its way: what was not due then is not due now.
                handle.mailbox.put_off(remote.now().since_ms(since));
                handle.expiry.is_told(expiry_s, &user);
                self.broker.registry_insert(&handle);
                self.broker.save_parked(&handle);
                self.broker.watch_parked(&handle);
                self.put_in_order(remote, hold, Some(owner.holder.clone()), at);
                tracing::debug!(client = %shown(trip.client_id), no, at, "session claimed");
                (Moved::Here, Some(at))
            }
            ClaimOutcome::Found(found) => {
                // An eviction is known with the claim that brought it.
                let at = match &found {
                    Some(owner) => owner.revision,
                    None => remote.revision_certainly().await,
                };
                remote.when_applied(at).await;
                let replaced = remote.sessions.replaced_by(trip.client_id, handle.epoch() + 1);
                match replaced.then(|| handle.mailbox.check_out()).flatten() {
                    // Over this node's head: the session was here, though the store could not say so.
                    Some(session) => {
                        let will_stays = remote.will_stays(trip.client_id, handle.epoch() + 1).await;
                        self.end_replaced(&handle, session, will_stays).await;
                        remote.deduplication.forget_session(no);
                        self.take_deferred_soon(remote);
                    }
                    None => self.discard(remote, &handle),
                }
                (Moved::Lost(found), None)
            }
        }
    }

    /// Gets all parts and puts them into the journal; what came is void if not all did.
    async fn fetch(&self, remote: &Remote, trip: &mut Trip<'_>, owner: &Owner) -> Result<Incoming, String> {
        let mut incoming: Option<Incoming> = None;
        let fetched = self.fetch_parts(remote, trip, owner, &mut incoming).await;
        match (fetched, incoming) {
            (Ok(()), Some(incoming)) => Ok(incoming),
            (fetched, incoming) => {
                if let Some(Incoming { no, steps, backlog, .. }) = incoming {
                    remote.deduplication.forget_session(no);
                    let came: Vec<Seq> = steps.into_values().chain(backlog).collect();
                    self.broker.forget_rows(no, &came);
                }
                Err(fetched.err().unwrap_or_else(|| "the first part did not come".to_owned()))
            }
        }
    }

    async fn fetch_parts(
        &self,
        remote: &Remote,
        trip: &mut Trip<'_>,
        owner: &Owner,
        incoming: &mut Option<Incoming>,
    ) -> Result<(), String> {
        let (client_id, correlation) = (trip.client_id.clone(), trip.correlation.clone());
        let epoch = owner.session.epoch;
        let mut request = Request::Freeze { client_id, epoch, correlation, reads: parts::VERSION.into() };
        let (mut part, mut arriving, mut before) = (0, Arriving::default(), None);
        loop {
            let (bytes, last) = self.ask(remote, trip, request).await?;
            trip.goes_on(remote);
            arriving.add(&bytes);
            drop(bytes);
            let now = remote.now();
            while let Some(piece) =
                arriving.next(now).map_err(|why| format!("a part cannot be read: {why}"))?
            {
                match (piece, incoming.as_mut()) {
                    (Piece::Head(head), None) => {
                        *incoming = Some(self.begin_incoming(remote, *head, trip, owner));
                    }
                    (Piece::Message(stored), Some(incoming)) => self.add_message(incoming, *stored),
                    (_, _) => return Err("the parts do not come in order".to_owned()),
                }
            }
            if last && !arriving.is_empty() {
                return Err("the last part is cut off".to_owned());
            }
            if last {
                return Ok(());
            }
            // No more than two parts wait for the journal.
            if let Some(lsn) = before.replace(self.broker.journal.append(&[]))
                && remote
                    .until(trip.deadline, Box::pin(durable::durable(self.broker.journal.clone(), lsn)))
                    .await
                    .is_none()
            {
                return Err("the journal does not follow".to_owned());
            }
            part += 1;
            let (client_id, correlation) = (trip.client_id.clone(), trip.correlation.clone());
            request = Request::Next { client_id, correlation, part };
        }
    }

    /// Makes a request, and repeats it while it is in time and gets no answer.
    async fn ask(
        &self,
        remote: &Remote,
        trip: &Trip<'_>,
        request: Request,
    ) -> Result<(bytes::Bytes, bool), String> {
        loop {
            let answer = remote.ports.peers.request(&trip.from.node, request.clone());
            match remote.until(trip.deadline, answer).await {
                None => return Err(format!("node {} did not answer in time", trip.from.node)),
                Some(Ok(Response::State { bytes, last })) => return Ok((bytes, last)),
                Some(Ok(Response::NotHere)) => {
                    return Err(format!("node {} does not have it", trip.from.node));
                }
                Some(Ok(Response::Refused(why))) => return Err(why.to_string()),
                Some(Ok(other)) => return Err(format!("node {} answered {other:?}", trip.from.node)),
                Some(Err(e)) if !remote.linked_to(trip.from) => return Err(e.to_string()),
                Some(Err(_)) if remote.now() < trip.deadline => {
                    remote.ports.tasks.sleep(ASK_PAUSE_MS).await;
                }
                Some(Err(e)) => return Err(e.to_string()),
            }
        }
    }

    fn begin_incoming(&self, remote: &Remote, head: Head, trip: &Trip<'_>, owner: &Owner) -> Incoming {
        let (no, since) = (self.broker.new_session_no(), remote.now());
        let record = SessionRecord {
            no,
            client_id: trip.client_id.clone(),
            epoch: owner.session.epoch + 1,
            pending: true,
            disconnected_at: Some(since.minus_ms(head.gone_ms)),
            ..head.record.clone()
        };
        let mut changes = vec![Change::Session(&record)];
        changes.extend(head.subscriptions.iter().map(|s| Change::Subscribe { session: no, subscription: s }));
        changes.extend(head.inbound.iter().map(|id| Change::InboundBegin { session: no, packet_id: *id }));
        let session = [no];
        let added = remote.deduplication.add_for(no, &head.seen);
        changes.extend(added.iter().map(|id| Change::Seen { id: *id, sessions: &session }));
        self.broker.journal.append(&changes);
        drop(changes);
        let (steps, backlog) = (HashMap::default(), VecDeque::new());
        Incoming { head: Head { record, ..head }, since, no, steps, backlog, bytes: 0 }
    }

    fn add_message(&self, incoming: &mut Incoming, stored: Stored) {
        let seq = self.broker.journal.next_seq();
        let recipients = [Recipient { session: incoming.no, ..stored.recipient.clone() }];
        let message =
            Change::Message { seq, id: stored.id, message: &stored.message, recipients: &recipients };
        let step = incoming.head.outbound.iter().find(|(_, old, _)| *old == stored.seq);
        match step {
            Some((packet_id, old, state)) => {
                let (session, packet_id, state) = (incoming.no, *packet_id, *state);
                self.broker.journal.append(&[message, Change::Outbound { session, packet_id, seq, state }]);
                incoming.steps.insert(*old, seq);
            }
            None => {
                self.broker.journal.append(&[message]);
                incoming.backlog.push_back(seq);
                incoming.bytes += delivery(Stored { seq, ..stored }).size() as u64;
            }
        }
    }

    /// Makes the session that came in: dormant, not in the registry, and with all its subscriptions. Publishes find it from here
    /// on; what they bring waits behind what is still on its way by the old owner.
    fn settle_in(
        &self,
        remote: &Remote,
        incoming: Incoming,
        owner: &Owner,
        hold: &Arc<OrderHold>,
    ) -> (Arc<Handle>, Option<RouteWait>) {
        let Incoming { head, no, steps, backlog, bytes, .. } = incoming;
        let record = SessionRecord { epoch: owner.session.epoch + 1, ..head.record };
        let outbound = head.outbound.into_iter().filter_map(|(packet_id, old, state)| {
            let seq = NonZeroU64::new(*steps.get(&old)?)?;
            Some((packet_id, seq, state == OutboundState::Released))
        });
        let handle = self.broker.restore(Restored {
            detached_at: record.disconnected_at.unwrap_or_else(|| remote.now()),
            record,
            inbound: head.inbound,
            outbound: outbound.collect(),
            queue: (backlog, bytes),
            hold: Some(hold.clone()),
            frozen: false,
        });
        remote.young.add_all(no, &head.subscriptions);
        let routes = self.broker.subscribe_again(&handle, head.subscriptions);
        let routed = self.routes_added(&routes, true);
        (handle, routed)
    }

    /// Waits until the routes are written and the state is durable; false if that does not come about in time.
    async fn ready(&self, remote: &Remote, trip: &Trip<'_>, routed: Option<RouteWait>) -> bool {
        if let Some(routed) = routed
            && remote.until(trip.deadline, routed.written()).await.is_none()
        {
            return false;
        }
        // All that was appended before this.
        let lsn = self.broker.journal.append(&[]);
        remote
            .until(trip.deadline, Box::pin(durable::durable(self.broker.journal.clone(), lsn)))
            .await
            .is_some()
    }

    /// The session that came in is void.
    fn discard(&self, remote: &Arc<Remote>, handle: &Arc<Handle>) {
        handle.disown();
        let subscriptions = self.forget_subscriptions(handle);
        self.broker.unsubscribe_all(handle, &subscriptions);
        let steps = handle.mailbox.parked(Session::outbound_steps).unwrap_or_default();
        let (backlog, _) = handle.mailbox.end(&mut Wakes::default());
        remote.deduplication.forget_session(handle.no);
        let came: Vec<Seq> = steps.into_iter().map(|(_, seq, _)| seq.get()).chain(backlog).collect();
        self.broker.forget_rows(handle.no, &came);
        self.take_deferred_soon(remote);
    }

    /// Tells the old owner how it came out, as soon as there is a link to it, until it has heard it or is gone: then it asks the
    /// store.
    fn tell(&self, remote: &Arc<Remote>, trip: &Trip<'_>, at: Option<Revision>) {
        let (client_id, correlation) = (trip.client_id.clone(), trip.correlation.clone());
        let taken = Request::Taken { client_id, correlation, claimed_at: at };
        let (remote, to) = (remote.clone(), trip.from.clone());
        let tasks = remote.ports.tasks.clone();
        let deadline = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
        tasks.spawn(Box::pin(async move {
            while remote.now() < deadline && !remote.members.superseded(&to) {
                let news = remote.sessions.news();
                let mut next = deadline;
                if remote.linked_to(&to) {
                    let answer =
                        remote.until(deadline, remote.ports.peers.request(&to.node, taken.clone())).await;
                    if matches!(answer, Some(Ok(_))) {
                        return;
                    }
                    next = remote.now().plus_ms(TELL_PAUSE_MS);
                }
                remote.until(next.min(deadline), news).await;
            }
        }));
    }
}

impl Trip<'_> {
    /// A part has come: a large session may take as long again for the next one.
    fn goes_on(&mut self, remote: &Remote) {
        let next = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
        self.deadline = self.deadline.max(next.min(self.since.plus_ms(TAKEOVER_MAX_MS)));
    }
}

impl Moved {
    fn result(&self) -> MoveResult {
        match self {
            Moved::Here => MoveResult::Came,
            Moved::Lost(_) => MoveResult::Lost,
            Moved::NotNow => MoveResult::Failed,
        }
    }
}
