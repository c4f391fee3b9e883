//! From CONNECT to CONNACK: who the client is, which session it gets, and what must be durable before it is told.

use super::exchange::Exchange;
use super::{Channel, Open, State, Waiting};
use crate::broker::handle::Attached;
use crate::broker::handle::Handle;
use crate::broker::publish::STALLED;
use crate::broker::rights::author_of;
use crate::clock::Time;
use crate::cluster::sessions::Run;
use crate::mqtt::decode::{Answer, DecodeError};
use crate::mqtt::encode::{self, ConnAck};
use crate::mqtt::packet::Connect;
use crate::mqtt::{Reason, Version};
use crate::names::shown;
use crate::node::quotas::UserPlace;
use crate::node::{Claim, Claimant, Node};
use crate::ports::{Account, BoxFuture, Credentials, Decision, Identity, Lsn, Verdict};
use crate::session::{CloseCause, Effect, Failure, Loss, Session, Settings};
use crate::telemetry::metrics::{ErrorType, RefuseReason};
use crate::user::SessionUser;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{self, Poll, Waker};

/// Bytes of a CONNACK without properties.
pub(super) const REFUSAL_BYTES: u32 = 5;

/// How much longer than the procedure that brings the session a connection waits for it, milliseconds.
const BRINGING_GRACE_MS: u64 = 2_000;

/// More bytes than any CONNACK of ours has.
const CONNACK_BYTES_MAX: u32 = 256;

/// What is told whose connection would need memory that is not there.
const MEMORY_SHORT: &str = "this node's memory is used up (limits.memory_refuse_at)";

/// A client between CONNECT and CONNACK.
#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) settings: Settings,
    /// What let it in, once something has.
    account: Arc<Account>,
    /// Of enhanced authentication: the method, and what CONNACK says to the client.
    pub(super) proof: Option<(Box<str>, Vec<u8>)>,
    pub(super) deadline: Time,
    /// When the ends of sessions that a clean start replaced are durable.
    ended: Lsn,
    /// Its place among the connections of its user.
    place: Option<UserPlace>,
    pub(super) step: Step,
}

#[derive(Debug)]
pub(super) enum Step {
    /// The authorizer decides who the client is.
    Deciding(Deciding),
    /// The client shows who it is, in several steps.
    Exchanging(Exchange),
    /// The session has to be brought to this node.
    Bringing(Arc<Run>),
    /// Another connection has to leave the session first.
    Claiming(Claimant),
    /// The session's record must be durable.
    Recording(Granted, Lsn),
    Done,
}

/// A decision that takes its time.
pub(super) struct Deciding(BoxFuture<Verdict>);

impl std::fmt::Debug for Deciding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deciding")
    }
}

#[derive(Debug)]
pub(super) struct Granted {
    handle: Arc<Handle>,
    session: Box<Session>,
    present: bool,
}

/// A client that was told goodbye while its last change is not durable yet.
#[derive(Debug)]
pub(super) struct Leaving {
    pub lsn: Lsn,
    pub deadline: Time,
}

impl Leaving {
    pub fn done(&self, durable: Lsn, now: Time) -> bool {
        self.lsn <= durable || self.deadline <= now
    }
}

impl Connecting {
    pub fn deadline(&self) -> Option<Time> {
        Some(self.deadline)
    }

    /// A client that shows who it is in several steps.
    pub fn exchanging(settings: Settings, exchange: Exchange, deadline: Time) -> Connecting {
        let step = Step::Exchanging(exchange);
        Connecting { settings, account: Arc::default(), proof: None, deadline, ended: 0, place: None, step }
    }

    /// Whether the client is to say something.
    pub fn listens(&self) -> bool {
        matches!(self.step, Step::Exchanging(_))
    }
}

impl Channel {
    pub(super) fn connect(&mut self, c: &Connect<'_>, waker: &Waker, now: Time, cx: &mut super::Context) {
        let door = self.door.clone();
        let who = Credentials {
            version: c.version,
            client_id: c.client_id,
            username: c.username,
            password: c.password,
            door: &door,
        };
        let limits = self.session_limits();
        let assign = || assigned_id(&self.node, now);
        let settings = if self.terms.as_ref().is_some_and(|t| !t.speaks(c.version)) {
            let why = format!(
                "MQTT {} is not spoken here (listeners.{}.versions)",
                c.version.name(),
                self.door.listener
            );
            Err(Failure::new(Reason::UnsupportedProtocolVersion, why))
        } else if self.unwelcome {
            Err(Reason::QuotaExceeded.into())
        } else if self.node.draining() {
            Err(Reason::ServerUnavailable.into())
        } else if self.node.pressure.refuses() {
            // The log has said so when it began.
            self.said = true;
            self.node.broker.metrics.memory_refused.inc();
            Err(Failure::new(Reason::QuotaExceeded, MEMORY_SHORT))
        } else if let Some(Err(why)) = self.node.remote().map(|r| r.may_serve()) {
            tracing::warn!(peer = %self.door.peer, client = %shown(c.client_id), why, "connection refused: this node may not serve");
            self.said = true;
            Err(Reason::ServerUnavailable.into())
        } else if let Some(method) = c.authentication_method {
            return self.begin_exchange(c, method, &who, limits, waker, now, cx);
        } else {
            Settings::negotiate(c, limits, assign).and_then(|s| {
                // Before anything is checked that costs more. Its user is not known yet, only whom it claims to be.
                let claimed = Account { user: c.username.map(Arc::from), ..Account::default() };
                self.not_banned(&self.identity(&s, &Arc::new(claimed)), now).map(|()| s)
            })
        };
        let begun = settings.and_then(|settings| match self.node.authorizer.connect(&who) {
            Decision::Now(verdict) => {
                self.said |= verdict.is_err();
                self.let_in(settings, verdict?, now)
            }
            Decision::Later(decision) => Ok(Connecting {
                settings,
                account: Arc::default(),
                proof: None,
                deadline: now.plus_ms(self.node.broker.limits.connect_timeout_ms()),
                ended: 0,
                place: None,
                step: Step::Deciding(Deciding(decision)),
            }),
        });
        let connecting = match begun {
            Ok(connecting) => connecting,
            Err(_) if c.maximum_packet_size.is_some_and(|max| max < REFUSAL_BYTES) => {
                self.state = State::Closed;
                return;
            }
            Err(failure) => {
                // The log has said whom a ban refuses.
                self.said |= failure.reason == Reason::Banned;
                let max =
                    if c.request_problem_information { c.maximum_packet_size.unwrap_or(u32::MAX) } else { 0 };
                return self.refuse_saying(c.version, c.client_id, &failure, max, cx);
            }
        };
        self.state = State::Connecting(Box::new(connecting));
        self.poll_connecting(waker, now, cx);
    }

    /// A client is who its account says: looks for its session.
    pub(super) fn let_in(
        &self,
        mut settings: Settings,
        account: Arc<Account>,
        now: Time,
    ) -> Result<Connecting, Failure> {
        settings.user = SessionUser::of(account.user.as_ref());
        let who = self.identity(&settings, &account);
        self.not_banned(&who, now)?;
        self.not_too_often(&who, now)?;
        self.may_have(&settings, &account)?;
        if let Some(will) = &mut settings.will {
            will.author = Some(Arc::new(author_of(&who)));
        }
        tracing::debug!(
            peer = %self.door.peer, client = %shown(&settings.client_id), version = ?settings.version, user = %settings.user, "CONNECT"
        );
        let mut wait = self.node.broker.limits.connect_timeout_ms();
        let step = match self.node.bring_here(&settings) {
            Some(run) => {
                // The procedure knows better why it takes too long, and says so.
                wait = wait.max(self.node.takeover_timeout_ms()) + BRINGING_GRACE_MS;
                Step::Bringing(run)
            }
            None => Step::Claiming(Claimant::default()),
        };
        let deadline = now.plus_ms(wait);
        Ok(Connecting { settings, account, proof: None, deadline, ended: 0, place: None, step })
    }

    /// Refuses a client that is banned.
    fn not_banned(&self, who: &Identity, now: Time) -> Result<(), Failure> {
        self.node.bans.banned(who, now).map_or(Ok(()), |why| Err(Failure::new(Reason::Banned, why)))
    }

    /// Counts the connects of a client that was let in, and bans one that connects too often.
    fn not_too_often(&self, who: &Identity, now: Time) -> Result<(), Failure> {
        self.node.bans.connects(who, now).map_or(Ok(()), |why| Err(Failure::new(Reason::Banned, why)))
    }

    /// Whether a client that was let in may have its will, and can be told what it is granted.
    fn may_have(&self, s: &Settings, account: &Arc<Account>) -> Result<(), Failure> {
        if (s.expiry_s > 0 || s.will.is_some()) && self.node.broker.journal.stalled() {
            return Err(Failure::new(Reason::ServerUnavailable, STALLED));
        }
        if let Some(will) = &s.will {
            let who = self.identity(s, account);
            if !self.node.broker.may_leave(&who, &will.message) {
                return Err(Reason::NotAuthorized.into());
            }
            // Nobody can be told any more when it is due.
            if will.message.retain()
                && let Err(why) = self.node.could_retain(&will.message)
            {
                let topic = will.message.topic();
                tracing::info!(peer = %self.door.peer, client = %shown(&s.client_id), topic = %shown(topic), %why, "the will cannot be retained");
                return Err(Failure::new(
                    Reason::QuotaExceeded,
                    format!("the will cannot be retained: {why}"),
                ));
            }
        }
        if s.maximum_packet_size < CONNACK_BYTES_MAX {
            let mut connack = Vec::new();
            encode::connack(&mut connack, s.version, &s.connack(true));
            if connack.len() > s.maximum_packet_size as usize {
                return Err(Reason::ImplementationSpecificError.into());
            }
        }
        Ok(())
    }

    /// Who a client with these settings is.
    fn identity(&self, s: &Settings, account: &Arc<Account>) -> Identity {
        Identity {
            client_id: s.client_id.clone(),
            username: account.user.clone(),
            door: self.door.clone(),
            account: account.clone(),
        }
    }

    pub(super) fn poll_connecting(&mut self, waker: &Waker, now: Time, cx: &mut super::Context) {
        loop {
            let State::Connecting(c) = &mut self.state else { return };
            // A node that leaves hands the session over instead.
            if c.deadline <= now || self.node.draining() {
                return self.refuse_connecting(Reason::ServerUnavailable, now, cx);
            }
            match std::mem::replace(&mut c.step, Step::Done) {
                Step::Deciding(mut decision) => {
                    match decision.0.as_mut().poll(&mut task::Context::from_waker(waker)) {
                        Poll::Ready(Ok(account)) => {
                            let settings = c.settings.clone();
                            let max =
                                if settings.problem_information { settings.maximum_packet_size } else { 0 };
                            match self.let_in(settings, account, now) {
                                Ok(connecting) => self.state = State::Connecting(Box::new(connecting)),
                                Err(failure) => return self.refuse_failed(&failure, max, cx),
                            }
                        }
                        Poll::Ready(Err(reason)) => {
                            self.said = true;
                            return self.refuse_connecting(reason, now, cx);
                        }
                        Poll::Pending => {
                            c.step = Step::Deciding(decision);
                            return;
                        }
                    }
                }
                Step::Exchanging(exchange) => {
                    c.step = Step::Exchanging(exchange);
                    return;
                }
                Step::Bringing(run) => match run.outcome.poll(waker) {
                    Some(Ok(())) => c.step = Step::Claiming(Claimant::default()),
                    Some(Err(reason)) => {
                        self.said = run.said();
                        return self.refuse_connecting(reason, now, cx);
                    }
                    None => {
                        c.step = Step::Bringing(run);
                        return;
                    }
                },
                Step::Claiming(mut claimant) => {
                    let claim = self.node.claim(&c.settings, &mut claimant, waker, now, &mut cx.scratch);
                    c.ended = c.ended.max(claimant.ended());
                    match claim {
                        Claim::Waiting => {
                            c.step = Step::Claiming(claimant);
                            cx.scratch.wakes.flush();
                            return;
                        }
                        Claim::Superseded => {
                            return self.refuse_connecting(Reason::SessionTakenOver, now, cx);
                        }
                        Claim::Elsewhere => match self.node.bring_here(&c.settings) {
                            Some(run) => c.step = Step::Bringing(run),
                            None => return self.refuse_connecting(Reason::ServerUnavailable, now, cx),
                        },
                        Claim::Refused(reason) => return self.refuse_connecting(reason, now, cx),
                        Claim::NotTheirs => {
                            self.said = true;
                            return self.refuse_connecting(Reason::NotAuthorized, now, cx);
                        }
                        Claim::Granted { handle, session, present } => {
                            // Only now: whoever had the session has left it, and its place.
                            if let Some(user) = c.account.user.clone() {
                                let max = self.node.broker.limits.connections_per_user();
                                c.place = self.node.users.enter(&user, max);
                                if c.place.is_none() {
                                    c.step = Step::Recording(Granted { handle, session, present }, 0);
                                    return self.refuse_over_quota(&user, max, now, cx);
                                }
                            }
                            handle.mailbox.set_policy(c.settings.queue_policy);
                            let recorded = claimant.recorded();
                            let recorded =
                                recorded.or_else(|| self.node.broker.save_connected(&handle, &c.settings));
                            let lsn = recorded.unwrap_or(0).max(c.ended);
                            c.step = Step::Recording(Granted { handle, session, present }, lsn);
                        }
                    }
                }
                Step::Recording(granted, lsn) => {
                    if lsn > self.node.broker.journal.durable() {
                        self.node.broker.journal.wake_at(lsn, waker);
                        c.step = Step::Recording(granted, lsn);
                        return;
                    }
                    return self.open_session(granted, now, cx);
                }
                Step::Done => return,
            }
        }
    }

    /// Refuses a client whose user has as many connections as it may.
    fn refuse_over_quota(&mut self, user: &str, max: usize, now: Time, cx: &mut super::Context) {
        let State::Connecting(c) = &self.state else { return };
        let (version, client_id) = (c.settings.version, c.settings.client_id.clone());
        let room = if c.settings.problem_information { c.settings.maximum_packet_size } else { 0 };
        self.abandon(now, cx);
        self.said = true;
        if let Some(more) = self.node.users.refused.first(&user) {
            tracing::warn!(
                peer = %self.door.peer, client = %shown(&client_id), user = %shown(user), max, more,
                "connection refused: its user has as many as it may (limits.max_connections_per_user)"
            );
        }
        let why = format!("the user has {max} connections already (limits.max_connections_per_user)");
        self.refuse_saying(version, &client_id, &Failure::new(Reason::QuotaExceeded, why), room, cx);
    }

    fn open_session(&mut self, granted: Granted, now: Time, cx: &mut super::Context) {
        let State::Connecting(c) = std::mem::replace(&mut self.state, State::Closed) else { return };
        let Granted { handle, mut session, present } = granted;
        let (settings, account, proof, place) = (c.settings, c.account, c.proof, c.place);
        let mut connack = settings.connack(present);
        if let Some((method, data)) = &proof {
            connack.authentication_method = Some(method);
            connack.authentication_data = Some(data).filter(|d| !d.is_empty()).map(Vec::as_slice);
        }
        encode::connack(cx.actions.packet(), settings.version, &connack);
        self.node.broker.metrics.connections_total.inc();
        tracing::debug!(client = %shown(&settings.client_id), present, "connected");
        session.attach(&settings, now, &mut cx.actions);
        handle.set_attached(Some(Attached {
            peer: self.door.peer,
            version: settings.version,
            since: now,
            expiry_s: session.expiry_s(),
            will: session.will().cloned(),
            account: account.clone(),
        }));
        // It may have been withdrawn while the client was on its way: whoever withdraws it looks at who is connected.
        if !self.node.holds(&account) {
            handle.mailbox.close(CloseCause::AccountChanged, &mut cx.scratch.wakes);
        }
        for packet_id in self.node.publishes_under_way(handle.no) {
            session.still_under_way(packet_id);
        }
        let identity = Arc::new(self.identity(&settings, &account));
        handle.rights.set_who(identity.clone());
        // Whoever is banned while it connects is found by nobody else.
        if self.node.bans.banned(&identity, now).is_some() {
            handle.mailbox.close(CloseCause::Banned, &mut cx.scratch.wakes);
        }
        self.state = State::Open(Box::new(Open {
            session,
            handle,
            judged: self.node.broker.restricted(&identity),
            identity,
            version: settings.version,
            maximum_packet_size: settings.limits.maximum_packet_size,
            cache: Default::default(),
            local: VecDeque::new(),
            waiting: Waiting::default(),
            subscribing: 0,
            retained: None,
            closing: None,
            leave: None,
            muted: self.ended || self.broken,
            method: proof.map(|(method, _)| method),
            exchange: None,
            _place: place,
        }));
        self.run_effects(now, cx);
    }

    /// Gives a claimed session back without having served it.
    pub(super) fn abandon(&mut self, now: Time, cx: &mut super::Context) {
        let State::Connecting(c) = std::mem::replace(&mut self.state, State::Closed) else { return };
        let granted = match c.step {
            Step::Recording(granted, _) => granted,
            Step::Bringing(run) => {
                // Its procedure goes on to a state that is known, for nobody.
                if !run.outcome.set(Err(Reason::ServerUnavailable)) {
                    self.node.drop_unused(&c.settings.client_id, now);
                }
                return;
            }
            Step::Claiming(_) => {
                self.node.drop_unused(&c.settings.client_id, now);
                return;
            }
            Step::Deciding(_) | Step::Exchanging(_) | Step::Done => return,
        };
        let Granted { handle, mut session, present } = granted;
        if present {
            self.node.broker.save(&handle, &session);
            self.node.broker.park(&handle, session, &mut cx.scratch.wakes);
        } else {
            self.node.endings().end_session(&handle, &mut session, now, &mut cx.scratch);
        }
    }

    pub(super) fn refuse_connecting(&mut self, reason: Reason, now: Time, cx: &mut super::Context) {
        let State::Connecting(c) = &self.state else { return };
        let (version, client_id) = (c.settings.version, c.settings.client_id.clone());
        self.abandon(now, cx);
        if reason == Reason::SessionTakenOver {
            let rivals = &self.node.broker.rivals;
            self.said |= !rivals.turn(&client_id, &self.door.peer.to_string(), now);
        }
        self.refuse(version, &client_id, reason, cx);
    }

    /// Refuses a client that was let in and cannot have what it asks for.
    pub(super) fn refuse_failed(&mut self, failure: &Failure, max: u32, cx: &mut super::Context) {
        let State::Connecting(c) = std::mem::replace(&mut self.state, State::Closed) else { return };
        self.refuse_saying(c.settings.version, &c.settings.client_id, failure, max, cx);
    }

    fn refuse(&mut self, version: Version, client_id: &str, reason: Reason, cx: &mut super::Context) {
        self.refuse_saying(version, client_id, &reason.into(), 0, cx);
    }

    /// Refuses a client and tells it why in words, if the CONNACK has at most `max` bytes then.
    pub(super) fn refuse_saying(
        &mut self,
        version: Version,
        client_id: &str,
        failure: &Failure,
        max: u32,
        cx: &mut super::Context,
    ) {
        let (reason, why) = (failure.reason, failure.why.as_deref());
        self.node.broker.metrics.connects_refused.of(RefuseReason::from_code(reason as u8)).inc();
        match self.refusal_to_tell(reason, why.unwrap_or_default()) {
            Some(more) => {
                tracing::info!(peer = %self.door.peer, client = %shown(client_id), ?reason, why, more, "connection refused");
            }
            None => {
                tracing::debug!(peer = %self.door.peer, client = %shown(client_id), ?reason, why, "connection refused");
            }
        }
        // These two can be said in a DISCONNECT only, and that only after a CONNACK (sections 3.2.2.2, 3.14).
        let reason = match reason {
            Reason::SessionTakenOver | Reason::ServerShuttingDown => Reason::ServerUnavailable,
            other => other,
        };
        let mut connack = Vec::new();
        encode::connack(&mut connack, version, &ConnAck { reason, reason_string: why, ..ConnAck::default() });
        if connack.len() > max as usize {
            connack.clear();
            encode::connack(&mut connack, version, &ConnAck { reason, ..ConnAck::default() });
        }
        cx.actions.packet().extend_from_slice(&connack);
        self.state = State::Closed;
    }

    /// Whether the log is to say that a connection is refused, and how many it has not said: anybody can have any number refused.
    fn refusal_to_tell(&self, reason: Reason, why: &str) -> Option<u64> {
        if self.said {
            return None;
        }
        self.node.refusals.first(&(reason as u8, why, self.door.peer.ip()))
    }

    /// Bytes that are no CONNECT.
    pub(super) fn refuse_bytes(
        &mut self,
        e: &DecodeError,
        version: Option<Version>,
        cx: &mut super::Context,
    ) {
        match self.refusal_to_tell(e.reason(), "") {
            Some(more) => tracing::info!(peer = %self.door.peer, error = %e, more, "connection refused"),
            None => tracing::debug!(peer = %self.door.peer, error = %e, "connection refused"),
        }
        self.said = true;
        self.state = State::Closed;
        if let Answer::ConnAck(v) = e.answer(version) {
            self.refuse(v, "", e.reason(), cx);
        }
    }

    pub(super) fn connect_timed_out(&mut self) {
        const SAID: &str = "no CONNECT in time (limits.connect_timeout)";
        match self.refusal_to_tell(Reason::MaximumConnectTime, SAID) {
            Some(more) => tracing::info!(peer = %self.door.peer, more, "{SAID}"),
            None => tracing::debug!(peer = %self.door.peer, "{SAID}"),
        }
        self.node.broker.metrics.errors.of(ErrorType::ConnectTimeout).inc();
        self.state = State::Closed;
    }

    /// The client's connection is over for `cause`; its session ends or goes to rest.
    pub(super) fn leave(&mut self, cause: CloseCause, now: Time, cx: &mut super::Context) {
        let State::Open(open) = std::mem::replace(&mut self.state, State::Closed) else { return };
        let Open { mut session, handle, local, _place: place, .. } = *open;
        drop(place); // whoever claims the session once it rests may need the place
        if cause == CloseCause::Lost {
            // All others were logged when they were decided on.
            tracing::debug!(client = %shown(&handle.client_id), ?cause, "disconnected");
        }
        let mut actions = std::mem::take(&mut cx.actions);
        handle.set_attached(None);
        self.held = None;
        self.forget_partial();
        session.detach(cause, now, &mut actions);
        let mut unsent = Vec::new();
        if actions.effects.iter().any(|e| matches!(e, Effect::End)) {
            // Whoever ends the session hands on what came through shared subscriptions, journaled or not.
            handle.mailbox.give_back(local);
        } else {
            unsent = session.park(&mut actions);
            unsent.extend(local.iter().filter_map(|d| Some((d.seq?, d.size()))));
            let lost = local.iter().filter(|d| d.seq.is_none()).count() as u64;
            self.node.broker.metrics.lost(handle.whose(), Loss::Offline, lost);
        }
        let effects = std::mem::take(&mut actions.effects);
        cx.actions = actions;
        let done = self.node.carry_out_left(&handle, session, effects, &unsent, now, &mut cx.scratch);
        // A clean goodbye is over when it is durable: the will must not come back after a crash.
        if let (CloseCause::Disconnected, Some(lsn)) = (cause, done) {
            let deadline = now.plus_ms(self.node.broker.limits.publish_timeout_ms());
            self.state = State::Leaving(Leaving { lsn, deadline });
        }
    }
}

/// An identifier for a client that sent none: unique among all that this node ever assigned.
pub(super) fn assigned_id(node: &Node, now: Time) -> Arc<str> {
    Arc::from(format!("auto-{:x}-{:x}", now.as_millis(), node.broker.new_session_no()))
}
