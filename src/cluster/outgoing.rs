//! A session that is being handed over: its state in parts, so that none is too large for one answer.

use super::parts::{Format, encode_message};
use super::sessions::Sessions;
use super::{Cluster, Remote};
use crate::broker::handle::Handle;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::ports::{BoxFuture, MemberId, Response, Revision, Seq, Stored};
use crate::sync::Once;
use crate::sync::lanes::Lane;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of one part of a session's state, well below what the answer of a node may have.
pub const PART_BYTES_MAX: usize = 4 << 20;

/// Messages in one part of a session's state.
const PART_MESSAGES_MAX: usize = 128;

/// Messages read from the journal at a time for a part: so many are in memory beyond its size.
const PART_READ_MAX: usize = 16;

/// A session that is being handed over to another node, in parts.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) correlation: Arc<str>,
    pub(super) to: MemberId,
    pub(super) handle: Arc<Handle>,
    pub(super) since: Time,
    format: Format,
    parts: Mutex<Parts>,
    /// What the new owner said: the revision of its claim, or `None` = it gave up.
    pub(super) taken: Arc<Once<Option<Revision>>>,
    /// The session is served again, or gone.
    pub(super) settled: Arc<Once<()>>,
    #[allow(dead_code)] // held until the end
    lane: Lane,
}

/// The takeovers that this node is asked for and that have not begun: how many requests there are for each, and whether it was given up
/// meanwhile.
#[derive(Debug, Default)]
pub struct TakeoverRequests(Mutex<HashMap<Arc<str>, (usize, bool)>>);

/// A request for a takeover, while it waits.
#[derive(Debug)]
pub(super) struct TakeoverRequest {
    asked: Arc<TakeoverRequests>,
    correlation: Arc<str>,
}

impl TakeoverRequests {
    pub(super) fn join(self: &Arc<TakeoverRequests>, correlation: &Arc<str>) -> TakeoverRequest {
        self.0.lock().entry(correlation.clone()).or_default().0 += 1;
        TakeoverRequest { asked: self.clone(), correlation: correlation.clone() }
    }

    /// Takes note that who asked for a takeover does not want it any more.
    pub(super) fn give_up(&self, correlation: &str) {
        if let Some((_, given_up)) = self.0.lock().get_mut(correlation) {
            *given_up = true;
        }
    }
}

impl TakeoverRequest {
    pub(super) fn given_up(&self) -> bool {
        self.asked.0.lock().get(&self.correlation).is_some_and(|(_, given_up)| *given_up)
    }
}

impl Drop for TakeoverRequest {
    fn drop(&mut self) {
        let mut asked = self.asked.0.lock();
        if let Some((requests, _)) = asked.get_mut(&self.correlation) {
            *requests -= 1;
            if *requests == 0 {
                asked.remove(&self.correlation);
            }
        }
    }
}

#[derive(Debug)]
struct Parts {
    /// The last part that was given, for the case that it got lost.
    last: (u32, Bytes, bool),
    /// Encoded, but not given yet.
    ready: BytesMut,
    /// What is still to be read.
    left: VecDeque<Seq>,
    touched: Time,
}

impl Parts {
    /// The next part of what is ready is the last one given.
    fn give(&mut self, part: u32) {
        let n = self.ready.len().min(PART_BYTES_MAX);
        let bytes = self.ready.split_to(n).freeze();
        self.last = (part, bytes, self.ready.is_empty() && self.left.is_empty());
    }

    /// The last part again.
    fn response(&self) -> Response {
        let (_, bytes, last) = &self.last;
        Response::State { bytes: bytes.clone(), last: *last }
    }
}

impl Outgoing {
    /// A session that was just frozen for `to`: its encoded head, and the messages to be read.
    pub(super) fn new(
        correlation: Arc<str>,
        to: MemberId,
        handle: Arc<Handle>,
        (since, now): (Time, Time),
        format: Format,
        (head, left): (BytesMut, VecDeque<Seq>),
        lane: Lane,
    ) -> Outgoing {
        let mut parts = Parts { last: (0, Bytes::new(), false), ready: head, left, touched: now };
        parts.give(0);
        let (taken, settled) = (Once::new(), Once::new());
        Outgoing { correlation, to, handle, since, format, parts: Mutex::new(parts), taken, settled, lane }
    }

    /// The first part, if none was given after it.
    pub(super) fn first(&self) -> Option<Response> {
        let parts = self.parts.lock();
        (parts.last.0 == 0).then(|| parts.response())
    }

    /// When the new owner last asked for a part.
    pub(super) fn touched(&self) -> Time {
        self.parts.lock().touched
    }
}

impl Cluster {
    /// More of the state of a frozen session.
    pub(super) async fn next_part(&self, client_id: &str, correlation: &str, part: u32) -> Response {
        let remote = &self.remote;
        let Some(outgoing) = remote.sessions.outgoing(client_id, correlation) else {
            return Response::NotHere;
        };
        let not_due = || Response::Refused("that part was not due".into());
        let batch: Vec<Seq> = {
            let mut parts = outgoing.parts.lock();
            parts.touched = remote.now();
            if parts.last.0 == part {
                return parts.response();
            }
            if parts.last.0 + 1 != part || parts.last.2 {
                return not_due();
            }
            let n = if parts.ready.is_empty() { PART_MESSAGES_MAX } else { 0 };
            parts.left.iter().take(n).copied().collect()
        };
        let (read, bytes) = self.encode_some(remote, &outgoing, &batch).await;
        let mut parts = outgoing.parts.lock();
        parts.touched = remote.now();
        // Asked for twice at once: the second time it is there.
        if parts.last.0 + 1 == part {
            parts.left.drain(..read);
            if parts.ready.is_empty() {
                parts.ready = bytes;
            }
            parts.give(part);
        }
        if parts.last.0 == part { parts.response() } else { not_due() }
    }

    /// Messages of a session for its next part: how many were read until there was enough, and their encoding.
    async fn encode_some(&self, remote: &Remote, out: &Outgoing, seqs: &[Seq]) -> (usize, BytesMut) {
        let (mut read, mut bytes) = (0, BytesMut::new());
        for some in seqs.chunks(PART_READ_MAX) {
            let found = self.read(out.handle.no, some.to_vec()).await;
            let now = remote.now();
            found.iter().for_each(|stored| encode_message(&mut bytes, stored, out.format, now));
            read += some.len();
            if bytes.len() >= PART_BYTES_MAX {
                break;
            }
        }
        (read, bytes)
    }

    /// Reads messages of a session from the journal.
    fn read(&self, session: u64, seqs: Vec<Seq>) -> BoxFuture<Vec<Stored>> {
        let found = Once::new();
        let read = found.clone();
        self.broker.journal.read(
            session,
            seqs,
            Box::new(move |stored| {
                read.set(stored);
            }),
        );
        found.wait()
    }
}

impl Remote {
    /// What is known of a takeover that `to` asks for: its first part, if the session is frozen for it already. Who asks
    /// anew has given up what it asked for before, though it could not say so.
    pub(super) fn asked_before(&self, to: &MemberId, client_id: &str, correlation: &str) -> Option<Response> {
        let outgoing = self.sessions.outgoing.lock().get(client_id).cloned()?;
        if *outgoing.correlation == *correlation {
            let late = || Response::Refused("the first part was given long ago".into());
            return Some(outgoing.first().unwrap_or_else(late));
        }
        if outgoing.to == *to {
            outgoing.taken.set(None);
        }
        None
    }
}

impl Sessions {
    pub(super) fn outgoing(&self, client_id: &str, correlation: &str) -> Option<Arc<Outgoing>> {
        self.outgoing.lock().get(client_id).filter(|o| *o.correlation == *correlation).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_may_be_given_up_before_it_begins() {
        let asked = Arc::new(TakeoverRequests::default());
        let (one, other): (Arc<str>, Arc<str>) = ("b@2/1".into(), "b@2/2".into());
        let (first, again, another) = (asked.join(&one), asked.join(&one), asked.join(&other));
        asked.give_up(&one);
        assert!(first.given_up() && again.given_up() && !another.given_up());
        drop(first);
        assert!(again.given_up(), "as long as a request waits");
        drop((again, another));
        asked.give_up(&one);
        assert!(asked.0.lock().is_empty());
    }
}
