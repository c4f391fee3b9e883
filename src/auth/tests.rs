//! Files of accounts that are read by several at once.

use super::Accounts;
use super::jwt::{self, keys};
use crate::config::Config;
use crate::ports::{Account, AccountMark, Authorizer};
use crate::telemetry::Metrics;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

const HASH: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
const OLD: &str = "0123456789abcdef0123456789abcdef";
const NEW: &str = "fedcba9876543210fedcba9876543210";

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Tells if a token that was verified with this key counts.
fn counts(accounts: &Accounts, secret: &str) -> bool {
    let version = keys::of_key_file(secret.as_bytes()).unwrap()[0].version;
    accounts.holds(&Account { mark: AccountMark { source: jwt::SOURCE, version }, ..Account::default() })
}

/// Files that were read later stand, whoever comes last.
#[test]
fn a_reload_does_not_undo_accounts_that_were_read_after_it_had_read() {
    let dir = tempfile::tempdir().unwrap();
    let (users, key) = (dir.path().join("users"), dir.path().join("key"));
    write(&users, &format!("alice:{HASH}\nbob:{HASH}\n"));
    write(&key, OLD);
    let named = |path: &Path| path.to_str().unwrap().to_owned();
    let pairs = [("auth.password.file", named(&users)), ("auth.jwt.key_file", named(&key))];
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let accounts = Accounts::open(&Config::from_pairs(&pairs).unwrap(), Arc::new(Metrics::new())).unwrap();
    let knows = |name: &str| accounts.passwords().unwrap().find(name).unwrap().is_some();
    assert!(knows("alice") && knows("bob") && counts(&accounts, OLD));
    let prepared = accounts.prepare(|_| false).unwrap();
    write(&users, &format!("alice:{HASH}\n"));
    write(&key, NEW);
    assert_eq!(accounts.reload(true).changed.len(), 2);
    let said: Vec<String> = prepared.into_iter().map(|commit| commit()).collect();
    assert!(said.iter().any(|said| said.starts_with("1 users from")), "{said:?}");
    assert!(knows("alice") && !knows("bob"), "a user that was removed stays removed");
    assert!(counts(&accounts, NEW) && !counts(&accounts, OLD));
    assert_eq!(accounts.reload(false).changed, Vec::<String>::new());
    // Nothing in between.
    write(&users, &format!("bob:{HASH}\n"));
    accounts.prepare(|_| false).unwrap().into_iter().for_each(|commit| drop(commit()));
    assert!(knows("bob") && !knows("alice"));
}
