//! The rules of what clients may do: read at the start, and again whenever their file changes.

use super::Process;
use super::desk::Desk;
use super::directory;
use super::tasks::ticker;
use crate::auth::acl::{Access, AclError, Edit, EditError, Look, Otherwise, Source};
use crate::config::{Acl, AclDefault};
use crate::etcd::directory::DIRECTORY_RECORD_BYTES_MAX;
use crate::names::shown;
use crate::node::inspect::{Judged, Question};
use crate::ports::DirectoryKey;
use crate::server::http::{AclChange, AclEdited, AclOperator, AclPage, Answer, ApiError, ShownRule};
use crate::telemetry::Metrics;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often the file is looked at. A change is taken at the second look that finds it.
const LOOK: Duration = Duration::from_millis(250);

/// Reads the rules that the configuration names.
pub(super) fn open(config: &Acl, in_cluster: bool) -> Result<Access, AclError> {
    let source = match (&config.file, &config.mosquitto_file) {
        (Some(file), _) => Source::Yaml(file.clone()),
        (None, Some(file)) => Source::Mosquitto(file.clone()),
        (None, None) => Source::Nowhere,
    };
    if in_cluster && source == Source::Nowhere {
        return Ok(Access::of_directory(otherwise(config), &config.admin_group));
    }
    let access = Access::open(source, otherwise(config), &config.admin_group)?;
    if let Some(file) = access.source().path() {
        let rules = access.rules();
        let otherwise = if rules.allows_otherwise() { "allowed" } else { "denied" };
        tracing::info!(file = %file.display(), rules = rules.shown().len(), otherwise, "access rules read");
    }
    Ok(access)
}

/// What holds where no rule says anything.
pub(super) fn otherwise(config: &Acl) -> Otherwise {
    match config.default {
        AclDefault::Auto => Otherwise::Auto,
        AclDefault::Allow => Otherwise::Allow,
        AclDefault::Deny => Otherwise::Deny,
    }
}

/// Takes the file as often as it changes.
pub(super) async fn follow(access: Arc<Access>, metrics: Arc<Metrics>) {
    metrics.acl_rules.set(access.rules().shown().len() as u64);
    if access.source().path().is_none() {
        return;
    }
    let mut look = ticker(LOOK);
    loop {
        look.tick().await;
        let (access, metrics) = (access.clone(), metrics.clone());
        // A file may be on a disk that hangs.
        let looked = tokio::task::spawn_blocking(move || told(&access, access.look(), &metrics)).await;
        if looked.is_err() {
            tracing::error!("the look at the access rules failed: it is tried again");
        }
    }
}

/// Tells what a look at the file found.
pub(super) fn told(access: &Access, look: Look, metrics: &Metrics) {
    let file = access.source().path().unwrap_or(Path::new(""));
    match look {
        Look::Same => {}
        Look::Changed(c) => {
            metrics.acl_rules.set(c.rules as u64);
            let otherwise = if access.rules().allows_otherwise() { "allowed" } else { "denied" };
            tracing::info!(
                file = %file.display(),
                rules = c.rules,
                added = c.added,
                removed = c.removed,
                otherwise,
                "access rules changed"
            );
        }
        Look::Kept(error) => {
            metrics.acl_reload_failures.inc();
            tracing::error!(%error, "access rules not changed: those before stay in force");
        }
    }
}

impl AclOperator for Desk {
    fn acl_rules(&self, after: usize, limit: usize) -> Result<AclPage, ApiError> {
        let access = &self.running()?.access;
        let rules = access.rules();
        let all = rules.shown();
        let total = all.len();
        let page: Vec<ShownRule> = all
            .into_iter()
            .filter(|(number, _)| *number > after)
            .take(limit + 1)
            .map(|(number, rule)| ShownRule { number, rule })
            .collect();
        let more = page.len() > limit;
        let page: Vec<ShownRule> = page.into_iter().take(limit).collect();
        let source = match access.source() {
            Source::Nowhere => "",
            Source::Yaml(_) => "acl.file",
            Source::Mosquitto(_) => "acl.mosquitto_file",
            Source::Directory => "etcd",
        };
        let in_directory = *access.source() == Source::Directory;
        let file = access.source().path().map(|p| p.display().to_string());
        Ok(AclPage {
            source,
            file: if in_directory { DirectoryKey::Rules.to_string() } else { file.unwrap_or_default() },
            otherwise_allowed: rules.allows_otherwise(),
            next: page.last().filter(|_| more).map(|r| r.number),
            rules: page,
            total,
        })
    }

    fn acl_judge(&self, question: Question) -> Answer<Judged> {
        let asked = self.running().and_then(|process| {
            question
                .check()
                .map_err(|e| ApiError::Invalid(format!("\"{}\": {e}", shown(&question.topic))))?;
            if question.qos > 2 {
                return Err(ApiError::Invalid(format!("qos={}: it must be 0, 1 or 2", question.qos)));
            }
            Ok(process.node.judge(question))
        });
        Box::pin(async move { Ok(asked?.await) })
    }

    fn acl_change(&self, change: AclChange) -> Answer<AclEdited> {
        let process = self.running().cloned();
        Box::pin(async move {
            let process = process?;
            if *process.access.source() == Source::Directory {
                return changed_in_directory(&process, change).await;
            }
            let changed = tokio::task::spawn_blocking(move || changed(&process, change)).await;
            changed.map_err(|e| ApiError::Unavailable(e.to_string()))?
        })
    }
}

/// Changes the file of rules, unless that has to be confirmed.
fn changed(process: &Process, change: AclChange) -> Result<AclEdited, ApiError> {
    if process.member.is_some() {
        let why = "each node of a cluster has a file of its own: change acl.file on every node, each takes it as it is saved";
        return Err(ApiError::Conflict(why.to_owned()));
    }
    let (edit, yes) = edit_of(change);
    let access = &process.access;
    let planned = access.plan(&edit)?;
    let next = planned.rules();
    let rules = next.shown().len();
    if planned.turns_to_deny() && !yes {
        let (losing, losing_total) = process.node.losing(next, |who| next.may_publish_somewhere(who));
        return Ok(AclEdited { rules, losing, losing_total, ..AclEdited::default() });
    }
    let look = access.carry_out(&planned)?;
    let kept = matches!(look, Look::Kept(_));
    told(access, look, &process.metrics);
    if kept {
        return Err(ApiError::Unavailable(
            "the file was changed and cannot be read again: see the log".to_owned(),
        ));
    }
    tracing::info!(?edit, "an operator changed the access rules");
    Ok(AclEdited { changed: true, rules, ..AclEdited::default() })
}

fn edit_of(change: AclChange) -> (Edit, bool) {
    match change {
        AclChange::Add { rule, at, yes } => (Edit::Add { rule: rule.to_string(), at }, yes),
        AclChange::Remove { number } => (Edit::Remove { number }, true),
        AclChange::Move { number, to } => (Edit::Move { number, to }, true),
    }
}

/// Changes the rules of the cluster, unless that has to be confirmed.
async fn changed_in_directory(process: &Process, change: AclChange) -> Result<AclEdited, ApiError> {
    let (member, directory) = directory::of(process)?;
    let (edit, yes) = edit_of(change);
    let access = &process.access;
    // A key that is gone does not mean that there were no rules: those that hold are what is changed.
    let plan = |stored: Option<&[u8]>| match (stored, directory.rules()) {
        (None, Some(rules)) => access.plan_stored(Some(&rules), &edit),
        (stored, _) => access.plan_stored(stored, &edit),
    };
    if !yes {
        let stored = directory::read(member, &DirectoryKey::Rules).await?;
        let planned = plan(stored.value.as_deref())?;
        if planned.turns_to_deny() {
            let record = String::from_utf8_lossy(planned.value()).into_owned();
            let rules = planned.rules().shown().len();
            let (losing, losing_total, unanswered) = process.node.losing_anywhere(&record).await;
            return Ok(AclEdited { changed: false, rules, losing, losing_total, unanswered });
        }
    }
    let rules = directory::change(member, &DirectoryKey::Rules, |stored| {
        let planned = plan(stored)?;
        if planned.turns_to_deny() && !yes {
            let why = "somebody else has just removed the last rule: try again";
            return Err(ApiError::Conflict(why.to_owned()));
        }
        if planned.value().len() > DIRECTORY_RECORD_BYTES_MAX {
            let why = format!("the rules would have more than {DIRECTORY_RECORD_BYTES_MAX} bytes in etcd");
            return Err(ApiError::Conflict(why));
        }
        Ok((Some(planned.value().to_vec()), planned.rules().shown().len()))
    })
    .await?;
    tracing::info!(?edit, "an operator changed the access rules of the cluster");
    Ok(AclEdited { changed: true, rules, ..AclEdited::default() })
}

impl From<EditError> for ApiError {
    fn from(error: EditError) -> ApiError {
        match &error {
            EditError::NoSuchRule { .. } => ApiError::Unknown(error.to_string()),
            EditError::Rule(_) => ApiError::Invalid(error.to_string()),
            EditError::Io { .. } => ApiError::Unavailable(error.to_string()),
            EditError::NoFile
            | EditError::Mosquitto(_)
            | EditError::File { .. }
            | EditError::Record(_)
            | EditError::Layout(_)
            | EditError::Raced(_) => ApiError::Conflict(error.to_string()),
        }
    }
}
