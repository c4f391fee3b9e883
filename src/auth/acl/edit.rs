//! Changes to the file of rules by command. The rest of the file stays as it is, comments included; the new file takes the place of
//! the old one in one step.

use super::rules::{self, Fault};
use super::{Access, Look, RuleSet, Source, read_bounded};
use crate::yaml::{self, Node};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A change. Rules are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Put a rule in.
    Add {
        /// The rule with the keys of the file, as JSON or YAML.
        rule: String,
        /// The number it gets; `None` = behind all others.
        at: Option<usize>,
    },
    /// Take a rule out.
    Remove {
        /// Its number.
        number: usize,
    },
    /// Give a rule another place.
    Move {
        /// Its number.
        number: usize,
        /// The number it gets.
        to: usize,
    },
}

/// A change that is not made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// There is no file to change.
    #[error("acl.file is not set: make an empty file, set acl.file to its path, and restart the broker once")]
    NoFile,
    /// Rules are in a file of another kind.
    #[error(
        "the rules are in a mosquitto file ({0:?}, acl.mosquitto_file): edit that, the broker takes it as it is saved"
    )]
    Mosquitto(PathBuf),
    /// The record of the cluster's directory is wrong.
    #[error("acl/rules in etcd cannot be read: {0}")]
    Record(String),
    /// There is no such rule.
    #[error("there is no rule {number}: the list has {rules}")]
    NoSuchRule {
        /// The number.
        number: usize,
        /// How many there are.
        rules: usize,
    },
    /// The new rule is wrong.
    #[error("{}{}", .0.key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default(), .0.why)]
    Rule(Fault),
    /// The file is wrong.
    #[error("{path:?} (acl.file): {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// What and where.
        fault: Fault,
    },
    /// The file is not written as a rule a block.
    #[error(
        "{0:?} (acl.file) is not laid out as a list with one rule after the other (- allow: …): edit it by hand"
    )]
    Layout(PathBuf),
    /// Somebody else has changed it meanwhile.
    #[error("{0:?} (acl.file) has just been changed by somebody else: look at it, and try again")]
    Raced(PathBuf),
    /// The file cannot be read or written.
    #[error("{path:?} (acl.file): {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A change that is ready to be made.
#[derive(Debug)]
pub struct Planned {
    before: String,
    after: String,
    rules: RuleSet,
    turns: bool,
}

impl Planned {
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
    /// Prepares a change.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn plan(&self, edit: &Edit) -> Result<Planned, EditError> {
        let path = self.editable()?;
        let before = read_bounded(path).map_err(|source| EditError::Io { path: path.to_owned(), source })?;
        let after = edited(&before, edit, path)?;
        let (otherwise, admin_group) = self.defaults.read().clone();
        let parse = |text: &str| RuleSet::parse(&self.source, text, otherwise, &admin_group);
        let in_file = |fault| EditError::File { path: path.to_owned(), fault };
        let old = parse(&before).map_err(in_file)?;
        let rules = parse(&after).map_err(in_file)?;
        let turns = old.allows_otherwise() && !rules.allows_otherwise();
        Ok(Planned { before, after, rules, turns })
    }

    /// Makes a change: writes the file, and puts it in force.
    ///
    /// # Errors
    /// If the file has changed since, or cannot be written.
    pub fn carry_out(&self, planned: &Planned) -> Result<Look, EditError> {
        let path = self.editable()?;
        let io = |source| EditError::Io { path: path.to_owned(), source };
        let mut seen = self.seen.lock();
        if read_bounded(path).map_err(io)? != planned.before {
            return Err(EditError::Raced(path.to_owned()));
        }
        replace(path, &planned.after).map_err(io)?;
        Ok(self.take(&mut seen))
    }

    fn editable(&self) -> Result<&Path, EditError> {
        match &self.source {
            Source::Nowhere | Source::Directory => Err(EditError::NoFile),
            Source::Mosquitto(path) => Err(EditError::Mosquitto(path.clone())),
            Source::Yaml(path) => Ok(path),
        }
    }
}

/// Writes a file beside the old one, has it on disk, and puts it in its place. What a symbolic link leads to is replaced, not the link.
pub(in crate::auth) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut file = File::create(&new)?;
        file.set_permissions(std::fs::metadata(&path)?.permissions())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // Nothing is lost with it.
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// Carries an edit out on a list of rules of any form; `make` makes a new one of its text.
///
/// # Errors
/// If there is no rule of a number that it names, or the new rule is wrong: then the list is as it was.
pub(super) fn carry_out<T>(
    edit: &Edit,
    rules: &mut Vec<T>,
    make: impl FnOnce(&str) -> Result<T, EditError>,
) -> Result<(), EditError> {
    let count = rules.len();
    let known = |number: usize| match number {
        n if (1..=count).contains(&n) => Ok(n - 1),
        number => Err(EditError::NoSuchRule { number, rules: count }),
    };
    match edit {
        Edit::Add { rule, at } => {
            let place = match at {
                Some(n) if *n != count + 1 => known(*n)?,
                _ => count,
            };
            rules.insert(place, make(rule)?);
        }
        Edit::Remove { number } => {
            rules.remove(known(*number)?);
        }
        Edit::Move { number, to } => {
            let (from, to) = (known(*number)?, known(*to)?);
            let rule = rules.remove(from);
            rules.insert(to, rule);
        }
    }
    Ok(())
}

/// The text of the file after the change.
fn edited(before: &str, edit: &Edit, path: &Path) -> Result<String, EditError> {
    let in_file = |fault| EditError::File { path: path.to_owned(), fault };
    let layout = || EditError::Layout(path.to_owned());
    let items = rules::items(before).map_err(in_file)?.unwrap_or_default();
    let lines: Vec<&str> = before.lines().collect();
    let blocks = blocks(&items, &lines).ok_or_else(layout)?;
    let indent = items
        .first()
        .and_then(|item| lines.get(item.line - 1))
        .map_or(2, |line| line.len() - line.trim_start().len());
    let texts =
        |range: &Range<usize>| lines[range.clone()].iter().map(|l| format!("{l}\n")).collect::<String>();
    let mut rules: Vec<String> = blocks.iter().map(texts).collect();
    carry_out(edit, &mut rules, |rule| new_block(rule, indent))?;
    let head_end = blocks.first().map_or(lines.len(), |b| b.start);
    let mut head: String = lines[..head_end].iter().map(|l| format!("{l}\n")).collect();
    if blocks.is_empty() {
        head = match lines.iter().position(|l| l.starts_with("rules:")) {
            Some(at) if at + 1 == lines.len() || lines[at + 1..].iter().all(|l| l.trim().is_empty()) => {
                lines[..at].iter().map(|l| format!("{l}\n")).collect::<String>() + "rules:\n"
            }
            Some(_) => return Err(layout()),
            None => head + "rules:\n",
        };
    }
    let after = head + &rules.concat();
    // The rules of the new text are the old ones with the change, or the layout was not understood.
    let shown = |text: &str| rules::parse(text).map(|r| r.into_iter().map(|r| r.shown).collect::<Vec<_>>());
    let mut expected = shown(before).map_err(in_file)?;
    match edit {
        Edit::Add { rule, at } => {
            let place = at.map_or(expected.len(), |n| n - 1).min(expected.len());
            expected.insert(place, parsed(rule)?.1);
        }
        Edit::Remove { number } => {
            expected.remove(number - 1);
        }
        Edit::Move { number, to } => {
            let rule = expected.remove(number - 1);
            expected.insert(to - 1, rule);
        }
    }
    if shown(&after).ok() == Some(expected) { Ok(after) } else { Err(layout()) }
}

/// A new rule, and how it is shown.
pub(super) fn parsed(rule: &str) -> Result<(Node, String), EditError> {
    let fault = |why: &str| Fault { rule: None, line: 0, key: None, why: why.to_owned() };
    let node = yaml::read_without_aliases(rule)
        .map_err(|e| EditError::Rule(fault(&e.why)))?
        .ok_or_else(|| EditError::Rule(fault("there is no rule")))?;
    let shown = rules::rule(1, &node).map_err(EditError::Rule)?.shown;
    Ok((node, shown))
}

fn new_block(rule: &str, indent: usize) -> Result<String, EditError> {
    Ok(rules::block(&parsed(rule)?.0, indent))
}

/// The lines of each rule: from its dash, and the comments right above, to the next rule's. `None` if they are laid out otherwise.
fn blocks(items: &[Node], lines: &[&str]) -> Option<Vec<Range<usize>>> {
    let mut starts = Vec::new();
    let mut below = 0;
    for item in items {
        let dash = item.line.checked_sub(1).filter(|at| *at >= below)?;
        if !lines.get(dash)?.trim_start().starts_with("- ") {
            return None;
        }
        let comments =
            lines[below..dash].iter().rev().take_while(|l| l.trim_start().starts_with('#')).count();
        starts.push(dash - comments);
        below = dash + 1;
    }
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    Some(starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect())
}
