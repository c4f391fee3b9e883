//! The composition root: what is started in which order, and stopped in which.

mod files;
mod limits;
mod status;
mod tasks;

use crate::auth::Anonymous;
use crate::broker::ports::{Journal, Recovered};
use crate::broker::{Broker, Ports};
use crate::clock;
use crate::cluster::Standalone;
use crate::config::{Config, StorageType};
use crate::server::http::{self, HttpServer};
use crate::server::tcp::{self, Listener};
use crate::storage::{MemoryJournal, MemoryOptions, Observer, OpenError, RedbJournal, RedbOptions};
use crate::telemetry::{Metrics, logs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// The version of this broker.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    /// The journal cannot be opened.
    #[error("storage.dir: {0}")]
    Journal(#[from] OpenError),
    /// An MQTT address cannot be opened.
    #[error(transparent)]
    Listen(#[from] tcp::BindError),
    /// The HTTP address cannot be opened.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// The operating system refuses threads or signals.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs the broker until SIGTERM or SIGINT. A second signal ends the process at once.
///
/// # Errors
/// Why it could not start.
pub fn run(config: Config) -> Result<(), RunError> {
    logs::init(&config.log)?;
    tracing::info!(version = VERSION, node = config.node.id, "berth starts");
    files::raise_limit(config.limits.max_connections);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.runtime.worker_threads > 0 {
        builder.worker_threads(config.runtime.worker_threads);
    }
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(serve(&config));
    // Whatever still runs belongs to clients that did not take the last bytes in time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// The parts of a running broker that others look at.
struct Node {
    config: Config,
    broker: Arc<Broker>,
    journal: JournalKind,
    metrics: Arc<Metrics>,
    started: clock::Time,
    ready: AtomicBool,
}

/// The journal by kind: the port does not show what only one of them has.
#[derive(Clone)]
enum JournalKind {
    Redb(Arc<RedbJournal>),
    Memory(Arc<MemoryJournal>),
}

impl JournalKind {
    fn port(&self) -> Arc<dyn Journal> {
        match self {
            JournalKind::Redb(j) => j.clone(),
            JournalKind::Memory(j) => j.clone(),
        }
    }
}

async fn serve(config: &Config) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let stop = Arc::new(Notify::new());

    // What can be refused is opened first, so that a wrong address leaves the journal alone.
    let listeners = config
        .listeners
        .tcp
        .address
        .iter()
        .map(|a| Listener::bind(*a, &config.listeners.tcp))
        .collect::<Result<Vec<_>, _>>()?;
    let http = match config.http.address {
        Some(address) => Some(HttpServer::bind(address).await?),
        None => None,
    };

    let started = clock::now();
    let metrics = Arc::new(Metrics::new());
    let (journal, recovered) = open_journal(config, &metrics)?;
    let (sessions, retained) = (recovered.sessions.len(), recovered.retained.len());
    let auth =
        Anonymous { anywhere: config.auth.allow_anonymous == Some(true), nowhere: !config.auth.anonymous() };
    let ports = Ports {
        journal: journal.port(),
        coordinator: Arc::new(Standalone::default()),
        authorizer: Arc::new(auth),
    };
    let broker = Broker::new(limits::of(config), ports, metrics.clone(), recovered, clock::now());
    let took_ms = clock::now().since_ms(started);
    tracing::info!(sessions, retained, took_ms, "journal read");

    let node = Arc::new(Node {
        config: config.clone(),
        broker: broker.clone(),
        journal,
        metrics: metrics.clone(),
        started,
        ready: AtomicBool::new(false),
    });
    let mut background = vec![
        tokio::spawn(tasks::timers(broker.clone())),
        tokio::spawn(tasks::housekeeping(broker.clone(), config.sys.interval, started)),
    ];
    let http_stop = Arc::new(Notify::new());
    let http_task = http.map(|server| {
        tracing::info!(address = %server.local_addr(), "admin HTTP listens");
        let stop = http_stop.clone();
        tokio::spawn(server.run(node.clone(), metrics, async move { stop.notified().await }))
    });
    let mut accepting = Vec::new();
    for listener in listeners {
        tracing::info!(address = %listener.local_addr(), "MQTT listens");
        accepting.push(tokio::spawn(listener.run(broker.clone(), stop.clone())));
    }
    node.ready.store(true, Ordering::Release);
    tracing::info!("ready");

    let name = signals.next().await;
    tracing::info!(signal = name, "stopping; a second signal stops at once");
    background.append(&mut accepting);
    tokio::select! {
        () = drain(&node, background, &stop) => {}
        name = signals.next() => {
            tracing::warn!(signal = name, "stopping at once; clients are not told");
            std::process::exit(130);
        }
    }
    http_stop.notify_one();
    if let Some(task) = http_task {
        let _ = task.await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Stops: no new connections, clients told, last bytes written, journal closed.
async fn drain(node: &Node, tasks: Vec<tokio::task::JoinHandle<()>>, stop: &Notify) {
    node.ready.store(false, Ordering::Release);
    node.broker.drain();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    stop.notify_waiters();
    let timeout = node.config.shutdown.timeout;
    if tokio::time::timeout(timeout, tasks::no_connections(&node.metrics)).await.is_err() {
        let left = node.metrics.connections_active.get();
        tracing::warn!(left, "connections left at shutdown.timeout are cut");
    }
    let journal = node.journal.port();
    if tokio::task::spawn_blocking(move || journal.close()).await.is_err() {
        tracing::error!("the journal did not close cleanly");
    }
}

fn open_journal(config: &Config, metrics: &Arc<Metrics>) -> Result<(JournalKind, Recovered), RunError> {
    let storage = &config.storage;
    match storage.kind {
        StorageType::Memory => {
            tracing::warn!("storage.type is memory: everything is lost when the process ends");
            let journal = MemoryJournal::new(MemoryOptions { max_bytes: storage.memory_max as u64 });
            Ok((JournalKind::Memory(journal), Recovered::default()))
        }
        StorageType::Redb => {
            let dir = storage.dir.clone();
            std::fs::create_dir_all(&dir)
                .map_err(|source| RunError::DataDir { path: dir.clone(), source })?;
            let metrics = metrics.clone();
            let observer = Observer(Arc::new(move |commit| {
                metrics.journal_commits.inc();
                metrics.journal_commit_changes.record(commit.changes as f64);
                metrics.journal_commit_seconds.record(commit.took_us as f64 / 1e6);
            }));
            let options = RedbOptions {
                dir,
                observer: Some(observer),
                cache_bytes: storage.cache,
                max_pending_bytes: storage.max_pending,
                ..RedbOptions::default()
            };
            let (journal, recovered) = RedbJournal::open(options)?;
            Ok((JournalKind::Redb(journal), recovered))
        }
    }
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
