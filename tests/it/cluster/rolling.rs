//! One broker after the other is stopped in good order and started again, while clients publish and receive: nothing
//! acknowledged is lost, nothing comes out of order, no will is published (G2, G3, G5, G8).

use super::nodes::BerthCluster;
use crate::client::Dial;
use crate::history::{self, Event};
use crate::kill::finish;
use crate::load::{Publisher, Stage, Subscriber};
use crate::wait::PATIENCE;
use berth::mqtt::QoS;
use std::sync::atomic::Ordering;

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
        let stage = Stage::cluster((0..cluster.len()).map(|i| cluster.mqtt(i)).collect());
        let with_will = |dial: Dial| {
            let id = dial.client_id.clone();
            dial.persistent().will(&format!("wills/{id}"), &id, 0)
        };
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

    /// Does something while the clients are at it; the history of all.
    pub fn run(self, meanwhile: impl FnOnce(&Stage)) -> Vec<Event> {
        let Load { stage, publishers, subscribers } = self;
        let mut events = std::thread::scope(|scope| {
            subscribers.into_iter().for_each(|s| drop(scope.spawn(move || s.run())));
            let publishing: Vec<_> = publishers.into_iter().map(|p| scope.spawn(move || p.run())).collect();
            meanwhile(&stage);
            stage.stop.store(true, Ordering::Release);
            publishing.into_iter().for_each(|p| p.join().unwrap());
            finish(&stage)
        });
        events.extend(stage.history.take());
        events
    }
}

/// Waits until the load has made progress.
pub fn goes_on(stage: &Stage) {
    let seen = stage.history.len() + BETWEEN;
    assert!(stage.history.wait_len(seen, PATIENCE), "nothing happens any more");
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_and_fires_no_will() {
    let mut cluster = BerthCluster::start(3);
    let watch = Dial::v5("watch").persistent();
    let mut watching = cluster.connect(0, &watch);
    assert_eq!(watching.subscribe(&[("wills/#", QoS::AtLeastOnce)]), [1]);
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
