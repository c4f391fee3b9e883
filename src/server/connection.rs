//! Drives one client's connection: the only place where a socket meets a [`Link`]. Knows bytes and readiness, not MQTT.
//!
//! One task serves one connection. Its buffers belong to the thread: an idle connection holds none.

use super::parting::{Parting, Partings};
use super::socket::Tcp;
use crate::broker::link::Driven;
use crate::broker::ports::Door;
use crate::broker::{Admission, Broker, Context, Link};
use crate::clock::{self, Time};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// Bytes of a buffer for what is written that a thread keeps for the next connection.
const WIRE_KEPT_MAX: usize = 1024 * 1024;

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
    partings: Partings,
    /// The link is done; the client still reads what it was told.
    parting: Option<Parting>,
}

/// Serves one connection until it ends or `stop` is notified.
pub(super) async fn serve(
    stream: TcpStream,
    door: Arc<Door>,
    broker: Arc<Broker>,
    admission: Admission,
    partings: Partings,
    stop: Arc<Notify>,
) {
    let link = Link::new(broker.clone(), door, admission, clock::now());
    let (unsent, armed, silenced, parting) = (Vec::new(), None, false, None);
    let mut c = Connection { stream, link, unsent, broker, armed, silenced, partings, parting };
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
            if wire.capacity() > WIRE_KEPT_MAX {
                *wire = Vec::new(); // it held a large message
            }
            r
        })
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        let done = self.with_buffers(|c, b| c.work(cx, b));
        if done {
            return Poll::Ready(());
        }
        let parting = self.parting.as_ref().map(Parting::deadline);
        let deadline = [self.link.next_timeout(), parting].into_iter().flatten().min();
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
    fn work(&mut self, cx: &task::Context<'_>, b: &mut Buffers) -> bool {
        let Buffers { context, read } = b;
        let now = clock::now();
        if self.parting.is_none() {
            let serves = self.broker.serves(now);
            if !serves && !self.silenced {
                self.link.stop_serving(now, context);
            }
            self.silenced = !serves;
            let mut socket = Tcp { stream: &mut self.stream, waker: cx.waker() };
            match self.link.drive(&mut socket, read, cx.waker(), now, context) {
                Driven::Waits => return false,
                Driven::Again => {
                    socket.wake();
                    return false;
                }
                Driven::Closed if self.link.ended() && context.actions.wire.is_empty() => return true,
                // It counts as a connection no more, and its session may be somebody else's.
                Driven::Closed => self.broker.dismiss_connection(),
            }
        }
        let parting = self.parting.get_or_insert_with(|| self.partings.begin(now));
        let mut socket = Tcp { stream: &mut self.stream, waker: cx.waker() };
        let over = parting.poll(&mut socket, &mut context.actions.wire, read, now);
        if over {
            context.actions.wire.clear();
        }
        over
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
        if self.parting.is_none() {
            self.broker.dismiss_connection();
        }
    }
}
