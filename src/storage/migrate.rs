//! Lifts rows written by older versions to the current one, a version at a time. Never writes: a row is rewritten in the
//! current version whenever it next changes.

use super::record::RecordError;
use std::borrow::Cow;

/// Turns a row of one version into one of the next, version byte included.
pub(super) type Step = fn(&[u8]) -> Result<Vec<u8>, RecordError>;

/// The history of one kind of row.
///
/// `steps[i]` lifts version `oldest + i`; what comes out of the last step is the current version.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    oldest: u8,
    steps: &'static [Step],
}

impl Chain {
    /// Rows of version `oldest` and later are understood, the older of them through `steps`.
    pub(super) const fn new(oldest: u8, steps: &'static [Step]) -> Chain {
        Chain { oldest, steps }
    }

    /// The version written today.
    pub(super) const fn current(&self) -> u8 {
        self.oldest + self.steps.len() as u8
    }

    /// `row` in the current version, version byte included.
    ///
    /// # Errors
    /// If the row is empty, newer than this program or older than all it understands, or if a step refuses it.
    pub(super) fn lift<'a>(&self, row: &'a [u8]) -> Result<Cow<'a, [u8]>, RecordError> {
        let version = *row.first().ok_or(RecordError::Truncated)?;
        if version == self.current() {
            return Ok(Cow::Borrowed(row));
        }
        let behind = version.checked_sub(self.oldest).map(usize::from);
        let steps = behind.and_then(|done| self.steps.get(done..)).ok_or(RecordError::Version {
            found: version,
            oldest: self.oldest,
            current: self.current(),
        })?;
        let mut row = Cow::Borrowed(row);
        for step in steps {
            row = Cow::Owned(step(&row)?);
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 0 kept a number as one byte, version 1 keeps two.
    fn widen(row: &[u8]) -> Result<Vec<u8>, RecordError> {
        match row {
            [0, low] => Ok(vec![1, 0, *low]),
            _ => Err(RecordError::Truncated),
        }
    }

    /// Version 2 adds a trailing mark.
    fn mark(row: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut row = row.to_vec();
        row[0] = 2;
        row.push(0xAA);
        Ok(row)
    }

    const CHAIN: Chain = Chain::new(0, &[widen, mark]);

    #[test]
    fn every_older_version_reaches_the_current_one() {
        assert_eq!(CHAIN.current(), 2);
        let current = [2, 0, 7, 0xAA];
        for row in [&[0, 7][..], &[1, 0, 7], &current] {
            assert_eq!(CHAIN.lift(row).unwrap().as_ref(), current, "{row:?}");
        }
        assert!(
            matches!(CHAIN.lift(&current).unwrap(), Cow::Borrowed(_)),
            "the current version is not copied"
        );
    }

    #[test]
    fn unknown_versions_and_broken_rows_are_errors() {
        assert_eq!(CHAIN.lift(&[]), Err(RecordError::Truncated));
        assert_eq!(CHAIN.lift(&[0]), Err(RecordError::Truncated));
        assert_eq!(CHAIN.lift(&[3, 1]), Err(RecordError::Version { found: 3, oldest: 0, current: 2 }));
        let young = Chain::new(4, &[]);
        assert_eq!(young.lift(&[3]), Err(RecordError::Version { found: 3, oldest: 4, current: 4 }));
    }
}
