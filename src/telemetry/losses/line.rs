//! The lines about losses.

use super::kind::{Counted, Level, Loss};
use super::{About, Subject, TARGET};
use crate::names::{Shown, shown};
use std::sync::Arc;
use tracing::field::{DisplayValue, display};

/// A line about losses.
#[derive(Debug)]
pub(super) enum Line {
    /// The first of its kind.
    First { subject: Subject, name: Arc<str>, loss: Loss, lost: u64 },
    /// It goes on.
    Again { subject: Subject, name: Arc<str>, loss: Loss, lost: u64, ms: u64, all: u64 },
    /// Those that are not followed.
    Others { level: Level, lost: u64, clients: u64, ms: u64 },
}

macro_rules! say {
    ($level:expr, $($what:tt)+) => {
        match $level {
            Level::Warn => tracing::warn!(target: TARGET, $($what)+),
            Level::Info => tracing::info!(target: TARGET, $($what)+),
        }
    };
}

impl Line {
    /// Writes it. Of what was lost only the first line of a kind says more.
    pub(super) fn log(&self, about: Option<About<'_>>) {
        match self {
            Line::First { subject, name, loss, lost } => {
                let [client, node, of] = subject.named(name);
                let limit = loss.limit().map(display);
                let topic = about.map(|a| display(shown(a.topic)));
                let why = about.map(|a| display(a.why));
                say!(
                    loss.level(),
                    client,
                    node,
                    of,
                    reason = %loss.reason(),
                    limit,
                    topic,
                    why,
                    lost,
                    "{}: the first; while it goes on, a line a minute says how many",
                    loss.what()
                );
            }
            Line::Again { subject, name, loss, lost, ms, all } => {
                let [client, node, of] = subject.named(name);
                let limit = loss.limit().map(display);
                let seconds = ms / 1000;
                say!(
                    loss.level(),
                    client,
                    node,
                    of,
                    reason = %loss.reason(),
                    limit,
                    lost,
                    seconds,
                    in_all = all,
                    "{}",
                    loss.what()
                );
            }
            Line::Others { level, lost, clients, ms } => {
                let seconds = ms / 1000;
                say!(
                    *level,
                    lost,
                    clients,
                    seconds,
                    "messages dropped or publishes refused for more clients than get a line each"
                );
            }
        }
    }
}

impl Loss {
    fn what(self) -> &'static str {
        match self.counted() {
            Counted::Message(_) => "messages dropped",
            Counted::Publish(_) => "publishes refused",
            Counted::Frame => "QoS 0 publishes for another node dropped",
        }
    }
}

impl Subject {
    /// Its name as the field `client`, `node` or `of`.
    fn named(self, name: &str) -> [Option<DisplayValue<Shown<'_>>>; 3] {
        let named = |subject| (self == subject).then(|| display(shown(name)));
        [named(Subject::Client), named(Subject::Node), named(Subject::Other)]
    }
}
