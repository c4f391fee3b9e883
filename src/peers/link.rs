//! The link to one node: what waits for it, and the task that keeps it open.

use super::asks::{Asks, REQUESTS_MAX};
use super::breaker::Breaker;
use super::dial::{self, Calls, LinkError};
use super::hello;
use super::options::{PeerIdentity, PeerOptions, PeerTls};
use super::proto::{AnswerBatch, ControlRequest, ControlResponse, Pong, PublishBatch, control_response};
use super::queue::Queue;
use super::samples::ClockSamples;
use super::{Shared, wire};
use crate::backoff::Backoff;
use crate::clock;
use crate::ports::{Answer, Frame, Inbox, LinkState, LinkStatus, Member, MemberId, MessageId, Report};
use crate::telemetry::Loss;
use crate::telemetry::losses::Named;
use crate::telemetry::metrics::{LinkChange, PeerAnswer};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

/// Between two questions for the cluster's time to a process that does not know it yet.
const ASK_TIME: Duration = Duration::from_millis(200);

/// Something that the task of a stream takes from, wherever that stream is polled.
struct Outlet<T> {
    inner: T,
    /// The stream that may take; an older one ends.
    stream: u64,
    waker: Option<Waker>,
}

impl<T> Outlet<T> {
    fn new(inner: T) -> Mutex<Outlet<T>> {
        Mutex::new(Outlet { inner, stream: 0, waker: None })
    }

    fn next<R>(&mut self, stream: u64, cx: &Context<'_>, item: Option<R>) -> Poll<Option<R>> {
        debug_assert_eq!(self.stream, stream);
        if item.is_none() {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(item)
    }
}

/// Changes what is in `outlet` and wakes its stream.
fn change<T, R>(outlet: &Mutex<Outlet<T>>, change: impl FnOnce(&mut Outlet<T>) -> R) -> R {
    let mut guard = outlet.lock();
    let result = change(&mut guard);
    let waker = guard.waker.take();
    drop(guard);
    if let Some(waker) = waker {
        waker.wake();
    }
    result
}

/// Where the node is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// Something is sent to a node that nobody has named yet.
    Unknown,
    /// Its record.
    At(Box<Member>),
    /// Not wanted any more.
    Gone,
}

/// What requests need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Being opened; likely to be up soon.
    Opening,
    /// Requests can be sent.
    Up,
    /// Down, for longer.
    Failing,
}

struct Status {
    state: LinkState,
    error: Option<String>,
    /// Why the node cannot reach this one, by its own word.
    back: Option<String>,
    rtt_us: Option<u64>,
    clock: ClockSamples,
}

/// The link to one node: what waits for it, and the task that keeps it open.
pub(super) struct Link {
    node: Arc<str>,
    named: Arc<Named>,
    shared: Arc<Shared>,
    target: watch::Sender<Target>,
    phase: watch::Sender<Phase>,
    status: Mutex<Status>,
    queue: Mutex<Outlet<Queue>>,
    pub(super) asks_in_flight: Semaphore,
    asks: Mutex<Outlet<Asks>>,
    pub(super) breaker: Mutex<Breaker>,
}

impl Link {
    pub(super) fn new(
        shared: &Arc<Shared>,
        node: &Arc<str>,
        target: Target,
        latest: Option<Report>,
    ) -> Arc<Link> {
        let options = &shared.options;
        let pause_ms = u64::try_from(options.breaker_pause.as_millis()).unwrap_or(u64::MAX);
        Arc::new(Link {
            node: node.clone(),
            named: shared.metrics.losses.node(node),
            target: watch::Sender::new(target),
            phase: watch::Sender::new(Phase::Opening),
            status: Mutex::new(Status {
                state: LinkState::Connecting,
                error: None,
                back: None,
                rtt_us: None,
                clock: ClockSamples::default(),
            }),
            queue: Outlet::new(Queue::new(options, latest)),
            asks_in_flight: Semaphore::new(REQUESTS_MAX),
            asks: Outlet::new(Asks::default()),
            breaker: Mutex::new(Breaker::new(options.breaker_failures, pause_ms)),
            shared: shared.clone(),
        })
    }

    pub(super) fn node(&self) -> &Arc<str> {
        &self.node
    }

    pub(super) fn options(&self) -> &PeerOptions {
        &self.shared.options
    }

    pub(super) fn identity(&self) -> &PeerIdentity {
        &self.shared.identity
    }

    pub(super) fn tls(&self) -> Option<&PeerTls> {
        self.shared.tls.as_ref()
    }

    /// The node is there now; tells the link's task if that is news.
    pub(super) fn aim(&self, target: Target) {
        self.target.send_if_modified(|old| {
            let news = *old != target;
            if news {
                *old = target;
            }
            news
        });
    }

    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn send(&self, frame: Frame) {
        if let Err(loss) = change(&self.queue, |queue| queue.inner.push(frame)) {
            self.shared.metrics.lost(self.named.whose(), loss, 1);
        }
    }

    pub(super) fn cancel(&self, id: MessageId) {
        self.queue.lock().inner.cancel(id);
    }

    pub(super) fn report(&self, report: &Report) {
        change(&self.queue, |queue| queue.inner.report(report));
    }

    /// Reaches the requests, and wakes their stream.
    pub(super) fn asks<R>(&self, with: impl FnOnce(&mut Asks) -> R) -> R {
        change(&self.asks, |asks| with(&mut asks.inner))
    }

    pub(super) fn status(&self) -> LinkStatus {
        let (unanswered, queued) = {
            let queue = self.queue.lock();
            (queue.inner.unanswered(), queue.inner.queued())
        };
        let slow = self.breaker.lock().open();
        let status = self.status.lock();
        let error = status.error.clone().or_else(|| {
            slow.map(|n| {
                format!("{n} requests in a row were not answered in time: requests fail at once for a while")
            })
        });
        LinkStatus {
            node: self.node.clone(),
            state: status.state,
            error,
            back: status.back.clone(),
            unanswered,
            queued,
            rtt_us: status.rtt_us,
            clock: status.clock.clock(),
        }
    }

    /// The next batch for `stream`, polled by its connection.
    pub(super) fn next_batch(&self, stream: u64, cx: &Context<'_>) -> Poll<Option<PublishBatch>> {
        let mut queue = self.queue.lock();
        if queue.stream != stream {
            return Poll::Ready(None);
        }
        let batch = queue.inner.take(clock::now());
        let polled = queue.next(stream, cx, batch);
        drop(queue);
        polled.map(|batch| {
            let batch = batch?;
            let metrics = &self.shared.metrics;
            let frames = batch.message.frames.len();
            if frames > 0 {
                metrics.peer_frames_sent.add(frames as u64);
                metrics.peer_bytes_sent.add(batch.bytes as u64);
                metrics.peer_batch_frames.record(frames as f64);
            }
            Some(batch.message)
        })
    }

    /// The next request for `stream`, polled by its connection.
    pub(super) fn next_request(&self, stream: u64, cx: &Context<'_>) -> Poll<Option<ControlRequest>> {
        let mut asks = self.asks.lock();
        if asks.stream != stream {
            return Poll::Ready(None);
        }
        let request = asks.inner.take();
        asks.next(stream, cx, request)
    }

    /// Keeps the link open until nobody wants it.
    pub(super) async fn run(self: Arc<Link>) {
        let mut target = self.target.subscribe();
        let mut failures: u32 = 0;
        let mut backoff = Backoff::new(self.options().backoff_min, self.options().backoff_max);
        loop {
            let address = match target.borrow_and_update().clone() {
                Target::Gone => break,
                Target::Unknown => None,
                Target::At(member) => Some(member.peer_address),
            };
            let Some(address) = address else {
                changed(&mut target).await;
                continue;
            };
            let stream = self.shared.attempts.fetch_add(1, Ordering::Relaxed) + 1;
            let mut was_up = false;
            let error = tokio::select! {
                error = self.once(&address, stream, &mut was_up) => Some(error),
                () = elsewhere(&mut target, &address) => None,
            };
            self.down(was_up);
            if was_up || error.is_none() {
                failures = 0;
                backoff.reset();
            }
            let Some(error) = error else { continue };
            failures = failures.saturating_add(1);
            let pause = self.failed(error, failures, &mut backoff);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed(&mut target) => {
                    failures = 0;
                    backoff.reset();
                }
            }
        }
        self.gone();
    }

    /// Opens the link and keeps it until it breaks; says why.
    async fn once(self: &Arc<Link>, address: &str, stream: u64, was_up: &mut bool) -> LinkError {
        change(&self.queue, |queue| queue.stream = stream);
        change(&self.asks, |asks| asks.stream = stream);
        let mut calls = match dial::dial(self, address, stream).await {
            Ok(calls) => calls,
            Err(error) => return error,
        };
        let Some(inbox) = self.shared.inbox() else {
            return LinkError::Failed("the broker is stopping".to_owned());
        };
        if inbox.superseded(&calls.process) {
            return LinkError::Refused(hello::superseded(&calls.process, &self.identity().me.node));
        }
        *was_up = true;
        self.up(&calls.process, inbox.as_ref());
        drop(inbox);
        let mut tick = tokio::time::interval(self.options().keepalive);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = self.next(&mut calls, &mut tick).await;
            if let Err(error) = outcome {
                return match error {
                    Broken::Status(status) => dial::ended(self, address, &status),
                    Broken::Other(error) => error,
                };
            }
        }
    }

    async fn next(&self, calls: &mut Calls, tick: &mut tokio::time::Interval) -> Result<(), Broken> {
        let ended = || Broken::Other(LinkError::Failed("the other node closed the connection".to_owned()));
        tokio::select! {
            batch = calls.answers.message() => {
                let batch = batch.map_err(Broken::Status)?.ok_or_else(ended)?;
                self.answered(&calls.process, batch)
            }
            response = calls.responses.message() => {
                let response = response.map_err(Broken::Status)?.ok_or_else(ended)?;
                self.responded(response);
                Ok(())
            }
            _ = tick.tick() => {
                self.still_wanted(&calls.process)?;
                let silent = Duration::from_micros(self.asks(|asks| asks.ping(clock::monotonic_us())));
                if silent < self.options().peer_timeout {
                    return Ok(());
                }
                let ms = silent.as_millis();
                Err(Broken::Other(LinkError::Failed(format!("no sign of life for {ms} ms"))))
            }
            () = self.time_to_ask() => {
                self.asks(|asks| asks.ping(clock::monotonic_us()));
                Ok(())
            }
        }
    }

    /// Completes soon if the other process has a clock and does not know the cluster's time yet, which this one may wait for; else
    /// never.
    async fn time_to_ask(&self) {
        let lacks_time = self.status.lock().clock.lacks_time();
        match lacks_time {
            true => tokio::time::sleep(ASK_TIME).await,
            false => std::future::pending().await,
        }
    }

    /// A process that a newer one of its node has replaced is left, even while it still answers.
    fn still_wanted(&self, process: &MemberId) -> Result<(), Broken> {
        match &*self.target.borrow() {
            Target::At(member) if member.id.incarnation > process.incarnation => {
                let why = format!("process {} has taken the place of {process}", member.id);
                Err(Broken::Other(LinkError::Failed(why)))
            }
            _ => Ok(()),
        }
    }

    fn answered(&self, process: &MemberId, batch: AnswerBatch) -> Result<(), Broken> {
        let Some(inbox) = self.shared.inbox() else {
            return Err(Broken::Other(LinkError::Failed("the broker is stopping".to_owned())));
        };
        if inbox.superseded(process) {
            let why = hello::superseded(process, &self.identity().me.node);
            return Err(Broken::Other(LinkError::Refused(why)));
        }
        let answers = self.queue.lock().inner.answered(batch);
        if answers.is_empty() {
            return Ok(());
        }
        let count = |kind: fn(&Answer) -> bool| answers.iter().filter(|(_, a)| kind(a)).count() as u64;
        let moved = count(|a| matches!(a, Answer::Moved(_)));
        let failed = count(|a| matches!(a, Answer::Failed(_)));
        let metrics = &self.shared.metrics.peer_answers;
        metrics.of(PeerAnswer::Accepted).add(answers.len() as u64 - moved - failed);
        metrics.of(PeerAnswer::Moved).add(moved);
        metrics.of(PeerAnswer::Failed).add(failed);
        inbox.answered(&self.node, answers);
        Ok(())
    }

    fn responded(&self, response: ControlResponse) {
        let (waits, rtt_us) = self.asks.lock().inner.responded(response.id, clock::monotonic_us());
        if let Some(rtt_us) = rtt_us {
            let pong = match response.response {
                Some(control_response::Response::Pong(pong)) => pong,
                _ => Pong::default(),
            };
            let mut status = self.status.lock();
            let again = status.clock.answered(&pong, rtt_us, clock::now());
            (status.rtt_us, status.back) = (Some(rtt_us), pong.unreachable);
            drop(status);
            if again {
                self.asks(|asks| asks.ping(clock::monotonic_us()));
            }
            self.shared.metrics.peer_round_trip_seconds.record(rtt_us as f64 / 1e6);
        } else if let Some(waits) = waits {
            // Whoever asked may have given up.
            let _ = waits.send(wire::read_response(response.response));
        }
    }

    fn up(&self, process: &MemberId, inbox: &dyn Inbox) {
        let (queued, resent) = {
            let mut status = self.status.lock();
            (status.state, status.error, status.back) = (LinkState::Up, None, None);
            status.clock.begin(process.incarnation);
            drop(status);
            self.shared.failures.write().remove(&self.node);
            inbox.link(&self.node, Some(process.clone()));
            change(&self.queue, |queue| {
                let resent = queue.inner.open();
                (queue.inner.queued(), resent)
            })
        };
        self.asks(Asks::open);
        self.phase.send_replace(Phase::Up);
        let metrics = &self.shared.metrics;
        metrics.peer_links_up.add(1);
        metrics.peer_link_changes.of(LinkChange::Up).inc();
        metrics.peer_frames_resent.add(resent as u64);
        tracing::info!(node = %self.node, process = %process, queued, resent, "the link to the node is up");
    }

    /// Takes the streams away from the connection, and tells the broker if it had been told of a link.
    fn down(&self, was_up: bool) {
        let dropped = change(&self.queue, |queue| {
            queue.stream = 0;
            queue.inner.close()
        });
        change(&self.asks, |asks| {
            asks.stream = 0;
            asks.inner.close();
        });
        self.shared.metrics.lost(self.named.whose(), Loss::LinkDown, dropped as u64);
        self.phase.send_if_modified(|phase| {
            let up = *phase == Phase::Up;
            if up {
                *phase = Phase::Opening;
            }
            up
        });
        if was_up {
            self.shared.metrics.peer_links_up.sub(1);
            let mut status = self.status.lock();
            (status.state, status.back) = (LinkState::Connecting, None);
            drop(status);
            if let Some(inbox) = self.shared.inbox() {
                inbox.link(&self.node, None);
            }
        }
    }

    /// Notes a failure, and returns how long to wait before the next attempt.
    fn failed(&self, error: LinkError, failures: u32, backoff: &mut Backoff) -> Duration {
        let options = self.options();
        let (state, why, change) = match error {
            LinkError::Refused(why) => (LinkState::Refused, why, LinkChange::Refused),
            LinkError::Failed(why) => (LinkState::Down, why, LinkChange::Down),
        };
        let refused = state == LinkState::Refused;
        let pause = if refused { Backoff::steady(options.refused_pause).pause() } else { backoff.pause() };
        if refused || failures >= options.breaker_failures {
            self.phase.send_replace(Phase::Failing);
        }
        let mut status = self.status.lock();
        let news = status.state != state || (refused && status.error.as_deref() != Some(&why));
        status.state = state;
        status.error = Some(why.clone());
        drop(status);
        self.shared.failures.write().insert(self.node.clone(), why.clone());
        if !news {
            tracing::debug!(node = %self.node, error = %why, failures, "the link to the node is still down");
            return pause;
        }
        self.shared.metrics.peer_link_changes.of(change).inc();
        if refused {
            tracing::error!(node = %self.node, error = %why, "the link to the node is refused");
        } else {
            tracing::warn!(node = %self.node, error = %why, "the link to the node is down; trying again");
        }
        pause
    }

    fn gone(&self) {
        self.phase.send_replace(Phase::Failing);
        let kept = self.queue.lock().inner.queued();
        self.shared.failures.write().remove(&self.node);
        tracing::info!(node = %self.node, given_up = kept, "the link to the node is closed: it is no member any more");
    }
}

enum Broken {
    Status(tonic::Status),
    Other(LinkError),
}

/// Completes when the node is to be found elsewhere, or is not wanted any more.
async fn elsewhere(target: &mut watch::Receiver<Target>, address: &str) {
    // Fails when the link itself is dropped, which its own task prevents.
    let _ = target.wait_for(|target| !matches!(target, Target::At(m) if m.peer_address == address)).await;
}

/// Completes at the next news of the node.
async fn changed(target: &mut watch::Receiver<Target>) {
    // As above.
    let _ = target.changed().await;
}
