//! Users with passwords in a file.

use super::{Files, VERSIONS, answer};
use crate::broker::{Broker, Setup};
use crate::client::Dial;
use crate::wait;
use berth::mqtt::{QoS, Reason, Version};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn mosquitto(program: &str, broker: &Broker, version: &str, args: &[&str]) -> (bool, String) {
    let port = broker.mqtt.port().to_string();
    let done = Command::new(program)
        .args(["-h", "127.0.0.1", "-p", &port, "-V", version])
        .args(args)
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn who_knows_the_password_is_let_in_in_every_version() {
    let files = Files::new();
    files.user("alice", "correct horse");
    let broker = files.setup().start();
    for version in VERSIONS {
        let dial = || Dial::new(version, "c");
        let cases = [
            (dial().user("alice", "correct horse"), Reason::Success),
            (dial().user("alice", "battery staple"), Reason::BadUserNameOrPassword),
            (dial().user("alice", ""), Reason::BadUserNameOrPassword),
            // The same answer as to a wrong password.
            (dial().user("nobody", "correct horse"), Reason::BadUserNameOrPassword),
            (dial().user("Alice", "correct horse"), Reason::BadUserNameOrPassword),
            (dial(), Reason::NotAuthorized),
        ];
        for (dial, expected) in cases {
            assert_eq!(answer(&dial, broker.mqtt), expected, "{dial:?}");
        }
    }
    // Once a kind and address, not once a packet.
    let log = broker.log();
    for why in ["wrong password of user alice", "no method knows its user name", "it shows no user name"] {
        assert_eq!(log.matches(why).count(), 1, "{why} in\n{log}");
    }
    let metric =
        |outcome: &str| broker.metric(&format!("berth_auth_decisions_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(
        [metric("accepted"), metric("wrong_password"), metric("unknown_user"), metric("no_credentials")],
        [3.0, 6.0, 6.0, 3.0]
    );
}

#[test]
fn mosquittos_clients_with_files_of_mosquitto_and_of_berth() {
    let files = Files::new();
    files.user("alice", "correct horse");
    let (users, theirs) = (files.users(), files.path("theirs"));
    for (kind, name) in [("sha512-pbkdf2", "bob"), ("sha512", "carol")] {
        let create: &[&str] = if theirs.exists() { &[] } else { &["-c"] };
        let mut command = Command::new("mosquitto_passwd");
        command.args(create).args(["-H", kind, "-b"]).arg(&theirs).args([name, "hunter2"]);
        assert!(command.status().unwrap().success());
    }
    let both = std::fs::read_to_string(&users).unwrap() + &std::fs::read_to_string(&theirs).unwrap();
    files.write("users", both);
    let broker = files.setup().start();
    for version in ["311", "5"] {
        for (user, password, fits) in [
            ("alice", "correct horse", true),
            ("bob", "hunter2", true),
            ("carol", "hunter2", true),
            ("alice", "hunter2", false),
            ("bob", "correct horse", false),
            ("dave", "hunter2", false),
        ] {
            let args = ["-u", user, "-P", password, "-t", "t", "-q", "1", "-m", user, "-r"];
            let (published, said) = mosquitto("mosquitto_pub", &broker, version, &args);
            assert_eq!(published, fits, "{user} {version}: {said}");
            if fits {
                let args = ["-u", user, "-P", password, "-t", "t", "-C", "1", "-W", "10"];
                assert_eq!(mosquitto("mosquitto_sub", &broker, version, &args), (true, format!("{user}\n")));
            } else {
                assert!(said.to_lowercase().contains("bad user"), "{said}");
            }
        }
    }
}

#[test]
fn passwd_keeps_what_it_is_not_asked_to_change() {
    let files = Files::new();
    files.user("alice", "one");
    let mode = || std::fs::metadata(files.users()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let done = files.passwd(&["bob", "--scram", "--group", "ops", "--group", "staff"], "two");
    assert!(done.status.success(), "{done:?}");
    let text = || std::fs::read_to_string(files.users()).unwrap();
    files.write("users", format!("# people\n{}", text()));
    let before = text();
    let bob = |text: &str| text.lines().find(|l| l.starts_with("bob:")).unwrap().to_owned();
    assert!(
        bob(&before).contains(":scram-sha-256=") && bob(&before).ends_with(":groups=ops,staff"),
        "{before}"
    );
    // A new password: new keys too, the same groups, everything else as it was.
    assert!(files.passwd(&["bob"], "three").status.success());
    let after = text();
    assert_ne!(bob(&after), bob(&before));
    assert!(bob(&after).contains(":scram-sha-256=") && bob(&after).ends_with(":groups=ops,staff"), "{after}");
    assert_eq!(after.replace(&bob(&after), ""), before.replace(&bob(&before), ""));
    assert!(files.passwd(&["alice", "--delete"], "").status.success());
    assert_eq!(text(), format!("# people\n{}\n", bob(&after)));
    std::fs::set_permissions(files.users(), std::fs::Permissions::from_mode(0o644)).unwrap();
    for (args, password, said) in [
        (&["alice", "--delete"][..], "", "has no user \"alice\""),
        (&["a:b"], "x", "cannot be a user's name"),
        (&["x", "--group", "a,b"], "x", "cannot be a group's name"),
        (&["x"], "", "the password is empty"),
    ] {
        let done = files.passwd(args, password);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && error.contains(said), "{args:?}: {error}");
    }
    assert_eq!(text(), format!("# people\n{}\n", bob(&after)), "nothing was changed");
    files.user("dave", "four");
    assert_eq!(mode() & 0o007, 0, "what others could read they cannot any more");
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start_and_is_named() {
    let files = Files::new();
    let hash = "$7$101$c2FsdHNhbHQ=$aGFzaA==";
    let start = |content: &str, mode: u32| {
        let path = files.write("users", content);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut broker = files.setup().spawn();
        assert!(!broker.wait().success());
        broker.log()
    };
    let log = start(&format!("alice:{hash}\nbob:hunter2\n"), 0o600);
    assert!(
        log.contains("users\" (auth.password.file), line 2: user \"bob\": the password is in plain text"),
        "{log}"
    );
    assert!(!log.contains("hunter2"), "{log}");
    let log = start(&format!("alice:{hash}\n"), 0o644);
    assert!(log.contains("every user of this machine can read it") && log.contains("chmod o= "), "{log}");
    std::fs::remove_file(files.users()).unwrap();
    let mut broker = files.setup().spawn();
    assert!(!broker.wait().success());
    assert!(broker.log().contains("(auth.password.file): No such file"), "{}", broker.log());
}

#[test]
fn accounts_that_are_removed_or_changed_lose_their_connections_and_others_do_not() {
    let files = Files::new();
    for (name, password) in [("alice", "a"), ("bob", "b"), ("carol", "c")] {
        files.user(name, password);
    }
    let mut broker = files.setup().set("auth.allow_anonymous", "true").start();
    let connect = |name: &str, password: &str, version| {
        Dial::new(version, name).user(name, password).connect(broker.mqtt)
    };
    let mut alice = connect("alice", "a", Version::V5);
    let mut bob = connect("bob", "b", Version::V5);
    let mut carol = connect("carol", "c", Version::V311);
    let mut nobody = Dial::v5("nobody").connect(broker.mqtt);
    files.user("bob", "new");
    assert_eq!(bob.expect_closed(), Some(Reason::NotAuthorized));
    assert_eq!(answer(&Dial::v5("bob").user("bob", "b"), broker.mqtt), Reason::BadUserNameOrPassword);
    assert_eq!(answer(&Dial::v5("bob").user("bob", "new"), broker.mqtt), Reason::Success);
    assert!(files.passwd(&["carol", "--delete"], "").status.success());
    assert_eq!(carol.expect_closed(), None);
    // A wrong file changes nothing.
    let good = std::fs::read_to_string(files.users()).unwrap();
    files.write("users", good.clone() + "mallory:plain\n");
    broker.wait_log(|l| l.contains("ERROR") && l.contains("users\" (auth.password.file), line 3"));
    assert_eq!(answer(&Dial::v5("x").user("alice", "a"), broker.mqtt), Reason::Success);
    files.write("users", "");
    assert_eq!(alice.expect_closed(), Some(Reason::NotAuthorized));
    nobody.publish("t", "still here", QoS::AtLeastOnce);
    wait::until_true("three were ended", || broker.metric("berth_accounts_withdrawn_total") >= 3.0);
}

#[test]
fn anonymous_clients_are_let_in_only_as_configured() {
    let files = Files::new();
    files.user("alice", "a");
    let with = |allow: &str| files.setup().set("auth.allow_anonymous", allow).start();
    for (broker, accounts, anonymous) in [
        (Broker::start(), false, Reason::Success),
        (Setup::new().set("auth.allow_anonymous", "false").start(), false, Reason::NotAuthorized),
        (with("auto"), true, Reason::NotAuthorized),
        (with("false"), true, Reason::NotAuthorized),
        (with("true"), true, Reason::Success),
    ] {
        assert_eq!(answer(&Dial::v5("x"), broker.mqtt), anonymous);
        // Where there are accounts a name must be true.
        let named = answer(&Dial::v5("y").user("bob", "b"), broker.mqtt);
        assert_eq!(named, if accounts { Reason::BadUserNameOrPassword } else { anonymous });
    }
}
