//! Certificates of listeners and of admin HTTP: read from files, checked, used for handshakes, read again when the files change.
//!
//! What a handshake uses is never changed: new files make a new [`Current`], and connections go on with the old one. Only whether a
//! client's certificate is still good is asked again of each new one.

mod files;
mod names;
mod server_names;
mod watch;

pub use files::{Files, TlsError};
pub use names::names;
pub use watch::{POLL_MS, watch};

use crate::clock::Time;
use files::Stamp;
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// The one implementation of cryptography that this process uses.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// What one state of the files makes.
#[derive(Debug)]
pub struct Current {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// Counts the states of the files.
    pub generation: u64,
    /// When the first of the certificates expires.
    pub expires_at: Option<Time>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Files that were read and can be used.
#[derive(Debug)]
pub struct Prepared {
    files: Files,
    stamps: Vec<Stamp>,
    current: Current,
}

/// The certificates of one listener, or of admin HTTP.
#[derive(Debug)]
pub struct Keeper {
    section: String,
    files: RwLock<Files>,
    current: RwLock<Arc<Current>>,
    /// What the files looked like when they were read last, whether they could be used or not.
    read: Mutex<Vec<Stamp>>,
    changed: Notify,
}

impl Keeper {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn new(files: Files, now: Time) -> Result<Keeper, TlsError> {
        let stamps = files.stamps();
        let current = files.load(now, 0)?;
        Ok(Keeper {
            section: files.section.clone(),
            files: RwLock::new(files),
            current: RwLock::new(Arc::new(current)),
            read: Mutex::new(stamps),
            changed: Notify::new(),
        })
    }

    /// The section of the options that name the files, such as `listeners.tls`.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// What new handshakes use.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// Completes when there is a new [`Keeper::current`] after this call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether clients' certificates are asked for.
    pub fn asks_clients(&self) -> bool {
        self.current.read().verifier.is_some()
    }

    /// Reads the files again. The old certificates stay in use if the new ones cannot be used.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn reload(&self, now: Time) -> Result<(), TlsError> {
        let files = self.files.read().clone();
        // Those that cannot be used are not read again and again.
        *self.read.lock() = files.stamps();
        let prepared = self.prepare(files, now)?;
        self.put(prepared);
        Ok(())
    }

    /// Reads files, which may be others than before, and changes nothing.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn prepare(&self, files: Files, now: Time) -> Result<Prepared, TlsError> {
        let stamps = files.stamps();
        let current = files.load(now, 0)?;
        Ok(Prepared { files, stamps, current })
    }

    /// What was read is used for handshakes from now on.
    pub fn put(&self, prepared: Prepared) {
        let Prepared { files, stamps, current: mut new } = prepared;
        *self.files.write() = files;
        *self.read.lock() = stamps;
        let mut current = self.current.write();
        new.generation = current.generation + 1;
        *current = Arc::new(new);
        drop(current);
        self.changed.notify_waiters();
    }

    /// Whether a client's certificate that was good when it came, at `came`, is still that of a trusted authority and not revoked.
    /// Whether it has expired meanwhile is no matter: its client has had a right to the connection.
    pub fn trusts(&self, chain: &[CertificateDer<'_>], came: Time) -> bool {
        let current = self.current();
        let Some(verifier) = &current.verifier else { return true };
        let Some((own, others)) = chain.split_first() else { return true };
        let came = UnixTime::since_unix_epoch(Duration::from_millis(came.as_millis()));
        verifier.verify_client_cert(own, others, came).is_ok()
    }

    /// What the files look like now, and whether that differs from when they were read.
    fn look(&self) -> (Vec<Stamp>, bool) {
        let stamps = self.files.read().stamps();
        let changed = *self.read.lock() != stamps;
        (stamps, changed)
    }
}
