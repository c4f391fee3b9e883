//! Fuzzes what a proxy tells before MQTT: headers of both versions that were made, bent or broken, with a client's packets behind them,
//! in pieces of any size.

use super::super::fuzz_tests::random::Random;
use super::super::fuzz_tests::{Clients, fuzz_loop, mutate, packets};
use super::super::proxy::{HEADER_BYTES_MAX, LINE_BYTES_MAX};
use super::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::ReadBuf;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes from a proxy, in pieces.
struct Wire<'a> {
    bytes: &'a [u8],
    /// Bytes that were read.
    read: usize,
    /// The end of the furthest byte that was asked for: so much room was made.
    asked: usize,
    pieces: Random,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.asked = self.asked.max(self.read + out.remaining());
        if self.pieces.chance(20) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = (self.bytes.len() - self.read).min(out.remaining());
        let n = if left == 0 { 0 } else { 1 + self.pieces.index(left) };
        out.put_slice(&self.bytes[self.read..self.read + n]);
        self.read += n;
        Poll::Ready(Ok(()))
    }
}

/// How reading a header ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A whole header.
    Told(Told),
    /// No header.
    Refused(String),
    /// Not all of a header.
    Gone,
}

/// The outcome, the bytes that were read, and those for which room was made.
fn read(bytes: &[u8], pieces: u64) -> (Outcome, usize, usize) {
    let mut wire = Wire { bytes, read: 0, asked: 0, pieces: Random(pieces) };
    let told = {
        let mut telling = pin!(tell(&mut wire));
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(told) = telling.as_mut().poll(&mut cx) {
                break told;
            }
        }
    };
    let outcome = match told {
        Ok(told) => Outcome::Told(told),
        Err(Refused::Proxy(malformed)) => Outcome::Refused(malformed.to_string()),
        Err(Refused::Gone) => Outcome::Gone,
        Err(other) => panic!("{other}"),
    };
    (outcome, wire.read, wire.asked)
}

/// The outcome that an input must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Told(Told),
    Refused,
    /// The bytes end before the header does.
    Gone,
    /// Whatever it is, it must hold together.
    Anything,
}

#[derive(Debug)]
struct Input {
    bytes: Vec<u8>,
    /// Bytes of the header, if it is known to be one.
    header: usize,
    expected: Expected,
    pieces: u64,
}

fn v4(rng: &mut Random) -> Ipv4Addr {
    Ipv4Addr::from(rng.next() as u32)
}

fn v6(rng: &mut Random) -> Ipv6Addr {
    // With and without zeros that the text leaves out, and with an IPv4 address inside.
    let low = u128::from(rng.next());
    let high = u128::from(rng.next()) << 64;
    Ipv6Addr::from([high | low, low & 0xFFFF, high | 1, 0xFFFF_0000_0000 | low & 0xFFFF_FFFF][rng.index(4)])
}

/// A line, and what it tells: `None` = it is refused.
fn line(rng: &mut Random) -> (Vec<u8>, Option<Told>) {
    let port = |rng: &mut Random| [0, 1, 1883, 65_535, rng.next() as u16][rng.index(5)];
    let (from_port, to_port) = (port(rng), port(rng));
    let six = rng.chance(50);
    let mut address = || if six { IpAddr::V6(v6(rng)) } else { IpAddr::V4(v4(rng)) };
    let (from, to) = (address(), address());
    let family = if six { "TCP6" } else { "TCP4" };
    let mut words: Vec<String> = vec![
        "PROXY".into(),
        family.into(),
        from.to_string(),
        to.to_string(),
        from_port.to_string(),
        to_port.to_string(),
    ];
    let mut told = Some(Told::From(SocketAddr::new(from, from_port)));
    let mut end = "\r\n";
    let bent = rng.index(14);
    match bent {
        0 => words[1] = (if six { "TCP4" } else { "TCP6" }).into(),
        1 => words[1] = ["UDP4", "tcp4", "TCP", "TCP5", "", "UNKNOWN4"][rng.index(6)].into(),
        2 => drop(words.remove(2 + rng.index(4))),
        3 => words.insert(2 + rng.index(5), ["", "1", "::", "x"][rng.index(4)].into()),
        4 => {
            words[4 + rng.index(2)] =
                ["65536", "01", "+1", "-1", "", "1x", "99999999999"][rng.index(7)].into()
        }
        5 => {
            words[2 + rng.index(2)] =
                ["1.2.3", "1.2.3.256", "01.2.3.4", "::1::", "localhost", "1.2.3.4%1", "[::1]"][rng.index(7)]
                    .into()
        }
        6 => words[0] = ["proxy", "PROXY\t", "PROXIE", "GET"][rng.index(4)].into(),
        7 => end = ["\n", "\r", "\n\r", " \r\n"][rng.index(4)],
        8 => {
            // Whatever follows counts for nothing, if it ends in time.
            let room = LINE_BYTES_MAX - "PROXY UNKNOWN \r\n".len();
            let many = rng.index(room + 3);
            words = vec!["PROXY".into(), "UNKNOWN".into(), "x".repeat(many)];
            told = (many <= room).then_some(Told::Nothing);
        }
        9 => (words, told) = (vec!["PROXY".into(), "UNKNOWN".into()], Some(Told::Nothing)),
        _ => {}
    }
    if bent < 8 {
        told = None;
    }
    let mut line = words.join(" ").into_bytes();
    line.extend(end.as_bytes());
    (line, told)
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// Additional values, of which nothing may change what is told: ALPN, authority, checksum, padding, ID, TLS with values of its own,
/// namespace; with lengths that are true or not. Where the checksum is, if there is one.
fn values(rng: &mut Random, at: usize) -> (Vec<u8>, Option<usize>) {
    let (mut out, mut crc) = (Vec::new(), None);
    for _ in 0..rng.index(5) {
        let kind = [0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30, 0xE0, rng.next() as u8][rng.index(9)];
        let len = if kind == 0x03 { 4 } else { [0, 1, 5, 128, rng.index(600)][rng.index(5)] };
        let said = if rng.chance(85) { len } else { [0, len + 1, 0xFFFF, rng.index(0x1_0000)][rng.index(4)] };
        out.push(kind);
        out.extend((said as u16).to_be_bytes());
        if kind == 0x03 {
            crc = Some(at + out.len());
        }
        out.extend((0..len).map(|_| if kind == 0x03 { 0 } else { rng.next() as u8 }));
    }
    (out, crc)
}

/// A binary header, and how many bytes it says that it has.
fn binary(rng: &mut Random) -> (Vec<u8>, usize) {
    let pick = |rng: &mut Random, usual: &[u8]| {
        if rng.chance(93) { usual[rng.index(usual.len())] } else { rng.next() as u8 }
    };
    let (version, command) = (pick(rng, &[2]) & 0x0F, pick(rng, &[0, 1, 1, 1]) & 0x0F);
    let kind = pick(rng, &[0x00, 0x11, 0x11, 0x12, 0x21, 0x21, 0x22, 0x31, 0x32]);
    let mut rest: Vec<u8> = match kind {
        0x11 | 0x12 => (0..12).map(|_| rng.next() as u8).collect(),
        0x21 | 0x22 => (0..36).map(|_| rng.next() as u8).collect(),
        0x31 | 0x32 => vec![b'/'; 216],
        _ => Vec::new(),
    };
    let (more, crc) = values(rng, 16 + rest.len());
    rest.extend(more);
    match rng.index(12) {
        0 => rest.truncate(rng.index(rest.len() + 1)),
        1 => rest.resize(HEADER_BYTES_MAX - 16 + rng.index(3), 0x04),
        _ => {}
    }
    let lies = [0, rest.len() + 1, rest.len().saturating_sub(1), 11, 12, 35, 36, 4080, 4081, 0xFFFF];
    let said = if rng.chance(10) { lies[rng.index(lies.len())] } else { rest.len() };
    let mut out = SIGNATURE.to_vec();
    out.extend([version << 4 | command, kind]);
    out.extend((said as u16).to_be_bytes());
    out.extend(&rest);
    // Of the header as it is without it; sometimes a wrong one, which is nothing to go by.
    if let Some(at) = crc.filter(|at| at + 4 <= out.len()) {
        let sum = crc32c(&out) ^ u32::from(rng.chance(30));
        out[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
    (out, 16 + said)
}

/// The word of a binary header of so many bytes, which may take in some of what is behind it: `None` = it is refused.
fn binary_tells(bytes: &[u8], header: usize) -> Option<Told> {
    let said = header - 16;
    let from =
        |ip: IpAddr, port: &[u8]| Told::From(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])));
    let address = |len: usize| bytes.get(16..16 + len).filter(|_| said >= len);
    match (bytes[12], bytes[13]) {
        _ if header > HEADER_BYTES_MAX => None,
        (0x20, _) | (0x21, 0x00 | 0x31 | 0x32) => Some(Told::Nothing),
        (0x21, 0x11 | 0x12) => {
            address(12).map(|a| from(IpAddr::V4(Ipv4Addr::new(a[0], a[1], a[2], a[3])), &a[8..10]))
        }
        (0x21, 0x21 | 0x22) => address(36).map(|a| {
            let ip: [u8; 16] = a[..16].try_into().unwrap();
            from(IpAddr::V6(Ipv6Addr::from(ip)), &a[32..34])
        }),
        _ => None,
    }
}

/// A header with what `behind` says, how many bytes it has, and what it tells: `None` = it is refused.
fn made(rng: &mut Random, behind: &[u8]) -> (Vec<u8>, usize, Option<Told>) {
    if rng.chance(50) {
        let (line, told) = line(rng);
        ([&line, behind].concat(), line.len(), told)
    } else {
        let (binary, header) = binary(rng);
        let bytes = [&binary, behind].concat();
        let told = binary_tells(&bytes, header);
        (bytes, header, told)
    }
}

fn input(rng: &mut Random, clients: &Clients) -> Input {
    let pieces = rng.next();
    let stream = clients.stream(rng, 3);
    let (bytes, header, told) = made(rng, &stream);
    let expected = match told {
        Some(told) if header <= bytes.len() => Expected::Told(told),
        Some(_) => Expected::Gone,
        None => Expected::Refused,
    };
    let mut input = Input { bytes, header, expected, pieces };
    match rng.index(4) {
        0 => {
            // Cut off anywhere: what was right until there is not wrong.
            let cut = rng.index(input.bytes.len() + 1);
            input.bytes.truncate(cut);
            if cut < header {
                let whole = matches!(input.expected, Expected::Told(_));
                input.expected = if whole { Expected::Gone } else { Expected::Anything };
            }
        }
        1 => {
            input.expected = Expected::Anything;
            if rng.chance(70) {
                let mut front: Vec<u8> = input.bytes.drain(..header.min(input.bytes.len())).collect();
                mutate(rng, &mut front);
                input.bytes.splice(0..0, front);
            } else {
                mutate(rng, &mut input.bytes);
            }
        }
        _ => {}
    }
    input
}

/// The header that says what was told, with what is not looked at taken from the one that was read.
fn written(told: Told, header: &[u8]) -> Vec<u8> {
    let Told::From(from) = told else { return header.to_vec() };
    let ip = match from.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (port, ports) = (from.port().to_be_bytes(), 16 + 2 * ip.len());
    if !header.starts_with(SIGNATURE) {
        let text = std::str::from_utf8(header).unwrap();
        let words: Vec<&str> = text.trim_end_matches("\r\n").split(' ').collect();
        let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
        // IPv6 addresses have several forms.
        let own = if words[2].parse() == Ok(from.ip()) { words[2].to_owned() } else { from.ip().to_string() };
        return format!("PROXY {family} {own} {} {} {}\r\n", words[3], from.port(), words[5]).into_bytes();
    }
    let mut out = header.to_vec();
    out[..12].copy_from_slice(SIGNATURE);
    out[12] = 0x21;
    out[13] = (header[13] & 0x0F) | if from.is_ipv4() { 0x10 } else { 0x20 };
    out[14..16].copy_from_slice(&((header.len() - 16) as u16).to_be_bytes());
    out[16..16 + ip.len()].copy_from_slice(&ip);
    out[ports..ports + 2].copy_from_slice(&port);
    out
}

/// True for a header that tells nothing, and says so.
fn tells_nothing(header: &[u8]) -> bool {
    let local = |h: &[u8]| h[12] == 0x20 || matches!(h[13], 0x00 | 0x31 | 0x32);
    header.starts_with(b"PROXY UNKNOWN") || header.starts_with(SIGNATURE) && local(header)
}

fn check(input: &Input) {
    let (outcome, used, asked) = read(&input.bytes, input.pieces);
    // Room is made for no more than a header may have, whatever it says that it has.
    let most = if input.bytes.starts_with(b"PROXY ") { LINE_BYTES_MAX } else { HEADER_BYTES_MAX };
    assert!(asked <= most, "room for {asked} bytes");
    // In other pieces it is the same.
    let again = read(&input.bytes, !input.pieces);
    assert_eq!((&again.0, again.1), (&outcome, used), "in other pieces");
    match input.expected {
        Expected::Told(told) => {
            assert_eq!(outcome, Outcome::Told(told));
            assert_eq!(used, input.header, "what is behind the header is the client's");
        }
        Expected::Refused => assert!(matches!(outcome, Outcome::Refused(_) | Outcome::Gone), "{outcome:?}"),
        Expected::Gone => assert_eq!(outcome, Outcome::Gone),
        Expected::Anything => {}
    }
    if let Outcome::Told(told) = outcome {
        let header = &input.bytes[..used];
        if told == Told::Nothing {
            assert!(tells_nothing(header), "an address that was not heard");
        }
        assert_eq!(written(told, header), header, "not what was read");
        assert_eq!(read(header, input.pieces).0, Outcome::Told(told), "something behind it counts");
        let cut = input.pieces as usize % used;
        assert_eq!(read(&header[..cut], input.pieces).0, Outcome::Gone, "cut at {cut}");
    }
}

#[test]
fn any_header() {
    let clients = Clients::new();
    fuzz_loop::run(|rng| input(rng, &clients), check);
}

/// Good headers are cut at every byte, and what is behind them is what a client said.
#[test]
fn good_headers_cut_at_every_byte() {
    let clients = Clients::new();
    let mut seen = [0; 2];
    for seed in 0..800 {
        let rng = &mut Random(seed);
        let stream = clients.stream(rng, 3);
        let (bytes, header, told) = made(rng, &stream);
        let Some(told) = told.filter(|_| header + stream.len() == bytes.len()) else { continue };
        for cut in 0..header {
            assert_eq!(read(&bytes[..cut], seed).0, Outcome::Gone, "{bytes:02x?} cut at {cut}");
        }
        assert_eq!(read(&bytes, seed), (Outcome::Told(told), header, header));
        assert!(packets(&bytes[header..]) >= 1);
        seen[usize::from(bytes[0] == b'P')] += 1;
    }
    assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
}
