//! What clients may do: an ordered list of rules from a file or from the cluster's directory, or an ACL file of mosquitto's. Files are
//! looked at again while the broker runs; a faulty one changes nothing.

mod claims;
mod edit;
mod list;
mod mosquitto;
mod pattern;
mod rules;
mod stored;
#[cfg(test)]
mod tests;

pub(in crate::auth) use edit::replace;
pub use edit::{Edit, EditError, Planned};
pub use list::RULES_MAX;
pub use mosquitto::LINES_MAX;
pub use rules::{Fault, RULE_ITEMS_MAX};
pub use stored::PlannedRecord;

use crate::hashing::HashMap;
use crate::mqtt::QoS;
use crate::ports::{Ask, By, Identity, Permissions, Proposed, Ruling};
use crate::readings::{Reading, Readings};
use crate::secret_file::Stamp;
use list::List;
use mosquitto::Lines;
use parking_lot::{Mutex, RwLock};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The largest file of rules, bytes.
pub const ACL_FILE_BYTES_MAX: u64 = 16 << 20;

/// What holds where no rule says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Otherwise {
    /// Everything is allowed while there is no rule, nothing once there is one.
    #[default]
    Auto,
    /// What no rule speaks of is allowed.
    Allow,
    /// What no rule speaks of is denied.
    Deny,
}

/// Where rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From nowhere: there are none.
    Nowhere,
    /// From a YAML file.
    Yaml(PathBuf),
    /// From an ACL file of mosquitto's.
    Mosquitto(PathBuf),
    /// From the cluster's directory.
    Directory,
}

impl Source {
    /// The file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::Nowhere | Source::Directory => None,
            Source::Yaml(path) | Source::Mosquitto(path) => Some(path),
        }
    }

    fn key(&self) -> &'static str {
        match self {
            Source::Mosquitto(_) => "acl.mosquitto_file",
            Source::Nowhere | Source::Directory | Source::Yaml(_) => "acl.file",
        }
    }
}

/// Rules that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// The file cannot be read.
    #[error("cannot read {path:?} ({key}): {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Its option.
        key: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something is wrong in the file.
    #[error("{path:?} ({key}): {fault}")]
    Faulty {
        /// The file.
        path: PathBuf,
        /// Its option.
        key: &'static str,
        /// What and where.
        fault: Fault,
    },
}

/// All rules at one time.
#[derive(Debug)]
pub struct RuleSet {
    rules: Arc<Rules>,
    /// The file of the rules has nothing in it but comments.
    blank: bool,
    otherwise: Otherwise,
    admin_group: Box<str>,
}

#[derive(Debug)]
enum Rules {
    List(List),
    Lines(Lines),
}

impl RuleSet {
    /// Reads rules as `source` has them.
    fn parse(source: &Source, text: &str, otherwise: Otherwise, admin_group: &str) -> Result<RuleSet, Fault> {
        let rules = match source {
            Source::Mosquitto(_) => Rules::Lines(Lines::parse(text)?),
            Source::Nowhere | Source::Directory | Source::Yaml(_) => {
                Rules::List(List::new(rules::parse(text)?))
            }
        };
        let blank = text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'));
        Ok(RuleSet { blank, ..RuleSet::of(rules, otherwise, admin_group) })
    }

    fn of(rules: Rules, otherwise: Otherwise, admin_group: &str) -> RuleSet {
        RuleSet { rules: Arc::new(rules), blank: false, otherwise, admin_group: admin_group.into() }
    }

    fn none(otherwise: Otherwise, admin_group: &str) -> RuleSet {
        RuleSet::of(Rules::List(List::default()), otherwise, admin_group)
    }

    /// A rule set with the same rules, and another default where none of them matches.
    fn under(&self, otherwise: Otherwise, admin_group: &str) -> RuleSet {
        RuleSet { rules: self.rules.clone(), blank: self.blank, otherwise, admin_group: admin_group.into() }
    }

    /// Tells if these rules would allow everything, in place of `before`, only because the file has lost all that was in it.
    fn is_lost(&self, before: &RuleSet) -> bool {
        self.blank && !self.restricts() && before.restricts()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        match &*self.rules {
            Rules::List(list) => list.rules().is_empty(),
            Rules::Lines(lines) => lines.is_empty(),
        }
    }

    /// Whether anything can be denied. A file of mosquitto's denies all that it does not allow, also if it allows nothing.
    pub fn restricts(&self) -> bool {
        !self.is_empty() || self.otherwise == Otherwise::Deny || matches!(*self.rules, Rules::Lines(_))
    }

    /// What holds where no rule says anything.
    pub fn allows_otherwise(&self) -> bool {
        self.otherwise == Otherwise::Allow || !self.restricts()
    }

    /// Every rule by its number (a mosquitto file's by its line), on one line.
    pub fn shown(&self) -> Vec<(usize, String)> {
        match &*self.rules {
            Rules::List(list) => {
                list.rules().iter().enumerate().map(|(at, r)| (at + 1, r.shown.clone())).collect()
            }
            Rules::Lines(lines) => lines.shown(),
        }
    }

    /// Whether some rule may allow `who` to publish anywhere.
    pub fn may_publish_somewhere(&self, who: &Identity) -> bool {
        match &*self.rules {
            _ if self.allows_otherwise() => true,
            Rules::List(list) => list.may_publish_somewhere(who),
            Rules::Lines(lines) => lines.may_publish_somewhere(who),
        }
    }
}

impl Proposed for RuleSet {
    fn may_publish_somewhere(&self, who: &Identity) -> bool {
        RuleSet::may_publish_somewhere(self, who)
    }
}

impl Permissions for RuleSet {
    fn restricts(&self) -> bool {
        RuleSet::restricts(self)
    }

    fn version(&self, _: &Identity) -> u64 {
        u64::from(RuleSet::restricts(self))
    }

    fn ruling(&self, who: &Identity, ask: &Ask<'_>) -> Ruling {
        if !self.restricts() {
            return Ruling::allow(QoS::ExactlyOnce, By::NoRules);
        }
        let said = match &*self.rules {
            Rules::List(list) => list.ruling(who, ask),
            Rules::Lines(lines) => lines.ruling(who, ask),
        };
        if let Some(ruling) = said {
            return ruling;
        }
        if ask.reads() && ask.path().split('/').next() == Some("$SYS") {
            let admin = who.account.groups.iter().any(|group| **group == *self.admin_group);
            return if admin {
                Ruling::allow(QoS::ExactlyOnce, By::Admins)
            } else {
                Ruling::deny(By::Admins)
            };
        }
        if self.allows_otherwise() {
            Ruling::allow(QoS::ExactlyOnce, By::Default)
        } else {
            Ruling::deny(By::Default)
        }
    }

    fn shown(&self, by: &By) -> Option<String> {
        let (By::Rule { number } | By::Line { line: number }) = by else { return None };
        RuleSet::shown(self).into_iter().find(|(n, _)| n == number).map(|(_, rule)| rule)
    }
}

/// What a look at the file found.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Same,
    /// Other rules hold from now on.
    Changed(Changes),
    /// The file cannot be used; the rules stay as they were.
    Kept(AclError),
}

/// How rules differ from those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// How many there are now.
    pub rules: usize,
    /// How many were not there before.
    pub added: usize,
    /// How many are not there any more.
    pub removed: usize,
}

impl Changes {
    fn between(before: &RuleSet, after: &RuleSet) -> Changes {
        let (old, new) = (before.shown(), after.shown());
        let mut balance: HashMap<&str, i64> = HashMap::default();
        old.iter().for_each(|(_, rule)| *balance.entry(rule).or_default() -= 1);
        new.iter().for_each(|(_, rule)| *balance.entry(rule).or_default() += 1);
        let sum = |sign: i64| balance.values().map(|n| (n * sign).max(0)).sum::<i64>();
        let count = |n: i64| usize::try_from(n).unwrap_or(0);
        Changes { rules: new.len(), added: count(sum(1)), removed: count(sum(-1)) }
    }
}

/// Rules that were read and do not hold yet.
#[derive(Debug)]
pub struct PreparedRules {
    /// `None` = those that hold, which are not in a file.
    rules: Option<Reading<RuleSet>>,
    defaults: Defaults,
}

/// The ruling where no rule says anything, and the group of clients that may read `$SYS`.
type Defaults = (Otherwise, Box<str>);

#[derive(Debug, Default)]
struct Seen {
    /// Of what was read last.
    stamp: Option<Stamp>,
    /// Of what was there at the last look.
    looked: Option<Stamp>,
    /// The file could not be read, as the log has been told.
    unreadable: bool,
}

/// The rules that hold now.
#[derive(Debug)]
pub struct Access {
    source: Source,
    /// The defaults of the rules. Locked while rules are put in force, so that these are never under other defaults.
    defaults: RwLock<Defaults>,
    current: RwLock<Arc<RuleSet>>,
    /// See [`Permissions::version`].
    version: AtomicU64,
    /// How often rules have been put in force.
    changes: AtomicU64,
    /// False while it is not known what the cluster's directory has.
    known: AtomicBool,
    /// Locked while the file is looked at or edited. Taken before the lock of `readings`.
    seen: Mutex<Seen>,
    readings: Readings,
    /// Clients may have tokens that say what they may do.
    tokens: bool,
}

impl Access {
    /// Reads the rules.
    ///
    /// # Errors
    /// If the file cannot be read, or is faulty.
    pub fn open(source: Source, otherwise: Otherwise, admin_group: &str) -> Result<Access, AclError> {
        let access = Access::of(source, otherwise, admin_group);
        let mut seen = access.seen.lock();
        let rules = match access.source.path() {
            Some(_) => Arc::new(access.read(&mut seen)?),
            None => access.rules(),
        };
        access.put(rules);
        drop(seen);
        Ok(access)
    }

    fn of(source: Source, otherwise: Otherwise, admin_group: &str) -> Access {
        Access {
            current: RwLock::new(Arc::new(RuleSet::none(otherwise, admin_group))),
            source,
            defaults: RwLock::new((otherwise, admin_group.into())),
            version: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            known: AtomicBool::new(true),
            seen: Mutex::new(Seen::default()),
            readings: Readings::default(),
            tokens: false,
        }
    }

    /// Heeds, before the rules, what clients' tokens say they may do, if `tokens` says that they may have such.
    pub fn heeding_tokens(self, tokens: bool) -> Access {
        Access { tokens, ..self }
    }

    /// Where the rules come from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The rules that hold now.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.current.read().clone()
    }

    /// Looks whether the file has changed, and takes it at the second look that finds the same one: whoever writes it may not be
    /// done, and the beginning of a list of rules is a list, too.
    pub fn look(&self) -> Look {
        let Some(path) = self.source.path() else { return Look::Same };
        let mut seen = self.seen.lock();
        let found = stamp_of(path).ok();
        let settled = found == std::mem::replace(&mut seen.looked, found);
        match found {
            Some(_) if found == seen.stamp || !settled => Look::Same,
            None if seen.unreadable => Look::Same,
            _ => self.take(&mut seen),
        }
    }

    /// Reads the rules again, under defaults that may be others than before, and changes nothing: they hold once that is given to
    /// [`Access::put_in_force`] which this returns.
    ///
    /// # Errors
    /// If the file cannot be read, or is faulty.
    pub fn prepare(&self, otherwise: Otherwise, admin_group: &str) -> Result<PreparedRules, AclError> {
        let read = || self.not_emptied(self.parse(read_bounded, otherwise, admin_group)?);
        let rules = self.source.path().map(|_| self.readings.read(read)).transpose()?;
        Ok(PreparedRules { rules, defaults: (otherwise, admin_group.into()) })
    }

    /// Makes prepared rules those that hold from now on. If others have been read from the file meanwhile, these stay, under the new
    /// defaults.
    pub fn put_in_force(&self, PreparedRules { rules, defaults }: PreparedRules) -> Changes {
        let newest = rules.and_then(|rules| {
            self.readings.put(rules, |rules| self.put_under(defaults.clone(), Some(rules)))
        });
        newest.unwrap_or_else(|| self.put_under(defaults, None))
    }

    /// Puts other defaults in force, and other rules if there are any.
    fn put_under(&self, new: Defaults, rules: Option<RuleSet>) -> Changes {
        let mut defaults = self.defaults.write();
        *defaults = new;
        let before = self.rules();
        let rules = rules.unwrap_or_else(|| {
            let (otherwise, admin_group) = &*defaults;
            let rules = before.under(*otherwise, admin_group);
            // Until it is known what is in the directory everything is denied.
            let known = self.known.load(Ordering::Acquire);
            if known && !rules.is_lost(&before) { rules } else { before.under(Otherwise::Deny, admin_group) }
        });
        let changes = Changes::between(&before, &rules);
        self.put(Arc::new(rules));
        changes
    }

    /// Parses the text that `read` gives.
    fn parse(
        &self,
        read: impl FnOnce(&Path) -> io::Result<String>,
        otherwise: Otherwise,
        admin_group: &str,
    ) -> Result<RuleSet, AclError> {
        let path = self.source.path().unwrap_or(Path::new(""));
        let key = self.source.key();
        let text =
            read(path).map_err(|source| AclError::Unreadable { path: path.to_owned(), key, source })?;
        RuleSet::parse(&self.source, &text, otherwise, admin_group).map_err(|fault| AclError::Faulty {
            path: path.to_owned(),
            key,
            fault,
        })
    }

    fn take(&self, seen: &mut Seen) -> Look {
        let put = |read| self.readings.put(read, |rules| self.put_read(rules));
        match self.readings.read(|| self.read(seen)).map(put) {
            Ok(Some(Ok(changes))) => Look::Changed(changes),
            Ok(None) => Look::Same,
            Ok(Some(Err(error))) | Err(error) => Look::Kept(error),
        }
    }

    /// Puts the rules of the file in force, under the defaults that hold by now.
    fn put_read(&self, rules: RuleSet) -> Result<Changes, AclError> {
        let defaults = self.defaults.read();
        let rules = self.not_emptied(rules.under(defaults.0, &defaults.1))?;
        let changes = Changes::between(&self.rules(), &rules);
        self.put(Arc::new(rules));
        Ok(changes)
    }

    /// Returns the rules that were read.
    ///
    /// # Errors
    /// If the file has lost all that was in it, so that everything would be allowed from now on.
    fn not_emptied(&self, rules: RuleSet) -> Result<RuleSet, AclError> {
        if !rules.is_lost(&self.rules()) {
            return Ok(rules);
        }
        let why =
            "nothing is left in the file, and everything would be allowed: write `rules: []` if it is to be"
                .to_owned();
        let path = self.source.path().unwrap_or(Path::new("")).to_owned();
        let fault = Fault { rule: None, line: 1, key: None, why };
        Err(AclError::Faulty { path, key: self.source.key(), fault })
    }

    /// Reads the rules of the file.
    fn read(&self, seen: &mut Seen) -> Result<RuleSet, AclError> {
        let path = self.source.path().unwrap_or(Path::new(""));
        // Before its content: what changes in between is found by the next look.
        let stamp = stamp_of(path);
        seen.unreadable = stamp.is_err();
        seen.stamp = stamp.as_ref().ok().copied();
        let (otherwise, admin_group) = self.defaults.read().clone();
        self.parse(|path| stamp.and_then(|_| read_bounded(path)), otherwise, &admin_group)
    }

    fn put(&self, rules: Arc<RuleSet>) {
        let mut current = self.current.write();
        let version = if rules.restricts() { self.changes.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        *current = rules;
        // Under the lock: whoever sees the new version finds the new rules.
        self.version.store(version, Ordering::Release);
    }
}

impl Permissions for Access {
    fn restricts(&self) -> bool {
        self.tokens || self.version.load(Ordering::Acquire) > 0
    }

    fn version(&self, who: &Identity) -> u64 {
        // What a token says does not change, but what it does not speak of may.
        self.version.load(Ordering::Acquire) + u64::from(who.account.claims.is_some())
    }

    fn ruling(&self, who: &Identity, ask: &Ask<'_>) -> Ruling {
        claims::ruling(who, ask).unwrap_or_else(|| self.rules().ruling(who, ask))
    }

    fn shown(&self, by: &By) -> Option<String> {
        Permissions::shown(&*self.rules(), by)
    }

    fn proposed(&self, record: &[u8]) -> Option<Arc<dyn Proposed>> {
        let rules = self.stored(record).ok()?;
        Some(Arc::new(rules))
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(ACL_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > ACL_FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {ACL_FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn stamp_of(path: &Path) -> io::Result<Stamp> {
    std::fs::metadata(path).map(|m| Stamp::of(&m))
}
