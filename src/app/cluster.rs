//! This node as part of a cluster: how it joins, in which order, and how it leaves.
//!
//! The steps that [`super::serve`] takes: [`Joining::prepare`] (files and addresses: what can be refused is refused first),
//! [`super::fork::compare`] once the journal is read, [`Joining::register`] once it is open, [`Member::follow`] once the broker is made, [`Member::leave`] at the end.

use super::VERSION;
use super::desk::Progress;
use super::fork::{self, ForkError};
use super::journal::JournalKind;
use super::tokio_tasks::TokioTasks;
use crate::backoff::Backoff;
use crate::clock::{self, Time};
use crate::cluster::{Cluster, ClusterPorts};
use crate::config::{Advertised, Config};
use crate::etcd::client::{Etcd, EtcdOptions, read_password};
use crate::etcd::coordinator::{EtcdCoordinator, EtcdStatus, Limits, Registered};
use crate::etcd::custody::{self, ForgetError, Forgotten, Linked};
use crate::etcd::election::Election;
use crate::etcd::error::{EtcdError, StoreError};
use crate::etcd::journals::{Answers, Begun, Entry, Positions};
use crate::etcd::keys::Keys;
use crate::etcd::leader::{Leader, LeaderOptions};
use crate::etcd::member::{Membership, Registration};
use crate::etcd::older::Known;
use crate::etcd::records::JournalRecord;
use crate::etcd::register::RegisterError;
use crate::etcd::restored;
use crate::etcd::snapshot::SnapshotError;
use crate::etcd::tls::{EtcdTls, Pem};
use crate::node::Node;
use crate::peers::{GrpcPeers, PeerIdentity, PeerOptions, PeerServer, PeerTls, PemFile, Probe};
use crate::ports;
use crate::ports::{Change, ClusterTime, Inbox, Index, Journal, MemberId, NodeRecord, Recovered};
use crate::secret_file::{FileError, Privacy, WatchedFile};
use crate::telemetry::Metrics;
use crate::tls::certificate::CertificateError;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Between two attempts to reach etcd at the start.
const RETRY: Duration = Duration::from_millis(500);

/// How often a start that waits for etcd says so.
const REMIND: Duration = Duration::from_secs(10);

/// Between two rounds of the leader's duties.
const DUTIES_EVERY: Duration = Duration::from_secs(5);

/// How long etcd may take to hear how far the journal of a node that leaves has come.
const LAST_POSITION: Duration = Duration::from_secs(1);

/// How long custody records that were adopted stay, so that every node has seen who has them.
const COLLECT_AFTER: Duration = Duration::from_secs(60);

/// How long a start waits for the other nodes' clocks, milliseconds: links answer at once or not at all.
const CLOCKS_WAIT_MS: u64 = 2_000;

/// Why this node cannot join its cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file that an option names cannot be read.
    #[error("cannot read {path:?} ({option}): {source}")]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with a secret cannot be used.
    #[error(transparent)]
    Secret(FileError),
    /// A file of `cluster.tls` cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The listener for other nodes.
    #[error(transparent)]
    Listen(#[from] crate::peers::BindError),
    /// etcd refuses this node for good.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// This node cannot register.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// What is in etcd cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The journal is a copy of a newer one, or is taken for one and is none.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// The journal is another node's.
    #[error(
        "the journal in {dir:?} (storage.dir) is that of node {found:?}, and this one is {me:?}: set node.id to {found:?}, or \
         give this node a directory of its own"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Who this is.
        me: String,
    },
}

/// What can be checked before the journal is opened.
pub(super) struct Joining {
    server: PeerServer,
    pub(super) etcd: Etcd,
    pub(super) keys: Keys,
    tls: Option<PeerTls>,
    member: ports::Member,
    /// Tells whether a process still lives.
    pub(super) answers: Answers,
}

/// This node in its cluster.
pub(super) struct Member {
    pub(super) membership: Arc<Membership>,
    pub(super) coordinator: Arc<EtcdCoordinator>,
    pub(super) peers: Arc<GrpcPeers>,
    pub(super) election: Arc<Election>,
    pub(super) etcd: Etcd,
    pub(super) keys: Keys,
    time: Arc<ClusterTime>,
    /// The store was restored from a backup: what it lacks of this node's journal is claimed anew.
    claims_anew: bool,
    /// The journal, its name, and whose state it holds.
    journal: (Arc<dyn Journal>, u64, NodeRecord),
    /// Tells etcd how far the journal has come, if that outlives the process.
    positions: Option<Arc<Positions>>,
    server: Mutex<Option<PeerServer>>,
    /// Why other nodes cannot reach this one any more.
    cut_off: watch::Sender<Option<Arc<str>>>,
    stop: Arc<Notify>,
    background: Mutex<Vec<JoinHandle<()>>>,
}

impl Joining {
    /// Reads the files that options name and opens the address for other nodes. `mqtt` and `http` are where this node listens
    /// for clients and for its operator.
    ///
    /// # Errors
    /// The option and the file or address that cannot be used.
    pub(super) async fn prepare(
        config: &Config,
        mqtt: Option<SocketAddr>,
        http: Option<SocketAddr>,
    ) -> Result<Joining, JoinError> {
        let cluster = &config.cluster.node;
        let server = PeerServer::bind(&cluster.peer_address.to_string()).await?;
        let advertised = |given: &Option<String>, address: Option<SocketAddr>| {
            given.clone().or_else(|| address.map(reachable_as)).unwrap_or_default()
        };
        let member = ports::Member {
            id: MemberId { node: config.node.id.as_str().into(), incarnation: 0 },
            peer_address: advertised(&cluster.advertise_peer, Some(server.address())),
            mqtt_address: match &cluster.advertise_mqtt {
                Advertised::Auto => advertised(&None, mqtt),
                Advertised::Nothing => String::new(),
                Advertised::At(address) => address.clone(),
            },
            http_address: http.map(reachable_as),
            zone: cluster.zone.clone(),
            version: VERSION.to_owned(),
            started_ms: clock::now().as_millis(),
            draining: false,
        };
        let tls = peer_tls(config)?;
        let probe = Probe::new(&cluster.name, tls.clone(), cluster.peer_timeout, server.second_handle()?);
        let etcd = Etcd::new(etcd_options(config)?)?;
        let keys = Keys::new(&config.etcd.prefix, &cluster.name);
        Ok(Joining { server, etcd, keys, tls, member, answers: fork::answers(probe) })
    }

    /// Registers this process, however long etcd takes to come. `journal` must be open, which proves that no other process uses
    /// this file, and `begun` is its start.
    ///
    /// # Errors
    /// What waiting would not mend.
    pub(super) async fn register(
        self,
        config: &Config,
        journal: &JournalKind,
        begun: Option<Begun>,
        recovered: &mut Recovered,
        metrics: &Arc<Metrics>,
        progress: &Progress,
    ) -> Result<Member, JoinError> {
        let me = &config.node.id;
        let Joining { etcd, keys, answers, .. } = self;
        let holds = recovered.node.as_ref().map_or_else(Vec::new, |n| n.incarnations.clone());
        let known = Known::new(recovered.store, &holds);
        let entry = Entry { journal: recovered.journal, begun, answers, known, holds };
        let membership = Arc::new(enter(&etcd, &keys, &self.member, &entry, progress).await?);
        let positions = begun.map(|begun| {
            let record =
                JournalRecord::new(membership.me(), begun.stamped, begun.position, &self.member.peer_address);
            let journal = journal.clone();
            let now = Box::new(move || journal.position());
            Arc::new(Positions::new(&etcd, &keys, membership.fence(), entry.journal, record, now))
        });
        let journal = &journal.port();
        let last = recovered.node.iter().flat_map(|n| n.incarnations.iter().copied()).max();
        let store = *membership.store();
        let held = note_incarnation(journal, recovered, &membership);
        let adopted = |last| membership.adopted().iter().any(|a| a.incarnation == last);
        let sessions = recovered.sessions.len();
        if sessions > 0 && (store.forgotten || !store.restored && last.is_some_and(|last| !adopted(last))) {
            tracing::warn!(
                node = me,
                sessions,
                "this node was forgotten while it was away (`berth ctl cluster forget` on another node, or \
                 cluster.forget_after): the sessions of its journal, their queues and subscriptions are given up"
            );
        }
        let cluster = &config.cluster.node;
        let time = Arc::new(ClusterTime::unknown());
        let registered = Registered {
            me: membership.me().clone(),
            time: time.clone(),
            fence: {
                let fence = membership.fence();
                Arc::new(move || fence.compare())
            },
            lease_until: {
                let membership = membership.clone();
                Arc::new(move || membership.lease_until())
            },
            lease_since: {
                let membership = membership.clone();
                Arc::new(move || membership.lease_since())
            },
            timeline: (store.timeline, store.began),
        };
        let limits = Limits { stale_after: cluster.stale_after, claim_timeout: cluster.takeover_timeout };
        let coordinator = EtcdCoordinator::new(etcd.clone(), registered, limits, metrics.clone());
        let options = PeerOptions {
            peer_timeout: cluster.peer_timeout,
            keepalive: cluster.peer_timeout * 2 / 5,
            request_timeout: cluster.takeover_timeout.max(cluster.peer_timeout),
            ..PeerOptions::default()
        };
        let identity = PeerIdentity {
            cluster: cluster.name.as_str().into(),
            me: membership.me().clone(),
            journal: entry.journal,
        };
        let changes = metrics.clone();
        let election = Election::start(&membership, Box::new(move |_| changes.leader_changes.inc()));
        Ok(Member {
            peers: GrpcPeers::new(options, identity, self.tls, metrics.clone()),
            coordinator: Arc::new(coordinator),
            election: Arc::new(election),
            membership,
            etcd,
            keys,
            time,
            claims_anew: store.restored && !store.forgotten,
            journal: (journal.clone(), recovered.journal, held),
            positions,
            server: Mutex::new(Some(self.server)),
            cut_off: watch::Sender::default(),
            stop: Arc::default(),
            background: Mutex::default(),
        })
    }
}

impl Member {
    /// What the broker needs of the cluster.
    pub(super) fn ports(&self, directory: Arc<dyn ports::Directory>) -> ClusterPorts {
        ClusterPorts {
            coordinator: self.coordinator.clone(),
            peers: self.peers.clone(),
            tasks: Arc::new(TokioTasks::new(tokio::runtime::Handle::current())),
            directory,
            time: self.time.clone(),
        }
    }

    /// The cluster's time.
    pub(super) fn time(&self) -> &Arc<ClusterTime> {
        &self.time
    }

    /// Learns what the cluster knows and opens the links. Completes when the broker knows of all other nodes and what every
    /// session that it recovered has become meanwhile.
    ///
    /// # Errors
    /// What is in etcd cannot be read.
    pub(super) async fn follow(
        &self,
        node: &Arc<Node>,
        cluster: &Arc<Cluster>,
        config: &Config,
        progress: &Progress,
    ) -> Result<(), JoinError> {
        let inbox: Weak<Node> = Arc::downgrade(node);
        self.peers.attach(inbox as Weak<dyn Inbox>);
        let server = self.server.lock().take();
        if let Some(server) = server {
            let (peers, stop, cut_off) = (self.peers.clone(), self.stop.clone(), self.cut_off.clone());
            let stopped = async move { stop.notified().await };
            self.background.lock().push(tokio::spawn(async move {
                if let Err(error) = server.serve(&peers, stopped).await {
                    let why = format!("other nodes cannot reach this one: {error}");
                    cut_off.send_replace(Some(why.into()));
                }
            }));
        }
        if let Some(positions) = &self.positions {
            self.background.lock().push(tokio::spawn(positions.clone().run(config.cluster.node.lease)));
        }
        let index: Weak<Cluster> = Arc::downgrade(cluster);
        let index = index as Weak<dyn Index>;
        let mut waiting = Waiting::new("reading what the cluster knows", progress);
        while let Err(error) = self.coordinator.follow(index.clone()).await {
            waiting.pause(&error.to_string()).await;
        }
        let (retained, options) = (node.broker.retained.clone(), &config.cluster.node);
        let options = LeaderOptions {
            interval: DUTIES_EVERY,
            forget_after: options.forget_after,
            collect_after: COLLECT_AFTER,
            expired: Arc::new(move |now: Time, max| retained.expired(now, max)),
            linked: linked(node),
            time: self.time.clone(),
        };
        let leader = Leader::new(&self.etcd, &self.keys, &self.election, options);
        self.background.lock().push(tokio::spawn(leader.run(self.election.clone())));
        progress.say("comparing the sessions of the journal with etcd");
        node.reconcile(self.claims_anew).await;
        self.compared().await;
        progress.say("telling the other nodes what this node's sessions subscribe to");
        node.when_routes_known().await;
        progress.say("measuring the clocks of the other nodes");
        node.when_clocks_measured(CLOCKS_WAIT_MS).await;
        self.drop_old_routes();
        Ok(())
    }

    /// The journal is as the store has it. Once that is durable, a mark that it was given up has done its work.
    async fn compared(&self) {
        let (journal, name, held) = &self.journal;
        // What it knows of the store by now goes along.
        let lsn = journal.append(&[Change::Node(held)]);
        if !self.membership.store().forgotten {
            return;
        }
        ports::durable(journal.clone(), lsn).await;
        restored::unmark(&self.etcd, &self.keys, &self.membership.fence(), *name).await;
    }

    /// Removes the routes of this node's earlier processes once those of the sessions that this one has recovered are written.
    fn drop_old_routes(&self) {
        for of in self.membership.adopted() {
            tokio::spawn(self.coordinator.drop_incarnation_routes(of.clone()));
        }
    }

    /// Completes when this process must stop, with the reason: another has taken its place, or none can reach it.
    pub(super) async fn must_stop(&self) -> Arc<str> {
        let (mut registration, mut cut_off) = (self.membership.registration(), self.cut_off.subscribe());
        let replaced = async {
            match registration.wait_for(|s| matches!(s, Registration::Replaced(_))).await.as_deref() {
                Ok(Registration::Replaced(why)) => why.clone(),
                // Whoever kept the registration is gone: only at the end of the process.
                _ => std::future::pending().await,
            }
        };
        let mut went_back = self.coordinator.went_back();
        let went_back = async {
            match went_back.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(why)) => why.clone(),
                _ => std::future::pending().await,
            }
        };
        let cut_off = async {
            match cut_off.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(why)) => why.clone(),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            why = replaced => why,
            why = cut_off => why,
            why = went_back => why,
        }
    }

    /// Whether the store is not the one that this process has followed: nothing that it knows of it holds.
    pub(super) fn knows_nothing(&self) -> bool {
        self.coordinator.went_back().borrow().is_some()
    }

    /// Says goodbye to the other nodes and to etcd.
    pub(super) async fn leave(&self) {
        self.election.stand_down();
        if let Some(positions) = &self.positions
            && tokio::time::timeout(LAST_POSITION, positions.leave()).await.is_err()
        {
            tracing::debug!("etcd does not hear how far the journal has come");
        }
        self.membership.leave().await;
        self.stop.notify_one();
        self.background.lock().drain(..).for_each(|t| t.abort());
    }

    /// Gives up what a node that will not come back had.
    ///
    /// # Errors
    /// Why not: it lives, nothing of it is known, or etcd fails.
    pub(super) async fn forget(&self, asker: &Arc<Node>, node: &str) -> Result<Forgotten, ForgetError> {
        custody::forget(&self.etcd, &self.keys, &self.membership.fence(), node, &linked(asker)).await
    }

    /// How etcd is, as far as this node can tell.
    pub(super) fn etcd_status(&self) -> EtcdStatus {
        self.coordinator.status()
    }

    /// Who leads.
    pub(super) fn leader(&self) -> Option<MemberId> {
        self.election.leader()
    }
}

/// Tells whether the broker has a working link to a process.
fn linked(node: &Arc<Node>) -> Linked {
    let node = node.clone();
    Arc::new(move |process| {
        node.remote().is_some_and(|r| r.members.linked(&process.node).as_ref() == Some(process))
    })
}

/// Says now and then what a start is waiting for.
pub(super) struct Waiting<'a> {
    what: &'static str,
    said: Option<Time>,
    progress: &'a Progress,
    backoff: Backoff,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(what: &'static str, progress: &'a Progress) -> Waiting<'a> {
        progress.say(what);
        Waiting { what, said: None, progress, backoff: Backoff::steady(RETRY) }
    }

    pub(super) async fn pause(&mut self, error: &str) {
        let now = clock::now();
        self.progress.say(format!("{} is tried again until it succeeds: {error}", self.what));
        if self.said.is_none_or(|at| now.since_ms(at) >= REMIND.as_millis() as u64) {
            tracing::warn!(error, "{} is tried again until it succeeds", self.what);
            self.said = Some(now);
        }
        tokio::time::sleep(self.backoff.pause()).await;
    }
}

/// Registers in etcd; waits for what may come by itself.
async fn enter(
    etcd: &Etcd,
    keys: &Keys,
    member: &ports::Member,
    entry: &Entry,
    progress: &Progress,
) -> Result<Membership, JoinError> {
    let mut waiting = Waiting::new("registering this node in etcd", progress);
    loop {
        let error = match Membership::register(etcd, keys, member, entry).await {
            Ok(membership) => return Ok(membership),
            Err(error) => error,
        };
        match &error {
            RegisterError::Store(StoreError::Etcd(e)) if !e.is_permanent() => {}
            RegisterError::Store(StoreError::Fenced) | RegisterError::TooSlow(_) => {}
            _ => return Err(error.into()),
        }
        waiting.pause(&error.to_string()).await;
    }
}

/// Writes into the journal whose it is now: the incarnations whose state it holds, this process's last.
fn note_incarnation(
    journal: &Arc<dyn Journal>,
    recovered: &Recovered,
    membership: &Membership,
) -> NodeRecord {
    let me = membership.me();
    let adopted = membership.adopted();
    let known = recovered.node.iter().flat_map(|n| n.incarnations.iter().copied());
    let kept = known.filter(|i| adopted.iter().any(|a| a.incarnation == *i));
    let incarnations = kept.chain([me.incarnation]).collect();
    // Durable before anything that this process acknowledges: the journal keeps the order.
    let held = NodeRecord { node: me.node.clone(), incarnations };
    journal.append(&[Change::Node(&held)]);
    held
}

/// How others reach what listens on `address`: by this machine's name if it listens everywhere.
fn reachable_as(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", name.trim(), address.port())
}

/// Reads a file that an option names; one with a secret only if not everybody may.
fn read(path: &Path, option: &'static str, privacy: Privacy) -> Result<Vec<u8>, JoinError> {
    match WatchedFile::new(option, path, privacy).read() {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(FileError::Io { option, path, source }) => Err(JoinError::File { option, path, source }),
        Err(error) => Err(JoinError::Secret(error)),
    }
}

/// Of files with certificates or keys.
const PEM: Privacy = Privacy::If(|bytes| bytes.windows(KEY.len()).any(|window| window == KEY));

/// What every private key in PEM has in its first line.
const KEY: &[u8] = b"PRIVATE KEY-----";

fn etcd_options(config: &Config) -> Result<EtcdOptions, JoinError> {
    let etcd = &config.etcd;
    let cluster = &config.cluster.node;
    let pem = |path: &Path, option| -> Result<Pem, JoinError> {
        Ok(Pem { file: path.display().to_string(), bytes: read(path, option, PEM)? })
    };
    let password = match (&etcd.password, &etcd.password_file) {
        (Some(secret), _) => Some(secret.reveal().to_owned()),
        (None, Some(path)) => {
            let unread =
                |source| JoinError::File { option: "etcd.password_file", path: path.clone(), source };
            read(path, "etcd.password_file", Privacy::Secret)?;
            Some(read_password(path).map_err(unread)?)
        }
        (None, None) => None,
    };
    let secure = etcd.endpoints.iter().any(|e| e.starts_with("https://"));
    let tls = if secure {
        let ca = etcd.ca_file.as_deref().map(|p| pem(p, "etcd.ca_file")).transpose()?;
        let identity = match (&etcd.cert_file, &etcd.key_file) {
            (Some(cert), Some(key)) => Some((pem(cert, "etcd.cert_file")?, pem(key, "etcd.key_file")?)),
            _ => None,
        };
        Some(EtcdTls { ca, identity })
    } else {
        None
    };
    Ok(EtcdOptions {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        cluster: cluster.name.clone(),
        user: password.map(|p| (etcd.username.clone(), p)),
        password_file: etcd.password_file.clone().filter(|_| etcd.password.is_none()),
        tls,
        connect_timeout: etcd.timeout,
        request_timeout: etcd.timeout,
        lease_ttl: cluster.lease,
    })
}

fn peer_tls(config: &Config) -> Result<Option<PeerTls>, JoinError> {
    let tls = &config.cluster.tls;
    let (Some(ca), Some(cert), Some(key)) = (&tls.ca_file, &tls.cert_file, &tls.key_file) else {
        return Ok(None);
    };
    let pem = |path: &Path, option| -> Result<PemFile, JoinError> {
        Ok(PemFile { path: path.display().to_string(), pem: read(path, option, PEM)? })
    };
    let tls = PeerTls {
        ca: pem(ca, "cluster.tls.ca_file")?,
        cert: pem(cert, "cluster.tls.cert_file")?,
        key: pem(key, "cluster.tls.key_file")?,
    };
    tls.check(clock::now())?;
    Ok(Some(tls))
}

/// Reads and checks the certificates between nodes and to etcd; which there are, in words.
pub(super) fn check_files(config: &Config) -> Result<Vec<String>, JoinError> {
    let mut checked = Vec::new();
    if peer_tls(config)?.is_some() {
        checked.push("certificates of cluster.tls, for new links".to_owned());
    }
    if let Some(tls) = etcd_options(config)?.tls {
        tls.check(clock::now())?;
        checked.push("certificates of etcd, for new connections".to_owned());
    }
    Ok(checked)
}
