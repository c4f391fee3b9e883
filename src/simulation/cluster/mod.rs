//! A cluster within one process, for tests and simulations: a coordination store and links between nodes without any I/O.
//! Both can be cut, held back and broken at will. On [`SimTasks`] everything happens in virtual time, in an order that a
//! seed replays.

mod coordinator;
mod link;
mod network;
mod random;
mod sim;
mod space;
mod store;
mod view;

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod store_tests;

pub use coordinator::MemoryCoordinator;
pub use network::{MemoryPeers, Network};
pub use random::Random;
pub use sim::{SimProcess, SimTasks};
pub use store::{Backup, Registration, Store};

use crate::ports::{BoxFuture, Unavailable};
use futures_util::future::{Either, select};
use std::future::{Future, poll_fn};
use std::task::Poll;

/// Lets everybody else go first.
pub(crate) async fn give_way() {
    let mut gave = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What `work` comes to, or `None` if `end` completes first.
async fn before<T>(work: impl Future<Output = T> + Unpin, end: BoxFuture<()>) -> Option<T> {
    match select(work, end).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

fn unavailable(why: &str) -> Unavailable {
    Unavailable(why.into())
}
