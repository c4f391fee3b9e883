//! What can be set, and who this process is.

use super::tls;
use crate::clock::{self, Time};
use crate::ports::MemberId;
use crate::tls::certificate::{self, CertificateError};
use std::sync::Arc;
use std::time::Duration;

/// How links behave.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// A link on which nothing is heard for this long is given up; connecting may take this long as well.
    pub peer_timeout: Duration,
    /// After this long without a byte the other side is asked for a sign of life (HTTP/2 ping, and a request of our own).
    /// Less than half of `peer_timeout`.
    pub keepalive: Duration,
    /// How long a request waits for its response.
    pub request_timeout: Duration,
    /// The pause after the first failure to connect; doubled after each, up to `backoff_max`, less up to a half at random.
    pub backoff_min: Duration,
    /// See `backoff_min`.
    pub backoff_max: Duration,
    /// The pause after the other side has refused us.
    pub refused_pause: Duration,
    /// So many failures in a row (attempts to connect, requests without response) and requests fail at once.
    pub breaker_failures: u32,
    /// How long they do, when the link itself is up; then one is let through to see.
    pub breaker_pause: Duration,
    /// QoS 0 frames that wait to be sent to one node; more are dropped.
    pub queued_frames_max: usize,
    /// Bytes of them: as many as `session.mailbox_bytes` by default.
    pub queued_bytes_max: usize,
}

impl Default for PeerOptions {
    fn default() -> PeerOptions {
        PeerOptions {
            peer_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            refused_pause: Duration::from_secs(5),
            breaker_failures: 3,
            breaker_pause: Duration::from_secs(1),
            queued_frames_max: 10_000,
            queued_bytes_max: 64 << 20,
        }
    }
}

/// Who this process is, as every connection says first.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// This process.
    pub me: MemberId,
    /// The journal that it has opened.
    pub journal: u64,
}

/// A PEM file: what is in it, and its name for error messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PemFile {
    /// Where it was read from.
    pub path: String,
    /// Its content.
    pub pem: Vec<u8>,
}

/// Mutual TLS between nodes: each side shows `cert` and accepts only what `ca` has signed. A node's certificate must be valid
/// for the host in its `cluster.advertise_peer` (a DNS name, or an IP address as such): that is what others dial. Which node
/// it is, is what it says; any certificate of the CA may say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTls {
    /// Certificates of the authority.
    pub ca: PemFile,
    /// This node's certificate, with intermediate ones after it.
    pub cert: PemFile,
    /// Its private key.
    pub key: PemFile,
}

impl PeerTls {
    /// With what the files hold now; `None` if one cannot be read. Blocks.
    pub(super) fn again(&self) -> Option<PeerTls> {
        let read = |file: &PemFile| {
            let pem = std::fs::read(&file.path).ok()?;
            Some(PemFile { path: file.path.clone(), pem })
        };
        Some(PeerTls { ca: read(&self.ca)?, cert: read(&self.cert)?, key: read(&self.key)? })
    }

    /// With what the files hold now if that can be used, else as it is.
    pub(super) fn newest(&self) -> PeerTls {
        let good = |tls: &PeerTls| tls.check(clock::now()).is_ok();
        self.again().filter(good).unwrap_or_else(|| self.clone())
    }

    /// Whether both sides can be set up with these files at `now`.
    ///
    /// # Errors
    /// A file that cannot be used, and its option.
    pub fn check(&self, now: Time) -> Result<(), CertificateError> {
        let PeerTls { ca, cert, key } = self;
        certificate::check(&ca.path, &ca.pem, "cluster.tls.ca_file", now)?;
        certificate::check(&cert.path, &cert.pem, "cluster.tls.cert_file", now)?;
        certificate::check_key(&key.path, &key.pem, "cluster.tls.key_file")?;
        tls::try_out(self).map_err(|error| {
            let what = format!("with the certificate in {} (cluster.tls.cert_file): {error}", cert.path);
            CertificateError::unusable(&key.path, "cluster.tls.key_file", what)
        })
    }
}
