//! Divides a configuration that was read again: one part counts at once, the other waits for a restart.
//!
//! Options that only together say who gets in somewhere, and what is allowed there, change together: if one of them needs a restart, all
//! wait for it. Half of such a change could let everybody in.

use crate::config::{Config, Values};

/// Options of listeners that say how much and how fast, and nothing of who gets in.
const AMOUNTS: [&str; 10] = [
    "backlog",
    "nodelay",
    "keep_alive",
    "max_connections",
    "max_connection_rate",
    "max_message_rate",
    "max_byte_rate",
    "max_packet_size",
    "min_keep_alive",
    "max_keep_alive",
];

/// Options of accounts that say how much and how fast, and nothing of who gets in.
const AMOUNTS_OF_ACCOUNTS: [&str; 6] = [
    "auth.password.parallel",
    "auth.password.queue",
    "auth.password.queue_per_address",
    "auth.http.timeout",
    "auth.http.parallel",
    "auth.http.cache",
];

/// Where an option has a say in who gets in, and what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place<'a> {
    /// At one listener.
    Door(&'a str),
    /// At every listener: accounts, and rules.
    AllDoors,
    /// At admin HTTP.
    Admin,
}

impl Place<'_> {
    /// The place where the option `key` has a say; `None` = nowhere. An option that is not known to be harmless has one.
    fn of(key: &str) -> Option<Place<'_>> {
        if let Some((name, option)) = key.strip_prefix("listeners.").and_then(|rest| rest.split_once('.')) {
            return (!AMOUNTS.contains(&option)).then_some(Place::Door(name));
        }
        match key.split_once('.')?.0 {
            "auth" | "acl" => (!AMOUNTS_OF_ACCOUNTS.contains(&key)).then_some(Place::AllDoors),
            "http" => Some(Place::Admin),
            _ => None,
        }
    }

    /// Tells if options of both places change together.
    fn goes_with(self, other: Place<'_>) -> bool {
        let doors = |place| matches!(place, Place::Door(_) | Place::AllDoors);
        let shared = self == Place::AllDoors || other == Place::AllDoors;
        self == other || (shared && doors(self) && doors(other))
    }
}

/// The outcome of reading the configuration again: the options that count at once, and those that wait.
#[derive(Debug)]
pub(super) struct Plan {
    /// The configuration by which the broker runs once the plan is carried out: options that wait say what they said before. It is checked
    /// as a whole, as at a start.
    pub config: Config,
    /// Options that say something else than before and count at once.
    pub changed: Vec<String>,
    /// Options that say something else and count after a restart only.
    pub restart: Vec<String>,
    /// Options of `restart` that need none for themselves and wait with others.
    pub held: Vec<String>,
}

impl Plan {
    /// Makes the plan that leads from `in_force` to `new`; `takes` says which options can be exchanged while the broker runs.
    ///
    /// # Errors
    /// If the options that count at once contradict those that wait.
    pub(super) fn of(
        in_force: &Values,
        new: &Config,
        takes: impl Fn(&str) -> bool,
    ) -> Result<Plan, Vec<String>> {
        let (mut changed, mut restart): (Vec<String>, Vec<String>) =
            in_force.differing(&new.values).into_iter().partition(|key| takes(key));
        let mut held = Vec::new();
        loop {
            let waiting: Vec<Place<'_>> = restart.iter().filter_map(|key| Place::of(key)).collect();
            let waits = |key: &String| {
                Place::of(key).is_some_and(|place| waiting.iter().any(|other| place.goes_with(*other)))
            };
            let (more, rest): (Vec<String>, Vec<String>) = changed.into_iter().partition(waits);
            changed = rest;
            if more.is_empty() {
                break;
            }
            restart.extend(more.iter().cloned());
            held.extend(more);
        }
        restart.sort();
        held.sort();
        let mut values = in_force.clone();
        changed.iter().for_each(|key| values.take_from(&new.values, key));
        let config = Config::of_values(&values).map_err(|problems| {
            let told = |p: &crate::config::Problem| {
                format!("{}, while other changes wait for a restart: {}", p.key, p.reason)
            };
            problems.0.iter().map(told).collect::<Vec<_>>()
        })?;
        Ok(Plan { config, changed, restart, held })
    }

    /// Tells if one of these options waits.
    pub(super) fn waits(&self, keys: &[&str]) -> bool {
        self.restart.iter().any(|key| keys.contains(&&**key))
    }

    /// Says in words which options wait with others, if there are any.
    pub(super) fn note(&self) -> Option<String> {
        let held = self.held.join(", ");
        let note = format!(
            "{held}: needs no restart, but waits with the others: only together they say who gets in, and what is allowed"
        );
        (!held.is_empty()).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options;

    type Pairs = &'static [(&'static str, &'static str)];

    fn taken(key: &str) -> bool {
        const TAKEN: [&str; 11] = [
            "acl.default",
            "acl.admin_group",
            "auth.client_id_theft",
            "http.client_certificates",
            "http.client_ca_file",
            "listeners.a.client_certificates",
            "listeners.a.client_ca_file",
            "listeners.a.max_connections",
            "listeners.b.client_certificates",
            "listeners.b.client_ca_file",
            "retained.max_payload",
        ];
        TAKEN.contains(&key) || key.starts_with("limits.")
    }

    fn plan(before: Pairs, after: Pairs) -> Result<Plan, Vec<String>> {
        let of = |pairs: Pairs| {
            const BOTH: [(&str, &str); 8] = [
                ("listeners.a.type", "tls"),
                ("listeners.a.cert_file", "/c"),
                ("listeners.a.key_file", "/k"),
                ("listeners.b.type", "tls"),
                ("listeners.b.address", "127.0.0.1:9"),
                ("listeners.b.cert_file", "/c"),
                ("listeners.b.key_file", "/k"),
                ("http.cert_file", "/c"),
            ];
            Config::from_pairs(&[&BOTH[..], &[("http.key_file", "/k")], pairs].concat()).unwrap()
        };
        Plan::of(&of(before).values, &of(after), taken)
    }

    const ASKS: [(&str, &str); 2] =
        [("listeners.a.client_certificates", "required"), ("listeners.a.client_ca_file", "/ca")];

    #[test]
    fn what_together_says_who_gets_in_waits_together() {
        // What is said before and after, what of it counts at once, and what waits, short of the section.
        let cases: [(Pairs, Pairs, &[&str], &[&str]); 12] = [
            (&ASKS, &[], &["listeners.a.client_ca_file", "listeners.a.client_certificates"], &[]),
            (
                &ASKS,
                &[("listeners.a.auth_chain", "auto"), ("listeners.a.allow_anonymous", "false")],
                &[],
                &["a.allow_anonymous", "a.client_ca_file", "a.client_certificates"],
            ),
            // A door that opens to this machine only.
            (
                &ASKS,
                &[("listeners.a.address", "127.0.0.1:8")],
                &[],
                &["a.address", "a.client_ca_file", "a.client_certificates"],
            ),
            // Accounts and rules are those of every door.
            (
                &ASKS,
                &[("auth.allow_anonymous", "false")],
                &[],
                &["a.client_ca_file", "a.client_certificates", "auth.allow_anonymous"],
            ),
            (&ASKS, &[("acl.file", "/r")], &[], &["a.client_ca_file", "a.client_certificates", "acl.file"]),
            (
                &[("acl.default", "deny"), ("listeners.a.allow_anonymous", "true")],
                &[("acl.default", "allow")],
                &[],
                &["a.allow_anonymous", "acl.default"],
            ),
            (&[("acl.default", "deny")], &[("acl.file", "/r")], &[], &["acl.default", "acl.file"]),
            // What one door waits for is nothing to another one,
            (
                &ASKS,
                &[("listeners.b.allow_anonymous", "false")],
                &["listeners.a.client_ca_file", "listeners.a.client_certificates"],
                &["b.allow_anonymous"],
            ),
            // unless something waits that holds at both.
            (
                &ASKS,
                &[("listeners.b.allow_anonymous", "false"), ("auth.client_id_theft", "allow")],
                &[],
                &["a.client_ca_file", "a.client_certificates", "auth.client_id_theft", "b.allow_anonymous"],
            ),
            // Amounts hold nothing up, and are not held up.
            (
                &ASKS,
                &[("listeners.a.backlog", "7"), ("auth.password.queue", "7"), ("limits.max_qos", "1")],
                &["limits.max_qos", "listeners.a.client_ca_file", "listeners.a.client_certificates"],
                &["a.backlog", "auth.password.queue"],
            ),
            (
                &[],
                &[("listeners.a.allow_anonymous", "false"), ("listeners.a.max_connections", "7")],
                &["listeners.a.max_connections"],
                &["a.allow_anonymous"],
            ),
            (
                &[("http.client_certificates", "required"), ("http.client_ca_file", "/ca")],
                &[("http.admin_token_file", "/t"), ("acl.default", "deny")],
                &["acl.default"],
                &["http.admin_token_file", "http.client_ca_file", "http.client_certificates"],
            ),
        ];
        for (before, after, changed, restart) in cases {
            let plan = plan(before, after).unwrap();
            let short = |key: &String| key.strip_prefix("listeners.").unwrap_or(key).to_owned();
            assert_eq!(plan.changed, changed, "{before:?} {after:?}");
            let mut waiting: Vec<String> = plan.restart.iter().map(short).collect();
            waiting.sort();
            assert_eq!(waiting, restart, "{before:?} {after:?}");
            let asks = plan.config.listeners.get("a").unwrap().client_ca_file.len() == 1;
            let waits = plan.waits(&["listeners.a.client_ca_file"]);
            assert_eq!(asks, waits, "what waits holds as before: {before:?} {after:?}");
            assert_eq!(plan.note().is_some(), plan.restart.iter().any(|key| taken(key)));
        }
    }

    #[test]
    fn what_does_not_fit_what_waits_is_refused() {
        const CLUSTER: Pairs = &[("cluster.enabled", "true")];
        let wrong = plan(CLUSTER, &[("retained.max_payload", "2MiB")]).unwrap_err();
        assert!(wrong.len() == 1 && wrong[0].starts_with("retained.max_payload, while"), "{wrong:?}");
        assert!(plan(CLUSTER, &[("retained.max_payload", "1MiB")]).is_ok());
    }

    #[test]
    fn a_listener_that_comes_or_goes_is_there_as_a_whole() {
        const NEW: Pairs = &[("listeners.c.type", "tcp"), ("listeners.c.address", "127.0.0.1:7")];
        let more = plan(&[], NEW).unwrap();
        assert!(more.config.listeners.get("c").is_none() && more.changed.is_empty());
        let (less, whole) = (plan(NEW, &[]).unwrap(), more.restart.len());
        assert!(less.config.listeners.get("c").is_some() && less.restart.len() == whole);
    }

    #[test]
    fn amounts_are_options() {
        let known = |key: &str| options::keys().any(|option| option == key);
        assert!(AMOUNTS.iter().all(|option| known(&format!("listeners.tcp.{option}"))));
        assert!(AMOUNTS_OF_ACCOUNTS.iter().all(|option| known(option)));
    }
}
