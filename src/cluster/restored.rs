//! Sessions of the journal that a restored store does not name as this node's: they are claimed anew, and of several journals
//! that have a session the one with the highest epoch wins, whoever comes first (docs/decisions/0024-restored-etcd.md).

use super::{Cluster, Remote};
use crate::broker::handle::Handle;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::names::shown;
use crate::ports::{Claim, ClaimOutcome, Epoch, Expected, Owner, Revision, SessionOwner, generation_of};
use std::sync::Arc;

/// Sessions claimed anew at a time.
const CLAIMS_AT_ONCE: usize = 256;

/// Sessions claimed anew that the log names, at most; it counts all.
const NAMED_MAX: usize = 1_000;

/// How often a node looks what another one says of a session that it has in its journal too, milliseconds.
const LOOK_MS: u64 = 200;

/// The epoch of a record that names a node whose journal does not have the session: any journal that has it wins.
const DISCLAIMED: Epoch = 0;

/// What became of the sessions that were to be claimed anew.
#[derive(Default)]
pub(super) struct Claimed {
    /// The sessions that are this node's.
    pub won: Vec<Arc<Handle>>,
    /// How many others have.
    pub lost: usize,
}

impl Cluster {
    /// The store has come as far as this, for what the journal is given from here on; once this node's sessions have been compared
    /// with it.
    pub fn knows(&self, revision: Revision) {
        if self.remote.sessions.reconciled.get().is_some()
            && let Some(known) = self.remote.ports.coordinator.known(revision)
        {
            self.broker.journal.know(known);
        }
    }

    /// Says of sessions that the restored store names as this node's, and that its journal does not have, that this is so (`anew`). Their
    /// state may be with a node that is not there yet, so that their records stay: until they expire, as of a node that is gone.
    pub(super) async fn disclaim(
        self: &Arc<Cluster>,
        remote: &Arc<Remote>,
        strangers: HashMap<Arc<str>, SessionOwner>,
        anew: bool,
    ) {
        let mine = |s: &SessionOwner| remote.members.holder_of(&s.owner) == remote.me;
        let is_disclaimed = |s: &SessionOwner| anew || s.epoch == DISCLAIMED;
        let mut strangers: Vec<(Arc<str>, u32)> = strangers
            .into_iter()
            .filter(|(_, s)| mine(s) && is_disclaimed(s))
            .map(|(client_id, s)| (client_id, s.expiry_s))
            .collect();
        if strangers.is_empty() {
            return;
        }
        for batch in strangers.chunks(CLAIMS_AT_ONCE) {
            futures_util::future::join_all(batch.iter().map(|(id, _)| remote.disclaim_one(id))).await;
        }
        tracing::warn!(
            sessions = strangers.len(),
            "the restored etcd names this node as the owner of sessions that its journal does not have: they have moved or \
             ended since the backup. Their clients are refused with 0x88 until a node is there that has them in its journal, or \
             they expire; a clean start of a client gives its session up"
        );
        strangers.retain(|(_, expiry_s)| *expiry_s < u32::MAX);
        strangers.sort_by_key(|(_, expiry_s)| *expiry_s);
        let (remote, since) = (remote.clone(), remote.now());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            for (client_id, expiry_s) in strangers {
                let left = since.plus_secs(u64::from(expiry_s)).since_ms(remote.now());
                remote.ports.tasks.sleep(left).await;
                // Unless somebody has claimed it.
                remote.ports.coordinator.release(&client_id, DISCLAIMED).await;
            }
        }));
    }

    /// Claims sessions of the journal, whatever the store says of them, unless another journal's state counts more.
    pub(super) async fn claim_anew(
        self: &Arc<Cluster>,
        remote: &Arc<Remote>,
        missing: Vec<Arc<Handle>>,
    ) -> Claimed {
        let mut claimed = Claimed::default();
        let until = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
        for batch in missing.chunks(CLAIMS_AT_ONCE) {
            let claims = batch.iter().map(|handle| self.claim_one_anew(remote, handle, until));
            let outcomes = futures_util::future::join_all(claims).await;
            for (handle, (won, before)) in batch.iter().zip(outcomes) {
                self.say(remote, handle, won, before.as_ref(), &claimed);
                match won {
                    true => claimed.won.push(handle.clone()),
                    false => {
                        claimed.lost += 1;
                        self.drop_recovered(remote, handle);
                    }
                }
            }
        }
        if !missing.is_empty() {
            tracing::warn!(
                claimed = claimed.won.len(),
                dropped = claimed.lost,
                "etcd was restored from a backup: sessions that this node's journal has, and etcd not or as another node's, are \
                 claimed anew"
            );
        }
        claimed
    }

    fn say(&self, remote: &Remote, handle: &Handle, won: bool, before: Option<&Owner>, so_far: &Claimed) {
        let epoch = handle.epoch();
        let named = so_far.won.len() + so_far.lost < NAMED_MAX;
        match (won, before) {
            (false, Some(o)) => tracing::warn!(
                client = %shown(&handle.client_id), ours = epoch, node = %remote.me.node, epoch = o.session.epoch, owner = %o.holder,
                "another node has this session under a higher epoch, or one that was made since etcd was restored: what the \
                 journal here has of it is dropped"
            ),
            (true, Some(o)) if named => tracing::info!(
                client = %shown(&handle.client_id), epoch, before = o.session.epoch, owner = %o.holder,
                "session claimed anew from the journal: the restored etcd named an older owner"
            ),
            (true, None) if named => tracing::info!(
                client = %shown(&handle.client_id), epoch,
                "session claimed anew from the journal: the restored etcd did not have it"
            ),
            _ => {}
        }
    }

    /// Claims one session anew: whether that is this node's now, and the record that this was decided by. Whom the backup names may not have the session any more:
    /// that node is given some time to say so.
    async fn claim_one_anew(
        &self,
        remote: &Arc<Remote>,
        handle: &Arc<Handle>,
        until: Time,
    ) -> (bool, Option<Owner>) {
        let expiry_s = handle.mailbox.frozen(|s| s.expiry_s()).unwrap_or(1);
        let mut found = remote.owner_certainly(&handle.client_id).await;
        loop {
            let Some(epoch) = remote.outranks(handle.epoch(), found.as_ref()) else {
                if found.as_ref().is_none_or(|o| !remote.of_the_backup(o)) || until <= remote.now() {
                    return (false, found);
                }
                remote.ports.tasks.sleep(LOOK_MS).await;
                found = remote.owner_certainly(&handle.client_id).await;
                continue;
            };
            let expected = found.clone().map_or(Expected::Absent, Expected::Read);
            let client_id = handle.client_id.clone();
            let user = handle.user();
            let claim = Claim { client_id, expected, epoch, expiry_s, user: user.clone(), evict: None };
            match remote.claim_certainly(claim).await {
                ClaimOutcome::Granted(_) => {
                    handle.set_epoch(epoch);
                    handle.expiry.is_told(expiry_s, &user);
                    return (true, found);
                }
                ClaimOutcome::Found(other) => found = other,
            }
        }
    }
}

impl Remote {
    /// Whether a record is as the backup had it: no process that has started since has confirmed it.
    fn of_the_backup(&self, owner: &Owner) -> bool {
        generation_of(owner.session.owner.incarnation) < generation_of(self.me.incarnation)
    }

    async fn disclaim_one(&self, client_id: &Arc<str>) {
        let Some(owner) = self.owner_certainly(client_id).await else { return };
        if owner.holder == self.me && self.of_the_backup(&owner) && owner.session.expiry_s > 0 {
            let expiry_s = owner.session.expiry_s;
            let user = owner.session.user.clone();
            let (client_id, expected) = (client_id.clone(), Expected::Read(owner));
            let claim = Claim { client_id, expected, epoch: DISCLAIMED, expiry_s, user, evict: None };
            // If it finds another record, somebody has claimed the session.
            self.claim_certainly(claim).await;
        }
    }

    /// Under which epoch the journal's session takes the place of the one that the store names; `None` if that counts more.
    fn outranks(&self, epoch: Epoch, found: Option<&Owner>) -> Option<Epoch> {
        let Some(Owner { session, holder, .. }) = found else { return Some(epoch.max(1)) };
        let mine = *holder == self.me;
        // There is no state behind it, and its connection ended with the store that was.
        let left_over = session.expiry_s == 0 && self.of_the_backup(found?);
        match session.epoch < epoch {
            true => Some(epoch),
            false if left_over => Some(session.epoch + 1),
            false => mine.then_some(session.epoch),
        }
    }
}
