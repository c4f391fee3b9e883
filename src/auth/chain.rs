//! The chain: methods in the order in which they are asked who a client is. The first that decides wins.

use super::certificate::Certificates;
use super::http::{self, Hook};
use super::jwt::{self, Tokens};
use super::method::{Checked, Method, Prepared, Refusal, Request};
use super::password::pool::PoolLimits;
use super::password::{self, Checker, Passwords};
use super::scram;
use super::{Anonymous, certificate};
use crate::config::{AuthMethod, Config, UserStore};
use crate::hashing::HashMap;
use crate::mqtt::Reason;
use crate::names::shown;
use crate::ports::{Account, Authorizer, Credentials, Decision, Door, EnhancedAuth, Verdict};
use crate::secret_file::FileError;
use crate::telemetry::metrics::{AuthDecision, ReloadResult};
use crate::telemetry::{Metrics, Repeats};
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;

/// Why the accounts cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system gives no threads.
    #[error("cannot start the threads that check passwords (auth.password.parallel): {0}")]
    Threads(std::io::Error),
    /// The HTTP hook can never be reached.
    #[error(transparent)]
    Hook(#[from] http::ConnectError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// The methods of one listener, in order.
#[derive(Clone, Default)]
pub struct Chain(Vec<Arc<dyn Method>>);

/// Who is let in at one listener.
struct Rules {
    chain: Chain,
    anonymous: Anonymous,
}

/// What came of reading the files of all methods again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What the methods have now whose files had changed.
    pub changed: Vec<String>,
    /// What is wrong: what was there before counts.
    pub failed: Vec<String>,
}

/// Says who clients are.
pub struct Accounts(Arc<Shared>);

struct Shared {
    /// Every method, once.
    methods: Vec<(u32, Arc<dyn Method>)>,
    /// For listeners that have none of their own.
    rules: Rules,
    by_listener: HashMap<Arc<str>, Rules>,
    /// Users with keys for SCRAM.
    passwords: Option<Arc<Passwords>>,
    /// Known to this process only.
    decoys: [u8; 32],
    /// Refusals as the log has told them, by kind and address.
    refusals: Repeats,
    metrics: Arc<Metrics>,
}

impl Accounts {
    /// Opens what the configuration names.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Accounts, OpenError> {
        let Config { auth, accounts, .. } = config;
        let mut methods: Vec<(u32, Arc<dyn Method>)> = Vec::new();
        let mut passwords = None;
        for method in auth.chain.clone().unwrap_or_else(|| accounts.configured()) {
            methods.push(match method {
                AuthMethod::Password => {
                    let limits = PoolLimits {
                        parallel: accounts.password.parallel_checks(),
                        queue: accounts.password.queue,
                        queue_per_address: accounts.password.queue_per_address,
                    };
                    let checker = Checker::start(limits, metrics.clone()).map_err(OpenError::Threads)?;
                    let checker = Arc::new(checker);
                    let file = accounts.password.file.clone().unwrap_or_default();
                    let users = Arc::new(match accounts.password.store {
                        UserStore::File => Passwords::open(&file, checker)?,
                        UserStore::Etcd => Passwords::of_directory(checker),
                    });
                    passwords = Some(users.clone());
                    (password::SOURCE, users)
                }
                AuthMethod::Jwt => (jwt::SOURCE, Arc::new(Tokens::open(&accounts.jwt)?)),
                AuthMethod::Http => (http::SOURCE, Arc::new(Hook::open(&accounts.http)?)),
                AuthMethod::Certificate => {
                    (certificate::SOURCE, Arc::new(Certificates::new(accounts.certificate.name)))
                }
            });
        }
        let chain = Chain(methods.iter().map(|(_, method)| method.clone()).collect());
        let anonymous = |said: Option<bool>| Anonymous {
            anywhere: said == Some(true),
            // Whoever has accounts wants to know who comes.
            nowhere: !said.unwrap_or(methods.is_empty()),
        };
        let mut by_listener = HashMap::default();
        for (name, listener) in config.listeners.opened() {
            let own = listener.auth_chain.as_ref().map(|own| {
                let of = |method: &AuthMethod| methods.iter().find(|(_, m)| m.name() == method.name());
                Chain(own.iter().filter_map(of).map(|(_, method)| method.clone()).collect())
            });
            if own.is_some() || listener.allow_anonymous.is_some() {
                let said = listener.allow_anonymous.or(auth.allow_anonymous);
                let rules = Rules { chain: own.unwrap_or_else(|| chain.clone()), anonymous: anonymous(said) };
                by_listener.insert(Arc::from(name), rules);
            }
        }
        let rules = Rules { chain, anonymous: anonymous(auth.allow_anonymous) };
        let mut decoys = [0; 32];
        SystemRandom::new().fill(&mut decoys).map_err(|_| OpenError::Random)?;
        Ok(Accounts(Arc::new(Shared {
            methods,
            rules,
            by_listener,
            passwords,
            decoys,
            refusals: Repeats::default(),
            metrics,
        })))
    }

    /// Whether there are methods at all.
    pub fn any(&self) -> bool {
        !self.0.methods.is_empty()
    }

    /// Users with passwords, if there is such a method.
    pub fn passwords(&self) -> Option<&Arc<Passwords>> {
        self.0.passwords.as_ref()
    }

    /// Reads the files of all methods and changes nothing; what they hold counts once that is called which this returns, for each method
    /// that has files. Methods with a file whose option `left_out` names are left out: what they have read stays. Blocks.
    ///
    /// # Errors
    /// Which files cannot be used, and why.
    pub fn prepare(&self, left_out: impl Fn(&str) -> bool) -> Result<Vec<Prepared>, Vec<FileError>> {
        let (mut all, mut wrong) = (Vec::new(), Vec::new());
        let read = |method: &Arc<dyn Method>| !method.files().iter().any(|file| left_out(file.option()));
        for (_, method) in self.0.methods.iter().filter(|(_, method)| read(method)) {
            let (name, metrics) = (method.name(), self.0.metrics.clone());
            match method.clone().prepare(false) {
                None => {}
                Some(Ok(prepared)) => all.push(Box::new(move || {
                    let what = prepared();
                    metrics.account_reloads.of(ReloadResult::Ok).inc();
                    tracing::info!(method = name, what, "accounts read again");
                    what
                }) as Prepared),
                Some(Err(errors)) => {
                    metrics.account_reloads.of(ReloadResult::Failed).inc();
                    wrong.extend(errors);
                }
            }
        }
        if wrong.is_empty() { Ok(all) } else { Err(wrong) }
    }

    /// Reads the files of all methods again that have changed, or all of them (`force`). Blocks. Several may do so at once: the later
    /// reading counts.
    pub fn reload(&self, force: bool) -> Reloaded {
        let mut reloaded = Reloaded::default();
        // Each file is asked, since each takes note of what it has seen.
        let changed = |method: &Arc<dyn Method>| {
            method.files().into_iter().filter(|file| file.has_changed()).count() > 0
        };
        for (_, method) in self.0.methods.iter().filter(|(_, method)| force || changed(method)) {
            match method.clone().prepare(true) {
                None => {}
                Some(Ok(prepared)) => {
                    let what = prepared();
                    self.0.metrics.account_reloads.of(ReloadResult::Ok).inc();
                    tracing::info!(method = method.name(), what, "accounts read again");
                    reloaded.changed.push(what);
                }
                Some(Err(errors)) => {
                    self.0.metrics.account_reloads.of(ReloadResult::Failed).inc();
                    for error in errors {
                        tracing::error!(method = method.name(), %error, "accounts not read again: those from before count");
                        reloaded.failed.push(error.to_string());
                    }
                }
            }
        }
        reloaded
    }
}

impl Shared {
    fn rules(&self, door: &Door) -> &Rules {
        self.by_listener.get(&door.listener).unwrap_or(&self.rules)
    }

    fn chain(&self, door: &Door) -> &Chain {
        &self.rules(door).chain
    }

    async fn decide(&self, request: &Request) -> Verdict {
        match self.ask(request).await {
            Ok(account) => {
                let anonymous = account.user.is_none();
                let outcome = if anonymous { AuthDecision::Anonymous } else { AuthDecision::Accepted };
                self.metrics.auth_decisions.of(outcome).inc();
                Ok(Arc::new(account))
            }
            Err(refusal) => Err(self.refuse(&refusal, &request.door, &request.client_id)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Account, Refusal> {
        let chain = self.chain(&request.door);
        for method in &chain.0 {
            match method.check(request).await {
                Checked::Accept(account) => return Ok(account),
                Checked::Refuse(refusal) => return Err(refusal),
                Checked::NotMine => {}
            }
        }
        // A certificate alone that no method goes by says nothing.
        if request.username.is_none() && request.password.is_none() {
            return self.without_account(&request.door).map(|()| Account::default());
        }
        for method in &chain.0 {
            method.pretend(request).await?;
        }
        Err(Refusal::new(AuthDecision::UnknownUser, "no method knows its user name"))
    }

    fn without_account(&self, door: &Door) -> Result<(), Refusal> {
        let why = "it shows no user name, and may not come anonymously (auth.allow_anonymous)";
        let may = self.rules(door).anonymous.lets_in(door);
        may.then_some(()).ok_or_else(|| Refusal::new(AuthDecision::NoCredentials, why))
    }

    /// Counts a refusal, and logs it if the log does not say it already.
    fn refuse(&self, refusal: &Refusal, door: &Door, client_id: &str) -> Reason {
        self.metrics.auth_decisions.of(refusal.kind).inc();
        let (reason, why) = (refusal.reason(), &refusal.why);
        match self.refusals.first(&(refusal.kind as u8, door.peer.ip())) {
            Some(more) => tracing::info!(
                peer = %door.peer, listener = %door.listener, client = %shown(client_id), ?reason, why, more,
                "connection refused: not authenticated"
            ),
            None => tracing::debug!(
                peer = %door.peer, client = %shown(client_id), ?reason, why, "connection refused: not authenticated"
            ),
        }
        reason
    }
}

impl Authorizer for Accounts {
    fn connect(&self, who: &Credentials<'_>) -> Decision {
        let shared = &self.0;
        let shows_something =
            who.username.is_some() || who.password.is_some() || who.door.certificate.is_some();
        // Without methods nobody asks for a name, and whatever a client calls itself is not known to be true.
        if shared.chain(who.door).0.is_empty() || !shows_something {
            return Decision::Now(match shared.without_account(who.door) {
                Ok(()) => {
                    shared.metrics.auth_decisions.of(AuthDecision::Anonymous).inc();
                    Ok(Arc::default())
                }
                Err(refusal) => Err(shared.refuse(&refusal, who.door, who.client_id)),
            });
        }
        let (shared, request) = (shared.clone(), Request::of(who));
        Decision::Later(Box::pin(async move { shared.decide(&request).await }))
    }

    fn holds(&self, account: &Account) -> bool {
        let mark = account.mark;
        let method = self.0.methods.iter().find(|(source, _)| *source == mark.source);
        method.is_none_or(|(_, method)| method.holds(account, mark.version))
    }

    fn enhanced(&self, method: &str, who: &Credentials<'_>) -> Result<Box<dyn EnhancedAuth>, Reason> {
        let asked = self.0.chain(who.door).0.iter().any(|m| m.name() == AuthMethod::Password.name());
        let passwords = self.0.passwords.clone().filter(|_| asked && method == scram::METHOD);
        let passwords = passwords.ok_or(Reason::BadAuthenticationMethod)?;
        let (shared, door, client_id) = (self.0.clone(), who.door.clone(), Box::<str>::from(who.client_id));
        let told = move |outcome: Result<(), &Refusal>| match outcome {
            Ok(()) => {
                shared.metrics.auth_decisions.of(AuthDecision::Accepted).inc();
                Reason::Success
            }
            Err(refusal) => shared.refuse(refusal, &door, &client_id),
        };
        Ok(Box::new(scram::Exchange::new(passwords, self.0.decoys, Box::new(told))?))
    }
}
