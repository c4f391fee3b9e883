//! `/api/v1/bans`: clients that may not connect.

use super::Shared;
use super::api::{Answer, ApiError, Asked, carry_out, done};
use super::audit::{Caller, Order};
use super::routes::Route;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A ban as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownBan {
    /// `client`, `user` or `address`.
    pub kind: &'static str,
    /// The name, or the network.
    pub name: String,
    /// Why, in an operator's words.
    pub reason: String,
    /// Since when, milliseconds since the epoch.
    pub since: u64,
    /// How long it still holds, seconds; missing = until it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// The bans that hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BanList {
    /// The bans, by kind and name.
    pub bans: Vec<ShownBan>,
}

/// Whom to ban.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BanOrder {
    /// `client`, `user` or `address`.
    pub kind: String,
    /// The name, an address or a network.
    pub name: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// For how long; missing = until it is removed.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// Whose ban to end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnbanOrder {
    /// `client`, `user` or `address`.
    pub kind: String,
    /// The name, an address or a network.
    pub name: String,
}

/// What became of a ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Banned {
    /// What it is about.
    pub kind: &'static str,
    /// The name, or the network.
    pub name: String,
    /// Connections that were closed for it.
    pub closed: usize,
}

/// What an operator asks and orders about bans; implemented by the composition root.
pub trait BanOperator: Send + Sync + 'static {
    /// The bans that hold.
    ///
    /// # Errors
    /// If the node has not started yet.
    fn bans(&self) -> Result<BanList, ApiError>;

    /// Bans somebody, and closes the connections that are theirs.
    fn ban(&self, order: BanOrder) -> Answer<Banned>;

    /// Ends a ban.
    fn unban(&self, order: UnbanOrder) -> Answer<Banned>;
}

/// The routes below `/api/v1`.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<BanList, _, _>(("/bans", "ban_list", "Lists the clients that may not connect."), list),
        Route::order::<Banned, _, _>(
            ("/bans/add", "ban_add", "Bans somebody, and closes their connections."),
            add,
        )
        .body::<BanOrder>()
        .refuses(&[409]),
        Route::order::<Banned, _, _>(("/bans/remove", "ban_remove", "Ends a ban."), remove)
            .body::<UnbanOrder>()
            .refuses(&[404, 409]),
    ]
}

async fn list(State(shared): State<Arc<Shared>>) -> Response {
    done(shared.source.bans())
}

async fn add(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(ban): Asked<BanOrder>,
) -> Response {
    let order = Order { action: "ban add", subject: format!("{} {}", ban.kind, ban.name) };
    let banned = shared.source.ban(ban);
    carry_out(shared, caller, order, StatusCode::OK, banned).await
}

async fn remove(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(ban): Asked<UnbanOrder>,
) -> Response {
    let order = Order { action: "ban remove", subject: format!("{} {}", ban.kind, ban.name) };
    let ended = shared.source.unban(ban);
    carry_out(shared, caller, order, StatusCode::OK, ended).await
}
