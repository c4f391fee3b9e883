//! Linearizable reads: all that wait share one request.

use super::batch::REQUEST_BYTES_MAX;
use super::client::Etcd;
use super::error::EtcdError;
use crate::ports::Revision;
use crate::telemetry::Metrics;
use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Keys read by one request.
const KEYS_MAX: usize = 100;

/// Requests on their way at once.
const FLYING_MAX: usize = 4;

/// Callers that wait, at most; more are told so at once.
pub const READERS_MAX: usize = 65_536;

/// A key as read.
#[derive(Clone, Debug)]
pub struct Found {
    /// The value and its revision, if the key is there.
    pub value: Option<(Vec<u8>, Revision)>,
    /// Of the read: not older than anything written before it was asked for.
    pub revision: Revision,
}

type Answer = oneshot::Sender<Result<Found, Arc<str>>>;

#[derive(Default)]
struct State {
    /// `None` = the revision only.
    waiting: Vec<(Option<String>, Answer)>,
    flying: usize,
}

/// Linearizable reads: all that wait share one request.
pub struct Reads {
    shared: Arc<Shared>,
    driver: tokio::task::JoinHandle<()>,
}

struct Shared {
    etcd: Etcd,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Notify,
    /// A key that costs nothing to ask for: a transaction without one would not be a linearizable read.
    anchor: String,
}

impl Reads {
    /// Starts it. Needs a runtime.
    pub fn new(etcd: Etcd, anchor: String, metrics: Arc<Metrics>) -> Reads {
        let shared = Arc::new(Shared { etcd, metrics, state: Mutex::default(), wake: Notify::new(), anchor });
        let driver = tokio::spawn(drive(shared.clone()));
        Reads { shared, driver }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Why etcd did not answer in time.
    pub fn get(&self, key: String) -> impl Future<Output = Result<Found, Arc<str>>> + Send + 'static {
        self.ask(Some(key))
    }

    /// Asks for the store's revision.
    ///
    /// # Errors
    /// Why etcd did not answer in time.
    pub fn revision(&self) -> impl Future<Output = Result<Revision, Arc<str>>> + Send + 'static {
        let asked = self.ask(None);
        async move { asked.await.map(|found| found.revision) }
    }

    fn ask(&self, key: Option<String>) -> impl Future<Output = Result<Found, Arc<str>>> + Send + 'static {
        let (answer, outcome) = oneshot::channel();
        let mut state = self.shared.state.lock();
        if state.waiting.len() < READERS_MAX {
            state.waiting.push((key, answer));
        } else {
            let _ = answer.send(Err("too many requests wait for etcd".into()));
        }
        drop(state);
        self.shared.wake.notify_one();
        async move { outcome.await.unwrap_or_else(|_| Err("this node is stopping".into())) }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn drive(shared: Arc<Shared>) {
    loop {
        let batch = {
            let mut state = shared.state.lock();
            let full = state.waiting.len() >= KEYS_MAX;
            if state.waiting.is_empty() || (state.flying > 0 && !full) || state.flying >= FLYING_MAX {
                None
            } else {
                state.flying += 1;
                Some(state.take())
            }
        };
        match batch {
            Some(batch) => {
                tokio::spawn(fly(shared.clone(), batch));
            }
            None => shared.wake.notified().await,
        }
    }
}

impl State {
    /// The callers of one request: the first keys that fit into it, and all that want the revision only.
    fn take(&mut self) -> Vec<(Option<String>, Answer)> {
        let (mut keys, mut bytes) = (0, 0);
        let mut fits = |key: &Option<String>| {
            let Some(key) = key else { return true };
            keys += 1;
            bytes += key.len();
            keys == 1 || (keys <= KEYS_MAX && bytes <= REQUEST_BYTES_MAX)
        };
        self.waiting.extract_if(.., |(key, _)| fits(key)).collect()
    }
}

async fn fly(shared: Arc<Shared>, batch: Vec<(Option<String>, Answer)>) {
    let outcome = shared.read(&batch).await;
    shared.state.lock().flying -= 1;
    shared.wake.notify_one();
    match outcome {
        Ok((values, revision)) => {
            let mut values = values.into_iter();
            for (key, answer) in batch {
                let value = key.and_then(|_| values.next().flatten());
                let _ = answer.send(Ok(Found { value, revision }));
            }
        }
        Err(error) => {
            shared.metrics.etcd_errors.inc();
            let why: Arc<str> = error.to_string().into();
            for (_, answer) in batch {
                let _ = answer.send(Err(why.clone()));
            }
        }
    }
}

type Values = Vec<Option<(Vec<u8>, Revision)>>;

impl Shared {
    async fn read(&self, batch: &[(Option<String>, Answer)]) -> Result<(Values, Revision), EtcdError> {
        let anchor = TxnOp::get(&*self.anchor, Some(GetOptions::new().with_keys_only()));
        let mut gets = vec![anchor];
        gets.extend(batch.iter().filter_map(|(key, _)| key.as_deref()).map(|key| TxnOp::get(key, None)));
        let txn = Txn::new().and_then(gets);
        let response = self.etcd.retry(|client| {
            let txn = txn.clone();
            async move { super::client::kv(&client).txn(txn).await }
        });
        let response = response.await?;
        let revision = response.header().map_or(0, |h| h.revision()) as Revision;
        let value = |response: TxnOpResponse| match response {
            TxnOpResponse::Get(get) => {
                get.kvs().first().map(|kv| (kv.value().to_vec(), kv.mod_revision() as Revision))
            }
            _ => None,
        };
        Ok((response.op_responses().into_iter().skip(1).map(value).collect(), revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_many_keys_as_fit() {
        let read = |key: Option<&str>| (key.map(str::to_owned), oneshot::channel().0);
        let mut state = State::default();
        let long = "x".repeat(REQUEST_BYTES_MAX / 4);
        state.waiting.extend([None, Some(&*long), Some(&*long), Some(&*long), Some(&*long)].map(read));
        state.waiting.extend([Some("a"), None].map(read));
        assert_eq!(state.take().len(), 6);
        assert_eq!(state.take().len(), 1);
        state.waiting.extend([Some(&*"x".repeat(2 * REQUEST_BYTES_MAX)), Some("a")].map(read));
        assert_eq!(state.take().len(), 1, "one that is too long goes alone");
        state.waiting.extend(["a"; 150].map(|key| read(Some(key))));
        assert_eq!((state.take().len(), state.take().len()), (KEYS_MAX, 51));
    }
}
