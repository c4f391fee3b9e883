//! `berth ctl acl`.

use super::{PASSWORD, Rules};
use crate::broker::Setup;
use crate::client::Dial;
use crate::operate::{ctl, ctl_json};
use berth::mqtt::QoS::AtLeastOnce;
use berth::mqtt::Reason;

#[test]
fn the_rule_that_decides_is_named() {
    let rules = Rules::new(&[
        "deny: all, topics: 'secret/#'",
        "allow: publish, topics: 'devices/%c/#', max_qos: 1, retain: false, clients: [robot]",
        "allow: subscribe, topics: '#', users: [bob], addresses: [127.0.0.0/8], listeners: [tcp]",
    ]);
    let broker = rules.start();
    let _robot = Dial::v5("robot").user("bob", PASSWORD).connect(broker.mqtt);
    // Arguments, whether it is allowed, what decided, words of the answer.
    let table: &[(&[&str], bool, &str, &str)] = &[
        (&["robot", "publish", "devices/robot/x", "--qos", "1"], true, "rule 2", "QoS 1 at most"),
        (
            &["robot", "publish", "devices/robot/x", "--qos", "2"],
            false,
            "rule 2",
            "which allows QoS 1 at most",
        ),
        (&["robot", "publish", "devices/robot/x", "--retain"], false, "rule 2", "retain=false"),
        (&["robot", "publish", "secret/x"], false, "rule 1", "deny all secret/#"),
        (&["robot", "publish", "other"], false, "default", "acl.default"),
        (&["robot", "subscribe", "$share/g/a/+"], true, "rule 3", "judged as user bob"),
        (&["robot", "subscribe", "secret/#"], false, "rule 1", ""),
        (&["robot", "receive", "secret/x"], false, "rule 1", ""),
        (&["robot", "receive", "a"], true, "rule 3", "address 127.0.0.1, listener tcp"),
        (&["robot", "receive", "a", "--user", "eve"], false, "default", "judged as user eve"),
        (&["robot", "receive", "a", "--address", "10.0.0.1"], false, "default", "address 10.0.0.1"),
        (&["robot", "receive", "a", "--listener", "tls"], false, "default", "listener tls"),
        (&["stranger", "receive", "a"], false, "default", "not known to any node"),
        (
            &["stranger", "receive", "a", "--user", "bob", "--address", "127.9.9.9"],
            true,
            "rule 3",
            "not known",
        ),
        (&["robot", "publish", "$SYS/x"], false, "broker", "$SYS is the broker's own"),
        (&["robot", "receive", "$SYS/x"], false, "admins", "acl.admin_group"),
        (&["robot", "receive", "$SYS/x", "--group", "admins"], true, "admins", "groups admins"),
    ];
    for (args, allowed, by, words) in table {
        let args = [&["acl", "check"], *args].concat();
        let answer = ctl_json(broker.http, &args);
        assert_eq!(answer["allowed"], *allowed, "{args:?}: {answer}");
        let found = match answer["number"].as_u64() {
            Some(number) => format!("rule {number}"),
            None => answer["by"].as_str().unwrap().to_owned(),
        };
        assert_eq!(found, *by, "{args:?}: {answer}");
        let text = ctl(broker.http, &args).ok();
        assert!(text.starts_with(if *allowed { "allowed: " } else { "denied: " }), "{text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
    let wrong = ctl(broker.http, &["acl", "check", "robot", "publish", "a/#"]).failed(1);
    assert!(wrong.contains("wildcard"), "{wrong}");
    let list = ctl(broker.http, &["acl", "list"]).ok();
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].ends_with("acl.yaml (acl.file)"), "{list}");
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["1", "deny", "all", "secret/#"]);
    assert_eq!(lines.last(), Some(&"what no rule is about is denied"), "{list}");
}

#[test]
fn rules_are_added_moved_and_removed() {
    let rules = Rules::new(&[]);
    std::fs::write(&rules.path, "# the rules of this house\n").unwrap();
    let broker = rules.start();
    let mut bob = Dial::v4("bob\u{1b}").connect(broker.mqtt);
    assert_eq!(bob.subscribe(&[("a/#", AtLeastOnce), ("b", AtLeastOnce)]), [1, 1]);
    let first = ["acl", "add", "allow", "subscribe", "a/#", "x/%c"];
    // The first rule needs to be confirmed: who loses what is listed.
    let said = ctl(broker.http, &first);
    assert_eq!((said.code, &*said.out), (1, ""), "{said:?}");
    assert!(said.err.contains("--yes") && said.err.contains("bob\\u{1b}"), "{said:?}");
    assert!(said.err.contains("b; all publishing") && !said.err.contains("a/#"), "{said:?}");
    let answer = ctl(broker.http, &[&first[..], &["--json"]].concat());
    assert_eq!(answer.code, 1);
    let answer: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&answer["changed"], &answer["losing_total"]), (&false.into(), &1.into()), "{answer}");
    bob.publish("b", "still", AtLeastOnce);
    assert_eq!(bob.receive().text(), "still");
    assert_eq!(ctl(broker.http, &[&first[..], &["--yes"]].concat()).ok(), "changed; rules in force: 1\n");
    // It holds at once.
    let mut eve = Dial::v5("eve").connect(broker.mqtt);
    assert_eq!(eve.publish_with("b", b"", AtLeastOnce, false), Reason::NotAuthorized);
    let add = |args: &[&str]| ctl(broker.http, &[&["acl", "add"], args].concat()).ok();
    add(&["allow", "publish", "b", "--max-qos", "1", "--client", "eve", "--retain", "false"]);
    assert!(!eve.publish_with("b", b"", AtLeastOnce, false).is_error());
    add(&["deny", "all", "b", "--address", "127.0.0.0/8", "--at", "1"]);
    assert_eq!(eve.publish_with("b", b"", AtLeastOnce, false), Reason::NotAuthorized);
    ctl(broker.http, &["acl", "move", "1", "3"]).ok();
    assert!(!eve.publish_with("b", b"", AtLeastOnce, false).is_error());
    ctl(broker.http, &["acl", "remove", "1"]).ok();
    let expected = "# the rules of this house\nrules:\n  - allow: publish\n    topics: [\"b\"]\n    max_qos: 1\n    retain: false\n    \
                    clients: [\"eve\"]\n  - deny: all\n    topics: [\"b\"]\n    addresses: [\"127.0.0.0/8\"]\n";
    assert_eq!(std::fs::read_to_string(&rules.path).unwrap(), expected);
    for (args, words) in [
        (&["acl", "remove", "9"][..], "there is no rule 9: the list has 2"),
        (&["acl", "add", "allow", "all", "a/#/b"], "topics: \"a/#/b\""),
        (&["acl", "add", "deny", "all", "a", "--max-qos", "1"], "max_qos: it belongs to a rule that allows"),
    ] {
        let said = ctl(broker.http, args).failed(1);
        assert!(said.contains(words), "{said}");
    }
    let broker = Setup::new().start();
    let said = ctl(broker.http, &["acl", "remove", "1"]).failed(1);
    assert!(said.contains("acl.file is not set"), "{said}");
    assert!(ctl(broker.http, &["acl", "list"]).ok().starts_with("no rules: "));
}
