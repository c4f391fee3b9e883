//! A client's connection without a socket. It is driven as the server drives it: when bytes came, when it was woken, or when
//! its time has come; so a wake-up that the node forgets shows as an answer that is missing.

use crate::clock::Time;
use crate::mqtt::frame_len;
use crate::node::channel::{Broken, Driven, Read, Socket};
use crate::node::{Admission, Channel, Context, Node};
use crate::ports::{BoxFuture, Door, Tasks};
use crate::simulation::cluster::SimProcess;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

/// Bytes that a socket yields at a time.
const SEGMENT: usize = 64 * 1024;

#[derive(Default)]
struct State {
    to_broker: Vec<u8>,
    from_broker: Vec<u8>,
    /// The client does not read.
    stalled: bool,
    /// The connection broke.
    lost: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// A client's connection without a socket. A connection whose process has died is closed.
pub struct Wire {
    state: Mutex<State>,
    process: Weak<SimProcess>,
}

impl Wire {
    /// A connection to a running node.
    pub(super) fn open(node: Arc<Node>, process: Arc<SimProcess>) -> Arc<Wire> {
        let wire = Arc::new(Wire { state: Mutex::default(), process: Arc::downgrade(&process) });
        let admission = node.admit_connection();
        if admission == Admission::Close {
            wire.state.lock().closed = true;
            return wire;
        }
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let channel = Channel::new(node.clone(), Door::tcp(peer), admission, process.now());
        let gone = Gone(wire.clone());
        process.spawn(Box::pin(drive(gone, channel, node, process.clone())));
        wire
    }

    /// A connection that nobody accepts.
    pub(super) fn refused() -> Arc<Wire> {
        let state = State { closed: true, ..State::default() };
        Arc::new(Wire { state: Mutex::new(state), process: Weak::new() })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state.lock();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Puts bytes into the client's socket.
    pub fn send(&self, bytes: &[u8]) {
        self.change(|s| s.to_broker.extend_from_slice(bytes));
    }

    /// The connection breaks without a goodbye.
    pub fn lose(&self) {
        self.change(|s| {
            s.lost = true;
            s.from_broker.clear();
        });
    }

    /// The client stops reading, or reads again.
    pub fn stall(&self, stalled: bool) {
        self.change(|s| s.stalled = stalled);
    }

    /// Whole packets that came since the last call.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut state = self.state.lock();
        let mut frames = Vec::new();
        while let Ok(Some(len)) = frame_len(&state.from_broker, u32::MAX) {
            let rest = state.from_broker.split_off(len);
            frames.push(std::mem::replace(&mut state.from_broker, rest));
        }
        frames
    }

    /// Whether the node has closed it, or died.
    pub fn closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Whether the process it leads to still runs.
    pub fn led_to(&self, process: &Arc<SimProcess>) -> bool {
        self.process.upgrade().is_some_and(|p| Arc::ptr_eq(&p, process))
    }
}

/// Closes the wire when the task that drives it goes, also by the end of its process.
struct Gone(Arc<Wire>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
    }
}

impl Socket for &Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Read {
        let mut state = self.state.lock();
        let n = state.to_broker.len().min(buffer.len());
        if n == 0 {
            return if state.lost { Read::Ended } else { Read::Nothing };
        }
        buffer[..n].copy_from_slice(&state.to_broker[..n]);
        state.to_broker.drain(..n);
        Read::Bytes(n)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let mut state = self.state.lock();
        if state.lost {
            return Err(Broken);
        }
        if state.stalled {
            return Ok(0);
        }
        state.from_broker.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn unread(&self) -> u64 {
        self.state.lock().to_broker.len() as u64
    }

    fn hung_up(&self) -> bool {
        self.state.lock().lost
    }

    fn untaken(&self) -> u64 {
        0
    }
}

/// As the server's connection task does it.
async fn drive(gone: Gone, mut channel: Channel, node: Arc<Node>, tasks: Arc<dyn Tasks>) {
    let mut cx = Context::default();
    let mut timer: Option<(Time, BoxFuture<()>)> = None;
    let mut buffer = vec![0; SEGMENT];
    poll_fn(|task| {
        loop {
            let now = tasks.now();
            gone.0.state.lock().waker = Some(task.waker().clone());
            match channel.drive(&mut &*gone.0, &mut buffer, task.waker(), now, &mut cx) {
                Driven::Closed => return Poll::Ready(()),
                Driven::Again => continue,
                Driven::Waits => {}
            }
            let Some(due) = channel.next_timeout() else { return Poll::Pending };
            if timer.as_ref().is_none_or(|(at, _)| *at != due) {
                timer = Some((due, tasks.sleep(due.since_ms(now))));
            }
            match timer.as_mut().map(|(_, sleep)| sleep.as_mut().poll(task)) {
                Some(Poll::Ready(())) => timer = None,
                _ => return Poll::Pending,
            }
        }
    })
    .await;
    node.dismiss_connection();
}
