//! Frames of a client, and what must become of them: read in one piece, by the words of the specification (RFC 6455 section 5).

use crate::server::fuzz_tests::Clients;
use crate::server::fuzz_tests::random::Random;

/// A frame as it is written, be it right or not.
#[derive(Clone, Debug)]
struct Frame {
    /// FIN, reserved bits and opcode.
    first: u8,
    mask: Option<[u8; 4]>,
    /// Bytes of the extended length: 0, 2 or 8.
    extended: usize,
    /// The length that the frame says it has.
    said: u64,
    payload: Vec<u8>,
}

impl Frame {
    fn new(rng: &mut Random, first: u8, payload: Vec<u8>) -> Frame {
        let mask = if rng.chance(5) { [0; 4] } else { (rng.next() as u32).to_be_bytes() };
        let extended = match payload.len() {
            0..=125 => 0,
            126..=0xFFFF => 2,
            _ => 8,
        };
        // Longer forms of a length are understood, too.
        let extended = if first & 8 == 0 && rng.chance(10) { 8 } else { extended };
        Frame { first, mask: Some(mask), extended, said: payload.len() as u64, payload }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.first);
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        match self.extended {
            0 => out.push(masked | self.said as u8 & 0x7F),
            2 => {
                out.push(masked | 126);
                out.extend((self.said as u16).to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend(self.said.to_be_bytes());
            }
        }
        out.extend(self.mask.unwrap_or_default().iter().filter(|_| self.mask.is_some()));
        put_masked(out, &self.payload, self.mask.unwrap_or_default());
    }
}

fn put_masked(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
}

/// The content of good frames.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    pub payload: Vec<u8>,
    /// The client's goodbye, with its code if it has one.
    pub close: Option<Option<u16>>,
}

fn bytes(rng: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next() as u8).collect()
}

/// A ping or a pong, empty or as long as one may be.
fn control(rng: &mut Random) -> Frame {
    let len = [0, 1, 124, 125, rng.index(126)][rng.index(5)];
    let payload = bytes(rng, len);
    let first = if rng.chance(70) { 0x89 } else { 0x8A };
    Frame::new(rng, first, payload)
}

/// A close frame, and its code: empty, with a code, or with a reason too.
fn close(rng: &mut Random) -> (Frame, Option<u16>) {
    let code = [1000, 1001, 1003, 1007, 1014, 3000, 4999][rng.index(7)];
    let reason = ["", "bye", "café", &"x".repeat(123)][rng.index(4)].to_owned();
    let (payload, code) = if rng.chance(30) {
        (Vec::new(), None)
    } else {
        ([&u16::to_be_bytes(code), reason.as_bytes()].concat(), Some(code))
    };
    (Frame::new(rng, 0x88, payload), code)
}

/// Frames that say what a client has to say, cut anywhere, with control frames between them.
fn good(rng: &mut Random, clients: &Clients) -> (Vec<Frame>, Sent) {
    let mut sent = Sent { payload: clients.stream(rng, 12), close: None };
    if rng.chance(3) {
        // A PUBLISH whose length takes eight bytes.
        sent.payload.extend([0x30, 0xF5, 0xA2, 0x04, 0, 1, b't', 0]);
        sent.payload.resize(sent.payload.len() + 70_005 - 4, b'x');
    }
    let most = [1, 3, 20, 126, 300, 100_000][rng.index(6)];
    let (mut frames, mut at, mut in_message) = (Vec::new(), 0, false);
    let controls = rng.index(40) as u64;
    while at < sent.payload.len() {
        while rng.chance(controls) {
            frames.push(control(rng));
        }
        let n = rng.index(most.min(sent.payload.len() - at) + 1);
        let last = at + n == sent.payload.len() || rng.chance(60);
        let first = if in_message { 0x00 } else { 0x02 } | if last { 0x80 } else { 0 };
        frames.push(Frame::new(rng, first, sent.payload[at..at + n].to_vec()));
        (at, in_message) = (at + n, !last);
    }
    if rng.chance(1) {
        // More pings than are answered to who takes nothing.
        let ping = Frame::new(rng, 0x89, vec![0x55; 125]);
        frames.extend(std::iter::repeat_n(ping, 4000));
    }
    if rng.chance(30) {
        let (frame, code) = close(rng);
        frames.push(frame);
        sent.close = Some(code);
    }
    (frames, sent)
}

/// Does something to one frame that a client may not do, or has one lie.
fn bend(rng: &mut Random, frames: &mut Vec<Frame>) {
    let at = rng.index(frames.len());
    let frame = &mut frames[at];
    match rng.index(9) {
        0 => frame.mask = None,
        1 => frame.first ^= 0x10 << rng.index(3),
        2 => frame.first = (frame.first & 0xF0) | rng.index(16) as u8,
        3 => frame.first ^= 0x80,
        4 => {
            let len = frame.payload.len() as u64;
            frame.said = [0, len + 1, len.saturating_sub(1), 125, 126, 0x7F, rng.below(70_000)][rng.index(7)];
            frame.extended = [0, 2, 8][rng.index(3)];
        }
        5 => {
            let high = [1 << 63, (1 << 63) - 1, u64::MAX, 1 << 62, 1 << 32][rng.index(5)];
            (frame.extended, frame.said) = (8, high);
        }
        6 => frame.extended = [0, 2, 8][rng.index(3)],
        7 => {
            let code = [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, 1000][rng.index(9)].to_be_bytes();
            let payload = [&code[..1], &code, &[code[0], code[1], 0xFF], &[code[0], code[1], 0xC3]]
                [rng.index(4)]
            .to_vec();
            let close = Frame::new(rng, 0x88, payload);
            frames.insert(at, close);
        }
        _ => {
            let again = frame.clone();
            frames.insert(rng.index(at + 1), again);
        }
    }
}

/// Bytes of a client, and the content of their frames if all of them are right.
pub fn frames(rng: &mut Random, clients: &Clients) -> (Vec<u8>, Option<Sent>) {
    let (mut frames, mut sent) = good(rng, clients);
    let mut sent = Some(std::mem::take(&mut sent));
    if rng.chance(40) {
        sent = None;
        (0..=rng.index(2)).for_each(|_| bend(rng, &mut frames));
    }
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.put(&mut out));
    // Behind a goodbye nothing counts.
    if sent.as_ref().is_some_and(|s| s.close.is_some()) {
        let rest = rng.index(30);
        out.extend(bytes(rng, rest));
    }
    (out, sent)
}

/// The outcome that frames must have.
#[derive(Debug, Default)]
pub struct Judged {
    pub payload: Vec<u8>,
    pub pings: Vec<Vec<u8>>,
    /// The code that the connection is closed with, if something in them closes it.
    pub close: Option<Option<u16>>,
    /// Bytes up to what closes the connection; with the client's goodbye, without what it may not send.
    pub used: usize,
}

/// One that is there, at least its first bytes.
struct Found<'a> {
    opcode: u8,
    last: bool,
    mask: [u8; 4],
    /// Where its payload begins.
    from: usize,
    /// Bytes of its payload, and those of them that came.
    said: u64,
    masked: &'a [u8],
}

impl Found<'_> {
    fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_masked(&mut out, self.masked, self.mask);
        out
    }

    fn whole(&self) -> bool {
        self.said == self.masked.len() as u64
    }
}

/// The frame at the front of `bytes`: `Ok(None)` = not enough of it came. Else the code for what is wrong with it.
fn found(bytes: &[u8]) -> Result<Option<Found<'_>>, u16> {
    let Some(&[first, second]) = bytes.first_chunk::<2>() else { return Ok(None) };
    let (opcode, last, len7) = (first & 0x0F, first >= 0x80, second & 0x7F);
    let known = matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10);
    if first & 0x70 != 0 || second < 0x80 || !known || opcode >= 8 && (!last || len7 > 125) {
        return Err(1002);
    }
    if opcode == 1 {
        return Err(1003);
    }
    let from = match len7 {
        126 => 2 + 2,
        127 => 2 + 8,
        _ => 2,
    };
    let Some(mask) = bytes.get(from..from + 4) else { return Ok(None) };
    let said = match len7 {
        126 => u64::from(u16::from_be_bytes(bytes[2..4].try_into().unwrap())),
        127 => u64::from_be_bytes(bytes[2..10].try_into().unwrap()),
        len => u64::from(len),
    };
    if said >= 1 << 63 {
        return Err(1002);
    }
    let (mask, from) = (mask.try_into().unwrap(), from + 4);
    let came = said.min((bytes.len() - from) as u64) as usize;
    Ok(Some(Found { opcode, last, mask, from, said, masked: &bytes[from..from + came] }))
}

/// The code that answers the goodbye in a close frame.
fn goodbye(payload: &[u8]) -> Option<u16> {
    match payload {
        [] => None,
        [_] => Some(1002),
        [a, b, reason @ ..] => match u16::from_be_bytes([*a, *b]) {
            1000..=1003 | 1007..=1014 | 3000..=4999 if std::str::from_utf8(reason).is_err() => Some(1007),
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Some(code),
            _ => Some(1002),
        },
    }
}

/// Judges all that a client sent.
pub fn judged(bytes: &[u8]) -> Judged {
    let mut judged = Judged::default();
    let mut in_message = false;
    while judged.used < bytes.len() {
        let frame = match found(&bytes[judged.used..]) {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                judged.used = bytes.len();
                break;
            }
            Err(code) => {
                judged.close = Some(Some(code));
                break;
            }
        };
        if frame.opcode == 0 && !in_message || frame.opcode == 2 && in_message {
            judged.close = Some(Some(1002));
            break;
        }
        judged.used += frame.from + frame.masked.len();
        match frame.opcode {
            0 | 2 => {
                judged.payload.extend(frame.payload());
                in_message = !frame.last;
            }
            9 if frame.whole() => judged.pings.push(frame.payload()),
            8 if frame.whole() => {
                judged.close = Some(goodbye(&frame.payload()));
                break;
            }
            _ => {}
        }
    }
    judged
}

/// The frames again, with `payload` in those of data.
pub fn rewritten(bytes: &[u8], mut payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let used = judged(bytes).used;
    while out.len() < used {
        let at = out.len();
        let Ok(Some(frame)) = found(&bytes[at..]) else {
            out.extend_from_slice(&bytes[at..used]); // not all of a header
            break;
        };
        out.extend_from_slice(&bytes[at..at + frame.from]);
        if frame.opcode >= 8 {
            out.extend_from_slice(frame.masked);
        } else {
            let (own, rest) = payload.split_at(frame.masked.len().min(payload.len()));
            put_masked(&mut out, own, frame.mask);
            payload = rest;
        }
    }
    assert!(payload.is_empty(), "{} bytes that no frame has", payload.len());
    out
}

/// Frames of the broker.
#[derive(Debug, Default)]
pub struct Servers {
    pub data: Vec<u8>,
    pub pongs: Vec<Vec<u8>>,
    pub close: Option<u16>,
}

/// Reads what the broker sent: whole frames, none masked, the last of them a close frame.
pub fn servers(mut bytes: &[u8]) -> Servers {
    let mut sent = Servers::default();
    loop {
        let [first, len7, rest @ ..] = bytes else { panic!("no close frame at the end: {bytes:02x?}") };
        let (len, extended) = match len7 {
            126 => (usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap())), 2),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, 8),
            len => (usize::from(*len), 0),
        };
        assert!(
            extended == 0 || len > 125 && (extended == 2 || len > 0xFFFF),
            "{len} in {extended} bytes, or masked"
        );
        let (payload, behind) = rest[extended..].split_at(len);
        match first {
            0x82 => sent.data.extend_from_slice(payload),
            0x8A => sent.pongs.push(payload.to_vec()),
            0x88 => {
                assert!(behind.is_empty(), "{} bytes after the close frame", behind.len());
                sent.close = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                return sent;
            }
            other => panic!("a frame that begins with {other:02x}"),
        }
        bytes = behind;
    }
}
