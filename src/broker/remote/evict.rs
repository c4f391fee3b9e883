//! Sessions that another node claimed over this node's head: a clean start, or a session without state.

use super::durable::durable;
use super::freeze::Out;
use crate::broker::Broker;
use crate::broker::ports::Epoch;
use crate::broker::publish::Scratch;
use std::sync::Arc;

impl Broker {
    /// Closes the connection of a session that was replaced under `epoch`, and ends it; completes when that is durable. Its
    /// will is published as at a clean start ([MQTT-3.1.4-3], 3.1.3.2.2) if it stays behind.
    pub(super) async fn evict(self: &Arc<Broker>, client_id: &Arc<str>, epoch: Epoch, will_stays: bool) {
        let Some(remote) = &self.remote else { return };
        remote.sessions.when_reconciled().await;
        let lane = remote.sessions.lanes.join(client_id);
        lane.first().await;
        let Some(handle) = self.session(client_id).filter(|h| h.epoch() < epoch) else { return };
        handle.disown();
        remote.metrics.evictions.inc();
        tracing::info!(client = %client_id, epoch, "session was replaced by another node's; it ends here");
        let Out::Session(mut session) = self.take_out(&handle).await else { return };
        if !will_stays {
            session.forget_will();
        }
        let lsn = {
            let mut scratch = Scratch::default();
            self.end_dormant(&handle, &mut session, remote.now(), &mut scratch)
        };
        if let Some(lsn) = lsn {
            durable(self.journal.clone(), lsn).await;
        }
    }
}
