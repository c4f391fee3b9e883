//! Kills the broker with SIGKILL under load, again and again, and checks that it kept its word.

use crate::broker::{Broker, Setup};
use crate::checker;
use crate::client::Dial;
use crate::history::{self, Event};
use crate::load::{END, Publisher, Stage, Subscriber};
use crate::random::Random;
use crate::wait::{self, PATIENCE};
use berth::mqtt::QoS;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Kills of a run; `BERTH_KILLS` says otherwise.
const KILLS: u64 = 30;

fn kills() -> u64 {
    std::env::var("BERTH_KILLS").map_or(KILLS, |n| n.parse().unwrap())
}

/// Kills the broker `n` times, each after a random number of things have been seen, or while it starts.
pub fn kill(broker: &mut Broker, stage: &Stage, n: u64, random: &mut Random) {
    for k in 0..n {
        if k % 6 == 5 {
            let line = ["berth starts", "journal read", "MQTT listens"][random.below(3) as usize];
            broker.wait_log(|l| l.contains(line));
        } else {
            let seen = stage.history.len() + 1 + random.below(3000) as usize;
            assert!(stage.history.wait_len(seen, PATIENCE), "nothing happens any more");
        }
        stage.history.add(Event::Killed);
        broker.sigkill();
        broker.respawn();
    }
}

/// Waits until nothing acknowledged is outstanding any more, then ends the subscribers.
pub fn finish(stage: &Stage) -> Vec<Event> {
    let mut events = Vec::new();
    stage.judging.store(true, Ordering::Release);
    // What is missing after so long does not come any more. A breach other than a late message does not go away either: it is
    // reported after the wait.
    let mut patience = wait::PATIENCE / 2;
    loop {
        events.extend(stage.history.take());
        let began = berth::clock::now();
        if checker::check(&events).is_empty() || patience.is_zero() {
            break;
        }
        // To judge a long history takes longer than what is late takes to come.
        let took = Duration::from_millis(berth::clock::now().since_ms(began));
        let pause = took.max(wait::PATIENCE / 100).min(patience);
        stage.history.wait_len(1, pause);
        patience -= pause;
    }
    stage.judging.store(false, Ordering::Release);
    stage.ended.store(true, Ordering::Release);
    Dial::v5("finisher").connect(stage.addresses[0]).publish(END, "", QoS::AtLeastOnce);
    events
}

/// G2, G3 and G4 on one node, and G5 along the way.
#[test]
fn acknowledged_messages_survive_sigkill() {
    let mut random = Random::seeded("BERTH_KILL_SEED");
    let mut broker = Setup::new().start();
    let stage = Stage::new(broker.mqtt);
    let subscribers = [
        Subscriber::new(Dial::v5("everything").persistent(), "load/#", &stage),
        // Its queue grows on disk, as it may have only five messages on the way.
        Subscriber::new(Dial::v5("slowly").persistent().receive_maximum(5), "load/+/0", &stage),
        Subscriber::new(Dial::v4("older").persistent(), "load/p1/#", &stage),
    ];
    let afterwards = Subscriber::new(Dial::v5("afterwards").persistent(), "load/p0/+", &stage);
    let publishers = [
        Publisher::new(Dial::v5("p0").persistent(), 20, &stage),
        Publisher::new(Dial::v4("p1").persistent(), 7, &stage),
        Publisher::new(Dial::v5("p2").persistent(), 50, &stage),
    ];
    let events = std::thread::scope(|scope| {
        let stops = stage.stops();
        for s in subscribers {
            scope.spawn(move || s.run());
        }
        let publishing = publishers.map(|p| scope.spawn(move || p.run()));
        kill(&mut broker, &stage, kills(), &mut random);
        drop(stops);
        for p in publishing {
            p.join().unwrap();
        }
        scope.spawn(move || afterwards.run());
        finish(&stage)
    });
    let mut events = events;
    events.extend(stage.history.take());
    let report = history::must_hold("raw clients", &events);
    assert_eq!(report.kills as u64, kills());
    assert!(report.acked > 20 * report.kills && report.received > report.acked, "too little load");
}
