//! `/api/v1/acl`: the rules of what clients may do.

use super::Shared;
use super::api::{Answer, ApiError, Asked, answer, carry_out, done};
use super::audit::{Caller, Order};
use super::routes::Route;
use crate::node::inspect::{Judged, Losing, Question, Unanswered};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rules of one page.
const PAGE: usize = 1000;

/// Some of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AclPage {
    /// The option that names their file: `acl.file`, `acl.mosquitto_file`, or nothing; or `etcd`.
    pub source: &'static str,
    /// The file, or the key in etcd.
    pub file: String,
    /// Whether what no rule is about is allowed.
    pub otherwise_allowed: bool,
    /// The rules in their order; of a mosquitto file, its lines.
    pub rules: Vec<ShownRule>,
    /// How many there are.
    pub total: usize,
    /// There are more: ask again with this as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownRule {
    /// Its number, from 1; of a mosquitto file the line.
    pub number: usize,
    /// The rule on one line.
    pub rule: String,
}

/// What to do with the rules, which are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum AclChange {
    /// Put a rule in.
    Add {
        /// The rule, with the keys of the file.
        rule: serde_json::Value,
        /// The number it gets; missing = behind all others.
        #[serde(default)]
        at: Option<usize>,
        /// Also if it is the first, so that whatever no rule allows is denied from then on.
        #[serde(default)]
        yes: bool,
    },
    /// Take a rule out.
    Remove {
        /// Its number.
        number: usize,
    },
    /// Give a rule another place.
    Move {
        /// Its number.
        number: usize,
        /// The number it gets.
        to: usize,
    },
}

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AclEdited {
    /// Whether the change was made.
    pub changed: bool,
    /// How many rules there are, or would be.
    pub rules: usize,
    /// Who would lose what, some of them: the change was not made, because it has to be confirmed with `yes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub losing: Vec<Losing>,
    /// How many would.
    pub losing_total: usize,
    /// Nodes whose sessions are not among them, because they did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// What an operator asks and orders about rules; implemented by the composition root.
pub trait AclOperator: Send + Sync + 'static {
    /// The rules after number `after`, `limit` of them.
    ///
    /// # Errors
    /// If the node has not started yet.
    fn acl_rules(&self, after: usize, limit: usize) -> Result<AclPage, ApiError>;

    /// Whether a client may do something, and which rule says so.
    fn acl_judge(&self, question: Question) -> Answer<Judged>;

    /// Changes the file of rules, or the rules of the cluster.
    fn acl_change(&self, change: AclChange) -> Answer<AclEdited>;
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct After {
    /// Those after this number.
    #[serde(default)]
    after: usize,
}

/// The routes below `/api/v1`.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<AclPage, _, _>(("/acl", "acl_list", "Lists the rules of what clients may do."), rules)
            .query::<After>(),
        Route::ask::<Judged, _, _>(
            ("/ask/acl", "acl_check", "Says whether a client may do something, and which rule says so."),
            judge,
        )
        .body::<Question>(),
        Route::order::<AclEdited, _, _>(("/acl/change", "acl_change", "Changes the file of rules."), change)
            .body::<AclChange>()
            .refuses(&[404, 409]),
    ]
}

async fn rules(State(shared): State<Arc<Shared>>, Asked(After { after }): Asked<After>) -> Response {
    done(shared.source.acl_rules(after, PAGE))
}

async fn judge(State(shared): State<Arc<Shared>>, Asked(question): Asked<Question>) -> Response {
    answer(shared.source.acl_judge(question)).await
}

async fn change(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(change): Asked<AclChange>,
) -> Response {
    let subject = match &change {
        AclChange::Add { rule, .. } => format!("add {rule}"),
        AclChange::Remove { number } => format!("remove rule {number}"),
        AclChange::Move { number, to } => format!("move rule {number} to {to}"),
    };
    let changed = shared.source.acl_change(change);
    carry_out(shared, caller, Order { action: "acl change", subject }, StatusCode::OK, changed).await
}
