//! Asks who answers at the address of another process: whether the process that etcd has recorded with this process's journal
//! still lives.
//!
//! The question is the handshake that every link begins with, so that a process of an older release answers it too. It is asked under
//! a name that no node can have: under this node's own the other side would only say that two processes have it.
//!
//! The address may be that of this very process by now (it was started again at the same place). Whoever asks therefore answers at
//! the *porch* meanwhile: it tells everybody that the node is starting, which is not what the process looked for would say.

use super::options::PeerTls;
use super::proto::peer_client::PeerClient;
use super::proto::peer_server::{Peer, PeerServer as PeerService};
use super::proto::{
    AnswerBatch, ControlRequest, ControlResponse, Hello, PublishBatch, control_request, control_response,
};
use super::{hello, tls};
use crate::ports::MemberId;
use futures_util::StreamExt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// A process of the node that was asked for.
    Process {
        /// Which.
        process: MemberId,
        /// The journal that it has opened; 0 = it does not say.
        journal: u64,
    },
    /// Nobody, somebody else, or nobody who says who it is. Says what was found.
    Other(String),
}

/// Asks as the member of a cluster that is not registered yet.
pub struct Probe {
    cluster: Arc<str>,
    tls: Option<PeerTls>,
    timeout: Duration,
    /// This process's own address for other nodes, which nobody serves yet.
    own: TcpListener,
}

impl Probe {
    /// `own` is a second handle of the listener for other nodes ([`super::PeerServer::second_handle`]); an answer is waited for
    /// as long as `timeout`.
    pub fn new(cluster: &str, tls: Option<PeerTls>, timeout: Duration, own: TcpListener) -> Probe {
        Probe { cluster: cluster.into(), tls, timeout, own }
    }

    /// Who answers at `address` as `node`.
    pub async fn ask(&self, node: &str, address: &str) -> Answered {
        let _porch = Porch::open(&self.own, self.tls.as_ref());
        match tokio::time::timeout(self.timeout, self.hello(node, address)).await {
            Ok(Ok(hello)) if *hello.cluster == *self.cluster && hello.node == node => Answered::Process {
                process: MemberId { node: node.into(), incarnation: hello.incarnation },
                journal: hello.journal,
            },
            Ok(Ok(hello)) => {
                Answered::Other(format!("node {:?} of cluster {:?} answers", hello.node, hello.cluster))
            }
            Ok(Err(why)) => Answered::Other(why),
            Err(_) => Answered::Other(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }

    async fn hello(&self, node: &str, address: &str) -> Result<Hello, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| tls::chain(&e))?;
        let mut endpoint = endpoint.tcp_nodelay(true).connect_timeout(self.timeout);
        if let Some(files) = &self.tls {
            let host = endpoint.uri().host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            endpoint = endpoint.tls_config(tls::client(files, &host)).map_err(|e| tls::chain(&e))?;
        }
        let channel = endpoint.connect().await.map_err(|e| tls::chain(&e))?;
        let hello = Hello {
            version: hello::VERSION,
            cluster: self.cluster.to_string(),
            node: format!("{node} (another start)"),
            incarnation: 1,
            to: node.to_owned(),
            attempt: 0,
            journal: 0,
        };
        let request = ControlRequest { id: 0, request: Some(control_request::Request::Hello(hello)) };
        // The call stays open until the answer is there.
        let requests = futures_util::stream::iter([request]).chain(futures_util::stream::pending());
        let said = |status: Status| status.message().to_owned();
        let mut responses = PeerClient::new(channel).control(requests).await.map_err(said)?.into_inner();
        match responses.message().await.map_err(said)?.and_then(|r| r.response) {
            Some(control_response::Response::Hello(hello)) => Ok(hello),
            _ => Err("it does not say who it is".to_owned()),
        }
    }
}

/// Answers at this process's own address that it is starting, until dropped.
struct Porch {
    _open: oneshot::Sender<()>,
}

impl Porch {
    /// `None` if that cannot be done: then nobody answers there, and whoever asks finds that out by waiting.
    fn open(own: &TcpListener, tls: Option<&PeerTls>) -> Option<Porch> {
        let listener = own.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = listener.inspect_err(|error| tracing::debug!(%error, "no porch")).ok()?;
        let mut server = Server::builder();
        if let Some(files) = tls {
            server = server.tls_config(tls::server(files)).ok()?;
        }
        let (open, closed) = oneshot::channel::<()>();
        let serving = server
            .add_service(PeerService::new(Starting))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move { drop(closed.await) });
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!(%error, "the porch is closed");
            }
        });
        Some(Porch { _open: open })
    }
}

struct Starting;

impl Starting {
    fn status() -> Status {
        Status::unavailable("the node is starting")
    }
}

#[tonic::async_trait]
impl Peer for Starting {
    type PublishStream = tokio_stream::Empty<Result<AnswerBatch, Status>>;
    type ControlStream = tokio_stream::Empty<Result<ControlResponse, Status>>;

    async fn publish(
        &self,
        _: Request<Streaming<PublishBatch>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        Err(Starting::status())
    }

    async fn control(
        &self,
        _: Request<Streaming<ControlRequest>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        Err(Starting::status())
    }
}
