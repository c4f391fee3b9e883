//! What a client's token says it may do, which comes before all rules.

use super::pattern::covers;
use crate::mqtt::QoS;
use crate::ports::{Ask, By, Identity, Ruling};
use crate::topic;

/// What the token of `who` says; `None` if there is none, or it does not speak of this.
pub(super) fn ruling(who: &Identity, ask: &Ask<'_>) -> Option<Ruling> {
    let claims = who.account.claims.as_deref()?;
    let filters = if ask.reads() { claims.subscribe.as_ref()? } else { claims.publish.as_ref()? };
    let allows = filters.iter().any(|filter| match ask {
        Ask::Publish { topic, .. } | Ask::Receive { topic } => topic::matches(filter, topic),
        Ask::Subscribe { filter: asked } => covers(filter, asked),
    });
    Some(if allows { Ruling::allow(QoS::ExactlyOnce, By::Token) } else { Ruling::deny(By::Token) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{AccessClaims, Account, Door};
    use std::sync::Arc;

    #[test]
    fn a_token_decides_what_it_speaks_of() {
        let list = |filters: &[&str]| Some(filters.iter().map(|f| Arc::from(*f)).collect());
        let who = |claims: Option<AccessClaims>| Identity {
            client_id: "c".into(),
            username: None,
            door: Door::tcp("127.0.0.1:1".parse().unwrap()),
            account: Arc::new(Account { claims: claims.map(Box::new), ..Account::default() }),
        };
        let both = AccessClaims { publish: list(&["a/+"]), subscribe: list(&["b/#"]) };
        let publish = |topic| Ask::Publish { topic, retain: false };
        for (claims, ask, allowed) in [
            (None, publish("a/1"), None),
            (Some(AccessClaims { publish: None, subscribe: list(&[]) }), publish("a/1"), None),
            (Some(both.clone()), publish("a/1"), Some(true)),
            (Some(both.clone()), publish("a/1/2"), Some(false)),
            (Some(both.clone()), publish("b/1"), Some(false)),
            (Some(both.clone()), Ask::Subscribe { filter: "b/1/#" }, Some(true)),
            (Some(both.clone()), Ask::Subscribe { filter: "#" }, Some(false)),
            (Some(both.clone()), Ask::Receive { topic: "b/1" }, Some(true)),
            (Some(both.clone()), Ask::Receive { topic: "a/1" }, Some(false)),
            (
                Some(AccessClaims { publish: None, subscribe: list(&[]) }),
                Ask::Receive { topic: "b" },
                Some(false),
            ),
        ] {
            let said = ruling(&who(claims.clone()), &ask);
            assert_eq!(said.map(|r| r.max_qos.is_some()), allowed, "{claims:?} {ask:?}");
            assert!(said.is_none_or(|r| r.by == By::Token));
        }
    }
}
