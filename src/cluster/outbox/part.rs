//! What one node has to do with a publish: what it was asked, what it is to be asked next, and whether the publish has to be matched
//! again for the sake of sessions that it had. Pure.

use super::asked::Asked;
use super::watermarks::{Matched, Watermarks};
use crate::ports::Revision;
use std::sync::Arc;

/// What a node is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The revision at which the publish was matched for it.
    pub at: Revision,
    pub asked: Asked,
}

/// Why a publish has to be matched again, for all that it is for, before it is settled at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Anew {
    /// The node was lost, or could not take it: any match says who is to be asked now.
    Any,
    /// A session of the node moved at this revision: an older index does not say where it went.
    From(Revision),
}

/// What one node has to do with a publish. There is a part as long as a question is open or the publish has to be matched again.
#[derive(Debug)]
pub(super) struct Part {
    pub node: Arc<str>,
    /// What the node was asked and has not answered.
    pub question: Option<Question>,
    /// What the node is to be asked once it has answered.
    pub next: Option<Question>,
    anew: Option<Anew>,
    /// The revision at which what is on its way to the node was matched first, or waits to be: that orders it.
    pub since: Revision,
    /// The revision at which the publish was matched the last time, with or without a new frame to this node.
    pub past: Revision,
}

impl Part {
    /// The part of a node that is asked `question` now.
    pub fn new(node: Arc<str>, question: Question) -> Part {
        let at = question.at;
        Part { node, question: Some(question), next: None, anew: None, since: at, past: at }
    }

    /// Whether the node has not answered.
    pub fn is_asked(&self) -> bool {
        self.question.is_some()
    }

    /// Whether the node has been asked to serve a shared subscription, or is once it has answered what it was asked before. It may have
    /// been asked for its own subscribers only.
    pub fn is_asked_to_serve(&self, group: &str) -> bool {
        let asks = [self.question.as_ref(), self.next.as_ref()];
        self.is_asked() && asks.into_iter().flatten().any(|q| q.asked.has(group))
    }

    /// Whether nothing is open at the node any more.
    pub fn is_over(&self) -> bool {
        self.question.is_none() && self.next.is_none() && self.anew.is_none()
    }

    /// The two revisions with which the part counts for the sake of order.
    pub fn matched(&self) -> Matched {
        (self.since, self.past)
    }

    /// Makes the part count with these revisions from now on.
    pub fn count(&mut self, (since, past): Matched, watermarks: &mut Watermarks) {
        watermarks.replace(&self.node, self.matched(), (since, past));
        (self.since, self.past) = (since, past);
    }

    /// Asks the node, now or once it has answered; what is to be sent now, if anything. `whole`: that came of a match of all that the
    /// publish is for. Otherwise a node whose own sessions are still to be looked for is not asked: the match that looks for them asks it.
    pub fn ask(&mut self, question: Question, whole: bool) -> Option<Asked> {
        if self.question.is_none() {
            return whole.then(|| self.question.insert(question).asked.clone());
        }
        match &mut self.next {
            None => self.next = Some(question),
            Some(next) => {
                // What was matched on an older index and not looked for again stays as old as it is.
                if whole {
                    next.at = question.at;
                }
                next.asked.add(question.asked);
            }
        }
        None
    }

    /// Forgets the questions: nobody will answer.
    pub fn drop_questions(&mut self) {
        (self.question, self.next) = (None, None);
    }

    /// Forgets the questions, and has the publish matched again: nobody will answer, or the node could not do it. Who is to be asked now
    /// the next match of all says.
    pub fn lose(&mut self) {
        self.drop_questions();
        self.anew = self.anew.max(Some(Anew::Any));
    }

    /// Lets the publish be matched again at revision `at`: a session moved then, and where it went has to be looked for.
    pub fn look_from(&mut self, at: Revision) {
        self.anew = self.anew.max(Some(Anew::From(at)));
    }

    /// The revision from which the publish has to be matched again because a session moved.
    pub fn due_at(&self) -> Option<Revision> {
        match self.anew? {
            Anew::Any => None,
            Anew::From(at) => Some(at),
        }
    }

    /// Whether the part waits for another match.
    pub fn is_to_be_looked_for(&self) -> bool {
        self.anew.is_some()
    }

    /// Takes note that all that the publish is for was looked for at `at`: whoever had left the node by then was found elsewhere, though
    /// the node may not have answered. Without an open question nothing older is on its way there.
    pub fn look_past(&mut self, at: Revision, watermarks: &mut Watermarks) {
        let since = if self.is_asked() { self.since } else { at };
        self.count((since, at), watermarks);
    }

    /// Takes note that all that the publish is for was looked for at `at`, and that who was found has been asked.
    pub fn looked_for(&mut self, at: Revision) {
        self.anew = self.anew.filter(|anew| *anew > Anew::From(at));
    }

    pub fn in_words(&self) -> String {
        let node = &self.node;
        let mut said = Vec::new();
        if let Some(Question { at, asked }) = &self.question {
            let groups: Vec<&str> = asked.groups.iter().map(|g| &*g.name).collect();
            said.push(format!("asked at revision {at} (direct {}, {groups:?})", asked.direct));
        }
        said.extend(self.next.as_ref().map(|next| format!("more to be asked as of {}", next.at)));
        match self.anew {
            Some(Anew::Any) => said.push("to be asked anew".to_owned()),
            Some(Anew::From(at)) => said.push(format!("to be matched again at revision {at}")),
            None => {}
        }
        format!("for node {node}, {}", said.join(", "))
    }
}
