//! Writes this node's routes: all changes that wait when a flush begins go into few pages in few transactions, one after the
//! other. Small pages are merged into larger ones now and then, and when too much of the log says nothing any more, it is
//! written anew, so that churn writes a few times its own size.

use super::page::{self, RoutePage};
use super::pagelog::PageLog;
use crate::broker::ports::{MemberId, Revision, RouteChange};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Filters of a page, at most.
pub const PAGE_FILTERS_MAX: usize = 1000;

/// Bytes of a page, about, at most; a longer filter has a page of its own.
pub const PAGE_BYTES_MAX: usize = 64 << 10;

/// Small pages in a row before they are merged.
const SMALL_PAGES: usize = 16;

/// Bytes of the log that may say nothing any more, beside as many as do.
const SLACK: usize = 256 << 10;

type Changes = HashMap<Arc<str>, Option<(bool, u32)>, foldhash::fast::RandomState>;

/// A flush that waits.
#[derive(Default)]
struct Pending {
    changes: Changes,
    waiters: Vec<oneshot::Sender<Revision>>,
    /// Incarnations whose routes are to go, after all changes before.
    drop: Vec<(MemberId, oneshot::Sender<()>)>,
}

/// See the module.
pub struct RouteWriter {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Notify,
}

impl RouteWriter {
    /// Starts it. Needs a runtime.
    pub fn new(log: PageLog) -> RouteWriter {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(run(shared.clone(), Writer::new(log)));
        RouteWriter { shared, task }
    }

    /// Adds and removes routes; completes with the revision at which all of them are written. Calls are carried out in order.
    pub fn change(&self, changes: Vec<RouteChange>) -> impl Future<Output = Revision> + Send + 'static {
        let (done, written) = oneshot::channel();
        {
            let mut pending = self.shared.pending.lock();
            pending.changes.extend(changes.into_iter().map(|c| (c.filter, c.route)));
            pending.waiters.push(done);
        }
        self.shared.wake.notify_one();
        or_never(written)
    }

    /// Removes the routes of an incarnation that this node has adopted, after everything asked for before is written.
    pub fn drop_incarnation(&self, of: MemberId) -> impl Future<Output = ()> + Send + 'static {
        let (done, dropped) = oneshot::channel();
        self.shared.pending.lock().drop.push((of, done));
        self.shared.wake.notify_one();
        or_never(dropped)
    }

    /// Filters that wait to be written.
    pub fn waiting(&self) -> usize {
        self.shared.pending.lock().changes.len()
    }
}

impl Drop for RouteWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The writer ends with the node only.
async fn or_never<T>(outcome: oneshot::Receiver<T>) -> T {
    match outcome.await {
        Ok(value) => value,
        Err(_) => std::future::pending().await,
    }
}

async fn run(shared: Arc<Shared>, mut writer: Writer) {
    loop {
        let pending = std::mem::take(&mut *shared.pending.lock());
        if pending.waiters.is_empty() && pending.drop.is_empty() {
            shared.wake.notified().await;
            continue;
        }
        if !pending.waiters.is_empty() {
            let revision = writer.flush(pending.changes).await;
            for waiter in pending.waiters {
                let _ = waiter.send(revision);
            }
        }
        for (of, done) in pending.drop {
            writer.log.clear(&of).await;
            let _ = done.send(());
        }
        writer.tidy().await;
    }
}

struct Writer {
    log: PageLog,
    /// Bytes that each live filter takes, by its hash: to know how much of the log says nothing any more.
    live: HashMap<u64, u32, foldhash::fast::RandomState>,
    live_bytes: usize,
    hasher: foldhash::fast::FixedState,
}

impl Writer {
    fn new(log: PageLog) -> Writer {
        Writer { log, live: HashMap::default(), live_bytes: 0, hasher: foldhash::fast::FixedState::default() }
    }

    async fn flush(&mut self, changes: Changes) -> Revision {
        for (filter, route) in &changes {
            self.count(filter, route.is_some());
        }
        let changes = changes.into_iter().map(|(filter, route)| RouteChange { filter, route });
        let pages = page::pack(changes, false, PAGE_FILTERS_MAX, PAGE_BYTES_MAX);
        self.log.append(pages).await
    }

    fn count(&mut self, filter: &str, there: bool) {
        use std::hash::BuildHasher;
        let (hash, size) = (self.hasher.hash_one(filter), page::size_of(filter));
        let old = if there {
            self.live_bytes += size;
            self.live.insert(hash, u32::try_from(size).unwrap_or(u32::MAX))
        } else {
            self.live.remove(&hash)
        };
        self.live_bytes = self.live_bytes.saturating_sub(old.map_or(0, |old| old as usize));
    }

    /// Merges and rewrites what is due.
    async fn tidy(&mut self) {
        if self.log.bytes() > 2 * self.live_bytes + SLACK {
            self.log.rewrite(pack_merged).await;
        } else if let Some(run) = small_run(&self.log.sizes()) {
            self.log.merge(run, pack_merged).await;
        }
    }
}

fn pack_merged(changes: Vec<RouteChange>) -> Vec<RoutePage> {
    page::pack(changes, true, PAGE_FILTERS_MAX, PAGE_BYTES_MAX)
}

/// How many of the last pages to merge: when there are enough small ones at the end, these and as many before them as are not
/// much larger than all that follow, so that each byte is written again a few times only.
fn small_run(sizes: &[usize]) -> Option<usize> {
    let small = sizes.iter().rev().take_while(|&&size| size < PAGE_BYTES_MAX / 2).count();
    if small < SMALL_PAGES {
        return None;
    }
    let (mut run, mut sum) = (0, 0);
    for &size in sizes.iter().rev().take(small.min(super::pagelog::TXN_PAGES_MAX)) {
        if run >= SMALL_PAGES / 2 && size > 2 * sum {
            break;
        }
        if sum + size > super::batch::REQUEST_BYTES_MAX {
            break;
        }
        run += 1;
        sum += size;
    }
    (run >= 2).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn churn_writes_a_few_times_its_own_size() {
        let (mut sizes, mut written, mut merged) = (Vec::new(), 0usize, 0usize);
        let mut most = 0;
        for _ in 0..20_000 {
            sizes.push(100);
            written += 100;
            if let Some(run) = small_run(&sizes) {
                let sum: usize = sizes.drain(sizes.len() - run..).sum();
                merged += sum;
                let mut rest = sum;
                while rest > 0 {
                    sizes.push(rest.min(PAGE_BYTES_MAX));
                    rest -= rest.min(PAGE_BYTES_MAX);
                }
            }
            most = most.max(sizes.len());
        }
        assert!(merged < 6 * written, "{merged} for {written}");
        assert!(most < written / PAGE_BYTES_MAX * 2 + 3 * SMALL_PAGES, "{most} pages");
    }
}
