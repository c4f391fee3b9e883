//! Sessions that another node claimed over this node's head: a clean start, or a session without state.

use super::durable::durable;
use super::freeze::Out;
use super::sessions::Sessions;
use super::{Cluster, Remote};
use crate::broker::delivery::Scratch;
use crate::broker::ending::Endings;
use crate::broker::handle::Handle;
use crate::broker::mailbox::Wakes;
use crate::names::shown;
use crate::ports::{BoxFuture, Epoch, MemberId};
use crate::session::{CloseCause, Session};
use std::sync::Arc;

/// How long a node that has read of an eviction waits to be asked for it by the new owner, milliseconds.
const ASKED_WITHIN_MS: u64 = 1_000;

/// How long a new owner's client waits until all nodes have the will of the session that it replaces, milliseconds.
const WILL_WAIT_MS: u64 = 1_000;

/// How often a node looks whether it was asked for an eviction, milliseconds.
const ASKED_LOOK_MS: u64 = 10;

/// How a node comes to know that a session is not its own any more.
#[derive(Clone, Debug)]
pub(super) enum Learned {
    /// The new owner asks before it lets its client in: the will of the old session is published as at a clean start
    /// ([MQTT-3.1.4-3], 3.1.3.2.2).
    Asked,
    /// An eviction record says so, written by this process if that is known. The client may have said much since, so that the
    /// will is void, unless the new owner asks after all.
    Read(Option<MemberId>),
    /// The session expired while this node was gone: its will is due.
    Expired,
    /// The session moved, and its will with it.
    Moved,
}

/// An eviction under way.
#[derive(Debug, Default)]
pub(super) struct Evicting {
    epoch: Epoch,
    /// The new owner's client waits for it.
    asked: bool,
    by: Option<MemberId>,
}

impl Cluster {
    /// Closes the connection of a session that was replaced under `epoch`, and ends it; completes when that is durable.
    pub(super) fn evict(
        self: &Arc<Cluster>,
        client_id: &Arc<str>,
        epoch: Epoch,
        learned: Learned,
    ) -> BoxFuture<()> {
        // At once: whoever holds the lane may want to know.
        self.remote.note_eviction(client_id, epoch, &learned);
        let (cluster, client_id) = (self.clone(), client_id.clone());
        Box::pin(async move {
            let remote = &cluster.remote;
            remote.sessions.when_reconciled().await;
            let lane = remote.sessions.lanes.join(&client_id);
            lane.first().await;
            if let Some(handle) = cluster.broker.session(&client_id).filter(|h| h.epoch() < epoch) {
                handle.disown();
                let moved = matches!(learned, Learned::Moved);
                let will_stays = !moved && remote.will_stays(&client_id, epoch).await;
                if !will_stays {
                    handle.mailbox.close(CloseCause::Evicted, &mut Wakes::default());
                }
                if let Out::Session(session) = cluster.take_out(&handle).await {
                    cluster.end_replaced(&handle, session, will_stays).await;
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
        let remote = &self.remote;
        handle.disown();
        remote.metrics.evictions.inc();
        if !self.broker.rivals.is_quiet(&handle.client_id, remote.now()) {
            tracing::info!(client = %shown(&handle.client_id), "session was replaced by another node's; it ends here");
        }
        if !will_stays {
            session.forget_will();
        }
        let topic: Option<Arc<str>> = session.will().map(|will| will.message.topic().into());
        let mut scratch = Scratch::default();
        let done = self.end_dormant(handle, &mut session, remote.now(), &mut scratch);
        if let Some(lsn) = done.lsn {
            durable(self.broker.journal.clone(), lsn).await;
        }
        // What its client says next comes after the will, on all nodes and in the store.
        let deadline = remote.now().plus_ms(WILL_WAIT_MS);
        if let Some(will) = done.will {
            remote.until(deadline, Box::pin(async move { will.when_kept().await })).await;
        }
        if let Some(topic) = topic {
            let (retained, under_way) = (remote.retained.clone(), remote.retained.under_way(&topic));
            remote.until(deadline, Box::pin(async move { retained.when_decided(under_way).await })).await;
        }
    }
}

impl Remote {
    /// A session of this node was replaced under `epoch`. What is made here from now on goes above that, lest the eviction, or
    /// its request coming late, take it for the old one.
    pub(super) fn note_eviction(&self, client_id: &Arc<str>, epoch: Epoch, learned: &Learned) {
        self.sessions.note_ended(client_id, epoch);
        self.sessions.begin_eviction(client_id, epoch, learned);
    }

    /// Whether the will of a session that was replaced under `epoch` is published: the new owner has not let its client in. If it
    /// can ask for that, it is given some time to.
    pub(super) async fn will_stays(&self, client_id: &str, epoch: Epoch) -> bool {
        let until = self.now().plus_ms(ASKED_WITHIN_MS);
        loop {
            let asked = self.sessions.asked_for(client_id, epoch);
            let may_come = |by: &MemberId| self.linked_to(by) && self.now() < until;
            match asked {
                None => return true,
                Some(by) if !by.as_ref().is_some_and(may_come) => return false,
                Some(_) => self.ports.tasks.sleep(ASKED_LOOK_MS).await,
            }
        }
    }
}

impl Sessions {
    fn begin_eviction(&self, client_id: &Arc<str>, epoch: Epoch, learned: &Learned) {
        let (asked, by) = match learned {
            Learned::Asked | Learned::Expired => (true, None),
            Learned::Read(by) => (false, by.clone()),
            Learned::Moved => return,
        };
        let mut evicting = self.evicting.lock();
        let known = evicting.entry(client_id.clone()).or_default();
        if epoch > known.epoch {
            *known = Evicting { epoch, asked, by };
        } else if epoch == known.epoch {
            known.asked |= asked;
            known.by = known.by.take().or(by);
        }
    }

    /// `None` if the new owner has asked for the eviction; else who that is, as far as it is known.
    fn asked_for(&self, client_id: &str, epoch: Epoch) -> Option<Option<MemberId>> {
        let evicting = self.evicting.lock();
        let known = evicting.get(client_id).filter(|e| e.epoch >= epoch);
        match known {
            Some(e) if e.asked => None,
            Some(e) => Some(e.by.clone()),
            None => Some(None),
        }
    }

    fn end_eviction(&self, client_id: &str, epoch: Epoch) {
        let mut evicting = self.evicting.lock();
        if evicting.get(client_id).is_some_and(|known| known.epoch <= epoch) {
            evicting.remove(client_id);
        }
    }

    /// Whether a session of this client identifier and epoch is being evicted.
    pub fn being_evicted(&self, client_id: &str, epoch: Epoch) -> bool {
        self.evicting.lock().get(client_id).is_some_and(|known| known.epoch > epoch)
    }

    /// Whether a session with state was replaced under `epoch` by one without, over this node's head.
    pub(crate) fn replaced_by(&self, client_id: &str, epoch: Epoch) -> bool {
        self.evicting.lock().get(client_id).is_some_and(|known| known.epoch == epoch)
    }
}
