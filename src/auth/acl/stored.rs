//! Rules in the cluster's directory: one record that has the whole list, so that their order needs no keys of its own, and each change is
//! one comparison with what was there.

use super::edit::{Edit, EditError, carry_out, parsed};
use super::list::{List, RULES_MAX};
use super::rules::{self, Fault};
use super::{Access, Changes, Otherwise, RuleSet, Rules};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The version of the record, and the only one that this release reads.
const VERSION: u32 = 1;

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// The record of `acl/rules`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    v: u32,
    /// The rules in their order, with the keys that they have in `acl.file`.
    rules: Vec<Value>,
}

fn fault(why: impl Into<String>) -> Fault {
    Fault { rule: None, line: 0, key: None, why: why.into() }
}

fn read(value: &[u8]) -> Result<Record, String> {
    let Versioned { v } = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    if v != VERSION {
        return Err(format!("it has version {v}, and this release of Berth reads only version {VERSION}"));
    }
    serde_json::from_slice(value).map_err(|e| e.to_string())
}

/// A change of the record that is ready to be made.
#[derive(Debug)]
pub struct PlannedRecord {
    value: Vec<u8>,
    rules: RuleSet,
    turns: bool,
}

impl PlannedRecord {
    /// The record as it would be.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The rules as they would be.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Whether everything is allowed now, and would not be any more where no rule says so.
    pub fn turns_to_deny(&self) -> bool {
        self.turns
    }
}

impl Access {
    /// Rules of the cluster's directory. Until it is known what is there everything is denied.
    pub fn of_directory(otherwise: Otherwise, admin_group: &str) -> Access {
        let access = Access::of(super::Source::Directory, otherwise, admin_group);
        access.known.store(false, Ordering::Release);
        access.put(Arc::new(RuleSet::none(Otherwise::Deny, admin_group)));
        access
    }

    /// The rules that a record has.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn stored(&self, value: &[u8]) -> Result<RuleSet, String> {
        self.list_of(&read(value)?.rules).map_err(|fault| match fault.rule {
            Some(_) => fault.to_string(),
            None => fault.why,
        })
    }

    fn list_of(&self, rules: &[Value]) -> Result<RuleSet, Fault> {
        if rules.len() > RULES_MAX {
            return Err(fault(format!("more than {RULES_MAX} rules")));
        }
        let one = |(at, rule): (usize, &Value)| {
            let node = crate::yaml::read_without_aliases(&rule.to_string())
                .map_err(|e| Fault { rule: Some(at + 1), ..fault(e.why) })?
                .ok_or_else(|| Fault { rule: Some(at + 1), ..fault("there is no rule") })?;
            // Its lines are of no record.
            rules::rule(at + 1, &node).map_err(|fault| Fault { line: 0, ..fault })
        };
        let rules = rules.iter().enumerate().map(one).collect::<Result<Vec<_>, Fault>>()?;
        let (otherwise, admin_group) = self.defaults.read().clone();
        Ok(RuleSet::of(Rules::List(List::new(rules)), otherwise, &admin_group))
    }

    /// Puts the rules of the directory in force; `None` = it never had any.
    pub fn put_stored(&self, rules: Option<RuleSet>) -> Changes {
        // Held until they are in force: a reload may bring other defaults at any time.
        let defaults = self.defaults.read();
        let (otherwise, admin_group) = &*defaults;
        let rules = match rules {
            Some(rules) => rules.under(*otherwise, admin_group),
            None => RuleSet::none(*otherwise, admin_group),
        };
        self.known.store(true, Ordering::Release);
        let changes = Changes::between(&self.rules(), &rules);
        self.put(Arc::new(rules));
        changes
    }

    /// Prepares a change of the record `before`; `None` = there is none.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn plan_stored(&self, before: Option<&[u8]>, edit: &Edit) -> Result<PlannedRecord, EditError> {
        let mut rules = match before {
            Some(value) => read(value).map_err(EditError::Record)?.rules,
            None => Vec::new(),
        };
        let old = self.list_of(&rules).map_err(|fault| EditError::Record(fault.to_string()))?;
        if let Edit::Add { rule, .. } = edit {
            parsed(rule)?;
        }
        carry_out(edit, &mut rules, |rule| {
            serde_json::from_str(rule).map_err(|e| EditError::Rule(fault(e.to_string())))
        })?;
        let new = self.list_of(&rules).map_err(EditError::Rule)?;
        let turns = old.allows_otherwise() && !new.allows_otherwise();
        let value = serde_json::to_vec(&Record { v: VERSION, rules })
            .map_err(|e| EditError::Record(e.to_string()))?;
        Ok(PlannedRecord { value, rules: new, turns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Permissions;

    fn add(rule: &str, at: Option<usize>) -> Edit {
        Edit::Add { rule: rule.to_owned(), at }
    }

    #[test]
    fn a_record_is_edited_in_its_order() {
        let access = Access::of_directory(Otherwise::Auto, "admins");
        assert!(Permissions::restricts(&access), "nothing is open before the directory is known");
        access.put_stored(None);
        assert!(!Permissions::restricts(&access));
        let mut value: Option<Vec<u8>> = None;
        // What is done, the topics afterwards in order, and whether it would turn auto into deny.
        let steps = [
            (add(r#"{"allow":"all","topics":["b"]}"#, None), "b", true),
            (add(r#"{"allow":"all","topics":["a"]}"#, Some(1)), "a b", false),
            (add(r#"{"deny":"publish","topics":["ü\u0001"],"users":["x"]}"#, None), "a b ü\u{1}", false),
            (Edit::Move { number: 3, to: 1 }, "ü\u{1} a b", false),
            (Edit::Move { number: 1, to: 2 }, "a ü\u{1} b", false),
            (Edit::Remove { number: 2 }, "a b", false),
            (Edit::Remove { number: 1 }, "b", false),
            (Edit::Remove { number: 1 }, "", false),
            (add(r#"{"allow":"all","topics":["c"]}"#, Some(1)), "c", true),
        ];
        for (edit, topics, turns) in steps {
            let planned = access.plan_stored(value.as_deref(), &edit).unwrap();
            let shown: Vec<String> = planned
                .rules()
                .shown()
                .into_iter()
                .map(|(_, rule)| rule.split(' ').nth(2).unwrap_or_default().to_owned())
                .collect();
            assert_eq!((shown.join(" ").as_str(), planned.turns_to_deny()), (topics, turns), "{edit:?}");
            let read = access.stored(planned.value()).unwrap();
            assert_eq!(RuleSet::shown(&read), planned.rules().shown());
            value = Some(planned.value().to_vec());
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let access = Access::of_directory(Otherwise::Auto, "admins");
        for (value, said) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"v":2,"rules":[]}"#, "version 2"),
            (r#"{"v":1}"#, "rules"),
            (r#"{"v":1,"rules":[],"more":1}"#, "more"),
            (r#"{"v":1,"rules":[{"allow":"all","topics":["a"]},{"permit":"all","topics":["a"]}]}"#, "rule 2"),
            (r#"{"v":1,"rules":[7]}"#, "rule 1"),
            (r#"{"v":1,"rules":[{"allow":"all","topics":["a/#/b"]}]}"#, "topics"),
        ] {
            let error = access.stored(value.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{value}: {error}");
            let planned = access.plan_stored(Some(value.as_bytes()), &Edit::Remove { number: 1 });
            assert!(matches!(planned, Err(EditError::Record(_))), "{value}");
        }
        let none = access.plan_stored(None, &Edit::Remove { number: 1 });
        assert!(matches!(none, Err(EditError::NoSuchRule { number: 1, rules: 0 })));
        let wrong = access.plan_stored(None, &add(r#"{"allow":"all"}"#, None));
        assert!(matches!(wrong, Err(EditError::Rule(_))));
    }
}
