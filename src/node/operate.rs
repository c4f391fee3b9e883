//! What an operator asks one node and other nodes have to answer: the commands of `Request::Operate`, and who is asked. Nodes ask
//! each other for the figures of `$SYS/cluster` in the same way.

use super::Node;
use super::inspect::{
    Judged, LISTED_MAX, Losing, Question, SessionDetails, SessionPage, SessionQuery, Unanswered, listed,
};
use super::totals::{Figures, Totals};
use crate::clock::Time;
use crate::cluster::Remote;
use crate::names::shown;
use crate::ports::{BoxFuture, MemberId, Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How often the node that has a session is asked to close its connection, while the session is at neither end of a move.
const KICKS_MAX: usize = 5;

/// Between two of these, milliseconds.
const KICK_AGAIN_MS: u64 = 100;

/// A command of one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// List your sessions.
    Sessions(SessionQuery),
    /// Describe a session of yours.
    Session {
        /// Client identifier.
        client_id: String,
    },
    /// Close the connection of a client of yours.
    Kick {
        /// Client identifier.
        client_id: String,
    },
    /// Say whether a client of yours may do something.
    Judge(Question),
    /// Say which sessions of yours would lose something by other rules.
    Losing {
        /// The rules, as the record of the cluster's directory.
        record: String,
    },
    /// Tell what you count.
    Figures,
    /// You lead: tell what all nodes count.
    Totals,
}

/// What a node says to a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Reply {
    /// Its sessions.
    Sessions(SessionPage),
    /// The session, if it is here.
    Session {
        /// The session.
        session: Option<Box<SessionDetails>>,
    },
    /// What became of a kick.
    Kicked {
        /// Whether the session is here.
        known: bool,
        /// Whether it had a connection, which is told to close.
        closed: bool,
    },
    /// Whether the client may.
    Judged {
        /// Missing if it does not know the client.
        judged: Option<Box<Judged>>,
    },
    /// The sessions that would lose something.
    Losing {
        /// Some of them.
        losing: Vec<Losing>,
        /// How many there are.
        total: usize,
    },
    /// What it counts.
    Figures(Figures),
    /// What all nodes count.
    Totals {
        /// Missing if it does not lead, or has not asked them yet.
        totals: Option<Totals>,
    },
}

/// Where a session lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Located {
    /// Client identifier.
    pub client_id: String,
    /// The process that has it, `node@incarnation`; missing if the asked node is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How often its owner has changed.
    pub epoch: u64,
    /// The session as its node describes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<SessionDetails>>,
    /// Why there is no description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What became of a kick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kicked {
    /// Client identifier.
    pub client_id: String,
    /// The node that has the session; missing if the asked node is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether there was a connection, which is told to close.
    pub closed: bool,
}

/// Why an operator's question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// There is no such session.
    #[error("no session of client \"{}\" is known", shown(.0))]
    NoSession(String),
    /// Nobody can tell now.
    #[error("{0}")]
    Unavailable(String),
}

impl Node {
    /// Carries out a command of another node (JSON).
    pub(super) fn operate(&self, json: &str) -> Response {
        let command = match serde_json::from_str(json) {
            Ok(command) => command,
            Err(e) => return Response::Refused(format!("this node does not know the command: {e}").into()),
        };
        match serde_json::to_string(&self.command_here(command)) {
            Ok(json) => Response::Operated(json.into()),
            Err(e) => Response::Refused(e.to_string().into()),
        }
    }

    fn command_here(&self, command: Command) -> Reply {
        let now = self.remote().map_or(Time(0), |r| r.now());
        match command {
            Command::Sessions(query) => Reply::Sessions(self.sessions_of(&query)),
            Command::Session { client_id } => {
                Reply::Session { session: self.session_of(&client_id, now).map(Box::new) }
            }
            Command::Kick { client_id } => {
                let closed = self.broker.kick(&client_id);
                if closed {
                    tracing::info!(client = %shown(&client_id), "an operator closed the client's connection");
                }
                let known = closed || self.broker.session(&client_id).is_some_and(|h| h.mailbox.present());
                Reply::Kicked { known, closed }
            }
            Command::Judge(question) => Reply::Judged { judged: self.judge_here(&question).map(Box::new) },
            Command::Losing { record } => {
                let (losing, total) = self.losing_by(record.as_bytes());
                Reply::Losing { losing, total }
            }
            Command::Figures => Reply::Figures(self.figures()),
            Command::Totals => Reply::Totals { totals: self.remote().and_then(|r| self.totals.of(r)) },
        }
    }

    /// The sessions of this node, or with `everywhere` of all nodes.
    pub fn list_sessions(&self, query: SessionQuery, everywhere: bool) -> BoxFuture<SessionPage> {
        let mut page = self.sessions_of(&query);
        let remote = self.remote().cloned().filter(|_| everywhere);
        Box::pin(async move {
            let Some(remote) = remote else { return page };
            let asked = remote.others().into_iter().map(|node| {
                let (remote, command) = (remote.clone(), Command::Sessions(query.clone()));
                async move {
                    let answer = self::command(&remote, &node, &command).await;
                    (node, answer)
                }
            });
            for (node, answer) in futures_util::future::join_all(asked).await {
                match answer {
                    Ok(Reply::Sessions(theirs)) => page.add(theirs),
                    Ok(_) => page.miss(&node, "it answered another question"),
                    Err(why) => page.miss(&node, &why),
                }
            }
            page.finish(query.room());
            page
        })
    }

    /// Where a session lives, and how it is `now`.
    pub fn find_session(&self, client_id: &str, now: Time) -> BoxFuture<Result<Located, OperateError>> {
        let client_id = client_id.to_owned();
        if let Some(session) = self.session_of(&client_id, now) {
            let holder = self.remote().map(|r| r.me.to_string());
            let epoch = session.epoch;
            let found = Located { client_id, holder, epoch, session: Some(Box::new(session)), problem: None };
            return Box::pin(std::future::ready(Ok(found)));
        }
        let remote = self.remote().cloned();
        Box::pin(async move {
            let Some(remote) = remote else { return Err(OperateError::NoSession(client_id)) };
            find_session(&remote, client_id).await
        })
    }

    /// Whether a client may do something: by what the node that has it knows of it, else by what is asked.
    pub fn judge(&self, question: Question) -> BoxFuture<Judged> {
        let here = self.judge_here(&question);
        let (known, judged) = (here.is_some(), here.unwrap_or_else(|| self.judge_as(&question, None)));
        let remote = self.remote().cloned().filter(|_| !known);
        Box::pin(async move {
            let Some(remote) = remote else { return judged };
            for node in remote.others() {
                let asked = command(&remote, &node, &Command::Judge(question.clone())).await;
                if let Ok(Reply::Judged { judged: Some(theirs) }) = asked {
                    return *theirs;
                }
            }
            judged
        })
    }

    /// The sessions of this node that would lose something if the cluster's directory had this record of rules, some of them, and how
    /// many there are.
    fn losing_by(&self, record: &[u8]) -> (Vec<Losing>, usize) {
        match self.broker.permissions.proposed(record) {
            Some(next) => self.losing(&*next, |who| next.may_publish_somewhere(who)),
            None => Default::default(),
        }
    }

    /// The sessions of all nodes that would lose something, some of them, how many there are, and which nodes did not answer.
    pub fn losing_anywhere(&self, record: &str) -> BoxFuture<(Vec<Losing>, usize, Vec<Unanswered>)> {
        let (mut losing, mut total) = self.losing_by(record.as_bytes());
        let (remote, command) = (self.remote().cloned(), Command::Losing { record: record.to_owned() });
        Box::pin(async move {
            let mut unanswered = Vec::new();
            let Some(remote) = remote else { return (losing, total, unanswered) };
            let asked = remote.others().into_iter().map(|node| {
                let (remote, command) = (remote.clone(), command.clone());
                async move {
                    let answer = self::command(&remote, &node, &command).await;
                    (node, answer)
                }
            });
            for (node, answer) in futures_util::future::join_all(asked).await {
                let error = match answer {
                    Ok(Reply::Losing { losing: theirs, total: more }) => {
                        losing.extend(theirs);
                        total += more;
                        continue;
                    }
                    Ok(_) => "it answered another question".to_owned(),
                    Err(why) => why,
                };
                unanswered.push(Unanswered { node: node.to_string(), error });
            }
            losing.sort_by(|a, b| a.client.cmp(&b.client));
            losing.truncate(LISTED_MAX);
            (losing, total, unanswered)
        })
    }

    /// Closes the connection of a client, wherever it is. Its session stays.
    pub fn kick_anywhere(&self, client_id: &str) -> BoxFuture<Result<Kicked, OperateError>> {
        let (node, client_id) = (self.me.upgrade(), client_id.to_owned());
        Box::pin(async move {
            let Some(this) = node else { return Err(OperateError::NoSession(client_id)) };
            let kick = Command::Kick { client_id: client_id.clone() };
            // One that moves may be at neither end when these are asked.
            let mut tries = 0;
            loop {
                if let Reply::Kicked { known: true, closed } = this.command_here(kick.clone()) {
                    let node = this.remote().map(|r| r.me.node.to_string());
                    return Ok(Kicked { client_id, node, closed });
                }
                let Some(remote) = this.remote().cloned() else {
                    return Err(OperateError::NoSession(client_id));
                };
                let holder = holder_of(&remote, &client_id).await?;
                if holder != remote.me {
                    let node = &holder.node;
                    match command(&remote, node, &kick).await {
                        Ok(Reply::Kicked { known: true, closed }) => {
                            return Ok(Kicked { client_id, node: Some(node.to_string()), closed });
                        }
                        Ok(_) => {}
                        Err(why) => {
                            return Err(OperateError::Unavailable(format!(
                                "the session of client \"{}\" is on node {node}, which does not answer: {why}",
                                shown(&client_id)
                            )));
                        }
                    }
                }
                tries += 1;
                if tries >= KICKS_MAX {
                    let why = absence(&remote, &holder, None);
                    return Err(OperateError::Unavailable(format!(
                        "client \"{}\": {why}",
                        shown(&client_id)
                    )));
                }
                remote.ports.tasks.sleep(KICK_AGAIN_MS).await;
            }
        })
    }
}

impl SessionPage {
    fn add(&mut self, theirs: SessionPage) {
        self.sessions.extend(theirs.sessions);
        // Beyond the smallest of these some node has sessions that are not here.
        self.next = match (self.next.take(), theirs.next) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn miss(&mut self, node: &str, error: &str) {
        self.unanswered.push(Unanswered { node: node.to_owned(), error: error.to_owned() });
    }

    /// Puts what several nodes have in order and keeps a page of it.
    fn finish(&mut self, room: usize) {
        self.sessions.sort_by(|a, b| (&a.client_id, &a.node).cmp(&(&b.client_id, &b.node)));
        if let Some(next) = &self.next {
            self.sessions.retain(|s| s.client_id <= *next);
        }
        let room = room.min(listed(self.sessions.iter().map(|s| s.client_id.len())));
        if self.sessions.len() > room {
            self.sessions.truncate(room);
            self.next = self.sessions.last().map(|s| s.client_id.clone());
        }
    }
}

/// Has another node carry out a command.
pub(super) async fn command(remote: &Remote, node: &Arc<str>, command: &Command) -> Result<Reply, String> {
    let json = serde_json::to_string(command).map_err(|e| e.to_string())?;
    match remote.ports.peers.request(node, Request::Operate(json.into())).await {
        Ok(Response::Operated(json)) => serde_json::from_str(&json).map_err(|e| e.to_string()),
        Ok(Response::Refused(why)) => Err(why.to_string()),
        Ok(_) => Err("it answered another question".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn find_session(remote: &Remote, client_id: String) -> Result<Located, OperateError> {
    let asks = Command::Session { client_id: client_id.clone() };
    let owner = match remote.ports.coordinator.owner(&client_id).await {
        Ok(Some(owner)) => owner,
        Ok(None) => return Err(OperateError::NoSession(client_id)),
        Err(why) => {
            // Without etcd whoever has it can still tell.
            for node in remote.others() {
                if let Ok(Reply::Session { session: Some(session) }) = command(remote, &node, &asks).await {
                    let (holder, epoch) = (Some(node.to_string()), session.epoch);
                    return Ok(Located { client_id, holder, epoch, session: Some(session), problem: None });
                }
            }
            return Err(OperateError::Unavailable(format!(
                "no node that answers has a session of client \"{}\", and etcd cannot be asked: {}",
                shown(&client_id),
                why.0
            )));
        }
    };
    let (holder, epoch) = (owner.holder.clone(), owner.session.epoch);
    let (session, problem) = match command(remote, &holder.node, &asks).await {
        Ok(Reply::Session { session: Some(session) }) => (Some(session), None),
        answer => (None, Some(absence(remote, &holder, answer.err()))),
    };
    Ok(Located { client_id, holder: Some(holder.to_string()), epoch, session, problem })
}

/// Why the process that has a session by etcd's record did not describe it; `error` = it did not answer.
fn absence(remote: &Remote, holder: &MemberId, error: Option<String>) -> String {
    let node = &holder.node;
    if *holder == remote.me {
        return "the session is just arriving or ending here".to_owned();
    }
    match (remote.members.get(node).map(|m| m.id), error) {
        (None, _) => format!(
            "node {node} is gone: the session waits until it is back, or is given up by berth ctl cluster forget {node}"
        ),
        (Some(other), _) if other != *holder => format!(
            "it was in another journal of node {node} than {other} has: the session waits for that one, or is given up by \
             berth ctl cluster forget {node}"
        ),
        (_, Some(why)) => format!("node {node} does not answer: {why}"),
        (_, None) => format!("node {node} is just taking or leaving it"),
    }
}

/// The process that speaks for a session.
async fn holder_of(remote: &Remote, client_id: &str) -> Result<MemberId, OperateError> {
    match remote.ports.coordinator.owner(client_id).await {
        Ok(Some(owner)) => Ok(owner.holder),
        Ok(None) => Err(OperateError::NoSession(client_id.to_owned())),
        Err(why) => {
            let asks = Command::Session { client_id: client_id.to_owned() };
            for member in remote.members.live().into_iter().filter(|m| m.id.node != remote.me.node) {
                let answer = command(remote, &member.id.node, &asks).await;
                if let Ok(Reply::Session { session: Some(_) }) = answer {
                    return Ok(member.id);
                }
            }
            Err(OperateError::Unavailable(format!("etcd cannot be asked who has the session: {}", why.0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::inspect::{SessionState, SessionSummary};

    fn page(ids: &[&str], next: Option<&str>) -> SessionPage {
        let one = |id: &&str| SessionSummary {
            client_id: (*id).to_owned(),
            node: "n".to_owned(),
            state: SessionState::Dormant,
            persistent: true,
            subscriptions: 0,
            queued: 0,
            in_flight: 0,
        };
        SessionPage {
            sessions: ids.iter().map(one).collect(),
            next: next.map(str::to_owned),
            unanswered: Vec::new(),
        }
    }

    #[test]
    fn pages_of_several_nodes_leave_nothing_out() {
        // The pages, how many sessions fit, what is found, and where it goes on.
        type Case<'a> = (&'a [SessionPage], usize, &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (&[page(&["a", "c"], None), page(&["b"], None)], 5, &["a", "b", "c"], None),
            (&[page(&["a", "c"], None), page(&["b"], None)], 2, &["a", "b"], Some("b")),
            // One node has more after d: e of the other must wait, or what comes between would be skipped.
            (&[page(&["a", "d"], Some("d")), page(&["b", "e"], Some("e"))], 10, &["a", "b", "d"], Some("d")),
            (&[page(&[], None), page(&[], None)], 2, &[], None),
        ];
        for (pages, room, expected, next) in cases {
            let mut all = pages[0].clone();
            pages[1..].iter().for_each(|p| all.add(p.clone()));
            all.finish(*room);
            let ids: Vec<_> = all.sessions.iter().map(|s| &*s.client_id).collect();
            assert_eq!((&*ids, all.next.as_deref()), (*expected, *next));
        }
    }

    #[test]
    fn commands_are_plain_json() {
        let kick = Command::Kick { client_id: "x".to_owned() };
        assert_eq!(serde_json::to_string(&kick).unwrap(), r#"{"do":"kick","client_id":"x"}"#);
        let query = SessionQuery { limit: 2, after: "a".to_owned(), prefix: String::new() };
        let json = serde_json::to_string(&Command::Sessions(query.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), Command::Sessions(query));
        let reply = Reply::Sessions(page(&["a"], Some("a")));
        let json = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&json).unwrap(), reply);
    }
}
