//! A channel and its socket at work together: read, handle, write, and judge who has fallen silent. The server's connections,
//! the dialogues of the tests and the simulated clusters all run this one loop.

use super::{ANSWER_BYTES_MAX, Channel, Context, State, WIRE_BYTES_MAX};
use crate::clock::Time;
use crate::session::{CloseCause, Input};
use std::sync::Arc;
use std::task::Waker;

/// Rounds of reading and writing before other connections of this thread get their turn.
pub const ROUNDS_MAX: usize = 8;

/// Bytes read from one client before other connections of this thread get their turn. However fast a client sends, nobody waits
/// longer for it than this many bytes of packets take.
pub const TURN_BYTES_MAX: usize = 64 * 1024;

/// How often in `limits.write_timeout` it is looked whether the client has taken anything.
const LOOKS: u64 = 8;

/// Bytes written after which it is looked whether the client's system takes them, although ours has taken them all.
const LOOK_BYTES: u64 = 64 * 1024;

/// How late a deadline may be seen, milliseconds; later than that, the node stood still and could not have read.
const STANDSTILL_MS: u64 = 1_000;

/// Bytes that are still read from a client that is being parted from, so that a goodbye among them counts.
const LAST_BYTES_MAX: usize = 1024 * 1024;

/// What a socket says when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes were read.
    Bytes(usize),
    /// There is nothing to read now.
    Nothing,
    /// The peer has closed its side, or the connection is broken: nothing comes any more.
    Ended,
}

/// What a round of reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// Nothing that is a reason to look again.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The end of the connection.
    End,
}

/// The connection is broken: the peer gets nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A socket, as far as a channel needs one. Nothing here waits; whoever drives the channel is woken when the socket is ready again.
pub trait Socket {
    /// Reads what is there into `buffer`.
    fn read(&mut self, buffer: &mut [u8]) -> Read;

    /// Writes what the peer takes now of `bytes`; returns how many bytes that is.
    ///
    /// # Errors
    /// The connection is broken.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken>;

    /// Bytes that are there and were not read yet. Asked only when a deadline has passed, or the client is parted from.
    fn unread(&self) -> u64;

    /// Whether the peer has closed its side, or the connection is broken. Asked only now and then while nothing is read.
    fn hung_up(&self) -> bool;

    /// Written bytes that the peer has not taken. Asked only now and then while the peer takes nothing more.
    fn untaken(&self) -> u64;
}

/// What comes after a turn of [`Channel::drive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// Wait until the channel is woken, the socket is ready or [`Channel::next_timeout`] has come.
    Waits,
    /// There is more to do, but others come first.
    Again,
    /// The channel is done: write what is left in [`crate::session::Actions::wire`], then close the socket.
    Closed,
}

/// What was written for a client and it may not have taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    /// Since when it is known to have taken nothing.
    since: Time,
    /// When to look next.
    look_at: Time,
    /// How many bytes it had taken, of all that were written, when that was looked at last.
    taken: Option<u64>,
}

/// A client that is to be parted from, once what it has said before is read.
#[derive(Clone, Debug)]
pub(super) struct Leave {
    cause: CloseCause,
    why: Option<&'static str>,
    /// Where the client is told to go.
    reference: Option<Arc<str>>,
    /// Bytes that are still read.
    left: usize,
}

impl Leave {
    pub fn new(cause: CloseCause, why: Option<&'static str>, reference: Option<Arc<str>>) -> Box<Leave> {
        Box::new(Leave { cause, why, reference, left: LAST_BYTES_MAX })
    }

    pub fn cause(&self) -> CloseCause {
        self.cause
    }
}

impl Channel {
    /// Reads, works and writes until there is nothing to do. `buffer` is where bytes are read into.
    pub fn drive(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) -> Driven {
        (cx.actions.sent, cx.actions.messages_end) = (self.sent, self.messages_end);
        let driven = self.turn(socket, buffer, waker, now, cx);
        if driven == Driven::Closed {
            cx.actions.compact();
        }
        (self.sent, self.messages_end) = (cx.actions.sent, cx.actions.messages_end);
        driven
    }

    fn turn(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) -> Driven {
        let mut read = 0;
        for _ in 0..ROUNDS_MAX {
            self.poll(waker, now, cx);
            let came = self.take_in(socket, buffer, waker, now, cx);
            if let Came::Bytes(n) = came {
                read += n;
            }
            let came = came != Came::Nothing;
            cx.scratch.wakes.flush();
            // A channel stops producing when much waits for the client; whoever takes it makes room.
            let (full, answers) = (cx.actions.unsent(), cx.actions.answers());
            let was_broken = self.broken;
            self.write_out(socket, now, cx);
            self.written(waker, now, cx);
            let mut again = came;
            if self.ended && !came {
                if self.is_over() {
                    self.lost(now, cx);
                    cx.actions.forget_wire(); // another connection may have the session from here on (G1)
                } else {
                    again = self.whole_packet() && self.takes_packets(cx);
                }
            }
            if self.broken {
                cx.actions.forget_wire();
            }
            cx.scratch.wakes.flush();
            if self.closed() {
                return Driven::Closed;
            }
            let room = (full >= WIRE_BYTES_MAX && cx.actions.unsent() < WIRE_BYTES_MAX)
                || (answers >= ANSWER_BYTES_MAX && cx.actions.answers() < ANSWER_BYTES_MAX);
            // What came before the connection broke can still be read.
            let broke = self.broken && !was_broken;
            if !again && !room && !broke {
                return Driven::Waits;
            }
            if read >= TURN_BYTES_MAX {
                break;
            }
        }
        Driven::Again
    }

    /// Reads once, if the channel takes more. Silence is judged only once the socket is
    /// known to be empty: bytes that wait unread are a sign of life, whyever they do.
    fn take_in(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        waker: &Waker,
        now: Time,
        cx: &mut Context,
    ) -> Came {
        if self.ended {
            return Came::Nothing;
        }
        if !self.wants_read(cx) {
            self.unread_since.get_or_insert(now);
            self.part(now, cx); // what it has said has to wait, and its session cannot
            if self.waits_for_room() {
                if socket.hung_up() && !self.can_complete(socket.unread()) {
                    return self.end();
                }
                self.look_later(now);
            }
            if self.looks_for_held(now) {
                self.looked_for_held(!socket.hung_up(), now);
            }
            if self.silence_due(now) {
                let listens = matches!(self.state, State::Open(_));
                if listens && (self.holds_packet(cx) || socket.unread() > 0) {
                    self.excuse(now);
                } else {
                    self.judge_silence(now, cx);
                }
            }
            return Came::Nothing;
        }
        if let Some(since) = self.unread_since.take()
            && let Some(a) = &mut self.arriving
        {
            a.deadline = a.deadline.plus_ms(now.since_ms(since));
        }
        match socket.read(buffer) {
            Read::Bytes(n) => {
                self.receive(&buffer[..n], waker, now, cx);
                self.count_last(n, now, cx);
                Came::Bytes(n)
            }
            // After a standstill the timer may know sooner than the socket's readiness what has happened meanwhile.
            Read::Nothing
                if !self.overdue(now) && (self.silence_due(now) || self.leaves()) && socket.unread() > 0 =>
            {
                Came::Nothing
            }
            Read::Nothing => {
                self.part(now, cx);
                self.judge_silence(now, cx);
                Came::Nothing
            }
            Read::Ended => self.end(),
        }
    }

    /// Nothing more comes from the client; what came has to be looked at once more.
    fn end(&mut self) -> Came {
        self.ended = true;
        self.mute();
        Came::End
    }

    /// Whether the client is to be parted from.
    pub fn leaves(&self) -> bool {
        matches!(&self.state, State::Open(o) if o.leave.is_some())
    }

    /// So many bytes were read of a client; one that is to be parted from has only so much time for a goodbye.
    fn count_last(&mut self, bytes: usize, now: Time, cx: &mut Context) {
        let State::Open(o) = &mut self.state else { return };
        let Some(leave) = &mut o.leave else { return };
        leave.left = leave.left.saturating_sub(bytes);
        if leave.left == 0 {
            self.part(now, cx);
        }
    }

    /// Ends the connection of a client that is to be parted from: all that it has said before has been read.
    fn part(&mut self, now: Time, cx: &mut Context) {
        let State::Open(o) = &mut self.state else { return };
        let Some(leave) = o.leave.take() else { return };
        match &leave.reference {
            Some(to) => o.session.close_and_refer(leave.cause, to, &mut cx.actions),
            None => o.session.close(leave.cause, leave.why, &mut cx.actions),
        }
        self.run_effects(now, cx);
        self.count(cx);
    }

    /// Whether a deadline for the client to say something has passed.
    fn silence_due(&self, now: Time) -> bool {
        match &self.state {
            State::AwaitingConnect(deadline) => *deadline <= now,
            State::Open(o) => {
                o.session.next_timeout().is_some_and(|t| t <= now)
                    || self.arriving.as_ref().is_some_and(|a| a.deadline <= now)
            }
            State::Connecting(_) | State::Leaving(_) | State::Closed => false,
        }
    }

    /// Whether CONNECT had its time, and what is needed besides to read what came while the node may have stood still: bytes that are
    /// no CONNECT, however many there are, win no more.
    fn overdue(&mut self, now: Time) -> bool {
        if !matches!(&self.state, State::AwaitingConnect(deadline) if *deadline <= now) {
            return false;
        }
        self.late_since.get_or_insert(now).plus_ms(STANDSTILL_MS) <= now
    }

    /// The client has said nothing more until `now`: ends the connection if that is too long.
    fn judge_silence(&mut self, now: Time, cx: &mut Context) {
        if !self.silence_due(now) {
            return;
        }
        let timeout_ms = self.node.broker.limits.packet_timeout_ms();
        match &mut self.state {
            State::AwaitingConnect(_) => self.connect_timed_out(),
            State::Open(o) if o.closing.is_none() => {
                if o.session.next_timeout().is_some_and(|t| t <= now) {
                    o.session.handle(Input::Timeout, now, &mut cx.actions);
                } else if let Some(a) = &mut self.arriving
                    && now.since_ms(a.deadline) > STANDSTILL_MS
                {
                    a.deadline = now.plus_ms(timeout_ms); // what it could not send is not its fault
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
        // From here on, since it is not counted twice.
        if let Some(since) = self.unread_since.replace(now)
            && let Some(a) = &mut self.arriving
        {
            let moved = a.deadline.plus_ms(now.since_ms(since));
            a.deadline = moved.max(now.plus_ms(STANDSTILL_MS));
        }
    }

    /// Writes what the client takes now, and parts from one that takes nothing for too long.
    fn write_out(&mut self, socket: &mut impl Socket, now: Time, cx: &mut Context) {
        if self.broken {
            return;
        }
        if cx.actions.unsent() > 0 {
            match socket.write(&cx.actions.wire[cx.actions.sent..]) {
                Ok(written) => {
                    cx.actions.took(written);
                    self.written_bytes += written as u64;
                    self.node.broker.metrics.bytes_sent.add(written as u64);
                }
                Err(Broken) => return self.lets_fall(),
            }
        }
        let unsent = cx.actions.unsent() as u64;
        if self.blocked.is_none() && unsent == 0 && self.written_bytes - self.looked_bytes < LOOK_BYTES {
            return;
        }
        let timeout_ms = self.node.broker.limits.write_timeout_ms();
        let look_at = now.plus_ms((timeout_ms / LOOKS).max(1));
        let blocked = self.blocked.get_or_insert(Blocked { since: now, look_at, taken: None });
        if blocked.look_at > now {
            return;
        }
        // The system keeps much for a client, and asks for more only when a good part of that is taken.
        let untaken = socket.untaken();
        self.looked_bytes = self.written_bytes;
        if untaken + unsent == 0 {
            self.blocked = None;
            return;
        }
        let taken = Some(self.written_bytes - untaken.min(self.written_bytes));
        if taken > blocked.taken {
            blocked.since = now;
        }
        (blocked.taken, blocked.look_at) = (taken, look_at);
        if blocked.since.plus_ms(timeout_ms) <= now
            && let State::Open(o) = &mut self.state
        {
            let leave = Leave::new(CloseCause::WriteTimeout, Some(super::WRITE_TIMED_OUT), None);
            o.leave.get_or_insert(leave);
            self.lets_fall();
        }
    }

    /// The client gets nothing more, and is heard to the end.
    fn lets_fall(&mut self) {
        self.broken = true;
        self.blocked = None;
        self.mute();
    }

    /// When to look whether the client has taken anything, or is still there, although nothing wakes the channel.
    pub(super) fn look_at(&self) -> Option<Time> {
        let taken = self.blocked.as_ref().map(|b| b.look_at);
        let there = self.arriving.as_ref().filter(|_| self.waits_for_room()).map(|a| a.look_at);
        [taken, there, self.held_look_at()].into_iter().flatten().min()
    }

    /// Whether nothing of what came before the end has to be waited for.
    fn is_over(&self) -> bool {
        match &self.state {
            State::Open(o) => o.closing.is_none() && (o.leave.is_some() || !self.whole_packet()),
            State::AwaitingConnect(_) | State::Connecting(_) => true,
            State::Leaving(_) | State::Closed => false,
        }
    }

    /// Whether a whole packet is here that has to wait.
    fn holds_packet(&self, cx: &Context) -> bool {
        !self.takes_packets(cx) && self.whole_packet()
    }

    /// The client gets nothing more: what is queued for it stays there.
    fn mute(&mut self) {
        if let State::Open(o) = &mut self.state {
            o.muted = true;
        }
    }
}
