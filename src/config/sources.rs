//! The layers: collects what file, environment and flags say, and remembers where each value came from.

use super::kinds::Kind;
use super::listeners::{listed, split, unlisted};
use super::options::{self, SECTIONS};
use super::problem::{Problem, Problems, nearest};
use crate::yaml::{self, Entries, Node, Value};
use config::{Environment, Map, Source, ValueKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

const ENV_PREFIX: &str = "BERTH__";
const FILES: [&str; 2] = ["berth.yaml", "/etc/berth/berth.yaml"];

/// What every option says, by its key. Not shown: some are secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values of {} options", self.0.len())
    }
}

impl Values {
    /// Keys of the options that say something else in `other`, or are there in one of them only.
    pub fn differing(&self, other: &Values) -> Vec<String> {
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }

    /// Gives every option as a flag.
    pub(super) fn flags(&self) -> Vec<Flag> {
        self.0.iter().map(|(key, value)| Flag::set(key, value)).collect()
    }

    /// The option `key` says from now on what it says in `other`.
    pub fn take_from(&mut self, other: &Values, key: &str) {
        match other.0.get(key) {
            Some(value) => self.0.insert(key.to_owned(), value.clone()),
            None => self.0.remove(key),
        };
    }
}

/// An option given on the command line.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag, such as `--listen`.
    pub name: &'static str,
    /// The option's key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl std::fmt::Debug for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.key) // its value may be a secret
    }
}

impl Flag {
    /// `--set key=value`.
    pub fn set(key: &str, value: &str) -> Flag {
        Flag { name: "--set", key: key.to_owned(), value: value.to_owned() }
    }
}

/// What is above the defaults. The default is nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The YAML file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with `BERTH__` are ignored.
    pub env: HashMap<String, String>,
    /// Flags; the last one wins.
    pub flags: Vec<Flag>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The environment may hold secrets.
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// The process's environment and `flags`, with the file `config`, else `$BERTH_CONFIG`, else `./berth.yaml` or
    /// `/etc/berth/berth.yaml` if there is one.
    pub fn of_process(config: Option<PathBuf>, flags: Vec<Flag>) -> Sources {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        let env: HashMap<_, _> = std::env::vars_os().map(|(k, v)| (text(k), text(v))).collect();
        let named = || env.get("BERTH_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
        let found = || FILES.iter().map(PathBuf::from).find(|path| path.is_file());
        let file = config.or_else(named).or_else(found);
        Sources { file, env, flags }
    }

    /// Says in words that no file is read, and where one is looked for; `None` = there is one.
    pub fn without_file(&self) -> Option<String> {
        let places = FILES.join(" or ");
        let now = FILES.iter().find(|path| Path::new(path).is_file());
        let now = now.map_or_else(String::new, |path| format!("; {path} is there by now"));
        let words = format!(
            "no configuration file is read: there was none at the start ({places}, or what --config or BERTH_CONFIG names){now}"
        );
        self.file.is_none().then_some(words)
    }
}

struct Given {
    value: String,
    source: String,
}

/// An option as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key, such as `limits.max_qos`.
    pub key: String,
    /// Its value as text, without secrets.
    pub value: String,
    /// Where it comes from: `default`, or a file, an environment variable or a flag.
    pub source: String,
}

/// Hands out options, notes problems on the way.
pub(super) struct Reader {
    given: BTreeMap<String, Given>,
    /// Listeners that are named, be it without any option.
    listeners: BTreeSet<String>,
    /// True if there is no file, or nothing in it but comments.
    blank: bool,
    problems: Vec<Problem>,
    /// What every option that was taken says.
    taken: Values,
    /// Every option as operators see it: its value, without a secret, and where that comes from.
    shown: Vec<Setting>,
}

impl Reader {
    /// Collects all layers; later ones win.
    pub(super) fn open(sources: &Sources) -> Reader {
        let mut reader = Reader {
            given: BTreeMap::new(),
            listeners: BTreeSet::new(),
            blank: true,
            problems: Vec::new(),
            taken: Values::default(),
            shown: Vec::new(),
        };
        if let Some(path) = &sources.file {
            match read_file(path) {
                Ok(None) => {}
                Ok(Some(entries)) => {
                    reader.blank = false;
                    reader.add("", &entries, &path.display().to_string());
                }
                Err((line, reason)) => {
                    reader.problem("", None, reason, of_file(&path.display().to_string(), line));
                }
            }
        }
        let ours = sources.env.iter().filter(|(k, _)| k.starts_with(ENV_PREFIX));
        let environment = Environment::with_prefix("BERTH")
            .prefix_separator("__")
            .separator("__")
            .source(Some(ours.map(|(k, v)| (k.clone(), v.clone())).collect()));
        match environment.collect() {
            Ok(values) => reader.add_variables("", &values),
            Err(error) => reader.problem("", None, error.to_string(), "env".to_owned()),
        }
        for flag in &sources.flags {
            reader.add_leaf(&flag.key, flag.value.clone(), format!("flag {}", flag.name));
        }
        reader
    }

    /// Adds what a table of the file says, whose entries' keys begin with `prefix`.
    fn add(&mut self, prefix: &str, entries: &[(String, usize, Node)], file: &str) {
        for (name, line, node) in entries {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let source = of_file(file, *line);
            if let Some((listener, "")) = split(&key)
                && matches!(node.value, Value::Table(_) | Value::Nothing)
            {
                self.listeners.insert(listener.to_owned());
            }
            match &node.value {
                // With nothing in it, its name is all that can be wrong.
                Value::Table(inner) if inner.is_empty() && !is_option(&key) && !is_section(&key) => {
                    self.unknown(&key, source);
                }
                Value::Table(inner) if !is_option(&key) => self.add(&key, inner, file),
                // An empty section, or an option left blank: the default.
                Value::Nothing if is_option(&key) || is_section(&key) => {}
                value => match text_of(value) {
                    Ok(text) => self.add_leaf(&key, text, source),
                    Err(why) => self.problem(&key, None, why.to_owned(), source),
                },
            }
        }
    }

    /// Adds what environment variables say, all of them texts.
    fn add_variables(&mut self, prefix: &str, values: &Map<String, config::Value>) {
        for (name, value) in values {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let source = format!("env {ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"));
            match &value.kind {
                ValueKind::Table(inner) => self.add_variables(&key, inner),
                ValueKind::String(text) => self.add_leaf(&key, text.clone(), source),
                _ => self.problem(&key, None, "expected one value".to_owned(), source),
            }
        }
    }

    fn add_leaf(&mut self, key: &str, value: String, source: String) {
        if is_option(key) {
            if let Some((listener, _)) = split(key) {
                self.listeners.insert(listener.to_owned());
            }
            self.given.insert(key.to_owned(), Given { value, source });
        } else if is_section(key) {
            let reason = "this is a section, not an option".to_owned();
            self.problem(key, Some(value), reason, source);
        } else {
            self.unknown(key, source);
        }
    }

    /// Notes a name that no option has. Without its value: it may be a secret under a name with a slip in it.
    fn unknown(&mut self, key: &str, source: String) {
        let reason = match nearest(&listed(key), options::keys()) {
            Some(known) => format!("unknown option; did you mean {}?", unlisted(&known, key)),
            None => "unknown option; `berth config defaults` lists all".to_owned(),
        };
        self.problem(key, None, reason, source);
    }

    fn problem(&mut self, key: &str, value: Option<String>, reason: String, source: String) {
        self.problems.push(Problem { key: key.to_owned(), value, reason, source });
    }

    /// The value of option `key`; `None` if what was given is wrong, which is noted.
    pub(super) fn take<K: Kind>(&mut self, key: &str, default: &str) -> Option<K::Value> {
        let (text, source) = match self.given.get(key) {
            Some(setting) => (&*setting.value, &*setting.source),
            None => (default, "default"),
        };
        self.taken.0.insert(key.to_owned(), text.trim().to_owned());
        let value = K::parse(text.trim());
        let (shown, source) = (K::shown(text.trim()), source.to_owned());
        self.shown.push(Setting { key: key.to_owned(), value: shown.clone(), source: source.clone() });
        if value.is_none() {
            self.problem(key, Some(shown), format!("expected {}", K::expects()), source);
        }
        value
    }

    /// What every option says.
    pub(super) fn taken(&mut self) -> Values {
        std::mem::take(&mut self.taken)
    }

    /// Tells if there is no file, or nothing in it but comments.
    pub(super) fn is_blank(&self) -> bool {
        self.blank
    }

    /// The options that were handed out, in this order.
    pub(super) fn settings(&self) -> Vec<Setting> {
        self.shown.clone()
    }

    /// Names of the listeners that are configured.
    pub(super) fn listeners(&self) -> impl Iterator<Item = String> {
        self.listeners.iter().cloned()
    }

    /// Notes that the value of `key` cannot be used, though it is well-formed.
    pub(super) fn refuse(&mut self, key: &str, reason: &str) {
        let given = self.given.contains_key(key);
        let taken = self.shown.iter().find(|taken| taken.key == key && given);
        let (value, source) = match taken {
            Some(taken) => (Some(taken.value.clone()), taken.source.clone()),
            None => (None, "default".to_owned()),
        };
        self.problem(key, value, reason.to_owned(), source);
    }

    /// What was noted.
    pub(super) fn finish(self) -> Problems {
        Problems(self.problems)
    }
}

fn is_option(key: &str) -> bool {
    options::keys().any(|k| k == listed(key))
}

fn is_section(key: &str) -> bool {
    let key = &*listed(key);
    SECTIONS
        .iter()
        .any(|s| s.path == key || s.path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// Where in a file something is, for people; line 0 = in no line of it.
fn of_file(file: &str, line: usize) -> String {
    if line > 0 { format!("file {file}, line {line}") } else { format!("file {file}") }
}

/// Reads a file: its entries, each with its line; `None` = there is nothing in it but comments.
///
/// # Errors
/// The line, or 0, and what is wrong.
fn read_file(path: &Path) -> Result<Option<Entries>, (usize, String)> {
    let text =
        std::fs::read_to_string(path).map_err(|e| (0, format!("cannot read the configuration file: {e}")))?;
    let faulty = |line: usize, why: &str| (line, format!("not a valid YAML file: {why}"));
    match yaml::read(&text).map_err(|e| faulty(e.line, &e.why))? {
        None => Ok(None),
        Some(Node { value: Value::Table(entries), .. }) => Ok(Some(entries)),
        Some(node) => Err(faulty(node.line, "expected a table of sections")),
    }
}

/// A text as it is written; a list of texts with commas between.
///
/// # Errors
/// Why it cannot be the value of an option.
fn text_of(value: &Value) -> Result<String, &'static str> {
    let one = |item: &Node| match &item.value {
        Value::Text(text) if text.contains(',') => Err("an entry of a list must not have a comma in it"),
        Value::Text(text) => Ok(text.clone()),
        Value::Nothing | Value::List(_) | Value::Table(_) => Err("expected a list of texts"),
    };
    match value {
        Value::Text(text) => Ok(text.clone()),
        Value::List(items) => Ok(items.iter().map(one).collect::<Result<Vec<_>, _>>()?.join(",")),
        // `~` or a table where a value is wanted.
        Value::Nothing | Value::Table(_) => Err("expected one value"),
    }
}
