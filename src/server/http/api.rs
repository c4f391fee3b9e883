//! `/api/v1/`: what an operator asks and commands. Only for programs on this machine: there is no authentication.

use super::Shared;
use crate::broker::inspect::{LISTED_MAX, SessionQuery};
use crate::broker::ports::BoxFuture;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

/// Entries of a list unless told otherwise.
const LISTED: usize = 100;

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

type Asked<T> = Result<Query<T>, QueryRejection>;

/// The routes below `/api/v1`.
pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/sessions", get(list_sessions))
        .route("/sessions/{client}", get(show_session).delete(kick))
        .route("/routes", get(show_routes))
        .route("/retained", get(list_retained))
        .route("/node/drain", post(drain))
        .route("/cluster/forget/{node}", post(forget))
}

async fn list_sessions(State(shared): State<Arc<Shared>>, asked: Asked<ListSessions>) -> Response {
    let ListSessions { limit, after, prefix, cluster } = match query(asked) {
        Ok(query) => query,
        Err(error) => return error.into_response(),
    };
    let limit = match bounded(limit) {
        Ok(limit) => limit,
        Err(error) => return error.into_response(),
    };
    answer(shared.source.list_sessions(SessionQuery { limit, after, prefix }, cluster)).await
}

async fn show_session(State(shared): State<Arc<Shared>>, Path(client): Path<String>) -> Response {
    answer(shared.source.find_session(&client)).await
}

async fn kick(State(shared): State<Arc<Shared>>, Path(client): Path<String>) -> Response {
    answer(shared.source.kick(&client)).await
}

async fn show_routes(State(shared): State<Arc<Shared>>, asked: Asked<OfTopic>) -> Response {
    match query(asked) {
        Ok(OfTopic { topic }) => done(shared.source.routes(&topic)),
        Err(error) => error.into_response(),
    }
}

async fn list_retained(State(shared): State<Arc<Shared>>, asked: Asked<ListRetained>) -> Response {
    let outcome = query(asked).and_then(|ListRetained { filter, limit }| {
        shared.source.retained(filter.as_deref().unwrap_or("#"), bounded(limit)?)
    });
    done(outcome)
}

async fn drain(State(shared): State<Arc<Shared>>) -> Response {
    match shared.source.drain() {
        Ok(draining) => (StatusCode::ACCEPTED, Json(draining)).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn forget(State(shared): State<Arc<Shared>>, Path(node): Path<String>) -> Response {
    // A task of its own: whoever asked may be gone before it is done, and half of it helps nobody.
    match tokio::spawn(shared.source.forget(&node)).await {
        Ok(outcome) => done(outcome),
        Err(error) => ApiError::Unavailable(error.to_string()).into_response(),
    }
}

fn query<T>(asked: Asked<T>) -> Result<T, ApiError> {
    asked.map(|Query(query)| query).map_err(|e| ApiError::Invalid(e.body_text()))
}

fn bounded(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(LISTED) {
        limit @ 1..=LISTED_MAX => Ok(limit),
        limit => Err(ApiError::Invalid(format!("limit={limit}: it must be from 1 to {LISTED_MAX}"))),
    }
}

async fn answer<T: Serialize>(asked: Answer<T>) -> Response {
    done(asked.await)
}

fn done<T: Serialize>(outcome: Result<T, ApiError>) -> Response {
    match outcome {
        Ok(found) => Json(found).into_response(),
        Err(error) => error.into_response(),
    }
}
