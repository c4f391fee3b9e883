//! The HTTP request by which a connection becomes a WebSocket (RFC 6455 section 4), and the answer.

use crate::config::Origins;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::net::IpAddr;

/// Bytes of the request.
pub const UPGRADE_BYTES_MAX: usize = 8 * 1024;

/// Headers of the request.
pub const UPGRADE_HEADERS_MAX: usize = 64;

/// What every server appends to a client's key (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Names of the subprotocol, the usual one first: MQTT 3.1 had one of its own.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// What a listener lets in.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// The path.
    pub path: String,
    /// Web pages.
    pub origins: Origins,
    /// Whether the connection is one over TLS: the client has made sure of the host's name.
    pub secure: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is not complete yet.
    Incomplete,
    /// The connection becomes a WebSocket: what to answer, and how many bytes the request had.
    Accept(String, usize),
    /// It does not.
    Refuse(Refusal),
}

/// Why a connection does not become a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of HTTP.
    pub status: u16,
    /// Why, and what to do.
    pub why: String,
}

impl Refusal {
    fn answer(status: u16, why: impl Into<String>) -> Answer {
        Answer::Refuse(Refusal { status, why: why.into() })
    }

    /// The response.
    pub fn response(&self) -> String {
        let (status, why) = (self.status, &self.why);
        let name = match status {
            403 => "Forbidden",
            404 => "Not Found",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            _ => "Bad Request",
        };
        let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let upgrade = if status == 426 { upgrade } else { "" };
        let length = why.len() + 1;
        format!(
            "HTTP/1.1 {status} {name}\r\nConnection: close\r\n{upgrade}Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\r\n{why}\n"
        )
    }
}

/// Judges a request of which `bytes` came.
pub fn judge(bytes: &[u8], welcome: &Welcome) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; UPGRADE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= UPGRADE_BYTES_MAX => {
            return Refusal::answer(431, format!("the request has more than {UPGRADE_BYTES_MAX} bytes"));
        }
        Ok(httparse::Status::Partial) => return Answer::Incomplete,
        Err(httparse::Error::TooManyHeaders) => {
            return Refusal::answer(431, format!("the request has more than {UPGRADE_HEADERS_MAX} headers"));
        }
        Err(_) => return Refusal::answer(400, "this is not HTTP/1.1: MQTT comes here over WebSocket"),
    };
    let request = Request {
        path: request.path.unwrap_or_default(),
        headers: request.headers,
        method: request.method,
        version: request.version,
    };
    match request.accept(welcome) {
        Ok(response) => Answer::Accept(response, length),
        Err(refusal) => refusal,
    }
}

struct Request<'a> {
    method: Option<&'a str>,
    /// The digit behind `1.` in the version of HTTP.
    version: Option<u8>,
    path: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl Request<'_> {
    /// Values of a header that is a list.
    fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |h| h.name.eq_ignore_ascii_case(name))
            .filter_map(|h| std::str::from_utf8(h.value).ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
    }

    /// The value of a header that may be there once.
    fn one(&self, name: &str) -> Result<Option<&str>, Answer> {
        let mut found = self.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(header), None) => match std::str::from_utf8(header.value) {
                Ok(value) => Ok(Some(value.trim())),
                Err(_) => Err(Refusal::answer(400, format!("the header {name} is no text"))),
            },
            (Some(_), Some(_)) => Err(Refusal::answer(400, format!("the header {name} is there twice"))),
        }
    }

    fn accept(&self, welcome: &Welcome) -> Result<String, Answer> {
        let path = self.path.split('?').next().unwrap_or_default();
        if path != welcome.path {
            return Err(Refusal::answer(
                404,
                format!("nothing is here: MQTT over WebSocket is at {}", welcome.path),
            ));
        }
        if self.method != Some("GET") || self.version != Some(1) {
            return Err(Refusal::answer(400, "MQTT over WebSocket begins with a GET request of HTTP/1.1"));
        }
        let asks = |header, word: &str| self.list(header).any(|w| w.eq_ignore_ascii_case(word));
        if !asks("Upgrade", "websocket") || !asks("Connection", "upgrade") {
            let why = "MQTT is spoken here over WebSocket: connect with a client of MQTT over WebSocket";
            return Err(Refusal::answer(426, why));
        }
        if self.one("Sec-WebSocket-Version")? != Some("13") {
            return Err(Refusal::answer(426, "version 13 of WebSocket is spoken here (RFC 6455)"));
        }
        let key = self.one("Sec-WebSocket-Key")?;
        let key = key.filter(|k| BASE64_STANDARD.decode(k).is_ok_and(|bytes| bytes.len() == 16));
        let Some(key) = key else {
            return Err(Refusal::answer(400, "Sec-WebSocket-Key is not the base64 of 16 bytes"));
        };
        let host = self.one("Host")?;
        if let Some(origin) = self.one("Origin")?
            && !allowed(origin, host.unwrap_or_default(), welcome)
        {
            let why = "pages of this origin may not connect: the listener's allowed_origins says which may";
            return Err(Refusal::answer(403, why));
        }
        let offered: Vec<&str> = self.list("Sec-WebSocket-Protocol").collect();
        let Some(subprotocol) = SUBPROTOCOLS.iter().find(|p| offered.contains(p)) else {
            return Err(Refusal::answer(
                400,
                "the subprotocol mqtt is not offered (Sec-WebSocket-Protocol: mqtt)",
            ));
        };
        let digest =
            ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
        let accept = BASE64_STANDARD.encode(digest);
        Ok(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        ))
    }
}

/// Whether pages of `origin` may connect to `host`, as the client names it.
fn allowed(origin: &str, host: &str, welcome: &Welcome) -> bool {
    match &welcome.origins {
        Origins::Any => true,
        Origins::These(list) => list.contains(&origin.to_ascii_lowercase()),
        Origins::Same => {
            let Some((_, origin)) = origin.split_once("://") else { return false };
            let (origin, host) = (without_port(origin), without_port(host));
            // Somebody else's page can have a name that leads here, unless certificates say whose name it is.
            let own = welcome.secure
                || host.eq_ignore_ascii_case("localhost")
                || host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
            !host.is_empty() && own && origin.eq_ignore_ascii_case(host)
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod upgrade_tests;
