//! Starting in a cluster: sessions as the journal had them, of which it is not known yet whether they are still this node's.

use super::Cluster;
use crate::broker::making::Restored;
use crate::clock::Time;
use crate::ports::{Recovered, RecoveredSession};

impl Cluster {
    /// Takes up what earlier processes with this journal have begun, and keeps their sessions aside until [`Cluster::reconcile`].
    pub fn recover(&self, mut recovered: Recovered, now: Time) {
        // First: what is published from here on comes after what was begun before.
        self.recover_publishes(&mut recovered);
        for session in recovered.sessions {
            self.recover_session(session, now);
        }
        self.take_up_spooled(recovered.spooled);
    }

    fn recover_session(&self, r: RecoveredSession, now: Time) {
        let (no, pending) = (r.record.no, r.record.pending);
        let was_connected = r.record.disconnected_at.is_none();
        let (mut restored, subscriptions) = Restored::of(r, now);
        // What others sent here before may come after what they send now.
        restored.hold = Some(self.remote.sessions.hold.clone());
        restored.frozen = true;
        let handle = self.broker.recover(restored);
        self.remote.young.add_all(no, &subscriptions);
        let routes = self.broker.subscribe_again(&handle, subscriptions);
        self.routes_added(&routes, true);
        if was_connected {
            self.broker.save_parked(&handle);
        }
        self.keep_aside(&handle, pending, was_connected);
    }
}
