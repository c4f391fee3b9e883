//! Work that goes on by itself, on tokio.

use crate::clock::{self, Time};
use crate::ports::{BoxFuture, Tasks};
use std::time::Duration;
use tokio::runtime::Handle;

/// [`Tasks`] of a running process. Usable from any thread, those of the journal included.
#[derive(Clone, Debug)]
pub struct TokioTasks(Handle);

impl TokioTasks {
    /// On this runtime.
    pub fn new(runtime: Handle) -> TokioTasks {
        TokioTasks(runtime)
    }
}

impl Tasks for TokioTasks {
    fn spawn(&self, task: BoxFuture<()>) {
        self.0.spawn(task);
    }

    fn sleep(&self, ms: u64) -> BoxFuture<()> {
        // The timer is made when the future is first polled, within the runtime.
        let until = clock::now().plus_ms(ms);
        Box::pin(async move {
            tokio::time::sleep(clock::now().until(until).min(Duration::from_secs(86_400))).await
        })
    }

    fn now(&self) -> Time {
        clock::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn work_is_done_from_a_thread_that_has_no_runtime() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tasks: Arc<dyn Tasks> = Arc::new(TokioTasks::new(runtime.handle().clone()));
        let (done, wait) = std::sync::mpsc::channel();
        let began = tasks.now();
        let sleep = tasks.sleep(5);
        let clock = tasks.clone();
        tasks.spawn(Box::pin(async move {
            sleep.await;
            let _ = done.send(clock.now());
        }));
        let ended = wait.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(ended.since_ms(began) >= 5, "{began:?} {ended:?}");
    }
}
