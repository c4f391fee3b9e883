//! A member of a cluster without a broker: registered in a real etcd, with hands to write what brokers write.

use super::etcd::Etcd as Server;
use crate::wait;
use berth::etcd::client::{Etcd, EtcdOptions};
use berth::etcd::custody::{self, Stored};
use berth::etcd::fence::Fence;
use berth::etcd::journals::Entry;
use berth::etcd::keys::Keys;
use berth::etcd::member::{Membership, Registration};
use berth::etcd::records::{self, MemberRecord, SessionRecord};
use berth::etcd::register::RegisterError;
use berth::ports::{Member, MemberId, SessionOwner};
use berth::user::SessionUser;
use etcd_client::{KeyValue, Txn, TxnOp};
use std::time::Duration;

/// The cluster's name in these tests.
pub const CLUSTER: &str = "test";

/// What all nodes of the tests have in common.
pub fn options(server: &Server) -> EtcdOptions {
    EtcdOptions {
        endpoints: server.endpoints(),
        prefix: "/berth".to_owned(),
        cluster: CLUSTER.to_owned(),
        user: None,
        password_file: None,
        tls: None,
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
        lease_ttl: Duration::from_secs(5),
    }
}

/// The keys of the tests' cluster.
pub fn keys() -> Keys {
    Keys::new("/berth", CLUSTER)
}

/// A connection.
pub async fn connect(server: &Server) -> Etcd {
    Etcd::connect(options(server)).await.unwrap()
}

/// What node `name` says of itself.
pub fn description(name: &str) -> Member {
    Member {
        id: MemberId { node: name.into(), incarnation: 0 },
        peer_address: format!("{name}:7948"),
        mqtt_address: format!("{name}:1883"),
        http_address: Some(format!("{name}:8081")),
        zone: "z".to_owned(),
        version: "0.1.0".to_owned(),
        started_ms: 1,
        draining: false,
    }
}

/// Registers node `name` on a connection.
pub async fn register(etcd: &Etcd, name: &str, journal: u64) -> Result<Membership, RegisterError> {
    Membership::register(etcd, &keys(), &description(name), &Entry::unstamped(journal)).await
}

/// A registered process.
pub struct Node {
    pub etcd: Etcd,
    pub keys: Keys,
    pub membership: Membership,
}

impl Node {
    /// Registers node `name` with a journal.
    pub async fn start(server: &Server, name: &str, journal: u64) -> Node {
        Node::try_start(server, name, journal).await.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// As [`Node::start`], which may fail.
    pub async fn try_start(server: &Server, name: &str, journal: u64) -> Result<Node, RegisterError> {
        let etcd = connect(server).await;
        let membership = register(&etcd, name, journal).await?;
        Ok(Node { etcd, keys: keys(), membership })
    }

    pub fn me(&self) -> MemberId {
        self.membership.me().clone()
    }

    /// Writes `key` as everything is written: fenced. Returns whether it was.
    pub async fn write(&self, fence: &Fence, key: &str, value: &[u8]) -> bool {
        let Some(when) = fence.compare() else { return false };
        let txn = Txn::new().when([when]).and_then([TxnOp::put(key, value, None)]);
        self.etcd.txn(txn).await.unwrap().succeeded()
    }

    /// Makes this process the owner of sessions.
    pub async fn own(&self, clients: &[&str], expiry_s: u32) {
        for client in clients {
            let session = SessionOwner { owner: self.me(), epoch: 1, expiry_s, user: SessionUser::Unknown };
            let value = records::write(&SessionRecord::new(&session));
            assert!(self.write(&self.membership.fence(), &self.keys.session(client), &value).await);
        }
    }

    /// Waits until it stands so.
    pub async fn stands(&self, wanted: impl Fn(&Registration) -> bool) -> Registration {
        let mut registration = self.membership.registration();
        tokio::time::timeout(wait::PATIENCE, registration.wait_for(wanted)).await.unwrap().unwrap().clone()
    }
}

/// All keys below `prefix` with their values.
pub async fn below(etcd: &Etcd, prefix: String) -> Vec<KeyValue> {
    let options = etcd_client::GetOptions::new().with_prefix();
    etcd.get(prefix, Some(options)).await.unwrap().take_kvs()
}

/// The member record of a node, and its lease.
pub async fn member(etcd: &Etcd, name: &str) -> Option<(MemberRecord, i64)> {
    let answer = etcd.get(keys().member(name), None).await.unwrap();
    let kv = answer.kvs().first()?;
    Some((records::read(kv.key(), kv.value()).unwrap(), kv.lease()))
}

/// The custody record of an incarnation.
pub async fn custody_of(etcd: &Etcd, of: &MemberId) -> Option<Stored> {
    custody::read_all(etcd, &keys()).await.unwrap().into_iter().find(|s| s.of == *of)
}

/// Ends a process as a crash does, and with it the lease, without waiting for its time.
pub async fn crash(node: Node) -> MemberId {
    let (me, etcd) = (node.me(), node.etcd.clone());
    let (_, lease) = member(&etcd, &me.node).await.unwrap();
    drop(node);
    etcd.lease(Duration::from_secs(5), |mut leases| async move { leases.revoke(lease).await }).await.unwrap();
    assert!(member(&etcd, &me.node).await.is_none());
    me
}
