//! `/api/v1/bans`: clients that may not connect.

use super::Shared;
use super::api::{Answer, ApiError, Asked, answer, done};
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A ban as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BanList {
    /// The bans, by kind and name.
    pub bans: Vec<ShownBan>,
}

/// Whom to ban.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnbanOrder {
    /// `client`, `user` or `address`.
    pub kind: String,
    /// The name, an address or a network.
    pub name: String,
}

/// What became of a ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new().route("/bans", get(list)).route("/bans/add", post(add)).route("/bans/remove", post(remove))
}

async fn list(State(shared): State<Arc<Shared>>) -> Response {
    done(shared.source.bans())
}

async fn add(State(shared): State<Arc<Shared>>, Asked(order): Asked<BanOrder>) -> Response {
    answer(shared.source.ban(order)).await
}

async fn remove(State(shared): State<Arc<Shared>>, Asked(order): Asked<UnbanOrder>) -> Response {
    answer(shared.source.unban(order)).await
}
