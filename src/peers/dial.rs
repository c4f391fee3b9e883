//! Opening the two calls to a node.

use super::asks::CONTROL_MESSAGE_MAX;
use super::hello;
use super::link::Link;
use super::options::PeerTls;
use super::proto::peer_client::PeerClient;
use super::proto::{AnswerBatch, ControlRequest, ControlResponse, Hello, PublishBatch};
use super::proto::{control_request, control_response};
use super::{CONNECTION_WINDOW, STREAM_WINDOW, tls};
use crate::ports::MemberId;
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    /// It will not get better by itself soon.
    Refused(String),
    /// It may work the next time.
    Failed(String),
}

/// Both calls, the other side's hello read.
pub(super) struct Calls {
    pub(super) process: MemberId,
    pub(super) answers: Streaming<AnswerBatch>,
    pub(super) responses: Streaming<ControlResponse>,
}

/// Our side of the publish call: hello, then what is queued until another stream takes its place.
struct Publishes {
    link: Arc<Link>,
    stream: u64,
    hello: Option<Hello>,
}

impl Stream for Publishes {
    type Item = PublishBatch;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PublishBatch>> {
        let this = self.get_mut();
        match this.hello.take() {
            Some(hello) => Poll::Ready(Some(PublishBatch { hello: Some(hello), ..PublishBatch::default() })),
            None => this.link.next_batch(this.stream, cx),
        }
    }
}

/// Our side of the control call.
struct Requests {
    link: Arc<Link>,
    stream: u64,
    hello: Option<Hello>,
}

impl Stream for Requests {
    type Item = ControlRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ControlRequest>> {
        let this = self.get_mut();
        match this.hello.take() {
            Some(hello) => {
                let request = Some(control_request::Request::Hello(hello));
                Poll::Ready(Some(ControlRequest { id: 0, request }))
            }
            None => this.link.next_request(this.stream, cx),
        }
    }
}

/// Connects to `address` and opens both calls as stream number `stream`.
pub(super) async fn dial(link: &Arc<Link>, address: &str, stream: u64) -> Result<Calls, LinkError> {
    let timeout = link.options().peer_timeout;
    match tokio::time::timeout(timeout, open(link, address, stream)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(LinkError::Failed(format!(
            "no answer from {address} within {} ms: is the node there, and does the network let us through?",
            timeout.as_millis()
        ))),
    }
}

async fn open(link: &Arc<Link>, address: &str, stream: u64) -> Result<Calls, LinkError> {
    let endpoint = endpoint(link, address)?;
    let unreachable = |e: tonic::transport::Error| failure(link, address, &tls::chain(&e));
    let (publish, control): (Channel, Channel) =
        tokio::try_join!(endpoint.connect(), endpoint.connect()).map_err(unreachable)?;
    let hello = hello::hello(link.identity(), link.node(), stream);
    let publishes = Publishes { link: link.clone(), stream, hello: Some(hello.clone()) };
    let requests = Requests { link: link.clone(), stream, hello: Some(hello) };
    let ended = |status: Status| ended(link, address, &status);
    let mut publish = PeerClient::new(publish).max_decoding_message_size(CONTROL_MESSAGE_MAX);
    let mut control = PeerClient::new(control).max_decoding_message_size(2 * CONTROL_MESSAGE_MAX);
    let (answers, responses) =
        tokio::try_join!(publish.publish(publishes), control.control(requests)).map_err(ended)?;
    let (mut answers, mut responses) = (answers.into_inner(), responses.into_inner());
    let (answer, response) = tokio::try_join!(answers.message(), responses.message()).map_err(ended)?;
    let response = match response.and_then(|r| r.response) {
        Some(control_response::Response::Hello(hello)) => Some(hello),
        _ => None,
    };
    let process = welcome(link, answer.and_then(|a| a.hello), address)?;
    if welcome(link, response, address)? != process {
        // A restart between the two connections.
        return Err(LinkError::Failed(format!("two processes answer at {address}")));
    }
    Ok(Calls { process, answers, responses })
}

/// Who answered, if it is the node we want.
fn welcome(link: &Link, hello: Option<Hello>, address: &str) -> Result<MemberId, LinkError> {
    let Some(hello) = hello else {
        return Err(LinkError::Failed(format!("{address} did not say who it is")));
    };
    let process = hello::check(link.identity(), &hello).map_err(LinkError::Refused)?;
    if process.node != *link.node() {
        return Err(LinkError::Refused(format!(
            "node {process} answers at {address}, not node {}: check cluster.advertise_peer of both",
            link.node()
        )));
    }
    Ok(process)
}

fn endpoint(link: &Link, address: &str) -> Result<Endpoint, LinkError> {
    let options = link.options();
    let scheme = if link.tls().is_some() { "https" } else { "http" };
    let wrong = |e: &dyn std::fmt::Display| {
        LinkError::Refused(format!(
            "node {} registered {address:?} as its address, which is no host:port ({e}): check cluster.advertise_peer there",
            link.node()
        ))
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|e| wrong(&e))?
        .tcp_nodelay(true)
        .connect_timeout(options.peer_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(options.keepalive)
        .keep_alive_timeout(options.peer_timeout.saturating_sub(options.keepalive))
        .keep_alive_while_idle(true);
    // Links are made anew seldom, and go by the files as they are then.
    let Some(tls) = link.tls().map(PeerTls::newest) else { return Ok(endpoint) };
    let host = endpoint.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    endpoint.tls_config(tls::client(&tls, &host)).map_err(|e| {
        LinkError::Refused(format!(
            "cannot use {}, {} and {} for TLS between nodes (cluster.tls): {}",
            tls.ca.path,
            tls.cert.path,
            tls.key.path,
            tls::chain(&e)
        ))
    })
}

/// What a call that ended with `status` means for the link.
pub(super) fn ended(link: &Link, address: &str, status: &Status) -> LinkError {
    if status.code() == Code::FailedPrecondition {
        return LinkError::Refused(status.message().to_owned());
    }
    let why = tls::with_causes(status.message(), std::error::Error::source(status));
    failure(link, address, &format!("the connection broke: {why}"))
}

fn failure(link: &Link, address: &str, error: &str) -> LinkError {
    match tls::explain(error, link.tls(), address) {
        Some(explained) => LinkError::Refused(explained),
        None => LinkError::Failed(format!("{address}: {error}")),
    }
}
