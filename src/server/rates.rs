//! How fast a client, or a listener, may be: buckets from which tokens are taken, and into which so many come per second.

use crate::clock::Time;

/// Thousandths of a token: as many come per millisecond as tokens per second.
const PARTS: i64 = 1000;

/// Bytes of the smallest PUBLISH packet: two of the header, a topic of one, and its length.
const SMALLEST_PUBLISH: i64 = 5;

/// Bytes that are read at once of a client that has only so many messages left, at least.
const LEAST_BYTES: i64 = 64;

/// A bucket that holds what comes within one second. What is taken beyond is a debt: what comes pays for it first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_s: i64,
    parts: i64,
    at: Time,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(per_s: u64, now: Time) -> Bucket {
        let per_s = i64::try_from(per_s).unwrap_or(i64::MAX).clamp(1, i64::MAX / (4 * PARTS));
        Bucket { per_s, parts: per_s * PARTS, at: now }
    }

    fn fill(&mut self, now: Time) {
        let ms = i64::try_from(now.since_ms(self.at)).unwrap_or(i64::MAX);
        self.parts = self.parts.saturating_add(self.per_s.saturating_mul(ms)).min(self.per_s * PARTS);
        self.at = now;
    }

    /// Takes so many, be they there or not.
    pub(super) fn take(&mut self, n: u64, now: Time) {
        self.fill(now);
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        self.parts = self.parts.saturating_sub(n.saturating_mul(PARTS));
    }

    /// How many are there.
    pub(super) fn left(&mut self, now: Time) -> i64 {
        self.fill(now);
        (self.parts / PARTS).max(0)
    }

    /// When at least one is there.
    pub(super) fn opens_at(&self) -> Time {
        let missing = (PARTS - self.parts).max(0);
        self.at.plus_ms(u64::try_from(missing.div_euclid(self.per_s) + 1).unwrap_or(u64::MAX))
    }
}

/// Slows down the reading of one client.
#[derive(Debug)]
pub(super) struct Throttle {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Messages that were counted before.
    counted: u64,
    /// Something was read of which the messages are not counted yet.
    uncounted: bool,
    /// Nothing may be read until then.
    closed_until: Option<Time>,
}

impl Throttle {
    /// For a client that may send so many messages and bytes per second; `None` = as many as it likes of both.
    pub(super) fn new(messages: Option<u64>, bytes: Option<u64>, now: Time) -> Option<Box<Throttle>> {
        let bucket = |rate: Option<u64>| rate.map(|per_s| Bucket::new(per_s, now));
        let (messages, bytes) = (bucket(messages), bucket(bytes));
        let any = messages.is_some() || bytes.is_some();
        let (counted, uncounted, closed_until) = (0, false, None);
        any.then(|| Box::new(Throttle { messages, bytes, counted, uncounted, closed_until }))
    }

    /// How many bytes may be read now.
    pub(super) fn room(&mut self, now: Time) -> usize {
        self.closed_until = None;
        if self.uncounted {
            return 0; // they may have been the last messages for now
        }
        let mut room = i64::MAX;
        for bucket in [&mut self.messages, &mut self.bytes].into_iter().flatten() {
            if bucket.left(now) < 1 {
                self.closed_until = self.closed_until.max(Some(bucket.opens_at()));
            }
        }
        if self.closed_until.is_some() {
            return 0;
        }
        if let Some(bytes) = &mut self.bytes {
            room = room.min(bytes.left(now));
        }
        if let Some(messages) = &mut self.messages {
            room = room.min(messages.left(now).saturating_mul(SMALLEST_PUBLISH).max(LEAST_BYTES));
        }
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// So many bytes were read that are no MQTT.
    pub(super) fn cost(&mut self, bytes: usize, now: Time) {
        if let Some(bucket) = self.bytes.as_mut().filter(|_| bytes > 0) {
            bucket.take(bytes as u64, now);
        }
    }

    /// So many bytes were read.
    pub(super) fn came(&mut self, bytes: usize, now: Time) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes as u64, now);
        }
        self.uncounted = self.messages.is_some();
    }

    /// The client has sent so many messages since it came. True if more may be read at once.
    pub(super) fn count(&mut self, messages: u64, now: Time) -> bool {
        if let Some(bucket) = &mut self.messages {
            bucket.take(messages - self.counted, now);
        }
        self.counted = messages;
        std::mem::take(&mut self.uncounted)
    }

    /// Whether a pause is over that was not known to be: there may be something to read.
    pub(super) fn opened(&mut self, now: Time) -> bool {
        self.closed_until.take_if(|until| *until <= now).is_some()
    }

    /// Until when nothing is read, if nothing is.
    pub(super) fn closed_until(&self) -> Option<Time> {
        self.closed_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_600_000_000_000);

    #[test]
    fn a_bucket_gives_what_comes_into_it() {
        for per_s in [1, 3, 10, 1000, 1_000_000] {
            let mut bucket = Bucket::new(per_s, START);
            let mut given = 0u64;
            let mut now = START;
            while now < START.plus_ms(10_000) {
                while bucket.left(now) > 0 {
                    let n = bucket.left(now).unsigned_abs();
                    bucket.take(n, now);
                    given += n;
                }
                let next = bucket.opens_at();
                assert!(next > now && bucket.left(next) > 0, "{per_s}: {bucket:?}");
                now = next;
            }
            // What is in it at first, and what comes in ten seconds.
            assert!((given as i64 - 11 * per_s as i64).abs() <= 1 + per_s as i64 / 100, "{per_s}: {given}");
        }
    }

    #[test]
    fn a_debt_is_paid_first() {
        let mut bucket = Bucket::new(100, START);
        bucket.take(600, START);
        assert_eq!(bucket.left(START), 0);
        assert_eq!(bucket.opens_at(), START.plus_ms(5_011));
        assert_eq!(bucket.left(START.plus_ms(5_000)), 0);
        assert_eq!(bucket.left(START.plus_ms(5_010)), 1);
        assert_eq!(bucket.left(START.plus_ms(1_000_000)), 100);
    }

    #[test]
    fn a_throttle_holds_both_rates() {
        let mut throttle = Throttle::new(Some(10), Some(1000), START).unwrap();
        assert_eq!(throttle.room(START), 64);
        throttle.came(64, START);
        assert_eq!(throttle.room(START), 0, "its messages are not counted yet");
        assert!(throttle.count(3, START) && !throttle.count(3, START));
        assert_eq!(throttle.room(START), 64);
        throttle.came(64, START);
        throttle.count(12, START);
        assert_eq!((throttle.room(START), throttle.closed_until()), (0, Some(START.plus_ms(301))));
        // Told once, so that whoever reads nothing all the same is not woken for ever.
        assert!(!throttle.opened(START.plus_ms(300)) && throttle.opened(START.plus_ms(301)));
        assert!(!throttle.opened(START.plus_ms(301)) && throttle.closed_until().is_none());
        assert_eq!((throttle.room(START), throttle.closed_until()), (0, Some(START.plus_ms(301))));
        assert_eq!(throttle.room(START.plus_ms(301)), 64);
        assert_eq!(throttle.closed_until(), None);
        throttle.came(3000, START.plus_ms(301));
        throttle.count(12, START.plus_ms(301));
        assert_eq!(throttle.room(START.plus_ms(301)), 0);
        assert!(throttle.closed_until() > Some(START.plus_ms(2_000)));
        let mut throttle = Throttle::new(None, Some(1000), START).unwrap();
        throttle.cost(2_000, START);
        assert_eq!((throttle.room(START), throttle.closed_until()), (0, Some(START.plus_ms(1_002))));
        assert!(Throttle::new(None, None, START).is_none());
    }
}
