//! Answers that wait for the journal and for other nodes, in the order in which they were asked for.

use crate::broker::promise::{Kept, Promise};
use crate::broker::subscribe::RetainedRequest;
use crate::clock::Time;
use crate::mqtt::Reason;
use crate::ports::{Journal, Lsn};
use crate::session::Token;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

/// What is to be told once the journal is durable up to `lsn` and the promise, if any, is kept.
#[derive(Debug)]
pub(super) struct Answer {
    pub lsn: Lsn,
    pub promise: Option<Arc<Promise>>,
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

/// The answers that a client waits for. Publishes have a row of their own: one that waits for another node holds nothing else up. So have subscriptions, which may
/// wait for a node that has died until its lease is over; what is ready beside them comes in the order in which it was asked for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    published: VecDeque<Answer>,
    subscribed: VecDeque<(u64, Answer)>,
    others: VecDeque<(u64, Answer)>,
    /// Orders the last two rows.
    next: u64,
}

impl Waiting {
    pub fn push(&mut self, answer: Answer) {
        self.next += 1;
        let next = self.next;
        match answer.what {
            What::Published { .. } => self.published.push_back(answer),
            What::Durable => self.others.push_back((next, answer)),
            What::Subscribed(_) | What::Routed(..) | What::Unsubscribed(_) => {
                self.subscribed.push_back((next, answer));
            }
        }
    }

    /// Puts an answer back that must wait for more.
    pub fn push_front(&mut self, answer: Answer) {
        match answer.what {
            What::Published { .. } => self.published.push_front(answer),
            What::Durable => self.others.push_front((0, answer)),
            What::Subscribed(_) | What::Routed(..) | What::Unsubscribed(_) => {
                self.subscribed.push_front((0, answer));
            }
        }
    }

    /// The next answer that `durable` and its promise allow, and what became of the promise.
    pub fn pop(&mut self, durable: Lsn) -> Option<(Answer, Option<Kept>)> {
        if let Some(kept) = self.published.front().and_then(|a| a.ready(durable)) {
            return Some((take(&mut self.published)?, kept));
        }
        let ready = |row: &VecDeque<(u64, Answer)>| {
            let (at, answer) = row.front()?;
            Some((*at, answer.ready(durable)?))
        };
        let (row, kept) = match (ready(&self.subscribed), ready(&self.others)) {
            (Some((at, kept)), Some((other, _))) if at < other => (&mut self.subscribed, kept),
            (_, Some((_, kept))) => (&mut self.others, kept),
            (Some((_, kept)), None) => (&mut self.subscribed, kept),
            (None, None) => return None,
        };
        let (_, answer) = take(row)?;
        Some((answer, kept))
    }

    /// The next answer that has waited since `before` or longer.
    pub fn pop_late(&mut self, before: Time) -> Option<Answer> {
        if self.published.front().is_some_and(|a| a.since <= before) {
            return self.published.pop_front();
        }
        let late = |row: &mut VecDeque<(u64, Answer)>| {
            row.front().filter(|(_, a)| a.since <= before)?;
            row.pop_front().map(|(_, answer)| answer)
        };
        late(&mut self.others).or_else(|| late(&mut self.subscribed))
    }

    /// The first of each row.
    fn firsts(&self) -> impl Iterator<Item = &Answer> {
        let others = [self.others.front(), self.subscribed.front()].into_iter().flatten();
        self.published.front().into_iter().chain(others.map(|(_, answer)| answer))
    }

    /// Arranges for `waker` to be woken when one of the first answers may have become possible.
    pub fn wait(&self, journal: &dyn Journal, waker: &Waker) {
        for first in self.firsts() {
            let open = first.promise.as_ref().is_some_and(|t| t.wake_when_kept(waker));
            // While the promise is open a durable journal is no reason to look again.
            let lsn = first.safe_at();
            if !open || lsn > journal.durable() {
                journal.wake_at(lsn, waker);
            }
        }
    }

    /// Since when the oldest answer waits.
    pub fn since(&self) -> Option<Time> {
        self.firsts().map(|a| a.since).min()
    }

    pub fn is_empty(&self) -> bool {
        self.firsts().next().is_none()
    }
}

impl Answer {
    /// How far the journal must be durable, as far as that is known: final once the promise is kept.
    fn safe_at(&self) -> Lsn {
        self.promise.as_ref().map_or(self.lsn, |t| self.lsn.max(t.lsn()))
    }

    /// What became of the promise, if any, once the answer may be told.
    fn ready(&self, durable: Lsn) -> Option<Option<Kept>> {
        if self.lsn > durable {
            return None;
        }
        let kept = match &self.promise {
            Some(promise) => Some(promise.kept()?),
            None => None,
        };
        (self.safe_at() <= durable).then_some(kept)
    }
}

/// Takes the first of a row, whose memory goes once many have waited there.
fn take<T>(row: &mut VecDeque<T>) -> Option<T> {
    let first = row.pop_front();
    if row.is_empty() && row.capacity() > 64 {
        *row = VecDeque::new();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lsn: Lsn, promise: Option<&Arc<Promise>>, what: What) -> Answer {
        Answer { lsn, promise: promise.cloned(), token: Token::default(), since: Time(lsn), what }
    }

    #[test]
    fn what_waits_for_the_journal_does_not_wait_for_a_suback() {
        let mut waiting = Waiting::default();
        let routed = Promise::new();
        waiting.push(answer(1, Some(&routed), What::Routed(SmallVec::new(), SmallVec::new())));
        waiting.push(answer(2, None, What::Durable));
        waiting.push(answer(3, None, What::Unsubscribed(SmallVec::new())));
        waiting.push(answer(4, None, What::Durable));
        let mut next = |durable| waiting.pop(durable).map(|(a, _)| a.lsn);
        assert_eq!((next(1), next(3), next(3)), (None, Some(2), None));
        routed.keep(Kept::Done { matched: false });
        assert_eq!(
            [next(4), next(4), next(4), next(4)],
            [Some(1), Some(3), Some(4), None],
            "as they were asked for"
        );
        assert!(waiting.is_empty());
    }
}
