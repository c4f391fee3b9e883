//! The PROXY protocol, versions 1 and 2: the header by which a proxy tells whose connection it hands on
//! (<https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Bytes of a header of version 1, its end of line included.
pub const LINE_BYTES_MAX: usize = 107;

/// Bytes of a header of version 2; what goes beyond the addresses is ignored.
pub const HEADER_BYTES_MAX: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of a header of version 2 before the addresses.
const FIXED_BYTES: usize = 16;

/// What a proxy tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The client's address.
    From(SocketAddr),
    /// Nothing: the connection is the proxy's own, or of a kind that has no such address.
    Nothing,
}

/// How to go on with a header of which some bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes more belong to it for certain.
    More(usize),
    /// It is complete.
    Done(Told),
}

/// Bytes that are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no header of the PROXY protocol: {0}")]
pub struct Malformed(&'static str);

/// Judges a header of which `bytes` came, and nothing behind it.
///
/// # Errors
/// They are not the beginning of one.
pub fn step(bytes: &[u8]) -> Result<Step, Malformed> {
    // Both versions have at least as many bytes as the signature of the second.
    let Some(start) = bytes.first_chunk::<12>() else {
        let known = SIGNATURE.starts_with(bytes) || b"PROXY ".starts_with(&bytes[..bytes.len().min(6)]);
        return if known { Ok(Step::More(SIGNATURE.len() - bytes.len())) } else { Err(NEITHER) };
    };
    if start == SIGNATURE {
        binary(bytes)
    } else if start.starts_with(b"PROXY ") {
        line(bytes)
    } else {
        Err(NEITHER)
    }
}

const NEITHER: Malformed = Malformed("it begins like neither version");

fn line(bytes: &[u8]) -> Result<Step, Malformed> {
    let Some(text) = bytes.strip_suffix(b"\r\n") else {
        if bytes.len() >= LINE_BYTES_MAX {
            return Err(Malformed("the line is too long"));
        }
        if bytes[..bytes.len() - 1].contains(&b'\n') || bytes.ends_with(b"\n") {
            return Err(Malformed("the line does not end with CR LF"));
        }
        let more = if bytes.ends_with(b"\r") { 1 } else { 2 };
        return Ok(Step::More(more.min(LINE_BYTES_MAX - bytes.len())));
    };
    let text = std::str::from_utf8(text).map_err(|_| Malformed("the line is no text"))?;
    let mut words = text.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Step::Done(Told::Nothing)); // whatever follows
    }
    let (Some(from), Some(to), Some(from_port), Some(to_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed("the line does not have two addresses and two ports"));
    };
    let (from, _) = match family {
        Some("TCP4") => (IpAddr::V4(address(from)?), IpAddr::V4(address(to)?)),
        Some("TCP6") => (IpAddr::V6(address(from)?), IpAddr::V6(address(to)?)),
        _ => return Err(Malformed("the protocol is none of TCP4, TCP6 and UNKNOWN")),
    };
    port(to_port)?;
    Ok(Step::Done(Told::From(SocketAddr::new(from, port(from_port)?))))
}

fn address<T: FromStr>(text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed("an address in the line is none"))
}

fn port(text: &str) -> Result<u16, Malformed> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical).ok_or(Malformed("a port in the line is none"))
}

fn binary(bytes: &[u8]) -> Result<Step, Malformed> {
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else {
        return Ok(Step::More(FIXED_BYTES - bytes.len()));
    };
    let (version, command, kind) = (fixed[12] >> 4, fixed[12] & 0x0f, fixed[13]);
    if version != 2 {
        return Err(Malformed("the version is not 2"));
    }
    if command > 1 {
        return Err(Malformed("the command is neither LOCAL nor PROXY"));
    }
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED_BYTES + len > HEADER_BYTES_MAX {
        return Err(Malformed("the header is too long"));
    }
    let rest = &bytes[FIXED_BYTES..];
    if rest.len() < len {
        return Ok(Step::More(len - rest.len()));
    }
    if rest.len() > len {
        return Err(Malformed("there is something behind the header"));
    }
    if command == 0 {
        return Ok(Step::Done(Told::Nothing));
    }
    let short = Malformed("the addresses are cut off");
    let told = match kind {
        0x11 | 0x12 => {
            let a = rest.first_chunk::<12>().ok_or(short)?;
            let port = u16::from_be_bytes([a[8], a[9]]);
            Told::From(SocketAddr::new(Ipv4Addr::new(a[0], a[1], a[2], a[3]).into(), port))
        }
        0x21 | 0x22 => {
            let a = rest.first_chunk::<36>().ok_or(short)?;
            let mut ip = [0; 16];
            ip.copy_from_slice(&a[..16]);
            Told::From(SocketAddr::new(Ipv6Addr::from(ip).into(), u16::from_be_bytes([a[32], a[33]])))
        }
        // Of no family, or of sockets of the proxy's machine.
        0x00 | 0x31 | 0x32 => Told::Nothing,
        _ => return Err(Malformed("the family of addresses is unknown")),
    };
    Ok(Step::Done(told))
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod proxy_tests;
