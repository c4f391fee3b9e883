//! The primitives rows are made of: little-endian numbers, LEB128 lengths, length-prefixed text. Reading never panics and
//! never trusts a length.

use super::record::RecordError;
use bytes::{Buf, TryGetError};

/// Appends to a row, 1 to 10 bytes.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends text with its length to a row.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

impl From<TryGetError> for RecordError {
    fn from(_: TryGetError) -> RecordError {
        RecordError::Truncated
    }
}

/// What is left to read of a row.
#[derive(Clone)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(row: &'a [u8]) -> Input<'a> {
        Input(row)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.0.try_get_u8()?)
    }

    pub(super) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(self.0.try_get_u16_le()?)
    }

    pub(super) fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(self.0.try_get_u32_le()?)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(self.0.try_get_u64_le()?)
    }

    pub(super) fn varint(&mut self) -> Result<u64, RecordError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return Err(RecordError::Value("number"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecordError::Value("number"))
    }

    pub(super) fn len(&mut self) -> Result<usize, RecordError> {
        usize::try_from(self.varint()?).map_err(|_| RecordError::Truncated)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, RecordError> {
        let len = self.len()?;
        simdutf8::basic::from_utf8(self.bytes(len)?).map_err(|_| RecordError::Text)
    }

    /// What `later`, a further read copy of this, has read since.
    pub(super) fn until(&self, later: &Input<'_>) -> &'a [u8] {
        self.0.get(..self.0.len().saturating_sub(later.0.len())).unwrap_or_default()
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn end(self) -> Result<(), RecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(RecordError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_overlong_ones_are_refused() {
        for value in [0, 1, 0x7F, 0x80, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut row = Vec::new();
            put_varint(&mut row, value);
            let mut input = Input::new(&row);
            assert_eq!(input.varint(), Ok(value));
            assert_eq!(input.end(), Ok(()));
        }
        assert_eq!(Input::new(&[0xFF; 9]).varint(), Err(RecordError::Truncated));
        assert_eq!(Input::new(&[0xFF; 11]).varint(), Err(RecordError::Value("number")));
        let mut too_big = [0xFF; 10];
        too_big[9] = 2;
        assert_eq!(Input::new(&too_big).varint(), Err(RecordError::Value("number")));
    }
}
