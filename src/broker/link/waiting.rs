//! Answers that wait for the journal, in the order in which they were asked for.

use crate::broker::ports::Lsn;
use crate::clock::Time;
use crate::mqtt::Reason;
use crate::session::Token;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// What is to be told once the journal is durable up to `lsn`.
#[derive(Debug)]
pub(super) struct Answer {
    pub lsn: Lsn,
    pub token: Token,
    pub since: Time,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Published { matched: bool },
    Durable,
    Subscribed(SmallVec<[Reason; 4]>),
    Unsubscribed(SmallVec<[Reason; 4]>),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    answers: VecDeque<Answer>,
}

impl Waiting {
    pub fn push(&mut self, answer: Answer) {
        self.answers.push_back(answer);
    }

    /// The next answer that `durable` allows.
    pub fn pop(&mut self, durable: Lsn) -> Option<Answer> {
        self.answers.front().filter(|a| a.lsn <= durable)?;
        let answer = self.answers.pop_front();
        if self.answers.is_empty() && self.answers.capacity() > 64 {
            self.answers = VecDeque::new();
        }
        answer
    }

    /// The next answer that has waited since `before` or longer.
    pub fn pop_late(&mut self, before: Time) -> Option<Answer> {
        self.answers.front().filter(|a| a.since <= before)?;
        self.answers.pop_front()
    }

    /// What the first answer waits for.
    pub fn lsn(&self) -> Option<Lsn> {
        self.answers.front().map(|a| a.lsn)
    }

    /// Since when the first answer waits.
    pub fn since(&self) -> Option<Time> {
        self.answers.front().map(|a| a.since)
    }

    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }
}
