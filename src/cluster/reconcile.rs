//! After a start: which sessions of the journal are still this node's. Until that is known they take nothing, and none of their
//! timers runs.

use super::evict::Learned;
use super::{Cluster, Remote};
use crate::broker::delivery::Scratch;
use crate::broker::ending::Endings;
use crate::broker::handle::Handle;
use crate::broker::mailbox::Wakes;
use crate::hashing::HashMap;
use crate::ports::{BoxFuture, Epoch, SessionNo, SessionOwner};
use crate::session::Session;
use crate::telemetry::metrics::SessionState;
use futures_util::StreamExt;
use std::sync::Arc;

/// Records of earlier processes without state that are removed at a time.
const RELEASES_AT_ONCE: usize = 256;

/// A session found in the journal.
#[derive(Debug)]
pub(super) struct Candidate {
    handle: Arc<Handle>,
    /// The session's claim was under way.
    pending: bool,
    /// The session's record has to be written anew if the session is kept.
    changed: bool,
}

impl Candidate {
    /// It had ended before: what is here is still to be handed on, or to be forgotten by the store.
    fn over(&self) -> bool {
        let over = |s: &Session| s.expiry_s() == 0 && s.will().is_none();
        !self.changed && self.handle.mailbox.frozen(over).unwrap_or(false)
    }
}

/// What is to become of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// This node's, under a higher epoch that the journal did not come to know.
    KeepAt(u64),
    /// The session is this node's by its journal, whatever the store says, which was restored from a backup.
    ClaimAnew,
    /// Replaced by a clean start here, or over before: its will and its shared messages stay behind.
    Ended,
    /// Replaced over this node's head: its shared messages stay behind. Its will is void, its client being connected elsewhere, or
    /// having been: what it said there must not be followed by a will of before.
    Evicted,
    /// Somebody else's, with its will; or never claimed.
    Drop,
}

impl Cluster {
    /// Keeps a session of the journal aside until [`Cluster::reconcile`].
    pub fn keep_aside(&self, handle: &Arc<Handle>, pending: bool, was_connected: bool) {
        let changed = pending || was_connected;
        self.remote.sessions.recovered.lock().push(Candidate { handle: handle.clone(), pending, changed });
    }

    /// Compares the sessions of the journal with the store, as this node's index has it: it must have come to the revision of
    /// the node's own registration, and incarnations whose state is in the journal must have been adopted. Those that are
    /// this node's are served from here on, and their timers run; the others are dropped. `anew`: the store was restored from a
    /// backup since the journal was last compared with it, so that what is missing there, or there under a lower epoch, is this
    /// node's all the same ([`super::restored`]).
    pub fn reconcile(self: &Arc<Cluster>, anew: bool) -> BoxFuture<()> {
        let cluster = self.clone();
        Box::pin(async move {
            let remote = cluster.remote.clone();
            remote.when_applied(remote.me.registered_at()).await;
            // A client that comes back may repeat a publish that other nodes still have to get.
            remote.outbox.when_read().await;
            let candidates = std::mem::take(&mut *remote.sessions.recovered.lock());
            let verdicts = remote.verdicts(&candidates, anew);
            remote.note_told_expiry(&candidates);
            let (mut kept, mut missing, mut ended, mut dropped) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for (c, verdict) in candidates.into_iter().zip(verdicts) {
                match verdict {
                    Verdict::Keep => kept.push((c.handle, c.changed)),
                    Verdict::KeepAt(epoch) => {
                        c.handle.set_epoch(epoch);
                        kept.push((c.handle, true));
                    }
                    Verdict::ClaimAnew => missing.push(c.handle),
                    Verdict::Ended => ended.push((c.handle, true)),
                    Verdict::Evicted => ended.push((c.handle, false)),
                    Verdict::Drop => {
                        dropped += 1;
                        cluster.drop_recovered(&remote, &c.handle);
                    }
                }
            }
            let strangers = std::mem::take(&mut *remote.sessions.strangers.lock());
            // Before anything is waited for: others may wait for this.
            cluster.disclaim(&remote, strangers, anew).await;
            let claimed = cluster.claim_anew(&remote, missing).await;
            dropped += claimed.lost;
            kept.extend(claimed.won.into_iter().map(|handle| (handle, true)));
            let ended_before = ended.len();
            tracing::info!(
                kept = kept.len(),
                ended_before,
                dropped,
                "sessions of the journal compared with etcd"
            );
            cluster.serve_recovered(&remote, kept, ended);
        })
    }

    fn serve_recovered(
        self: &Arc<Cluster>,
        remote: &Arc<Remote>,
        kept: Vec<(Arc<Handle>, bool)>,
        ended: Vec<(Arc<Handle>, bool)>,
    ) {
        self.put_in_order(remote, remote.sessions.hold.clone(), None, remote.me.registered_at());
        for (handle, changed) in &kept {
            self.broker.registry.insert(handle.clone());
            if let Some(session) = handle.mailbox.thaw() {
                self.broker.count_woken();
                if *changed {
                    self.broker.save(handle, &session);
                }
                self.tell_expiry(handle, session.expiry_s(), handle.user());
                self.broker.park(handle, session, &mut Wakes::default());
            }
        }
        // What they leave behind finds the sessions above.
        ended.iter().for_each(|(handle, will_stays)| self.end_recovered(remote, handle, *will_stays));
        self.take_deferred_soon(remote);
        self.release_leftovers(remote);
        remote.sessions.reconciled.set(());
        // What other journals have claimed over this node's head since its sessions were judged.
        let named = std::mem::take(&mut *remote.sessions.named.lock());
        named.iter().for_each(|(client_id, session)| self.on_session(remote, client_id, Some(session)));
        self.knows(remote.applied());
        // After all are served, so that a will that is due finds every session.
        let (now, mut scratch) = (remote.now(), Scratch::default());
        for (handle, _) in &kept {
            self.wake_dormant(handle, now, &mut scratch);
        }
        let evictions = std::mem::take(&mut *remote.sessions.evictions.lock());
        for (client_id, (epoch, expired)) in evictions {
            let (cluster, coordinator) = (self.clone(), remote.ports.coordinator.clone());
            if expired {
                // What the journal had of it has ended, and a session made since has an epoch of its own.
                coordinator.evicted(&client_id, epoch);
                continue;
            }
            remote.ports.tasks.spawn(Box::pin(async move {
                cluster.evict(&client_id, epoch, Learned::Read(None)).await;
                coordinator.evicted(&client_id, epoch);
            }));
        }
    }

    /// Removes the records of sessions without state that ended with this node's earlier processes.
    fn release_leftovers(&self, remote: &Arc<Remote>) {
        let mut leftovers = std::mem::take(&mut *remote.sessions.leftovers.lock());
        // What the journal has ends by itself.
        let kept = |client_id: &str, s: &SessionOwner| {
            self.broker.session(client_id).is_some_and(|h| h.epoch() == s.epoch)
        };
        leftovers.retain(|client_id, s| {
            s.owner != remote.me && remote.members.holder_of(&s.owner) == remote.me && !kept(client_id, s)
        });
        if leftovers.is_empty() {
            return;
        }
        tracing::info!(
            sessions = leftovers.len(),
            "sessions without state ended with an earlier process of this node"
        );
        for (client_id, s) in &leftovers {
            // What is made anew goes above them.
            remote.sessions.note_ended(client_id, s.epoch);
        }
        let coordinator = remote.ports.coordinator.clone();
        let releases = futures_util::stream::iter(leftovers)
            .map(move |(client_id, s)| coordinator.release(&client_id, s.epoch))
            .buffer_unordered(RELEASES_AT_ONCE);
        remote.ports.tasks.spawn(Box::pin(releases.for_each(|()| std::future::ready(()))));
    }

    /// A session of the journal that is not this node's any more. What was sent to it here has to look for it elsewhere.
    pub(super) fn drop_recovered(self: &Arc<Cluster>, remote: &Arc<Remote>, handle: &Arc<Handle>) {
        self.count_out_recovered(handle);
        self.depart(handle, remote.applied());
    }

    /// A session of the journal that is over, but for what it leaves behind.
    fn end_recovered(self: &Arc<Cluster>, remote: &Arc<Remote>, handle: &Arc<Handle>, will_stays: bool) {
        self.count_out_recovered(handle);
        let Some(mut session) = handle.mailbox.thaw() else { return self.depart(handle, remote.applied()) };
        handle.disown();
        if !will_stays {
            session.forget_will();
        }
        self.end_dormant(handle, &mut session, remote.now(), &mut Scratch::default());
        self.take_deferred_soon(remote);
    }

    fn count_out_recovered(&self, handle: &Arc<Handle>) {
        self.broker.count_woken();
        // Only the one in the registry counts itself out.
        if self.broker.session(&handle.client_id).is_none_or(|h| !Arc::ptr_eq(&h, handle)) {
            self.broker.metrics.sessions.of(SessionState::Active).sub(1);
        }
    }
}

impl Remote {
    /// Sessions know what the store says of their expiry.
    fn note_told_expiry(&self, candidates: &[Candidate]) {
        let named = self.sessions.named.lock();
        for c in candidates {
            if let Some(s) = named.get(&c.handle.client_id) {
                c.handle.expiry.is_told(s.expiry_s, &s.user);
            }
        }
    }

    fn verdicts(&self, candidates: &[Candidate], anew: bool) -> Vec<Verdict> {
        let named = self.sessions.named.lock();
        let evictions = self.sessions.evictions.lock();
        // Of several sessions of one client identifier the newest counts, first of all one under the epoch that the store names.
        let rank = |c: &Candidate| {
            let exact = named.get(&c.handle.client_id).is_some_and(|s| s.epoch == c.handle.epoch());
            let epoch = if exact { u64::MAX } else { c.handle.epoch() };
            (exact || !c.pending).then_some((epoch, c.handle.no))
        };
        let mut best: HashMap<&str, (u64, SessionNo)> = HashMap::default();
        for c in candidates {
            let e = best.entry(&c.handle.client_id).or_default();
            *e = rank(c).map_or(*e, |rank| rank.max(*e));
        }
        let verdict = |c: &Candidate| {
            let epoch = c.handle.epoch();
            let by = evictions.get(&c.handle.client_id).copied().filter(|(by, _)| *by > epoch);
            let best = rank(c).is_some_and(|rank| best.get(&*c.handle.client_id) == Some(&rank));
            self.verdict(c, named.get(&c.handle.client_id), best, by, anew)
        };
        candidates.iter().map(verdict).collect()
    }

    fn verdict(
        &self,
        c: &Candidate,
        named: Option<&SessionOwner>,
        best: bool,
        evicted_by: Option<(Epoch, bool)>,
        anew: bool,
    ) -> Verdict {
        let evicted = evicted_by.is_some();
        // The store has named this node under just the epoch before: also what is pending was claimed then.
        let claimed = !c.pending || evicted_by.is_some_and(|(by, _)| by == c.handle.epoch() + 1);
        // Its client has not been connected elsewhere, as far as can be known: the will is due.
        let expired = evicted_by.is_some_and(|(_, expired)| expired) && named.is_none();
        let replaced = match c.over() {
            true => Verdict::Ended,
            false if expired && claimed => Verdict::Ended,
            false if evicted && claimed => Verdict::Evicted,
            // Replaced by a clean start here.
            false if anew && !best && !c.pending => Verdict::Ended,
            false => Verdict::Drop,
        };
        let by_journal = anew && best && !c.pending && replaced == Verdict::Drop;
        let epoch = c.handle.epoch();
        let Some(named) = named else { return if by_journal { Verdict::ClaimAnew } else { replaced } };
        let holder = self.members.holder_of(&named.owner);
        let mine = holder == self.me;
        if mine && named.epoch == epoch && (named.expiry_s > 0 || !by_journal) {
            // The epoch passes to the session that a clean start puts in the place of another here.
            return if best { Verdict::Keep } else { Verdict::Ended };
        }
        // Claimed anew for itself, when a takeover failed, shortly before the end. A record without state is that of a session
        // which the journal need not know.
        let for_itself = mine && !c.pending && named.epoch > epoch && named.expiry_s > 0 && best;
        if for_itself && !evicted && !c.over() {
            return Verdict::KeepAt(named.epoch);
        }
        match by_journal {
            // Also what loses: the store is asked once more, and the log says what becomes of it.
            true => Verdict::ClaimAnew,
            false => replaced,
        }
    }
}
