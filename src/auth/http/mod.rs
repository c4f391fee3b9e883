//! An HTTP hook: a server of the operator's that says who clients are. Whatever goes wrong with it, nobody is let in by it.

mod breaker;
mod cache;
mod connection;
mod queue;

use super::method::{Checked, Method, Prepared, Refusal, Request};
use super::password::users::{is_foreign_name, is_name};
use crate::clock::{self, Time};
use crate::config::AuthHttp;
use crate::ports::{AccessClaims, Account, AccountMark};
use crate::readings::Readings;
use crate::secret_file::{FileError, Privacy, WatchedFile};
use crate::telemetry::metrics::AuthDecision;
use crate::topic::Filter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use breaker::Breaker;
use bytes::Bytes;
use cache::Cache;
use connection::Connections;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use queue::Queue;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub use connection::ConnectError;

/// Marks accounts of this method.
pub(super) const SOURCE: u32 = 4;

/// What the hook is asked.
#[derive(Serialize)]
struct Question<'a> {
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    /// In place of a password that is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_base64: Option<&'a str>,
    peer: String,
    listener: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_subject: Option<&'a str>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Allow,
    Deny,
    Ignore,
}

/// What the hook answers.
#[derive(Deserialize)]
struct Answer {
    result: Said,
    user: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    acl: Option<Acl>,
    /// Seconds since the epoch.
    expires_at: Option<u64>,
}

#[derive(Deserialize)]
struct Acl {
    publish: Option<Vec<String>>,
    subscribe: Option<Vec<String>>,
}

/// Knows whomever the hook knows.
pub struct Hook {
    connections: Connections,
    timeout: Duration,
    token: Option<(WatchedFile, RwLock<Option<Zeroizing<String>>>)>,
    readings: Readings,
    cache: Cache,
    breaker: Breaker,
    turns: Semaphore,
    waiting: Queue,
}

impl Hook {
    /// Prepares to ask the hook; nothing is asked yet.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn open(http: &AuthHttp) -> Result<Hook, super::OpenError> {
        let token = http
            .token_file
            .as_ref()
            .map(|path| (WatchedFile::new("auth.http.token_file", path, Privacy::Secret), RwLock::new(None)));
        let ca = match &http.ca_file {
            Some(path) => {
                let file = WatchedFile::new("auth.http.ca_file", path, Privacy::Public);
                Some((file.read()?, file))
            }
            None => None,
        };
        let connections = Connections::new(
            http.url.as_deref().unwrap_or_default(),
            ca.as_ref().map(|(pem, _)| pem.as_slice()),
        )
        .map_err(|e| match &ca {
            Some((_, file)) => super::OpenError::from(file.content(e.to_string())),
            None => super::OpenError::Hook(e),
        })?;
        let hook = Hook {
            connections,
            timeout: http.timeout,
            token,
            readings: Readings::default(),
            cache: Cache::new(http.cache, http.cache_ttl).ok_or(super::OpenError::Random)?,
            breaker: Breaker::default(),
            turns: Semaphore::new(http.parallel),
            waiting: Queue::default(),
        };
        if let Some((file, token)) = &hook.token {
            *token.write() = Some(Hook::read_token(file, true)?);
        }
        Ok(hook)
    }

    fn read_token(file: &WatchedFile, note: bool) -> Result<Zeroizing<String>, FileError> {
        let bytes = if note { file.read()? } else { file.peek()? };
        let text = std::str::from_utf8(&bytes).ok().map(str::trim);
        let visible = |t: &&str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        let text = text
            .filter(visible)
            .ok_or_else(|| file.content("it is no token: one line of visible characters"))?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    async fn judge(&self, request: &Request) -> Checked {
        let now = clock::now();
        if let Some(known) = self.cache.get(request, now) {
            return known;
        }
        match self.ask(request).await {
            Ok(checked) => {
                self.cache.put(request, &checked, clock::now());
                checked
            }
            Err(refusal) => Checked::Refuse(refusal),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Checked, Refusal> {
        let unavailable = |why: String| Refusal::new(AuthDecision::Unavailable, why);
        let busy = || Refusal::new(AuthDecision::Busy, "too many clients wait for the HTTP hook");
        let _waiting = self.waiting.enter(request.door.peer.ip()).ok_or_else(busy)?;
        if !self.breaker.lets_through(clock::now()) {
            return Err(unavailable(
                "the HTTP hook has failed too often and is left alone for a moment".to_owned(),
            ));
        }
        // Who waits for a turn says nothing about the hook: many clients are no reason to leave it alone.
        let turn = tokio::time::timeout(self.timeout, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(busy()) };
        let body = question(request);
        let asked = async {
            let token = self.token.as_ref().and_then(|(_, token)| token.read().clone());
            self.connections.post(body, token.as_deref().map(String::as_str)).await
        };
        let answer = match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok((200, body))) => understood(&body, request),
            Ok(Ok((status, _))) => Err(format!("the HTTP hook answered {status}")),
            Ok(Err(why)) => Err(format!("the HTTP hook cannot be asked: {why}")),
            Err(_) => {
                Err(format!("the HTTP hook did not answer within {:?} (auth.http.timeout)", self.timeout))
            }
        };
        self.breaker.outcome(answer.is_ok(), clock::now());
        answer.map_err(unavailable)
    }
}

fn question(request: &Request) -> Bytes {
    let password = request.password.as_ref().map(|p| std::str::from_utf8(p).map_err(|_| p));
    let encoded = password.and_then(Result::err).map(|p| Zeroizing::new(STANDARD.encode(&**p)));
    let question = Question {
        client_id: &request.client_id,
        username: request.username.as_ref().map(|name| name.as_str()),
        password: password.and_then(Result::ok),
        password_base64: encoded.as_ref().map(|text| text.as_str()),
        peer: request.door.peer.to_string(),
        listener: &request.door.listener,
        protocol: request.version.name(),
        certificate_subject: request.door.certificate.as_ref().map(|c| c.subject.as_str()),
    };
    // A struct of texts has no way to fail.
    serde_json::to_vec(&question).unwrap_or_default().into()
}

fn understood(body: &[u8], request: &Request) -> Result<Checked, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|e| {
        format!("the HTTP hook's answer is not understood: line {}, column {}", e.line(), e.column())
    })?;
    match answer.result {
        Said::Ignore => return Ok(Checked::NotMine),
        Said::Deny => return Ok(Checked::Refuse(Refusal::new(AuthDecision::Hook, "the HTTP hook says no"))),
        Said::Allow => {}
    }
    let user = answer.user.as_deref().or(request.username.as_ref().map(|name| name.as_str()));
    let user = user
        .filter(|u| is_foreign_name(u))
        .ok_or("the HTTP hook allows a client without the name of its user")?;
    if !answer.groups.iter().all(|g| is_name(g)) {
        return Err("the HTTP hook's answer has a group with a name that is none".to_owned());
    }
    let filters = answer.acl.iter().flat_map(|acl| [&acl.publish, &acl.subscribe]);
    if filters.flatten().flatten().any(|filter| Filter::parse(filter).is_err()) {
        return Err("the HTTP hook's answer has an acl with an entry that is no topic filter".to_owned());
    }
    let list = |texts: Option<Vec<String>>| texts.map(|t| t.into_iter().map(Arc::from).collect());
    Ok(Checked::Accept(Account {
        user: Some(user.into()),
        groups: answer.groups.into_iter().map(Arc::from).collect(),
        claims: answer
            .acl
            .map(|acl| Box::new(AccessClaims { publish: list(acl.publish), subscribe: list(acl.subscribe) })),
        expires_at: answer.expires_at.map(|s| Time(s.saturating_mul(1000))),
        mark: AccountMark { source: SOURCE, version: 0 },
    }))
}

impl Method for Hook {
    fn name(&self) -> &'static str {
        "http"
    }

    fn check<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Checked> {
        Box::pin(self.judge(request))
    }

    fn files(&self) -> Vec<&WatchedFile> {
        self.token.iter().map(|(file, _)| file).collect()
    }

    fn prepare(self: Arc<Self>, note: bool) -> Option<Result<Prepared, Vec<FileError>>> {
        let (file, _) = self.token.as_ref()?;
        let read = || Hook::read_token(file, note).map_err(|error| vec![error]);
        Some(self.readings.read(read).map(|text| -> Prepared {
            Box::new(move || {
                if let Some((_, token)) = &self.token {
                    self.readings.put(text, |text| *token.write() = Some(text));
                }
                "the token of the HTTP hook".to_owned()
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_reload_does_not_undo_a_token_that_was_read_after_it_had_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("old");
        let pairs =
            [("auth.http.url", "http://127.0.0.1:1/"), ("auth.http.token_file", path.to_str().unwrap())];
        let hook = Arc::new(Hook::open(&Config::from_pairs(&pairs).unwrap().accounts.http).unwrap());
        let token = || hook.token.as_ref().unwrap().1.read().as_ref().unwrap().to_string();
        let prepared = hook.clone().prepare(false).unwrap().unwrap();
        write("new");
        hook.clone().prepare(true).unwrap().unwrap()();
        prepared();
        assert_eq!(token(), "new");
        write("newest");
        hook.clone().prepare(false).unwrap().unwrap()();
        assert_eq!(token(), "newest");
    }
}
