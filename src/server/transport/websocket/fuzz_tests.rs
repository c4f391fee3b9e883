//! Fuzzes WebSocket from the first byte of the request to the last of MQTT: what a client sends, bent and broken, comes in pieces of any
//! size, while the client takes what it is sent as slowly as it likes.

#[path = "fuzz_frames_tests.rs"]
mod made_frames;
#[path = "fuzz_requests_tests.rs"]
mod made_requests;

use super::frames::CONTROL_BYTES_MAX;
use super::*;
use crate::config::Origins;
use crate::server::fuzz_tests::random::Random;
use crate::server::fuzz_tests::{Clients, fuzz_loop, mutate, packets};
use made_frames::{Sent, judged, rewritten, servers};
use made_requests::{Verdict, answer_to, request};

/// Bytes that may wait for a client: a message of the broker or as many of pongs, and what is added before it is looked at again.
const WAITING_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 2 * (CONTROL_BYTES_MAX + 2);

/// Bytes of memory for them: as a vector grows, and what of it was sent.
const HELD_BYTES_MAX: usize = 4 * WAITING_BYTES_MAX;

/// Bytes that are not read a byte at a time: it would take long, and show no more than fewer of them.
const MUCH: usize = 20_000;

/// How a client takes what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// At once.
    All,
    /// Now and then.
    Some,
    /// Something each time, but hardly ever the last of it.
    Slowly,
    /// Nothing until it has sent all it has to say.
    Nothing,
}

/// The client's end of a connection, which gives in pieces and takes in pieces.
struct Pipe {
    incoming: Vec<u8>,
    read: usize,
    /// Bytes of a piece.
    piece: usize,
    outgoing: Vec<u8>,
    takes: Takes,
    random: Random,
}

impl Pipe {
    fn left(&self) -> usize {
        self.incoming.len() - self.read
    }
}

impl Transport for Pipe {
    fn read(&mut self, _: &Waker, buffer: &mut [u8]) -> Read {
        assert!(!buffer.is_empty(), "nothing can be read without room");
        if self.left() == 0 {
            return Read::Ended;
        }
        if self.random.chance(10) {
            return Read::Nothing;
        }
        let n = 1 + self.random.index(self.left().min(buffer.len()).min(self.piece));
        buffer[..n].copy_from_slice(&self.incoming[self.read..self.read + n]);
        self.read += n;
        Read::Bytes(n)
    }

    fn write(&mut self, _: &Waker, bytes: &[u8]) -> Result<usize, Broken> {
        let n = match self.takes {
            Takes::All => bytes.len(),
            Takes::Some => self.random.index(bytes.len() + 1),
            Takes::Slowly => bytes.len().saturating_sub(1 + self.random.index(64)),
            Takes::Nothing => 0,
        };
        self.outgoing.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn unread(&self) -> u64 {
        self.left() as u64
    }

    fn hung_up(&self) -> bool {
        false
    }

    fn untaken(&self) -> u64 {
        0
    }

    fn flush(&mut self, _: &Waker) -> bool {
        true
    }

    fn shut(&mut self, _: &Waker) -> bool {
        true
    }

    fn drain(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        Transport::read(self, waker, buffer)
    }
}

struct Case {
    request: Vec<u8>,
    verdict: Verdict,
    frames: Vec<u8>,
    /// The content of the frames, if they are as they should be.
    sent: Option<Sent>,
    takes: Takes,
    pieces: u64,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.frames[..self.frames.len().min(2000)];
        writeln!(f, "{}, {:?}, in pieces {}", self.request.escape_ascii(), self.verdict, self.pieces)?;
        write!(f, "{} bytes of frames, {:?}: {shown:02x?}", self.frames.len(), self.takes)
    }
}

fn case(rng: &mut Random, clients: &Clients) -> Case {
    let (mut request, mut verdict) = request(rng);
    let (mut frames, mut sent) = made_frames::frames(rng, clients);
    match rng.index(6) {
        0 => {
            mutate(rng, &mut request);
            verdict = Verdict::Anything;
        }
        1 => {
            mutate(rng, &mut frames);
            sent = None;
        }
        2 => {
            frames.truncate(rng.index(frames.len() + 1));
            sent = None;
        }
        3 => {
            let cut = rng.index(request.len() + 1);
            if cut < request.len() {
                // The answer may be there already, if it is a refusal.
                verdict = if verdict == Verdict::Accepted { Verdict::Incomplete } else { Verdict::Anything };
                frames.clear();
                sent = None;
            }
            request.truncate(cut);
        }
        _ => {}
    }
    let takes = [Takes::All, Takes::All, Takes::Some, Takes::Slowly, Takes::Nothing][rng.index(5)];
    Case { request, verdict, frames, sent, takes, pieces: rng.next() }
}

/// The end of a client.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The status of its request; 0 = it was not complete.
    status: u16,
    /// Bytes of its request.
    used: usize,
    /// Of MQTT.
    payload: Vec<u8>,
    /// The code of the close frame that it gets.
    close: Option<u16>,
}

fn welcome() -> Welcome {
    Welcome { path: "/mqtt".to_owned(), origins: Origins::Same, secure: false }
}

/// Bytes of a piece of so many; few only if there are fewer than `much`.
fn piece(random: &mut Random, bytes: usize, much: usize) -> usize {
    let least = if bytes < much { 0 } else { 3 };
    [1, 2, 7, 64, 1500, 70_000][least + random.index(6 - least)]
}

/// Has a connection served in pieces that `pieces` says.
fn serve(case: &Case, pieces: u64) -> Outcome {
    let mut random = Random(pieces);
    let pipe = Pipe {
        incoming: [&case.request[..], &case.frames].concat(),
        read: 0,
        piece: piece(&mut random, case.request.len(), 1000),
        outgoing: Vec::new(),
        takes: case.takes,
        random: Random(random.next()),
    };
    let mut upgrade = Upgrade::new(pipe);
    let welcome = welcome();
    let (answer, early) = loop {
        let polled = upgrade.poll(Waker::noop(), &welcome);
        assert!(upgrade.request.len() <= UPGRADE_BYTES_MAX, "{} bytes of a request", upgrade.request.len());
        assert!(upgrade.request.capacity() <= 2 * UPGRADE_BYTES_MAX);
        match polled {
            Poll::Pending => {}
            Poll::Ready(Ok(accepted)) => break accepted,
            Poll::Ready(Err(UpgradeError::Gone)) => return Outcome::default(),
            Poll::Ready(Err(UpgradeError::Refused(refusal))) => {
                let (response, body) = (refusal.response(), format!("\r\n\r\n{}\n", refusal.why));
                assert!(response.ends_with(&body), "{response}");
                assert!(response.contains(&format!("Content-Length: {}\r\n", body.len() - 4)), "{response}");
                return Outcome { status: refusal.status, ..Outcome::default() };
            }
        }
    };
    let used = upgrade.inner.read - early.len();
    assert_eq!(answer, answer_to(&upgrade.inner.incoming[..used]), "not the answer to this request");
    upgrade.inner.piece = piece(&mut random, case.frames.len(), MUCH);
    let socket = upgrade.accepted(answer.clone(), early);
    let mut outcome = Outcome { status: 101, used, ..Outcome::default() };
    exchange(socket, &answer, random, &mut outcome);
    outcome
}

/// Reads all that a client sends, and sends it something now and then.
fn exchange(mut socket: WebSocket<Pipe>, answer: &str, mut random: Random, outcome: &mut Outcome) {
    let most = if socket.inner.incoming.len() < MUCH { random.index(5) } else { 2 + random.index(3) };
    let most = [1, 3, 100, 4096, 64 * 1024][most];
    let (mut buffer, mut said, mut overhead, mut nothing) = (vec![0; 64 * 1024], Vec::new(), 0, 0);
    let frames = socket.inner.incoming[outcome.used..].to_vec();
    loop {
        let room = 1 + random.index(most);
        match socket.read(Waker::noop(), &mut buffer[..room]) {
            Read::Bytes(n) => {
                assert!(n > 0 && n <= room, "{n} bytes in {room}");
                outcome.payload.extend_from_slice(&buffer[..n]);
                nothing = 0;
            }
            Read::Nothing => nothing += 1,
            Read::Ended => break,
        }
        overhead += socket.overhead();
        within_bounds(&socket);
        assert!(nothing <= 4 * frames.len() + 1000, "it never ends");
        if random.chance(5) {
            let most = [10, 130, 70_000][random.index(3)];
            let bytes = vec![random.next() as u8; random.index(most)];
            let open = !socket.closed;
            let taken = socket.write(Waker::noop(), &bytes).unwrap();
            assert!(taken <= bytes.len());
            said.extend_from_slice(if open { &bytes[..taken] } else { &[] });
            within_bounds(&socket);
        }
    }
    overhead += socket.overhead();
    let came = socket.inner.read - outcome.used - socket.early.len();
    assert_eq!(outcome.payload.len() + overhead, came, "each byte is MQTT's or is not");
    assert_eq!(socket.unread(), (frames.len() - came) as u64);

    // What one decoder makes of all of it at once, and what the frames say themselves.
    let expected = judged(&frames);
    assert_eq!(outcome.payload, expected.payload, "not what is in the frames");
    assert_eq!(rewritten(&frames, &outcome.payload), frames[..expected.used], "not what was read");

    let takes = std::mem::replace(&mut socket.inner.takes, Takes::All);
    let left = socket.untaken();
    let sent = socket.inner.outgoing.len();
    assert!(socket.flush(Waker::noop()));
    assert_eq!(socket.inner.outgoing.len() - sent, left as usize);
    assert!(socket.shut(Waker::noop()) && socket.untaken() == 0);
    let outgoing = &socket.inner.outgoing;
    let sent = outgoing.strip_prefix(answer.as_bytes()).expect("the answer comes first");
    let sent = servers(sent);
    assert_eq!(sent.data, said, "not what was said");
    let mut pings = expected.pings.iter();
    assert!(
        sent.pongs.iter().all(|pong| pings.any(|ping| ping == pong)),
        "a pong to no ping, or out of order"
    );
    // Pings go without an answer only if pongs wait already.
    let few =
        answer.len() + expected.pings.len() * (CONTROL_BYTES_MAX + 2) < MESSAGE_BYTES_MAX && said.is_empty();
    if few || takes == Takes::All {
        assert_eq!(sent.pongs.len(), expected.pings.len(), "a ping without a pong");
    }
    let close = expected.close.unwrap_or(Some(frames::NORMAL));
    assert_eq!(sent.close, close);
    outcome.close = close;
}

fn within_bounds(socket: &WebSocket<Pipe>) {
    let (waiting, held) = (socket.outgoing.len(), socket.outgoing.bytes.capacity());
    assert!(waiting <= WAITING_BYTES_MAX, "{waiting} bytes wait");
    assert!(held <= HELD_BYTES_MAX, "{held} bytes for {waiting} that wait");
    let control = socket.decoder.control.capacity();
    assert!(control <= 2 * CONTROL_BYTES_MAX, "{control} bytes for a control frame");
    assert!(socket.early.bytes.len() <= UPGRADE_BYTES_MAX);
}

fn check(case: &Case) {
    let outcome = serve(case, case.pieces);
    assert_eq!(serve(case, !case.pieces), outcome, "in other pieces");
    match case.verdict {
        Verdict::Accepted => assert_eq!((outcome.status, outcome.used), (101, case.request.len())),
        Verdict::Refused(status) => assert_eq!(outcome.status, status),
        Verdict::Incomplete => assert_eq!(outcome.status, 0),
        Verdict::Anything => {}
    }
    if let (Verdict::Accepted, Some(sent)) = (case.verdict, &case.sent) {
        assert_eq!(outcome.payload, sent.payload, "not what was sent");
        assert_eq!(outcome.close, sent.close.unwrap_or(Some(frames::NORMAL)));
        // Some of the packets, if it said goodbye amid them.
        if sent.close.is_none() {
            assert!(packets(&outcome.payload) >= 1);
        }
    }
}

#[test]
fn any_connection() {
    let clients = Clients::new();
    fuzz_loop::run(|rng| case(rng, &clients), check);
}

/// A client that takes a little of what waits for it each time gets its pings answered for good; what it has taken is not kept.
#[test]
fn a_client_that_takes_slowly_costs_no_memory() {
    let mut random = Random(1);
    let mut frames = Vec::new();
    for _ in 0..20_000 {
        frames.extend([0x89, 0x80 | CONTROL_BYTES_MAX as u8, 0, 0, 0, 0]);
        frames.extend([0x55; CONTROL_BYTES_MAX]);
    }
    let pipe = Pipe {
        incoming: frames,
        read: 0,
        piece: 1000,
        outgoing: Vec::new(),
        takes: Takes::Slowly,
        random: Random(random.next()),
    };
    let mut socket = Upgrade::new(pipe).accepted("answer".to_owned(), Vec::new());
    let mut buffer = [0; 4096];
    while socket.read(Waker::noop(), &mut buffer) == Read::Nothing {
        within_bounds(&socket);
    }
}
