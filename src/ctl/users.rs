//! `berth ctl users`: users with passwords. A password never leaves this process: what is sent is its hash.

use super::Answer;
use super::client::{Client, Failure};
use super::table::{Names as Shown, Table, clean, list, word};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// A hash of a password, and keys for SCRAM-SHA-256 if those were asked for.
pub type Hashed = (String, Option<String>);

/// How passwords are read and hashed; lent by the command line, since this module knows no accounts.
#[derive(Clone, Copy, Debug)]
pub struct Secrets {
    /// Reads the password of a user, from the terminal or standard input.
    pub read: fn(&str) -> Result<Zeroizing<Vec<u8>>, String>,
    /// The hash of a password, and keys for SCRAM-SHA-256 if those are asked for.
    pub hashed: fn(&[u8], bool) -> Result<Hashed, String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum UsersCommand {
    /// List the users by name
    List,
    /// Say which groups a user is in, and how its password is kept
    Show {
        /// The user
        user: String,
    },
    /// Add a user. The password comes from the terminal or, else, is the first line of standard input
    Add(Account),
    /// Give a user another password; its connections are closed
    Passwd(Account),
    /// Remove a user; its connections are closed
    Remove {
        /// The user
        user: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Account {
    /// The user
    user: String,
    /// Store keys for SCRAM-SHA-256 as well; a user that has them keeps having them
    #[arg(long)]
    scram: bool,
    /// A group that the user is in; repeatable. Without it the groups of a user stay as they are
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
}

impl Account {
    fn order(&self, secrets: &Secrets, scram: bool) -> Result<Value, Failure> {
        let password = (secrets.read)(&self.user).map_err(Failure::Name)?;
        let (hash, keys) = (secrets.hashed)(&password, scram).map_err(Failure::Name)?;
        let mut order = json!({ "name": self.user, "hash": hash, "scram": keys });
        if !self.group.is_empty() {
            order["groups"] = json!(self.group);
        }
        Ok(order)
    }
}

fn user(client: &Client, name: &str) -> Result<Value, Failure> {
    client.post_json("/api/v1/ask/user", &json!({ "name": name }))
}

/// Asks, and says how to show the answer.
pub(super) fn ask(command: &UsersCommand, client: &Client, secrets: &Secrets) -> Result<Answer, Failure> {
    Ok(match command {
        UsersCommand::List => (all(client)?, users),
        UsersCommand::Show { user: name } => (user(client, name)?, shown),
        UsersCommand::Add(account) => {
            let order = account.order(secrets, account.scram)?;
            (client.post_json("/api/v1/users/add", &order)?, added)
        }
        UsersCommand::Passwd(account) => {
            // Before anybody is asked for a password.
            let known = user(client, &account.user)?;
            let order = account.order(secrets, account.scram || known["scram"] == true)?;
            (client.post_json("/api/v1/users/change", &order)?, changed)
        }
        UsersCommand::Remove { user } => {
            (client.post_json("/api/v1/users/remove", &json!({ "name": user }))?, removed)
        }
    })
}

/// All pages of the list in one.
fn all(client: &Client) -> Result<Value, Failure> {
    let mut answer = client.post_json("/api/v1/ask/users", &json!({}))?;
    while let Some(next) = answer["next"].as_str().map(str::to_owned) {
        let mut page = client.post_json("/api/v1/ask/users", &json!({ "after": next }))?;
        if let (Some(users), Some(more)) = (answer["users"].as_array_mut(), page["users"].as_array_mut()) {
            users.append(more);
        }
        answer["next"] = page["next"].take();
    }
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("next");
    }
    Ok(answer)
}

fn groups(user: &Value) -> String {
    let groups: Vec<String> = list(&user["groups"]).iter().map(word).collect();
    if groups.is_empty() { "-".to_owned() } else { groups.join(",") }
}

fn scram(user: &Value) -> String {
    if user["scram"] == true { "yes" } else { "no" }.to_owned()
}

fn users(answer: &Value) -> String {
    let mut text = match answer["file"].as_str() {
        Some(file) if !file.is_empty() => format!("{} ({})\n", clean(file), word(&answer["source"])),
        _ => "users of the cluster (etcd)\n".to_owned(),
    };
    let mut names = Shown::default();
    let mut table = Table::new(&["user", "groups", "scram", "hash"]);
    for user in list(&answer["users"]) {
        table.row([names.show(&user["name"]), clean(&groups(user)), scram(user), word(&user["hash"])]);
    }
    text += &if table.is_empty() { "no users\n".to_owned() } else { table.text(0) + names.note() };
    text
}

fn shown(user: &Value) -> String {
    format!(
        "{}\n  groups    {}\n  password  {}\n  scram     {}\n",
        clean(&word(&user["name"])),
        clean(&groups(user)),
        word(&user["hash"]),
        scram(user)
    )
}

fn added(answer: &Value) -> String {
    format!("user {} added\n", clean(&word(&answer["name"])))
}

fn changed(answer: &Value) -> String {
    format!("user {} has a new password; {}\n", clean(&word(&answer["name"])), closed(answer))
}

fn removed(answer: &Value) -> String {
    format!("user {} removed; {}\n", clean(&word(&answer["name"])), closed(answer))
}

fn closed(answer: &Value) -> String {
    format!("{} connections of the node were closed", word(&answer["closed"]))
}
