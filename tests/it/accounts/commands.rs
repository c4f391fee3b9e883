//! `berth ctl users` on a single node: the file of users.

use super::{Files, answer};
use crate::broker::Setup;
use crate::client::Dial;
use crate::cluster::directory::ctl_with;
use crate::operate::{ctl, ctl_json};
use berth::mqtt::Reason;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The whole answer to a POST.
fn post(http: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(http).unwrap();
    let head = "Host: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(stream, "POST {path} HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn users_of_a_file_are_added_changed_and_removed() {
    let files = Files::new();
    files.write("users", "# people\n");
    let broker = files.setup().start();
    let (http, to) = (broker.http, broker.mqtt);
    let dial = |password: &str| Dial::v5("c").user("alice", password);
    assert_eq!(answer(&dial("one"), to), Reason::BadUserNameOrPassword);
    let said = ctl_with(http, &["users", "add", "alice", "--group", "ops", "--group", "staff"], "one").ok();
    assert_eq!(said, "user alice added\n");
    // It holds at once.
    let mut alice = dial("one").connect(to);
    ctl_with(http, &["users", "add", "bob", "--scram"], "two").ok();
    let mut bob = Dial::v5("bob").user("bob", "two").connect(to);
    let list = ctl_json(http, &["users", "list"]);
    assert_eq!(list["source"], "auth.password.file");
    assert_eq!(list["users"][0]["groups"], serde_json::json!(["ops", "staff"]), "{list}");
    assert_eq!(list["users"][1]["scram"], true, "{list}");
    let table = ctl(http, &["users", "list"]).ok();
    assert!(
        table.lines().any(|l| l.split_whitespace().eq(["alice", "ops,staff", "no", "argon2id"])),
        "{table}"
    );
    ctl_with(http, &["users", "passwd", "alice"], "three").ok();
    assert_eq!(alice.expect_closed(), Some(Reason::NotAuthorized));
    bob.ping();
    assert_eq!(answer(&dial("one"), to), Reason::BadUserNameOrPassword);
    let mut alice = dial("three").connect(to);
    assert!(ctl(http, &["users", "show", "alice"]).ok().contains("ops,staff"));
    ctl(http, &["users", "remove", "alice"]).ok();
    assert_eq!(alice.expect_closed(), Some(Reason::NotAuthorized));
    bob.ping();
    let text = std::fs::read_to_string(files.users()).unwrap();
    assert!(text.starts_with("# people\nbob:$argon2id$") && text.lines().count() == 2, "{text}");
    assert!(!broker.log().contains("$argon2id$"));
    for (args, words) in [
        (&["users", "add", "bob"][..], "there is a user \"bob\" already"),
        (&["users", "remove", "alice"], "there is no user \"alice\""),
        (&["users", "passwd", "alice"], "there is no user \"alice\""),
    ] {
        let said = ctl_with(http, args, "pw").failed(1);
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let body = r#"{"name":"eve","hash":"hunter2"}"#;
    let said = post(http, "/api/v1/users/add", body);
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("plain text"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");

    let broker = Setup::new().start();
    let said = ctl(broker.http, &["users", "list"]).failed(1);
    assert!(said.contains("auth.password.file"), "{said}");
}
