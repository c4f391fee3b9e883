//! `berth passwd`: writes the file of users.

use super::password::hash::Hash;
use super::password::scram::ScramKeys;
use super::password::users::{self, User};
use crate::secret_file::SECRET_FILE_MAX;
use clap::Args;
use rustix::fs::FlockOperation;
use rustix::termios::{LocalModes, OptionalActions, isatty, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Bytes of a password, as MQTT can carry one.
const PASSWORD_MAX: u64 = 65_535;

/// What to do with the file of users.
#[derive(Debug, Args)]
pub struct Passwd {
    /// The file (auth.password.file); made if it is not there
    file: PathBuf,
    /// The user
    user: String,
    /// Remove the user
    #[arg(long, conflicts_with_all = ["scram", "group"])]
    delete: bool,
    /// Store keys for SCRAM-SHA-256 as well
    #[arg(long)]
    scram: bool,
    /// A group that the user is in; repeatable. Without it the groups stay as they are
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
}

/// Changes the file; what was done, for people.
///
/// # Errors
/// What is wrong, and what to do.
pub fn run(args: &Passwd) -> Result<String, String> {
    let Passwd { file, user, .. } = args;
    if !users::is_name(user) {
        return Err(format!(
            "{user:?} cannot be a user's name: 1 to {} bytes without a colon, a comma, control characters or spaces at its ends",
            users::USER_NAME_MAX
        ));
    }
    if let Some(odd) = args.group.iter().find(|g| !users::is_name(g)) {
        return Err(format!("{odd:?} cannot be a group's name"));
    }
    // Asked for before the file is locked: people take their time.
    let password = if args.delete { None } else { Some(read_password(user)?) };
    let mut done = "added to";
    edit(file, user, |old| {
        let Some(password) = &password else {
            done = "removed from";
            let known = old.is_some();
            return if known { Ok(None) } else { Err(format!("{} has no user {user:?}", file.display())) };
        };
        if old.is_some() {
            done = "has a new password in";
        }
        let old = old.flatten();
        let keeps_scram = old.as_ref().is_some_and(|u| u.scram.is_some());
        let groups = match (&args.group[..], old) {
            ([], Some(old)) => old.groups,
            (groups, _) => groups.iter().map(|g| Arc::from(g.as_str())).collect(),
        };
        // Keys of the old password would be wrong.
        let scram = args.scram || keeps_scram;
        Ok(Some(User { groups, ..new_user(password, scram)? }))
    })?;
    Ok(format!("user {user} {done} {}\n", file.display()))
}

/// A user with this password, with keys for SCRAM-SHA-256 if `scram` says so, and in no group. Takes long, by design.
///
/// # Errors
/// If the system gives no random numbers, or no memory.
pub fn new_user(password: &[u8], scram: bool) -> Result<User, String> {
    let hash = Hash::new(password)?;
    let scram = scram.then(|| ScramKeys::new(password)).transpose()?;
    Ok(User { hash, scram, groups: Box::default(), version: 0 })
}

/// Changes one user of the file: `change` is given the user as it is (`None` = there is none, `Some(None)` = its line cannot be read),
/// and says what it becomes (`None` = it goes). All else stays as it is, and so does the file if `change` fails.
///
/// # Errors
/// If `change` fails, or the file cannot be read or written.
pub fn edit<E: From<String>>(
    file: &Path,
    user: &str,
    change: impl FnOnce(Option<Option<User>>) -> Result<Option<User>, E>,
) -> Result<(), E> {
    let target = Target::open(file)?;
    let text = target.text()?;
    let found = find(&text, user);
    let old = found.map(|(start, end)| user_in(text.get(start..end)?));
    let line = change(old)?.map(|user_now| users::line(user, &user_now) + "\n").unwrap_or_default();
    let text = match found {
        Some((start, end)) => {
            [text.get(..start).unwrap_or_default(), &line, text.get(end..).unwrap_or_default()].concat()
        }
        None if text.is_empty() || text.ends_with('\n') => text.to_string() + &line,
        None => text.to_string() + "\n" + &line,
    };
    Ok(target.write(&text)?)
}

/// Where the line of a user begins and ends, its end of line included.
fn find(text: &str, user: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        if users::name_in(line.trim_end_matches('\n')) == Some(user) {
            return Some((start, end));
        }
        start = end;
    }
    None
}

fn user_in(line: &str) -> Option<User> {
    let (_, fields) = line.trim_end_matches(['\n', '\r']).split_once(':')?;
    users::parse_fields(fields).ok()
}

/// From the terminal, twice and unseen; else the first line of standard input.
///
/// # Errors
/// If there is none, or it is too long.
pub fn read_password(user: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let stdin = io::stdin();
    let password = if isatty(&stdin) {
        let first = prompt(&format!("Password of {user}: "))?;
        if first != prompt("Again: ")? {
            return Err("the two passwords differ; nothing was changed".to_owned());
        }
        first
    } else {
        read_line()?
    };
    if password.is_empty() {
        return Err("the password is empty; nothing was changed".to_owned());
    }
    if password.len() as u64 > PASSWORD_MAX {
        return Err(format!("the password has more than {PASSWORD_MAX} bytes; nothing was changed"));
    }
    Ok(password)
}

fn read_line() -> Result<Zeroizing<Vec<u8>>, String> {
    let mut line = Zeroizing::new(Vec::new());
    let mut input = io::stdin().lock().take(PASSWORD_MAX + 3);
    input.read_until(b'\n', &mut line).map_err(|e| format!("cannot read the password: {e}"))?;
    while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        line.pop();
    }
    Ok(line)
}

fn prompt(text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let terminal = |e: rustix::io::Errno| format!("cannot use the terminal: {e}");
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(terminal)?;
    let mut unseen = before.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    unseen.local_modes.insert(LocalModes::ECHONL);
    let _ = write!(io::stderr(), "{text}");
    tcsetattr(&stdin, OptionalActions::Flush, &unseen).map_err(terminal)?;
    let line = read_line();
    tcsetattr(&stdin, OptionalActions::Now, &before).map_err(terminal)?;
    line
}

/// The file to be changed. Others that want to change it wait.
struct Target {
    /// Behind symbolic links.
    path: PathBuf,
    /// Locked until this is dropped: of the file itself another takes the place.
    directory: File,
}

impl Target {
    fn open(path: &Path) -> Result<Target, String> {
        let shown = path.display();
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(format!("cannot open {shown}: {e}")),
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = File::open(parent).map_err(|e| format!("cannot open {}: {e}", parent.display()))?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive)
            .map_err(|e| format!("cannot lock {}: {e}", parent.display()))?;
        Ok(Target { path, directory })
    }

    fn error(&self, what: &str, error: impl std::fmt::Display) -> String {
        format!("cannot {what} {}: {error}", self.path.display())
    }

    fn text(&self) -> Result<Zeroizing<String>, String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Zeroizing::default()),
            Err(e) => return Err(self.error("read", e)),
        };
        let mut text = Zeroizing::new(String::new());
        file.take(SECRET_FILE_MAX).read_to_string(&mut text).map_err(|e| self.error("read", e))?;
        Ok(text)
    }

    /// Puts a new file in the place of the old one, whole or not at all.
    fn write(&self, text: &str) -> Result<(), String> {
        let failed = |e: io::Error| self.error("write", e);
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let aside = self.path.with_file_name(name);
        let before = std::fs::metadata(&self.path).ok();
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            if let Some(before) = &before {
                let own = file.metadata()?;
                if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
                    // Or the broker, which runs as another user, could not read it any more.
                    fchown(&file, Some(before.uid()), Some(before.gid()))?;
                }
                let mode = 0o600 | before.mode() & 0o040;
                file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&aside, &self.path)?;
            self.directory.sync_all()
        })();
        written.map_err(|e| {
            let _ = std::fs::remove_file(&aside);
            failed(e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_user_is_found_whole() {
        let text = "# alice:x\nalice2:a\nalice:b\r\nbob";
        for (user, line) in [
            ("alice", Some("alice:b\r\n")),
            ("alice2", Some("alice2:a\n")),
            ("bob", Some("bob")),
            ("# alice", None),
        ] {
            assert_eq!(find(text, user).map(|(start, end)| &text[start..end]), line, "{user}");
        }
    }
}
