//! Mutual TLS between nodes: what works, and what is said when it does not.

use super::peers::{Node, quick};
use crate::broker::{Setup, free_address};
use crate::wait::becomes_true;
use berth::peers::{PeerServer, PeerTls, PemFile};
use berth::ports::LinkState;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::default()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

/// A node's files: certificate for `host` by `signer`, trusting `ca`.
fn files(node: &str, ca: &Authority, signer: &Authority, host: &str, expired: bool) -> PeerTls {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    if expired {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &signer.issuer).unwrap();
    let file =
        |name: &str, pem: String| PemFile { path: format!("/etc/{node}/{name}.pem"), pem: pem.into_bytes() };
    PeerTls {
        ca: file("ca", ca.pem.clone()),
        cert: file("cert", cert.pem()),
        key: file("key", key.serialize_pem()),
    }
}

async fn node(name: &str, incarnation: u64, tls: Option<PeerTls>) -> Node {
    Node::with(name, incarnation, quick(), tls, "test", "127.0.0.1:0").await
}

/// What the link of `a` to `b` says when it is refused.
async fn refusal(a: Option<PeerTls>, b: Option<PeerTls>) -> String {
    let (a, b) = (node("a", 1, a).await, node("b", 2, b).await);
    a.keep(&[(&b, b.address)]);
    let error = a.error(LinkState::Refused).await;
    println!("{error}");
    assert!(error.contains(&b.address.to_string()), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_authority_talk() {
    let ca = authority("ca");
    let a = node("a", 1, Some(files("a", &ca, &ca, "127.0.0.1", false))).await;
    let b = node("b", 2, Some(files("b", &ca, &ca, "127.0.0.1", false))).await;
    a.keep(&[(&b, b.address)]);
    a.up().await;
    a.send(&b, 1);
    becomes_true("the frame is answered", || a.inbox.answers() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_no_good_is_named_with_the_remedy() {
    let (ca, foreign) = (authority("ca"), authority("foreign"));
    let good = |node| Some(files(node, &ca, &ca, "127.0.0.1", false));

    let theirs = refusal(good("a"), Some(files("b", &ca, &foreign, "127.0.0.1", false))).await;
    assert!(theirs.contains("not signed by /etc/a/ca.pem (cluster.tls.ca_file)"), "{theirs}");
    let theirs = refusal(good("a"), Some(files("b", &ca, &ca, "127.0.0.1", true))).await;
    assert!(theirs.contains("has expired: renew it there"), "{theirs}");
    let theirs = refusal(good("a"), Some(files("b", &ca, &ca, "elsewhere.example", false))).await;
    assert!(theirs.contains("not valid for that host"), "{theirs}");

    let ours = refusal(Some(files("a", &ca, &foreign, "127.0.0.1", false)), good("b")).await;
    assert!(ours.contains("does not accept our certificate /etc/a/cert.pem"), "{ours}");
    let ours = refusal(Some(files("a", &ca, &ca, "127.0.0.1", true)), good("b")).await;
    assert!(ours.contains("/etc/a/cert.pem: it has expired"), "{ours}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_on_one_side_only_is_told_apart_from_a_dead_node() {
    let ca = authority("ca");
    let tls = || Some(files("x", &ca, &ca, "127.0.0.1", false));
    let error = refusal(tls(), None).await;
    assert!(error.contains("does not speak TLS"), "{error}");
    let error = refusal(None, tls()).await;
    assert!(error.contains("cluster.tls on"), "{error}");
}

#[test]
fn a_broker_does_not_start_with_files_that_nobody_can_be_reached_with() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let good = || files("a", &ca, &ca, "127.0.0.1", false);
    let other = || files("b", &ca, &ca, "127.0.0.1", false);
    let expired = files("a", &ca, &ca, "127.0.0.1", true);
    let cases = [
        (PeerTls { key: other().key, ..good() }, "key", "cluster.tls.key_file"),
        (
            PeerTls { key: PemFile { pem: b"no key".to_vec(), ..good().key }, ..good() },
            "key",
            "cluster.tls.key_file",
        ),
        (PeerTls { ca: PemFile { pem: Vec::new(), ..good().ca }, ..good() }, "ca", "cluster.tls.ca_file"),
        (expired, "cert", "cluster.tls.cert_file"),
    ];
    for (tls, bad, option) in cases {
        let mut setup = Setup::new()
            .set("cluster.enabled", "true")
            .set("cluster.peer_address", &free_address().to_string())
            .set("etcd.endpoints", "http://127.0.0.1:1");
        for (name, file) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
            let path = dir.path().join(name);
            crate::listeners::pki::save(&path, std::str::from_utf8(&file.pem).unwrap());
            setup = setup.set(&format!("cluster.tls.{name}_file"), path.to_str().unwrap());
        }
        let mut broker = setup.spawn();
        assert!(!broker.wait().success());
        let log = broker.log();
        let file = dir.path().join(bad);
        assert!(log.contains(option) && log.contains(file.to_str().unwrap()), "{option}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_pem_are_named() {
    let ca = authority("ca");
    let mut tls = files("a", &ca, &ca, "127.0.0.1", false);
    tls.key.pem = b"nonsense".to_vec();
    let peer = node("b", 2, None).await;
    let server = PeerServer::bind("127.0.0.1:0").await.unwrap();
    let identity = berth::peers::PeerIdentity {
        cluster: "test".into(),
        me: berth::ports::MemberId { node: "a".into(), incarnation: 1 },
        journal: 1,
    };
    let metrics = peer.metrics.clone();
    let peers = berth::peers::GrpcPeers::new(quick(), identity, Some(tls), metrics);
    let error = server.serve(&peers, std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("/etc/a/key.pem") && error.contains("cluster.tls"), "{error}");
}

/// Writes files of a node to where they say they are.
fn save(dir: &std::path::Path, tls: &PeerTls) -> PeerTls {
    let save = |name: &str, file: &PemFile| {
        let path = dir.join(name);
        std::fs::write(&path, &file.pem).unwrap();
        PemFile { path: path.display().to_string(), pem: file.pem.clone() }
    };
    PeerTls { ca: save("ca.pem", &tls.ca), cert: save("cert.pem", &tls.cert), key: save("key.pem", &tls.key) }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_count_for_new_links_and_end_none() {
    let (old, new) = (authority("old"), authority("new"));
    let dirs = ["a", "b", "c"].map(|_| tempfile::tempdir().unwrap());
    let made = |at: usize, ca: &Authority| save(dirs[at].path(), &files("x", ca, ca, "127.0.0.1", false));
    let (a, b) = (node("a", 1, Some(made(0, &old))).await, node("b", 2, Some(made(1, &old))).await);
    a.keep(&[(&b, b.address)]);
    a.up().await;
    // Of another authority, so that whoever still goes by the old ones is refused.
    made(1, &new);
    let c = node("c", 3, Some(made(2, &new))).await;
    c.keep(&[(&b, b.address)]);
    c.up().await;
    a.send(&b, 1);
    becomes_true("the old link still works", || a.inbox.answers() == 1).await;
    // The side that dials goes by new files, too.
    made(0, &new);
    a.keep(&[(&b, b.address), (&c, c.address)]);
    a.send(&c, 2);
    becomes_true("a new link works", || a.inbox.answers() == 2).await;
    // What cannot be used changes nothing.
    std::fs::write(dirs[1].path().join("cert.pem"), "no certificate").unwrap();
    let d = node("d", 4, Some(files("d", &new, &new, "127.0.0.1", false))).await;
    d.keep(&[(&b, b.address)]);
    d.up().await;
}
