//! The description of the API, and whether the API is as described: asked by schemathesis, which nobody here has written.

use super::Tokens;
use crate::broker::Setup;
use crate::client::Dial;
use crate::operate::ctl;
use berth::mqtt::QoS;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

/// What is checked of each answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,ignored_auth";

/// A page of admin HTTP with a token: status code and body.
fn ask(http: SocketAddr, request: &str, token: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(http).unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n");
    write!(stream, "{head}Connection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn the_api_is_as_it_says() {
    let tokens = Tokens::new();
    let rules = tokens.path("acl.yaml");
    std::fs::write(&rules, "rules:\n  - {allow: all, topics: [\"#\"]}\n").unwrap();
    let broker = Setup::new()
        .set("http.admin_token_file", &tokens.admin.file)
        .set("http.read_token_file", &tokens.read.file)
        .set("audit.file", &tokens.path("audit"))
        .set("acl.file", &rules)
        .start();
    let mut client = Dial::v5("robot").persistent().will("gone", "bye", 30).connect(broker.mqtt);
    client.subscribe(&[("a/+", QoS::AtLeastOnce), ("$share/g/a/b", QoS::AtLeastOnce)]);
    client.publish_with("a/b", b"retained", QoS::AtLeastOnce, true);
    let (admin, read) = ("aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbb");

    assert_eq!(ask(broker.http, "GET /api/v1/openapi.json", "wrong-wrong-wrong-wrong").0, 401);
    let (code, document) = ask(broker.http, "GET /api/v1/openapi.json", read);
    assert_eq!(code, 200);
    let document: Value = serde_json::from_str(&document).unwrap();
    // A token that may only read reads what the description says, and nothing more.
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let may = operation["description"].as_str().unwrap().contains("may only read");
            let path = path.replace("{client}", "robot").replace("{node}", "n2");
            let request = format!("{} {path}", method.to_uppercase());
            let code = ask(broker.http, &request, read).0;
            assert_eq!(code != 403, may, "{request}: {code}");
            assert_ne!(code, 404, "{request}");
        }
    }

    let python = std::env::var("BERTH_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new("timeout")
        .args(["400", &python, "-m", "schemathesis.cli", "run"])
        .arg(format!("http://{}/api/v1/openapi.json", broker.http))
        .args(["-H", &format!("Authorization: Bearer {admin}")])
        // It ends the process: below.
        .args(["--exclude-operation-id", "node_drain", "--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--no-shrink"])
        .args(["--max-failures", "20", "--request-timeout", "20", "--warnings", "off"])
        .current_dir(dir.path())
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let hint = "is schemathesis there? scripts/test installs it";
    assert!(run.status.success(), "{hint}\n{said}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("No issues found"), "{said}");
    // It has not been kind to the broker: that still serves.
    let env = ["--token-file", &tokens.admin.file];
    assert!(ctl(broker.http, &[&env[..], &["sessions", "list"]].concat()).ok().contains("robot"));
    let (code, answer) = ask(broker.http, "POST /api/v1/node/drain", admin);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let needed = document["components"]["schemas"]["Draining"]["required"].as_array().unwrap();
    assert_eq!(code, 202);
    assert!(
        !needed.is_empty() && needed.iter().all(|key| answer.get(key.as_str().unwrap()).is_some()),
        "{answer}"
    );
    assert!(document["paths"]["/api/v1/node/drain"]["post"]["responses"]["202"].is_object());
}
