//! Users with passwords, as an operator sees and changes them: in the cluster's etcd, or in the file of a single node.

use super::Process;
use super::desk::Desk;
use super::directory;
use crate::auth::directory::{read_user, user_of, write_user};
use crate::auth::passwd;
use crate::auth::password::Passwords;
use crate::auth::password::users::{self, User};
use crate::names::shown;
use crate::ports::DirectoryKey;
use crate::server::http::{Answer, ApiError, ShownUser, UserChanged, UserOperator, UserOrder, UserPage};
use std::path::Path;
use std::sync::Arc;

fn shown_user(name: &str, user: &User) -> ShownUser {
    ShownUser {
        name: name.to_owned(),
        groups: user.groups.iter().map(|group| group.to_string()).collect(),
        scram: user.scram.is_some(),
        hash: user.hash.kind(),
    }
}

/// Who knows the users.
fn passwords(process: &Process) -> Result<&Arc<Passwords>, ApiError> {
    process.accounts.passwords().ok_or_else(|| {
        let why = "there are no users with passwords here: set auth.password.file, or auth.password.store to etcd in a cluster";
        ApiError::Conflict(why.to_owned())
    })
}

/// What becomes of a user: given as it is (`None` = there is none, `Some(None)` = it cannot be read), it goes if that is `None`.
type Change = Box<dyn Fn(Option<Option<User>>) -> Result<Option<User>, ApiError> + Send + Sync>;

/// Changes a user, and ends its connections to this node that it concerns.
async fn changed(process: Arc<Process>, name: String, change: Change) -> Result<UserChanged, ApiError> {
    if !users::is_name(&name) {
        return Err(ApiError::Invalid(format!(
            "\"{}\" cannot be a user's name: it must be 1 to {} bytes without a colon, a comma, control characters or spaces at its ends",
            shown(&name),
            users::USER_NAME_MAX
        )));
    }
    match passwords(&process)?.file() {
        Some(file) => {
            let (file, process, name) = (file.to_owned(), process.clone(), name.clone());
            let done = tokio::task::spawn_blocking(move || changed_in_file(&process, &file, &name, change));
            done.await.map_err(|e| ApiError::Unavailable(e.to_string()))??;
        }
        None => {
            let (member, _) = directory::of(&process)?;
            let key = DirectoryKey::User(name.as_str().into());
            directory::change(member, &key, |stored| {
                let old = stored.map(|value| read_user(&name, value).ok());
                Ok((change(old)?.map(|user| write_user(&user)), ()))
            })
            .await?;
        }
    }
    let closed = process.node.review_accounts();
    tracing::info!(user = %shown(&name), closed, "an operator changed a user");
    Ok(UserChanged { name, closed })
}

fn changed_in_file(process: &Process, file: &Path, name: &str, change: Change) -> Result<(), ApiError> {
    if process.member.is_some() {
        let why = "each node of a cluster has a file of its own (auth.password.file): change it with berth passwd on every node, or keep \
                   the users in etcd (auth.password.store)";
        return Err(ApiError::Conflict(why.to_owned()));
    }
    passwd::edit(file, name, change)?;
    let reloaded = process.accounts.reload(true);
    match reloaded.failed.first() {
        None => Ok(()),
        Some(why) => {
            Err(ApiError::Unavailable(format!("the file was changed and cannot be read again: {why}")))
        }
    }
}

impl From<String> for ApiError {
    fn from(why: String) -> ApiError {
        ApiError::Unavailable(why)
    }
}

impl UserOperator for Desk {
    fn users(&self, after: &str, limit: usize) -> Answer<UserPage> {
        let (process, after) = (self.running().cloned(), after.to_owned());
        Box::pin(async move {
            let process = process?;
            let users = passwords(&process)?.clone();
            // A million names are put in order.
            let page = tokio::task::spawn_blocking(move || {
                let (found, total) = users.page(&after, limit + 1);
                let more = found.len() > limit;
                let shown: Vec<ShownUser> =
                    found.iter().take(limit).map(|(name, user)| shown_user(name, user)).collect();
                UserPage {
                    source: if users.file().is_some() { "auth.password.file" } else { "etcd" },
                    file: users.file().map(|file| file.display().to_string()).unwrap_or_default(),
                    next: shown.last().filter(|_| more).map(|user| user.name.clone()),
                    users: shown,
                    total,
                }
            });
            page.await.map_err(|e| ApiError::Unavailable(e.to_string()))
        })
    }

    fn user(&self, name: &str) -> Answer<ShownUser> {
        let found = self.running().and_then(|process| {
            let found = passwords(process)?.find(name).map_err(|e| ApiError::Unavailable(e.why))?;
            found.map(|(name, user)| shown_user(&name, &user)).ok_or_else(|| ApiError::no_user(name))
        });
        Box::pin(std::future::ready(found))
    }

    fn add_user(&self, order: UserOrder) -> Answer<UserChanged> {
        let process = self.running().cloned();
        Box::pin(async move {
            let groups = order.groups.unwrap_or_default();
            let user = user_of(&order.hash, order.scram.as_deref(), &groups).map_err(ApiError::Invalid)?;
            let name = order.name.clone();
            let add = move |old: Option<Option<User>>| match old {
                None => Ok(Some(user.clone())),
                Some(_) => Err(ApiError::Conflict(format!("there is a user \"{}\" already", shown(&name)))),
            };
            changed(process?, order.name, Box::new(add)).await
        })
    }

    fn change_user(&self, order: UserOrder) -> Answer<UserChanged> {
        let process = self.running().cloned();
        Box::pin(async move {
            let groups = order.groups.as_deref();
            let user = user_of(&order.hash, order.scram.as_deref(), groups.unwrap_or_default());
            let (user, keeps) = (user.map_err(ApiError::Invalid)?, groups.is_none());
            let name = order.name.clone();
            let change = move |old: Option<Option<User>>| {
                let old = old.ok_or_else(|| ApiError::no_user(&name))?;
                let groups = old.filter(|_| keeps).map_or_else(|| user.groups.clone(), |old| old.groups);
                Ok(Some(User { groups, ..user.clone() }))
            };
            changed(process?, order.name, Box::new(change)).await
        })
    }

    fn remove_user(&self, name: &str) -> Answer<UserChanged> {
        let (process, name) = (self.running().cloned(), name.to_owned());
        Box::pin(async move {
            let of = name.clone();
            let remove = move |old: Option<Option<User>>| match old {
                Some(_) => Ok(None),
                None => Err(ApiError::no_user(&of)),
            };
            changed(process?, name, Box::new(remove)).await
        })
    }
}
