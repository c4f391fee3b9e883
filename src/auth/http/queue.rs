//! Clients that wait until the hook has said who they are: a bounded number, of all addresses and of each.

use crate::hashing::HashMap;
use crate::host::host;
use parking_lot::Mutex;
use std::net::IpAddr;

/// Clients that may wait for the hook's word on them.
pub const HOOK_WAITING_MAX: usize = 10_000;

/// Clients of one address (of IPv6: one /64) that may wait for the hook's word, so that no address keeps all others waiting.
pub const HOOK_WAITING_PER_ADDRESS_MAX: usize = 1_000;

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Clients that wait until the hook has said who they are: a bounded number, of all addresses and of each.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<Counts>);

/// One that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    queue: &'a Queue,
    address: IpAddr,
}

impl Queue {
    /// One more from `address`; `None` if too many wait.
    pub fn enter(&self, address: IpAddr) -> Option<Place<'_>> {
        let address = host(address);
        let mut counts = self.0.lock();
        if counts.total >= HOOK_WAITING_MAX {
            return None;
        }
        let mine = counts.by_address.entry(address).or_default();
        if *mine >= HOOK_WAITING_PER_ADDRESS_MAX {
            return None;
        }
        *mine += 1;
        counts.total += 1;
        Some(Place { queue: self, address })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.queue.0.lock();
        counts.total = counts.total.saturating_sub(1);
        if let Some(mine) = counts.by_address.get_mut(&self.address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_fill_the_queue() {
        let queue = Queue::default();
        let from = |text: &str| queue.enter(text.parse().unwrap());
        let mut greedy: Vec<_> =
            (0..HOOK_WAITING_PER_ADDRESS_MAX).map(|_| from("2001:db8::1").unwrap()).collect();
        assert!(from("2001:db8::2").is_none(), "the same network");
        let other = from("192.0.2.1").unwrap();
        greedy.pop();
        assert!(from("2001:db8::3").is_some());
        drop(other);
        let mut all: Vec<_> = Vec::new();
        for n in 0..HOOK_WAITING_MAX - greedy.len() {
            all.push(queue.enter(IpAddr::V4((u32::try_from(n).unwrap() + 1).into())).unwrap());
        }
        assert!(from("203.0.113.1").is_none(), "there is a bound on all together");
        drop((greedy, all));
        let counts = queue.0.lock();
        assert!(counts.total == 0 && counts.by_address.is_empty());
    }
}
