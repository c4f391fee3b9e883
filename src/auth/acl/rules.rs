//! The file of `acl.file`: an ordered list of rules in YAML.

use super::list::{Actions, Effect, RULES_MAX, Rule, Who};
use super::pattern::Pattern;
use crate::config::Network;
use crate::hashing::HashSet;
use crate::mqtt::QoS;
use crate::yaml::{self, Node, Value};
use std::fmt;

/// Topics, names or networks of one rule.
pub const RULE_ITEMS_MAX: usize = 1_000;

/// What is wrong with a file of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The rule, counted from 1, if it is in one.
    pub rule: Option<usize>,
    /// The line, counted from 1; 0 = it is in none.
    pub line: usize,
    /// The key, if it is in one.
    pub key: Option<String>,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) if self.line > 0 => write!(f, "rule {rule} (line {})", self.line)?,
            Some(rule) => write!(f, "rule {rule}")?,
            None => write!(f, "line {}", self.line.max(1))?,
        }
        if let Some(key) = &self.key {
            write!(f, ", {key}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// The keys of a rule.
const KEYS: [&str; 12] = [
    "allow",
    "deny",
    "topics",
    "max_qos",
    "retain",
    "users",
    "anonymous",
    "groups",
    "clients",
    "client_prefixes",
    "addresses",
    "listeners",
];

/// Reads a file.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, Fault> {
    let Some(items) = items(text)? else { return Ok(Vec::new()) };
    items.iter().enumerate().map(|(at, node)| rule(at + 1, node)).collect()
}

/// The entries of `rules`; `None` if there is no such list.
pub(super) fn items(text: &str) -> Result<Option<Vec<Node>>, Fault> {
    let fault = |line, key: Option<&str>, why: &str| Fault {
        rule: None,
        line,
        key: key.map(str::to_owned),
        why: why.to_owned(),
    };
    let read = yaml::read_without_aliases(text)
        .map_err(|e| fault(e.line, None, &format!("not a valid YAML file: {}", e.why)))?;
    let Some(root) = read else { return Ok(None) };
    let Value::Table(entries) = root.value else {
        return Err(fault(root.line, None, "expected a table with the key rules"));
    };
    let mut found = None;
    for (key, line, node) in entries {
        if key != "rules" {
            return Err(fault(line, Some(&key), "unknown key: the file has one key, rules"));
        }
        found = match node.value {
            Value::List(items) if items.len() > RULES_MAX => {
                return Err(fault(line, Some("rules"), &format!("more than {RULES_MAX} rules")));
            }
            Value::List(items) => Some(items),
            Value::Nothing => None,
            _ => return Err(fault(line, Some("rules"), "expected a list of rules")),
        };
    }
    Ok(found)
}

/// One entry of the list as a rule; `number` counts from 1.
pub(super) fn rule(number: usize, node: &Node) -> Result<Rule, Fault> {
    let fault = |line, key: Option<&str>, why: String| Fault {
        rule: Some(number),
        line,
        key: key.map(str::to_owned),
        why,
    };
    let Value::Table(entries) = &node.value else {
        return Err(fault(node.line, None, "expected a table with allow or deny, and topics".to_owned()));
    };
    let mut reader = Entries { number, entries };
    if let Some((key, line, _)) = entries.iter().find(|(key, _, _)| !KEYS.contains(&&**key)) {
        let why = format!("unknown key: a rule has {}", KEYS.join(", "));
        return Err(fault(*line, Some(key), why));
    }
    let (allows, actions) = match (reader.actions("allow")?, reader.actions("deny")?) {
        (Some(actions), None) => (true, actions),
        (None, Some(actions)) => (false, actions),
        _ => {
            return Err(fault(
                node.line,
                None,
                "expected either allow or deny: publish, subscribe or all".to_owned(),
            ));
        }
    };
    let topics = reader
        .list("topics", |text| Pattern::parse(text).map_err(|e| e.to_string()))?
        .ok_or_else(|| fault(node.line, Some("topics"), "missing: name the topics, # for all".to_owned()))?;
    let max_qos = reader.text("max_qos", |text| match text {
        "0" => Ok(QoS::AtMostOnce),
        "1" => Ok(QoS::AtLeastOnce),
        "2" => Ok(QoS::ExactlyOnce),
        _ => Err("expected 0, 1 or 2".to_owned()),
    })?;
    let retain = reader.switch("retain")?;
    let refuse = |key: &str, why: &str| Err(fault(reader.line(key), Some(key), why.to_owned()));
    let effect = match (allows, max_qos, retain) {
        (true, _, Some(_)) if !actions.publish => {
            return refuse("retain", "it limits publishes, and this rule is about subscribing only");
        }
        (true, max_qos, retain) => {
            Effect::Allow { max_qos: max_qos.unwrap_or(QoS::ExactlyOnce), retain: retain.unwrap_or(true) }
        }
        (false, Some(_), _) => return refuse("max_qos", "it belongs to a rule that allows"),
        (false, None, Some(false)) => {
            return refuse(
                "retain",
                "with deny only true has a meaning: to deny what is to be retained, and nothing else",
            );
        }
        (false, None, Some(true)) if !actions.publish => {
            return refuse("retain", "it is about publishes, and this rule is about subscribing only");
        }
        (false, None, retain) => Effect::Deny { only_retained: retain == Some(true) },
    };
    let who = Who {
        users: reader.names("users")?,
        anonymous: reader.switch("anonymous")?,
        groups: reader.names("groups")?,
        clients: reader.names("clients")?,
        client_prefixes: reader.list("client_prefixes", |text| match text {
            "" => Err("an empty prefix is everybody: leave the key out".to_owned()),
            text => Ok(text.into()),
        })?,
        addresses: reader.list("addresses", |text| text.parse::<Network>().map_err(|e| e.to_string()))?,
        listeners: reader.names("listeners")?,
    };
    if who.users.is_some() && who.anonymous == Some(true) {
        return refuse(
            "anonymous",
            "whoever has one of users is not anonymous: this rule would concern nobody",
        );
    }
    Ok(Rule { effect, actions, topics, who, shown: shown(entries) })
}

struct Entries<'a> {
    number: usize,
    entries: &'a [(String, usize, Node)],
}

impl Entries<'_> {
    fn find(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|(name, _, _)| name == key).map(|(_, _, node)| node)
    }

    fn line(&self, key: &str) -> usize {
        self.entries.iter().find(|(name, _, _)| name == key).map_or(0, |(_, line, _)| *line)
    }

    fn fault(&self, key: &str, why: String) -> Fault {
        Fault { rule: Some(self.number), line: self.line(key), key: Some(key.to_owned()), why }
    }

    fn text<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Fault> {
        match self.find(key).map(|node| &node.value) {
            None => Ok(None),
            Some(Value::Text(text)) => read(text).map(Some).map_err(|why| self.fault(key, why)),
            Some(_) => {
                Err(self.fault(key, read("").err().unwrap_or_else(|| "expected one value".to_owned())))
            }
        }
    }

    fn switch(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.text(key, |text| text.parse().map_err(|_| "expected true or false".to_owned()))
    }

    fn actions(&mut self, key: &str) -> Result<Option<Actions>, Fault> {
        self.text(key, |text| match text {
            "publish" => Ok(Actions { publish: true, subscribe: false }),
            "subscribe" => Ok(Actions { publish: false, subscribe: true }),
            "all" => Ok(Actions { publish: true, subscribe: true }),
            _ => Err("expected publish, subscribe or all".to_owned()),
        })
    }

    /// A list, or one text in place of a list of one. An empty list would mean either nothing or everything: it is refused.
    fn list<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<Vec<T>>, Fault> {
        let Some(node) = self.find(key) else { return Ok(None) };
        let one = std::slice::from_ref(node);
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Text(_) => one,
            _ => &[],
        };
        if items.is_empty() {
            return Err(self.fault(key, "expected a list with at least one entry".to_owned()));
        }
        if items.len() > RULE_ITEMS_MAX {
            return Err(self.fault(key, format!("more than {RULE_ITEMS_MAX} entries")));
        }
        let each = |item: &Node| match &item.value {
            Value::Text(text) => read(text).map_err(|why| self.fault(key, format!("{text:?}: {why}"))),
            _ => Err(self.fault(key, "expected a list of texts".to_owned())),
        };
        items.iter().map(each).collect::<Result<Vec<T>, Fault>>().map(Some)
    }

    fn names(&self, key: &str) -> Result<Option<HashSet<Box<str>>>, Fault> {
        let names = self.list(key, |text| Ok(Box::<str>::from(text)))?;
        Ok(names.map(|names| names.into_iter().collect()))
    }
}

/// A rule on one line: what it does and its topics first, then its other keys, in one order whatever the file has.
fn shown(entries: &[(String, usize, Node)]) -> String {
    let value = |node: &Node| match &node.value {
        Value::List(items) => {
            let texts = items.iter().map(|item| match &item.value {
                Value::Text(text) => text.as_str(),
                _ => "",
            });
            texts.collect::<Vec<_>>().join(",")
        }
        Value::Text(text) => text.clone(),
        _ => String::new(),
    };
    let in_order = KEYS.iter().filter_map(|key| entries.iter().find(|(name, _, _)| name == key));
    let words = in_order.map(|(key, _, node)| match &**key {
        "allow" | "deny" => format!("{key} {}", value(node)),
        "topics" => value(node),
        _ => format!("{key}={}", value(node)),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// An entry as a block of YAML, its first line with `- `; every line is indented by `indent` spaces.
pub(super) fn block(node: &Node, indent: usize) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let Value::Table(entries) = &node.value else { return String::new() };
    let mut text = String::new();
    let in_order = KEYS.iter().filter_map(|key| entries.iter().find(|(name, _, _)| name == key));
    for (at, (key, _, value)) in in_order.enumerate() {
        let value = match &value.value {
            Value::Text(word) if word.bytes().all(|b| b.is_ascii_alphanumeric()) => word.clone(),
            Value::Text(word) => quoted(word),
            Value::List(items) => {
                let words = items.iter().filter_map(|item| match &item.value {
                    Value::Text(word) => Some(quoted(word)),
                    _ => None,
                });
                format!("[{}]", words.collect::<Vec<_>>().join(", "))
            }
            _ => continue,
        };
        let dash = if at == 0 { "- " } else { "  " };
        text += &format!("{}{dash}{key}: {value}\n", " ".repeat(indent));
    }
    text
}
