//! The data types of MQTT (MQTT 5.0 section 1.5): a cursor that reads them, strictly, and writers for them.
//!
//! Knows nothing of packets. Never panics on any input, never allocates when reading.

use super::decode::DecodeError;
use super::reason::Reason;

/// The largest value of a variable byte integer (section 1.5.5).
pub const VARINT_MAX: u32 = 268_435_455;

/// A cursor over one frame; positions in errors count from the start of that frame.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub fn new(frame: &'a [u8], at: usize) -> Reader<'a> {
        Reader { frame, at }
    }

    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub fn remaining(&self) -> usize {
        self.frame.len().saturating_sub(self.at)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at >= self.frame.len()
    }

    /// The same position in a frame that ends at `end`.
    #[inline]
    pub fn until(self, end: usize) -> Reader<'a> {
        Reader { frame: self.frame.get(..end).unwrap_or(self.frame), at: self.at }
    }

    /// Everything that is left.
    #[inline]
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        self.at = self.frame.len();
        rest
    }

    /// An error at this position.
    #[cold]
    pub fn err(&self, reason: Reason, what: &'static str) -> DecodeError {
        DecodeError::invalid(reason, what, self.at)
    }

    #[cold]
    pub fn malformed(&self, what: &'static str) -> DecodeError {
        self.err(Reason::MalformedPacket, what)
    }

    #[inline]
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.at.checked_add(n).and_then(|end| self.frame.get(self.at..end)) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(self.malformed(what)),
        }
    }

    #[inline]
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        match self.frame.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                Ok(byte)
            }
            None => Err(self.malformed(what)),
        }
    }

    #[inline]
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        match self.take(2, what)? {
            &[a, b] => Ok(u16::from_be_bytes([a, b])),
            _ => Err(self.malformed(what)),
        }
    }

    #[inline]
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        match self.take(4, what)? {
            &[a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
            _ => Err(self.malformed(what)),
        }
    }

    /// Binary data (section 1.5.6).
    #[inline]
    pub fn binary(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.u16(what)?);
        self.take(len, what)
    }

    /// A UTF-8 encoded string (section 1.5.4): well-formed (which excludes surrogates) and without U+0000.
    #[inline]
    pub fn string(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let start = *self;
        let bytes = self.binary(what)?;
        match simdutf8::basic::from_utf8(bytes) {
            Ok(text) if memchr::memchr(0, bytes).is_none() => Ok(text),
            Ok(_) => Err(start.malformed("string contains U+0000")),
            Err(_) => Err(start.malformed("string is not well-formed UTF-8")),
        }
    }

    /// What stands here as a variable byte integer.
    #[inline]
    pub fn peek_varint(&self) -> Varint {
        varint(self.frame.get(self.at..).unwrap_or_default())
    }

    /// A variable byte integer (section 1.5.5): at most four bytes, and as few as possible.
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        match self.peek_varint() {
            Varint::Value { value, len } if len == varint_len(value) => {
                self.at += len;
                Ok(value)
            }
            Varint::Value { .. } => Err(self.malformed("variable byte integer is longer than it must be")),
            Varint::Incomplete => Err(self.malformed(what)),
            Varint::TooLong => Err(self.malformed("variable byte integer of more than four bytes")),
        }
    }
}

/// What stands where a variable byte integer should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Varint {
    /// `value` in `len` bytes, perhaps more than needed.
    Value { value: u32, len: usize },
    /// More bytes are needed.
    Incomplete,
    /// The fourth byte says that a fifth follows.
    TooLong,
}

/// Reads a variable byte integer.
#[inline]
pub(super) fn varint(buf: &[u8]) -> Varint {
    let mut value = 0u32;
    for (i, &byte) in buf.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Varint::Value { value, len: i + 1 };
        }
    }
    if buf.len() < 4 { Varint::Incomplete } else { Varint::TooLong }
}

/// How many bytes a value takes as a variable byte integer.
#[inline]
pub(super) fn varint_len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Appends a variable byte integer; the value is at most [`VARINT_MAX`].
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, value: u32) {
    let mut bytes = [0; 4];
    let len = write_varint(&mut bytes, value);
    out.extend_from_slice(bytes.get(..len).unwrap_or_default());
}

/// Writes a variable byte integer to the start of `bytes`; returns its length.
#[inline]
pub(super) fn write_varint(bytes: &mut [u8; 4], value: u32) -> usize {
    let mut rest = value;
    let mut len = 0;
    for slot in bytes {
        len += 1;
        *slot = (rest & 0x7F) as u8;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *slot |= 0x80;
    }
    len
}

/// Appends a UTF-8 encoded string. One of more than 65,535 bytes is cut at the last character that fits.
pub(super) fn put_str(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_binary(out, &text.as_bytes()[..end]);
}

/// Appends binary data, cut at 65,535 bytes.
pub(super) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = bytes.len().min(usize::from(u16::MAX));
    out.extend_from_slice(&(len as u16).to_be_bytes());
    out.extend_from_slice(&bytes[..len]);
}

/// Appends a packet: `first` byte, remaining length, and the body that `body` appends. Nothing is appended if the
/// body is longer than a packet can be.
pub(super) fn put_packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    // Most bodies are shorter than 128 bytes: leave one byte for the length, make room if that was wrong.
    out.extend_from_slice(&[first, 0]);
    body(out);
    let len = out.len() - start - 2;
    finish_len(out, start, start + 1, len);
}

/// Appends a block with its length as a variable byte integer before it (a property block).
pub(super) fn put_block(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    body(out);
    let len = out.len() - start - 1;
    finish_len(out, start, start, len);
}

fn finish_len(out: &mut Vec<u8>, start: usize, len_at: usize, len: usize) {
    let Some(value) = u32::try_from(len).ok().filter(|&v| v <= VARINT_MAX) else {
        out.truncate(start);
        return;
    };
    let mut bytes = [0; 4];
    let n = write_varint(&mut bytes, value);
    out.splice(len_at..=len_at, bytes.into_iter().take(n));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_at_every_boundary() {
        // The table of section 1.5.5.
        let cases: [(u32, &[u8]); 8] = [
            (0, &[0]),
            (127, &[0x7F]),
            (128, &[0x80, 0x01]),
            (16_383, &[0xFF, 0x7F]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_151, &[0xFF, 0xFF, 0x7F]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (VARINT_MAX, &[0xFF, 0xFF, 0xFF, 0x7F]),
        ];
        for (value, bytes) in cases {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(varint_len(value), bytes.len());
            assert_eq!(varint(bytes), Varint::Value { value, len: bytes.len() });
            for cut in 0..bytes.len() {
                assert_eq!(varint(&bytes[..cut]), Varint::Incomplete);
            }
        }
        assert_eq!(varint(&[0x80, 0x80, 0x80, 0x80, 0x01]), Varint::TooLong);
        assert_eq!(varint(&[0xFF, 0xFF, 0xFF, 0xFF]), Varint::TooLong);
        assert!(Reader::new(&[0x80, 0x00], 0).varint("").is_err(), "not minimal");
        assert!(Reader::new(&[0xFF, 0x80, 0x00], 0).varint("").is_err(), "not minimal");
    }

    #[test]
    fn strings_follow_section_1_5_4() {
        let cases: [(&[u8], Option<&str>); 11] = [
            (b"\0\0", Some("")),
            (b"\0\x02ab", Some("ab")),
            (b"\0\x02a", None),
            (b"\0", None),
            (b"\0\x01\0", None),
            (b"\0\x03\xED\xA0\x80", None),                    // surrogate U+D800
            (b"\0\x03\xED\xBF\xBF", None),                    // surrogate U+DFFF
            (b"\0\x02\xC0\x80", None),                        // overlong U+0000
            (b"\0\x04\xF4\x90\x80\x80", None),                // beyond U+10FFFF
            (b"\0\x03\xEF\xBB\xBF", Some("\u{FEFF}")),        // must not be stripped
            (b"\0\x05A\xF0\xAA\x9B\x94", Some("A\u{2A6D4}")), // figure 1.2
        ];
        for (bytes, expected) in cases {
            assert_eq!(Reader::new(bytes, 0).string("").ok(), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn long_bodies_make_room_for_their_length() {
        for len in [0usize, 1, 127, 128, 16_383, 16_384, 70_000] {
            let mut out = vec![0xAA];
            put_packet(&mut out, 0x30, |out| out.resize(out.len() + len, 7));
            assert_eq!(out[..2], [0xAA, 0x30]);
            let Varint::Value { value, len: n } = varint(&out[2..]) else { panic!("no length") };
            assert_eq!(value as usize, len);
            assert_eq!(out.len(), 2 + n + len);
            assert!(out[2 + n..].iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn strings_are_cut_at_a_character() {
        let text = "é".repeat(40_000);
        let mut out = Vec::new();
        put_str(&mut out, &text);
        assert_eq!(Reader::new(&out, 0).string("").unwrap().chars().count(), 32_767);
    }
}
