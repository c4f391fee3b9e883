//! The audit log: a line for each change that somebody ordered, or tried to, at admin HTTP. In the log, and as JSON lines in a file if
//! `audit.file` names one.

use super::tokens::Role;
use crate::clock;
use crate::names::shown;
use axum::http::StatusCode;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The name of the token; `local` without tokens.
    pub name: Arc<str>,
    /// What the caller may do; `None` = nothing.
    pub role: Option<Role>,
    /// Where the caller is.
    pub from: SocketAddr,
}

/// What is to be changed.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// What was to be done, noun and verb, such as `session kick`.
    pub action: &'static str,
    /// To what: a client identifier, a node.
    pub subject: String,
}

/// A line of the file.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Milliseconds since 1970.
    at: u64,
    who: &'a str,
    role: &'a str,
    from: SocketAddr,
    action: &'a str,
    subject: &'a str,
    /// HTTP status code of the answer.
    status: u16,
    outcome: &'static str,
}

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("audit.file: cannot write {path:?}: {source}")]
pub struct AuditError {
    /// The file.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// Where changes are written down.
#[derive(Debug, Default)]
pub struct Audit {
    file: Option<PathBuf>,
}

impl Audit {
    /// Writes to `file`, if there is one, from now on. The file is opened anew for each line, so that it may be moved away at any time.
    ///
    /// # Errors
    /// If the file cannot be opened for writing.
    pub fn open(file: Option<PathBuf>) -> Result<Audit, AuditError> {
        if let Some(path) = &file {
            append(path, b"").map_err(|source| AuditError { path: path.clone(), source })?;
        }
        Ok(Audit { file })
    }

    /// Writes an order down, and what came of it.
    pub(super) async fn note(&self, caller: &Caller, order: &Order, status: StatusCode) {
        let outcome = match status.as_u16() {
            200..300 => "done",
            401 | 403 => "refused",
            _ => "failed",
        };
        let (who, role) = (&*caller.name, caller.role.map_or("none", Role::name));
        let (action, subject) = (order.action, &*order.subject);
        tracing::info!(
            target: "berth::audit", %who, role, from = %caller.from, action, subject = %shown(subject), status = status.as_u16(),
            outcome, "an operator's order"
        );
        let Some(path) = &self.file else { return };
        let at = clock::now().as_millis();
        let line =
            Line { at, who, role, from: caller.from, action, subject, status: status.as_u16(), outcome };
        let written = match serde_json::to_vec(&line) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                let path = path.clone();
                tokio::task::spawn_blocking(move || append(&path, &bytes))
                    .await
                    .map_err(io::Error::other)
                    .flatten()
            }
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = written {
            tracing::error!(?path, %error, action, subject = %shown(subject), "an operator's order is not in audit.file");
        }
    }
}

fn append(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.write_all(bytes)
}
