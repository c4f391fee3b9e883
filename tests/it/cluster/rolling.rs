//! One broker after the other is stopped in good order and started again, while clients publish and receive: nothing
//! acknowledged is lost, nothing comes out of order, no will is published (G2, G3, G5, G8).

use super::nodes::BerthCluster;
use crate::client::Dial;
use crate::history::{self, Event, Name};
use crate::kill::finish;
use crate::load::{Publisher, Stage, Subscriber};
use crate::wait::PATIENCE;
use berth::mqtt::QoS;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Things that must be seen between two steps: the load goes on.
const BETWEEN: usize = 2000;

/// Clients of every node, and what they did and saw.
pub struct Load {
    pub stage: Stage,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
}

impl Load {
    /// All of them have a will without a delay.
    pub fn new(cluster: &BerthCluster) -> Load {
        let stage = Stage::cluster(cluster.addresses());
        let subscribers = vec![
            Subscriber::new(with_will(Dial::v5("everything")), "load/#", &stage),
            Subscriber::new(with_will(Dial::v5("slowly").receive_maximum(5)), "load/+/0", &stage),
            Subscriber::new(with_will(Dial::v4("older")), "load/p1/#", &stage),
        ];
        let publishers = vec![
            Publisher::new(with_will(Dial::v5("p0")), 10, &stage),
            Publisher::new(with_will(Dial::v4("p1")), 5, &stage),
            Publisher::new(with_will(Dial::v5("p2")), 10, &stage),
        ];
        Load { stage, publishers, subscribers }
    }

    /// Clients that stay at their node, and whose wills are written down: on each a publisher and a subscriber to everything.
    pub fn staying(addresses: &[SocketAddr]) -> Load {
        let stage = Stage { wills: true, ..Stage::cluster(addresses.to_vec()) };
        let on_each = || addresses.iter().map(|to| stage.at(*to)).enumerate();
        let subscriber =
            |(i, stage)| Subscriber::new(with_will(Dial::v5(&format!("s{i}"))), "load/#", &stage);
        let publisher = |(i, stage)| {
            let id = format!("p{i}");
            let dial = if i % 2 == 0 { Dial::v5(&id) } else { Dial::v4(&id) };
            Publisher::new(with_will(dial), 5, &stage)
        };
        let (subscribers, publishers) =
            (on_each().map(subscriber).collect(), on_each().map(publisher).collect());
        Load { stage, publishers, subscribers }
    }

    /// Does something while the clients are at it; the history of all.
    pub fn run(self, meanwhile: impl FnOnce(&Stage)) -> Vec<Event> {
        let Load { stage, publishers, subscribers } = self;
        let mut events = std::thread::scope(|scope| {
            let stops = stage.stops();
            subscribers.into_iter().for_each(|s| drop(scope.spawn(move || s.run())));
            let publishing: Vec<_> = publishers.into_iter().map(|p| scope.spawn(move || p.run())).collect();
            meanwhile(&stage);
            drop(stops);
            publishing.into_iter().for_each(|p| p.join().unwrap());
            finish(&stage)
        });
        events.extend(stage.history.take());
        events
    }
}

/// A client whose will, which has no delay, names it.
fn with_will(dial: Dial) -> Dial {
    let id = dial.client_id.clone();
    let mut dial = dial.persistent().will(&format!("wills/{id}"), &id, 0);
    dial.will.as_mut().unwrap().qos = QoS::ExactlyOnce;
    dial
}

/// That the clients of [`Load::staying`] have never connected again.
pub fn nobody_was_disconnected(events: &[Event]) {
    let mut connects = BTreeMap::<Name, usize>::new();
    for event in events {
        if let Event::Connecting { by, .. } = event {
            *connects.entry(*by).or_default() += 1;
        }
    }
    for (by, times) in connects {
        // A subscriber has been there before, to subscribe.
        let expected = if by.as_str().starts_with('s') { 2 } else { 1 };
        assert_eq!(times, expected, "{by} has connected again");
    }
}

/// Waits until the load has made progress.
pub fn goes_on(stage: &Stage) {
    let seen = stage.history.len() + BETWEEN;
    assert!(stage.history.wait_len(seen, PATIENCE), "nothing happens any more");
}

/// With `BERTH_PREVIOUS_BIN` it is an upgrade: both programs serve together until the last node is restarted.
#[test]
fn a_rolling_restart_under_load_loses_nothing_and_fires_no_will() {
    let mut cluster = BerthCluster::of_previous(3);
    let watch = Dial::v5("watch").persistent();
    let mut watching = cluster.connect(0, &watch);
    assert_eq!(watching.subscribe(&[("wills/#", QoS::ExactlyOnce)]), [2]);
    watching.disconnect();
    let events = Load::new(&cluster).run(|stage| {
        goes_on(stage);
        for i in 0..3 {
            cluster.term(i);
            goes_on(stage);
            cluster.restart(i);
            goes_on(stage);
        }
    });
    let report = history::must_hold("rolling restart", &events);
    assert!(report.acked > BETWEEN && report.received > report.acked, "too little load: {report:?}");
    let mut watching = cluster.connect(1, &watch);
    assert!(watching.present);
    cluster.connect(2, &Dial::v5("marker")).publish("wills/none", "none", QoS::AtLeastOnce);
    assert_eq!(watching.receive().text(), "none", "a will came");
}
