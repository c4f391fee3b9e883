//! What is to be done once the journal is durable up to some point, in order.

use super::{Cluster, Remote};
use crate::ports::Lsn;
pub use crate::ports::durable;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<(Lsn, T)>,
    /// A task waits for the first one.
    attended: bool,
}

/// What is to be done once the journal is durable up to some point, in the order in which it was added.
#[derive(Debug)]
pub struct AfterDurable<T>(Mutex<Inner<T>>);

impl<T> Default for AfterDurable<T> {
    fn default() -> AfterDurable<T> {
        AfterDurable(Mutex::new(Inner { items: VecDeque::new(), attended: false }))
    }
}

impl<T> AfterDurable<T> {
    /// Adds an item; true if nobody waits for the journal: the caller has to.
    fn push(&self, lsn: Lsn, item: T) -> bool {
        let mut inner = self.0.lock();
        inner.items.push_back((lsn, item));
        !std::mem::replace(&mut inner.attended, true)
    }

    /// What the first one waits for; `None`, and nobody waits any more, if there is none.
    fn first(&self) -> Option<Lsn> {
        let mut inner = self.0.lock();
        let first = inner.items.front().map(|(lsn, _)| *lsn);
        inner.attended = first.is_some();
        first
    }

    /// All items up to the first one that is not durable.
    fn take(&self, durable: Lsn) -> Vec<T> {
        let mut inner = self.0.lock();
        let n = inner.items.iter().take_while(|(lsn, _)| *lsn <= durable).count();
        inner.items.drain(..n).map(|(_, item)| item).collect()
    }
}

impl Cluster {
    /// Calls `run` with `item`, after all items that were added before, once the journal is durable up to `lsn`.
    pub fn after_durable<T: Send + 'static>(
        &self,
        remote: &Arc<Remote>,
        queue: fn(&Remote) -> &AfterDurable<T>,
        lsn: Lsn,
        item: T,
        run: fn(&Cluster, &Arc<Remote>, Vec<T>),
    ) {
        if !queue(remote).push(lsn, item) {
            return;
        }
        let (cluster, journal, remote) = (self.me.clone(), self.broker.journal.clone(), remote.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            while let Some(lsn) = queue(&remote).first() {
                durable(journal.clone(), lsn).await;
                let Some(cluster) = cluster.upgrade() else { return };
                run(&cluster, &remote, queue(&remote).take(journal.durable()));
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_and_one_waits_for_all() {
        let q = AfterDurable::default();
        assert!(q.push(5, 'a'));
        assert!(!q.push(7, 'b') && !q.push(6, 'c'));
        assert_eq!(q.first(), Some(5));
        assert_eq!(q.take(6), ['a'], "c is behind b");
        assert_eq!(q.take(7), ['b', 'c']);
        assert_eq!(q.first(), None);
        assert!(q.push(8, 'd'), "nobody waits any more");
    }
}
