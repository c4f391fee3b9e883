//! Drives one client's connection: the only place where a socket meets a [`Link`]. Knows bytes and readiness, not MQTT.
//!
//! One task serves one connection. Its buffers belong to the thread: an idle connection holds none.

use crate::broker::link::WIRE_BYTES_MAX;
use crate::broker::{Admission, Broker, Context, Link};
use crate::clock::{self, Time};
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// Rounds of reading and writing before other connections of this thread get their turn.
const ROUNDS_MAX: usize = 8;

struct Buffers {
    context: Context,
    read: Box<[u8]>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        context: Context::default(),
        read: vec![0; READ_BYTES].into_boxed_slice(),
    });
}

struct Connection {
    stream: TcpStream,
    link: Link,
    /// What the client has not taken yet.
    unsent: Vec<u8>,
    broker: Arc<Broker>,
    armed: Option<Time>,
    /// This node may not serve clients, and this one has been told.
    silenced: bool,
    /// When to give up writing the last bytes.
    linger: Option<Time>,
}

/// How long a client may take to read the last bytes before its socket is closed, milliseconds.
const LINGER_MS: u64 = 1_000;

/// Serves one connection until it ends or `stop` is notified.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    broker: Arc<Broker>,
    admission: Admission,
    stop: Arc<Notify>,
) {
    let link = Link::new(broker.clone(), peer, admission, clock::now());
    let mut c =
        Connection { stream, link, unsent: Vec::new(), broker, armed: None, silenced: false, linger: None };
    let sleep = tokio::time::sleep(std::time::Duration::ZERO);
    let stopped = stop.notified();
    tokio::pin!(sleep, stopped);
    let mut stopping = false;
    poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            c.with_buffers(|c, b| c.link.shut_down(clock::now(), &mut b.context));
        }
        c.poll(cx, sleep.as_mut())
    })
    .await;
}

impl Connection {
    fn with_buffers<R>(&mut self, f: impl FnOnce(&mut Connection, &mut Buffers) -> R) -> R {
        BUFFERS.with_borrow_mut(|b| {
            // Nothing that a connection may have left behind by panicking reaches another client.
            b.context.actions.wire.clear();
            b.context.actions.effects.clear();
            if !self.unsent.is_empty() {
                // Goes before whatever comes now, and counts towards what the client has yet to take.
                std::mem::swap(&mut self.unsent, &mut b.context.actions.wire);
            }
            let r = f(self, b);
            let wire = &mut b.context.actions.wire;
            if !wire.is_empty() {
                std::mem::swap(&mut self.unsent, wire);
                wire.clear();
            } else if self.unsent.capacity() > 0 {
                self.unsent = Vec::new();
            }
            r
        })
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        let done = self.with_buffers(|c, b| c.work(cx, b));
        if done {
            return Poll::Ready(());
        }
        let deadline = [self.link.next_timeout(), self.linger].into_iter().flatten().min();
        self.arm(cx, sleep.as_mut(), deadline)
    }

    /// Arms the timer for `deadline`. A later deadline than the armed one costs nothing: the timer fires early, finds nothing
    /// due and is armed again.
    fn arm(
        &mut self,
        cx: &mut task::Context<'_>,
        mut sleep: Pin<&mut Sleep>,
        deadline: Option<Time>,
    ) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.armed = Some(deadline);
            sleep.as_mut().reset(Instant::from_std(clock::instant(deadline)));
        }
        ready!(sleep.as_mut().poll(cx));
        self.armed = None;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads, works and writes until there is nothing to do; true when the connection is over.
    fn work(&mut self, cx: &mut task::Context<'_>, b: &mut Buffers) -> bool {
        let Buffers { context, read } = b;
        let now = clock::now();
        let serves = self.broker.serves(now);
        if !serves && !self.silenced {
            context.actions.wire.clear(); // from here on the client hears only why it is closed
            self.link.stop_serving(now, context);
        }
        self.silenced = !serves;
        for _ in 0..ROUNDS_MAX {
            self.link.poll(cx.waker(), now, context);
            let mut came = false;
            if self.link.wants_read() && context.actions.wire.len() < WIRE_BYTES_MAX {
                let mut buf = ReadBuf::new(read);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                        self.link.receive(buf.filled(), cx.waker(), now, context);
                        came = true;
                    }
                    Poll::Ready(_) => {
                        self.link.lost(now, context);
                        context.scratch.wakes.flush();
                        context.actions.wire.clear();
                        return true;
                    }
                    Poll::Pending => {}
                }
            }
            context.scratch.wakes.flush();
            let was_full = context.actions.wire.len() >= WIRE_BYTES_MAX;
            if self.write(cx, context).is_err() {
                self.link.lost(now, context);
                context.scratch.wakes.flush();
                context.actions.wire.clear();
                return true;
            }
            self.link.written(cx.waker(), now, context);
            context.scratch.wakes.flush();
            // A link stops producing when much waits for the client; there is room again now.
            let room = was_full && context.actions.wire.len() < WIRE_BYTES_MAX;
            if self.link.closed() {
                let linger = *self.linger.get_or_insert(now.plus_ms(LINGER_MS));
                return context.actions.wire.is_empty() || linger <= now;
            }
            if !came && !room {
                return false;
            }
        }
        cx.waker().wake_by_ref(); // there is more to do, but the others first
        false
    }

    /// Writes what the client takes now.
    fn write(&mut self, cx: &mut task::Context<'_>, context: &mut Context) -> std::io::Result<()> {
        let wire = &mut context.actions.wire;
        let mut written = 0;
        while written < wire.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &wire[written..]) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Pending => break,
            }
        }
        if written > 0 {
            self.broker.metrics.bytes_sent.add(written as u64);
            if written == wire.len() { wire.clear() } else { drop(wire.drain(..written)) }
        }
        Ok(())
    }
}

impl Drop for Connection {
    /// Also when the task is cancelled or panics: a session is never left without an owner.
    fn drop(&mut self) {
        let mut context = Context::default();
        if self.broker.draining() {
            self.link.shut_down(clock::now(), &mut context);
        }
        self.link.lost(clock::now(), &mut context);
        self.broker.dismiss_connection();
    }
}
