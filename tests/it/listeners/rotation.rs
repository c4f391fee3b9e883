//! Certificates that are replaced while clients are connected.

use super::pki::{GOOD, Mount, Pem, Pki, save};
use super::{connect_wss, connected_tls, let_in_tls, listen, secure, tls_config};
use crate::broker::Broker;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason, Version};
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::sync::Arc;

/// How long a change of files may take to be in effect, milliseconds; generous, for busy machines.
pub const IN_EFFECT_MS: u64 = 5_000;

/// The certificate that a new connection is shown.
pub fn shown(to: SocketAddr, config: &Arc<ClientConfig>) -> Vec<u8> {
    let (stream, _) = secure(to, config, "localhost").unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

/// A certificate as it is shown.
pub fn der(pem: &Pem) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.text.as_bytes()).unwrap().to_vec()
}

#[test]
fn certificates_are_rotated_by_a_swap_of_links_under_a_live_connection() {
    let pki = Pki::new("authority");
    let config = tls_config(&pki.ca(), None);
    let (old, new) = (pki.sign("old", 1, GOOD, &["localhost"]), pki.sign("new", 2, GOOD, &["localhost"]));
    let mut mount = Mount::new();
    mount.swap(&[("tls.crt", &old.0.text), ("tls.key", &old.1.text)]);
    let options = [("cert_file", &*mount.file("tls.crt")), ("key_file", &*mount.file("tls.key"))];
    let (mut broker, address) = listen("tls", &options);
    let mut live = connected_tls(&Dial::v5("live"), address, &config);
    assert_eq!(shown(address, &config), der(&old.0));

    let swapped = clock::now();
    mount.swap(&[("tls.crt", &new.0.text), ("tls.key", &new.1.text)]);
    wait::until_true("the new certificate is shown", || shown(address, &config) == der(&new.0));
    let took = clock::now().since_ms(swapped);
    assert!(took < IN_EFFECT_MS, "{took} ms");
    live.ping();

    // A key that is not that of the certificate: the error names the file, and the old certificates stay in use.
    mount.swap(&[("tls.crt", &new.0.text), ("tls.key", &old.1.text)]);
    let line = broker.wait_log(|l| l.contains("ERROR") && l.contains("the old certificates stay in use"));
    assert!(line.contains(&mount.file("tls.key")) && line.contains("listeners.x.key_file"), "{line}");
    assert_eq!(shown(address, &config), der(&new.0));
    assert_eq!(broker.metric("berth_certificate_reloads_total{outcome=\"failed\"}"), 1.0);
    live.ping();

    // Half of a change by hand is waited for, and SIGHUP asks at once.
    mount.swap(&[("tls.crt", &old.0.text), ("tls.key", &old.1.text)]);
    broker.signal("HUP");
    wait::until_true("the old one is back", || shown(address, &config) == der(&old.0));
    live.ping();
    live.disconnect();
}

/// A client that shows its certificate.
fn connect(pki: &Pki, to: SocketAddr, version: Version, own: &(Pem, Pem), id: &str) -> Client {
    connected_tls(&Dial::new(version, id).will("wills", id, 0), to, &tls_config(&pki.ca(), Some(own)))
}

fn revoked(broker: &Broker) -> f64 {
    broker.metric("berth_certificates_distrusted_total")
}

#[test]
fn a_revocation_ends_the_right_connections() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let own = [1, 2, 3].map(|n| pki.sign(&format!("device-{n}"), n, GOOD, &[]));
    let crl = pki.save("crl.pem", &pki.crl(1, &[]));
    let ca = pki.ca();
    let options = [
        ("cert_file", &*server.0.file),
        ("key_file", &server.1.file),
        ("client_certificates", "optional"),
        ("client_ca_file", &ca.file),
        ("crl_file", &crl.file),
    ];
    let (broker, address) = listen("tls", &options);
    let mut watcher = Dial::v5("watcher").connect(broker.mqtt);
    watcher.subscribe(&[("wills", QoS::AtMostOnce)]);
    let mut first = connect(&pki, address, Version::V5, &own[0], "first");
    let mut again = connect(&pki, address, Version::V311, &own[0], "again");
    let mut second = connect(&pki, address, Version::V5, &own[1], "second");
    let mut nobody = connected_tls(&Dial::v5("nobody"), address, &tls_config(&pki.ca(), None));

    let told = clock::now();
    save(&pki.path("crl.pem"), &pki.crl(2, &[1]));
    assert_eq!(first.expect_closed(), Some(Reason::NotAuthorized));
    assert_eq!(again.expect_closed(), None, "MQTT 3 has no DISCONNECT from the broker");
    let took = clock::now().since_ms(told);
    assert!(took < IN_EFFECT_MS, "{took} ms");
    let mut wills = [watcher.receive().text().to_owned(), watcher.receive().text().to_owned()];
    wills.sort();
    assert_eq!(wills, ["again", "first"]);
    second.ping();
    nobody.ping();
    assert_eq!(revoked(&broker), 2.0);
    assert!(!let_in_tls(&Dial::v5("first"), address, &tls_config(&pki.ca(), Some(&own[0]))));

    // A second time, and by SIGHUP.
    connect(&pki, address, Version::V5, &own[2], "third").ping();
    save(&pki.path("crl.pem"), &pki.crl(3, &[1, 2]));
    broker.signal("HUP");
    assert_eq!(second.expect_closed(), Some(Reason::NotAuthorized));
    nobody.ping();
    assert_eq!(revoked(&broker), 3.0);

    // A list that cannot be read changes nothing.
    save(&pki.path("crl.pem"), "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let mut broker = broker;
    let line = broker.wait_log(|l| l.contains("ERROR") && l.contains("crl.pem"));
    assert!(line.contains("listeners.x.crl_file"), "{line}");
    assert!(!let_in_tls(&Dial::v5("first"), address, &tls_config(&pki.ca(), Some(&own[0]))));
    connect(&pki, address, Version::V5, &own[2], "third").ping();
}

/// An authority between the root and its clients that is revoked takes all of its clients with it.
#[test]
fn a_revoked_authority_ends_its_clients() {
    let root = Pki::new("root");
    let server = root.server("broker");
    let (plant, office) = (root.authorise("plant", 7), root.authorise("office", 8));
    let own = |pki: &Pki, cn: &str| {
        let (cert, key) = pki.sign(cn, 1, GOOD, &[]);
        (pki.save(&format!("{cn}-chain.pem"), &format!("{}{}", cert.text, pki.ca().text)), key)
    };
    let (of_plant, of_office) = (own(&plant, "of-plant"), own(&office, "of-office"));
    let lists =
        |number, revoked: &[u64]| [root.crl(number, revoked), plant.crl(1, &[]), office.crl(1, &[])].concat();
    let crl = root.save("crl.pem", &lists(1, &[]));
    let ca = root.ca();
    let options = [
        ("cert_file", &*server.0.file),
        ("key_file", &server.1.file),
        ("client_certificates", "required"),
        ("client_ca_file", &ca.file),
        ("crl_file", &crl.file),
    ];
    let (broker, address) = listen("tls", &options);
    let mut leaves = connect(&root, address, Version::V5, &of_plant, "leaves");
    let mut stays = connect(&root, address, Version::V5, &of_office, "stays");
    save(&root.path("crl.pem"), &lists(2, &[7]));
    assert_eq!(leaves.expect_closed(), Some(Reason::NotAuthorized));
    assert!(!let_in_tls(&Dial::v5("leaves"), address, &tls_config(&root.ca(), Some(&of_plant))));
    stays.ping();
    connect(&root, address, Version::V5, &of_office, "comes").ping();
    assert_eq!(revoked(&broker), 1.0);
}

/// An authority that is not trusted any more, over secure WebSocket, whose own clients have nothing to fear from a swap.
#[test]
fn an_authority_that_is_gone_ends_its_clients() {
    let (old, new) = (Pki::new("old"), Pki::new("new"));
    let server = old.server("broker");
    let (of_old, of_new) = (old.sign("of-old", 1, GOOD, &[]), new.sign("of-new", 1, GOOD, &[]));
    let both = old.save("clients.pem", &format!("{}{}", old.ca().text, new.ca().text));
    let options = [
        ("cert_file", &*server.0.file),
        ("key_file", &server.1.file),
        ("client_certificates", "required"),
        ("client_ca_file", &both.file),
    ];
    let (broker, address) = listen("wss", &options);
    let mut leaves = connect_wss(&Dial::v5("leaves"), address, &tls_config(&old.ca(), Some(&of_old)));
    let mut stays = connect_wss(&Dial::v5("stays"), address, &tls_config(&old.ca(), Some(&of_new)));
    save(&old.path("clients.pem"), &new.ca().text);
    assert_eq!(leaves.recv(), In::Disconnect(Reason::NotAuthorized));
    assert_eq!(leaves.recv(), In::Closed);
    stays.ping();
    assert_eq!(revoked(&broker), 1.0);
}
