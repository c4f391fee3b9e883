//! Nothing is lost in silence: the first loss of a client for a reason leaves a line in the log, then one a minute says how many
//! there were, while it lasts.
//!
//! Whoever loses something adds to a cell of its own ([`Account`]): no lock, no allocation after the first. At most
//! [`FOLLOWED_MAX`] pairs of client and reason are followed at a time for each level; of all others together one line a minute says
//! how many losses and clients there were. So the lines of a minute are bounded, however many clients there are. What loses nothing
//! for a minute is forgotten, and begins anew.

mod kind;
mod line;

pub(super) use kind::Counted;
pub use kind::Loss;

use super::cells::Counter;
use crate::clock::Time;
use crate::hashing::HashMap;
use kind::{KINDS, Level};
use line::Line;
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

/// Pairs of client and reason that are followed at a time, for each of the two levels of log lines.
pub const FOLLOWED_MAX: usize = 100;

/// The target of all lines about losses, for `log.level`.
pub const TARGET: &str = "berth::losses";

/// Between two lines about the same, milliseconds.
pub const SUMMARY_MS: u64 = 60_000;

/// What was lost first, for its line.
#[derive(Clone, Copy)]
pub struct About<'a> {
    /// The topic of the message.
    pub topic: &'a str,
    /// In words: the limit, its value and the size that exceeds it.
    pub why: &'a dyn std::fmt::Display,
}

/// Who loses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Client,
    Node,
    Other,
}

/// What a client or a node has lost that the log does not have yet. Small while it has no line of its own.
#[derive(Debug, Default)]
pub struct Account {
    /// When it was counted among those that are not followed, for each level.
    rounds: [AtomicU32; 2],
    cells: OnceLock<Arc<Cells>>,
}

/// Whose account it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    subject: Subject,
    name: &'a Arc<str>,
    account: &'a Account,
}

impl<'a> Whose<'a> {
    /// A client's.
    pub fn client(client_id: &'a Arc<str>, account: &'a Account) -> Whose<'a> {
        Whose { subject: Subject::Client, name: client_id, account }
    }
}

/// An account that has its name with it.
#[derive(Debug)]
pub struct Named {
    subject: Subject,
    name: Arc<str>,
    account: Account,
}

impl Named {
    fn new(subject: Subject, name: Arc<str>) -> Arc<Named> {
        Arc::new(Named { subject, name, account: Account::default() })
    }

    /// Whose it is.
    pub fn whose(&self) -> Whose<'_> {
        Whose { subject: self.subject, name: &self.name, account: &self.account }
    }
}

#[derive(Debug, Default)]
struct Cell {
    followed: AtomicBool,
    /// Losses that are in no line yet, while it is followed.
    untold: AtomicU64,
}

#[derive(Debug, Default)]
struct Cells([Cell; KINDS]);

impl Cells {
    fn of(&self, loss: Loss) -> &Cell {
        &self.0[loss.index()]
    }
}

/// A pair that is followed.
#[derive(Debug)]
struct Followed {
    subject: Subject,
    name: Arc<str>,
    cells: Arc<Cells>,
    loss: Loss,
    /// Losses of earlier sessions of the client that are in no line yet.
    before: u64,
    /// Losses since the first line.
    all: u64,
    told_at: Time,
    /// When the next line is due; `None` until the time is known.
    due: Option<Time>,
}

impl Followed {
    fn is(&self, whose: Whose<'_>, loss: Loss) -> bool {
        self.loss.index() == loss.index() && self.subject == whose.subject && self.name == *whose.name
    }

    /// The losses that are in no line yet.
    fn take(&mut self) -> u64 {
        std::mem::take(&mut self.before) + self.cells.of(self.loss).untold.swap(0, SeqCst)
    }

    /// The client has another session now.
    fn pass_to(&mut self, cells: &Arc<Cells>) {
        cells.of(self.loss).followed.store(true, SeqCst);
        let old = std::mem::replace(&mut self.cells, cells.clone());
        let cell = old.of(self.loss);
        cell.followed.store(false, SeqCst);
        self.before += cell.untold.swap(0, SeqCst);
    }

    /// The next line, or `None` if there was nothing to tell: then it is not followed any more.
    fn summary(&mut self, now: Time, interval_ms: u64) -> Option<Line> {
        let mut lost = self.take();
        if lost == 0 {
            self.cells.of(self.loss).followed.store(false, SeqCst);
            // Whoever has not seen that has added before.
            lost = self.take();
            if lost == 0 {
                return None;
            }
            self.cells.of(self.loss).followed.store(true, SeqCst);
        }
        self.all = self.all.saturating_add(lost);
        let ms = now.since_ms(self.told_at);
        (self.told_at, self.due) = (now, Some(now.plus_ms(interval_ms)));
        let (subject, name) = (self.subject, self.name.clone());
        Some(Line::Again { subject, name, loss: self.loss, lost, ms, all: self.all })
    }
}

#[derive(Debug, Default)]
struct Table {
    followed: Vec<Followed>,
    /// Of those that are not followed: what has been told, since when, and when the next line is due.
    told: u64,
    told_at: Time,
    due: Option<Time>,
}

/// What is followed, and what is not, of one level.
#[derive(Debug)]
struct Tier {
    table: Mutex<Table>,
    full: AtomicBool,
    /// Losses of those that are not followed.
    others: Counter,
    /// How many of them there are in this round.
    clients: AtomicU64,
    round: AtomicU32,
    /// A line about them is to come.
    pending: AtomicBool,
}

impl Default for Tier {
    fn default() -> Tier {
        Tier {
            table: Mutex::default(),
            full: AtomicBool::new(false),
            others: Counter::default(),
            clients: AtomicU64::new(0),
            round: AtomicU32::new(1),
            pending: AtomicBool::new(false),
        }
    }
}

/// The losses of one broker.
#[derive(Debug)]
pub struct Losses {
    interval_ms: u64,
    tiers: [Tier; 2],
    nodes: RwLock<HashMap<Arc<str>, Arc<Named>>>,
    retained: Arc<Named>,
    shared: Arc<Named>,
    /// Woken when something is to be told earlier than was known.
    waker: Mutex<Option<Waker>>,
}

impl Losses {
    /// With so many milliseconds between two lines about the same.
    pub(super) fn new(interval_ms: u64) -> Losses {
        Losses {
            interval_ms,
            tiers: Default::default(),
            nodes: RwLock::default(),
            retained: Named::new(Subject::Other, "retained messages".into()),
            shared: Named::new(Subject::Other, "shared subscriptions without a client online".into()),
            waker: Mutex::default(),
        }
    }

    /// Of another node.
    pub fn node(&self, node: &Arc<str>) -> Arc<Named> {
        if let Some(named) = self.nodes.read().get(node) {
            return named.clone();
        }
        let mut nodes = self.nodes.write();
        nodes.entry(node.clone()).or_insert_with(|| Named::new(Subject::Node, node.clone())).clone()
    }

    /// Of the retained messages.
    pub fn retained(&self) -> Whose<'_> {
        self.retained.whose()
    }

    /// Of the shared subscriptions that nobody is online for.
    pub fn shared(&self) -> Whose<'_> {
        self.shared.whose()
    }

    /// Notes `n` losses, and logs them if they are the first of their kind.
    /// That line says what it is about, if that is given.
    pub(super) fn add(&self, whose: Whose<'_>, loss: Loss, n: u64, about: Option<About<'_>>) {
        if let Some(first) = self.note(whose, loss, n) {
            first.log(about);
        }
    }

    fn note(&self, whose: Whose<'_>, loss: Loss, n: u64) -> Option<Line> {
        let mut lost = n;
        if let Some(cell) = whose.account.cells.get().map(|cells| cells.of(loss))
            && cell.followed.load(SeqCst)
        {
            cell.untold.fetch_add(n, SeqCst);
            if cell.followed.load(SeqCst) {
                return None;
            }
            // It was forgotten at this moment.
            lost = cell.untold.swap(0, SeqCst);
        }
        if lost == 0 { None } else { self.not_followed(whose, loss, lost) }
    }

    #[cold]
    fn not_followed(&self, whose: Whose<'_>, loss: Loss, lost: u64) -> Option<Line> {
        let (level, account) = (loss.level() as usize, whose.account);
        let tier = &self.tiers[level];
        if !tier.full.load(Relaxed) {
            let mut table = tier.table.lock();
            let known = table.followed.iter().any(|f| f.is(whose, loss));
            if known || table.followed.len() < FOLLOWED_MAX {
                let cells = account.cells.get_or_init(Arc::default);
                if cells.of(loss).followed.load(SeqCst) {
                    cells.of(loss).untold.fetch_add(lost, SeqCst);
                    return None;
                }
                if let Some(known) = table.followed.iter_mut().find(|f| f.is(whose, loss)) {
                    known.pass_to(cells);
                    known.before += lost;
                    return None;
                }
                cells.of(loss).followed.store(true, SeqCst);
                let (subject, name) = (whose.subject, whose.name.clone());
                table.followed.push(Followed {
                    subject,
                    name: name.clone(),
                    cells: cells.clone(),
                    loss,
                    before: 0,
                    all: lost,
                    told_at: Time(0),
                    due: None,
                });
                drop(table);
                self.wake();
                return Some(Line::First { subject, name, loss, lost });
            }
            tier.full.store(true, Relaxed);
        }
        tier.others.add(lost);
        let (round, own) = (tier.round.load(Relaxed), &account.rounds[level]);
        if own.load(Relaxed) != round && own.swap(round, Relaxed) != round {
            tier.clients.fetch_add(1, Relaxed);
        }
        if !tier.pending.load(SeqCst) && !tier.pending.swap(true, SeqCst) {
            self.wake();
        }
        None
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// When [`Losses::tell`] is due next; `waker` is woken if that becomes earlier.
    pub fn next_timeout(&self, waker: &Waker) -> Option<Time> {
        *self.waker.lock() = Some(waker.clone());
        self.tiers.iter().filter_map(Tier::next).min()
    }

    /// Logs the summaries that are due.
    pub fn tell(&self, now: Time) {
        self.due(now).iter().for_each(|line| line.log(None));
    }

    fn due(&self, now: Time) -> Vec<Line> {
        let mut lines = Vec::new();
        for (tier, level) in self.tiers.iter().zip([Level::Warn, Level::Info]) {
            tier.due(level, now, self.interval_ms, &mut lines);
        }
        lines
    }
}

impl Tier {
    /// At once for what has not been looked at: whoever loses something does not know the time.
    fn next(&self) -> Option<Time> {
        let table = self.table.lock();
        let due = |at: Option<Time>| at.unwrap_or(Time(0));
        let others = self.pending.load(SeqCst).then(|| due(table.due));
        table.followed.iter().map(|f| due(f.due)).chain(others).min()
    }

    fn due(&self, level: Level, now: Time, interval_ms: u64, lines: &mut Vec<Line>) {
        let mut table = self.table.lock();
        table.followed.retain_mut(|f| match f.due {
            None => {
                (f.told_at, f.due) = (now, Some(now.plus_ms(interval_ms)));
                true
            }
            Some(at) if at > now => true,
            Some(_) => {
                let line = f.summary(now, interval_ms);
                let goes_on = line.is_some();
                lines.extend(line);
                goes_on
            }
        });
        if table.followed.len() < FOLLOWED_MAX {
            self.full.store(false, Relaxed);
        }
        if !self.pending.load(SeqCst) {
            return;
        }
        match table.due {
            None => (table.told_at, table.due) = (now, Some(now.plus_ms(interval_ms))),
            Some(at) if at > now => {}
            Some(_) => {
                let mut all = self.others.get();
                if all == table.told {
                    self.pending.store(false, SeqCst);
                    table.due = None;
                    all = self.others.get();
                    if all == table.told || self.pending.swap(true, SeqCst) {
                        return;
                    }
                }
                self.round.fetch_add(1, Relaxed);
                let clients = self.clients.swap(0, Relaxed);
                let ms = now.since_ms(table.told_at);
                lines.push(Line::Others { level, lost: all - table.told, clients, ms });
                (table.told, table.told_at, table.due) = (all, now, Some(now.plus_ms(interval_ms)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
