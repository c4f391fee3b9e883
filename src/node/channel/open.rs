//! A connected client: its packets, its deliveries, and the answers that the journal allows.

use super::drive::Leave;
use super::waiting::{Answer, What};
use super::{Channel, Context, Open, READ_BATCH_MAX, RetainedTodo, State, WIRE_BYTES_MAX};
use crate::broker::ending::delivery;
use crate::clock::Time;
use crate::mqtt::packet::Packet;
use crate::mqtt::{QoS, Reason};
use crate::node::Node;
use crate::session::{CloseCause, Delivery, Input, Loss, Outcome};
use std::task::Waker;

impl Channel {
    pub(super) fn packet(&mut self, packet: Packet<'_>, waker: &Waker, now: Time, cx: &mut Context) {
        match (&mut self.state, packet) {
            (State::AwaitingConnect(_), Packet::Connect(c)) => self.connect(&c, waker, now, cx),
            (State::Connecting(_), Packet::Auth(a)) => self.exchange_goes_on(&a, waker, now, cx),
            // Nobody is connected yet.
            (State::Connecting(_), Packet::Disconnect(_)) => {
                self.abandon(now, cx);
                self.state = State::Closed;
            }
            (State::Connecting(_), _) => self.refuse_connecting(Reason::ProtocolError, now, cx),
            (State::Open(open), Packet::Auth(a)) if open.method.is_some() => self.reauthenticate(&a, now, cx),
            (State::Open(open), packet) => {
                if let Packet::Publish(p) = &packet {
                    self.counts.publishes_in[p.qos as usize] += 1;
                    self.counts.payload_in += p.payload.len() as u64;
                }
                open.session.handle(Input::Packet(packet), now, &mut cx.actions);
                if !cx.actions.effects.is_empty() {
                    self.run_effects(now, cx);
                }
            }
            // The decoder yields CONNECT before anything else, and nothing is decoded in other states.
            _ => {}
        }
    }

    pub(super) fn poll_open(&mut self, waker: &Waker, now: Time, cx: &mut Context) {
        let State::Open(open) = &mut self.state else { return };
        if open.closing.is_some() {
            return; // until its owner has tried to write the goodbye
        }
        if open.leave.is_none() && open.identity.account.expires_at.is_some_and(|at| at <= now) {
            open.leave = Some(Leave::new(CloseCause::AccountExpired, None, None));
            open.muted = true;
        }
        open.give_durable(&self.node, now, cx);
        let judges = open.judges(&self.node, now, cx);
        self.run_effects(now, cx);
        self.pump(judges, waker, now, cx);
        let State::Open(open) = &mut self.state else { return };
        open.waiting.wait(&*self.node.broker.journal, waker);
        if !open.waiting.is_empty() {
            self.node.wake_publisher(waker);
        }
        open.handle.mailbox.set_load(open.session.load() + open.local.len());
    }

    /// Moves deliveries to the client while it takes them; those that it may not have are left out if somebody `judges`.
    fn pump(&mut self, judges: bool, waker: &Waker, now: Time, cx: &mut Context) {
        loop {
            let State::Open(open) = &mut self.state else { return };
            if open.leave.is_some() {
                return;
            }
            let more = open.wants_deliveries(cx);
            let taken = open.handle.mailbox.take(waker, more, &mut open.local);
            if let Some(cause) = taken.close {
                // From here on nothing is taken: what was taken out of the mailbox stays in `local`. It goes when what it has
                // said is read: a goodbye on its way came first.
                open.leave = Some(Leave::new(cause, None, taken.reference));
                open.muted = true;
                return;
            }
            // Nothing was taken before: there may be more.
            let loaded = taken.loaded.is_some();
            if let Some(mut found) = taken.loaded {
                if judges {
                    let each = found.into_iter();
                    let permitted = |d| self.node.permitted(&open.handle, d, true, now, &mut cx.scratch);
                    found = each.filter_map(permitted).collect();
                }
                open.session.handle(Input::Loaded(found), now, &mut cx.actions);
            }
            let before = open.local.len();
            while open.wants_deliveries(cx)
                && let Some(mut d) = open.local.pop_front()
            {
                if judges {
                    match self.node.permitted(&open.handle, d, false, now, &mut cx.scratch) {
                        Some(permitted) => d = permitted,
                        None => continue,
                    }
                }
                open.session.handle(Input::Deliver(d), now, &mut cx.actions);
            }
            let moved = before - open.local.len();
            if open.local.is_empty() && open.local.capacity() > 64 && moved < 32 {
                open.local = Default::default();
            }
            let sent_retained = open.send_retained(&self.node, now, cx);
            if open.local.is_empty() && open.wants_deliveries(cx) {
                open.read_backlog(&self.node);
            }
            self.run_effects(now, cx);
            if moved == 0 && !sent_retained && !loaded {
                return;
            }
        }
    }
}

impl Open {
    fn wants_deliveries(&self, cx: &Context) -> bool {
        self.subscribing == 0
            && self.closing.is_none()
            && !self.muted
            && cx.actions.unsent() < WIRE_BYTES_MAX
            && self.session.wants_deliveries()
    }

    /// Whether what is delivered has to be judged. If the rules have changed, what waits for the client's room is judged anew.
    fn judges(&mut self, node: &Node, now: Time, cx: &mut Context) -> bool {
        let version = node.broker.restricted(&self.identity);
        if version != self.judged {
            self.judged = version;
            if version > 0 {
                let (handle, scratch) = (&self.handle, &mut cx.scratch);
                self.session.judge_again(|d, begun| node.permitted(handle, d, begun, now, scratch));
                self.session.send_more(now, &mut cx.actions);
            }
        }
        version > 0
    }

    /// Gives the answers that the journal allows, and refuses those that have waited too long.
    fn give_durable(&mut self, node: &Node, now: Time, cx: &mut Context) {
        if self.waiting.is_empty() {
            return;
        }
        let durable = node.broker.journal.durable();
        while let Some((a, kept)) = self.waiting.pop(durable) {
            if let What::Routed(codes, retained) = a.what {
                let lsn = self.send_retained_to(node, retained, now, &mut cx.scratch).unwrap_or(0);
                let answer = Answer { lsn, promise: None, what: What::Subscribed(codes), ..a };
                self.waiting.push_front(answer);
                continue;
            }
            self.give_kept(node, a, kept, now, &mut cx.actions);
        }
        let before = Time(now.0.saturating_sub(node.broker.limits.publish_timeout_ms()));
        while let Some(late) = self.waiting.pop_late(before) {
            if let What::Published { .. } = late.what {
                let loss = Loss::Journal(node.broker.limits.publish_timeout_ms());
                node.broker.metrics.lost(self.handle.whose(), loss, 1);
                let outcome = Outcome::Late(Reason::ImplementationSpecificError);
                self.tell(Input::Published { token: late.token, outcome }, now, &mut cx.actions);
            } else {
                let reason = Reason::ImplementationSpecificError;
                let why = "the journal, or the cluster, cannot make it safe in time";
                self.session.fail(reason, why, &mut cx.actions);
            }
        }
    }

    /// Asks the journal for the next messages whose bodies are only there.
    fn read_backlog(&self, node: &Node) {
        let Some((seqs, attachment)) = self.handle.mailbox.start_reading(READ_BATCH_MAX) else { return };
        let handle = self.handle.clone();
        let done = move |found: Vec<_>| {
            handle.mailbox.finish_reading(attachment, found.into_iter().map(delivery).collect());
        };
        node.broker.journal.read(self.handle.no, seqs, Box::new(done));
    }

    /// Sends retained messages of new subscriptions while the client takes them; true if any were sent.
    fn send_retained(&mut self, node: &Node, now: Time, cx: &mut Context) -> bool {
        let mut sent = false;
        while self.wants_deliveries(cx)
            && let Some(todo) = self.retained.as_mut()
        {
            let RetainedTodo { requests, current } = todo.as_mut();
            let Some((request, messages)) = current else {
                match requests.pop_front() {
                    Some(request) => {
                        let messages = node.broker.retained_for(&request, now);
                        *current = Some((request, messages.into_iter()));
                    }
                    None => self.retained = None,
                }
                continue;
            };
            let Some(found) = messages.next() else {
                *current = None;
                continue;
            };
            let (t, session) = (&request.target, &mut self.session);
            let Some(max) = node.broker.may_receive(&self.handle, found.message.topic()) else {
                node.broker.not_allowed(&self.handle);
                continue;
            };
            let given = node.send_found(request, &found, |message| {
                let d = Delivery {
                    seq: None,
                    qos: message.qos().min(t.qos).min(max).min(if t.handle.durable {
                        QoS::AtMostOnce
                    } else {
                        t.qos
                    }),
                    retain: true,
                    extra: t.extra.clone(),
                    message: message.clone(),
                };
                session.handle(Input::Deliver(d), now, &mut cx.actions);
            });
            sent |= given.is_some();
        }
        sent
    }
}
