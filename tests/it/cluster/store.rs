//! Coordinators on a real etcd, without brokers: what the tests of the watch, the claims, the routes and the retained
//! messages share.

use super::etcd::Etcd;
use crate::wait;
use berth::clock::{self, Time};
use berth::etcd::batch::FenceNow;
use berth::etcd::client::{self, EtcdOptions, kv};
use berth::etcd::coordinator::{EtcdCoordinator, Limits, Registered};
use berth::etcd::decode::Decoder;
use berth::etcd::holders::Holders;
use berth::etcd::keys::Keys;
use berth::etcd::records::{self, CustodyRecord, MemberRecord};
use berth::etcd::{applier::Applier, snapshot};
use berth::ports::{ClusterTime, Index, IndexEvent, Member, MemberId, RetainedRecord, Revision};
use berth::telemetry::Metrics;
use etcd_client::{Compare, CompareOp, PutOptions};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// What the cluster knows, as plain maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    directory: BTreeMap<String, bytes::Bytes>,
    pub members: BTreeMap<String, Member>,
    pub custody: BTreeMap<MemberId, String>,
    pub sessions: BTreeMap<String, (MemberId, u64)>,
    pub routes: BTreeMap<MemberId, BTreeMap<String, (bool, u32)>>,
    pub retained: BTreeMap<String, RetainedRecord>,
    pub evictions: BTreeMap<(String, String), u64>,
    pub leader: Option<MemberId>,
}

#[derive(Default)]
struct Inner {
    content: Content,
    /// Inside a snapshot: what it has mentioned.
    fresh: Option<Content>,
    applied: Revision,
    fresh_at: Time,
    snapshots: usize,
    /// Somebody broke the rules of the port.
    wrong: Vec<String>,
}

/// An index that any content can be compared with.
#[derive(Default)]
pub struct PlainIndex(Mutex<Inner>);

impl PlainIndex {
    pub fn content(&self) -> Content {
        let inner = self.0.lock();
        assert!(inner.wrong.is_empty(), "{:?}", inner.wrong);
        inner.content.clone()
    }

    pub fn applied(&self) -> Revision {
        self.0.lock().applied
    }

    pub fn fresh_at(&self) -> Time {
        self.0.lock().fresh_at
    }

    pub fn snapshots(&self) -> usize {
        self.0.lock().snapshots
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn apply(content: &mut Content, event: IndexEvent) {
    match event {
        IndexEvent::Member { node, member } => set(&mut content.members, node.to_string(), member),
        IndexEvent::Custody { of, custody } => {
            if custody.is_none() {
                content.routes.remove(&of);
            }
            set(&mut content.custody, of, custody.map(|c| format!("{c:?}")));
        }
        IndexEvent::Session { client_id, session, .. } => {
            set(&mut content.sessions, client_id.to_string(), session.map(|s| (s.owner, s.epoch)));
        }
        IndexEvent::Routes { of, add, del } => {
            let routes = content.routes.entry(of.clone()).or_default();
            for route in add {
                routes.insert(route.filter.to_string(), (route.persistent, route.weight));
            }
            for filter in &del {
                routes.remove(&**filter);
            }
            if routes.is_empty() {
                content.routes.remove(&of);
            }
        }
        IndexEvent::Retained { topic, retained, .. } => {
            set(&mut content.retained, topic.to_string(), retained)
        }
        IndexEvent::Eviction { node, client_id, epoch, .. } => {
            set(&mut content.evictions, (node.to_string(), client_id.to_string()), epoch);
        }
        IndexEvent::Leader(leader) => content.leader = leader,
        IndexEvent::Directory { key, value } => set(&mut content.directory, key.to_string(), value),
    }
}

impl Index for PlainIndex {
    fn begin_snapshot(&self) {
        self.0.lock().fresh = Some(Content::default());
    }

    fn apply(&self, events: Vec<IndexEvent>, revision: Option<Revision>) {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        for event in events {
            apply(inner.fresh.as_mut().unwrap_or(&mut inner.content), event);
        }
        let Some(revision) = revision else { return };
        if inner.fresh.is_some() || revision <= inner.applied {
            inner.wrong.push(format!("revision {revision} after {}", inner.applied));
        }
        inner.applied = revision;
    }

    fn end_snapshot(&self, revision: Revision) {
        let mut inner = self.0.lock();
        inner.content = inner.fresh.take().expect("a snapshot has begun");
        inner.applied = revision;
        inner.snapshots += 1;
    }

    fn fresh_at(&self, at: Time) {
        self.0.lock().fresh_at = at;
    }
}

pub fn options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        endpoints,
        prefix: "/berth".to_owned(),
        cluster: "test".to_owned(),
        user: None,
        password_file: None,
        tls: None,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(2),
        lease_ttl: Duration::from_secs(600),
    }
}

pub fn keys() -> Keys {
    Keys::new("/berth", "test")
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A node as the cluster sees it.
pub struct Node {
    pub me: MemberId,
    pub etcd: client::Etcd,
    pub index: Arc<PlainIndex>,
    pub metrics: Arc<Metrics>,
    pub coordinator: EtcdCoordinator,
    /// The create-revision of its member key.
    pub created: Arc<AtomicI64>,
    pub lease: Mutex<i64>,
}

/// What applies events to `index`, without etcd.
pub fn applier(index: Arc<PlainIndex>) -> Applier {
    Applier::new(index, Decoder::new(keys(), Arc::new(Holders::default())), Arc::new(Metrics::new()))
}

async fn register(etcd: &client::Etcd, name: &str, member: &Member) -> (i64, i64) {
    let keys = keys();
    let lease = etcd.retry(|c| async move { c.lease_client().grant(600, None).await }).await.unwrap().id();
    let mut record = MemberRecord::new(member, 7);
    record.incarnation = (member.id.incarnation > 0).then_some(member.id.incarnation);
    let put = |record: &MemberRecord| {
        let (key, value) = (keys.member(name), records::write(record));
        let options = PutOptions::new().with_lease(lease);
        etcd.retry(move |c| {
            let (key, value, options) = (key.clone(), value.clone(), options.clone());
            async move { kv(&c).put(key, value, Some(options)).await }
        })
    };
    let created = put(&record).await.unwrap().header().unwrap().revision();
    record.incarnation = Some(record.incarnation.unwrap_or(created as u64));
    put(&record).await.unwrap();
    (created, lease)
}

impl Node {
    /// Registers a node and follows the cluster.
    pub async fn start(endpoints: Vec<String>, name: &str) -> Node {
        let etcd = client::Etcd::new(options(endpoints)).unwrap();
        let mut member = Member {
            id: MemberId { node: name.into(), incarnation: 0 },
            peer_address: format!("{name}:7948"),
            mqtt_address: format!("{name}:1883"),
            http_address: None,
            zone: String::new(),
            version: "0".to_owned(),
            started_ms: 1,
            draining: false,
        };
        let (created, lease) = register(&etcd, name, &member).await;
        member.id.incarnation = created as u64;
        let me = member.id.clone();
        let (key, value) = (keys().custody(&me), records::write(&CustodyRecord::own(&me, 7)));
        etcd.once(move |c| async move { kv(&c).put(key, value, None).await }).await.unwrap();
        let created = Arc::new(AtomicI64::new(created));
        let (index, metrics) = (Arc::new(PlainIndex::default()), Arc::new(Metrics::new()));
        let coordinator = Node::coordinator(&etcd, &me, &created, &index, &metrics).await;
        Node { me, etcd, index, metrics, coordinator, created, lease: Mutex::new(lease) }
    }

    async fn coordinator(
        etcd: &client::Etcd,
        me: &MemberId,
        created: &Arc<AtomicI64>,
        index: &Arc<PlainIndex>,
        metrics: &Arc<Metrics>,
    ) -> EtcdCoordinator {
        let (key, created) = (keys().member(&me.node), created.clone());
        let fence: FenceNow = Arc::new(move || {
            let created = created.load(Ordering::Relaxed);
            Some(Compare::create_revision(&*key, CompareOp::Equal, created))
        });
        let registered = Registered {
            me: me.clone(),
            fence,
            lease_until: Arc::new(|| clock::now().plus_ms(1000)),
            lease_since: Arc::new(|| clock::Time(0)),
            timeline: Default::default(),
            time: Arc::new(ClusterTime::own_clock()),
        };
        let limits = Limits { stale_after: Duration::from_secs(3), claim_timeout: Duration::from_secs(20) };
        let coordinator = EtcdCoordinator::new(etcd.clone(), registered, limits, metrics.clone());
        let index: Arc<dyn Index> = index.clone();
        coordinator.follow(Arc::downgrade(&index)).await.unwrap();
        coordinator
    }

    /// The lease is lost, and with it the member key.
    pub async fn lose_lease(&self) {
        let lease = *self.lease.lock();
        let deadline = wait::deadline();
        // An attempt may meet a member that is gone; one that went through unheard is found to be done.
        let limit = self.etcd.options().request_timeout;
        while let Err(error) = self.etcd.lease(limit, move |mut c| async move { c.revoke(lease).await }).await
        {
            assert!(clock::now() < deadline, "{error}");
            if error.to_string().contains("not found") {
                break;
            }
        }
    }

    /// Registers again under the same incarnation.
    pub async fn register_again(&self) {
        let member = Member {
            id: self.me.clone(),
            peer_address: "x:1".to_owned(),
            mqtt_address: "x:2".to_owned(),
            http_address: None,
            zone: String::new(),
            version: "0".to_owned(),
            started_ms: 1,
            draining: false,
        };
        let (created, lease) = register(&self.etcd, &self.me.node, &member).await;
        *self.lease.lock() = lease;
        self.created.store(created, Ordering::Relaxed);
    }

    /// Waits until the index is what a fresh snapshot of etcd shows.
    pub async fn equals_snapshot(&self) {
        let deadline = wait::deadline();
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        loop {
            looks.tick().await;
            if let Some((expected, revision)) = fresh(&self.etcd).await
                && tokio::time::timeout(Duration::from_secs(10), self.coordinator.applies(revision))
                    .await
                    .is_ok()
                && self.index.content() == expected
            {
                return;
            }
            if clock::now() > deadline {
                let (expected, revision) = fresh(&self.etcd).await.unwrap();
                assert_eq!(self.index.content(), expected, "at {} of {revision}", self.index.applied());
                panic!("the index of {} does not follow: {:?}", self.me, self.coordinator.status());
            }
        }
    }
}

/// What a fresh snapshot shows, and its revision.
pub async fn fresh(etcd: &client::Etcd) -> Option<(Content, Revision)> {
    let index = Arc::new(PlainIndex::default());
    let applier = applier(index.clone());
    applier.begin_snapshot();
    let revision = snapshot::read(etcd, keys().root(), |page| applier.page(&page)).await.ok()?;
    applier.end_snapshot(revision);
    Some((index.content(), revision))
}

/// All keys below a prefix, with their values.
pub async fn dump(etcd: &client::Etcd, prefix: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    snapshot::read(etcd, prefix, |page| {
        for raw in page {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all.insert(text(&raw.key), text(&raw.value.unwrap_or_default()));
        }
    })
    .await
    .unwrap();
    all
}

/// An etcd of its own and a runtime.
pub fn setup(members: usize) -> (Etcd, tokio::runtime::Runtime) {
    (Etcd::start(members), runtime())
}
