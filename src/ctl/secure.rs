//! TLS to a broker's admin HTTP: whom to trust, and what to show.

use crate::clock;
use crate::secret_file::{Privacy, WatchedFile};
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How to speak TLS with a broker
#[derive(Debug, Args, Default)]
pub(super) struct TlsArgs {
    /// With https://, PEM file of the authority that signed the broker's certificate, or of that certificate itself; without it the
    /// system's authorities count
    #[arg(long, global = true, env = "BERTH_CA_FILE", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With https://, the name that the broker's certificate must have, where that is another than in --url
    #[arg(long, global = true, env = "BERTH_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// With https://, PEM file of a certificate to show, for brokers with http.client_certificates
    #[arg(long, global = true, env = "BERTH_CERT_FILE", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, global = true, env = "BERTH_KEY_FILE", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// What a connection to one broker needs.
#[derive(Clone, Debug)]
pub(super) struct Secure {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Secure {
    /// For the broker at `host`, a name or an address without a port.
    ///
    /// # Errors
    /// Says which file cannot be used, and why.
    pub(super) fn new(args: &TlsArgs, host: &str) -> Result<Secure, String> {
        let host = args.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| format!("{host:?} is no name that a certificate could have: see --server-name"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(args.ca.as_deref(), provider)?));
        let config = match (&args.cert, &args.key) {
            (Some(cert), Some(key)) => {
                let bytes =
                    WatchedFile::new("--key", key, Privacy::Secret).read().map_err(|e| e.to_string())?;
                let key = PrivateKeyDer::from_pem_slice(&bytes)
                    .map_err(|_| format!("--key {}: there is no private key in it", key.display()))?;
                builder
                    .with_client_auth_cert(certificates("--cert", cert)?, key)
                    .map_err(|e| format!("--cert {}: {e}", cert.display()))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Secure { config: Arc::new(config), name })
    }

    /// TLS over a connection to the broker; the handshake comes with the first byte.
    pub(super) fn over(&self, stream: TcpStream) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let connection =
            ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

/// Whether a connection failed because the broker's certificate is not trusted.
pub(super) fn is_distrust(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |what: String| format!("{option} {}: {what}", path.display());
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(failed("there is no certificate in it".to_owned())),
        found => found.map_err(|e| failed(format!("it is not PEM: {e}"))),
    }
}

/// Trusts what authorities vouch for, and the certificates that were handed in as they are.
#[derive(Debug)]
struct Verifier {
    by_authority: Option<Arc<WebPkiServerVerifier>>,
    themselves: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(ca: Option<&Path>, provider: Arc<CryptoProvider>) -> Result<Verifier, String> {
        let themselves = ca.map(|path| certificates("--ca", path)).transpose()?.unwrap_or_default();
        let mut roots = RootCertStore::empty();
        match ca {
            // One that is no authority's may still be the broker's own.
            Some(_) => drop(roots.add_parsable_certificates(themselves.iter().cloned())),
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let by_authority = match roots.is_empty() {
            true => None,
            false => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|e| e.to_string())?,
            ),
        };
        Ok(Verifier { by_authority, themselves, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.themselves.iter().any(|own| own == end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            let (_, parsed) =
                X509Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
            let now = i64::try_from(clock::now().as_millis() / 1000).unwrap_or(i64::MAX);
            return match parsed.validity() {
                v if v.not_after.timestamp() < now => Err(CertificateError::Expired.into()),
                v if v.not_before.timestamp() > now => Err(CertificateError::NotValidYet.into()),
                _ => Ok(ServerCertVerified::assertion()),
            };
        }
        match &self.by_authority {
            Some(verifier) => {
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
