//! Looks after the files: reads them again when they change.

use super::{Keeper, Stamp};
use crate::clock;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Reload;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Between two looks at the files, milliseconds. A change is acted on at the second look that finds it: whoever writes a certificate
/// and then its key has that long.
pub const POLL_MS: u64 = 250;

/// Reads the files of `keepers` again when they change.
pub async fn watch(keepers: Vec<Arc<Keeper>>, metrics: Arc<Metrics>) {
    if keepers.is_empty() {
        return;
    }
    let mut ticker = tokio::time::interval(Duration::from_millis(POLL_MS));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Vec<Vec<Stamp>> = vec![Vec::new(); keepers.len()];
    loop {
        ticker.tick().await;
        let (looked, metrics) = (keepers.clone(), metrics.clone());
        // Files may be on a disk that is slow.
        let looking = move || {
            for (keeper, last) in looked.iter().zip(&mut last) {
                let (stamps, changed) = keeper.look();
                if changed && *last == stamps {
                    reload(keeper, &metrics);
                }
                *last = stamps;
            }
            last
        };
        last = match tokio::task::spawn_blocking(looking).await {
            Ok(last) => last,
            Err(_) => return, // the runtime ends
        };
    }
}

fn reload(keeper: &Keeper, metrics: &Metrics) {
    let section = keeper.section();
    match keeper.reload(clock::now()) {
        Ok(()) => {
            metrics.certificate_reloads.of(Reload::Done).inc();
            tracing::info!(section, "certificates read again");
        }
        Err(error) => {
            metrics.certificate_reloads.of(Reload::Failed).inc();
            tracing::error!(section, %error, "the old certificates stay in use");
        }
    }
}
