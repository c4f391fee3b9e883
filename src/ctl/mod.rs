//! `berth ctl`: asks a running broker through its admin HTTP, and shows what it says as a table or as JSON.

mod acl;
mod bans;
mod client;
mod input;
mod reload;
mod secure;
mod show;
mod table;
mod upkeep;
mod users;

pub use users::Secrets;

use crate::clock;
use crate::names::escaped as printable;
use clap::{Args, Subcommand};
use client::{Client, Failure};
use input::Names;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// The question could not be answered, or the command not be carried out.
const EXIT_FAILED: u8 = 1;

/// Wrong arguments.
const EXIT_USAGE: u8 = 2;

/// `ready`: nothing answers, or not as a broker does.
const EXIT_NO_ANSWER: u8 = 3;

/// How long a broker may take to say whether it is ready: less than the health check of the image gives it.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two looks whether a node has ended, or has become ready.
const LOOK: Duration = Duration::from_millis(200);

/// What stays as it is in a path or query.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Ask a running broker, or tell it to do something
#[derive(Debug, Args)]
pub struct Ctl {
    /// Admin HTTP of a broker (http.address)
    #[arg(long, global = true, env = "BERTH_URL", default_value = "http://127.0.0.1:8081")]
    url: String,
    /// File with a token of the broker's http.admin_token_file, or of its http.read_token_file for what only asks
    #[arg(long, global = true, env = "BERTH_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: secure::TlsArgs,
    /// Print the answer as JSON, as the broker gave it
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the node serves clients; for probes and scripts
    ///
    /// Exit codes: 0 = it is ready, 1 = it answers and is not (the reason is on standard error), 2 = wrong arguments,
    /// 3 = nothing answers as a broker does.
    Ready {
        /// Wait until it is, for so many seconds at most
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u32,
    },
    /// The cluster as one node sees it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// The node that is asked
    #[command(subcommand)]
    Node(NodeCommand),
    /// Sessions of clients
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// List the listeners of a node: connections, and when certificates expire
    Listeners,
    /// Publish a message
    Publish(upkeep::PublishArgs),
    /// The options of a node
    #[command(subcommand)]
    Config(upkeep::ConfigCommand),
    /// Users with passwords: of the cluster (auth.password.store: etcd), or in the file of a single node
    #[command(subcommand)]
    Users(users::UsersCommand),
    /// What clients may do
    #[command(subcommand)]
    Acl(acl::AclCommand),
    /// Clients that may not connect
    #[command(subcommand)]
    Bans(bans::BansCommand),
    /// Where publishes go
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Retained messages
    #[command(subcommand)]
    Retained(RetainedCommand),
    /// The same as `node drain`
    Drain(Drain),
    /// Have the node read its configuration and all files again: all or nothing. Says what changed and what needs a restart
    Reload,
    /// What the node logs
    #[command(subcommand)]
    Log(reload::LogCommand),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show members, leader, links, waiting incarnations, held publishes and etcd
    Status,
    /// Give up what a node had that will not come back with its journal: sessions, queues, subscriptions
    Forget {
        /// The node (node.id)
        node: String,
    },
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Hand the sessions to other nodes, tell the clients, and end the process, as SIGTERM does
    Drain(Drain),
}

#[derive(Debug, Args)]
struct Drain {
    /// Return only when the process has ended
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Subcommand)]
enum SessionsCommand {
    /// List sessions by client ID
    List {
        /// Of all nodes, not only of the one that is asked
        #[arg(long)]
        cluster: bool,
        /// Whose client ID begins so; - reads it from standard input
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
        /// Whose client ID comes after this one; - reads it from standard input
        #[arg(long, value_name = "CLIENT")]
        after: Option<String>,
        /// At most so many (1 to 1000)
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Say where a session lives, and how it is
    Show {
        /// Client ID; - reads it from standard input, less one newline at its end
        client: String,
    },
    /// Close a client's connection, wherever it is; its session stays
    Kick {
        /// Client ID; - reads it from standard input, less one newline at its end
        client: String,
    },
    /// List sessions of a node that nobody is connected to, and with --yes end them with what is queued for them
    Purge(upkeep::PurgeArgs),
}

#[derive(Debug, Subcommand)]
enum RoutesCommand {
    /// Say which sessions and nodes a publish to a topic goes to
    Show {
        /// Topic name; - reads it from standard input
        topic: String,
    },
}

#[derive(Debug, Subcommand)]
enum RetainedCommand {
    /// List retained messages by topic
    List {
        /// Whose topic matches this filter; - reads it from standard input
        #[arg(default_value = "#")]
        filter: String,
        /// At most so many (1 to 1000)
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
}

/// Carries out a command and prints the answer. Returns the exit code: 0, 1 = failed, 2 = wrong arguments; of `ready` also
/// 3 = no answer.
pub fn run(ctl: &Ctl, secrets: &Secrets) -> u8 {
    let client = Client::new(&ctl.url, &ctl.tls).and_then(|client| match &ctl.token_file {
        Some(file) => client.with_token_of(file),
        None => Ok(client),
    });
    let client = match client {
        Ok(client) => client,
        Err(why) => return complain(&why, EXIT_USAGE),
    };
    match ask(ctl, &client, secrets) {
        Ok(answer) => {
            let text = if ctl.json { pretty(&answer.0) } else { (answer.1)(&answer.0) };
            // A closed pipe (`… | head`) is no failure of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Err(Failure::Unconfirmed { answer, .. }) if ctl.json => {
            let _ = std::io::stdout().write_all(pretty(&answer).as_bytes());
            EXIT_FAILED
        }
        Err(Failure::Unconfirmed { words, .. }) => {
            let _ = writeln!(std::io::stderr(), "berth ctl: {words}");
            EXIT_FAILED
        }
        Err(why) => complain(&why.to_string(), exit_code(&ctl.command, &why)),
    }
}

type Answer = (Value, fn(&Value) -> String);

fn ask(ctl: &Ctl, client: &Client, secrets: &Secrets) -> Result<Answer, Failure> {
    let mut names = Names::default();
    Ok(match &ctl.command {
        Command::Ready { wait } => (ready(client, Duration::from_secs((*wait).into()))?, show::ready),
        Command::Cluster(ClusterCommand::Status) => (client.get("/cluster/status")?, show::status),
        Command::Cluster(ClusterCommand::Forget { node }) => {
            (client.post(&format!("/api/v1/cluster/forget/{}", escaped(node)))?, show::forgotten)
        }
        Command::Node(NodeCommand::Drain(drain)) | Command::Drain(drain) => {
            let answer = client.post("/api/v1/node/drain")?;
            if drain.wait {
                wait_for_the_end(client)?;
                (answer, show::drained)
            } else {
                (answer, show::draining)
            }
        }
        Command::Sessions(SessionsCommand::List { cluster, prefix, after, limit }) => {
            let mut path = format!("/api/v1/sessions?limit={limit}&cluster={cluster}");
            let mut asked = json!({ "limit": limit, "cluster": cluster });
            for (name, value) in [("prefix", prefix), ("after", after)] {
                if let Some(value) = value {
                    let value = names.take(value)?;
                    path += &format!("&{name}={}", escaped(&value));
                    asked[name] = value.into();
                }
            }
            (client.ask("GET", &path, "/api/v1/ask/sessions", &asked)?, show::sessions)
        }
        Command::Sessions(SessionsCommand::Show { client: id }) => {
            let id = names.take(id)?;
            let path = format!("/api/v1/sessions/{}", escaped(&id));
            (client.ask("GET", &path, "/api/v1/ask/session", &json!({ "client": id }))?, show::session)
        }
        Command::Sessions(SessionsCommand::Kick { client: id }) => {
            let id = names.take(id)?;
            let path = format!("/api/v1/sessions/{}", escaped(&id));
            (client.ask("DELETE", &path, "/api/v1/kick", &json!({ "client": id }))?, show::kicked)
        }
        Command::Sessions(SessionsCommand::Purge(args)) => upkeep::purge(args, client, &mut names)?,
        Command::Listeners => upkeep::listeners(client)?,
        Command::Publish(args) => upkeep::publish(args, client)?,
        Command::Config(command) => upkeep::config(command, client)?,
        Command::Users(command) => users::ask(command, client, secrets)?,
        Command::Acl(command) => acl::ask(command, client, &mut names)?,
        Command::Bans(command) => bans::ask(command, client, &mut names)?,
        Command::Reload => reload::reload(client)?,
        Command::Log(command) => reload::log(command, client)?,
        Command::Routes(RoutesCommand::Show { topic }) => {
            let topic = names.take(topic)?;
            let path = format!("/api/v1/routes?topic={}", escaped(&topic));
            (client.ask("GET", &path, "/api/v1/ask/routes", &json!({ "topic": topic }))?, show::routes)
        }
        Command::Retained(RetainedCommand::List { filter, limit }) => {
            let filter = names.take(filter)?;
            let path = format!("/api/v1/retained?limit={limit}&filter={}", escaped(&filter));
            let asked = json!({ "limit": limit, "filter": filter });
            (client.ask("GET", &path, "/api/v1/ask/retained", &asked)?, show::retained)
        }
    })
}

fn exit_code(command: &Command, why: &Failure) -> u8 {
    match (command, why) {
        (_, Failure::Name(_)) => EXIT_USAGE,
        (Command::Ready { .. }, Failure::Refused { status: 503, .. }) => EXIT_FAILED,
        (Command::Ready { .. }, _) => EXIT_NO_ANSWER,
        _ => EXIT_FAILED,
    }
}

/// What the node says once it is ready; its last excuse, if it is not within `patience`.
fn ready(client: &Client, patience: Duration) -> Result<Value, Failure> {
    let client = client.answering_within(READY_TIMEOUT);
    let began = clock::now();
    loop {
        let answer = client.get("/ready");
        if answer.is_ok() || u128::from(clock::now().since_ms(began)) >= patience.as_millis() {
            return answer;
        }
        std::thread::sleep(LOOK);
    }
}

/// Returns when nothing listens any more.
fn wait_for_the_end(client: &Client) -> Result<(), Failure> {
    let began = clock::now();
    loop {
        match client.get("/health") {
            Err(Failure::NothingListens { .. }) => return Ok(()),
            // Cut off while the process ends: the next look tells.
            Ok(_) | Err(Failure::Broken { .. }) => {}
            Err(other) => return Err(other),
        }
        if clock::now().since_ms(began) > client::DRAIN_PATIENCE.as_millis() as u64 {
            return Err(Failure::StillThere { url: client.url().to_owned() });
        }
        std::thread::sleep(LOOK);
    }
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

fn pretty(answer: &Value) -> String {
    serde_json::to_string_pretty(answer).unwrap_or_default() + "\n"
}

fn complain(why: &str, code: u8) -> u8 {
    let _ = writeln!(std::io::stderr(), "berth ctl: {}", printable(why));
    code
}
