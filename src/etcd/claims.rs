//! Claims, releases and evictions: compare-and-swap operations on `sessions/` and `evictions/`.

use super::applier::{Applier, Change};
use super::batch::{Done, Failure, Nested, Op, Proposer};
use super::eviction::EvictionRecord;
use super::holders::{Chain, Holders};
use super::keys::Keys;
use super::reads::Reads;
use super::records::{self, CustodyRecord, SessionRecord};
use crate::backoff::Backoff;
use crate::clock;
use crate::names::shown;
use crate::ports::{
    Claim, ClaimOutcome, Epoch, Expected, MemberId, Owner, Revision, SessionOwner, Unavailable,
};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ClaimResult;
use crate::user::SessionUser;
use etcd_client::{Compare, CompareOp, GetResponse, Txn, TxnOp, TxnOpResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Claims that wait for etcd, at most; more are refused at once.
pub const CLAIMS_MAX: usize = 65_536;

/// Between two attempts to learn whose a session is that is to be released.
const RETRY: Duration = Duration::from_secs(1);

/// Claims, releases and evictions: compare-and-swap operations on `sessions/` and `evictions/`.
pub struct Claims {
    /// Builds and reads keys.
    pub keys: Keys,
    /// This process.
    pub me: MemberId,
    /// Who speaks for whom.
    pub holders: Arc<Holders>,
    /// Writes.
    pub proposer: Arc<Proposer>,
    /// Reads.
    pub reads: Arc<Reads>,
    /// Is told what was written.
    pub applier: Arc<Applier>,
    /// How long a claim is tried.
    pub timeout: Duration,
    /// Where claims are counted.
    pub metrics: Arc<Metrics>,
}

fn unavailable(why: impl Into<Arc<str>>) -> Unavailable {
    Unavailable(why.into())
}

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Unavailable {
        match failure {
            Failure::Unavailable(why) | Failure::Refused(why) => Unavailable(why),
        }
    }
}

/// Submits what `op` makes of where the outcome goes, and waits for that.
pub async fn outcome(proposer: &Proposer, op: impl FnOnce(Done) -> Op) -> Result<Nested, Failure> {
    let (done, outcome) = oneshot::channel();
    proposer.submit(op(Box::new(move |nested| drop(done.send(nested)))));
    outcome.await.unwrap_or_else(|_| Err(Failure::Unavailable("this node is stopping".into())))
}

impl Claims {
    /// One attempt to become the owner of a session.
    ///
    /// # Errors
    /// If etcd did not answer in time; the claim may have been carried out.
    pub async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, Unavailable> {
        let outcome = self.try_claim(&claim).await;
        self.metrics.claims.of(result_of(&outcome)).inc();
        outcome
    }

    async fn try_claim(&self, claim: &Claim) -> Result<ClaimOutcome, Unavailable> {
        if self.proposer.waiting_first() >= CLAIMS_MAX {
            return Err(unavailable("too many claims wait for etcd"));
        }
        let until = clock::now().plus_ms(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX));
        let mut followed = Vec::new();
        let mut written_at = 0;
        // One record for another costs little, and while a session is on its way somebody must be able to say whose it is.
        let grows = claim.expected == Expected::Absent || claim.evict.is_some();
        if let Expected::Read(owner) = &claim.expected {
            let chain = self.chain(&owner.session.owner).await?;
            if chain.holder != owner.holder {
                // Read anew: an earlier attempt of this very claim may have been carried out before the holder changed.
                return self.owner(&claim.client_id).await.map(ClaimOutcome::Found);
            }
            (followed, written_at) = (chain.records, owner.revision);
        }
        let session = self.keys.session(&claim.client_id);
        let mut keys = vec![session.clone()];
        let record = SessionOwner {
            owner: self.me.clone(),
            epoch: claim.epoch,
            expiry_s: claim.expiry_s,
            user: claim.user.clone(),
        };
        let value = records::write(&SessionRecord::new(&record));
        let change = Change::set(0, session.as_bytes(), &value);
        let mut bytes = 3 * session.len() + value.len();
        let mut compares = vec![compare_revision(&*session, written_at)];
        let mut puts = vec![TxnOp::put(&*session, value, None)];
        let mut gets = vec![TxnOp::get(&*session, None)];
        for (of, revision) in &followed {
            let key = self.keys.custody(of);
            bytes += 2 * key.len();
            compares.push(compare_revision(&*key, *revision));
            gets.push(TxnOp::get(key, None));
        }
        if let Some(node) = &claim.evict {
            let key = self.keys.eviction(node, &claim.client_id);
            let value = records::write(&EvictionRecord::new(claim.epoch));
            bytes += key.len() + value.len();
            puts.push(TxnOp::put(&*key, value, None));
            keys.push(key);
        }
        let txn = Txn::new().when(compares).and_then(puts).or_else(gets);
        let op = |done| Op { keys, txn, bytes, until: Some(until), bulk: false, grows, done };
        let nested = outcome(&self.proposer, op).await?;
        if nested.succeeded {
            self.applier.wrote(change.at(nested.revision));
            return Ok(ClaimOutcome::Granted(nested.revision));
        }
        let Some(found) = self.found(&nested, &followed)? else { return Ok(ClaimOutcome::Found(None)) };
        let (session, revision) = found;
        // An earlier attempt of this very claim went through unheard.
        if nested.again && session == record && revision > written_at {
            self.applier.wrote(change.at(revision));
            return Ok(ClaimOutcome::Granted(revision));
        }
        self.owner_of(session, revision).await.map(|owner| ClaimOutcome::Found(Some(owner)))
    }

    /// What a claim found; notes the custody records that came along.
    fn found(
        &self,
        nested: &Nested,
        followed: &[(MemberId, Revision)],
    ) -> Result<Option<(SessionOwner, Revision)>, Unavailable> {
        let mut gets = nested.responses.iter().map(|response| match response {
            TxnOpResponse::Get(get) => Some(get),
            _ => None,
        });
        let session = gets.next().flatten();
        for ((of, _), get) in followed.iter().zip(gets) {
            if let Some(get) = get {
                self.note_custody(of, get, nested.revision);
            }
        }
        let Some(kv) = session.and_then(|get| get.kvs().first()) else { return Ok(None) };
        let record: SessionRecord =
            records::read(kv.key(), kv.value()).map_err(|e| unavailable(e.to_string()))?;
        Ok(Some((record.session(), kv.mod_revision() as Revision)))
    }

    fn note_custody(&self, of: &MemberId, get: &GetResponse, revision: Revision) {
        match get.kvs().first() {
            Some(kv) => self.note_custody_value(of, kv.key(), kv.value(), kv.mod_revision() as Revision),
            None => self.holders.gone(of, revision),
        }
    }

    fn note_custody_value(&self, of: &MemberId, key: &[u8], value: &[u8], revision: Revision) {
        match records::read::<CustodyRecord>(key, value) {
            Ok(record) => self.holders.note(of, record.custody(), revision),
            Err(problem) => tracing::error!(%problem, "a custody record cannot be read"),
        }
    }

    /// The holder of an incarnation; reads records that are not known yet.
    async fn chain(&self, owner: &MemberId) -> Result<Chain, Unavailable> {
        // Each round reads the record that the last one lacked; a chain is not longer than that.
        for _ in 0..super::holders::CHAIN_MAX {
            let unknown = match self.holders.chain(owner) {
                Ok(chain) => return Ok(chain),
                Err(unknown) => unknown,
            };
            let key = self.keys.custody(&unknown);
            let found = self.reads.get(key.clone()).await.map_err(Unavailable)?;
            match found.value {
                Some((value, revision)) => {
                    self.note_custody_value(&unknown, key.as_bytes(), &value, revision);
                }
                None => {
                    return Ok(Chain { holder: unknown.clone(), records: vec![(unknown, 0)] });
                }
            }
        }
        self.holders
            .chain(owner)
            .map_err(|of| unavailable(format!("the custody record of {of} cannot be read")))
    }

    async fn owner_of(&self, session: SessionOwner, revision: Revision) -> Result<Owner, Unavailable> {
        let chain = self.chain(&session.owner).await?;
        Ok(Owner { session, revision, holder: chain.holder })
    }

    /// The record of a session, read linearizably.
    ///
    /// # Errors
    /// If etcd did not answer in time.
    pub async fn owner(&self, client_id: &str) -> Result<Option<Owner>, Unavailable> {
        let key = self.keys.session(client_id);
        let found = self.reads.get(key.clone()).await.map_err(Unavailable)?;
        let Some((value, revision)) = found.value else { return Ok(None) };
        let record: SessionRecord =
            records::read(key.as_bytes(), &value).map_err(|e| unavailable(e.to_string()))?;
        self.owner_of(record.session(), revision).await.map(Some)
    }

    /// Removes the record of a session if it is this node's at `epoch`. Tried until etcd answers.
    pub async fn release(&self, client_id: &str, epoch: Epoch) {
        let key = self.keys.session(client_id);
        let (from, to) = written_by(&self.me, epoch);
        let compares =
            vec![Compare::value(&*key, CompareOp::Greater, from), Compare::value(&*key, CompareOp::Less, to)];
        let Some((value, revision)) = self.delete_if(&key, compares).await else { return };
        // Not as this process writes it: claimed by an earlier incarnation perhaps, whose sessions this one adopted.
        let session = match records::read::<SessionRecord>(key.as_bytes(), &value) {
            Ok(record) => record.session(),
            Err(problem) => return tracing::error!(%problem, "a session record cannot be released"),
        };
        // Until that is known: a record that stays would name a node that has nothing of the session.
        let mut backoff = Backoff::steady(RETRY);
        let mine = loop {
            match self.chain(&session.owner).await {
                Ok(chain) => break chain.holder == self.me,
                Err(Unavailable(why)) => {
                    tracing::debug!(client = %shown(client_id), %why, "release waits for etcd")
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        };
        if session.epoch == epoch && mine {
            self.delete_if(&key, vec![compare_revision(&*key, revision)]).await;
        }
    }

    /// Changes expiry and user in the record of a session if it is this node's at `epoch`. Tried until etcd answers.
    pub async fn expiry(&self, client_id: &str, epoch: Epoch, expiry_s: u32, user: SessionUser) {
        let mut backoff = Backoff::steady(RETRY);
        while let Err(Unavailable(why)) = self.try_expiry(client_id, epoch, expiry_s, &user).await {
            tracing::debug!(client = %shown(client_id), %why, "the expiry of a session waits for etcd");
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn try_expiry(
        &self,
        client_id: &str,
        epoch: Epoch,
        expiry_s: u32,
        user: &SessionUser,
    ) -> Result<(), Unavailable> {
        let Some(owner) = self.owner(client_id).await? else { return Ok(()) };
        if owner.session.epoch != epoch || owner.holder != self.me {
            return Ok(());
        }
        // This process's own, whoever claimed it: it sees to it that the expiry is right.
        let record = SessionOwner { owner: self.me.clone(), epoch, expiry_s, user: user.clone() };
        if owner.session == record {
            return Ok(());
        }
        let (key, value) = (self.keys.session(client_id), records::write(&SessionRecord::new(&record)));
        let (keys, bytes) = (vec![key.clone()], 2 * key.len() + value.len());
        let same = compare_revision(&*key, owner.revision);
        let txn = Txn::new().when([same]).and_then([TxnOp::put(&*key, value, None)]);
        let op = |done| Op { keys, txn, bytes, until: None, bulk: false, grows: false, done };
        match outcome(&self.proposer, op).await? {
            nested if nested.succeeded => Ok(()),
            _ => Err(unavailable("the record has changed")),
        }
    }

    /// Removes a note of an eviction up to `epoch`. Tried until etcd answers.
    pub async fn evicted(&self, client_id: &str, epoch: Epoch) {
        let key = self.keys.eviction(&self.me.node, client_id);
        let value = records::write(&EvictionRecord::new(epoch));
        let same = vec![Compare::value(&*key, CompareOp::Equal, value)];
        let Some((value, revision)) = self.delete_if(&key, same).await else { return };
        let older = records::read::<EvictionRecord>(key.as_bytes(), &value)
            .is_ok_and(|r| r.epoch < epoch || r.epoch == epoch && r.expired);
        if older {
            self.delete_if(&key, vec![compare_revision(&*key, revision)]).await;
        }
    }

    /// Deletes a key if the compares hold; else what is there.
    async fn delete_if(&self, key: &str, compares: Vec<Compare>) -> Option<(Vec<u8>, Revision)> {
        let txn =
            Txn::new().when(compares).and_then([TxnOp::delete(key, None)]).or_else([TxnOp::get(key, None)]);
        let (keys, bytes) = (vec![key.to_owned()], 4 * key.len());
        let op = |done| Op { keys, txn, bytes, until: None, bulk: false, grows: false, done };
        let nested = outcome(&self.proposer, op).await.ok()?;
        match nested.responses.first() {
            Some(TxnOpResponse::Get(get)) if !nested.succeeded => {
                let kv = get.kvs().first()?;
                Some((kv.value().to_vec(), kv.mod_revision() as Revision))
            }
            _ => None,
        }
    }
}

/// The key was last written at this revision; 0 = it is not there.
pub fn compare_revision(key: impl Into<Vec<u8>>, revision: Revision) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, i64::try_from(revision).unwrap_or(i64::MAX))
}

/// The values that a process writes for its sessions at an epoch, whatever their expiry and user, lie between these two.
fn written_by(me: &MemberId, epoch: Epoch) -> (Vec<u8>, Vec<u8>) {
    let record = SessionOwner { owner: me.clone(), epoch, expiry_s: 0, user: SessionUser::Unknown };
    let mut from = records::write(&SessionRecord::new(&record));
    let expiry = br#","expiry":"#;
    let at = from.windows(expiry.len()).rposition(|part| part == expiry).unwrap_or(from.len());
    from.truncate(at + 1);
    let mut to = from.clone();
    if let Some(last) = to.last_mut() {
        *last += 1;
    }
    (from, to)
}

fn result_of(outcome: &Result<ClaimOutcome, Unavailable>) -> ClaimResult {
    match outcome {
        Ok(ClaimOutcome::Granted(_)) => ClaimResult::Granted,
        Ok(ClaimOutcome::Found(_)) => ClaimResult::Found,
        Err(_) => ClaimResult::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_one_process_and_epoch_are_a_range() {
        let me = MemberId { node: "a".into(), incarnation: 5 };
        let of = |node: &str, incarnation, epoch, expiry_s, user: Option<&str>| {
            let (owner, user) = (MemberId { node: node.into(), incarnation }, SessionUser::read(user));
            records::write(&SessionRecord::new(&SessionOwner { owner, epoch, expiry_s, user }))
        };
        let value = |node, incarnation, epoch, expiry_s| of(node, incarnation, epoch, expiry_s, None);
        let (from, to) = written_by(&me, 3);
        for expiry in [0, 1, 9, 60, u32::MAX] {
            let value = value("a", 5, 3, expiry);
            assert!(from < value && value < to);
            for user in ["", "alice", "\"", "\u{10ffff}"] {
                let value = of("a", 5, 3, expiry, Some(user));
                assert!(from < value && value < to, "{user}");
            }
        }
        for other in [value("a", 5, 4, 0), value("a", 5, 31, 7), value("a", 51, 3, 7), value("aa", 5, 3, 7)] {
            assert!(other <= from || to <= other);
        }
    }
}
