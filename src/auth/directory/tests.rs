//! What becomes of records that can be read, that cannot, and that are gone.

use super::*;
use crate::auth::acl::Otherwise;
use crate::auth::bans::Flapping;
use crate::auth::password::Checker;
use crate::auth::password::pool::PoolLimits;
use crate::clock::Time;
use crate::ports::{BanKind, ClusterTime};
use crate::ports::{Bans as _, Directory as _, Door, Identity, Permissions};

const HASH: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

struct Parts {
    directory: Directory,
    users: Arc<Passwords>,
    access: Arc<Access>,
    bans: Arc<Bans>,
}

fn parts() -> Parts {
    let metrics = Arc::new(Metrics::new());
    let limits = PoolLimits { parallel: 1, queue: 1, queue_per_address: 1 };
    let checker = Checker::start(limits, metrics.clone()).unwrap();
    let users = Arc::new(Passwords::of_directory(Arc::new(checker)));
    let access = Arc::new(Access::of_directory(Otherwise::Auto, "admins"));
    let bans = Arc::new(Bans::open(None, None, Time(1)).unwrap());
    bans.pass_by(Arc::new(ClusterTime::own_clock()));
    let directory = Directory::new(Some(users.clone()), Some(access.clone()), bans.clone(), metrics);
    Parts { directory, users, access, bans }
}

fn user(name: &str) -> DirectoryKey {
    DirectoryKey::User(name.into())
}

fn ban(name: &str) -> DirectoryKey {
    DirectoryKey::Ban { kind: BanKind::Client, name: name.into() }
}

fn account(groups: &[&str]) -> Vec<u8> {
    let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
    write_user(&user_of(HASH, None, &groups).unwrap())
}

impl Parts {
    fn apply(&self, key: &DirectoryKey, value: Option<&[u8]>) -> DirectoryOutcome {
        self.directory.apply(key, value)
    }

    fn snapshot(&self, records: &[(&DirectoryKey, &[u8])]) -> Vec<DirectoryKey> {
        self.directory.begin_snapshot();
        for (key, value) in records {
            self.apply(key, Some(value));
        }
        self.directory.end_snapshot()
    }

    /// The version of a user; `None` = it is none.
    fn version(&self, name: &str) -> Option<u64> {
        self.users.find(name).unwrap().map(|(_, user)| user.version)
    }

    fn banned(&self, client: &str, now: u64) -> bool {
        let who = Identity {
            client_id: client.into(),
            username: None,
            door: Door::tcp("127.0.0.1:1".parse().unwrap()),
            account: Arc::default(),
        };
        self.bans.banned(&who, Time(now)).is_some()
    }

    fn unreadable(&self) -> Vec<String> {
        let keys = self.directory.unreadable().0;
        keys.iter().map(|text| text.split(": ").next().unwrap_or_default().to_owned()).collect()
    }
}

const RULES: &[u8] = br#"{"v":1,"rules":[{"allow":"all","topics":["a/#"]}]}"#;

#[test]
fn before_anything_is_known_nobody_is_let_in_and_nothing_is_allowed() {
    let parts = parts();
    assert_eq!(
        parts.users.find("alice").unwrap_err().kind,
        crate::telemetry::metrics::AuthDecision::Unavailable
    );
    assert!(parts.access.restricts());
    assert_eq!(parts.snapshot(&[]), []);
    assert_eq!(parts.users.find("alice").unwrap(), None);
    assert!(!parts.access.restricts(), "there are no rules, and auto allows then");
}

#[test]
fn what_the_journal_has_holds_until_the_store_is_read() {
    let record = |key: DirectoryKey, value: &[u8]| DirectoryRecord { key, value: value.into() };
    let forever = br#"{"v":1,"since":1}"#;
    let parts = parts();
    parts.directory.recover(&[
        record(user("alice"), &account(&[])),
        record(DirectoryKey::Rules, RULES),
        record(ban("c"), forever),
    ]);
    assert!(parts.version("alice").is_some() && parts.version("bob").is_none());
    assert!(parts.access.restricts() && parts.banned("c", 5));
    // What the store has as well is not written again; what it lacks goes, but for the rules, which nobody removes like that.
    parts.directory.begin_snapshot();
    assert_eq!(parts.apply(&user("bob"), Some(&account(&[]))), DirectoryOutcome::Changed);
    assert_eq!(parts.apply(&ban("c"), Some(forever)), DirectoryOutcome::Same);
    assert_eq!(parts.directory.end_snapshot(), [user("alice")]);
    assert!(parts.version("alice").is_none() && parts.version("bob").is_some());
    assert!(parts.access.restricts() && parts.banned("c", 5));
    assert_eq!(parts.unreadable(), ["acl/rules"]);
    assert_eq!(parts.directory.rules().as_deref(), Some(RULES));
    assert_eq!(parts.apply(&DirectoryKey::Rules, Some(br#"{"v":1,"rules":[]}"#)), DirectoryOutcome::Changed);
    assert!(!parts.access.restricts() && parts.unreadable().is_empty());
}

#[test]
fn what_cannot_be_read_opens_nothing() {
    let values: [&[u8]; 7] = [
        b"",
        b"hunter2",
        br#"{"v":2,"hash":"$x","since":1,"rules":[]}"#,
        br#"{"v":1,"hash":"hunter2"}"#,
        br#"{"v":1,"hash":"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4","locked":true}"#,
        br#"{"v":1,"since":"hunter2"}"#,
        br#"{"v":1,"rules":[{"allow":"all"}]}"#,
    ];
    for value in values {
        let shown = String::from_utf8_lossy(value);
        let parts = parts();
        parts.snapshot(&[]);
        // Nothing was there before.
        for key in [user("alice"), ban("c"), DirectoryKey::Rules] {
            assert_eq!(parts.apply(&key, Some(value)), DirectoryOutcome::Kept, "{key} {shown}");
        }
        assert_eq!(parts.unreadable(), ["acl/rules", "bans/client/c", "users/alice"], "{shown}");
        let said = parts.directory.unreadable().0.concat();
        assert!(!said.contains("hunter2"), "{said}");
        assert!(parts.version("alice").is_none() && !parts.banned("c", 5));
        // The last good ones were.
        assert_eq!(parts.apply(&user("alice"), Some(&account(&[]))), DirectoryOutcome::Changed);
        assert_eq!(parts.apply(&ban("c"), Some(br#"{"v":1,"since":1}"#)), DirectoryOutcome::Changed);
        assert_eq!(parts.apply(&DirectoryKey::Rules, Some(RULES)), DirectoryOutcome::Changed);
        assert!(parts.unreadable().is_empty());
        for key in [user("alice"), ban("c"), DirectoryKey::Rules] {
            assert_eq!(parts.apply(&key, Some(value)), DirectoryOutcome::Kept, "{key} {shown}");
        }
        assert!(parts.version("alice").is_none(), "a user whose record cannot be read is locked out");
        assert!(parts.banned("c", 5) && parts.access.restricts());
        assert_eq!(parts.apply(&user("alice"), None), DirectoryOutcome::Changed);
        assert_eq!(parts.apply(&ban("c"), None), DirectoryOutcome::Changed);
        assert_eq!(parts.apply(&DirectoryKey::Rules, None), DirectoryOutcome::Kept);
        assert!(!parts.banned("c", 5) && parts.access.restricts());
        assert_eq!(parts.unreadable(), ["acl/rules"]);
    }
}

#[test]
fn unreadable_rules_that_were_never_read_deny_everything() {
    let parts = parts();
    assert_eq!(parts.snapshot(&[(&DirectoryKey::Rules, b"?")]), []);
    assert!(parts.access.restricts());
    assert!(!parts.access.rules().allows_otherwise());
    parts.snapshot(&[(&DirectoryKey::Rules, b"?")]);
    assert!(parts.access.restricts(), "another snapshot changes nothing");
}

#[test]
fn a_change_has_another_version_and_the_same_again_has_not() {
    let parts = parts();
    parts.snapshot(&[]);
    assert_eq!(parts.apply(&user("alice"), Some(&account(&[]))), DirectoryOutcome::Changed);
    let first = parts.version("alice");
    assert_eq!(parts.apply(&user("alice"), Some(&account(&[]))), DirectoryOutcome::Same);
    assert_eq!(parts.version("alice"), first);
    assert_eq!(parts.apply(&user("alice"), Some(&account(&["ops"]))), DirectoryOutcome::Changed);
    assert_ne!(parts.version("alice"), first);
    assert_eq!(parts.apply(&user("a:b"), Some(&account(&[]))), DirectoryOutcome::Kept, "no name of a user");
}

#[test]
fn bans_pass_by_the_clusters_time_and_have_one_name() {
    let parts = parts();
    parts.snapshot(&[(&ban("c"), br#"{"v":1,"since":1,"until":100,"reason":"noise"}"#)]);
    assert!(parts.banned("c", 99) && !parts.banned("c", 100));
    assert_eq!(parts.bans.passed(Time(100), 9), [(BanKind::Client, "c".to_owned())]);
    assert!(parts.bans.list(Time(100)).is_empty() && parts.bans.list(Time(99)).len() == 1);
    let network = |name: &str| DirectoryKey::Ban { kind: BanKind::Address, name: name.into() };
    let forever = br#"{"v":1,"since":1}"#;
    assert_eq!(parts.apply(&network("127.0.0.1"), Some(forever)), DirectoryOutcome::Changed);
    assert!(parts.banned("other", 5));
    assert_eq!(parts.apply(&network("127.0.0.1"), None), DirectoryOutcome::Changed);
    assert!(!parts.banned("other", 5));
    assert_eq!(
        parts.apply(&network("127.0.0.1/8"), Some(forever)),
        DirectoryOutcome::Kept,
        "not its only form"
    );
    assert_eq!(parts.apply(&network("here"), Some(forever)), DirectoryOutcome::Kept);
}

#[test]
fn a_reload_leaves_what_is_in_the_directory() {
    let parts = parts();
    let reload = |otherwise: Otherwise| {
        parts.access.put_in_force(parts.access.prepare(otherwise, "admins").unwrap());
        let flapping = Flapping { connects: 1, within_ms: 1_000, ban_ms: 10_000 };
        parts.bans.put_all(parts.bans.prepare(Some(flapping), Time(5)).unwrap(), Time(5))
    };
    assert_eq!(reload(Otherwise::Allow), 0);
    assert!(!parts.access.rules().allows_otherwise(), "it is not known yet whether there are rules");
    parts.snapshot(&[(&DirectoryKey::Rules, RULES), (&ban("c"), br#"{"v":1,"since":1}"#)]);
    assert_eq!((parts.access.rules().shown().len(), parts.access.rules().allows_otherwise()), (1, true));
    for (otherwise, allows) in [(Otherwise::Auto, false), (Otherwise::Deny, false), (Otherwise::Allow, true)]
    {
        reload(otherwise);
        let rules = parts.access.rules();
        assert_eq!((rules.shown().len(), rules.allows_otherwise()), (1, allows), "{otherwise:?}");
        assert!(parts.banned("c", 5));
    }
    // What changes later does so under the defaults that hold.
    let two = br#"{"v":1,"rules":[{"allow":"all","topics":["a"]},{"allow":"all","topics":["b"]}]}"#;
    assert_eq!(parts.apply(&DirectoryKey::Rules, Some(two)), DirectoryOutcome::Changed);
    assert_eq!((parts.access.rules().shown().len(), parts.access.rules().allows_otherwise()), (2, true));
}

#[test]
fn a_reload_reads_the_bans_of_the_node_and_keeps_those_of_clients_that_flap() {
    let dir = tempfile::tempdir().unwrap();
    let flapping = Flapping { connects: 1, within_ms: 1_000, ban_ms: 10_000 };
    let bans = Bans::open(Some(dir.path()), Some(flapping), Time(1)).unwrap();
    let by_hand = |name: &str| {
        let text = format!(r#"[{{"kind":"client","name":"{name}","since":1}}]"#);
        std::fs::write(dir.path().join("bans.json"), text).unwrap();
    };
    let who = Identity {
        client_id: "flaps".into(),
        username: None,
        door: Door::tcp("127.0.0.1:1".parse().unwrap()),
        account: Arc::default(),
    };
    assert!(bans.connects(&who, Time(2)).is_none() && bans.connects(&who, Time(3)).is_some());
    let names = || bans.list(Time(5)).into_iter().map(|ban| ban.name).collect::<Vec<_>>();
    by_hand("x");
    assert_eq!(names(), ["flaps"]);
    assert_eq!(bans.put_all(bans.prepare(Some(flapping), Time(5)).unwrap(), Time(5)), 2);
    assert_eq!(names(), ["flaps", "x"]);
    // An order that comes between reading and putting in force is not undone.
    by_hand("y");
    let prepared = bans.prepare(Some(flapping), Time(5)).unwrap();
    bans.remove(BanKind::Client, "x", Time(5)).unwrap();
    assert_eq!(bans.put_all(prepared, Time(5)), 1);
    assert_eq!(names(), ["flaps"]);
    // Nobody is banned for flapping any more once that is off.
    bans.put_all(bans.prepare(None, Time(5)).unwrap(), Time(5));
    let other = Identity { client_id: "other".into(), ..who };
    assert!((0..9).all(|_| bans.connects(&other, Time(6)).is_none()));
    std::fs::write(dir.path().join("bans.json"), "[").unwrap();
    assert!(bans.prepare(None, Time(5)).is_err());
    assert_eq!(names(), ["flaps"]);
}
