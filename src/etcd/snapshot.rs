//! Reads all keys of the cluster as they were at one revision, page by page.

use super::client::Etcd;
use super::decode::RawEvent;
use super::error::EtcdError;
use crate::ports::Revision;
use bytes::Bytes;
use etcd_client::GetOptions;

/// Keys of the first page; the next ones are as large as [`PAGE_BYTES`] allows.
const FIRST_PAGE: usize = 256;

/// Keys of a page, at most.
pub const PAGE_KEYS_MAX: usize = 10_000;

/// A page of so few keys that was not answered in time is not tried with fewer: etcd is away.
const PAGE_KEYS_FEW: usize = 16;

/// Bytes of a page to aim at.
const PAGE_BYTES: usize = 4 << 20;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// etcd did not answer.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The revision was compacted while its pages were read.
    #[error("etcd compacted revision {0} while it was read")]
    Compacted(Revision),
}

/// Reads all keys that begin with `prefix`, in order, and hands them to `page`. Returns the revision that all of them are of.
///
/// # Errors
/// Some pages may have been handed over by then.
pub async fn read(
    etcd: &Etcd,
    prefix: &str,
    page: impl FnMut(Vec<RawEvent>),
) -> Result<Revision, SnapshotError> {
    read_range(etcd, prefix.as_bytes().to_vec(), end_of(prefix.as_bytes()), page).await
}

/// As [`read`], all keys from one on to before another.
///
/// # Errors
/// As [`read`].
pub async fn read_range(
    etcd: &Etcd,
    mut from: Vec<u8>,
    end: Vec<u8>,
    mut page: impl FnMut(Vec<RawEvent>),
) -> Result<Revision, SnapshotError> {
    let mut revision: Option<i64> = None;
    let mut limit = FIRST_PAGE;
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_limit(limit as i64)
            .with_revision(revision.unwrap_or(0));
        let mut response = match etcd.get(from.clone(), Some(options)).await {
            Ok(response) => response,
            Err(EtcdError::Compacted { .. }) => {
                return Err(SnapshotError::Compacted(revision.unwrap_or(0) as Revision));
            }
            Err(error) => match fewer(limit, &error) {
                Some(fewer) => {
                    limit = fewer;
                    continue;
                }
                None => return Err(error.into()),
            },
        };
        let header = response.header().map_or(0, |header| header.revision());
        revision.get_or_insert(header);
        let more = response.more();
        let events: Vec<RawEvent> =
            response.take_kvs().into_iter().map(|kv| raw_event!(kv.0, false)).collect();
        if let Some(last) = events.last() {
            from = [&last.key[..], &[0]].concat();
            let bytes: usize = events.iter().map(size).sum();
            limit = (PAGE_BYTES / (bytes / events.len()).max(1)).clamp(1, PAGE_KEYS_MAX).min(limit * 2);
        }
        let done = !more || events.is_empty();
        page(events);
        if done {
            return Ok(revision.unwrap_or(header) as Revision);
        }
    }
}

/// How many keys to try with after a page of `limit` failed, if its size may be the reason: what comes next may be far larger
/// than what came before.
fn fewer(limit: usize, error: &EtcdError) -> Option<usize> {
    match error {
        EtcdError::Refused { what, .. } if what.contains("message length too large") => {
            (limit > 1).then_some(limit / 4)
        }
        EtcdError::TimedOut { .. } => (limit > PAGE_KEYS_FEW).then_some(limit / 16),
        _ => None,
    }
    .map(|fewer| fewer.max(1))
}

fn size(event: &RawEvent) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, Bytes::len)
}

/// The first key that does not begin with `prefix`.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

macro_rules! raw_event {
    ($kv:expr, $deleted:expr) => {{
        let kv = $kv;
        let value = (!$deleted).then(|| bytes::Bytes::from(kv.value));
        RawEvent {
            key: bytes::Bytes::from(kv.key),
            value,
            revision: kv.mod_revision as crate::ports::Revision,
            created: kv.create_revision as crate::ports::Revision,
        }
    }};
}
pub(super) use raw_event;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_may_be_too_large_is_tried_with_fewer_keys() {
        let endpoint: std::sync::Arc<str> = "http://e:2379".into();
        let late =
            EtcdError::TimedOut { endpoint: endpoint.clone(), after: std::time::Duration::from_secs(3) };
        assert_eq!(fewer(PAGE_KEYS_MAX, &late), Some(625));
        assert_eq!(fewer(17, &late), Some(1));
        assert_eq!(fewer(PAGE_KEYS_FEW, &late), None);
        let what = "Error, decoded message length too large: found 600000000 bytes".to_owned();
        let large = EtcdError::Refused { endpoint: endpoint.clone(), what };
        assert_eq!((fewer(100, &large), fewer(3, &large), fewer(1, &large)), (Some(25), Some(1), None));
        assert_eq!(fewer(100, &EtcdError::Unreachable { endpoint, what: String::new() }), None);
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
    }
}
