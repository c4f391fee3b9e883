//! Tokens in place of passwords, made by openssl.

use super::{Files, answer};
use crate::client::Dial;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth::clock;
use berth::mqtt::{QoS, Reason};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn openssl(args: &[&str]) -> Vec<u8> {
    let done = Command::new("openssl").args(args).output().unwrap();
    assert!(done.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// A private key of openssl's, and what it is called in tokens.
struct Signer {
    algorithm: &'static str,
    private: PathBuf,
    public: PathBuf,
}

impl Signer {
    fn new(files: &Files, name: &str, algorithm: &'static str) -> Signer {
        let (private, public) = (files.path(&format!("{name}.key")), files.path(&format!("{name}.pub")));
        let kind: &[&str] = match algorithm {
            "RS256" => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            "ES256" => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            _ => &["-algorithm", "ED25519"],
        };
        let (key, file) = (private.to_str().unwrap(), public.to_str().unwrap());
        openssl(&[&["genpkey"], kind, &["-out", key]].concat());
        openssl(&["pkey", "-in", key, "-pubout", "-out", file]);
        Signer { algorithm, private, public }
    }

    fn sign(&self, claims: &Value) -> String {
        let text = unsigned(&json!({"alg": self.algorithm}), claims);
        let data = self.private.with_extension("data");
        std::fs::write(&data, &text).unwrap();
        let (key, data) = (self.private.to_str().unwrap(), data.to_str().unwrap());
        let signature = match self.algorithm {
            "EdDSA" => openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", data]),
            "ES256" => raw(&openssl(&["dgst", "-sha256", "-sign", key, data])),
            _ => openssl(&["dgst", "-sha256", "-sign", key, data]),
        };
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// An ECDSA signature in DER as tokens have it: both numbers with 32 bytes each.
fn raw(der: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 2);
    for _ in 0..2 {
        let len = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + len];
        let number: Vec<u8> = number.iter().copied().skip_while(|b| *b == 0).collect();
        out.extend(std::iter::repeat_n(0, 32 - number.len()));
        out.extend(number);
        at += 2 + len;
    }
    out
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// A token by a shared secret.
fn by_secret(secret: &Path, files: &Files, claims: &Value) -> String {
    let text = unsigned(&json!({"alg": "HS256"}), claims);
    let data = files.path("data");
    std::fs::write(&data, &text).unwrap();
    let secret = std::fs::read(secret).unwrap();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let key = format!("hexkey:{hex}");
    let args = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary", data.to_str().unwrap()];
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(openssl(&args)))
}

/// Seconds since the epoch, so many from now.
fn in_s(seconds: u64) -> u64 {
    clock::now().as_millis() / 1000 + seconds
}

#[test]
fn tokens_of_every_kind_of_key_let_their_users_in() {
    let files = Files::new();
    let signers: Vec<Signer> = ["RS256", "ES256", "EdDSA"].map(|a| Signer::new(&files, a, a)).into();
    let pem: String = signers.iter().map(|s| std::fs::read_to_string(&s.public).unwrap()).collect();
    std::fs::write(files.path("keys.pem"), &pem).unwrap();
    let broker = crate::broker::Setup::new()
        .set("auth.jwt.key_file", files.path("keys.pem").to_str().unwrap())
        .set("auth.jwt.audience", "mqtt")
        .start();
    let claims = |user: &str, exp: u64| json!({"sub": user, "aud": "mqtt", "exp": exp});
    for signer in &signers {
        let user = signer.algorithm;
        let dial = |claims: &Value| Dial::v5(&format!("{user}-c")).user("ignored", &signer.sign(claims));
        let mut client = dial(&claims(user, in_s(60))).persistent().connect(broker.mqtt);
        client.publish("t", "x", QoS::AtLeastOnce);
        client.disconnect();
        assert_eq!(
            answer(&dial(&claims("other", in_s(60))), broker.mqtt),
            Reason::NotAuthorized,
            "another user's session"
        );
        for wrong in [
            claims(user, in_s(0) - 60),
            json!({"sub": user, "aud": "mqtt"}),
            json!({"sub": user, "exp": in_s(60)}),
        ] {
            assert_eq!(answer(&dial(&wrong), broker.mqtt), Reason::BadUserNameOrPassword, "{wrong}");
        }
        let stranger = Signer::new(&files, "stranger", signer.algorithm);
        let token = stranger.sign(&claims(user, in_s(60)));
        assert_eq!(answer(&Dial::v4("x").user("x", &token), broker.mqtt), Reason::BadUserNameOrPassword);
    }
    // The public key taken for a shared secret, and no signature at all.
    let confused = by_secret(&files.path("keys.pem"), &files, &claims("mallory", in_s(60)));
    let none = unsigned(&json!({"alg": "none"}), &claims("mallory", in_s(60))) + ".";
    for token in [confused, none, "no token".to_owned()] {
        assert_eq!(answer(&Dial::v5("x").user("x", &token), broker.mqtt), Reason::BadUserNameOrPassword);
    }
    let log = broker.log();
    assert!(log.contains("its token is refused: ") && !log.contains("eyJ"), "{log}");
}

#[test]
fn a_connection_ends_when_its_token_does_and_when_its_key_goes() {
    let files = Files::new();
    let secret = files.write("secret", "0123456789abcdef0123456789abcdef\n");
    let shared = files.write("bytes", "0123456789abcdef0123456789abcdef");
    let token = |seconds: u64| by_secret(&shared, &files, &json!({"name": "alice", "exp": in_s(seconds)}));
    files.user("bob", "b");
    let mut broker = files
        .setup()
        .set("auth.jwt.key_file", secret.to_str().unwrap())
        .set("auth.jwt.user_claim", "name")
        .set("auth.jwt.skew", "0s")
        .set("auth.chain", "password,jwt")
        .start();
    let mut bob = Dial::v5("bob").user("bob", "b").connect(broker.mqtt);
    let mut brief = Dial::v5("brief").user("x", &token(2)).connect(broker.mqtt);
    let mut older = Dial::v4("older").user("x", &token(2)).connect(broker.mqtt);
    let mut long = Dial::v5("long").user("x", &token(600)).connect(broker.mqtt);
    assert_eq!(brief.expect_closed(), Some(Reason::MaximumConnectTime));
    assert_eq!(older.expect_closed(), None);
    long.ping();
    let again = token(600);
    assert_eq!(answer(&Dial::v5("again").user("x", &again), broker.mqtt), Reason::Success);
    // Another secret: what the old one signed counts no more.
    files.write("secret", "another secret that has 32 bytes or more");
    assert_eq!(long.expect_closed(), Some(Reason::NotAuthorized));
    assert_eq!(answer(&Dial::v5("again").user("x", &again), broker.mqtt), Reason::BadUserNameOrPassword);
    files.write("secret", "short");
    broker.wait_log(|l| {
        l.contains("ERROR")
            && l.contains("secret\" (auth.jwt.key_file): a shared secret has at least 32 bytes")
    });
    bob.ping();
    assert!(!broker.log().contains("eyJ"));
}
