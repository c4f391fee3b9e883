//! The configuration read again while the broker runs: all or nothing. A plan says what of it can count at once ([`super::plan`]). Every room
//! whose state can be exchanged prepares for it first, which changes nothing; only if all could, each puts in force what it has read.

use super::desk::Desk;
use super::plan::Plan;
use super::rooms::{Commit, Room};
use crate::config::{Config, Setting, Sources, Values};
use crate::server::http::{Answer, ApiError, LogLevel, ReloadOperator, Reloaded};
use crate::telemetry::Metrics;
use crate::telemetry::logs::Level;
use crate::telemetry::metrics::ReloadResult;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::signal::unix::Signal;

/// Reads the configuration again while the broker runs: all or nothing.
pub(super) struct Reload {
    rooms: Vec<Box<dyn Room>>,
    sources: Sources,
    /// Held while it is read again.
    in_force: Mutex<InForce>,
    /// The options in force as operators see them: values without secrets, and where each comes from.
    shown: Mutex<Vec<Setting>>,
    level: Level,
    metrics: Arc<Metrics>,
}

/// The configuration by which the broker runs.
struct InForce {
    /// The value of every option; an option that waits for a restart has the one of the start.
    values: Values,
    /// The configuration file had nothing in it but comments when it was read last.
    blank: bool,
}

impl Reload {
    /// Of a broker that runs by `config`.
    pub(super) fn new(
        config: &Config,
        rooms: Vec<Box<dyn Room>>,
        level: Level,
        metrics: Arc<Metrics>,
    ) -> Reload {
        Reload {
            rooms,
            sources: config.sources.clone(),
            in_force: Mutex::new(InForce { values: config.values.clone(), blank: config.blank }),
            shown: Mutex::new(config.settings.clone()),
            level,
            metrics,
        }
    }

    /// What options say by which the broker runs, without secrets, and where that comes from.
    pub(super) fn shown(&self) -> Vec<Setting> {
        self.shown.lock().clone()
    }

    /// Reads everything again and puts it in force. Blocks.
    ///
    /// # Errors
    /// All that is wrong; then nothing has changed.
    pub(super) fn run(&self) -> Result<Reloaded, Vec<String>> {
        let mut in_force = self.in_force.lock();
        let outcome = self.prepared(&in_force).map(|(new, plan, commits)| {
            let read = commits.into_iter().flat_map(|commit| commit()).collect();
            let notes = plan.note().into_iter().chain(self.sources.without_file()).collect();
            let Plan { config, changed, restart, .. } = plan;
            *in_force = InForce { values: config.values, blank: new.blank };
            for shown in self.shown.lock().iter_mut().filter(|shown| !restart.contains(&shown.key)) {
                if let Some(new) = new.settings.iter().find(|new| new.key == shown.key) {
                    *shown = new.clone();
                }
            }
            Reloaded { changed, read, restart, notes }
        });
        match &outcome {
            Ok(done) => {
                self.metrics.config_reloads.of(ReloadResult::Ok).inc();
                let (changed, restart) = (done.changed.join(", "), done.restart.join(", "));
                tracing::info!(changed, needs_restart = restart, "configuration read again");
                done.notes.iter().for_each(|note| tracing::info!(note, "of the configuration read again"));
            }
            Err(wrong) => {
                self.metrics.config_reloads.of(ReloadResult::Failed).inc();
                for error in wrong {
                    tracing::error!(%error, "configuration not read again: nothing was changed");
                }
            }
        }
        outcome
    }

    /// Reads the configuration, makes a plan, and has every room prepare for it.
    fn prepared(&self, in_force: &InForce) -> Result<(Config, Plan, Vec<Commit>), Vec<String>> {
        let new = Config::load(&self.sources)
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        if new.blank
            && !in_force.blank
            && let Some(file) = &self.sources.file
        {
            let why = "nothing is left in the configuration file, and every option would have its default";
            return Err(vec![format!("{}: {why}: write `{{}}` if that is to be", file.display())]);
        }
        let plan =
            Plan::of(&in_force.values, &new, |key| self.rooms.iter().any(|room| room.takes(key, &new)))?;
        let (mut commits, mut wrong) = (Vec::new(), Vec::new());
        for room in &self.rooms {
            match room.prepare(&plan) {
                Ok(commit) => commits.push(commit),
                Err(why) => wrong.extend(why),
            }
        }
        if wrong.is_empty() { Ok((new, plan, commits)) } else { Err(wrong) }
    }
}

/// Reads the configuration again on each signal of `asked`.
pub(super) async fn on_signal(reload: Arc<Reload>, mut asked: Signal) {
    while asked.recv().await.is_some() {
        tracing::info!("SIGHUP: the configuration is read again");
        let reload = reload.clone();
        // Files may be on a disk that is slow. What came of it is in the log.
        if tokio::task::spawn_blocking(move || reload.run()).await.is_err() {
            tracing::error!("the configuration could not be read again");
        }
    }
}

impl ReloadOperator for Desk {
    fn reload(&self) -> Answer<Reloaded> {
        let node = self.running().cloned();
        Box::pin(async move {
            let reload = node?.reload.clone();
            let done = tokio::task::spawn_blocking(move || reload.run()).await;
            let done = done.map_err(|e| ApiError::Unavailable(e.to_string()))?;
            done.map_err(|wrong| ApiError::Invalid(format!("nothing was changed: {}", wrong.join("; "))))
        })
    }

    fn log_level(&self, level: &str) -> Result<LogLevel, ApiError> {
        let node = self.running()?;
        let config = Config::from_pairs(&[("log.level", level)])
            .map_err(|problems| ApiError::Invalid(problems.to_string()))?;
        let level = &*config.log.level;
        let before =
            node.reload.level.change(level).map_err(|error| ApiError::Unavailable(error.to_string()))?;
        tracing::info!(before, level, "an operator changed the log level");
        Ok(LogLevel { level: level.to_owned(), before })
    }
}
