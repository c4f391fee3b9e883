//! A promise of the rest of the cluster, such as that all nodes have a publish: an answer to a client waits for it besides waiting for the
//! journal.

use crate::mqtt::Reason;
use crate::ports::Lsn;
use parking_lot::Mutex;
use std::sync::Arc;
use std::task::Waker;

/// What became of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The promise is kept. For a publish: whether any subscription matched on another node.
    Done {
        /// Whether another node had a subscriber.
        matched: bool,
    },
    /// The promise cannot be kept; the client is told this reason.
    Failed(Reason),
}

#[derive(Debug, Default)]
struct Inner {
    kept: Option<Kept>,
    /// Parts besides the first that must be kept as well.
    more: usize,
    matched: bool,
    /// What was done here to keep it is safe once the journal is durable up to here.
    lsn: Lsn,
    waker: Option<Waker>,
}

/// A promise of the rest of the cluster. Shared by the one who waits and the one who keeps it.
#[derive(Debug, Default)]
pub struct Promise(Mutex<Inner>);

impl Promise {
    /// A promise that is not kept yet.
    pub fn new() -> Arc<Promise> {
        Arc::default()
    }

    /// Makes this a promise of one part more: [`Promise::keep`] must be called once more. To be called before anybody waits for it.
    pub fn add_part(&self) {
        let mut inner = self.0.lock();
        match inner.kept {
            Some(Kept::Done { .. }) => inner.kept = None,
            Some(Kept::Failed(_)) => {}
            None => inner.more += 1,
        }
    }

    /// Makes the promise hold no sooner than when the journal of this node is durable up to `lsn`. To be called before the part is kept
    /// that needs it.
    pub fn needs(&self, lsn: Lsn) {
        let mut inner = self.0.lock();
        inner.lsn = inner.lsn.max(lsn);
    }

    /// Up to where the journal of this node must be durable besides.
    pub fn lsn(&self) -> Lsn {
        self.0.lock().lsn
    }

    /// Keeps one part of the promise. The last part settles it, or the first that fails, and wakes whoever waits; later calls do not count.
    pub fn keep(&self, kept: Kept) {
        let mut inner = self.0.lock();
        if inner.kept.is_some() {
            return;
        }
        let kept = match kept {
            Kept::Done { matched } => {
                inner.matched |= matched;
                if inner.more > 0 {
                    inner.more -= 1;
                    return;
                }
                Kept::Done { matched: inner.matched }
            }
            failed @ Kept::Failed(_) => failed,
        };
        inner.kept = Some(kept);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What became of the promise, if that is known.
    pub fn kept(&self) -> Option<Kept> {
        self.0.lock().kept
    }

    /// Completes once the promise is settled. One waiter.
    pub async fn when_kept(&self) {
        std::future::poll_fn(|cx| match self.wake_when_kept(cx.waker()) {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        })
        .await;
    }

    /// Wakes `waker` once the promise is settled; false, and nothing is kept, if it is already. One waiter: the last one counts.
    pub fn wake_when_kept(&self, waker: &Waker) -> bool {
        let mut inner = self.0.lock();
        if inner.kept.is_some() {
            return false;
        }
        match &mut inner.waker {
            Some(w) => w.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_first_outcome_counts_and_wakes_once() {
        let (promise, count) = (Promise::new(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        assert!(promise.wake_when_kept(&waker));
        assert_eq!(promise.kept(), None);
        promise.keep(Kept::Done { matched: true });
        promise.keep(Kept::Failed(Reason::UnspecifiedError));
        assert_eq!(promise.kept(), Some(Kept::Done { matched: true }));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(!promise.wake_when_kept(&waker));
    }

    #[test]
    fn a_promise_of_parts_is_kept_with_the_last_or_fails_with_the_first() {
        let promise = Promise::new();
        promise.add_part();
        promise.keep(Kept::Done { matched: true });
        assert_eq!(promise.kept(), None);
        promise.keep(Kept::Done { matched: false });
        assert_eq!(promise.kept(), Some(Kept::Done { matched: true }));
        promise.add_part();
        assert_eq!(promise.kept(), None);
        promise.keep(Kept::Failed(Reason::QuotaExceeded));
        assert_eq!(promise.kept(), Some(Kept::Failed(Reason::QuotaExceeded)));
    }
}
