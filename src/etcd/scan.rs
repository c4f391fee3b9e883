//! Reads all keys below a prefix, a page at a time. The pages are not of one revision: what changes meanwhile is seen or not.

use super::client::Etcd;
use super::error::EtcdError;
use etcd_client::{GetOptions, KeyValue};

/// Keys of a page.
const PAGE_KEYS: i64 = 5_000;

/// Reads all keys below a prefix, a page at a time.
pub struct Scan {
    next: Vec<u8>,
    end: Vec<u8>,
    keys_only: bool,
    done: bool,
}

impl Scan {
    /// All keys that begin with `prefix`, which ends with a `/`.
    pub fn new(prefix: String) -> Scan {
        let next = prefix.into_bytes();
        let mut end = next.clone();
        // `0` comes after `/`.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Scan { next, end, keys_only: false, done: false }
    }

    /// As [`Scan::new`], without the values.
    pub fn keys_only(prefix: String) -> Scan {
        Scan { keys_only: true, ..Scan::new(prefix) }
    }

    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// If etcd does not answer; the page may be asked for again.
    pub async fn page(&mut self, etcd: &Etcd) -> Result<Option<Vec<KeyValue>>, EtcdError> {
        if self.done {
            return Ok(None);
        }
        let mut options = GetOptions::new().with_range(self.end.clone()).with_limit(PAGE_KEYS);
        if self.keys_only {
            options = options.with_keys_only();
        }
        let mut answer = etcd.get(self.next.clone(), Some(options)).await?;
        let page = answer.take_kvs();
        match page.last() {
            Some(last) if answer.more() => {
                self.next = last.key().to_vec();
                self.next.push(0);
            }
            _ => self.done = true,
        }
        Ok(Some(page))
    }
}
