//! What the options about accounts say together.

use super::kinds::{AuthMethod, CertificateName, UserStore};
use super::options::{Accounts, AuthCertificate, AuthHttp, AuthJwt, AuthPassword};
use super::{Config, sources};

impl Accounts {
    pub(super) fn take(reader: &mut sources::Reader) -> Option<Accounts> {
        let password = AuthPassword::take(reader);
        let jwt = AuthJwt::take(reader);
        let certificate = AuthCertificate::take(reader);
        let http = AuthHttp::take(reader);
        Some(Accounts { password: password?, jwt: jwt?, certificate: certificate?, http: http? })
    }

    /// Whether a method has what it needs.
    pub fn is_configured(&self, method: AuthMethod) -> bool {
        match method {
            AuthMethod::Password => self.password.file.is_some() || self.password.store == UserStore::Etcd,
            AuthMethod::Jwt => self.jwt.key_file.is_some() || self.jwt.jwks_file.is_some(),
            AuthMethod::Certificate => self.certificate.name != CertificateName::Off,
            AuthMethod::Http => self.http.url.is_some(),
        }
    }

    /// Whether there is a way to have an account.
    pub fn any(&self) -> bool {
        !self.configured().is_empty()
    }

    /// Whether a method may say what a client may do, besides who it is.
    pub fn tell_rights(&self) -> bool {
        [AuthMethod::Jwt, AuthMethod::Http].into_iter().any(|method| self.is_configured(method))
    }

    /// The methods that have what they need.
    pub fn configured(&self) -> Vec<AuthMethod> {
        AuthMethod::ALL.iter().copied().filter(|m| self.is_configured(*m)).collect()
    }
}

impl AuthPassword {
    /// Passwords that are checked at a time.
    pub fn parallel_checks(&self) -> usize {
        match self.parallel {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        }
    }
}

impl Config {
    /// What no single option about accounts can tell.
    pub(super) fn check_accounts(&self, reader: &mut sources::Reader) {
        if self.accounts.jwt.user_claim.is_empty() {
            reader.refuse("auth.jwt.user_claim", "a token must say whose it is, in some claim");
        }
        if self.accounts.password.store == UserStore::Etcd {
            if !self.cluster.node.enabled {
                reader.refuse(
                    "auth.password.store",
                    "etcd is for clusters: set cluster.enabled, or name a file in auth.password.file",
                );
            }
            if self.accounts.password.file.is_some() {
                let why = "users are in etcd (auth.password.store) or in a file, not in both: leave one of the two out";
                reader.refuse("auth.password.file", why);
            }
        }
        for (name, listener) in self.listeners.opened() {
            for method in listener.auth_chain.iter().flatten().filter(|m| !self.accounts.is_configured(**m)) {
                let why = format!("{} is in it, but {} is not set", method.name(), needs(*method));
                reader.refuse(&format!("listeners.{name}.auth_chain"), &why);
            }
        }
        let Some(chain) = &self.auth.chain else { return };
        for method in AuthMethod::ALL {
            let (listed, configured) = (chain.contains(method), self.accounts.is_configured(*method));
            let (name, needs) = (method.name(), needs(*method));
            if listed && !configured {
                reader.refuse("auth.chain", &format!("{name} is in it, but {needs} is not set"));
            }
            if configured && !listed {
                reader.refuse("auth.chain", &format!("{needs} is set, but {name} is not in it"));
            }
        }
    }
}

/// The option that a method cannot be without.
fn needs(method: AuthMethod) -> &'static str {
    match method {
        AuthMethod::Password => "auth.password.file (or auth.password.store: etcd)",
        AuthMethod::Jwt => "auth.jwt.key_file or auth.jwt.jwks_file",
        AuthMethod::Certificate => "auth.certificate.name",
        AuthMethod::Http => "auth.http.url",
    }
}
