//! Connections that have not sent CONNECT yet: there is a bound on them, and nobody keeps others out by filling it.
//!
//! When it is reached, the oldest one of the address that has most of them gives way. Whoever is honest needs little time, and has it:
//! none gives way sooner than [`GRACE_MS`], or [`CROWDED_GRACE_MS`] if its address has many.

use crate::clock::Time;
use crate::host::host;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// How long a connection has before it may have to give way, milliseconds.
pub const GRACE_MS: u64 = 1_000;

/// The same for connections of an address that has more than [`SHARE`] of all.
pub const CROWDED_GRACE_MS: u64 = 100;

/// The part of the bound, one in so many, that one address may have without being in a hurry.
const SHARE: usize = 8;

/// Who waits, by address.
#[derive(Debug)]
struct Waiting {
    id: u64,
    since: Time,
    task: Option<AbortHandle>,
    /// The listener that it came to, once its task is known.
    listener: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Inner {
    by_address: HashMap<IpAddr, VecDeque<Waiting>>,
    total: usize,
    next: u64,
}

/// All connections that have not sent CONNECT yet. Shared by all listeners.
#[derive(Clone, Debug)]
pub struct Crowd {
    inner: Arc<Mutex<Inner>>,
    max: usize,
}

/// The place of a connection in the crowd, which it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Entrance {
    crowd: Crowd,
    address: IpAddr,
    id: u64,
}

/// What comes of a new connection.
#[derive(Debug)]
pub(super) enum Entry {
    /// There is room for it. An older one of this address had to give way for it, if one did.
    In(Entrance, Option<IpAddr>),
    /// There will be room at this time at the latest.
    Later(Time),
}

impl Crowd {
    /// One with room for `max` connections.
    pub fn new(max: usize) -> Crowd {
        Crowd { inner: Arc::default(), max }
    }

    /// A connection from `address` comes.
    pub(super) fn enter(&self, address: IpAddr, now: Time) -> Entry {
        let address = host(address);
        let mut inner = self.inner.lock();
        let mut gone = None;
        if inner.total >= self.max {
            let crowded = (self.max / SHARE).max(1);
            let oldest = |queue: &VecDeque<Waiting>| queue.front().map_or(now, |w| w.since);
            let fullest = inner
                .by_address
                .iter()
                .max_by_key(|(_, queue)| (queue.len(), std::cmp::Reverse(oldest(queue))))
                .map(|(address, queue)| (*address, queue.len(), oldest(queue)));
            if let Some((fullest, len, since)) = fullest {
                let grace = if len > crowded { CROWDED_GRACE_MS } else { GRACE_MS };
                if since.plus_ms(grace) > now {
                    return Entry::Later(since.plus_ms(grace));
                }
                if let Some(task) = inner.remove(fullest, None).and_then(|w| w.task) {
                    task.abort();
                }
                gone = Some(fullest);
            }
        }
        let id = inner.next;
        inner.next += 1;
        inner.total += 1;
        inner.by_address.entry(address).or_default().push_back(Waiting {
            id,
            since: now,
            task: None,
            listener: None,
        });
        drop(inner);
        Entry::In(Entrance { crowd: self.clone(), address, id }, gone)
    }

    /// There is no room for a further connection to `listener` (`None` = to any) among those that are counted, with CONNECT and
    /// without: those without give way that had time enough, be they ever so few. Whose they were, and how many.
    pub(super) fn give_way(&self, listener: Option<&str>, now: Time) -> Option<(IpAddr, usize)> {
        let mut inner = self.inner.lock();
        let here = |w: &Waiting| listener.is_none_or(|name| w.listener.as_deref() == Some(name));
        let count = |queue: &VecDeque<Waiting>| queue.iter().filter(|w| here(w)).count();
        let fullest = inner.by_address.iter().max_by_key(|(_, queue)| count(queue));
        let (fullest, queue) = fullest?;
        let grace = if count(queue) > SHARE { CROWDED_GRACE_MS } else { GRACE_MS };
        let slow = |w: &&Waiting| here(w) && w.task.is_some() && w.since.plus_ms(grace) <= now;
        let (fullest, slow): (IpAddr, Vec<u64>) =
            (*fullest, queue.iter().filter(slow).map(|w| w.id).collect());
        for id in &slow {
            if let Some(task) = inner.remove(fullest, Some(*id)).and_then(|w| w.task) {
                task.abort();
            }
        }
        (!slow.is_empty()).then_some((fullest, slow.len()))
    }

    /// Connections in it.
    pub fn len(&self) -> usize {
        self.inner.lock().total
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    /// Takes one out: the oldest of its address, or the one of this number.
    fn remove(&mut self, address: IpAddr, id: Option<u64>) -> Option<Waiting> {
        let queue = self.by_address.get_mut(&address)?;
        let at = match id {
            None => 0,
            Some(id) => queue.binary_search_by_key(&id, |w| w.id).ok()?,
        };
        let removed = queue.remove(at)?;
        if queue.is_empty() {
            self.by_address.remove(&address);
        }
        self.total -= 1;
        Some(removed)
    }
}

impl Entrance {
    /// The number by which its task is told of.
    pub(super) fn id(&self) -> (IpAddr, u64) {
        (self.address, self.id)
    }

    /// The connection is one from `address`: a proxy has said so.
    pub(super) fn moves(&mut self, address: IpAddr) {
        let address = host(address);
        let mut inner = self.crowd.inner.lock();
        if address == self.address {
            return;
        }
        if let Some(waiting) = inner.remove(self.address, Some(self.id)) {
            inner.total += 1;
            let queue = inner.by_address.entry(address).or_default();
            let at = queue.partition_point(|w| w.id < waiting.id);
            queue.insert(at, waiting);
            self.address = address;
        }
    }
}

impl Crowd {
    /// The task of a connection that came in to `listener`, to be ended if it has to give way.
    pub(super) fn served_by(&self, (address, id): (IpAddr, u64), task: AbortHandle, listener: &Arc<str>) {
        let mut inner = self.inner.lock();
        let Some(queue) = inner.by_address.get_mut(&address) else { return };
        if let Ok(at) = queue.binary_search_by_key(&id, |w| w.id)
            && let Some(waiting) = queue.get_mut(at)
        {
            waiting.task = Some(task);
            waiting.listener = Some(listener.clone());
        }
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.crowd.inner.lock().remove(self.address, Some(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_600_000_000_000);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn inside(entry: Entry) -> (Entrance, Option<IpAddr>) {
        match entry {
            Entry::In(entrance, gone) => (entrance, gone),
            Entry::Later(at) => panic!("not before {at:?}"),
        }
    }

    #[test]
    fn the_oldest_of_the_fullest_address_gives_way() {
        let crowd = Crowd::new(16);
        let honest = inside(crowd.enter(ip("192.0.2.1"), START)).0;
        let greedy: Vec<_> =
            (0..15).map(|n| inside(crowd.enter(ip("192.0.2.66"), START.plus_ms(n))).0).collect();
        assert_eq!(crowd.len(), 16);
        // All are young.
        let now = START.plus_ms(50);
        let Entry::Later(at) = crowd.enter(ip("192.0.2.2"), now) else { panic!() };
        assert_eq!(at, START.plus_ms(CROWDED_GRACE_MS));
        for n in 0..10 {
            let (entrance, gone) = inside(crowd.enter(ip(&format!("192.0.2.{}", 100 + n)), at.plus_ms(20)));
            assert_eq!(gone, Some(ip("192.0.2.66")), "{n}");
            drop(entrance);
            let refill = inside(crowd.enter(ip("192.0.2.66"), at.plus_ms(20)));
            assert_eq!(refill.1, None);
            std::mem::forget(refill); // as a connection that stays
        }
        assert_eq!(crowd.len(), 16);
        drop((honest, greedy));
        assert_eq!(crowd.len(), 10, "those that had to give way are gone already");
    }

    #[test]
    fn nobody_gives_way_at_once_where_all_are_alike() {
        let crowd = Crowd::new(16);
        let all: Vec<_> =
            (0..16).map(|n| inside(crowd.enter(ip(&format!("192.0.2.{n}")), START.plus_ms(n))).0).collect();
        let Entry::Later(at) = crowd.enter(ip("192.0.2.99"), START.plus_ms(500)) else { panic!() };
        assert_eq!(at, START.plus_ms(GRACE_MS));
        let (_, gone) = inside(crowd.enter(ip("192.0.2.99"), at));
        assert_eq!(gone, Some(ip("192.0.2.0")));
        drop(all);
        assert!(crowd.is_empty());
    }

    #[tokio::test]
    async fn whoever_says_nothing_gives_way_where_connections_are_few() {
        let crowd = Crowd::new(1024);
        let (mqtt, tls): (Arc<str>, Arc<str>) = ("mqtt".into(), "tls".into());
        let task = || tokio::spawn(std::future::pending::<()>()).abort_handle();
        let mut all = Vec::new();
        for (from, listener, n) in
            [("192.0.2.66", &mqtt, 20), ("192.0.2.66", &tls, 1), ("192.0.2.1", &mqtt, 1)]
        {
            for _ in 0..n {
                let (entrance, _) = inside(crowd.enter(ip(from), START));
                crowd.served_by(entrance.id(), task(), listener);
                all.push(entrance);
            }
        }
        let at = |ms| START.plus_ms(ms);
        assert_eq!(crowd.give_way(Some("mqtt"), at(CROWDED_GRACE_MS - 1)), None);
        assert_eq!(crowd.give_way(Some("other"), at(GRACE_MS)), None);
        assert_eq!(crowd.give_way(Some("mqtt"), at(CROWDED_GRACE_MS)), Some((ip("192.0.2.66"), 20)));
        assert_eq!((crowd.len(), crowd.give_way(Some("mqtt"), at(GRACE_MS - 1))), (2, None));
        assert_eq!(crowd.give_way(Some("mqtt"), at(GRACE_MS)), Some((ip("192.0.2.1"), 1)));
        assert_eq!(crowd.give_way(None, at(GRACE_MS)), Some((ip("192.0.2.66"), 1)));
        assert!(crowd.is_empty());
    }

    #[test]
    fn hosts_of_ipv6_are_networks_and_proxies_hand_on() {
        let crowd = Crowd::new(16);
        let a = inside(crowd.enter(ip("2001:db8::1"), START)).0;
        let mut b = inside(crowd.enter(ip("2001:db8::2"), START)).0;
        let c = inside(crowd.enter(ip("::ffff:192.0.2.1"), START)).0;
        assert_eq!((a.address, b.address, c.address), (ip("2001:db8::"), ip("2001:db8::"), ip("192.0.2.1")));
        b.moves(ip("192.0.2.1"));
        assert_eq!(crowd.inner.lock().by_address[&ip("192.0.2.1")].len(), 2);
        assert_eq!(crowd.len(), 3);
        drop((a, b, c));
        assert!(crowd.is_empty());
    }
}
