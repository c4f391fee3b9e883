//! Who may do what at admin HTTP. With tokens, whoever presents one, from anywhere; without, only programs on this machine may use
//! `/api/v1/`. Never a web page that a browser shows.

use super::Shared;
use super::audit::{Caller, Order};
use super::bounded::{Bounded, Requests};
use super::tokens::{Role, Tokens};
use crate::clock::{self, Time};
use crate::names::shown;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::serve::IncomingStream;
use parking_lot::Mutex;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Between two log lines about requests that were refused, milliseconds.
const SAID_EVERY_MS: u64 = 60_000;

/// Where a connection comes from, and what is asked on it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    address: SocketAddr,
    requests: Requests,
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Peer {
        Peer { address: *stream.remote_addr(), requests: stream.io().requests() }
    }
}

/// Notes on the connection that it waits for this node.
pub(super) async fn counted(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let _answering = peer.requests.begin();
    next.run(request).await
}

/// Who may use what.
#[derive(Debug, Default)]
pub struct Access {
    tokens: Option<Arc<Tokens>>,
    /// Whether `/metrics` asks for no token.
    open_metrics: bool,
    /// When a refusal was last logged, and how many were not since.
    refused: Mutex<(Option<Time>, u64)>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    why: &'static str,
}

impl Access {
    /// With tokens, or without; `open_metrics` = `/metrics` asks for none.
    pub fn new(tokens: Option<Arc<Tokens>>, open_metrics: bool) -> Access {
        Access { tokens, open_metrics, refused: Mutex::default() }
    }

    /// Who asks for something that takes `role`.
    fn admit(&self, role: Role, peer: SocketAddr, headers: &HeaderMap) -> (Caller, Result<(), Refusal>) {
        let caller = |name: Arc<str>, role| Caller { name, role, from: peer };
        let Some(tokens) = &self.tokens else {
            let refused = match local(peer.ip(), headers) {
                Some(why) => Err(Refusal { status: StatusCode::FORBIDDEN, why }),
                None => Ok(()),
            };
            return (caller("local".into(), refused.is_ok().then_some(Role::Admin)), refused);
        };
        let Some((name, granted)) = bearer(headers).and_then(|token| tokens.check(token)) else {
            let why = if headers.contains_key(header::AUTHORIZATION) {
                "the token is not one of this node's: see http.admin_token_file and http.read_token_file"
            } else {
                "a token is needed (Authorization: Bearer …): berth ctl takes it from --token-file or BERTH_TOKEN_FILE"
            };
            return (caller("unknown".into(), None), Err(Refusal { status: StatusCode::UNAUTHORIZED, why }));
        };
        let refused = if headers.contains_key(header::ORIGIN) {
            Err(Refusal { status: StatusCode::FORBIDDEN, why: WEB_PAGE })
        } else if granted < role {
            let why = "this token may read and change nothing: one of http.admin_token_file is needed";
            Err(Refusal { status: StatusCode::FORBIDDEN, why })
        } else {
            Ok(())
        };
        (caller(name, Some(granted)), refused)
    }

    /// Takes in changes of the tokens' files, for ever.
    pub(super) async fn watch(&self) {
        match &self.tokens {
            Some(tokens) => tokens.watch().await,
            None => std::future::pending().await,
        }
    }

    /// How many refusals are to be named in a line now; `None` = none of them.
    fn to_say(&self, now: Time) -> Option<u64> {
        let mut refused = self.refused.lock();
        if refused.0.is_some_and(|at| now.since_ms(at) < SAID_EVERY_MS) {
            refused.1 += 1;
            return None;
        }
        refused.0 = Some(now);
        Some(std::mem::take(&mut refused.1) + 1)
    }
}

/// Lets requests through that only ask.
pub(super) async fn may_read(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    guard(shared, Role::Read, peer.address, request, next).await
}

/// Lets requests through that change something.
pub(super) async fn may_change(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    guard(shared, Role::Admin, peer.address, request, next).await
}

/// Lets requests through for what everybody may read unless there are tokens.
pub(super) async fn may_look(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if shared.access.tokens.is_none() {
        return next.run(request).await;
    }
    guard(shared, Role::Read, peer.address, request, next).await
}

/// As [`may_look`], for `/metrics`.
pub(super) async fn may_scrape(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if shared.access.tokens.is_none() || shared.access.open_metrics {
        return next.run(request).await;
    }
    guard(shared, Role::Read, peer.address, request, next).await
}

async fn guard(
    shared: Arc<Shared>,
    role: Role,
    peer: SocketAddr,
    mut request: Request,
    next: Next,
) -> Response {
    let (caller, admitted) = shared.access.admit(role, peer, request.headers());
    let Err(Refusal { status, why }) = admitted else {
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    };
    shared.metrics.http_refused.inc();
    let path =
        request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path().to_owned();
    match shared.access.to_say(clock::now()) {
        Some(count) => {
            tracing::warn!(%peer, who = %caller.name, path = %shown(&path), count, why, "requests refused")
        }
        None => tracing::debug!(%peer, who = %caller.name, path = %shown(&path), why, "request refused"),
    }
    // Of those without any right the log has the number only: anybody can send them.
    if role == Role::Admin && caller.role.is_some() {
        shared
            .audit
            .note(
                &caller,
                &Order { action: "refused", subject: format!("{} {path}", request.method()) },
                status,
            )
            .await;
    }
    let mut response = (status, Json(json!({ "error": why }))).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Bearer realm=\"berth\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

/// The token that a request presents (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

const WEB_PAGE: &str = "/api/v1/ does not answer web pages: the request has an Origin header";

/// Why a request without a token is refused; `None` = it comes from a program on this machine.
fn local(peer: IpAddr, headers: &HeaderMap) -> Option<&'static str> {
    if !peer.to_canonical().is_loopback() {
        return Some(
            "/api/v1/ answers only programs on the broker's own machine as long as there are no tokens: set \
             http.admin_token_file, run berth ctl there, or forward a port to it (ssh -L 8081:127.0.0.1:8081 <machine>)",
        );
    }
    if headers.contains_key(header::ORIGIN) {
        return Some(WEB_PAGE);
    }
    // A page of a host whose name was made to mean this machine would be of the same origin.
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name =
        if host.parse::<SocketAddr>().is_ok() { "" } else { host.rsplit_once(':').map_or(host, |(n, _)| n) };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    if !(name.is_empty() || address || name.eq_ignore_ascii_case("localhost")) {
        return Some(
            "/api/v1/ answers requests to an address or to localhost only: the Host header has another name",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_programs_on_this_machine() {
        let cases = [
            ("127.0.0.1", "127.0.0.1:8081", None, true),
            ("127.0.0.1", "localhost:8081", None, true),
            ("::1", "[::1]:8081", None, true),
            ("::ffff:127.0.0.1", "127.0.0.1", None, true),
            ("127.0.0.1", "", None, true),
            ("10.0.0.7", "10.0.0.8:8081", None, false),
            ("2001:db8::1", "localhost", None, false),
            ("127.0.0.1", "127.0.0.1:8081", Some("http://127.0.0.1:8081"), false),
            ("127.0.0.1", "127.0.0.1:8081", Some("null"), false),
            ("127.0.0.1", "rebound.example:8081", None, false),
        ];
        for (peer, host, origin, allowed) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            let refused = local(peer.parse().unwrap(), &headers);
            assert_eq!(refused.is_none(), allowed, "{peer} {host} {origin:?}: {refused:?}");
        }
    }

    #[test]
    fn who_presents_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, token: &str| {
            use std::os::unix::fs::PermissionsExt;
            let path = dir.path().join(name);
            std::fs::write(&path, token).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let (admin, read) =
            (file("admin", "root aaaaaaaaaaaaaaaaaaaa"), file("read", "bbbbbbbbbbbbbbbbbbbb"));
        let access = Access::new(Tokens::read(Some(&admin), Some(&read)).unwrap().map(Arc::new), true);
        let cases = [
            (Some("Bearer aaaaaaaaaaaaaaaaaaaa"), None, "root", [None, None]),
            (Some("bearer  aaaaaaaaaaaaaaaaaaaa"), None, "root", [None, None]),
            (Some("Bearer bbbbbbbbbbbbbbbbbbbb"), None, "read-only", [None, Some(403)]),
            (Some("Bearer cccccccccccccccccccc"), None, "unknown", [Some(401), Some(401)]),
            (Some("Basic aaaaaaaaaaaaaaaaaaaa"), None, "unknown", [Some(401), Some(401)]),
            (Some("aaaaaaaaaaaaaaaaaaaa"), None, "unknown", [Some(401), Some(401)]),
            (None, None, "unknown", [Some(401), Some(401)]),
            (Some("Bearer aaaaaaaaaaaaaaaaaaaa"), Some("http://x"), "root", [Some(403), Some(403)]),
        ];
        for peer in ["127.0.0.1:1", "192.0.2.1:1"] {
            for (presented, origin, name, expected) in cases {
                let mut headers = HeaderMap::new();
                let mut insert = |name, value: Option<&'static str>| {
                    value.map(|v| headers.insert(name, HeaderValue::from_static(v)))
                };
                insert(header::AUTHORIZATION, presented);
                insert(header::ORIGIN, origin);
                for (role, status) in [Role::Read, Role::Admin].into_iter().zip(expected) {
                    let (caller, admitted) = access.admit(role, peer.parse().unwrap(), &headers);
                    assert_eq!(&*caller.name, name, "{presented:?}");
                    assert_eq!(
                        admitted.err().map(|r| r.status.as_u16()),
                        status,
                        "{presented:?} {role:?} {origin:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn refusals_are_said_once_a_minute() {
        let access = Access::default();
        let now = clock::now();
        assert_eq!(access.to_say(now), Some(1));
        assert_eq!(access.to_say(now.plus_ms(SAID_EVERY_MS - 1)), None);
        assert_eq!(access.to_say(now.plus_ms(SAID_EVERY_MS)), Some(2));
    }
}
