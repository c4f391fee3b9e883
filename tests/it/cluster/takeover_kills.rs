//! The old or the new owner of a session is killed while a takeover is at each of its steps; whatever the step, one node has
//! the session afterwards, with all of it.

use super::nodes::BerthCluster;
use super::trap::{Trap, Way};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};

const OLD: usize = 0;
const NEW: usize = 1;
/// Has nothing to do with the takeover.
const THIRD: usize = 2;

/// Messages of a session; the first four are on their way to its client when it moves.
const MESSAGES: usize = 12;

const OPTIONS: &[(&str, &str)] = &[("cluster.takeover_timeout", "3s"), ("cluster.order_wait", "1s")];

/// Where the traffic is stopped.
enum Link {
    /// Requests of the new owner to the old one, and their answers.
    Peers,
    /// Between the new owner and etcd.
    Etcd,
}

/// What shows that the takeover has come to a step, besides what is held.
enum Sign {
    None,
    /// A line in the old owner's log.
    Log(&'static str),
    /// etcd names the new owner.
    Claimed,
    /// CONNACK.
    Answered,
}

/// A step of a takeover.
struct Step {
    what: &'static str,
    link: Link,
    /// For this client identifier.
    trap: fn(&str) -> Trap,
    sign: Sign,
}

/// The requests name the client: freeze, the messages (one part), taken.
const STEPS: &[Step] = &[
    Step { what: "freeze is asked for", link: Link::Peers, trap: |c| there(c, 1), sign: Sign::None },
    Step {
        what: "frozen, the answer is lost",
        link: Link::Peers,
        trap: |c| there(c, 1).answer(),
        sign: Sign::Log("session frozen"),
    },
    Step { what: "messages are asked for", link: Link::Peers, trap: |c| there(c, 2), sign: Sign::None },
    Step {
        what: "messages are on their way",
        link: Link::Peers,
        trap: |c| Trap::at(Way::Back, &text(c, 7)),
        sign: Sign::None,
    },
    Step {
        what: "routes are written",
        link: Link::Etcd,
        trap: |c| Trap::at(Way::There, &filter(c)),
        sign: Sign::None,
    },
    Step {
        what: "claim is sent",
        link: Link::Etcd,
        trap: |_| Trap::at(Way::There, r#""epoch":2"#),
        sign: Sign::None,
    },
    Step {
        what: "claimed, the answer is lost",
        link: Link::Etcd,
        trap: |_| Trap::at(Way::There, r#""epoch":2"#).answer(),
        sign: Sign::Claimed,
    },
    Step { what: "the old owner is told", link: Link::Peers, trap: |c| there(c, 3), sign: Sign::Answered },
    Step {
        what: "the old owner's answer is lost",
        link: Link::Peers,
        trap: |c| there(c, 3).answer(),
        sign: Sign::Log("session left"),
    },
];

fn there(text: &str, n: usize) -> Trap {
    Trap::at(Way::There, text).nth(n)
}

fn filter(client: &str) -> String {
    format!("to/{client}/+")
}

/// Message `n`; those with an odd number are of QoS 2.
fn text(client: &str, n: usize) -> String {
    format!("{n} for {client}")
}

/// A session on the old owner: messages 0 to 2 are with its client, of message 3 it has had PUBREL, the others wait.
fn prepare(cluster: &BerthCluster, dial: &Dial) -> Client {
    let mut client = cluster.connect(OLD, dial);
    assert_eq!(client.subscribe(&[(&filter(&dial.client_id), QoS::ExactlyOnce)]), [2]);
    let mut publisher = cluster.connect(THIRD, &Dial::v5("pub"));
    for n in 0..MESSAGES {
        let qos = if n % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        publisher.publish(&format!("to/{}/x", dial.client_id), &text(&dial.client_id, n), qos);
    }
    let last = (0..4).map(|_| client.receive_only()).last().unwrap();
    client.ack(AckKind::PubRec, last.packet_id).unwrap();
    assert_eq!(client.recv(), In::PubRel(last.packet_id));
    client
}

/// Begins to connect.
fn dial_only(cluster: &BerthCluster, i: usize, dial: &Dial) -> Client {
    let mut client = Client::raw(cluster.mqtt(i), Version::V5).unwrap();
    client.send(&dial.bytes()).unwrap();
    client
}

/// Connects as soon as it is let in; that there is no session is never said (G5).
fn come_back(cluster: &BerthCluster, i: usize, dial: &Dial) -> Client {
    wait::until("the session is served", || match dial.try_connect(cluster.mqtt(i)).unwrap() {
        (client, In::ConnAck { reason: Reason::Success, present, .. }) => {
            assert!(present, "{dial:?}");
            Some(client)
        }
        (_, In::ConnAck { reason: Reason::ServerUnavailable, .. }) => None,
        (_, other) => panic!("{other:?}"),
    })
}

/// All of the session comes, once and in order, and nothing else.
fn must_have_all(client: &mut Client, id: &str) {
    let mut released = 0;
    let mut texts = Vec::new();
    while texts.len() < MESSAGES - 1 || released < MESSAGES / 2 {
        match client.recv() {
            In::Publish(p) => {
                texts.push(p.text().to_owned());
                let odd = p.qos == QoS::ExactlyOnce;
                client.ack(if odd { AckKind::PubRec } else { AckKind::PubAck }, p.packet_id).unwrap();
            }
            In::PubRel(packet_id) => {
                released += 1;
                client.ack(AckKind::PubComp, packet_id).unwrap();
            }
            other => panic!("{other:?} after {texts:?}"),
        }
    }
    client.send(&[0xC0, 0]).unwrap();
    assert_eq!(client.recv(), In::PingResp);
    let wanted: Vec<_> = (0..MESSAGES).filter(|n| *n != 3).map(|n| text(id, n)).collect();
    for parity in [0, 1] {
        let of = |texts: &[String]| -> Vec<String> {
            let number = |t: &String| t.split(' ').next().unwrap().parse::<usize>().unwrap();
            texts.iter().filter(|t| number(t) % 2 == parity).cloned().collect()
        };
        assert_eq!(of(&texts), of(&wanted), "{id}");
    }
}

/// Kills `victim` at `step` and brings it back.
fn go(cluster: &mut BerthCluster, step: &Step, victim: usize, id: &str) {
    println!("{id}: {} when: {}", ["the old owner dies", "the new owner dies"][victim], step.what);
    let dial = Dial::v5(id).persistent().receive_maximum(4);
    let old = prepare(cluster, &dial);
    let trap = (step.trap)(id);
    let trapped = match step.link {
        Link::Peers => {
            cluster.trap_links_to(OLD, trap);
            OLD
        }
        Link::Etcd => {
            cluster.trap_etcd(NEW, &trap);
            NEW
        }
    };
    let mut new = dial_only(cluster, NEW, &dial);
    cluster.wait_caught(trapped, step.what);
    match step.sign {
        Sign::None => {}
        Sign::Log(words) => {
            cluster.broker(OLD).wait_log(|l| l.contains(words) && l.contains(id));
        }
        Sign::Claimed => wait::until_true("etcd names the new owner", || {
            cluster.owner(id)["owner"].as_str().unwrap().starts_with("n1@")
        }),
        Sign::Answered => assert!(matches!(new.recv(), In::ConnAck { present: true, .. })),
    }
    cluster.kill(victim);
    cluster.release();
    cluster.restart(victim);
    drop((old, new));
    let home = [NEW, THIRD][victim];
    let mut client = come_back(cluster, home, &dial);
    must_have_all(&mut client, id);
    wait::until_true("one node has it", || cluster.homes(id) == [home]);
    assert!(cluster.owner(id)["owner"].as_str().unwrap().starts_with(&format!("n{home}@")));
    // It is not only there, but served.
    let mut publisher = cluster.connect(victim, &Dial::v5("pub"));
    publisher.publish(&format!("to/{id}/x"), "more", QoS::ExactlyOnce);
    assert_eq!(client.receive().text(), "more");
    client.disconnect();
}

fn at_each_step(victim: usize, steps: &[Step]) {
    let mut cluster = BerthCluster::with(3, 1, OPTIONS);
    for (n, step) in steps.iter().enumerate() {
        go(&mut cluster, step, victim, &format!("mover{n}"));
    }
}

#[test]
fn the_old_owner_dies_at_each_step() {
    at_each_step(OLD, STEPS);
}

#[test]
fn the_new_owner_dies_at_each_step() {
    at_each_step(NEW, STEPS);
}
