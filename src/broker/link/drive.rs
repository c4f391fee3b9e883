//! A link and its socket at work together: read, handle, write, and judge who has fallen silent. The server's connections,
//! the dialogues of the tests and the simulated clusters all run this one loop.

use super::{ANSWER_BYTES_MAX, Context, Link, State, WIRE_BYTES_MAX};
use crate::clock::Time;
use crate::session::{CloseCause, Input};
use std::task::Waker;

/// Rounds of reading and writing before other connections of this thread get their turn.
pub const ROUNDS_MAX: usize = 8;

/// How often in `limits.write_timeout` it is looked whether the client has taken anything.
const LOOKS: u64 = 8;

/// What a socket says when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes came.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// Nothing comes any more: the peer has closed its side, or the connection is broken.
    Ended,
}

/// The connection is broken: the peer gets nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A socket, as far as a link needs one. Nothing here waits; whoever drives the link is woken when the socket is ready again.
pub trait Socket {
    /// Reads what is there into `buffer`.
    fn read(&mut self, buffer: &mut [u8]) -> Read;

    /// Writes what the peer takes now of `bytes`; returns how many bytes that is.
    ///
    /// # Errors
    /// The connection is broken.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken>;

    /// Whether bytes are there that were not read yet. Asked only when a deadline has passed.
    fn unread(&self) -> bool;

    /// Written bytes that the peer has not taken. Asked only now and then while the peer takes nothing more.
    fn untaken(&self) -> u64;
}

/// What comes after a turn of [`Link::drive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// Wait until the link is woken, the socket is ready or [`Link::next_timeout`] has come.
    Waits,
    /// There is more to do, but others first.
    Again,
    /// The link is done: write what is left in [`crate::session::Actions::wire`], then close the socket.
    Closed,
}

/// A client that has not taken what was written for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    /// When it took something last, as far as that is known.
    since: Time,
    /// When to look next.
    look_at: Time,
    /// What it had not taken when that was looked at last.
    untaken: u64,
}

impl Link {
    /// Reads, works and writes until there is nothing to do. `buffer` is where bytes are read into.
    pub fn drive(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) -> Driven {
        for _ in 0..ROUNDS_MAX {
            self.poll(waker, now, cx);
            let came = self.take_in(socket, buffer, waker, now, cx);
            cx.scratch.wakes.flush();
            // A link stops producing when much waits for the client; whoever takes it makes room.
            let full = cx.actions.wire.len();
            let was_broken = self.broken;
            self.write_out(socket, now, cx);
            self.written(waker, now, cx);
            if self.ended && !self.withholds(cx) {
                self.lost(now, cx);
                cx.actions.wire.clear(); // another connection may have the session from here on (G1)
            }
            if self.broken {
                cx.actions.wire.clear();
            }
            cx.scratch.wakes.flush();
            if self.closed() {
                return Driven::Closed;
            }
            let len = cx.actions.wire.len();
            let room = (full >= WIRE_BYTES_MAX && len < WIRE_BYTES_MAX)
                || (full >= ANSWER_BYTES_MAX && len < ANSWER_BYTES_MAX);
            // What came before the connection broke can still be read.
            let broke = self.broken && !was_broken;
            if !came && !room && !broke {
                return Driven::Waits;
            }
        }
        Driven::Again
    }

    /// Reads once, if the link takes more; true if something came. Silence is judged only once the socket is known to be
    /// empty: bytes that wait unread are a sign of life, whyever they do.
    fn take_in(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) -> bool {
        if self.ended {
            return false;
        }
        if self.wants_read(cx) {
            match socket.read(buffer) {
                Read::Bytes(n) => {
                    self.receive(&buffer[..n], waker, now, cx);
                    return true;
                }
                // After a standstill the timer may know sooner than the socket's readiness what has happened meanwhile.
                Read::Nothing if self.silence_due(now) && socket.unread() => {}
                Read::Nothing => self.judge_silence(now, cx),
                Read::Ended => {
                    self.ended = true;
                    self.mute();
                }
            }
        } else if self.silence_due(now) {
            let listens = matches!(self.state, State::Open(_));
            if listens && (!self.partial.is_empty() || socket.unread()) {
                self.excuse(now);
            } else {
                self.judge_silence(now, cx);
            }
        }
        false
    }

    /// Whether a deadline for the client to say something has passed.
    fn silence_due(&self, now: Time) -> bool {
        match &self.state {
            State::Fresh(deadline) => *deadline <= now,
            State::Open(o) => {
                o.session.next_timeout().is_some_and(|t| t <= now)
                    || self.arriving.as_ref().is_some_and(|a| a.deadline <= now)
            }
            State::Connecting(_) | State::Leaving(_) | State::Closed => false,
        }
    }

    /// The client has said nothing more until `now`: ends the connection if that is too long.
    fn judge_silence(&mut self, now: Time, cx: &mut Context) {
        if !self.silence_due(now) {
            return;
        }
        match &mut self.state {
            State::Fresh(_) => self.connect_timed_out(),
            State::Open(o) if o.closing.is_none() => {
                if o.session.next_timeout().is_some_and(|t| t <= now) {
                    o.session.handle(Input::Timeout, now, &mut cx.actions);
                } else {
                    o.session.close(
                        CloseCause::PacketTimeout,
                        Some(super::PACKET_TIMED_OUT),
                        &mut cx.actions,
                    );
                }
                self.run_effects(now, cx);
            }
            _ => {}
        }
        self.count(cx);
    }

    /// The client was not listened to until `now`: its silence is not its own.
    fn excuse(&mut self, now: Time) {
        let State::Open(o) = &mut self.state else { return };
        if o.session.next_timeout().is_some_and(|t| t <= now) {
            o.session.heard(now);
        }
        let timeout_ms = self.broker.limits.packet_timeout_ms;
        if let Some(a) = self.arriving.as_mut().filter(|a| a.deadline <= now) {
            a.deadline = now.plus_ms(timeout_ms);
        }
    }

    /// Writes what the client takes now, and ends the connection of one that takes nothing for too long.
    fn write_out(&mut self, socket: &mut impl Socket, now: Time, cx: &mut Context) {
        let wire = &mut cx.actions.wire;
        if wire.is_empty() {
            self.blocked = None;
            return;
        }
        if self.broken {
            return;
        }
        let written = match socket.write(wire) {
            Ok(written) => written,
            Err(Broken) => {
                self.broken = true;
                self.blocked = None;
                self.mute();
                return;
            }
        };
        if written > 0 {
            self.broker.metrics.bytes_sent.add(written as u64);
            if written == wire.len() {
                wire.clear();
                self.blocked = None;
                return;
            }
            drop(wire.drain(..written));
        }
        let timeout_ms = self.broker.limits.write_timeout_ms;
        let look_ms = (timeout_ms / LOOKS).max(1);
        let fresh = Blocked { since: now, look_at: now.plus_ms(look_ms), untaken: u64::MAX };
        let blocked = self.blocked.get_or_insert(fresh);
        if written > 0 {
            *blocked = fresh;
        }
        if blocked.look_at > now {
            return;
        }
        // The system keeps much for a client, and asks for more only when a good part of that is taken.
        let untaken = socket.untaken();
        if untaken < blocked.untaken {
            blocked.since = now;
        }
        blocked.untaken = untaken;
        blocked.look_at = now.plus_ms(look_ms);
        if blocked.since.plus_ms(timeout_ms) <= now
            && let State::Open(o) = &mut self.state
            && o.closing.is_none()
        {
            o.session.close(CloseCause::WriteTimeout, Some(super::WRITE_TIMED_OUT), &mut cx.actions);
            self.run_effects(now, cx);
            self.count(cx);
        }
    }

    /// When to look whether the client has taken anything, while it has yet to.
    pub(super) fn look_at(&self) -> Option<Time> {
        self.blocked.as_ref().filter(|_| matches!(self.state, State::Open(_))).map(|b| b.look_at)
    }

    /// Whether packets are here that came before the end and have to wait, or something must be durable first.
    fn withholds(&self, cx: &Context) -> bool {
        match &self.state {
            State::Open(o) => o.closing.is_none() && !self.partial.is_empty() && !self.takes_packets(cx),
            State::Connecting(_) => !self.partial.is_empty(),
            State::Leaving(_) | State::Closed => true,
            State::Fresh(_) => false,
        }
    }

    /// The client gets nothing more: what is queued for it stays there.
    fn mute(&mut self) {
        if let State::Open(o) = &mut self.state {
            o.muted = true;
        }
    }
}
