//! Who may use `/api/v1/`. There is no authentication: only programs on this machine, and no web page that a browser on
//! this machine shows.

use super::bounded::{Bounded, Requests};
use crate::names::shown;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::serve::IncomingStream;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

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

/// Lets requests through that come from this machine.
pub(super) async fn local_only(
    ConnectInfo(Peer { address: peer, .. }): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match refusal(peer.ip(), request.headers()) {
        None => next.run(request).await,
        Some(why) => {
            tracing::warn!(%peer, path = %shown(request.uri().path()), why, "request refused");
            (StatusCode::FORBIDDEN, Json(json!({ "error": why }))).into_response()
        }
    }
}

fn refusal(peer: IpAddr, headers: &HeaderMap) -> Option<&'static str> {
    if !peer.to_canonical().is_loopback() {
        return Some(
            "/api/v1/ answers only programs on the broker's own machine, for there is no authentication: run berth ctl \
             there, or forward a port to it (ssh -L 8081:127.0.0.1:8081 <machine>)",
        );
    }
    if headers.contains_key(header::ORIGIN) {
        return Some("/api/v1/ does not answer web pages: the request has an Origin header");
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
            let refused = refusal(peer.parse().unwrap(), &headers);
            assert_eq!(refused.is_none(), allowed, "{peer} {host} {origin:?}: {refused:?}");
        }
    }
}
