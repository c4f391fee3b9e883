//! Listeners of a cluster: what they protect is the same on every node.

use super::pki::{GOOD, Pki, save};
use super::{connect_wss, connected_tls, let_in_tls, tls_config};
use crate::client::Dial;
use crate::cluster::nodes::BerthCluster;
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason};

#[test]
fn messages_and_revocations_reach_every_node() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let devices = [1, 2].map(|n| pki.sign(&format!("device-{n}"), n, GOOD, &[]));
    let (ca, crl) = (pki.ca(), pki.save("crl.pem", &pki.crl(1, &[])));
    let mut options = Vec::new();
    for (name, kind) in [("secure", "tls"), ("web", "wss")] {
        // Every node has a port of its own, which its log tells.
        for (key, value) in [
            ("type", kind),
            ("cert_file", &server.0.file),
            ("key_file", &server.1.file),
            ("client_certificates", "required"),
            ("client_ca_file", &ca.file),
            ("crl_file", &crl.file),
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
        address.parse::<std::net::SocketAddr>().unwrap()
    };
    let secure = [0, 1, 2].map(|node| at(node, "secure"));
    let web = [0, 1, 2].map(|node| at(node, "web"));
    let config = |n: usize| tls_config(&ca, Some(&devices[n]));
    let mut stays: Vec<_> =
        (0..3).map(|n| connected_tls(&Dial::v5(&format!("stays-{n}")), secure[n], &config(0))).collect();
    let mut leaves: Vec<_> =
        (0..3).map(|n| connect_wss(&Dial::v5(&format!("leaves-{n}")), web[n], &config(1))).collect();
    for client in stays.iter_mut().chain(&mut leaves) {
        assert_eq!(client.subscribe(&[("all", QoS::AtLeastOnce)]), [1]);
    }
    stays[0].publish("all", "to everybody", QoS::AtLeastOnce);
    leaves[2].publish("all", "once more", QoS::AtLeastOnce);
    for client in stays.iter_mut().chain(&mut leaves) {
        let mut texts = client.receive_texts(2);
        texts.sort();
        assert_eq!(texts, ["once more", "to everybody"]);
    }

    let told = clock::now();
    save(&pki.path("crl.pem"), &pki.crl(2, &[2]));
    for client in &mut leaves {
        assert_eq!(client.expect_closed(), Some(Reason::NotAuthorized));
    }
    let took = clock::now().since_ms(told);
    assert!(took < 5_000, "{took} ms");
    stays.iter_mut().for_each(crate::client::Client::ping);
    for to in secure {
        assert!(!let_in_tls(&Dial::v5("again"), to, &config(1)));
    }
    wait::until_true("all nodes have counted theirs", || {
        (0..3).all(|n| cluster.broker(n).metric("berth_certificates_distrusted_total") == 1.0)
    });
}
