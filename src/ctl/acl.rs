//! `berth ctl acl`: the rules of what clients may do.

use super::Answer;
use super::client::{Client, Failure};
use super::input::Names;
use super::table::{Names as Shown, Table, clean, list, word};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum AclCommand {
    /// List the rules in their order
    List,
    /// Say whether a client may do something, and which rule says so
    Check(Check),
    /// Put a rule in: into the rules of the cluster, or into the file of a single node
    Add(Add),
    /// Take a rule out
    Remove {
        /// Its number
        number: u32,
    },
    /// Give a rule another place
    Move {
        /// Its number
        number: u32,
        /// The number it gets
        to: u32,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    Publish,
    Subscribe,
    /// Be given a message
    Receive,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Client ID; - reads it from standard input
    client: String,
    /// What it wants to do
    action: Action,
    /// Topic name, or the filter to subscribe to
    topic: String,
    /// With this QoS
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// With RETAIN
    #[arg(long)]
    retain: bool,
    /// As this user, not as the one that the client is
    #[arg(long)]
    user: Option<String>,
    /// As a member of this group, and of no others than are given
    #[arg(long)]
    group: Vec<String>,
    /// From this address, not from the client's
    #[arg(long)]
    address: Option<std::net::IpAddr>,
    /// By this listener, not by the client's
    #[arg(long)]
    listener: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    Publish,
    Subscribe,
    All,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Publish => "publish",
            What::Subscribe => "subscribe",
            What::All => "all",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// What the rule does
    effect: Effect,
    /// With what
    what: What,
    /// Topic filters; %c stands for the client ID and %u for the user
    #[arg(required = true)]
    topics: Vec<String>,
    /// Allow this QoS at most
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=2))]
    max_qos: Option<u8>,
    /// allow: whether publishes may be retained; deny: true = only those that are
    #[arg(long)]
    retain: Option<bool>,
    /// Only for this user
    #[arg(long)]
    user: Vec<String>,
    /// Only for clients with (false) or without (true) a user name
    #[arg(long)]
    anonymous: Option<bool>,
    /// Only for members of this group
    #[arg(long)]
    group: Vec<String>,
    /// Only for this client ID
    #[arg(long)]
    client: Vec<String>,
    /// Only for client IDs that begin so
    #[arg(long)]
    client_prefix: Vec<String>,
    /// Only from this address or network
    #[arg(long)]
    address: Vec<String>,
    /// Only by this listener
    #[arg(long)]
    listener: Vec<String>,
    /// The number the rule gets; without it, it comes behind all others
    #[arg(long)]
    at: Option<u32>,
    /// Also if it is the first rule, so that whatever no rule allows is denied from then on
    #[arg(long)]
    yes: bool,
}

impl Add {
    fn rule(&self) -> Value {
        let mut rule = Map::new();
        let effect = match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        rule.insert(effect.to_owned(), self.what.name().into());
        rule.insert("topics".to_owned(), json!(self.topics));
        let scalars = [
            ("max_qos", self.max_qos.map(Value::from)),
            ("retain", self.retain.map(Value::from)),
            ("anonymous", self.anonymous.map(Value::from)),
        ];
        let lists = [
            ("users", &self.user),
            ("groups", &self.group),
            ("clients", &self.client),
            ("client_prefixes", &self.client_prefix),
            ("addresses", &self.address),
            ("listeners", &self.listener),
        ];
        rule.extend(scalars.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        let given = lists.into_iter().filter(|(_, names)| !names.is_empty());
        rule.extend(given.map(|(key, names)| (key.to_owned(), json!(names))));
        Value::Object(rule)
    }
}

/// Asks, and says how to show the answer.
pub(super) fn ask(command: &AclCommand, client: &Client, names: &mut Names) -> Result<Answer, Failure> {
    let change = |what: Value| {
        let answer = client.post_json("/api/v1/acl/change", &what)?;
        match answer["changed"].as_bool() {
            Some(true) => Ok((answer, changed as fn(&Value) -> String)),
            _ => Err(Failure::Unconfirmed { words: confirm(&answer), answer }),
        }
    };
    Ok(match command {
        AclCommand::List => (all(client)?, rules),
        AclCommand::Check(check) => {
            let id = names.take(&check.client)?;
            let action = match check.action {
                Action::Publish => "publish",
                Action::Subscribe => "subscribe",
                Action::Receive => "receive",
            };
            let mut question = json!({
                "client": id, "action": action, "topic": names.take(&check.topic)?, "qos": check.qos, "retain": check.retain,
            });
            let said = [
                ("user", check.user.as_deref().map(Value::from)),
                ("groups", (!check.group.is_empty()).then(|| json!(check.group))),
                ("address", check.address.map(|a| a.to_string().into())),
                ("listener", check.listener.as_deref().map(Value::from)),
            ];
            for (key, value) in said {
                if let Some(value) = value {
                    question[key] = value;
                }
            }
            (client.post_json("/api/v1/ask/acl", &question)?, judged)
        }
        AclCommand::Add(add) => {
            change(json!({ "do": "add", "rule": add.rule(), "at": add.at, "yes": add.yes }))?
        }
        AclCommand::Remove { number } => change(json!({ "do": "remove", "number": number }))?,
        AclCommand::Move { number, to } => change(json!({ "do": "move", "number": number, "to": to }))?,
    })
}

/// All pages of the list in one.
fn all(client: &Client) -> Result<Value, Failure> {
    let mut answer = client.get("/api/v1/acl")?;
    while let Some(next) = answer["next"].as_u64() {
        let page = client.get(&format!("/api/v1/acl?after={next}"))?;
        if let (Some(rules), Some(more)) = (answer["rules"].as_array_mut(), page["rules"].as_array()) {
            rules.extend(more.iter().cloned());
        }
        match page.get("next") {
            Some(next) => answer["next"] = next.clone(),
            None => answer["next"] = Value::Null,
        }
    }
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("next");
    }
    Ok(answer)
}

fn rules(answer: &Value) -> String {
    let mut text = match answer["source"].as_str() {
        None | Some("") => "no rules: neither acl.file nor acl.mosquitto_file is set\n".to_owned(),
        Some(source) => format!("{} ({source})\n", clean(&word(&answer["file"]))),
    };
    let mut table = Table::new(&["number", "rule"]);
    for rule in list(&answer["rules"]) {
        table.row([word(&rule["number"]), word(&rule["rule"])]);
    }
    if !table.is_empty() {
        text += &table.text(0);
    }
    let otherwise = if answer["otherwise_allowed"] == true { "allowed" } else { "denied" };
    text + &format!("what no rule is about is {otherwise}\n")
}

fn judged(answer: &Value) -> String {
    let allowed = if answer["allowed"] == true { "allowed" } else { "denied" };
    let mut text = format!("{allowed}: {}\n", clean(&word(&answer["why"])));
    if let Some(rule) = answer["rule"].as_str() {
        text += &format!("  {}\n", clean(rule));
    }
    if let (Some(true), Some(max)) = (answer["allowed"].as_bool(), answer["max_qos"].as_u64()) {
        text += &format!("  QoS {max} at most\n");
    }
    let or = |key: &str| match word(&answer[key]) {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    };
    let groups: Vec<String> = list(&answer["groups"]).iter().map(word).collect();
    let groups = if groups.is_empty() { "none".to_owned() } else { groups.join(", ") };
    text += &clean(&format!(
        "  judged as user {}, groups {groups}, address {}, listener {}",
        or("user"),
        or("address"),
        or("listener")
    ));
    if answer["known"] == false {
        text += ": the client is not known to any node, so only what you said of it counts";
    }
    text + "\n"
}

fn changed(answer: &Value) -> String {
    format!("changed; rules in force: {}\n", word(&answer["rules"]))
}

/// Who would lose what, and how to do it all the same.
fn confirm(answer: &Value) -> String {
    let mut text =
        "not changed: it would be the first rule, and from then on whatever no rule allows is denied"
            .to_owned();
    let mut names = Shown::default();
    let mut table = Table::new(&["client", "user", "connected", "loses"]);
    for l in list(&answer["losing"]) {
        let filters: Vec<String> = list(&l["filters"]).iter().map(word).collect();
        let more = l["filters_total"].as_u64().unwrap_or(0).saturating_sub(filters.len() as u64);
        let mut loses = filters.join(" ");
        if more > 0 {
            loses += &format!(" and {more} more");
        }
        if l["publishes_nothing"] == true {
            loses = if loses.is_empty() { "all publishing".to_owned() } else { loses + "; all publishing" };
        }
        table.row([
            names.show(&l["client"]),
            word(&l["user"]),
            if l["connected"] == true { "yes".to_owned() } else { "no".to_owned() },
            loses,
        ]);
    }
    if !table.is_empty() {
        text += "\n";
        text += &table.text(2);
        let shown = list(&answer["losing"]).len() as u64;
        let more = answer["losing_total"].as_u64().unwrap_or(0).saturating_sub(shown);
        if more > 0 {
            text += &format!("  and {more} more\n");
        }
        text += names.note();
    } else {
        text += "\nno session that is known loses anything now\n";
    }
    for node in list(&answer["unanswered"]) {
        text += &format!(
            "  sessions of node {} are not among them: {}\n",
            clean(&word(&node["node"])),
            clean(&word(&node["error"]))
        );
    }
    text + "with --yes it is done all the same"
}
