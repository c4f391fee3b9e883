//! The side that other nodes dial: reads their publishes and requests.

use super::answers::{AnswerStream, StreamAnswers};
use super::asks::{CONTROL_MESSAGE_MAX, REQUESTS_MAX};
use super::proto::peer_server::{Peer, PeerServer as PeerService};
use super::proto::{ControlRequest, ControlResponse, Hello, Pong, PublishBatch};
use super::proto::{control_request, control_response};
use super::slots::{Seat, Slots};
use super::{CONNECTION_WINDOW, GrpcPeers, STREAM_WINDOW, Shared, accept, hello, tls, wire};
use crate::clock;
use crate::hashing::HashMap;
use crate::ports::{Answers, Inbox, MemberId, Request as Question, Response as Reply};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one batch of publishes: the largest message that MQTT has, and what comes with it.
const PUBLISH_MESSAGE_MAX: usize = 257 << 20;

/// Responses that wait to be sent on one call; more wait where they are made.
const RESPONSES_WAITING: usize = 16;

/// Refusals that are remembered so as to be logged once.
const REFUSALS_MAX: usize = 1024;

/// How long open connections may take to end when the node stops.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Why nothing listens for other nodes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BindError(String);

/// The listener for other nodes.
pub struct PeerServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl PeerServer {
    /// Listens on `address` (`host:port`; port 0 = any). Connections wait in the kernel until [`PeerServer::serve`].
    ///
    /// # Errors
    /// The address cannot be had; says which key it comes from.
    pub async fn bind(address: &str) -> Result<PeerServer, BindError> {
        let wrong = |e: std::io::Error| {
            BindError(format!(
                "cannot listen on {address:?} for other nodes: {e}; check cluster.peer_address, and whether another process has the port"
            ))
        };
        let listener = TcpListener::bind(address).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        Ok(PeerServer { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A second handle of the listener, for [`super::Probe`]. Connections wait in the kernel as long as either is there.
    ///
    /// # Errors
    /// The system gives none.
    pub fn second_handle(&self) -> Result<std::net::TcpListener, BindError> {
        let second = self.listener.as_fd().try_clone_to_owned();
        second.map(Into::into).map_err(|e| {
            BindError(format!("cannot use the listener for other nodes ({}): {e}", self.address))
        })
    }

    /// Serves other nodes, with the identity, options, TLS and inbox of `peers`, until `stop` completes; then ends all
    /// calls. While no inbox is attached, callers are told to come back later.
    ///
    /// # Errors
    /// The TLS files cannot be used, or the listener failed.
    pub async fn serve(self, peers: &GrpcPeers, stop: impl Future<Output = ()>) -> Result<(), BindError> {
        let shared = peers.shared.clone();
        let options = shared.options.clone();
        let mut server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(options.keepalive))
            .http2_keepalive_timeout(Some(options.peer_timeout.saturating_sub(options.keepalive)));
        let files = shared.tls.clone();
        let (stopping, stopped) = watch::channel(false);
        let service =
            Service { shared, slots: Arc::default(), refusals: Arc::default(), stopped: stopped.clone() };
        let service = PeerService::new(service).max_decoding_message_size(PUBLISH_MESSAGE_MAX);
        let router = server.add_service(service);
        type Serving = BoxFuture<'static, Result<(), tonic::transport::Error>>;
        let mut serving: Serving = match &files {
            Some(files) => {
                let incoming = accept::incoming(self.listener, files, options.peer_timeout).map_err(|e| {
                    BindError(format!(
                        "cannot use {}, {} and {} for TLS between nodes (cluster.tls): {e}",
                        files.ca.path, files.cert.path, files.key.path
                    ))
                })?;
                Box::pin(router.serve_with_incoming_shutdown(incoming, until(stopped)))
            }
            None => {
                let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
                Box::pin(router.serve_with_incoming_shutdown(incoming, until(stopped)))
            }
        };
        let failed = |e: tonic::transport::Error| {
            BindError(format!("the listener for other nodes failed: {}", tls::chain(&e)))
        };
        tokio::select! {
            ended = &mut serving => return ended.map_err(failed),
            () = stop => {}
        }
        // Nobody reads it any more if serving has just ended.
        let _ = stopping.send(true);
        match tokio::time::timeout(CLOSE_MAX, serving).await {
            Ok(ended) => ended.map_err(failed),
            Err(_) => Ok(()),
        }
    }
}

/// Completes when the node stops.
async fn until(mut stopped: watch::Receiver<bool>) {
    // Fails when the server is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

#[derive(Clone)]
struct Service {
    shared: Arc<Shared>,
    slots: Arc<Slots>,
    /// The last refusal of each node.
    refusals: Arc<Mutex<HashMap<String, String>>>,
    stopped: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Peer for Service {
    type PublishStream = AnswerStream;
    type ControlStream = ReceiverStream<Result<ControlResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishBatch>>,
    ) -> Result<Response<AnswerStream>, Status> {
        let remote = request.remote_addr();
        let mut inbound = request.into_inner();
        let first = self.first(&mut inbound).await?;
        let (from, attempt) = self.admit(first.hello, remote)?;
        let answers = StreamAnswers::new(hello::hello(&self.shared.identity, &from.node, 0));
        let seat = self.slots.enter(&from, attempt, &answers).map_err(Status::aborted)?;
        let reader = Reader { service: self.clone(), from, seat, answers: answers.clone() };
        tokio::spawn(reader.run(inbound));
        Ok(Response::new(AnswerStream(answers)))
    }

    async fn control(
        &self,
        request: Request<Streaming<ControlRequest>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let remote = request.remote_addr();
        let mut inbound = request.into_inner();
        let first = match self.first(&mut inbound).await?.request {
            Some(control_request::Request::Hello(hello)) => Some(hello),
            _ => None,
        };
        let (from, _) = self.admit(first, remote)?;
        let (responses, outbound) = mpsc::channel(RESPONSES_WAITING);
        let hello = hello::hello(&self.shared.identity, &from.node, 0);
        let welcome = ControlResponse { id: 0, response: Some(control_response::Response::Hello(hello)) };
        // There is room for the first one.
        let _ = responses.send(Ok(welcome)).await;
        tokio::spawn(self.clone().answer_requests(inbound, from, responses));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

impl Service {
    async fn first<T>(&self, inbound: &mut Streaming<T>) -> Result<T, Status> {
        let first = tokio::time::timeout(self.shared.options.peer_timeout, inbound.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        first.ok_or_else(|| Status::invalid_argument("no hello"))
    }

    /// Who calls, and by which attempt; refuses whom we do not talk to.
    fn admit(&self, hello: Option<Hello>, remote: Option<SocketAddr>) -> Result<(MemberId, u64), Status> {
        let Some(hello) = hello else {
            return Err(Status::invalid_argument("the first message is no hello"));
        };
        let inbox = self.inbox()?;
        let me = &self.shared.identity.me.node;
        let checked = hello::check(&self.shared.identity, &hello).and_then(|from| {
            if inbox.superseded(&from) { Err(hello::superseded(&from, me)) } else { Ok(from) }
        });
        match checked {
            Ok(from) => {
                self.refusals.lock().remove(&hello.node);
                Ok((from, hello.attempt))
            }
            Err(why) => Err(self.refuse(&hello.node, why, remote)),
        }
    }

    fn inbox(&self) -> Result<Arc<dyn Inbox>, Status> {
        self.shared.inbox().ok_or_else(|| Status::unavailable("the node is starting or stopping"))
    }

    /// Logs a refusal unless the last one of that node was the same.
    fn refuse(&self, node: &str, why: String, remote: Option<SocketAddr>) -> Status {
        self.shared.metrics.peer_refusals.inc();
        let mut refusals = self.refusals.lock();
        if refusals.len() >= REFUSALS_MAX {
            refusals.clear();
        }
        let before = refusals.insert(node.to_owned(), why.clone());
        drop(refusals);
        if before.as_deref() != Some(&why) {
            tracing::error!(node, remote = ?remote, error = %why, "refused a connection of another node");
        }
        Status::failed_precondition(why)
    }

    async fn answer_requests(
        self,
        mut inbound: Streaming<ControlRequest>,
        from: MemberId,
        responses: mpsc::Sender<Result<ControlResponse, Status>>,
    ) {
        let running = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let request = tokio::select! {
                request = inbound.message() => request,
                () = responses.closed() => return,
                () = until(self.stopped.clone()) => Err(Status::unavailable("the node is stopping")),
            };
            let status = match request {
                Ok(Some(request)) => match self.take_request(request, &from, &responses, &running).await {
                    Ok(()) => continue,
                    Err(status) => status,
                },
                Ok(None) => return,
                Err(status) => status,
            };
            // The other side may be gone.
            let _ = responses.send(Err(status)).await;
            return;
        }
    }

    async fn take_request(
        &self,
        request: ControlRequest,
        from: &MemberId,
        responses: &mpsc::Sender<Result<ControlResponse, Status>>,
        running: &Arc<Semaphore>,
    ) -> Result<(), Status> {
        let inbox = self.inbox()?;
        if inbox.superseded(from) {
            let why = hello::superseded(from, &self.shared.identity.me.node);
            return Err(self.refuse(&from.node, why, None));
        }
        let id = request.id;
        let answer = |reply: Reply| ControlResponse { id, response: Some(wire::response(reply)) };
        // Sending fails when the call has ended: then nobody waits.
        let Some(request) = request.request else {
            let why = "a request that this version does not know".into();
            let _ = responses.send(Ok(answer(Reply::Refused(why)))).await;
            return Ok(());
        };
        let Some(question) = wire::read_request(request) else {
            // Whoever asks may have a wrong idea of where it is reached.
            let unreachable = self.shared.failures.read().get(&from.node).cloned();
            let said = inbox.clock();
            let pong = Pong {
                unreachable,
                clock_ms: said.map(|c| c.now.as_millis()),
                cluster_ahead_ms: said.and_then(|c| c.cluster_ahead_ms),
                cluster_young_ms: said.map(|c| c.cluster_young_ms).filter(|ms| *ms > 0),
            };
            let pong = control_response::Response::Pong(pong);
            let _ = responses.send(Ok(ControlResponse { id, response: Some(pong) })).await;
            return Ok(());
        };
        let Ok(permit) = running.clone().try_acquire_owned() else {
            let why = format!("{REQUESTS_MAX} requests of this node are under way");
            let _ = responses.send(Ok(answer(Reply::Refused(why.into())))).await;
            return Ok(());
        };
        let (from, responses) = (from.clone(), responses.clone());
        tokio::spawn(async move {
            let reply = reply(inbox, from, question).await;
            let _ = responses.send(Ok(ControlResponse { id, response: Some(reply) })).await;
            drop(permit);
        });
        Ok(())
    }
}

/// The broker's reply, if the other side can take it.
async fn reply(inbox: Arc<dyn Inbox>, from: MemberId, question: Question) -> control_response::Response {
    let reply = inbox.request(from, question);
    drop(inbox);
    let reply = wire::response(reply.await);
    if reply.encoded_len() > CONTROL_MESSAGE_MAX {
        return control_response::Response::Refused(format!(
            "a response of more than {CONTROL_MESSAGE_MAX} bytes"
        ));
    }
    reply
}

/// Reads the publishes of one connection.
struct Reader {
    service: Service,
    from: MemberId,
    seat: Seat,
    answers: Arc<StreamAnswers>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.answers.end();
    }
}

impl Reader {
    async fn run(self, mut inbound: Streaming<PublishBatch>) {
        let handle: Arc<dyn Answers> = self.answers.clone();
        let status = loop {
            let batch = tokio::select! {
                batch = inbound.message() => batch,
                () = self.answers.closed() => return,
                () = until(self.service.stopped.clone()) => Err(Status::unavailable("the node is stopping")),
            };
            let pause = match batch {
                Ok(Some(batch)) => self.deliver(batch, &handle),
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            };
            match pause {
                Ok(None) => {}
                Ok(Some(inbox)) => self.pause(inbox).await,
                Err(status) => break Err(status),
            }
        };
        self.answers.close(status);
    }

    /// Waits until the broker takes more, or there is nobody to read from.
    async fn pause(&self, inbox: Arc<dyn Inbox>) {
        let relieved = inbox.relieved();
        drop(inbox);
        tokio::select! {
            () = relieved => {}
            () = self.answers.closed() => {}
            () = until(self.service.stopped.clone()) => {}
        }
    }

    /// Hands a batch to the broker, which is returned if it asks for a pause.
    fn deliver(
        &self,
        batch: PublishBatch,
        handle: &Arc<dyn Answers>,
    ) -> Result<Option<Arc<dyn Inbox>>, Status> {
        let inbox = self.service.inbox()?;
        let shared = &self.service.shared;
        if inbox.superseded(&self.from) {
            let why = hello::superseded(&self.from, &shared.identity.me.node);
            return Err(self.service.refuse(&self.from.node, why, None));
        }
        let now = clock::now();
        let mut position = batch.first_position;
        let mut frames = Vec::with_capacity(batch.frames.len());
        let mut places = Vec::with_capacity(batch.frames.len());
        let mut bytes = 0;
        for frame in batch.frames {
            let skipped = u64::from(frame.skipped);
            let frame = wire::read_frame(frame, now)
                .map_err(|what| Status::invalid_argument(format!("node {} sent {what}", self.from)))?;
            if let Some(id) = frame.id {
                position = position.wrapping_add(skipped);
                places.push((id, position));
                position = position.wrapping_add(1);
            }
            bytes += frame.message.size() as u64;
            frames.push(frame);
        }
        shared.metrics.peer_frames_received.add(frames.len() as u64);
        shared.metrics.peer_bytes_received.add(bytes);
        let delivered = self.seat.deliver(|| {
            self.answers.expect(places.into_iter());
            let pause = !frames.is_empty() && inbox.frames(&self.from, frames, handle);
            if let Some(report) = batch.report {
                inbox.report(&self.from, wire::read_report(report));
            }
            pause
        });
        match delivered {
            Some(pause) => Ok(pause.then_some(inbox)),
            None => Err(Status::aborted("a newer connection of the node is there")),
        }
    }
}
