//! An order among those who read the same files and put in force what they have found: the later reading stands. A leaf.

use parking_lot::Mutex;

/// Numbers the readings of one source: one file, or several that make one state.
#[derive(Debug, Default)]
pub struct Readings(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    /// The number of the last reading.
    last: u64,
    /// The number of the reading that is in force.
    in_force: u64,
}

/// The outcome of one reading. Only [`Readings::put`] gives it away.
#[must_use]
#[derive(Debug)]
pub struct Reading<T> {
    number: u64,
    found: T,
}

impl Readings {
    /// Reads by `read`. Readings of one source come one after the other.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn read<T, E>(&self, read: impl FnOnce() -> Result<T, E>) -> Result<Reading<T>, E> {
        let mut numbers = self.0.lock();
        numbers.last += 1;
        Ok(Reading { number: numbers.last, found: read()? })
    }

    /// Has `put` put a reading in force. `None` = a later one is in force, and stays.
    pub fn put<T, R>(&self, reading: Reading<T>, put: impl FnOnce(T) -> R) -> Option<R> {
        let mut numbers = self.0.lock();
        (numbers.in_force < reading.number).then(|| {
            numbers.in_force = reading.number;
            put(reading.found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_reading_stands_whoever_is_first() {
        let (readings, mut file, mut in_force) = (Readings::default(), 1, 0);
        let mut put = |reading| readings.put(reading, |found| in_force = found).is_some();
        let read = |file: i32| readings.read(|| if file < 0 { Err(()) } else { Ok(file) });
        let early = read(file).unwrap();
        file += 1;
        let late = read(file).unwrap();
        assert!(put(late));
        assert!(!put(early));
        // What could not be used is in nobody's way.
        let good = read(file + 1).unwrap();
        assert!(read(-1).is_err());
        assert!(put(good));
        assert_eq!(in_force, 3);
    }
}
