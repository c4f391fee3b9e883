//! Bans: read at the start, changed by operators, and in force for clients that are connected as well.

use super::Node;
use super::desk::Desk;
use super::tasks::ticker;
use crate::auth::bans::{Ban, BanError, Bans, Flapping, Kind};
use crate::clock::{self, Time};
use crate::config::{Config, StorageType};
use crate::names::shown;
use crate::server::http::{Answer, ApiError, BanList, BanOperator, BanOrder, Banned, ShownBan, UnbanOrder};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// How often bans are looked for whose time has passed; they refuse nobody until then either.
const SWEEP: Duration = Duration::from_secs(1);

/// Reads the bans. The data directory must be there.
pub(super) fn open(config: &Config) -> Result<Bans, BanError> {
    let dir = (config.storage.kind == StorageType::Redb).then_some(&*config.storage.dir);
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let flapping = (config.bans.flapping_connects > 0).then(|| Flapping {
        connects: config.bans.flapping_connects,
        within_ms: millis(config.bans.flapping_window),
        ban_ms: millis(config.bans.flapping_ban),
    });
    Bans::open(dir, flapping, clock::now())
}

/// Forgets the bans whose time has passed, and says how many there are, for ever.
pub(super) async fn follow(bans: Arc<Bans>, metrics: Arc<Metrics>) {
    let mut look = ticker(SWEEP);
    loop {
        look.tick().await;
        metrics.bans.set(bans.sweep(clock::now()) as u64);
    }
}

impl BanOperator for Desk {
    fn bans(&self) -> Result<BanList, ApiError> {
        let now = clock::now();
        let list = self.running()?.bans.list(now);
        let shown = |ban: Ban| ShownBan {
            kind: name_of(ban.kind),
            name: ban.name,
            reason: ban.reason,
            since: ban.since,
            seconds_left: ban.until.map(|until| Time(until).since_ms(now).div_ceil(1000)),
        };
        Ok(BanList { bans: list.into_iter().map(shown).collect() })
    }

    fn ban(&self, order: BanOrder) -> Answer<Banned> {
        let node = self.running().cloned();
        Box::pin(async move {
            let node = node?;
            let done = tokio::task::spawn_blocking(move || banned(&node, order)).await;
            done.map_err(|e| ApiError::Unavailable(e.to_string()))?
        })
    }

    fn unban(&self, order: UnbanOrder) -> Answer<Banned> {
        let node = self.running().cloned();
        Box::pin(async move {
            let node = node?;
            let done = tokio::task::spawn_blocking(move || unbanned(&node, order)).await;
            done.map_err(|e| ApiError::Unavailable(e.to_string()))?
        })
    }
}

/// Bans somebody, and closes what connections they have.
fn banned(node: &Node, order: BanOrder) -> Result<Banned, ApiError> {
    let (kind, now) = (kind_of(&order.kind)?, clock::now());
    if order.seconds == Some(0) {
        return Err(ApiError::Invalid("seconds=0: a ban lasts for a second at least".to_owned()));
    }
    let until = order.seconds.map(|s| now.plus_secs(s).as_millis());
    let ban =
        Ban { kind, name: order.name, reason: order.reason, since: now.as_millis(), until, only_user: None };
    let ban = node.bans.add(ban, now)?;
    let closed = node.broker.end_banned(now);
    let (kind, seconds) = (name_of(kind), order.seconds);
    node.metrics.bans.set(node.bans.list(now).len() as u64);
    tracing::info!(kind, name = %shown(&ban.name), reason = %shown(&ban.reason), seconds, closed, "an operator banned clients");
    Ok(Banned { kind, name: ban.name, closed })
}

/// Ends a ban.
fn unbanned(node: &Node, order: UnbanOrder) -> Result<Banned, ApiError> {
    let (kind, now) = (kind_of(&order.kind)?, clock::now());
    node.bans.remove(kind, &order.name, now)?;
    let kind = name_of(kind);
    node.metrics.bans.set(node.bans.list(now).len() as u64);
    tracing::info!(kind, name = %shown(&order.name), "an operator ended a ban");
    Ok(Banned { kind, name: order.name, closed: 0 })
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Client => "client",
        Kind::User => "user",
        Kind::Address => "address",
    }
}

fn kind_of(name: &str) -> Result<Kind, ApiError> {
    match name {
        "client" => Ok(Kind::Client),
        "user" => Ok(Kind::User),
        "address" => Ok(Kind::Address),
        other => Err(ApiError::Invalid(format!("kind={}: it must be client, user or address", shown(other)))),
    }
}

impl From<BanError> for ApiError {
    fn from(error: BanError) -> ApiError {
        match &error {
            BanError::Invalid(_) => ApiError::Invalid(error.to_string()),
            BanError::Unknown => ApiError::Unknown(error.to_string()),
            BanError::Full => ApiError::Conflict(error.to_string()),
            BanError::File { .. } | BanError::Broken { .. } => ApiError::Unavailable(error.to_string()),
        }
    }
}
