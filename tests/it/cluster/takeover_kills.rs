//! The old owner of a session, the new one or both are killed while a takeover is at each of its steps; whatever the step, one
//! node has the session afterwards, with all of it, and its will is not published.

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
const FEW: usize = 12;

/// More than go into one part of its state.
const MANY: usize = 150;

/// No client is away for so long.
const WILL_DELAY_S: u32 = 600;

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
    messages: usize,
}

impl Step {
    const fn new(what: &'static str, link: Link, trap: fn(&str) -> Trap, sign: Sign) -> Step {
        Step { what, link, trap, sign, messages: FEW }
    }

    const fn of_many(self) -> Step {
        Step { messages: MANY, ..self }
    }
}

/// The requests name the client: freeze, the messages (one part, or two of many), taken.
const STEPS: &[Step] = &[
    Step::new("freeze is asked for", Link::Peers, |c| there(c, 1), Sign::None),
    Step::new(
        "frozen, the answer is lost",
        Link::Peers,
        |c| there(c, 1).answer(),
        Sign::Log("session frozen"),
    ),
    Step::new("messages are asked for", Link::Peers, |c| there(c, 2), Sign::None),
    Step::new("messages are on their way", Link::Peers, |c| Trap::at(Way::Back, &text(c, 7)), Sign::None),
    Step::new("more messages are asked for", Link::Peers, |c| there(c, 3), Sign::None).of_many(),
    Step::new(
        "more messages are on their way",
        Link::Peers,
        |c| Trap::at(Way::Back, &text(c, MANY - 1)),
        Sign::None,
    )
    .of_many(),
    Step::new("routes are written", Link::Etcd, |c| Trap::at(Way::There, &filter(c)), Sign::None),
    Step::new("claim is sent", Link::Etcd, claim, Sign::None),
    Step::new("claimed, the answer is lost", Link::Etcd, |c| claim(c).answer(), Sign::Claimed),
    Step::new("the old owner is told", Link::Peers, |c| there(c, 3), Sign::Answered),
    Step::new(
        "the old owner's answer is lost",
        Link::Peers,
        |c| there(c, 3).answer(),
        Sign::Log("session left"),
    ),
];

/// The session's own record under its second epoch.
fn claim(client: &str) -> Trap {
    Trap::at(Way::There, &format!("sessions/{client}")).then(r#""epoch":2"#)
}

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
fn prepare(cluster: &BerthCluster, dial: &Dial, messages: usize) -> Client {
    let mut client = cluster.connect(OLD, dial);
    assert_eq!(client.subscribe(&[(&filter(&dial.client_id), QoS::ExactlyOnce)]), [2]);
    let mut publisher = cluster.connect(THIRD, &Dial::v5("pub"));
    for n in 0..messages {
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
fn must_have_all(client: &mut Client, id: &str, messages: usize) {
    let mut released = 0;
    let mut texts = Vec::new();
    while texts.len() < messages - 1 || released < messages / 2 {
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
    let wanted: Vec<_> = (0..messages).filter(|n| *n != 3).map(|n| text(id, n)).collect();
    for parity in [0, 1] {
        let of = |texts: &[String]| -> Vec<String> {
            let number = |t: &String| t.split(' ').next().unwrap().parse::<usize>().unwrap();
            texts.iter().filter(|t| number(t) % 2 == parity).cloned().collect()
        };
        assert_eq!(of(&texts), of(&wanted), "{id}");
    }
}

/// Kills `victims` at `step` and brings them back; the client goes on at `home`.
fn go(cluster: &mut BerthCluster, step: &Step, victims: &[usize], home: usize, id: &str) {
    println!("{id}: {victims:?} die when: {}", step.what);
    let mut observer = cluster.connect(THIRD, &Dial::v5("observer"));
    assert_eq!(observer.subscribe(&[("will/#", QoS::AtLeastOnce)]), [1]);
    let will = format!("will/{id}");
    let dial = Dial::v5(id).persistent().receive_maximum(4).will(&will, "lost", WILL_DELAY_S);
    let old = prepare(cluster, &dial, step.messages);
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
    victims.iter().for_each(|victim| cluster.kill(*victim));
    cluster.release();
    victims.iter().for_each(|victim| cluster.broker(*victim).respawn());
    victims.iter().for_each(|victim| cluster.broker(*victim).wait_ready());
    drop((old, new));
    let mut client = come_back(cluster, home, &dial);
    must_have_all(&mut client, id, step.messages);
    wait::until_true("one node has it", || cluster.homes(id) == [home]);
    assert!(cluster.owner(id)["owner"].as_str().unwrap().starts_with(&format!("n{home}@")));
    // It is not only there, but served.
    let mut publisher = cluster.connect(victims[0], &Dial::v5("pub"));
    publisher.publish(&format!("to/{id}/x"), "more", QoS::ExactlyOnce);
    assert_eq!(client.receive().text(), "more");
    client.disconnect();
    observer.send(&[0xC0, 0]).unwrap();
    assert_eq!(observer.recv(), In::PingResp, "a will was published");
}

fn at_each_step(victims: &[usize], home: usize) {
    let mut cluster = BerthCluster::with(3, 1, OPTIONS);
    for (n, step) in STEPS.iter().enumerate() {
        go(&mut cluster, step, victims, home, &format!("mover-{n}-"));
    }
}

#[test]
fn the_old_owner_dies_at_each_step() {
    at_each_step(&[OLD], NEW);
}

#[test]
fn the_new_owner_dies_at_each_step() {
    at_each_step(&[NEW], THIRD);
}

#[test]
fn both_owners_die_at_each_step() {
    at_each_step(&[OLD, NEW], THIRD);
}
