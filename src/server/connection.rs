//! Drives one client's connection: the only place where a socket meets a [`Channel`]. Knows bytes and readiness, not MQTT.
//!
//! One task serves one connection. Its buffers belong to the thread: an idle connection holds none.

use super::arrival::{Guest, Place};
use super::crowd::Entrance;
use super::listener::Shared;
use super::parting::Parting;
use super::rates::Throttle;
use super::transport::{Change, Transport, Turn};
use crate::clock::{self, Time};
use crate::node::channel::Driven;
use crate::node::{Channel, Context, Node};
use crate::telemetry::metrics::Turned;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
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

struct Connection<T> {
    transport: T,
    channel: Channel,
    /// What the client has not taken yet.
    unsent: Vec<u8>,
    node: Arc<Node>,
    shared: Arc<Shared>,
    peer: SocketAddr,
    armed: Option<Time>,
    /// This node may not serve clients, and this one has been told.
    silenced: bool,
    /// What slows the client down, if anything does.
    throttle: Option<Box<Throttle>>,
    /// Its reading pauses because of that.
    slowed: bool,
    /// Its CONNECT has not come yet.
    entrance: Option<Entrance>,
    /// The place among those that are counted.
    place: Option<Place>,
    /// Completes when its certificate has to be looked at again.
    trust: Option<Change>,
    /// The channel is done; the client still reads what it was told.
    parting: Option<Parting>,
}

/// Serves one connection until it ends or `stop` is notified.
pub(super) async fn serve<T: Transport>(mut transport: T, mut guest: Guest, stop: Arc<Notify>) {
    let door = guest.door();
    let Guest { node, shared, peer, accepted, admission, place, entrance, .. } = guest;
    let now = clock::now();
    let conditions = shared.tuning.conditions();
    let channel = Channel::new(node.clone(), door, admission, now).under(conditions.terms.clone(), accepted);
    let mut c = Connection {
        trust: transport.trust_changes(),
        transport,
        channel,
        unsent: Vec::new(),
        node,
        throttle: Throttle::new(conditions.message_rate, conditions.byte_rate, now),
        shared,
        peer,
        armed: None,
        silenced: false,
        slowed: false,
        entrance: Some(entrance),
        place: Some(place),
        parting: None,
    };
    let sleep = tokio::time::sleep(std::time::Duration::ZERO);
    let stopped = stop.notified();
    tokio::pin!(sleep, stopped);
    let mut stopping = false;
    poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            c.with_buffers(|c, b| c.channel.shut_down(clock::now(), &mut b.context));
        }
        c.look_at_trust(cx);
        c.poll(cx, sleep.as_mut())
    })
    .await;
}

impl<T: Transport> Connection<T> {
    fn with_buffers<R>(&mut self, f: impl FnOnce(&mut Connection<T>, &mut Buffers) -> R) -> R {
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
        let now = clock::now();
        if self.throttle.as_mut().is_some_and(|t| t.opened(now)) {
            cx.waker().wake_by_ref();
        }
        let throttle = self.throttle.as_ref().and_then(|t| t.closed_until());
        let mut next = self.channel.next_timeout();
        if throttle.is_some() {
            // What is due already waits for what the client has sent, which is not read now.
            next = next.filter(|due| *due > now);
        }
        let deadline = [next, parting, throttle].into_iter().flatten().min();
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

    /// Ends the connection of a client whose certificate is not good any more.
    fn look_at_trust(&mut self, cx: &mut task::Context<'_>) {
        let Some(change) = &mut self.trust else { return };
        if change.as_mut().poll(cx).is_pending() {
            return;
        }
        let trusted = self.transport.trusted();
        self.trust = self.transport.trust_changes();
        cx.waker().wake_by_ref();
        if self.parting.is_none() && !trusted {
            self.trust = None;
            self.node.broker.metrics.certificates_distrusted.inc();
            self.with_buffers(|c, b| c.channel.distrust(clock::now(), &mut b.context));
        }
    }

    /// Reads, works and writes until there is nothing to do; true when the connection is over.
    fn work(&mut self, cx: &mut task::Context<'_>, b: &mut Buffers) -> bool {
        let Buffers { context, read } = b;
        let now = clock::now();
        if self.parting.is_none() {
            let serves = self.node.serves(now);
            if !serves && !self.silenced {
                self.channel.stop_serving(now, context);
            }
            self.silenced = !serves;
            self.transport.flush(cx.waker());
            // Whoever is to leave is heard to the end.
            let leaves = self.channel.leaves();
            let throttle = if leaves { None } else { self.throttle.as_deref_mut() };
            let mut turn = Turn { transport: &mut self.transport, waker: cx.waker(), throttle, now };
            let driven = self.channel.drive(&mut turn, read, cx.waker(), now, context);
            if self.throttle.is_some() {
                self.count_messages(cx, now);
                if !leaves && self.channel.leaves() {
                    cx.waker().wake_by_ref();
                }
            }
            if self.entrance.is_some() && !self.channel.awaits_connect() {
                self.entrance = None;
            }
            match driven {
                Driven::Waits => return false,
                Driven::Again => {
                    go_behind(cx);
                    return false;
                }
                Driven::Closed => {
                    // It counts as a connection no more, and its session may be somebody else's.
                    self.place = None;
                    let last_said = context.actions.wire.is_empty();
                    if self.channel.ended() && last_said && self.transport.conclude(cx.waker()) {
                        return true;
                    }
                }
            }
        }
        let parting = self.parting.get_or_insert_with(|| self.shared.partings.begin(now));
        let over = parting.poll(&mut self.transport, cx.waker(), &mut context.actions.wire, read, now);
        if over {
            context.actions.wire.clear();
        }
        over
    }

    /// Takes the messages that came from what the client may send, and says once for each pause that it is slowed down.
    fn count_messages(&mut self, cx: &task::Context<'_>, now: Time) {
        let Some(throttle) = &mut self.throttle else { return };
        if throttle.count(self.channel.messages_in(), now) {
            cx.waker().wake_by_ref();
        }
        let slowed = throttle.closed_until().is_some();
        if slowed && !self.slowed {
            self.shared.turned(
                self.peer,
                Turned::ClientRate,
                &"it sends more than the listener's rates allow",
            );
        }
        self.slowed = slowed;
    }
}

/// Lets the running task go on once the runtime has run what is ready and has looked for sockets and timers that are: a client that
/// sends without a pause gets one turn between two such looks, however many others do the same. A plain wake would put the task at
/// the end of the queue, where it has its next turn before what has come meanwhile is even seen.
fn go_behind(cx: &mut task::Context<'_>) {
    let deferred = std::pin::pin!(tokio::task::yield_now());
    // Its first poll hands the waker to the runtime; there is no second one.
    let _ = deferred.poll(cx);
}

impl<T> Drop for Connection<T> {
    /// Also when the task is cancelled or panics: a session is never left without an owner.
    fn drop(&mut self) {
        let mut context = Context::default();
        if self.node.draining() {
            self.channel.shut_down(clock::now(), &mut context);
        }
        self.channel.lost(clock::now(), &mut context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt;

    /// Turns of the busy task that pass in the test.
    const TURNS: usize = 1_000;

    /// The turn in which a packet for somebody else comes.
    const COMES: usize = 100;

    /// One thread of the runtime has a task that is never idle. What comes for another one is seen before its next turn but one.
    #[test]
    fn who_sends_without_a_pause_has_one_turn_between_two_looks_at_the_sockets() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let seen = runtime.block_on(async {
            let (mut far, near) = std::os::unix::net::UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let counted = turns.clone();
            let other = tokio::spawn(async move {
                let mut near = tokio::net::UnixStream::from_std(near).unwrap();
                near.read_u8().await.unwrap();
                counted.load(Ordering::SeqCst)
            });
            let busy = poll_fn(move |cx| match turns.fetch_add(1, Ordering::SeqCst) + 1 {
                TURNS => Poll::Ready(()),
                turn => {
                    if turn == COMES {
                        far.write_all(b"x").unwrap();
                    }
                    go_behind(cx);
                    Poll::Pending
                }
            });
            let (_, seen) = tokio::join!(tokio::spawn(busy), other);
            seen.unwrap()
        });
        assert!((COMES..=COMES + 2).contains(&seen), "seen after turn {seen}");
    }
}
