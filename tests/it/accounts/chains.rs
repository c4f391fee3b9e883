//! Listeners with chains of their own: where a password is asked for, and where it is not.

use super::{Files, answer};
use crate::broker::{command, free_address};
use crate::client::Dial;
use berth::mqtt::Reason;

#[test]
fn a_listener_asks_its_own_methods() {
    let files = Files::new();
    files.user("alice", "a");
    let (inner, strict) = (free_address(), free_address());
    let broker = files
        .setup()
        .set("auth.certificate.name", "common_name")
        .set("listeners.inner.type", "tcp")
        .set("listeners.inner.address", &inner.to_string())
        .set("listeners.inner.auth_chain", "certificate")
        .set("listeners.inner.allow_anonymous", "true")
        .set("listeners.strict.type", "tcp")
        .set("listeners.strict.address", &strict.to_string())
        .set("listeners.strict.auth_chain", "certificate")
        .start();
    // Each with a session of its own: that of the other may not have ended yet.
    let (alice, nobody) = (Dial::v5("alice").user("alice", "a"), Dial::v5("nobody"));
    for (to, of_alice, of_nobody) in [
        (broker.mqtt, Reason::Success, Reason::NotAuthorized),
        // A password means nothing there, also a right one.
        (inner, Reason::BadUserNameOrPassword, Reason::Success),
        (strict, Reason::BadUserNameOrPassword, Reason::NotAuthorized),
    ] {
        assert_eq!((answer(&alice, to), answer(&nobody, to)), (of_alice, of_nobody), "{to}");
    }
}

#[test]
fn a_method_that_is_not_configured_is_refused_by_name() {
    let output =
        command().args(["config", "check", "--set", "listeners.tcp.auth_chain=jwt"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("listeners.tcp.auth_chain") && said.contains("auth.jwt.key_file"), "{said}");
}
