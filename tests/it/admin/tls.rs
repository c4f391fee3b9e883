//! Admin HTTP over TLS.

use super::{Tokens, secure_ctl};
use crate::broker::{Broker, Setup};
use crate::listeners::pki::{GOOD, OVER, Pem, Pki, save};
use crate::listeners::{secure, tls_config};
use crate::operate::ctl;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use std::io::{Read, Write};
use std::process::Command;

fn setup((cert, key): &(Pem, Pem)) -> Setup {
    Setup::new().set("http.cert_file", &cert.file).set("http.key_file", &key.file)
}

/// What curl says of a page of admin HTTP: its exit code, and status code or error.
fn curl(broker: &Broker, args: &[&str], path: &str) -> (i32, String) {
    let url = format!("https://localhost:{}{path}", broker.http.port());
    let done = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"])
        .args(args)
        .arg(url)
        .output()
        .unwrap();
    let said = if done.status.success() { done.stdout } else { done.stderr };
    (done.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[test]
fn ctl_and_curl_trust_the_certificate_that_they_are_told_to() {
    let (pki, tokens) = (Pki::new("authority"), Tokens::new());
    let own = pki.server("broker");
    let mut broker = setup(&own).set("http.admin_token_file", &tokens.admin.file).start();
    broker.wait_log(|line| line.contains("admin HTTP listens") && line.contains("tls=true"));
    let (ca, token) = (pki.ca().file, tokens.admin.file.clone());
    // Environment, arguments, exit code, words.
    let port = broker.http.port();
    let (by_address, plain) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], i32, &'a str);
    let table: &[Case<'_>] = &[
        (&[("BERTH_CA_FILE", &ca)], &["ready"], 0, "ready"),
        (&[], &["--ca", &ca, "ready"], 0, "ready"),
        (&[], &["--ca", &ca, "--url", &by_address, "ready"], 0, "ready"),
        (&[], &["--ca", &own.0.file, "ready"], 0, "ready"),
        (&[("BERTH_CA_FILE", &ca), ("BERTH_TOKEN_FILE", &token)], &["cluster", "status"], 0, "standalone"),
        (&[("BERTH_CA_FILE", &ca)], &["cluster", "status"], 1, "401"),
        (&[], &["ready"], 3, "--ca or BERTH_CA_FILE"),
        (&[], &["cluster", "status"], 1, "is not trusted (invalid peer certificate: UnknownIssuer)"),
        (&[("BERTH_SERVER_NAME", "other")], &["--ca", &ca, "ready"], 3, "not valid for name \"other\""),
        (&[], &["--ca", "/nowhere", "ready"], 2, "--ca /nowhere"),
        (&[], &["--ca", &own.1.file, "ready"], 2, "there is no certificate in it"),
        (&[], &["--ca", &ca, "--url", &plain, "ready"], 3, "write https:// for http://"),
    ];
    for (env, args, code, words) in table {
        let said = secure_ctl(&broker, env, args);
        assert_eq!(said.code, *code, "{args:?}: {said:?}");
        assert!(said.out.contains(words) || said.err.contains(words), "{args:?}: {said:?}");
    }
    assert_eq!(curl(&broker, &["--cacert", &ca], "/health"), (0, "200".to_owned()));
    assert_eq!(curl(&broker, &["--cacert", &ca], "/api/v1/sessions"), (0, "401".to_owned()));
    let header = "Authorization: Bearer aaaaaaaaaaaaaaaaaaaaaaaa";
    assert_eq!(curl(&broker, &["--cacert", &ca, "-H", header], "/api/v1/sessions"), (0, "200".to_owned()));
    assert_eq!(curl(&broker, &[], "/health").0, 60, "curl trusts what it has no reason to");
    let old = ["--cacert", &*ca, "--ciphers", "DEFAULT@SECLEVEL=0", "--tls-max", "1.1"];
    assert_eq!(curl(&broker, &old, "/health").0, 35, "TLS 1.1 is spoken");
    // A broker without TLS, asked with it.
    let broker = Broker::start();
    let said = secure_ctl(&broker, &[("BERTH_CA_FILE", &ca)], &["ready"]);
    assert!(said.code == 3 && said.err.contains("did not answer as a broker does"), "{said:?}");
}

/// What `openssl req -x509` makes, as in docs/security.md: a certificate that vouches for itself.
#[test]
fn a_certificate_of_its_own_is_trusted_if_it_is_that_one() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, year: i32| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let path = |end: &str| dir.path().join(format!("{name}.{end}"));
        (save(&path("crt"), &cert.pem()), save(&path("key"), &key.serialize_pem()))
    };
    let (own, other) = (made("own", GOOD), made("other", GOOD));
    let broker = setup(&own).start();
    let with = |ca: &Pem, args: &[&str]| secure_ctl(&broker, &[("BERTH_CA_FILE", &ca.file)], args);
    assert_eq!(with(&own.0, &["ready"]).ok(), "ready\n");
    assert!(with(&other.0, &["ready"]).failed(3).contains("not trusted"));
    assert!(with(&own.0, &["--server-name", "elsewhere", "ready"]).failed(3).contains("not trusted"));
    // One that is over is no reason to start.
    let mut refused = setup(&made("over", OVER)).spawn();
    assert!(!refused.wait().success());
    assert!(refused.log().contains("(http.cert_file) cannot be used"), "{}", refused.log());
}

#[test]
fn certificates_are_replaced_and_revoked_on_open_connections() {
    let pki = Pki::new("authority");
    let own = pki.server("broker");
    let (client, other) = (pki.sign("alice", 7, GOOD, &[]), pki.sign("bob", 8, GOOD, &[]));
    let crl = pki.save("crl.pem", &pki.crl(1, &[]));
    let (cert, key) = (pki.save("now.pem", &own.0.text), pki.save("now.key", &own.1.text));
    let mut broker = setup(&(cert, key))
        .set("http.client_certificates", "required")
        .set("http.client_ca_file", &pki.ca().file)
        .set("http.crl_file", &crl.file)
        .start();
    let ca = [("BERTH_CA_FILE", &*pki.ca().file)];
    let shows = |pair: &(Pem, Pem)| {
        secure_ctl(&broker, &ca, &["--cert", &pair.0.file, "--key", &pair.1.file, "ready"])
    };
    assert_eq!(shows(&client).ok(), "ready\n");
    assert_eq!(secure_ctl(&broker, &ca, &["ready"]).code, 3);
    assert!(shows(&Pki::new("foreign").sign("alice", 7, GOOD, &[])).failed(3).contains("did not answer"));
    let said = secure_ctl(&broker, &ca, &["--cert", &client.0.file, "ready"]);
    assert!(said.code == 2 && said.err.contains("--key"), "{said:?}");

    let ask = |pair: &(Pem, Pem)| {
        let config = tls_config(&pki.ca(), Some(pair));
        let (mut stream, _) = secure(broker.http, &config, "localhost").unwrap();
        let mut get = move || -> std::io::Result<String> {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
        };
        assert!(get().unwrap().starts_with("HTTP/1.1 200"));
        get
    };
    let (mut stays, mut revoked) = (ask(&client), ask(&other));
    pki.save("crl.pem", &pki.crl(2, &[8]));
    broker.wait_log(|line| line.contains("certificates read again") && line.contains("section=\"http\""));
    assert!(stays().unwrap().starts_with("HTTP/1.1 200"), "whoever is not concerned stays connected");
    assert!(!revoked().is_ok_and(|answer| answer.starts_with("HTTP")), "a revoked certificate is answered");
    let shows = |pair: &(Pem, Pem)| {
        secure_ctl(&broker, &ca, &["--cert", &pair.0.file, "--key", &pair.1.file, "ready"])
    };
    assert_eq!(shows(&other).code, 3);
    assert_eq!(shows(&client).ok(), "ready\n");
    // A key that is not that of the certificate changes nothing; the right one does.
    let new = pki.sign("broker", 1001, GOOD, &["localhost"]);
    pki.save("now.key", &new.1.text);
    broker
        .wait_log(|line| line.contains("the old certificates stay in use") && line.contains("http.key_file"));
    assert_eq!(
        secure_ctl(&broker, &ca, &["--cert", &client.0.file, "--key", &client.1.file, "ready"]).code,
        0
    );
    // Nor does a reload, until the certificate is there.
    let reload = || secure_ctl(&broker, &ca, &["--cert", &client.0.file, "--key", &client.1.file, "reload"]);
    assert!(reload().failed(1).contains("http.key_file"));
    pki.save("now.pem", &new.0.text);
    assert!(reload().ok().contains("certificates of http"));
    let seen = || {
        let (stream, _) = secure(broker.http, &tls_config(&pki.ca(), Some(&client)), "localhost").unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    use rustls::pki_types::pem::PemObject;
    let expected = rustls::pki_types::CertificateDer::from_pem_slice(new.0.text.as_bytes()).unwrap().to_vec();
    crate::wait::until_true("the new certificate is shown", || seen() == expected);
    assert!(stays().unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn tokens_beyond_loopback_need_tls_or_somebody_who_takes_it_on() {
    let tokens = Tokens::new();
    let check = |options: &[(&str, &str)]| {
        let sets = options.iter().flat_map(|(k, v)| ["--set".to_owned(), format!("http.{k}={v}")]);
        let done = crate::broker::command().args(["config", "check"]).args(sets).output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (far, token) = (("address", "0.0.0.0:0"), ("admin_token_file", &*tokens.admin.file));
    let (code, said) = check(&[far, token]);
    assert!(code == 2 && said.contains("http.cert_file") && said.contains("http.plain_tokens"), "{said}");
    let (code, said) = check(&[far, token, ("plain_tokens", "true")]);
    assert!(
        code == 0 && said.contains("warning: admin HTTP at 0.0.0.0:0") && said.contains("no TLS"),
        "{said}"
    );
    let (code, said) = check(&[far]);
    assert!(code == 0 && said.contains("asks for no token"), "{said}");
    assert_eq!(check(&[token]), (0, String::new()));
    let broker = Setup::new().set("http.address", "0.0.0.0:0").start();
    assert!(broker.log().contains("asks for no token"), "the start says it too");
    assert!(!ctl(broker.http, &["ready"]).err.is_empty());
}
