//! Certificates and users of real brokers: between nodes, and to etcd.

use super::authority::Authority;
use super::etcd::Etcd;
use super::nodes::{BerthCluster, Room};
use crate::broker::{Setup, free_address};
use crate::client::Dial;
use berth::mqtt::QoS;

/// A year that has not come, and one that is over.
const GOOD: i32 = 2090;
const OVER: i32 = 2001;

/// The files of a node as options of a section.
fn files(section: &str, authority: &Authority, name: &str, year: i32) -> [(String, String); 3] {
    let (cert, key) = authority.sign(name, "127.0.0.1", year);
    let files = [("ca_file", authority.ca()), ("cert_file", cert), ("key_file", key)];
    files.map(|(option, pem)| (format!("{section}.{option}"), pem.file))
}

fn set(setup: Setup, options: &[(String, String)]) -> Setup {
    options.iter().fold(setup, |s, (key, value)| s.set(key, value))
}

/// Node `name` of a cluster on this etcd.
fn node(name: &str, endpoint: &str) -> Setup {
    Setup::new()
        .set("node.id", name)
        .set("cluster.enabled", "true")
        .set("cluster.peer_address", &free_address().to_string())
        .set("etcd.endpoints", endpoint)
}

#[test]
fn nodes_of_one_authority_talk_and_an_expired_certificate_is_named() {
    let authority = Authority::new();
    let good = files("cluster.tls", &authority, "node", GOOD);
    let options: Vec<(&str, &str)> = good.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let cluster = BerthCluster::with(2, 1, &options);
    let mut sub = cluster.connect(1, &Dial::v5("sub"));
    assert_eq!(sub.subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    cluster.connect(0, &Dial::v5("pub")).publish("t", "across", QoS::AtLeastOnce);
    assert_eq!(sub.receive().text(), "across");

    let expired = files("cluster.tls", &authority, "old", OVER);
    let mut third = set(node("n2", &cluster.etcd.endpoint(0)), &expired).spawn();
    assert!(!third.wait().success());
    let log = third.log();
    assert!(log.contains("expired") && log.contains("cluster.tls.cert_file"), "{log}");
    assert_eq!(cluster.members(), ["n0", "n1"], "it never registered");
    assert!(cluster.linked(0, 1));
}

/// etcd with a user and certificates of clients.
fn guarded(authority: &Authority) -> Etcd {
    let server = authority.server(&authority.sign("server", "127.0.0.1", GOOD));
    let (cert, key) = authority.sign("root", "127.0.0.1", GOOD);
    let ca = authority.ca();
    for args in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "berth:secret"],
        &["role", "add", "berth"],
        &["role", "grant-permission", "berth", "readwrite", "/berth/", "--prefix=true"],
        &["user", "grant-role", "berth", "berth"],
        &["auth", "enable"],
    ] {
        server.ctl(&[&["--cacert", &ca.file, "--cert", &cert.file, "--key", &key.file][..], args].concat());
    }
    server
}

#[test]
fn a_broker_comes_to_etcd_with_a_certificate_and_a_password_and_not_with_an_expired_one() {
    let _room = Room::take();
    let authority = Authority::new();
    let server = guarded(&authority);
    let password = authority.save("password", "secret\n".to_owned()).file;
    let guest = |name: &str| {
        node(name, &server.endpoint(0)).set("etcd.username", "berth").set("etcd.password_file", &password)
    };
    let broker = set(guest("n0"), &files("etcd", &authority, "good", GOOD)).start();
    let mut client = Dial::v5("c").persistent().connect(broker.mqtt);
    assert_eq!(client.subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    client.publish("t", "x", QoS::AtLeastOnce);
    assert_eq!(client.receive().text(), "x");

    let expired = files("etcd", &authority, "expired", OVER);
    let mut refused = set(guest("n1"), &expired).spawn();
    let status = refused.wait();
    let log = refused.log();
    assert!(!status.success(), "{log}");
    let [_, (_, file), _] = &expired;
    assert!(log.contains(file) && log.contains("expired"), "{log}");
}
