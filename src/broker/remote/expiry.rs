//! How long sessions last and whose they are, as the store has it: whoever outlives this node goes by that.

use super::Remote;
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::clock::Time;
use crate::user::SessionUser;
use parking_lot::Mutex;
use std::sync::Arc;

/// How often a CONNECT looks whether the store has its expiry, milliseconds.
const LOOK_MS: u64 = 20;

/// What the store is told of a session: its expiry, seconds, and whose it is.
type Told = (u32, SessionUser);

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
    /// The store says so.
    pub fn is_told(&self, expiry_s: u32, user: &SessionUser) {
        let mut inner = self.0.lock();
        let told = (expiry_s, user.clone());
        (inner.wanted, inner.told) = (told.clone(), told);
    }

    /// What the store says, or will say soon.
    pub fn by_store(&self) -> (u32, SessionUser) {
        let inner = self.0.lock();
        if inner.telling { inner.wanted.clone() } else { inner.told.clone() }
    }

    /// The session lasts so long from now on (`None` = as before), and is this user's; true if somebody has to tell the store.
    fn want(&self, expiry_s: Option<u32>, user: SessionUser) -> bool {
        let mut inner = self.0.lock();
        inner.wanted = (expiry_s.unwrap_or(inner.wanted.0), user);
        let tell = inner.wanted != inner.told && !inner.telling;
        inner.telling |= tell;
        tell
    }

    fn wanted(&self) -> Told {
        self.0.lock().wanted.clone()
    }

    /// The store has been told so; true if that is what is wanted.
    fn told(&self, told: Told) -> bool {
        let mut inner = self.0.lock();
        inner.telling = inner.wanted != told;
        inner.told = told;
        !inner.telling
    }

    /// Whether the store would end the session too early.
    fn too_short(&self) -> bool {
        let inner = self.0.lock();
        inner.told.0 < inner.wanted.0
    }
}

impl Broker {
    /// A session lasts so long after the end of its connection, if it has state, and is this user's: the store is told if it does not
    /// know.
    pub(in crate::broker) fn tell_expiry(&self, handle: &Arc<Handle>, expiry_s: u32, user: SessionUser) {
        let Some(remote) = &self.remote else { return };
        let expiry_s = Some(expiry_s).filter(|s| handle.durable && *s > 0);
        if handle.disowned() || !handle.expiry.want(expiry_s, user) {
            return;
        }
        let (handle, coordinator) = (handle.clone(), remote.ports.coordinator.clone());
        remote.ports.tasks.spawn(Box::pin(async move {
            loop {
                let told = handle.expiry.wanted();
                coordinator.expiry(&handle.client_id, handle.epoch(), told.0, told.1.clone()).await;
                if handle.expiry.told(told) {
                    return;
                }
            }
        }));
    }
}

impl Remote {
    /// Waits until the store does not end a session before its client may expect it to, as long as it can be told.
    pub(super) async fn expiry_told(&self, handle: &Handle, deadline: Time) {
        while handle.expiry.too_short() && self.ports.coordinator.writable() && self.now() < deadline {
            self.ports.tasks.sleep(LOOK_MS).await;
        }
    }
}
