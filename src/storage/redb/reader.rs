//! The threads that read messages back: from changes not yet durable, then from the database in short transactions. Never
//! call back with less than there is because something failed: they wait until it works again.

use super::open::panic_text;
use super::schema::{LOG, SETTLED};
use super::shared::Shared;
use crate::ports::{ReadDone, Seq, SessionNo, Stored};
use crate::storage::record::{LOG_ROWS, LogRow, RecordError, decode_log};
use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadTransaction, ReadableDatabase};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Messages are read as a range if at least one in this many rows of it is wanted.
const DENSE: u64 = 4;

/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_millis(200);

/// A file that is found damaged this often in a row at one message is not going to be better: the message is given up.
const DAMAGED_MAX: u32 = 3;

/// Reads to do. Each session asks for one at a time, which bounds it.
#[derive(Default)]
pub(super) struct ReadQueue {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Request>,
    closed: bool,
}

struct Request {
    session: SessionNo,
    seqs: Vec<Seq>,
    done: ReadDone,
}

impl ReadQueue {
    /// Adds a read; drops it, uncalled, if the journal is closed.
    pub(super) fn push(&self, session: SessionNo, seqs: Vec<Seq>, done: ReadDone) {
        let mut state = self.state.lock();
        if !state.closed {
            state.requests.push_back(Request { session, seqs, done });
            self.ready.notify_one();
        }
    }

    /// No more reads are begun.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.requests)
        };
        self.ready.notify_all();
        drop(dropped);
    }

    fn pop(&self) -> Option<Request> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(request) = state.requests.pop_front() {
                return Some(request);
            }
            self.ready.wait(&mut state);
        }
    }

    /// Waits before another attempt; `true` if the queue is closed.
    fn pause(&self) -> bool {
        let mut state = self.state.lock();
        self.ready.wait_while_for(&mut state, |state| !state.closed, RETRY);
        state.closed
    }
}

/// Does reads until the queue is closed.
pub(super) fn run(shared: &Shared) {
    let mut reader = Reader::default();
    while let Some(Request { session, seqs, done }) = shared.reads.pop() {
        let Some(found) = reader.read(shared, session, &seqs) else { return };
        shared.counters.messages_read.add(found.len() as u64);
        // A callback's panic is its owner's bug; it must not take the journal's reader with it.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(found))) {
            tracing::error!("a receiver of messages panicked: {}", panic_text(&*panic));
        }
    }
}

/// What is known of one wanted message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: the database has it or nobody.
    Nothing,
    /// It is in the part of the buffer that ends here and starts where that of the one found before ends.
    Here(usize, usize),
    /// The session has settled it.
    Settled,
}

/// Memory kept from read to read.
#[derive(Default)]
struct Reader {
    /// The wanted messages, ascending.
    seqs: Vec<Seq>,
    known: Vec<Known>,
    rows: Vec<u8>,
}

impl Reader {
    /// Reads messages; `None` if the journal was closed before that was possible.
    fn read(&mut self, shared: &Shared, session: SessionNo, wanted: &[Seq]) -> Option<Vec<Stored>> {
        self.seqs.clear();
        self.seqs.extend_from_slice(wanted);
        let ascending = wanted.is_sorted();
        if !ascending {
            self.seqs.sort_unstable();
        }
        self.seqs.dedup();
        let mut damaged = 0;
        let mut found = loop {
            self.look_at_pending(shared, session);
            match self.attempt(shared, session) {
                Ok(found) => break found,
                Err(error) => {
                    if matches!(error, redb::Error::Corrupted(_)) {
                        damaged += 1;
                        if damaged >= DAMAGED_MAX {
                            break self.read_one_by_one(shared, session);
                        }
                    }
                    // Closed means that the writer is already at work on it.
                    if !matches!(error, redb::Error::DatabaseClosed) {
                        shared.report_broken(&error);
                    }
                }
            }
            if shared.reads.pause() {
                return None;
            }
        };
        if !ascending {
            found.sort_by_key(|stored| wanted.iter().position(|seq| *seq == stored.seq));
        }
        Some(found)
    }

    /// Collects what is not durable yet. Comes before the transaction begins: what is durable by then is in the database.
    fn look_at_pending(&mut self, shared: &Shared, session: SessionNo) {
        let Reader { seqs, known, rows } = self;
        known.clear();
        known.resize(seqs.len(), Known::Nothing);
        rows.clear();
        let mut settled = Vec::new();
        shared.gather.lock().overlay(
            session,
            seqs,
            |at, row| {
                let start = rows.len();
                rows.extend_from_slice(row);
                if let Some(known) = known.get_mut(at) {
                    *known = Known::Here(start, rows.len());
                }
            },
            |at| settled.push(at),
        );
        for at in settled {
            if let Some(known) = known.get_mut(at) {
                *known = Known::Settled;
            }
        }
    }

    fn attempt(&self, shared: &Shared, session: SessionNo) -> Result<Vec<Stored>, redb::Error> {
        let mut found = Vec::with_capacity(self.seqs.len());
        let mut view = None;
        let in_database = |(_, known): &(&Seq, &Known)| **known == Known::Nothing;
        if self.seqs.iter().zip(&self.known).any(|pair| in_database(&pair)) {
            let db = shared.db.read();
            let db: &Database = db.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            view = Some(db.begin_read()?);
        }
        let read = AssertUnwindSafe(|| self.collect(shared, session, view.as_ref(), &mut found));
        // redb panics on some damage to its pages; the reader reports it and goes on.
        match catch_unwind(read) {
            Ok(result) => result.map(|()| found),
            Err(panic) => Err(redb::Error::Corrupted(panic_text(&*panic))),
        }
    }

    fn collect(
        &self,
        shared: &Shared,
        session: SessionNo,
        view: Option<&ReadTransaction>,
        found: &mut Vec<Stored>,
    ) -> Result<(), redb::Error> {
        let log = view.map(|view| view.open_table(LOG)).transpose()?;
        let settled = view.map(|view| view.open_table(SETTLED)).transpose()?;
        let span = match (self.seqs.first(), self.seqs.last()) {
            (Some(first), Some(last)) => last - first,
            _ => return Ok(()),
        };
        let dense = span / DENSE <= self.seqs.len() as u64;
        let mut range = match (&log, self.seqs.first()) {
            (Some(log), Some(first)) if dense => Some(log.range(*first..)?),
            _ => None,
        };
        let mut ahead = None;
        for (seq, known) in self.seqs.iter().zip(&self.known) {
            match known {
                Known::Settled => {}
                Known::Here(start, end) => {
                    let row = self.rows.get(*start..*end).unwrap_or_default();
                    found
                        .extend(readable(shared, *seq, stored(session, *seq, row)).map(|(stored, _)| stored));
                }
                Known::Nothing => {
                    let Some(log) = &log else { continue };
                    let row = match &mut range {
                        None => log.get(seq)?,
                        Some(range) => {
                            while ahead.as_ref().is_none_or(|(key, _)| key < seq) {
                                match range.next() {
                                    Some(row) => ahead = Some(row.map(|(key, row)| (key.value(), row))?),
                                    None => break,
                                }
                            }
                            ahead.take_if(|(key, _)| key == seq).map(|(_, row)| row)
                        }
                    };
                    let Some(row) = row else { continue };
                    let Some((stored, several)) = readable(shared, *seq, stored(session, *seq, row.value()))
                    else {
                        continue;
                    };
                    let done = several
                        && settled
                            .as_ref()
                            .map(|settled| settled.get((*seq, session)))
                            .transpose()?
                            .flatten()
                            .is_some();
                    if !done {
                        found.push(stored);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads what can be read of a damaged file, each message by itself.
    fn read_one_by_one(&mut self, shared: &Shared, session: SessionNo) -> Vec<Stored> {
        let mut found = Vec::new();
        for seq in std::mem::take(&mut self.seqs) {
            self.seqs = vec![seq];
            self.look_at_pending(shared, session);
            match self.attempt(shared, session) {
                Ok(one) => found.extend(one),
                Err(error) => {
                    tracing::error!(seq, session, %error, "a message cannot be read from the damaged journal: left out");
                    shared.counters.messages_unreadable.add(1);
                }
            }
        }
        found
    }
}

/// Logs and counts a message that cannot be decoded: waiting would not make it better, and it stays in the file.
fn readable<T>(shared: &Shared, seq: Seq, row: Result<Option<T>, RecordError>) -> Option<T> {
    row.unwrap_or_else(|error| {
        let path = shared.medium.path().display();
        tracing::error!(%path, seq, %error, "a row of table log cannot be decoded: the message is left out");
        shared.counters.messages_unreadable.add(1);
        None
    })
}

/// The message in `row` as `session` is to receive it, and whether it has several recipients.
fn stored(session: SessionNo, seq: Seq, row: &[u8]) -> Result<Option<(Stored, bool)>, RecordError> {
    let row = LOG_ROWS.lift(row)?;
    let LogRow::Message(row) = decode_log(&row)? else { return Ok(None) };
    let recipient = row.recipient(session);
    Ok(recipient.map(|recipient| {
        (Stored { seq, id: row.id, message: row.body.message(), recipient }, row.recipients_len() > 1)
    }))
}
