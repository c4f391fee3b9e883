//! The memory that there is, the memory that is used, and what the broker is told of it.

use super::tasks::ticker;
use crate::config::{self, Limits};
use crate::node::Node;
use crate::node::memory::{Change, Level, Marks};
use crate::telemetry::metrics::resident_memory_bytes;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked how much is used. Publishers bring in what they can between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The memory that the broker may use and its marks; `None` = any amount, or nobody knows how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// All of it, bytes.
    pub limit: u64,
    /// Beyond which something is done.
    pub marks: Marks,
}

impl Budget {
    /// As the options have it.
    pub(super) fn of(limits: &Limits) -> Option<Budget> {
        let limit = match limits.memory {
            config::Memory::Off => return None,
            config::Memory::Bytes(bytes) => bytes,
            config::Memory::Auto => of_machine()?,
        };
        let part = |percent: u8| limit / 100 * u64::from(percent);
        let marks = Marks { pause: part(limits.memory_pause_at), refuse: part(limits.memory_refuse_at) };
        Some(Budget { limit, marks })
    }
}

/// Memory that this process can have, bytes: as the system says, or as it has said before if it cannot be read now, as when there are no
/// file descriptors left. `None` = the system has never said so.
fn of_machine() -> Option<u64> {
    static KNOWN: Mutex<Option<u64>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    *known = available(Path::new("/")).or(*known);
    *known
}

/// Memory that this process can have, bytes: the machine's, or the least that a control group around it may use. `root` is where the
/// system's files are.
fn available(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
        line.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let mut least = machine;
    for line in read("proc/self/cgroup").unwrap_or_default().lines() {
        // Hierarchy, controllers, path: version 2 has neither of the first two.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // A container sees its own group as the root, whatever its path says; else a group is within all those above it.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = read(&format!("{base}/{}/{file}", group.display()));
            least = least.into_iter().chain(limit.and_then(|text| text.trim().parse().ok())).min();
        }
    }
    least
}

/// Measures the memory in use, now and then, and tells the broker. `budget`: what it may use at present. A look that fails is made again:
/// what holds stays, and the log says so once.
pub(super) async fn follow(node: Arc<Node>, budget: Arc<Mutex<Option<Budget>>>) {
    let (mut look, mut blind) = (ticker(LOOK), false);
    loop {
        look.tick().await;
        let budget = *budget.lock();
        let metrics = &node.broker.metrics;
        metrics.memory_limit_bytes.set(budget.map_or(0, |b| b.limit));
        let used = match resident_memory_bytes() {
            Ok(used) => used,
            Err(error) => {
                if !std::mem::replace(&mut blind, true) && budget.is_some() {
                    tracing::warn!(%error, "how much memory is used cannot be read: limits.memory has no effect until it can");
                }
                continue;
            }
        };
        if std::mem::take(&mut blind) && budget.is_some() {
            tracing::info!(used_bytes = used, "how much memory is used can be read again");
        }
        if let Some(change) = node.pressure.measured(used, budget.map(|b| b.marks)) {
            metrics.memory_level.set(change.to as u64);
            if change.from == Level::Normal {
                metrics.memory_pauses.inc();
            }
            tell(change, used, budget.map_or(0, |b| b.limit), metrics.publishers_paused.get());
        }
    }
}

fn tell(change: Change, used_bytes: u64, limit_bytes: u64, publishers: u64) {
    let refused = change.refused;
    match (change.from, change.to) {
        (_, Level::Refusing) => tracing::warn!(
            used_bytes,
            limit_bytes,
            publishers,
            "memory is nearly used up (limits.memory_refuse_at): new connections are refused"
        ),
        (Level::Normal, Level::Paused) => tracing::warn!(
            used_bytes,
            limit_bytes,
            "memory runs short (limits.memory_pause_at): publishers are not read until it is freed"
        ),
        (_, Level::Paused) => {
            tracing::warn!(
                used_bytes,
                limit_bytes,
                publishers,
                refused,
                "new connections are let in again; publishers still wait"
            );
        }
        (_, Level::Normal) => {
            tracing::info!(
                used_bytes,
                limit_bytes,
                publishers,
                refused,
                "there is memory again: publishers are read"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of the system, and what can be had.
    #[test]
    fn the_least_of_the_machine_and_the_groups_around_it() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<u64>);
        const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       1024 kB\nMemFree: 7 kB\n");
        let cases: &[Case<'_>] = &[
            (&[], None),
            (&[MACHINE], Some(1 << 20)),
            (
                &[MACHINE, ("proc/self/cgroup", "0::/a/b\n"), ("sys/fs/cgroup/a/b/memory.max", "max\n")],
                Some(1 << 20),
            ),
            (
                &[
                    MACHINE,
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "500000\n"),
                    ("sys/fs/cgroup/a/memory.max", "400000\n"),
                ],
                Some(400_000),
            ),
            // A container's own group is the root that it sees.
            (
                &[MACHINE, ("proc/self/cgroup", "0::/docker/x\n"), ("sys/fs/cgroup/memory.max", "300000\n")],
                Some(300_000),
            ),
            (
                &[
                    MACHINE,
                    ("proc/self/cgroup", "4:cpu:/c\n3:memory,hugetlb:/m\n"),
                    ("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "200000\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(200_000),
            ),
        ];
        for (files, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in *files {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            assert_eq!(available(dir.path()), *expected, "{files:?}");
        }
    }

    #[test]
    fn marks_are_parts_of_the_limit() {
        let budget = |memory: &str| {
            let pairs = [("limits.memory", memory), ("limits.memory_pause_at", "50%")];
            Budget::of(&config::Config::from_pairs(&pairs).unwrap().limits)
        };
        assert_eq!(budget("off"), None);
        let marks = Marks { pause: 50_000_000, refuse: 90_000_000 };
        assert_eq!(budget("100MB"), Some(Budget { limit: 100_000_000, marks }));
        assert!(budget("auto").is_some_and(|b| b.limit > 0));
    }
}
