//! `berth ctl listeners`, `config show`, `sessions purge` and `publish`.

use super::Answer;
use super::bans::seconds;
use super::client::{Client, Failure};
use super::input::{Names, payload};
use super::table::{Names as Shown, Table, clean, duration, list, word};
use crate::clock;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Show the options that a node runs with, and where each comes from; secrets are masked
    Show {
        /// Only those that are not the default
        #[arg(long)]
        changed: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct PurgeArgs {
    /// What their client IDs match: * stands for any characters, ? for one; - reads it from standard input
    pattern: String,
    /// Those whose clients have been away for so long at least, such as 12h or 30d
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    offline: Option<u64>,
    /// End them; without it they are listed only
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Topic name
    topic: String,
    /// Payload; - or nothing reads it from standard input, as it is
    payload: Option<String>,
    /// QoS
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Retain the message; an empty one clears what is retained
    #[arg(long)]
    retain: bool,
}

pub(super) fn listeners(client: &Client) -> Result<Answer, Failure> {
    Ok((client.get("/api/v1/listeners")?, shown_listeners))
}

pub(super) fn config(command: &ConfigCommand, client: &Client) -> Result<Answer, Failure> {
    let ConfigCommand::Show { changed } = command;
    let mut answer = client.get("/api/v1/config")?;
    if *changed && let Some(options) = answer["options"].as_array_mut() {
        options.retain(|option| option["origin"] != "default");
    }
    Ok((answer, shown_config))
}

pub(super) fn purge(args: &PurgeArgs, client: &Client, names: &mut Names) -> Result<Answer, Failure> {
    let order = json!({
        "pattern": names.take(&args.pattern)?, "offline_seconds": args.offline.unwrap_or(0), "yes": args.yes,
    });
    let show = if args.yes { purged } else { to_purge };
    Ok((client.post_json("/api/v1/purge", &order)?, show))
}

pub(super) fn publish(args: &PublishArgs, client: &Client) -> Result<Answer, Failure> {
    let payload = match &args.payload {
        Some(text) if text != "-" => text.clone().into_bytes(),
        _ => payload(std::io::stdin()).map_err(Failure::Name)?,
    };
    let order = json!({
        "topic": args.topic, "payload_base64": STANDARD.encode(payload), "qos": args.qos, "retain": args.retain,
    });
    Ok((client.post_json("/api/v1/publish", &order)?, published))
}

fn shown_listeners(answer: &Value) -> String {
    let mut table = Table::new(&["listener", "type", "address", "connections", "refused", "certificate"]);
    let now = clock::now().as_millis();
    for listener in list(&answer["listeners"]) {
        let addresses: Vec<String> = list(&listener["addresses"]).iter().map(word).collect();
        let certificate = match listener["certificate_expires_at"].as_u64() {
            Some(at) if at > now => format!("expires in {}", duration((at - now) / 1000)),
            Some(at) => format!("expired {} ago", duration((now - at) / 1000)),
            None => String::new(),
        };
        table.row([
            word(&listener["name"]),
            word(&listener["type"]),
            addresses.join(" "),
            word(&listener["connections"]),
            word(&listener["refused"]),
            certificate,
        ]);
    }
    if table.is_empty() { "no listeners\n".to_owned() } else { table.text(0) }
}

fn shown_config(answer: &Value) -> String {
    let mut table = Table::new(&["option", "value", "from"]);
    for option in list(&answer["options"]) {
        table.row([word(&option["key"]), word(&option["value"]), word(&option["origin"])]);
    }
    let file = match answer["file"].as_str() {
        Some(file) => format!("configuration file: {}\n", clean(file)),
        None => "no configuration file\n".to_owned(),
    };
    file + &table.text(0)
}

/// What both answers about sessions have: those that are left alone, and how many are not named.
fn rest(answer: &Value, named: usize) -> String {
    let mut text = String::new();
    let more = answer["total"].as_u64().unwrap_or(0).saturating_sub(named as u64);
    if more > 0 {
        text += &format!("and {more} more\n");
    }
    match answer["connected"].as_u64() {
        Some(n) if n > 0 => text += &format!("{n} that match have a client connected: they are left alone\n"),
        _ => {}
    }
    text
}

fn to_purge(answer: &Value) -> String {
    let (mut names, clients) = (Shown::default(), list(&answer["clients"]));
    let mut text: String = clients.iter().map(|c| format!("{}\n", clean(&names.show(c)))).collect();
    text += &rest(answer, clients.len());
    text += names.note();
    match clients.is_empty() {
        true => text + "no session would be ended\n",
        false => text + &format!("{} sessions would be ended: --yes ends them\n", word(&answer["total"])),
    }
}

fn purged(answer: &Value) -> String {
    rest(answer, usize::MAX) + &format!("{} sessions were ended\n", word(&answer["ended"]))
}

fn published(answer: &Value) -> String {
    let to = if answer["matched"] == true { "" } else { "; nobody subscribes to it" };
    format!("{} bytes published to {}{to}\n", word(&answer["bytes"]), clean(&word(&answer["topic"])))
}
