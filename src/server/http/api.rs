//! `/api/v1/`: what an operator asks, and what an operator orders. Orders go on when whoever gave them is gone, and each is written down.

use super::Shared;
use super::audit::{Caller, Order};
use super::routes::Route;
use crate::node::inspect::{LISTED_MAX, RetainedPage, Routes, SessionPage, SessionQuery};
use crate::node::operate::{Kicked, Located};
use crate::ports::BoxFuture;
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use schemars::JsonSchema;
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Draining {
    /// The node.
    pub node: String,
    /// It was told so before.
    pub already: bool,
    /// Sessions that it has now.
    pub sessions: u64,
}

/// What `POST cluster/forget` gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Forgotten {
    /// The node.
    pub node: String,
    /// Its incarnations, `node@incarnation`.
    pub incarnations: Vec<String>,
    /// Number of sessions.
    pub sessions: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListSessions {
    /// How many; 100 unless told otherwise.
    #[serde(default)]
    #[schemars(with = "usize", range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// Those after this client ID.
    #[serde(default)]
    after: String,
    /// Those whose client ID begins so.
    #[serde(default)]
    prefix: String,
    /// Those of all nodes.
    #[serde(default)]
    cluster: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfTopic {
    /// The topic name.
    topic: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListRetained {
    /// Those whose topic matches this filter; `#` unless told otherwise.
    #[serde(default)]
    #[schemars(with = "String")]
    filter: Option<String>,
    /// How many; 100 unless told otherwise.
    #[serde(default)]
    #[schemars(with = "usize", range(min = 1, max = 1000))]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfClient {
    /// The client ID.
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

/// A name in the path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Named(name)).map_err(|e| ApiError::Invalid(e.body_text()))
    }
}

/// The routes below `/api/v1`.
pub(super) fn routes() -> Vec<Route> {
    let sessions = [
        Route::get::<SessionPage, _, _>(
            ("/sessions", "session_list", "Lists sessions by client ID."),
            list_sessions,
        )
        .query::<ListSessions>(),
        Route::get::<Located, _, _>(
            ("/sessions/{client}", "session_show", "Says where a session lives, and how it is."),
            show_session,
        )
        .refuses(&[404]),
        Route::delete::<Kicked, _, _>(
            (
                "/sessions/{client}",
                "session_kick",
                "Closes a client's connection, wherever it is; its session stays.",
            ),
            kick,
        )
        .refuses(&[404]),
        Route::order::<Kicked, _, _>(
            ("/kick", "session_kick_named", "The same, for a client ID that is too long for a path."),
            kick_named,
        )
        .body::<OfClient>()
        .refuses(&[404]),
        Route::ask::<SessionPage, _, _>(
            (
                "/ask/sessions",
                "session_list_named",
                "Lists sessions, for names that are too long for a query.",
            ),
            list_sessions,
        )
        .body::<ListSessions>(),
        Route::ask::<Located, _, _>(
            (
                "/ask/session",
                "session_show_named",
                "Says where a session lives, for a name that is too long for a path.",
            ),
            show_named,
        )
        .body::<OfClient>()
        .refuses(&[404]),
    ];
    let messages = [
        Route::get::<Routes, _, _>(
            ("/routes", "route_show", "Says which sessions and nodes a publish to a topic goes to."),
            show_routes,
        )
        .query::<OfTopic>(),
        Route::ask::<Routes, _, _>(
            ("/ask/routes", "route_show_named", "The same, for a topic that is too long for a query."),
            show_routes,
        )
        .body::<OfTopic>(),
        Route::get::<RetainedPage, _, _>(
            ("/retained", "retained_list", "Lists retained messages by topic."),
            list_retained,
        )
        .query::<ListRetained>(),
        Route::ask::<RetainedPage, _, _>(
            ("/ask/retained", "retained_list_named", "The same, for a filter that is too long for a query."),
            list_retained,
        )
        .body::<ListRetained>(),
    ];
    let nodes = [
        Route::order::<Draining, _, _>(
            (
                "/node/drain",
                "node_drain",
                "Hands the node's sessions to others and ends its process, as SIGTERM does.",
            ),
            drain,
        )
        .done(StatusCode::ACCEPTED),
        Route::order::<Forgotten, _, _>(
            ("/cluster/forget/{node}", "cluster_forget", "Gives up what a node had that will not come back."),
            forget,
        )
        .refuses(&[404, 409]),
    ];
    let parts = [
        super::acl::routes(),
        super::bans::routes(),
        super::users::routes(),
        super::upkeep::routes(),
        super::reload::routes(),
    ];
    sessions.into_iter().chain(messages).chain(nodes).chain(parts.into_iter().flatten()).collect()
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

async fn show_session(State(shared): State<Arc<Shared>>, Named(client): Named) -> Response {
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
    Named(client): Named,
) -> Response {
    let kicked = shared.source.kick(&client);
    carry_out(shared, caller, Order { action: "session kick", subject: client }, StatusCode::OK, kicked).await
}

async fn kick_named(
    state: State<Arc<Shared>>,
    caller: Extension<Caller>,
    Asked(OfClient { client }): Asked<OfClient>,
) -> Response {
    kick(state, caller, Named(client)).await
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
    Named(node): Named,
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
