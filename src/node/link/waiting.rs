//! Answers that wait for the journal and for other nodes, in the order in which they were asked for.

use crate::broker::subscribe::RetainedRequest;
use crate::broker::ticket::{Kept, Ticket};
use crate::clock::Time;
use crate::mqtt::Reason;
use crate::ports::{Journal, Lsn};
use crate::session::Token;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

/// What is to be told once the journal is durable up to `lsn` and the ticket, if any, is kept.
#[derive(Debug)]
pub(super) struct Answer {
    pub lsn: Lsn,
    pub ticket: Option<Arc<Ticket>>,
    pub token: Token,
    pub since: Time,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Published {
        matched: bool,
    },
    Durable,
    Subscribed(SmallVec<[Reason; 4]>),
    /// Subscribed, once every node routes to the session; then come these retained messages.
    Routed(SmallVec<[Reason; 4]>, SmallVec<[RetainedRequest; 1]>),
    Unsubscribed(SmallVec<[Reason; 4]>),
}

/// See the module. Publishes have a row of their own: one that waits for another node holds nothing else up.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    published: VecDeque<Answer>,
    others: VecDeque<Answer>,
}

impl Waiting {
    pub fn push(&mut self, answer: Answer) {
        match answer.what {
            What::Published { .. } => self.published.push_back(answer),
            _ => self.others.push_back(answer),
        }
    }

    /// Puts an answer back that must wait for more.
    pub fn push_front(&mut self, answer: Answer) {
        match answer.what {
            What::Published { .. } => self.published.push_front(answer),
            _ => self.others.push_front(answer),
        }
    }

    /// The next answer that `durable` and its ticket allow, and what became of the ticket.
    pub fn pop(&mut self, durable: Lsn) -> Option<(Answer, Option<Kept>)> {
        pop(&mut self.published, durable).or_else(|| pop(&mut self.others, durable))
    }

    /// The next answer that has waited since `before` or longer.
    pub fn pop_late(&mut self, before: Time) -> Option<Answer> {
        let late = |row: &mut VecDeque<Answer>| {
            row.front().filter(|a| a.since <= before)?;
            row.pop_front()
        };
        late(&mut self.published).or_else(|| late(&mut self.others))
    }

    /// Arranges for `waker` to be woken when one of the first answers may have become possible.
    pub fn wait(&self, journal: &dyn Journal, waker: &Waker) {
        for first in [self.published.front(), self.others.front()].into_iter().flatten() {
            let open = first.ticket.as_ref().is_some_and(|t| t.wake_when_kept(waker));
            // While the ticket is open a durable journal is no reason to look again.
            let lsn = first.safe_at();
            if !open || lsn > journal.durable() {
                journal.wake_at(lsn, waker);
            }
        }
    }

    /// Since when the oldest answer waits.
    pub fn since(&self) -> Option<Time> {
        [self.published.front(), self.others.front()].into_iter().flatten().map(|a| a.since).min()
    }

    pub fn is_empty(&self) -> bool {
        self.published.is_empty() && self.others.is_empty()
    }
}

impl Answer {
    /// How far the journal must be durable, as far as that is known: final once the ticket is kept.
    fn safe_at(&self) -> Lsn {
        self.ticket.as_ref().map_or(self.lsn, |t| self.lsn.max(t.lsn()))
    }
}

fn pop(row: &mut VecDeque<Answer>, durable: Lsn) -> Option<(Answer, Option<Kept>)> {
    let first = row.front().filter(|a| a.lsn <= durable)?;
    let kept = match &first.ticket {
        Some(ticket) => Some(ticket.kept()?),
        None => None,
    };
    if first.safe_at() > durable {
        return None;
    }
    let answer = row.pop_front()?;
    if row.is_empty() && row.capacity() > 64 {
        *row = VecDeque::new();
    }
    Some((answer, kept))
}
