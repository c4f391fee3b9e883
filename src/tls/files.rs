//! The files of a listener's certificates, and what is wrong with them, in words.

use super::certificate::{self, Invalid};
use super::server_names::ByName;
use super::{Current, provider};
use crate::clock::Time;
use crate::config::{ClientCertificates, Http, Listener};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// Bytes of one file of certificates, keys or revocation lists; more is refused.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// A file of certificates, or their key, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} ({option}) cannot be used: {what}")]
pub struct TlsError {
    /// The file.
    pub file: String,
    /// The option that names it.
    pub option: String,
    /// What is wrong with it.
    pub what: String,
}

/// The files of a listener, or of admin HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The section of the options that name them, such as `listeners.tls`.
    pub(super) section: String,
    /// Certificates with their keys.
    certificates: Vec<(PathBuf, PathBuf)>,
    clients: ClientCertificates,
    client_ca: Vec<PathBuf>,
    crl: Vec<PathBuf>,
    /// The protocol that is agreed on with clients that name any.
    protocol: &'static [u8],
}

/// What a file looked like: a change of the file, or of a link on the way to it, changes this. `None` = it cannot be looked at.
pub(super) type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

/// When a certificate expires.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<Time> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(Time(0).plus_secs(seconds))
}

/// One file while it is read.
struct File<'a> {
    path: &'a Path,
    option: String,
    bytes: Vec<u8>,
}

impl File<'_> {
    fn unusable(&self, what: impl Into<String>) -> TlsError {
        let file = self.path.display().to_string();
        TlsError { file, option: self.option.clone(), what: what.into() }
    }

    fn all<T: PemObject>(&self, what: &str) -> Result<Vec<T>, TlsError> {
        let found: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|e| self.unusable(format!("it is not PEM: {e}")))?;
        if found.is_empty() {
            return Err(self.unusable(format!("there is no {what} in it")));
        }
        Ok(found)
    }
}

impl Files {
    /// The files that the listener `name` is configured to use.
    pub fn of(name: &str, listener: &Listener) -> Files {
        Files {
            section: format!("listeners.{name}"),
            certificates: listener.cert_file.iter().cloned().zip(listener.key_file.iter().cloned()).collect(),
            clients: listener.client_certificates,
            client_ca: listener.client_ca_file.clone(),
            crl: listener.crl_file.clone(),
            protocol: if listener.speaks().has_websocket() { b"http/1.1" } else { b"mqtt" },
        }
    }

    /// The files that admin HTTP is configured to use; `None` = it has no TLS.
    pub fn of_http(http: &Http) -> Option<Files> {
        http.has_tls().then(|| Files {
            section: "http".to_owned(),
            certificates: http.cert_file.iter().cloned().zip(http.key_file.iter().cloned()).collect(),
            clients: http.client_certificates,
            client_ca: http.client_ca_file.clone(),
            crl: http.crl_file.clone(),
            protocol: b"http/1.1",
        })
    }

    /// What all of them look like.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        let own = self.certificates.iter().flat_map(|(cert, key)| [cert, key]);
        own.chain(&self.client_ca).chain(&self.crl).map(|path| stamp(path)).collect()
    }

    /// Reads and checks all of them.
    pub(super) fn load(&self, now: Time, generation: u64) -> Result<Current, TlsError> {
        let provider = provider();
        let mut keys = Vec::new();
        for (cert, key) in &self.certificates {
            keys.push(Arc::new(self.certified(cert, key, now)?));
        }
        let expires_at = keys.iter().flat_map(|key| key.cert.iter().filter_map(expiry)).min();
        let verifier = self.verifier()?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(|e| self.unusable(e.to_string()))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(keys)));
        config.alpn_protocols = vec![self.protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Whoever resumes a session shows no certificate: it could have been revoked meanwhile.
        config.send_tls13_tickets = 0;
        if verifier.is_none() {
            config.ticketer =
                rustls::crypto::ring::Ticketer::new().map_err(|e| self.unusable(e.to_string()))?;
            config.send_tls13_tickets = 1;
        }
        Ok(Current { config: Arc::new(config), generation, expires_at, verifier })
    }

    /// What is wrong with all of them together.
    fn unusable(&self, what: String) -> TlsError {
        let file = self.certificates.first().map(|(cert, _)| cert.display().to_string()).unwrap_or_default();
        TlsError { file, option: self.option("cert_file"), what }
    }

    fn option(&self, option: &str) -> String {
        format!("{}.{option}", self.section)
    }

    fn read<'a>(&self, path: &'a Path, option: &str) -> Result<File<'a>, TlsError> {
        let mut file = File { path, option: self.option(option), bytes: Vec::new() };
        let io = |e: io::Error, file: &File<'_>| file.unusable(e.to_string());
        let mut opened = std::fs::File::open(path).map_err(|e| io(e, &file))?;
        // Of the file that is open: another may take its name meanwhile.
        let mode = opened.metadata().map_err(|e| io(e, &file))?.mode();
        if option == "key_file" && mode & 0o004 != 0 {
            let why = "everybody on this machine can read the key in it: take that right away (chmod o-r)";
            return Err(file.unusable(why));
        }
        let read = Read::by_ref(&mut opened).take(FILE_BYTES_MAX + 1).read_to_end(&mut file.bytes);
        read.map_err(|e| io(e, &file))?;
        if file.bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(file.unusable("it is too large"));
        }
        Ok(file)
    }

    fn certified(&self, cert: &Path, key: &Path, now: Time) -> Result<CertifiedKey, TlsError> {
        let file = self.read(cert, "cert_file")?;
        let chain: Vec<CertificateDer<'static>> = file.all("certificate")?;
        for certificate in &chain {
            certificate::validity(certificate, now).map_err(|invalid| match invalid {
                Invalid::Unreadable(e) => file.unusable(format!("a certificate in it is not X.509: {e}")),
                Invalid::Expired(when) => {
                    file.unusable(format!("a certificate in it expired on {when}: replace it by a new one"))
                }
                Invalid::Early(from) => file.unusable(format!(
                    "a certificate in it is valid only from {from} on: check this machine's clock"
                )),
            })?;
        }
        let file = self.read(key, "key_file")?;
        // What is wrong with a key is not repeated: messages of parsers may show parts of it.
        let der = PrivateKeyDer::from_pem_slice(&file.bytes)
            .map_err(|_| file.unusable("there is no private key in it"))?;
        let signing = provider().key_provider.load_private_key(der).map_err(|_| {
            file.unusable("its private key is of no kind that is supported (RSA, ECDSA, Ed25519)")
        })?;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
            Err(_) => {
                Err(file.unusable(format!("its key is not that of the certificate in {}", cert.display())))
            }
        }
    }

    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        if self.clients == ClientCertificates::Off {
            return Ok(None);
        }
        let mut roots = RootCertStore::empty();
        for path in &self.client_ca {
            let file = self.read(path, "client_ca_file")?;
            for certificate in file.all::<CertificateDer<'static>>("certificate")? {
                roots.add(certificate).map_err(|e| {
                    file.unusable(format!("a certificate in it is not that of an authority: {e}"))
                })?;
            }
        }
        let mut lists = Vec::new();
        for path in &self.crl {
            let file = self.read(path, "crl_file")?;
            for list in file.all::<CertificateRevocationListDer<'static>>("revocation list")? {
                CertificateRevocationList::from_der(&list)
                    .map_err(|e| file.unusable(format!("a revocation list in it cannot be read: {e}")))?;
                lists.push(list);
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let builder = builder.with_crls(lists);
        let builder = match self.clients {
            ClientCertificates::Required => builder,
            _ => builder.allow_unauthenticated(),
        };
        let built = builder.build().map_err(|e| {
            let option = if self.crl.is_empty() { "client_ca_file" } else { "crl_file" };
            let path = if self.crl.is_empty() { self.client_ca.first() } else { self.crl.first() };
            let file = path.map(|p| p.display().to_string()).unwrap_or_default();
            TlsError { file, option: self.option(option), what: e.to_string() }
        });
        built.map(Some)
    }
}
