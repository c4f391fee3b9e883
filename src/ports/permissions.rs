//! What a client that was let in may do.

use super::Identity;
use crate::mqtt::QoS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Publish to a topic.
    Publish {
        /// The topic name.
        topic: &'a str,
        /// Whether with RETAIN.
        retain: bool,
    },
    /// Subscribe to a filter (without its `$share/<name>/`).
    Subscribe {
        /// The filter.
        filter: &'a str,
    },
    /// Be given a message.
    Receive {
        /// Its topic name.
        topic: &'a str,
    },
}

impl Ask<'_> {
    /// Whether the question is about getting messages.
    pub fn reads(&self) -> bool {
        !matches!(self, Ask::Publish { .. })
    }

    /// The topic or filter.
    pub fn path(&self) -> &str {
        match self {
            Ask::Publish { topic, .. } | Ask::Receive { topic } => topic,
            Ask::Subscribe { filter } => filter,
        }
    }
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum By {
    /// A rule of the list, counted from 1.
    Rule {
        /// Its number.
        number: usize,
    },
    /// A line of a mosquitto file, counted from 1.
    Line {
        /// Its number.
        line: usize,
    },
    /// The client's token.
    Token,
    /// With a mosquitto file every subscription is granted, and each message judged.
    Granted,
    /// The client's name has a character that would widen a `pattern` line of a mosquitto file.
    DangerousName,
    /// `$SYS` is for members of `acl.admin_group` where no rule says otherwise.
    Admins,
    /// No rule decided: `acl.default`.
    Default,
    /// There are no rules.
    NoRules,
    /// `$SYS` is the broker's: nobody may publish there.
    Broker,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Rule { number } => write!(f, "rule {number}"),
            By::Line { line } => write!(f, "line {line} of acl.mosquitto_file"),
            By::Token => f.write_str("the client's token says what it may do"),
            By::Granted => {
                f.write_str("acl.mosquitto_file grants every subscription and judges each message")
            }
            By::DangerousName => f.write_str(
                "the client ID or user has + or # in it, and acl.mosquitto_file has pattern lines",
            ),
            By::Admins => f.write_str("$SYS is for members of acl.admin_group where no rule says otherwise"),
            By::Default => f.write_str("no rule says anything about it, so acl.default decides"),
            By::NoRules => f.write_str("there are no rules"),
            By::Broker => f.write_str("$SYS is the broker's own"),
        }
    }
}

/// What is allowed, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The highest QoS; `None` = it is denied.
    pub max_qos: Option<QoS>,
    /// What decided.
    pub by: By,
}

impl Ruling {
    /// Allowed up to a QoS.
    pub fn allow(max_qos: QoS, by: By) -> Ruling {
        Ruling { max_qos: Some(max_qos), by }
    }

    /// Denied.
    pub fn deny(by: By) -> Ruling {
        Ruling { max_qos: None, by }
    }
}

/// Decides what clients may do. Decisions may change at any time; whoever remembers one asks for the version first.
pub trait Permissions: Send + Sync + 'static {
    /// Whether anything may be denied to anybody.
    fn restricts(&self) -> bool;

    /// 0 = `who` may do everything. Else a number that changes whenever a decision about `who` may have changed.
    fn version(&self, who: &Identity) -> u64;

    /// Whether `who` may do it, and why.
    fn ruling(&self, who: &Identity, ask: &Ask<'_>) -> Ruling;

    /// The rule that decided, on one line; `None` if it was no rule.
    fn shown(&self, by: &By) -> Option<String>;

    /// What would be allowed by rules that the cluster's directory may get; `None` if the record cannot be read.
    fn proposed(&self, _record: &[u8]) -> Option<Arc<dyn Proposed>> {
        None
    }
}

/// Rules that are not in force.
pub trait Proposed: Permissions {
    /// Whether some rule may allow `who` to publish anywhere.
    fn may_publish_somewhere(&self, who: &Identity) -> bool;
}

/// Everybody may do everything.
#[derive(Clone, Copy, Debug)]
pub struct Unrestricted;

impl Permissions for Unrestricted {
    fn restricts(&self) -> bool {
        false
    }

    fn version(&self, _: &Identity) -> u64 {
        0
    }

    fn ruling(&self, _: &Identity, _: &Ask<'_>) -> Ruling {
        Ruling::allow(QoS::ExactlyOnce, By::NoRules)
    }

    fn shown(&self, _: &By) -> Option<String> {
        None
    }
}
