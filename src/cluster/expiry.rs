//! How long sessions last and whose they are, as the store has it: whoever outlives this node goes by that.

use super::Cluster;
use super::Remote;
use crate::broker::handle::Handle;
use crate::clock::Time;
use crate::user::SessionUser;
use std::sync::Arc;

/// How often a CONNECT looks whether the store has its expiry, milliseconds.
const LOOK_MS: u64 = 20;

impl Cluster {
    /// Tells the store, if it does not know, that a session with state lasts `expiry_s` seconds after the end of its connection, and whose
    /// it is.
    pub fn tell_expiry(&self, handle: &Arc<Handle>, expiry_s: u32, user: SessionUser) {
        let remote = &self.remote;
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
