//! SCRAM-SHA-256 as enhanced authentication: with a client that does its part by itself, and with clients that break off.

use super::Files;
use crate::broker::Broker;
use crate::client::{Client, Dial, In};
use crate::wait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use berth::mqtt::{Property, Reason, Version, encode};
use ring::{digest, hmac, pbkdf2};
use socket2::SockRef;
use std::cell::OnceCell;
use std::num::NonZeroU32;
use std::time::Duration;

const METHOD: &str = "SCRAM-SHA-256";

/// The first message of a client, without the header of channel binding.
const BARE: &str = "n=alice,r=fyko+d2lbbFgONRv9qkxdawL";

/// How the session is asked for.
const CLIENT_ID: &str = "c";

/// Packets of a client, one after the other: CONNECT, its proof, that it shows again who it is, its proof once more.
const STAGES: usize = 4;

/// The first stage of a client that is connected.
const CONNECTED: usize = 2;

fn signed(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Somebody who knows a password.
struct Alice {
    password: &'static str,
    /// Costs much, and is the same each time.
    salted: OnceCell<[u8; 32]>,
}

impl Alice {
    fn new(password: &'static str) -> Alice {
        Alice { password, salted: OnceCell::new() }
    }

    /// The answer to the server's first message, and what the server must answer to that (RFC 5802 section 3).
    fn proof(&self, server: &str) -> (String, String) {
        let part = |name: &str| server.split(',').find_map(|p| p.strip_prefix(name)).unwrap();
        let salted = self.salted.get_or_init(|| {
            let (salt, mut out) = (BASE64.decode(part("s=")).unwrap(), [0; 32]);
            let iterations: NonZeroU32 = part("i=").parse().unwrap();
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, self.password.as_bytes(), &mut out);
            out
        });
        let without = format!("c={},r={}", BASE64.encode("n,,"), part("r="));
        let all = format!("{BARE},{server},{without}");
        let key = signed(salted, "Client Key");
        let signature = signed(digest::digest(&digest::SHA256, &key).as_ref(), &all);
        let proof: Vec<u8> = key.iter().zip(signature).map(|(k, s)| k ^ s).collect();
        let theirs = BASE64.encode(signed(&signed(salted, "Server Key"), &all));
        (format!("{without},p={}", BASE64.encode(proof)), format!("v={theirs}"))
    }

    /// Says everything up to `stage`, and of that only the first `cut` bytes; how many there are, too.
    fn come_as_far(&self, broker: &Broker, dial: &Dial, stage: usize, cut: usize) -> (Client, usize) {
        let mut client = Client::raw(broker.mqtt, Version::V5).unwrap();
        let mut heard = Vec::new();
        for at in 0..=stage {
            let (proof, theirs) = match at {
                1 | 3 => self.proof(std::str::from_utf8(&heard).unwrap()),
                _ => (first(), String::new()),
            };
            let mut bytes = Vec::new();
            match at {
                0 => bytes = dial.bytes(),
                2 => encode::auth(&mut bytes, Reason::ReAuthenticate, METHOD, Some(proof.as_bytes()), None),
                _ => encode::auth(
                    &mut bytes,
                    Reason::ContinueAuthentication,
                    METHOD,
                    Some(proof.as_bytes()),
                    None,
                ),
            }
            let cut = if at == stage { cut.min(bytes.len()) } else { bytes.len() };
            client.send(&bytes[..cut]).unwrap();
            if cut < bytes.len() {
                return (client, bytes.len());
            }
            match (at, client.recv()) {
                (0 | 2, In::Auth(Reason::ContinueAuthentication, data)) => heard = data,
                (1, In::ConnAck { reason: Reason::Success, present, properties }) => {
                    let shown = format!("{:?}", Property::AuthenticationData(theirs.as_bytes()));
                    assert!(properties.contains(&shown), "the server knows the user: {properties:?}");
                    client.present = present;
                }
                (3, In::Auth(Reason::Success, data)) => assert_eq!(data, theirs.as_bytes()),
                (at, other) => panic!("{other:?} to stage {at}"),
            }
        }
        (client, cut)
    }

    /// Logs in, and is let in.
    fn connect(&self, broker: &Broker, dial: &Dial) -> Client {
        self.come_as_far(broker, dial, 1, usize::MAX).0
    }
}

fn first() -> String {
    format!("n,,{BARE}")
}

fn dial() -> Dial {
    Dial::v5(CLIENT_ID).persistent().method(METHOD, first().as_bytes())
}

fn nobody_is_connected(broker: &Broker) {
    wait::until_true("no connection is counted", || broker.metric("mqtt_connections_active") == 0.0);
}

/// The next try is let in. Whether it found a session, which is over then.
fn next_try(alice: &Alice, broker: &Broker) -> bool {
    let client = alice.connect(broker, &Dial { expiry_s: 0, ..dial() });
    let present = client.present;
    client.disconnect();
    nobody_is_connected(broker);
    present
}

/// How many bytes each stage has. Nobody is connected, and there is no session.
fn lengths(alice: &Alice, broker: &Broker) -> Vec<usize> {
    let lengths = (0..STAGES).map(|stage| alice.come_as_far(broker, &dial(), stage, 0).1).collect();
    nobody_is_connected(broker);
    next_try(alice, broker);
    lengths
}

fn with_alice(setup: impl FnOnce(crate::broker::Setup) -> crate::broker::Setup) -> (Files, Broker) {
    let files = Files::new();
    let done = files.passwd(&["alice", "--scram"], "pencil");
    assert!(done.status.success(), "{done:?}");
    let broker = setup(files.setup()).start();
    (files, broker)
}

#[test]
fn who_proves_to_know_the_password_is_let_in_and_may_prove_it_again() {
    let (_files, broker) = with_alice(|setup| setup);
    let (alice, mallory) = (Alice::new("pencil"), Alice::new("pencils"));
    let (mut client, _) = alice.come_as_far(&broker, &dial(), STAGES - 1, usize::MAX);
    client.ping();
    let mut client = mallory_tries(&mallory, &broker);
    assert_eq!(client.expect_closed(), Some(Reason::BadUserNameOrPassword));
}

/// Somebody with a wrong password, all of whose proof was sent.
fn mallory_tries(mallory: &Alice, broker: &Broker) -> Client {
    let dial = Dial::v5("mallory").method(METHOD, first().as_bytes());
    let mut client = Client::raw(broker.mqtt, Version::V5).unwrap();
    client.send(&dial.bytes()).unwrap();
    let In::Auth(Reason::ContinueAuthentication, data) = client.recv() else { panic!("no challenge") };
    let (proof, _) = mallory.proof(std::str::from_utf8(&data).unwrap());
    let mut bytes = Vec::new();
    encode::auth(&mut bytes, Reason::ContinueAuthentication, METHOD, Some(proof.as_bytes()), None);
    client.send(&bytes).unwrap();
    client
}

/// After each packet, and after each byte, the client is gone: politely or not. Were one of them still counted, the others would find no room.
#[test]
fn an_exchange_that_breaks_off_leaves_nothing_behind() {
    // No time runs out meanwhile: that they are gone is what ends them.
    let (_files, broker) =
        with_alice(|setup| setup.set("limits.max_connections", "3").set("limits.connect_timeout", "10m"));
    let alice = Alice::new("pencil");
    let lengths = lengths(&alice, &broker);
    for (stage, length) in lengths.into_iter().enumerate() {
        for cut in 0..length {
            let (client, _) = alice.come_as_far(&broker, &dial(), stage, cut);
            if cut % 2 == 1 {
                SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
            nobody_is_connected(&broker);
            // Who was connected has a session, to which the exchange makes no difference.
            assert_eq!(next_try(&alice, &broker), stage >= CONNECTED, "stage {stage} cut after {cut} bytes");
        }
    }
    assert!(!broker.log().contains("panicked"));
}

/// A client that stays and says no more has the time for CONNECT for all of the exchange.
#[test]
fn an_exchange_that_falls_silent_ends_in_time_and_leaves_nothing_behind() {
    let (_files, broker) = with_alice(|setup| setup.set("limits.connect_timeout", "2s"));
    let alice = Alice::new("pencil");
    let lengths = lengths(&alice, &broker);
    let mut silent = Vec::new();
    for (stage, length) in lengths.iter().take(CONNECTED).enumerate() {
        silent
            .extend((0..*length).map(|cut| (stage, cut, alice.come_as_far(&broker, &dial(), stage, cut).0)));
    }
    for (stage, cut, mut client) in silent {
        // Who has said nothing of MQTT is told nothing.
        let told = (stage > 0).then_some(Reason::ServerUnavailable);
        assert_eq!(client.expect_closed(), told, "stage {stage} cut after {cut} bytes");
    }
    nobody_is_connected(&broker);
    // Those whose exchange was under way had sent CONNECT in time.
    assert_eq!(broker.metric("mqtt_errors_total{type=\"connect_timeout\"}"), lengths[0] as f64);
    assert!(!next_try(&alice, &broker), "no session");
}
