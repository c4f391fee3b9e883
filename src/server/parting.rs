//! Parting from a client: it gets the last bytes, then the end, and what it still sends is read and thrown away for a while.
//!
//! A socket that is closed with unread bytes resets the connection, and a client that is still writing then never reads why
//! it was let go (RFC 1122 section 4.2.2.13). Its session may have another connection meanwhile.

use super::socket::Tcp;
use crate::broker::link::{Read, Socket};
use crate::clock::Time;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
        socket: &mut Tcp<'_>,
        last: &mut Vec<u8>,
        buffer: &mut [u8],
        now: Time,
    ) -> bool {
        if !last.is_empty() {
            match socket.write(last) {
                Ok(written) => drop(last.drain(..written)),
                Err(_) => return true,
            }
        }
        if last.is_empty() && !self.shut {
            self.shut = socket.shut();
        }
        if self.permit.is_none() || self.deadline <= now {
            return true;
        }
        // Also while the last bytes wait: a client that writes first and reads then would never take them.
        for _ in 0..READS_MAX {
            match socket.read(buffer) {
                Read::Bytes(_) => {}
                Read::Nothing => return false,
                Read::Ended => return last.is_empty(),
            }
        }
        socket.wake();
        false
    }
}
