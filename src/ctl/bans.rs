//! `berth ctl bans`: clients that may not connect.

use super::Answer;
use super::client::{Client, Failure};
use super::input::Names;
use super::table::{Names as Shown, Table, clean, duration, list, word};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum BansCommand {
    /// List the bans: of the cluster and of the node that is asked
    List,
    /// Ban a client ID, user, address or network, in a cluster on all nodes; connections that are theirs are closed
    Add(Add),
    /// End a ban
    Remove {
        /// What the ban is about
        kind: Kind,
        /// Client ID, user, address or network; - reads it from standard input
        name: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    Client,
    User,
    Address,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Client => "client",
            Kind::User => "user",
            Kind::Address => "address",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// What the ban is about
    kind: Kind,
    /// Client ID, user, address or network; - reads it from standard input
    name: String,
    /// For so long, such as 90s, 15m, 1h, 7d; without it, until it is removed
    #[arg(long = "for", value_parser = seconds)]
    seconds: Option<u64>,
    /// Why; shown by `bans list`, in the log, and to MQTT 5 clients
    #[arg(long, default_value = "")]
    reason: String,
}

/// A span of whole seconds: numbers with s, m, h or d.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "expected a time such as 90s, 15m, 1h30m or 7d".to_owned();
    let (mut all, mut digits) = (0u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let n: u64 = digits.parse().map_err(|_| wrong())?;
        all = n.checked_mul(unit).and_then(|n| all.checked_add(n)).ok_or_else(wrong)?;
        digits.clear();
    }
    if all == 0 || !digits.is_empty() { Err(wrong()) } else { Ok(all) }
}

/// Asks, and says how to show the answer.
pub(super) fn ask(command: &BansCommand, client: &Client, names: &mut Names) -> Result<Answer, Failure> {
    Ok(match command {
        BansCommand::List => (client.get("/api/v1/bans")?, shown),
        BansCommand::Add(add) => {
            let name = names.take(&add.name)?;
            let order = json!({ "kind": add.kind.name(), "name": name, "reason": add.reason, "seconds": add.seconds });
            (client.post_json("/api/v1/bans/add", &order)?, banned)
        }
        BansCommand::Remove { kind, name } => {
            let order = json!({ "kind": kind.name(), "name": names.take(name)? });
            (client.post_json("/api/v1/bans/remove", &order)?, removed)
        }
    })
}

fn shown(answer: &Value) -> String {
    let mut names = Shown::default();
    let mut table = Table::new(&["kind", "name", "left", "reason"]);
    for ban in list(&answer["bans"]) {
        table.row([
            word(&ban["kind"]),
            names.show(&ban["name"]),
            ban["seconds_left"].as_u64().map_or_else(|| "for ever".to_owned(), duration),
            names.show(&ban["reason"]),
        ]);
    }
    if table.is_empty() { "no bans\n".to_owned() } else { table.text(0) + names.note() }
}

fn banned(answer: &Value) -> String {
    format!(
        "{} {} is banned; {} connections of the node were closed\n",
        word(&answer["kind"]),
        clean(&word(&answer["name"])),
        word(&answer["closed"])
    )
}

fn removed(answer: &Value) -> String {
    format!("{} {} is not banned any more\n", word(&answer["kind"]), clean(&word(&answer["name"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "1", "h", "0s", "1w", "-1s", "1h5", "99999999999999999999s", "9999999999999999999d"]
        {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
