//! The marks of memory: beyond the first, publishers are not read; beyond the second, nobody new is let in. Whoever measures the memory
//! tells [`Pressure::measured`]; connections ask, and are woken when they may go on.

use crate::hashing::HashMap;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

/// How much of a mark the memory must fall below it before the mark counts as left, as a part of it: a twentieth.
const LEFT_PARTS: u64 = 20;

/// Between two PUBLISH packets that a client may send beyond the first mark while messages wait for its acknowledgements, milliseconds:
/// those acknowledgements come behind its PUBLISH packets, and only they set memory free.
pub const TRICKLE_MS: u64 = 100;

/// Bytes at which something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Publishers are not read beyond this.
    pub pause: u64,
    /// New connections are refused beyond this.
    pub refuse: u64,
}

/// How far the memory is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is enough memory.
    Normal,
    /// Publishers are not read.
    Paused,
    /// So little memory is left that new connections are not let in either.
    Refusing,
}

impl Level {
    const ALL: [Level; 3] = [Level::Normal, Level::Paused, Level::Refusing];

    /// The name of the level in `/cluster/status`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "ok",
            Level::Paused => "publishers paused",
            Level::Refusing => "connections refused",
        }
    }

    /// The level with `used` bytes after this one: a mark that was passed is left only well below it.
    fn after(self, used: u64, marks: Marks) -> Level {
        let beyond = |mark: u64, was: bool| used > if was { mark - mark / LEFT_PARTS } else { mark };
        if beyond(marks.refuse, self >= Level::Refusing) {
            Level::Refusing
        } else if beyond(marks.pause, self >= Level::Paused) {
            Level::Paused
        } else {
            Level::Normal
        }
    }
}

/// A change of level, and what happened until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The level before.
    pub from: Level,
    /// The level now.
    pub to: Level,
    /// Connections refused since publishers were paused.
    pub refused: u64,
}

/// How short memory is, and who waits until it is less so.
#[derive(Debug, Default)]
pub struct Pressure {
    level: AtomicU8,
    waiting: Mutex<Waiting>,
    refused: AtomicU64,
}

/// The wakers of connections that wait for memory, each under a number (its place) that is never given out again.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    wakers: HashMap<u64, Waker>,
}

impl Pressure {
    /// How far the memory is used up.
    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Acquire)).min(Level::ALL.len() - 1)]
    }

    /// Whether publishers are not read.
    pub fn pauses(&self) -> bool {
        self.level.load(Ordering::Relaxed) > 0
    }

    /// Whether a client that comes now is to be refused; counts it then.
    pub fn refuses(&self) -> bool {
        let refuses = self.level() == Level::Refusing;
        if refuses {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        refuses
    }

    /// Takes note that `used` bytes are used. `marks`: `None` = as many as there may be. What changes, if anything does.
    pub fn measured(&self, used: u64, marks: Option<Marks>) -> Option<Change> {
        let from = self.level();
        let to = marks.map_or(Level::Normal, |marks| from.after(used, marks));
        if from == to {
            return None;
        }
        let mut waiting = self.waiting.lock();
        self.level.store(to as u8, Ordering::Release);
        if to == Level::Normal {
            std::mem::take(&mut waiting.wakers).into_values().for_each(Waker::wake);
        }
        let refused = match to {
            Level::Normal => self.refused.swap(0, Ordering::Relaxed),
            Level::Paused | Level::Refusing => self.refused.load(Ordering::Relaxed),
        };
        Some(Change { from, to, refused })
    }

    /// Arranges for `waker` to be woken when publishers are read again; false if they are. Whoever waits keeps its `place`, which is `None`
    /// at first, and gives it back with [`Pressure::leave`] when it waits no more: a waker keeps a whole connection in memory.
    pub(super) fn wait(&self, waker: &Waker, place: &mut Option<u64>) -> bool {
        let mut waiting = self.waiting.lock();
        if !self.pauses() {
            return false;
        }
        let next = waiting.next;
        match place.and_then(|place| waiting.wakers.get_mut(&place)) {
            Some(kept) => kept.clone_from(waker),
            None => {
                waiting.next += 1;
                waiting.wakers.insert(next, waker.clone());
                *place = Some(next);
            }
        }
        true
    }

    /// Gives a place up: nobody waits at it any more.
    pub(super) fn leave(&self, place: u64) {
        self.waiting.lock().wakers.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_mark_is_passed_at_once_and_left_well_below_it() {
        let marks = Some(Marks { pause: 1000, refuse: 2000 });
        let pressure = Pressure::default();
        for (used, marks, level) in [
            (1000, marks, Level::Normal),
            (1001, marks, Level::Paused),
            (2000, marks, Level::Paused),
            (2001, marks, Level::Refusing),
            (1901, marks, Level::Refusing),
            (1900, marks, Level::Paused),
            (951, marks, Level::Paused),
            (950, marks, Level::Normal),
            (5000, marks, Level::Refusing),
            (100, marks, Level::Normal),
            (5000, None, Level::Normal),
        ] {
            let before = pressure.level();
            let change = pressure.measured(used, marks);
            assert_eq!(pressure.level(), level, "{used}");
            assert_eq!(
                change.map(|c| (c.from, c.to)),
                (before != level).then_some((before, level)),
                "{used}"
            );
        }
    }

    #[test]
    fn whoever_waits_is_woken_once_and_those_refused_are_counted() {
        let (pressure, count) = (Pressure::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let marks = Some(Marks { pause: 10, refuse: 20 });
        let mut place = None;
        assert!(!pressure.wait(&waker, &mut place) && !pressure.refuses());
        pressure.measured(30, marks);
        for _ in 0..3 {
            assert!(pressure.wait(&waker, &mut place));
        }
        assert!(pressure.refuses() && pressure.refuses());
        assert_eq!(pressure.measured(15, marks).map(|c| c.refused), Some(2));
        assert!(!pressure.refuses());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        assert_eq!(pressure.measured(5, marks).map(|c| c.refused), Some(2));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        pressure.measured(15, marks);
        assert!(pressure.wait(&waker, &mut place), "a new pause");
        assert_eq!(pressure.measured(5, marks).map(|c| c.refused), Some(0));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    /// A waker holds the memory of its connection: nothing may be left of those that wait no more.
    #[test]
    fn whoever_leaves_is_kept_no_longer() {
        let (pressure, count) = (Pressure::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let marks = Some(Marks { pause: 10, refuse: 20 });
        pressure.measured(15, marks);
        let (mut stays, mut first) = (None, None);
        assert!(pressure.wait(&waker, &mut stays) && pressure.wait(&waker, &mut first));
        for _ in 0..100 {
            let mut place = None;
            assert!(pressure.wait(&waker, &mut place));
            pressure.leave(place.unwrap());
        }
        pressure.leave(first.unwrap());
        assert_eq!(pressure.waiting.lock().wakers.len(), 1);
        assert_eq!(Arc::strong_count(&count), 3, "the test's two and that of the one that stays");
        pressure.measured(5, marks);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        pressure.leave(stays.unwrap());
        assert_eq!(pressure.waiting.lock().wakers.len(), 0);
    }
}
