//! The operator's desk: answers admin HTTP from the start of the process on, whatever the node is doing.

use super::{Process, VERSION};
use crate::clock::{self, Time};
use crate::config::Config;
use crate::etcd::custody::ForgetError;
use crate::names::shown;
use crate::node::inspect::{RetainedPage, Routes, SessionPage, SessionQuery};
use crate::node::memory::Level;
use crate::node::operate::{Kicked, Located, OperateError};
use crate::server::http::{Answer, ApiError, Draining, Forgotten, NodeStatus, Operator, Status};
use crate::telemetry::Metrics;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// What a start is doing, in words.
#[derive(Debug)]
pub(super) struct Progress(Mutex<String>);

impl Progress {
    /// Says what comes next.
    pub(super) fn say(&self, what: impl Into<String>) {
        *self.0.lock() = what.into();
    }

    fn said(&self) -> String {
        self.0.lock().clone()
    }
}

/// The operator's desk: answers admin HTTP from the start of the process on, whatever the node is doing.
pub(super) struct Desk {
    pub(super) config: Config,
    started: Time,
    /// What the start is doing.
    pub(super) progress: Arc<Progress>,
    process: OnceLock<Arc<Process>>,
    asked: AtomicBool,
    drain: Notify,
}

impl Desk {
    pub(super) fn new(config: &Config, started: Time) -> Desk {
        Desk {
            config: config.clone(),
            started,
            progress: Arc::new(Progress(Mutex::new("opening the journal".to_owned()))),
            process: OnceLock::new(),
            asked: AtomicBool::new(false),
            drain: Notify::new(),
        }
    }

    /// The node is there, though perhaps not ready.
    pub(super) fn open(&self, process: &Arc<Process>) {
        self.process.get_or_init(|| process.clone());
    }

    /// Completes when an operator has asked this node to leave.
    pub(super) async fn drain_asked(&self) {
        self.drain.notified().await;
    }

    pub(super) fn running(&self) -> Result<&Arc<Process>, ApiError> {
        self.process.get().ok_or_else(|| ApiError::Unavailable(self.starting()))
    }

    fn starting(&self) -> String {
        format!("starting: {}", self.progress.said())
    }
}

impl Operator for Desk {
    fn ready(&self) -> Result<(), String> {
        let Some(process) = self.process.get() else { return Err(self.starting()) };
        if process.node.draining() || self.asked.load(Ordering::Acquire) {
            return Err("draining: this node is stopping".to_owned());
        }
        if !process.ready.load(Ordering::Acquire) {
            return Err(self.starting());
        }
        process.node.may_serve()?;
        match process.node.pressure.level() {
            Level::Refusing => {
                Err("memory is nearly used up: new connections are refused (limits.memory_refuse_at)"
                    .to_owned())
            }
            Level::Normal | Level::Paused => Ok(()),
        }
    }

    fn status(&self) -> Status {
        let not_ready = self.ready().err();
        let base = NodeStatus {
            id: self.config.node.id.clone(),
            version: VERSION,
            ready: not_ready.is_none(),
            not_ready,
            uptime_seconds: clock::now().since_ms(self.started) / 1000,
            ..NodeStatus::default()
        };
        let mode = if self.config.cluster.node.enabled { "cluster" } else { "standalone" };
        match self.process.get() {
            Some(process) => Status { mode, node: process.status(base), cluster: process.cluster_status() },
            None => Status { mode, node: base, cluster: None },
        }
    }

    fn collect(&self, metrics: &Metrics) {
        metrics.uptime_seconds.set(clock::now().since_ms(self.started) / 1000);
        if let Some(process) = self.process.get() {
            process.collect(metrics);
        }
    }

    fn list_sessions(&self, query: SessionQuery, everywhere: bool) -> Answer<SessionPage> {
        let asked = self.running().map(|process| process.node.list_sessions(query, everywhere));
        Box::pin(async move { Ok(asked?.await) })
    }

    fn find_session(&self, client_id: &str) -> Answer<Located> {
        let asked = self.running().map(|process| process.node.find_session(client_id, clock::now()));
        Box::pin(async move { asked?.await.map_err(ApiError::from) })
    }

    fn kick(&self, client_id: &str) -> Answer<Kicked> {
        let asked = self.running().map(|process| process.node.kick_anywhere(client_id));
        Box::pin(async move { asked?.await.map_err(ApiError::from) })
    }

    fn routes(&self, topic: &str) -> Result<Routes, ApiError> {
        let invalid = |e| ApiError::Invalid(format!("\"{}\" is not a topic name: {e}", shown(topic)));
        self.running()?.node.routes_of(topic).map_err(invalid)
    }

    fn retained(&self, filter: &str, limit: usize) -> Result<RetainedPage, ApiError> {
        let invalid = |e| ApiError::Invalid(format!("\"{}\" is not a topic filter: {e}", shown(filter)));
        self.running()?.node.retained_of(filter, limit, clock::now()).map_err(invalid)
    }

    fn drain(&self) -> Result<Draining, ApiError> {
        let process = self.running()?;
        if !process.ready.load(Ordering::Acquire) && !process.node.draining() {
            return Err(ApiError::Unavailable(self.starting()));
        }
        let already = self.asked.swap(true, Ordering::AcqRel) || process.node.draining();
        if !already {
            tracing::info!("an operator asks this node to leave");
            self.drain.notify_one();
        }
        Ok(Draining { node: self.config.node.id.clone(), already, sessions: process.node.broker.sessions() })
    }

    fn forget(&self, name: &str) -> Answer<Forgotten> {
        let process = match self.running() {
            Ok(process) => process.clone(),
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let name = name.to_owned();
        Box::pin(async move {
            let Some(member) = &process.member else {
                let what = "this broker is alone (cluster.enabled is false): there are no nodes to forget";
                return Err(ApiError::Conflict(what.to_owned()));
            };
            let forgotten = member.forget(&process.node, &name).await.map_err(|e| match e {
                ForgetError::Alive { .. } | ForgetError::Serving { .. } => ApiError::Conflict(e.to_string()),
                ForgetError::Unknown { .. } => ApiError::Unknown(e.to_string()),
                ForgetError::Store(_) => ApiError::Unavailable(e.to_string()),
            })?;
            tracing::warn!(
                node = name,
                sessions = forgotten.sessions,
                incarnations = forgotten.incarnations.len(),
                "an operator gave up what a node had, wills included"
            );
            Ok(Forgotten {
                node: name,
                incarnations: forgotten.incarnations.iter().map(ToString::to_string).collect(),
                sessions: forgotten.sessions as u64,
            })
        })
    }
}

impl From<OperateError> for ApiError {
    fn from(error: OperateError) -> ApiError {
        match &error {
            OperateError::NoSession(_) => ApiError::Unknown(error.to_string()),
            OperateError::Unavailable(_) => ApiError::Unavailable(error.to_string()),
        }
    }
}
