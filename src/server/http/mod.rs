//! Admin HTTP. Without tokens, `/cluster/status` and `/metrics` are for everybody who reaches the port, and `/api/v1/` is for programs on this
//! machine. With tokens, all of them ask for one (`/metrics` unless it is open), from wherever. `/health` and `/ready` never do.

mod access;
mod acl;
mod api;
mod audit;
mod bans;
mod bounded;
mod reload;
mod routes;
mod status;
mod tokens;
mod upkeep;
mod users;
mod wire;

pub use access::Access;
pub use acl::{AclChange, AclEdited, AclOperator, AclPage, ShownRule};
pub use api::{Answer, ApiError, Draining, Forgotten};
pub use audit::{Audit, AuditError};
pub use bans::{BanList, BanOperator, BanOrder, Banned, ShownBan, UnbanOrder};
pub use bounded::{HTTP_CONNECTIONS_MAX, HTTP_HANDSHAKE_MAX, HTTP_IDLE_MAX};
pub use reload::{LogLevel, ReloadOperator, Reloaded};
pub use status::{
    ClockStatus, ClusterStatus, CustodyStatus, EtcdStatus, HeldStatus, JournalStatus, LinkInfo, MemberStatus,
    NodeStatus, Status, UnreachedBy,
};
pub use tokens::{PreparedTokens, Tokens};
pub use upkeep::{
    ListenerList, Publication, Published, ShownConfig, ShownListener, ShownOption, UpkeepOperator,
};
pub use users::{NamedUser, ShownUser, UserChanged, UserOperator, UserOrder, UserPage};

use crate::node::inspect::{RetainedPage, Routes, SessionPage, SessionQuery};
use crate::node::operate::{Kicked, Located};
use crate::telemetry::Metrics;
use crate::tls::Keeper;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use bounded::Bounded;
use serde_json::json;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long open requests may take to finish when the server stops.
const STOP_MAX: Duration = Duration::from_secs(1);

/// What the server shows and passes on; implemented by the composition root.
pub trait Operator: AclOperator + BanOperator + ReloadOperator + UserOperator + UpkeepOperator {
    /// Whether the node serves clients.
    ///
    /// # Errors
    /// Why it does not: starting, draining, the journal failing.
    fn ready(&self) -> Result<(), String>;

    /// The node's state now.
    fn status(&self) -> Status;

    /// Sets the metrics that are read rather than counted; called before each scrape.
    fn collect(&self, metrics: &Metrics);

    /// Sessions of this node, or with `everywhere` of all nodes.
    fn list_sessions(&self, query: SessionQuery, everywhere: bool) -> Answer<SessionPage>;

    /// Where a session lives, and how it is.
    fn find_session(&self, client_id: &str) -> Answer<Located>;

    /// Closes the connection of a client, on whichever node it is.
    fn kick(&self, client_id: &str) -> Answer<Kicked>;

    /// Where a publish to `topic` would go.
    ///
    /// # Errors
    /// If it is no topic name.
    fn routes(&self, topic: &str) -> Result<Routes, ApiError>;

    /// Retained messages.
    ///
    /// # Errors
    /// If `filter` is no topic filter.
    fn retained(&self, filter: &str, limit: usize) -> Result<RetainedPage, ApiError>;

    /// Begins what SIGTERM begins: sessions go to other nodes, clients are told, the process ends.
    ///
    /// # Errors
    /// If the node has not started yet.
    fn drain(&self) -> Result<Draining, ApiError>;

    /// Gives up what a node that will not come back had.
    fn forget(&self, node: &str) -> Answer<Forgotten>;
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
    keeper: Option<Arc<Keeper>>,
    idle_max: Duration,
}

/// What all requests share.
pub struct Shared {
    /// What is shown and told.
    pub source: Arc<dyn Operator>,
    /// What is scraped.
    pub metrics: Arc<Metrics>,
    /// Who may ask.
    pub access: Access,
    /// Where orders are written down.
    pub audit: Audit,
}

impl HttpServer {
    /// Binds `address`; with a keeper of certificates, TLS is spoken there.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr, keeper: Option<Arc<Keeper>>) -> Result<HttpServer, BindError> {
        let refused = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(HttpServer { listener, address, keeper, idle_max: HTTP_IDLE_MAX })
    }

    /// The address, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` completes; then lets open requests finish, for a second at most.
    pub async fn run(self, shared: Shared, stop: impl Future<Output = ()> + Send + 'static) {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let signal = async move {
            stop.await;
            let _ = stopping.send(());
        };
        let shared = Arc::new(shared);
        let service = router(shared.clone()).into_make_service_with_connect_info::<access::Peer>();
        let connections = Bounded::new(self.listener, self.keeper, self.idle_max);
        let serve = axum::serve(connections, service).with_graceful_shutdown(signal);
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
            () = shared.access.watch() => {}
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let status = get(async |State(shared): State<Arc<Shared>>| Json(shared.source.status()))
        .route_layer(from_fn_with_state(shared.clone(), access::may_look));
    let metrics = get(scrape).route_layer(from_fn_with_state(shared.clone(), access::may_scrape));
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route("/ready", get(ready))
        .route("/cluster/status", status)
        .route("/metrics", metrics)
        .nest(routes::BASE, routes::router(api::routes(), &shared).fallback(not_found))
        .fallback(not_found)
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": "method not allowed" })))
        })
        .layer(axum::middleware::from_fn(access::counted))
        .with_state(shared)
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
        "paths": ["/health", "/ready", "/cluster/status", "/metrics", "/api/v1/"],
    });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

#[cfg(test)]
mod tests;
