//! Doors whose configuration is read again while clients come: never by halves.

use super::pki::{GOOD, Pki};
use super::{let_in_tls, tls_config};
use crate::accounts::Files;
use crate::broker::{Setup, free_address};
use crate::client::Dial;
use crate::operate::ctl_json;
use serde_json::{Value, json};

/// The keys of options of the listener `x`.
fn keys(options: &[&str]) -> Value {
    options.iter().map(|option| format!("listeners.x.{option}")).collect()
}

#[test]
fn what_together_says_who_gets_in_by_a_door_changes_together() {
    let pki = Pki::new("authority");
    let (server, device, ca) = (pki.server("broker"), pki.sign("device", 1, GOOD, &[]), pki.ca());
    let files = Files::new();
    files.user("alice", "a");
    let address = free_address();
    let configure = |options: &str| {
        let users = files.users().display().to_string();
        let listener = format!("listeners: {{x: {{address: '{address}', {options}}}}}");
        files.write("berth.yaml", format!("auth: {{password: {{file: {users}}}}}\n{listener}\n"))
    };
    let tls = format!("type: tls, cert_file: {}, key_file: {}", server.0.file, server.1.file);
    let asks = |how: &str| {
        format!("{tls}, client_certificates: {how}, client_ca_file: {}, allow_anonymous: true", ca.file)
    };
    let config = configure(&asks("required"));
    let broker = Setup::new().arg("--config").arg(config.to_str().unwrap()).start();
    let dial = Dial::v5("c");
    let comes = |own| let_in_tls(&dial, address, &tls_config(&ca, own));
    assert!(comes(Some(&device)) && !comes(None));
    let reload = || {
        let answer = ctl_json(broker.http, &["reload"]);
        (answer["changed"].clone(), answer["restart"].clone())
    };

    // Passwords in place of certificates: half of that would let everybody in.
    configure(&format!("{tls}, auth_chain: password, allow_anonymous: false"));
    let door = ["allow_anonymous", "auth_chain", "client_ca_file", "client_certificates"];
    assert_eq!(reload(), (json!([]), keys(&door)));
    assert!(comes(Some(&device)) && !comes(None));

    // The same with a door that is to be a plain one. Nothing is applied of it, and its files may go before the restart.
    let moved = format!("{}.moved", server.1.file);
    std::fs::rename(&server.1.file, &moved).unwrap();
    configure("type: tcp, auth_chain: password");
    let door = [
        "allow_anonymous",
        "auth_chain",
        "cert_file",
        "client_ca_file",
        "client_certificates",
        "key_file",
        "type",
    ];
    assert_eq!(reload(), (json!([]), keys(&door)));
    assert!(comes(Some(&device)) && !comes(None));
    std::fs::rename(&moved, &server.1.file).unwrap();

    // One that is not opened any more keeps asking until then, and one that is not there any more does.
    configure(&format!("{tls}, enabled: false"));
    let door = ["allow_anonymous", "client_ca_file", "client_certificates", "enabled"];
    assert_eq!(reload(), (json!([]), keys(&door)));
    assert!(!comes(None));

    // Limits are no part of it.
    configure(&format!("{tls}, auth_chain: password, max_connections: 7"));
    assert_eq!(reload().0, keys(&["max_connections"]));
    assert!(!comes(None));

    // What needs no restart counts at once, if nothing waits that it goes with.
    configure(&asks("optional"));
    assert_eq!(reload(), (keys(&["client_certificates", "max_connections"]), json!([])));
    assert!(comes(None));
}
