//! Secrets that are planted in every file and option that may have one: none comes out anywhere, and none is taken from a file that
//! everybody on the machine can read.

use crate::accounts::{Files, answer};
use crate::broker::{Broker, Setup, command, free_address};
use crate::client::Dial;
use crate::listeners::pki::{Pki, save};
use crate::operate::ctl;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth::clock;
use berth::config::options::SECTIONS;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

/// In every secret of these tests.
const PLANTED: &str = "plantedsecret";

/// A token of one who knows the key (HS256).
fn signed(key: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({"alg": "HS256"})), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, text.as_bytes())))
}

/// Fails if one of `secrets` is in `text`.
fn none_in(place: &str, text: &str, secrets: &[&str]) {
    for secret in secrets {
        let found: Vec<&str> = text.lines().filter(|l| l.contains(secret)).collect();
        assert!(found.is_empty(), "{secret} is in {place}: {found:#?}");
    }
}

#[test]
fn what_is_planted_comes_out_nowhere() {
    let (files, pki) = (Files::new(), Pki::new("authority"));
    let (admin_token, read_token) = (format!("{PLANTED}-admin-token"), format!("{PLANTED}-read-token"));
    let admin = files.write("admin", format!("alice {admin_token}\n"));
    let read = files.write("read", format!("{read_token}\n"));
    let key = format!("{PLANTED}-of-thirty-two-bytes-and-more");
    let jwt = files.write("jwt", &key);
    let hook = files.write("hook", format!("{PLANTED}-hook\n"));
    files.user("alice", &format!("{PLANTED}-password"));
    let hash = std::fs::read_to_string(files.users()).unwrap().trim().rsplit('$').next().unwrap().to_owned();
    let (cert, own_key) = pki.server("broker");
    let key_line = own_key.text.lines().nth(1).unwrap().to_owned();
    let audit = files.path("audit");
    let set = |setup: Setup, (key, value): (&str, &std::path::Path)| setup.set(key, value.to_str().unwrap());
    let options = [
        ("http.admin_token_file", &*admin),
        ("http.read_token_file", &*read),
        ("auth.password.file", &*files.users()),
        ("auth.jwt.key_file", &*jwt),
        ("auth.http.token_file", &*hook),
        ("audit.file", &*audit),
    ];
    let door = free_address();
    let mut broker = options
        .into_iter()
        .fold(Setup::new(), set)
        .set("log.level", "trace")
        .set("auth.http.url", &format!("http://{}/?key={PLANTED}", free_address()))
        .set("listeners.door.type", "tls")
        .set("listeners.door.address", &door.to_string())
        .set("listeners.door.cert_file", &cert.file)
        .set("listeners.door.key_file", &own_key.file)
        .env("BERTH__ETCD__PASSWORD", PLANTED)
        .start();

    let claims = json!({"sub": "bob", "exp": clock::now().as_millis() / 1000 + 600});
    let good = signed(&key, &claims);
    let _alice = Dial::v5("alice").user("alice", &format!("{PLANTED}-password")).connect(broker.mqtt);
    let _bob = Dial::v5("bob").user("bob", &good).connect(broker.mqtt);
    let expired = signed(&key, &json!({"sub": "bob", "exp": 1, "note": PLANTED}));
    for (user, password) in [
        ("alice", &*format!("{PLANTED}-wrong")),
        ("carol", PLANTED),
        // In the wrong field.
        (&*format!("{PLANTED}-as-name"), "x"),
        ("bob", &expired),
        ("bob", &signed(PLANTED, &claims)),
    ] {
        assert!(answer(&Dial::v5("x").user(user, password), broker.mqtt).is_error());
    }
    let token = |file: &std::path::Path, args: &[&str]| {
        ctl(broker.http, &[&["--token-file", file.to_str().unwrap()], args].concat())
    };
    let wrong = files.write("wrong", format!("{PLANTED}-of-nobody\n"));
    let mut said = vec![
        ("a wrong token", format!("{:?}", token(&wrong, &["sessions", "list"]))),
        ("too small a token", format!("{:?}", token(&read, &["sessions", "kick", "alice"]))),
        ("kick", format!("{:?}", token(&admin, &["sessions", "kick", "bob"]))),
        ("config show", format!("{:?}", token(&read, &["config", "show"]))),
        ("config show --json", format!("{:?}", token(&read, &["config", "show", "--json"]))),
        ("publish", format!("{:?}", token(&admin, &["publish", "t", PLANTED]))),
    ];
    assert!(said[3].1.contains("etcd.password ") && said[3].1.contains("***"), "{}", said[3].1);
    // Files that change, and are wrong then.
    files.write("admin", format!("alice {admin_token}\n{PLANTED}\nbroken {PLANTED} more\n"));
    files.write("users", format!("{}bob:{PLANTED}\n", std::fs::read_to_string(files.users()).unwrap()));
    pki.save("broker-1000.key", &own_key.text.replacen(&key_line, PLANTED, 1));
    for words in
        ["tokens of admin HTTP cannot be read again", "auth.password.file", "listeners.door.key_file"]
    {
        broker.wait_log(|l| l.contains("ERROR") && l.contains(words));
    }
    // Every page that can be read without a name in its path, and a few with one.
    let header = format!("Authorization: Bearer {read_token}\r\n");
    let document = get(&broker, "/api/v1/openapi.json", &header);
    let described: Value = serde_json::from_str(&document).unwrap();
    let paths = described["paths"].as_object().unwrap().iter();
    let plain = paths
        .filter(|(path, of)| !path.contains('{') && of.get("get").is_some())
        .map(|(path, _)| path.clone());
    let more = [
        "/metrics",
        "/cluster/status",
        "/health",
        "/ready",
        "/api/v1/sessions/alice",
        "/api/v1/routes?topic=t",
        "/nowhere",
    ];
    let pages: Vec<String> = plain.chain(more.map(str::to_owned)).collect();
    assert!(pages.len() > 12, "{pages:?}");
    for page in &pages {
        said.push(("a page", format!("{page}: {}", get(&broker, page, &header))));
    }
    said.push(("the audit log", std::fs::read_to_string(&audit).unwrap()));
    broker.stop();
    said.push(("the log", broker.log()));
    assert!(broker.log().contains("DEBUG"), "the log says all that there is to say");
    for (place, text) in &said {
        none_in(place, text, &[PLANTED, &hash, &key_line, &good]);
    }
}

fn get(broker: &Broker, path: &str, header: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(broker.http).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn what_is_wrong_is_said_without_the_secret() {
    let (files, pki) = (Files::new(), Pki::new("authority"));
    let (cert, key) = pki.server("broker");
    let bad_key =
        save(&files.path("bad.key"), &key.text.replacen(key.text.lines().nth(1).unwrap(), PLANTED, 1));
    let file = |name: &str, text: String| files.write(name, text).to_str().unwrap().to_owned();
    // Options, and what the error must name.
    let http = format!("http://user:{PLANTED}@127.0.0.1:1");
    let table = [
        (
            vec![("http.admin_token_file", file("a", format!("alice {PLANTED} more")))],
            "http.admin_token_file",
        ),
        (vec![("auth.jwt.key_file", file("b", PLANTED.to_owned()))], "auth.jwt.key_file"),
        (vec![("auth.password.file", file("c", format!("alice:{PLANTED}")))], "auth.password.file"),
        (vec![("http.cert_file", cert.file.clone()), ("http.key_file", bad_key.file)], "http.key_file"),
        (vec![("etcd.endpoints", http)], "etcd.endpoints"),
        (vec![("auth.http.url", format!("https://user:{PLANTED}@localhost/"))], "auth.http.url"),
        (vec![("auth.http.url", format!("ftp://localhost/?{PLANTED}"))], "auth.http.url"),
        (vec![("etcd.pasword", PLANTED.to_owned())], "etcd.pasword"),
        (
            vec![("etcd.password", PLANTED.to_owned()), ("cluster.enabled", "true".to_owned())],
            "etcd.username",
        ),
    ];
    for (options, named) in table {
        let set = |setup: Setup, (key, value): &(&str, String)| setup.set(key, value);
        let mut broker = options.iter().fold(Setup::new().set("log.level", "trace"), set).spawn();
        assert!(!broker.wait().success(), "{options:?}");
        let said = broker.log();
        assert!(said.contains(named), "{named}: {said}");
        none_in(named, &said, &[PLANTED]);
    }
}

/// Options whose files hold a secret, and one who asks for each of them: the options that are set besides.
const SECRET_FILES: &[(&str, &[(&str, &str)])] = &[
    ("listeners.tcp.key_file", &[("listeners.tcp.type", "tls"), ("listeners.tcp.cert_file", "CERT")]),
    ("auth.password.file", &[]),
    ("auth.jwt.key_file", &[]),
    ("auth.http.token_file", &[("auth.http.url", "http://127.0.0.1:1/")]),
    ("http.admin_token_file", &[]),
    ("http.read_token_file", &[]),
    ("http.key_file", &[("http.cert_file", "CERT")]),
    (
        "cluster.tls.key_file",
        &[
            ("cluster.enabled", "true"),
            ("cluster.tls.cert_file", "CERT"),
            ("cluster.tls.ca_file", "CA"),
            ("etcd.endpoints", "http://127.0.0.1:1"),
        ],
    ),
    (
        "etcd.password_file",
        &[("cluster.enabled", "true"), ("etcd.username", "berth"), ("etcd.endpoints", "http://127.0.0.1:1")],
    ),
    (
        "etcd.key_file",
        &[("cluster.enabled", "true"), ("etcd.endpoints", "https://127.0.0.1:1"), ("etcd.cert_file", "CERT")],
    ),
];

#[test]
fn a_secret_that_everybody_can_read_is_refused_whichever_option_names_it() {
    let is_secret = |path: &str, name: &str| {
        ["key_file", "token_file", "password_file"].iter().any(|end| name.ends_with(end))
            || (path == "auth.password" && name == "file")
    };
    let all: Vec<String> = SECTIONS
        .iter()
        .flat_map(|s| {
            s.options.iter().filter(|o| is_secret(s.path, o.name)).map(|o| format!("{}.{}", s.path, o.name))
        })
        .collect();
    let tried: Vec<&str> = SECRET_FILES.iter().map(|(key, _)| *key).collect();
    assert_eq!(tried, all, "a new option with a secret belongs into this table");
    let (files, pki) = (Files::new(), Pki::new("authority"));
    let (cert, key) = pki.server("broker");
    files.user("alice", "secret");
    let content = |option: &str| match option {
        "auth.password.file" => std::fs::read_to_string(files.users()).unwrap(),
        option if option.ends_with("token_file") => "aaaaaaaaaaaaaaaaaaaaaaaa\n".to_owned(),
        "auth.jwt.key_file" => "a shared secret of thirty-two bytes".to_owned(),
        "etcd.password_file" => "secret\n".to_owned(),
        _ => key.text.clone(),
    };
    let ca = pki.ca().file;
    for (n, (option, besides)) in SECRET_FILES.iter().enumerate() {
        let path = files.write(&format!("secret-{n}"), content(option));
        let setup = || {
            let set = |setup: Setup, (key, value): &(&str, &str)| {
                setup.set(
                    key,
                    match *value {
                        "CERT" => &cert.file,
                        "CA" => &ca,
                        value => value,
                    },
                )
            };
            let setup = besides.iter().fold(Setup::new().set(option, path.to_str().unwrap()), set);
            setup.set("cluster.peer_address", &free_address().to_string())
        };
        for mode in [0o644, 0o604] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let mut broker = setup().spawn();
            assert!(!broker.wait().success(), "{option} {mode:o}");
            let said = broker.log();
            assert!(said.contains(option) && said.contains("chmod o"), "{option} {mode:o}: {said}");
        }
        // With the right that was too much taken away, it is no reason any more.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let mut broker = setup().spawn();
        let waits_for_etcd = besides.contains(&("cluster.enabled", "true"));
        broker.wait_log(|l| {
            if waits_for_etcd {
                l.contains("etcd") && !l.contains("starts")
            } else {
                l.trim_end().ends_with(" ready")
            }
        });
        assert!(!broker.log().contains("chmod"), "{option}: {}", broker.log());
    }
    // The same of what berth ctl is told.
    let path = files.write("ctl", "aaaaaaaaaaaaaaaaaaaaaaaa\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (url, path) = ("https://127.0.0.1:1", path.to_str().unwrap());
    for args in [&["--token-file", path][..], &["--url", url, "--cert", &cert.file, "--key", path]] {
        let done = command().arg("ctl").args(args).arg("ready").output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(2) && said.contains("chmod o="), "{args:?}: {said}");
    }
}
