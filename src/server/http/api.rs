//! `/api/v1/`: what an operator asks, and what an operator orders. Orders go on when whoever gave them is gone, and each is written down.

use super::Shared;
use super::audit::{Caller, Order};
use crate::broker::inspect::{LISTED_MAX, SessionQuery};
use crate::broker::ports::BoxFuture;
use axum::Router;
use axum::extract::{
    DefaultBodyLimit, Extension, FromRequest, FromRequestParts, Path, Query, Request, State,
};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

/// Entries of a list unless told otherwise.
const LISTED: usize = 100;

/// Bytes of a question in the body of a request: two names of 65,535 bytes fit, however they are escaped.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// A question that is not answered, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it is about does not exist.
    #[error("{0}")]
    Unknown(String),
    /// It is not possible as things are.
    #[error("{0}")]
    Conflict(String),
    /// It may be possible later.
    #[error("{0}")]
    Unavailable(String),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            ApiError::Invalid(_) => StatusCode::BAD_REQUEST,
            ApiError::Unknown(_) => StatusCode::NOT_FOUND,
            ApiError::Conflict(_) => StatusCode::CONFLICT,
            ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// The answer to a question of the API.
pub type Answer<T> = BoxFuture<Result<T, ApiError>>;

/// What `POST node/drain` began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Draining {
    /// The node.
    pub node: String,
    /// It was told so before.
    pub already: bool,
    /// Sessions that it has now.
    pub sessions: u64,
}

/// What `POST cluster/forget` gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// The node.
    pub node: String,
    /// Its incarnations, `node@incarnation`.
    pub incarnations: Vec<String>,
    /// Number of sessions.
    pub sessions: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListSessions {
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    after: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    cluster: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfTopic {
    topic: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListRetained {
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfClient {
    client: String,
}

/// What is asked: in the query of a GET, or as JSON in the body of a POST, where names may be of any length.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Asked<T>, ApiError> {
        if request.method() == Method::POST {
            let body = Json::from_request(request, state).await;
            return body.map(|Json(asked)| Asked(asked)).map_err(|e| ApiError::Invalid(e.body_text()));
        }
        let (mut parts, _) = request.into_parts();
        let query = Query::from_request_parts(&mut parts, state).await;
        query.map(|Query(asked)| Asked(asked)).map_err(|e| ApiError::Invalid(e.body_text()))
    }
}

/// The routes below `/api/v1` that only ask.
pub(super) fn asks() -> Router<Arc<Shared>> {
    Router::new()
        .route("/sessions", get(list_sessions))
        .route("/sessions/{client}", get(show_session))
        .route("/routes", get(show_routes))
        .route("/retained", get(list_retained))
        .route("/ask/sessions", post(list_sessions))
        .route("/ask/session", post(show_named))
        .route("/ask/routes", post(show_routes))
        .route("/ask/retained", post(list_retained))
        .merge(super::acl::asks())
        .merge(super::bans::asks())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// The routes below `/api/v1` that change something.
pub(super) fn orders() -> Router<Arc<Shared>> {
    Router::new()
        .route("/sessions/{client}", delete(kick))
        .route("/kick", post(kick_named))
        .route("/node/drain", post(drain))
        .route("/cluster/forget/{node}", post(forget))
        .merge(super::acl::orders())
        .merge(super::bans::orders())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

async fn list_sessions(
    State(shared): State<Arc<Shared>>,
    Asked(ListSessions { limit, after, prefix, cluster }): Asked<ListSessions>,
) -> Response {
    match bounded(limit) {
        Ok(limit) => {
            answer(shared.source.list_sessions(SessionQuery { limit, after, prefix }, cluster)).await
        }
        Err(error) => error.into_response(),
    }
}

async fn show_session(State(shared): State<Arc<Shared>>, Path(client): Path<String>) -> Response {
    answer(shared.source.find_session(&client)).await
}

async fn show_named(
    State(shared): State<Arc<Shared>>,
    Asked(OfClient { client }): Asked<OfClient>,
) -> Response {
    answer(shared.source.find_session(&client)).await
}

async fn kick(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(client): Path<String>,
) -> Response {
    let kicked = shared.source.kick(&client);
    carry_out(shared, caller, Order { action: "session kick", subject: client }, StatusCode::OK, kicked).await
}

async fn kick_named(
    state: State<Arc<Shared>>,
    caller: Extension<Caller>,
    Asked(OfClient { client }): Asked<OfClient>,
) -> Response {
    kick(state, caller, Path(client)).await
}

async fn show_routes(
    State(shared): State<Arc<Shared>>,
    Asked(OfTopic { topic }): Asked<OfTopic>,
) -> Response {
    done(shared.source.routes(&topic))
}

async fn list_retained(
    State(shared): State<Arc<Shared>>,
    Asked(ListRetained { filter, limit }): Asked<ListRetained>,
) -> Response {
    let limit = bounded(limit);
    done(limit.and_then(|limit| shared.source.retained(filter.as_deref().unwrap_or("#"), limit)))
}

async fn drain(State(shared): State<Arc<Shared>>, Extension(caller): Extension<Caller>) -> Response {
    let draining = shared.source.drain();
    let order = Order { action: "node drain", subject: String::new() };
    carry_out(shared, caller, order, StatusCode::ACCEPTED, std::future::ready(draining)).await
}

async fn forget(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
) -> Response {
    let forgotten = shared.source.forget(&node);
    carry_out(shared, caller, Order { action: "cluster forget", subject: node }, StatusCode::OK, forgotten)
        .await
}

/// Carries an order out and writes it down; the answer has the status `done` if that went well.
pub(super) async fn carry_out<T: Serialize>(
    shared: Arc<Shared>,
    caller: Caller,
    order: Order,
    done: StatusCode,
    outcome: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Response {
    // A task of its own: whoever asked may be gone before it is done, and half of it helps nobody.
    let task = tokio::spawn(async move {
        let response = match outcome.await {
            Ok(found) => (done, Json(found)).into_response(),
            Err(error) => error.into_response(),
        };
        shared.audit.note(&caller, &order, response.status()).await;
        response
    });
    task.await.unwrap_or_else(|error| ApiError::Unavailable(error.to_string()).into_response())
}

fn bounded(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(LISTED) {
        limit @ 1..=LISTED_MAX => Ok(limit),
        limit => Err(ApiError::Invalid(format!("limit={limit}: it must be from 1 to {LISTED_MAX}"))),
    }
}

pub(super) async fn answer<T: Serialize>(asked: Answer<T>) -> Response {
    done(asked.await)
}

pub(super) fn done<T: Serialize>(outcome: Result<T, ApiError>) -> Response {
    match outcome {
        Ok(found) => Json(found).into_response(),
        Err(error) => error.into_response(),
    }
}
