//! What other nodes say and ask.

use super::Node;
use crate::ports::{
    Answer, Answers, BoxFuture, Frame, Inbox, MemberId, MessageId, Report, Request, Response, SaidClock,
};
use std::sync::Arc;

impl Inbox for Node {
    fn frames(&self, from: &MemberId, frames: Vec<Frame>, answers: &Arc<dyn Answers>) -> bool {
        self.cluster.as_ref().is_some_and(|c| c.frames(from, frames, answers))
    }

    fn relieved(&self) -> BoxFuture<()> {
        match &self.cluster {
            Some(cluster) => cluster.relieved(),
            None => Box::pin(std::future::ready(())),
        }
    }

    fn report(&self, from: &MemberId, report: Report) {
        if let Some(cluster) = &self.cluster {
            cluster.report(from, report);
        }
    }

    fn answered(&self, node: &Arc<str>, answers: Vec<(MessageId, Answer)>) {
        if let Some(cluster) = &self.cluster {
            cluster.answered(node, answers);
        }
    }

    fn link(&self, node: &Arc<str>, process: Option<MemberId>) {
        if let Some(cluster) = &self.cluster {
            cluster.link(node, process);
        }
    }

    fn request(&self, from: MemberId, request: Request) -> BoxFuture<Response> {
        match self.cluster.as_ref().map(|c| c.request(from, request)) {
            Some(Ok(response)) => response,
            Some(Err(command)) => Box::pin(std::future::ready(self.operate(&command))),
            None => Box::pin(std::future::ready(Response::NotHere)),
        }
    }

    fn superseded(&self, process: &MemberId) -> bool {
        self.cluster.as_ref().is_some_and(|c| c.superseded(process))
    }

    fn clock(&self) -> Option<SaidClock> {
        self.cluster.as_ref()?.clock()
    }
}
