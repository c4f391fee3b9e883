//! Frames of WebSocket (RFC 6455 section 5): those of clients are decoded in place, as they come; nothing is gathered.

/// Bytes of the header of a frame, its mask included.
const HEADER_BYTES_MAX: usize = 14;

/// Bytes of the payload of a control frame (section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Why a connection is closed (section 7.4.1).
pub const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED_DATA: u16 = 1003;
const INVALID_DATA: u16 = 1007;

/// A frame that a client may not send: the code to close the connection with, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code.
    pub code: u16,
    /// The reason, in words.
    pub why: &'static str,
}

const fn broken(why: &'static str) -> Fault {
    Fault { code: PROTOCOL_ERROR, why }
}

/// What came in a control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    /// Nothing more comes. With the client's code, if it gave one.
    Close(Option<u16>),
}

/// What is known of a frame that has begun.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    opcode: u8,
    last: bool,
    mask: [u8; 4],
    /// Bytes of its payload that are still to come.
    left: u64,
    /// How many bytes of it came, as far as that matters for the mask.
    turn: usize,
}

/// Decodes the frames of one client.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    frame: Option<Frame>,
    /// A message has begun and was not ended.
    in_message: bool,
    /// The payload of a control frame that has begun.
    pub(super) control: Vec<u8>,
}

impl Decoder {
    /// Decodes what came. The payload of data frames is moved to the front of `bytes`; returns how many bytes that is. Control frames are
    /// given to `control`; after a close frame, nothing is decoded.
    ///
    /// # Errors
    /// A frame that a client may not send. What came before it is at the front of `bytes` all the same: so many bytes.
    pub fn decode(
        &mut self,
        bytes: &mut [u8],
        mut control: impl FnMut(Control),
    ) -> Result<usize, (usize, Fault)> {
        let (mut at, mut filled) = (0, 0);
        while at < bytes.len() {
            let Some(frame) = &mut self.frame else {
                let (used, header) = self.header(&bytes[at..]);
                at += used;
                if let Some(header) = header {
                    self.frame = Some(header.and_then(|f| self.begins(f)).map_err(|fault| (filled, fault))?);
                    // One without payload is complete already.
                    if self.frame.is_some_and(|f| f.left == 0)
                        && self.ends(&mut control).map_err(|f| (filled, f))?
                    {
                        return Ok(filled);
                    }
                }
                continue;
            };
            let n = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            if frame.opcode >= CLOSE {
                unmask(&mut bytes[at..at + n], frame.mask, frame.turn);
                self.control.extend_from_slice(&bytes[at..at + n]);
            } else {
                bytes.copy_within(at..at + n, filled);
                unmask(&mut bytes[filled..filled + n], frame.mask, frame.turn);
                filled += n;
            }
            at += n;
            frame.left -= n as u64;
            frame.turn = (frame.turn + n) % 4;
            if frame.left == 0 && self.ends(&mut control).map_err(|f| (filled, f))? {
                return Ok(filled);
            }
        }
        Ok(filled)
    }

    /// Takes what of the next header is at the front of `bytes`: how many bytes, and the header if it is complete.
    fn header(&mut self, bytes: &[u8]) -> (usize, Option<Result<Frame, Fault>>) {
        let mut used = 0;
        loop {
            let len7 = if self.header_len >= 2 { self.header[1] & 0x7f } else { 0 };
            let masked = self.header_len < 2 || self.header[1] & 0x80 != 0;
            let extended = match len7 {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let wanted = 2 + if self.header_len < 2 { 0 } else { extended + if masked { 4 } else { 0 } };
            if self.header_len == wanted && self.header_len >= 2 {
                let header = self.header;
                self.header_len = 0;
                return (used, Some(parse(&header, extended, masked)));
            }
            // What is wrong with the first two bytes is said at once: the others may never come.
            if self.header_len == 2
                && let Err(fault) = first_bytes(self.header[0], self.header[1])
            {
                return (used, Some(Err(fault)));
            }
            let n = (wanted - self.header_len).min(bytes.len() - used);
            if n == 0 {
                return (used, None);
            }
            self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[used..used + n]);
            self.header_len += n;
            used += n;
        }
    }

    /// Whether a frame may come here.
    fn begins(&self, frame: Frame) -> Result<Frame, Fault> {
        match frame.opcode {
            CONTINUATION if !self.in_message => Err(broken("a fragment of no message")),
            BINARY if self.in_message => Err(broken("a new message within another one")),
            _ => Ok(frame),
        }
    }

    /// The frame is complete. True after a close frame.
    fn ends(&mut self, control: &mut impl FnMut(Control)) -> Result<bool, Fault> {
        let Some(frame) = self.frame.take() else { return Ok(false) };
        match frame.opcode {
            CLOSE => {
                let code = close_code(&std::mem::take(&mut self.control))?;
                control(Control::Close(code));
                return Ok(true);
            }
            PING => control(Control::Ping(std::mem::take(&mut self.control))),
            PONG => self.control = Vec::new(),
            _ => self.in_message = !frame.last,
        }
        Ok(false)
    }
}

/// What is wrong with a frame that begins so.
fn first_bytes(first: u8, second: u8) -> Result<(), Fault> {
    let (opcode, last, len7) = (first & 0x0f, first & 0x80 != 0, second & 0x7f);
    if first & 0x70 != 0 {
        return Err(broken("a reserved bit is set: no extension was agreed on"));
    }
    if second & 0x80 == 0 {
        return Err(broken("a frame of a client is not masked"));
    }
    match opcode {
        TEXT => Err(Fault { code: UNSUPPORTED_DATA, why: "MQTT is sent in binary frames" }),
        CONTINUATION | BINARY => Ok(()),
        CLOSE | PING | PONG if !last => Err(broken("a control frame in fragments")),
        CLOSE | PING | PONG if usize::from(len7) > CONTROL_BYTES_MAX => {
            Err(broken("a control frame is too long"))
        }
        CLOSE | PING | PONG => Ok(()),
        _ => Err(broken("a frame of an unknown type")),
    }
}

fn parse(header: &[u8; HEADER_BYTES_MAX], extended: usize, masked: bool) -> Result<Frame, Fault> {
    first_bytes(header[0], header[1])?;
    let left = match extended {
        0 => u64::from(header[1] & 0x7f),
        _ => header[2..2 + extended].iter().fold(0, |len, b| len << 8 | u64::from(*b)),
    };
    if left >> 63 != 0 {
        return Err(broken("a length above 63 bits"));
    }
    let mut mask = [0; 4];
    if masked {
        mask.copy_from_slice(&header[2 + extended..6 + extended]);
    }
    Ok(Frame { opcode: header[0] & 0x0f, last: header[0] & 0x80 != 0, mask, left, turn: 0 })
}

/// The code in the payload of a close frame.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Fault> {
    let Some((code, reason)) = payload.split_at_checked(2) else {
        return if payload.is_empty() { Ok(None) } else { Err(broken("half a code in a close frame")) };
    };
    let code = u16::from_be_bytes([code[0], code[1]]);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(broken("a code in a close frame that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Fault { code: INVALID_DATA, why: "the reason in a close frame is no text" });
    }
    Ok(Some(code))
}

/// Applies a mask of which `turn` bytes were used before.
fn unmask(bytes: &mut [u8], mask: [u8; 4], turn: usize) {
    let mut turned = mask;
    turned.rotate_left(turn % 4);
    let mut chunks = bytes.chunks_exact_mut(4);
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(turned) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(turned) {
        *byte ^= mask;
    }
}

/// Appends the header of a binary message of `len` bytes in one frame.
pub fn put_binary_header(out: &mut Vec<u8>, len: usize) {
    put_header(out, BINARY, len);
}

/// Appends the answer to a ping.
pub fn put_pong(out: &mut Vec<u8>, payload: &[u8]) {
    put_header(out, PONG, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame, with a code and a reason if there is a code.
pub fn put_close(out: &mut Vec<u8>, code: Option<u16>, why: &str) {
    let why = &why.as_bytes()[..why.len().min(CONTROL_BYTES_MAX - 2)];
    match code {
        Some(code) => {
            put_header(out, CLOSE, 2 + why.len());
            out.extend_from_slice(&code.to_be_bytes());
            out.extend_from_slice(why);
        }
        None => put_header(out, CLOSE, 0),
    }
}

fn put_header(out: &mut Vec<u8>, opcode: u8, len: usize) {
    out.push(0x80 | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len), _) if len < 126 => out.push(len),
        (_, Ok(len)) => {
            out.push(126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod frames_tests;
