//! How long a session lasts and whose it is, as the cluster's store has it: whoever outlives this node goes by that.

use crate::user::SessionUser;
use parking_lot::Mutex;

/// What the store is told of a session: its expiry, seconds, and whose it is.
pub type Told = (u32, SessionUser);

#[derive(Debug, Default)]
struct Inner {
    wanted: Told,
    told: Told,
    telling: bool,
}

/// The expiry and the user of a session, and what the store says of them.
#[derive(Debug, Default)]
pub struct ToldExpiry(Mutex<Inner>);

impl ToldExpiry {
    /// Takes note of what the store says of the session: how long it lasts, in seconds, and whose it is.
    pub fn is_told(&self, expiry_s: u32, user: &SessionUser) {
        let mut inner = self.0.lock();
        let told = (expiry_s, user.clone());
        (inner.wanted, inner.told) = (told.clone(), told);
    }

    /// What the store says of the session, or will say soon.
    pub fn by_store(&self) -> (u32, SessionUser) {
        let inner = self.0.lock();
        if inner.telling { inner.wanted.clone() } else { inner.told.clone() }
    }

    /// Sets how long the session lasts from now on, in seconds (`None` = as before), and whose it is; true if somebody has to tell the
    /// store.
    pub fn want(&self, expiry_s: Option<u32>, user: SessionUser) -> bool {
        let mut inner = self.0.lock();
        inner.wanted = (expiry_s.unwrap_or(inner.wanted.0), user);
        let tell = inner.wanted != inner.told && !inner.telling;
        inner.telling |= tell;
        tell
    }

    /// What the store is to say of the session.
    pub fn wanted(&self) -> Told {
        self.0.lock().wanted.clone()
    }

    /// Takes note that the store has been told so; true if that is what is wanted.
    pub fn told(&self, told: Told) -> bool {
        let mut inner = self.0.lock();
        inner.telling = inner.wanted != told;
        inner.told = told;
        !inner.telling
    }

    /// Whether the store would end the session too early.
    pub fn too_short(&self) -> bool {
        let inner = self.0.lock();
        inner.told.0 < inner.wanted.0
    }
}
