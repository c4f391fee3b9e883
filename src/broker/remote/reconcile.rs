//! After a start: which sessions of the journal are still this node's. Until that is known they take nothing, and none of their
//! timers runs.

use super::Remote;
use crate::broker::Broker;
use crate::broker::handle::Handle;
use crate::broker::ports::{BoxFuture, Claim, ClaimOutcome, Expected, SessionOwner};
use crate::broker::publish::Scratch;
use crate::telemetry::metrics::SessionState;
use hashbrown::HashMap;
use std::sync::Arc;

/// Sessions claimed again at a time, after the store went back in time.
const CLAIMS_AT_ONCE: usize = 256;

/// A session found in the journal.
#[derive(Debug)]
pub(super) struct Candidate {
    handle: Arc<Handle>,
    /// Its claim was under way.
    pending: bool,
    /// Its record has to be written anew if it is kept.
    changed: bool,
}

/// What is to become of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// This node's, under a higher epoch that the journal did not come to know.
    KeepAt(u64),
    /// Nobody's: the store forgot it.
    ClaimAgain,
    /// Replaced over this node's head: its will stays behind.
    Evicted,
    /// Somebody else's, with its will; or never claimed.
    Drop,
}

impl Broker {
    /// Keeps a session of the journal aside until [`Broker::reconcile`].
    pub(in crate::broker) fn keep_aside(&self, handle: &Arc<Handle>, pending: bool, was_connected: bool) {
        if let Some(remote) = &self.remote {
            let changed = pending || was_connected;
            remote.sessions.recovered.lock().push(Candidate { handle: handle.clone(), pending, changed });
        }
    }

    /// Compares the sessions of the journal with the store, as this node's index has it: it must have come to the revision of
    /// the node's own registration, and incarnations whose state is in the journal must have been adopted. Those that are
    /// this node's are served from here on, and their timers run; the others are dropped. `store_went_back`: the store was
    /// restored from a backup, so that what is missing there may be this node's all the same.
    pub fn reconcile(self: &Arc<Broker>, store_went_back: bool) -> BoxFuture<()> {
        let broker = self.clone();
        Box::pin(async move {
            let Some(remote) = broker.remote.clone() else { return };
            remote.when_applied(remote.me.incarnation).await;
            let candidates = std::mem::take(&mut *remote.sessions.recovered.lock());
            let verdicts = remote.judge(&candidates, store_went_back);
            let (mut kept, mut again, mut dropped) = (Vec::new(), Vec::new(), 0);
            for (c, verdict) in candidates.into_iter().zip(verdicts) {
                match verdict {
                    Verdict::Keep => kept.push((c.handle, c.changed)),
                    Verdict::KeepAt(epoch) => {
                        c.handle.set_epoch(epoch);
                        kept.push((c.handle, true));
                    }
                    Verdict::ClaimAgain => again.push(c.handle),
                    Verdict::Evicted | Verdict::Drop => {
                        dropped += 1;
                        broker.drop_recovered(&remote, &c.handle, verdict == Verdict::Evicted);
                    }
                }
            }
            for batch in again.chunks(CLAIMS_AT_ONCE) {
                let claims = batch.iter().map(|h| broker.claim_again(&remote, h));
                let won = futures_util::future::join_all(claims).await;
                kept.extend(batch.iter().zip(won).filter(|(_, won)| *won).map(|(h, _)| (h.clone(), true)));
            }
            tracing::info!(kept = kept.len(), dropped, "sessions of the journal compared with etcd");
            broker.serve_recovered(&remote, kept);
        })
    }

    fn serve_recovered(self: &Arc<Broker>, remote: &Arc<Remote>, kept: Vec<(Arc<Handle>, bool)>) {
        self.put_in_order(remote, remote.sessions.hold.clone(), None, remote.me.incarnation);
        for (handle, changed) in &kept {
            self.registry.insert(handle.clone());
            if let Some(session) = handle.mailbox.thaw() {
                let sessions = &self.metrics.sessions;
                sessions.of(SessionState::Dormant).sub(1);
                sessions.of(SessionState::Active).add(1);
                if *changed {
                    self.save(handle, &session);
                }
                self.park(handle, session, &mut Scratch::default());
            }
        }
        self.late_soon(remote);
        remote.sessions.named.lock().clear();
        remote.sessions.reconciled.set(());
        // After all are served, so that a will that is due finds every session.
        let (now, mut scratch) = (remote.now(), Scratch::default());
        for (handle, _) in &kept {
            self.wake_dormant(handle, now, &mut scratch);
        }
        let evictions = std::mem::take(&mut *remote.sessions.evictions.lock());
        for (client_id, epoch) in evictions {
            let (broker, coordinator) = (self.clone(), remote.ports.coordinator.clone());
            remote.ports.tasks.spawn(Box::pin(async move {
                broker.evict(&client_id, epoch, true).await;
                coordinator.evicted(&client_id, epoch);
            }));
        }
    }

    /// A session of the journal that is not this node's any more. What was sent to it here has to look for it elsewhere.
    fn drop_recovered(self: &Arc<Broker>, remote: &Arc<Remote>, handle: &Arc<Handle>, with_will: bool) {
        let sessions = &self.metrics.sessions;
        sessions.of(SessionState::Dormant).sub(1);
        sessions.of(SessionState::Active).add(1);
        // Only the one in the registry counts itself out.
        if self.registry.get(&handle.client_id).is_none_or(|h| !Arc::ptr_eq(&h, handle)) {
            sessions.of(SessionState::Active).sub(1);
        }
        if with_will && let Some(mut session) = handle.mailbox.thaw() {
            handle.disown();
            self.end_dormant(handle, &mut session, remote.now(), &mut Scratch::default());
            return self.late_soon(remote);
        }
        self.depart(handle, remote.applied());
    }

    async fn claim_again(self: &Arc<Broker>, remote: &Arc<Remote>, handle: &Arc<Handle>) -> bool {
        let (client_id, epoch) = (handle.client_id.clone(), handle.epoch() + 1);
        let expiry_s = handle.mailbox.frozen(|s| s.expiry_s()).unwrap_or(1);
        let claim = Claim { client_id, expected: Expected::Absent, epoch, expiry_s, evict: None };
        match remote.claim_certainly(claim).await {
            ClaimOutcome::Granted(_) => {
                tracing::warn!(client = %handle.client_id, "etcd had forgotten this session; claimed again");
                handle.set_epoch(epoch);
                true
            }
            ClaimOutcome::Found(_) => {
                self.drop_recovered(remote, handle, false);
                false
            }
        }
    }
}

impl Remote {
    fn judge(&self, candidates: &[Candidate], store_went_back: bool) -> Vec<Verdict> {
        let named = self.sessions.named.lock();
        let evictions = self.sessions.evictions.lock();
        // Of several sessions of one client identifier the one whose epoch the store names counts.
        let mut best: HashMap<&str, u64> = HashMap::new();
        for c in candidates {
            let exact = named.get(&c.handle.client_id).is_some_and(|s| s.epoch == c.handle.epoch());
            if !c.pending || exact {
                let e = best.entry(&c.handle.client_id).or_default();
                let ours = if exact { u64::MAX } else { c.handle.epoch() };
                *e = (*e).max(ours);
            }
        }
        let judge = |c: &Candidate| {
            let epoch = c.handle.epoch();
            let evicted = evictions.get(&c.handle.client_id).is_some_and(|by| *by > epoch);
            self.verdict(c, named.get(&c.handle.client_id), best.get(&*c.handle.client_id).copied(), evicted)
                .unwrap_or(if !c.pending && store_went_back { Verdict::ClaimAgain } else { Verdict::Drop })
        };
        candidates.iter().map(judge).collect()
    }

    /// `None` if the store does not know the session.
    fn verdict(
        &self,
        c: &Candidate,
        named: Option<&SessionOwner>,
        best: Option<u64>,
        evicted: bool,
    ) -> Option<Verdict> {
        let replaced = if evicted && !c.pending { Verdict::Evicted } else { Verdict::Drop };
        let Some(named) = named else { return evicted.then_some(replaced) };
        let epoch = c.handle.epoch();
        if self.members.holder_of(&named.owner) != self.me {
            return Some(replaced);
        }
        if named.epoch == epoch {
            return Some(Verdict::Keep);
        }
        // Claimed anew for itself, when a takeover failed, shortly before the end.
        let anew = !c.pending && named.epoch > epoch && best == Some(epoch) && !evicted;
        Some(if anew { Verdict::KeepAt(named.epoch) } else { replaced })
    }
}
