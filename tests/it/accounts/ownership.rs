//! Whose a session is: a client identifier gives nobody another user's session.

use super::{Files, VERSIONS, answer};
use crate::broker::Broker;
use crate::client::{Client, Dial};
use crate::cluster::nodes::BerthCluster;
use berth::mqtt::{QoS, Reason, Version};

fn users() -> Files {
    let files = Files::new();
    files.user("alice", "a");
    files.user("mallory", "m");
    files
}

fn alice(version: Version, id: &str) -> Dial {
    Dial::new(version, id).user("alice", "a").persistent()
}

/// Every way to ask for a session that is another user's.
fn thefts(id: &str) -> Vec<Dial> {
    let by = |version| {
        let dial = Dial::new(version, id);
        let (named, anonymous) = (dial.clone().user("mallory", "m"), dial);
        [named.clone().persistent(), named.clean(), anonymous.clone().persistent(), anonymous.clean()]
    };
    VERSIONS.into_iter().flat_map(by).collect()
}

fn refuses_thefts(to: std::net::SocketAddr, id: &str) {
    for theft in thefts(id) {
        assert_eq!(answer(&theft, to), Reason::NotAuthorized, "{theft:?}");
    }
}

fn is_alive(client: &mut Client) {
    client.ping();
}

#[test]
fn another_user_gets_no_session_on_one_node_nor_after_a_restart() {
    let files = users();
    let mut broker = files.setup().set("auth.allow_anonymous", "true").start();
    for version in VERSIONS {
        let id = format!("s{}", version.name());
        let mut client = alice(version, &id).connect(broker.mqtt);
        client.subscribe(&[("news", QoS::AtLeastOnce)]);
        refuses_thefts(broker.mqtt, &id);
        is_alive(&mut client);
        client.disconnect();
        refuses_thefts(broker.mqtt, &id);
    }
    // A session without state is its user's for as long as it lasts.
    let mut transient = Dial::v5("transient").user("alice", "a").connect(broker.mqtt);
    refuses_thefts(broker.mqtt, "transient");
    is_alive(&mut transient);
    let log = broker.log();
    assert!(
        log.contains("session_of=alice user=mallory") && log.contains("session_of=alice user=(anonymous)"),
        "{log}"
    );
    broker.sigkill();
    broker.restart();
    for version in VERSIONS {
        let id = format!("s{}", version.name());
        refuses_thefts(broker.mqtt, &id);
        // MQTT 3.1 has no words for it.
        let present = alice(version, &id).connect(broker.mqtt).present;
        assert!(present || version == Version::V31, "{version:?}");
    }
    assert_eq!(broker.metric("berth_client_id_thefts_total"), 36.0);
    assert!(!broker.log().contains("panicked"));
}

#[test]
fn another_user_gets_no_session_on_any_node_of_a_cluster() {
    let files = users();
    let file = files.users();
    let options = [("auth.password.file", file.to_str().unwrap()), ("auth.allow_anonymous", "true")];
    let cluster = BerthCluster::with(2, 1, &options);
    let (here, there) = (cluster.addresses()[0], cluster.addresses()[1]);
    let mut online = alice(Version::V5, "online").connect(here);
    let mut transient = Dial::v4("transient").user("alice", "a").connect(here);
    alice(Version::V311, "dormant").connect(here).disconnect();
    for id in ["online", "transient", "dormant"] {
        for to in [here, there] {
            refuses_thefts(to, id);
        }
    }
    is_alive(&mut online);
    is_alive(&mut transient);
    // Its user may move it, and it stays that user's.
    let mut moved = alice(Version::V311, "dormant").connect(there);
    assert!(moved.present);
    is_alive(&mut moved);
    moved.disconnect();
    for to in [here, there] {
        refuses_thefts(to, "dormant");
    }
    assert!(alice(Version::V5, "dormant").connect(here).present);
}

#[test]
fn sessions_from_before_there_were_accounts_go_to_whoever_comes_and_stay_theirs() {
    let files = users();
    let dir = tempfile::tempdir().unwrap();
    {
        let mut before = crate::broker::Setup::new().dir(dir.path()).start();
        let mut client = Dial::v5("old").persistent().connect(before.mqtt);
        client.subscribe(&[("t", QoS::AtLeastOnce)]);
        client.disconnect();
        assert!(before.stop().success());
    }
    let broker = files.setup().set("auth.allow_anonymous", "true").dir(dir.path()).start();
    assert!(Dial::v5("old").persistent().connect(broker.mqtt).present, "anonymous as before");
    let mut taken = alice(Version::V5, "old").connect(broker.mqtt);
    assert!(taken.present);
    is_alive(&mut taken);
    refuses_thefts(broker.mqtt, "old");
    assert!(broker.log().contains("from=(anonymous) to=alice"), "{}", broker.log());
}

#[test]
fn theft_can_be_allowed() {
    let files = users();
    let broker: Broker = files.setup().set("auth.client_id_theft", "allow").start();
    alice(Version::V5, "shared").connect(broker.mqtt).disconnect();
    let mut client = Dial::v5("shared").user("mallory", "m").persistent().connect(broker.mqtt);
    assert!(client.present);
    is_alive(&mut client);
    assert!(broker.log().contains("from=alice to=mallory"), "{}", broker.log());
}
