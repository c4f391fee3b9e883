//! G8: a will fires once per lost connection, and never after a clean goodbye or a return in time.

use crate::broker::Broker;
use crate::client::{Client, Dial};
use berth::mqtt::QoS;
use std::collections::BTreeMap;

/// A session that sees every will, through restarts too.
fn watch(broker: &Broker) -> Client {
    let mut client = Dial::v5("watch").persistent().connect(broker.mqtt);
    client.subscribe(&[("wills/#", QoS::ExactlyOnce)]);
    client
}

/// The wills that come until `last` has come and whatever was under way with it.
fn collect(watch: &mut Client, broker: &Broker, last: &str) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    while !seen.contains_key(last) {
        *seen.entry(watch.receive().text().to_owned()).or_default() += 1;
    }
    Dial::v5("marker").connect(broker.mqtt).publish("wills/marker", "marker", QoS::ExactlyOnce);
    loop {
        let text = watch.receive().text().to_owned();
        if text == "marker" {
            return seen;
        }
        *seen.entry(text).or_default() += 1;
    }
}

fn once(names: &[&str]) -> BTreeMap<String, usize> {
    names.iter().map(|n| ((*n).to_owned(), 1)).collect()
}

/// Connects a client with a will that says who it is.
fn with_will(dial: Dial, delay_s: u32) -> Dial {
    let name = dial.client_id.clone();
    dial.will(&format!("wills/{name}"), &name, delay_s)
}

#[test]
fn wills_fire_once() {
    let mut broker = Broker::start();
    let mut watching = watch(&broker);
    let connect = |dial, delay_s| with_will(dial, delay_s).connect(broker.mqtt);

    let [v5, v4] = [connect(Dial::v5("lost-5"), 0), connect(Dial::v4("lost-4").persistent(), 0)];
    let mut asked = connect(Dial::v5("asked"), 0);
    asked.send(&[0xE0, 2, 4, 0]).unwrap(); // DISCONNECT with will message
    asked.expect_closed();
    let mut broken = connect(Dial::v4("broken"), 0);
    broken.send(&[0xF0, 0]).unwrap();
    broken.expect_closed();
    let taken = connect(Dial::v5("taken"), 0);
    connect(Dial::v5("clean-5").persistent(), 0).disconnect();
    connect(Dial::v4("clean-4"), 0).disconnect();
    let took = Dial::v5("taken").connect(broker.mqtt);
    took.disconnect();
    drop((v5, v4, taken));
    connect(Dial::v5("last"), 0);
    let seen = collect(&mut watching, &broker, "last");
    // Those above were lost before the last one, but the broker may have learnt of it later.
    let mut seen = seen;
    while seen.len() < 6 {
        *seen.entry(watching.receive().text().to_owned()).or_default() += 1;
    }
    assert_eq!(seen, once(&["asked", "broken", "last", "lost-4", "lost-5", "taken"]));

    // The broker dies: the wills of whoever was connected fire when it is back, not those of others, and not again.
    let connected = [
        connect(Dial::v5("killed-5"), 0),
        connect(Dial::v4("killed-4").persistent(), 0),
        connect(Dial::v5("killed-later").persistent(), 1),
    ];
    connect(Dial::v5("clean-before"), 0).disconnect();
    broker.sigkill();
    drop(connected);
    broker.restart();
    watching = watch(&broker);
    let seen = collect(&mut watching, &broker, "killed-later");
    assert_eq!(seen, once(&["killed-4", "killed-5", "killed-later"]));
    for _ in 0..2 {
        broker.sigkill();
        broker.restart();
        watching = watch(&broker);
        drop(with_will(Dial::v5("other"), 0).connect(broker.mqtt));
        assert_eq!(collect(&mut watching, &broker, "other"), once(&["other"]));
    }
}

/// Who comes back within the delay keeps quiet; who does not, is announced after it, or when the session ends.
#[test]
fn a_return_within_the_delay_cancels_the_will() {
    let mut broker = Broker::start();
    let mut watching = watch(&broker);
    for killed in [false, true] {
        let quiet = with_will(Dial::v5(&format!("back-{killed}")).persistent(), 2);
        let ended = with_will(Dial::v5(&format!("ended-{killed}")).clean().expiry(1), 60);
        let late = with_will(Dial::v5(&format!("late-{killed}")).persistent(), 2);
        let clients = [&quiet, &ended, &late].map(|dial| dial.connect(broker.mqtt));
        if killed {
            broker.sigkill();
            broker.restart();
            watching = watch(&broker);
        }
        drop(clients);
        // Back as soon as the broker has noticed, at the latest by the takeover itself.
        let mut back = quiet.clone();
        back.will = None;
        let back = back.connect(broker.mqtt);
        assert!(back.present);
        // Lost after the other one came back: when its will has come, the other's time was over as well.
        let last = with_will(Dial::v5(&format!("last-{killed}")).persistent(), 2);
        drop(last.connect(broker.mqtt));
        let seen = collect(&mut watching, &broker, &format!("last-{killed}"));
        let names = [format!("ended-{killed}"), format!("last-{killed}"), format!("late-{killed}")];
        assert_eq!(seen, once(&names.each_ref().map(String::as_str)), "killed: {killed}");
        back.disconnect();
    }
}

/// A broker that is stopped in good order keeps the wills; those of clients that do not come back fire after the restart
/// (MQTT 3.1.1 section 3.1.2.5 allows that).
#[test]
fn wills_wait_for_the_broker_to_come_back() {
    let mut broker = Broker::start();
    let watching = watch(&broker);
    let staying = with_will(Dial::v5("back").persistent(), 3);
    let (one, two) = (staying.connect(broker.mqtt), with_will(Dial::v4("away"), 0).connect(broker.mqtt));
    let three = with_will(Dial::v5("later").persistent(), 1).connect(broker.mqtt);
    watching.disconnect();
    assert!(broker.stop().success());
    drop((one, two, three));
    broker.restart();
    let mut back = staying.clone();
    back.will = None;
    let back = back.connect(broker.mqtt);
    assert!(back.present);
    let mut watching = watch(&broker);
    drop(with_will(Dial::v5("last").persistent(), 3).connect(broker.mqtt));
    assert_eq!(collect(&mut watching, &broker, "last"), once(&["away", "last", "later"]));
    back.disconnect();
}
