//! Work that goes on by itself: the broker knows no runtime.

use crate::clock::Time;
use std::future::Future;
use std::pin::Pin;

/// A future that owns all it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Runs futures and tells the time to them.
pub trait Tasks: Send + Sync + 'static {
    /// Runs `task` to its end, whatever becomes of the caller.
    fn spawn(&self, task: BoxFuture<()>);

    /// Completes after `ms` milliseconds.
    fn sleep(&self, ms: u64) -> BoxFuture<()>;

    /// The time.
    fn now(&self) -> Time;
}
