//! Whose sessions are, and who may have them: a client identifier is no secret, so it gives nobody another user's session
//! (docs/decisions/0026-accounts.md).

use super::Broker;
use super::handle::Handle;
use crate::names::shown;
use crate::user::SessionUser;

impl Broker {
    /// Whether a client of user `came` may have the session of user `of`; the log names both if not.
    pub fn may_have_session(&self, client_id: &str, of: &SessionUser, came: &SessionUser) -> bool {
        if self.limits.client_id_theft() || of.lets(came) {
            return true;
        }
        self.metrics.client_id_thefts.inc();
        if let Some(more) = self.thefts.first(&(client_id, came)) {
            tracing::warn!(
                client = %shown(client_id), session_of = %of, user = %came, more,
                "connection refused: the session is another user's (auth.client_id_theft)"
            );
        }
        false
    }

    /// A session goes to a client that may have it: from now on it is that client's user's.
    pub fn inherit(&self, handle: &Handle, user: &SessionUser) {
        let before = handle.set_user(user.clone());
        if before != *user && before != SessionUser::Unknown {
            tracing::info!(
                client = %shown(&handle.client_id), from = %before, to = %user, "the session goes to another user"
            );
        }
    }
}
