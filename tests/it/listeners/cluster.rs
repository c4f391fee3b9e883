//! Listeners of a cluster: what they protect is the same on every node.

use super::pki::{GOOD, Mount, Pem, Pki};
use super::rotation::{IN_EFFECT_MS, der, shown};
use super::{connect_wss, connected_tls, let_in_tls, tls_config};
use crate::bystanders::Bystanders;
use crate::client::{Client, Dial};
use crate::cluster::nodes::BerthCluster;
use crate::wait;
use berth::clock;
use berth::mqtt::Reason;
use std::net::SocketAddr;

/// How long a new certificate may take until every node shows it, milliseconds.
const EVERYWHERE_MS: u64 = 1_000;

/// Rotations at most; on a machine that is busy with others not each of them keeps to [`EVERYWHERE_MS`].
const ROTATIONS: usize = 12;

/// Three nodes whose listeners `secure` (TLS) and `web` (secure WebSocket) ask for certificates and read all files from `mount`; the
/// addresses of both, by node.
fn three_nodes(mount: &Mount) -> (BerthCluster, [SocketAddr; 3], [SocketAddr; 3]) {
    let mut options = Vec::new();
    for (name, kind) in [("secure", "tls"), ("web", "wss")] {
        // Every node has a port of its own, which its log tells.
        for (key, value) in [
            ("type", kind),
            ("cert_file", &*mount.file("tls.crt")),
            ("key_file", &mount.file("tls.key")),
            ("client_certificates", "required"),
            ("client_ca_file", &mount.file("ca.crt")),
            ("crl_file", &mount.file("revoked.pem")),
            ("address", "127.0.0.1:0"),
        ] {
            options.push((format!("listeners.{name}.{key}"), value.to_owned()));
        }
    }
    let options: Vec<(&str, &str)> = options.iter().map(|(k, v)| (&**k, &**v)).collect();
    let mut cluster = BerthCluster::with(3, 1, &options);
    let mut at = |node: usize, name: &str| {
        let wanted = format!("listener=\"{name}\"");
        let line = cluster.broker(node).wait_log(|l| l.contains("MQTT listens") && l.contains(&wanted));
        let address = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        address.parse::<SocketAddr>().unwrap()
    };
    let (secure, web) = ([0, 1, 2].map(|node| at(node, "secure")), [0, 1, 2].map(|node| at(node, "web")));
    (cluster, secure, web)
}

/// Puts these files in the place of others on all nodes at once.
fn swap(mount: &mut Mount, server: &(Pem, Pem), ca: &Pem, revoked: &str) {
    let (cert, key) = server;
    mount.swap(&[
        ("tls.crt", &cert.text),
        ("tls.key", &key.text),
        ("ca.crt", &ca.text),
        ("revoked.pem", revoked),
    ]);
}

/// Two clients on each node, one over TLS and one over secure WebSocket, talk to those of the next node all the time.
#[test]
fn certificates_and_revocations_reach_every_node() {
    let pki = Pki::new("authority");
    let ca = pki.ca();
    let servers = [1000, 1001].map(|serial| pki.sign("broker", serial, GOOD, &["localhost", "127.0.0.1"]));
    let devices = [1, 2].map(|n| pki.sign(&format!("device-{n}"), n, GOOD, &[]));
    let mut mount = Mount::new();
    swap(&mut mount, &servers[0], &ca, &pki.crl(1, &[]));
    let (mut cluster, secure, web) = three_nodes(&mount);
    let all: Vec<SocketAddr> = [secure, web].concat();

    let stays = tls_config(&ca, Some(&devices[0]));
    let pairs = (0..3).map(|n| {
        let sender = connected_tls(&Dial::v4(&format!("out-{n}")), secure[n], &stays);
        (sender, connect_wss(&Dial::v5(&format!("in-{n}")), web[(n + 1) % 3], &stays))
    });
    let leaves = tls_config(&ca, Some(&devices[1]));
    let mut leaving: Vec<Client> = (0..3)
        .flat_map(|n| {
            let over_tls = connected_tls(&Dial::v5(&format!("tls-{n}")), secure[n], &leaves);
            [over_tls, connect_wss(&Dial::v5(&format!("wss-{n}")), web[n], &leaves)]
        })
        .collect();
    let last = Bystanders::watch_pairs(pairs.collect(), |bystanders| {
        bystanders.go_on();
        let mut took = Vec::new();
        let mut last = 0;
        while took.iter().all(|ms| *ms >= EVERYWHERE_MS) || took.len() < 3 {
            assert!(took.len() < ROTATIONS, "it took {took:?} ms");
            last = (took.len() + 1) % 2;
            let swapped = clock::now();
            swap(&mut mount, &servers[last], &ca, &pki.crl(1, &[]));
            for to in &all {
                wait::until_true("the new certificate is shown", || {
                    shown(*to, &stays) == der(&servers[last].0)
                });
            }
            took.push(clock::now().since_ms(swapped));
            bystanders.go_on();
            leaving.iter_mut().for_each(Client::ping);
        }
        println!("shown by all listeners of all nodes after {took:?} ms");

        let told = clock::now();
        swap(&mut mount, &servers[last], &ca, &pki.crl(2, &[2]));
        for client in &mut leaving {
            assert_eq!(client.expect_closed(), Some(Reason::NotAuthorized));
        }
        let took = clock::now().since_ms(told);
        assert!(took < IN_EFFECT_MS, "{took} ms");
        bystanders.go_on();
        last
    });
    for to in secure {
        assert!(!let_in_tls(&Dial::v5("again"), to, &leaves));
        assert!(let_in_tls(&Dial::v5("comes"), to, &stays));
    }
    assert!(all.iter().all(|to| shown(*to, &stays) == der(&servers[last].0)));
    for node in 0..3 {
        let broker = cluster.broker(node);
        wait::until_true("all nodes have counted theirs", || {
            broker.metric("berth_certificates_distrusted_total") == 2.0
        });
        assert_eq!(broker.metric("berth_certificate_reloads_total{outcome=\"failed\"}"), 0.0);
    }
}
