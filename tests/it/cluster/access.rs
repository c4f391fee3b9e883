//! Getting into etcd: users, certificates, and what is said when that does not work.

use super::authority::Authority;
use super::etcd::{Etcd as Server, free_port};
use super::node::{Node, connect, options, register};
use berth::etcd::client::{Etcd, EtcdOptions};
use berth::etcd::tls::{EtcdTls, Pem};
use std::time::Duration;

async fn refusal(options: EtcdOptions) -> String {
    match Etcd::connect(options).await {
        Ok(_) => panic!("it connected"),
        Err(e) => e.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers() {
    let server = Server::start(1);
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let nobody = EtcdOptions { endpoints: vec![endpoint.clone()], ..options(&server) };
    let text = refusal(nobody.clone()).await;
    assert!(text.starts_with(&format!("cannot reach etcd at {endpoint} (")), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.ends_with("that etcd.endpoints is right, and that no firewall is between"), "{text}");

    server.stop(0);
    let hung = EtcdOptions { request_timeout: Duration::from_millis(300), ..options(&server) };
    let text = refusal(hung).await;
    let endpoint = server.endpoint(0);
    assert!(text.starts_with(&format!("etcd at {endpoint} did not answer within 300ms: check")), "{text}");
    server.cont(0);

    // One member of several is enough.
    let mut several = nobody;
    several.endpoints.push(endpoint);
    assert!(Etcd::connect(several).await.is_ok());
    for (bad, what) in [
        (
            "etcd-1:2379",
            "etcd.endpoints: \"etcd-1:2379\" is not an http:// or https:// address: give the addresses",
        ),
        ("http://", "etcd.endpoints: \"http://\" is not an http:// or https:// address: give the addresses"),
    ] {
        let text = refusal(EtcdOptions { endpoints: vec![bad.to_owned()], ..options(&server) }).await;
        assert!(text.starts_with(what), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_passwords() {
    let server = Server::start(1);
    let endpoint = server.endpoint(0);
    let with = |user: Option<(&str, &str)>| EtcdOptions {
        user: user.map(|(u, p)| (u.to_owned(), p.to_owned())),
        ..options(&server)
    };
    assert_eq!(
        refusal(with(Some(("berth", "secret")))).await,
        format!(
            "etcd at {endpoint} has no authentication, but etcd.username is \"berth\": turn it on (etcdctl auth enable), or \
             remove etcd.username"
        )
    );
    for args in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "berth:secret"],
        &["user", "add", "guest:guest"],
        &["role", "add", "berth"],
        &["role", "grant-permission", "berth", "readwrite", "/berth/", "--prefix=true"],
        &["user", "grant-role", "berth", "berth"],
        &["auth", "enable"],
    ] {
        server.ctl(args);
    }
    assert_eq!(
        refusal(with(None)).await,
        format!(
            "etcd at {endpoint} requires a user: set etcd.username and etcd.password (or etcd.password_file)"
        )
    );
    assert_eq!(
        refusal(with(Some(("berth", "wrong")))).await,
        format!(
            "etcd at {endpoint} refuses user \"berth\": wrong user name or password: check etcd.username and etcd.password \
             (etcdctl user get berth)"
        )
    );
    assert_eq!(
        refusal(with(Some(("guest", "guest")))).await,
        "etcd user \"guest\" may not read and write /berth/test/v1/: grant it that (etcdctl role grant-permission ROLE \
         readwrite /berth/test/v1/ --prefix=true)"
    );
    let etcd = Etcd::connect(with(Some(("berth", "secret")))).await.unwrap();
    let a = register(&etcd, "a", 1).await.unwrap();
    // A change of the rights makes etcd refuse tokens given out before.
    server.ctl(&["--user", "root:root", "role", "add", "other"]);
    a.rewrite().await.unwrap();
    a.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_etcd_has_forgotten_is_replaced() {
    let mut server = Server::start(1);
    let options = EtcdOptions { user: Some(("root".to_owned(), "root".to_owned())), ..options(&server) };
    for args in
        [&["user", "add", "root:root"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        server.ctl(args);
    }
    let etcd = Etcd::connect(options).await.unwrap();
    let a = register(&etcd, "a", 1).await.unwrap();
    server.restart(0);
    server.wait_healthy(0);
    a.rewrite().await.unwrap();
    assert_eq!(a.me().incarnation, a.fence().created().unwrap() as u64);
}

fn with_tls(server: &Server, ca: Option<Pem>, identity: Option<(Pem, Pem)>) -> EtcdOptions {
    EtcdOptions { tls: Some(EtcdTls { ca, identity }), ..options(server) }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_this_node() {
    let authority = Authority::new();
    let server = authority.server(&authority.sign("server", "127.0.0.1", 2090));
    let endpoint = server.endpoint(0);
    let good = authority.sign("node", "node", 2090);
    let etcd = Etcd::connect(with_tls(&server, Some(authority.ca()), Some(good.clone()))).await.unwrap();
    register(&etcd, "a", 1).await.unwrap().leave().await;

    let expired = authority.sign("old", "node", 2001);
    let text = refusal(with_tls(&server, Some(authority.ca()), Some(expired.clone()))).await;
    let file = &expired.0.file;
    assert_eq!(
        text,
        format!(
            "the certificate in {file} (etcd.cert_file) expired on 2001-01-02 00:00:00 UTC: replace it by a new one and \
             restart this node"
        )
    );
    let swapped = (good.1.clone(), good.0.clone());
    let text = refusal(with_tls(&server, Some(authority.ca()), Some(swapped))).await;
    let file = &good.1.file;
    assert_eq!(text, format!("{file} (etcd.cert_file) cannot be used: there is no certificate in it"));
    let no_key = (good.0.clone(), good.0.clone());
    let text = refusal(with_tls(&server, Some(authority.ca()), Some(no_key))).await;
    let file = &good.0.file;
    assert_eq!(text, format!("{file} (etcd.key_file) cannot be used: there is no private key in it"));

    let stranger = Authority::new().sign("stranger", "node", 2090);
    let file = stranger.0.file.clone();
    let text = refusal(with_tls(&server, Some(authority.ca()), Some(stranger))).await;
    let end = "signed by the authority that etcd trusts (its --trusted-ca-file), for client authentication";
    // What etcd says comes after the handshake, and the end of the connection may overtake it.
    let said = text.starts_with(&format!(
        "etcd at {endpoint} does not accept the certificate in {file} (etcd.cert_file; "
    ));
    let cut = text.starts_with(&format!("etcd at {endpoint} closed the connection ("))
        && text.contains(&format!("it does not accept the certificate in {file} (etcd.cert_file): "));
    assert!((said || cut) && text.ends_with(end), "{text}");
    let text = refusal(with_tls(&server, Some(authority.ca()), None)).await;
    let said = text.starts_with(&format!(
        "etcd at {endpoint} requires a certificate of this node, and none is set: set etcd.cert_file"
    ));
    let cut = text.starts_with(&format!("etcd at {endpoint} closed the connection ("))
        && text.contains("it does not accept a node without a certificate (etcd.cert_file is not set): ");
    assert!(said || cut, "{text}");
    let plain = EtcdOptions {
        tls: Some(EtcdTls::default()),
        endpoints: vec!["http://x:1".to_owned()],
        ..options(&server)
    };
    assert!(refusal(plain).await.contains("write https://"));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_etcd() {
    let authority = Authority::new();
    let node = authority.sign("node", "node", 2090);
    for (host, year, what) in [
        ("127.0.0.1", 2001, "it has expired: replace it on that etcd member (--cert-file)"),
        ("elsewhere", 2090, "it is for another host name: use a name that it lists in etcd.endpoints"),
    ] {
        let server = authority.server(&authority.sign("server", host, year));
        let text = refusal(with_tls(&server, Some(authority.ca()), Some(node.clone()))).await;
        let begin = format!("the certificate of etcd at {} is not accepted: {what}", server.endpoint(0));
        assert!(text.starts_with(&begin), "{text}");
    }
    let server = authority.server(&authority.sign("server", "127.0.0.1", 2090));
    let other = Authority::new();
    let text = refusal(with_tls(&server, Some(other.ca()), Some(node))).await;
    let file = other.ca().file;
    assert_eq!(
        text,
        format!(
            "the certificate of etcd at {} is not accepted: it was not signed by an authority in {file} (etcd.ca_file): \
             set the one that signed it",
            server.endpoint(0)
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_member_costs_one_time_out() {
    let server = Server::start(3);
    let etcd = connect(&server).await;
    let node = Node::start(&server, "a", 1).await;
    let hung = server.leader();
    server.stop(hung);
    let mut failures = 0;
    let mut in_a_row = 0;
    let deadline = crate::wait::deadline();
    while in_a_row < 20 {
        assert!(berth::clock::now() < deadline, "{failures} failures");
        match etcd.once(|mut client| async move { client.get("/berth/x", None).await }).await {
            Ok(_) => in_a_row += 1,
            Err(_) => {
                failures += 1;
                in_a_row = 0;
            }
        }
    }
    // The hung one once, and the others while they elect a leader, which may take several rounds on a busy machine.
    assert!(failures <= 12, "{failures}");
    server.cont(hung);
    assert!(node.membership.rewrite().await.is_ok());
}
