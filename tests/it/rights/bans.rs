//! `berth ctl bans`, and clients that connect too often.

use super::{PASSWORD, with_accounts};
use crate::broker::Setup;
use crate::client::{Client, Dial, In};
use crate::operate::{ctl, ctl_json};
use crate::wait;
use berth::mqtt::{Reason, Version};
use std::net::SocketAddr;

fn refused(dial: &Dial, to: SocketAddr) -> Option<Reason> {
    match dial.try_connect(to).unwrap().1 {
        In::ConnAck { reason: Reason::Success, .. } => None,
        In::ConnAck { reason, .. } => Some(reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ban_ends_connections_and_refuses_new_ones_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = with_accounts(dir.path()).start();
    let to = broker.mqtt;
    // What is banned, who it concerns, and who not.
    let table: &[(&[&str], &[Dial], &[Dial])] = &[
        (
            &["client", "bad", "--for", "1h", "--reason", "too loud"],
            &[Dial::v5("bad"), Dial::v4("bad").user("u", PASSWORD), Dial::new(Version::V31, "bad")],
            &[Dial::v5("bad2"), Dial::v4("good")],
        ),
        (
            &["user", "eve"],
            &[Dial::v5("x").user("eve", PASSWORD), Dial::v4("y").user("eve", PASSWORD)],
            &[Dial::v5("eve"), Dial::v4("z")],
        ),
        (&["address", "127.0.0.0/8"], &[Dial::v5("bad"), Dial::v4("good")], &[]),
    ];
    for (args, bad, good) in table {
        let mut ended: Vec<(Version, Client)> = Vec::new();
        for dial in *bad {
            ended.push((dial.version, dial.connect(to)));
            if dial.client_id == "bad" && bad.len() == 3 {
                // One client ID has one connection: the one before was taken over.
                let last = ended.len() - 1;
                ended.drain(..last);
            }
        }
        let mut others: Vec<Client> = good.iter().map(|dial| dial.connect(to)).collect();
        let said = ctl_json(broker.http, &[&["bans", "add"], *args].concat());
        assert_eq!(said["closed"], ended.len(), "{args:?}: {said}");
        for (version, client) in &mut ended {
            if version.is_v5() {
                assert_eq!(client.recv(), In::Disconnect(Reason::AdministrativeAction), "{args:?}");
            }
            assert_eq!(client.recv(), In::Closed, "{args:?}");
        }
        for dial in *bad {
            let code = if dial.version.is_v5() { Reason::Banned } else { Reason::NotAuthorized };
            assert_eq!(refused(dial, to), Some(code), "{args:?} {dial:?}");
        }
        others.iter_mut().for_each(Client::ping);
        good.iter().for_each(|dial| assert_eq!(refused(dial, to), None, "{args:?} {dial:?}"));
        assert_eq!(broker.metric("berth_bans"), 1.0);
        // They are kept.
        broker.stop();
        broker.restart();
        assert!(refused(&bad[0], to).is_some(), "{args:?}");
        let list = ctl(broker.http, &["bans", "list"]).ok();
        assert!(list.lines().nth(1).unwrap().starts_with(args[0]) && list.contains(args[1]), "{list}");
        ctl(broker.http, &["bans", "remove", args[0], args[1]]).ok();
        bad.iter().for_each(|dial| assert_eq!(refused(dial, to), None, "{args:?} {dial:?}"));
        assert_eq!(ctl(broker.http, &["bans", "list"]).ok(), "no bans\n");
    }
    for (args, words) in [
        (&["bans", "remove", "client", "bad"][..], "there is no such ban"),
        (&["bans", "add", "address", "10.0.0.0/33"], "expected an IP address or a network"),
        (&["bans", "add", "client", ""], "a ban names somebody"),
    ] {
        let said = ctl(broker.http, args).failed(1);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_ban_ends_when_its_time_is_over_and_is_told_once() {
    let broker = Setup::new().start();
    ctl(broker.http, &["bans", "add", "client", "c", "--for", "6s", "--reason", "a while"]).ok();
    let dial = Dial::v5("c");
    for _ in 0..5 {
        assert_eq!(refused(&dial, broker.mqtt), Some(Reason::Banned));
    }
    assert_eq!(broker.metric("berth_connects_refused_total{reason=\"banned\"}"), 5.0);
    let told = broker.log().matches("a banned client is refused").count();
    assert_eq!(told, 1, "one line a ban");
    assert!(!broker.log().contains("connection refused"));
    assert_eq!(broker.metric("berth_bans"), 1.0);
    wait::until_true("the ban is over", || refused(&dial, broker.mqtt).is_none());
    wait::until_true("it is not counted any more", || broker.metric("berth_bans") == 0.0);
}

/// A client identifier is no secret: whoever connects with it all the time bans himself, not the user that it is of.
#[test]
fn nobody_bans_another_users_client() {
    let dir = tempfile::tempdir().unwrap();
    let setup = with_accounts(dir.path()).set("bans.flapping_connects", "3");
    let broker = setup.set("bans.flapping_window", "1h").set("bans.flapping_ban", "1h").start();
    let (eve, bob) = (Dial::v5("meter").user("eve", PASSWORD), Dial::v5("meter").user("bob", PASSWORD));
    wait::until_true("eve is banned", || refused(&eve, broker.mqtt) == Some(Reason::Banned));
    assert_eq!(refused(&bob, broker.mqtt), None);
    assert_eq!(refused(&Dial::v5("meter"), broker.mqtt), None);
    assert_eq!(refused(&eve, broker.mqtt), Some(Reason::Banned));
    // What an operator orders holds for everybody, and such a ban is not kept in its place.
    ctl(broker.http, &["bans", "add", "client", "meter"]).ok();
    assert_eq!(refused(&bob, broker.mqtt), Some(Reason::Banned));
}

#[test]
fn a_client_that_connects_too_often_is_banned_for_a_while() {
    let setup = Setup::new().set("bans.flapping_connects", "5").set("bans.flapping_window", "1h");
    let broker = setup.set("bans.flapping_ban", "2s").start();
    let dial = Dial::v4("flaps");
    for _ in 0..5 {
        assert_eq!(refused(&dial, broker.mqtt), None);
    }
    assert_eq!(refused(&dial, broker.mqtt), Some(Reason::NotAuthorized));
    assert_eq!(refused(&Dial::v4("calm"), broker.mqtt), None);
    let log = broker.log();
    assert!(
        log.contains("a client that connects too often is banned") && log.contains("more than 5 connects"),
        "{log}"
    );
    wait::until_true("the ban is over", || refused(&dial, broker.mqtt).is_none());
}
