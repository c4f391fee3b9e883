//! A value that is said once and heard by everyone who waits for it.

use crate::ports::BoxFuture;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

#[derive(Debug)]
struct Inner<T> {
    value: Option<T>,
    waiting: Vec<Waker>,
}

/// A value that is said once and heard by everyone who waits for it.
#[derive(Debug)]
pub struct Once<T>(Mutex<Inner<T>>);

impl<T> Default for Once<T> {
    fn default() -> Once<T> {
        Once(Mutex::new(Inner { value: None, waiting: Vec::new() }))
    }
}

impl<T: Clone + Send + 'static> Once<T> {
    /// Nothing was said yet.
    pub fn new() -> Arc<Once<T>> {
        Arc::default()
    }

    /// Says it. Only the first call counts; false for all others.
    pub fn set(&self, value: T) -> bool {
        let mut inner = self.0.lock();
        if inner.value.is_some() {
            return false;
        }
        inner.value = Some(value);
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
        true
    }

    /// What was said, if anything.
    pub fn get(&self) -> Option<T> {
        self.0.lock().value.clone()
    }

    /// What was said; else `waker` is woken when it is.
    pub fn poll(&self, waker: &Waker) -> Option<T> {
        let mut inner = self.0.lock();
        if inner.value.is_none() && !inner.waiting.iter().any(|w| w.will_wake(waker)) {
            inner.waiting.push(waker.clone());
        }
        inner.value.clone()
    }

    /// Completes when it is said.
    pub fn wait(self: &Arc<Once<T>>) -> BoxFuture<T> {
        let this = self.clone();
        Box::pin(poll_fn(move |cx| match this.poll(cx.waker()) {
            Some(value) => Poll::Ready(value),
            None => Poll::Pending,
        }))
    }
}
