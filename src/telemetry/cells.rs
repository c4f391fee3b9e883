//! The cells that hot code adds to. They cost one uncontended atomic addition, and are read only when somebody scrapes.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

const SHARDS: usize = 16;

/// One shard per cache line (two, because processors fetch lines in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

thread_local! {
    static SHARD: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS)
    };
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter([Shard; SHARDS]);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        let shard = SHARD.with(Cell::get);
        if let Some(Shard(cell)) = self.0.get(shard) {
            cell.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The sum.
    pub fn get(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, Shard(cell)| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(i64::try_from(value).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Replaces the value if it is smaller.
    pub fn raise(&self, value: u64) {
        self.0.fetch_max(i64::try_from(value).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(i64::try_from(n).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(i64::try_from(n).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// The value; 0 while subtractions overtake the additions they belong to.
    pub fn get(&self) -> u64 {
        u64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// A time that may be negative, to the millisecond.
#[derive(Debug, Default)]
pub struct Offset(AtomicI64);

impl Offset {
    /// Replaces the value.
    pub fn set_ms(&self, ms: i64) {
        self.0.store(ms, Ordering::Relaxed);
    }

    /// The value in seconds.
    pub fn seconds(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1000.0
    }
}

/// The distribution of a number.
#[derive(Clone)]
pub struct Histogram {
    inner: metrics::Histogram,
    handle: metrics_exporter_prometheus::PrometheusHandle,
    waiting: std::sync::Arc<AtomicU32>,
}

/// Samples that wait to be sorted into buckets, at most, also if nobody ever scrapes.
const SAMPLES_MAX: u32 = 4096;

impl Histogram {
    pub(super) fn new(
        inner: metrics::Histogram,
        handle: metrics_exporter_prometheus::PrometheusHandle,
    ) -> Histogram {
        Histogram { inner, handle, waiting: std::sync::Arc::default() }
    }

    /// Adds one sample. Meant for things that happen per batch, not per message.
    pub fn record(&self, value: f64) {
        self.inner.record(value);
        if self.waiting.fetch_add(1, Ordering::Relaxed) % SAMPLES_MAX == SAMPLES_MAX - 1 {
            self.handle.run_upkeep();
        }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").finish_non_exhaustive()
    }
}

/// The values of a label.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Its values, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];

    /// Which of the values this is.
    fn index(self) -> usize;
}

/// One cell for each value of a label.
#[derive(Debug)]
pub struct Family<L, T> {
    cells: Box<[T]>,
    spare: T,
    label: PhantomData<fn(L)>,
}

impl<L: Label, T: Default> Default for Family<L, T> {
    fn default() -> Self {
        Family {
            cells: L::VALUES.iter().map(|_| T::default()).collect(),
            spare: T::default(),
            label: PhantomData,
        }
    }
}

impl<L: Label, T> Family<L, T> {
    /// The cell of `label`.
    pub fn of(&self, label: L) -> &T {
        // An index beyond VALUES cannot happen; were it to, it must not bring the broker down.
        self.cells.get(label.index()).unwrap_or(&self.spare)
    }

    /// Every label value with its cell.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        L::VALUES.iter().copied().zip(&self.cells)
    }
}

impl<L: Label> Family<L, Counter> {
    /// The sum over all label values.
    pub fn total(&self) -> u64 {
        self.cells.iter().map(Counter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| (0..1000).for_each(|_| counter.inc()));
            }
        });
        counter.add(5);
        assert_eq!(counter.get(), (SHARDS as u64 + 3) * 1000 + 5);
    }

    #[test]
    fn offsets_do() {
        let offset = Offset::default();
        offset.set_ms(-1_500);
        assert!((offset.seconds() + 1.5).abs() < f64::EPSILON);
    }

    #[test]
    fn gauges_do_not_go_below_zero() {
        let gauge = Gauge::default();
        gauge.sub(2);
        assert_eq!(gauge.get(), 0);
        gauge.add(5);
        assert_eq!(gauge.get(), 3);
        gauge.set(u64::MAX);
        assert_eq!(gauge.get(), i64::MAX as u64);
    }
}
