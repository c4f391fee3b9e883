//! etcd refuses a user that it accepted before: for the brokers it is away, and a password that is replaced in its file mends
//! that.

use super::etcd::Etcd;
use super::nodes::BerthCluster;
use crate::client::{Dial, In};
use crate::wait;
use berth::mqtt::{QoS, Reason};

#[test]
fn a_password_that_changes_is_an_outage_until_its_file_has_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    crate::listeners::pki::save(&file, "first\n");
    let options = [
        ("etcd.username", "berth"),
        ("etcd.password_file", file.to_str().unwrap()),
        ("cluster.suback_wait", "10m"),
        ("cluster.takeover_timeout", "2s"),
    ];
    let with_users = || {
        let mut etcd = Etcd::start(1);
        for args in [
            &["role", "add", "berth"][..],
            &["role", "grant-permission", "berth", "readwrite", "/berth/berth/v1/", "--prefix=true"],
            &["user", "add", "berth:first"],
            &["user", "grant-role", "berth", "berth"],
        ] {
            etcd.ctl(args);
        }
        etcd.enable_auth();
        etcd
    };
    let cluster = BerthCluster::on(with_users, 2, &options);
    let known = Dial::v5("known").persistent();
    let mut subscriber = cluster.connect(1, &known);
    subscriber.subscribe(&[("t/#", QoS::AtLeastOnce)]);
    let mut publisher = cluster.connect(0, &Dial::v5("publisher"));
    // As `user passwd` does, which asks for the password.
    for args in [
        &["user", "delete", "berth"][..],
        &["user", "add", "berth:second"],
        &["user", "grant-role", "berth", "berth"],
    ] {
        cluster.etcd.ctl(args);
    }
    for node in 0..2 {
        cluster.wait_status(node, "etcd is of no use", |s| s["cluster"]["etcd"]["reachable"] == false);
    }
    assert_eq!(subscriber.subscribe(&[("new", QoS::AtLeastOnce)]), [1], "SUBACK does not wait");
    let answer = publisher.publish_with("t/kept", b"kept", QoS::AtLeastOnce, true);
    assert_eq!(answer, Reason::Success);
    assert_eq!(subscriber.receive().text(), "kept");

    std::fs::write(&file, "second\n").unwrap();
    for node in 0..2 {
        cluster.wait_status(node, "etcd is of use again", |s| s["cluster"]["etcd"]["reachable"] == true);
    }
    wait::until_true("new sessions are made", || {
        let (_, answer) = Dial::v5("newcomer").persistent().try_connect(cluster.mqtt(0)).unwrap();
        matches!(answer, In::ConnAck { reason: Reason::Success, .. })
    });
    wait::until_true("the spooled message is kept by the cluster", || {
        cluster.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/retained/"]).contains("t/kept")
    });

    let grant = |what| {
        cluster.etcd.ctl(&["role", "grant-permission", "berth", what, "/berth/berth/v1/", "--prefix=true"]);
    };
    cluster.etcd.ctl(&["role", "revoke-permission", "berth", "/berth/berth/v1/", "--prefix=true"]);
    grant("read");
    for node in 0..2 {
        cluster.wait_status(node, "etcd takes no writes", |s| s["cluster"]["etcd"]["writable"] == false);
    }
    assert_eq!(subscriber.subscribe(&[("newer", QoS::AtLeastOnce)]), [1], "SUBACK does not wait");
    grant("readwrite");
    for node in 0..2 {
        cluster.wait_status(node, "etcd takes writes", |s| s["cluster"]["etcd"]["writable"] == true);
    }
}
