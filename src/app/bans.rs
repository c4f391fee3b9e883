//! Bans: read at the start, changed by operators (in a cluster for all nodes), and in force for clients that are connected as well.

use super::Process;
use super::cluster::Member;
use super::desk::Desk;
use super::directory;
use super::tasks::ticker;
use crate::auth::bans::{Ban, BanError, Bans, Flapping, Kind, kept_name};
use crate::auth::directory::{read_ban, write_ban};
use crate::clock::{self, Time};
use crate::config::{Config, StorageType};
use crate::names::shown;
use crate::ports::DirectoryKey;
use crate::server::http::{Answer, ApiError, BanList, BanOperator, BanOrder, Banned, ShownBan, UnbanOrder};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// How often bans are looked for whose time has passed; they refuse nobody until then either.
const SWEEP: Duration = Duration::from_secs(1);

/// Bans whose time has passed that one order removes from etcd.
const PASSED_MAX: usize = 20;

/// Reads the bans. The data directory must be there.
pub(super) fn open(config: &Config) -> Result<Bans, BanError> {
    let dir = (config.storage.kind == StorageType::Redb).then_some(&*config.storage.dir);
    Bans::open(dir, flapping(config), clock::now())
}

/// How often is too often.
pub(super) fn flapping(config: &Config) -> Option<Flapping> {
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    (config.bans.flapping_connects > 0).then(|| Flapping {
        connects: config.bans.flapping_connects,
        within_ms: millis(config.bans.flapping_window),
        ban_ms: millis(config.bans.flapping_ban),
    })
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
            kind: ban.kind.name(),
            name: ban.name,
            reason: ban.reason,
            since: ban.since,
            seconds_left: ban.until.map(|until| Time(until).since_ms(now).div_ceil(1000)),
        };
        Ok(BanList { bans: list.into_iter().map(shown).collect() })
    }

    fn ban(&self, order: BanOrder) -> Answer<Banned> {
        let process = self.running().cloned();
        Box::pin(async move {
            let process = process?;
            if process.member.is_some() {
                return banned_in_cluster(&process, order).await;
            }
            let done = tokio::task::spawn_blocking(move || banned(&process, order)).await;
            done.map_err(|e| ApiError::Unavailable(e.to_string()))?
        })
    }

    fn unban(&self, order: UnbanOrder) -> Answer<Banned> {
        let process = self.running().cloned();
        Box::pin(async move {
            let process = process?;
            if process.member.is_some() {
                return unbanned_in_cluster(process, order).await;
            }
            let done = tokio::task::spawn_blocking(move || unbanned(&process, &order)).await;
            done.map_err(|e| ApiError::Unavailable(e.to_string()))?
        })
    }
}

/// What an order asks for, by this node's clock.
fn ban_of(order: BanOrder, now: Time) -> Result<Ban, ApiError> {
    let kind = kind_of(&order.kind)?;
    if order.seconds == Some(0) {
        return Err(ApiError::Invalid("seconds=0: a ban lasts for a second at least".to_owned()));
    }
    let until = order.seconds.map(|s| now.plus_secs(s).as_millis());
    let ban =
        Ban { kind, name: order.name, reason: order.reason, since: now.as_millis(), until, only_user: None };
    Ok(ban.checked()?)
}

/// Bans somebody on this node, and closes what connections they have.
fn banned(process: &Process, order: BanOrder) -> Result<Banned, ApiError> {
    let (seconds, now) = (order.seconds, clock::now());
    let ban = process.bans.add(ban_of(order, now)?, now)?;
    Ok(took_effect(process, ban, seconds))
}

/// Bans somebody on all nodes, and closes what connections they have here; other nodes do so as they hear of it.
async fn banned_in_cluster(process: &Process, order: BanOrder) -> Result<Banned, ApiError> {
    let (member, _) = directory::of(process)?;
    let (seconds, now) = (order.seconds, clock::now());
    let ban = ban_of(order, now)?;
    forget_passed(process, member, now).await;
    if !process.bans.shared_takes(ban.kind, &ban.name) {
        return Err(BanError::Full.into());
    }
    let in_cluster = |moment: u64| member.time().cluster(Time(moment)).as_millis();
    let record = Ban { since: in_cluster(ban.since), until: ban.until.map(in_cluster), ..ban.clone() };
    let value = write_ban(&record);
    let key = key_of(ban.kind, &ban.name);
    directory::change(member, &key, |_| Ok((Some(value.clone()), ()))).await?;
    Ok(took_effect(process, ban, seconds))
}

fn took_effect(process: &Process, ban: Ban, seconds: Option<u64>) -> Banned {
    let (kind, now) = (ban.kind.name(), clock::now());
    let closed = process.node.end_banned(now);
    process.metrics.bans.set(process.bans.list(now).len() as u64);
    tracing::info!(kind, name = %shown(&ban.name), reason = %shown(&ban.reason), seconds, closed, "an operator banned clients");
    Banned { kind, name: ban.name, closed }
}

/// Ends a ban of this node.
fn unbanned(process: &Process, order: &UnbanOrder) -> Result<Banned, ApiError> {
    let (kind, now) = (kind_of(&order.kind)?, clock::now());
    process.bans.remove(kind, &order.name, now)?;
    Ok(ended(process, kind, order.name.clone()))
}

/// Ends a ban of the cluster, and one that this node alone has.
async fn unbanned_in_cluster(process: Arc<Process>, order: UnbanOrder) -> Result<Banned, ApiError> {
    let (member, _) = directory::of(&process)?;
    let kind = kind_of(&order.kind)?;
    let name = kept_name(kind, &order.name)?;
    let shared =
        directory::change(member, &key_of(kind, &name), |stored| Ok((None, stored.is_some()))).await?;
    forget_passed(&process, member, clock::now()).await;
    let of_node = process.clone();
    let own = tokio::task::spawn_blocking(move || unbanned(&of_node, &order)).await;
    match own.map_err(|e| ApiError::Unavailable(e.to_string()))? {
        Err(ApiError::Unknown(_)) if shared => Ok(ended(&process, kind, name)),
        done => done,
    }
}

fn ended(process: &Process, kind: Kind, name: String) -> Banned {
    process.metrics.bans.set(process.bans.list(clock::now()).len() as u64);
    tracing::info!(kind = kind.name(), name = %shown(&name), "an operator ended a ban");
    Banned { kind: kind.name(), name, closed: 0 }
}

/// Removes some bans from etcd whose time has passed. They bind nobody: what does not succeed is left for the next order.
async fn forget_passed(process: &Process, member: &Member, now: Time) {
    let Some(at) = member.time().judged_at(now) else { return };
    for (kind, name) in process.bans.passed(now, PASSED_MAX) {
        let key = key_of(kind, &name);
        let removed = directory::change(member, &key, |stored| {
            // Somebody may have renewed it.
            let ban = stored.and_then(|value| read_ban(kind, &name, value).ok());
            let passed = ban.is_some_and(|ban| ban.until.is_some_and(|until| Time(until) <= at));
            Ok((stored.filter(|_| !passed).map(<[u8]>::to_vec), ()))
        });
        if let Err(error) = removed.await {
            tracing::debug!(%error, name = %shown(&name), "a ban that has passed stays in etcd for now");
            return;
        }
    }
}

fn key_of(kind: Kind, name: &str) -> DirectoryKey {
    DirectoryKey::Ban { kind, name: name.into() }
}

fn kind_of(name: &str) -> Result<Kind, ApiError> {
    let wrong = || format!("kind={}: it must be client, user or address", shown(name));
    Kind::of(name).ok_or_else(|| ApiError::Invalid(wrong()))
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
