//! This process as a member: its registration under a lease, and the task that keeps it.
//!
//! A process registers in two transactions: its member key (leased), whose revision becomes the incarnation, then its custody
//! record together with the member record that names the incarnation; from then on it counts. When the lease is lost although
//! the process lives (etcd may revoke live leases), it registers again under the same incarnation, as long as its custody
//! record still names it.

use super::client::Etcd;
use super::custody;
use super::error::{EtcdError, StoreError};
use super::fence::{Fence, exists_since, unchanged_since};
use super::journals::Entry;
use super::keys::Keys;
use super::records::{self, CustodyRecord, MemberRecord};
use super::register::{self, RegisterError, Registered};
use super::restored;
use crate::backoff::Backoff;
use crate::clock::{self, Time};
use crate::ports::{Member, MemberId, Revision};
use etcd_client::{PutOptions, Txn, TxnOp};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Signs of life per lease.
const BEATS: u32 = 5;

/// Between two attempts to register again.
const RETRY: Duration = Duration::from_millis(250);

/// Attempts of a transaction whose outcome stayed unknown.
pub(super) const ATTEMPTS: usize = 6;

/// Whether this process is registered in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Registered, as far as is known.
    Registered,
    /// The lease is gone; it is being registered again.
    Lost,
    /// Another process has taken its place or its custody was given up: this process must stop and start anew. Says what
    /// happened.
    Replaced(Arc<str>),
    /// It left.
    Left,
}

pub(super) struct Shared {
    pub etcd: Etcd,
    pub keys: Keys,
    pub me: MemberId,
    pub journal: u64,
    /// Held while the member key is written.
    writing: tokio::sync::Mutex<()>,
    record: Mutex<MemberRecord>,
    lease: AtomicI64,
    created: watch::Sender<Option<i64>>,
    registration: watch::Sender<Registration>,
    /// When the lease was asked for; stored before `lease_until`.
    lease_since: AtomicU64,
    lease_until: AtomicU64,
}

/// The registration of this process. When dropped without [`Membership::leave`] the lease runs out by itself.
pub struct Membership {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
    adopted: Vec<MemberId>,
    store: restored::Comparison,
}

impl Membership {
    /// Registers `member` (its incarnation is ignored) with the journal it has opened, and adopts the incarnations whose state
    /// is in that journal. The caller must hold the journal's lock: a process that shows the journal of a live member's
    /// record takes its place at once, unless that member answers at its address.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        etcd: &Etcd,
        keys: &Keys,
        member: &Member,
        entry: &Entry,
    ) -> Result<Membership, RegisterError> {
        let journal = entry.journal;
        let record = MemberRecord::new(member, journal);
        let Registered { lease, sent, created, incarnation, comparison, record } =
            register::register(etcd, keys, &member.id.node, record, entry).await?;
        let me = MemberId { node: member.id.node.clone(), incarnation };
        tracing::info!(node = %me.node, incarnation, journal = format!("{journal:016x}"), "registered in etcd");
        let shared = Arc::new(Shared {
            etcd: etcd.clone(),
            keys: keys.clone(),
            me,
            journal,
            writing: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
            lease: AtomicI64::new(lease),
            created: watch::Sender::new(Some(created)),
            registration: watch::Sender::new(Registration::Registered),
            lease_since: AtomicU64::new(sent.0),
            lease_until: AtomicU64::new(0),
        });
        shared.alive(sent);
        let keeper = tokio::spawn(keep(shared.clone()));
        let mut membership = Membership { shared, keeper, adopted: Vec::new(), store: comparison };
        let fence = membership.fence();
        // A restored store may never have heard of them.
        let lost = if comparison.restored && !comparison.forgotten { &*entry.holds } else { &[] };
        membership.adopted = match custody::adopt(etcd, keys, &fence, membership.me(), journal, lost).await {
            Ok(adopted) => adopted,
            Err(e) => {
                membership.leave().await;
                return Err(e.into());
            }
        };
        Ok(membership)
    }

    /// Who this process is.
    pub fn me(&self) -> &MemberId {
        &self.shared.me
    }

    /// The earlier incarnations that this process speaks for.
    pub fn adopted(&self) -> &[MemberId] {
        &self.adopted
    }

    /// What came of comparing the journal with the store when this process registered.
    pub fn store(&self) -> &restored::Comparison {
        &self.store
    }

    /// What every transaction compares.
    pub fn fence(&self) -> Fence {
        self.shared.fence()
    }

    /// Until when the lease is certainly alive: when the last answered sign of life was sent, plus the lease's time.
    pub fn lease_until(&self) -> Time {
        self.shared.lease_until()
    }

    /// When the lease was asked for. Read it after [`Membership::lease_until`].
    pub fn lease_since(&self) -> Time {
        Time(self.shared.lease_since.load(Ordering::Acquire))
    }

    /// Whether this process is registered, now and whenever that changes.
    pub fn registration(&self) -> watch::Receiver<Registration> {
        self.shared.registration.subscribe()
    }

    /// The journal's ID, as registered.
    pub fn journal(&self) -> u64 {
        self.shared.journal
    }

    /// Says in the member record whether this node hands its sessions over.
    ///
    /// # Errors
    /// If it could not be written; it will be when the node registers again.
    pub async fn set_draining(&self, draining: bool) -> Result<Revision, StoreError> {
        self.shared.record.lock().draining = draining;
        self.rewrite().await
    }

    /// Writes the member record as it is. Returns the revision: an event that this node can wait for.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn rewrite(&self) -> Result<Revision, StoreError> {
        self.shared.rewrite().await
    }

    /// A handle for [`Membership::rewrite`] and the lease that outlives no process.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Says goodbye: the lease is revoked and with it everything leased. Tried once at each member; else the lease runs out.
    pub async fn leave(&self) {
        self.keeper.abort();
        let _writing = self.shared.writing.lock().await;
        self.shared.created.send_replace(None);
        self.shared.registration.send_replace(Registration::Left);
        self.shared.lease_until.store(0, Ordering::Relaxed);
        let lease = self.shared.lease_id();
        match register::revoke(&self.shared.etcd, lease).await {
            Ok(()) => tracing::info!(member = %self.shared.me, "left the cluster"),
            Err(error) => {
                tracing::warn!(%error, "could not say goodbye to etcd: this node stays listed until its lease runs out");
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    pub fn fence(&self) -> Fence {
        Fence::new(self.keys.member(&self.me.node), self.created.subscribe())
    }

    pub fn lease_until(&self) -> Time {
        Time(self.lease_until.load(Ordering::Acquire))
    }

    /// The lease.
    pub fn lease_id(&self) -> i64 {
        self.lease.load(Ordering::Relaxed)
    }

    /// A sign of life sent at `sent` was answered.
    fn alive(&self, sent: Time) {
        let ttl = self.etcd.options().lease_ttl.as_millis() as u64;
        self.lease_until.store(sent.plus_ms(ttl).0, Ordering::Release);
    }

    async fn rewrite(&self) -> Result<Revision, StoreError> {
        let _writing = self.writing.lock().await;
        let fence = self.fence();
        let mut attempts = 1;
        loop {
            let Some(when) = fence.compare() else { return Err(StoreError::Fenced) };
            let value = records::write(&*self.record.lock());
            let options = PutOptions::new().with_lease(self.lease_id());
            let put = TxnOp::put(self.keys.member(&self.me.node), value, Some(options));
            match self.etcd.txn(Txn::new().when([when]).and_then([put])).await {
                Ok(answer) if answer.succeeded() => {
                    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                    return Ok(Revision::try_from(revision).unwrap_or(0));
                }
                Ok(_) => return Err(StoreError::Fenced),
                Err(e) if e.is_endpoint() && attempts < ATTEMPTS => attempts += 1,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The lease is gone: registers again under the same incarnation, until that is done or cannot be.
    async fn register_again(&self) {
        tracing::warn!(
            member = %self.me,
            "lost the lease in etcd although this node lives: registering again under the same incarnation"
        );
        let _writing = self.writing.lock().await;
        self.created.send_replace(None);
        self.lease_until.store(0, Ordering::Relaxed);
        self.registration.send_replace(Registration::Lost);
        let mut failing = false;
        let mut backoff = Backoff::steady(RETRY);
        loop {
            match self.try_again().await {
                Ok(created) => {
                    self.created.send_replace(Some(created));
                    self.registration.send_replace(Registration::Registered);
                    tracing::info!(member = %self.me, "registered again in etcd");
                    return;
                }
                Err(Again::Replaced(reason)) => {
                    tracing::error!(member = %self.me, %reason, "this process may not come back to the cluster");
                    self.registration.send_replace(Registration::Replaced(reason.into()));
                    return;
                }
                Err(Again::Failed(error)) => {
                    if !failing {
                        tracing::warn!(%error, "cannot register again yet: trying on");
                    }
                    failing = true;
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// One attempt. Returns the member key's create-revision.
    async fn try_again(&self) -> Result<i64, Again> {
        // What is left of the old registration, or of an attempt whose outcome stayed unknown.
        register::revoke(&self.etcd, self.lease_id()).await?;
        let (lease, sent) = register::grant(&self.etcd).await?;
        self.lease.store(lease, Ordering::Relaxed);
        let key = self.keys.member(&self.me.node);
        let custody_key = self.keys.custody(&self.me);
        let own = self.own_custody(&custody_key).await?;
        let answer = self.etcd.get(&*key, None).await?;
        if let Some(kv) = answer.kvs().first() {
            let other: MemberRecord = records::read(kv.key(), kv.value()).map_err(StoreError::from)?;
            if other.journal != self.journal || other.incarnation != Some(self.me.incarnation) {
                let at = &other.peer;
                return Err(Again::Replaced(format!(
                    "another process ({at}) has registered as node {}",
                    self.me.node
                )));
            }
        }
        let created = answer.kvs().first().map_or(0, etcd_client::KeyValue::create_revision);
        let when = [exists_since(&*key, created), unchanged_since(&*custody_key, own.1)];
        let record = records::write(&*self.record.lock());
        // The custody record is written too: whoever judged it while this node seemed gone finds it changed.
        let custody = records::write(&CustodyRecord { gone: None, ..own.0 });
        let puts = [
            TxnOp::put(key, record, Some(PutOptions::new().with_lease(lease))),
            TxnOp::put(custody_key, custody, None),
        ];
        let answer = self.etcd.txn(Txn::new().when(when).and_then(puts)).await?;
        if !answer.succeeded() {
            return Err(Again::Failed(StoreError::Contended(self.keys.custody(&self.me))));
        }
        self.lease_since.store(sent.0, Ordering::Release);
        self.alive(sent);
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(if created == 0 { revision } else { created })
    }

    /// This process's custody record and its revision.
    async fn own_custody(&self, key: &str) -> Result<(CustodyRecord, i64), Again> {
        let answer = self.etcd.get(key, None).await?;
        let Some(kv) = answer.kvs().first() else {
            return Err(Again::Replaced(format!(
                "{key} is gone: this node was given up while it could not reach etcd, or etcd was restored from a backup of before \
                 this process started"
            )));
        };
        let record: CustodyRecord = records::read(kv.key(), kv.value()).map_err(StoreError::from)?;
        if record.given_up {
            let what = format!("{key} is given up: somebody forgot this node while it could not reach etcd");
            return Err(Again::Replaced(what));
        }
        if record.holder != self.me {
            return Err(Again::Replaced(format!("{key} is held by {} now", record.holder)));
        }
        Ok((record, kv.mod_revision()))
    }
}

/// Why an attempt to register again came to nothing.
enum Again {
    /// It may succeed later.
    Failed(StoreError),
    /// It never will.
    Replaced(String),
}

impl<E: Into<StoreError>> From<E> for Again {
    fn from(error: E) -> Again {
        Again::Failed(error.into())
    }
}

/// Keeps the lease alive until the process leaves or is replaced.
async fn keep(shared: Arc<Shared>) {
    let beat = shared.etcd.options().lease_ttl / BEATS;
    let mut failing = false;
    loop {
        let lease = shared.lease_id();
        let sent = clock::now();
        let answered =
            shared.etcd.lease(beat, |mut leases| async move { leases.keep_alive(lease).await }).await;
        match answered {
            Ok(_) => {
                shared.alive(sent);
                if std::mem::take(&mut failing) {
                    tracing::info!("etcd answers this node's signs of life again");
                }
                tokio::time::sleep(clock::now().until(sent.plus_ms(beat.as_millis() as u64))).await;
            }
            Err(EtcdError::LeaseGone { .. }) => {
                shared.register_again().await;
                if matches!(*shared.registration.borrow(), Registration::Replaced(_)) {
                    return;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "etcd does not answer this node's sign of life: trying on");
                }
                tokio::time::sleep(Backoff::steady(RETRY.min(beat)).pause()).await;
            }
        }
    }
}
