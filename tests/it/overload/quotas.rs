//! Quotas of users.

use crate::accounts::Files;
use crate::client::{Dial, In};
use crate::operate::ctl;
use crate::wait;
use berth::mqtt::{Reason, Version};
use std::net::SocketAddr;

fn answer(dial: &Dial, to: SocketAddr) -> (Reason, String) {
    match dial.try_connect(to).unwrap().1 {
        In::ConnAck { reason, properties, .. } => (reason, format!("{properties:?}")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_user_has_so_many_connections_whatever_their_names() {
    let files = Files::new();
    files.user("alice", "a");
    files.user("bob", "b");
    let broker = files.setup().set("limits.max_connections_per_user", "2").start();
    let alice = |version, id: &str| Dial::new(version, id).user("alice", "a");
    let mut first = alice(Version::V5, "first").persistent().connect(broker.mqtt);
    let mut second = alice(Version::V311, "second").connect(broker.mqtt);
    for _ in 0..3 {
        let (reason, said) = answer(&alice(Version::V5, "third"), broker.mqtt);
        assert_eq!(reason, Reason::QuotaExceeded);
        assert!(said.contains("limits.max_connections_per_user"), "{said}");
    }
    assert_eq!(answer(&alice(Version::V311, "third"), broker.mqtt).0, Reason::ServerUnavailable);
    assert_eq!(answer(&Dial::v5("other").user("bob", "b"), broker.mqtt).0, Reason::Success);
    // Whoever comes again takes its own place.
    let mut again = alice(Version::V5, "first").persistent().connect(broker.mqtt);
    assert!(again.present);
    assert_eq!(first.expect_closed(), Some(Reason::SessionTakenOver));
    second.ping();
    assert_eq!(broker.get_json("/api/v1/sessions/third")["session"], serde_json::Value::Null);
    second.disconnect();
    wait::until_true("there is room", || {
        answer(&alice(Version::V5, "third"), broker.mqtt).0 == Reason::Success
    });
    again.ping();
    assert_eq!(broker.log().matches("its user has as many as it may").count(), 1);
    assert_eq!(broker.metric("berth_connects_refused_total{reason=\"quota\"}"), 4.0);
    assert!(ctl(broker.http, &["sessions", "show", "first"]).ok().contains("first"));
}
