//! As much of HTTP/1.1 as the broker's admin pages need: one request per connection.

use super::secure::{Secure, TlsArgs, is_distrust};
use crate::secret_file::{Privacy, WatchedFile};
use serde_json::Value;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the broker may take to answer: giving up a node's sessions takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes of a request's target; a longer question goes into the body.
const URL_BYTES_MAX: usize = 8 << 10;

/// The largest answer that is read, bytes.
const ANSWER_MAX: u64 = 256 << 20;

/// The first byte of what a server of TLS says to plain HTTP (RFC 8446 section 5.1).
const TLS_ALERT: u8 = 21;

/// How long `--wait` waits for a node to end.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(600);

/// Why there is no answer. Says what to do.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing listens there.
    NothingListens {
        /// Where.
        url: String,
        /// What the system says.
        error: io::Error,
    },
    /// The connection broke, or what came is not HTTP.
    Broken {
        /// Where.
        url: String,
        /// What happened.
        error: String,
    },
    /// Its certificate is not good.
    Untrusted {
        /// Where.
        url: String,
        /// Why.
        error: String,
    },
    /// The broker says no.
    Refused {
        /// HTTP status code.
        status: u16,
        /// Its words.
        error: String,
    },
    /// A name cannot be taken from standard input. Says why.
    Name(String),
    /// The change has to be confirmed first.
    Unconfirmed {
        /// What the broker says of it.
        answer: Value,
        /// The same in words, safe for a terminal.
        words: String,
    },
    /// A node that was to end has not.
    StillThere {
        /// Where.
        url: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NothingListens { url, error } => write!(
                f,
                "nothing answers at {url} ({error}): is the broker running, and is this its http.address? --url or BERTH_URL \
                 names another one"
            ),
            Failure::Broken { url, error } => {
                write!(f, "{url} did not answer as a broker does ({error}): is this the http.address of one?")
            }
            Failure::Untrusted { url, error } => write!(
                f,
                "the certificate of {url} is not trusted ({error}): --ca or BERTH_CA_FILE names the authority that signed it, --server-name \
                 the name that it has"
            ),
            Failure::Refused { status: status @ (401 | 403), error } => {
                write!(f, "the broker refuses ({status}): {error}")
            }
            Failure::Refused { status: 404, error } if error == "not found" => write!(
                f,
                "the broker does not know this question (404): it is of another version than this program ({})",
                env!("CARGO_PKG_VERSION")
            ),
            Failure::Refused { status: 400 | 404 | 409, error } => f.write_str(error),
            Failure::Refused { status: 503, error } => write!(f, "not now (503): {error}"),
            Failure::Refused { status, error } => write!(f, "the broker failed ({status}): {error}"),
            Failure::Name(why) | Failure::Unconfirmed { words: why, .. } => f.write_str(why),
            Failure::StillThere { url } => write!(
                f,
                "the broker at {url} still runs after {} minutes: its log says what it waits for, SIGTERM ends it at once",
                DRAIN_PATIENCE.as_secs() / 60
            ),
        }
    }
}

/// Where to ask, and as whom.
pub(super) struct Client {
    url: String,
    host: String,
    /// With https.
    secure: Option<Secure>,
    token: Option<String>,
    answer_timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Client {
    /// For `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// What is wrong with the URL, or with a file that TLS needs.
    pub(super) fn new(url: &str, tls: &TlsArgs) -> Result<Client, String> {
        let url = url.strip_suffix('/').unwrap_or(url);
        let wrong = |what: &str| format!("--url {url}: {what}; it must be like http://127.0.0.1:8081");
        let (encrypted, host) = match url.split_once("://") {
            Some(("http", host)) => (false, host),
            Some(("https", host)) => (true, host),
            Some(_) => return Err(wrong("it does not begin with http:// or https://")),
            None => (false, url),
        };
        if host.is_empty()
            || host.starts_with(':')
            || host.contains(['/', '?', '#', '@'])
            || host.chars().any(|c| c.is_control() || c == ' ')
        {
            return Err(wrong("it must name a host and a port, and nothing else"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
            !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']'))
        });
        let name = if has_port { host.rsplit_once(':').map_or(host, |(name, _)| name) } else { host };
        let secure = encrypted.then(|| Secure::new(tls, name)).transpose()?;
        let port = if encrypted { 443 } else { 80 };
        let host = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Client { url: url.to_owned(), host, secure, token: None, answer_timeout: ANSWER_TIMEOUT })
    }

    /// The same, with the token that a file holds: its last word on the first line that is no comment.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub(super) fn with_token_of(self, file: &Path) -> Result<Client, String> {
        let bytes =
            WatchedFile::new("--token-file", file, Privacy::Secret).read().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let token = line.and_then(|line| line.split_whitespace().next_back());
        match token.filter(|token| token.bytes().all(|b| b.is_ascii_graphic())) {
            Some(token) => Ok(Client { token: Some(token.to_owned()), ..self }),
            None => Err(format!("--token-file: {} holds no token", file.display())),
        }
    }

    /// The same, with less patience.
    pub(super) fn answering_within(&self, answer_timeout: Duration) -> Client {
        let (url, host, token) = (self.url.clone(), self.host.clone(), self.token.clone());
        Client { url, host, secure: self.secure.clone(), token, answer_timeout }
    }

    /// As given.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.request("GET", path, "")
    }

    pub(super) fn post(&self, path: &str) -> Result<Value, Failure> {
        self.request("POST", path, "")
    }

    /// A question or command in the body.
    pub(super) fn post_json(&self, path: &str, asked: &Value) -> Result<Value, Failure> {
        self.request("POST", path, &asked.to_string())
    }

    /// A question whose names may be of any length: `method` and `path`, or the same as `asked` in the body of a POST to
    /// `instead` if that would be a long path.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        instead: &str,
        asked: &Value,
    ) -> Result<Value, Failure> {
        if path.len() <= URL_BYTES_MAX {
            return self.request(method, path, "");
        }
        self.request("POST", instead, &asked.to_string())
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<Value, Failure> {
        let stream =
            self.connect().map_err(|error| Failure::NothingListens { url: self.url.clone(), error })?;
        let broken = |error: String| Failure::Broken { url: self.url.clone(), error };
        let failed = |error: io::Error| match is_distrust(&error) {
            true => Failure::Untrusted { url: self.url.clone(), error: error.to_string() },
            false => broken(error.to_string()),
        };
        let answer = self.exchange(stream, method, path, body).map_err(failed)?;
        let not_http = match answer.first() {
            Some(&TLS_ALERT) => "it speaks TLS: write https:// for http://",
            _ => "what came is not HTTP",
        };
        let (status, body) = parse(&answer).ok_or_else(|| broken(not_http.to_owned()))?;
        let body: Result<Value, _> = serde_json::from_slice(body);
        if !(200..300).contains(&status) {
            let said =
                body.ok().and_then(|b| b["error"].as_str().or(b["reason"].as_str()).map(str::to_owned));
            return Err(Failure::Refused {
                status,
                error: said.unwrap_or_else(|| "no reason given".to_owned()),
            });
        }
        body.map_err(|e| broken(e.to_string()))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in self.host.to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT.min(self.answer_timeout)) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn exchange(&self, stream: TcpStream, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(self.answer_timeout))?;
        stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let token =
            self.token.as_ref().map_or_else(String::new, |t| format!("Authorization: Bearer {t}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: application/json\r\n{token}{kind}\
             Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        match &self.secure {
            Some(secure) => answer(&mut secure.over(stream)?, &request),
            None => answer(&mut { stream }, &request),
        }
    }
}

fn answer(stream: &mut (impl Read + Write), request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status code and body. The broker's answers have a length; one that is cut off is none.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = &answer[end + 4..];
    match length {
        Some(length) => Some((status, body.get(..length)?)),
        None => Some((status, body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, host) in [
            ("http://127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://127.0.0.1:8081/", "127.0.0.1:8081"),
            ("localhost:9000", "localhost:9000"),
            ("http://broker-1", "broker-1:80"),
            ("http://[::1]:8081", "[::1]:8081"),
            ("http://[::1]", "[::1]:80"),
            ("https://x", "x:443"),
            ("https://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(Client::new(url, &TlsArgs::default()).unwrap().host, host, "{url}");
        }
        for url in [
            "",
            "https://x:1/y",
            "ftp://x",
            "http://",
            "http://x/y",
            "http://a b",
            "http://u@h",
            "http://h\r\nX: y",
        ] {
            assert!(
                Client::new(url, &TlsArgs::default()).unwrap_err().contains("http://127.0.0.1:8081"),
                "{url:?}"
            );
        }
    }

    #[test]
    fn answers() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX: y\r\n\r\n{}";
        assert_eq!(parse(whole), Some((200, &b"{}"[..])));
        assert_eq!(parse(b"HTTP/1.0 503 Not now\r\n\r\nx"), Some((503, &b"x"[..])));
        for n in 0..whole.len() {
            assert_eq!(parse(&whole[..n]), None, "cut off after {n} bytes");
        }
        assert_eq!(parse(b"220 mail.example.org ESMTP\r\n\r\n"), None);
        assert_eq!(parse(b"HTTP/1.1 abc\r\n\r\n"), None);
    }
}
