use super::*;
use crate::ports::{Account, Door};

/// `client[@user][+group…][ from address][ by listener]`
fn identity(text: &str) -> Identity {
    let mut words = text.split(' ');
    let (name, groups) =
        words.next().unwrap().split_once('+').unwrap_or((text.split(' ').next().unwrap(), ""));
    let (client, user) = name.split_once('@').map_or((name, None), |(c, u)| (c, Some(u)));
    let (mut peer, mut listener) = ("127.0.0.1".to_owned(), "tcp");
    let rest: Vec<&str> = words.collect();
    for pair in rest.chunks(2) {
        match pair {
            ["from", address] => peer = (*address).to_owned(),
            ["by", name] => listener = name,
            other => panic!("{other:?}"),
        }
    }
    Identity {
        client_id: Arc::from(client),
        username: user.map(Into::into),
        account: Arc::new(Account {
            user: user.map(Into::into),
            groups: groups.split('+').filter(|g| !g.is_empty()).map(Arc::from).collect(),
            ..Account::default()
        }),
        door: Arc::new(Door {
            listener: Arc::from(listener),
            peer: std::net::SocketAddr::new(peer.parse().unwrap(), 1),
            certificate: None,
        }),
    }
}

/// `publish topic`, `retain topic`, `subscribe filter`, `receive topic`
fn ask(text: &str) -> Ask<'_> {
    let (what, topic) = text.split_once(' ').unwrap();
    match what {
        "publish" => Ask::Publish { topic, retain: false },
        "retain" => Ask::Publish { topic, retain: true },
        "subscribe" => Ask::Subscribe { filter: topic },
        "receive" => Ask::Receive { topic },
        other => panic!("{other}"),
    }
}

fn yaml(text: &str, otherwise: Otherwise) -> Result<RuleSet, Fault> {
    RuleSet::parse(&Source::Yaml(PathBuf::new()), text, otherwise, "admins")
}

fn mosquitto(text: &str) -> Result<RuleSet, Fault> {
    RuleSet::parse(&Source::Mosquitto(PathBuf::new()), text, Otherwise::Auto, "admins")
}

/// The ruling as `-` (denied) or the highest QoS, and the number of the rule (`d` = the default, `a` = `$SYS`).
fn said(rules: &RuleSet, who: &str, what: &str) -> String {
    let ruling = rules.ruling(&identity(who), &ask(what));
    let qos = ruling.max_qos.map_or("-".to_owned(), |q| (q as u8).to_string());
    let by = match ruling.by {
        By::Rule { number } | By::Line { line: number } => number.to_string(),
        By::Default => "d".to_owned(),
        By::Admins => "a".to_owned(),
        By::NoRules => "none".to_owned(),
        By::Granted => "g".to_owned(),
        By::DangerousName => "name".to_owned(),
        By::Broker => "broker".to_owned(),
        By::Token => "token".to_owned(),
    };
    format!("{qos} {by}")
}

const RULES: &str = r##"
# The first that matches decides.
rules:
  - deny: all                 # 1
    topics: ["secret/#"]
  - allow: publish            # 2
    topics: ["devices/%c/#", "users/%u/#"]
    max_qos: 1
    retain: false
  - allow: subscribe          # 3
    topics: "devices/%c/#"
    max_qos: 1
  - deny: publish             # 4
    topics: [open/#]
    retain: true
  - allow: all                # 5
    topics: ["open/#"]
  - allow: subscribe          # 6
    topics: ["$SYS/broker/uptime"]
    users: [monitor]
  - allow: all                # 7
    topics: ["ops/#"]
    groups: [ops, root]
    addresses: [10.0.0.0/8, "::1"]
  - allow: publish            # 8
    topics: ["t/#"]
    clients: [exact]
    client_prefixes: [sensor-]
    listeners: [tls]
  - allow: publish            # 9
    topics: [lobby]
    anonymous: true
  - deny: publish             # 10
    topics: [lobby/#]
    users: [eve, mallory]
  - allow: publish            # 11
    topics: ["lobby/#"]
    anonymous: false
"##;

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = yaml(RULES, Otherwise::Auto).unwrap();
    assert_eq!(rules.shown().len(), 11);
    // Who, what, the answer.
    let table = [
        ("c", "publish secret/x", "- 1"),
        ("c+ops from 10.1.1.1", "receive secret/x", "- 1"),
        ("c", "subscribe secret/#", "- 1"),
        ("c", "subscribe secret/+/y", "- 1"),
        ("c", "subscribe #", "- d"),
        ("c", "publish devices/c/up", "1 2"),
        ("c", "retain devices/c/up", "- 2"),
        ("c", "publish devices/other/up", "- d"),
        ("c@u", "publish users/u/x", "1 2"),
        ("c", "publish users/u/x", "- d"),
        ("c", "subscribe devices/c/#", "1 3"),
        ("c", "subscribe devices/c/+/x", "1 3"),
        ("c", "subscribe devices/+/x", "- d"),
        ("c", "receive devices/c", "1 3"),
        ("+", "publish devices/x/up", "- d"),
        ("c", "retain open/x", "- 4"),
        ("c", "publish open/x", "2 5"),
        ("c", "receive open/x", "2 5"),
        ("c", "subscribe open/#", "2 5"),
        ("c@monitor", "subscribe $SYS/broker/uptime", "2 6"),
        ("c@monitor", "receive $SYS/broker/uptime", "2 6"),
        ("c@monitor", "receive $SYS/broker/version", "- a"),
        ("c+admins", "subscribe $SYS/#", "2 a"),
        ("c+admins", "receive $SYS/broker/uptime", "2 a"),
        ("c+admins", "publish $SYS/broker/connection/b/state", "- d"),
        ("c", "subscribe $SYS/#", "- a"),
        ("c+ops from 10.9.9.9", "publish ops/x", "2 7"),
        ("c+other+root from ::1", "publish ops/x", "2 7"),
        ("c+ops from ::ffff:10.9.9.9", "publish ops/x", "2 7"),
        ("c+ops from 11.0.0.1", "publish ops/x", "- d"),
        ("c from 10.9.9.9", "publish ops/x", "- d"),
        ("exact by tls", "publish t/x", "2 8"),
        ("sensor-7 by tls", "publish t/x", "2 8"),
        ("sensor-7", "publish t/x", "- d"),
        ("exactly by tls", "publish t/x", "- d"),
        ("c", "publish lobby", "2 9"),
        ("c", "publish lobby/x", "- d"),
        ("c@eve", "publish lobby", "- 10"),
        ("c@bob", "publish lobby", "2 11"),
    ];
    for (who, what, expected) in table {
        assert_eq!(said(&rules, who, what), expected, "{who}: {what}");
    }
}

#[test]
fn where_no_rule_says_anything() {
    let none = "";
    let some = "rules:\n  - allow: publish\n    topics: a\n";
    // Rules, acl.default, a topic, the answer, $SYS, the answer.
    let table = [
        (none, Otherwise::Auto, "2 none", "2 none", false),
        (none, Otherwise::Allow, "2 none", "2 none", false),
        (none, Otherwise::Deny, "- d", "- a", true),
        (some, Otherwise::Auto, "- d", "- a", true),
        (some, Otherwise::Allow, "2 d", "- a", true),
        (some, Otherwise::Deny, "- d", "- a", true),
    ];
    for (text, otherwise, expected, sys, restricts) in table {
        let rules = yaml(text, otherwise).unwrap();
        assert_eq!(said(&rules, "c", "subscribe b/#"), expected, "{text} {otherwise:?}");
        assert_eq!(said(&rules, "c", "receive $SYS/x"), sys, "{text} {otherwise:?}");
        assert_eq!(rules.restricts(), restricts);
    }
    for empty in ["", "rules:\n", "rules: []\n", "# nothing\n", "---\n"] {
        assert!(yaml(empty, Otherwise::Auto).unwrap().is_empty(), "{empty:?}");
    }
}

#[test]
fn a_faulty_file_is_refused_with_rule_line_and_key() {
    let rule = |lines: &str| {
        format!("rules:\n  - allow: all\n    topics: a\n  - {}\n", lines.replace('\n', "\n    "))
    };
    let table = [
        ("rules: 3\n".to_owned(), "line 1, rules: expected a list of rules"),
        ("rule:\n  - x\n".to_owned(), "line 1, rule: unknown key"),
        ("- x\n".to_owned(), "line 1: expected a table with the key rules"),
        ("rules:\n  - \"a\n".to_owned(), "not a valid YAML file"),
        ("rules: []\nrules: []\n".to_owned(), "line 2: not a valid YAML file: the key rules is here twice"),
        (rule("deny: all"), "rule 2 (line 4), topics: missing"),
        (rule("topics: x"), "rule 2 (line 4): expected either allow or deny"),
        (rule("allow: all\ndeny: all\ntopics: x"), "rule 2 (line 4): expected either allow or deny"),
        (rule("allow: read\ntopics: x"), "rule 2 (line 4), allow: expected publish, subscribe or all"),
        (rule("allow: all\ntopics: []"), "rule 2 (line 5), topics: expected a list with at least one entry"),
        (rule("allow: all\ntopics: [a, \"a/#/b\"]"), "rule 2 (line 5), topics: \"a/#/b\": # is not alone"),
        (rule("allow: all\ntopics: \"$share/g/a\""), "leave $share/<name>/ out"),
        (rule("allow: all\ntopics: a\nmax_qos: 3"), "rule 2 (line 6), max_qos: expected 0, 1 or 2"),
        (rule("deny: all\ntopics: a\nmax_qos: 1"), "max_qos: it belongs to a rule that allows"),
        (rule("deny: all\ntopics: a\nretain: false"), "retain: with deny only true has a meaning"),
        (rule("deny: subscribe\ntopics: a\nretain: true"), "retain: it is about publishes"),
        (rule("allow: subscribe\ntopics: a\nretain: false"), "retain: it limits publishes"),
        (rule("allow: all\ntopics: a\nretain: maybe"), "retain: expected true or false"),
        (rule("allow: all\ntopics: a\nusers: []"), "users: expected a list with at least one entry"),
        (rule("allow: all\ntopics: a\nusers: [[b]]"), "users: expected a list of texts"),
        (rule("allow: all\ntopics: a\nusers: [b]\nanonymous: true"), "anonymous: whoever has one of users"),
        (
            rule("allow: all\ntopics: a\naddresses: 10.0.0.0/33"),
            "addresses: \"10.0.0.0/33\": expected an IP address",
        ),
        (rule("allow: all\ntopics: a\nclient_prefixes: \"\""), "client_prefixes: \"\": an empty prefix"),
        (rule("allow: all\ntopics: a\nuser: b"), "rule 2 (line 6), user: unknown key"),
        (rule("allow: all\ntopics: &x a\nusers: *x"), "aliases"),
    ];
    for (text, expected) in table {
        let error = yaml(&text, Otherwise::Auto).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\n{error}\nis not\n{expected}");
    }
}

#[test]
fn many_rules_for_many_users_keep_their_order() {
    let mut text = String::from("rules:\n");
    for n in 0..300 {
        text += &format!(
            "  - {{deny: all, topics: 'x/{n}', users: [u{n}]}}\n  - {{allow: all, topics: 'x/{n}', clients: [c{n}]}}\n"
        );
    }
    text += "  - {allow: all, topics: 'x/#'}\n  - {deny: all, topics: '#', users: [u1]}\n";
    let rules = yaml(&text, Otherwise::Auto).unwrap();
    for (who, topic, expected) in [
        ("c7@u7", "x/7", "- 15"),
        ("c7@u8", "x/7", "2 16"),
        ("c9@u8", "x/7", "2 601"),
        ("c@u1", "y", "- 602"),
        ("c@u1", "x/5", "2 601"),
    ] {
        assert_eq!(said(&rules, who, &format!("publish {topic}")), expected, "{who} {topic}");
    }
}

/// What mosquitto does is compared with mosquitto itself in `tests/it/rights`; here is which line decides.
#[test]
fn lines_of_mosquitto() {
    let text = "# comment\ntopic read open/#\ntopic deny open/closed\n\nuser bob\ntopic all/#\ntopic write own name/%c\n\
                pattern readwrite p/%c/%u\npattern deny p/x/bob\n  user  eve  \ntopic deny #\n";
    let rules = mosquitto(text).unwrap();
    let table = [
        ("c", "receive open/x", "2 2"),
        ("c", "publish open/x", "- d"),
        ("c", "receive open/closed", "- 3"),
        ("c@bob", "receive open/x", "- d"),
        ("c@bob", "receive all/x", "2 6"),
        ("c@bob", "publish own name/%c", "2 7"),
        ("c@bob", "receive p/c/bob", "2 8"),
        ("x@bob", "receive p/x/bob", "- 9"),
        ("c", "receive p/c/", "- d"),
        ("c@eve", "publish all/x", "- 11"),
        ("c+x@b", "publish p/c", "- name"),
        ("c", "subscribe secret/#", "2 g"),
    ];
    for (who, what, expected) in table {
        // A plus in a client identifier is a group here; the names are given apart.
        let said = if who == "c+x@b" {
            let who = Identity { client_id: Arc::from("c+x"), username: Some("b".into()), ..identity("c") };
            match rules.ruling(&who, &ask(what)).by {
                By::DangerousName => "- name".to_owned(),
                other => format!("{other:?}"),
            }
        } else {
            said(&rules, who, what)
        };
        assert_eq!(said, expected, "{who}: {what}");
    }
    for (text, expected) in [
        ("topic\n", "line 1: topic without a topic"),
        ("user\n", "line 1: user without a name"),
        ("\n\ntopic rw a b\n", "line 3: \"rw\": expected read, write, readwrite or deny"),
        ("topic read a/#/b\n", "line 1: \"a/#/b\""),
        ("allow x\n", "line 1: expected topic, pattern or user"),
    ] {
        let error = mosquitto(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    for nothing in ["", "# nothing\nuser bob\n"] {
        let rules = mosquitto(nothing).unwrap();
        assert!(rules.is_empty() && rules.restricts(), "as mosquitto, which denies everything then");
        assert_eq!(said(&rules, "c", "publish a"), "- d");
    }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("acl.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_changed_file_is_taken_and_a_faulty_one_is_not() {
    let (_dir, path) = file("rules:\n  - {allow: all, topics: a}\n  - {allow: all, topics: b}\n");
    let access = Access::open(Source::Yaml(path.clone()), Otherwise::Auto, "admins").unwrap();
    let who = identity("c");
    let first = access.version(&who);
    assert!(first > 0);
    assert!(matches!(access.look(), Look::Same));
    std::fs::write(
        &path,
        "rules:\n  - {allow: all, topics: b}\n  - {allow: all, topics: c}\n  - {deny: all, topics: d}\n",
    )
    .unwrap();
    assert!(matches!(access.look(), Look::Same), "it may still be written");
    let Look::Changed(changes) = access.look() else { panic!() };
    assert_eq!(changes, Changes { rules: 3, added: 2, removed: 1 });
    assert!(access.version(&who) > first);
    assert!(matches!(access.look(), Look::Same));
    let before = access.version(&who);
    std::fs::write(&path, "rules:\n  - {allow: all}\n").unwrap();
    assert!(matches!(access.look(), Look::Same), "it may still be written");
    let Look::Kept(error) = access.look() else { panic!() };
    assert!(error.to_string().contains("acl.yaml\" (acl.file): rule 1 (line 2), topics: missing"), "{error}");
    assert!(matches!(access.look(), Look::Same), "said once");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(access.look(), Look::Kept(AclError::Unreadable { .. })));
    assert!(matches!(access.look(), Look::Same), "said once");
    assert_eq!(access.version(&who), before);
    std::fs::write(&path, "rules: []\n").unwrap();
    assert!(matches!(access.look(), Look::Same), "it may still be written");
    assert!(matches!(access.look(), Look::Changed(Changes { rules: 0, added: 0, removed: 3 })));
    assert_eq!(access.version(&who), 0);
    assert!(Access::open(Source::Yaml(path.join("missing")), Otherwise::Auto, "admins").is_err());
}

#[test]
fn a_file_that_a_link_swap_replaces_is_taken() {
    let dir = tempfile::TempDir::new().unwrap();
    for (n, text) in
        ["rules: [{allow: all, topics: a}]", "rules: [{allow: all, topics: b}]"].iter().enumerate()
    {
        std::fs::create_dir(dir.path().join(n.to_string())).unwrap();
        std::fs::write(dir.path().join(n.to_string()).join("acl.yaml"), text).unwrap();
    }
    let (data, path) = (dir.path().join("..data"), dir.path().join("acl.yaml"));
    std::os::unix::fs::symlink("0", &data).unwrap();
    std::os::unix::fs::symlink("..data/acl.yaml", &path).unwrap();
    let access = Access::open(Source::Yaml(path), Otherwise::Auto, "admins").unwrap();
    std::os::unix::fs::symlink("1", dir.path().join("new")).unwrap();
    std::fs::rename(dir.path().join("new"), &data).unwrap();
    assert!(matches!(access.look(), Look::Same));
    assert!(matches!(access.look(), Look::Changed(Changes { rules: 1, added: 1, removed: 1 })));
}

#[test]
fn a_file_that_is_being_written_allows_nothing_more() {
    let rules = "rules:\n  - {deny: all, topics: secret/#}\n  - {allow: all, topics: \"#\"}\n";
    for (source, text) in [
        (Source::Yaml as fn(PathBuf) -> Source, rules),
        (Source::Mosquitto, "topic readwrite a\ntopic deny secret/#\n"),
    ] {
        let (_dir, path) = file(text);
        let access = Access::open(source(path.clone()), Otherwise::Auto, "admins").unwrap();
        let who = identity("c");
        let denied = || access.ruling(&who, &ask("publish secret/x")).max_qos.is_none();
        // An editor empties the file, then writes it in pieces: each look finds another one.
        for cut in 0..text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert!(matches!(access.look(), Look::Same), "{cut}");
            assert!(denied(), "{cut}");
        }
        // A full disk leaves nothing of it: that is no order to allow everything.
        for nothing in ["", "\n", "# rules\n"] {
            std::fs::write(&path, nothing).unwrap();
            assert!(matches!(access.look(), Look::Same));
            access.look();
            if let Ok(prepared) = access.prepare(Otherwise::Auto, "admins") {
                access.put_in_force(prepared);
            }
            assert!(denied(), "{nothing:?}");
        }
    }
}

/// Rules that were read later stand, whoever comes last.
#[test]
fn a_reload_does_not_undo_rules_that_were_read_after_it_had_read() {
    let (_dir, path) = file("rules:\n  - {allow: all, topics: a}\n  - {allow: all, topics: b}\n");
    let access = Access::open(Source::Yaml(path.clone()), Otherwise::Auto, "admins").unwrap();
    let said = |what: &str| said(&access.rules(), "c", what);
    // A command in between.
    let prepared = access.prepare(Otherwise::Auto, "admins").unwrap();
    let planned = access.plan(&Edit::Add { rule: "{deny: all, topics: a}".to_owned(), at: Some(1) }).unwrap();
    access.carry_out(&planned).unwrap();
    assert_eq!(access.put_in_force(prepared).rules, 3);
    assert_eq!((&*said("publish a"), &*said("publish b")), ("- 1", "2 3"));
    // The file itself in between, and another default that comes with the reload: each of the two is the newer one.
    let prepared = access.prepare(Otherwise::Allow, "admins").unwrap();
    std::fs::write(&path, "rules:\n  - {deny: all, topics: b}\n").unwrap();
    access.look();
    assert!(matches!(access.look(), Look::Changed(_)));
    assert_eq!(access.put_in_force(prepared).rules, 1);
    assert_eq!((&*said("publish a"), &*said("publish b")), ("2 d", "- 1"));
    // Nothing in between.
    access.put_in_force(access.prepare(Otherwise::Deny, "admins").unwrap());
    assert_eq!((&*said("publish a"), &*said("publish b")), ("- d", "- 1"));
    assert!(matches!(access.look(), Look::Same));
}

/// Rules that are read from the file are put in force under the defaults that hold by then.
#[test]
fn a_look_at_the_file_does_not_undo_defaults_that_a_reload_has_brought() {
    let (_dir, path) = file("rules:\n  - {allow: all, topics: a}\n");
    let access = Access::open(Source::Yaml(path.clone()), Otherwise::Allow, "admins").unwrap();
    let read = || access.readings.read(|| access.read(&mut Seen::default())).unwrap();
    let put = |read| access.readings.put(read, |rules| access.put_read(rules)).unwrap();
    let prepared = access.prepare(Otherwise::Deny, "staff").unwrap();
    let looked = read();
    access.put_in_force(prepared);
    put(looked).unwrap();
    assert_eq!((access.rules().allows_otherwise(), &*access.rules().admin_group), (false, "staff"));
    // A file that loses everything while the default changes opens nothing, whoever comes first.
    for reload_first in [true, false] {
        std::fs::write(&path, "rules:\n  - {allow: all, topics: a}\n").unwrap();
        access.put_in_force(access.prepare(Otherwise::Deny, "admins").unwrap());
        let prepared = access.prepare(Otherwise::Auto, "admins").unwrap();
        std::fs::write(&path, "").unwrap();
        let looked = read();
        if reload_first {
            access.put_in_force(prepared);
            assert!(put(looked).is_err());
        } else {
            put(looked).unwrap();
            access.put_in_force(prepared);
        }
        assert!(Permissions::restricts(&access), "{reload_first}");
    }
}

#[test]
fn commands_change_the_file_and_leave_its_comments() {
    let text = "# ours\nrules:\n    # about a\n    - allow: all   # really\n      topics: a\n\n    - deny: publish\n      topics:\n        - b\n        - c/#\n\
                    # about d\n    - allow: subscribe\n      topics: d\n";
    let add = |at| Edit::Add {
        rule: r#"{"topics":["n/%c","x y"],"max_qos":1,"allow":"publish","users":["it's \"me\""]}"#.to_owned(),
        at,
    };
    let new = "    - allow: publish\n      topics: [\"n/%c\", \"x y\"]\n      max_qos: 1\n      users: [\"it's \\\"me\\\"\"]\n";
    let (a, b, d) = (
        "    # about a\n    - allow: all   # really\n      topics: a\n\n",
        "    - deny: publish\n      topics:\n        - b\n        - c/#\n",
        "# about d\n    - allow: subscribe\n      topics: d\n",
    );
    let head = "# ours\nrules:\n";
    let table = [
        (add(None), vec![a, b, d, new]),
        (add(Some(4)), vec![a, b, d, new]),
        (add(Some(1)), vec![new, a, b, d]),
        (add(Some(3)), vec![a, b, new, d]),
        (Edit::Remove { number: 1 }, vec![b, d]),
        (Edit::Remove { number: 3 }, vec![a, b]),
        (Edit::Move { number: 1, to: 3 }, vec![b, d, a]),
        (Edit::Move { number: 3, to: 1 }, vec![d, a, b]),
    ];
    for (edit, expected) in table {
        let (_dir, path) = file(text);
        let access = Access::open(Source::Yaml(path.clone()), Otherwise::Auto, "admins").unwrap();
        let planned = access.plan(&edit).unwrap();
        assert!(!planned.turns_to_deny());
        assert!(matches!(access.carry_out(&planned), Ok(Look::Changed(_))));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{head}{}", expected.concat()),
            "{edit:?}"
        );
        assert_eq!(access.rules().shown().len(), expected.len());
        assert!(matches!(access.look(), Look::Same), "its own change is known");
    }
    for start in ["", "# c\n", "rules:\n", "rules: []\n\n"] {
        let (_dir, path) = file(start);
        let access = Access::open(Source::Yaml(path.clone()), Otherwise::Auto, "admins").unwrap();
        let planned = access.plan(&add(None)).unwrap();
        assert!(planned.turns_to_deny());
        access.carry_out(&planned).unwrap();
        assert_eq!(access.rules().shown().len(), 1, "{start:?}");
    }
}

#[test]
fn changes_that_are_not_made() {
    let access = |text: &str, otherwise| {
        let (dir, path) = file(text);
        (dir, Access::open(Source::Yaml(path), otherwise, "admins").unwrap())
    };
    let add = |rule: &str| Edit::Add { rule: rule.to_owned(), at: None };
    let fine = add(r#"{"allow":"all","topics":["a"]}"#);
    let table = [
        ("rules: [{allow: all, topics: a}]\n", fine.clone(), "is not laid out"),
        ("rules:\n  -\n    allow: all\n    topics: a\n", fine.clone(), "is not laid out"),
        ("", add(r#"{"allow":"all"}"#), "topics: missing"),
        ("", add(r#"{"allow":"all","topics":["a/#/b"]}"#), "topics: \"a/#/b\""),
        ("", Edit::Remove { number: 1 }, "there is no rule 1: the list has 0"),
        ("rules:\n  - allow: all\n    topics: a\n", Edit::Move { number: 1, to: 2 }, "there is no rule 2"),
        (
            "rules:\n  - allow: all\n    topics: a\n",
            Edit::Add { rule: String::new(), at: None },
            "there is no rule",
        ),
    ];
    for (text, edit, expected) in table {
        let (_dir, access) = access(text, Otherwise::Auto);
        let error = access.plan(&edit).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}{edit:?}: {error}");
    }
    let (_dir, one) = access("", Otherwise::Allow);
    assert!(!one.plan(&fine).unwrap().turns_to_deny());
    let (dir, one) = access("", Otherwise::Auto);
    let planned = one.plan(&fine).unwrap();
    std::fs::write(dir.path().join("acl.yaml"), "# another hand\n").unwrap();
    assert!(matches!(one.carry_out(&planned), Err(EditError::Raced(_))));
    let nowhere = Access::open(Source::Nowhere, Otherwise::Auto, "admins").unwrap();
    assert!(matches!(nowhere.plan(&fine), Err(EditError::NoFile)));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    /// Whatever stands in a file of rules, it is read or refused, and changed or not.
    #[test]
    fn no_file_of_rules_makes_a_reader_panic(
        noise in "[\\x00-\\x7f\u{85}\u{feff}é]{0,40}",
        at in 0_usize..300,
        instead in 0_usize..12,
        lines in proptest::bool::ANY,
    ) {
        let good = if lines {
            "topic read open/#\nuser bob\ntopic write own name/%c\npattern deny p/%c/%u\n"
        } else {
            "# ours\nrules:\n  - allow: all   # really\n    topics: [a, 'b/%c']\n    max_qos: 1\n  - {deny: publish, topics: \"c/#\", \
             addresses: [10.0.0.0/8, '::1']}\n  - allow: subscribe\n    topics:\n      - d/%u\n    anonymous: false\n"
        };
        let start = at.min(good.len());
        let text = format!("{}{noise}{}", &good[..start], good.get(start + instead..).unwrap_or_default());
        let source = if lines { Source::Mosquitto(PathBuf::new()) } else { Source::Yaml(PathBuf::new()) };
        if let Ok(rules) = RuleSet::parse(&source, &text, Otherwise::Auto, "admins") {
            rules.ruling(&identity("c@bob"), &ask("publish p/c/bob"));
            rules.ruling(&identity("c"), &ask("subscribe b/#"));
            rules.shown();
        }
        if !lines {
            let (_dir, path) = file(&text);
            if let Ok(access) = Access::open(Source::Yaml(path), Otherwise::Auto, "admins") {
                let rule = r#"{"allow":"all","topics":["x"]}"#.to_owned();
                for edit in [Edit::Add { rule, at: Some(1) }, Edit::Remove { number: 1 }, Edit::Move { number: 2, to: 1 }] {
                    let _ = access.plan(&edit);
                }
            }
        }
    }
}
