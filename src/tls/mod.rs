//! Certificates of listeners and of admin HTTP: read from files, checked, used for handshakes, read again when the files change.
//!
//! What a handshake uses is never changed: new files make a new [`Current`], and connections go on with the old one. Only whether a
//! client's certificate is still good is asked again of each new one.

pub mod certificate;
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
    /// [`Held::changes`] before the files were read.
    changes: u64,
    at: Time,
}

/// The certificates of one listener, or of admin HTTP.
#[derive(Debug)]
pub struct Keeper {
    section: String,
    current: RwLock<Arc<Current>>,
    held: Mutex<Held>,
    changed: Notify,
}

/// The files that a keeper goes by. Locked while their content is put in force.
#[derive(Debug)]
struct Held {
    files: Files,
    /// The stamps of the files when they were read last, be it that they could not be used.
    read: Vec<Stamp>,
    /// How often something has been put in force.
    changes: u64,
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
            current: RwLock::new(Arc::new(current)),
            held: Mutex::new(Held { files, read: stamps, changes: 0 }),
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
        let mut held = self.held.lock();
        // Those that cannot be used are not read again and again.
        held.read = held.files.stamps();
        let current = held.files.load(now, 0)?;
        self.replace(&mut held, current);
        Ok(())
    }

    /// Reads files, which may be others than before, and changes nothing.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn prepare(&self, files: Files, now: Time) -> Result<Prepared, TlsError> {
        let changes = self.held.lock().changes;
        let stamps = files.stamps();
        let current = files.load(now, 0)?;
        Ok(Prepared { files, stamps, current, changes, at: now })
    }

    /// Has handshakes use prepared files from now on; if files were read again meanwhile, their content of now.
    pub fn put(&self, prepared: Prepared) {
        let mut held = self.held.lock();
        let Prepared { files, mut stamps, mut current, changes, at } = prepared;
        if held.changes != changes {
            if held.files == files {
                return;
            }
            let now = files.stamps();
            // If they cannot be used any more, the options count all the same; the next look finds the files changed.
            if let Ok(newer) = files.load(at, 0) {
                (stamps, current) = (now, newer);
            }
        }
        (held.files, held.read) = (files, stamps);
        self.replace(&mut held, current);
    }

    fn replace(&self, held: &mut Held, mut new: Current) {
        held.changes += 1;
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
        let held = self.held.lock();
        let stamps = held.files.stamps();
        let changed = held.read != stamps;
        (stamps, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes a certificate and its key, and returns the certificate as a keeper that has read it shows it.
    fn renew(dir: &Path) -> Option<Time> {
        static YEAR: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(2080);
        let year = YEAR.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        write(&dir.join("cert.pem"), &certificate.pem());
        write(&dir.join("ca.pem"), &certificate.pem());
        write(&dir.join("key.pem"), &key.serialize_pem());
        files::expiry(certificate.der())
    }

    fn files(dir: &Path, more: &[(&str, &str)]) -> Files {
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let own = [("http.cert_file", path("cert.pem")), ("http.key_file", path("key.pem"))];
        let own = own.iter().map(|(key, value)| (*key, value.as_str()));
        let pairs: Vec<(&str, &str)> = own.chain(more.iter().copied()).collect();
        Files::of_http(&Config::from_pairs(&pairs).unwrap().http).unwrap()
    }

    #[test]
    fn a_reload_does_not_undo_certificates_that_were_read_after_it_had_read() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, now) = (dir.path(), Time(1_800_000_000_000));
        renew(dir);
        let keeper = Keeper::new(files(dir, &[]), now).unwrap();
        let prepared = keeper.prepare(files(dir, &[]), now).unwrap();
        let newer = renew(dir);
        keeper.reload(now).unwrap();
        keeper.put(prepared);
        assert_eq!(keeper.current().expires_at, newer);
        // With other options both are the newer ones: the options of the reload, and the files of now.
        let ca = dir.join("ca.pem").to_str().unwrap().to_owned();
        let asks = [("http.client_certificates", "required"), ("http.client_ca_file", &*ca)];
        let prepared = keeper.prepare(files(dir, &asks), now).unwrap();
        let newest = renew(dir);
        keeper.reload(now).unwrap();
        keeper.put(prepared);
        assert_eq!(keeper.current().expires_at, newest);
        assert!(keeper.asks_clients());
        // And if they cannot be used any more, the options count all the same.
        let prepared = keeper.prepare(files(dir, &[]), now).unwrap();
        renew(dir);
        keeper.reload(now).unwrap();
        write(&dir.join("key.pem"), "");
        keeper.put(prepared);
        assert!(!keeper.asks_clients());
        assert!(keeper.look().1, "it is looked at again");
    }
}
