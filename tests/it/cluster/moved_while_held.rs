//! A publish is held up on its way to the node that had the session when it was matched, and the session goes on from node to
//! node meanwhile.

use super::nodes::BerthCluster;
use super::trap::{Trap, Way};
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason, Version};

/// Where the session is at first, and where then.
const FIRST: usize = 0;
const SECOND: usize = 2;
const ORIGIN: usize = 1;
/// Where it is in the end: elsewhere, at the origin, or back.
const LAST: [usize; 3] = [3, ORIGIN, FIRST];

/// A link on which a publish is held is no reason to give it up.
const PATIENT: (&str, &str) = ("cluster.peer_timeout", "60s");

/// A session on [`FIRST`], and a publish for it that does not get there.
struct Held {
    cluster: BerthCluster,
    dial: Dial,
    sub: Client,
    publisher: Client,
    topic: String,
    qos: QoS,
    first: u16,
}

impl Held {
    fn start(cluster: BerthCluster, last: usize, qos: QoS) -> Held {
        let dial = Dial::v5(&format!("sub{last}{}", qos as u8)).persistent();
        let topic = format!("held/{last}/{}", qos as u8);
        let mut sub = cluster.connect(FIRST, &dial);
        assert_eq!(sub.subscribe(&[(&topic, QoS::ExactlyOnce)]), [2]);
        cluster.trap_links_to(FIRST, Trap::at(Way::There, "the first of two"));
        let mut publisher = cluster.connect(ORIGIN, &Dial::v5("pub"));
        let first = publisher.send_publish(&topic, b"the first of two", qos, false).unwrap();
        cluster.wait_caught(FIRST, "the publish is on its way");
        Held { cluster, dial, sub, publisher, topic, qos, first }
    }

    /// Begins to connect to node `i`.
    fn dial(&self, i: usize) -> Client {
        let mut client = Client::raw(self.cluster.mqtt(i), Version::V5).unwrap();
        client.send(&self.dial.bytes()).unwrap();
        client
    }

    /// The session is at the node of `new` now.
    fn arrive(&mut self, mut new: Client) {
        let answer = new.recv();
        assert!(
            matches!(answer, In::ConnAck { present: true, reason: Reason::Success, .. }),
            "{answer:?} {:?}",
            self.dial
        );
        let mut old = std::mem::replace(&mut self.sub, new);
        // What it still gets comes again, as it does not acknowledge it.
        assert_eq!(old.expect_closed(), Some(Reason::SessionTakenOver));
    }

    /// Nothing was acknowledged so far.
    fn unacknowledged(&mut self) {
        self.publisher.send(&[0xC0, 0]).unwrap();
        assert_eq!(self.publisher.recv(), In::PingResp);
    }

    fn acknowledged(&mut self, id: u16) {
        let answer = self.publisher.recv();
        if self.qos == QoS::AtLeastOnce {
            assert_eq!(answer, In::PubAck(id, Reason::Success));
        } else {
            assert_eq!(answer, In::PubRec(id, Reason::Success));
        }
    }

    /// What is held gets there; the session has got `texts`, each once.
    fn must_get(mut self, texts: &[&str]) -> BerthCluster {
        let ids: Vec<u16> = (self.first..).take(texts.len()).collect();
        ids.iter().for_each(|id| self.acknowledged(*id));
        assert_eq!(self.sub.receive_texts(texts.len()), texts, "{:?}", self.dial);
        if self.qos == QoS::ExactlyOnce {
            ids.iter().for_each(|id| self.publisher.ack(AckKind::PubRel, *id).unwrap());
        }
        self.publisher.ping();
        self.sub.send(&[0xC0, 0]).unwrap();
        assert_eq!(self.sub.recv(), In::PingResp);
        self.cluster
    }
}

fn cases() -> impl Iterator<Item = (usize, QoS)> {
    LAST.into_iter().flat_map(|last| [QoS::AtLeastOnce, QoS::ExactlyOnce].map(|qos| (last, qos)))
}

#[test]
fn a_publish_finds_a_session_that_has_moved_twice() {
    // The second move waits so long for what may still come by the first owner.
    let mut cluster = BerthCluster::with(4, 1, &[("cluster.order_wait", "300ms"), PATIENT]);
    for (last, qos) in cases() {
        let mut held = Held::start(cluster, last, qos);
        for node in [SECOND, last] {
            let new = held.dial(node);
            held.arrive(new);
        }
        held.unacknowledged();
        held.cluster.release();
        cluster = held.must_get(&["the first of two"]);
    }
}

#[test]
fn what_was_published_later_stays_behind_it() {
    let mut cluster = BerthCluster::with(4, 1, &[("cluster.order_wait", "60s"), PATIENT]);
    for (last, qos) in cases() {
        let mut held = Held::start(cluster, last, qos);
        let new = held.dial(SECOND);
        held.arrive(new);
        let owner = |n: usize| format!("n{n}@");
        let named = held.cluster.owner(&held.dial.client_id)["owner"].to_string();
        assert!(named.contains(&owner(SECOND)), "{named}");
        held.publisher.send_publish(&held.topic, b"the second", qos, false).unwrap();
        held.unacknowledged();
        let new = held.dial(last);
        held.cluster
            .broker(last)
            .wait_log(|l| l.contains("takeover begins") && l.contains(&held.dial.client_id));
        held.cluster.release();
        held.arrive(new);
        let (id, at) = (held.dial.client_id.clone(), owner(last));
        wait::until_true("etcd names the last owner", || {
            held.cluster.owner(&id)["owner"].as_str().is_some_and(|o| o.starts_with(&at))
        });
        cluster = held.must_get(&["the first of two", "the second"]);
    }
}
