//! Requests to one node: those to be sent, and those that wait for their response.

use super::proto::{ControlRequest, Ping, control_request};
use super::wire;
use crate::hashing::HashMap;
use crate::ports::{Request, Response};
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// Requests to one node at a time; more wait, within their own time-out.
pub(super) const REQUESTS_MAX: usize = 1024;

/// Bytes of one request or response.
pub const CONTROL_MESSAGE_MAX: usize = 16 << 20;

/// Requests to one node: those to be sent, and those that wait for their response.
#[derive(Default)]
pub(super) struct Asks {
    open: bool,
    next: u64,
    unsent: VecDeque<ControlRequest>,
    waiting: HashMap<u64, oneshot::Sender<Response>>,
    /// The ping that is not answered yet, and when it was sent (monotonic microseconds).
    ping: Option<(u64, u64)>,
}

impl Asks {
    /// A stream is there.
    pub(super) fn open(&mut self) {
        self.close();
        self.open = true;
    }

    /// The stream is gone: whoever waits learns it, for its sender is dropped.
    pub(super) fn close(&mut self) {
        self.open = false;
        self.unsent.clear();
        self.waiting.clear();
        self.ping = None;
    }

    /// Sends a request; `None` if there is no stream.
    pub(super) fn ask(&mut self, request: Request) -> Option<(u64, oneshot::Receiver<Response>)> {
        if !self.open {
            return None;
        }
        let id = self.send(wire::request(request));
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(id, sender);
        Some((id, receiver))
    }

    fn send(&mut self, request: control_request::Request) -> u64 {
        self.next += 1;
        self.unsent.push_back(ControlRequest { id: self.next, request: Some(request) });
        self.next
    }

    /// Nobody waits for the response any more.
    pub(super) fn give_up(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.unsent.retain(|request| request.id != id);
    }

    /// Sends a ping unless one is under way; returns for how long it has been, microseconds.
    pub(super) fn ping(&mut self, now_us: u64) -> u64 {
        let Some((_, sent)) = self.ping else {
            let id = self.send(control_request::Request::Ping(Ping {}));
            self.ping = Some((id, now_us));
            return 0;
        };
        now_us.saturating_sub(sent)
    }

    /// A response came: who waits for it, or the round trip of a ping in microseconds.
    pub(super) fn responded(
        &mut self,
        id: u64,
        now_us: u64,
    ) -> (Option<oneshot::Sender<Response>>, Option<u64>) {
        match self.ping {
            Some((ping, sent)) if ping == id => {
                self.ping = None;
                (None, Some(now_us.saturating_sub(sent)))
            }
            _ => (self.waiting.remove(&id), None),
        }
    }

    pub(super) fn take(&mut self) -> Option<ControlRequest> {
        self.unsent.pop_front()
    }
}
