//! Connections to the hook, kept open between questions.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// Bytes of an answer of the hook, at most.
pub const HOOK_ANSWER_MAX: usize = 64 * 1024;

/// Connections that are kept open without a question, at most.
pub const HOOK_IDLE_MAX: usize = 64;

/// Why the hook can never be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its URL is none.
    #[error("auth.http.url is no URL of scheme http or https")]
    Url,
    /// Nobody vouches for it.
    #[error("no authority can vouch for the HTTP hook: {0}")]
    Authorities(String),
}

type Sender = SendRequest<Full<Bytes>>;

/// Connections to the hook, kept open between questions.
pub struct Connections {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<Sender>>,
}

impl Connections {
    /// To the hook at this URL. `ca` = the authority in PEM; else those that the system trusts.
    ///
    /// # Errors
    /// If it can never be reached.
    pub fn new(url: &str, ca: Option<&[u8]>) -> Result<Connections, ConnectError> {
        let uri: Uri = url.parse().map_err(|_| ConnectError::Url)?;
        let host = uri.host().ok_or(ConnectError::Url)?.trim_matches(['[', ']']).to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Url)?;
                (Some((connector(ca)?, name)), 443)
            }
            Some("http") => (None, 80),
            _ => return Err(ConnectError::Url),
        };
        let port = uri.port_u16().unwrap_or(port);
        Ok(Connections { uri, host, port, tls, idle: Mutex::default() })
    }

    /// Asks: status and body of the answer.
    ///
    /// # Errors
    /// Says what went wrong, without what was asked.
    pub async fn post(&self, body: Bytes, token: Option<&str>) -> Result<(u16, Bytes), String> {
        // One that was kept may have been closed by the hook just now: asked once more, over a new one.
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_ok()
                && let Ok(response) = sender.send_request(self.request(body.clone(), token)?).await
            {
                return self.answer(sender, response).await;
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(self.request(body, token)?).await.map_err(|e| e.to_string())?;
        self.answer(sender, response).await
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    fn request(&self, body: Bytes, token: Option<&str>) -> Result<Request<Full<Bytes>>, String> {
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request =
            Request::post(path).header(HOST, authority).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(body)).map_err(|_| "the request cannot be made".to_owned())
    }

    async fn answer(&self, sender: Sender, response: Response<Incoming>) -> Result<(u16, Bytes), String> {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), HOOK_ANSWER_MAX).collect().await;
        let body = body.map_err(|e| format!("its answer cannot be read: {e}"))?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < HOOK_IDLE_MAX {
            idle.push(sender);
        }
        Ok((status, body))
    }

    async fn connect(&self) -> Result<Sender, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
        let _ = tcp.set_nodelay(true);
        match &self.tls {
            None => handshake(tcp).await,
            Some((connector, name)) => {
                handshake(connector.connect(name.clone(), tcp).await.map_err(|e| e.to_string())?).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the HTTP hook ended");
        }
    });
    Ok(sender)
}

fn connector(ca: Option<&[u8]>) -> Result<TlsConnector, ConnectError> {
    let mut roots = RootCertStore::empty();
    let mut add = |certificate: CertificateDer<'static>| roots.add(certificate).map_err(|e| e.to_string());
    let failed = ConnectError::Authorities;
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                add(certificate.map_err(|e| failed(e.to_string()))?).map_err(failed)?;
            }
        }
        None => {
            for certificate in rustls_native_certs::load_native_certs().certs {
                // One that is strange is no reason to trust none.
                let _ = add(certificate);
            }
        }
    }
    if roots.is_empty() {
        return Err(failed("there is none; set auth.http.ca_file".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
