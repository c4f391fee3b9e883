//! Connections of other nodes over TLS: each handshake goes by the files as they are then, so that certificates are replaced without a
//! restart. Links that are there go on with what they began with.

use super::options::PeerTls;
use crate::clock;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// Connections whose handshake is done and which nobody has taken yet.
const DONE_WAITING: usize = 16;

/// How long to wait after a failed accept (out of file descriptors, mostly) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For handshakes with these files.
///
/// # Errors
/// What the TLS library says.
pub(super) fn server_config(tls: &PeerTls) -> Result<ServerConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&tls.ca.pem) {
        roots.add(ca.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(|e| e.to_string())?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&tls.cert.pem).collect();
    let key = PrivateKeyDer::from_pem_slice(&tls.key.pem).map_err(|e| e.to_string())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.map_err(|e| e.to_string())?, key)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// What handshakes go by.
struct Current {
    /// The files that were good last.
    tls: PeerTls,
    config: Arc<ServerConfig>,
}

impl Current {
    /// Takes the files as they are now, if they can be used.
    fn look(&mut self) {
        let Some(tls) = self.tls.again().filter(|tls| *tls != self.tls) else { return };
        let outcome = tls.check(clock::now()).map_err(|e| e.to_string()).and_then(|()| server_config(&tls));
        match outcome {
            Ok(config) => {
                tracing::info!(cert = tls.cert.path, "new certificates for the links between nodes");
                (self.tls, self.config) = (tls, Arc::new(config));
            }
            Err(error) => {
                tracing::error!(%error, "the old certificates for the links between nodes stay in use");
            }
        }
    }
}

/// Accepts connections and does their handshakes, one beside another, each within `timeout`, until nobody takes them any more.
///
/// # Errors
/// The files cannot be used.
pub(super) fn incoming(
    listener: TcpListener,
    tls: &PeerTls,
    timeout: Duration,
) -> Result<ReceiverStream<io::Result<TlsStream<TcpStream>>>, String> {
    let config = Arc::new(server_config(tls)?);
    let current = Arc::new(Mutex::new(Current { tls: tls.clone(), config }));
    let (done, taken) = mpsc::channel(DONE_WAITING);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = done.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections of other nodes");
                    // Nothing tells when descriptors are free again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (current, done) = (current.clone(), done.clone());
            tokio::spawn(async move {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "socket options of a link not set");
                }
                // Files may be on a disk that is slow.
                let config = tokio::task::spawn_blocking(move || {
                    let mut current = current.lock();
                    current.look();
                    current.config.clone()
                });
                let Ok(config) = config.await else { return };
                match tokio::time::timeout(timeout, TlsAcceptor::from(config).accept(stream)).await {
                    // Nobody is left to take it if the node stops.
                    Ok(Ok(stream)) => drop(done.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake of another node failed"),
                    Err(_) => tracing::debug!("the TLS handshake of another node took too long"),
                }
            });
        }
    });
    Ok(ReceiverStream::new(taken))
}
