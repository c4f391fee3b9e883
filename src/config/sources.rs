//! The layers: collects what file, environment and flags say, and remembers where each value came from.

use super::kinds::Kind;
use super::listeners::{listed, split, unlisted};
use super::options::{self, SECTIONS};
use super::problem::{Problem, Problems, nearest};
use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
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
    origin: String,
}

/// An option as it is in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key, such as `limits.max_qos`.
    pub key: String,
    /// Its value as text, without secrets.
    pub value: String,
    /// Where it comes from: `default`, or a file, an environment variable or a flag.
    pub origin: String,
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
                Ok(Some(values)) => {
                    reader.blank = false;
                    reader.add("", &values, &|_| format!("file {}", path.display()));
                }
                Err(reason) => reader.problem("", None, reason, format!("file {}", path.display())),
            }
        }
        let ours = sources.env.iter().filter(|(k, _)| k.starts_with(ENV_PREFIX));
        let environment = Environment::with_prefix("BERTH")
            .prefix_separator("__")
            .separator("__")
            .source(Some(ours.map(|(k, v)| (k.clone(), v.clone())).collect()));
        let variable = |key: &str| format!("env {ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"));
        match environment.collect() {
            Ok(values) => reader.add("", &values, &variable),
            Err(error) => reader.problem("", None, error.to_string(), "env".to_owned()),
        }
        for flag in &sources.flags {
            reader.add_leaf(&flag.key, flag.value.clone(), format!("flag {}", flag.name));
        }
        reader
    }

    fn add(&mut self, prefix: &str, values: &Map<String, Value>, origin: &dyn Fn(&str) -> String) {
        for (name, value) in values {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if let Some((listener, "")) = split(&key)
                && matches!(&value.kind, ValueKind::Table(_) | ValueKind::Nil)
            {
                self.listeners.insert(listener.to_owned());
            }
            match &value.kind {
                // With nothing in it, its name is all that can be wrong.
                ValueKind::Table(inner) if inner.is_empty() && !is_option(&key) && !is_section(&key) => {
                    self.unknown(&key, origin(&key));
                }
                ValueKind::Table(inner) if !is_option(&key) => self.add(&key, inner, origin),
                // An empty section, or an option left blank: the default.
                ValueKind::Nil if is_option(&key) || is_section(&key) => {}
                kind => match text_of(kind) {
                    Some(text) => self.add_leaf(&key, text, origin(&key)),
                    None => self.problem(&key, None, "expected one value".to_owned(), origin(&key)),
                },
            }
        }
    }

    fn add_leaf(&mut self, key: &str, value: String, origin: String) {
        if is_option(key) {
            if let Some((listener, _)) = split(key) {
                self.listeners.insert(listener.to_owned());
            }
            self.given.insert(key.to_owned(), Given { value, origin });
        } else if is_section(key) {
            let reason = "this is a section, not an option".to_owned();
            self.problem(key, Some(value), reason, origin);
        } else {
            self.unknown(key, origin);
        }
    }

    /// Notes a name that no option has. Without its value: it may be a secret under a name with a slip in it.
    fn unknown(&mut self, key: &str, origin: String) {
        let reason = match nearest(&listed(key), options::keys()) {
            Some(known) => format!("unknown option; did you mean {}?", unlisted(&known, key)),
            None => "unknown option; `berth config defaults` lists all".to_owned(),
        };
        self.problem(key, None, reason, origin);
    }

    fn problem(&mut self, key: &str, value: Option<String>, reason: String, origin: String) {
        self.problems.push(Problem { key: key.to_owned(), value, reason, origin });
    }

    /// The value of option `key`; `None` if what was given is wrong, which is noted.
    pub(super) fn take<K: Kind>(&mut self, key: &str, default: &str) -> Option<K::Value> {
        let (text, origin) = match self.given.get(key) {
            Some(setting) => (&*setting.value, &*setting.origin),
            None => (default, "default"),
        };
        self.taken.0.insert(key.to_owned(), text.trim().to_owned());
        let value = K::parse(text.trim());
        let (shown, origin) = (K::shown(text.trim()), origin.to_owned());
        self.shown.push(Setting { key: key.to_owned(), value: shown.clone(), origin: origin.clone() });
        if value.is_none() {
            self.problem(key, Some(shown), format!("expected {}", K::expects()), origin);
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
        let (value, origin) = match taken {
            Some(taken) => (Some(taken.value.clone()), taken.origin.clone()),
            None => (None, "default".to_owned()),
        };
        self.problem(key, value, reason.to_owned(), origin);
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

/// Reads a file; `None` = there is nothing in it but comments.
fn read_file(path: &Path) -> Result<Option<Map<String, Value>>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("cannot read the configuration file: {e}"))?;
    // Comments only: a document, but not a table.
    let blank =
        |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---";
    if text.lines().all(blank) {
        return Ok(None);
    }
    let values = File::from_str(&text, FileFormat::Yaml).collect();
    values.map(Some).map_err(|e| format!("not a valid YAML file: {e}"))
}

/// A scalar as one would write it; a list of scalars with commas between.
fn text_of(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(|item| text_of(&item.kind)).collect();
            texts.map(|t| t.join(","))
        }
        ValueKind::Table(_) => None,
        // `~` where a value is wanted.
        ValueKind::Nil => Some("null".to_owned()),
        ValueKind::Boolean(b) => Some(b.to_string()),
        ValueKind::I64(i) => Some(i.to_string()),
        ValueKind::I128(i) => Some(i.to_string()),
        ValueKind::U64(u) => Some(u.to_string()),
        ValueKind::U128(u) => Some(u.to_string()),
        ValueKind::Float(f) => Some(f.to_string()),
        ValueKind::String(s) => Some(s.clone()),
    }
}
