//! An ACL file of mosquitto's means here what it means to mosquitto: both are run with the same file, and asked the same.

use super::{as_user, with_accounts};
use crate::bridges::Bridge;
use crate::broker::Setup;
use crate::client::{Client, Dial};
use berth::mqtt::QoS::AtLeastOnce;
use berth::mqtt::{Reason, Version};
use std::net::SocketAddr;
use tempfile::TempDir;

/// `root` sees and says everything in every file, so that what others say can be seen.
const ROOT: &str = "\nuser root\ntopic readwrite #\n";

/// What one of the two does with a publish of `user` to `topic`: whether it goes through, and whether `user` is given it.
fn asked(to: SocketAddr, client: &str, user: Option<&str>, topic: &str) -> (bool, bool) {
    let dial = |version, id: &str, user: Option<&str>| {
        let mut dial = Dial::new(version, id);
        dial = as_user(dial, user);
        dial.connect(to)
    };
    let marked = |client: &mut Client| -> bool {
        let got = client.receive();
        if got.topic == "marker" {
            return false;
        }
        assert_eq!(got.topic, topic);
        assert_eq!(client.receive().topic, "marker");
        true
    };
    let mut root = dial(Version::V5, "observer", Some("root"));
    root.subscribe(&[("#", AtLeastOnce)]);
    let mut own = dial(Version::V5, client, user);
    let reason = own.publish_with(topic, b"x", AtLeastOnce, false);
    assert!(matches!(reason, Reason::Success | Reason::NotAuthorized | Reason::NoMatchingSubscribers));
    let mut say = dial(Version::V5, "sayer", Some("root"));
    say.publish("marker", "", AtLeastOnce);
    let published = marked(&mut root);
    assert_eq!(published, reason == Reason::Success, "{topic}: {reason:?}");
    // The other way round. Every file lets everybody read the marker.
    own.subscribe(&[("#", AtLeastOnce), ("marker", AtLeastOnce)]);
    say.publish(topic, "x", AtLeastOnce);
    say.publish("marker", "", AtLeastOnce);
    (published, marked(&mut own))
}

#[test]
fn a_mosquitto_file_means_what_it_means_to_mosquitto() {
    // A file, and who does what by it: client, user, topic.
    type Case = (&'static str, Option<&'static str>, &'static str);
    let files: &[(&str, &[Case])] = &[
        (
            "topic read open/#\ntopic readwrite both\ntopic write in/#\ntopic deny open/closed/#\ntopic plain\ntopic read marker\n\
             user bob\ntopic all/#\ntopic deny all/but\ntopic read all/but/me\ntopic read marker\n",
            &[
                ("c", None, "open/x"),
                ("c", None, "open"),
                ("c", None, "open/closed/x"),
                ("c", None, "both"),
                ("c", None, "in/x"),
                ("c", None, "plain"),
                ("c", None, "other"),
                ("c", Some("bob"), "open/x"),
                ("c", Some("bob"), "all/x"),
                ("c", Some("bob"), "all/but"),
                ("c", Some("bob"), "all/but/me"),
                ("c", Some("bob"), "all"),
                ("c", Some("nobody"), "open/x"),
            ],
        ),
        (
            "topic read marker\npattern read marker\npattern readwrite c/%c/#\npattern write u/%u\npattern read x-%c/%u\n\
             pattern deny c/%c/no\nuser bob\ntopic readwrite c/k/no\ntopic deny u/bob\ntopic read marker\n",
            &[
                ("k", None, "c/k/x"),
                ("k", None, "c/l/x"),
                ("k", None, "c/k/no"),
                ("k", Some("bob"), "c/k/no"),
                ("k", Some("bob"), "c/k/yes"),
                ("k", Some("bob"), "u/bob"),
                ("k", Some("eve"), "u/eve"),
                ("k", Some("eve"), "u/bob"),
                ("k", Some("eve"), "x-k/eve"),
                ("k", None, "x-k/"),
                ("k", None, "u/"),
            ],
        ),
        (
            "# the order of lines does not matter\n\ntopic readwrite a/#\ntopic deny a/b\ntopic read a/b\n   \ntopic readwrite a/b\n\
             topic read marker\npattern readwrite a/b\n",
            &[("c", None, "a/b"), ("c", None, "a/c"), ("c", Some("u"), "a/b"), ("c", Some("u"), "a/c")],
        ),
        (
            "topic read a b/#\ntopic read marker\ntopic deny +/x\ntopic readwrite #\n",
            &[("c", None, "a b/c"), ("c", None, "y/x"), ("c", None, "y/z")],
        ),
    ];
    for (text, cases) in files {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("acl");
        std::fs::write(&path, format!("{text}{ROOT}")).unwrap();
        let file = path.to_str().unwrap();
        let theirs = Bridge::start(&format!("user root\nacl_file {file}\n"));
        let ours = with_accounts(dir.path()).set("acl.mosquitto_file", file).start();
        for (client, user, topic) in *cases {
            // A user whom no line for users gives the marker is not asked what it reads.
            let (there, here) = (theirs.address, ours.mqtt);
            let [expected, found] = [there, here].map(|to| {
                if reads_marker(text, *user) {
                    asked(to, client, *user, topic)
                } else {
                    (says(to, client, *user, topic), false)
                }
            });
            assert_eq!(found, expected, "(published, received) by {client} {user:?} on {topic} with\n{text}");
        }
    }
}

/// Whether the file gives the marker to the user.
fn reads_marker(text: &str, user: Option<&str>) -> bool {
    let section = match user {
        None => text.split("user ").next().unwrap(),
        Some(user) => text.split(&format!("user {user}\n")).nth(1).unwrap_or(""),
    };
    section.contains("topic read marker") || text.contains("pattern read marker")
}

/// Whether a publish is taken, by its reason.
fn says(to: SocketAddr, client: &str, user: Option<&str>, topic: &str) -> bool {
    let mut dial = Dial::v5(client);
    dial = as_user(dial, user);
    dial.connect(to).publish_with(topic, b"x", AtLeastOnce, false) != Reason::NotAuthorized
}

/// A client ID or user with a wildcard gets nothing by `pattern` lines from either; one with a slash only from mosquitto.
#[test]
fn odd_names_widen_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("acl");
    std::fs::write(
        &path,
        format!("topic read marker\npattern readwrite p/%c/#\npattern read marker\n{ROOT}"),
    )
    .unwrap();
    let broker = Setup::new().set("acl.mosquitto_file", path.to_str().unwrap()).start();
    for (client, topic, may) in
        [("c", "p/c/x", true), ("+", "p/c/x", false), ("#", "p/c", false), ("c/d", "p/c/d", false)]
    {
        assert_eq!(says(broker.mqtt, client, None, topic), may, "{client} {topic}");
    }
}
