//! Sessions that another node claimed over this node's head: a clean start, or a session without state.

use super::Remote;
use super::durable::durable;
use super::freeze::Out;
use super::sessions::Sessions;
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::broker::ports::{BoxFuture, Epoch};
use crate::broker::publish::Scratch;
use crate::names::shown;
use crate::session::Session;
use std::sync::Arc;

impl Broker {
    /// Closes the connection of a session that was replaced under `epoch`, and ends it; completes when that is durable. Its
    /// will is published as at a clean start ([MQTT-3.1.4-3], 3.1.3.2.2) if it stays behind.
    pub(super) fn evict(
        self: &Arc<Broker>,
        client_id: &Arc<str>,
        epoch: Epoch,
        will_stays: bool,
    ) -> BoxFuture<()> {
        match &self.remote {
            // At once: whoever holds the lane may want to know.
            Some(remote) if will_stays => remote.note_eviction(client_id, epoch),
            Some(remote) => remote.sessions.note_ended(client_id, epoch),
            None => {}
        }
        let (broker, client_id) = (self.clone(), client_id.clone());
        Box::pin(async move {
            let Some(remote) = &broker.remote else { return };
            remote.sessions.when_reconciled().await;
            let lane = remote.sessions.lanes.join(&client_id);
            lane.first().await;
            if let Some(handle) = broker.session(&client_id).filter(|h| h.epoch() < epoch) {
                handle.disown();
                if let Out::Session(session) = broker.take_out(&handle).await {
                    broker.end_replaced(&handle, session, will_stays).await;
                }
            }
            remote.sessions.end_eviction(&client_id, epoch);
        })
    }

    /// Ends a session that was taken out and is replaced by another node's; completes when that is durable.
    pub(super) async fn end_replaced(
        &self,
        handle: &Arc<Handle>,
        mut session: Box<Session>,
        will_stays: bool,
    ) {
        let Some(remote) = &self.remote else { return };
        handle.disown();
        remote.metrics.evictions.inc();
        if !self.rivals.is_quiet(&handle.client_id, remote.now()) {
            tracing::info!(client = %shown(&handle.client_id), "session was replaced by another node's; it ends here");
        }
        if !will_stays {
            session.forget_will();
        }
        let lsn = self.end_dormant(handle, &mut session, remote.now(), &mut Scratch::default());
        if let Some(lsn) = lsn {
            durable(self.journal.clone(), lsn).await;
        }
    }
}

impl Remote {
    /// A session of this node was replaced under `epoch`. What is made here from now on goes above that, lest the eviction, or
    /// its request coming late, take it for the old one.
    pub(super) fn note_eviction(&self, client_id: &Arc<str>, epoch: Epoch) {
        self.sessions.note_ended(client_id, epoch);
        self.sessions.begin_eviction(client_id, epoch);
    }
}

impl Sessions {
    fn begin_eviction(&self, client_id: &Arc<str>, epoch: Epoch) {
        let mut evicting = self.evicting.lock();
        let known = evicting.entry(client_id.clone()).or_default();
        *known = epoch.max(*known);
    }

    fn end_eviction(&self, client_id: &str, epoch: Epoch) {
        let mut evicting = self.evicting.lock();
        if evicting.get(client_id).is_some_and(|known| *known <= epoch) {
            evicting.remove(client_id);
        }
    }

    /// Whether a session of this epoch is being evicted.
    pub(super) fn being_evicted(&self, client_id: &str, epoch: Epoch) -> bool {
        self.evicting.lock().get(client_id).is_some_and(|known| *known > epoch)
    }

    /// Whether a session with state was replaced by one without, under this epoch, over this node's head.
    pub(crate) fn replaced_by(&self, client_id: &str, epoch: Epoch) -> bool {
        self.evicting.lock().get(client_id).is_some_and(|known| *known == epoch)
    }
}
