//! Writes this node's routes: all changes that wait when a flush begins go into few pages in few transactions, one after the
//! other. Small pages are merged into larger ones now and then, and when too much of the log says nothing any more, it is
//! written anew, so that churn writes a few times its own size.

use super::page::{self, Packed};
use super::pagelog::{PageLog, Weight};
use crate::hashing::HashMap;
use crate::ports::{MemberId, Revision, RouteChange};
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

/// Bytes that a page counts for beside its filters: small pages between large ones are written anew as well when there are many.
const PAGE_COST: usize = 4 << 10;

/// Pages that may be written before the log is tidied although more changes wait.
const UNTIDY_MAX: usize = 64;

type Changes = HashMap<Arc<str>, Option<(bool, u32)>>;

/// A flush that waits.
#[derive(Default)]
struct Pending {
    changes: Changes,
    waiters: Vec<oneshot::Sender<Revision>>,
    /// Incarnations whose routes are to go, after all changes before.
    drop: Vec<(MemberId, oneshot::Sender<()>)>,
}

/// Writes this node's routes: all changes that wait when a flush begins go into few pages in few transactions, one after the other.
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
        // What waits comes first: it also becomes fewer pages meanwhile.
        if writer.untidy >= UNTIDY_MAX || shared.pending.lock().waiters.is_empty() {
            writer.tidy().await;
        }
    }
}

struct Writer {
    log: PageLog,
    /// Pages written since the log was tidied.
    untidy: usize,
    /// Bytes that each live filter takes, by its hash: to know how much of the log says nothing any more.
    live: HashMap<u64, u32>,
    live_bytes: usize,
    hasher: foldhash::fast::FixedState,
}

impl Writer {
    fn new(log: PageLog) -> Writer {
        let hasher = foldhash::fast::FixedState::default();
        Writer { log, untidy: 0, live: HashMap::default(), live_bytes: 0, hasher }
    }

    async fn flush(&mut self, changes: Changes) -> Revision {
        for (filter, route) in &changes {
            self.count(filter, route.is_some());
        }
        let changes = changes.into_iter().map(|(filter, route)| RouteChange { filter, route });
        let pages = page::pack(changes, false, PAGE_FILTERS_MAX, PAGE_BYTES_MAX);
        self.untidy += pages.len();
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
        self.untidy = 0;
        match due(self.log.weights(), self.live_bytes) {
            Some(Due::Rewrite) => self.log.rewrite(pack_merged).await,
            Some(Due::Merge(run)) => self.log.merge(run, pack_merged).await,
            None => {}
        }
    }
}

fn pack_merged(changes: Vec<RouteChange>) -> Vec<Packed> {
    page::pack(changes, true, PAGE_FILTERS_MAX, PAGE_BYTES_MAX)
}

/// What is to be done about a log.
enum Due {
    /// All of it is written anew.
    Rewrite,
    /// So many of the last pages become fewer.
    Merge(usize),
}

/// What is due about a log of these pages, of which so many bytes say something.
fn due(weights: impl DoubleEndedIterator<Item = Weight> + Clone, live: usize) -> Option<Due> {
    let cost: usize = weights.clone().map(|page| page.size + PAGE_COST).sum();
    if cost > 2 * live + SLACK {
        return Some(Due::Rewrite);
    }
    small_run(weights.rev()).map(Due::Merge)
}

/// How many of the last pages (the last one first) to merge: when there are enough small ones at the end, these and as many
/// before them as are not larger than all that follow, so that each byte is written again a few times only. A page that is
/// half full, of filters or of bytes, is never merged again.
fn small_run(weights: impl Iterator<Item = Weight> + Clone) -> Option<usize> {
    let small = weights
        .take_while(|page| page.size < PAGE_BYTES_MAX / 2 && page.filters < PAGE_FILTERS_MAX / 2)
        .take(super::pagelog::TXN_PAGES_MAX);
    if small.clone().count() < SMALL_PAGES {
        return None;
    }
    let (mut run, mut sum) = (0, 0);
    for Weight { size, .. } in small {
        if (run >= SMALL_PAGES / 2 && size > sum) || sum + size > super::batch::REQUEST_BYTES_MAX {
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
    use page::{Fold, RoutePage};

    /// A log in memory, and what was written to it.
    #[derive(Default)]
    struct Log {
        pages: Vec<(RoutePage, Weight)>,
        live: usize,
        written: usize,
        most: usize,
    }

    impl Log {
        fn put(&mut self, packed: Vec<Packed>) {
            for packed in packed {
                self.written += packed.page.encode().len();
                let weight = Weight::of(&packed);
                self.pages.push((packed.page, weight));
            }
        }

        fn flush(&mut self, changes: Vec<RouteChange>) {
            self.live += changes.iter().map(|change| page::size_of(&change.filter)).sum::<usize>();
            self.put(page::pack(changes, false, PAGE_FILTERS_MAX, PAGE_BYTES_MAX));
            let weights = self.pages.iter().map(|(_, weight)| *weight);
            match due(weights, self.live) {
                Some(Due::Rewrite) => self.merge(self.pages.len()),
                Some(Due::Merge(run)) => self.merge(run),
                None => {}
            }
            self.most = self.most.max(self.pages.len());
        }

        fn merge(&mut self, run: usize) {
            let at = self.pages.len() - run;
            let old = self.pages.split_off(at);
            let merged = pack_merged(page::merge(old.into_iter().map(|(page, _)| page), at == 0));
            assert!(merged.len() < run, "{run} pages became {}", merged.len());
            self.put(merged);
        }
    }

    /// Writes new filters in flushes of these sizes, over and over; returns what was written as a multiple of what it is when
    /// it is packed in one go, and the most pages there were for as many full ones.
    fn churn(total: usize, flushes: &[usize]) -> (f64, usize, usize) {
        let (mut log, mut at) = (Log::default(), 0);
        for count in flushes.iter().cycle() {
            if at >= total {
                break;
            }
            let change = |i| RouteChange { filter: format!("sensor/{i:07}").into(), route: Some((false, 1)) };
            log.flush((at..at + count).map(change).collect());
            at += count;
        }
        let mut fold = Fold::default();
        log.pages.iter().for_each(|(page, _)| fold.page(page.clone()));
        assert_eq!(fold.len(), at);
        let routes =
            fold.into_routes().map(|route| RouteChange { filter: route.filter, route: Some((false, 1)) });
        let once: usize = pack_merged(routes.collect()).iter().map(|packed| packed.page.encode().len()).sum();
        (log.written as f64 / once as f64, log.most, at / PAGE_FILTERS_MAX)
    }

    #[test]
    fn short_filters_are_written_a_few_times_however_they_come() {
        for (flushes, times) in [
            (&[1][..], 6.0),
            (&[50], 3.0),
            (&[750], 3.0),
            (&[800], 3.0),
            (&[50, 750], 3.0),
            (&[&[1; 15][..], &[500]].concat(), 6.0),
            (&[400, 1, 1, 1, 700, 20], 3.0),
        ] {
            let total = if flushes == [1] { 20_000 } else { 100_000 };
            let (written, most, full) = churn(total, flushes);
            assert!(written < times, "flushes of {flushes:?} write {written:.1} times what they say");
            assert!(most <= 9 * full + 5 * SMALL_PAGES, "{most} pages for {full} full ones");
        }
    }
}
