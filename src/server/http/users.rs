//! `/api/v1/users`: users with passwords. Passwords themselves never come here: `berth ctl` makes the hash, and hashes are not shown.

use super::Shared;
use super::api::{Answer, ApiError, Asked, answer, carry_out};
use super::audit::{Caller, Order};
use super::routes::Route;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Users of one page.
const PAGE: usize = 1000;

/// A user as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownUser {
    /// The user's name.
    pub name: String,
    /// The groups that it is in.
    pub groups: Vec<String>,
    /// Whether there are keys for SCRAM-SHA-256.
    pub scram: bool,
    /// The kind of the hash of its password.
    pub hash: &'static str,
}

/// Some of the users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UserPage {
    /// Where they are: `etcd`, or `auth.password.file`.
    pub source: &'static str,
    /// The file, if they are in one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The users by name.
    pub users: Vec<ShownUser>,
    /// How many there are.
    pub total: usize,
    /// There are more: ask again with this as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a user becomes.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserOrder {
    /// The user's name.
    pub name: String,
    /// The hash of its password, as `berth passwd` writes it.
    pub hash: String,
    /// Keys for SCRAM-SHA-256, as `berth passwd` writes them.
    #[serde(default)]
    pub scram: Option<String>,
    /// The user's groups; missing = none for a new user, and those that it is in for another.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
}

impl std::fmt::Debug for UserOrder {
    /// Without hash and keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserOrder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A user, by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedUser {
    /// The name.
    pub name: String,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UserChanged {
    /// The user.
    pub name: String,
    /// Connections of this node that were closed for it; in a cluster the other nodes close theirs besides.
    pub closed: usize,
}

/// What an operator asks and orders about users; implemented by the composition root.
pub trait UserOperator: Send + Sync + 'static {
    /// The users after `after` by name, `limit` of them.
    fn users(&self, after: &str, limit: usize) -> Answer<UserPage>;

    /// One user.
    fn user(&self, name: &str) -> Answer<ShownUser>;

    /// Adds a user, who must not be there yet.
    fn add_user(&self, order: UserOrder) -> Answer<UserChanged>;

    /// Changes a user, who must be there.
    fn change_user(&self, order: UserOrder) -> Answer<UserChanged>;

    /// Removes a user.
    fn remove_user(&self, name: &str) -> Answer<UserChanged>;
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct After {
    #[serde(default)]
    after: String,
}

/// The routes below `/api/v1` about users.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<UserPage, _, _>(("/users", "user_list", "Lists users with passwords by name."), list)
            .query::<After>()
            .refuses(&[409]),
        Route::ask::<UserPage, _, _>(
            ("/ask/users", "user_list_named", "The same, after a name that is too long for a query."),
            list,
        )
        .body::<After>()
        .refuses(&[409]),
        Route::ask::<ShownUser, _, _>(("/ask/user", "user_show", "Shows a user."), show)
            .body::<NamedUser>()
            .refuses(&[404, 409]),
        Route::order::<UserChanged, _, _>(("/users/add", "user_add", "Adds a user."), add)
            .body::<UserOrder>()
            .refuses(&[409]),
        Route::order::<UserChanged, _, _>(
            ("/users/change", "user_change", "Changes a user's password and groups."),
            change,
        )
        .body::<UserOrder>()
        .refuses(&[404, 409]),
        Route::order::<UserChanged, _, _>(
            ("/users/remove", "user_remove", "Removes a user, and closes their connections."),
            remove,
        )
        .body::<NamedUser>()
        .refuses(&[404, 409]),
    ]
}

async fn list(State(shared): State<Arc<Shared>>, Asked(After { after }): Asked<After>) -> Response {
    answer(shared.source.users(&after, PAGE)).await
}

async fn show(State(shared): State<Arc<Shared>>, Asked(NamedUser { name }): Asked<NamedUser>) -> Response {
    answer(shared.source.user(&name)).await
}

async fn add(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(order): Asked<UserOrder>,
) -> Response {
    let note = Order { action: "user add", subject: order.name.clone() };
    let added = shared.source.add_user(order);
    carry_out(shared, caller, note, StatusCode::OK, added).await
}

async fn change(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(order): Asked<UserOrder>,
) -> Response {
    let note = Order { action: "user change", subject: order.name.clone() };
    let changed = shared.source.change_user(order);
    carry_out(shared, caller, note, StatusCode::OK, changed).await
}

async fn remove(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(NamedUser { name }): Asked<NamedUser>,
) -> Response {
    let removed = shared.source.remove_user(&name);
    carry_out(shared, caller, Order { action: "user remove", subject: name }, StatusCode::OK, removed).await
}

impl ApiError {
    /// There is no such user.
    pub fn no_user(name: &str) -> ApiError {
        ApiError::Unknown(format!("there is no user \"{}\"", crate::names::shown(name)))
    }
}
