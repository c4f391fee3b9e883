//! Carries out what a session wants done.

use super::waiting::{Answer, What};
use super::{Channel, Context, Open, State};
use crate::broker::delivery::{Publishing, Scratch};
use crate::broker::ending::delivery;
use crate::broker::promise::Kept;
use crate::broker::publish::Routed;
use crate::broker::subscribe::Answered;
use crate::broker::subscribe::RetainedRequest;
use crate::clock::Time;
use crate::host::host;
use crate::mqtt::{Message, Reason};
use crate::names::shown;
use crate::node::Node;
use crate::ports::{Change, Lsn, OutboundState};
use crate::session::{Actions, CloseCause, Effect, Input, Loss, Outcome, Token};
use crate::telemetry::metrics::{Denied, ErrorType};
use smallvec::SmallVec;

impl Channel {
    /// Carries out effects until there are none; an answer at hand is given at once and may cause more.
    pub(super) fn run_effects(&mut self, now: Time, cx: &mut Context) {
        let State::Open(open) = &mut self.state else { return };
        let mut effects = Vec::new();
        while !cx.actions.effects.is_empty() {
            std::mem::swap(&mut effects, &mut cx.actions.effects);
            for effect in effects.drain(..) {
                open.run(&self.node, effect, &mut self.counts.publishes_out, now, cx);
            }
        }
        // The longer of the two buffers is kept for the next time.
        if effects.capacity() > cx.actions.effects.capacity() {
            cx.actions.effects = effects;
        }
    }
}

impl Open {
    fn run(&mut self, node: &Node, effect: Effect, sent: &mut [u64; 3], now: Time, cx: &mut Context) {
        let session = self.handle.no;
        match effect {
            Effect::Sent(qos) => sent[qos as usize] += 1,
            Effect::Publish { token, message, inbound } => {
                self.publish(node, token, &message, inbound, now, cx);
            }
            Effect::Repeated { token, packet_id } => {
                match node.publish_under_way(session, packet_id) {
                    Some(promise) => {
                        let what = What::Published { matched: false };
                        self.waiting.push(Answer { lsn: 0, promise: Some(promise), token, since: now, what });
                    }
                    // All have it by now.
                    None => {
                        let outcome = Outcome::Safe { matched: true };
                        self.tell(Input::Published { token, outcome }, now, &mut cx.actions);
                    }
                }
            }
            Effect::Settle { seq } => node.settle(seq.get(), session),
            Effect::Outbound { token, packet_id, seq, released } => {
                let state = if released { OutboundState::Released } else { OutboundState::Sent };
                let change = Change::Outbound { session, packet_id, seq: seq.get(), state };
                let lsn = node.broker.journal.append(&[change]);
                self.answer_later(token, lsn, What::Durable, now);
            }
            Effect::InboundEnd { token, packet_id } => {
                let lsn = node.broker.journal.append(&[Change::InboundEnd { session, packet_id }]);
                self.answer_later(token, lsn, What::Durable, now);
            }
            Effect::Subscribe { token, request } => {
                let mut retained: SmallVec<[RetainedRequest; 1]> = SmallVec::new();
                let (mut answered, routes) =
                    node.subscribe(&self.handle, &self.identity, &request, &mut retained);
                self.subscribing += 1;
                let promise = routes.and_then(|wait| node.when_routed(wait, &retained));
                if promise.is_some() {
                    let what = What::Routed(answered.codes, retained);
                    // The journal gets its time after the other nodes had theirs.
                    let since = now.plus_ms(node.suback_wait_ms());
                    let lsn = answered.lsn.unwrap_or(0);
                    return self.waiting.push(Answer { lsn, promise, token, since, what });
                }
                let lsn = self.send_retained_to(node, retained, now, &mut cx.scratch);
                answered.lsn = lsn.or(answered.lsn);
                self.answer(token, answered, What::Subscribed, now, cx);
            }
            Effect::Unsubscribe { token, filters } => {
                let answered = node.unsubscribe(&self.handle, &filters);
                self.answer(token, answered, What::Unsubscribed, now, cx);
            }
            Effect::Load(seqs) => {
                let (handle, attachment) = (self.handle.clone(), self.handle.mailbox.attachment());
                let done = move |found: Vec<_>| {
                    handle.mailbox.finish_loading(attachment, found.into_iter().map(delivery).collect());
                };
                node.broker.journal.read(session, seqs, Box::new(done));
            }
            Effect::Dropped(loss) => node.broker.metrics.lost(self.handle.whose(), loss, 1),
            Effect::Close { cause, why } => {
                use crate::session::CloseCause as C;
                match cause {
                    C::Refused(r) => node.broker.metrics.errors.of(ErrorType::from_code(r as u8)).inc(),
                    C::KeepAlive => node.broker.metrics.errors.of(ErrorType::KeepAlive).inc(),
                    C::PacketTimeout => node.broker.metrics.errors.of(ErrorType::PacketTimeout).inc(),
                    C::WriteTimeout => node.broker.metrics.errors.of(ErrorType::WriteTimeout).inc(),
                    _ => {}
                }
                let contested = || {
                    let peer = self.handle.attached().map(|a| a.peer.to_string());
                    !node.broker.rivals.turn(&self.handle.client_id, peer.as_deref().unwrap_or(""), now)
                };
                match cause {
                    C::TakenOver if contested() => {}
                    C::Disconnected | C::Lost | C::ShuttingDown | C::HandedOver => {
                        tracing::debug!(client = %shown(&self.handle.client_id), ?cause, "disconnected");
                    }
                    _ => self.tell_of_end(node, cause, why.as_deref().unwrap_or("")),
                }
                self.closing = Some(cause);
            }
            // Only a session without a connection does these; see `Broker::carry_out`.
            Effect::Will(_) | Effect::Save | Effect::End => {}
        }
    }

    /// Logs the end of a connection that is no plain goodbye. What a client can bring about as often as it likes is told once a minute for
    /// each host and reason, with how often it came since.
    fn tell_of_end(&self, node: &Node, cause: CloseCause, why: &str) {
        let peer = self.handle.attached().map(|a| a.peer);
        let reason = cause.told();
        let more = match cause {
            CloseCause::Refused(_) | CloseCause::DisconnectedWithWill => {
                let kind = ("disconnected", reason.map(|r| r as u8), why, peer.map(|peer| host(peer.ip())));
                node.refusals.first(&kind)
            }
            _ => Some(0),
        };
        let (id, peer) = (&self.handle.client_id, peer.map(tracing::field::display));
        match more {
            Some(more) => {
                let more = Some(more).filter(|more| *more > 0);
                tracing::info!(client = %shown(id), peer, ?cause, ?reason, why, more, "disconnected");
            }
            None => tracing::debug!(client = %shown(id), peer, ?cause, ?reason, why, "disconnected"),
        }
    }

    fn publish(
        &mut self,
        node: &Node,
        token: Option<Token>,
        message: &Message,
        inbound: Option<u16>,
        now: Time,
        cx: &mut Context,
    ) {
        let outcome = self.route(node, message, inbound, now, &mut cx.scratch);
        let Some(token) = token else { return };
        match outcome {
            Ok(Routed { lsn: None, promise: None, matched }) => {
                self.tell(
                    Input::Published { token, outcome: Outcome::Safe { matched } },
                    now,
                    &mut cx.actions,
                );
            }
            Ok(Routed { lsn, promise, matched }) => {
                let what = What::Published { matched };
                self.waiting.push(Answer { lsn: lsn.unwrap_or(0), promise, token, since: now, what });
            }
            Err(outcome) => self.tell(Input::Published { token, outcome }, now, &mut cx.actions),
        }
    }

    fn route(
        &mut self,
        node: &Node,
        message: &Message,
        inbound: Option<u16>,
        now: Time,
        scratch: &mut Scratch,
    ) -> Result<Routed, Outcome> {
        let topic = message.topic();
        if !node.broker.may_publish(&self.handle, message) {
            node.broker.metrics.denied.of(Denied::Publish).inc();
            node.broker.metrics.lost(self.handle.whose(), Loss::NotAuthorized, 1);
            return Err(Outcome::Denied(Reason::NotAuthorized));
        }
        let handle = Some(&*self.handle);
        let publishing = Publishing { session: self.handle.no, inbound, record: None, handle };
        node.publish(message, &publishing, now, &mut self.cache, scratch).map_err(|failure| {
            let (reason, why) = (failure.reason, failure.why.as_deref());
            tracing::debug!(client = %shown(&self.handle.client_id), topic = %shown(topic), ?reason, why, "publish refused");
            Outcome::Failed(Box::new(failure))
        })
    }

    fn answer(
        &mut self,
        token: Token,
        answered: Answered,
        what: impl FnOnce(SmallVec<[Reason; 4]>) -> What,
        now: Time,
        cx: &mut Context,
    ) {
        let what = what(answered.codes);
        match answered.lsn {
            Some(lsn) => self.answer_later(Some(token), lsn, what, now),
            None => self.give(token, what, now, &mut cx.actions),
        }
    }

    fn answer_later(&mut self, token: Option<Token>, lsn: Lsn, what: What, since: Time) {
        if let Some(token) = token {
            self.waiting.push(Answer { lsn, promise: None, token, since, what });
        }
    }

    /// Sends retained messages to new subscriptions. Returns up to where the journal must be durable for those that it keeps.
    pub(super) fn send_retained_to(
        &mut self,
        node: &Node,
        retained: SmallVec<[RetainedRequest; 1]>,
        now: Time,
        scratch: &mut Scratch,
    ) -> Option<Lsn> {
        let lsn = retained.iter().filter_map(|r| node.queue_retained(r, now, scratch)).max();
        if !retained.is_empty() {
            self.retained.get_or_insert_default().requests.extend(retained);
        }
        lsn
    }

    /// Tells the session what became of a question that other nodes had a part in.
    pub(super) fn give_kept(
        &mut self,
        node: &Node,
        answer: Answer,
        kept: Option<Kept>,
        now: Time,
        actions: &mut Actions,
    ) {
        let Answer { token, what, .. } = answer;
        match (kept, what) {
            (None, what) => self.give(token, what, now, actions),
            (Some(Kept::Done { matched }), What::Published { matched: here }) => {
                self.give(token, What::Published { matched: here || matched }, now, actions);
            }
            (Some(Kept::Done { .. }), what) => self.give(token, what, now, actions),
            (Some(Kept::Failed(reason)), What::Published { .. }) => {
                node.broker.metrics.lost(self.handle.whose(), Loss::OtherNode, 1);
                self.tell(
                    Input::Published { token, outcome: Outcome::Failed(Box::new(reason.into())) },
                    now,
                    actions,
                );
            }
            (Some(Kept::Failed(reason)), _) => {
                self.session.fail(reason, "the cluster cannot make it safe", actions);
            }
        }
    }

    /// Tells the session what became of a question.
    pub(super) fn give(&mut self, token: Token, what: What, now: Time, actions: &mut Actions) {
        let input = match what {
            What::Published { matched } => Input::Published { token, outcome: Outcome::Safe { matched } },
            What::Durable => Input::Durable { token },
            // Retained messages have been seen to before this.
            What::Subscribed(codes) | What::Routed(codes, _) => {
                self.subscribing -= 1;
                Input::Subscribed { token, codes }
            }
            What::Unsubscribed(codes) => Input::Unsubscribed { token, codes },
        };
        self.tell(input, now, actions);
    }

    pub(super) fn tell(&mut self, input: Input<'_>, now: Time, actions: &mut Actions) {
        self.session.handle(input, now, actions);
    }
}
