//! The composition root: what is started in which order, and stopped in which.

mod access;
mod bans;
mod cluster;
mod desk;
mod directory;
mod files;
mod fork;
mod journal;
mod limits;
mod memory;
mod plan;
mod reload;
mod rooms;
mod status;
mod tasks;
mod tokio_tasks;
mod upkeep;
mod users;

use crate::auth::acl::{Access, AclError, Source};
use crate::auth::bans::{BanError, Bans};
use crate::auth::{self, Accounts, Directory};
use crate::clock;
use crate::config::{Config, ListenerType, OnFork};
use crate::etcd::journals::Begun;
use crate::node::{Node, Ports, publish_cluster};
use crate::ports::{Recovered, Stamped};
use crate::secret_file::FileError;
use crate::server::crowd::Crowd;
use crate::server::http::{self, Audit, AuditError, HttpServer, Shared, Tokens};
use crate::server::listener::{self, Hall, Listener};
use crate::server::parting::Partings;
use crate::storage::OpenError;
use crate::telemetry::Metrics;
use crate::telemetry::logs::{self, Level};
use crate::tls;
use cluster::{Joining, Member};
use desk::Desk;
use fork::Compared;
use journal::{FoundKind, JournalKind};
use parking_lot::Mutex;
use reload::Reload;
use rooms::Room;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// The version of this broker.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long clients may take to end their connections once the hand-over has used up `shutdown.timeout`.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// How long etcd may take to hear that this node leaves, also when `shutdown.timeout` has passed.
const GOODBYE: Duration = Duration::from_secs(3);

/// How long the other nodes may take to hear that this one leaves, also when `shutdown.timeout` has passed.
const TOLD: Duration = Duration::from_secs(1);

/// Why the broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Logging cannot be set up.
    #[error(transparent)]
    Log(#[from] logs::LogError),
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path:?} (storage.dir): {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The rules of what clients may do cannot be used.
    #[error(transparent)]
    Rules(#[from] AclError),
    /// The list of bans cannot be used.
    #[error(transparent)]
    Bans(#[from] BanError),
    /// The journal cannot be opened.
    #[error("storage.dir: {0}")]
    Journal(#[from] OpenError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] listener::OpenError),
    /// The HTTP address cannot be opened.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// The certificates of admin HTTP cannot be used.
    #[error(transparent)]
    HttpTls(#[from] tls::TlsError),
    /// The files of admin HTTP's tokens cannot be used.
    #[error(transparent)]
    Tokens(FileError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// This node cannot join its cluster.
    #[error(transparent)]
    Join(#[from] cluster::JoinError),
    /// The journal is a copy of a newer one, or is taken for one and is none.
    #[error(transparent)]
    Fork(#[from] fork::ForkError),
    /// This process may not go on: another has taken its place, or no other node can reach it.
    #[error("{0}")]
    Replaced(Arc<str>),
    /// The accounts cannot be used.
    #[error(transparent)]
    Accounts(#[from] auth::OpenError),
    /// The operating system refuses threads or signals.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs the broker until SIGTERM or SIGINT. A second signal ends the process at once. `on_fork` is what to do with a journal that is
/// a copy of a newer one.
///
/// # Errors
/// Why it could not start.
pub fn run(config: Config, on_fork: OnFork) -> Result<(), RunError> {
    let level = logs::init(&config.log)?;
    tracing::info!(version = VERSION, node = config.node.id, "berth starts");
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    files::raise_limit(config.limits.max_connections);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.runtime.worker_threads > 0 {
        builder.worker_threads(config.runtime.worker_threads);
    }
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(serve(&config, on_fork, level));
    // Whatever still runs belongs to clients that did not take the last bytes in time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// The parts of a running process that others look at.
struct Process {
    config: Config,
    node: Arc<Node>,
    /// Who clients are.
    accounts: Arc<Accounts>,
    /// What clients may do.
    access: Arc<Access>,
    /// Who may not connect.
    bans: Arc<Bans>,
    /// Where clients connect.
    listeners: Vec<listener::View>,
    /// What the nodes of a cluster share of these; `None` = it is alone.
    directory: Option<Arc<Directory>>,
    journal: JournalKind,
    /// Its place in a cluster; `None` = it is alone.
    member: Option<Member>,
    metrics: Arc<Metrics>,
    /// The configuration, to be read again.
    reload: Arc<Reload>,
    ready: AtomicBool,
}

async fn serve(config: &Config, on_fork: OnFork, level: Level) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let hangups = signal(SignalKind::hangup())?;
    let hall = Hall {
        partings: Partings::default(),
        crowd: Crowd::new(config.limits.max_arriving_connections),
        stop: Arc::new(Notify::new()),
    };

    // What can be refused is opened first, so that a wrong file or address leaves the journal alone.
    let access =
        access::open(&config.acl, config.cluster.node.enabled)?.heeding_tokens(config.accounts.tell_rights());
    let access = Arc::new(access);
    let listeners = config
        .listeners
        .opened()
        .map(|(name, listener)| Listener::bind(name, listener, limits::terms(config, listener)))
        .collect::<Result<Vec<_>, _>>()?;
    let http_keeper = match tls::Files::of_http(&config.http).filter(|_| config.http.address.is_some()) {
        Some(files) => Some(Arc::new(tls::Keeper::new(files, clock::now())?)),
        None => None,
    };
    let http = match config.http.address {
        Some(address) => Some(HttpServer::bind(address, http_keeper.clone()).await?),
        None => None,
    };
    let tokens =
        Tokens::read(config.http.admin_token_file.as_deref(), config.http.read_token_file.as_deref())
            .map_err(RunError::Tokens)?
            .map(Arc::new);
    let callers = http::Access::new(tokens.clone(), config.http.open_metrics);
    let audit = Audit::open(config.audit.file.clone())?;
    let mut joining = None;
    let cluster = &config.cluster.node;
    if cluster.enabled {
        let mqtt = advertised(&listeners);
        joining = Some(Joining::prepare(config, mqtt, http.as_ref().map(HttpServer::local_addr)).await?);
    }

    let started = clock::now();
    let metrics = Arc::new(Metrics::new());
    let accounts = Arc::new(Accounts::open(config, metrics.clone())?);
    let desk = Arc::new(Desk::new(config, started));
    let http_stop = Arc::new(Notify::new());
    let http_task = http.map(|server| {
        let tls = http_keeper.is_some();
        tracing::info!(address = %server.local_addr(), tls, "admin HTTP listens");
        let stop = http_stop.clone();
        let shared = Shared { source: desk.clone(), metrics: metrics.clone(), access: callers, audit };
        tokio::spawn(server.run(shared, async move { stop.notified().await }))
    });
    let found = tokio::select! {
        found = find_journal(config, &metrics) => found?,
        signal = signals.next() => {
            // As after a crash: whatever is being done to it is done at the next start.
            tracing::info!(signal, "stopped before the journal was read");
            return Ok(());
        }
    };
    let (sessions, retained) = (found.recovered().sessions.len(), found.recovered().retained.len());
    tracing::info!(sessions, retained, took_ms = clock::now().since_ms(started), "journal read");
    // Nothing is written into a journal that may be somebody else's.
    let compared = match &joining {
        Some(joining) => tokio::select! {
            compared = fork::compare(joining, config, found, on_fork, &desk.progress) => compared?,
            signal = signals.next() => {
                tracing::info!(signal, "stopped before the journal was compared with etcd");
                return Ok(());
            }
        },
        None => fork::alone(on_fork).map(|()| Compared { found, looked_at: 0 })?,
    };
    let looked_at = compared.looked_at;
    let (journal, mut recovered, stamped) = begin_journal(compared.found, joining.is_some()).await?;
    let bans = Arc::new(bans::open(config)?);
    metrics.bans.set(bans.list(clock::now()).len() as u64);

    let mut member = None;
    if let Some(joining) = joining {
        let begun = stamped.map(|stamped| Begun { stamped, position: journal.position(), looked_at });
        tokio::select! {
            joined = joining.register(config, &journal, begun, &mut recovered, &metrics, &desk.progress) => member = Some(joined?),
            signal = signals.next() => {
                tracing::info!(signal, "stopped before this node had joined its cluster");
                return Ok(());
            }
        }
    }
    let directory = member.as_ref().map(|member| {
        bans.pass_by(member.time().clone());
        let users = accounts.passwords().filter(|users| users.file().is_none()).cloned();
        let rules = (*access.source() == Source::Directory).then(|| access.clone());
        let directory = Arc::new(Directory::new(users, rules, bans.clone(), metrics.clone()));
        directory.recover(&recovered.directory);
        directory
    });
    let cluster = member.as_ref().zip(directory.clone()).map(|(member, directory)| member.ports(directory));
    let ports = Ports {
        journal: journal.port(),
        authorizer: accounts.clone(),
        permissions: access.clone(),
        bans: bans.clone(),
        cluster,
    };
    let node = Node::new(limits::of(config), ports, metrics.clone(), recovered, clock::now());
    let budget = Arc::new(Mutex::new(memory::Budget::of(&config.limits)));
    let mut rooms: Vec<Box<dyn Room>> = vec![
        Box::new(rooms::Logs(level.clone())),
        Box::new(rooms::Limits { node: node.clone(), budget: budget.clone() }),
        Box::new(rooms::Rules { access: access.clone(), metrics: metrics.clone() }),
        Box::new(rooms::Users { accounts: accounts.clone(), node: node.clone() }),
        Box::new(rooms::Banned { bans: bans.clone(), node: node.clone() }),
    ];
    for listener in &listeners {
        let tuning = listener.tuning().clone();
        rooms.push(Box::new(rooms::Listener { tuning, metrics: metrics.clone() }));
    }
    if member.is_some() {
        rooms.push(Box::new(rooms::Links));
    }
    if let Some(keeper) = http_keeper.clone() {
        rooms.push(Box::new(rooms::AdminHttp { keeper, metrics: metrics.clone() }));
    }
    if let Some(tokens) = tokens {
        rooms.push(Box::new(rooms::Operators(tokens)));
    }
    let reload = Arc::new(Reload::new(config, rooms, level, metrics.clone()));
    let process = Arc::new(Process {
        reload: reload.clone(),
        config: config.clone(),
        node: node.clone(),
        accounts: accounts.clone(),
        access: access.clone(),
        bans: bans.clone(),
        listeners: listeners.iter().map(Listener::view).collect(),
        directory: directory.clone(),
        journal,
        member,
        metrics: metrics.clone(),
        ready: AtomicBool::new(false),
    });
    desk.open(&process);
    if let (Some(member), Some(cluster)) = (&process.member, &node.cluster) {
        tokio::select! {
            joined = member.follow(&node, cluster, config, &desk.progress) => joined?,
            signal = signals.next() => {
                tracing::info!(signal, "stopped before this node knew its cluster");
                member.leave().await;
                return Ok(());
            }
            why = member.must_stop() => {
                tracing::error!(%why, "stopping before this node knew its cluster");
                member.leave().await;
                return Err(RunError::Replaced(why));
            }
        }
    }
    let mut tasks = vec![
        tokio::spawn(tasks::timers(node.clone())),
        tokio::spawn(tasks::housekeeping(node.clone(), config.sys.interval, started)),
        tokio::spawn(access::follow(access, metrics.clone())),
        tokio::spawn(bans::follow(bans, metrics.clone())),
        tokio::spawn(memory::follow(node.clone(), budget)),
    ];
    tasks.extend(directory.map(|directory| tokio::spawn(directory::follow(directory, process.clone()))));
    if let Some(interval) = config.sys.interval {
        tasks.push(tokio::spawn(publish_cluster(node.clone(), interval.as_millis() as u64)));
    }
    if accounts.any() {
        tasks.push(tokio::spawn(tasks::accounts(accounts, node.clone())));
    }
    let keepers = listeners.iter().filter_map(|l| l.tuning().keeper().cloned()).chain(http_keeper).collect();
    tasks.push(tokio::spawn(tls::watch(keepers, metrics.clone())));
    tasks.push(tokio::spawn(reload::on_signal(reload, hangups)));
    let doors = listeners.into_iter().flat_map(|listener| listener.open(&node, &hall)).collect();
    process.ready.store(true, Ordering::Release);
    tracing::info!("ready");

    let outcome = process.until_told(&mut signals, &desk).await;
    tokio::select! {
        () = drain(&process, doors, tasks, &hall) => {}
        signal = signals.next() => {
            tracing::warn!(signal, "stopping at once; clients are not told");
            std::process::exit(130);
        }
    }
    http_stop.notify_one();
    if let Some(task) = http_task {
        let _ = task.await;
    }
    tracing::info!("stopped");
    outcome
}

/// The address at which clients of a cluster are told to come: that of plain TCP, else of TLS.
fn advertised(listeners: &[Listener]) -> Option<SocketAddr> {
    let of = |kind| listeners.iter().find(|l| l.kind() == kind).and_then(Listener::local_addr);
    of(ListenerType::Tcp).or_else(|| of(ListenerType::Tls))
}

impl Process {
    /// Completes when this process has to stop: with an error if nobody asked it to.
    async fn until_told(&self, signals: &mut Signals, desk: &Desk) -> Result<(), RunError> {
        let must_stop = async {
            match &self.member {
                Some(member) => member.must_stop().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping; a second signal stops at once");
                Ok(())
            }
            () = desk.drain_asked() => {
                tracing::info!("stopping, as an operator asked; a signal stops at once");
                Ok(())
            }
            why = must_stop => {
                tracing::error!(%why, "stopping");
                Err(RunError::Replaced(why))
            }
        }
    }
}

/// Stops: no new connections, clients told, last bytes written, journal closed. Within `shutdown.timeout` and little more,
/// whoever does not answer. The listeners (`doors`) go first: a load balancer then takes a new client to another node at once.
async fn drain(
    process: &Process,
    doors: Vec<tokio::task::JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    hall: &Hall,
) {
    process.ready.store(false, Ordering::Release);
    doors.iter().for_each(tokio::task::JoinHandle::abort);
    process.node.drain();
    let deadline = clock::now().plus_ms(process.config.shutdown.timeout.as_millis() as u64);
    let left = |least: Duration| clock::now().until(deadline).max(least);
    // Who knows nothing of its cluster has nothing to hand over by.
    if let Some(member) = process.member.as_ref().filter(|m| !m.knows_nothing()) {
        hand_over(process, member).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    hall.stop.notify_waiters();
    let last_bytes = left(LAST_BYTES.min(process.config.shutdown.timeout));
    if tokio::time::timeout(last_bytes, tasks::no_connections(&process.node, &hall.partings)).await.is_err() {
        let left = process.node.connections();
        if left > 0 {
            tracing::warn!(left, "connections left at shutdown.timeout are cut");
        }
    }
    if process.member.is_some() {
        process.node.say_goodbye(TOLD.as_millis() as u64).await;
    }
    if let Some(member) = &process.member
        && tokio::time::timeout(left(GOODBYE), member.leave()).await.is_err()
    {
        tracing::warn!("etcd does not hear that this node leaves: it stays listed until its lease runs out");
    }
    let journal = process.journal.port();
    if tokio::task::spawn_blocking(move || journal.close()).await.is_err() {
        tracing::error!("the journal did not close cleanly");
    }
}

/// Gives this node's sessions to the others, as far as `shutdown.timeout` allows.
async fn hand_over(process: &Process, member: &Member) {
    let said = async {
        match tokio::time::timeout(GOODBYE, member.membership.set_draining(true)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the other nodes do not hear from etcd that this one leaves");
            }
            Err(_) => tracing::warn!("the other nodes do not hear from etcd that this one leaves"),
        }
    };
    let handed = async { tokio::join!(said, process.node.hand_over()) };
    match tokio::time::timeout(process.config.shutdown.timeout, handed).await {
        Ok(((), left)) => {
            tracing::info!(left, "sessions handed to other nodes; those left stay in the journal")
        }
        Err(_) => tracing::warn!("shutdown.timeout came before all sessions were handed to other nodes"),
    }
}

/// Reads the journal on a thread that may block: admin HTTP answers meanwhile.
async fn find_journal(config: &Config, metrics: &Arc<Metrics>) -> Result<FoundKind, RunError> {
    let (config, metrics) = (config.clone(), metrics.clone());
    tokio::task::spawn_blocking(move || journal::find(&config, &metrics))
        .await
        .map_err(|e| RunError::Runtime(std::io::Error::other(e)))?
}

/// Makes the journal ready for use, in the same way.
async fn begin_journal(
    found: FoundKind,
    stamp: bool,
) -> Result<(JournalKind, Recovered, Option<Stamped>), RunError> {
    tokio::task::spawn_blocking(move || found.begin(stamp))
        .await
        .map_err(|e| RunError::Runtime(std::io::Error::other(e)))?
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
