//! How long sessions last, as the store has it: whoever outlives this node goes by that.

use super::Remote;
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::clock::Time;
use parking_lot::Mutex;
use std::sync::Arc;

/// How often a CONNECT looks whether the store has its expiry, milliseconds.
const LOOK_MS: u64 = 20;

#[derive(Debug, Default)]
struct Inner {
    wanted: u32,
    told: u32,
    telling: bool,
}

/// The expiry of a session, seconds, and what the store says of it.
#[derive(Debug, Default)]
pub struct ToldExpiry(Mutex<Inner>);

impl ToldExpiry {
    /// The store says so.
    pub fn is_told(&self, expiry_s: u32) {
        let mut inner = self.0.lock();
        (inner.wanted, inner.told) = (expiry_s, expiry_s);
    }

    /// What the store says, or will say soon.
    pub fn by_store(&self) -> u32 {
        let inner = self.0.lock();
        if inner.telling { inner.wanted } else { inner.told }
    }

    /// The session lasts so long from now on; true if somebody has to tell the store.
    fn want(&self, expiry_s: u32) -> bool {
        let mut inner = self.0.lock();
        inner.wanted = expiry_s;
        let tell = inner.wanted != inner.told && !inner.telling;
        inner.telling |= tell;
        tell
    }

    fn wanted(&self) -> u32 {
        self.0.lock().wanted
    }

    /// The store has been told so; true if that is what is wanted.
    fn told(&self, expiry_s: u32) -> bool {
        let mut inner = self.0.lock();
        inner.told = expiry_s;
        inner.telling = inner.wanted != expiry_s;
        !inner.telling
    }

    /// Whether the store would end the session too early.
    fn too_short(&self) -> bool {
        let inner = self.0.lock();
        inner.told < inner.wanted
    }
}

impl Broker {
    /// A session with state lasts so long after the end of its connection: the store is told if it does not know.
    pub(in crate::broker) fn tell_expiry(&self, handle: &Arc<Handle>, expiry_s: u32) {
        let Some(remote) = &self.remote else { return };
        if !handle.durable || expiry_s == 0 || handle.disowned() || !handle.expiry.want(expiry_s) {
            return;
        }
        let (handle, coordinator) = (handle.clone(), remote.ports.coordinator.clone());
        remote.ports.tasks.spawn(Box::pin(async move {
            loop {
                let expiry_s = handle.expiry.wanted();
                coordinator.expiry(&handle.client_id, handle.epoch(), expiry_s).await;
                if handle.expiry.told(expiry_s) {
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
