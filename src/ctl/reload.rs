//! `berth ctl reload` and `berth ctl log`: the configuration read again, and what is logged.

use super::Answer;
use super::client::{Client, Failure};
use super::table::{clean, list, word};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Log this from now on, until the configuration is read again
    Level {
        /// off, error, warn, info, debug, trace, or directives such as info,berth::server=debug
        level: String,
    },
}

/// Has the configuration read again.
pub(super) fn reload(client: &Client) -> Result<Answer, Failure> {
    Ok((client.post("/api/v1/reload")?, reloaded))
}

/// Changes what is logged.
pub(super) fn log(command: &LogCommand, client: &Client) -> Result<Answer, Failure> {
    let LogCommand::Level { level } = command;
    Ok((client.post_json("/api/v1/log/level", &json!({ "level": level }))?, levelled))
}

fn reloaded(answer: &Value) -> String {
    let lines = |what: &str, key: &str| -> String {
        list(&answer[key]).iter().map(|entry| format!("{what} {}\n", clean(&word(entry)))).collect()
    };
    let changed = lines("changed:      ", "changed");
    let restart = lines("needs restart:", "restart");
    let notes = lines("note:         ", "notes");
    let nothing = changed.is_empty() && restart.is_empty() && notes.is_empty();
    let none = if nothing { "no option has changed\n" } else { "" };
    format!("{changed}{}{restart}{notes}{none}", lines("read:         ", "read"))
}

fn levelled(answer: &Value) -> String {
    format!("log level {} (was {})\n", clean(&word(&answer["level"])), clean(&word(&answer["before"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_and_what_waits() {
        let answer =
            json!({ "changed": ["log.level"], "read": ["3 users"], "restart": ["node.id"], "notes": ["n"] });
        let expected =
            "changed:       log.level\nread:          3 users\nneeds restart: node.id\nnote:          n\n";
        assert_eq!(reloaded(&answer), expected);
        let nothing = json!({ "changed": [], "read": ["3 users"], "restart": [], "notes": [] });
        assert_eq!(reloaded(&nothing), "read:          3 users\nno option has changed\n");
    }
}
