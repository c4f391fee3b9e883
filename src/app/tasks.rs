//! What runs beside the connections.

use super::VERSION;
use crate::auth::Accounts;
use crate::broker::delivery::Scratch;
use crate::clock::{self, Time};
use crate::node::{Node, Sys};
use crate::server::parting::Partings;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often retained messages that have expired are removed; until then they are kept but not sent.
const SWEEP: Duration = Duration::from_secs(10);

/// How often the files of accounts are looked at. A change counts at the second look that finds it.
const ACCOUNTS: Duration = Duration::from_millis(250);

/// How often the end of the last connection is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the timers of dormant sessions.
pub(super) async fn timers(node: Arc<Node>) {
    let sleep = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(sleep);
    poll_fn(|cx| {
        loop {
            node.on_timeout(clock::now(), &mut Scratch::default());
            let next = node.next_timeout(cx.waker());
            let Some(next) = next else { return Poll::<()>::Pending };
            sleep.as_mut().reset(Instant::from_std(clock::instant(next)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// Publishes `$SYS` every `interval` (`None` = never) and sweeps retained messages.
pub(super) async fn housekeeping(node: Arc<Node>, interval: Option<Duration>, started: Time) {
    let mut sys = Sys::new(&format!("berth version {VERSION}"), started);
    let mut publish = ticker(interval.unwrap_or(SWEEP));
    let mut sweep = ticker(SWEEP);
    loop {
        tokio::select! {
            _ = publish.tick(), if interval.is_some() => {
                sys.publish(&node, clock::now(), &mut Scratch::default());
            }
            _ = sweep.tick() => node.expire_retained(clock::now()),
        }
    }
}

/// Looks now and then whether the files of accounts have changed, and ends the connections of clients whose account has.
pub(super) async fn accounts(accounts: Arc<Accounts>, node: Arc<Node>) {
    let mut look = ticker(ACCOUNTS);
    loop {
        look.tick().await;
        let looking = accounts.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || looking.reload(false)).await else {
            tracing::error!("the look at the files of accounts failed: it is tried again");
            continue;
        };
        if reloaded.changed.is_empty() {
            continue;
        }
        let ended = node.review_accounts();
        if ended > 0 {
            tracing::info!(ended, "connections ended: their accounts were removed or changed");
        }
    }
}

pub(super) fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// Completes when no connection is left, and no client that is being parted from.
pub(super) async fn no_connections(node: &Node, partings: &Partings) {
    let mut look = ticker(LOOK);
    while node.connections() > 0 || partings.under_way() > 0 {
        look.tick().await;
    }
}
