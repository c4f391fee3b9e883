//! Whose session it is.

use std::fmt;
use std::sync::Arc;

/// How the client that has left a will had come, and what was known of it besides its user: whether it may still publish the will is
/// asked when the will is due, which may be after a restart, or on another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Author {
    /// The listener's name.
    pub listener: Arc<str>,
    /// The client's IP address, as it is written.
    pub address: Arc<str>,
    /// Groups that its user was in.
    pub groups: Box<[Arc<str>]>,
    /// Where its token let it publish; `None` = the token did not speak of it, or there was none.
    pub publish: Option<Box<[Arc<str>]>>,
}

/// The user of a session: who may have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum SessionUser {
    /// Nobody has said: the session is of a release that did not ask.
    #[default]
    Unknown,
    /// A client that was let in without an account.
    Anonymous,
    /// The user of this name.
    Named(Arc<str>),
}

impl SessionUser {
    /// The user of this name, or nobody in particular.
    pub fn of(name: Option<&Arc<str>>) -> SessionUser {
        name.map_or(SessionUser::Anonymous, |name| SessionUser::Named(name.clone()))
    }

    /// Whether a client of user `other` may have this user's session. A session without a named user is anybody's: what was made
    /// before there were accounts goes to whoever comes for it, and stays theirs.
    pub fn lets(&self, other: &SessionUser) -> bool {
        match self {
            SessionUser::Unknown | SessionUser::Anonymous => true,
            SessionUser::Named(_) => self == other,
        }
    }

    /// As a store writes it: `None` = unknown, empty = anonymous. No user has an empty name.
    pub fn written(&self) -> Option<&str> {
        match self {
            SessionUser::Unknown => None,
            SessionUser::Anonymous => Some(""),
            SessionUser::Named(name) => Some(name),
        }
    }

    /// What [`SessionUser::written`] wrote.
    pub fn read(written: Option<&str>) -> SessionUser {
        match written {
            None => SessionUser::Unknown,
            Some("") => SessionUser::Anonymous,
            Some(name) => SessionUser::Named(name.into()),
        }
    }
}

impl fmt::Display for SessionUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionUser::Unknown => f.write_str("(unknown)"),
            SessionUser::Anonymous => f.write_str("(anonymous)"),
            SessionUser::Named(name) => fmt::Display::fmt(&crate::names::shown(name), f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_have_whose_session() {
        let (alice, bob) = (SessionUser::Named("alice".into()), SessionUser::Named("bob".into()));
        let (anonymous, unknown) = (SessionUser::Anonymous, SessionUser::Unknown);
        for (of, came, may) in [
            (&unknown, &alice, true),
            (&unknown, &anonymous, true),
            (&anonymous, &anonymous, true),
            (&anonymous, &alice, true),
            (&alice, &alice, true),
            (&alice, &bob, false),
            (&alice, &anonymous, false),
        ] {
            assert_eq!(of.lets(came), may, "{came} wants the session of {of}");
        }
        for user in [&alice, &anonymous, &unknown] {
            assert_eq!(&SessionUser::read(user.written()), user);
        }
    }
}
