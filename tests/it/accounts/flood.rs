//! Wrong passwords without end: whoever comes from elsewhere does not notice.

use super::Files;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::Reason;
use std::net::{IpAddr, SocketAddr};

/// Connections with wrong passwords at a time.
const ATTACKERS: usize = 300;

/// Of these, so many may wait.
const WAITING: usize = 30;

/// How long a legitimate client may take to connect, milliseconds.
const CONNECT_MS: u64 = 2_000;

fn connect_from(from: IpAddr, dial: &Dial, to: SocketAddr) -> Client {
    let mut client = Client::raw_from(from, to, dial.version).unwrap();
    client.send(&dial.bytes()).unwrap();
    client
}

#[test]
fn wrong_passwords_of_one_address_keep_nobody_else_out() {
    let files = Files::new();
    files.user("alice", "right");
    let broker = files
        .setup()
        .set("auth.password.parallel", "1")
        .set("auth.password.queue_per_address", &WAITING.to_string())
        .start();
    let attacker: IpAddr = "127.0.0.66".parse().unwrap();
    let connecting = |n: usize| {
        // Half of them with a user that is known.
        let name = if n.is_multiple_of(2) { "alice" } else { "bob" };
        connect_from(attacker, &Dial::v5(&format!("x{n}")).user(name, "wrong"), broker.mqtt)
    };
    let mut attackers: Vec<Client> = (0..ATTACKERS).map(connecting).collect();
    let queued = || broker.metric("berth_password_checks_waiting") > 0.0;
    wait::until_true("passwords wait", queued);
    for n in 0..5 {
        let begun = clock::monotonic_us();
        let from = format!("127.0.1.{}", n + 1).parse().unwrap();
        let mut client =
            connect_from(from, &Dial::v5(&format!("alice{n}")).user("alice", "right"), broker.mqtt);
        assert!(matches!(client.recv(), In::ConnAck { reason: Reason::Success, .. }));
        let ms = (clock::monotonic_us() - begun) / 1000;
        assert!(ms < CONNECT_MS, "{ms} ms");
    }
    let mut said = [0, 0];
    for client in &mut attackers {
        match client.recv() {
            In::ConnAck { reason: Reason::BadUserNameOrPassword, .. } => said[0] += 1,
            In::ConnAck { reason: Reason::ServerBusy, .. } => said[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(said[0] >= WAITING && said[1] > 0, "{said:?}");
    let log = broker.log();
    let told = log.lines().filter(|l| l.contains("127.0.0.66") && l.contains("connection refused")).count();
    assert!((2..=3).contains(&told), "{told} lines: wrong password, unknown user, busy\n{log}");
    let refused =
        |outcome: &str| broker.metric(&format!("berth_auth_decisions_total{{outcome=\"{outcome}\"}}"));
    let counted = refused("wrong_password") + refused("unknown_user") + refused("busy");
    assert_eq!(counted, ATTACKERS as f64);
    assert_eq!(broker.metric("berth_password_checks_waiting"), 0.0);
}
