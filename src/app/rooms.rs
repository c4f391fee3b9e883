//! What can be exchanged while the broker runs: the rooms that [`super::reload`] asks, each of which knows its options and files.

use super::memory::Budget;
use super::plan::Plan;
use super::{access, bans, cluster, limits};
use crate::auth::Accounts;
use crate::auth::acl::Access;
use crate::auth::bans::Bans;
use crate::clock;
use crate::config::Config;
use crate::node::Node;
use crate::server::http::Tokens;
use crate::server::listener::{Conditions, Tuning};
use crate::telemetry::Metrics;
use crate::telemetry::logs::Level;
use crate::telemetry::metrics::Reload;
use crate::tls::{Files, Keeper};
use parking_lot::Mutex;
use std::sync::Arc;

/// Puts in force what was prepared; says in words what was read.
pub(super) type Commit = Box<dyn FnOnce() -> Vec<String> + Send>;

/// Puts errors in words.
fn all<E: ToString>(wrong: impl IntoIterator<Item = E>) -> Vec<String> {
    wrong.into_iter().map(|error| error.to_string()).collect()
}

/// Something that is made of options and files, and can be made anew while the broker runs.
pub(super) trait Room: Send + Sync {
    /// Tells if a change of the option `key` that comes with `config` can count at once.
    fn takes(&self, key: &str, config: &Config) -> bool;

    /// Reads and checks what `plan` says and names, and changes nothing. Files that are named by options which wait are not read: they may
    /// be gone already, and their former content stays in force.
    ///
    /// # Errors
    /// Everything that is wrong, in words.
    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>>;
}

/// What is logged.
pub(super) struct Logs(pub Level);

impl Room for Logs {
    fn takes(&self, key: &str, _: &Config) -> bool {
        key == "log.level"
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let (level, new) = (self.0.clone(), plan.config.log.level.clone());
        Ok(Box::new(move || {
            if level.now() != new
                && let Err(error) = level.change(&new)
            {
                tracing::error!(%error, "the log level stays as it was");
            }
            Vec::new()
        }))
    }
}

/// The broker's limits, and how much memory it may use.
pub(super) struct Limits {
    pub node: Arc<Node>,
    pub budget: Arc<Mutex<Option<Budget>>>,
}

/// Limits for which room is made at the start.
const FIXED: [&str; 2] = ["limits.max_arriving_connections", "limits.max_arriving_bytes"];

impl Room for Limits {
    fn takes(&self, key: &str, _: &Config) -> bool {
        let section = ["limits.", "session.", "retained."].iter().any(|section| key.starts_with(section));
        let others = ["publish.timeout", "auth.client_id_theft"];
        (section && !FIXED.contains(&key)) || others.contains(&key)
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let (node, budget) = (self.node.clone(), self.budget.clone());
        let (new, new_budget) = (limits::of(&plan.config), Budget::of(&plan.config.limits));
        Ok(Box::new(move || {
            node.broker.limits.change(&new.broker);
            *budget.lock() = new_budget;
            Vec::new()
        }))
    }
}

/// A listener: its limits and certificates.
pub(super) struct Listener {
    pub tuning: Arc<Tuning>,
    pub metrics: Arc<Metrics>,
}

impl Room for Listener {
    fn takes(&self, key: &str, config: &Config) -> bool {
        // What a listener does not say is said for all.
        const OWN: [&str; 13] = [
            "max_connections",
            "max_connection_rate",
            "max_message_rate",
            "max_byte_rate",
            "max_packet_size",
            "min_keep_alive",
            "max_keep_alive",
            "versions",
            "cert_file",
            "key_file",
            "client_certificates",
            "client_ca_file",
            "crl_file",
        ];
        let own = key.strip_prefix("listeners.").and_then(|rest| rest.split_once('.'));
        let own = own.filter(|(name, _)| *name == self.tuning.listener());
        let opened = |name: &str| config.listeners.get(name).is_some_and(|l| l.enabled);
        own.is_some_and(|(name, option)| opened(name) && OWN.contains(&option))
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let (tuning, metrics) = (self.tuning.clone(), self.metrics.clone());
        let config = &plan.config;
        let Some(listener) = config.listeners.get(tuning.listener()) else {
            return Ok(Box::new(Vec::new)); // it stays until a restart
        };
        let conditions = Conditions::of(listener, limits::terms(config, listener));
        let mut certificates = None;
        if let Some(keeper) =
            tuning.keeper().filter(|_| !files_wait(plan, &format!("listeners.{}", tuning.listener())))
        {
            let files = Files::of(tuning.listener(), listener);
            certificates = Some(certificates_of(keeper, files, &metrics)?);
        }
        Ok(Box::new(move || {
            tuning.change(conditions);
            certificates.map_or_else(Vec::new, |commit| commit())
        }))
    }
}

/// Tells if an option of a section waits that names its certificates and the files that belong to them.
fn files_wait(plan: &Plan, section: &str) -> bool {
    let options = ["cert_file", "key_file", "client_ca_file", "crl_file"];
    options.iter().any(|option| plan.waits(&[&format!("{section}.{option}")]))
}

/// Reads certificates and what belongs to them.
fn certificates_of(
    keeper: &Arc<Keeper>,
    files: Files,
    metrics: &Arc<Metrics>,
) -> Result<Commit, Vec<String>> {
    let (keeper, metrics) = (keeper.clone(), metrics.clone());
    let prepared = keeper.prepare(files, clock::now()).map_err(|error| {
        metrics.certificate_reloads.of(Reload::Failed).inc();
        all([error])
    })?;
    Ok(Box::new(move || {
        keeper.put(prepared);
        metrics.certificate_reloads.of(Reload::Done).inc();
        let section = keeper.section();
        tracing::info!(section, "certificates read again");
        vec![format!("certificates of {section}")]
    }))
}

/// The certificates of admin HTTP.
pub(super) struct AdminHttp {
    pub keeper: Arc<Keeper>,
    pub metrics: Arc<Metrics>,
}

impl Room for AdminHttp {
    fn takes(&self, key: &str, config: &Config) -> bool {
        const OWN: [&str; 5] = [
            "http.cert_file",
            "http.key_file",
            "http.client_certificates",
            "http.client_ca_file",
            "http.crl_file",
        ];
        OWN.contains(&key) && config.http.has_tls()
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        match Files::of_http(&plan.config.http).filter(|_| !files_wait(plan, "http")) {
            Some(files) => certificates_of(&self.keeper, files, &self.metrics),
            None => Ok(Box::new(Vec::new)),
        }
    }
}

/// What clients may do.
pub(super) struct Rules {
    pub access: Arc<Access>,
    pub metrics: Arc<Metrics>,
}

impl Room for Rules {
    fn takes(&self, key: &str, _: &Config) -> bool {
        ["acl.default", "acl.admin_group"].contains(&key)
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let (access, metrics) = (self.access.clone(), self.metrics.clone());
        if plan.waits(&["acl.file", "acl.mosquitto_file"]) {
            return Ok(Box::new(Vec::new)); // and so does everything of the section
        }
        let acl = &plan.config.acl;
        let prepared =
            access.prepare(access::otherwise(acl), &acl.admin_group).map_err(|error| all([error]))?;
        Ok(Box::new(move || {
            let changes = access.put_in_force(prepared);
            metrics.acl_rules.set(changes.rules as u64);
            let file = access.source().path().map(|file| file.display().to_string());
            let told = |file| {
                let (rules, added, removed) = (changes.rules, changes.added, changes.removed);
                format!("{rules} access rules from {file} ({added} new, {removed} gone)")
            };
            file.map(told).into_iter().collect()
        }))
    }
}

/// Who clients are: the files of users, keys and tokens.
pub(super) struct Users {
    pub accounts: Arc<Accounts>,
    pub node: Arc<Node>,
}

impl Room for Users {
    fn takes(&self, _: &str, _: &Config) -> bool {
        false
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let node = self.node.clone();
        let prepared = self.accounts.prepare(|option| plan.waits(&[option])).map_err(all)?;
        Ok(Box::new(move || {
            let read: Vec<String> = prepared.into_iter().map(|commit| commit()).collect();
            let ended = node.review_accounts();
            if ended > 0 {
                tracing::info!(ended, "connections ended: their accounts were removed or changed");
            }
            read
        }))
    }
}

/// Who may use admin HTTP.
pub(super) struct Operators(pub Arc<Tokens>);

impl Room for Operators {
    fn takes(&self, _: &str, _: &Config) -> bool {
        false
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let tokens = self.0.clone();
        let prepared = tokens.prepare(|option| plan.waits(&[option])).map_err(all)?;
        Ok(Box::new(move || vec![format!("{} tokens of admin HTTP", tokens.put(prepared))]))
    }
}

/// Who may not connect.
pub(super) struct Banned {
    pub bans: Arc<Bans>,
    pub node: Arc<Node>,
}

impl Room for Banned {
    fn takes(&self, key: &str, _: &Config) -> bool {
        key.starts_with("bans.")
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        let (bans, node) = (self.bans.clone(), self.node.clone());
        let prepared =
            bans.prepare(bans::flapping(&plan.config), clock::now()).map_err(|error| all([error]))?;
        Ok(Box::new(move || {
            let now = clock::now();
            let count = bans.put_all(prepared, now);
            node.broker.metrics.bans.set(bans.list(now).len() as u64);
            let closed = node.end_banned(now);
            if closed > 0 {
                tracing::info!(closed, "connections ended: their clients are banned");
            }
            vec![format!("{count} bans")]
        }))
    }
}

/// Certificates between nodes and to etcd: every new connection goes by the files as they are, so that there is only something to check.
pub(super) struct Links;

impl Room for Links {
    fn takes(&self, _: &str, _: &Config) -> bool {
        false
    }

    fn prepare(&self, plan: &Plan) -> Result<Commit, Vec<String>> {
        if plan.restart.iter().any(|key| key.starts_with("cluster.tls.") || key.starts_with("etcd.")) {
            return Ok(Box::new(Vec::new));
        }
        let checked = cluster::check_files(&plan.config).map_err(|error| all([error]))?;
        Ok(Box::new(move || checked))
    }
}
