//! One pass over all session records: removes those of incarnations that were given up (those without state behind the
//! connection whose journal is lost, and those that expired while their node was gone), finds incarnations that no record
//! refers to, and then collects what they have left in etcd.

use super::client::Etcd;
use super::custody::{self, Nested, Stored, nested_successes};
use super::error::StoreError;
use super::eviction::EvictionRecord;
use super::fence::{exists_since, unchanged_since};
use super::keys::{Key, Keys};
use super::page::{Fold, RoutePage, pack};
use super::records::{self, ForgottenRecord, SessionRecord};
use super::scan::Scan;
use crate::clock::Time;
use crate::hashing::{HashMap, HashSet};
use crate::names::shown;
use crate::ports::{MemberId, RouteChange};
use etcd_client::{Compare, DeleteOptions, KeyValue, Txn, TxnOp};

/// What every transaction compares; `None` = nothing may be written now.
pub type Guard = Box<dyn Fn() -> Option<Vec<Compare>> + Send + Sync>;

/// A custody record that may go if no session refers to the incarnation.
pub struct Unused {
    /// The record.
    pub stored: Stored,
    /// Its journal is lost: its sessions without state behind the connection are over.
    pub lost: bool,
}

/// A process that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    /// Since when, as this leader saw it.
    since: Time,
    /// The revision since which its node's member key is there; 0 = it is not.
    created: i64,
    /// Sessions of it that have not expired have been found.
    left: bool,
    /// When the next of them expires.
    next: Time,
}

impl Gone {
    /// It has been gone since then; its node may run again, without what it had.
    pub fn new(since: Time, created: i64) -> Gone {
        Gone { since, created, left: false, next: Time(u64::MAX) }
    }
}

/// Filters in a page that takes routes back, and their bytes, at most.
const PAGE_FILTERS: usize = 1_000;
const PAGE_BYTES: usize = 64 << 10;

/// One pass over all session records, which removes those that nobody will ask for any more.
pub struct Sweep {
    /// The custody records as they were before the first session was read: an incarnation that registers again rewrites its
    /// record, and then nothing of it is removed.
    custody: HashMap<MemberId, Stored>,
    /// To be collected if no session refers to them.
    unused: HashSet<MemberId>,
    /// Those of them whose journal is lost.
    lost: HashSet<MemberId>,
    /// Holders that are gone.
    gone: HashMap<MemberId, Gone>,
    now: Time,
    scan: Scan,
    removed: usize,
}

impl Sweep {
    /// Begins a pass. `unused` are custody records that may go if no session refers to them.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub async fn begin(
        etcd: &Etcd,
        keys: &Keys,
        unused: Vec<Unused>,
        gone: HashMap<MemberId, Gone>,
        now: Time,
    ) -> Result<Sweep, StoreError> {
        let mut all: HashMap<_, _> = HashMap::default();
        for stored in custody::read_all(etcd, keys).await? {
            all.insert(stored.of.clone(), stored);
        }
        // Whoever changed a record since it was judged has a reason.
        let same = |u: &&Unused| all.get(&u.stored.of).is_some_and(|now| now.revision == u.stored.revision);
        let of = |u: &Unused| u.stored.of.clone();
        let lost = unused.iter().filter(same).filter(|u| u.lost).map(of).collect();
        let unused = unused.iter().filter(same).map(of).collect();
        Ok(Sweep { custody: all, unused, lost, gone, now, scan: Scan::new(keys.sessions()), removed: 0 })
    }

    /// The processes that are gone, and when the next session of theirs expires: known once the pass is over.
    pub fn expiring(&self) -> (HashSet<MemberId>, Time) {
        let next = self.gone.values().map(|g| g.next).min();
        (self.gone.keys().cloned().collect(), next.unwrap_or(Time(u64::MAX)))
    }

    /// Session records removed so far.
    pub fn removed(&self) -> usize {
        self.removed
    }

    /// Goes on by one page of sessions, or by the collection after the last one. Returns whether the pass is over.
    ///
    /// # Errors
    /// If etcd does not answer or nothing may be written; the pass is to be begun again.
    pub async fn step(&mut self, etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<bool, StoreError> {
        let Some(page) = self.scan.page(etcd).await? else {
            self.collect(etcd, keys, guard).await?;
            self.collect_expired(etcd, keys, guard).await?;
            return Ok(true);
        };
        let removals: Vec<_> = page.iter().filter_map(|kv| self.removal(keys, kv)).collect();
        self.removed += nested_successes(etcd, guard, removals).await?;
        Ok(false)
    }

    /// The transaction that removes a session record, if it is to go.
    fn removal(&mut self, keys: &Keys, kv: &KeyValue) -> Option<Nested> {
        let SessionRecord { owner, expiry, epoch, .. } = match records::read(kv.key(), kv.value()) {
            Ok(record) => record,
            Err(e) => {
                tracing::warn!(error = %e, "a session's record is left as it is");
                return None;
            }
        };
        let over = expiry == 0 && self.lost.contains(&owner);
        if !over {
            self.unused.remove(&owner);
        }
        if let Some(expired) = self.expired(keys, kv, &owner, expiry, epoch) {
            return Some(expired);
        }
        let custody = keys.custody(&owner);
        let bytes = 2 * kv.key().len() + custody.len();
        let still = match self.custody.get(&owner) {
            Some(stored) if stored.record.given_up || over => unchanged_since(custody, stored.revision),
            Some(_) => return None,
            None => exists_since(custody, 0),
        };
        let same = unchanged_since(kv.key(), kv.mod_revision());
        let delete = TxnOp::delete(kv.key(), None);
        Some(Nested { txn: Txn::new().when([still, same]).and_then([delete]), bytes })
    }

    /// The transaction that ends a session whose node is gone, if it has expired: its node will find the eviction.
    fn expired(
        &mut self,
        keys: &Keys,
        kv: &KeyValue,
        owner: &MemberId,
        expiry: u32,
        epoch: u64,
    ) -> Option<Nested> {
        let stored = self.custody.get(owner).filter(|s| expiry > 0 && !s.record.given_up)?;
        let holder = &stored.record.holder;
        let gone = self.gone.get_mut(holder)?;
        // Of an older release, or for ever.
        if !stored.record.expires || expiry == u32::MAX {
            gone.left = true;
            return None;
        }
        let at = gone.since.plus_secs(u64::from(expiry));
        if at > self.now {
            gone.left = true;
            gone.next = gone.next.min(at);
            return None;
        }
        let Some(Key::Session { client_id }) = keys.parse(kv.key()) else { return None };
        tracing::info!(client = %shown(&client_id), node = %holder, "session expired while its node is gone");
        let (custody, member) = (keys.custody(owner), keys.member(&holder.node));
        let eviction = keys.eviction(&holder.node, &client_id);
        let value = records::write(&EvictionRecord::expired(epoch + 1));
        let bytes = 2 * kv.key().len() + custody.len() + member.len() + eviction.len() + value.len();
        let when = [
            unchanged_since(custody, stored.revision),
            exists_since(member, gone.created),
            unchanged_since(kv.key(), kv.mod_revision()),
        ];
        let then = [TxnOp::delete(kv.key(), None), TxnOp::put(eviction, value, None)];
        Some(Nested { txn: Txn::new().when(when).and_then(then), bytes })
    }

    /// Takes back the routes of processes that are gone and all of whose sessions have expired.
    async fn collect_expired(&self, etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<(), StoreError> {
        for stored in self.custody.values() {
            let Some(gone) = self.gone.get(&stored.record.holder).filter(|g| !g.left) else { continue };
            let (mut fold, mut last) = (Fold::default(), 0);
            let mut scan = Scan::new(keys.routes_of(&stored.of));
            while let Some(page) = scan.page(etcd).await? {
                for kv in &page {
                    let (Some(Key::Routes { page, .. }), Ok(routes)) =
                        (keys.parse(kv.key()), RoutePage::decode(kv.value()))
                    else {
                        return Ok(()); // what cannot be read is left as it is
                    };
                    last = last.max(page);
                    fold.page(routes);
                }
            }
            let taken_back = fold.into_routes().map(|r| RouteChange { filter: r.filter, route: None });
            let (custody, member) = (keys.custody(&stored.of), keys.member(&stored.record.holder.node));
            let pages = pack(taken_back, false, PAGE_FILTERS, PAGE_BYTES);
            let one = |(no, packed): (u64, super::page::Packed)| {
                let (key, value) = (keys.route_page(&stored.of, no), packed.page.encode());
                let bytes = 2 * key.len() + custody.len() + member.len() + value.len();
                let when = [
                    unchanged_since(&*custody, stored.revision),
                    exists_since(&*member, gone.created),
                    exists_since(&*key, 0),
                ];
                Nested { txn: Txn::new().when(when).and_then([TxnOp::put(key, value, None)]), bytes }
            };
            nested_successes(etcd, guard, (last + 1..).zip(pages).map(one)).await?;
        }
        Ok(())
    }

    /// Removes the routes and the custody record of every incarnation that nothing refers to, and the evictions of nodes of
    /// which nothing is left.
    async fn collect(&mut self, etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<(), StoreError> {
        let goes = |s: &&Stored| s.record.given_up || self.unused.contains(&s.of);
        let going: Vec<_> = self.custody.values().filter(goes).cloned().collect();
        let one = |stored: &Stored| {
            let (key, pages) = (keys.custody(&stored.of), keys.routes_of(&stored.of));
            let mut bytes = 2 * (key.len() + pages.len());
            let when = [unchanged_since(&*key, stored.revision)];
            let pages = TxnOp::delete(pages, Some(DeleteOptions::new().with_prefix()));
            let mut then = vec![pages, TxnOp::delete(key, None)];
            if is_last(&self.custody, &going, stored) {
                let mark = keys.forgotten(stored.record.journal);
                let value = records::write(&ForgottenRecord::new(stored.of.incarnation));
                bytes += mark.len() + value.len();
                then.push(TxnOp::put(mark, value, None));
            }
            Nested { txn: Txn::new().when(when).and_then(then), bytes }
        };
        nested_successes(etcd, guard, going.iter().map(one)).await?;
        for stored in &going {
            tracing::info!(incarnation = %stored.of, given_up = stored.record.given_up, "collected an incarnation");
            self.custody.remove(&stored.of);
        }
        self.collect_routes(etcd, keys, guard).await?;
        self.collect_evictions(etcd, keys, guard).await
    }

    /// Removes route pages of incarnations without a custody record.
    async fn collect_routes(&self, etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<(), StoreError> {
        let owner = |kv: &KeyValue| match keys.parse(kv.key()) {
            Some(Key::Routes { of, .. }) => Some(of),
            _ => None,
        };
        let known = |of: &MemberId| self.custody.contains_key(of);
        let lost = key_owners(etcd, keys.routes(), owner, known).await?;
        let one = |of: &MemberId| {
            let (custody, pages) = (keys.custody(of), keys.routes_of(of));
            let bytes = custody.len() + 2 * pages.len();
            let delete = TxnOp::delete(pages, Some(DeleteOptions::new().with_prefix()));
            Nested { txn: Txn::new().when([exists_since(custody, 0)]).and_then([delete]), bytes }
        };
        nested_successes(etcd, guard, lost.iter().map(one)).await?;
        Ok(())
    }

    /// Removes evictions of nodes that have neither a member nor a custody record.
    async fn collect_evictions(&self, etcd: &Etcd, keys: &Keys, guard: &Guard) -> Result<(), StoreError> {
        let node = |kv: &KeyValue| match keys.parse(kv.key()) {
            Some(Key::Eviction { node, .. }) => Some(node),
            _ => None,
        };
        let known = |node: &std::sync::Arc<str>| self.custody.keys().any(|of| of.node == *node);
        let lost = key_owners(etcd, keys.evictions(), node, known).await?;
        let one = |node: &std::sync::Arc<str>| {
            let (member, custodies) = (keys.member(node), keys.custodies_of(node));
            let evictions = keys.evictions_of(node);
            let bytes = member.len() + 2 * (custodies.len() + evictions.len());
            let when = [exists_since(member, 0), exists_since(custodies, 0).with_prefix()];
            let delete = TxnOp::delete(evictions, Some(DeleteOptions::new().with_prefix()));
            Nested { txn: Txn::new().when(when).and_then([delete]), bytes }
        };
        nested_successes(etcd, guard, lost.iter().map(one)).await?;
        Ok(())
    }
}

/// Whether this is the last record of a journal: whoever brings that back must know that nothing is left to claim. Of several that go
/// at once only one says so, since a request to etcd may write a key once.
fn is_last(custody: &HashMap<MemberId, Stored>, going: &[Stored], stored: &Stored) -> bool {
    let of = |s: &&Stored| s.record.journal == stored.record.journal;
    let stays = |s: &&Stored| !s.record.given_up && going.iter().all(|g| g.of != s.of);
    let newest = going.iter().filter(of).map(|s| s.of.incarnation).max();
    newest == Some(stored.of.incarnation) && !custody.values().filter(of).any(|s| stays(&s))
}

/// Whom the keys below `prefix` belong to, those known left out.
async fn key_owners<T: Eq + std::hash::Hash>(
    etcd: &Etcd,
    prefix: String,
    owner: impl Fn(&KeyValue) -> Option<T>,
    known: impl Fn(&T) -> bool,
) -> Result<Vec<T>, StoreError> {
    let mut found = HashSet::default();
    let mut scan = Scan::keys_only(prefix);
    while let Some(page) = scan.page(etcd).await? {
        found.extend(page.iter().filter_map(&owner).filter(|owner| !known(owner)));
    }
    Ok(found.into_iter().collect())
}
