//! The election of a leader, with the keys of etcd's own election: every candidate has `leader/<lease>`, made under its lease,
//! and whose key is the oldest leads. Everything a leader writes compares its key, so a leader of yesterday writes nothing.

use super::client::Etcd;
use super::error::{EtcdError, StoreError};
use super::fence::exists_since;
use super::keys::Keys;
use super::member::{Membership, Shared};
use super::records;
use super::sweep::Guard;
use crate::clock;
use crate::ports::MemberId;
use etcd_client::{GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Between two looks at the candidates, unless told that something has changed.
const LOOK: Duration = Duration::from_secs(1);

/// Is told whenever another node leads (`None`: none does).
pub type OnChange = Box<dyn Fn(Option<&MemberId>) + Send + Sync>;

/// Who leads, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View {
    leader: Option<MemberId>,
    /// This process's key and its create-revision, if it leads.
    mine: Option<(String, i64)>,
}

struct Inner {
    member: Arc<Shared>,
    view: watch::Sender<View>,
    nudge: Notify,
    on_change: OnChange,
}

/// This node's part in the election.
pub struct Election {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Election {
    /// Stands for election until [`Election::resign`].
    pub fn start(membership: &Membership, on_change: OnChange) -> Election {
        let member = membership.shared();
        let inner =
            Arc::new(Inner { member, view: watch::Sender::default(), nudge: Notify::new(), on_change });
        let task = tokio::spawn(stand(inner.clone()));
        Election { inner, task }
    }

    /// Whether this process leads, and certainly still has its lease.
    pub fn is_leader(&self) -> bool {
        self.inner.is_leader()
    }

    /// Who leads, as last seen.
    pub fn leader(&self) -> Option<MemberId> {
        self.inner.view.borrow().leader.clone()
    }

    /// What everything that a leader writes compares; `None` while this process does not lead.
    pub fn guard(&self) -> Guard {
        let inner = self.inner.clone();
        Box::new(move || inner.guard())
    }

    /// Something has changed below `leader/`: look at once.
    pub fn nudge(&self) {
        self.inner.nudge.notify_one();
    }

    /// Completes when this process leads.
    pub async fn elected(&self) {
        let mut view = self.inner.view.subscribe();
        // An error means that the election is over: nobody will be elected any more.
        if view.wait_for(|view| view.mine.is_some()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Leads and stands no more; its key goes with the lease.
    pub fn stand_down(&self) {
        self.task.abort();
        self.inner.view.send_modify(|view| view.mine = None);
    }

    /// Gives the leadership up and stands no more. If etcd does not answer, the key goes with the lease.
    pub async fn resign(&self) {
        self.stand_down();
        let inner = &self.inner;
        let key = inner.member.keys.leader(inner.member.lease_id());
        let delete = inner.member.etcd.retry(|client| {
            let key = key.clone();
            async move { super::client::kv(&client).delete(key, None).await }
        });
        match delete.await {
            Ok(_) => tracing::info!(member = %inner.member.me, "stands for election no more"),
            Err(error) => tracing::warn!(%error, "could not resign: the leadership goes with the lease"),
        }
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn is_leader(&self) -> bool {
        self.view.borrow().mine.is_some() && clock::now() < self.member.lease_until()
    }

    fn guard(&self) -> Option<Vec<etcd_client::Compare>> {
        let view = self.view.borrow();
        let (key, created) = view.mine.as_ref()?;
        Some(vec![self.member.fence().compare()?, exists_since(&**key, *created)])
    }

    /// Makes this process's key if it is missing, and looks who leads.
    async fn look(&self) -> Result<(), StoreError> {
        let Shared { etcd, keys, me, .. } = &*self.member;
        let key = keys.leader(self.member.lease_id());
        let (leader, created) = match oldest(etcd, keys).await? {
            Some((oldest, leader, created)) if oldest == key => (Some(leader), Some(created)),
            found => {
                self.candidate(&key).await?;
                (found.map(|(_, leader, _)| leader), None)
            }
        };
        let mine = created.filter(|_| leader.as_ref() == Some(me)).map(|created| (key, created));
        self.see(View { leader, mine });
        Ok(())
    }

    /// Makes this process's key unless it is there.
    async fn candidate(&self, key: &str) -> Result<(), StoreError> {
        let lease = self.member.lease_id();
        let Some(fence) = self.member.fence().compare() else { return Err(StoreError::Fenced) };
        let put = TxnOp::put(key, self.member.me.to_string(), Some(PutOptions::new().with_lease(lease)));
        let create = TxnOp::txn(Txn::new().when([exists_since(key, 0)]).and_then([put]));
        let answer = self.member.etcd.txn(Txn::new().when([fence]).and_then([create])).await?;
        if !answer.succeeded() {
            return Err(StoreError::Fenced);
        }
        let made = answer
            .op_responses()
            .iter()
            .any(|op| matches!(op, etcd_client::TxnOpResponse::Txn(txn) if txn.succeeded()));
        if made {
            // It may be the oldest.
            self.nudge.notify_one();
        }
        Ok(())
    }

    fn see(&self, view: View) {
        let before = self.view.send_replace(view.clone());
        if before.leader == view.leader {
            return;
        }
        match &view.leader {
            Some(leader) if *leader == self.member.me => {
                tracing::info!(%leader, "this node leads the cluster")
            }
            Some(leader) => tracing::info!(%leader, "another node leads the cluster"),
            None => tracing::info!("no node leads the cluster"),
        }
        (self.on_change)(view.leader.as_ref());
    }
}

/// The oldest candidate: its key, its name, and when the key was made.
async fn oldest(etcd: &Etcd, keys: &Keys) -> Result<Option<(String, MemberId, i64)>, EtcdError> {
    let options =
        GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
    let answer = etcd.get(keys.leaders(), Some(options)).await?;
    let found = answer.kvs().first().and_then(|kv| {
        let key = kv.key_str().ok()?.to_owned();
        Some((key, records::parse_member_id(kv.value())?, kv.create_revision()))
    });
    Ok(found)
}

async fn stand(inner: Arc<Inner>) {
    let mut fence = inner.member.fence();
    let mut failing = false;
    loop {
        match inner.look().await {
            Ok(()) => failing = false,
            // Registered again, this process is a new candidate.
            Err(StoreError::Fenced) => inner.view.send_modify(|view| view.mine = None),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot see who leads the cluster: trying on");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = inner.nudge.notified() => {}
            () = fence.changed() => {}
        }
    }
}
