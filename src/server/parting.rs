//! Parting from a client: it gets the last bytes, then the end, and what it still sends is read and thrown away for a while.
//!
//! A socket that is closed with unread bytes resets the connection, and a client that is still writing then never reads why
//! it was let go (RFC 1122 section 4.2.2.13). Its session may have another connection meanwhile.

use super::transport::Transport;
use crate::clock::{self, Time};
use crate::node::channel::Read;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a client may take to read the last bytes and to close its side, milliseconds.
const PARTING_MS: u64 = 1_000;

/// Sockets of clients that are being parted from; further ones are closed at once.
pub const PARTINGS_MAX: usize = 1024;

/// Reads in one turn.
const READS_MAX: usize = 16;

/// Counts the clients that are being parted from. Shared by all listeners.
#[derive(Clone, Debug)]
pub struct Partings(Arc<Semaphore>);

impl Default for Partings {
    fn default() -> Partings {
        Partings(Arc::new(Semaphore::new(PARTINGS_MAX)))
    }
}

impl Partings {
    /// Clients that are being parted from.
    pub fn under_way(&self) -> usize {
        PARTINGS_MAX - self.0.available_permits()
    }

    /// A client is let go `now`.
    pub(super) fn begin(&self, now: Time) -> Parting {
        let permit = self.0.clone().try_acquire_owned().ok();
        Parting { deadline: now.plus_ms(PARTING_MS), shut: false, permit }
    }
}

/// One client that is being parted from.
pub(super) struct Parting {
    deadline: Time,
    /// The peer was told that nothing more comes.
    shut: bool,
    /// `None` = there are too many: no waiting.
    permit: Option<OwnedSemaphorePermit>,
}

impl Parting {
    /// When the socket is closed whatever the client does.
    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }

    /// Writes what the client takes of `last`, and so on; true when the socket may be closed.
    pub(super) fn poll(
        &mut self,
        transport: &mut impl Transport,
        waker: &Waker,
        last: &mut Vec<u8>,
        buffer: &mut [u8],
        now: Time,
    ) -> bool {
        if !last.is_empty() {
            match transport.write(waker, last) {
                Ok(written) => drop(last.drain(..written)),
                Err(_) => return true,
            }
        }
        if last.is_empty() && !self.shut {
            self.shut = transport.shut(waker);
        }
        if self.permit.is_none() || self.deadline <= now {
            return true;
        }
        // Also while the last bytes wait: a client that writes first and reads then would never take them.
        for _ in 0..READS_MAX {
            match transport.drain(waker, buffer) {
                Read::Bytes(_) => {}
                Read::Nothing => return false,
                Read::Ended => return last.is_empty() && self.shut,
            }
        }
        waker.wake_by_ref();
        false
    }
}

/// Bytes read at a time of a client that was told `last` only.
const READ_BYTES: usize = 2048;

/// Parts from a client that never was served: it is told `last`.
pub(super) async fn part(transport: &mut impl Transport, mut last: Vec<u8>, partings: &Partings) {
    let mut parting = partings.begin(clock::now());
    let sleep = tokio::time::sleep_until(Instant::from_std(clock::instant(parting.deadline())));
    tokio::pin!(sleep);
    poll_fn(|cx| {
        let due = sleep.as_mut().poll(cx).is_ready();
        let mut buffer = [0; READ_BYTES];
        let over = parting.poll(transport, cx.waker(), &mut last, &mut buffer, clock::now());
        if over || due { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
