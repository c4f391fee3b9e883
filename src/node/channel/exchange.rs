//! Enhanced authentication (MQTT 5.0 section 4.12): before CONNACK, and again whenever the client wants.

use super::connect::{Connecting, REFUSAL_BYTES, Step, assigned_id};
use super::{Channel, Context, Open, State};
use crate::clock::Time;
use crate::mqtt::encode;
use crate::mqtt::packet::{Auth, Connect};
use crate::mqtt::{Reason, Version};
use crate::names::shown;
use crate::ports::{Account, AuthStep, Credentials, EnhancedAuth, Identity};
use crate::session::{CloseCause, Failure, Limits, Settings};
use std::sync::Arc;
use std::task::Waker;

/// An exchange under way.
pub(super) struct Exchange {
    auth: Box<dyn EnhancedAuth>,
    method: Box<str>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Why AUTH is refused that names another method than CONNECT did.
const OTHER_METHOD: &str = "AUTH with another authentication method than CONNECT";

impl Channel {
    /// A CONNECT names a method: its data is the first step.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin_exchange(
        &mut self,
        c: &Connect<'_>,
        method: &str,
        who: &Credentials<'_>,
        limits: Limits,
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) {
        let begun = self.node.authorizer.enhanced(method, who).map_err(Failure::from).and_then(|auth| {
            let settings = Settings::negotiate(c, limits, || assigned_id(&self.node, now))?;
            Ok((settings, Exchange { auth, method: method.into() }))
        });
        match begun {
            Ok((settings, exchange)) => {
                let deadline = now.plus_ms(self.node.broker.limits.connect_timeout_ms());
                let connecting = Connecting::exchanging(settings, exchange, deadline);
                self.state = State::Connecting(Box::new(connecting));
                self.exchange_step(c.authentication_data, waker, now, cx);
            }
            Err(_) if c.maximum_packet_size.is_some_and(|max| max < REFUSAL_BYTES) => {
                self.state = State::Closed
            }
            Err(failure) => {
                let max =
                    if c.request_problem_information { c.maximum_packet_size.unwrap_or(u32::MAX) } else { 0 };
                self.refuse_saying(c.version, c.client_id, &failure, max, cx);
            }
        }
    }

    /// An AUTH before CONNACK.
    pub(super) fn exchange_goes_on(&mut self, a: &Auth<'_>, waker: &Waker, now: Time, cx: &mut Context) {
        let State::Connecting(c) = &self.state else { return };
        let Step::Exchanging(exchange) = &c.step else { return };
        if a.method != Some(&*exchange.method) {
            return self.refuse_failed(&Failure::new(Reason::BadAuthenticationMethod, OTHER_METHOD), 0, cx);
        }
        if a.reason != Reason::ContinueAuthentication {
            return self.refuse_failed(&Reason::ProtocolError.into(), 0, cx);
        }
        self.exchange_step(a.data, waker, now, cx);
    }

    fn exchange_step(&mut self, data: Option<&[u8]>, waker: &Waker, now: Time, cx: &mut Context) {
        let State::Connecting(c) = &mut self.state else { return };
        let Step::Exchanging(exchange) = &mut c.step else { return };
        match exchange.auth.step(data) {
            AuthStep::Continue(data) => {
                let data = Some(data).filter(|d| !d.is_empty());
                encode::auth(
                    cx.actions.packet(),
                    Reason::ContinueAuthentication,
                    &exchange.method,
                    data.as_deref(),
                    None,
                );
            }
            AuthStep::Accept(data, account) => {
                let (method, settings, deadline) = (exchange.method.clone(), c.settings.clone(), c.deadline);
                match self.let_in(settings, account, now) {
                    Ok(mut connecting) => {
                        connecting.proof = Some((method, data));
                        // The exchange does not give it more time than any other client has.
                        connecting.deadline = connecting.deadline.max(deadline);
                        self.state = State::Connecting(Box::new(connecting));
                        self.poll_connecting(waker, now, cx);
                    }
                    Err(failure) => self.refuse_failed(&failure, 0, cx),
                }
            }
            AuthStep::Refuse(reason) => {
                self.said = true;
                self.refuse_failed(&reason.into(), 0, cx);
            }
        }
    }

    /// An AUTH of a connected client: it shows again who it is.
    pub(super) fn reauthenticate(&mut self, a: &Auth<'_>, now: Time, cx: &mut Context) {
        let State::Open(open) = &mut self.state else { return };
        open.session.heard(now);
        if let Err(Failure { reason, why }) = open.exchange_step(a, &*self.node.authorizer, cx) {
            open.session.close(CloseCause::Refused(reason), why.as_deref(), &mut cx.actions);
        }
        self.run_effects(now, cx);
    }
}

impl Open {
    fn exchange_step(
        &mut self,
        a: &Auth<'_>,
        authorizer: &dyn crate::ports::Authorizer,
        cx: &mut Context,
    ) -> Result<(), Failure> {
        let method = self.method.clone().unwrap_or_default();
        if a.method != Some(&*method) {
            // 0x8C is not for DISCONNECT (section 3.14.2.1).
            return Err(Failure::new(Reason::ProtocolError, OTHER_METHOD));
        }
        let mut exchange = match (a.reason, self.exchange.take()) {
            (Reason::ReAuthenticate, _) => {
                let who = Credentials {
                    version: Version::V5,
                    client_id: &self.identity.client_id,
                    username: None,
                    password: None,
                    door: &self.identity.door,
                };
                Box::new(Exchange { auth: authorizer.enhanced(&method, &who)?, method: method.clone() })
            }
            (Reason::ContinueAuthentication, Some(exchange)) => exchange,
            _ => return Err(Failure::new(Reason::ProtocolError, "AUTH that belongs to no exchange")),
        };
        let (reason, data) = match exchange.auth.step(a.data) {
            AuthStep::Continue(data) => {
                self.exchange = Some(exchange);
                (Reason::ContinueAuthentication, data)
            }
            AuthStep::Accept(data, account) => {
                self.renew(account)?;
                (Reason::Success, data)
            }
            AuthStep::Refuse(_) => {
                return Err(Failure::new(Reason::NotAuthorized, "the client did not show again who it is"));
            }
        };
        let data = Some(data).filter(|d| !d.is_empty());
        encode::auth(cx.actions.packet(), reason, &method, data.as_deref(), None);
        Ok(())
    }

    /// The client has shown who it is once more: what was found holds from now on.
    fn renew(&mut self, account: Arc<Account>) -> Result<(), Failure> {
        if account.user != self.identity.account.user {
            return Err(Failure::new(Reason::NotAuthorized, "the client showed that it is another user"));
        }
        tracing::debug!(client = %shown(&self.identity.client_id), "authenticated again");
        if let Some(mut attached) = self.handle.attached() {
            attached.account = account.clone();
            self.handle.set_attached(Some(attached));
        }
        self.identity = Arc::new(Identity { account, ..Identity::clone(&self.identity) });
        self.handle.rights.set_who(self.identity.clone());
        // What waits for the client's room is judged by what holds for it now.
        self.judged = u64::MAX;
        Ok(())
    }
}
