//! TLS: who gets in, with which versions and certificates; independent clients.

use super::pki::{GOOD, OVER, Pem, Pki};
use super::{VERSIONS, connected_tls, let_in_tls, listen, tls_config, with_listener};
use crate::broker::Setup;
use crate::client::Dial;
use crate::wait;
use berth::mqtt::QoS;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// Whether mosquitto_pub gets a message through, with this authority and this certificate.
fn mosquitto(to: SocketAddr, ca: &Pem, own: Option<&(Pem, Pem)>) -> bool {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "localhost", "-p", &to.port().to_string(), "--cafile", &ca.file]);
    if let Some((cert, key)) = own {
        command.args(["--cert", &cert.file, "--key", &key.file]);
    }
    command.args(["-t", "t", "-q", "1", "-m", "x"]).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn mosquitto_gets_in_with_the_certificates_that_are_asked_for() {
    let (pki, stranger) = (Pki::new("authority"), Pki::new("authority"));
    let server = pki.server("broker");
    let good = pki.sign("good", 1, GOOD, &[]);
    let over = pki.sign("over", 2, OVER, &[]);
    let revoked = pki.sign("revoked", 3, GOOD, &[]);
    let other = stranger.sign("good", 1, GOOD, &[]);
    let crl = pki.save("crl.pem", &pki.crl(1, &[3, 77]));
    let files = [("cert_file", &*server.0.file), ("key_file", &*server.1.file)];
    let clients = |which| {
        [("client_certificates", which), ("client_ca_file", &*pki.ca().file.leak()), ("crl_file", &*crl.file)]
    };
    // What is asked for; who gets in of: nobody, good, over, revoked, of another authority.
    let cases = [
        ("off", [true, true, true, true, true]),
        ("optional", [true, true, false, false, false]),
        ("required", [false, true, false, false, false]),
    ];
    for (which, expected) in cases {
        let options = [&files[..], &clients(which)[..if which == "off" { 0 } else { 3 }]].concat();
        let (broker, address) = listen("tls", &options);
        let shown = [None, Some(&good), Some(&over), Some(&revoked), Some(&other)];
        for (at, (own, expected)) in shown.iter().zip(expected).enumerate() {
            assert_eq!(mosquitto(address, &pki.ca(), *own), expected, "{which}, certificate {at}");
        }
        assert!(!mosquitto(address, &stranger.ca(), Some(&good)), "the client trusts another authority");
        let refused = expected.iter().filter(|e| !**e).count();
        wait::until_true("all refused ones are counted", || {
            broker.metric("berth_turned_away_total{reason=\"certificate\"}") == refused as f64
        });
        let said = broker.log().matches("kind=Certificate").count();
        assert_eq!(said, usize::from(refused > 0), "one line for all of them");
    }
}

#[test]
fn mosquitto_sub_gets_large_and_small_messages() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let (broker, address) = listen("tls", &[("cert_file", &server.0.file), ("key_file", &server.1.file)]);
    let config = tls_config(&pki.ca(), None);
    let mut child = Command::new("mosquitto_sub")
        .args(["-h", "localhost", "-p", &address.port().to_string(), "--cafile", &pki.ca().file])
        .args(["-t", "big/#", "-q", "1", "-C", "40", "-W", "30", "-F", "%t %l"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait::until_true("it has subscribed", || broker.metric("mqtt_subscriptions_active") == 1.0);
    let mut expected = Vec::new();
    for (n, version) in VERSIONS.into_iter().cycle().take(4).enumerate() {
        let mut client = connected_tls(&Dial::new(version, "pub"), address, &config);
        for round in 0..10 {
            let (topic, len) = (format!("big/{n}"), [0, 1, 100, 16_384, 16_385, 200_000, 1 << 20][round % 7]);
            let reason = client.publish_with(&topic, &vec![b'x'; len], QoS::AtLeastOnce, false);
            assert!(!reason.is_error(), "{reason:?}");
            expected.push(format!("{topic} {len}"));
        }
        client.disconnect();
    }
    let text = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

/// Both ways at once, in every version, and more than any buffer holds.
#[test]
fn a_slow_reader_over_tls_gets_everything_in_order() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let (broker, address) = listen("tls", &[("cert_file", &server.0.file), ("key_file", &server.1.file)]);
    let config = tls_config(&pki.ca(), None);
    let mut sub = connected_tls(&Dial::v5("sub"), address, &config);
    assert_eq!(sub.subscribe(&[("t", QoS::AtLeastOnce)]), [1]);
    let mut publisher = Dial::v5("pub").connect(broker.mqtt);
    for n in 0..200 {
        publisher.publish("t", &format!("{n}-{}", "y".repeat(50_000)), QoS::AtLeastOnce);
    }
    for n in 0..200 {
        assert!(sub.receive().text().starts_with(&format!("{n}-")), "{n}");
    }
    sub.disconnect();
}

fn openssl(to: SocketAddr, args: &[&str]) -> String {
    let to = to.to_string();
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &to])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn openssl_finds_versions_protocols_and_names_as_they_should_be() {
    let pki = Pki::new("authority");
    let a = pki.sign("a", 1, GOOD, &["localhost", "a.example"]);
    let b = pki.sign("b", 2, GOOD, &["b.example", "*.b.example"]);
    let certs = format!("{},{}", a.0.file, b.0.file);
    let keys = format!("{},{}", a.1.file, b.1.file);
    let (_broker, address) = listen("tls", &[("cert_file", &certs), ("key_file", &keys)]);
    // Arguments, and what must and must not be in the answer.
    let old = "DEFAULT:@SECLEVEL=0";
    let cases: &[(&[&str], &str, &str)] = &[
        (&["-tls1_3"], "New, TLSv1.3", "alert"),
        (&["-tls1_2"], "New, TLSv1.2", "alert"),
        (&["-tls1_1", "-cipher", old], "SSL alert number", "New, TLSv1.1"),
        (&["-tls1", "-cipher", old], "SSL alert number", "New, TLSv1,"),
        (&["-tls1_2", "-cipher", "AES256-SHA:AES128-SHA"], "alert handshake failure", "New, TLS"),
        (&["-alpn", "mqtt"], "ALPN protocol: mqtt", "alert"),
        (&["-alpn", "other,mqtt"], "ALPN protocol: mqtt", "alert"),
        (&["-alpn", "h2"], "alert no application protocol", "ALPN protocol: h2"),
        (&["-noservername"], "subject=CN = a", "alert"),
        (&["-servername", "a.example"], "subject=CN = a", "alert"),
        (&["-servername", "b.example"], "subject=CN = b", "alert"),
        (&["-servername", "x.B.example"], "subject=CN = b", "alert"),
        (&["-servername", "unknown.example"], "subject=CN = a", "alert"),
        (&["-tls1_2"], "Secure Renegotiation IS supported", "alert"),
    ];
    for (args, wanted, unwanted) in cases {
        let text = openssl(address, args);
        let found = text.contains(wanted) || text.contains(&wanted.replace(" = ", "="));
        assert!(found && !text.contains(unwanted), "{args:?}: {text}");
    }
}

/// Options that name files which cannot be used, and what is said of them.
#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let (pki, other) = (Pki::new("authority"), Pki::new("other"));
    let (cert, key) = pki.server("broker");
    let over = pki.sign("over", 7, OVER, &["localhost"]);
    let open = pki.save("open.key", &key.text);
    std::fs::set_permissions(&open.file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let garbage = pki.save("garbage.pem", "no PEM at all");
    let empty = pki.save("empty.pem", "");
    let foreign = other.server("broker").1;
    let ca = pki.ca();
    let none = format!("{}.none", cert.file);
    let required = ("client_certificates", "required");
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (&[("cert_file", &none), ("key_file", &key.file)], "cert_file", "No such file"),
        (&[("cert_file", &garbage.file), ("key_file", &key.file)], "cert_file", "no certificate in it"),
        (&[("cert_file", &over.0.file), ("key_file", &over.1.file)], "cert_file", "expired on"),
        (&[("cert_file", &cert.file), ("key_file", &open.file)], "key_file", "everybody on this machine"),
        (&[("cert_file", &cert.file), ("key_file", &empty.file)], "key_file", "no private key in it"),
        (
            &[("cert_file", &cert.file), ("key_file", &foreign.file)],
            "key_file",
            "not that of the certificate",
        ),
        (
            &[("cert_file", &cert.file), ("key_file", &key.file), required, ("client_ca_file", &empty.file)],
            "client_ca_file",
            "no certificate in it",
        ),
        (
            &[
                ("cert_file", &cert.file),
                ("key_file", &key.file),
                required,
                ("client_ca_file", &ca.file),
                ("crl_file", &cert.file),
            ],
            "crl_file",
            "no revocation list in it",
        ),
    ];
    for (options, option, why) in cases {
        let file = options.iter().find(|(o, _)| o == option).unwrap().1;
        let mut broker = with_listener(Setup::new(), "tls", options).0.spawn();
        assert!(!broker.wait().success(), "{options:?}");
        let log = broker.log();
        let named = log.contains(&format!("listeners.x.{option}")) && log.contains(file) && log.contains(why);
        assert!(named, "{option} {why}: {log}");
        assert!(!log.contains("PRIVATE"), "{log}");
    }
}

/// What the broker is told at the end over TLS: DISCONNECT, and close_notify after it.
#[test]
fn tls_is_closed_politely() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let (mut broker, address) = listen("tls", &[("cert_file", &server.0.file), ("key_file", &server.1.file)]);
    let config = tls_config(&pki.ca(), None);
    let (mut stream, _socket) = super::secure(address, &config, "localhost").unwrap();
    std::io::Write::write_all(&mut stream, &Dial::v5("polite").bytes()).unwrap();
    let mut connack = [0; 2];
    std::io::Read::read_exact(&mut stream, &mut connack).unwrap();
    std::io::Read::read_exact(&mut stream, &mut vec![0; connack[1].into()]).unwrap();
    broker.signal("TERM");
    // Without close_notify this would be an error.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut rest).unwrap();
    assert_eq!(rest.first(), Some(&0xE0), "{rest:02x?}");
    assert!(broker.wait().success());
}

/// TLS to which plain TCP comes, and plain TCP to which TLS comes.
#[test]
fn the_wrong_protocol_is_turned_away() {
    let pki = Pki::new("authority");
    let server = pki.server("broker");
    let (broker, address) = listen("tls", &[("cert_file", &server.0.file), ("key_file", &server.1.file)]);
    let mut plain = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut plain, &Dial::v5("plain").bytes()).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut plain, &mut answer).unwrap();
    assert!(answer.first().is_none_or(|first| *first == 0x15), "nothing, or an alert: {answer:02x?}");
    wait::until_true("it is counted", || broker.metric("berth_turned_away_total{reason=\"tls\"}") == 1.0);
    assert!(!let_in_tls(&Dial::v5("tls"), broker.mqtt, &tls_config(&pki.ca(), None)));
}
