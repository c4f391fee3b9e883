//! `/api/v1/`: listeners, the configuration, and what an operator does to sessions and topics.

use super::Shared;
use super::api::{Answer, ApiError, Asked, answer, carry_out, done};
use super::audit::{Caller, Order};
use super::routes::Route;
use crate::names::shown;
use crate::node::administer::{Purge, Purged};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The listeners that are open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ListenerList {
    /// The listeners, `tcp` first, the others by name.
    pub listeners: Vec<ShownListener>,
}

/// A listener as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownListener {
    /// Its name.
    pub name: String,
    /// What is spoken below MQTT: `tcp`, `tls`, `ws` or `wss`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Connections that are open, those that have not sent CONNECT included.
    pub connections: u64,
    /// Connections that were turned away before CONNECT since the start.
    pub refused: u64,
    /// When the first of its certificates expires, milliseconds since the epoch; missing without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at: Option<u64>,
}

/// The options of a node as they are in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownConfig {
    /// The configuration file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The options in the order of the reference.
    pub options: Vec<ShownOption>,
}

/// An option as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ShownOption {
    /// Its key, such as `limits.max_qos`.
    pub key: String,
    /// Its value; secrets are masked.
    pub value: String,
    /// Where it comes from: `default`, or a file, an environment variable or a flag.
    pub origin: String,
}

/// Sessions to be ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PurgeOrder {
    /// What their client IDs match: `*` stands for any characters, `?` for one.
    pattern: String,
    /// Those whose clients have been away for so many seconds.
    #[serde(default)]
    offline_seconds: u64,
    /// Whether to end them; else they are only listed.
    #[serde(default)]
    yes: bool,
}

/// A message to be published.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PublishOrder {
    /// The topic name.
    topic: String,
    /// The payload, if it is text.
    #[serde(default)]
    payload: Option<String>,
    /// The payload in base64, in place of `payload`.
    #[serde(default)]
    payload_base64: Option<String>,
    /// QoS.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2))]
    qos: u8,
    /// Whether it is retained.
    #[serde(default)]
    retain: bool,
}

/// A message of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The topic name.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// QoS, 0 to 2.
    pub qos: u8,
    /// Whether it is retained.
    pub retain: bool,
}

/// What became of a message of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Published {
    /// The topic name.
    pub topic: String,
    /// Bytes of the payload.
    pub bytes: usize,
    /// Whether there was a subscription that matched.
    pub matched: bool,
}

/// What an operator asks and orders of a node; implemented by the composition root.
pub trait UpkeepOperator: Send + Sync + 'static {
    /// The listeners that are open.
    ///
    /// # Errors
    /// If the node has not started yet.
    fn listeners(&self) -> Result<ListenerList, ApiError>;

    /// The options in effect.
    fn config(&self) -> ShownConfig;

    /// Lists sessions without a connection, and ends them with `really`.
    fn purge(&self, which: Purge, really: bool) -> Answer<Purged>;

    /// Publishes a message.
    fn publish(&self, publication: Publication) -> Answer<Published>;
}

/// The routes below `/api/v1`.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<ListenerList, _, _>(
            ("/listeners", "listener_list", "Lists the listeners with their connections and certificates."),
            listeners,
        ),
        Route::get::<ShownConfig, _, _>(
            (
                "/config",
                "config_show",
                "Shows the options in effect, and where each comes from; secrets are masked.",
            ),
            config,
        ),
        Route::order::<Purged, _, _>(
            ("/purge", "session_purge", "Lists sessions of this node without a connection, or ends them."),
            purge,
        )
        .body::<PurgeOrder>(),
        Route::order::<Published, _, _>(("/publish", "publish", "Publishes a message."), publish)
            .body::<PublishOrder>(),
    ]
}

async fn listeners(State(shared): State<Arc<Shared>>) -> Response {
    done(shared.source.listeners())
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    done(Ok(shared.source.config()))
}

async fn purge(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(PurgeOrder { pattern, offline_seconds, yes }): Asked<PurgeOrder>,
) -> Response {
    let subject = pattern.clone();
    let purged = shared.source.purge(Purge { pattern, offline_seconds }, yes);
    if !yes {
        return answer(purged).await;
    }
    carry_out(shared, caller, Order { action: "session purge", subject }, StatusCode::OK, purged).await
}

async fn publish(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Asked(order): Asked<PublishOrder>,
) -> Response {
    let subject = order.topic.clone();
    let published = match publication(order) {
        Ok(publication) => shared.source.publish(publication),
        Err(error) => Box::pin(std::future::ready(Err(error))),
    };
    carry_out(shared, caller, Order { action: "publish", subject }, StatusCode::OK, published).await
}

/// The message that is ordered.
fn publication(order: PublishOrder) -> Result<Publication, ApiError> {
    let PublishOrder { topic, payload, payload_base64, qos, retain } = order;
    if qos > 2 {
        return Err(ApiError::Invalid(format!("qos={qos}: it must be 0, 1 or 2")));
    }
    let payload = match (payload, payload_base64) {
        (Some(_), Some(_)) => {
            return Err(ApiError::Invalid(
                "payload and payload_base64: only one of them can count".to_owned(),
            ));
        }
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => STANDARD
            .decode(encoded)
            .map_err(|e| ApiError::Invalid(format!("payload_base64: {} for {}", e, shown(&topic))))?,
        (None, None) => Vec::new(),
    };
    Ok(Publication { topic, payload, qos, retain })
}
