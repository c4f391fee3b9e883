//! Connections to etcd.
//!
//! Each member has a connection of its own, and all requests go to one member until it fails: a member that hangs costs one
//! time-out, not every n-th request. Watches have connections of their own. The client library by itself waits for ever when
//! a member hangs or the quorum is lost, so every request has a time limit here, idle connections are probed, and members
//! without a leader refuse.

use super::error::{Context, EtcdError};
use super::tls::EtcdTls;
use crate::clock::{self, Time};
use etcd_client::{
    Client, ConnectOptions, GetOptions, GetResponse, KvClient, LeaseClient, Txn, TxnOpResponse, TxnResponse,
    WatchClient,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// Between two probes of a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The largest answer that is decoded, bytes: a page of a snapshot is a few MB, a transaction's events less.
const DECODE_MAX: usize = 512 << 20;

/// How to reach etcd, and where in it the cluster lives.
#[derive(Clone)]
pub struct EtcdOptions {
    /// The members, `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    /// What all keys begin with, `/berth` by default.
    pub prefix: String,
    /// The cluster's name.
    pub cluster: String,
    /// User and password.
    pub user: Option<(String, String)>,
    /// Where the password is read again for each new connection: it may have been replaced.
    pub password_file: Option<PathBuf>,
    /// TLS, for `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long one attempt of a request may take.
    pub request_timeout: Duration,
    /// How long a node counts as alive without a sign of life. Whole seconds.
    pub lease_ttl: Duration,
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        write!(f, "EtcdOptions({} at {:?})", self.root(), self.endpoints)
    }
}

impl EtcdOptions {
    fn root(&self) -> String {
        super::keys::Keys::new(&self.prefix, &self.cluster).root().to_owned()
    }

    fn user_name(&self) -> Option<&str> {
        self.user.as_ref().map(|(name, _)| &**name)
    }

    /// The password that is in the file now; `None` if there is no file to read.
    fn password_now(&self) -> Option<String> {
        let file = self.password_file.as_deref()?;
        match read_password(file) {
            Ok(password) => Some(password),
            Err(error) => {
                tracing::debug!(?file, %error, "etcd.password_file cannot be read: the password of the start is tried");
                None
            }
        }
    }

    fn connect_options(&self, now: Time) -> Result<ConnectOptions, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_keep_alive(KEEP_ALIVE, self.request_timeout)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(self.connect_timeout)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, self.password_now().as_deref().unwrap_or(password));
        }
        if let Some(tls) = &self.tls {
            // As the files are now; as they were at the start, if these cannot be used.
            let again = tls.again(now);
            options = options.with_tls(again.as_ref().unwrap_or(tls).options(now)?);
        }
        Ok(options)
    }
}

/// What is in a file with a password, without the end of its line.
///
/// # Errors
/// If it cannot be read.
pub fn read_password(file: &Path) -> std::io::Result<String> {
    let bytes = std::fs::read(file)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned())
}

/// The connection to one member, opened when first needed.
struct MemberConnection {
    endpoint: Arc<str>,
    /// The client, and how many there were before it.
    client: Mutex<(u64, Option<Client>)>,
    /// It failed after so many answers of any member, less one; 0 = never.
    failed: AtomicU64,
}

/// The connections of one purpose: all go to the same member until it fails.
struct Connections {
    members: Vec<MemberConnection>,
    current: AtomicUsize,
}

impl Connections {
    fn new(endpoints: &[Arc<str>], first: usize) -> Connections {
        let connection = |e: &Arc<str>| MemberConnection {
            endpoint: e.clone(),
            client: Mutex::default(),
            failed: AtomicU64::new(0),
        };
        let members = endpoints.iter().map(connection).collect();
        Connections { members, current: AtomicUsize::new(first % endpoints.len().max(1)) }
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The member at `failed` did not do: the next one, unless somebody else has moved on already.
    fn next(&self, failed: usize) {
        let next = (failed + 1) % self.members.len();
        let _ = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Connections to etcd. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    options: EtcdOptions,
    root: String,
    requests: Connections,
    leases: Connections,
    watches: Connections,
    /// Requests answered.
    answers: AtomicU64,
    /// The last request was answered.
    answering: AtomicBool,
    /// The database is full, or this node may not write to it.
    full: AtomicBool,
    /// When something was written last that a full database does not take.
    room_at: AtomicU64,
}

/// A connection for watches.
pub struct WatchConnection {
    /// The client.
    pub client: WatchClient,
    /// The member it goes to.
    pub endpoint: Arc<str>,
    index: usize,
    number: u64,
}

impl Etcd {
    /// Checks the options and connects to the first member that answers.
    ///
    /// # Errors
    /// Bad options or certificates at once; else, if no member answers, why the last one did not.
    pub async fn connect(options: EtcdOptions) -> Result<Etcd, EtcdError> {
        let etcd = Etcd::new(options)?;
        let key = etcd.inner.root.clone();
        etcd.get(key, Some(GetOptions::new().with_keys_only().with_limit(1))).await?;
        Ok(etcd)
    }

    /// Checks the options; connects when first needed.
    ///
    /// # Errors
    /// Bad options or certificates.
    pub fn new(options: EtcdOptions) -> Result<Etcd, EtcdError> {
        options.connect_options(clock::now())?;
        let endpoints = endpoints(&options)?;
        // Spread over the members without a need to agree.
        let first = std::process::id() as usize;
        let inner = Inner {
            root: options.root(),
            requests: Connections::new(&endpoints, first),
            leases: Connections::new(&endpoints, first),
            watches: Connections::new(&endpoints, first),
            answers: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            full: AtomicBool::new(false),
            room_at: AtomicU64::new(0),
            options,
        };
        Ok(Etcd { inner: Arc::new(inner) })
    }

    /// The options.
    pub fn options(&self) -> &EtcdOptions {
        &self.inner.options
    }

    /// Whether the last request was answered: if not, another member may do.
    pub fn answering(&self) -> bool {
        self.inner.answering.load(Ordering::Relaxed)
    }

    /// Whether etcd answers: false once every member has failed since the last answer of any.
    pub fn reachable(&self) -> bool {
        let answers = self.inner.answers.load(Ordering::Relaxed);
        let may_do = |connection: &MemberConnection| connection.failed.load(Ordering::Relaxed) <= answers;
        answers > 0 && self.inner.requests.members.iter().any(may_do)
    }

    /// Whether etcd's database was full when something was written last, or was not for this node to write to.
    pub fn full(&self) -> bool {
        self.inner.full.load(Ordering::Relaxed)
    }

    /// Whether etcd answers and takes writes: not while its database is full or not for this node to write to.
    pub fn writable(&self) -> bool {
        self.reachable() && !self.full()
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.inner.requests.members.len()
    }

    /// One attempt of a request at the current member. When the member failed, the next attempt goes to another one.
    ///
    /// # Errors
    /// Why it failed. Unless the error says otherwise, the request may have been carried out.
    pub async fn once<T, F, R>(&self, request: F) -> Result<T, EtcdError>
    where
        F: FnOnce(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let inner = &self.inner;
        let answers = inner.answers.load(Ordering::Relaxed);
        let (index, outcome) = self.within(&inner.requests, inner.options.request_timeout, request).await;
        let failed = outcome.as_ref().is_err_and(EtcdError::is_endpoint);
        inner.answering.store(!failed, Ordering::Relaxed);
        if failed {
            // With an answer meanwhile it is void: more than one request may wait for one member that hangs.
            inner.requests.members[index].failed.fetch_max(answers + 1, Ordering::Relaxed);
        } else {
            inner.answers.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(outcome, Err(EtcdError::NoSpace | EtcdError::NotPermitted { .. })) {
            inner.full.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// One attempt of a request about leases, on a connection of their own, with a time limit of its own.
    ///
    /// # Errors
    /// As [`Etcd::once`].
    pub async fn lease<T, F, R>(&self, limit: Duration, request: F) -> Result<T, EtcdError>
    where
        F: FnOnce(LeaseClient) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.within(&self.inner.leases, limit, |client| request(client.lease_client())).await.1
    }

    /// The member asked, and what came of it.
    async fn within<T, F, R>(
        &self,
        connections: &Connections,
        limit: Duration,
        request: F,
    ) -> (usize, Result<T, EtcdError>)
    where
        F: FnOnce(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let index = connections.current();
        let connection = &connections.members[index];
        let used = AtomicU64::new(0);
        let attempt = async {
            let (number, client) = self.client(connection).await?;
            used.store(number, Ordering::Relaxed);
            request(client).await.map_err(|e| EtcdError::of(&e, &self.context(connection)))
        };
        let outcome = match tokio::time::timeout(limit, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(EtcdError::TimedOut { endpoint: connection.endpoint.clone(), after: limit }),
        };
        if outcome.as_ref().is_err_and(EtcdError::is_endpoint) {
            forget(connection, used.into_inner());
            connections.next(index);
        }
        (index, outcome)
    }

    /// A request that may be carried out twice without harm: tried once at each member.
    ///
    /// # Errors
    /// What the last member said.
    pub async fn retry<T, F, R>(&self, request: F) -> Result<T, EtcdError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut tries = 1;
        loop {
            match self.once(&request).await {
                Err(e) if e.is_endpoint() && tries < self.members() => tries += 1,
                outcome => return outcome,
            }
        }
    }

    /// Reads keys, linearizably unless the options say otherwise; tried once at each member.
    ///
    /// # Errors
    /// What the last member said.
    pub async fn get(
        &self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, EtcdError> {
        let key = key.into();
        self.retry(|client| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv(&client).get(key, options).await }
        })
        .await
    }

    /// One attempt of a transaction. After an error it may have been carried out.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, EtcdError> {
        let response = self.once(|client| async move { kv(&client).txn(txn).await }).await?;
        if self.full() && has_put(response.op_responses()) {
            self.has_room();
        }
        Ok(response)
    }

    /// Something was written that a full database does not take.
    pub fn has_room(&self) {
        self.inner.full.store(false, Ordering::Relaxed);
        self.inner.room_at.store(clock::now().0, Ordering::Relaxed);
    }

    /// Whether something should be written to see whether the database has room: it was full, or nothing that shows it has been
    /// written for as long as a lease.
    pub fn is_room_unknown(&self) -> bool {
        let room_at = Time(self.inner.room_at.load(Ordering::Relaxed));
        self.full() || clock::now() >= room_at.plus_ms(self.inner.options.lease_ttl.as_millis() as u64)
    }

    /// A connection for watches, to the current member for watches.
    ///
    /// # Errors
    /// Why there is none; the next call tries another member.
    pub async fn watcher(&self) -> Result<WatchConnection, EtcdError> {
        let connections = &self.inner.watches;
        let index = connections.current();
        let connection = &connections.members[index];
        let limit = self.inner.options.request_timeout;
        let outcome = match tokio::time::timeout(limit, self.client(connection)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(EtcdError::TimedOut { endpoint: connection.endpoint.clone(), after: limit }),
        };
        match outcome {
            Ok((number, client)) => {
                let client = client.watch_client().max_decoding_message_size(DECODE_MAX);
                Ok(WatchConnection { client, endpoint: connection.endpoint.clone(), index, number })
            }
            Err(e) => {
                connections.next(index);
                Err(e)
            }
        }
    }

    /// A watch on this connection failed or fell silent: the next one goes to another member.
    pub async fn watch_failed(&self, failed: &WatchConnection) {
        let connections = &self.inner.watches;
        forget(&connections.members[failed.index], failed.number);
        connections.next(failed.index);
    }

    /// What an error of a watch means.
    pub fn watch_error(&self, connection: &WatchConnection, error: &etcd_client::Error) -> EtcdError {
        EtcdError::of(error, &self.context(&self.inner.watches.members[connection.index]))
    }

    /// The client of a connection, and its number.
    async fn client(&self, connection: &MemberConnection) -> Result<(u64, Client), EtcdError> {
        let mut slot = connection.client.lock().await;
        if let (number, Some(client)) = &*slot {
            return Ok((*number, client.clone()));
        }
        let options = self.inner.options.connect_options(clock::now())?;
        let connected = Client::connect([&*connection.endpoint], Some(options)).await;
        let connected = connected.map_err(|e| EtcdError::of(&e, &self.context(connection)))?;
        let number = slot.0 + 1;
        *slot = (number, Some(connected.clone()));
        Ok((number, connected))
    }

    fn context<'a>(&'a self, connection: &'a MemberConnection) -> Context<'a> {
        let Inner { options, root, .. } = &*self.inner;
        let tls = options.tls.as_ref();
        Context {
            endpoint: &connection.endpoint,
            user: options.user_name(),
            prefix: root,
            ca_file: tls.and_then(|t| t.ca.as_ref()).map(|pem| &*pem.file),
            cert_file: tls.and_then(|t| t.identity.as_ref()).map(|(cert, _)| &*cert.file),
        }
    }
}

/// Closes a connection that failed, unless it has been replaced or is just being: the next one is a new one, with a new token.
fn forget(connection: &MemberConnection, number: u64) {
    if let Ok(mut slot) = connection.client.try_lock()
        && slot.0 == number
    {
        slot.1 = None;
    }
}

/// Whether something was put: a full database still takes removals, and what is nested it does not count.
fn has_put(responses: Vec<TxnOpResponse>) -> bool {
    responses.iter().any(|response| matches!(response, TxnOpResponse::Put(_)))
}

/// The client for keys, ready for large answers.
pub fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(DECODE_MAX)
}

fn endpoints(options: &EtcdOptions) -> Result<Vec<Arc<str>>, EtcdError> {
    if options.endpoints.is_empty() {
        return Err(EtcdError::Endpoint("there are none".to_owned()));
    }
    let check = |endpoint: &String| match endpoint.split_once("://") {
        Some(("http", _)) if options.tls.is_some() => Err(EtcdError::Endpoint(format!(
            "{endpoint} does not use TLS, but etcd.ca_file or etcd.cert_file is set: write https://"
        ))),
        Some(("http" | "https", host))
            if !host.is_empty() && endpoint.parse::<tonic::transport::Uri>().is_ok() =>
        {
            Ok(Arc::from(&**endpoint))
        }
        _ => Err(EtcdError::Endpoint(format!("{endpoint:?} is not an http:// or https:// address"))),
    };
    options.endpoints.iter().map(check).collect()
}
