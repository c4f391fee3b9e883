//! Configuration: defaults < YAML file < `BERTH__SECTION__KEY` environment < flags.
//!
//! The options are one table in [`options`]; structs, defaults, checks and the reference come from it. Everything wrong
//! is found and reported at once, with where it came from. This module never reads an option for anybody: other
//! modules are handed their section.

mod accounts;
mod amounts;
mod http;
mod kinds;
mod listener_kinds;
mod listeners;
mod mask;
mod network;
pub mod options;
mod problem;
pub mod reference;
mod sources;
mod units;

pub use amounts::Memory;
pub use kinds::{
    AclDefault, Advertised, AuthMethod, CertificateName, ClientCertificates, ClientIdTheft, LogFormat,
    ProxyProtocol, QueuePolicy, StorageType, TokenPlace, UserStore,
};
pub use listener_kinds::{ListenerType, MqttVersions, Origins};
pub use listeners::Listeners;
pub use mask::Secret;
pub use network::{Network, NotANetwork};
pub use options::{
    Accounts, Acl, Audit, Auth, AuthCertificate, AuthHttp, AuthJwt, AuthPassword, Bans, Cluster, ClusterNode,
    ClusterTls, Etcd, Http, Limits, Listener, Log, Node, Publish, Retained, Runtime, Session, Shutdown,
    Storage, Sys,
};
pub use problem::{Problem, Problems};
pub use sources::{Flag, Setting, Sources, Values};

/// The largest `retained.max_payload` of a cluster, bytes: in base64, with topic and properties, it must fit into one request to etcd.
const CLUSTER_RETAINED_PAYLOAD_MAX: usize = 1 << 20;

/// What a start does with a journal that is a copy of a newer one. No option: it is said on the command line, for one start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFork {
    /// The process refuses to start.
    #[default]
    Refuse,
    /// The process renames the journal and begins with an empty one.
    SetAside,
    /// The process uses the journal all the same.
    Accept,
}

impl OnFork {
    /// The flag that asks for it; `None` = nobody did.
    pub fn flag(self) -> Option<&'static str> {
        match self {
            OnFork::Refuse => None,
            OnFork::SetAside => Some("--set-aside-journal"),
            OnFork::Accept => Some("--accept-older-journal"),
        }
    }
}

/// Every option of the broker, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// Where clients connect.
    pub listeners: Listeners,
    /// Who may connect.
    pub auth: Auth,
    /// How it is found out who they are.
    pub accounts: Accounts,
    /// What clients may do.
    pub acl: Acl,
    /// Clients that may not connect.
    pub bans: Bans,
    /// The admin HTTP endpoint.
    pub http: Http,
    /// The audit log.
    pub audit: Audit,
    /// Limits per connection and in total.
    pub limits: Limits,
    /// Limits of sessions and their queues.
    pub session: Session,
    /// Limits of retained messages.
    pub retained: Retained,
    /// The journal.
    pub storage: Storage,
    /// Acceptance of messages.
    pub publish: Publish,
    /// This node as part of a cluster.
    pub cluster: Cluster,
    /// The etcd that the nodes of a cluster share.
    pub etcd: Etcd,
    /// The `$SYS` topics.
    pub sys: Sys,
    /// Logging.
    pub log: Log,
    /// Stopping.
    pub shutdown: Shutdown,
    /// Threads.
    pub runtime: Runtime,
    /// What every option says, secrets included.
    pub values: Values,
    /// Every option as text, without secrets, and where it comes from.
    pub settings: Vec<Setting>,
    /// Where it was read from, and may be read again.
    pub sources: Sources,
    /// True if there is no configuration file, or nothing in it but comments.
    pub blank: bool,
}

impl Config {
    /// Reads all layers of `sources` and checks them.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once: unknown keys, wrong values, contradictions, an unreadable file.
    pub fn load(sources: &Sources) -> Result<Config, Problems> {
        let mut reader = sources::Reader::open(sources);
        let config = Config::take(&mut reader, sources);
        if let Some(config) = &config {
            config.check(&mut reader);
        }
        match (config, reader.finish()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(problems),
        }
    }

    /// The defaults with some options replaced: `Config::from_pairs(&[("limits.max_connections", "10")])`.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Result<Config, Problems> {
        let flags = pairs.iter().map(|(key, value)| Flag::set(key, value)).collect();
        Config::load(&Sources { flags, ..Sources::default() })
    }

    /// Checks a configuration of which every option is given.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once.
    pub fn of_values(values: &Values) -> Result<Config, Problems> {
        Config::load(&Sources { flags: values.flags(), ..Sources::default() })
    }

    fn take(reader: &mut sources::Reader, sources: &Sources) -> Option<Config> {
        // All sections are taken before the first `?`, so that one bad section does not hide another's problems.
        let node = Node::take(reader);
        let listeners = Listeners::take(reader);
        let auth = Auth::take(reader);
        let accounts = Accounts::take(reader);
        let acl = Acl::take(reader);
        let bans = Bans::take(reader);
        let http = Http::take(reader);
        let audit = Audit::take(reader);
        let limits = Limits::take(reader);
        let session = Session::take(reader);
        let retained = Retained::take(reader);
        let storage = Storage::take(reader);
        let publish = Publish::take(reader);
        let cluster = ClusterNode::take(reader);
        let cluster_tls = ClusterTls::take(reader);
        let etcd = Etcd::take(reader);
        let sys = Sys::take(reader);
        let log = Log::take(reader);
        let shutdown = Shutdown::take(reader);
        let runtime = Runtime::take(reader);
        Some(Config {
            node: node?,
            listeners: listeners?,
            auth: auth?,
            accounts: accounts?,
            acl: acl?,
            bans: bans?,
            http: http?,
            audit: audit?,
            limits: limits?,
            session: session?,
            retained: retained?,
            storage: storage?,
            publish: publish?,
            cluster: Cluster { node: cluster?, tls: cluster_tls? },
            etcd: etcd?,
            sys: sys?,
            log: log?,
            shutdown: shutdown?,
            runtime: runtime?,
            values: reader.taken(),
            settings: reader.settings(),
            sources: sources.clone(),
            blank: reader.is_blank(),
        })
    }

    /// What no single option can tell.
    fn check(&self, reader: &mut sources::Reader) {
        self.listeners.check(reader);
        self.check_accounts(reader);
        self.check_http(reader);
        if self.auth.allow_anonymous.is_none()
            && !self.accounts.any()
            && let Some((name, address)) = self.listeners.beyond_loopback()
        {
            let why = format!(
                "{address} (listeners.{name}.address) can be reached from other machines, and there are no accounts: \
                 set auth.password.file (in a cluster perhaps auth.password.store), or auth.allow_anonymous to true to let everybody in"
            );
            reader.refuse("auth.allow_anonymous", &why);
        }
        if self.acl.file.is_some() && self.acl.mosquitto_file.is_some() {
            reader.refuse("acl.mosquitto_file", "acl.file is set as well: only one of them can count");
        }
        if self.limits.memory_pause_at > self.limits.memory_refuse_at {
            reader.refuse("limits.memory_pause_at", "it must not be above limits.memory_refuse_at");
        }
        if self.cluster.node.enabled {
            self.check_cluster(reader);
        }
    }

    fn check_cluster(&self, reader: &mut sources::Reader) {
        let Cluster { node, tls } = &self.cluster;
        if node.suback_wait <= node.stale_after {
            reader.refuse("cluster.suback_wait", "it must be above cluster.stale_after");
        }
        if node.stale_after >= node.lease {
            reader.refuse("cluster.stale_after", "it must be below cluster.lease");
        }
        let files = [&tls.ca_file, &tls.cert_file, &tls.key_file];
        if files.iter().any(|f| f.is_some()) && !files.iter().all(|f| f.is_some()) {
            reader.refuse(
                "cluster.tls",
                "ca_file, cert_file and key_file must be set all three, or none of them",
            );
        }
        let etcd = &self.etcd;
        if etcd.cert_file.is_some() != etcd.key_file.is_some() {
            reader.refuse("etcd.cert_file", "etcd.cert_file and etcd.key_file must be set both, or neither");
        }
        if etcd.password.is_some() && etcd.password_file.is_some() {
            reader.refuse("etcd.password_file", "etcd.password is set as well: only one of them can count");
        }
        let password = etcd.password.is_some() || etcd.password_file.is_some();
        if password == etcd.username.is_empty() {
            reader.refuse(
                "etcd.username",
                "a user name and a password (etcd.password_file) must be set both, or neither",
            );
        }
        if self.retained.max_payload > CLUSTER_RETAINED_PAYLOAD_MAX {
            let why = "a cluster keeps retained messages in etcd, whose requests are limited: at most 1MiB";
            reader.refuse("retained.max_payload", why);
        }
        if self.storage.kind == StorageType::Memory {
            let why = "a node of a cluster keeps its sessions on disk: others rely on what it acknowledged; use redb";
            reader.refuse("storage.type", why);
        }
    }
}

#[cfg(test)]
mod tests;
