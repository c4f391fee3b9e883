//! `/api/v1/reload` and `/api/v1/log/level`: the configuration read again, and what is logged.

use super::Shared;
use super::api::{Answer, ApiError, Asked, carry_out};
use super::audit::{Caller, Order};
use super::routes::Route;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What came of reading the configuration again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reloaded {
    /// Options that say something else than before, and count already.
    pub changed: Vec<String>,
    /// What was read from files besides, in words.
    pub read: Vec<String>,
    /// Options that say something else than at the start, and count after a restart only.
    pub restart: Vec<String>,
    /// Further remarks, in words: why options wait, or that there is no configuration file.
    pub notes: Vec<String>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LogLevel {
    /// From now on, until the configuration is read again.
    pub level: String,
    /// Until now.
    pub before: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewLevel {
    /// A level such as `debug`, or directives such as `info,berth::server=debug`.
    level: String,
}

/// What an operator orders about the configuration; implemented by the composition root.
pub trait ReloadOperator: Send + Sync + 'static {
    /// Reads the configuration and all files again, and puts them in force if nothing is wrong with any.
    fn reload(&self) -> Answer<Reloaded>;

    /// Logs this from now on.
    ///
    /// # Errors
    /// If it is no level, or the node has not started yet.
    fn log_level(&self, level: &str) -> Result<LogLevel, ApiError>;
}

/// The routes below `/api/v1` about the configuration that holds.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::order::<Reloaded, _, _>(
            (
                "/reload",
                "config_reload",
                "Reads the configuration and its files again, and puts them in force if nothing is wrong with any.",
            ),
            reload,
        )
        .refuses(&[400]),
        Route::order::<LogLevel, _, _>(
            ("/log/level", "log_level", "Changes what is logged, until the configuration is read again."),
            log_level,
        )
        .body::<NewLevel>(),
    ]
}

async fn reload(State(shared): State<Arc<Shared>>, Extension(caller): Extension<Caller>) -> Response {
    let order = Order { action: "config reload", subject: String::new() };
    let reloaded = shared.source.reload();
    carry_out(shared, caller, order, StatusCode::OK, reloaded).await
}

async fn log_level(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(NewLevel { level }): Asked<NewLevel>,
) -> Response {
    let changed = shared.source.log_level(&level);
    let order = Order { action: "log level", subject: level };
    carry_out(shared, caller, order, StatusCode::OK, std::future::ready(changed)).await
}
