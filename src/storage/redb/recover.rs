//! The scan at start: from the rows of the file to what the broker starts with, the index of live rows and a list of rows
//! that nobody needs. Only reads; remembers a number for each pending message and no bodies.

mod cluster;

use super::directory;
use super::index::Index;
use super::schema::{
    LOG, META, META_JOURNAL, META_KEYS_RESERVED, META_NEXT_SESSION, META_STORE_GENERATION, META_STORE_MARK,
    META_STORE_NAME, META_STORE_REVISION, SESSIONS, SETTLED, SUBSCRIPTIONS,
};
use super::starts;
use crate::mqtt::{Message, QoS, message::Parts};
use crate::ports::{
    History, MessageId, ORIGIN_DUTY, Recovered, RecoveredSession, Seq, SessionNo, StoreKnown, Timeline,
};
use crate::storage::record::{self, LOG_ROWS, LogRow, MessageRow, RecordError, StepRow};
use crate::storage::session_rows;
use cluster::ClusterRows;
use hashbrown::HashMap;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};

/// What the scan found.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) recovered: Recovered,
    pub(super) index: Index,
    pub(super) garbage: Garbage,
    /// The smallest key of the log never used.
    pub(super) next_key: u64,
    /// Bytes of keys and values.
    pub(super) live_bytes: u64,
    pub(super) history: History,
}

/// Rows that nobody needs: of sessions that are gone, or replaced.
#[derive(Default)]
pub(super) struct Garbage {
    pub(super) log: Vec<u64>,
    pub(super) settled: Vec<(Seq, SessionNo)>,
    pub(super) subscriptions: Vec<(SessionNo, String)>,
}

/// Why the scan stopped.
pub(super) enum ScanError {
    /// The database failed.
    Database(redb::Error),
    /// A row cannot be decoded.
    Record { table: &'static str, key: String, source: RecordError },
}

impl<E: Into<redb::Error>> From<E> for ScanError {
    fn from(error: E) -> ScanError {
        ScanError::Database(error.into())
    }
}

fn in_table(table: &'static str, key: impl ToString) -> impl FnOnce(RecordError) -> ScanError {
    move |source| ScanError::Record { table, key: key.to_string(), source }
}

type LogTable = ReadOnlyTable<u64, &'static [u8]>;

/// Rows of the table so far, sessions found by number.
struct Scanner {
    scan: Scan,
    at: HashMap<SessionNo, usize, foldhash::fast::FixedState>,
    /// Outbound steps with their keys.
    steps: Vec<(u64, StepRow)>,
    retained: Vec<(u64, Message)>,
    cluster: ClusterRows,
    /// What a [`Message`] takes beyond its bytes.
    overhead: u64,
}

/// Reads the whole journal.
pub(super) fn scan(db: &Database) -> Result<Scan, ScanError> {
    let txn = db.begin_read()?;
    let mut scanner = Scanner::new();
    scanner.scan_sessions(&txn.open_table(SESSIONS)?)?;
    scanner.scan_subscriptions(&txn.open_table(SUBSCRIPTIONS)?)?;
    let log = txn.open_table(LOG)?;
    scanner.scan_log(&log, &txn.open_table(SETTLED)?)?;
    scanner.finish_steps(&log)?;
    let mut scan = scanner.finish();
    let meta = txn.open_table(META)?;
    if let Some(reserved) = meta.get(META_KEYS_RESERVED)? {
        scan.next_key = scan.next_key.max(reserved.value());
    }
    if let Some(next) = meta.get(META_NEXT_SESSION)? {
        scan.recovered.next_session = scan.recovered.next_session.max(next.value());
    }
    let number = |name| Ok::<u64, ScanError>(meta.get(name)?.map_or(0, |number| number.value()));
    scan.recovered.journal = number(META_JOURNAL)?;
    let timeline = Timeline { generation: number(META_STORE_GENERATION)?, name: number(META_STORE_NAME)? };
    let (revision, mark) = (number(META_STORE_REVISION)?, number(META_STORE_MARK)?);
    scan.recovered.store = StoreKnown { timeline, revision, mark };
    let (records, bytes) = directory::read(&txn)?;
    scan.recovered.directory = records;
    scan.live_bytes += bytes;
    scan.history = starts::read(&txn)?;
    Ok(scan)
}

impl Scanner {
    fn new() -> Scanner {
        let empty = Parts {
            topic: "",
            payload: &[],
            properties: &[],
            qos: QoS::AtMostOnce,
            retain: false,
            expires_at: None,
        };
        let mut scan = Scan { next_key: 1, ..Scan::default() };
        scan.recovered.next_session = 1;
        let overhead = Message::new(empty).size() as u64;
        let cluster = ClusterRows::default();
        Scanner { scan, at: HashMap::default(), steps: Vec::new(), retained: Vec::new(), cluster, overhead }
    }

    fn session(&mut self, no: SessionNo) -> Option<&mut RecoveredSession> {
        let at = *self.at.get(&no)?;
        self.scan.recovered.sessions.get_mut(at)
    }

    fn saw(&mut self, no: SessionNo) {
        let next = &mut self.scan.recovered.next_session;
        *next = (*next).max(no.saturating_add(1));
    }

    fn scan_sessions(&mut self, table: &ReadOnlyTable<u64, &'static [u8]>) -> Result<(), ScanError> {
        for row in table.iter()? {
            let (no, value) = row?;
            let no = no.value();
            let record = session_rows::decode_session(no, value.value()).map_err(in_table("sessions", no))?;
            self.scan.live_bytes += 8 + value.value().len() as u64;
            self.at.insert(no, self.scan.recovered.sessions.len());
            self.saw(no);
            self.scan.recovered.sessions.push(RecoveredSession {
                record,
                subscriptions: Vec::new(),
                inbound: Vec::new(),
                outbound: Vec::new(),
                pending: Vec::new(),
                pending_bytes: 0,
            });
        }
        Ok(())
    }

    fn scan_subscriptions(
        &mut self,
        table: &ReadOnlyTable<(u64, &'static str), &'static [u8]>,
    ) -> Result<(), ScanError> {
        for row in table.iter()? {
            let (key, value) = row?;
            let (no, filter) = key.value();
            let name = || format!("({no}, {filter:?})");
            let subscription = session_rows::decode_subscription(filter, value.value())
                .map_err(|source| in_table("subscriptions", name())(source))?;
            match self.session(no) {
                Some(session) => session.subscriptions.push(subscription),
                None => self.scan.garbage.subscriptions.push((no, filter.to_owned())),
            }
            self.scan.live_bytes += (8 + filter.len() + value.value().len()) as u64;
        }
        Ok(())
    }

    fn scan_log(&mut self, log: &LogTable, settled: &ReadOnlyTable<(u64, u64), ()>) -> Result<(), ScanError> {
        let mut settled = settled.iter()?.map(|row| row.map(|(key, _)| key.value()));
        let mut settled = Settled { next: settled.next().transpose()?, rest: settled, of_row: Vec::new() };
        for row in log.iter()? {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            self.scan.live_bytes += 8 + value.len() as u64;
            self.scan.next_key = key.saturating_add(1);
            let row = LOG_ROWS.lift(value).map_err(in_table("log", key))?;
            match record::decode_log(&row).map_err(in_table("log", key))? {
                LogRow::Message(message) => {
                    settled.advance(key, &mut self.scan.garbage)?;
                    self.scan_message(key, &message, &settled.of_row);
                }
                LogRow::Outbound(step) => self.steps.push((key, step)),
                LogRow::Inbound { session, packet_id } => self.scan_inbound(key, session, packet_id),
                LogRow::Retained(body) => {
                    let replaced = self.scan.index.put_retained(body.topic(), key);
                    self.scan.garbage.log.extend(replaced);
                    self.retained.push((key, body.message()));
                }
                LogRow::Seen { id, sessions } => self.scan_seen(key, id, &sessions),
                LogRow::Node(node) => {
                    self.scan.garbage.log.extend(self.scan.index.put_node(key));
                    self.cluster.node = Some(node);
                }
                LogRow::Spooled(spooled) => {
                    self.scan.garbage.log.extend(self.scan.index.spool(spooled.topic, key));
                    self.cluster.spooled.push((key, spooled.update()));
                }
            }
        }
        settled.advance(u64::MAX, &mut self.scan.garbage)
    }

    fn scan_message(&mut self, seq: Seq, row: &MessageRow<'_>, settled: &[SessionNo]) {
        let size = self.overhead + row.body.len() as u64;
        let mut unsettled = 0;
        for no in row.sessions() {
            self.saw(no);
            if settled.binary_search(&no).is_ok() {
                continue;
            }
            if no == ORIGIN_DUTY {
                if let Some(id) = row.id {
                    self.cluster.duties.push((seq, id));
                    unsettled += 1;
                }
            } else if let Some(session) = self.session(no) {
                session.pending.push(seq);
                session.pending_bytes += size;
                unsettled += 1;
            }
        }
        if unsettled == 0 {
            self.scan.garbage.log.push(seq);
            self.scan.garbage.settled.extend(settled.iter().map(|no| (seq, *no)));
            return;
        }
        let at = &self.at;
        let known = row.sessions().filter(|no| at.contains_key(no));
        if let Some(id) = row.id {
            self.cluster.ids.push((seq, id));
            self.cluster.seen.extend(known.clone().map(|no| (id, no)));
        }
        if row.recipients_len() > 1 {
            let duty = row.sessions().filter(|no| *no == ORIGIN_DUTY && row.id.is_some());
            let waiting = known.chain(duty).filter(|no| settled.binary_search(no).is_err());
            self.scan.index.share(seq, waiting);
        }
    }

    /// Sessions that are gone have seen nothing; a row that names no others is not needed.
    fn scan_seen(&mut self, key: u64, id: MessageId, sessions: &[SessionNo]) {
        sessions.iter().for_each(|no| self.saw(*no));
        let mut sessions = self.scan.index.unseen(id, sessions);
        sessions.retain(|no| self.at.contains_key(no));
        if sessions.is_empty() {
            self.scan.garbage.log.push(key);
            return;
        }
        self.scan.index.put_seen(id, key, &sessions);
        self.cluster.seen.extend(sessions.into_iter().map(|no| (id, no)));
    }

    fn scan_inbound(&mut self, key: u64, no: SessionNo, packet_id: u16) {
        let Some(session) = self.session(no) else {
            self.scan.garbage.log.push(key);
            return;
        };
        session.inbound.push(packet_id);
        let replaced = self.scan.index.put_inbound(no, packet_id, key);
        self.scan.garbage.log.extend(replaced);
    }

    /// Gives steps to their sessions, drops those without a message, and takes their messages off the pending ones.
    fn finish_steps(&mut self, log: &LogTable) -> Result<(), ScanError> {
        let mut steps = std::mem::take(&mut self.steps);
        steps.retain(|(key, step)| {
            let held = self.session(step.session).is_some_and(|s| s.pending.binary_search(&step.seq).is_ok());
            let Scan { index, garbage, .. } = &mut self.scan;
            if held {
                let replaced = |key| garbage.log.push(key);
                index.put_outbound(step.session, step.packet_id, step.seq, *key, step.order, replaced);
            } else {
                garbage.log.push(*key);
            }
            held
        });
        steps.retain(|(key, step)| self.scan.index.outbound_key(step.session, step.packet_id) == Some(*key));
        steps.sort_unstable_by_key(|(key, step)| (step.session, step.order, *key));
        for of_session in steps.chunk_by(|(_, a), (_, b)| a.session == b.session) {
            let mut bytes = 0;
            let mut taken: Vec<Seq> = of_session.iter().map(|(_, step)| step.seq).collect();
            taken.sort_unstable();
            for seq in &taken {
                bytes += self.overhead + body_len(log, *seq)?;
            }
            let Some(session) = of_session.first().and_then(|(_, step)| self.session(step.session)) else {
                continue;
            };
            session.pending.retain(|seq| taken.binary_search(seq).is_err());
            session.pending_bytes = session.pending_bytes.saturating_sub(bytes);
            session.outbound =
                of_session.iter().map(|(_, step)| (step.packet_id, step.seq, step.state)).collect();
        }
        Ok(())
    }

    fn finish(mut self) -> Scan {
        for session in &mut self.scan.recovered.sessions {
            session.pending.shrink_to_fit();
            session.inbound.sort_unstable();
            session.inbound.dedup();
        }
        // Only a file that was tampered with holds two retained messages of a topic: the later counts.
        let gone: &mut Vec<u64> = &mut self.scan.garbage.log;
        gone.sort_unstable();
        self.retained.retain(|(key, _)| gone.binary_search(key).is_err());
        self.scan.recovered.retained = self.retained.into_iter().map(|(_, message)| message).collect();
        self.cluster.finish(&mut self.scan.recovered, gone);
        self.scan
    }
}

/// The settlements, read along with the log: both ascend.
struct Settled<I> {
    next: Option<(Seq, SessionNo)>,
    rest: I,
    /// Those of the row that [`Settled::advance`] came to.
    of_row: Vec<SessionNo>,
}

impl<I: Iterator<Item = Result<(Seq, SessionNo), redb::StorageError>>> Settled<I> {
    /// Goes on to message `seq`; settlements of messages that are not there go to `garbage`.
    fn advance(&mut self, seq: Seq, garbage: &mut Garbage) -> Result<(), ScanError> {
        self.of_row.clear();
        while let Some((of, session)) = self.next.filter(|(of, _)| *of <= seq) {
            if of == seq {
                self.of_row.push(session);
            } else {
                garbage.settled.push((of, session));
            }
            self.next = self.rest.next().transpose()?;
        }
        Ok(())
    }
}

fn body_len(log: &LogTable, seq: Seq) -> Result<u64, ScanError> {
    let Some(row) = log.get(seq)? else { return Ok(0) };
    let row = LOG_ROWS.lift(row.value()).map_err(in_table("log", seq))?;
    match record::decode_log(&row).map_err(in_table("log", seq))? {
        LogRow::Message(message) => Ok(message.body.len() as u64),
        _ => Ok(0),
    }
}
