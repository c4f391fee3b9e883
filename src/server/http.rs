//! Admin HTTP: `/health`, `/ready`, `/cluster/status` and `/metrics`. Reads only, changes nothing, has no
//! authentication; by default it listens on loopback.

use crate::telemetry::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections at a time; further ones wait in the kernel.
pub const HTTP_CONNECTIONS_MAX: usize = 64;

/// A connection that neither reads nor writes for so long is closed.
pub const HTTP_IDLE_MAX: Duration = Duration::from_secs(60);

/// How long open requests may take to finish when the server stops.
const STOP_MAX: Duration = Duration::from_secs(1);

/// What the server shows; implemented by the composition root.
pub trait StatusSource: Send + Sync + 'static {
    /// Whether the node serves clients.
    ///
    /// # Errors
    ///
    /// Why it does not: starting, draining, the journal failing.
    fn ready(&self) -> Result<(), String>;

    /// The node's state now.
    fn status(&self) -> Status;

    /// Sets the metrics that are read rather than counted; called before each scrape.
    fn collect(&self, metrics: &Metrics);
}

/// `/cluster/status`: the cluster as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// `standalone`: this node is alone.
    pub mode: &'static str,
    /// The node that answers.
    pub node: NodeStatus,
}

/// One node's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// `node.id`.
    pub id: String,
    /// Version of the broker.
    pub version: &'static str,
    /// Whether `/ready` says 200.
    pub ready: bool,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Network connections.
    pub connections: u64,
    /// Sessions, dormant ones included.
    pub sessions: u64,
    /// Sessions nobody is connected to.
    pub sessions_dormant: u64,
    /// Subscriptions of all sessions.
    pub subscriptions: u64,
    /// Retained messages.
    pub retained_messages: u64,
    /// QoS 1 and 2 messages that wait for a receiver.
    pub queued_messages: u64,
    /// The journal.
    pub journal: JournalStatus,
}

/// The journal's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JournalStatus {
    /// `storage.type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it makes changes durable.
    pub healthy: bool,
    /// What is wrong, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes on disk; 0 in memory.
    pub size_bytes: u64,
}

/// The HTTP endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (http.address): {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// The admin HTTP server, bound but not yet serving.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

struct Shared {
    source: Arc<dyn StatusSource>,
    metrics: Arc<Metrics>,
}

impl HttpServer {
    /// Binds `address`.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<HttpServer, BindError> {
        let refused = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(HttpServer { listener, address })
    }

    /// The address, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` completes; then lets open requests finish, for a second at most.
    pub async fn run(
        self,
        source: Arc<dyn StatusSource>,
        metrics: Arc<Metrics>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let listener = Bounded {
            inner: self.listener,
            permits: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)),
            idle_max: HTTP_IDLE_MAX,
        };
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let signal = async move {
            stop.await;
            let _ = stopping.send(());
        };
        let serve = axum::serve(listener, router(source, metrics)).with_graceful_shutdown(signal);
        let overdue = async move {
            let _ = stopped.await;
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::select! {
            result = serve.into_future() => {
                if let Err(error) = result {
                    tracing::error!(%error, "admin HTTP ended");
                }
            }
            () = overdue => {}
        }
    }
}

fn router(source: Arc<dyn StatusSource>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route("/ready", get(ready))
        .route("/cluster/status", get(async |State(shared): State<Arc<Shared>>| Json(shared.source.status())))
        .route("/metrics", get(scrape))
        .fallback(not_found)
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": "method not allowed" })))
        })
        .with_state(Arc::new(Shared { source, metrics }))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.source.ready() {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(reason) => {
            let body = Json(json!({ "status": "not ready", "reason": reason }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    shared.source.collect(&shared.metrics);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.metrics.render())
        .into_response()
}

async fn not_found(uri: Uri) -> Response {
    let body = json!({
        "error": "not found",
        "path": uri.path(),
        "paths": ["/health", "/ready", "/cluster/status", "/metrics"],
    });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// A listener whose connections are few and never idle for long.
struct Bounded {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    idle_max: Duration,
}

impl axum::serve::Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        // The semaphore is never closed; without a permit the connection would only be uncounted.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.inner).await;
        let idle = Box::pin(tokio::time::sleep(self.idle_max));
        (BoundedStream { stream, idle, idle_max: self.idle_max, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A stream that fails once nothing has moved for `idle_max`.
struct BoundedStream {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl BoundedStream {
    /// `polled` unless it waits for longer than allowed; restarts the clock when something moved.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.idle.set(tokio::time::sleep(self.idle_max));
            return polled;
        }
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch(cx, polled)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    #[derive(Default)]
    struct Fake(AtomicBool);

    impl StatusSource for Fake {
        fn ready(&self) -> Result<(), String> {
            if self.0.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("the journal is failing: disk full".to_owned())
            }
        }

        fn status(&self) -> Status {
            Status {
                mode: "standalone",
                node: NodeStatus {
                    id: "n1".to_owned(),
                    version: "1.2.3",
                    ready: self.ready().is_ok(),
                    uptime_seconds: 5,
                    connections: 1,
                    sessions: 2,
                    sessions_dormant: 1,
                    subscriptions: 3,
                    retained_messages: 4,
                    queued_messages: 6,
                    journal: JournalStatus { kind: "redb", healthy: true, error: None, size_bytes: 7 },
                },
            }
        }

        fn collect(&self, metrics: &Metrics) {
            metrics.retained_messages.set(4);
        }
    }

    struct Running {
        address: SocketAddr,
        source: Arc<Fake>,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Running {
        let server = HttpServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let source = Arc::new(Fake::default());
        let run = server.run(Arc::clone(&source) as _, Arc::new(Metrics::new()), async move {
            let _ = stopped.await;
        });
        Running { address, source, stop, task: tokio::spawn(run) }
    }

    async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn json(body: &str) -> serde_json::Value {
        serde_json::from_str(body).unwrap()
    }

    #[tokio::test]
    async fn pages() {
        let running = start().await;
        let (code, body) = ask(running.address, "GET /health").await;
        assert_eq!((code, &json(&body)["status"]), (200, &"ok".into()));

        let (code, body) = ask(running.address, "GET /ready").await;
        assert_eq!((code, &json(&body)["reason"]), (503, &"the journal is failing: disk full".into()));
        running.source.0.store(true, Ordering::Relaxed);
        assert_eq!(ask(running.address, "GET /ready").await.0, 200);

        let (code, body) = ask(running.address, "GET /cluster/status").await;
        let status = json(&body);
        assert_eq!((code, &status["mode"], &status["node"]["id"]), (200, &"standalone".into(), &"n1".into()));
        assert_eq!(
            status["node"]["journal"],
            serde_json::json!({"type": "redb", "healthy": true, "size_bytes": 7})
        );

        let (code, body) = ask(running.address, "GET /metrics").await;
        assert_eq!(code, 200);
        assert!(body.contains("\nberth_retained_messages 4\n"), "{body}");

        let (code, body) = ask(running.address, "GET /api").await;
        assert_eq!((code, &json(&body)["path"]), (404, &"/api".into()));
        let (code, body) = ask(running.address, "POST /health").await;
        assert_eq!((code, &json(&body)["error"]), (405, &"method not allowed".into()));
    }

    #[tokio::test]
    async fn stops_even_if_a_client_lingers() {
        let running = start().await;
        let mut lingering = TcpStream::connect(running.address).await.unwrap();
        lingering.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
        assert_eq!(ask(running.address, "GET /health").await.0, 200);
        running.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), running.task).await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let running = start().await;
        let error = HttpServer::bind(running.address).await.unwrap_err().to_string();
        let start = format!("cannot listen on {} (http.address): ", running.address);
        assert!(error.starts_with(&start), "{error}");
    }

    #[tokio::test]
    async fn idle_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded {
            inner: listener,
            permits: Arc::new(Semaphore::new(1)),
            idle_max: Duration::from_millis(1),
        };
        let address = axum::serve::Listener::local_addr(&bounded).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (mut stream, _) = axum::serve::Listener::accept(&mut bounded).await;
        assert_eq!(bounded.permits.available_permits(), 0);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(stream);
        assert_eq!(bounded.permits.available_permits(), 1);
    }
}
